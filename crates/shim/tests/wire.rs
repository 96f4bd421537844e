//! Attacks by raw frames (RFC 9113) on either lane: each ends as a failure within its deadline, and the shim's memory stays
//! bounded.
//!
//! Guest and shim are one process here, so the bound holds for both together. The attacks come one after the other, for
//! their memory is told apart by time.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "the other tests with a scripted guest use the rest")]
mod scripted;

use std::time::Duration;

use holm_domain::run::Reason;
use holm_shim::protocol::Tuning;
use holm_wire::{guest_api::OutputStream, hello::Lane};
use scripted::{Attack, Script, Then, attempt, frame, honest, see_through};

/// How much more memory than before shim and guest together may have at one instant, in bytes: far less than what
/// ends a shim (`MEMORY_BYTES_MAX`).
const GROWTH_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// The stream of the request for the output: the third of the shim's.
const OUTPUT_STREAM: u32 = 5;
/// The streams of the shim's requests to make ready, to start the command, and to forget what was taken of its output.
const SETUP_STREAM: u32 = 1;
const START_STREAM: u32 = 3;
const ACK_STREAM: u32 = 7;
/// What the command says before the attack.
const SAID: &[u8] = b"said before\n";
/// A stream that nobody has used.
const IDLE_STREAM: u32 = 4_001;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PUSH_PROMISE: u8 = 0x5;
const PING: u8 = 0x6;
const GOAWAY: u8 = 0x7;
const WINDOW_UPDATE: u8 = 0x8;
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

fn head(length: usize, kind: u8, flags: u8, stream: u32) -> Vec<u8> {
    let length = u32::try_from(length).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat()
}

fn framed(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    [head(payload.len(), kind, flags, stream).as_slice(), payload].concat()
}

/// `POST http://x/refused` in HPACK (RFC 7541), by the static table and literals without indexing.
fn request() -> Vec<u8> {
    [&[0x83, 0x86, 0x04, 8][..], b"/refused", &[0x01, 1], b"x"].concat()
}

/// The streams of a client of whom only the first have been used.
fn stream_of(number: u64) -> u32 {
    IDLE_STREAM + 2 * u32::try_from(number).unwrap()
}

fn once(number: u64, bytes: Vec<u8>) -> Option<Vec<u8>> {
    (number == 0).then_some(bytes)
}

/// One name with a long value goes into the dynamic table and is then named as often as fits.
fn bomb() -> Vec<u8> {
    let mut block = vec![0x40, 1, b'a', 0x7f, 0xa1, 0x1e];
    block.resize(block.len() + 4_000, b'v');
    block.resize(60_000, 0xbe);
    block
}

/// A list of headers of nearly the largest size that counts, in as few bytes as can be: a hundred times as large as they are.
fn heads(status: [u8; 3], fields: usize) -> Vec<u8> {
    [&[0x08, 3][..], &status, &vec![0x8f; fields]].concat()
}

/// Answers to one request that only say that one will come (103).
fn announcements(stream: u32) -> Vec<u8> {
    framed(HEADERS, END_HEADERS, stream, &heads(*b"103", 340)).repeat(100)
}

/// Incompressible output that fills a small spool.
fn noise() -> Vec<u8> {
    let mut noise = vec![0; 60_000];
    rustix::rand::getrandom(&mut noise, rustix::rand::GetRandomFlags::empty()).unwrap();
    frame(OutputStream::Stdout, &noise)
}

struct Case {
    name: &'static str,
    script: Script,
    attack: Attack,
    spool_bytes_max: u64,
    said: &'static [u8],
    reason: Reason,
}

fn on(lane: Lane, name: &'static str, reason: Reason, pieces: fn(u64) -> Option<Vec<u8>>) -> Case {
    Case {
        name,
        script: Script { then: Then::Hang, ..honest(SAID) },
        attack: Attack { lane, at: None, pieces, reads: true, closes: false },
        spool_bytes_max: Tuning::default().spool_bytes_max,
        said: SAID,
        reason,
    }
}

/// The guest does not read what it causes the shim to say.
fn deaf(case: Case) -> Case {
    Case { attack: Attack { reads: false, ..case.attack }, ..case }
}

fn closing(case: Case) -> Case {
    Case { attack: Attack { closes: true, ..case.attack }, ..case }
}

/// The guest takes no body, and answers the start of the command without end.
fn starting(case: Case) -> Case {
    Case { attack: Attack { at: Some("/setup"), ..case.attack }, said: b"", ..case }
}

/// Nobody takes what is in the spool, and the attack begins when the guest is told to forget output.
fn acknowledging(case: Case) -> Case {
    let script = Script { then: Then::Forever, ..case.script };
    Case { attack: Attack { at: Some("/processes/1/ack"), ..case.attack }, spool_bytes_max: 300_000, script, ..case }
}

/// Nobody takes what is in the spool, and it is full.
fn stalled(case: Case) -> Case {
    let output = [&case.script.output[..], &noise(), &noise()].concat();
    Case { script: Script { output, ..case.script }, spool_bytes_max: 64 * 1024, ..case }
}

/// What both ends have to stand.
fn on_either(lane: Lane) -> Vec<Case> {
    use Reason::{GuestLost, Timeout};
    vec![
        on(lane, "a frame of 16 MiB", GuestLost, |n| once(n, head(0xff_ffff, DATA, 0, OUTPUT_STREAM))),
        on(lane, "data for an unknown stream", GuestLost, |n| once(n, framed(DATA, 0, IDLE_STREAM, b"x"))),
        on(lane, "a window beyond all bounds", GuestLost, |_| {
            Some(framed(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()))
        }),
        on(lane, "a window that does not grow", GuestLost, |n| once(n, framed(WINDOW_UPDATE, 0, 0, &[0; 4]))),
        on(lane, "a setting that cannot be", GuestLost, |n| once(n, framed(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]))),
        on(lane, "a goodbye", GuestLost, |n| once(n, framed(GOAWAY, 0, 0, &[0; 8]))),
        on(lane, "nonsense", GuestLost, |_| Some(vec![0xa5; 1_000])),
        closing(on(lane, "a torn frame and the end", GuestLost, |n| once(n, head(100, PING, 0, 0)))),
        on(lane, "frames between headers and their rest", GuestLost, |n| {
            once(n, [framed(HEADERS, 0, stream_of(0), &request()), framed(DATA, 0, stream_of(1), b"x")].concat())
        }),
        on(lane, "a torn frame and silence", Timeout, |n| once(n, head(100, DATA, 0, OUTPUT_STREAM))),
        deaf(on(lane, "questions whose answers nobody reads", Timeout, |_| Some(framed(PING, 0, 0, &[7; 8])))),
        deaf(on(lane, "settings without end", Timeout, |_| Some(framed(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])))),
    ]
}

fn on_the_lane_in() -> Vec<Case> {
    use Reason::GuestLost;
    let lane = Lane::In;
    vec![
        on(lane, "a promise", GuestLost, |n| {
            once(n, framed(PUSH_PROMISE, END_HEADERS, OUTPUT_STREAM, &[&[0, 0, 0, 2][..], &request()].concat()))
        }),
        on(lane, "headers without end", GuestLost, |n| match n {
            0 => Some(framed(HEADERS, END_STREAM, OUTPUT_STREAM, &request())),
            _ => Some(framed(CONTINUATION, 0, OUTPUT_STREAM, &[0; 16_000])),
        }),
        on(lane, "a bomb of headers", GuestLost, |n| {
            once(n, framed(HEADERS, END_HEADERS | END_STREAM, OUTPUT_STREAM, &bomb()))
        }),
        on(lane, "more data than was asked for", GuestLost, |n| {
            (n < 1_000).then(|| framed(DATA, 0, OUTPUT_STREAM, &[&[1, 0x60, 0xea, 0, 0][..], &[b'y'; 60_000]].concat()))
        }),
        on(lane, "data that is padded", GuestLost, |n| {
            once(
                n,
                framed(DATA, PADDED, OUTPUT_STREAM, &[&[3][..], &frame(OutputStream::Stdout, b"x"), &[0; 3]].concat()),
            )
        }),
        on(lane, "a frame of an unknown kind", GuestLost, |n| {
            once(n, framed(CONTINUATION + 1, 0, OUTPUT_STREAM, b"x"))
        }),
        on(lane, "empty frames without end", GuestLost, |_| Some(framed(DATA, 0, OUTPUT_STREAM, &[]).repeat(100))),
        starting(on(lane, "announcements of an answer whose request is not taken", GuestLost, |n| match n {
            0 => {
                let no_window = framed(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
                let head = framed(HEADERS, END_HEADERS, SETUP_STREAM, &heads(*b"200", 0));
                let body = framed(DATA, END_STREAM, SETUP_STREAM, br#"{"unenforced":[]}"#);
                Some([no_window, head, body].concat())
            }
            1 => Some(Vec::new()),
            _ => Some(announcements(START_STREAM)),
        })),
        acknowledging(on(lane, "announcements while the spool is full", GuestLost, |_| {
            Some(announcements(ACK_STREAM))
        })),
        acknowledging(on(lane, "one announcement while the spool is full", GuestLost, |n| {
            once(n, framed(HEADERS, END_HEADERS, ACK_STREAM, &heads(*b"103", 0)))
        })),
        stalled(on(lane, "output byte by byte while the spool is full", GuestLost, |n| match n {
            0 => Some(framed(DATA, 0, OUTPUT_STREAM, &frame(OutputStream::Stdout, b"waits"))),
            _ => (n < 200).then(|| framed(DATA, 0, OUTPUT_STREAM, b"x").repeat(1_000)),
        })),
    ]
}

fn on_the_lane_out() -> Vec<Case> {
    use Reason::{GuestLost, Timeout};
    let lane = Lane::Out;
    vec![
        on(lane, "headers without end", GuestLost, |n| match n {
            0 => Some(framed(HEADERS, 0, stream_of(0), &request())),
            _ => Some(framed(CONTINUATION, 0, stream_of(0), &[0; 16_000])),
        }),
        on(lane, "streams that are reset at once", GuestLost, |n| {
            let reset = framed(RST_STREAM, 0, stream_of(n), &[0, 0, 0, 8]);
            Some([framed(HEADERS, END_HEADERS, stream_of(n), &request()), reset].concat())
        }),
        on(lane, "streams without end", GuestLost, |n| Some(framed(HEADERS, END_HEADERS, stream_of(n), &request()))),
        on(lane, "bombs of headers", GuestLost, |n| {
            Some(framed(HEADERS, END_HEADERS | END_STREAM, stream_of(n), &bomb()))
        }),
        on(lane, "bodies without end", GuestLost, |n| {
            let stream = stream_of(n % 250);
            let data = framed(DATA, 0, stream, &[b' '; 16_000]);
            Some(if n < 250 { [framed(HEADERS, END_HEADERS, stream, &request()), data].concat() } else { data })
        }),
        on(lane, "bodies that stay open", Timeout, |n| {
            let data = framed(DATA, 0, stream_of(n), &[b' '; 3_000]);
            (n < 250).then(|| [framed(HEADERS, END_HEADERS, stream_of(n), &request()), data].concat())
        }),
        deaf(on(lane, "requests without end", Timeout, |n| {
            Some(framed(HEADERS, END_HEADERS | END_STREAM, stream_of(n), &request()))
        })),
    ]
}

fn status_bytes(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().unwrap() * 1_024
}

/// What attacks come to: the name and how it ended otherwise than it should have.
async fn run(case: Case) -> Option<String> {
    let Case { name, script, attack, spool_bytes_max, said, reason } = case;
    let mut attacked = attempt(Script { attack: Some(attack), ..script });
    attacked.tuning.spool_bytes_max = spool_bytes_max;
    attacked.spec.limits.timeout_ms = if reason == Reason::Timeout { 1_500 } else { 20_000 };
    // Takes the peak back to what there is now (proc_pid_clear_refs(5)).
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status_bytes("VmRSS:");
    let left = see_through(attacked).await;
    let grown = status_bytes("VmHWM:").saturating_sub(before);
    let outcome = left.status.outcome.clone().unwrap();
    let is_so = outcome.reason == Some(reason)
        && left.code() != 0
        && left.kills >= 1
        && left.output.starts_with(said)
        && left.took < Duration::from_secs(19)
        && grown <= GROWTH_BYTES_MAX;
    (!is_so).then(|| format!("{:?} {name}: {outcome:?}, {:?}, {grown} bytes", attack.lane, left.took))
}

#[tokio::test]
async fn each_attack_ends_in_time_and_in_bounds() {
    let cases = [on_either(Lane::In), on_either(Lane::Out), on_the_lane_in(), on_the_lane_out()];
    let mut wrong = Vec::new();
    for case in cases.into_iter().flatten() {
        wrong.extend(run(case).await);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
