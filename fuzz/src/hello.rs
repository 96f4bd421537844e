//! The handshake of a lane, on both sides.
//!
//! The first bytes say which side, lane and epoch; the rest comes from the peer. What must hold: the first whole message is
//! found wherever it lies, and not a byte beyond it is read; what is not agreed on is never agreed to; stale bytes have
//! their limit.

use std::{sync::LazyLock, time::Duration};

use holm_wire::hello::{self, Hello, HelloError, Lane, Limits, MESSAGE_BYTES, VERSION};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use crate::{input::Input, run};

const LIMITS: Limits = Limits { deadline: Duration::from_secs(5), stale_bytes_max: 256 };
const NONCE: [u8; 32] = [0x5a; 32];
const CHECKED: usize = MESSAGE_BYTES - 4;
const MAGIC_BYTES: usize = 16;

type Message = [u8; MESSAGE_BYTES];

/// What a real host says and what a real guest answers to it.
static REAL: LazyLock<(Message, Message)> = LazyLock::new(|| run(real(Lane::In, 1)));

async fn real(lane: Lane, epoch: u64) -> (Message, Message) {
    let (mut near, mut far) = duplex(1024);
    let early = Limits { deadline: Duration::from_millis(1), ..LIMITS };
    let opened = hello::host(&mut near, &Hello { lane, epoch, nonce: NONCE }, &early).await;
    assert!(matches!(opened, Err(HelloError::Deadline(_))), "{opened:?}");
    let (mut said, mut answered) = ([0; MESSAGE_BYTES], [0; MESSAGE_BYTES]);
    far.read_exact(&mut said).await.expect("a host speaks first");
    near.write_all(&said).await.expect("room");
    hello::guest(&mut far, lane, 0, &LIMITS).await.expect("the guest agrees");
    near.read_exact(&mut answered).await.expect("a guest answers");
    (said, answered)
}

/// Seeds: real messages after and before other bytes, and such as were broken off.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (lane, epoch) in [(Lane::In, 1), (Lane::Out, 2), (Lane::In, 9)] {
        let (said, answered) = run(real(lane, epoch));
        for (side, message) in [(0, said), (1, answered)] {
            let side = side | if lane == Lane::Out { 2 } else { 0 };
            let head = [side, 2];
            seeds.push([&head[..], &message, b"after"].concat());
            seeds.push([&head[..], b"stale", &message[..40], &message, &message].concat());
            let mut other = message;
            other[16] ^= 1;
            seeds.push([&[side | 4, 2][..], &other, &message].concat());
        }
    }
    seeds
}

/// Gives the bytes to one side.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let (what, epoch) = (input.byte(), u64::from(input.byte()));
    let lane = if what & 2 == 0 { Lane::In } else { Lane::Out };
    let mut bytes = input.rest().to_vec();
    if what & 4 != 0 {
        seal(&mut bytes);
    }
    LazyLock::force(&REAL);
    if what & 1 == 0 { run(guest(&bytes, lane, epoch)) } else { run(host(&bytes, lane, epoch)) }
}

fn sum(bytes: &[u8]) -> [u8; 4] {
    let sum = bytes.iter().fold(2_166_136_261_u32, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(16_777_619));
    sum.to_le_bytes()
}

/// Gives everything that begins like a message a check that is right.
fn seal(bytes: &mut [u8]) {
    for at in 0..bytes.len().saturating_sub(MESSAGE_BYTES - 1) {
        if [&REAL.0, &REAL.1].iter().any(|real| bytes[at..].starts_with(&real[..MAGIC_BYTES])) {
            let sum = sum(&bytes[at..at + CHECKED]);
            bytes[at + CHECKED..at + MESSAGE_BYTES].copy_from_slice(&sum);
        }
    }
}

/// The first whole message from `from` on that begins with `pattern`, and where it begins.
fn find(bytes: &[u8], from: usize, pattern: &[u8]) -> Option<(usize, Message)> {
    let windows = bytes.get(from..)?.windows(MESSAGE_BYTES).enumerate();
    let mut messages = windows.filter_map(|(at, window)| Some((from + at, *window.first_chunk::<MESSAGE_BYTES>()?)));
    messages.find(|(_, message)| message.starts_with(pattern) && message[CHECKED..] == sum(&message[..CHECKED]))
}

async fn peer(bytes: &[u8]) -> (DuplexStream, DuplexStream) {
    let (near, mut far) = duplex(bytes.len() + 64 * MESSAGE_BYTES);
    far.write_all(bytes).await.expect("room");
    far.shutdown().await.expect("an end");
    (near, far)
}

async fn left_in(mut io: DuplexStream) -> Vec<u8> {
    let mut left = Vec::new();
    io.read_to_end(&mut left).await.expect("the peer has written all");
    left
}

fn code(lane: Lane) -> u8 {
    if lane == Lane::In { 1 } else { 2 }
}

fn epoch_at(message: &Message, at: usize) -> u64 {
    message[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).expect("within the message")
}

/// What the guest must make of the bytes: the hello that it agrees to and where that ends, or nothing.
fn agreed(bytes: &[u8], lane: Lane, epoch_min: u64) -> Option<(Hello, usize)> {
    let (mut at, mut stale_left) = (0, LIMITS.stale_bytes_max);
    loop {
        let (begin, message) = find(bytes, at, &REAL.0[..MAGIC_BYTES])?;
        stale_left = stale_left.checked_sub((begin - at) as u64)?;
        at = begin + MESSAGE_BYTES;
        let epoch = epoch_at(&message, 20);
        if u16::from_le_bytes([message[16], message[17]]) != VERSION {
            return None;
        }
        if message[18] == code(lane) && epoch >= epoch_min {
            let mut nonce = [0; 32];
            nonce.copy_from_slice(&message[28..CHECKED]);
            return Some((Hello { lane, epoch, nonce }, at));
        }
        stale_left = stale_left.checked_sub(MESSAGE_BYTES as u64)?;
    }
}

async fn guest(bytes: &[u8], lane: Lane, epoch_min: u64) {
    let (mut near, mut far) = peer(bytes).await;
    let result = hello::guest(&mut near, lane, epoch_min, &LIMITS).await;
    match (result, agreed(bytes, lane, epoch_min)) {
        (Ok(hello), Some((wanted, end))) => {
            assert_eq!(hello, wanted);
            assert_eq!(left_in(near).await, bytes[end..], "what follows the handshake is left to its reader");
            let mut answer = [0; MESSAGE_BYTES];
            let mut answers = Vec::new();
            while far.read_exact(&mut answer).await.is_ok() {
                answers.push(answer);
            }
            let last = answers.last().expect("an answer");
            assert_eq!((&last[16..48], last[51]), (&hello.nonce[..], 0));
        }
        (Err(error), None) => assert!(!matches!(error, HelloError::Deadline(_)), "a lane that ended is not waited for"),
        (result, wanted) => panic!("{result:?} where {wanted:?} is right"),
    }
}

async fn host(bytes: &[u8], lane: Lane, epoch: u64) {
    let (mut near, far) = peer(bytes).await;
    let hello = Hello { lane, epoch, nonce: NONCE };
    let result = hello::host(&mut near, &hello, &LIMITS).await;
    let pattern = [&REAL.1[..MAGIC_BYTES], &NONCE].concat();
    let answer = find(bytes, 0, &pattern).filter(|(at, _)| *at as u64 <= LIMITS.stale_bytes_max);
    let agrees = answer.filter(|(_, message)| {
        let version = u16::from_le_bytes([message[48], message[49]]);
        (version, message[50], message[51], epoch_at(message, 52)) == (VERSION, code(lane), 0, epoch)
    });
    match (result, agrees) {
        (Ok(()), Some((at, _))) => {
            assert_eq!(left_in(near).await, bytes[at + MESSAGE_BYTES..], "what follows is left to its reader");
        }
        (Err(error), None) => assert!(!matches!(error, HelloError::Deadline(_)), "a lane that ended is not waited for"),
        (result, wanted) => panic!("{result:?} where {wanted:?} is right"),
    }
    drop(far);
}
