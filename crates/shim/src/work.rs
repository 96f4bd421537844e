//! The work with a guest: ready, command, output, end, result, changes, in this order.

use std::{os::fd::OwnedFd, path::Path, time::Duration};

use holm_domain::run::{EventKind, ExitStatus, event::TEXT_BYTES_MAX};
use holm_runtime::{
    crash::{effect, effect_of},
    room::free_bytes,
};
use holm_wire::guest_api::{SendSignal, Setup, Trusted};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    clock,
    deadline::{Causes, Input},
    environment, exit,
    guest::{self, ChangesError, CommandResult, Guest, Lanes, Lost, Patience, Readiness, SpawnError, output},
    lane_out,
    outcome::Ending,
    protocol::Phase,
    spool::writer::is_no_room,
    supervise::Attempt,
    telling::REFUSALS_WAITING_MAX,
    ways_out::Proxy,
};

const SIGTERM: u8 = 15;
/// How much of an archive of changes is asked room for at once, in bytes: the guest chooses how small its pieces are.
const ROOM_BYTES: u64 = 1 << 20;

/// What of a sandbox the work with its guest needs.
pub(crate) struct Inside {
    /// The lane on which the guest is asked.
    pub lane_in: OwnedFd,
    /// The lane on which it asks.
    pub lane_out: OwnedFd,
    /// How it makes the workload's place.
    pub setup: Setup,
    /// The environment as the runtime knows it.
    pub env: Vec<(String, String)>,
}

impl Attempt {
    /// Works with the guest behind two lanes to the end of the command. It returns by itself when the lanes break.
    pub(crate) async fn work(&self, inside: Inside, proxy: Option<&mut Proxy>, readiness: Readiness) -> Ending {
        match self.try_work(inside, proxy, readiness).await {
            Ok(exit) => Ending::Exited(exit),
            Err(ending) => ending,
        }
    }

    async fn try_work(
        &self,
        inside: Inside,
        proxy: Option<&mut Proxy>,
        readiness: Readiness,
    ) -> Result<ExitStatus, Ending> {
        let Inside { lane_in, lane_out, mut setup, mut env } = inside;
        if let Some((authority, others)) = proxy.as_ref().and_then(|proxy| proxy.egress.trusted()) {
            setup.trusted = Some(Trusted { authority, others: others.to_owned() });
            env.extend(environment::trust());
        }
        env.extend(environment::placeholders(&self.launch.spec));
        let tuning = self.launch.tuning;
        let patience =
            Patience { ready: Duration::from_millis(tuning.ready_ms), answer: Duration::from_millis(tuning.answer_ms) };
        let not_ready = |lost: Lost| Ending::NotLaunched(lost.to_string());
        let unusable =
            |error: std::io::Error| Ending::NotLaunched(format!("a lane of the wire cannot be used: {error}"));
        let (lane_in, lane_out) = (guest::lane(lane_in).map_err(unusable)?, guest::lane(lane_out).map_err(unusable)?);
        let lanes = guest::connect(lane_in, lane_out, 1, readiness, patience).await.map_err(not_ready)?;
        let Lanes { guest, driver, requests } = lanes;
        let _driver = AbortOnDropHandle::new(tokio::spawn(driver));
        let (sender, mut refusals) = mpsc::channel(REFUSALS_WAITING_MAX);
        let egress = proxy.as_ref().map(|proxy| proxy.egress.clone());
        let serving = AbortOnDropHandle::new(tokio::spawn(lane_out::serve(requests, egress, sender)));
        let set_up = async { guest.setup(&setup, readiness).await.map_err(not_ready) };
        let (unenforced, ()) = tokio::try_join!(set_up, self.fill(proxy.as_deref()))?;
        self.note_time(|times, now| times.ready_us = Some(now));
        // Told before the command is: what a run had to do without is known from its start on.
        self.update(|status| status.unenforced = unenforced);
        let done = tokio::select! {
            done = self.command(&guest, &env) => done,
            never = self.count_refusals(&mut refusals) => match never {},
            ending = self.note_connections(proxy) => Err(ending),
            why = serving => {
                let why = why.unwrap_or_else(|error| error.to_string());
                Err(Ending::Lost(format!("the lane out of the sandbox ended: {why}")))
            }
        };
        // What the guest told of before the end belongs to the run as well.
        while let Ok(refused) = refusals.try_recv() {
            self.count_refusal(&refused, None);
        }
        done
    }

    async fn command(&self, guest: &Guest, env: &[(String, String)]) -> Result<ExitStatus, Ending> {
        let spawn = environment::spawn(self.launch.attempt.run, &self.launch.spec, env);
        // Before, not after: a shim that dies in between must not look as if nothing had been started.
        effect("started.mark", || exit::mark_started(&self.dir())).map_err(|error| Ending::unkept(&error))?;
        self.note_time(|times, now| times.started_us = Some(now));
        let spawned = effect_of("command.spawn", guest.spawn(&spawn)).await;
        let process = spawned.map_err(|error| match error {
            SpawnError::Refused(failure) => Ending::NotSpawned(failure),
            SpawnError::Lost(lost) => lost.into(),
        })?;
        self.watchdog.input(Input::Started);
        self.update(|status| status.phase = Phase::Running);
        let (exit, result) = tokio::select! {
            ended = self.output(guest, process) => ended?,
            never = self.pass_on_termination(guest, process) => match never {},
        };
        self.watchdog.input(Input::Finished);
        self.note_time(|times, now| times.exited_us = Some(now));
        self.take_result(result);
        let keeps_changes = self.launch.spec.work_dir.as_ref().is_some_and(|work_dir| work_dir.keep_changes);
        let is_to_succeed = exit == ExitStatus::Code(0) && self.watchdog.view().borrow().causes == Causes::default();
        if keeps_changes && is_to_succeed {
            self.take_changes(guest).await?;
        }
        Ok(exit)
    }

    /// Takes the output to its end; returns how the command ended and what it left, which are asked for at once.
    async fn output(&self, guest: &Guest, process: u32) -> Result<(ExitStatus, CommandResult), Ending> {
        let mut position = output::Position::start(process);
        let read = position.read_to_end(guest, async |frame| self.take_output(frame).await).await;
        read.map_err(|error| match error {
            output::Error::Lost(lost) => lost.into(),
            output::Error::Sink(ending) => ending,
        })?;
        Ok(tokio::try_join!(guest.exit(process, position.offset()), guest.result())?)
    }

    /// Asks the command to end when the verdict says so. That it does is not relied on: the kill follows by itself.
    async fn pass_on_termination(&self, guest: &Guest, process: u32) -> std::convert::Infallible {
        let mut view = self.watchdog.view();
        if view.wait_for(|view| view.terminate).await.is_ok() {
            let signal = SendSignal { signal: SIGTERM, all: false };
            if let Err(error) = guest.signal(process, signal).await {
                tracing::warn!(%error, "the command cannot be asked to end");
            }
        }
        std::future::pending().await
    }

    fn take_result(&self, result: CommandResult) {
        match result {
            CommandResult::None => {}
            CommandResult::Json(value) => self.update(|status| status.result = Some(value)),
            CommandResult::Refused(mut problem) => {
                problem.truncate(problem.floor_char_boundary(TEXT_BYTES_MAX));
                self.tell(EventKind::ResultRefused { problem });
            }
        }
    }

    async fn take_changes(&self, guest: &Guest) -> Result<(), Ending> {
        let limit = Duration::from_millis(self.launch.tuning.changes_ms);
        let bytes = self.fetch_changes(guest, limit).await?;
        self.update(|status| status.changes = Some(bytes));
        Ok(())
    }

    /// Keeps the archive of changes; returns its length. What was written is removed where that fails, or is given up. The
    /// time for which the disk has no room is not the guest's.
    async fn fetch_changes(&self, guest: &Guest, limit: Duration) -> Result<u64, Ending> {
        let failed = |error: std::io::Error| Ending::unkept(&error);
        let bytes_max = self.launch.spec.limits.changes_bytes_max();
        let dir = self.dir();
        self.room_for_changes(&dir).await?;
        let mut room = ROOM_BYTES;
        let mut pending = exit::Pending::changes(&dir).map_err(failed)?;
        let late = |_| Ending::Lost(format!("reading the changes: the guest did not come to their end in {limit:?}"));
        let mut until = Instant::now() + limit;
        let mut changes = guest.changes(bytes_max, limit).await?;
        while let Some(piece) = timeout_at(until, changes.next()).await.map_err(late)?? {
            let length = piece.len() as u64;
            // The guest has measured them; it may lie, and what still runs beside the command may go on writing.
            if pending.bytes() + length > bytes_max {
                return Err(Ending::ChangesLimit(format!("they take more than {bytes_max} bytes as an archive")));
            }
            let begun = Instant::now();
            while pending.bytes() + length > room {
                self.room_for_changes(&dir).await?;
                room += ROOM_BYTES;
            }
            self.write_changes(&mut pending, &piece).await?;
            until += begun.elapsed();
        }
        effect("changes.keep", || pending.finish()).map_err(failed)
    }

    /// Waits until the disk stays above its floor with [`ROOM_BYTES`] more. Output may go below it, archives may not: they are
    /// large and come at once, and would take the room from the output of other runs.
    async fn room_for_changes(&self, dir: &Path) -> Result<(), Ending> {
        let needed = self.launch.storage_floor_bytes.saturating_add(ROOM_BYTES);
        loop {
            let free = free_bytes(dir).map_err(|error| Ending::unkept(&error))?;
            let Some(free) = free.filter(|free| *free < needed) else {
                self.full_disk.has_room(clock::boot());
                return Ok(());
            };
            if !self.full_disk.wait().await {
                return Err(Ending::spool_failed(format!(
                    "the host has no room left for the changes of the run: {free} bytes are free, and {needed} are needed"
                )));
            }
        }
    }

    /// Writes a piece of an archive, and waits where others took the room for it meanwhile.
    async fn write_changes(&self, pending: &mut exit::Pending<'_>, mut piece: &[u8]) -> Result<(), Ending> {
        while let Err(error) = pending.write(&mut piece) {
            if !is_no_room(&error) || !self.full_disk.wait().await {
                return Err(Ending::unkept(&error));
            }
        }
        self.full_disk.has_room(clock::boot());
        Ok(())
    }
}

impl From<ChangesError> for Ending {
    fn from(error: ChangesError) -> Self {
        match error {
            ChangesError::Refused(why) => Ending::ChangesLimit(why),
            ChangesError::Lost(lost) => lost.into(),
        }
    }
}

impl From<Lost> for Ending {
    fn from(lost: Lost) -> Self {
        Ending::Lost(lost.to_string())
    }
}
