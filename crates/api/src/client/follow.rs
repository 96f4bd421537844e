//! Follows logs and events of a run across broken connections, and reads logs as batches.
//!
//! What always holds: every entry after the starting sequence is yielded once and in order; what comes again after a
//! reconnection is dropped by its sequence; a gap is never passed over. What is held in memory is one event or batch. When
//! nothing new could be read for [`PATIENCE`] of failures, or the same kind of nonsense came [`NONSENSE_MAX`] times in a
//! row, the follower says so instead of trying for ever; a connection on which merely nothing happens is kept. A stream that
//! had begun is tried for as long as the server answers that there is no room for it now. Who wants to know is told while it
//! is tried again ([`Follower::telling`]).

use std::{
    hash::{BuildHasher, RandomState},
    marker::PhantomData,
    time::Duration,
};

use holm_domain::{
    ErrorCode,
    run::{Event, EventKind},
};
use reqwest::Response;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::Instant;

use super::{
    Client, ClientError, REQUEST_DEADLINE,
    sse::{SseEvent, SseReader},
    transport::{chain, media_type},
};
use crate::{
    LAST_EVENT_ID, LOG_BATCHES,
    batches::{Frame, FrameReader, LogBatch},
    logs::LogEntry,
    runs::RunView,
};

/// For how long reconnecting is tried while every attempt fails.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// How many times in a row a stream may make no sense before the follower gives up.
pub const NONSENSE_MAX: u32 = 5;
/// After how long in which every attempt failed it is told.
pub const TELL_AFTER: Duration = Duration::from_secs(3);
/// A server sends a comment at least every 15 s; after this much silence the connection is held for dead.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// A connection that stood for so long was a good one, even if nothing happened on it.
const STOOD_FOR: Duration = Duration::from_secs(10);
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Something with a sequence that can be followed.
pub trait Followed: Sized {
    /// Takes the bytes of a stream apart.
    type Reader: Default + Send;
    /// What is told at the end of its streams.
    type Last: Send;
    /// What its streams are made of.
    const MEDIA_TYPE: &'static str;
    /// Takes a piece of the stream.
    fn push(reader: &mut Self::Reader, piece: &[u8]);
    /// What comes next, if what was pushed has it; `last_seq` is the sequence of what was yielded last.
    fn pull(reader: &mut Self::Reader, last_seq: u64) -> Result<Option<Step<Self, Self::Last>>, String>;
    /// Its last sequence within the run, from 1.
    fn seq(&self) -> u64;
    /// Whether nothing follows it.
    fn is_last(&self) -> bool;
}

/// What a piece of a stream means.
#[derive(Debug)]
pub enum Step<T, L = ()> {
    /// Something new.
    Item(T),
    /// Everything was sent; what is told last.
    End(L),
    /// Nothing of interest.
    Skip,
    /// Nothing of interest, in the place of what has this sequence.
    Past(u64),
}

/// What comes as server-sent events.
macro_rules! followed_by_events {
    ($item:ty, $event:literal, $is_last:expr) => {
        impl Followed for $item {
            type Reader = SseReader;
            type Last = ();
            const MEDIA_TYPE: &'static str = "text/event-stream";
            fn push(reader: &mut SseReader, piece: &[u8]) {
                reader.push(piece);
            }
            fn pull(reader: &mut SseReader, last_seq: u64) -> Result<Option<Step<Self>>, String> {
                let event = reader.pull().map_err(|error| error.to_string())?;
                event.map(|event| read_event($event, &event, |item: &Self| item.seq, last_seq)).transpose()
            }
            fn seq(&self) -> u64 {
                self.seq
            }
            fn is_last(&self) -> bool {
                $is_last(self)
            }
        }
    };
}
followed_by_events!(LogEntry, "log", |_: &LogEntry| false);
followed_by_events!(Event, "event", |event: &Event| matches!(event.kind, EventKind::Ended { .. }));

impl Followed for LogBatch {
    type Reader = FrameReader;
    /// The run, if it has ended.
    type Last = Option<Box<RunView>>;
    const MEDIA_TYPE: &'static str = LOG_BATCHES;
    fn push(reader: &mut FrameReader, piece: &[u8]) {
        reader.push(piece);
    }
    fn pull(reader: &mut FrameReader, last_seq: u64) -> Result<Option<Step<Self, Self::Last>>, String> {
        match reader.pull().map_err(|error| error.to_string())? {
            None => Ok(None),
            Some(Frame::Batch(batch)) if batch.last_seq() <= last_seq => Ok(Some(Step::Skip)),
            Some(Frame::Batch(batch)) if batch.first_seq() <= last_seq + 1 => {
                Ok(Some(Step::Item(batch.behind(last_seq))))
            }
            Some(Frame::Batch(batch)) => Err(format!("entry {} follows entry {last_seq}", batch.first_seq())),
            Some(Frame::Alive) => Ok(Some(Step::Skip)),
            Some(Frame::End(seq, run)) if seq <= last_seq => Ok(Some(Step::End(run))),
            Some(Frame::End(seq, _)) => Err(format!("the stream ended at {last_seq}, and its end says {seq}")),
        }
    }
    fn seq(&self) -> u64 {
        self.last_seq()
    }
    fn is_last(&self) -> bool {
        false
    }
}

/// Follows log entries.
pub type LogFollower = Follower<LogEntry>;
/// Follows events.
pub type EventFollower = Follower<Event>;
/// Reads a log batch by batch.
pub type BatchFollower = Follower<LogBatch>;

type Tell = Box<dyn FnMut(&ClientError) + Send>;

/// Reads entries one by one, over as many connections as it takes.
pub struct Follower<T: Followed> {
    client: Client,
    path: String,
    last_seq: u64,
    connection: Option<Connection<T>>,
    /// Not before this instant is the next connection made.
    retry_at: Option<Instant>,
    backoff: Duration,
    failing_since: Option<Instant>,
    /// Since when nothing was read but failures, whatever patience there is for them.
    troubled_since: Option<Instant>,
    tell: Option<Tell>,
    told: bool,
    nonsense: u32,
    /// Whether there ever was a connection.
    begun: bool,
    ended: bool,
    last: Option<T::Last>,
    patience: Duration,
    item: PhantomData<fn() -> T>,
}

struct Connection<T: Followed> {
    response: Response,
    reader: T::Reader,
    made_at: Instant,
}

/// The data of an event in the place of what is not followed.
#[derive(Deserialize)]
struct Note {
    seq: u64,
}

/// The data of the final event of a stream.
#[derive(Deserialize)]
struct End {
    last_seq: u64,
}

impl<T: Followed> Follower<T> {
    pub(super) fn new(client: Client, path: String, after: u64) -> Self {
        Self {
            client,
            path,
            last_seq: after,
            connection: None,
            retry_at: None,
            backoff: BACKOFF_FIRST,
            failing_since: None,
            troubled_since: None,
            tell: None,
            told: false,
            nonsense: 0,
            begun: false,
            ended: false,
            last: None,
            patience: PATIENCE,
            item: PhantomData,
        }
    }

    /// The same follower with another patience than [`PATIENCE`].
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Calls `tell` with what is wrong when every attempt has failed for [`TELL_AFTER`] and it is tried again; once more only
    /// after something new was read.
    pub fn telling(self, tell: impl FnMut(&ClientError) + Send + 'static) -> Self {
        Self { tell: Some(Box::new(tell)), ..self }
    }

    /// The sequence of the entry that was yielded last.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// What was told at the end of the stream; nothing before.
    pub fn into_last(self) -> Option<T::Last> {
        self.last
    }

    /// The next entry; nothing once the run has ended and all of it was yielded. May be dropped while it waits and
    /// called again without losing anything, as in `select!`.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if self.ended {
                return Ok(None);
            }
            match self.attempt().await {
                Ok(Step::Item(item)) => {
                    self.last_seq = item.seq();
                    self.progress();
                    if item.is_last() {
                        self.ended = true;
                        self.connection = None;
                    }
                    return Ok(Some(item));
                }
                Ok(Step::End(last)) => {
                    self.last = Some(last);
                    self.ended = true;
                    self.connection = None;
                }
                Ok(Step::Skip) => {}
                Ok(Step::Past(seq)) => {
                    self.last_seq = seq;
                    self.progress();
                }
                Err(error) => self.failed(error)?,
            }
        }
    }

    /// Connects if there is no connection, and reads one event.
    async fn attempt(&mut self) -> Result<Step<T, T::Last>, ClientError> {
        if let Some(at) = self.retry_at {
            tokio::time::sleep_until(at).await;
            self.retry_at = None;
        }
        let Connection { response, reader, .. } = match &mut self.connection {
            Some(connection) => connection,
            none => {
                let made = connect(&self.client, &self.path, self.last_seq).await?;
                self.begun = true;
                none.insert(made)
            }
        };
        let decode = |problem: String| self.client.inner.decode_error(problem);
        loop {
            if let Some(step) = T::pull(reader, self.last_seq).map_err(decode)? {
                return Ok(step);
            }
            let piece = tokio::time::timeout(SILENCE_MAX, response.chunk())
                .await
                .map_err(|_| broken(&self.client, format!("nothing was heard for {SILENCE_MAX:?}")))?
                .map_err(|error| broken(&self.client, chain(&error)))?
                .ok_or_else(|| broken(&self.client, "the stream ended before its last event".to_owned()))?;
            T::push(reader, &piece);
        }
    }

    fn progress(&mut self) {
        self.backoff = BACKOFF_FIRST;
        self.failing_since = None;
        self.troubled_since = None;
        self.told = false;
        self.nonsense = 0;
    }

    /// Tells of a failure after which it is tried again.
    fn trouble(&mut self, error: &ClientError, now: Instant) {
        let since = *self.troubled_since.get_or_insert(now);
        if let Some(tell) = self.tell.as_mut().filter(|_| !self.told && now - since >= TELL_AFTER) {
            tell(error);
            self.told = true;
        }
    }

    /// Decides whether to try again, and when.
    fn failed(&mut self, error: ClientError) -> Result<(), ClientError> {
        // A proxy in between may cut quiet connections off; one that stood for a while was no failure.
        if self.connection.take().is_some_and(|connection| connection.made_at.elapsed() >= STOOD_FOR) {
            (self.failing_since, self.troubled_since, self.backoff) = (None, None, BACKOFF_FIRST);
        }
        if matches!(error, ClientError::Decode { .. }) {
            self.nonsense += 1;
            if self.nonsense >= NONSENSE_MAX {
                return Err(error);
            }
        } else if !error.is_transient() {
            return Err(error);
        }
        // A server that is full may end a stream for somebody who has none, and has no room for it until others go.
        if self.begun && error.code() == Some(ErrorCode::TooMany) {
            self.failing_since = None;
        }
        let now = Instant::now();
        if now - *self.failing_since.get_or_insert(now) >= self.patience {
            return Err(error);
        }
        self.trouble(&error, now);
        // Half of it is by chance, so that the clients of a server that was restarted do not all come at once.
        let half = self.backoff / 2;
        let chance = RandomState::new().hash_one(now) % 1000;
        self.retry_at = Some(now + half + half.mul_f64(chance as f64 / 1000.0));
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        Ok(())
    }
}

async fn connect<T: Followed>(client: &Client, path: &str, last_seq: u64) -> Result<Connection<T>, ClientError> {
    let call = client.inner.get(path).header(LAST_EVENT_ID, &last_seq.to_string()).deadline(REQUEST_DEADLINE);
    let response = call.stream().await?;
    match media_type(&response) {
        Some(given) if given == T::MEDIA_TYPE => {
            Ok(Connection { response, reader: T::Reader::default(), made_at: Instant::now() })
        }
        other => Err(client.inner.decode_error(format!("expected {}, got {other:?}", T::MEDIA_TYPE))),
    }
}

fn broken(client: &Client, problem: String) -> ClientError {
    ClientError::Transport { endpoint: client.endpoint().to_string(), problem }
}

fn read_event<T: DeserializeOwned>(
    name: &str,
    event: &SseEvent,
    seq_of: fn(&T) -> u64,
    last_seq: u64,
) -> Result<Step<T>, String> {
    if event.name == "end" {
        let end: End = serde_json::from_str(&event.data).map_err(|error| format!("end event: {error}"))?;
        return if end.last_seq <= last_seq {
            Ok(Step::End(()))
        } else {
            Err(format!("the stream ended at {last_seq}, and its end says {}", end.last_seq))
        };
    }
    if event.name == "note" {
        let Note { seq } = serde_json::from_str(&event.data).map_err(|error| format!("note event: {error}"))?;
        return next(seq, last_seq, || Step::Past(seq));
    }
    if event.name != name {
        // A newer server may tell more; whoever does not know it passes over it.
        return Ok(Step::Skip);
    }
    let item: T = serde_json::from_str(&event.data).map_err(|error| format!("{name} event: {error}"))?;
    let seq = seq_of(&item);
    if event.id.as_deref() != Some(seq.to_string().as_str()) {
        return Err(format!("entry {seq} has the event id {:?}", event.id));
    }
    next(seq, last_seq, || Step::Item(item))
}

/// What has a sequence, if it is the next.
fn next<T>(seq: u64, last_seq: u64, step: impl FnOnce() -> Step<T>) -> Result<Step<T>, String> {
    match seq {
        seq if seq <= last_seq => Ok(Step::Skip),
        seq if seq == last_seq + 1 => Ok(step()),
        seq => Err(format!("entry {seq} follows entry {last_seq}")),
    }
}
