//! The followers of logs and events against a scripted server on a Unix socket.
//!
//! Time is tokio's paused clock: it jumps to the next timer when nobody has anything to do, so that neither the waits
//! between attempts nor the deadlines take any time.
#![allow(clippy::unwrap_used)]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use holm_api::client::{
    Client, ClientError, Endpoint, SecretString,
    follow::{LogFollower, NONSENSE_MAX, TELL_AFTER},
};
use holm_domain::RunId;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
    time::Instant,
};

/// What the server does with one connection.
enum Act {
    /// Sends these bytes as a stream of events and closes.
    Stream(String),
    /// Sends these bytes as a stream of events, and then nothing more while the client keeps the connection.
    Silence(String),
    /// Answers with this head and body.
    Answer(&'static str, String),
    /// Accepts and says nothing at all.
    Mute,
}

const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

fn log(seq: u64) -> String {
    format!(
        "event: log\nid: {seq}\ndata: {{\"seq\":{seq},\"at\":1,\"stream\":\"stdout\",\"text\":\"line {seq}\\n\"}}\n\n"
    )
}

fn logs(range: std::ops::RangeInclusive<u64>) -> String {
    range.map(log).collect()
}

fn end(last_seq: u64) -> String {
    format!("event: end\ndata: {{\"last_seq\":{last_seq}}}\n\n")
}

fn problem(status: u16, code: &str) -> String {
    format!("{{\"type\":\"x\",\"title\":\"x\",\"status\":{status},\"code\":\"{code}\",\"detail\":\"because\"}}")
}

struct World {
    _dir: TempDir,
    client: Client,
    /// Ends with the `Last-Event-ID` of each request, in order.
    server: JoinHandle<Vec<String>>,
    run: RunId,
}

impl World {
    /// Connections beyond the acts are refused.
    fn new(acts: Vec<Act>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let mut asked = Vec::new();
            for act in acts {
                let (mut stream, _) = listener.accept().await.unwrap();
                asked.push(last_event_id(&mut stream).await);
                perform(&mut stream, act).await;
            }
            asked
        });
        let client = Client::new(Endpoint::Unix(path), SecretString::from("holm_secret")).unwrap();
        Self { _dir: dir, client, server, run: "run_01k6z3ej1h4m8r9t2v5w7x0y3a".parse().unwrap() }
    }

    fn logs(&self, after: u64) -> LogFollower {
        self.client.run_logs_follow(self.run, after).with_patience(Duration::from_secs(90))
    }

    /// Everything that comes until the end or an error, by its sequence.
    async fn all(&self, after: u64) -> (Vec<u64>, Option<ClientError>) {
        let mut follower = self.logs(after);
        let mut seen = Vec::new();
        loop {
            match follower.next().await {
                Ok(Some(entry)) => {
                    assert_eq!(entry.text, Some(format!("line {}\n", entry.seq)));
                    seen.push(entry.seq);
                }
                Ok(None) => return (seen, None),
                Err(error) => return (seen, Some(error)),
            }
        }
    }
}

async fn last_event_id(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(head.contains("authorization: bearer holm_secret\r\n"), "{head}");
    head.split("last-event-id: ").nth(1).and_then(|rest| rest.split("\r\n").next()).unwrap_or("none").to_owned()
}

async fn perform(stream: &mut UnixStream, act: Act) {
    let (bytes, stay) = match act {
        Act::Stream(body) => (format!("{STREAM}{body}"), false),
        Act::Silence(body) => (format!("{STREAM}{body}"), true),
        Act::Answer(head, body) => {
            let head = format!("HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            (format!("{head}{body}"), false)
        }
        Act::Mute => (String::new(), true),
    };
    // The client may give up in the middle of what it does not want to hear.
    let _gave_up = stream.write_all(bytes.as_bytes()).await;
    if stay {
        let _closed = stream.read_u8().await;
    }
}

#[tokio::test(start_paused = true)]
async fn goes_on_after_the_last_entry_and_drops_what_comes_again() {
    let world = World::new(vec![
        Act::Stream(logs(5..=6)),
        // Half an entry.
        Act::Stream(logs(7..=8) + &log(9)[..20]),
        // An old server, or one that does not know the header: all comes again.
        Act::Stream(logs(1..=9)),
        Act::Stream(": still here\n\nevent: of-the-future\ndata: {}\n\n".to_owned() + &log(10) + &end(10)),
    ]);
    let (seen, error) = world.all(4).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(seen, [5, 6, 7, 8, 9, 10]);
    assert_eq!(world.server.await.unwrap(), ["4", "6", "8", "9"]);
}

#[tokio::test(start_paused = true)]
async fn no_end_is_believed_that_leaves_entries_out() {
    let world = World::new(vec![Act::Stream(log(1) + &end(3)), Act::Stream(logs(2..=3) + &end(3))]);
    let (seen, error) = world.all(0).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(seen, [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn gaps_and_garbage_are_asked_for_anew_and_never_passed_on() {
    let mismatch = log(2).replace("id: 2", "id: 3");
    let world = World::new(vec![
        Act::Stream(log(1) + &log(3)),
        Act::Stream(mismatch),
        Act::Stream("event: log\nid: 2\ndata: {not json\n\n".into()),
        Act::Stream("\0\u{1b}[2J no field at all\nevent\n\n".to_owned() + &log(2) + &end(2)),
    ]);
    let (seen, error) = world.all(0).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(seen, [1, 2]);
    assert_eq!(world.server.await.unwrap(), ["0", "1", "1", "1"]);
}

#[tokio::test(start_paused = true)]
async fn endless_nonsense_is_an_error() {
    let nonsense = |_| Act::Stream("event: log\nid: 2\ndata: {}\n\n".into());
    let world = World::new((0..NONSENSE_MAX).map(nonsense).collect());
    let (seen, error) = world.all(1).await;
    assert!(seen.is_empty() && matches!(error, Some(ClientError::Decode { .. })), "{error:?}");
    assert_eq!(world.server.await.unwrap().len(), NONSENSE_MAX as usize);
}

#[tokio::test(start_paused = true)]
async fn a_line_without_an_end_is_cut_and_is_an_error() {
    let endless = |_| Act::Silence(format!("data: {}", "x".repeat(2 * 1024 * 1024)));
    let world = World::new((0..NONSENSE_MAX).map(endless).collect());
    let begun = Instant::now();
    let (seen, error) = world.all(0).await;
    let text = format!("{error:?}");
    assert!(seen.is_empty() && matches!(error, Some(ClientError::Decode { .. })) && text.contains("longer"), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(60), "the line was waited for");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_an_error_also_after_a_good_beginning() {
    for (status, code) in [(404, "not_found"), (401, "unauthenticated"), (403, "forbidden")] {
        let head = match status {
            404 => "404 x\r\ncontent-type: application/problem+json",
            401 => "401 x\r\ncontent-type: application/problem+json",
            _ => "403 x\r\ncontent-type: application/problem+json",
        };
        let world = World::new(vec![Act::Stream(log(1)), Act::Answer(head, problem(status, code))]);
        let (seen, error) = world.all(0).await;
        assert_eq!(seen, [1]);
        let Some(ClientError::Problem(problem)) = error else { panic!("{error:?}") };
        assert_eq!(problem.code.as_str(), code);
        assert_eq!(world.server.await.unwrap(), ["0", "1"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_redirection_is_not_followed_with_the_token() {
    let world = World::new(vec![Act::Answer("302 x\r\nlocation: http://elsewhere/", String::new())]);
    let (_, error) = world.all(0).await;
    assert!(matches!(error, Some(ClientError::Status { status: 302, .. })), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_not_up_to_it_gets_another_chance() {
    let world = World::new(vec![
        Act::Answer("503 x\r\ncontent-type: text/plain", "restarting".into()),
        Act::Answer("500 x\r\ncontent-type: application/problem+json", problem(500, "internal")),
        Act::Stream(log(1) + &end(1)),
    ]);
    let (seen, error) = world.all(0).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(seen, [1]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_had_begun_waits_for_room_in_a_full_server() {
    let full =
        || (0..60).map(|_| Act::Answer("429 x\r\ncontent-type: application/problem+json", problem(429, "too_many")));
    let began = Instant::now();
    let resumed = [Act::Stream(logs(1..=2))].into_iter().chain(full()).chain([Act::Stream(log(3) + &end(3))]);
    let (seen, error) = World::new(resumed.collect()).all(0).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(seen, [1, 2, 3]);
    assert!(began.elapsed() > Duration::from_secs(120), "it took more than its patience: {:?}", began.elapsed());
    let (seen, error) = World::new(full().collect()).all(0).await;
    assert!(seen.is_empty() && error.unwrap().to_string().contains("because"), "one that had not is refused");
}

#[tokio::test(start_paused = true)]
async fn failures_that_go_on_are_told_once_each_time_and_short_ones_never() {
    let failing = |status: &'static str, code: &'static str, times| {
        (0..times).map(move |_| Act::Answer(status, problem(status[..3].parse().unwrap(), code)))
    };
    let unavailable = |times| failing("503 x\r\ncontent-type: application/problem+json", "unavailable", times);
    let full = |times| failing("429 x\r\ncontent-type: application/problem+json", "too_many", times);
    let acts = unavailable(3)
        .chain([Act::Stream(log(1))])
        .chain(unavailable(9))
        .chain([Act::Stream(log(2))])
        .chain(full(9))
        .chain([Act::Stream(log(3) + &end(3))]);
    let world = World::new(acts.collect());
    let told = Arc::new(Mutex::new(Vec::new()));
    let teller = Arc::clone(&told);
    let begun = Instant::now();
    let tell = move |error: &ClientError| teller.lock().unwrap().push((begun.elapsed(), error.to_string()));
    let mut follower = world.logs(0).telling(tell);
    let mut read_at = Vec::new();
    while follower.next().await.unwrap().is_some() {
        read_at.push(begun.elapsed());
    }
    let told = told.lock().unwrap().clone();
    let [(first, unavailable), (second, full)] = told.as_slice() else { panic!("{told:?}") };
    assert!(unavailable.contains("unavailable") && full.contains("too_many"), "{told:?}");
    for (at, read) in [(first, read_at[0]), (second, read_at[1])] {
        assert!((TELL_AFTER..TELL_AFTER * 3).contains(&(*at - read)), "{told:?} {read_at:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_stream_is_an_error() {
    let page = |_| Act::Answer("200 x\r\ncontent-type: text/html", "<h1>Welcome to the hotel</h1>".into());
    let world = World::new((0..NONSENSE_MAX).map(page).collect());
    let (_, error) = world.all(0).await;
    assert!(matches!(error, Some(ClientError::Decode { .. })), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stays_away_is_an_error_when_patience_ends() {
    let world = World::new(vec![Act::Stream(log(1))]);
    let begun = Instant::now();
    let (seen, error) = world.all(0).await;
    assert_eq!(seen, [1]);
    assert!(matches!(error, Some(ClientError::Transport { .. })), "{error:?}");
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_secs(90) && waited < Duration::from_secs(100), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_meets_a_deadline() {
    let world = World::new((0..20).map(|_| Act::Mute).collect());
    let begun = Instant::now();
    let (_, error) = world.all(0).await;
    assert!(matches!(error, Some(ClientError::Deadline { .. })), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(90 + 60), "{:?}", begun.elapsed());
    world.server.abort();
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_died_in_silence_is_made_anew() {
    let world = World::new(vec![Act::Silence(log(1)), Act::Stream(log(2) + &end(2))]);
    let begun = Instant::now();
    let (seen, error) = world.all(0).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(seen, [1, 2]);
    assert!(begun.elapsed() >= Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!(world.server.await.unwrap(), ["0", "1"]);
}

#[tokio::test(start_paused = true)]
async fn waiting_may_be_given_up_and_taken_up_again() {
    // A call that is given up while it connects costs a connection, so there are plenty.
    let world = World::new((0..100).map(|_| Act::Stream(logs(1..=6) + &end(6))).collect());
    let mut follower = world.logs(0);
    let mut seen = Vec::new();
    loop {
        tokio::select! {
            biased;
            entry = follower.next() => match entry.unwrap() {
                Some(entry) => seen.push(entry.seq),
                None => break,
            },
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
    }
    assert_eq!(seen, [1, 2, 3, 4, 5, 6]);
    assert_eq!(follower.last_seq(), 6);
}

#[tokio::test(start_paused = true)]
async fn events_end_with_the_event_of_the_end() {
    let event = |seq: u64, kind: &str| format!("event: event\nid: {seq}\ndata: {{\"seq\":{seq},\"at\":1,{kind}}}\n\n");
    let ended = r#""kind":"ended","outcome":{"kind":"succeeded","exit":{"code":0}}"#;
    let world = World::new(vec![Act::Stream(event(1, r#""kind":"queued""#)), Act::Silence(event(2, ended))]);
    let mut follower = world.client.run_events_follow(world.run, 0);
    let mut seen = Vec::new();
    while let Some(event) = follower.next().await.unwrap() {
        seen.push(event.seq);
    }
    assert_eq!(seen, [1, 2]);
}
