//! Which of the things that happened is the end of a run.
//!
//! The order is fixed: time limit, lease, cancellation, shutdown, the shim's own trouble with the host, the end of the
//! command, and only then the loss of the guest. A channel that broke is never a success (SPEC R9): exit code 0 counts
//! only together with a complete output stream, which is what [`Ending::Exited`] stands for.

use std::time::Duration;

use holm_domain::run::{Cancel, ExitStatus, Outcome, Reason};
use holm_wire::guest_api::{Exit, SpawnFailure, SpawnFailureKind};

use crate::{deadline::Causes, protocol::MESSAGE_BYTES_MAX};

/// How the work in the sandbox came to an end, seen from the shim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The sandbox could not be made, or its guest did not become ready.
    NotLaunched(String),
    /// The guest could not start the command.
    NotSpawned(SpawnFailure),
    /// The command ended, and all its output was read.
    Exited(ExitStatus),
    /// The channel to the guest broke, or the guest spoke nonsense.
    Lost(String),
    /// The output could not be kept on the host.
    SpoolFailed(String),
}

/// What else is known when a run is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Circumstances {
    /// Why the sandbox was being ended.
    pub causes: Causes,
    /// Whether the memory limit made the kernel kill something in it.
    pub out_of_memory: bool,
    /// The time limit of the command.
    pub time_limit: Duration,
}

/// How the run ended.
pub fn classify(ending: Ending, circumstances: Circumstances) -> Outcome {
    let Circumstances { causes, out_of_memory, time_limit } = circumstances;
    let exit = if let Ending::Exited(exit) = &ending { Some(*exit) } else { None };
    let forced = if causes.time_limit {
        Some(Outcome::timed_out(format!("the command was still running after its time limit of {time_limit:?}")))
    } else if causes.lease {
        Some(Outcome::failed(Reason::LeaseExpired, "the sandbox was killed because its lease was not renewed"))
    } else if let Some(how) = causes.cancelled {
        Some(Outcome::cancelled(match how {
            Cancel::Terminate => "ended on request",
            Cancel::Kill => "killed on request",
        }))
    } else if causes.shutdown {
        Some(Outcome::failed(Reason::GuestLost, "the shim of the sandbox was told to end"))
    } else {
        None
    };
    match forced {
        Some(outcome) => Outcome { exit, ..outcome },
        None => unforced(ending, out_of_memory),
    }
}

fn unforced(ending: Ending, out_of_memory: bool) -> Outcome {
    let memory = if out_of_memory { " (the memory limit made the kernel kill a process of it)" } else { "" };
    match ending {
        Ending::NotLaunched(message) => Outcome::failed(Reason::LaunchFailed, clip(message)),
        Ending::NotSpawned(failure) => not_spawned(failure),
        Ending::Exited(exit) => {
            let outcome = Outcome::exited(exit);
            let message = outcome.message.map(|message| message + memory);
            Outcome { message, ..outcome }
        }
        Ending::Lost(message) => Outcome::failed(Reason::GuestLost, clip(message) + memory),
        Ending::SpoolFailed(message) => Outcome::failed(Reason::SpoolFailed, clip(message)),
    }
}

fn not_spawned(failure: SpawnFailure) -> Outcome {
    let reason = match failure.kind {
        SpawnFailureKind::NotFound => Reason::CommandNotFound,
        SpawnFailureKind::NotExecutable => Reason::CommandNotExecutable,
        SpawnFailureKind::BadWorkDir => Reason::BadWorkDir,
        SpawnFailureKind::UnknownUser => Reason::UnknownUser,
        SpawnFailureKind::Other => Reason::LaunchFailed,
    };
    Outcome::failed(reason, clip(failure.message))
}

/// How a command ended according to the guest, if such an end can be.
pub fn exit_status(exit: Exit) -> Option<ExitStatus> {
    match exit {
        Exit::Code(code) => Some(ExitStatus::Code(code)),
        Exit::Signal(signal @ 1..=64) => Some(ExitStatus::Signal(signal)),
        Exit::Signal(_) => None,
    }
}

/// A text that may come from the guest, made fit for people and terminals: limited, without control characters.
pub fn clip(text: impl AsRef<str>) -> String {
    clip_to(MESSAGE_BYTES_MAX, text)
}

/// The same with a limit of its own.
pub fn clip_to(bytes_max: usize, text: impl AsRef<str>) -> String {
    let mut clipped = String::new();
    for char in text.as_ref().chars() {
        let char = if char.is_control() { ' ' } else { char };
        if clipped.len() + char.len_utf8() > bytes_max {
            break;
        }
        clipped.push(char);
    }
    clipped
}

#[cfg(test)]
mod tests {
    use holm_domain::run::OutcomeKind;

    use super::*;

    fn caused(causes: Causes) -> Circumstances {
        Circumstances { causes, out_of_memory: false, time_limit: Duration::from_secs(60) }
    }

    fn endings() -> Vec<Ending> {
        vec![
            Ending::NotLaunched("x".into()),
            Ending::NotSpawned(SpawnFailure { kind: SpawnFailureKind::NotFound, message: "x".into() }),
            Ending::Exited(ExitStatus::Code(0)),
            Ending::Exited(ExitStatus::Code(3)),
            Ending::Exited(ExitStatus::Signal(9)),
            Ending::Lost("x".into()),
            Ending::SpoolFailed("x".into()),
        ]
    }

    #[test]
    fn the_order_of_causes_is_fixed() {
        let all = Causes { time_limit: true, lease: true, cancelled: Some(Cancel::Kill), shutdown: true };
        let table = [
            (all, OutcomeKind::TimedOut, Reason::Timeout),
            (Causes { time_limit: false, ..all }, OutcomeKind::Failed, Reason::LeaseExpired),
            (Causes { time_limit: false, lease: false, ..all }, OutcomeKind::Cancelled, Reason::Cancelled),
            (Causes { shutdown: true, ..Causes::default() }, OutcomeKind::Failed, Reason::GuestLost),
        ];
        for (causes, kind, reason) in table {
            for ending in endings() {
                let outcome = classify(ending.clone(), caused(causes));
                assert_eq!((outcome.kind, outcome.reason), (kind, Some(reason)), "{ending:?} {causes:?}");
                assert!(outcome.is_consistent() && outcome.exit_code() != 0, "{ending:?} {causes:?}");
            }
        }
    }

    #[test]
    fn without_a_cause_the_ending_decides() {
        let spawn = |kind| Ending::NotSpawned(SpawnFailure { kind, message: "why".into() });
        let table = [
            (Ending::Exited(ExitStatus::Code(0)), 0, None),
            (Ending::Exited(ExitStatus::Code(3)), 3, Some(Reason::CommandFailed)),
            (Ending::Exited(ExitStatus::Signal(15)), 143, Some(Reason::CommandFailed)),
            (Ending::NotLaunched("why".into()), 125, Some(Reason::LaunchFailed)),
            (Ending::Lost("why".into()), 125, Some(Reason::GuestLost)),
            (Ending::SpoolFailed("why".into()), 125, Some(Reason::SpoolFailed)),
            (spawn(SpawnFailureKind::NotFound), 127, Some(Reason::CommandNotFound)),
            (spawn(SpawnFailureKind::NotExecutable), 126, Some(Reason::CommandNotExecutable)),
            (spawn(SpawnFailureKind::BadWorkDir), 125, Some(Reason::BadWorkDir)),
            (spawn(SpawnFailureKind::UnknownUser), 125, Some(Reason::UnknownUser)),
            (spawn(SpawnFailureKind::Other), 125, Some(Reason::LaunchFailed)),
        ];
        for (ending, code, reason) in table {
            let outcome = classify(ending.clone(), caused(Causes::default()));
            assert_eq!((outcome.exit_code(), outcome.reason), (code, reason), "{ending:?}");
            assert!(outcome.is_consistent(), "{ending:?}");
            assert_eq!(outcome.kind == OutcomeKind::Succeeded, ending == Ending::Exited(ExitStatus::Code(0)));
        }
    }

    #[test]
    fn memory_is_named_where_it_was_the_reason() {
        let circumstances = Circumstances { out_of_memory: true, ..caused(Causes::default()) };
        let killed = classify(Ending::Exited(ExitStatus::Signal(9)), circumstances);
        assert!(killed.message.is_some_and(|message| message.contains("memory limit")));
        let fine = classify(Ending::Exited(ExitStatus::Code(0)), circumstances);
        assert_eq!((fine.exit_code(), fine.message), (0, None));
    }

    #[test]
    fn impossible_ends_are_refused_and_texts_are_tamed() {
        assert_eq!(exit_status(Exit::Code(255)), Some(ExitStatus::Code(255)));
        assert_eq!(exit_status(Exit::Signal(64)), Some(ExitStatus::Signal(64)));
        assert_eq!((exit_status(Exit::Signal(0)), exit_status(Exit::Signal(65))), (None, None));
        assert_eq!(clip("a\x1b[31mb\r\nc"), "a [31mb  c");
        assert!(clip("ü".repeat(MESSAGE_BYTES_MAX)).len() <= MESSAGE_BYTES_MAX);
    }
}
