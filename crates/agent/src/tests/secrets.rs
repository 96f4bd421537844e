//! Secrets are carried to the proxy that asks for them, and are left nowhere on the way.

use std::path::{Path, PathBuf};

use holm_domain::run::RunSpec;
use holm_shim::protocol::SPOOL_DIR_NAME;

use super::*;

/// A run whose shim asks `times` times before it starts, and writes what it was given.
fn asking(times: u32) -> RunSpec {
    let allow = vec!["api.example.org".parse().unwrap()];
    let credential = |text: &str| text.parse().unwrap();
    let credentials = vec![credential("api.example.org=bearer:ONE"), credential("api.example.org=query:key:TWO")];
    RunSpec { allow, credentials, ..Script { asks: times, ..Script::default() }.spec() }
}

const GIVEN: &str = "ONE=value-of-ONE\nTWO=value-of-TWO\n";

#[test]
fn who_asks_is_given_them_each_time_and_they_are_in_no_file() {
    let bench = Bench::new();
    let endless = Script { asks: 2, is_endless: true, ..Script::default() };
    let id = bench.control.submit(RunSpec { argv: endless.spec().argv, ..asking(0) });
    let agent = bench.start();
    until("the start", || bench.control.run(id).state == RunState::Running);
    until("all of the output", || bench.control.text(id) == GIVEN);
    let mut searched = 0;
    for entry in walk(&bench.temp.path().join("agent")) {
        let is_spool = entry.components().any(|part| part.as_os_str() == SPOOL_DIR_NAME);
        // What the shim under test wrote as output.
        let Ok(bytes) = fs::read(&entry) else { continue };
        if !is_spool {
            searched += 1;
            assert!(!String::from_utf8_lossy(&bytes).contains("value-of-"), "{}", entry.display());
        }
    }
    assert!(searched > 3, "the journal is there: {searched}");
    bench.control.cancel(id, Cancel::Kill);
    bench.ended(id);
    bench.clean();
    agent.stop(Shutdown::Leave);
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .flat_map(|entry| if entry.file_type().unwrap().is_dir() { walk(&entry.path()) } else { vec![entry.path()] })
        .collect()
}

#[test]
fn an_outage_is_waited_for_and_a_refusal_is_told() {
    let bench = Bench::new();
    bench.control.fault(Op::Secrets, Fault::NotDone(3));
    let first = bench.control.submit(asking(1));
    let agent = bench.start();
    assert_eq!(bench.ended(first).outcome.unwrap().kind, OutcomeKind::Succeeded);
    assert_eq!(bench.control.text(first), GIVEN);
    bench.control.fault(Op::Secrets, Fault::Refused);
    let second = bench.control.submit(asking(1));
    bench.ended(second);
    assert!(bench.control.text(second).contains("a fault was ordered"), "{}", bench.control.text(second));
    bench.clean();
    agent.stop(Shutdown::Leave);
}

#[test]
fn a_shim_that_was_found_again_is_answered_by_the_agent_that_found_it() {
    let bench = Bench::new();
    bench.control.fault(Op::Secrets, Fault::Hang { is_done: false });
    let id = bench.control.submit(asking(1));
    let agent = bench.start();
    until("somebody asks", || bench.control.world().hung.contains(&Op::Secrets));
    agent.kill();
    bench.control.world().faults.remove(&Op::Secrets);
    let agent = bench.restart();
    assert_eq!(bench.ended(id).outcome.unwrap().kind, OutcomeKind::Succeeded);
    assert_eq!(bench.control.text(id), GIVEN);
    bench.clean();
    agent.stop(Shutdown::Leave);
}
