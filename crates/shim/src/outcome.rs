//! Which of the things that happened is the end of a run.
//!
//! The order is fixed: time limit, lease, cancellation, shutdown, the shim's own trouble with the host, the end of the
//! command, and only then the loss of the guest. A channel that broke is never a success (SPEC R9): exit code 0 counts
//! only together with a complete output stream, which is what [`Ending::Exited`] stands for.
//!
//! What ran out ([`Shortage`]) is the kernel's word. It explains a failure and never makes one: a command that got along
//! with less and ended with 0 has succeeded.

use std::{io, time::Duration};

use holm_domain::run::{Cancel, ExitStatus, Outcome, OutcomeKind, Reason};
use holm_wire::guest_api::{Exit, SpawnFailure, SpawnFailureKind};

use crate::{deadline::Causes, protocol::MESSAGE_BYTES_MAX, spool::writer::is_no_room};

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
    /// The command wrote more output than this many bytes, which is all that it may.
    LogLimit(u64),
    /// Its connections and requests were more than is recorded of them, which is this many bytes.
    RecordLimit(u64),
    /// What the command changed is more than is kept, and why; it had ended with 0.
    ChangesLimit(String),
    /// What the run left could not be kept on the host.
    SpoolFailed {
        /// Why not.
        why: String,
        /// How somebody had asked for the end of the run by then, if anybody had.
        cancelled: Option<Cancel>,
    },
}

impl Ending {
    /// The end of a run of which something cannot be kept on the host.
    pub fn unkept(error: &io::Error) -> Self {
        Self::spool_failed(match is_no_room(error) {
            true => format!("the host has no room left for what the run leaves: {error}"),
            false => format!("what the run leaves cannot be kept on the host: {error}"),
        })
    }

    /// The same, and why.
    pub fn spool_failed(why: String) -> Self {
        Self::SpoolFailed { why, cancelled: None }
    }

    /// The end as it is decided, where somebody has asked for it in the way of `how` by now, or nobody has: what waited for
    /// room was cut short by it. Who asks later has no part in it.
    pub fn decided(self, how: Option<Cancel>) -> Self {
        match self {
            Self::SpoolFailed { why, cancelled } => Self::SpoolFailed { why, cancelled: cancelled.or(how) },
            other => other,
        }
    }
}

/// What ran out in the sandbox, by the word of the host's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shortage {
    /// How many of its processes were killed because there was no memory for them.
    pub oom_kills: u64,
    /// Whether its own limit on memory was far away then: the host had no more.
    pub of_host_memory: bool,
    /// Whether everything that is writable was full at the end of the command.
    pub disk_full: bool,
    /// How often it was refused a process because it had as many as it may.
    pub pids_refused: u64,
}

/// What else is known when a run is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Circumstances {
    /// Why the sandbox was being ended.
    pub causes: Causes,
    /// What ran out in it.
    pub shortage: Shortage,
    /// The time limit of the command.
    pub time_limit: Duration,
    /// How long what it left waited for room on a full disk of the host.
    pub waited_for_room: Duration,
}

/// How the run ended.
pub fn classify(ending: Ending, circumstances: Circumstances) -> Outcome {
    let Circumstances { causes, shortage, time_limit, waited_for_room } = circumstances;
    let exit = if let Ending::Exited(exit) = &ending { Some(*exit) } else { None };
    let cut_short = if let Ending::SpoolFailed { cancelled, .. } = &ending { *cancelled } else { None };
    let forced = if causes.time_limit {
        let message = format!("the command was still running after its time limit of {time_limit:?}");
        // Not the reason of the end, but perhaps of what took so long.
        let slow = shortage.sentences().chain(full_disk(waited_for_room));
        Some(Outcome::timed_out([message].into_iter().chain(slow).collect::<Vec<_>>().join("; ")))
    } else if causes.lease {
        Some(Outcome::failed(Reason::LeaseExpired, "the sandbox was killed because its lease was not renewed"))
    } else if let Some(how) = causes.cancelled.or(cut_short) {
        Some(Outcome::cancelled(match how {
            Cancel::Terminate => "ended on request",
            Cancel::Kill => "killed on request",
        }))
    } else if causes.shutdown {
        Some(Outcome::failed(Reason::GuestLost, "the shim of the sandbox was told to end"))
    } else {
        None
    };
    let Some(outcome) = forced else { return unforced(ending, shortage) };
    let lost = if let Ending::SpoolFailed { why, .. } = ending { Some(why) } else { None };
    let sentences: Vec<String> = outcome.message.into_iter().chain(lost).collect();
    Outcome { exit, message: Some(clip(sentences.join("; "))), ..outcome }
}

fn unforced(ending: Ending, shortage: Shortage) -> Outcome {
    let only_memory = Shortage { disk_full: false, pids_refused: 0, ..shortage };
    match ending {
        Ending::NotLaunched(message) => explain(Outcome::failed(Reason::LaunchFailed, clip(message)), only_memory),
        Ending::NotSpawned(failure) if failure.kind == SpawnFailureKind::Other => {
            explain(not_spawned(failure), Shortage { disk_full: false, ..shortage })
        }
        Ending::NotSpawned(failure) => not_spawned(failure),
        Ending::Exited(exit) => explain(Outcome::exited(exit), shortage),
        Ending::Lost(message) => explain(Outcome::failed(Reason::GuestLost, clip(message)), only_memory),
        Ending::LogLimit(bytes) => {
            let message =
                format!("it was killed because it wrote more than {bytes} bytes of output, which is its limit");
            Outcome::failed(Reason::LogLimit, message)
        }
        Ending::RecordLimit(bytes) => {
            let message = format!(
                "it was killed because what is recorded of its connections and requests is more than {bytes} bytes, \
                 which is the limit"
            );
            Outcome::failed(Reason::LogLimit, message)
        }
        Ending::ChangesLimit(why) => {
            let message = format!("the command ended with exit code 0, and its changes are not kept: {why}");
            Outcome { exit: Some(ExitStatus::Code(0)), ..Outcome::failed(Reason::ChangesLimit, clip(message)) }
        }
        Ending::SpoolFailed { why, .. } => Outcome::failed(Reason::SpoolFailed, clip(why)),
    }
}

/// What is said of a wait for room.
fn full_disk(waited: Duration) -> Option<String> {
    let sentence = || format!("for {waited:.1?} of it the disk of its host was full and its output waited");
    (!waited.is_zero()).then(sentence)
}

/// Gives a failure the reason that the kernel knows, if it knows one, and adds what it knows to the message.
fn explain(outcome: Outcome, shortage: Shortage) -> Outcome {
    let (Some(reason), OutcomeKind::Failed) = (shortage.reason(), outcome.kind) else { return outcome };
    let mut sentences: Vec<String> = outcome.message.into_iter().chain(shortage.sentences()).collect();
    if outcome.exit.is_none() {
        // How the loss of the guest showed matters less than what it was lost by.
        sentences.rotate_left(1);
    }
    Outcome { reason: Some(reason), message: Some(clip(sentences.join("; "))), ..outcome }
}

impl Shortage {
    /// What weighs most: what killed, before what is full still, before what was refused at some time.
    fn reason(self) -> Option<Reason> {
        match self {
            Self { oom_kills: 1.., .. } => Some(Reason::OutOfMemory),
            Self { disk_full: true, .. } => Some(Reason::DiskLimit),
            Self { pids_refused: 1.., .. } => Some(Reason::PidsLimit),
            _ => None,
        }
    }

    fn sentences(self) -> impl Iterator<Item = String> {
        let times = |count, one: &str, more: &str| if count == 1 { one.to_owned() } else { format!("{count} {more}") };
        let whose =
            if self.of_host_memory { "the host had no more memory" } else { "the run's memory limit was reached" };
        let killed = times(self.oom_kills, "one of its processes", "of its processes");
        let refused = times(self.pids_refused, "one new process", "new processes");
        let memory = format!("{whose} and the kernel killed {killed}");
        let disk = "its writable file system is full".to_owned();
        let pids = format!("it had as many processes as it may and was refused {refused}");
        [(self.oom_kills > 0, memory), (self.disk_full, disk), (self.pids_refused > 0, pids)]
            .into_iter()
            .filter_map(|(is_so, sentence)| is_so.then_some(sentence))
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
    use super::*;

    fn caused(causes: Causes) -> Circumstances {
        Circumstances { causes, time_limit: Duration::from_secs(60), ..Circumstances::default() }
    }

    fn endings() -> Vec<Ending> {
        vec![
            Ending::NotLaunched("x".into()),
            Ending::NotSpawned(SpawnFailure { kind: SpawnFailureKind::NotFound, message: "x".into() }),
            Ending::Exited(ExitStatus::Code(0)),
            Ending::Exited(ExitStatus::Code(3)),
            Ending::Exited(ExitStatus::Signal(9)),
            Ending::Lost("x".into()),
            Ending::LogLimit(4_096),
            Ending::ChangesLimit("x".into()),
            Ending::spool_failed("x".into()),
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
            (Ending::LogLimit(4_096), 137, Some(Reason::LogLimit)),
            (Ending::ChangesLimit("why".into()), 125, Some(Reason::ChangesLimit)),
            (Ending::spool_failed("why".into()), 125, Some(Reason::SpoolFailed)),
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

    fn short_of(shortage: Shortage) -> Circumstances {
        Circumstances { shortage, ..caused(Causes::default()) }
    }

    #[test]
    fn what_ran_out_explains_a_failure() {
        let (oom, full) =
            (Shortage { oom_kills: 1, ..Shortage::default() }, Shortage { disk_full: true, ..Shortage::default() });
        let pids = Shortage { pids_refused: 3, ..Shortage::default() };
        let all = Shortage { oom_kills: 2, disk_full: true, pids_refused: 1, of_host_memory: false };
        let other = || Ending::NotSpawned(SpawnFailure { kind: SpawnFailureKind::Other, message: "fork".into() });
        let table = [
            (
                Ending::Exited(ExitStatus::Signal(9)),
                oom,
                137,
                Reason::OutOfMemory,
                "signal 9; the run's memory limit was reached and the kernel killed one of its",
            ),
            (Ending::Exited(ExitStatus::Code(2)), oom, 2, Reason::OutOfMemory, "exit code 2; the run's memory limit"),
            (Ending::Lost("gone".into()), oom, 137, Reason::OutOfMemory, "of its processes; gone"),
            (Ending::NotLaunched("no".into()), oom, 137, Reason::OutOfMemory, "of its processes; no"),
            (other(), oom, 137, Reason::OutOfMemory, "of its processes; fork"),
            (
                Ending::Exited(ExitStatus::Code(1)),
                full,
                1,
                Reason::DiskLimit,
                "exit code 1; its writable file system is full",
            ),
            (Ending::Exited(ExitStatus::Code(1)), pids, 1, Reason::PidsLimit, "was refused 3 new processes"),
            (other(), pids, 125, Reason::PidsLimit, "3 new processes; fork"),
            (
                Ending::Exited(ExitStatus::Code(1)),
                all,
                1,
                Reason::OutOfMemory,
                "killed 2 of its processes; its writable file system is full; it had",
            ),
            (
                Ending::Exited(ExitStatus::Code(1)),
                Shortage { of_host_memory: true, ..oom },
                1,
                Reason::OutOfMemory,
                "the host had no more memory",
            ),
        ];
        for (ending, shortage, code, reason, words) in table {
            let outcome = classify(ending.clone(), short_of(shortage));
            assert_eq!((outcome.exit_code(), outcome.reason), (code, Some(reason)), "{ending:?} {shortage:?}");
            assert!(outcome.is_consistent() && outcome.kind == OutcomeKind::Failed, "{outcome:?}");
            assert!(outcome.message.as_ref().is_some_and(|message| message.contains(words)), "{outcome:?}");
        }
    }

    #[test]
    fn what_ran_out_neither_makes_a_failure_nor_hides_another() {
        let all = Shortage { oom_kills: 2, disk_full: true, pids_refused: 1, of_host_memory: true };
        let fine = classify(Ending::Exited(ExitStatus::Code(0)), short_of(all));
        assert_eq!((fine.exit_code(), fine.reason, fine.message), (0, None, None));
        let missing = Ending::NotSpawned(SpawnFailure { kind: SpawnFailureKind::NotFound, message: "x".into() });
        assert_eq!(classify(missing, short_of(all)).reason, Some(Reason::CommandNotFound));
        assert_eq!(classify(Ending::spool_failed("x".into()), short_of(all)).reason, Some(Reason::SpoolFailed));
        let not_memory = Shortage { oom_kills: 0, ..all };
        assert_eq!(classify(Ending::Lost("x".into()), short_of(not_memory)).reason, Some(Reason::GuestLost));
        assert_eq!(classify(Ending::NotLaunched("x".into()), short_of(not_memory)).reason, Some(Reason::LaunchFailed));
        let late = Circumstances { causes: Causes { time_limit: true, ..Causes::default() }, ..short_of(all) };
        let late = classify(Ending::Exited(ExitStatus::Code(0)), late);
        assert_eq!((late.reason, late.exit_code()), (Some(Reason::Timeout), 124));
        assert!(late.message.is_some_and(|message| message.contains("60s; the host")));
    }

    #[test]
    fn what_a_full_disk_did_to_a_run_that_was_ended_is_said() {
        let late = caused(Causes { time_limit: true, ..Causes::default() });
        let told = |ending, circumstances| classify(ending, circumstances).message.unwrap();
        assert!(!told(Ending::Lost("x".into()), late).contains("full"));
        let waited = Circumstances { waited_for_room: Duration::from_millis(1_230), ..late };
        assert!(told(Ending::Lost("x".into()), waited).contains("60s; for 1.2s of it the disk"));
        for how in [Cancel::Terminate, Cancel::Kill] {
            let cancelled = caused(Causes { cancelled: Some(how), ..Causes::default() });
            let unkept = || Ending::spool_failed("no room".into());
            assert!(told(unkept(), cancelled).ends_with("on request; no room"));
            let cut_short = classify(unkept().decided(Some(how)), caused(Causes::default()));
            assert_eq!(cut_short, classify(unkept(), cancelled), "it was asked before it was decided");
            assert_eq!(unkept().decided(Some(how)).decided(None), unkept().decided(Some(how)));
        }
    }

    #[test]
    fn a_full_disk_of_the_host_is_named() {
        let of = |code| match Ending::unkept(&io::Error::from_raw_os_error(code)) {
            Ending::SpoolFailed { why, .. } => why,
            other => panic!("{other:?}"),
        };
        let (full, quota, broken) = (of(28), of(122), of(5));
        assert!(full.contains("no room left") && full.contains("os error 28"), "{full}");
        assert!(quota.contains("no room left"), "{quota}");
        assert!(broken.contains("cannot be kept") && !broken.contains("room"), "{broken}");
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
