//! The way of one attempt in the shim, from a launched sandbox to the agent's leave.
//!
//! What always holds: whatever happens to the work with the guest ([`crate::work`]), everything in the sandbox is killed,
//! its death is waited for, what was read is in the spool, and only then the final status is written and told. That
//! everything has died is the kernel's to say and nobody else's: a sandbox that does not die is told of as such, and killed
//! again and again.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    io,
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use holm_domain::{
    BootMicros,
    log::Stream,
    run::{Cancel, EventKind, ExitStatus, Usage},
};
use holm_runtime::{Counted, Sandbox, SandboxHandle, crash::effect};
use holm_wire::guest_api::{OutputFrame, OutputStream};
use tokio::sync::{Notify, mpsc, watch};

use crate::{
    clock,
    deadline::{Causes, Input},
    events::{EventFile, Refusals},
    exit,
    full_disk::{FullDisk, TRY_AGAIN_AFTER},
    guest::Readiness,
    outcome::{Circumstances, Ending, Shortage, classify},
    protocol::{Command, Launch, Phase, SecretsAnswer, Status, Times},
    spool::keeper::Keeper,
    watchdog::{View, Watchdog},
    work::Inside,
};

/// How long the work with a guest may still go on after everything in the sandbox was killed: what the lanes hold is read.
const READ_AFTER_KILL: Duration = Duration::from_secs(5);

/// How many bytes may be recorded of the connections and requests of an attempt.
const RECORD_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// One attempt: everything that is written and told of it.
pub struct Attempt {
    pub(crate) launch: Launch,
    pub(crate) watchdog: Watchdog,
    status: watch::Sender<Status>,
    pub(crate) spool: Keeper,
    pub(crate) full_disk: Rc<FullDisk>,
    pub(crate) events: RefCell<EventFile>,
    /// Notified when an event found no room on the disk.
    pub(crate) event_waits: Notify,
    pub(crate) refusals: RefCell<Refusals>,
    output_bytes: Cell<u64>,
    /// How many bytes of records there are.
    record_bytes: Cell<u64>,
    leave: watch::Sender<bool>,
    /// The last answer to what the proxy asks for.
    pub(crate) secrets: watch::Sender<Option<SecretsAnswer>>,
    /// How somebody asked for the end of the run, whatever was left of it then.
    cancelled: Cell<Option<Cancel>>,
}

/// What the host's kernel says of a sandbox that has died.
#[derive(Debug, Clone, Copy, Default)]
struct Traces {
    counted: Counted,
    disk_full: bool,
}

/// The status of an attempt that has just begun.
pub fn first_status(launch: &Launch) -> Status {
    Status {
        phase: Phase::Preparing,
        fence: launch.attempt.fence,
        deadline_us: launch.deadline_us,
        next_seq: launch.first_log_seq,
        events: 0,
        events_unwritten: 0,
        asks: None,
        unenforced: Vec::new(),
        outcome: None,
        usage: Usage::default(),
        result: None,
        changes: None,
        pid: std::process::id(),
        times: Times::default(),
    }
}

impl Attempt {
    /// Makes the files of an attempt in its folder.
    pub fn new(launch: Launch, watchdog: Watchdog) -> io::Result<Self> {
        let full_disk = Rc::new(FullDisk::new(Duration::from_millis(launch.tuning.disk_full_ms)));
        let (first_seq, bytes_max) = (launch.first_log_seq, launch.tuning.spool_bytes_max);
        let spool = Keeper::create(&launch.dir, first_seq, bytes_max, Rc::clone(&full_disk))?;
        let events = EventFile::new(&launch.dir);
        let times = Times { begun_us: Some(clock::boot()), ..Times::default() };
        Ok(Self {
            status: watch::Sender::new(Status { times, ..first_status(&launch) }),
            launch,
            watchdog,
            spool,
            full_disk,
            events: RefCell::new(events),
            event_waits: Notify::new(),
            refusals: RefCell::default(),
            output_bytes: Cell::new(0),
            record_bytes: Cell::new(0),
            leave: watch::Sender::new(false),
            secrets: watch::Sender::new(None),
            cancelled: Cell::default(),
        })
    }

    /// The status as it changes.
    pub fn statuses(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Sees a launched sandbox, or a launch that failed, through to the agent's leave. `commands` are the agent's.
    pub async fn see_through(
        &self,
        launched: Result<Sandbox, holm_runtime::Error>,
        readiness: Readiness,
        commands: mpsc::Receiver<Command>,
    ) {
        let attempt = async {
            let kept = tokio::select! {
                kept = self.to_the_end(launched, readiness) => kept,
                never = self.write_events_that_wait() => match never {},
            };
            self.linger(kept).await;
        };
        tokio::select! {
            () = attempt => {}
            () = self.obey(commands) => {}
        }
    }

    async fn to_the_end(&self, launched: Result<Sandbox, holm_runtime::Error>, readiness: Readiness) -> io::Result<()> {
        let (ending, traces) = match launched {
            Ok(sandbox) => self.in_sandbox(sandbox, readiness).await,
            Err(error) => {
                // There is nothing that could live.
                self.watchdog.input(Input::Ended);
                (Ending::NotLaunched(error.to_string()), Traces::default())
            }
        };
        self.tell_last_events().await;
        let causes = self.watchdog.view().borrow().causes;
        self.tell_end(ending, causes, traces)
    }

    /// Works with the guest until it is done or stopped, and does not return before everything in the sandbox has died.
    async fn in_sandbox(&self, sandbox: Sandbox, readiness: Readiness) -> (Ending, Traces) {
        let Sandbox { lane_in, lane_out, setup, env, egress, handle } = sandbox;
        let handle: Arc<dyn SandboxHandle> = Arc::from(handle);
        self.watchdog.arm(handle.clone());
        let mut view = self.watchdog.view();
        let (mut proxy, not_started) = match egress.map(|way_out| self.proxy(way_out)).transpose() {
            Ok(proxy) => (proxy, None),
            Err(ending) => (None, Some(ending)),
        };
        let ending = {
            let work = async {
                if let Some(ending) = not_started {
                    return ending;
                }
                tokio::select! {
                    ending = self.work(Inside { lane_in, lane_out, setup, env }, proxy.as_mut(), readiness) => ending,
                    error = self.spool.keep(|| self.progress()) => Ending::unkept(&error),
                }
            };
            tokio::pin!(work);
            tokio::select! {
                ending = &mut work => ending,
                why = stopped(&mut view) => {
                    self.hurry_if_forced();
                    tokio::time::timeout(READ_AFTER_KILL, work).await.unwrap_or_else(|_| Ending::Lost(why.to_owned()))
                }
            }
        };
        let ending = ending.decided(self.cancelled.get());
        let has_failed = matches!(ending, Ending::Exited(exit) if exit != ExitStatus::Code(0));
        let disk_full = has_failed && handle.disk_is_full() == Some(true);
        effect("sandbox.dismiss", || self.watchdog.input(Input::Dismiss));
        self.hurry_if_forced();
        // What was read does not wait for a sandbox that does not die, nor the death for a disk that does not write.
        let left = self.left_to_pass_on(&ending);
        let (ending, (), told) =
            tokio::join!(self.write_rest(ending), self.death(&mut view), self.close_proxy(proxy, left));
        let ending = self.note_rest(told, ending).await;
        (ending, Traces { counted: handle.counted(), disk_full })
    }

    /// Writes what was read and is not written yet; returns the end of the run, which fails where that does and nothing could
    /// not be kept before.
    pub(crate) async fn write_rest(&self, ending: Ending) -> Ending {
        match self.spool.end(|| self.progress()).await {
            Err(error) if !matches!(ending, Ending::SpoolFailed { .. }) => {
                Ending::unkept(&error).decided(self.cancelled.get())
            }
            _ => ending,
        }
    }

    /// Waits until everything in the sandbox has died, however long that takes, and tells when it takes long.
    async fn death(&self, view: &mut watch::Receiver<View>) {
        let patience = Duration::from_millis(self.launch.tuning.death_ms);
        if tokio::time::timeout(patience, ended(view)).await.is_ok() {
            return;
        }
        tracing::error!(?patience, "the sandbox was killed and does not die; kills go on");
        let waited_ms = self.launch.tuning.death_ms;
        self.tell(EventKind::SandboxUndying { waited_ms });
        self.update(|status| status.phase = Phase::Undying);
        ended(view).await;
        tracing::warn!("the sandbox has died after all");
    }

    /// Writes and tells the final status; returns whether it could be written.
    fn tell_end(&self, ending: Ending, causes: Causes, traces: Traces) -> io::Result<()> {
        let usage = self.usage(&ending, traces.counted);
        let circumstances = Circumstances {
            causes,
            shortage: self.shortage(traces),
            time_limit: self.time_limit(),
            waited_for_room: self.full_disk.waited(clock::boot()),
        };
        let outcome = classify(ending, circumstances);
        tracing::info!(?outcome, "the attempt has ended");
        let mut last = self.status.borrow().clone();
        last.phase = Phase::Ended;
        last.times.ended_us = Some(clock::boot());
        last.usage = usage;
        if outcome.kind != holm_domain::run::OutcomeKind::Succeeded
            && last.changes.take().is_some()
            && let Err(error) = exit::discard_changes(&self.launch.dir)
        {
            tracing::warn!(%error, "the changes of a run that did not succeed cannot be removed");
        }
        last.outcome = Some(outcome);
        let kept = exit::write_status(&self.launch.dir, &last);
        // The agent that is connected, or connects while the shim lingers, is told also what could not be written.
        self.status.send_replace(last);
        kept
    }

    pub(crate) fn time_limit(&self) -> Duration {
        self.launch.spec.limits.timeout()
    }

    fn usage(&self, ending: &Ending, counted: Counted) -> Usage {
        // What was killed was not waited for by its parents: a part would be taken for the whole.
        let waited = if matches!(ending, Ending::Exited(_)) { counted.waited } else { Usage::default() };
        Usage { log_bytes: Some(self.output_bytes.get()), ..counted.usage.or(waited) }
    }

    fn shortage(&self, Traces { counted, disk_full }: Traces) -> Shortage {
        let peak = counted.usage.memory_peak_bytes;
        Shortage {
            oom_kills: counted.oom_kills.unwrap_or(0),
            // What the guest itself may have beyond the limit is more than the kernel's count can be off.
            of_host_memory: peak.is_some_and(|peak| peak < self.launch.spec.limits.memory_bytes),
            disk_full,
            pids_refused: counted.pids_refused.unwrap_or(0),
        }
    }

    /// Stays for the agent, as long as it may still hold the lease, and then some.
    async fn linger(&self, kept: io::Result<()>) {
        let mut leave = self.leave.subscribe();
        let linger = Duration::from_millis(self.launch.tuning.linger_ms);
        let alone = async {
            loop {
                let until = self.watchdog.view().borrow().deadline.max(clock::boot()).plus(linger);
                clock::sleep_until(Some(until)).await;
                if clock::boot() >= self.watchdog.view().borrow().deadline.plus(linger) {
                    return;
                }
            }
        };
        tokio::select! {
            // What is in the way of the status is told also where the agent has let go already.
            biased;
            never = self.keep_status(kept) => match never {},
            () = alone => tracing::warn!("no agent came for what is left of the attempt"),
            left = leave.wait_for(|leave| *leave) => { let _ = left; }
        }
    }

    /// Writes the final status as soon as that is possible, should it not have been: an agent finds it without this process.
    /// What is in its way is told once.
    async fn keep_status(&self, mut kept: io::Result<()>) -> Infallible {
        let last = self.status.borrow().clone();
        if let Err(error) = &kept {
            tracing::error!(%error, "the final status cannot be written: only this process can tell it; it is tried again");
            while kept.is_err() {
                tokio::time::sleep(TRY_AGAIN_AFTER).await;
                kept = exit::write_status(&self.launch.dir, &last);
            }
            tracing::info!("the final status is written after all");
        }
        std::future::pending().await
    }

    /// Leaves as soon as that is possible; a sandbox that lives is killed.
    pub fn leave(&self) {
        self.end_early(Input::Shutdown);
        self.leave.send_replace(true);
    }

    async fn obey(&self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.recv().await {
            match command {
                Command::Extend { fence, deadline_us } => {
                    self.watchdog.input(Input::Extend { fence, deadline: deadline_us });
                    let deadline_us = self.watchdog.view().borrow().deadline;
                    // Also where that changes nothing: the agent waits for an answer.
                    self.update(|status| status.deadline_us = deadline_us);
                }
                Command::Cancel(how) => {
                    self.end_early(Input::Cancel(how));
                    self.cancelled.set(self.cancelled.get().max(Some(how)));
                }
                Command::Stop {} => self.end_early(Input::Stop),
                Command::Acked { next_seq } => self.spool.acked(next_seq),
                Command::Secrets(answer) => {
                    self.secrets.send_replace(Some(answer));
                }
                Command::Quit {} => self.leave(),
            }
        }
        // Whoever sends commands has gone for good: without them no lease could be extended.
        tracing::error!("the control socket is gone");
        std::future::pending::<()>().await;
    }

    /// Ends the sandbox. Where that is done already, what it left is waited for room no longer than shortly.
    fn end_early(&self, why: Input) {
        self.watchdog.input(why);
        if self.watchdog.view().borrow().killed {
            self.full_disk.hurry(clock::boot());
        }
    }

    fn hurry_if_forced(&self) {
        if self.watchdog.view().borrow().causes != Causes::default() {
            self.full_disk.hurry(clock::boot());
        }
    }

    /// Changes the status and tells it.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(change);
    }

    /// Notes when something happened; who follows the status hears of it with the next change.
    pub(crate) fn note_time(&self, note: impl FnOnce(&mut Times, BootMicros)) {
        self.status.send_if_modified(|status| {
            note(&mut status.times, clock::boot());
            false
        });
    }

    pub(crate) fn progress(&self) {
        let (next_seq, events) = (self.spool.next_seq(), self.events.borrow().written());
        self.status.send_if_modified(|status| {
            let changed = (status.next_seq, status.events) != (next_seq, events);
            (status.next_seq, status.events) = (next_seq, events);
            changed
        });
    }

    /// Takes a piece of output, up to the limit; waits while the spool has no room.
    pub(crate) async fn take_output(&self, frame: OutputFrame) -> Result<(), Ending> {
        self.spool.room().await;
        let stream = match frame.stream {
            OutputStream::Stdout => Stream::Stdout,
            OutputStream::Stderr => Stream::Stderr,
        };
        let limit = self.launch.spec.limits.log_bytes;
        let room = usize::try_from(limit.saturating_sub(self.output_bytes.get())).unwrap_or(usize::MAX);
        let taken = &frame.data[..frame.data.len().min(room)];
        self.spool.push(stream, taken).map_err(|error| Ending::unkept(&error))?;
        self.output_bytes.set(self.output_bytes.get() + taken.len() as u64);
        if taken.len() < frame.data.len() { Err(Ending::LogLimit(limit)) } else { Ok(()) }
    }

    /// Writes a record of the run, up to the limit.
    pub(crate) fn record(&self, line: &[u8]) -> Result<(), Ending> {
        let bytes = self.record_bytes.get() + line.len() as u64;
        if bytes > RECORD_BYTES_MAX {
            return Err(Ending::RecordLimit(RECORD_BYTES_MAX));
        }
        self.record_bytes.set(bytes);
        self.spool.note(line).map_err(|error| Ending::unkept(&error))
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.launch.dir.clone()
    }
}

/// Completes when everything has died.
async fn ended(view: &mut watch::Receiver<View>) {
    if view.wait_for(|view| view.ended).await.is_err() {
        // The watchdog is the attempt's own and does not end before it.
        std::future::pending::<()>().await;
    }
}

/// Completes when everything was killed, or has died by itself; returns what a guest is then lost by.
async fn stopped(view: &mut watch::Receiver<View>) -> &'static str {
    match view.wait_for(|view| view.killed).await {
        Ok(view) if view.ended => "everything in the sandbox died before the command's end was told",
        _ => "the sandbox was killed while the guest was at work",
    }
}

/// The status of an attempt that came to nothing before a sandbox was there.
pub fn stillborn(launch: &Launch, causes: Causes, message: String) -> Status {
    let circumstances = Circumstances { causes, time_limit: launch.spec.limits.timeout(), ..Circumstances::default() };
    let outcome = Some(classify(Ending::NotLaunched(message), circumstances));
    Status { phase: Phase::Ended, outcome, ..first_status(launch) }
}

/// Whether a deadline has passed already.
pub fn has_passed(deadline: BootMicros) -> bool {
    clock::boot() >= deadline
}
