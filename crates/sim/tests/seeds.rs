//! Seeds in which everything holds, told twice alike, and mutants that are caught.

use holm_sim::{Mutant, Setting, Told, counts::Counts, replay, simulate, trace::Trace};

const SOUND: Setting = Setting { mutant: None, late_shims: false };

fn told(seed: u64, setting: Setting) -> Told {
    simulate(seed, setting, Trace::default()).expect("there are servers")
}

/// Simulates 50 seeds from `first` on, each twice; returns how much happened in all of them.
fn fifty(first: u64) -> Counts {
    let mut all = Counts::default();
    for seed in first..first + 50 {
        let [one, other] = [told(seed, SOUND), told(seed, SOUND)];
        assert_eq!(one.violation, None, "see it again: {}", replay(seed, SOUND));
        assert_eq!(one, other, "seed {seed} is told in two ways; compare the output of `{}`", replay(seed, SOUND));
        all = all.plus(one.counts);
    }
    all
}

/// Seeds in which nothing happens hold as well: what the protocol is for has to be there.
fn assert_eventful(counts: Counts) {
    let Counts { faults, conflicts, lost, doubled, delayed, cut_off, .. } = counts;
    let Counts { kills, taken_up, requeued, succeeded, ended, .. } = counts;
    let each = [conflicts, lost, doubled, delayed, cut_off, kills, taken_up, requeued];
    assert!(each.iter().chain(&faults).all(|count| *count >= 5), "{counts:?}");
    assert!(succeeded * 3 > ended && ended - succeeded >= 5, "{counts:?}");
}

#[test]
fn the_first_fifty_seeds_hold_and_are_told_twice_alike() {
    assert_eventful(fifty(0));
}

#[test]
fn the_second_fifty_seeds_hold_and_are_told_twice_alike() {
    assert_eventful(fifty(50));
}

#[test]
fn the_third_fifty_seeds_hold_and_are_told_twice_alike() {
    assert_eventful(fifty(100));
}

#[test]
fn the_fourth_fifty_seeds_hold_and_are_told_twice_alike() {
    assert_eventful(fifty(150));
}

#[test]
fn seeds_that_found_a_fault_hold() {
    // A process says that it could not make a sandbox, is superseded while the server takes that in, and the next one makes it.
    assert_eq!(told(3848, SOUND).violation, None, "see it again: {}", replay(3848, SOUND));
}

/// What a mutant is caught by: its seed, and what that says.
fn caught_by(mutant: Mutant) -> (u64, &'static str) {
    match mutant {
        Mutant::NoFenceCheck => (11, "wrote, and the newest fence was"),
        Mutant::NoFenceCheckOfRenewals => (23, "wrote, and the newest fence was"),
        Mutant::NoFenceCheckOfStarts => (31, "wrote, and the newest fence was"),
        Mutant::NoFenceCheckOfAppends => (146, "wrote, and the newest fence was"),
        Mutant::NoFenceCheckOfEvents => (1_000, "wrote, and the newest fence was"),
        Mutant::NoFenceCheckOfSandboxEnds => (11, "wrote, and the newest fence was"),
        Mutant::NoFenceCheckOfFinishes => (23, "wrote, and the newest fence was"),
        Mutant::NoShimDeadline => (3, "live at once"),
        Mutant::DeadlineFromAnswer => (148, "live at once"),
        Mutant::WeakSwap => (27, "changed after its end"),
        Mutant::NoMargin => (1_014, "live at once"),
        Mutant::LostAcknowledgement => (0, "neither in the spool nor in the store"),
        Mutant::MadeAgainUnasked => (366, "live at once"),
        Mutant::LostWakeUps => (0, "a host has room for it, and in"),
    }
}

#[test]
fn every_mutant_is_caught_by_its_seed() {
    for mutant in Mutant::ALL {
        let (seed, what) = caught_by(mutant);
        let found = told(seed, mutant.into()).violation;
        let search = format!("cargo xtask sim --seeds 2000 --mutant {}", mutant.as_str());
        assert!(
            found.as_ref().is_some_and(|found| found.contains(what)),
            "seed {seed} finds {found:?}; where the simulation itself was changed, look for another one: {search}"
        );
        assert_eq!(told(seed, SOUND).violation, None, "without the mutant it holds");
    }
}

#[test]
fn where_shims_come_too_late_sandboxes_overlap_and_what_is_stored_holds() {
    let setting = Setting { mutant: None, late_shims: true };
    let mut overlaps = 0;
    for seed in 0..100 {
        let told = told(seed, setting);
        assert_eq!(told.violation, None, "see it again: {}", replay(seed, setting));
        overlaps += told.counts.overlaps;
    }
    assert!(overlaps > 0, "no sandbox lived beside another one of its run");
}

#[test]
fn two_seeds_are_two_stories() {
    assert_ne!(told(1, SOUND).digest, told(2, SOUND).digest);
}
