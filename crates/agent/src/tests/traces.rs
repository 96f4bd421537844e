//! What is recorded of attempts.

use holm_trace::Span;
use tokio::sync::mpsc;

use super::*;

/// The span of each attempt, by its fence, and why it failed if it did.
fn attempts(spans: &mut mpsc::Receiver<Span>) -> Vec<(String, Option<String>)> {
    let all = std::iter::from_fn(|| spans.try_recv().ok()).filter(|span| span.name == "attempt");
    let text = |span: &Span, name| span.attribute(name).map(str::to_owned);
    let mut all: Vec<_> = all.map(|span| (text(&span, "holm.fence").unwrap(), text(&span, "error.type"))).collect();
    all.sort();
    all
}

#[test]
fn what_is_recorded_of_an_attempt_is_what_became_of_it() {
    let (tracer, mut spans) = Tracer::in_memory();
    let bench = Bench { tracer, ..Bench::new() };
    let told = |fence: &str, reason: Option<&str>| (fence.to_owned(), reason.map(str::to_owned));
    bench.control.world().trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().ok();
    // The command succeeded, and the lease was lost while its end was to be told.
    bench.control.fault(Op::Finish, Fault::NotDone(1_000));
    let id = bench.control.submit(bench.script(&["x"]).spec());
    let agent = bench.start();
    let is_asked = || bench.control.world().faults.get(&Op::Finish) != Some(&Fault::NotDone(1_000));
    until("a finish that is not taken", is_asked);
    bench.control.expire(id);
    bench.control.world().faults.remove(&Op::Finish);
    assert_eq!(bench.ended(id).outcome.unwrap().kind, OutcomeKind::Succeeded);
    bench.clean();
    assert_eq!(attempts(&mut spans), [told("1", Some("lease_lost")), told("2", None)]);
    // The end that is recorded is the one that was accepted.
    let refused = Script { result: Some("refused by this server".into()), ..bench.script(&["x"]) };
    let id = bench.control.submit(refused.spec());
    bench.ended(id);
    bench.clean();
    assert_eq!(attempts(&mut spans), [told("1", Some("guest_lost"))]);
    agent.stop(Shutdown::Leave);
}

#[test]
fn the_end_of_a_lease_that_overtakes_the_answer_to_the_end_of_its_run_is_no_loss() {
    let (tracer, mut spans) = Tracer::in_memory();
    let bench = Bench { tracer, ..Bench::new() };
    bench.control.world().trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().ok();
    bench.control.fault(Op::Finish, Fault::AnswerLost(1_000));
    let id = bench.control.submit(bench.script(&["x"]).spec());
    let agent = bench.start();
    until("word that the lease is over", || bench.control.world().is_stale_told);
    until("a poll after it was heeded", || bench.control.world().held.is_empty());
    assert_eq!(bench.ended(id).outcome.unwrap().kind, OutcomeKind::Succeeded);
    bench.control.world().faults.remove(&Op::Finish);
    bench.clean();
    assert_eq!(attempts(&mut spans), [("1".to_owned(), None)]);
    // Not without end.
    bench.control.fault(Op::Finish, Fault::AnswerLost(u32::MAX));
    let id = bench.control.submit(bench.script(&["x"]).spec());
    bench.ended(id);
    bench.clean();
    assert_eq!(attempts(&mut spans), [("1".to_owned(), Some("lease_lost".to_owned()))]);
    agent.stop(Shutdown::Leave);
}

#[test]
fn an_agent_that_dies_after_it_told_of_an_attempt_is_not_followed_by_one_that_tells_it_again() {
    let (tracer, mut spans) = Tracer::in_memory();
    let bench = Bench { tracer, ..Bench::new() };
    bench.control.world().trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().ok();
    // The end was taken, and nothing of the attempt is removed yet.
    bench.runtime.crash_at(Point::BeforeDestroy);
    let id = bench.control.submit(bench.script(&["x"]).spec());
    let first = bench.start();
    until("the crash", || bench.runtime.is_reached());
    assert_eq!(bench.ended(id).outcome.unwrap().kind, OutcomeKind::Succeeded);
    first.kill();
    bench.runtime.crash_is_over();
    let second = bench.restart();
    bench.clean();
    second.stop(Shutdown::Leave);
    assert_eq!(attempts(&mut spans), [("1".to_owned(), None)]);
}
