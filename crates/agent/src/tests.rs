//! The agent as a whole, with real processes as shims, a runtime whose sandboxes are files, and the real lease machine.
//!
//! A crash is simulated by throwing the whole asynchronous runtime away at an exact point: nothing of the agent's code runs
//! after it but destructors, which touch no file, and a new agent begins in the same folder.

mod damage;
mod pressure;
mod secrets;
mod traces;
mod usage;

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use holm_domain::{
    InstanceId, RunId,
    host::Capacity,
    pressure::PressureLimits,
    run::{Cancel, EventKind, OutcomeKind, Reason, Run, RunState},
};
use holm_trace::Tracer;
use tokio::sync::oneshot;

use crate::{
    Agent, AgentError, Config, FolderError, Shutdown,
    control::scripted::{Fault, Op, Scripted},
    testing::{self, Death, FileRuntime, Point, Script, shim_program},
};

const PATIENCE: Duration = Duration::from_secs(60);

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "{what} did not happen within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(3));
    }
}

struct Bench {
    temp: tempfile::TempDir,
    control: Scripted,
    runtime: Arc<FileRuntime>,
    capacity: Capacity,
    tracer: Tracer,
}

struct Running {
    rt: tokio::runtime::Runtime,
    task: tokio::task::JoinHandle<Result<(), AgentError>>,
    stop: oneshot::Sender<Shutdown>,
}

impl Bench {
    fn new() -> Self {
        Self::with_ttl(Duration::from_secs(20))
    }

    fn with_ttl(ttl: Duration) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let runtime = FileRuntime::new(&temp.path().join("host"));
        let capacity = Capacity { runs: 8, cpus_milli: 8_000, memory_bytes: 8 << 30 };
        Self { control: Scripted::new(ttl), runtime, capacity, temp, tracer: Tracer::default() }
    }

    fn config(&self) -> Config {
        Config {
            shim: shim_program(),
            tracer: self.tracer.clone(),
            // No pressure is known, however busy this machine is.
            proc_dir: self.temp.path().join("proc"),
            pressure_limits: PressureLimits { io_full_percent: Some(80), ..PressureLimits::default() },
            reap_every: Duration::from_millis(100),
            renew_retry: Duration::from_millis(50),
            quit_within: Duration::from_secs(2),
            silent_within: Duration::from_secs(5),
            ..Config::new(self.temp.path().join("agent"), "bench", self.capacity)
        }
    }

    fn start(&self) -> Running {
        let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (stop, stopped) = oneshot::channel();
        let agent = Agent::new(self.config(), self.control.clone(), self.runtime.registry());
        let task = rt.spawn(agent.run(async { stopped.await.unwrap_or(Shutdown::Leave) }));
        Running { rt, task, stop }
    }

    fn ended(&self, id: RunId) -> Run {
        until("the end of the run", || self.control.run(id).state == RunState::Ended);
        self.control.run(id)
    }

    /// Nothing is left on the host or in the agent's folder.
    fn is_clean(&self) -> bool {
        let is_empty = |path: &str| fs::read_dir(self.temp.path().join(path)).unwrap().next().is_none();
        is_empty("host") && is_empty("agent/runs")
    }

    fn clean(&self) {
        until("the removal of everything", || self.is_clean());
    }

    /// How many times a command was started under this lease.
    fn starts(&self, id: RunId, fence: u64) -> usize {
        fs::read(self.temp.path().join(format!("{id}.{fence}.started"))).map_or(0, |bytes| bytes.len())
    }

    fn script(&self, lines: &[&str]) -> Script {
        Script { lines: lines.iter().map(|line| format!("{line}\n")).collect(), ..Script::default() }
    }

    fn endless(&self) -> Script {
        Script { is_endless: true, ..self.script(&["begun"]) }
    }
}

impl Running {
    fn stop(self, how: Shutdown) {
        self.stop.send(how).unwrap();
        self.rt.block_on(async { tokio::time::timeout(PATIENCE, self.task).await }).unwrap().unwrap().unwrap();
    }

    /// As `kill -9` would: nothing of the agent goes on.
    fn kill(self) {
        drop(self.task);
        self.rt.shutdown_background();
    }
}

#[test]
fn a_run_from_claim_to_nothing_being_left() {
    let bench = Bench::new();
    let event = EventKind::EgressRefused {
        host: "example.org".into(),
        port: 443,
        protocol: "tcp".into(),
        count: 1,
        reason: None,
    };
    let script =
        Script { events: vec![event.clone()], changes: Some("tar".into()), code: 0, ..bench.script(&["a", "b"]) };
    let id = bench.control.submit(script.spec());
    let agent = bench.start();
    let run = bench.ended(id);
    assert_eq!(run.outcome.as_ref().map(|outcome| outcome.kind), Some(OutcomeKind::Succeeded), "{run:?}");
    assert_eq!(bench.control.text(id), "a\nb\n");
    let sandbox = run.sandbox.unwrap();
    assert_eq!((sandbox.runtime.as_str(), sandbox.image_digest.as_deref()), ("test", Some("sha256:0")));
    assert_eq!(sandbox.unenforced, ["nothing is", "landlock: not here"]);
    assert!(run.started_at.is_some());
    assert_eq!(bench.control.world().events[&id].values().cloned().collect::<Vec<_>>(), [event]);
    assert_eq!(bench.control.world().changes[&id], b"tar");
    bench.clean();
    assert_eq!(bench.starts(id, 1), 1);
    agent.stop(Shutdown::Leave);
}

#[test]
fn events_that_could_not_be_written_are_told_of_and_are_no_damage() {
    let bench = Bench::new();
    let told = EventKind::EgressRefused { host: "a".into(), port: 1, protocol: "tcp".into(), count: 1, reason: None };
    let script = Script { events: vec![told.clone()], events_unwritten: 2, ..bench.script(&["x"]) };
    let id = bench.control.submit(script.spec());
    let agent = bench.start();
    assert_eq!(bench.ended(id).outcome.unwrap().kind, OutcomeKind::Succeeded, "events decide nothing");
    let stored: Vec<EventKind> = bench.control.world().events[&id].values().cloned().collect();
    let [first, EventKind::EventRefused { problem }] = &stored[..] else { panic!("{stored:?}") };
    assert_eq!((first, problem.contains("2 events are lost")), (&told, true), "{problem}");
    bench.clean();
    let aside = fs::read_dir(bench.temp.path().join("agent/set-aside")).unwrap();
    assert_eq!(aside.count(), 0, "nothing is damaged");
    agent.stop(Shutdown::Leave);
}

#[test]
fn a_bad_event_does_not_take_the_later_ones_along() {
    let bench = Bench::new();
    let told = |host: &str| EventKind::EgressRefused {
        host: host.into(),
        port: 1,
        protocol: "tcp".into(),
        count: 1,
        reason: None,
    };
    let events = vec![told("a"), EventKind::Requeued, told("b")];
    let id = bench.control.submit(Script { events, ..bench.script(&["x"]) }.spec());
    let agent = bench.start();
    assert_eq!(bench.ended(id).outcome.unwrap().kind, OutcomeKind::Succeeded);
    let stored: Vec<EventKind> = bench.control.world().events[&id].values().cloned().collect();
    assert_eq!((stored.len(), &stored[0], &stored[2]), (3, &told("a"), &told("b")));
    assert!(matches!(stored[1], EventKind::EventRefused { .. }), "{stored:?}");
    bench.clean();
    agent.stop(Shutdown::Leave);
}

#[test]
fn an_event_that_the_control_plane_refuses_does_not_take_others_along() {
    let bench = Bench::new();
    let told = |number: u16| EventKind::EgressRefused {
        host: "example.org".into(),
        port: number,
        protocol: "tcp".into(),
        count: 1,
        reason: None,
    };
    let events: Vec<EventKind> = (0..300).map(told).collect();
    bench.control.world().unwelcome = Some(told(41));
    let id = bench.control.submit(Script { events: events.clone(), ..bench.script(&["x"]) }.spec());
    let agent = bench.start();
    assert_eq!(bench.ended(id).outcome.unwrap().kind, OutcomeKind::Succeeded);
    let stored: Vec<EventKind> = bench.control.world().events[&id].values().cloned().collect();
    assert_eq!(stored.len(), events.len());
    for (number, (stored, event)) in stored.into_iter().zip(events).enumerate() {
        match stored {
            EventKind::EventRefused { problem } if number == 41 => assert!(problem.contains("it is not welcome")),
            stored => assert_eq!((number != 41, stored), (true, event)),
        }
    }
    bench.clean();
    agent.stop(Shutdown::Leave);
}

#[test]
fn places_are_given_back_after_every_kind_of_end() {
    let bench = Bench { capacity: Capacity { runs: 1, cpus_milli: 1, memory_bytes: 1 << 30 }, ..Bench::new() };
    let good = bench.script(&["x"]);
    let scripts = [
        Script { code: 3, ..good.clone() },
        Script { prepare: Some(testing::Fault::Panic), ..good.clone() },
        Script { dies: Some(Death::Running), ..good.clone() },
        good,
    ];
    let ids = scripts.map(|script| bench.control.submit(script.spec()));
    let agent = bench.start();
    let reasons = ids.map(|id| bench.ended(id).outcome.unwrap().reason);
    let (command, launch, lost) = (Reason::CommandFailed, Reason::HostFailed, Reason::GuestLost);
    assert_eq!(reasons, [Some(command), Some(launch), Some(lost), None]);
    bench.clean();
    agent.stop(Shutdown::Leave);
}

#[test]
fn a_sandbox_that_cannot_be_made_ends_the_run_with_the_reason_and_leaves_nothing() {
    let bench = Bench::new();
    let cases = [
        (testing::Fault::Image, Reason::ImageFailed, "image: no such image"),
        (testing::Fault::HostPath, Reason::HostPathRefused, "/x: no"),
        (testing::Fault::Limits, Reason::LimitsNotEnforceable, "this host cannot enforce: memory"),
    ];
    let submit = |fault| bench.control.submit(Script { prepare: Some(fault), ..bench.script(&[]) }.spec());
    let ids = cases.map(|(fault, reason, message)| (submit(fault), reason, message));
    let mut spec = bench.script(&[]).spec();
    spec.runtime = Some("vm".to_owned());
    let unknown = bench.control.submit(spec);
    let agent = bench.start();
    for (id, reason, message) in ids {
        let outcome = bench.ended(id).outcome.unwrap();
        assert_eq!((outcome.reason, outcome.message.as_deref()), (Some(reason), Some(message)));
        assert_eq!(bench.starts(id, 1), 0);
    }
    let outcome = bench.ended(unknown).outcome.unwrap();
    assert_eq!(outcome.reason, Some(Reason::LaunchFailed));
    assert!(outcome.message.unwrap().contains("vm"));
    bench.clean();
    agent.stop(Shutdown::Leave);
}

#[test]
fn a_shim_that_dies_is_told_by_how_far_it_was() {
    let bench = Bench::new();
    let cases = [
        (Death::BeforeOrders, OutcomeKind::Failed, Some(Reason::HostFailed), ""),
        (Death::BeforeStart, OutcomeKind::Failed, Some(Reason::HostFailed), ""),
        (Death::Running, OutcomeKind::Failed, Some(Reason::GuestLost), "x\n"),
        (Death::AfterExitFile, OutcomeKind::Succeeded, None, "x\n"),
    ];
    let submit = |death| bench.control.submit(Script { dies: Some(death), ..bench.script(&["x"]) }.spec());
    let ids = cases.map(|case| (submit(case.0), case));
    let agent = bench.start();
    for (id, (death, kind, reason, text)) in ids {
        let outcome = bench.ended(id).outcome.unwrap();
        assert_eq!((outcome.kind, outcome.reason), (kind, reason), "{death:?}");
        assert_eq!(bench.control.text(id), text, "{death:?}: what it wrote is kept");
    }
    bench.clean();
    agent.stop(Shutdown::Leave);
}

#[test]
fn a_shim_that_answers_nothing_is_killed_while_its_lease_is_renewed() {
    let bench = Bench::with_ttl(Duration::from_secs(3));
    let stands_still = Script { stands_still: true, ..bench.endless() };
    let hangs_up = Script { hangs_up: true, ..bench.endless() };
    let ids = [stands_still, hangs_up].map(|script| bench.control.submit(script.spec()));
    let agent = bench.start();
    for id in ids {
        let outcome = bench.ended(id).outcome.unwrap();
        assert_eq!(outcome.reason, Some(Reason::GuestLost), "{outcome:?}");
        assert_eq!((bench.starts(id, 1), bench.starts(id, 2)), (1, 0), "the lease was held until nothing of it lived");
    }
    bench.clean();
    agent.stop(Shutdown::Leave);
}

#[test]
fn lost_answers_and_outages_neither_lose_nor_double_anything() {
    let bench = Bench::new();
    let event = EventKind::ResultRefused { problem: "no".into() };
    let script = Script { events: vec![event], changes: Some("t".into()), ..bench.script(&["a", "b", "c"]) };
    for op in [Op::Renew, Op::Start, Op::Logs, Op::Events, Op::Changes, Op::Ended, Op::Finish] {
        bench.control.fault(op, Fault::AnswerLost(2));
    }
    let first = bench.control.submit(script.spec());
    let agent = bench.start();
    assert_eq!(bench.ended(first).outcome.unwrap().kind, OutcomeKind::Succeeded);
    for op in [Op::Renew, Op::Start, Op::Logs, Op::Events, Op::Changes, Op::Ended, Op::Finish] {
        bench.control.fault(op, Fault::NotDone(2));
    }
    let second = bench.control.submit(script.spec());
    assert_eq!(bench.ended(second).outcome.unwrap().kind, OutcomeKind::Succeeded);
    for id in [first, second] {
        assert_eq!(bench.control.text(id), "a\nb\nc\n");
        assert_eq!(bench.control.world().events[&id].len(), 1);
    }
    assert_eq!(bench.control.world().finishes, 2);
    bench.clean();
    agent.stop(Shutdown::Leave);
}

#[test]
fn output_that_is_refused_for_good_fails_the_run_and_ends_its_command() {
    let bench = Bench::new();
    bench.control.fault(Op::Logs, Fault::Refused);
    let id = bench.control.submit(bench.endless().spec());
    let agent = bench.start();
    let outcome = bench.ended(id).outcome.unwrap();
    assert_eq!(outcome.reason, Some(Reason::SpoolFailed), "{outcome:?}");
    bench.clean();
    agent.stop(Shutdown::Leave);
}

#[test]
fn an_end_that_is_not_accepted_becomes_a_failure_and_the_run_does_not_hang() {
    let bench = Bench::new();
    let id =
        bench.control.submit(Script { result: Some("refused by this server".into()), ..bench.script(&["x"]) }.spec());
    let agent = bench.start();
    let outcome = bench.ended(id).outcome.unwrap();
    assert_eq!((outcome.kind, outcome.reason), (OutcomeKind::Failed, Some(Reason::GuestLost)));
    assert!(outcome.message.unwrap().contains("too long"));
    bench.clean();
    agent.stop(Shutdown::Leave);
}

#[test]
fn a_shim_that_died_while_no_agent_was_there_is_told_though_its_spool_is_gone() {
    let bench = Bench::new();
    let id = bench.control.submit(bench.endless().spec());
    let first = bench.start();
    until("the output", || bench.control.text(id) == "begun\n");
    let dir = bench.temp.path().join(format!("agent/runs/{id}.1"));
    until("the deletion of what was acknowledged", || fs::read_dir(dir.join("spool")).unwrap().next().is_none());
    first.stop(Shutdown::Leave);
    crate::journal::ShimRecord::read(&dir).unwrap().unwrap().shim.kill_and_wait(PATIENCE).unwrap();
    let second = bench.restart();
    let outcome = bench.ended(id).outcome.unwrap();
    assert_eq!(outcome.reason, Some(Reason::GuestLost), "{outcome:?}");
    assert_eq!((bench.control.text(id).as_str(), bench.control.world().finishes), ("begun\n", 1));
    bench.clean();
    second.stop(Shutdown::Leave);
}

#[test]
fn no_end_is_told_while_the_sandbox_of_a_dead_shim_may_live() {
    let bench = Bench::new();
    *bench.runtime.destroy_failures.lock().unwrap() = 3;
    let id = bench.control.submit(Script { dies: Some(Death::Running), ..bench.endless() }.spec());
    let agent = bench.start();
    let outcome = bench.ended(id).outcome.unwrap();
    assert_eq!(*bench.runtime.destroy_failures.lock().unwrap(), 0, "told before it was removed");
    assert_eq!(outcome.reason, Some(Reason::GuestLost));
    bench.clean();
    agent.stop(Shutdown::Leave);
}

#[test]
fn a_last_word_is_not_told_either_while_the_sandbox_may_live() {
    let bench = Bench::new();
    *bench.runtime.destroy_failures.lock().unwrap() = 3;
    let script = Script { dies: Some(Death::AfterExitFile), ..bench.script(&["out\n"]) };
    let id = bench.control.submit(script.spec());
    let agent = bench.start();
    let outcome = bench.ended(id).outcome.unwrap();
    assert_eq!(*bench.runtime.destroy_failures.lock().unwrap(), 0, "told before it was removed");
    assert_eq!(outcome.exit_code(), 0, "{outcome:?}");
    bench.clean();
    agent.stop(Shutdown::Leave);
}

#[test]
fn what_cannot_be_removed_before_the_lease_is_lost_is_never_told() {
    let bench = Bench::new();
    *bench.runtime.destroy_failures.lock().unwrap() = u32::MAX;
    let id = bench.control.submit(Script { dies: Some(Death::Running), ..bench.endless() }.spec());
    let agent = bench.start();
    until("the first failure", || *bench.runtime.destroy_failures.lock().unwrap() < u32::MAX);
    assert_eq!(bench.control.world().finishes, 0);
    bench.control.expire(id);
    until("the second attempt", || bench.starts(id, 2) == 1);
    assert_eq!(bench.control.world().finishes, 0, "the first attempt tells nothing any more");
    *bench.runtime.destroy_failures.lock().unwrap() = 0;
    let run = bench.ended(id);
    assert_eq!((run.fence, run.outcome.unwrap().reason), (2, Some(Reason::GuestLost)));
    bench.clean();
    agent.stop(Shutdown::Leave);
}

#[test]
fn an_answer_that_grants_and_is_lost_costs_nothing() {
    let bench = Bench::new();
    bench.control.world().grants_lost = 2;
    let id = bench.control.submit(bench.script(&["a"]).spec());
    let agent = bench.start();
    let run = bench.ended(id);
    assert_eq!((run.fence, run.attempt, bench.starts(id, 1)), (1, 1, 1), "under the first lease");
    assert_eq!((bench.control.text(id).as_str(), bench.control.world().grants_lost), ("a\n", 0));
    bench.clean();
    agent.stop(Shutdown::Leave);
}

#[test]
fn a_grant_at_the_end_of_a_long_wait_is_as_good_as_any() {
    let bench = Bench::with_ttl(Duration::from_millis(1_500));
    let agent = bench.start();
    until("its registration", || !bench.control.world().agents.is_empty());
    // Longer than a lease: what counts from before the poll would be over.
    std::thread::sleep(Duration::from_secs(2));
    let id = bench.control.submit(bench.script(&["a"]).spec());
    let run = bench.ended(id);
    assert_eq!((run.fence, run.outcome.unwrap().kind), (1, OutcomeKind::Succeeded));
    bench.clean();
    agent.stop(Shutdown::Leave);
}

#[test]
fn an_agent_that_is_not_known_any_more_registers_again() {
    let bench = Bench::new();
    let agent = bench.start();
    until("its registration", || bench.control.world().agents.len() == 1);
    bench.control.world().is_forgetful = true;
    until("the second registration", || bench.control.world().agents.len() > 1);
    let id = bench.control.submit(bench.script(&["a"]).spec());
    assert_eq!(bench.ended(id).outcome.unwrap().kind, OutcomeKind::Succeeded);
    bench.clean();
    agent.stop(Shutdown::Leave);
}

#[test]
fn cancelled_while_it_runs() {
    let bench = Bench::new();
    let polite = bench.control.submit(bench.endless().spec());
    let stubborn = bench.control.submit(Script { is_stubborn: true, ..bench.endless() }.spec());
    let agent = bench.start();
    for id in [polite, stubborn] {
        until("the start", || bench.control.run(id).state == RunState::Running);
        bench.control.cancel(id, Cancel::Terminate);
    }
    assert_eq!(bench.ended(polite).outcome.unwrap().kind, OutcomeKind::Cancelled);
    assert_eq!(bench.control.run(stubborn).state, RunState::Running);
    bench.control.cancel(stubborn, Cancel::Kill);
    assert_eq!(bench.ended(stubborn).outcome.unwrap().kind, OutcomeKind::Cancelled);
    bench.clean();
    agent.stop(Shutdown::Leave);
}

impl Bench {
    /// A run whose preparation goes on until it is told to stop.
    fn preparing(&self) -> RunId {
        let id = self.control.submit(Script { prepare: Some(testing::Fault::Endless), ..Script::default() }.spec());
        self.is_preparing(id, 1)
    }

    fn is_preparing(&self, id: RunId, fence: u64) -> RunId {
        until("the preparation", || self.runtime.host.join(format!("{id}.{fence}/preparing")).exists());
        id
    }
}

#[test]
fn a_preparation_stops_when_its_run_is_cancelled() {
    let bench = Bench::new();
    let agent = bench.start();
    let id = bench.preparing();
    bench.control.cancel(id, Cancel::Terminate);
    let outcome = bench.ended(id).outcome.unwrap();
    assert_eq!((outcome.kind, outcome.reason), (OutcomeKind::Cancelled, Some(Reason::Cancelled)));
    bench.clean();
    agent.stop(Shutdown::Leave);
}

#[test]
fn a_preparation_stops_when_its_lease_is_lost() {
    let bench = Bench::with_ttl(Duration::from_millis(1_500));
    let agent = bench.start();
    let id = bench.preparing();
    bench.control.fault(Op::Renew, Fault::NotDone(u32::MAX));
    bench.clean();
    assert_eq!(bench.control.world().finishes, 0, "nothing was reported under the lost lease");
    assert_eq!(bench.control.run(id).state, RunState::Claimed);
    agent.stop(Shutdown::Leave);
}

#[test]
fn a_preparation_does_not_hold_up_an_agent_that_leaves() {
    let bench = Bench::new();
    let agent = bench.start();
    let id = bench.preparing();
    let begun = Instant::now();
    agent.stop(Shutdown::Leave);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    fs::remove_file(bench.runtime.host.join(format!("{id}.1/preparing"))).unwrap();
    let next = bench.start();
    // Its successor begins again under the same lease.
    bench.is_preparing(id, 1);
    bench.control.cancel(id, Cancel::Kill);
    bench.ended(id);
    bench.clean();
    next.stop(Shutdown::Leave);
}

#[test]
fn runtimes_are_tidied_on_start_and_at_intervals() {
    let bench = Bench::new();
    let agent = bench.start();
    let tidied = || bench.runtime.tidied.load(std::sync::atomic::Ordering::Relaxed);
    until("the first pass", || tidied() >= 1);
    until("passes at intervals", || tidied() >= 3);
    agent.stop(Shutdown::Leave);
}

#[test]
fn a_lease_that_was_taken_away_stops_the_sandbox_and_the_next_one_is_served() {
    let bench = Bench::new();
    let id = bench.control.submit(bench.endless().spec());
    let agent = bench.start();
    until("the output", || bench.control.text(id) == "begun\n");
    bench.control.expire(id);
    until("the second start", || bench.starts(id, 2) == 1 && bench.control.run(id).state == RunState::Running);
    let run = bench.control.run(id);
    assert_eq!((run.fence, bench.control.world().finishes), (2, 0), "nothing was reported under the lost lease");
    bench.control.cancel(id, Cancel::Kill);
    bench.ended(id);
    assert_eq!(bench.control.text(id), "begun\nbegun\n", "the sequence goes on");
    bench.clean();
    agent.stop(Shutdown::Leave);
}

#[test]
fn a_lease_that_cannot_be_renewed_ends_the_sandbox_before_it_expires() {
    let bench = Bench::with_ttl(Duration::from_millis(1_500));
    let id = bench.control.submit(bench.endless().spec());
    let agent = bench.start();
    until("the start", || bench.control.run(id).state == RunState::Running);
    let granted = bench.control.run(id).lease.unwrap().expires_at;
    until("a renewal", || bench.control.run(id).lease.unwrap().expires_at > granted);
    bench.control.fault(Op::Renew, Fault::NotDone(u32::MAX));
    bench.clean();
    let run = bench.control.run(id);
    assert_eq!((run.state, bench.control.world().finishes), (RunState::Running, 0), "the server decides what follows");
    agent.stop(Shutdown::Leave);
}

#[test]
fn an_agent_that_leaves_is_succeeded_without_a_line_lost_or_doubled() {
    let bench = Bench::new();
    let id = bench.control.submit(bench.endless().spec());
    let first = bench.start();
    until("the output", || bench.control.text(id) == "begun\n");
    first.stop(Shutdown::Leave);
    assert!(!bench.is_clean(), "the sandbox is there");
    let second = bench.start();
    until("its registration", || bench.control.world().agents.len() == 2);
    assert!(bench.control.world().agents.windows(2).all(|pair| pair[0] == pair[1]), "it is the same agent");
    bench.control.cancel(id, Cancel::Terminate);
    assert_eq!(bench.ended(id).outcome.unwrap().kind, OutcomeKind::Cancelled);
    assert_eq!((bench.control.text(id).as_str(), bench.starts(id, 1)), ("begun\n", 1));
    bench.clean();
    second.stop(Shutdown::Leave);
}

#[test]
fn an_agent_that_drains_ends_its_runs_and_kills_the_stubborn() {
    let bench = Bench::new();
    let polite = bench.control.submit(bench.endless().spec());
    let stubborn = bench.control.submit(Script { is_stubborn: true, ..bench.endless() }.spec());
    let agent = bench.start();
    for id in [polite, stubborn] {
        until("the start", || bench.control.run(id).state == RunState::Running);
    }
    agent.stop(Shutdown::Drain { within: Duration::from_millis(300) });
    for id in [polite, stubborn] {
        assert_eq!(bench.control.run(id).outcome.unwrap().kind, OutcomeKind::Cancelled);
    }
    assert!(bench.is_clean());
}

#[test]
fn killed_at_any_point_of_the_runtimes_work_the_run_ends_once_and_nothing_is_left() {
    for point in [Point::Plan, Point::BeforePrepare, Point::AfterPrepare, Point::BeforeDestroy, Point::AfterDestroy] {
        let bench = Bench::with_ttl(Duration::from_secs(3));
        bench.runtime.crash_at(point);
        let id = bench.control.submit(bench.script(&["a", "b"]).spec());
        let first = bench.start();
        until("the crash", || bench.runtime.is_reached());
        first.kill();
        bench.runtime.crash_is_over();
        if point == Point::Plan {
            // Nothing is on disk yet: the lease has to expire before the run is made again.
            until("the first agent's end", || bench.locked().is_none());
            bench.control.expire(id);
        }
        let second = bench.restart();
        let run = bench.ended(id);
        assert_eq!(run.outcome.unwrap().kind, OutcomeKind::Succeeded, "{point:?}");
        assert_eq!(bench.control.text(id), "a\nb\n", "{point:?}");
        assert_eq!((bench.starts(id, run.fence), bench.control.world().finishes), (1, 1), "{point:?}");
        bench.clean();
        second.stop(Shutdown::Leave);
    }
}

#[test]
fn killed_at_any_point_of_the_report_no_line_is_lost_or_doubled() {
    for op in [Op::Start, Op::Logs, Op::Events, Op::Ended, Op::Changes, Op::Finish] {
        for is_done in [false, true] {
            let bench = Bench::new();
            let event = EventKind::ResultRefused { problem: "no".into() };
            let script = Script { events: vec![event], changes: Some("t".into()), ..bench.script(&["a", "b"]) };
            bench.control.fault(op, Fault::Hang { is_done });
            let id = bench.control.submit(script.spec());
            let first = bench.start();
            until("the crash", || bench.control.world().hung.contains(&op));
            first.kill();
            bench.control.world().faults.clear();
            let second = bench.restart();
            let run = bench.ended(id);
            assert_eq!(run.outcome.unwrap().kind, OutcomeKind::Succeeded, "{op:?} {is_done}");
            assert_eq!((run.fence, bench.starts(id, 1)), (1, 1), "{op:?} {is_done}");
            assert_eq!(bench.control.text(id), "a\nb\n", "{op:?} {is_done}");
            assert_eq!(bench.control.world().events[&id].len(), 1, "{op:?} {is_done}");
            assert_eq!(bench.control.world().changes[&id], b"t", "{op:?} {is_done}");
            assert_eq!(bench.control.world().finishes, 1, "{op:?} {is_done}");
            bench.clean();
            second.stop(Shutdown::Leave);
        }
    }
}

#[test]
fn a_run_whose_agent_dies_while_it_uploads_is_not_executed_again() {
    let bench = Bench::new();
    bench.control.fault(Op::Changes, Fault::Hang { is_done: false });
    let id = bench.control.submit(Script { changes: Some("t".into()), ..bench.script(&["a"]) }.spec());
    let first = bench.start();
    until("the upload", || bench.control.world().hung.contains(&Op::Changes));
    assert_eq!(bench.control.run(id).state, RunState::Finishing);
    first.kill();
    bench.control.expire(id);
    let outcome = bench.ended(id).outcome.unwrap();
    assert_eq!((outcome.kind, outcome.reason), (OutcomeKind::Lost, Some(Reason::ReportLost)), "{outcome:?}");
    bench.control.world().faults.clear();
    let second = bench.restart();
    bench.clean();
    assert_eq!((bench.starts(id, 1), bench.control.run(id).fence), (1, 1));
    second.stop(Shutdown::Leave);
}

#[test]
fn a_corrupt_journal_is_set_aside_and_its_sandbox_found_by_the_inventory() {
    let bench = Bench::new();
    let id = bench.control.submit(bench.endless().spec());
    let first = bench.start();
    until("the start", || bench.control.run(id).state == RunState::Running);
    first.stop(Shutdown::Leave);
    let journal = bench.temp.path().join(format!("agent/runs/{id}.1/journal.json"));
    fs::write(&journal, "{").unwrap();
    let second = bench.restart();
    bench.clean();
    let aside = bench.temp.path().join(format!("agent/set-aside/{id}.1.0/journal.json"));
    assert_eq!(fs::read_to_string(aside).unwrap(), "{", "people can look at it");
    assert_eq!(bench.control.run(id).state, RunState::Running, "its lease expires");
    second.stop(Shutdown::Leave);
}

#[test]
fn what_cannot_be_removed_at_first_is_removed_later_and_strangers_too() {
    let bench = Bench::new();
    *bench.runtime.destroy_failures.lock().unwrap() = 3;
    fs::create_dir(bench.runtime.host.join(format!("{}.7", RunId::from_uuid(uuid::Uuid::from_u128(99))))).unwrap();
    let id = bench.control.submit(bench.script(&["a"]).spec());
    let agent = bench.start();
    assert_eq!(bench.ended(id).outcome.unwrap().kind, OutcomeKind::Succeeded);
    bench.clean();
    assert_eq!(*bench.runtime.destroy_failures.lock().unwrap(), 0);
    agent.stop(Shutdown::Leave);
}

#[test]
fn an_agent_that_is_superseded_ends_and_its_sandbox_dies_by_its_deadline() {
    let bench = Bench::with_ttl(Duration::from_millis(1_500));
    let id = bench.control.submit(bench.endless().spec());
    let agent = bench.start();
    until("the output", || bench.control.text(id) == "begun\n");
    // A copy of the folder is at work elsewhere.
    let copy = InstanceId::from_uuid(uuid::Uuid::from_u128(9));
    bench.control.world().instances.push(copy);
    let ended = agent.rt.block_on(async { tokio::time::timeout(PATIENCE, agent.task).await }).unwrap().unwrap();
    let error = ended.unwrap_err();
    assert!(matches!(error, AgentError::Superseded(_)), "{error}");
    assert!(error.to_string().contains("remove `id` from the copy"), "{error}");
    let another = bench.control.submit(bench.script(&["x"]).spec());
    let exit = bench.temp.path().join(format!("agent/runs/{id}.1/exit.json"));
    until("the end of the sandbox", || exit.exists());
    let outcome = holm_shim::client::read_exit(exit.parent().unwrap()).unwrap().unwrap().outcome.unwrap();
    assert_eq!(outcome.reason, Some(Reason::LeaseExpired), "{outcome:?}");
    assert_eq!(
        (bench.control.run(another).fence, bench.control.world().finishes),
        (0, 0),
        "it claims nothing any more"
    );
    // The next one in the folder works again, and cleans up.
    bench.control.expire(id);
    let next = bench.restart();
    assert_eq!(bench.ended(another).outcome.unwrap().kind, OutcomeKind::Succeeded);
    until("the second life", || bench.control.run(id).state == RunState::Running);
    bench.control.cancel(id, Cancel::Kill);
    bench.ended(id);
    bench.clean();
    next.stop(Shutdown::Leave);
}

#[test]
fn a_second_agent_in_the_same_folder_is_refused() {
    let bench = Bench::new();
    let first = bench.start();
    until("its registration", || !bench.control.world().agents.is_empty());
    let second = bench.start();
    let error = second.rt.block_on(second.task).unwrap().unwrap_err();
    assert!(matches!(error, AgentError::Folder(FolderError::Locked(_))), "{error}");
    assert!(error.to_string().contains("another agent is at work"));
    first.stop(Shutdown::Leave);
}

impl Bench {
    fn locked(&self) -> Option<FolderError> {
        crate::folder::Folder::open(&self.temp.path().join("agent")).err()
    }

    /// Starts a new agent once what is left of a killed one has let the folder go.
    fn restart(&self) -> Running {
        until("the end of the killed agent", || self.locked().is_none());
        self.start()
    }
}
