//! What a shim leaves in files and says over its socket, as the agent reads it.
//!
//! The first byte says which of them the rest is. What must hold: a final status that is believed comes back when it is
//! written; each line of events counts as one, as itself or as refused, whichever is asked for first; lines over the socket
//! are statuses up to the first that is none.

use std::{cell::OnceCell, os::unix::net::UnixListener, path::Path};

use holm_domain::run::EventKind;
use holm_shim::{
    client::{self, connect, read_events},
    exit,
    protocol::{EVENTS_FILE_NAME, EXIT_FILE_NAME, LINE_BYTES_MAX, SOCKET_NAME, SourceEvent, Status},
};
use serde_json::json;
use tokio::{io::AsyncWriteExt as _, net::UnixStream};

use crate::{input::Input, place, run};

const EVENTS_READ_MAX: usize = 1_000;

/// Seeds: what real shims write.
pub fn seeds() -> Vec<Vec<u8>> {
    let status = json!({
        "phase": "ended", "fence": 3, "deadline_us": 9, "next_seq": 12, "events": 2, "unenforced": ["pids: no cgroup"],
        "outcome": {"kind": "failed", "reason": "command_failed", "exit": {"code": 3}},
        "usage": {"cpu_user_us": 7}, "result": {"passed": 3, "ratio": 0.1}, "changes": 10_240, "pid": 4711,
    });
    let status: Status = serde_json::from_value(status).expect("a status");
    let text = serde_json::to_string(&status).expect("JSON");
    let preparing = Status { phase: holm_shim::protocol::Phase::Preparing, outcome: None, result: None, ..status };
    let lines = format!("{}\n{text}\n", serde_json::to_string(&preparing).expect("JSON"));
    let told = [
        EventKind::ResultRefused { problem: "it is not JSON".to_owned() },
        EventKind::EgressRefused {
            host: "1.2.3.4".to_owned(),
            port: 443,
            protocol: "tcp".to_owned(),
            count: 2,
            reason: None,
        },
        EventKind::SandboxUndying { waited_ms: 60_000 },
    ];
    let events = told.into_iter().zip(1..).map(|(event, seq)| SourceEvent { seq, event });
    let events: String = events.map(|event| serde_json::to_string(&event).expect("JSON") + "\n").collect();
    vec![[b"\0", text.as_bytes()].concat(), [b"\x01", events.as_bytes()].concat(), [b"\x02", lines.as_bytes()].concat()]
}

/// Has the agent read it.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let what = input.byte();
    let bytes = input.rest();
    match what % 3 {
        0 => final_status(bytes),
        1 => events(bytes),
        _ => run(statuses(bytes)),
    }
}

fn final_status(bytes: &[u8]) {
    place::with(|dir| {
        std::fs::write(dir.join(EXIT_FILE_NAME), bytes).expect("a file");
        let read = client::read_exit(dir).map(|read| read.expect("the file is there"));
        let Ok(status) = read else { return };
        assert!(bytes.len() <= LINE_BYTES_MAX);
        exit::write_status(dir, &status).expect("a file");
        let again = client::read_exit(dir);
        assert!(matches!(&again, Ok(Some(again)) if *again == status), "{status:?} became {again:?}");
    });
}

fn events(bytes: &[u8]) {
    place::with(|dir| {
        std::fs::write(dir.join(EVENTS_FILE_NAME), bytes).expect("a file");
        let Ok(all) = read_events(dir, 0, EVENTS_READ_MAX) else { return };
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(all.len(), lines.min(EVENTS_READ_MAX), "each line counts");
        for event in &all {
            assert!(event.may_come_from_agent() && event.is_within_limits(), "{event:?}");
        }
        for after in [1, lines / 2, lines, lines + 1] {
            let later = read_events(dir, after as u64, EVENTS_READ_MAX).expect("it was read before");
            let wanted = all.get(after..).unwrap_or_default();
            assert!(later.starts_with(wanted) && (lines > EVENTS_READ_MAX || later.len() == wanted.len()));
        }
    });
}

/// A shim that says the bytes and is gone.
async fn statuses(bytes: &[u8]) {
    let dir = place::with(Path::to_owned);
    with_listener(&dir, |_| ());
    let (_commands, mut statuses) = connect(&dir).await.expect("a socket");
    let (shim, _) = with_listener(&dir, UnixListener::accept).expect("the agent's connection");
    shim.set_nonblocking(true).expect("a socket");
    let mut shim = UnixStream::from_std(shim).expect("a socket");
    let said = bytes.to_vec();
    tokio::spawn(async move {
        // The agent may have heard enough.
        let _gone = shim.write_all(&said).await;
    });
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    loop {
        let line = lines.next();
        let wanted: Option<Status> = line.and_then(|line| serde_json::from_slice(line).ok());
        match statuses.next().await {
            Ok(Some(status)) => assert_eq!(Some(status), wanted),
            Ok(None) => return assert!(line.is_none(), "a line was passed over"),
            Err(_) => {
                let is_long = line.is_none_or(|line| line.len() > LINE_BYTES_MAX);
                return assert!(wanted.is_none() || is_long, "{wanted:?} was refused");
            }
        }
    }
}

fn with_listener<T>(dir: &Path, what: impl FnOnce(&UnixListener) -> T) -> T {
    thread_local! {
        static LISTENER: OnceCell<UnixListener> = const { OnceCell::new() };
    }
    LISTENER
        .with(|listener| what(listener.get_or_init(|| UnixListener::bind(dir.join(SOCKET_NAME)).expect("a socket"))))
}
