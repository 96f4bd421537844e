//! The handshake of a lane.
//!
//! The host speaks first and names version, lane and epoch with a nonce; the guest echoes the nonce. A byte channel may
//! outlive its peers (a virtio port lives through snapshot and restore), so either side may find bytes of an older epoch
//! before the handshake: the guest drops what precedes the magic, the host what precedes its own nonce.
//!
//! What always holds: neither side reads a byte beyond the handshake, so the channel can be handed on to [`crate::http2`]
//! as it is; neither holds more than one message in memory, reads more stale bytes than its limit, or waits beyond its
//! deadline. A guest that cannot agree says why, and both sides end with the same typed error.
//!
//! The layouts of [`Hello`] and of the answer are the same in every version, so that two versions can tell each other that
//! they do not match. Numbers are little-endian.
//!
//! | hello | bytes | answer | bytes |
//! |---|---|---|---|
//! | magic | 16 | magic | 16 |
//! | version | 2 | nonce | 32 |
//! | lane | 1 | version | 2 |
//! | reserved, 0 | 1 | lane | 1 |
//! | epoch | 8 | status | 1 |
//! | nonce | 32 | epoch | 8 |
//! | check | 4 | check | 4 |
//!
//! The check is FNV-1a over all before it. It is no protection against an enemy: it tells a whole message from the
//! beginning of one that was broken off, with another behind it.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The version of the wire that this code speaks.
pub const VERSION: u16 = 1;
/// The length of either message, in bytes.
pub const MESSAGE_BYTES: usize = 64;
/// The length of a nonce, in bytes.
pub const NONCE_BYTES: usize = 32;

const MAGIC_BYTES: usize = 16;
/// What the check covers.
const CHECKED: usize = MESSAGE_BYTES - 4;
// Random, so that neither text nor a compressed stream holds one by accident; none of their bytes repeats the first.
const HELLO_MAGIC: [u8; MAGIC_BYTES] =
    [0xf5, 0x48, 0x4f, 0x4c, 0x4d, 0x9e, 0x03, 0xd1, 0x77, 0xb2, 0x1c, 0xe8, 0x5a, 0xc6, 0x0d, 0x93];
const ANSWER_MAGIC: [u8; MAGIC_BYTES] =
    [0xf6, 0x68, 0x6f, 0x6c, 0x6d, 0x2b, 0xc9, 0x14, 0xa7, 0x5d, 0xe3, 0x80, 0x36, 0x91, 0xfa, 0x4e];

/// A random value that ties an answer to its question.
pub type Nonce = [u8; NONCE_BYTES];

/// One of the two lanes of a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// The shim is the HTTP/2 client.
    In,
    /// The guest is the HTTP/2 client.
    Out,
}

impl Lane {
    fn code(self) -> u8 {
        match self {
            Lane::In => 1,
            Lane::Out => 2,
        }
    }
}

/// What a host opens a lane with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Which lane it is.
    pub lane: Lane,
    /// The number of this use of the wire; it grows with every restore.
    pub epoch: u64,
    /// Fresh random bytes, for this handshake only.
    pub nonce: Nonce,
}

/// How long a handshake may take, and how much it may read before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest time for the whole handshake.
    pub deadline: Duration,
    /// The largest number of stale bytes to drop.
    pub stale_bytes_max: u64,
}

impl Default for Limits {
    /// Ten seconds, and what the buffers of a channel and its device may hold.
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10), stale_bytes_max: 4 * 1024 * 1024 }
    }
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The channel failed.
    #[error("the lane failed in the handshake: {0}")]
    Io(#[from] std::io::Error),
    /// The channel ended.
    #[error("the lane ended in the handshake")]
    Closed,
    /// The other side did not answer in time.
    #[error("no handshake within {0:?}")]
    Deadline(Duration),
    /// Too many bytes came before the handshake.
    #[error("no handshake within {0} bytes")]
    TooManyStaleBytes(u64),
    /// The two sides speak different versions.
    #[error("this side speaks version {ours} of the wire, the other side version {theirs}")]
    VersionMismatch {
        /// The version of this side.
        ours: u16,
        /// The version of the other side.
        theirs: u16,
    },
    /// The guest takes this channel for the other lane.
    #[error("the guest takes this channel for the other lane")]
    WrongLane,
    /// The guest has seen this epoch or a later one.
    #[error("the guest refused epoch {offered}: it is at {theirs}")]
    StaleEpoch {
        /// The epoch in the hello.
        offered: u64,
        /// The earliest epoch that the guest would take.
        theirs: u64,
    },
    /// The guest refused with a status that this version does not know.
    #[error("the guest refused the handshake with status {0}")]
    Refused(u8),
}

/// What a guest says to a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Accepted,
    VersionMismatch,
    WrongLane,
    StaleEpoch,
}

impl Status {
    fn code(self) -> u8 {
        match self {
            Status::Accepted => 0,
            Status::VersionMismatch => 1,
            Status::WrongLane => 2,
            Status::StaleEpoch => 3,
        }
    }
}

/// The host's side: says `hello`, and returns once the guest has agreed to it.
pub async fn host<Io>(io: &mut Io, hello: &Hello, limits: &Limits) -> Result<(), HelloError>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    within(limits.deadline, async {
        io.write_all(&encode_hello(hello)).await?;
        io.flush().await?;
        // Only an answer with this very nonce is one: what an older handshake left is as stale as any other byte.
        let mut expected = [0; MAGIC_BYTES + NONCE_BYTES];
        expected[..MAGIC_BYTES].copy_from_slice(&ANSWER_MAGIC);
        expected[MAGIC_BYTES..].copy_from_slice(&hello.nonce);
        let mut stale_left = limits.stale_bytes_max;
        let answer = scan(io, &expected, &mut stale_left, limits).await?;
        judge_answer(&answer, hello)
    })
    .await
}

/// The guest's side: waits for a hello to `lane` with an epoch of at least `epoch_min`, and agrees to it.
///
/// A hello to another lane or of an older epoch is refused and waited past; one of another version ends the handshake.
pub async fn guest<Io>(io: &mut Io, lane: Lane, epoch_min: u64, limits: &Limits) -> Result<Hello, HelloError>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    within(limits.deadline, async {
        let mut stale_left = limits.stale_bytes_max;
        loop {
            let message = scan(io, &HELLO_MAGIC, &mut stale_left, limits).await?;
            let received = Received::decode(&message);
            let status = received.judge(lane, epoch_min);
            // A refusal bears what this side would have taken, so that the host's error can name it.
            let epoch = if status == Status::StaleEpoch { epoch_min } else { received.epoch };
            io.write_all(&encode_answer(&received.nonce, lane, status, epoch)).await?;
            io.flush().await?;
            match status {
                Status::Accepted => return Ok(Hello { lane, epoch: received.epoch, nonce: received.nonce }),
                Status::VersionMismatch => {
                    return Err(HelloError::VersionMismatch { ours: VERSION, theirs: received.version });
                }
                Status::WrongLane | Status::StaleEpoch => {
                    stale_left = stale_left
                        .checked_sub(MESSAGE_BYTES as u64)
                        .ok_or(HelloError::TooManyStaleBytes(limits.stale_bytes_max))?;
                }
            }
        }
    })
    .await
}

async fn within<T>(
    deadline: Duration,
    handshake: impl Future<Output = Result<T, HelloError>>,
) -> Result<T, HelloError> {
    match tokio::time::timeout(deadline, handshake).await {
        Ok(done) => done,
        Err(_) => Err(HelloError::Deadline(deadline)),
    }
}

/// Reads up to and with the first message that begins with `pattern`, and not a byte further.
///
/// The message cannot end before the bytes that are missing in the buffer, so reading exactly those never reads too much.
async fn scan<Io>(
    io: &mut Io,
    pattern: &[u8],
    stale_left: &mut u64,
    limits: &Limits,
) -> Result<[u8; MESSAGE_BYTES], HelloError>
where
    Io: AsyncRead + Unpin,
{
    let mut message = [0_u8; MESSAGE_BYTES];
    let mut filled = 0;
    loop {
        filled += fill(io, &mut message[filled..]).await?;
        let start = (0..filled).find(|&at| may_begin(&message[at..filled], pattern)).unwrap_or(filled);
        if start == 0 {
            return Ok(message);
        }
        *stale_left =
            stale_left.checked_sub(start as u64).ok_or(HelloError::TooManyStaleBytes(limits.stale_bytes_max))?;
        message.copy_within(start..filled, 0);
        filled -= start;
    }
}

async fn fill<Io: AsyncRead + Unpin>(io: &mut Io, buffer: &mut [u8]) -> Result<usize, HelloError> {
    match io.read_exact(buffer).await {
        Ok(count) => Ok(count),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(HelloError::Closed),
        Err(error) => Err(HelloError::Io(error)),
    }
}

/// Whether `bytes` are, or may go on to be, a message that begins with `pattern`.
fn may_begin(bytes: &[u8], pattern: &[u8]) -> bool {
    let common = bytes.len().min(pattern.len());
    let whole = bytes.first_chunk::<MESSAGE_BYTES>();
    bytes[..common] == pattern[..common] && whole.is_none_or(|message| message[CHECKED..] == check(&message[..CHECKED]))
}

/// FNV-1a with 32 bits.
fn check(bytes: &[u8]) -> [u8; 4] {
    let sum = bytes.iter().fold(0x811c_9dc5_u32, |sum, &byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    sum.to_le_bytes()
}

fn encode_hello(hello: &Hello) -> [u8; MESSAGE_BYTES] {
    let mut message = [0; MESSAGE_BYTES];
    message[..16].copy_from_slice(&HELLO_MAGIC);
    message[16..18].copy_from_slice(&VERSION.to_le_bytes());
    message[18] = hello.lane.code();
    message[20..28].copy_from_slice(&hello.epoch.to_le_bytes());
    message[28..CHECKED].copy_from_slice(&hello.nonce);
    seal(message)
}

fn encode_answer(nonce: &Nonce, lane: Lane, status: Status, epoch: u64) -> [u8; MESSAGE_BYTES] {
    let mut message = [0; MESSAGE_BYTES];
    message[..16].copy_from_slice(&ANSWER_MAGIC);
    message[16..48].copy_from_slice(nonce);
    message[48..50].copy_from_slice(&VERSION.to_le_bytes());
    message[50] = lane.code();
    message[51] = status.code();
    message[52..CHECKED].copy_from_slice(&epoch.to_le_bytes());
    seal(message)
}

fn seal(mut message: [u8; MESSAGE_BYTES]) -> [u8; MESSAGE_BYTES] {
    let sum = check(&message[..CHECKED]);
    message[CHECKED..].copy_from_slice(&sum);
    message
}

/// A hello as it came, before it was judged.
struct Received {
    version: u16,
    lane: u8,
    epoch: u64,
    nonce: Nonce,
}

impl Received {
    fn decode(message: &[u8; MESSAGE_BYTES]) -> Self {
        let mut nonce = [0; NONCE_BYTES];
        nonce.copy_from_slice(&message[28..CHECKED]);
        Self {
            version: u16::from_le_bytes([message[16], message[17]]),
            lane: message[18],
            epoch: u64_at(message, 20),
            nonce,
        }
    }

    fn judge(&self, lane: Lane, epoch_min: u64) -> Status {
        if self.version != VERSION {
            Status::VersionMismatch
        } else if self.lane != lane.code() {
            Status::WrongLane
        } else if self.epoch < epoch_min {
            Status::StaleEpoch
        } else {
            Status::Accepted
        }
    }
}

/// What the answer to `hello` means; its magic and nonce were compared already.
fn judge_answer(answer: &[u8; MESSAGE_BYTES], hello: &Hello) -> Result<(), HelloError> {
    let theirs = u16::from_le_bytes([answer[48], answer[49]]);
    if theirs != VERSION {
        return Err(HelloError::VersionMismatch { ours: VERSION, theirs });
    }
    match answer[51] {
        0 if answer[50] != hello.lane.code() => Err(HelloError::WrongLane),
        0 if u64_at(answer, 52) != hello.epoch => {
            Err(HelloError::StaleEpoch { offered: hello.epoch, theirs: u64_at(answer, 52) })
        }
        0 => Ok(()),
        2 => Err(HelloError::WrongLane),
        3 => Err(HelloError::StaleEpoch { offered: hello.epoch, theirs: u64_at(answer, 52) }),
        other => Err(HelloError::Refused(other)),
    }
}

fn u64_at(message: &[u8; MESSAGE_BYTES], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&message[at..at + 8]);
    u64::from_le_bytes(bytes)
}
