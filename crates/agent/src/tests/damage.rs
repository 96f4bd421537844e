//! What an agent finds damaged when it starts: it is set aside with a note of what is wrong, and its run ends with a reason
//! that says so, or is taken from it with the lease.

use std::path::{Path, PathBuf};

use holm_domain::run::Outcome;
use holm_shim::protocol::SourceEvent;

use super::*;
use crate::{journal::ShimRecord, testing::EVENTS_CLAIMED_NAME};

/// What is done to the folder of an attempt.
type Harm = fn(&Path);

/// An attempt that was damaged while no agent was there, and the agent that found it.
struct Found {
    bench: Bench,
    id: RunId,
    agent: Running,
    shim: ShimRecord,
}

/// Runs something that does not end, lets the agent go, does the harm, and starts the next agent. What is `held_back` never
/// arrived at the control plane before; everything else did.
fn found(held_back: Option<Op>, shim_dies: bool, harm: impl Fn(&Path)) -> Found {
    let bench = Bench::new();
    if let Some(op) = held_back {
        bench.control.fault(op, Fault::Hang { is_done: false });
    }
    let events = ["one", "two"].map(|problem| EventKind::ResultRefused { problem: problem.into() });
    let id = bench.control.submit(Script { events: events.into(), ..bench.endless() }.spec());
    let first = bench.start();
    until("the start", || bench.control.run(id).state == RunState::Running);
    match held_back {
        Some(op) => until("what is held back", || bench.control.world().hung.contains(&op)),
        None => until("the events", || bench.control.world().events.get(&id).is_some_and(|events| events.len() == 2)),
    }
    first.stop(Shutdown::Leave);
    let dir = bench.temp.path().join(format!("agent/runs/{id}.1"));
    let shim = ShimRecord::read(&dir).unwrap().unwrap();
    if shim_dies {
        shim.shim.kill_and_wait(PATIENCE).unwrap();
    }
    harm(&dir);
    bench.control.world().faults.clear();
    let agent = bench.restart();
    Found { bench, id, agent, shim }
}

impl Found {
    /// How many events of the run tell that events are lost.
    fn losses(&self) -> usize {
        losses(&self.bench.control, self.id)
    }

    /// The folder of the attempt.
    fn dir(&self) -> PathBuf {
        self.bench.temp.path().join(format!("agent/runs/{}.1", self.id))
    }

    /// The shim claims to have told that many events.
    fn claim_events(&self, count: u64) {
        let (draft, claim) = (self.dir().join("claim"), self.dir().join(EVENTS_CLAIMED_NAME));
        fs::write(&draft, count.to_string()).unwrap();
        fs::rename(draft, &claim).unwrap();
        until("the claim", || !claim.exists());
    }

    fn cancelled(self) -> Self {
        self.bench.control.cancel(self.id, Cancel::Kill);
        self
    }

    /// The run when it has ended, and the note of what was found damaged, where that was set aside.
    fn over(self) -> (Outcome, Option<String>) {
        let run = self.bench.ended(self.id);
        (run.outcome.unwrap(), self.set_aside())
    }

    fn set_aside(self) -> Option<String> {
        self.bench.clean();
        let aside: PathBuf = self.bench.temp.path().join(format!("agent/set-aside/{}.1.0", self.id));
        self.agent.stop(Shutdown::Leave);
        self.shim.shim.kill_and_wait(PATIENCE).unwrap();
        aside.exists().then(|| fs::read_to_string(aside.join("damaged")).unwrap())
    }
}

fn losses(control: &Scripted, id: RunId) -> usize {
    let is_lost = |event: &&EventKind| matches!(event, EventKind::EventRefused { problem } if problem.contains("lost"));
    control.world().events.get(&id).map_or(0, |events| events.values().filter(is_lost).count())
}

fn write(dir: &Path, name: &str, bytes: &[u8]) {
    let path = dir.join(name);
    fs::remove_file(&path).unwrap_or_default();
    fs::write(path, bytes).unwrap();
}

fn cut_in_half(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

/// The only file of the spool.
fn spool(dir: &Path) -> PathBuf {
    let mut files = fs::read_dir(dir.join("spool")).unwrap();
    files.next().unwrap().unwrap().path()
}

#[test]
fn nothing_is_set_aside_where_nothing_is_damaged() {
    let (outcome, aside) = found(None, false, |_| {}).cancelled().over();
    assert_eq!((outcome.kind, aside), (OutcomeKind::Cancelled, None));
}

#[test]
fn a_journal_that_cannot_be_read_is_set_aside_and_its_run_is_left_to_the_lease() {
    let harms: [(Harm, &str); 5] = [
        (|dir| cut_in_half(&dir.join("journal.json")), "journal.json"),
        (|dir| write(dir, "journal.json", b""), "journal.json"),
        (|dir| cut_in_half(&dir.join("shim.json")), "shim.json"),
        (|dir| write(dir, "shim.json", b"{}"), "shim.json"),
        (|dir| write(dir, "shim.json", &[0; 4096]), "shim.json"),
    ];
    for (harm, file) in harms {
        let found = found(None, false, harm);
        let (control, id) = (found.bench.control.clone(), found.id);
        let note = found.set_aside().expect("it was set aside");
        assert!(note.contains(file), "{note}");
        assert_eq!((control.run(id).state, control.world().finishes), (RunState::Running, 0), "its lease expires");
    }
}

#[test]
fn a_last_word_that_cannot_be_read_is_told_as_such() {
    for bytes in [&b"{"[..], b"", &[0; 4096], &[b' '; 1 << 20]] {
        let (outcome, aside) = found(None, true, |dir| write(dir, "exit.json", bytes)).over();
        assert_eq!(outcome.reason, Some(Reason::GuestLost), "{outcome:?}");
        assert!(outcome.message.unwrap().contains("exit.json"));
        assert!(aside.expect("it was set aside").contains("exit.json"));
    }
}

#[test]
fn a_spool_that_cannot_be_read_fails_its_run_and_is_set_aside() {
    let harms: [Harm; 3] = [
        |dir| {
            let path = spool(dir);
            let mut bytes = fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 0x55;
            fs::write(path, bytes).unwrap();
        },
        |dir| {
            let path = spool(dir);
            fs::write(&path, vec![0; fs::metadata(&path).unwrap().len() as usize]).unwrap();
        },
        |dir| {
            let path = spool(dir);
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", path).unwrap();
        },
    ];
    for harm in harms {
        let (outcome, aside) = found(Some(Op::Logs), false, harm).over();
        assert_eq!(outcome.reason, Some(Reason::SpoolFailed), "{outcome:?}");
        assert!(outcome.message.unwrap().contains("the log spool"));
        assert!(aside.expect("it was set aside").contains("the log spool"));
    }
}

/// Nothing is there that could be set aside; that output is missing is told all the same.
#[test]
fn a_spool_that_is_gone_fails_its_run() {
    let harms: [Harm; 3] = [
        |dir| fs::remove_file(spool(dir)).unwrap(),
        |dir| fs::remove_dir_all(dir.join("spool")).unwrap(),
        |dir| cut_in_half(&spool(dir)),
    ];
    for harm in harms {
        let (outcome, _) = found(Some(Op::Logs), false, harm).cancelled().over();
        assert_eq!(outcome.reason, Some(Reason::SpoolFailed), "{outcome:?}");
    }
}

#[test]
fn events_that_cannot_be_read_are_told_as_lost() {
    let harms: [Harm; 4] = [
        |dir| fs::remove_file(dir.join("events.jsonl")).unwrap(),
        |dir| write(dir, "events.jsonl", b""),
        |dir| cut_in_half(&dir.join("events.jsonl")),
        |dir| {
            fs::remove_file(dir.join("events.jsonl")).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", dir.join("events.jsonl")).unwrap();
        },
    ];
    for harm in harms {
        let found = found(Some(Op::Events), false, harm);
        until("the word of it", || found.losses() > 0);
        found.claim_events(3);
        let (control, id) = (found.bench.control.clone(), found.id);
        let (outcome, aside) = found.cancelled().over();
        assert_eq!(outcome.kind, OutcomeKind::Cancelled, "events decide nothing");
        assert!(aside.expect("it was set aside").contains("events.jsonl"));
        assert_eq!(losses(&control, id), 1, "it is told once");
    }
}

#[test]
fn events_that_can_be_read_after_others_were_lost_are_sent() {
    let found = found(Some(Op::Events), false, |dir| fs::remove_file(dir.join("events.jsonl")).unwrap());
    until("the word of it", || found.losses() > 0);
    let told = |seq| EventKind::ResultRefused { problem: format!("{seq}") };
    let line = |seq| serde_json::to_string(&SourceEvent { seq, event: told(seq) }).unwrap() + "\n";
    write(&found.dir(), "events.jsonl", (1..=3).map(line).collect::<String>().as_bytes());
    found.claim_events(3);
    let control = found.bench.control.clone();
    let is_there = || control.world().events[&found.id].values().any(|event| *event == told(3));
    until("the one that can be read", is_there);
    assert_eq!(found.losses(), 1);
    let (outcome, _) = found.cancelled().over();
    assert_eq!(outcome.kind, OutcomeKind::Cancelled);
}

#[test]
fn events_of_which_not_even_word_is_accepted_are_set_aside() {
    let bench = Bench::new();
    bench.control.fault(Op::Events, Fault::Refused);
    let events = vec![EventKind::ResultRefused { problem: "no".into() }];
    let id = bench.control.submit(Script { events, ..bench.script(&["x"]) }.spec());
    let agent = bench.start();
    assert_eq!(bench.ended(id).outcome.unwrap().kind, OutcomeKind::Succeeded, "events decide nothing");
    bench.clean();
    let aside = bench.temp.path().join(format!("agent/set-aside/{id}.1.0"));
    let note = fs::read_to_string(aside.join("damaged")).unwrap();
    assert!(note.contains("not accepted from 1 on: a fault was ordered"), "{note}");
    assert!(aside.join("events.jsonl").exists());
    agent.stop(Shutdown::Leave);
}
