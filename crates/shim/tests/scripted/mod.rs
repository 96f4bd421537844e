//! A guest that follows a script, on socket pairs, and the harness that sees an attempt with it through.

use std::{
    io::Write as _,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use holm_domain::run::{EventKind, RunSpec, WorkDir};
use holm_runtime::{AttemptId, Sandbox, SandboxHandle};
use holm_shim::{
    client, clock,
    deadline::{Terms, Verdict},
    guest::Readiness,
    protocol::{Command, EXIT_FILE_NAME, Launch, Phase, Status, Tuning, WaysOut},
    spool::reader::Reader,
    supervise::Attempt,
    watchdog::Watchdog,
};
use holm_wire::{
    guest_api::{Exit, IdRange, OutputFrame, OutputStream, ProcessStatus, SetUp, Setup, SpawnFailure, Spawned},
    hello::{self, Lane},
    host_api::Refused,
    http2::{self, Exchange, Settings},
};
use http::{Method, StatusCode};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::UnixStream,
    sync::{Notify, mpsc},
};
use tokio_util::task::AbortOnDropHandle;

/// How long it takes at most until what was sent has come, and was answered.
const PAUSE: Duration = Duration::from_millis(300);

/// What a guest does with a request; the default is what an honest one does.
#[derive(Clone)]
pub struct Script {
    pub answers_hello: bool,
    pub setup: StatusCode,
    pub unenforced: Vec<String>,
    pub spawn_refusal: Option<Vec<u8>>,
    /// The pieces of the output stream by offset 0, as raw bytes of frames; then the stream ends.
    pub output: Vec<u8>,
    /// What follows the output.
    pub then: Then,
    /// After how many bytes of frames each stream is reset, until the output has been sent.
    pub breaks_after: Option<usize>,
    /// Begins at the first byte again, wherever the shim asked it to go on.
    pub repeats: bool,
    pub exit: Option<Exit>,
    pub output_bytes: u64,
    pub answers_exit: bool,
    /// Says that the command's end does not count.
    pub broke_down: Option<&'static str>,
    pub result: Option<Vec<u8>>,
    /// `None`: as long as the shim takes it.
    pub changes: Option<Vec<u8>>,
    /// How long each piece of the changes takes.
    pub changes_pause: Duration,
    /// Why there are no changes.
    pub changes_refusal: Option<&'static str>,
    pub refused: Vec<Refused>,
    pub closes_out: bool,
    /// Requests to this path get no answer.
    pub silent_at: Option<&'static str>,
    /// Requests to this path are answered with that in place of what was asked for.
    pub says_at: Option<(&'static str, &'static str)>,
    /// What is sent on a lane in place of HTTP/2.
    pub attack: Option<Attack>,
}

/// Raw bytes on a lane.
#[derive(Clone, Copy)]
pub struct Attack {
    pub lane: Lane,
    /// It begins in place of the answer to this path; without one, once the output was sent, with [`Then::Hang`].
    pub at: Option<&'static str>,
    /// The pieces, by number; an empty one is a pause, and the attack is over with the first that is none.
    pub pieces: fn(u64) -> Option<Vec<u8>>,
    /// Whether what the shim sends meanwhile is read.
    pub reads: bool,
    /// Whether the lane is closed in the end.
    pub closes: bool,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Then {
    End,
    CloseLanes,
    Hang,
    Forever,
}

pub fn frame(stream: OutputStream, data: &[u8]) -> Vec<u8> {
    [OutputFrame::head(stream, data.len()).unwrap().as_slice(), data].concat()
}

pub fn honest(output: &[u8]) -> Script {
    Script {
        answers_hello: true,
        setup: StatusCode::OK,
        unenforced: Vec::new(),
        spawn_refusal: None,
        output: if output.is_empty() { Vec::new() } else { frame(OutputStream::Stdout, output) },
        then: Then::End,
        breaks_after: None,
        repeats: false,
        exit: Some(Exit::Code(0)),
        output_bytes: output.len() as u64,
        answers_exit: true,
        broke_down: None,
        result: None,
        changes: Some(Vec::new()),
        changes_pause: Duration::ZERO,
        changes_refusal: None,
        refused: Vec::new(),
        closes_out: false,
        silent_at: None,
        says_at: None,
        attack: None,
    }
}

struct Played {
    script: Script,
    signals: mpsc::UnboundedSender<Vec<u8>>,
    acked: AtomicUsize,
    attacks: Notify,
}

trait Lanelike: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Lanelike for T {}

/// The guest's end of a lane for HTTP/2, and the task that takes the lane over for an attack on it.
fn attackable(
    played: &Arc<Played>,
    lane: UnixStream,
    which: Lane,
) -> (Box<dyn Lanelike>, Option<AbortOnDropHandle<()>>) {
    let Some(attack) = played.script.attack.filter(|attack| attack.lane == which) else {
        return (Box::new(lane), None);
    };
    let (inside, outside) = tokio::io::duplex(64 * 1024);
    let task = tokio::spawn(take_over(played.clone(), attack, lane, outside));
    (Box::new(inside), Some(AbortOnDropHandle::new(task)))
}

async fn take_over(played: Arc<Played>, attack: Attack, mut lane: UnixStream, mut inside: tokio::io::DuplexStream) {
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut lane, &mut inside) => return,
        () = played.attacks.notified() => {}
    }
    let (mut read, mut write) = lane.split();
    let drain = async {
        let mut waste = vec![0; 64 * 1024];
        while attack.reads && matches!(read.read(&mut waste).await, Ok(1..)) {}
        std::future::pending::<()>().await;
    };
    let send = async {
        for number in 0.. {
            let Some(piece) = (attack.pieces)(number) else { break };
            if piece.is_empty() {
                tokio::time::sleep(PAUSE).await;
            }
            if write.write_all(&piece).await.is_err() {
                return;
            }
        }
        if !attack.closes {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = drain => {}
        () = send => {}
    }
}

async fn play(played: Arc<Played>, mut lane_in: UnixStream, mut lane_out: UnixStream) {
    if !played.script.answers_hello {
        std::future::pending::<()>().await;
    }
    let limits = hello::Limits::default();
    hello::guest(&mut lane_in, Lane::In, 1, &limits).await.unwrap();
    hello::guest(&mut lane_out, Lane::Out, 1, &limits).await.unwrap();
    let (lane_in, _taking_in) = attackable(&played, lane_in, Lane::In);
    let (lane_out, _taking_out) = attackable(&played, lane_out, Lane::Out);
    let (out, driver) = http2::connect(lane_out, &Settings::GUEST).await.unwrap();
    let driver = tokio::spawn(driver);
    let mut server = http2::accept(lane_in, &Settings::GUEST).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    let (close, mut closed) = mpsc::channel::<()>(1);
    loop {
        let exchange = tokio::select! {
            exchange = server.next() => exchange,
            _ = closed.recv() => break,
        };
        let Ok(Some(exchange)) = exchange else { break };
        if exchange.head.uri.path() == "/processes" {
            for refused in &played.script.refused {
                out.empty(Method::POST, "/refused", Some(refused)).await.unwrap();
            }
            if played.script.closes_out {
                driver.abort();
            }
        }
        let (played, close) = (played.clone(), close.clone());
        tasks.spawn(async move { played.answer(exchange, close).await });
    }
    driver.abort();
}

impl Played {
    async fn answer(&self, exchange: Exchange, close: mpsc::Sender<()>) -> Result<(), http2::Error> {
        let script = &self.script;
        let from = exchange.query("from").map(|from| from.parse::<usize>().unwrap());
        let to = exchange.query("to").map(|to| to.parse::<usize>().unwrap());
        let Exchange { head, body, answer } = exchange;
        match head.uri.path() {
            path if script.silent_at == Some(path) => std::future::pending().await,
            path if script.attack.is_some_and(|attack| attack.at == Some(path)) => {
                // What is on its way comes first, and HTTP/2 between two frames.
                tokio::time::sleep(PAUSE).await;
                self.attacks.notify_one();
                std::future::pending().await
            }
            path if script.says_at.is_some_and(|(at, _)| at == path) => {
                let said = script.says_at.map_or("", |(_, said)| said);
                answer.bytes(StatusCode::OK, said.into()).await
            }
            "/setup" if script.setup != StatusCode::OK => answer.empty(script.setup),
            "/setup" => answer.json(script.setup, &SetUp { unenforced: script.unenforced.clone() }).await,
            "/processes" => match &script.spawn_refusal {
                Some(refusal) => answer.bytes(StatusCode::UNPROCESSABLE_ENTITY, refusal.clone().into()).await,
                None => answer.json(StatusCode::CREATED, &Spawned { id: 1 }).await,
            },
            "/processes/1/output" => self.output(from.unwrap(), answer, close).await,
            "/processes/1/ack" => {
                self.acked.fetch_max(to.unwrap(), Ordering::SeqCst);
                answer.empty(StatusCode::NO_CONTENT)
            }
            "/processes/1/signal" => {
                let body = http2::read_whole(body, 1024).await?;
                let _ = self.signals.send(body.to_vec());
                answer.empty(StatusCode::NO_CONTENT)
            }
            "/processes/1" if !script.answers_exit => std::future::pending().await,
            "/processes/1" if let Some(why) = script.broke_down => {
                answer.failure(StatusCode::INTERNAL_SERVER_ERROR, why.to_owned()).await
            }
            "/processes/1" => {
                let status = ProcessStatus { exit: script.exit, output_bytes: script.output_bytes };
                answer.json(StatusCode::OK, &status).await
            }
            "/result" => match &script.result {
                Some(result) => answer.bytes(StatusCode::OK, result.clone().into()).await,
                None => answer.empty(StatusCode::NO_CONTENT),
            },
            "/changes" if let Some(why) = script.changes_refusal => {
                answer.failure(StatusCode::UNPROCESSABLE_ENTITY, why.to_owned()).await
            }
            "/changes" => {
                let mut out = answer.stream(StatusCode::OK)?;
                let pieces: Box<dyn Iterator<Item = &[u8]> + Send> = match &script.changes {
                    Some(changes) => Box::new(changes.chunks(60_000)),
                    None => Box::new(std::iter::repeat(&[0; 60_000][..])),
                };
                for piece in pieces {
                    out.send(Bytes::copy_from_slice(piece)).await?;
                    tokio::time::sleep(script.changes_pause).await;
                }
                out.finish()
            }
            other => panic!("the shim asked for {other}"),
        }
    }

    async fn output(&self, from: usize, answer: http2::Answer, close: mpsc::Sender<()>) -> Result<(), http2::Error> {
        let script = &self.script;
        let mut out = answer.stream(StatusCode::OK)?;
        // Scripts that break their streams have one frame: what is left of it goes into a new one.
        let rest = match from {
            0 => script.output.clone(),
            _ if script.repeats => script.output.clone(),
            from => frame(OutputStream::Stdout, &script.output[5 + from..]),
        };
        let is_whole = script.repeats && from > 0;
        if let Some(breaks_after) = script.breaks_after.filter(|&after| after < rest.len() && !is_whole) {
            let whole = breaks_after.saturating_sub(5);
            if whole > 0 {
                let piece = frame(OutputStream::Stdout, &rest[5..5 + whole]);
                out.send(piece.into()).await?;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            return Ok(());
        }
        out.send(rest.into()).await?;
        match script.then {
            Then::End => out.finish(),
            Then::CloseLanes => {
                // What was sent is on its way first.
                tokio::time::sleep(Duration::from_millis(20)).await;
                let _ = close.send(()).await;
                std::future::pending().await
            }
            Then::Hang => {
                // What was sent is on its way first, and HTTP/2 between two frames.
                tokio::time::sleep(Duration::from_millis(20)).await;
                if script.attack.is_some_and(|attack| attack.at.is_none()) {
                    self.attacks.notify_one();
                }
                std::future::pending().await
            }
            Then::Forever => loop {
                let mut noise = vec![0; 60_000];
                rustix::rand::getrandom(&mut noise, rustix::rand::GetRandomFlags::empty()).expect("there is chance");
                out.send(frame(OutputStream::Stdout, &noise).into()).await?;
            },
        }
    }
}

/// A sandbox that dies, with its guest, when it is killed often enough.
struct Handle {
    dies_at_kill: usize,
    guest: tokio::task::AbortHandle,
    ended: OwnedFd,
    life: Mutex<std::fs::File>,
    kills: Arc<AtomicUsize>,
}

impl SandboxHandle for Handle {
    fn kill(&self) -> Result<(), holm_runtime::Error> {
        if self.kills.fetch_add(1, Ordering::SeqCst) + 1 < self.dies_at_kill {
            return Ok(());
        }
        self.guest.abort();
        self.life.lock().unwrap().write_all(b"x").unwrap();
        Ok(())
    }

    fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

/// What is left of an attempt.
pub struct Left {
    pub dir: tempfile::TempDir,
    pub status: Status,
    pub output: Vec<u8>,
    pub events: Vec<EventKind>,
    pub kills: usize,
    /// Whether it was said that the sandbox does not die.
    pub undying: bool,
    pub signals: Vec<Vec<u8>>,
    pub took: Duration,
}

impl Left {
    pub fn code(&self) -> i32 {
        self.status.outcome.as_ref().unwrap().exit_code()
    }

    pub fn message(&self) -> String {
        self.status.outcome.as_ref().unwrap().message.clone().unwrap_or_default()
    }
}

/// How the attempt is made, and what its agent does.
pub struct Attempted {
    pub script: Script,
    pub spec: RunSpec,
    pub storage_floor_bytes: u64,
    pub tuning: Tuning,
    pub deadline: Duration,
    /// How often it has to be killed.
    pub dies_at_kill: usize,
    pub commands: Vec<Command>,
    /// When the commands are sent.
    pub commands_once: fn(&Status) -> bool,
    /// How long after the end its agent lets it go.
    pub leaves_after: Duration,
    /// Where its folder is made, if not where all are.
    pub below: Option<PathBuf>,
    /// Whether something is in the way of its final status until that was told.
    pub is_obstructed: bool,
}

pub fn attempt(script: Script) -> Attempted {
    let mut spec = RunSpec::new(["true"]);
    spec.work_dir = Some(WorkDir { source: "/src".into(), keep_changes: true });
    let tuning = Tuning { ready_ms: 2_000, answer_ms: 2_000, linger_ms: 60_000, ..Tuning::default() };
    Attempted {
        script,
        spec,
        storage_floor_bytes: 0,
        tuning,
        deadline: Duration::from_secs(60),
        dies_at_kill: 1,
        commands: Vec::new(),
        commands_once: |status| status.phase >= Phase::Running,
        leaves_after: Duration::ZERO,
        below: None,
        is_obstructed: false,
    }
}

fn launch(attempted: &Attempted, dir: PathBuf) -> Launch {
    Launch {
        attempt: AttemptId { run: "run_00000000000000000000000001".parse().unwrap(), fence: 3 },
        spec: attempted.spec.clone(),
        dir,
        first_log_seq: 1,
        deadline_us: clock::boot().plus(attempted.deadline),
        runtime: "scripted".into(),
        launch: serde_json::Value::Null,
        storage_floor_bytes: attempted.storage_floor_bytes,
        ways_out: WaysOut::default(),
        tuning: attempted.tuning,
        trace: None,
        host: None,
    }
}

fn sandbox(
    script: Script,
    signals: mpsc::UnboundedSender<Vec<u8>>,
    kills: Arc<AtomicUsize>,
    dies_at_kill: usize,
) -> Sandbox {
    let pair = || std::os::unix::net::UnixStream::pair().unwrap();
    let ((shim_in, guest_in), (shim_out, guest_out)) = (pair(), pair());
    let lane = |stream: std::os::unix::net::UnixStream| {
        stream.set_nonblocking(true).unwrap();
        UnixStream::from_std(stream).unwrap()
    };
    let played = Arc::new(Played { script, signals, acked: AtomicUsize::new(0), attacks: Notify::new() });
    let guest = tokio::spawn(play(played, lane(guest_in), lane(guest_out))).abort_handle();
    let (ended, life) = rustix::pipe::pipe().unwrap();
    let ids = IdRange { outer_first: 0, count: 1 };
    Sandbox {
        lane_in: shim_in.into(),
        lane_out: shim_out.into(),
        setup: Setup {
            hostname: "h".into(),
            ids,
            allow_sudo: false,
            hidden: None,
            work_dir: None,
            read_only: Vec::new(),
            writes_to_host: false,
            redirect: None,
            trusted: None,
        },
        env: Vec::new(),
        egress: None,
        handle: Box::new(Handle { dies_at_kill, guest, ended, life: Mutex::new(life.into()), kills }),
    }
}

/// Sees an attempt through, as the process does, with an agent that sends its commands and leaves at the end.
pub async fn see_through(attempted: Attempted) -> Left {
    let below = attempted.below.clone().unwrap_or_else(std::env::temp_dir);
    let dir = tempfile::tempdir_in(below).unwrap();
    let obstacle = attempted.is_obstructed.then(|| dir.path().join(format!("{EXIT_FILE_NAME}.part")));
    obstacle.iter().for_each(|obstacle| std::fs::create_dir(obstacle).unwrap());
    let launch = launch(&attempted, dir.path().to_owned());
    let verdict = Verdict::new(Terms {
        fence: 3,
        deadline: launch.deadline_us,
        time_limit: launch.spec.limits.timeout(),
        terminate_grace: Duration::from_millis(launch.tuning.terminate_grace_ms),
    });
    let watchdog = Watchdog::start(verdict, Box::new(|_| panic!("there is a sandbox"))).unwrap();
    let attempt = Attempt::new(launch, watchdog).unwrap();
    let (sender, commands) = mpsc::channel(16);
    let (signals, mut signalled) = mpsc::unbounded_channel();
    let kills = Arc::new(AtomicUsize::new(0));
    let started = tokio::time::Instant::now();
    let readiness = Readiness::begin(Duration::from_millis(attempted.tuning.ready_ms));
    let sandbox = sandbox(attempted.script, signals, kills.clone(), attempted.dies_at_kill);
    let mut undying = false;
    let agent = async {
        let mut statuses = attempt.statuses();
        statuses.wait_for(attempted.commands_once).await.unwrap();
        for command in attempted.commands {
            sender.send(command).await.unwrap();
        }
        let told = statuses.wait_for(|status| status.phase > Phase::Running).await.unwrap().phase;
        undying = told == Phase::Undying;
        // An end is never written before there is one.
        assert!(!undying || client::read_exit(dir.path()).unwrap().is_none());
        statuses.wait_for(|status| status.phase == Phase::Ended).await.unwrap();
        obstacle.iter().for_each(|obstacle| std::fs::remove_dir(obstacle).unwrap());
        tokio::time::sleep(attempted.leaves_after).await;
        attempt.leave();
    };
    let both = async { tokio::join!(attempt.see_through(Ok(sandbox), readiness, commands), agent) };
    tokio::time::timeout(Duration::from_secs(40), both).await.expect("the attempt ends");
    let took = started.elapsed();
    let status = attempt.statuses().borrow().clone();
    let kept = client::read_exit(dir.path()).unwrap();
    let is_full = holm_runtime::room::free_bytes(dir.path()).unwrap() == Some(0);
    assert_eq!(kept, (!is_full).then(|| status.clone()));
    assert!(status.outcome.as_ref().unwrap().is_consistent());
    let output = output(&dir, status.next_seq);
    let events = client::read_events(dir.path(), 0, usize::MAX).unwrap();
    assert_eq!(events.len() as u64, status.events);
    let signals = std::iter::from_fn(|| signalled.try_recv().ok()).collect();
    Left { dir, status, output, events, kills: kills.load(Ordering::SeqCst), undying, signals, took }
}

fn output(dir: &tempfile::TempDir, next_seq: u64) -> Vec<u8> {
    let mut reader = Reader::new(dir.path(), 1);
    let mut output = Vec::new();
    while reader.next_seq() < next_seq {
        let chunk = reader.read(1_000_000).unwrap();
        for batch in holm_domain::log::parse_all(&chunk.bytes).unwrap() {
            batch.read().unwrap().iter().for_each(|entry| output.extend_from_slice(entry.data));
        }
    }
    output
}

pub fn refusal(failure: &SpawnFailure) -> Option<Vec<u8>> {
    Some(serde_json::to_vec(failure).unwrap())
}
