//! The control socket: one agent at a time, statuses in order, limits on lines, the folder's path as long as it likes.
#![allow(clippy::unwrap_used)]

use std::{os::fd::AsRawFd as _, path::PathBuf, time::Duration};

use holm_domain::{
    BootMicros,
    run::{Cancel, ExitStatus, Outcome, Usage},
};
use holm_shim::{
    client::{self, Commands, Statuses},
    control,
    protocol::{Command, LINE_BYTES_MAX, Phase, SOCKET_NAME, Status},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
};

fn status(next_seq: u64) -> Status {
    Status {
        phase: Phase::Preparing,
        fence: 1,
        deadline_us: BootMicros(5),
        next_seq,
        events: 0,
        events_unwritten: 0,
        asks: None,
        unenforced: Vec::new(),
        outcome: None,
        usage: Usage::default(),
        result: None,
        changes: None,
        pid: std::process::id(),
        times: holm_shim::protocol::Times::default(),
    }
}

struct Served {
    _root: tempfile::TempDir,
    dir: PathBuf,
    statuses: watch::Sender<Status>,
    commands: mpsc::Receiver<Command>,
}

/// A control socket in a folder whose path is longer than a socket's address may be.
fn serve() -> Served {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("x".repeat(150));
    std::fs::create_dir(&dir).unwrap();
    let listener = UnixListener::from_std(control::bind(&dir).unwrap()).unwrap();
    let (statuses, receiver) = watch::channel(status(1));
    let (sender, commands) = mpsc::channel(16);
    tokio::spawn(control::serve(listener, rustix::process::getuid().as_raw(), receiver, sender));
    Served { _root: root, dir, statuses, commands }
}

async fn next(statuses: &mut Statuses) -> Option<Status> {
    tokio::time::timeout(Duration::from_secs(20), statuses.next()).await.expect("in time").expect("well-formed")
}

async fn connect(served: &Served) -> (Commands, Statuses) {
    let (commands, mut statuses) = client::connect(&served.dir).await.unwrap();
    assert_eq!(next(&mut statuses).await, Some(served.statuses.borrow().clone()), "on connect");
    (commands, statuses)
}

#[tokio::test]
async fn commands_arrive_in_order_and_statuses_whenever_they_change() {
    let mut served = serve();
    let (mut commands, mut statuses) = connect(&served).await;
    let sent = [
        Command::Extend { fence: 1, deadline_us: BootMicros(9) },
        Command::Acked { next_seq: 4 },
        Command::Cancel(Cancel::Kill),
        Command::Quit {},
    ];
    for command in &sent {
        commands.send(command).await.unwrap();
    }
    for command in sent {
        assert_eq!(served.commands.recv().await, Some(command));
    }
    // A burst of progress may be told as one, its last state always is.
    for next_seq in 2..=50 {
        served.statuses.send_modify(|status| status.next_seq = next_seq);
        tokio::task::yield_now().await;
    }
    let mut seen = Vec::new();
    while seen.last() != Some(&50) {
        seen.push(next(&mut statuses).await.unwrap().next_seq);
    }
    assert!(seen.is_sorted() && seen.len() < 49, "{seen:?}");
}

#[tokio::test]
async fn the_largest_result_fits_into_a_line() {
    let served = serve();
    let (_commands, mut statuses) = connect(&served).await;
    let mut last = status(1);
    last.phase = Phase::Ended;
    last.result = Some(serde_json::Value::String("\"".repeat(holm_domain::limits::RESULT_BYTES_MAX / 2 - 1)));
    last.outcome = Some(Outcome { message: Some("\\".repeat(4_096)), ..Outcome::exited(ExitStatus::Code(1)) });
    served.statuses.send_replace(last.clone());
    assert_eq!(next(&mut statuses).await, Some(last));
}

#[tokio::test]
async fn a_new_connection_replaces_the_old_one() {
    let mut served = serve();
    let (_old, mut old_statuses) = connect(&served).await;
    let (mut new, mut new_statuses) = connect(&served).await;
    assert_eq!(next(&mut old_statuses).await, None, "the old one is closed");
    new.send(&Command::Stop {}).await.unwrap();
    assert_eq!(served.commands.recv().await, Some(Command::Stop {}));
    served.statuses.send_modify(|status| status.next_seq = 7);
    assert_eq!(next(&mut new_statuses).await.map(|status| status.next_seq), Some(7));
}

#[tokio::test]
async fn nonsense_and_endless_lines_end_the_connection_and_nothing_else() {
    let mut served = serve();
    for nonsense in [b"{\"explode\":{}}\n".to_vec(), b"\xff\xfe\n".to_vec(), vec![b'x'; LINE_BYTES_MAX + 10_000]] {
        let folder = std::fs::File::open(&served.dir).unwrap();
        let path = format!("/proc/self/fd/{}/{SOCKET_NAME}", folder.as_raw_fd());
        let mut stream = UnixStream::connect(path).await.unwrap();
        // The shim may close before it has taken everything.
        let _ = stream.write_all(&nonsense).await;
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "the connection was closed");
    }
    assert!(served.commands.try_recv().is_err());
    let (mut commands, _statuses) = connect(&served).await;
    commands.send(&Command::Quit {}).await.unwrap();
    assert_eq!(served.commands.recv().await, Some(Command::Quit {}));
}
