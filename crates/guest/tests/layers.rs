//! Each wall taken away in turn: the others refuse the same. Needs root, and a guest with the feature `walls`.
#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::BTreeMap, time::Duration};

use holm_wire::guest_api::Exit;
use support::{Sandbox, spawn_of};

const DEADLINE: Duration = Duration::from_secs(60);
const ALL_CAPABILITIES: u64 = 0x1ff_ffff_ffff;

/// How the attempts went, by their names.
type Went = BTreeMap<String, String>;

/// Runs all attempts as root inside, where `walls` are down.
async fn attempts(walls: &str) -> (Went, Vec<String>) {
    let attempting = async {
        let (sandbox, epoch, set_up) = Sandbox::start_without(walls).set_up(false, false).await;
        epoch.spawn(&spawn_of("root", &["sleep", "1000"])).await.unwrap();
        // This test, and the process that the guest is on the host.
        let (own, guest) = (std::process::id().to_string(), sandbox.guest_pid().to_string());
        let program = ["python3", "-c", include_str!("layers.py"), &own, &guest];
        let (exit, told) = epoch.run(&spawn_of("root", &program)).await;
        assert_eq!(exit, Exit::Code(0), "{walls}: {}", told.errors());
        let text = told.text();
        assert!(text.ends_with("end\n"), "{walls}: {text}{}", told.errors());
        // The guest still answers: it was neither killed nor stopped.
        let (exit, _) = epoch.run(&spawn_of("root", &["true"])).await;
        assert_eq!(exit, Exit::Code(0), "{walls}");
        let went = text.lines().filter_map(|line| line.split_once(' '));
        (went.map(|(name, how)| (name.to_owned(), how.to_owned())).collect(), set_up.unenforced)
    };
    tokio::time::timeout(DEADLINE, attempting).await.expect("the attempts took too long")
}

fn is_down(went: &Went, wall: &str) -> bool {
    match wall {
        "seccomp" => went["Seccomp"] == "0",
        "capabilities" => u64::from_str_radix(&went["CapEff"], 16).unwrap() & ALL_CAPABILITIES == ALL_CAPABILITIES,
        other => panic!("{other}"),
    }
}

/// Every attempt of a kind was made and refused, for lack of the right.
fn all_refused(walls: &str, went: &Went, kinds: &[(&str, usize)]) {
    for &(kind, count) in kinds {
        let of_kind: Vec<_> = went.iter().filter(|(name, _)| name.starts_with(kind)).collect();
        assert_eq!(of_kind.len(), count, "{walls} down: {kind} was not attempted: {went:?}");
        for (name, how) in of_kind {
            let fitting: &[&str] = match name.as_str() {
                "signal-outward" => &["ESRCH"],
                "write-read-only" => &["EROFS"],
                // A locked mount is none that could be taken away.
                "mount-unmask" => &["EPERM", "EINVAL"],
                _ => &["EPERM", "EACCES"],
            };
            assert!(fitting.contains(&how.as_str()), "{walls} down: {name} {how}: {went:?}");
        }
    }
}

const KINDS: [(&str, usize); 5] = [("mount-", 5), ("write-", 1), ("trace-", 8), ("device-", 2), ("signal-", 1)];

#[tokio::test]
async fn without_the_filters_the_others_refuse() {
    let (went, _) = attempts("seccomp").await;
    assert!(is_down(&went, "seccomp") && !is_down(&went, "capabilities"), "{went:?}");
    all_refused("seccomp", &went, &KINDS);
}

#[tokio::test]
async fn without_landlock_the_others_refuse_and_it_is_told() {
    let (went, unenforced) = attempts("landlock").await;
    assert_eq!(unenforced, ["landlock: a test has taken it away"]);
    all_refused("landlock", &went, &KINDS);
}

#[tokio::test]
async fn with_every_capability_the_others_refuse() {
    let (went, _) = attempts("capabilities").await;
    assert!(is_down(&went, "capabilities") && !is_down(&went, "seccomp"), "{went:?}");
    all_refused("capabilities", &went, &KINDS);
}

#[tokio::test]
async fn landlock_alone_refuses_every_mount() {
    let (went, unenforced) = attempts("seccomp,capabilities").await;
    assert!(is_down(&went, "seccomp") && is_down(&went, "capabilities") && unenforced.is_empty(), "{went:?}");
    all_refused("seccomp and capabilities", &went, &KINDS);
}

/// The control: the attempts are such that something gives way, and what the namespaces refuse they refuse by themselves.
#[tokio::test]
async fn without_all_three_mounts_give_way_and_the_namespaces_still_stand() {
    let (went, _) = attempts("seccomp,landlock,capabilities").await;
    assert!(is_down(&went, "seccomp") && is_down(&went, "capabilities"), "{went:?}");
    for name in ["mount-tmpfs", "mount-bind", "mount-own-namespaces"] {
        assert_eq!(went[name], "ok", "{went:?}");
    }
    // The kernel has locked the mounts that came from the guest's namespace.
    assert_eq!(went["mount-writable"], "EPERM");
    assert!(["EINVAL", "EPERM"].contains(&went["mount-unmask"].as_str()), "{went:?}");
    all_refused("all three", &went, &KINDS[1..]);
}
