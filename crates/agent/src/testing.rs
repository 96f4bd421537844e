//! What the tests of this crate share: a runtime whose sandboxes are files, and a shim that follows a script.
//!
//! The shim is this very test program, started again as a process of its own: so it can be killed, and it survives the
//! agent under test as a real one does.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::{fd::AsFd as _, unix::net::UnixListener},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use holm_api::run_secrets::{Asking, Place};
use holm_domain::{
    BootMicros, UnixMicros,
    host::RuntimeInfo,
    log::{BatchBuilder, Stream},
    run::{Cancel, EventKind, ExitStatus, LiveUsage, Outcome, Reason, RunSpec, Usage},
};
use holm_runtime::{
    AttemptId, Descriptor, Error, Prepared, Request, Resources, Runtime, Sandbox, ShimIdentity, StepReport, Stop,
    passing, registry::Registry,
};
use holm_shim::protocol::{
    CHANGES_FILE_NAME, Command, EVENTS_FILE_NAME, EXIT_FILE_NAME, Launch, Phase, SOCKET_NAME, SPOOL_DIR_NAME,
    STARTED_FILE_NAME, SecretsAnswer, SourceEvent, Status,
};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};

use crate::{ShimProgram, clock, journal::Record};

/// Appends a batch to the spool of the attempt whose folder is `dir`, to the file that begins with `file_first`.
pub(crate) fn spool_batch(dir: &Path, file_first: u64, first_seq: u64, lines: &[&str]) {
    let spool = dir.join(SPOOL_DIR_NAME);
    fs::create_dir_all(&spool).unwrap();
    let mut builder = BatchBuilder::new(first_seq);
    for line in lines {
        assert!(builder.push(UnixMicros(1), Stream::Stdout, false, line.as_bytes()));
    }
    let path = spool.join(format!("{file_first:020}.log"));
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    builder.finish(|bytes| file.write_all(bytes)).unwrap();
}

/// A number in this file of an attempt is how many events its shim claims to have told from then on; the shim takes it away.
pub(crate) const EVENTS_CLAIMED_NAME: &str = "events.claimed";

/// What a run's shim does; it travels as the first argument of the run's command.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Script {
    /// What is written, each in a batch of its own.
    pub(crate) lines: Vec<String>,
    /// Whether the command goes on after that until somebody ends it.
    pub(crate) is_endless: bool,
    /// Whether a polite request to end is ignored.
    pub(crate) is_stubborn: bool,
    /// The code with which the command ends.
    pub(crate) code: u8,
    /// Where the shim is killed.
    pub(crate) dies: Option<Death>,
    /// Whether the shim does nothing more once the command runs, and lives.
    pub(crate) stands_still: bool,
    /// Whether the shim drops every connection after its greeting once the command runs, and lives.
    pub(crate) hangs_up: bool,
    /// How often the shim asks for the secrets of the run, of which it writes the last ones.
    pub(crate) asks: u32,
    /// What is told.
    pub(crate) events: Vec<EventKind>,
    /// How many more could not be written.
    pub(crate) events_unwritten: u64,
    /// The structured result.
    pub(crate) result: Option<String>,
    /// The archive of changes.
    pub(crate) changes: Option<String>,
    /// The fault of the runtime.
    pub(crate) prepare: Option<Fault>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Death {
    BeforeOrders,
    BeforeStart,
    Running,
    AfterExitFile,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fault {
    Image,
    HostPath,
    Limits,
    Panic,
    /// It goes on until it is told to stop.
    Endless,
}

impl Script {
    pub(crate) fn spec(&self) -> RunSpec {
        RunSpec::new([serde_json::to_string(self).unwrap()])
    }

    fn of(spec: &RunSpec) -> Self {
        serde_json::from_str(&spec.argv[0]).unwrap()
    }
}

/// The places at which the runtime can be made to stand still, as if the agent were killed there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    Plan,
    BeforePrepare,
    AfterPrepare,
    BeforeDestroy,
    AfterDestroy,
}

#[derive(Debug, Default)]
struct Crash {
    at: Option<Point>,
    is_reached: bool,
    is_over: bool,
}

/// A runtime whose sandboxes are files in one folder, which stands for the host.
#[derive(Debug)]
pub(crate) struct FileRuntime {
    pub(crate) host: PathBuf,
    crash: Mutex<Crash>,
    changed: Condvar,
    /// How often removing fails before it works.
    pub(crate) destroy_failures: Mutex<u32>,
    /// What each sandbox has used, processor time apart, which grows.
    pub(crate) uses: Mutex<LiveUsage>,
    /// How often it was tidied.
    pub(crate) tidied: std::sync::atomic::AtomicU32,
}

impl FileRuntime {
    pub(crate) fn new(host: &Path) -> Arc<Self> {
        fs::create_dir_all(host).unwrap();
        Arc::new(Self {
            host: host.to_owned(),
            crash: Mutex::default(),
            changed: Condvar::new(),
            destroy_failures: Mutex::new(0),
            uses: Mutex::default(),
            tidied: std::sync::atomic::AtomicU32::new(0),
        })
    }

    pub(crate) fn registry(self: &Arc<Self>) -> Registry {
        let mut registry = Registry::new();
        registry.add(self.clone()).unwrap();
        registry
    }

    pub(crate) fn crash_at(&self, point: Point) {
        self.crash.lock().unwrap().at = Some(point);
    }

    pub(crate) fn is_reached(&self) -> bool {
        self.crash.lock().unwrap().is_reached
    }

    /// Lets the thread that stands still go, once nobody waits for it any more.
    pub(crate) fn crash_is_over(&self) {
        let mut crash = self.crash.lock().unwrap();
        crash.at = None;
        crash.is_over = true;
        self.changed.notify_all();
    }

    fn pass(&self, point: Point) {
        let mut crash = self.crash.lock().unwrap();
        if crash.at != Some(point) {
            return;
        }
        crash.is_reached = true;
        let waited = self.changed.wait_timeout_while(crash, Duration::from_secs(60), |crash| !crash.is_over);
        drop(waited);
        panic!("the agent was killed here");
    }

    fn place(&self, attempt: AttemptId) -> PathBuf {
        self.host.join(format!("{}.{}", attempt.run, attempt.fence))
    }

    fn resources(&self, attempt: AttemptId) -> Resources {
        Resources {
            runtime: "test".to_owned(),
            attempt,
            uid_slot: None,
            cgroups: Vec::new(),
            mounts: Vec::new(),
            paths: vec![self.place(attempt)],
        }
    }
}

impl Runtime for FileRuntime {
    fn name(&self) -> &'static str {
        "test"
    }

    fn fingerprint(&self) -> RuntimeInfo {
        RuntimeInfo { name: "test".to_owned(), capabilities: vec!["root.host".to_owned()], unenforced: Vec::new() }
    }

    fn plan(&self, request: &Request, _taken: &[u32]) -> Result<Resources, Error> {
        self.pass(Point::Plan);
        Ok(self.resources(request.attempt))
    }

    fn shim(&self, resources: &Resources) -> ShimIdentity {
        let AttemptId { run, fence } = resources.attempt;
        ShimIdentity { label: format!("{run}.{fence}"), ids: None }
    }

    fn prepare(&self, request: &Request, resources: &Resources, stop: &Stop) -> Result<Prepared, Error> {
        let record = Record::read(&request.dir, request.attempt);
        if !matches!(&record, Ok(Some(record)) if record.resources == *resources) {
            return Err(Error::Malformed(format!("nothing was journalled: {record:?}")));
        }
        self.pass(Point::BeforePrepare);
        let place = self.place(request.attempt);
        fs::create_dir(&place).map_err(|source| Error::System { context: "making the place".to_owned(), source })?;
        self.pass(Point::AfterPrepare);
        match Script::of(&request.spec).prepare {
            Some(Fault::Image) => return Err(Error::Image("no such image".to_owned())),
            Some(Fault::HostPath) => return Err(Error::HostPath { path: "/x".into(), problem: "no".to_owned() }),
            Some(Fault::Limits) => return Err(Error::LimitsNotEnforceable(vec!["memory".to_owned()])),
            Some(Fault::Panic) => panic!("as ordered"),
            Some(Fault::Endless) => {
                fs::write(place.join("preparing"), "").unwrap();
                while !stop.is_stopped() {
                    std::thread::sleep(Duration::from_millis(2));
                }
                return Err(Error::Stopped);
            }
            None => {}
        }
        let place_fd = fs::File::open(&place).unwrap();
        Ok(Prepared {
            launch: serde_json::json!({ "place": place }),
            descriptors: vec![Descriptor { name: "place".to_owned(), fd: place_fd.into() }],
            image_digest: Some("sha256:0".to_owned()),
            unenforced: vec!["nothing is".to_owned()],
        })
    }

    fn launch(&self, _: serde_json::Value, _: Vec<Descriptor>) -> Result<Sandbox, Error> {
        Err(Error::Unsupported { runtime: "test", operation: "launch" })
    }

    fn measure(&self, resources: &Resources) -> LiveUsage {
        assert_eq!(*resources, self.resources(resources.attempt));
        let mut uses = self.uses.lock().unwrap();
        uses.cpu_us = uses.cpu_us.map(|used| used + 1_000_000);
        *uses
    }

    fn destroy(&self, resources: &Resources) -> Vec<StepReport> {
        self.pass(Point::BeforeDestroy);
        let mut failures = self.destroy_failures.lock().unwrap();
        let error = if *failures > 0 {
            *failures -= 1;
            Some("as ordered".to_owned())
        } else {
            let place = self.place(resources.attempt);
            if place.exists() { fs::remove_dir_all(&place).err().map(|error| error.to_string()) } else { None }
        };
        drop(failures);
        self.pass(Point::AfterDestroy);
        vec![StepReport { step: "place".to_owned(), error }]
    }

    fn tidy(&self) -> Vec<StepReport> {
        self.tidied.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Vec::new()
    }

    fn inventory(&self) -> Result<Vec<Resources>, Error> {
        let names = fs::read_dir(&self.host).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let attempts = names.filter_map(|name| {
            let (run, fence) = name.split_once('.')?;
            Some(AttemptId { run: run.parse().ok()?, fence: fence.parse().ok()? })
        });
        Ok(attempts.map(|attempt| self.resources(attempt)).collect())
    }
}

/// How the scripted shim is started.
pub(crate) fn shim_program() -> ShimProgram {
    let args = ["testing::scripted_shim", "--exact", "--ignored", "--nocapture", "--test-threads=1"];
    ShimProgram { program: std::env::current_exe().unwrap(), args: args.map(Into::into).to_vec(), env: Vec::new() }
}

/// Not a test: the process that the agent under test starts as a shim.
#[test]
#[ignore = "it is started by other tests"]
fn scripted_shim() {
    let is_shim = std::env::args().any(|argument| argument == "shim");
    if is_shim {
        let socket = std::os::unix::net::UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
        // The agent died before it gave orders.
        let Ok((launch, descriptors)) = passing::receive::<Launch>(&socket) else { return };
        assert_eq!(descriptors.len(), 2, "the place and the folder of the attempt");
        ShimUnderScript::new(launch).run();
    }
}

struct ShimUnderScript {
    launch: Launch,
    script: Script,
    status: Status,
    connection: Option<std::os::unix::net::UnixStream>,
    received: Vec<u8>,
    cancel: Option<Cancel>,
    answer: Option<SecretsAnswer>,
    is_over: bool,
}

impl ShimUnderScript {
    fn new(launch: Launch) -> Self {
        let script = Script::of(&launch.spec);
        let status = Status {
            phase: Phase::Preparing,
            fence: launch.attempt.fence,
            deadline_us: launch.deadline_us,
            next_seq: launch.first_log_seq,
            events: 0,
            events_unwritten: 0,
            asks: None,
            unenforced: vec!["landlock: not here".to_owned()],
            outcome: None,
            usage: Usage::default(),
            result: None,
            changes: None,
            pid: std::process::id(),
            times: holm_shim::protocol::Times::default(),
        };
        Self {
            launch,
            script,
            status,
            connection: None,
            received: Vec::new(),
            cancel: None,
            answer: None,
            is_over: false,
        }
    }

    fn die_at(&self, death: Death) {
        if self.script.dies == Some(death) {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        }
    }

    fn run(mut self) {
        self.die_at(Death::BeforeOrders);
        let dir = fs::File::open(&self.launch.dir).unwrap();
        let path = format!("/proc/self/fd/{}/{SOCKET_NAME}", std::os::fd::AsRawFd::as_raw_fd(&dir));
        let listener = UnixListener::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        for _ in 0..self.script.asks {
            self.script.lines = self.ask(&listener);
        }
        self.die_at(Death::BeforeStart);
        fs::write(self.launch.dir.join(STARTED_FILE_NAME), "").unwrap();
        let started = self.place().with_extension(format!("{}.started", self.status.fence));
        let started = self.place().parent().unwrap().parent().unwrap().join(started.file_name().unwrap());
        let mut starts = fs::OpenOptions::new().create(true).append(true).open(started).unwrap();
        starts.write_all(b"x").unwrap();
        self.status.phase = Phase::Running;
        for line in self.script.lines.clone() {
            spool_batch(&self.launch.dir, self.launch.first_log_seq, self.status.next_seq, &[&line]);
            self.status.next_seq += 1;
        }
        self.tell_events();
        self.tell();
        while self.script.hangs_up {
            self.greet(&listener);
            self.connection = None;
            std::thread::sleep(Duration::from_millis(2));
        }
        loop {
            self.serve(&listener);
            while self.script.stands_still && self.connection.is_some() {
                std::thread::park();
            }
            if self.is_over {
                return;
            }
            self.claim_events();
            if self.status.phase == Phase::Running
                && let Some(outcome) = self.outcome()
            {
                self.end(outcome);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The secrets of the run, a line each; or why there are none.
    fn ask(&mut self, listener: &UnixListener) -> Vec<String> {
        let asking = Asking::new().unwrap();
        self.status.asks = Some(asking.key());
        self.tell();
        let answer = loop {
            match self.answer.take() {
                Some(answer) if answer.key() == asking.key() => break answer,
                _ => self.serve(listener),
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        self.status.asks = None;
        self.tell();
        let AttemptId { run, fence } = self.launch.attempt;
        match answer {
            SecretsAnswer::Sealed(sealed) => {
                let opened = asking.open(Place { run, fence }, &sealed).unwrap();
                opened.iter().map(|secret| format!("{}={}\n", secret.name, secret.value.expose_secret())).collect()
            }
            SecretsAnswer::Refused { problem, .. } => vec![format!("{problem}\n")],
        }
    }

    fn place(&self) -> PathBuf {
        self.launch.launch["place"].as_str().unwrap().into()
    }

    fn tell_events(&mut self) {
        let mut file = fs::File::create(self.launch.dir.join(EVENTS_FILE_NAME)).unwrap();
        for event in self.script.events.clone() {
            self.status.events += 1;
            serde_json::to_writer(&mut file, &SourceEvent { seq: self.status.events, event }).unwrap();
            file.write_all(b"\n").unwrap();
        }
    }

    fn claim_events(&mut self) {
        let path = self.launch.dir.join(EVENTS_CLAIMED_NAME);
        let Ok(claimed) = fs::read_to_string(&path) else { return };
        self.status.events = claimed.parse().unwrap();
        self.tell();
        fs::remove_file(path).unwrap();
    }

    fn outcome(&self) -> Option<Outcome> {
        if clock::boot_now() >= self.status.deadline_us {
            return Some(Outcome::failed(Reason::LeaseExpired, "the lease was not renewed"));
        }
        let heeded = self.cancel.filter(|how| *how == Cancel::Kill || !self.script.is_stubborn);
        if heeded.is_some() {
            return Some(Outcome::cancelled("as asked for"));
        }
        // Whoever looks after the shim has seen it running before the script goes on.
        self.connection.as_ref()?;
        if self.status.phase == Phase::Running {
            self.die_at(Death::Running);
        }
        (!self.script.is_endless).then(|| Outcome::exited(ExitStatus::Code(self.script.code)))
    }

    fn end(&mut self, outcome: Outcome) {
        if let Some(changes) = &self.script.changes {
            fs::write(self.launch.dir.join(CHANGES_FILE_NAME), changes).unwrap();
            self.status.changes = Some(changes.len() as u64);
        }
        self.status.phase = Phase::Ended;
        self.status.outcome = Some(outcome);
        self.status.events_unwritten = self.script.events_unwritten;
        self.status.result = self.script.result.clone().map(Into::into);
        let path = self.launch.dir.join(EXIT_FILE_NAME);
        let draft = path.with_extension("draft");
        fs::write(&draft, serde_json::to_vec(&self.status).unwrap()).unwrap();
        fs::rename(draft, path).unwrap();
        self.die_at(Death::AfterExitFile);
        self.tell();
    }

    fn tell(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        let mut line = serde_json::to_vec(&self.status).unwrap();
        line.push(b'\n');
        if connection.write_all(&line).is_err() {
            self.connection = None;
        }
    }

    fn greet(&mut self, listener: &UnixListener) {
        if let Ok((connection, _)) = listener.accept() {
            connection.set_nonblocking(true).unwrap();
            self.connection = Some(connection);
            self.received.clear();
            self.tell();
        }
    }

    fn serve(&mut self, listener: &UnixListener) {
        self.greet(listener);
        let mut bytes = [0; 4096];
        match self.connection.as_mut().map(|connection| connection.read(&mut bytes)) {
            Some(Ok(0)) => self.connection = None,
            Some(Ok(read)) => self.received.extend_from_slice(&bytes[..read]),
            _ => {}
        }
        while let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
            self.obey(serde_json::from_slice(&line).unwrap());
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Extend { fence, deadline_us } if fence == self.status.fence => {
                self.status.deadline_us = self.status.deadline_us.max(deadline_us);
                self.tell();
            }
            Command::Extend { .. } => self.tell(),
            Command::Cancel(how) => self.cancel = self.cancel.max(Some(how)),
            Command::Stop {} => self.status.deadline_us = BootMicros(0),
            Command::Acked { next_seq } if next_seq == self.status.next_seq => {
                // All of it lies in one file, which the shim may delete now.
                let file = format!("{SPOOL_DIR_NAME}/{:020}.log", self.launch.first_log_seq);
                let _is_gone_before = fs::remove_file(self.launch.dir.join(file));
            }
            Command::Acked { .. } => {}
            Command::Secrets(answer) => self.answer = Some(answer),
            Command::Quit {} => self.is_over = true,
        }
    }
}
