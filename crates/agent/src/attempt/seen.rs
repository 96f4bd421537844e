//! What is known of a sandbox from outside, and how failures of our own become outcomes.

use holm_api::run_secrets::PublicKey;
use holm_domain::run::{Outcome, OutcomeKind, Reason, Usage};
use holm_runtime::Error;
use holm_shim::protocol::{Phase, Status, Times, UNENFORCED_BYTES_MAX, UNENFORCED_MAX};

/// How a sandbox ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// How the run ended.
    pub(crate) outcome: Outcome,
    /// What the sandbox used, where there was one whose shim lived to tell it.
    pub(crate) usage: Option<Usage>,
    /// The structured result that the command left.
    pub(crate) result: Option<serde_json::Value>,
    /// The length of the archive of changes.
    pub(crate) changes: Option<u64>,
    /// The sequence after the last log entry, where the shim lived to tell it.
    pub(crate) next_seq: Option<u64>,
    /// How many events could not be written.
    pub(crate) events_unwritten: u64,
    /// When things happened, as the shim told.
    pub(crate) times: Times,
}

impl End {
    /// An end of which nothing is known but the outcome.
    pub(crate) fn without_traces(outcome: Outcome) -> Self {
        let times = Times::default();
        Self { outcome, usage: None, result: None, changes: None, next_seq: None, events_unwritten: 0, times }
    }
}

/// What is known of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Seen {
    /// Whether the command was started.
    pub(crate) started: bool,
    /// The sequence after the last log entry in the spool; a hint that there is more to read.
    pub(crate) next_seq: u64,
    /// How many events are in the file.
    pub(crate) events: u64,
    /// What the guest could not enforce.
    pub(crate) unenforced: Vec<String>,
    /// For whom the secrets of the run are to be sealed, while its proxy waits for them.
    pub(crate) asks: Option<PublicKey>,
    /// Whether it was killed and does not die. It has not ended then.
    pub(crate) undying: bool,
    /// How it ended.
    pub(crate) end: Option<End>,
}

impl Seen {
    /// Takes in what the shim says. A status of another attempt, or after the end, changes nothing.
    pub(crate) fn take(&mut self, fence: u64, status: &Status) {
        if status.fence != fence || self.end.is_some() {
            return;
        }
        self.next_seq = self.next_seq.max(status.next_seq);
        self.events = self.events.max(status.events);
        self.asks = status.asks;
        if !self.started {
            let told = status.unenforced.iter().filter(|reason| reason.len() <= UNENFORCED_BYTES_MAX);
            self.unenforced = told.take(UNENFORCED_MAX).cloned().collect();
        }
        let exited = status.outcome.as_ref().is_some_and(|outcome| outcome.exit.is_some());
        self.started |= status.phase == Phase::Running || exited;
        if status.phase == Phase::Undying && !self.undying {
            self.undying = true;
            let pid = status.pid;
            tracing::error!(pid, "a sandbox was killed and does not die; its lease and its place of user ids are kept");
        }
        if status.phase == Phase::Ended {
            self.end = Some(End {
                outcome: believable(status.outcome.clone()),
                usage: Some(status.usage),
                result: status.result.clone(),
                changes: status.changes,
                next_seq: Some(status.next_seq),
                events_unwritten: status.events_unwritten,
                times: status.times,
            });
        }
    }

    /// The shim is gone and left no word of how it ended, or one that is `unreadable` for that reason.
    pub(crate) fn lose(&mut self, unreadable: Option<&str>) {
        if self.end.is_some() {
            return;
        }
        let (reason, message) = match self.started {
            true => (Reason::GuestLost, "the shim beside the sandbox died; the sandbox was removed"),
            false => (Reason::HostFailed, "the shim died before the command was started"),
        };
        let why = unreadable.map(|problem| format!("; how it ended cannot be read: {problem}")).unwrap_or_default();
        let outcome = Outcome::failed(reason, format!("{message}{why}"));
        self.end = Some(End::without_traces(outcome));
    }
}

fn is_not_its_to_tell(outcome: &Outcome) -> bool {
    outcome.kind == OutcomeKind::Lost
        || matches!(
            outcome.reason,
            Some(Reason::QueueDeadline | Reason::AgentLost | Reason::ReportLost | Reason::HostFailed)
        )
}

fn believable(outcome: Option<Outcome>) -> Outcome {
    match outcome {
        Some(outcome) if is_not_its_to_tell(&outcome) => {
            Outcome::failed(Reason::GuestLost, "the shim told of an outcome that is not its to tell")
        }
        Some(outcome) if outcome.is_consistent() => outcome,
        Some(_) => Outcome::failed(Reason::GuestLost, "the shim told of an outcome that contradicts itself"),
        None => Outcome::failed(Reason::GuestLost, "the shim told of an end without an outcome"),
    }
}

/// The outcome of a run whose sandbox could not be made.
pub(crate) fn outcome_of(error: &Error) -> Outcome {
    let reason = match error {
        Error::Image(_) => Reason::ImageFailed,
        Error::HostPath { .. } => Reason::HostPathRefused,
        Error::LimitsNotEnforceable(_) => Reason::LimitsNotEnforceable,
        Error::Exhausted(_) | Error::System { .. } => Reason::HostFailed,
        Error::Unsupported { .. } | Error::Launch(_) | Error::Stopped | Error::Malformed(_) => Reason::LaunchFailed,
    };
    Outcome::failed(reason, error.to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use holm_domain::{BootMicros, run::ExitStatus};

    pub(crate) fn status(phase: Phase, outcome: Option<Outcome>) -> Status {
        Status {
            phase,
            fence: 3,
            deadline_us: BootMicros(0),
            next_seq: 7,
            events: 1,
            events_unwritten: 0,
            asks: None,
            unenforced: vec!["landlock: no".to_owned()],
            outcome,
            usage: Usage { pids_peak: Some(4), ..Usage::default() },
            result: None,
            changes: None,
            pid: 1,
            times: Times::default(),
        }
    }

    #[test]
    fn a_command_that_ended_before_it_was_seen_running_was_started() {
        let mut seen = Seen::default();
        seen.take(3, &status(Phase::Preparing, None));
        assert!(!seen.started && seen.end.is_none());
        seen.take(3, &status(Phase::Ended, Some(Outcome::exited(ExitStatus::Code(2)))));
        assert!(seen.started);
        let end = seen.end.unwrap();
        assert_eq!((end.next_seq, end.usage.and_then(|usage| usage.pids_peak)), (Some(7), Some(4)));
    }

    #[test]
    fn what_does_not_die_has_not_ended() {
        let mut seen = Seen::default();
        seen.take(3, &status(Phase::Undying, None));
        assert!(seen.undying && seen.end.is_none());
        seen.take(3, &status(Phase::Ended, Some(Outcome::exited(ExitStatus::Code(0)))));
        assert_eq!(seen.end.unwrap().outcome, Outcome::exited(ExitStatus::Code(0)));
    }

    #[test]
    fn the_end_is_final_and_another_fence_is_nobody() {
        let mut seen = Seen::default();
        seen.take(4, &status(Phase::Running, None));
        assert_eq!(seen, Seen::default());
        seen.take(3, &status(Phase::Ended, Some(Outcome::exited(ExitStatus::Code(0)))));
        let ended = seen.clone();
        seen.lose(None);
        seen.take(3, &status(Phase::Ended, Some(Outcome::exited(ExitStatus::Code(1)))));
        assert_eq!(seen, ended);
    }

    #[test]
    fn no_end_without_a_consistent_outcome_is_a_success() {
        let liar = Outcome { reason: Some(Reason::GuestLost), ..Outcome::exited(ExitStatus::Code(0)) };
        for outcome in [None, Some(liar), Some(Outcome::lost(""))] {
            let mut seen = Seen::default();
            seen.take(3, &status(Phase::Ended, outcome));
            assert_eq!(seen.end.unwrap().outcome.reason, Some(Reason::GuestLost));
        }
    }

    #[test]
    fn what_the_guest_lacks_is_taken_up_to_the_start_and_within_limits() {
        let mut seen = Seen::default();
        let mut told = status(Phase::Preparing, None);
        told.unenforced = vec!["landlock: no".to_owned(); UNENFORCED_MAX + 1];
        told.unenforced[0] = "x".repeat(UNENFORCED_BYTES_MAX + 1);
        seen.take(3, &told);
        assert_eq!(seen.unenforced, vec!["landlock: no"; UNENFORCED_MAX]);
        seen.take(3, &status(Phase::Running, None));
        assert_eq!(seen.unenforced, ["landlock: no"]);
        told.phase = Phase::Running;
        seen.take(3, &told);
        assert_eq!(seen.unenforced, ["landlock: no"], "the start was told already");
    }

    #[test]
    fn a_lost_shim_is_told_by_how_far_it_was() {
        let mut early = Seen::default();
        early.lose(None);
        assert_eq!(early.end.unwrap().outcome.reason, Some(Reason::HostFailed));
        let mut late = Seen { started: true, ..Seen::default() };
        late.lose(Some("exit.json: torn"));
        let end = late.end.unwrap();
        assert_eq!((end.outcome.reason, end.usage), (Some(Reason::GuestLost), None));
        assert!(end.outcome.message.unwrap().contains("exit.json: torn"));
    }

    #[test]
    fn errors_have_the_fitting_reasons() {
        let system = Error::System { context: "mounting".into(), source: std::io::Error::other("no") };
        let path = Error::HostPath { path: "/x".into(), problem: "no".into() };
        for (error, reason) in [
            (Error::Image("no".into()), Reason::ImageFailed),
            (path, Reason::HostPathRefused),
            (Error::LimitsNotEnforceable(vec!["memory".into()]), Reason::LimitsNotEnforceable),
            (Error::Exhausted("ids"), Reason::HostFailed),
            (system, Reason::HostFailed),
            (Error::Launch("no".into()), Reason::LaunchFailed),
        ] {
            let outcome = outcome_of(&error);
            assert_eq!(outcome.reason, Some(reason));
            assert_eq!(outcome.message, Some(error.to_string()));
            assert!(outcome.is_consistent());
        }
    }
}
