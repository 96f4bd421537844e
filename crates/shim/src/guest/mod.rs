//! The shim's half of the guest API: one guest, asked over its lane in.
//!
//! The guest is hostile. What always holds: each answer has a deadline and a limit, each value is checked before it is
//! used, and nothing that the guest says or leaves unsaid makes a failure look like a success. Why a guest cannot be worked
//! with any further is one error, [`Lost`], with a sentence that is fit for people.

pub mod output;

use std::{os::fd::OwnedFd, time::Duration};

use bytes::Bytes;
use holm_domain::{limits::RESULT_BYTES_MAX, run::ExitStatus};
use holm_wire::{
    guest_api::{
        Exit, Failure, PostRestore, ProcessStatus, SendSignal, SetUp, Setup, Spawn, SpawnFailure, Spawned,
        UNENFORCED_MAX,
    },
    hello::{self, Hello, Lane},
    http2::{self, Client, Driver, Incoming, Server, Settings},
};
use http::{Method, StatusCode};
use serde::Serialize;
use tokio::{net::UnixStream, time::Instant};

use crate::{outcome, protocol::UNENFORCED_BYTES_MAX};

/// A guest that cannot be worked with any further, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Lost(String);

impl Lost {
    /// `message` may quote the guest: it is made fit for people.
    pub fn new(message: impl AsRef<str>) -> Self {
        Self(outcome::clip(message))
    }
}

/// Why a command was not started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpawnError {
    /// The guest says that it could not be.
    #[error("{}", .0.message)]
    Refused(SpawnFailure),
    /// The guest cannot be worked with any further.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// Why there are no changes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangesError {
    /// The guest says that they are more than may be.
    #[error("{0}")]
    Refused(String),
    /// The guest cannot be worked with any further.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// The structured result that a command left.
#[derive(Debug, Clone, PartialEq)]
pub enum CommandResult {
    /// It left none.
    None,
    /// It left this.
    Json(serde_json::Value),
    /// It left something that is not accepted, and why.
    Refused(String),
}

/// How long a guest may take for things.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// From the beginning of the first handshake until it has answered its setup.
    pub ready: Duration,
    /// For one answer.
    pub answer: Duration,
}

/// A deadline for becoming ready, and since when it runs.
#[derive(Debug, Clone, Copy)]
pub struct Readiness {
    started: Instant,
    limit: Duration,
}

impl Readiness {
    /// A deadline that begins now.
    pub fn begin(limit: Duration) -> Self {
        Self { started: Instant::now(), limit }
    }

    fn left(&self) -> Duration {
        self.limit.saturating_sub(self.started.elapsed())
    }

    /// The error states the time that really passed (SPEC R9).
    fn failed(&self, doing: &str, problem: impl std::fmt::Display) -> Lost {
        let waited = self.started.elapsed();
        Lost::new(format!("the guest was not ready after {waited:.3?} of {:?} ({doing}): {problem}", self.limit))
    }
}

/// Both lanes of a guest that answered the handshake, before anything else was said.
pub struct Lanes {
    /// Asks the guest.
    pub guest: Guest,
    /// Moves what is asked; completes when the lane in has ended.
    pub driver: Driver<UnixStream>,
    /// What the guest asks of the shim.
    pub requests: Server<UnixStream>,
}

/// One use of one guest.
#[derive(Clone)]
pub struct Guest {
    client: Client,
    answer: Duration,
}

/// A lane as tokio works with it.
pub fn lane(fd: OwnedFd) -> std::io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

fn nonce() -> Result<hello::Nonce, Lost> {
    let mut nonce = hello::Nonce::default();
    let filled = rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty());
    match filled {
        Ok(length) if length == nonce.len() => Ok(nonce),
        other => Err(Lost::new(format!("the host gave no random bytes: {other:?}"))),
    }
}

/// Shakes hands on both lanes and begins HTTP/2 on each. `epoch` is 1 for a fresh guest and grows with every restore.
pub async fn connect(
    lane_in: UnixStream,
    lane_out: UnixStream,
    epoch: u64,
    readiness: Readiness,
    patience: Patience,
) -> Result<Lanes, Lost> {
    let connecting = async {
        let (mut lane_in, mut lane_out) = (lane_in, lane_out);
        for (io, lane) in [(&mut lane_in, Lane::In), (&mut lane_out, Lane::Out)] {
            let hello = Hello { lane, epoch, nonce: nonce()? };
            let limits = hello::Limits { deadline: readiness.left(), ..hello::Limits::default() };
            hello::host(io, &hello, &limits).await.map_err(|error| readiness.failed("handshake", error))?;
        }
        let failed = |error: http2::Error| readiness.failed("beginning HTTP/2", error);
        // Each end of a connection begins by itself, but the guest may be slow to begin the second one.
        let (client, driver) = http2::connect(lane_in, &Settings::HOST).await.map_err(failed)?;
        let requests = http2::accept(lane_out, &Settings::HOST_OUT).await.map_err(failed)?;
        Ok(Lanes { guest: Guest { client, answer: patience.answer }, driver, requests })
    };
    match tokio::time::timeout(readiness.left(), connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(readiness.failed("handshake", "no answer")),
    }
}

impl Guest {
    async fn within<T>(&self, what: &str, asked: impl Future<Output = Result<T, http2::Error>>) -> Result<T, Lost> {
        self.ask(what, asked).await?.map_err(|error| Lost::new(format!("{what}: {}", said(&error))))
    }

    async fn ask<T>(&self, what: &str, asked: impl Future<Output = T>) -> Result<T, Lost> {
        let late = |_| Lost::new(format!("{what}: the guest gave no answer within {:?}", self.answer));
        tokio::time::timeout(self.answer, asked).await.map_err(late)
    }

    async fn post(&self, what: &str, path: &str, body: Option<&impl Serialize>) -> Result<(), Lost> {
        self.within(what, self.client.empty(Method::POST, path, body)).await
    }

    /// Has the workload's place made; returns what the guest says it cannot enforce, fit for people.
    pub async fn setup(&self, setup: &Setup, readiness: Readiness) -> Result<Vec<String>, Lost> {
        let asked = self.client.json(Method::POST, "/setup", Some(setup));
        let SetUp { unenforced } = match tokio::time::timeout(readiness.left(), asked).await {
            Ok(answer) => answer.map_err(|error| readiness.failed("setup", said(&error)))?,
            Err(_) => return Err(readiness.failed("setup", "no answer")),
        };
        if unenforced.len() > UNENFORCED_MAX {
            let told = unenforced.len();
            return Err(readiness.failed("setup", format!("{told} walls are said to be missing")));
        }
        Ok(unenforced.into_iter().map(|reason| outcome::clip_to(UNENFORCED_BYTES_MAX, reason)).collect())
    }

    /// Starts a command.
    pub async fn spawn(&self, spawn: &Spawn) -> Result<u32, SpawnError> {
        let asked = self.client.json(Method::POST, "/processes", Some(spawn));
        match self.ask("starting the command", asked).await? {
            Ok(Spawned { id }) => Ok(id),
            Err(http2::Error::Status { status: StatusCode::UNPROCESSABLE_ENTITY, body }) => {
                let failure: SpawnFailure = serde_json::from_slice(&body)
                    .map_err(|error| Lost::new(format!("starting the command: a malformed refusal: {error}")))?;
                Err(SpawnError::Refused(failure))
            }
            Err(error) => Err(Lost::new(format!("starting the command: {}", said(&error))).into()),
        }
    }

    /// Begins to read the output of a process from an offset.
    async fn output_from(&self, process: u32, offset: u64) -> Result<Result<Incoming, http2::Error>, Lost> {
        let path = format!("/processes/{process}/output?from={offset}");
        self.ask("reading the output", self.client.download(&path)).await
    }

    /// Says that everything below an offset needs not be kept.
    pub async fn ack(&self, process: u32, offset: u64) -> Result<(), Lost> {
        self.post("acknowledging output", &format!("/processes/{process}/ack?to={offset}"), None::<&()>).await
    }

    /// Sends a signal to a process and its group, or to every process of the workload.
    pub async fn signal(&self, process: u32, signal: SendSignal) -> Result<(), Lost> {
        self.post("sending a signal", &format!("/processes/{process}/signal"), Some(&signal)).await
    }

    /// How a process ended whose output was read to its end, `output_bytes` in all. Anything that cannot be is an error.
    pub async fn exit(&self, process: u32, output_bytes: u64) -> Result<ExitStatus, Lost> {
        let path = format!("/processes/{process}?wait=1");
        let asked = self.client.json(Method::GET, &path, None::<&()>);
        let status: ProcessStatus = self.within("asking how the command ended", asked).await?;
        if status.output_bytes != output_bytes {
            let told = status.output_bytes;
            return Err(Lost::new(format!(
                "the guest sent {output_bytes} bytes of output and says that there were {told}"
            )));
        }
        let exit =
            status.exit.ok_or_else(|| Lost::new("the output has ended and the guest says that the command runs"))?;
        outcome::exit_status(exit).ok_or_else(|| match exit {
            Exit::Code(code) | Exit::Signal(code) => {
                Lost::new(format!("the guest says that the command ended by signal {code}, which cannot be"))
            }
        })
    }

    /// The structured result, if the command left one that is JSON and not too long.
    pub async fn result(&self) -> Result<CommandResult, Lost> {
        let asked = self.client.bytes(Method::GET, "/result", None::<&()>);
        match self.ask("reading the result", asked).await? {
            Ok((StatusCode::NO_CONTENT, _)) => Ok(CommandResult::None),
            Ok((_, body)) => Ok(judge_result(&body)),
            // What the workload left cannot be a result; that says nothing about how it went.
            Err(error @ http2::Error::Status { status: StatusCode::UNPROCESSABLE_ENTITY, .. }) => {
                Ok(CommandResult::Refused(outcome::clip(said(&error))))
            }
            Err(error) => Err(Lost::new(format!("reading the result: {}", said(&error)))),
        }
    }

    /// The changes of the work dir, as they come, if the guest says that they are no more than `bytes_max`. It looks at all of
    /// them first, so `limit` is how long it may take.
    pub async fn changes(&self, bytes_max: u64, limit: Duration) -> Result<Changes, ChangesError> {
        let path = format!("/changes?bytes_max={bytes_max}");
        let late = |_| Lost::new(format!("reading the changes: the guest gave no answer within {limit:?}"));
        match tokio::time::timeout(limit, self.client.download(&path)).await.map_err(late)? {
            Ok(incoming) => Ok(Changes { incoming, answer: self.answer }),
            Err(error @ http2::Error::Status { status: StatusCode::UNPROCESSABLE_ENTITY, .. }) => {
                Err(ChangesError::Refused(outcome::clip(said(&error))))
            }
            Err(error) => Err(Lost::new(format!("reading the changes: {}", said(&error))).into()),
        }
    }

    /// Has the guest write nothing more to either lane until the next handshake.
    pub async fn quiesce(&self) -> Result<(), Lost> {
        self.post("quiescing", "/quiesce", None::<&()>).await
    }

    /// Has the guest kill everything and end. A virtual machine that ends without having answered this broke down.
    pub async fn goodbye(&self) -> Result<(), Lost> {
        self.post("saying goodbye", "/goodbye", None::<&()>).await
    }

    /// Has a restored guest renew what a clone must not share.
    pub async fn post_restore(&self, renewed: &PostRestore) -> Result<(), Lost> {
        self.post("renewing a restored guest", "/post-restore", Some(renewed)).await
    }
}

/// The sentence of a guest that refused something, or what went wrong otherwise.
fn said(error: &http2::Error) -> String {
    match error {
        http2::Error::Status { body, .. } => match serde_json::from_slice(body) {
            Ok(Failure { message }) => message,
            Err(_) => error.to_string(),
        },
        other => other.to_string(),
    }
}

fn judge_result(body: &Bytes) -> CommandResult {
    if body.len() > RESULT_BYTES_MAX {
        return CommandResult::Refused(format!("it is longer than {RESULT_BYTES_MAX} bytes"));
    }
    match serde_json::from_slice::<serde_json::Value>(body) {
        // Numbers may take more room than they were written in; what is passed on has the limit, too.
        Ok(value) if value.to_string().len() <= RESULT_BYTES_MAX => CommandResult::Json(value),
        Ok(_) => CommandResult::Refused(format!("it is longer than {RESULT_BYTES_MAX} bytes when written out")),
        Err(error) => CommandResult::Refused(outcome::clip(format!("it is not JSON: {error}"))),
    }
}

/// An archive of changes on its way.
pub struct Changes {
    incoming: Incoming,
    answer: Duration,
}

impl Changes {
    /// The next piece; nothing at the end. A guest that stops sending is lost.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Lost> {
        match tokio::time::timeout(self.answer, self.incoming.next()).await {
            Ok(piece) => piece.map_err(|error| Lost::new(format!("reading the changes: {error}"))),
            Err(_) => Err(Lost::new(format!("reading the changes: the guest sent nothing for {:?}", self.answer))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_json_within_the_limit() {
        let judged = |text: &str| judge_result(&Bytes::copy_from_slice(text.as_bytes()));
        assert_eq!(judged(r#"{"passed": 3}"#), CommandResult::Json(serde_json::json!({"passed": 3})));
        assert!(matches!(judged(""), CommandResult::Refused(_)));
        assert!(matches!(judged("{} x"), CommandResult::Refused(_)));
        assert!(matches!(judged(&"[".repeat(10_000)), CommandResult::Refused(_)));
        assert!(matches!(judged(&format!("\"{}\"", "x".repeat(RESULT_BYTES_MAX))), CommandResult::Refused(_)));
        let swelling = format!("[{}1]", "1e15,".repeat(10_000));
        assert!(swelling.len() <= RESULT_BYTES_MAX && matches!(judged(&swelling), CommandResult::Refused(_)));
    }
}
