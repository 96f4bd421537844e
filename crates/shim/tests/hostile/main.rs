//! Guests that lie, break, stall and flood: each ends as a failure that says so, and never as a success (SPEC R9, R11).
#![allow(clippy::unwrap_used)]

mod full_disk;
#[path = "../scripted/mod.rs"]
mod scripted;
#[path = "../small_disk/mod.rs"]
mod small_disk;

use std::time::Duration;

use holm_domain::{
    limits::RESULT_BYTES_MAX,
    log::{Entry, Stream, parse_all},
    run::{Cancel, EventKind, ExitStatus, OutcomeKind, Reason},
};
use holm_shim::{
    protocol::{CHANGES_FILE_NAME, Command, EVENTS_MAX, SPOOL_DIR_NAME, Tuning},
    spool::reader::Reader,
};
use holm_wire::{
    guest_api::{Exit, OutputStream, SpawnFailure, SpawnFailureKind},
    host_api::Refused,
};
use http::StatusCode;
use scripted::{Left, Script, Then, attempt, frame, honest, refusal, see_through};

#[tokio::test]
async fn an_honest_guest_succeeds_and_nothing_is_lost() {
    let mut script = honest(b"hello\nwithout an end");
    script.result = Some(br#"{"passed": 3}"#.to_vec());
    script.changes = Some(b"a tar archive".to_vec());
    let left = see_through(attempt(script)).await;
    assert_eq!((left.code(), left.output.as_slice()), (0, b"hello\nwithout an end".as_slice()));
    assert_eq!(left.status.result, Some(serde_json::json!({"passed": 3})));
    assert_eq!(left.status.changes, Some(13));
    assert_eq!(std::fs::read(left.dir.path().join(CHANGES_FILE_NAME)).unwrap(), b"a tar archive");
    assert!(left.kills >= 1, "what is left in the sandbox is killed");
}

#[tokio::test]
async fn a_sandbox_that_does_not_die_has_not_ended_and_is_killed_again() {
    let mut undying = attempt(honest(b"out\n"));
    undying.tuning.death_ms = 100;
    // At once, after half a second, and a second later.
    undying.dies_at_kill = 3;
    let left = see_through(undying).await;
    assert!(left.undying && left.kills >= 3, "{} kills", left.kills);
    assert!(left.took >= Duration::from_millis(1_500), "{:?}", left.took);
    assert_eq!(left.events, [EventKind::SandboxUndying { waited_ms: 100 }]);
    // The command had ended, with all of its output, before anything was killed.
    assert_eq!((left.code(), left.output.as_slice()), (0, b"out\n".as_slice()));
    assert!(!see_through(attempt(honest(b""))).await.undying);
}

#[tokio::test]
async fn a_failed_command_keeps_its_code_and_leaves_no_changes() {
    let script = Script { exit: Some(Exit::Code(3)), changes: Some(b"x".to_vec()), ..honest(b"out\n") };
    let left = see_through(attempt(script)).await;
    assert_eq!((left.code(), left.status.changes), (3, None));
    let script = Script { exit: Some(Exit::Signal(11)), ..honest(b"") };
    assert_eq!(see_through(attempt(script)).await.code(), 139);
}

#[tokio::test]
async fn a_guest_that_is_not_ready_is_given_up_and_the_time_is_said() {
    let mut silent = attempt(Script { answers_hello: false, ..honest(b"") });
    silent.tuning.ready_ms = 300;
    let left = see_through(silent).await;
    assert_eq!(left.status.outcome.as_ref().unwrap().reason, Some(Reason::LaunchFailed));
    assert!(left.took >= Duration::from_millis(300) && left.took < Duration::from_secs(10), "{:?}", left.took);
    assert!(left.message().contains("not ready after 3") && left.message().contains("300ms"), "{}", left.message());
    let left = see_through(attempt(Script { setup: StatusCode::INTERNAL_SERVER_ERROR, ..honest(b"") })).await;
    assert_eq!(left.status.outcome.as_ref().unwrap().reason, Some(Reason::LaunchFailed));
    assert!(left.message().contains("setup") && left.message().contains("500"), "{}", left.message());
}

#[tokio::test]
async fn missing_walls_are_told_and_too_many_are_not_believed() {
    let unenforced = vec!["landlock: no\u{1b}[2J".to_owned(), "x".repeat(5_000)];
    let left = see_through(attempt(Script { unenforced, ..honest(b"") })).await;
    assert_eq!(left.code(), 0);
    assert_eq!(left.status.unenforced, ["landlock: no [2J".to_owned(), "x".repeat(256)]);
    let left = see_through(attempt(Script { unenforced: vec![String::new(); 17], ..honest(b"") })).await;
    assert_eq!(left.status.outcome.as_ref().unwrap().reason, Some(Reason::LaunchFailed));
    assert!(left.message().contains("17 walls"), "{}", left.message());
}

#[tokio::test]
async fn refusals_to_start_are_classified_and_malformed_ones_are_lies() {
    let not_found = SpawnFailure { kind: SpawnFailureKind::NotFound, message: "no \u{1b}[31mtrue".into() };
    let left = see_through(attempt(Script { spawn_refusal: refusal(&not_found), ..honest(b"") })).await;
    assert_eq!((left.code(), left.message().as_str()), (127, "no  [31mtrue"));
    let left = see_through(attempt(Script { spawn_refusal: Some(b"{}".to_vec()), ..honest(b"") })).await;
    assert_eq!(left.status.outcome.as_ref().unwrap().reason, Some(Reason::GuestLost));
}

async fn is_lost(what: &str, script: Script, words: &str) {
    let left = see_through(attempt(script)).await;
    let outcome = left.status.outcome.as_ref().unwrap();
    assert_eq!((outcome.kind, outcome.reason), (OutcomeKind::Failed, Some(Reason::GuestLost)), "{what}: {outcome:?}");
    assert!(left.message().contains(words), "{what}: {}", left.message());
    assert_eq!(left.code(), 125, "{what}");
    assert!(left.kills >= 1, "{what}");
}

#[tokio::test]
async fn lies_about_the_output_are_seen() {
    let good = frame(OutputStream::Stdout, b"good\n");
    let with = |bytes: &[u8]| Script { output: [good.as_slice(), bytes].concat(), output_bytes: 5, ..honest(b"") };
    is_lost("unknown stream", with(&[9, 1, 0, 0, 0, b'x']), "no output stream has the number 9").await;
    is_lost("empty frame", with(&[1, 0, 0, 0, 0]), "cannot have 0 bytes").await;
    is_lost("endless frame", with(&[1, 255, 255, 255, 255]), "cannot have 4294967295 bytes").await;
    is_lost("torn frame", with(&[1, 10, 0, 0, 0, b'x']), "ended within a frame").await;
    is_lost("less than told", Script { output_bytes: 6, ..with(b"") }, "says that there were 6").await;
    is_lost("more than told", Script { output_bytes: 0, ..with(b"") }, "says that there were 0").await;
}

#[tokio::test]
async fn lies_about_the_end_are_seen() {
    is_lost("no end", Script { exit: None, ..honest(b"") }, "says that the command runs").await;
    is_lost("no such signal", Script { exit: Some(Exit::Signal(77)), ..honest(b"") }, "signal 77").await;
    let broke_down = Some("the workload broke down: its init was ended by signal 9");
    is_lost("no init", Script { broke_down, ..honest(b"") }, "its init was ended by signal 9").await;
    let mut stalls = attempt(Script { answers_exit: false, ..honest(b"") });
    stalls.tuning.answer_ms = 200;
    let left = see_through(stalls).await;
    assert_eq!(left.status.outcome.as_ref().unwrap().reason, Some(Reason::GuestLost));
    assert!(left.message().contains("no answer within 200ms"), "{}", left.message());
}

#[tokio::test]
async fn an_output_that_does_not_go_on_where_it_was_is_seen() {
    let data = vec![b'y'; 50_000];
    is_lost(
        "from the beginning",
        Script { breaks_after: Some(7_000), repeats: true, ..honest(&data) },
        "says that there were 50000",
    )
    .await;
}

#[tokio::test]
async fn answers_that_are_none_are_no_end() {
    let ends = [
        "",
        "{",
        "null",
        "[]",
        r#"{"exit":{"code":256},"output_bytes":5}"#,
        r#"{"exit":{"code":-1},"output_bytes":5}"#,
        r#"{"exit":{"code":0.0},"output_bytes":5}"#,
        r#"{"exit":{"code":"0"},"output_bytes":5}"#,
        r#"{"exit":{"signal":300},"output_bytes":5}"#,
        r#"{"exit":{"code":0,"signal":9},"output_bytes":5}"#,
        r#"{"exit":{"code":3},"exit":{"code":0},"output_bytes":5}"#,
        r#"{"exit":{"code":0},"output_bytes":-5}"#,
        r#"{"exit":{"code":0},"output_bytes":18446744073709551616}"#,
        r#"{"exit":"success","output_bytes":5}"#,
        r#"{"exit":{"signal":0},"output_bytes":5}"#,
    ];
    for end in ends {
        is_lost(end, Script { says_at: Some(("/processes/1", end)), ..honest(b"said\n") }, "").await;
    }
    for id in [r#"{"id":-1}"#, r#"{"id":4294967296}"#, r#"{"id":"1"}"#, "{}"] {
        is_lost(id, Script { says_at: Some(("/processes", id)), ..honest(b"") }, "").await;
    }
    let left = see_through(attempt(Script { says_at: Some(("/setup", r#"{"unenforced":1}"#)), ..honest(b"") })).await;
    assert_eq!(left.status.outcome.as_ref().unwrap().reason, Some(Reason::LaunchFailed));
}

#[tokio::test]
async fn silence_at_each_step_has_its_deadline() {
    let table = [
        ("/setup", Reason::LaunchFailed, "setup"),
        ("/processes", Reason::GuestLost, "starting the command"),
        ("/processes/1/output", Reason::GuestLost, "reading the output"),
        ("/processes/1", Reason::GuestLost, "asking how the command ended"),
        ("/result", Reason::GuestLost, "reading the result"),
        ("/changes", Reason::GuestLost, "reading the changes"),
    ];
    for (path, reason, words) in table {
        let mut silent = attempt(Script { silent_at: Some(path), ..honest(b"said\n") });
        silent.tuning = Tuning { ready_ms: 300, answer_ms: 300, changes_ms: 300, ..silent.tuning };
        let left = see_through(silent).await;
        assert_eq!(left.status.outcome.as_ref().unwrap().reason, Some(reason), "{path}");
        assert!(left.message().contains(words) && left.message().contains("300ms"), "{path}: {}", left.message());
        assert!(
            left.took < Duration::from_secs(10) && left.code() == 125 && left.kills >= 1,
            "{path}: {:?}",
            left.took
        );
    }
    // Nothing on the acknowledgement of output, of which more than that is sent.
    let much = vec![b'y'; 600_000];
    let frames: Vec<u8> = much.chunks(60_000).flat_map(|piece| frame(OutputStream::Stdout, piece)).collect();
    let silent_at = Some("/processes/1/ack");
    let script = Script { silent_at, output: frames, output_bytes: 600_000, then: Then::Hang, ..honest(b"") };
    let mut silent = attempt(script);
    silent.tuning.answer_ms = 300;
    let left = see_through(silent).await;
    assert!(left.message().contains("acknowledging output"), "{}", left.message());
    // Nothing on a request to end: who asked does not wait for it.
    let mut silent = attempt(Script { silent_at: Some("/processes/1/signal"), then: Then::Hang, ..honest(b"") });
    silent.tuning = Tuning { terminate_grace_ms: 200, answer_ms: 300, ..silent.tuning };
    silent.commands = vec![Command::Cancel(Cancel::Terminate)];
    let left = see_through(silent).await;
    assert_eq!(left.status.outcome.as_ref().unwrap().kind, OutcomeKind::Cancelled);
    assert!(left.took < Duration::from_secs(10) && left.kills >= 1, "{:?}", left.took);
    // A command may be silent for as long as it likes: then its time limit counts.
    let mut quiet = attempt(Script { then: Then::Hang, ..honest(b"") });
    quiet.spec.limits.timeout_ms = 500;
    assert_eq!(see_through(quiet).await.code(), 124);
}

#[tokio::test]
async fn broken_lanes_are_never_a_success() {
    is_lost("lane in", Script { then: Then::CloseLanes, ..honest(b"some\n") }, "").await;
    is_lost("lane out", Script { closes_out: true, then: Then::Hang, ..honest(b"") }, "lane out").await;
}

#[tokio::test]
async fn a_stream_that_breaks_is_taken_up_where_it_was() {
    let data: Vec<u8> = (0..50_000u32).flat_map(|n| (n % 251).to_le_bytes()[..1].to_vec()).collect();
    let left = see_through(attempt(Script { breaks_after: Some(7_000), ..honest(&data) })).await;
    assert_eq!(left.code(), 0, "{}", left.message());
    assert!(left.output == data, "each byte once and in order");
    is_lost("no progress", Script { breaks_after: Some(0), ..honest(b"never\n") }, "reading the output").await;
}

#[tokio::test]
async fn results_that_are_none_are_told_and_oversized_ones_end_the_run() {
    let left = see_through(attempt(Script { result: Some(b"{not json".to_vec()), ..honest(b"") })).await;
    assert_eq!((left.code(), left.status.result), (0, None));
    assert!(matches!(&left.events[..], [EventKind::ResultRefused { problem }] if problem.contains("not JSON")));
    let long = Script { result: Some(vec![b' '; RESULT_BYTES_MAX + 1]), ..honest(b"") };
    let left = see_through(attempt(long)).await;
    assert!(matches!(&left.events[..], [EventKind::ResultRefused { problem }] if problem.contains("longer than")));
    is_lost("2 MiB", Script { result: Some(vec![b'1'; 2 << 20]), ..honest(b"") }, "larger than").await;
}

#[tokio::test]
async fn endless_changes_are_cut_off() {
    let mut endless = attempt(Script { changes: None, ..honest(b"") });
    endless.spec.limits.disk_bytes = 1024 * 1024;
    let left = see_through(endless).await;
    keeps_no_changes(&left, Reason::ChangesLimit, "more than 3145728 bytes as an archive");
}

/// Whether the run ended for that reason, and nothing of its changes is on the disk.
fn keeps_no_changes(left: &Left, reason: Reason, words: &str) {
    let outcome = left.status.outcome.as_ref().unwrap();
    assert_eq!((outcome.reason, left.code(), left.status.changes), (Some(reason), 125, None), "{outcome:?}");
    assert!(left.message().contains(words), "{}", left.message());
    let names: Vec<_> = std::fs::read_dir(left.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().contains("changes")), "{names:?}");
}

#[tokio::test]
async fn changes_that_the_guest_refuses_are_no_loss_of_the_guest() {
    let why = "they take more than 7 bytes as an archive; the largest file seen, `\u{1b}[1mx`, has 9 bytes";
    let left = see_through(attempt(Script { changes_refusal: Some(why), ..honest(b"said\n") })).await;
    keeps_no_changes(&left, Reason::ChangesLimit, "seen, ` [1mx`, has 9 bytes");
    assert_eq!(left.status.outcome.as_ref().unwrap().exit, Some(ExitStatus::Code(0)), "what the command did is told");
    assert_eq!(left.output, b"said\n");
}

#[tokio::test]
async fn changes_that_trickle_have_a_deadline() {
    let mut slow = attempt(Script { changes: None, changes_pause: Duration::from_millis(50), ..honest(b"") });
    slow.tuning.changes_ms = 500;
    keeps_no_changes(&see_through(slow).await, Reason::GuestLost, "did not come to their end in 500ms");
}

#[tokio::test]
async fn floods_of_output_wait_for_the_agent_and_end_with_the_time_limit() {
    let mut flood = attempt(Script { then: Then::Forever, ..honest(b"") });
    flood.tuning = Tuning { spool_bytes_max: 1024 * 1024, ..flood.tuning };
    flood.spec.limits.timeout_ms = 1_500;
    let left = see_through(flood).await;
    let outcome = left.status.outcome.as_ref().unwrap();
    assert_eq!((outcome.kind, left.code()), (OutcomeKind::TimedOut, 124));
    let spool = std::fs::read_dir(left.dir.path().join(SPOOL_DIR_NAME)).unwrap();
    let bytes: u64 = spool.map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!((1024 * 1024..1024 * 1024 + 256 * 1024).contains(&bytes), "{bytes}");
}

#[tokio::test]
async fn the_beginning_of_a_line_is_told_while_the_other_stream_never_pauses() {
    let output = frame(OutputStream::Stderr, b"Password: ");
    let mut flood = attempt(Script { output, then: Then::Forever, ..honest(b"") });
    flood.spec.limits.timeout_ms = 1_000;
    let left = see_through(flood).await;
    assert_eq!(left.status.outcome.as_ref().unwrap().kind, OutcomeKind::TimedOut);
    let mut reader = Reader::new(left.dir.path(), 1);
    let prompt = loop {
        let chunk = reader.read(1).unwrap();
        let batches = parse_all(&chunk.bytes).unwrap();
        assert!(!batches.is_empty(), "the prompt is not in the spool");
        let mut opened = batches.iter().map(|batch| batch.read().unwrap());
        let is_prompt = |entry: &Entry<'_>| entry.stream == Stream::Stderr;
        if let Some(told) =
            opened.find_map(|entries| entries.iter().find(is_prompt).map(|it| (it.partial, it.data.to_vec())))
        {
            break told;
        }
    };
    // Had it waited for the end of the output, it would not go on.
    assert_eq!(prompt, (true, b"Password: ".to_vec()));
}

#[tokio::test]
async fn floods_of_output_end_at_the_limit() {
    let mut flood = attempt(Script { then: Then::Forever, ..honest(b"") });
    flood.spec.limits.log_bytes = 300_000;
    let left = see_through(flood).await;
    let outcome = left.status.outcome.as_ref().unwrap();
    assert_eq!((outcome.reason, left.code()), (Some(Reason::LogLimit), 137));
    assert!(left.message().contains("300000 bytes"), "{}", left.message());
    assert_eq!(left.output.len(), 300_000, "what it may write is kept, and no byte more");
    assert_eq!(left.status.usage.log_bytes, Some(300_000));
}

#[tokio::test]
async fn floods_of_refused_connections_stay_bounded_and_counted() {
    let refused = |port| Refused { host: "10.0.0.1".into(), port, protocol: "tcp".into(), count: 2 };
    let script = Script { refused: (0..400).map(refused).collect(), ..honest(b"") };
    let left = see_through(attempt(script)).await;
    assert!(left.events.len() as u64 <= EVENTS_MAX);
    let counts = left.events.iter().map(|event| match event {
        EventKind::EgressRefused { count, .. } => *count,
        other => panic!("{other:?}"),
    });
    assert_eq!((left.code(), counts.sum::<u64>()), (0, 800));
}

#[tokio::test]
async fn a_command_that_ignores_the_request_to_end_is_killed() {
    let mut stubborn = attempt(Script { then: Then::Hang, ..honest(b"begun\n") });
    stubborn.tuning.terminate_grace_ms = 200;
    stubborn.commands = vec![Command::Cancel(Cancel::Terminate)];
    let left = see_through(stubborn).await;
    assert_eq!(left.status.outcome.as_ref().unwrap().kind, OutcomeKind::Cancelled);
    assert_eq!(left.signals, [br#"{"signal":15,"all":false}"#.to_vec()]);
    assert!(left.took >= Duration::from_millis(200) && left.kills >= 1);
    assert_eq!(left.output, b"begun\n", "what was said before is kept");
}

#[tokio::test]
async fn the_lease_ends_a_run_that_nobody_renews() {
    let mut forgotten = attempt(Script { then: Then::Hang, ..honest(b"") });
    forgotten.deadline = Duration::from_millis(400);
    let left = see_through(forgotten).await;
    assert_eq!(left.status.outcome.as_ref().unwrap().reason, Some(Reason::LeaseExpired));
    assert!(left.took >= Duration::from_millis(380), "{:?}", left.took);

    let mut stopped = attempt(Script { then: Then::Hang, ..honest(b"") });
    stopped.commands = vec![Command::Stop {}];
    let left = see_through(stopped).await;
    assert_eq!(left.status.outcome.as_ref().unwrap().reason, Some(Reason::LeaseExpired));
}
