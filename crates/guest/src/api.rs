//! What is served on the lane in: the table of `holm_wire::guest_api`.

use std::{
    cell::{Cell, RefCell},
    io,
    num::ParseIntError,
    os::fd::OwnedFd,
    path::Path,
    rc::Rc,
};

use bytes::Bytes;
use h2::RecvStream;
use holm_wire::{
    guest_api::{PostRestore, SendSignal, SetUp, Setup, Spawn, SpawnFailure, Spawned},
    http2::{self, Answer, Exchange, Incoming, read_json},
};
use http::{Method, StatusCode};
use rustix::fs::ResolveFlags;

use crate::{
    changes::{self, ChangesError},
    files,
    inner::{self, Inner},
    machine::Machine,
    mounts,
    names::Names,
    network,
    process::{Process, Table},
    seal::{self, Sealed},
    seccomp,
    spawn::Prepared,
    sys,
    watch::Refusals,
};

/// The file with a run's structured result, in the folder that is its own.
const RESULT: &str = "result.json";
const RESULT_BYTES_MAX: usize = 64 * 1024;

/// What the guest is, whatever the epoch.
#[derive(Default)]
pub struct Guest {
    /// Where it runs; set before anything is served.
    pub machine: Cell<Option<Machine>>,
    /// What the workload tried to reach.
    pub refusals: Rc<Refusals>,
    /// Who answers its questions for names, where it reaches something.
    pub names: Rc<Names>,
    inner: RefCell<Option<Rc<Inner>>>,
    /// The writable layer of the work dir.
    upper: RefCell<Option<Rc<OwnedFd>>>,
    /// Whether setting up was begun: a second try could not begin anew.
    begun: Cell<bool>,
    table: Rc<Table>,
}

/// Why a request cannot be answered as it was meant.
enum Refusal {
    /// A status and a sentence.
    Failure(StatusCode, String),
    /// A command could not be started.
    Spawn(SpawnFailure),
}

/// What a request is answered with.
enum Reply {
    Empty,
    Json(StatusCode, Vec<u8>),
    Bytes(Bytes),
    Output(Rc<Process>, u64),
    Changes(Rc<OwnedFd>, Rc<Inner>),
}

type Answered = Result<Reply, Refusal>;

/// Answers one request. Errors of the connection end with it and interest nobody else.
pub async fn answer(guest: Rc<Guest>, exchange: Exchange) {
    let answer = match route(&guest, &exchange.head.method.clone(), exchange).await {
        (answer, Ok(reply)) => send(answer, reply).await,
        (answer, Err(Refusal::Failure(status, message))) => answer.failure(status, message).await,
        (answer, Err(Refusal::Spawn(failure))) => answer.json(StatusCode::UNPROCESSABLE_ENTITY, &failure).await,
    };
    let _ = answer;
}

async fn route(guest: &Rc<Guest>, method: &Method, exchange: Exchange) -> (Answer, Answered) {
    let path = exchange.head.uri.path().to_owned();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let number = |name: &str| exchange.query(name).map(str::parse::<u64>);
    let (from, to, wait) = (number("from"), number("to"), exchange.query("wait") == Some("1"));
    let bytes_max = number("bytes_max");
    let Exchange { body, answer, .. } = exchange;
    let answered = match (method.as_str(), segments.as_slice()) {
        ("POST", ["setup"]) => set_up(guest, body).await,
        ("POST", ["processes"]) => start(guest, body).await,
        ("GET", ["processes", id]) => status(guest, id, wait).await,
        ("GET", ["processes", id, "output"]) => output(guest, id, from),
        ("POST", ["processes", id, "ack"]) => acknowledge(guest, id, to),
        ("POST", ["processes", id, "stdin"]) => feed(guest, id, body).await,
        ("POST", ["processes", id, "signal"]) => signal(guest, id, body).await,
        ("GET", ["result"]) => result(guest),
        ("GET", ["changes"]) => layer(guest, bytes_max).await,
        ("POST", ["post-restore"]) => post_restore(guest, body).await,
        _ => Err(refuse(StatusCode::NOT_FOUND, format!("nothing is served at {method} {path}"))),
    };
    (answer, answered)
}

async fn send(answer: Answer, reply: Reply) -> Result<(), http2::Error> {
    match reply {
        Reply::Empty => answer.empty(StatusCode::NO_CONTENT),
        Reply::Json(status, body) => answer.bytes(status, body.into()).await,
        Reply::Bytes(body) => answer.bytes(StatusCode::OK, body).await,
        Reply::Output(process, from) => send_output(answer, &process, from).await,
        Reply::Changes(upper, inner) => {
            let mut out = answer.stream(StatusCode::OK)?;
            // An archive that breaks off is reset, so nobody takes it for whole.
            let _ = changes::send(&upper, inner.ids, &mut out).await;
            Ok(())
        }
    }
}

async fn set_up(guest: &Rc<Guest>, body: RecvStream) -> Answered {
    let setup: Setup = json(body).await?;
    if guest.begun.replace(true) {
        return Err(refuse(StatusCode::CONFLICT, "was set up already"));
    }
    let unenforced =
        prepare(guest, &setup).map_err(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("setup: {error}")))?;
    reply_json(StatusCode::OK, &SetUp { unenforced })
}

/// Makes the workload's place, and says what is missing of it. The order matters: what looks on and what is opened comes
/// before the seal.
fn prepare(guest: &Rc<Guest>, setup: &Setup) -> io::Result<Vec<String>> {
    if setup.ids.count == 0 || setup.ids.outer_first.checked_add(setup.ids.count).is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no such range of ids"));
    }
    rustix::system::sethostname(setup.hostname.as_bytes()).map_err(|error| inner::context(error.into(), "hostname"))?;
    let mut unenforced = network::set_up(setup.redirect).map_err(|error| inner::context(error, "network"))?;
    let reaches_nothing = setup.redirect.is_none();
    guest.refusals.watch(reaches_nothing).map_err(|error| inner::context(error, "watch the network"))?;
    if !reaches_nothing {
        guest.names.serve().map_err(|error| inner::context(error, "name server"))?;
    }
    let filters = seccomp::compile(setup.writes_to_host).map_err(|error| io::Error::other(error.to_string()))?;
    if let Some(layers) = &setup.work_dir {
        let hidden = setup.hidden.as_deref().unwrap_or("/");
        if hidden == "/" || !Path::new(&layers.upper).starts_with(hidden) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the layers of the work dir are not hidden"));
        }
        let upper = mounts::open_dir(&layers.upper).map_err(|error| inner::context(error, "work dir"))?;
        guest.upper.replace(Some(Rc::new(upper)));
    }
    let machine = guest.machine.get().unwrap_or(Machine::Process);
    let made = inner::make(machine, setup, Rc::new(filters))?;
    if let Sealed::No(why) = seal::restrict_self().map_err(|error| io::Error::other(error.to_string()))? {
        unenforced.push(format!("landlock: {why}"));
    }
    guest.inner.replace(Some(Rc::new(made)));
    Ok(unenforced)
}

async fn start(guest: &Rc<Guest>, body: RecvStream) -> Answered {
    let spawn: Spawn = json(body).await?;
    let inner = place(guest)?;
    let prepared = Prepared::new(&spawn, &inner).map_err(Refusal::Spawn)?;
    let started = guest.table.start(prepared, inner, spawn.stdin, guest.refusals.clone()).await;
    reply_json(StatusCode::CREATED, &Spawned { id: started.map_err(Refusal::Spawn)? })
}

async fn status(guest: &Rc<Guest>, id: &str, wait: bool) -> Answered {
    let process = find(guest, id)?;
    if wait {
        process.until(|process| process.status().exit.is_some()).await;
    }
    if let Some(why) = process.broken() {
        return Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, why));
    }
    reply_json(StatusCode::OK, &process.status())
}

fn output(guest: &Rc<Guest>, id: &str, from: Option<Result<u64, std::num::ParseIntError>>) -> Answered {
    let process = find(guest, id)?;
    let from = offset(from)?;
    if !process.ring.borrow().holds(from) {
        return Err(refuse(StatusCode::RANGE_NOT_SATISFIABLE, format!("offset {from} is not at hand")));
    }
    Ok(Reply::Output(process, from))
}

/// Sends frames from `offset` on until the process and its pipes have ended, or the reader falls off the ring's start.
async fn send_output(answer: Answer, process: &Process, mut offset: u64) -> Result<(), http2::Error> {
    let mut out = answer.stream(StatusCode::OK)?;
    loop {
        process.until(|process| process.ring.borrow().end() != offset || process.is_complete()).await;
        if !process.ring.borrow().holds(offset) {
            // Another reader acknowledged what this one has not got: its stream is reset, not ended.
            return Ok(());
        }
        let (frames, next) = process.ring.borrow().frames_from(offset);
        if frames.is_empty() {
            return out.finish();
        }
        out.send(frames).await?;
        offset = next;
    }
}

fn acknowledge(guest: &Rc<Guest>, id: &str, to: Option<Result<u64, std::num::ParseIntError>>) -> Answered {
    let process = find(guest, id)?;
    let to = offset(to)?;
    if !process.ring.borrow_mut().acknowledge(to) {
        return Err(refuse(StatusCode::RANGE_NOT_SATISFIABLE, format!("offset {to} was never written")));
    }
    process.changed.notify_waiters();
    Ok(Reply::Empty)
}

/// Writes a body to a process's standard input, and closes it at the body's end.
async fn feed(guest: &Rc<Guest>, id: &str, body: RecvStream) -> Answered {
    let process = find(guest, id)?;
    let stdin = process.stdin.borrow_mut().take();
    let stdin =
        stdin.ok_or_else(|| refuse(StatusCode::CONFLICT, "standard input is not open, or is being written to"))?;
    let mut stdin = Lent { process, pipe: Some(stdin) };
    let mut incoming = Incoming::new(body);
    loop {
        match incoming.next().await {
            Ok(Some(piece)) => stdin.write(&piece).await?,
            Ok(None) => {
                stdin.pipe = None;
                return Ok(Reply::Empty);
            }
            // Broken off, not ended: the input stays open for whoever comes next.
            Err(error) => return Err(refuse(StatusCode::BAD_REQUEST, error.to_string())),
        }
    }
}

/// A process's standard input while one request writes to it; given back if that is interrupted.
struct Lent {
    process: Rc<Process>,
    pipe: Option<tokio::io::unix::AsyncFd<OwnedFd>>,
}

impl Lent {
    async fn write(&mut self, mut data: &[u8]) -> Result<(), Refusal> {
        let Some(pipe) = &self.pipe else { return Ok(()) };
        while !data.is_empty() {
            let ended = |error: io::Error| refuse(StatusCode::CONFLICT, format!("standard input: {error}"));
            // A pipe that has no reader any more fails, so this cannot wait for a process that has ended.
            let mut ready = pipe.writable().await.map_err(ended)?;
            match ready.try_io(|pipe| Ok(rustix::io::write(pipe, data)?)) {
                Ok(Ok(count)) => data = &data[count..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(ended(error)),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.process.status().exit.is_none() {
            self.process.stdin.replace(self.pipe.take());
        }
    }
}

async fn signal(guest: &Rc<Guest>, id: &str, body: RecvStream) -> Answered {
    let process = find(guest, id)?;
    let SendSignal { signal, all } = json(body).await?;
    if !(1..=64).contains(&signal) {
        return Err(refuse(StatusCode::BAD_REQUEST, format!("there is no signal {signal}")));
    }
    if all && i32::from(signal) == libc::SIGKILL {
        // It would be killed with the others; that is no breakdown.
        place(guest)?.init.end();
    }
    let sent = if all { signal_all(i32::from(signal)) } else { process.signal(i32::from(signal)) };
    match sent {
        Ok(true) => Ok(Reply::Empty),
        Ok(false) => Err(refuse(StatusCode::GONE, "the process has ended")),
        Err(error) => Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("signal {signal}: {error}"))),
    }
}

/// To every process in this pid namespace and those within it; the guest itself is spared by the kernel. The inner init
/// ignores everything but SIGKILL and SIGSTOP, and SIGKILL is meant to end everything.
fn signal_all(signal: i32) -> io::Result<bool> {
    match sys::kill(-1, signal) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        other => other.map(|()| true),
    }
}

fn result(guest: &Rc<Guest>) -> Answered {
    let inner = place(guest)?;
    let refused = |why: String| Err(refuse(StatusCode::UNPROCESSABLE_ENTITY, why));
    match files::read_small(&inner.result, RESULT, RESULT_BYTES_MAX, ResolveFlags::NO_SYMLINKS) {
        Ok(Some(content)) => Ok(Reply::Bytes(content.into())),
        Ok(None) => Ok(Reply::Empty),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => refused("it is a symbolic link".to_owned()),
        Err(error) if error.raw_os_error().is_some() => refused(format!("it cannot be read: {error}")),
        Err(error) => refused(format!("it is {error}")),
    }
}

async fn layer(guest: &Rc<Guest>, bytes_max: Option<Result<u64, ParseIntError>>) -> Answered {
    let Some(Ok(bytes_max)) = bytes_max else {
        return Err(refuse(StatusCode::BAD_REQUEST, "the largest length is missing or malformed"));
    };
    let upper = guest.upper.borrow().clone();
    let upper = upper.ok_or_else(|| refuse(StatusCode::NOT_FOUND, "there is no work dir of which changes are kept"))?;
    let inner = place(guest)?;
    match changes::measure(&upper, inner.ids, bytes_max).await {
        Ok(()) => Ok(Reply::Changes(upper, inner)),
        Err(error @ (ChangesError::TooLong { .. } | ChangesError::TooDeep)) => {
            Err(refuse(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))
        }
        Err(error) => Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

async fn post_restore(guest: &Rc<Guest>, body: RecvStream) -> Answered {
    let renewal: PostRestore = json(body).await?;
    let machine = guest.machine.get().unwrap_or(Machine::Process);
    match machine.renew(&renewal) {
        Ok(()) => Ok(Reply::Empty),
        Err(error) => Err(refuse(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())),
    }
}

fn place(guest: &Rc<Guest>) -> Result<Rc<Inner>, Refusal> {
    guest.inner.borrow().clone().ok_or_else(|| refuse(StatusCode::CONFLICT, "was not set up"))
}

fn find(guest: &Rc<Guest>, id: &str) -> Result<Rc<Process>, Refusal> {
    let found = id.parse().ok().and_then(|id| guest.table.get(id));
    found.ok_or_else(|| refuse(StatusCode::NOT_FOUND, format!("there is no process {id}")))
}

fn offset(value: Option<Result<u64, ParseIntError>>) -> Result<u64, Refusal> {
    match value {
        Some(Ok(offset)) => Ok(offset),
        _ => Err(refuse(StatusCode::BAD_REQUEST, "an offset is missing or malformed")),
    }
}

async fn json<T: serde::de::DeserializeOwned>(body: RecvStream) -> Result<T, Refusal> {
    read_json(body).await.map_err(|error| match error {
        http2::Error::TooLarge(_) => refuse(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
        _ => refuse(StatusCode::BAD_REQUEST, error.to_string()),
    })
}

fn reply_json(status: StatusCode, body: &impl serde::Serialize) -> Answered {
    let body = serde_json::to_vec(body);
    let body = body.map_err(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(Reply::Json(status, body))
}

fn refuse(status: StatusCode, message: impl Into<String>) -> Refusal {
    Refusal::Failure(status, message.into())
}
