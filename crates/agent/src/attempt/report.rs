//! Telling the control plane of one attempt: that the command was started, its output and events, and how it ended.
//!
//! The order is fixed (SPEC S1): start, then output and events as they come; what is left of them,
//! with word that the sandbox has ended where that takes long, then the archive of changes, and the end of the run last. What
//! cannot be stored is never passed over in silence: the run then ends as failed.

use std::{fmt::Display, path::PathBuf, time::Duration};

use holm_api::agent::{AppendEvents, Fenced, FinishRun, SandboxEnded, StartRun};
use holm_domain::run::{EventKind, Outcome, Reason, SandboxInfo};
use holm_runtime::{AttemptId, crash::effect_of};
use holm_shim::{
    client::read_events,
    protocol::{CHANGES_FILE_NAME, EVENTS_FILE_NAME, MESSAGE_BYTES_MAX},
};
use tokio::sync::watch;

use super::{
    logs::{LogSource, Loss},
    orders::Wants,
    seen::{End, Seen},
    spawn_blocking,
    traced::Traced,
};
use crate::{
    backoff::persist,
    clock,
    control::{ControlError, ControlPlane},
    folder::{note_damage, open_plain},
    station::Shared,
};

/// How long the last of the output may take before the control plane is told that the sandbox has ended. Far less than a
/// lease lasts: what is lost with an agent in this time is executed again, as if it were lost a moment earlier.
const TELL_END_AFTER: Duration = Duration::from_millis(200);
/// The most events in one request.
const EVENTS_MAX: usize = 256;

/// Why the end could not be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreported {
    /// The sandbox was killed because its lease ran out: what becomes of the run is the control plane's to say.
    #[error("the lease ran out")]
    Expired,
    /// The control plane did not take it.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Reports one attempt.
pub(crate) struct Reporter<'a, C> {
    pub(crate) shared: &'a Shared<C>,
    pub(crate) attempt: AttemptId,
    pub(crate) dir: PathBuf,
    pub(crate) first_log_seq: u64,
    pub(crate) sandbox: SandboxInfo,
    pub(crate) traced: &'a Traced,
    pub(crate) seen: watch::Receiver<Seen>,
    pub(crate) wants: &'a watch::Sender<Wants>,
}

impl<C: ControlPlane> Reporter<'_, C> {
    /// Reports until the end was taken.
    pub(crate) async fn run(mut self) -> Result<(), Unreported> {
        let is_under_way = |seen: &Seen| seen.started || seen.end.is_some();
        let seen = self.seen.wait_for(is_under_way).await.map(|seen| seen.clone()).unwrap_or_default();
        if seen.started {
            self.start(seen.unenforced).await?;
        }
        let mut logs = LogSource::new(&self.dir, self.first_log_seq);
        let (mut end, loss) = self.stream(&mut logs).await?;
        if end.outcome.reason == Some(Reason::LeaseExpired) {
            return Err(Unreported::Expired);
        }
        if let Some(problem) = loss {
            end = failed(end, problem);
        }
        if let Some(length) = end.changes {
            self.tell_sandbox_ended(&end).await?;
            if let Err(problem) = self.put_changes(length).await? {
                end = failed(end, format!("the changes could not be stored: {problem}"));
            }
        }
        Ok(tell_end(self.shared, (self.attempt, self.traced), end, logs.next_seq()).await?)
    }

    /// What the guest could not enforce joins what the runtime knew before.
    async fn start(&self, of_guest: Vec<String>) -> Result<(), ControlError> {
        let mut sandbox = self.sandbox.clone();
        sandbox.unenforced.extend(of_guest);
        let body = StartRun { instance: self.shared.instance(), fence: self.attempt.fence, sandbox };
        let Shared { control, config, .. } = self.shared;
        let start = persist("start", config.patience, || control.start(self.attempt.run, body.clone()));
        effect_of("report.start", start).await
    }

    /// Sends output and events until the sandbox has ended and nothing is left; returns the end and what was lost.
    async fn stream(&mut self, logs: &mut LogSource) -> Result<(End, Option<String>), ControlError> {
        let (mut events_told, mut events_lost) = (0, false);
        let mut loss: Option<String> = None;
        loop {
            let seen = self.seen.borrow_and_update().clone();
            if loss.is_none() {
                loss = self.send_rest(logs, &seen).await?;
            }
            events_told = self.send_events(events_told, seen.events, &mut events_lost).await?;
            if loss.is_some() {
                // The command would only wait for room in the spool from now on.
                self.wants.send_modify(|wants| wants.kill = true);
            }
            if let Some(end) = seen.end {
                if end.events_unwritten > 0 {
                    let problem = format!("{} events are lost: the host could not write them", end.events_unwritten);
                    self.tell_instead(events_told + 1, problem).await?;
                }
                return Ok((end, loss));
            }
            self.wait_for_news(logs, loss.is_none() && logs.has_more(seen.next_seq)).await?;
        }
    }

    /// Waits for something to tell, unless there is; and then, where the last request carried little, until enough may have
    /// come together for another, or nothing more will come.
    async fn wait_for_news(&mut self, logs: &LogSource, there_is: bool) -> Result<(), ControlError> {
        if !there_is {
            let given_up = |_| ControlError::Unavailable("the attempt was given up".to_owned());
            self.seen.changed().await.map_err(given_up)?;
        }
        if let Some(due) = logs.due() {
            // A shim that is gone has written all it will.
            let _ = tokio::time::timeout_at(due, self.seen.wait_for(|seen| seen.end.is_some())).await;
        }
        Ok(())
    }

    /// Sends the output that is there. What takes long after the end is sent beside word of the end; what does not is
    /// followed by the end itself.
    async fn send_rest(&self, logs: &mut LogSource, seen: &Seen) -> Result<Option<String>, ControlError> {
        let mut sending = std::pin::pin!(self.send_all(logs, seen));
        let Some(end) = &seen.end else { return sending.await };
        tokio::select! {
            sent = &mut sending => sent,
            () = tokio::time::sleep(TELL_END_AFTER) => {
                let (loss, ()) = tokio::try_join!(sending, self.tell_sandbox_ended(end))?;
                Ok(loss)
            }
        }
    }

    /// From here on the run is not executed again, however long its output and its changes take. A sandbox that was killed
    /// because its lease ran out is none of ours to end.
    async fn tell_sandbox_ended(&self, end: &End) -> Result<(), ControlError> {
        if end.outcome.reason == Some(Reason::LeaseExpired) {
            return Ok(());
        }
        let AttemptId { run, fence } = self.attempt;
        let Shared { control, config, agent, .. } = self.shared;
        let outcome = clipped(end.outcome.clone());
        let body = SandboxEnded { agent: *agent, instance: self.shared.instance(), fence, outcome };
        let ended = persist("ended", config.patience, || control.ended(run, body.clone()));
        match effect_of("report.sandbox_ended", ended).await {
            Err(ControlError::Refused(problem)) => {
                tracing::error!(
                    problem,
                    "the end of the sandbox was not accepted; that of the run is told all the same"
                );
                Ok(())
            }
            result => result,
        }
    }

    async fn send_all(&self, logs: &mut LogSource, seen: &Seen) -> Result<Option<String>, ControlError> {
        let result = self.send_logs(logs, seen.end.is_some()).await;
        let told = seen.end.as_ref().and_then(|end| end.next_seq);
        match result {
            Ok(()) if told.is_some_and(|told| self.lacks(logs, told)) => {
                Ok(Some(format!("the output ends before sequence {}", told.unwrap_or_default())))
            }
            Ok(()) => Ok(None),
            Err(Loss::Control(
                error @ (ControlError::StaleFence
                | ControlError::Superseded
                | ControlError::Revoked
                | ControlError::Unavailable(_)
                | ControlError::Later { .. }),
            )) => Err(error),
            Err(loss) => {
                tracing::error!(%loss, "the output cannot be stored");
                if matches!(loss, Loss::Spool(_)) {
                    note_damage(&self.dir, &loss.to_string());
                }
                Ok(Some(format!("the output could not be stored: {loss}")))
            }
        }
    }

    /// Whether entries are missing. An agent that was restarted and found the spool empty has nothing to send: then all was
    /// acknowledged, and the server refuses the end if that is not so.
    fn lacks(&self, logs: &LogSource, told: u64) -> bool {
        logs.has_sent() && logs.next_seq() < told
    }

    /// Sends one request, so that events and the end have their turn; everything, once the output has ended.
    async fn send_logs(&self, logs: &mut LogSource, has_ended: bool) -> Result<(), Loss> {
        let AttemptId { run, fence } = self.attempt;
        let fenced = Fenced { agent: self.shared.agent, instance: self.shared.instance(), fence };
        let Shared { control, config, .. } = self.shared;
        while let Some((first_seq, _, batches)) = logs.read().await? {
            let append = || control.append_logs(run, fenced, batches.clone());
            let answer = effect_of("report.logs", persist("append_logs", config.patience, append)).await;
            logs.answered(first_seq, answer.map(|appended| appended.next_seq))?;
            self.wants.send_modify(|wants| wants.acked = wants.acked.max(logs.next_seq()));
            if !has_ended {
                break;
            }
        }
        Ok(())
    }

    /// Sends the events beyond the first `told`. Where a request is refused, shorter ones find the event for which it was.
    /// That some cannot be read is told once and noted in `lost`; of those that come later, each that can be read is sent.
    async fn send_events(&self, mut told: u64, there: u64, lost: &mut bool) -> Result<u64, ControlError> {
        let mut at_once = EVENTS_MAX;
        while told < there {
            let dir = self.dir.clone();
            let read = spawn_blocking(move || read_events(&dir, told, at_once)).await;
            let events = match read {
                Ok(Ok(events)) if !events.is_empty() => events,
                _ if std::mem::replace(lost, true) => return Ok(there),
                Ok(Ok(_)) => return self.lose_events(there, &format!("they end after {told} of {there}")).await,
                Ok(Err(error)) => return self.lose_events(there, &error).await,
                Err(error) => return self.lose_events(there, &error).await,
            };
            let count = events.len();
            match effect_of("report.events", self.append_events(told + 1, events)).await {
                Ok(()) => (told, at_once) = (told + count as u64, EVENTS_MAX),
                Err(ControlError::Refused(_)) if count > 1 => at_once = count / 2,
                Err(ControlError::Refused(problem)) => {
                    let problem = format!("an event of the shim was not accepted: {problem}");
                    if !self.tell_instead(told + 1, problem).await? {
                        return Ok(there);
                    }
                    (told, at_once) = (told + 1, EVENTS_MAX);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(told)
    }

    /// Not all of the first `there` events can be read: word of that takes the place of the last of them, unless the store
    /// has it, and so all of them, from an earlier agent.
    async fn lose_events(&self, there: u64, problem: &(dyn Display + Sync)) -> Result<u64, ControlError> {
        tracing::error!(%problem, "the events cannot be read");
        note_damage(&self.dir, &format!("{EVENTS_FILE_NAME}: {problem}"));
        self.tell_instead(there, format!("events of the shim are lost: {problem}")).await?;
        Ok(there)
    }

    /// Tells that the event of the number `seq` is missing and why; returns whether that was accepted. Events tell of the run
    /// and decide nothing, so it does not fail if not even that is: what there is of them is set aside then.
    async fn tell_instead(&self, seq: u64, problem: String) -> Result<bool, ControlError> {
        match self.append_events(seq, vec![EventKind::refused(problem)]).await {
            Ok(()) => Ok(true),
            Err(ControlError::Refused(problem)) => {
                tracing::error!(seq, problem, "no event is accepted");
                note_damage(&self.dir, &format!("{EVENTS_FILE_NAME}: not accepted from {seq} on: {problem}"));
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn append_events(&self, first_seq: u64, events: Vec<EventKind>) -> Result<(), ControlError> {
        let AttemptId { run, fence } = self.attempt;
        let Shared { control, config, agent, .. } = self.shared;
        let events = events.into_iter().map(Into::into).collect();
        let body = AppendEvents { agent: *agent, instance: self.shared.instance(), fence, first_seq, events };
        persist("append_events", config.patience, || control.append_events(run, body.clone())).await
    }

    async fn put_changes(&self, length: u64) -> Result<Result<(), String>, ControlError> {
        let AttemptId { run, fence } = self.attempt;
        let fenced = Fenced { agent: self.shared.agent, instance: self.shared.instance(), fence };
        let path = self.dir.join(CHANGES_FILE_NAME);
        let Shared { control, config, .. } = self.shared;
        let (path, control) = (&path, control);
        let put = || async move {
            let file = open_plain(path).and_then(|file| Ok((file.metadata()?.len(), file)));
            match file {
                Ok((found, file)) if found == length => control.put_changes(run, fenced, file, length).await,
                Ok((found, _)) => Err(ControlError::Refused(format!("{found} bytes where {length} were told"))),
                Err(error) => Err(ControlError::Refused(error.to_string())),
            }
        };
        match effect_of("report.changes", persist("put_changes", config.patience, put)).await {
            Ok(()) => Ok(Ok(())),
            Err(ControlError::Refused(problem)) => Ok(Err(problem)),
            Err(error) => Err(error),
        }
    }
}

fn failed(end: End, problem: String) -> End {
    failed_as(Reason::SpoolFailed, end, problem)
}

fn failed_as(reason: Reason, end: End, problem: String) -> End {
    let exit = end.outcome.exit;
    // What is missing is not claimed to be there, or the server would refuse the end as well.
    End { outcome: Outcome { exit, ..Outcome::failed(reason, problem) }, next_seq: None, ..end }
}

/// Tells how the run ended. An end that the control plane cannot take as it is becomes one that it can: the run must not
/// hang, and must not look better than it is.
pub(crate) async fn tell_end<C: ControlPlane>(
    shared: &Shared<C>,
    (attempt, traced): (AttemptId, &Traced),
    end: End,
    next_log_seq: u64,
) -> Result<(), ControlError> {
    let next_log_seq = next_log_seq.max(end.next_seq.unwrap_or(0));
    let stored = clock::boot_now();
    let (end, next_log_seq) = match finish(shared, attempt, &end, next_log_seq).await {
        // More is stored than we know of: an earlier agent had sent it, and the shim left no word of it.
        Err(ControlError::LogGap { next_seq: Some(stored) }) if stored > next_log_seq => (end, stored),
        Err(ControlError::LogGap { next_seq }) => {
            let lacking = failed(end, "the store lacks output that it had acknowledged".to_owned());
            (lacking, next_seq.unwrap_or(next_log_seq))
        }
        Err(ControlError::Refused(problem)) => {
            let end = End { result: None, ..end };
            (failed_as(Reason::GuestLost, end, format!("the end was not accepted: {problem}")), next_log_seq)
        }
        result => return result.map(|()| traced.ended(&end, stored)),
    };
    finish(shared, attempt, &end, next_log_seq).await.map(|()| traced.ended(&end, stored))
}

fn clipped(mut outcome: Outcome) -> Outcome {
    if let Some(message) = &mut outcome.message {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
    }
    outcome
}

async fn finish<C: ControlPlane>(
    shared: &Shared<C>,
    attempt: AttemptId,
    end: &End,
    next_log_seq: u64,
) -> Result<(), ControlError> {
    let outcome = clipped(end.outcome.clone());
    let AttemptId { run, fence } = attempt;
    let body = FinishRun {
        agent: shared.agent,
        instance: shared.instance(),
        fence,
        outcome,
        usage: end.usage,
        result: end.result.clone(),
        next_log_seq,
    };
    let finish = persist("finish", shared.config.patience, || shared.control.finish(run, body.clone()));
    effect_of("report.finish", finish).await
}
