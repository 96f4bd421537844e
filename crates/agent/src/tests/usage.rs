//! What runs use is told with each renewal, where it is counted.

use holm_domain::run::LiveUsage;

use super::*;

#[test]
fn renewals_tell_what_runs_use_now_also_after_a_restart() {
    let bench = Bench::with_ttl(Duration::from_secs(1));
    let id = bench.control.submit(bench.endless().spec());
    let live = || bench.control.run(id).lease.and_then(|lease| lease.measured).map(|measured| measured.usage);
    let agent = bench.start();
    until("the start", || bench.control.run(id).state == RunState::Running);
    let renewed = || bench.control.run(id).lease.map(|lease| lease.expires_at);
    let first = renewed();
    until("a renewal", || renewed() > first);
    assert_eq!(live(), None, "nothing is counted");
    let uses = LiveUsage { cpu_us: Some(0), memory_bytes: Some(7), pids: Some(2), ..LiveUsage::default() };
    *bench.runtime.uses.lock().unwrap() = uses;
    until("what it uses", || live().is_some_and(|usage| usage.cpus_milli.is_some_and(|rate| rate > 1_000)));
    let told = live().unwrap();
    assert_eq!((told.memory_bytes, told.pids, told.memory_peak_bytes), (Some(7), Some(2), None));
    agent.stop(Shutdown::Leave);
    bench.runtime.uses.lock().unwrap().memory_bytes = Some(9);
    let agent = bench.restart();
    until("what it uses now", || live().is_some_and(|usage| usage.memory_bytes == Some(9)));
    bench.control.cancel(id, Cancel::Kill);
    bench.ended(id);
    bench.clean();
    agent.stop(Shutdown::Leave);
}
