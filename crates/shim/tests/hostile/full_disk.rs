//! A disk of the host that is full, for a while or for good.

use std::{path::Path, time::Duration};

use holm_domain::run::{Cancel, EventKind, OutcomeKind, Reason};
use holm_shim::{
    full_disk::TRY_AGAIN_AFTER,
    protocol::{CHANGES_FILE_NAME, Command, EXIT_FILE_NAME, Phase, Status},
};
use holm_wire::{guest_api::OutputStream, host_api::Refused};

use crate::{
    keeps_no_changes,
    scripted::{Attempted, Script, Then, attempt, frame, honest, see_through},
    small_disk::SmallDisk,
};

/// Far below the five minutes for which a full disk is waited for, and far above what a slow machine needs.
const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn changes_leave_the_floor_of_the_disk_alone() {
    let mut attempted = attempt(Script { changes: Some(vec![0; 1024]), ..honest(b"") });
    attempted.storage_floor_bytes = u64::MAX;
    attempted.tuning.disk_full_ms = 600;
    let left = see_through(attempted).await;
    keeps_no_changes(&left, Reason::SpoolFailed, "no room left for the changes");
    assert!(left.took >= Duration::from_millis(600), "they are waited for: {:?}", left.took);
}

#[tokio::test]
async fn changes_wait_until_the_disk_is_above_its_floor() {
    let disk = SmallDisk::new(16 << 20);
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![1; 12 << 20]).unwrap();
    let changes: Vec<u8> = (0..3 << 20).map(|n: u32| n.to_le_bytes()[1]).collect();
    let mut waiting = attempt(Script { changes: Some(changes.clone()), ..honest(b"") });
    waiting.below = Some(disk.path().to_owned());
    waiting.storage_floor_bytes = 8 << 20;
    // Less than it waits for: the time without room is not the guest's.
    waiting.tuning.changes_ms = 3_000;
    let room = std::thread::spawn(|| {
        std::thread::sleep(Duration::from_millis(4_000));
        std::fs::remove_file(ballast).unwrap();
    });
    let left = see_through(waiting).await;
    room.join().unwrap();
    assert_eq!((left.code(), left.status.changes), (0, Some(3 << 20)), "{}", left.message());
    assert!(std::fs::read(left.dir.path().join(CHANGES_FILE_NAME)).unwrap() == changes);
}

#[tokio::test]
async fn changes_on_a_full_disk_give_back_what_they_took() {
    let disk = SmallDisk::new(4 << 20);
    let mut endless = attempt(Script { changes: None, ..honest(b"said\n") });
    endless.tuning.disk_full_ms = 600;
    endless.below = Some(disk.path().to_owned());
    let left = see_through(endless).await;
    keeps_no_changes(&left, Reason::SpoolFailed, "no room left for the changes");
    assert_eq!(left.output, b"said\n");
    let free = holm_runtime::room::free_bytes(left.dir.path()).unwrap().unwrap();
    assert!(free > 3 << 20, "{free}");
}

#[tokio::test]
async fn changes_wait_where_others_take_the_room_that_they_were_promised() {
    let disk = SmallDisk::new(8 << 20);
    // Less than is looked for at once: the room is asked for before the first piece only.
    let changes: Vec<u8> = (0..600_000).map(|n: u32| n.to_le_bytes()[1]).collect();
    let pause = Duration::from_millis(100);
    let mut waiting = attempt(Script { changes: Some(changes.clone()), changes_pause: pause, ..honest(b"") });
    waiting.below = Some(disk.path().to_owned());
    let path = disk.path().to_owned();
    let others = async {
        let begun = || std::fs::read_dir(&path).unwrap().any(|dir| is_begun(&dir.unwrap().path()));
        while !begun() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let ballast = disk.fill();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        std::fs::remove_file(ballast).unwrap();
    };
    let (left, ()) = tokio::join!(see_through(waiting), others);
    assert_eq!((left.code(), left.status.changes), (0, Some(600_000)), "{}", left.message());
    assert!(std::fs::read(left.dir.path().join(CHANGES_FILE_NAME)).unwrap() == changes);
    assert!(left.took >= Duration::from_millis(1_500), "it was full in the middle of them: {:?}", left.took);
}

/// Whether the first pieces of changes are in the folder of an attempt, and not all.
fn is_begun(dir: &Path) -> bool {
    std::fs::metadata(dir.join(format!("{CHANGES_FILE_NAME}.part"))).is_ok_and(|part| part.len() > 0)
}

#[tokio::test]
async fn output_waits_for_a_disk_that_is_full_for_a_while() {
    let disk = SmallDisk::new(8 << 20);
    let ballast = disk.fill();
    let data: Vec<u8> = (0..600_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let output: Vec<u8> = data.chunks(60_000).flat_map(|piece| frame(OutputStream::Stdout, piece)).collect();
    let refused = Refused { host: "10.0.0.1".into(), port: 80, protocol: "tcp".into(), count: 1 };
    let script = Script { output, output_bytes: data.len() as u64, refused: vec![refused], ..honest(b"") };
    let mut waiting = attempt(script);
    waiting.below = Some(disk.path().to_owned());
    let room = std::thread::spawn(|| {
        std::thread::sleep(Duration::from_millis(800));
        std::fs::remove_file(ballast).unwrap();
    });
    let left = see_through(waiting).await;
    room.join().unwrap();
    assert_eq!(left.code(), 0, "{}", left.message());
    assert!(matches!(&left.events[..], [EventKind::EgressRefused { count: 1, .. }]), "{:?}", left.events);
    assert!(left.output == data, "each byte once and in order");
}

#[tokio::test]
async fn on_a_full_disk_the_end_of_a_run_that_was_killed_is_told_soon() {
    let refused = || Refused { host: "10.0.0.1".into(), port: 80, protocol: "tcp".into(), count: 1 };
    let endless = || Script { then: Then::Forever, refused: vec![refused()], ..honest(b"") };
    let disk = SmallDisk::new(1 << 20);
    disk.fill();
    let mut late = attempt(endless());
    late.below = Some(disk.path().to_owned());
    late.spec.limits.timeout_ms = 1_000;
    let mut cancelled = attempt(endless());
    cancelled.below = Some(disk.path().to_owned());
    cancelled.commands = vec![Command::Cancel(Cancel::Kill)];
    assert!(late.tuning.disk_full_ms >= 300_000 && cancelled.tuning.disk_full_ms >= 300_000);
    let (late, cancelled) = tokio::join!(see_through(late), see_through(cancelled));
    for (left, kind) in [(late, OutcomeKind::TimedOut), (cancelled, OutcomeKind::Cancelled)] {
        assert_eq!(left.status.outcome.as_ref().unwrap().kind, kind);
        assert!(left.message().contains("no room left for what the run leaves"), "{}", left.message());
        assert_eq!((left.events.len(), left.status.events_unwritten), (0, 1));
        assert!(left.took < SOON, "{:?}", left.took);
    }
}

#[tokio::test]
async fn a_run_that_is_cancelled_while_what_it_left_waits_for_room_ends_soon() {
    let disk = SmallDisk::new(1 << 20);
    disk.fill();
    // While the command runs, and when it has ended: a result is told then.
    let cancelled_once = |commands_once: fn(&Status) -> bool| {
        let mut waiting = attempt(Script { result: Some(b"1".to_vec()), ..honest(b"never written\n") });
        waiting.spec.work_dir = None;
        waiting.below = Some(disk.path().to_owned());
        waiting.commands = vec![Command::Cancel(Cancel::Terminate)];
        waiting.commands_once = commands_once;
        see_through(waiting)
    };
    let running = cancelled_once(|status| status.phase >= Phase::Running);
    let (running, ended) = tokio::join!(running, cancelled_once(|status| status.result.is_some()));
    for left in [running, ended] {
        assert_eq!(left.status.outcome.as_ref().unwrap().kind, OutcomeKind::Cancelled);
        assert!(left.message().contains("no room left for what the run leaves"), "{}", left.message());
        assert_eq!(left.output, b"");
        assert!(left.took < SOON, "{:?}", left.took);
    }
}

/// An attempt whose disk is full and is soon given up, and whose sandbox is cancelled while it does not die.
fn cancelled_while_it_does_not_die(disk: &SmallDisk, script: Script) -> Attempted {
    let mut slow = attempt(script);
    slow.spec.work_dir = None;
    slow.below = Some(disk.path().to_owned());
    slow.tuning.disk_full_ms = 300;
    slow.tuning.death_ms = 900;
    slow.dies_at_kill = 3;
    slow.commands = vec![Command::Cancel(Cancel::Kill)];
    slow.commands_once = |status| status.phase >= Phase::Undying;
    slow
}

#[tokio::test]
async fn a_run_that_a_full_disk_has_ended_stays_so_though_it_is_cancelled_before_it_is_dead() {
    let disk = SmallDisk::new(1 << 20);
    disk.fill();
    // Given up while the command runs, and when it has ended.
    let running = cancelled_while_it_does_not_die(&disk, Script { then: Then::Forever, ..honest(b"") });
    let ended = cancelled_while_it_does_not_die(&disk, honest(b"never written\n"));
    let (running, ended) = tokio::join!(see_through(running), see_through(ended));
    for left in [running, ended] {
        let outcome = left.status.outcome.as_ref().unwrap();
        assert_eq!((outcome.kind, outcome.reason), (OutcomeKind::Failed, Some(Reason::SpoolFailed)), "{outcome:?}");
        assert!(left.undying && left.message().contains("no room left"), "{}", left.message());
    }
}

#[tokio::test]
async fn a_run_that_is_cancelled_while_its_changes_wait_ends_soon() {
    let times: [fn(&Status) -> bool; 2] = [|status| status.phase >= Phase::Running, |status| status.result.is_some()];
    for commands_once in times {
        let mut waiting = attempt(Script { result: Some(b"1".to_vec()), ..honest(b"said\n") });
        waiting.storage_floor_bytes = u64::MAX;
        waiting.tuning.terminate_grace_ms = 500;
        waiting.commands = vec![Command::Cancel(Cancel::Terminate)];
        waiting.commands_once = commands_once;
        let left = see_through(waiting).await;
        assert_eq!(left.status.outcome.as_ref().unwrap().kind, OutcomeKind::Cancelled);
        assert_eq!(left.status.changes, None);
        assert_eq!(left.output, b"said\n");
        assert!(left.took < SOON, "{:?}", left.took);
    }
}

#[tokio::test]
async fn what_waits_for_room_after_the_end_is_not_said_to_have_held_the_command_up() {
    let disk = SmallDisk::new(1 << 20);
    disk.fill();
    let refused = Refused { host: "10.0.0.1".into(), port: 80, protocol: "tcp".into(), count: 1 };
    let mut silent = attempt(Script { refused: vec![refused], then: Then::Hang, ..honest(b"") });
    silent.below = Some(disk.path().to_owned());
    silent.spec.limits.timeout_ms = 1_000;
    silent.tuning.disk_full_ms = 600;
    let left = see_through(silent).await;
    assert_eq!((left.code(), left.status.events_unwritten), (124, 1));
    assert!(!left.message().contains("the disk"), "{}", left.message());
}

#[tokio::test]
async fn no_run_fails_by_events_for_which_there_is_no_room() {
    let disk = SmallDisk::new(1 << 20);
    disk.fill();
    let refused = Refused { host: "10.0.0.1".into(), port: 80, protocol: "tcp".into(), count: 1 };
    let mut silent = attempt(Script { refused: vec![refused], ..honest(b"") });
    silent.spec.work_dir = None;
    silent.below = Some(disk.path().to_owned());
    silent.tuning.disk_full_ms = 600;
    let left = see_through(silent).await;
    assert_eq!((left.code(), left.events.len(), left.status.events_unwritten), (0, 0, 1), "{}", left.message());
    assert!(left.took >= Duration::from_millis(600), "they are waited for: {:?}", left.took);
}

#[tokio::test]
async fn the_final_status_is_kept_once_there_is_room() {
    let disk = SmallDisk::new(1 << 20);
    let ballast = disk.fill();
    let mut silent = attempt(honest(b""));
    silent.spec.work_dir = None;
    silent.below = Some(disk.path().to_owned());
    silent.leaves_after = Duration::from_secs(3);
    let room = std::thread::spawn(|| {
        std::thread::sleep(Duration::from_secs(1));
        std::fs::remove_file(ballast).unwrap();
    });
    // That what is told in the end lies there belongs to each attempt whose disk is not full then.
    let left = see_through(silent).await;
    room.join().unwrap();
    assert_eq!(left.code(), 0, "{}", left.message());
    let bytes = std::fs::read(left.dir.path().join(EXIT_FILE_NAME)).unwrap();
    assert_eq!(serde_json::from_slice::<Status>(&bytes).unwrap(), left.status);
}

#[tokio::test]
async fn a_final_status_is_told_whatever_is_in_its_way_and_written_once_nothing_is() {
    let mut obstructed = attempt(honest(b"said\n"));
    obstructed.spec.work_dir = None;
    obstructed.is_obstructed = true;
    // Long enough for a try, now that nothing is in the way any more.
    obstructed.leaves_after = TRY_AGAIN_AFTER * 40;
    // That it is written in the end belongs to each attempt.
    let left = see_through(obstructed).await;
    assert_eq!((left.code(), &left.output[..]), (0, &b"said\n"[..]), "{}", left.message());
}

#[tokio::test]
async fn an_event_that_waits_for_room_is_told_while_the_run_goes_on() {
    let disk = SmallDisk::new(1 << 20);
    let ballast = disk.fill();
    let refused = Refused { host: "10.0.0.1".into(), port: 80, protocol: "tcp".into(), count: 1 };
    let mut silent = attempt(Script { refused: vec![refused], then: Then::Hang, ..honest(b"") });
    silent.below = Some(disk.path().to_owned());
    silent.commands = vec![Command::Cancel(Cancel::Kill)];
    silent.commands_once = |status| status.events == 1;
    let room = std::thread::spawn(|| {
        std::thread::sleep(Duration::from_millis(800));
        std::fs::remove_file(ballast).unwrap();
    });
    let left = see_through(silent).await;
    room.join().unwrap();
    assert_eq!(left.status.outcome.as_ref().unwrap().kind, OutcomeKind::Cancelled);
    assert_eq!(left.events.len(), 1);
}
