//! Properties of the lease protocol over random sequences of operations, and of both halves together over a network that
//! delays, loses and doubles what is sent (SPEC L1 to L4).

use std::time::Duration;

use proptest::prelude::*;
use uuid::Uuid;

use super::{
    Claimant,
    grant::{self, RESTORED_FENCES, claim, claim_again, expire, finish, renew, sandbox_ended, start},
    holder::{Action, Held, Holder, HolderConfig, Input, StopReason},
};
use crate::{
    AgentId, BootMicros, InstanceId, OrgId, ProjectId, RunId, TokenId, UnixMicros,
    limits::{HOST_FAILURES_MAX, LeaseConfig},
    run::{
        Admission, Cancel, Decision, EventKind, ExitStatus, Outcome, OutcomeKind, Reason, Run, RunSpec, RunState,
        SandboxInfo, admit,
    },
};

const SECOND: Duration = Duration::from_secs(1);

fn config() -> LeaseConfig {
    LeaseConfig { ttl: 30 * SECOND, margin: 5 * SECOND, attempts_max: 3, ..LeaseConfig::default() }
}

fn agent(number: u8) -> AgentId {
    AgentId::from_uuid(Uuid::from_u128(u128::from(number)))
}

/// Who asks: an agent, and which of its processes.
type By = (u8, u8);

fn by() -> impl Strategy<Value = By> {
    (0..3u8, 0..2u8)
}

fn claimant((number, process): By) -> Claimant {
    let instance = InstanceId::from_uuid(Uuid::from_u128(u128::from(process)));
    Claimant { agent: agent(number), instance }
}

fn queued(now: UnixMicros) -> Run {
    let admission = Admission {
        id: RunId::from_uuid(Uuid::nil()),
        org: OrgId::from_uuid(Uuid::nil()),
        project: ProjectId::from_uuid(Uuid::nil()),
        created_by: TokenId::from_uuid(Uuid::nil()),
    };
    admit(admission, RunSpec::new(["true"]), now, &config()).run
}

fn sandbox(by: AgentId) -> SandboxInfo {
    SandboxInfo { agent: by, runtime: "process".to_owned(), image_digest: None, unenforced: Vec::new() }
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Claim(By),
    ClaimAgain(By),
    Renew(By, u64),
    Start(u8, u64),
    SandboxEnded(u8, u64, End),
    Finish(u8, u64, End),
    Expire,
    GiveUp,
    EndPause,
    Reconsider,
    Restored,
    Cancel(Cancel),
}

/// How a sandbox ended, if there was one.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Exited(u8),
    HostFailed,
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![(0..2u8).prop_map(End::Exited), Just(End::HostFailed)]
}

impl From<End> for Outcome {
    fn from(end: End) -> Self {
        match end {
            End::Exited(code) => Outcome::exited(ExitStatus::Code(code)),
            End::HostFailed => Outcome::failed(Reason::HostFailed, "no room"),
        }
    }
}

fn op() -> impl Strategy<Value = Op> {
    // Fences are given as how far they are behind the newest, so that live ones are hit often.
    prop_oneof![
        3 => by().prop_map(Op::Claim),
        2 => by().prop_map(Op::ClaimAgain),
        3 => (by(), 0..3u64).prop_map(|(by, behind)| Op::Renew(by, behind)),
        2 => (0..3u8, 0..3u64).prop_map(|(by, behind)| Op::Start(by, behind)),
        1 => (0..3u8, 0..3u64, end()).prop_map(|(by, behind, end)| Op::SandboxEnded(by, behind, end)),
        2 => (0..3u8, 0..3u64, end()).prop_map(|(by, behind, end)| Op::Finish(by, behind, end)),
        3 => Just(Op::Expire),
        1 => Just(Op::GiveUp),
        2 => Just(Op::EndPause),
        2 => Just(Op::Reconsider),
        1 => Just(Op::Restored),
        1 => prop_oneof![Just(Cancel::Terminate), Just(Cancel::Kill)].prop_map(Op::Cancel),
    ]
}

/// What an operation decided, and whether it may have decided anything at all: not under a fence that is not live.
fn apply(run: &Run, op: Op, now: UnixMicros) -> (Option<Decision>, bool) {
    let config = config();
    let fence = |behind: u64| run.fence.saturating_sub(behind);
    let is_live =
        |by: u8, behind: u64| run.lease.is_some_and(|lease| lease.agent == agent(by) && lease.fence == fence(behind));
    match op {
        Op::Claim(by) => {
            let is_ready = run.state == RunState::Queued && run.retry_at.is_none();
            (claim(run, claimant(by), now, &config), is_ready && !run.passes_over(agent(by.0)))
        }
        Op::ClaimAgain(by) => {
            let is_its_own = run.lease.is_some_and(|lease| lease.instance == claimant(by).instance);
            let is_claimed = run.state == RunState::Claimed;
            (claim_again(run, claimant(by), now, &config), is_live(by.0, 0) && is_its_own && is_claimed)
        }
        Op::Renew(by, behind) => {
            (renew(run, claimant(by), (fence(behind), None), now, &config).ok(), is_live(by.0, behind))
        }
        Op::Start(by, behind) => {
            let started = start(run, agent(by), fence(behind), sandbox(agent(by)), now);
            (started.ok().flatten(), is_live(by, behind) && run.state == RunState::Claimed)
        }
        Op::SandboxEnded(by, behind, end) => {
            let ended = sandbox_ended(run, agent(by), fence(behind), end.into(), now, &config);
            let is_there = end != End::HostFailed || run.state != RunState::Claimed;
            (ended.ok().flatten(), is_live(by, behind) && run.ending.is_none() && is_there)
        }
        Op::Finish(by, behind, end) => {
            let finished = finish(run, agent(by), fence(behind), Outcome::from(end).into(), now, &config);
            (finished.ok().flatten(), is_live(by, behind))
        }
        Op::Expire => {
            let is_due = run.lease.is_some_and(|lease| now >= lease.expires_at.plus(config.margin));
            (expire(run, now, &config), is_due)
        }
        Op::GiveUp => (run.give_up(now), run.lease.is_none() && now >= run.queue_deadline_at),
        Op::EndPause => (run.end_pause(now), run.retry_at.is_some_and(|at| at <= now)),
        Op::Reconsider => (run.reconsider(now), run.passed_over.iter().any(|host| host.until <= now)),
        Op::Restored => (grant::restored(run, now, &config), true),
        Op::Cancel(how) => (run.request_cancel(how, now), run.cancel < Some(how)),
    }
}

fn check_step(before: &Run, decision: &Decision, op: Op) -> Result<(), TestCaseError> {
    let after = &decision.run;
    prop_assert_eq!(after.version, before.version + 1);
    let claimed = u64::from(matches!(op, Op::Claim(_)));
    if matches!(op, Op::Restored) {
        prop_assert!(after.fence >= before.fence + RESTORED_FENCES, "beyond every fence of before");
    } else {
        prop_assert_eq!(after.fence, before.fence + claimed, "a claim raises the fence by one");
    }
    prop_assert!(!matches!(op, Op::Restored) || after.lease.is_none(), "no lease of before counts");
    prop_assert_eq!(after.attempt, before.attempt + claimed as u32);
    prop_assert!(before.state != RunState::Ended, "what has ended never changes");
    prop_assert_eq!(after.lease.is_some(), after.state.is_leased());
    prop_assert_eq!(after.outcome.is_some(), after.state == RunState::Ended);
    prop_assert_eq!(after.ending.is_some(), after.state == RunState::Finishing);
    prop_assert!(after.retry_at.is_none() || after.state == RunState::Queued, "only what is queued pauses");
    prop_assert!(before.ending.is_none() || after.state != RunState::Queued, "never executed again");
    prop_assert_eq!(after.deadline(&config()).is_none(), after.state == RunState::Ended, "nothing waits for ever");
    if let (Some(old), Some(new)) = (before.lease, after.lease) {
        prop_assert!(new.expires_at >= old.expires_at, "a renewal never shortens a lease");
        prop_assert_eq!((new.agent, new.fence), (old.agent, old.fence), "a lease never passes from one to another");
        let is_taken_over = new.instance != old.instance;
        prop_assert!(!is_taken_over || matches!(op, Op::Renew(..)), "only who shows the fence takes a lease over");
    }
    if matches!(op, Op::Expire) {
        let requeued = decision.events.contains(&EventKind::Requeued);
        let kind = after.outcome.as_ref().map(|outcome| outcome.kind);
        let ending = before.ending.as_ref().map(|ending| ending.outcome.kind);
        let expected = match (ending, before.cancel, before.attempt - before.host_failures >= config().attempts_max) {
            (Some(OutcomeKind::Succeeded), ..) => (false, Some(OutcomeKind::Lost)),
            (Some(told), ..) => (false, Some(told)),
            (None, Some(_), _) => (false, Some(OutcomeKind::Cancelled)),
            (None, None, true) => (false, Some(OutcomeKind::Lost)),
            (None, None, false) => (true, None),
        };
        prop_assert_eq!((requeued, kind), expected);
        prop_assert_eq!(after.retry_at.is_some(), requeued, "what comes back pauses");
    }
    if let Op::Finish(by, _, End::HostFailed) = op {
        let is_tried_again =
            before.state == RunState::Claimed && before.cancel.is_none() && before.host_failures < HOST_FAILURES_MAX;
        let after_state = if is_tried_again { RunState::Queued } else { RunState::Ended };
        prop_assert_eq!((after.state, after.passes_over(agent(by))), (after_state, is_tried_again));
    }
    prop_assert!(after.passed_over.is_empty() || after.state != RunState::Ended, "what has ended waits for no host");
    prop_assert!(after.retry_at.is_none() || after.queue_at().is_none(), "what pauses stands nowhere in the queue");
    Ok(())
}

proptest! {
    #[test]
    fn grants_hold_whatever_comes_in_whatever_order(ops in prop::collection::vec((op(), 0..20_000_000i64), 1..80)) {
        let mut now = UnixMicros(1);
        let mut run = queued(now);
        let mut claims = 0;
        for (op, passed) in ops {
            now = UnixMicros(now.0 + passed);
            let (decision, is_allowed) = apply(&run, op, now);
            prop_assert!(decision.is_none() || is_allowed, "{:?} changed {:?}", op, run);
            let Some(decision) = decision else { continue };
            check_step(&run, &decision, op)?;
            claims += u32::from(matches!(op, Op::Claim(_)));
            run = decision.run;
        }
        prop_assert!(claims <= config().attempts_max + HOST_FAILURES_MAX, "no run is claimed more often than is allowed");
    }

    #[test]
    fn every_run_ends_if_only_its_deadlines_are_kept(agents in prop::collection::vec(0..3u8, 0..5)) {
        let mut run = queued(UnixMicros(1));
        let mut agents = agents.into_iter();
        for _ in 0..20 {
            let Some(deadline) = run.deadline(&config()) else { return Ok(()) };
            let is_ready = run.state == RunState::Queued && run.retry_at.is_none();
            let by = if is_ready { agents.next() } else { None };
            let decision = match by {
                Some(by) => claim(&run, claimant((by, 0)), UnixMicros(deadline.0 - 1), &config()),
                None => {
                    let overdue = expire(&run, deadline, &config()).or_else(|| run.give_up(deadline));
                    overdue.or_else(|| run.end_pause(deadline)).or_else(|| run.reconsider(deadline))
                }
            };
            prop_assert!(decision.is_some(), "the deadline of {:?} has no owner", run);
            run = decision.map_or(run, |decision| decision.run);
        }
        prop_assert!(false, "it goes on for ever: {:?}", run);
    }

    #[test]
    fn an_end_that_is_repeated_changes_nothing(code: u8, other: u8) {
        let run = claim(&queued(UnixMicros(1)), claimant((0, 0)), UnixMicros(2), &config()).map(|decision| decision.run);
        let run = run.ok_or_else(|| TestCaseError::fail("a queued run is granted"))?;
        let outcome = |code| Outcome::exited(ExitStatus::Code(code));
        let end = |run: &Run, code| finish(run, agent(0), 1, outcome(code).into(), UnixMicros(3), &config());
        let ended = end(&run, code).ok().flatten().map(|decision| decision.run);
        let ended = ended.ok_or_else(|| TestCaseError::fail("the first end is taken"))?;
        prop_assert_eq!(end(&ended, code), Ok(None));
        if other != code {
            prop_assert!(end(&ended, other).is_err(), "another end comes too late");
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Fed {
    Claimed { run: u8, fence: u64, ttl_ms: u64, age_ms: u64 },
    Found { run: u8, fence: u64, left_ms: i64 },
    Renewed { run: u8, fence: u64, ttl_ms: u64, age_ms: u64 },
    Refused { run: u8, fence: u64 },
    Cancel { run: u8, fence: u64, how: Cancel },
    Released { run: u8, fence: u64 },
    Tick,
}

fn fed() -> impl Strategy<Value = Fed> {
    let lease = || (0..3u8, 1..4u64);
    prop_oneof![
        3 => (lease(), 0..40_000u64, 0..40_000u64)
            .prop_map(|((run, fence), ttl_ms, age_ms)| Fed::Claimed { run, fence, ttl_ms, age_ms }),
        1 => (lease(), -10_000..40_000i64).prop_map(|((run, fence), left_ms)| Fed::Found { run, fence, left_ms }),
        3 => (lease(), 0..40_000u64, 0..40_000u64)
            .prop_map(|((run, fence), ttl_ms, age_ms)| Fed::Renewed { run, fence, ttl_ms, age_ms }),
        1 => lease().prop_map(|(run, fence)| Fed::Refused { run, fence }),
        1 => (lease(), prop_oneof![Just(Cancel::Terminate), Just(Cancel::Kill)])
            .prop_map(|((run, fence), how)| Fed::Cancel { run, fence, how }),
        1 => lease().prop_map(|(run, fence)| Fed::Released { run, fence }),
        3 => Just(Fed::Tick),
    ]
}

fn held(run: u8, fence: u64) -> Held {
    Held { run: RunId::from_uuid(Uuid::from_u128(u128::from(run))), fence }
}

fn input(fed: Fed, now: BootMicros) -> Input {
    let before = |age_ms: u64| BootMicros(now.0.saturating_sub(age_ms * 1_000));
    let ms = Duration::from_millis;
    match fed {
        Fed::Claimed { run, fence, ttl_ms, age_ms } => {
            Input::Claimed { held: held(run, fence), ttl: ms(ttl_ms), asked_at: before(age_ms) }
        }
        Fed::Found { run, fence, left_ms } => {
            Input::Found { held: held(run, fence), deadline: BootMicros(now.0.saturating_add_signed(left_ms * 1_000)) }
        }
        Fed::Renewed { run, fence, ttl_ms, age_ms } => {
            Input::Renewed { held: held(run, fence), ttl: ms(ttl_ms), asked_at: before(age_ms) }
        }
        Fed::Refused { run, fence } => Input::Refused { held: held(run, fence) },
        Fed::Cancel { run, fence, how } => Input::CancelRequested { held: held(run, fence), how },
        Fed::Released { run, fence } => Input::Released { held: held(run, fence) },
        Fed::Tick => Input::Tick,
    }
}

proptest! {
    #[test]
    fn a_holder_never_goes_past_a_deadline_or_beyond_a_refusal(fed in prop::collection::vec((fed(), 0..15_000u64), 1..80)) {
        let mut holder = Holder::new(HolderConfig::default());
        let mut now = BootMicros(100_000_000);
        let mut stopped: Vec<Held> = Vec::new();
        let mut granted: std::collections::BTreeMap<Held, BootMicros> = Default::default();
        for (fed, passed_ms) in fed {
            now = BootMicros(now.0 + passed_ms * 1_000);
            let input = input(fed, now);
            // The most that any answer so far has granted.
            if let Input::Claimed { held, ttl, asked_at } | Input::Renewed { held, ttl, asked_at } = &input {
                let until = granted.entry(*held).or_default();
                *until = (*until).max(asked_at.plus(*ttl));
            }
            if let Input::Found { held, deadline } = &input {
                stopped.retain(|known| known != held);
                granted.insert(*held, (*deadline).max(granted.get(held).copied().unwrap_or_default()));
            }
            if let Input::Released { held } = &input {
                stopped.retain(|known| known != held);
            }
            for action in holder.step(input, now) {
                match action {
                    Action::Start { held, deadline } => {
                        prop_assert!(now < deadline && holder.may_start(held, now));
                        prop_assert!(deadline <= granted[&held]);
                        stopped.retain(|known| *known != held);
                    }
                    Action::Extend { held, deadline } => {
                        prop_assert!(deadline <= granted[&held] && !stopped.contains(&held));
                    }
                    Action::Renew { held } => prop_assert!(held.iter().all(|held| !stopped.contains(held))),
                    Action::Stop { reason: StopReason::Cancelled(_), .. } => {}
                    Action::Stop { held, .. } => stopped.push(held),
                }
            }
            for held in &stopped {
                prop_assert!(!holder.may_start(*held, now));
            }
            if matches!(fed, Fed::Tick) {
                prop_assert!(holder.next_tick().is_none_or(|at| at > now), "a tick is never due at once again");
            }
        }
    }

    /// Both halves over a network that delays, loses and doubles, with clocks that tell different times at the same rate:
    /// at no instant may the old holder's sandbox live once the server could have granted the run anew.
    #[test]
    fn the_sandbox_is_dead_before_the_run_is_granted_anew(
        skew in 0..1_000_000_000i64,
        claim_trip in (0..20_000_000i64, 0..20_000_000i64),
        renewals in prop::collection::vec((0..25_000_000i64, 0..25_000_000i64, 0..25_000_000i64, any::<bool>(), any::<bool>()), 0..12),
    ) {
        let server = |at: i64| UnixMicros(at + skew);
        let host = |at: i64| BootMicros(at as u64);
        let config = config();
        let (there, back) = claim_trip;
        let mut at = 1_000_000i64;
        let asked_at = host(at);
        let granted = claim(&queued(server(at)), claimant((0, 0)), server(at + there), &config);
        let mut run = granted.map(|decision| decision.run).ok_or_else(|| TestCaseError::fail("granted"))?;
        at += there + back;
        let lease = Held { run: run.id, fence: run.fence };
        let mut holder = Holder::new(HolderConfig::default());
        let mut deadline = None;
        let mut late = Vec::new();
        let actions = holder.step(Input::Claimed { held: lease, ttl: config.ttl, asked_at }, host(at));
        deadline = newest(deadline, &actions);
        for (pause, there, back, is_lost, is_doubled) in renewals {
            at += pause;
            let asked_at = host(at);
            let Ok(decision) = renew(&run, claimant((0, 0)), (run.fence, None), server(at + there), &config) else { break };
            if grant::expire(&run, server(at + there), &config).is_some() {
                break;
            }
            run = decision.run;
            at += there + back;
            let answer = Input::Renewed { held: lease, ttl: config.ttl, asked_at };
            if is_doubled {
                late.push(answer.clone());
            }
            if !is_lost {
                deadline = newest(deadline, &holder.step(answer, host(at)));
            }
            deadline = newest(deadline, &holder.step(Input::Tick, host(at)));
        }
        for answer in late {
            deadline = newest(deadline, &holder.step(answer, host(at)));
        }
        let regrant_at = run.deadline(&config).ok_or_else(|| TestCaseError::fail("a leased run has a deadline"))?;
        if let Some(deadline) = deadline {
            let margin = config.margin.as_micros() as i64;
            prop_assert!(deadline.0 as i64 + skew + margin <= regrant_at.0, "less than the margin lies between");
        }
        let too_early = UnixMicros(regrant_at.0 - 1);
        prop_assert!(expire(&run, too_early, &config).is_none() && claim(&run, claimant((1, 0)), too_early, &config).is_none());
    }
}

fn newest(known: Option<BootMicros>, actions: &[Action]) -> Option<BootMicros> {
    let told = actions.iter().filter_map(|action| match action {
        Action::Start { deadline, .. } | Action::Extend { deadline, .. } => Some(*deadline),
        _ => None,
    });
    told.chain(known).max()
}

#[test]
fn a_grant_is_told_once_more_for_as_long_as_it_would_have_lasted() {
    let config = config();
    let begun = UnixMicros(1_000_000);
    let granted = claim(&queued(begun), claimant((1, 0)), begun, &config).unwrap().run;
    let at = |run: &Run, by: u8, after: Duration| claim_again(run, claimant((by, 0)), begun.plus(after), &config);
    assert!(at(&granted, 1, Duration::from_millis(999)).is_none(), "its answer may be on its way");
    assert!(at(&granted, 2, SECOND).is_none(), "it is another's");
    let successor = claimant((1, 1));
    let told = claim_again(&granted, successor, begun.plus(SECOND), &config);
    assert!(told.is_none(), "a process beside the one that asked would make a second sandbox under one fence");
    let taken_over = renew(&granted, successor, (1, None), begun.plus(SECOND), &config).unwrap().run;
    assert!(at(&taken_over, 1, 2 * SECOND).is_none(), "it is its successor's");
    let Decision { run: again, events } = at(&granted, 1, SECOND).unwrap();
    assert_eq!((again.fence, again.attempt, again.state), (granted.fence, granted.attempt, RunState::Claimed));
    assert_eq!((again.lease.unwrap().expires_at, events.len()), (begun.plus(31 * SECOND), 0));
    assert!(at(&again, 1, Duration::from_millis(1_999)).is_none(), "not at every look");
    assert!(at(&again, 1, 2 * SECOND).is_some());
    assert!(at(&again, 1, 30 * SECOND).is_none(), "an agent that never takes it up loses it");
    let started = start(&granted, agent(1), 1, sandbox(agent(1)), begun).unwrap().unwrap().run;
    assert!(at(&started, 1, 2 * SECOND).is_none(), "it shows that it knows");
}

#[test]
fn a_run_that_only_uploads_has_a_deadline_of_its_own_and_is_never_queued_again() {
    let config = config();
    let begun = UnixMicros(1_000_000);
    let granted = claim(&queued(begun), claimant((1, 0)), begun, &config).unwrap().run;
    let started = start(&granted, agent(1), 1, sandbox(agent(1)), begun).unwrap().unwrap().run;
    let limit = begun.plus(started.spec.limits.timeout()).plus(config.overhead);
    assert!(
        renew(&started, claimant((1, 0)), (1, None), limit, &config).is_err(),
        "a command has no more time than its limit"
    );
    let outcome = Outcome::exited(ExitStatus::Code(0));
    let ended_at = UnixMicros(limit.0 - 1);
    let ending = sandbox_ended(&started, agent(1), 1, outcome.clone(), ended_at, &config).unwrap().unwrap().run;
    let again = sandbox_ended(&ending, agent(1), 1, Outcome::exited(ExitStatus::Code(9)), limit, &config).unwrap();
    assert!(again.is_none(), "what was told first stands");
    let uploading = renew(&ending, claimant((1, 0)), (1, None), limit.plus(config.ttl), &config).unwrap().run;
    let deadline = ended_at.plus(config.finishing);
    assert!(renew(&uploading, claimant((1, 0)), (1, None), deadline, &config).is_err(), "nothing goes on for ever");
    let finished = finish(&uploading, agent(1), 1, outcome.clone().into(), deadline, &config).unwrap().unwrap().run;
    assert_eq!((finished.outcome, finished.ending), (Some(outcome), None));
    let lost = expire(&uploading, deadline, &config).unwrap().run;
    assert_eq!((lost.state, lost.outcome.unwrap().kind), (RunState::Ended, OutcomeKind::Lost));
}
