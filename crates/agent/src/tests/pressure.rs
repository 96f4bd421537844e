//! An agent whose host is under pressure takes nothing new and goes on with what it has.

use holm_domain::host::PRESSURE_LABEL;

use super::*;

impl Bench {
    /// What the kernel tells: all tasks stall on I/O for so many percent of the time.
    fn io_stalls(&self, percent: u32) {
        let dir = self.temp.path().join("proc/pressure");
        fs::create_dir_all(&dir).unwrap();
        let rest = "avg60=0.00 avg300=0.00 total=0";
        let text = format!("some avg10=100.00 {rest}\nfull avg10={percent}.00 {rest}\n");
        fs::write(dir.join("new"), text).unwrap();
        fs::rename(dir.join("new"), dir.join("io")).unwrap();
    }

    fn told_of_pressure(&self) -> Option<String> {
        self.control.world().labels.get(PRESSURE_LABEL).cloned()
    }
}

#[test]
fn under_pressure_nothing_new_is_taken_and_what_runs_goes_on() {
    let ttl = Duration::from_secs(2);
    let bench = Bench::with_ttl(ttl);
    bench.io_stalls(79);
    let running = bench.control.submit(bench.endless().spec());
    let agent = bench.start();
    until("the start", || bench.control.run(running).state == RunState::Running);
    bench.io_stalls(80);
    until("the word of the pressure", || bench.told_of_pressure().is_some_and(|why| why.contains("80.00 %")));
    let waiting = bench.control.submit(bench.script(&["x"]).spec());
    for percent in [80, 40] {
        bench.io_stalls(percent);
        std::thread::sleep(2 * ttl);
        assert_eq!(bench.control.run(waiting).state, RunState::Queued, "{percent} %");
        let run = bench.control.run(running);
        assert_eq!((run.state, run.fence), (RunState::Running, 1), "its lease is renewed");
    }
    bench.io_stalls(39);
    assert_eq!(bench.ended(waiting).outcome.unwrap().kind, OutcomeKind::Succeeded);
    assert_eq!(bench.told_of_pressure(), None);
    bench.control.cancel(running, Cancel::Kill);
    assert_eq!(bench.ended(running).outcome.unwrap().kind, OutcomeKind::Cancelled);
    bench.clean();
    agent.stop(Shutdown::Leave);
}

#[test]
fn an_agent_that_starts_under_pressure_says_so_at_once_and_an_unknown_one_is_none() {
    let bench = Bench::new();
    bench.io_stalls(100);
    let id = bench.control.submit(bench.script(&["x"]).spec());
    let agent = bench.start();
    until("the registration", || !bench.control.world().agents.is_empty());
    assert!(bench.told_of_pressure().is_some(), "the first word has it");
    assert_eq!(bench.control.run(id).state, RunState::Queued);
    fs::remove_dir_all(bench.temp.path().join("proc")).unwrap();
    assert_eq!(bench.ended(id).outcome.unwrap().kind, OutcomeKind::Succeeded);
    bench.clean();
    agent.stop(Shutdown::Leave);
}
