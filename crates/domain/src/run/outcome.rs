//! How a run ended, and with which exit code that is shown to a shell.

use serde::{Deserialize, Serialize};

/// The exit code of `holm run` for an error of Holm's own, as docker uses it.
pub const EXIT_HOLM: i32 = 125;
/// The exit code for a command that is there but cannot be executed.
pub const EXIT_NOT_EXECUTABLE: i32 = 126;
/// The exit code for a command that is not there.
pub const EXIT_NOT_FOUND: i32 = 127;
/// The exit code for a command that was ended by its time limit, as timeout(1) uses it.
pub const EXIT_TIMEOUT: i32 = 124;
/// The exit code for a sandbox of which the kernel killed more than the command because its memory ran out: that of SIGKILL.
pub const EXIT_OUT_OF_MEMORY: i32 = 137;
/// The exit code for a command that was ended because somebody asked, as a shell has it after Ctrl-C.
pub const EXIT_CANCELLED: i32 = 130;

/// How a process ended, as wait(2) tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It called exit with this code, 0 to 255.
    Code(u8),
    /// This signal ended it, 1 to 64.
    Signal(u8),
}

/// The kinds of ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeKind {
    /// The command ended with exit code 0.
    Succeeded,
    /// The command ended otherwise, or something failed; see the reason.
    Failed,
    /// It was ended because somebody asked.
    Cancelled,
    /// It was ended by its time limit.
    TimedOut,
    /// Its agents vanished more often than is allowed.
    Lost,
}

impl OutcomeKind {
    /// The word used in the API and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
            Self::Lost => "lost",
        }
    }
}

/// Why a run did not simply end with its command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The command ended with a code other than 0, or by a signal.
    CommandFailed,
    /// The command is not there.
    CommandNotFound,
    /// The command is there and cannot be executed.
    CommandNotExecutable,
    /// The working directory is not there, or cannot be entered.
    BadWorkDir,
    /// The user is not one of the image.
    UnknownUser,
    /// Somebody asked.
    Cancelled,
    /// The time limit passed.
    Timeout,
    /// It failed, and the kernel had killed a process of it because there was no more memory for it.
    OutOfMemory,
    /// It failed, and its writable file system was full.
    DiskLimit,
    /// It failed, and the kernel had refused it a process because it had as many as it may.
    PidsLimit,
    /// It was ended because it wrote more output than it may.
    LogLimit,
    /// The command succeeded, and what it changed in its work dir is more than is kept.
    ChangesLimit,
    /// The channel to the guest broke, or the guest spoke nonsense.
    GuestLost,
    /// The host could not keep the output: its disk is full or fails.
    SpoolFailed,
    /// The sandbox was killed because its lease was not renewed.
    LeaseExpired,
    /// No agent claimed the run in time.
    QueueDeadline,
    /// The agents of the run vanished more often than is allowed.
    AgentLost,
    /// The command had ended, and what it left was not stored in time.
    ReportLost,
    /// The image could not be prepared.
    ImageFailed,
    /// A path of the host is not one that the agent lends, or cannot be read.
    HostPathRefused,
    /// A limit was required that the host cannot enforce.
    LimitsNotEnforceable,
    /// The sandbox could not be made.
    LaunchFailed,
    /// The host could not make the sandbox, which says nothing of any other.
    HostFailed,
}

impl Reason {
    /// The word used in the API and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CommandFailed => "command_failed",
            Self::CommandNotFound => "command_not_found",
            Self::CommandNotExecutable => "command_not_executable",
            Self::BadWorkDir => "bad_work_dir",
            Self::UnknownUser => "unknown_user",
            Self::Cancelled => "cancelled",
            Self::Timeout => "timeout",
            Self::OutOfMemory => "out_of_memory",
            Self::DiskLimit => "disk_limit",
            Self::PidsLimit => "pids_limit",
            Self::LogLimit => "log_limit",
            Self::ChangesLimit => "changes_limit",
            Self::GuestLost => "guest_lost",
            Self::SpoolFailed => "spool_failed",
            Self::LeaseExpired => "lease_expired",
            Self::QueueDeadline => "queue_deadline",
            Self::AgentLost => "agent_lost",
            Self::ReportLost => "report_lost",
            Self::ImageFailed => "image_failed",
            Self::HostPathRefused => "host_path_refused",
            Self::LimitsNotEnforceable => "limits_not_enforceable",
            Self::LaunchFailed => "launch_failed",
            Self::HostFailed => "host_failed",
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The kind of end.
    pub kind: OutcomeKind,
    /// How the command ended, if it was started.
    pub exit: Option<ExitStatus>,
    /// Why, when it did not succeed.
    pub reason: Option<Reason>,
    /// A sentence for people, when it did not succeed.
    pub message: Option<String>,
}

impl Outcome {
    /// The end of a command by itself.
    pub fn exited(exit: ExitStatus) -> Self {
        if exit == ExitStatus::Code(0) {
            return Self { kind: OutcomeKind::Succeeded, exit: Some(exit), reason: None, message: None };
        }
        let message = match exit {
            ExitStatus::Code(code) => format!("the command ended with exit code {code}"),
            ExitStatus::Signal(signal) => format!("the command was ended by signal {signal}"),
        };
        Self { exit: Some(exit), ..Self::failed(Reason::CommandFailed, message) }
    }

    /// A failure of another kind.
    pub fn failed(reason: Reason, message: impl Into<String>) -> Self {
        Self { kind: OutcomeKind::Failed, exit: None, reason: Some(reason), message: Some(message.into()) }
    }

    /// The end that somebody asked for.
    pub fn cancelled(message: impl Into<String>) -> Self {
        Self { kind: OutcomeKind::Cancelled, ..Self::failed(Reason::Cancelled, message) }
    }

    /// The end by the time limit.
    pub fn timed_out(message: impl Into<String>) -> Self {
        Self { kind: OutcomeKind::TimedOut, ..Self::failed(Reason::Timeout, message) }
    }

    /// The end of a run whose agents vanished.
    pub fn lost(message: impl Into<String>) -> Self {
        Self { kind: OutcomeKind::Lost, ..Self::failed(Reason::AgentLost, message) }
    }

    /// The end of a run whose sandbox ended like this, and whose agent did not store all that it left. A success without its
    /// output is none; any other end stands.
    pub fn report_lost(self) -> Self {
        const MISSING: &str = "what it left was not stored completely";
        if self.kind != OutcomeKind::Succeeded {
            let told = self.message.map_or_else(|| MISSING.to_owned(), |message| format!("{message}; {MISSING}"));
            return Self { message: Some(told), ..self };
        }
        let message = format!("the command ended with exit code 0; {MISSING} and is lost");
        let failed = Self::failed(Reason::ReportLost, message);
        Self { kind: OutcomeKind::Lost, exit: self.exit, ..failed }
    }

    /// Whether a host failed before the command was started: another try, elsewhere perhaps, may succeed and repeats nothing.
    pub fn is_of_host(&self) -> bool {
        self.kind == OutcomeKind::Failed && self.reason == Some(Reason::HostFailed) && self.exit.is_none()
    }

    /// The exit code that `holm run` ends with: the command's own, 128 plus the signal, or one of 124 to 127 and 130.
    ///
    /// The time limit and a request to end have one code each, however the command then ended: what it answered to SIGTERM
    /// is in `exit`.
    ///
    /// Never 0 unless the command itself ended with 0 (SPEC R9).
    pub fn exit_code(&self) -> i32 {
        match (self.kind, self.reason, self.exit) {
            (OutcomeKind::Succeeded, _, _) => 0,
            (OutcomeKind::TimedOut, _, _) => EXIT_TIMEOUT,
            (OutcomeKind::Cancelled, _, _) => EXIT_CANCELLED,
            (_, Some(Reason::CommandNotFound), _) => EXIT_NOT_FOUND,
            (_, Some(Reason::CommandNotExecutable), _) => EXIT_NOT_EXECUTABLE,
            (_, Some(Reason::OutOfMemory | Reason::LogLimit), None) => EXIT_OUT_OF_MEMORY,
            (_, _, Some(ExitStatus::Code(code))) if code != 0 => i32::from(code),
            (_, _, Some(ExitStatus::Signal(signal))) => 128 + i32::from(signal),
            _ => EXIT_HOLM,
        }
    }

    /// Whether the outcome contradicts itself; an agent that sends such a one is refused.
    pub fn is_consistent(&self) -> bool {
        let zero = self.exit == Some(ExitStatus::Code(0));
        let signal_in_range = !matches!(self.exit, Some(ExitStatus::Signal(signal)) if signal == 0 || signal > 64);
        signal_in_range && (self.kind == OutcomeKind::Succeeded) == (zero && self.reason.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every variant, each by the word that serde has for it: it lists them where it knows none.
    fn by_word<T: serde::de::DeserializeOwned>() -> Vec<(String, T)> {
        let Err(error) = serde_json::from_str::<T>("\"nonsense\"") else { panic!("nonsense is no word") };
        let words: Vec<String> = error.to_string().split('`').skip(3).step_by(2).map(str::to_owned).collect();
        let read = |word: String| (word.clone(), serde_json::from_value(word.into()).unwrap());
        words.into_iter().map(read).collect()
    }

    #[test]
    fn words_in_spans_and_in_json_are_the_same() {
        let (kinds, reasons) = (by_word::<OutcomeKind>(), by_word::<Reason>());
        assert!(kinds.len() >= 5 && reasons.len() >= 20, "{kinds:?} {reasons:?}");
        kinds.into_iter().for_each(|(word, kind)| assert_eq!(kind.as_str(), word));
        reasons.into_iter().for_each(|(word, reason)| assert_eq!(reason.as_str(), word));
    }

    #[test]
    fn exit_codes_are_those_of_docker_and_timeout() {
        assert_eq!(Outcome::exited(ExitStatus::Code(0)).exit_code(), 0);
        assert_eq!(Outcome::exited(ExitStatus::Code(7)).exit_code(), 7);
        assert_eq!(Outcome::exited(ExitStatus::Signal(9)).exit_code(), 137);
        assert_eq!(Outcome::failed(Reason::CommandNotFound, "").exit_code(), 127);
        assert_eq!(Outcome::failed(Reason::CommandNotExecutable, "").exit_code(), 126);
        assert_eq!(Outcome::failed(Reason::GuestLost, "").exit_code(), 125);
        assert_eq!(Outcome::failed(Reason::OutOfMemory, "").exit_code(), 137);
        let out_of_memory = Outcome { exit: Some(ExitStatus::Code(2)), ..Outcome::failed(Reason::OutOfMemory, "") };
        assert_eq!(out_of_memory.exit_code(), 2);
        assert_eq!(Outcome::timed_out("").exit_code(), 124);
        assert_eq!(Outcome::cancelled("").exit_code(), 130);
        for exit in [ExitStatus::Signal(15), ExitStatus::Signal(9), ExitStatus::Code(0), ExitStatus::Code(3)] {
            let asked = Outcome { exit: Some(exit), ..Outcome::cancelled("") };
            assert_eq!(asked.exit_code(), 130, "{exit:?}: one code, whoever asked and whatever the command answered");
        }
    }

    #[test]
    fn only_success_exits_zero() {
        let lost = Outcome { exit: Some(ExitStatus::Code(0)), ..Outcome::failed(Reason::GuestLost, "") };
        assert_eq!(lost.exit_code(), 125);
        let cancelled = Outcome { exit: Some(ExitStatus::Code(0)), ..Outcome::cancelled("") };
        assert_ne!(cancelled.exit_code(), 0);
    }

    #[test]
    fn a_lost_report_is_no_success_and_keeps_what_is_known() {
        let lost = Outcome::exited(ExitStatus::Code(0)).report_lost();
        assert_eq!(
            (lost.kind, lost.reason, lost.exit),
            (OutcomeKind::Lost, Some(Reason::ReportLost), Some(ExitStatus::Code(0)))
        );
        assert!(lost.is_consistent() && lost.exit_code() == EXIT_HOLM);
        let failed = Outcome::exited(ExitStatus::Code(3));
        let told = failed.clone().report_lost();
        assert_eq!((told.kind, told.exit_code()), (OutcomeKind::Failed, 3));
        assert!(told.message.is_some_and(|message| message.contains("exit code 3; what it left")));
    }

    #[test]
    fn contradictions_are_seen() {
        assert!(Outcome::exited(ExitStatus::Code(0)).is_consistent());
        assert!(Outcome::exited(ExitStatus::Code(1)).is_consistent());
        let liar = Outcome { kind: OutcomeKind::Succeeded, ..Outcome::exited(ExitStatus::Code(1)) };
        assert!(!liar.is_consistent());
        assert!(!Outcome::exited(ExitStatus::Signal(200)).is_consistent());
    }
}
