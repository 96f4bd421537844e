//! The witness of overlaps: what it sees, and what it does not take for an overlap.

use std::{fs, path::Path};

use holm_e2e::{
    World, eventually, host,
    ran::send,
    unique,
    world::fleet::{overlaps, witness},
};
use rustix::{
    fs::{FlockOperation, flock},
    process::Signal,
};

/// Starts an agent whose sandboxes have witnesses.
#[track_caller]
fn start_agent(world: &mut World, name: &str, folder: &Path) {
    world.launch_agent(name, &[("HOLM_TEST_WITNESS", folder.to_owned())]);
}

/// Locks the witness of a run, if nobody has it.
fn lock(folder: &Path, run: &str) -> Option<fs::File> {
    let file = fs::File::options().create(true).append(true).open(folder.join(run)).expect("a file");
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok().map(|()| file)
}

/// The shim of a run; the keeper of its witness has the same command line and one thread.
#[track_caller]
fn shim_of(run: &str) -> u32 {
    let has_threads = |pid: u32| host::status_field(pid, "Threads").is_some_and(|count| count != "1");
    let is_shim = |pid: &u32| host::command_line(*pid).contains(" shim ") && has_threads(*pid);
    host::find(run).into_iter().find(is_shim).expect("a shim")
}

#[test]
fn a_start_under_a_lock_that_somebody_has_is_noted() {
    let mut world = World::with_server();
    let folder = witness(&world);
    let run = world.detach(["--", "echo", "done"]);
    let held = lock(&folder, &run).expect("nobody else has it");
    start_agent(&mut world, "only", &folder);
    assert_eq!(world.until_ended(&run)["outcome"]["kind"], "succeeded", "it goes on");
    let noted = overlaps(&folder);
    assert!(noted.lines().count() == 1 && noted.contains(&run), "{noted:?}");
    drop(held);
    world.run(["--", "echo", "next"]).succeeds();
    assert_eq!(overlaps(&folder), noted, "another run is no overlap");
}

#[test]
fn a_witness_is_there_until_the_last_process_of_a_sandbox_has_died() {
    let mut world = World::with_short_leases();
    let folder = witness(&world);
    start_agent(&mut world, "only", &folder);
    let word = unique("86387");
    let id = world.detach(["--", "bash", "-c", &format!("exec -a {word} sleep 86387")]);
    eventually("it runs", || (!host::find(&word).is_empty()).then_some(()));
    assert!(lock(&folder, &id).is_none(), "it is witnessed while it lives");
    send(shim_of(&id), Signal::KILL);
    let _held = eventually("the witness is gone", || lock(&folder, &id));
    // Seen once: a moment after the lock was free the command was still there. A run that is granted anew waits for longer.
    eventually("what it was to witness has died", || host::find(&word).is_empty().then_some(()));
    assert_eq!(world.until_ended(&id)["outcome"]["reason"], "guest_lost");
    assert_eq!(overlaps(&folder), "");
}

/// Beyond the fault model: a shim that stands still keeps no deadline.
#[test]
fn a_sandbox_that_outlives_its_lease_is_noted() {
    let mut world = World::with_short_leases();
    let folder = witness(&world);
    start_agent(&mut world, "first", &folder);
    let word = unique("86386");
    let id = world.detach(["--", "bash", "-c", &format!("exec -a {word} sleep 86386")]);
    eventually("it runs", || (!host::find(&word).is_empty()).then_some(()));
    let (shim, first) = (shim_of(&id), world.agent_pid("first"));
    // Its agent as well, which would end a shim that does not answer.
    [first, shim].into_iter().for_each(|pid| send(pid, Signal::STOP));
    start_agent(&mut world, "second", &folder);
    let noted = eventually("the second sandbox is noted", || Some(overlaps(&folder)).filter(|noted| !noted.is_empty()));
    assert!(noted.lines().count() == 1 && noted.contains(&format!("{id}.2 ")), "{noted:?}");
    eventually("there are two", || (host::find(&word).len() == 2).then_some(()));
    [shim, first].into_iter().for_each(|pid| send(pid, Signal::CONT));
    eventually("the first is killed late", || (host::find(&word).len() == 1).then_some(()));
    world.holm(["cancel", "--kill", &id]).succeeds();
    world.until_ended(&id);
}
