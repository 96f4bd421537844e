//! `POST /agent/v1/poll`: wait for work and for word.

use std::sync::Arc;

use axum::extract::{Extension, State};
use holm_api::{
    agent::{Poll, Polled},
    problem::Problem,
};

use crate::{
    account::Account, app::App, auth::speaker::Speaker, config::LEASES_BODY_BYTES_MAX, http::extract::Short, ops,
    problem::Failure,
};

/// Poll
///
/// Answers at once when there is a run to claim or something to be told about a run that is held, otherwise with nothing
/// after `wait_ms`. Claims are granted with the answer: each raises the fence of its run.
#[utoipa::path(
    post, path = "/agent/v1/poll", tag = "agent", operation_id = "lease_poll",
    request_body = Poll,
    responses(
        (status = 200, description = "What there is.", body = Polled),
        (status = 403, description = "`forbidden`: the agent speaks with another token or key; `host_revoked`: the key with which it speaks was revoked.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`: register first.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`agent_superseded`: a newer process of the agent has registered.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid_field`", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "`too_many` polls; or the org's agents hold as much as they may, and nothing was claimed.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn poll(
    State(app): State<Arc<App>>,
    speaker: Speaker,
    Extension(account): Extension<Arc<Account>>,
    Short(body): Short<LEASES_BODY_BYTES_MAX, Poll>,
) -> Result<axum::Json<Polled>, Failure> {
    Ok(axum::Json(ops::leases::lease_poll(&app, &speaker, body, &account).await?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holm_api::{
        agent::{DirectiveKind, HeldLease, Register, Registered},
        runs::RunView,
    };
    use holm_domain::{
        ErrorCode,
        host::{Capacity, PRESSURE_LABEL},
        run::Cancel,
    };
    use http::StatusCode;
    use serde_json::json;
    use tokio::time::Instant;
    use tracing::Level;

    use super::*;
    use crate::{
        config::CLAIMS_BYTES_MAX,
        testing::{World, log::Log},
    };

    async fn ask(world: &World, poll: &Poll) -> Polled {
        world.agent().post("/agent/v1/poll", poll).await.json(StatusCode::OK)
    }

    /// A world in which a wait is ended by what it waits for, or not at all.
    async fn that_hears_by_bells_alone() -> World {
        World::with_limits(|limits| limits.reread_every = Duration::from_secs(3_600)).await
    }

    #[tokio::test]
    async fn a_waiting_poll_gets_what_is_submitted() {
        let world = that_hears_by_bells_alone().await;
        let poll = Poll { wait_ms: 60_000, ..world.poll() };
        let (polled, id) = tokio::join!(ask(&world, &poll), world.queue_run());
        let [claimed] = &polled.claimed[..] else { panic!("{polled:?}") };
        assert_eq!((claimed.run, claimed.fence, claimed.next_log_seq), (id, 1, 1));
        assert_eq!((claimed.runtime.as_str(), claimed.org), ("process", world.org));
        assert!((30_000..90_000).contains(&claimed.ttl_ms), "{}", claimed.ttl_ms);
        assert!(ask(&world, &world.poll()).await.is_empty(), "granted once");
    }

    #[tokio::test]
    async fn a_lease_is_never_longer_for_its_agent_than_for_the_server() {
        let world = World::new().await;
        let ttl = Duration::from_secs(30);
        let poll = Poll { wait_ms: 60_000, ..world.poll() };
        let asked_at = Instant::now();
        let submit = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let queued_at = Instant::now();
            world.queue_run().await;
            queued_at
        };
        let (polled, queued_at) = tokio::join!(ask(&world, &poll), submit);
        // Granted between these two instants.
        let answered_at = Instant::now();
        let for_the_agent = asked_at + Duration::from_millis(polled.claimed[0].ttl_ms);
        assert!(for_the_agent <= answered_at + ttl, "the server would grant anew while the sandbox lives");
        assert!(for_the_agent + Duration::from_millis(200) >= queued_at + ttl, "waiting took nothing from the lease");
    }

    #[tokio::test]
    async fn a_grant_whose_answer_was_lost_is_told_once_more() {
        let world = World::new().await;
        let lost = world.claim_run().await;
        let poll = world.poll();
        assert!(ask(&world, &poll).await.is_empty(), "its answer may be on its way");
        world.clock.advance(Duration::from_secs(1));
        let listed = Poll { held: vec![lost], ..poll.clone() };
        assert!(ask(&world, &listed).await.is_empty(), "the agent knows it");
        let full = Poll { free: Capacity { memory_bytes: 1, ..poll.free }, ..poll.clone() };
        assert!(ask(&world, &full).await.is_empty(), "there is no room for it");
        let polled = ask(&world, &poll).await;
        let [again] = &polled.claimed[..] else { panic!("{polled:?}") };
        assert_eq!((again.run, again.fence, again.next_log_seq), (lost.run, lost.fence, 1));
        assert!(ask(&world, &poll).await.is_empty(), "not at every poll");
        world.clock.advance(Duration::from_secs(29));
        assert!(ask(&world, &poll).await.is_empty(), "an agent that never takes it up loses it");
        world.clock.advance(Duration::from_secs(10));
        crate::tasks::reap::reap(world.app()).await.unwrap();
        assert_eq!(world.claim().await.fence, 2);
    }

    #[tokio::test]
    async fn a_host_that_takes_nothing_new_is_granted_nothing_by_an_earlier_poll_either() {
        let world = that_hears_by_bells_alone().await;
        let pressed = |labels: &[(&str, &str)]| Register {
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..world.registration()
        };
        let held = world.claim_run().await;
        let agent = world.agent();
        let waiting = Poll { wait_ms: 300, held: vec![held], ..world.poll() };
        let press = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            agent
                .post("/agent/v1/register", &pressed(&[(PRESSURE_LABEL, "io")]))
                .await
                .json::<Registered>(StatusCode::OK);
            world.queue_run().await
        };
        let (polled, id) = tokio::join!(ask(&world, &waiting), press);
        assert!(polled.is_empty(), "{polled:?}");
        agent.post("/agent/v1/register", &pressed(&[])).await.json::<Registered>(StatusCode::OK);
        assert_eq!(ask(&world, &waiting).await.claimed[0].run, id);
    }

    #[tokio::test]
    async fn many_agents_never_get_the_same_run() {
        let world = World::new().await;
        let mut queued = Vec::new();
        for _ in 0..20 {
            queued.push(world.queue_run().await);
        }
        let poll = Poll { claims_max: 3, ..world.poll() };
        let polls = (0..10).map(|_| ask(&world, &poll));
        let polled = futures_util::future::join_all(polls).await;
        let mut claimed: Vec<_> = polled.iter().flat_map(|polled| &polled.claimed).map(|claimed| claimed.run).collect();
        let all = claimed.len();
        claimed.sort();
        claimed.dedup();
        assert_eq!(claimed.len(), all, "no run twice");
        assert!(polled.iter().all(|polled| polled.claimed.len() <= 3));
        while let [claim, ..] = &ask(&world, &poll).await.claimed[..] {
            claimed.push(claim.run);
        }
        assert!(claimed.iter().all(|run| queued.contains(run)));
    }

    #[tokio::test]
    async fn one_answer_tells_so_much_and_the_next_the_rest() {
        let world = World::new().await;
        let spec = json!({"root": {"kind": "host"}, "argv": ["true", "\u{1}".repeat(CLAIMS_BYTES_MAX / 10)]});
        for _ in 0..3 {
            world.member().post("/v1/runs", &json!({ "spec": spec })).await.json::<RunView>(StatusCode::CREATED);
        }
        assert_eq!(ask(&world, &world.poll()).await.claimed.len(), 2);
        assert_eq!(ask(&world, &world.poll()).await.claimed.len(), 1);
        assert_eq!(world.app().held.agents.total(), 0);
    }

    #[tokio::test]
    async fn that_an_org_is_at_its_limit_is_no_warning() {
        let world = World::with_limits(|limits| limits.held_bytes_per_org_max = 3 * 1024 * 1024).await;
        let spec = json!({"root": {"kind": "host"}, "argv": ["true", "\u{1}".repeat(CLAIMS_BYTES_MAX / 10)]});
        for _ in 0..2 {
            world.member().post("/v1/runs", &json!({ "spec": spec })).await.json::<RunView>(StatusCode::CREATED);
        }
        let log = Log::default();
        let _kept = log.keep(Level::DEBUG);
        assert_eq!(ask(&world, &world.poll()).await.claimed.len(), 1);
        assert_eq!((log.lines_with("not all that could be granted was"), log.lines_with("WARN")), (1, 0));
    }

    #[tokio::test]
    async fn only_what_fits_and_is_of_the_org_is_claimed() {
        let world = World::new().await;
        world.queue_run().await;
        let tight = Poll { free: Capacity { memory_bytes: 1, ..world.poll().free }, ..world.poll() };
        assert!(ask(&world, &tight).await.is_empty());
        let full = Poll { free: Capacity { runs: 0, ..world.poll().free }, ..world.poll() };
        assert!(ask(&world, &full).await.is_empty());
        let idle = Poll { claims_max: 0, ..world.poll() };
        assert!(ask(&world, &idle).await.is_empty());
        let spec = json!({"root": {"kind": "host"}, "argv": ["true"]});
        world.other_org().post("/v1/runs", &json!({"spec": spec})).await;
        assert_eq!(ask(&world, &world.poll()).await.claimed.len(), 1);
        assert!(ask(&world, &world.poll()).await.is_empty(), "the other org's run stays");
    }

    #[tokio::test]
    async fn word_of_a_cancellation_wakes_the_poll() {
        let world = that_hears_by_bells_alone().await;
        let held = world.claim_run().await;
        let mut poll = Poll { wait_ms: 60_000, held: vec![held], ..world.poll() };
        let path = format!("/v1/runs/{}/cancel", held.run);
        let (member, body) = (world.member(), json!({}));
        let (polled, _) = tokio::join!(ask(&world, &poll), member.post(&path, &body));
        assert_eq!(polled.directives[0].what, DirectiveKind::Terminate);
        poll.held = vec![HeldLease { cancel: Some(Cancel::Terminate), ..held }];
        poll.wait_ms = 0;
        assert!(ask(&world, &poll).await.is_empty(), "told once it is known");
        world.member().post(&path, &json!({"kill": true})).await;
        assert_eq!(ask(&world, &poll).await.directives[0].what, DirectiveKind::Kill);
    }

    #[tokio::test]
    async fn a_lease_that_is_not_held_is_stale_at_once() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let unknown = HeldLease { run: crate::ids::run(), ..held };
        let old = HeldLease { fence: 7, ..held };
        let poll = Poll { wait_ms: 60_000, held: vec![held, unknown, old], ..world.poll() };
        let told: Vec<_> = ask(&world, &poll).await.directives.iter().map(|d| (d.run, d.fence, d.what)).collect();
        assert_eq!(told, [(unknown.run, 1, DirectiveKind::Stale), (held.run, 7, DirectiveKind::Stale)]);
    }

    #[tokio::test]
    async fn a_revoked_token_waits_no_longer() {
        let world = World::new().await;
        let poll = Poll { wait_ms: 60_000, ..world.poll() };
        let begun = Instant::now();
        let agent = world.agent();
        let (answer, ()) = tokio::join!(agent.post("/agent/v1/poll", &poll), world.revoke_agent_token());
        answer.problem(ErrorCode::Unauthenticated);
        assert!(begun.elapsed() < Duration::from_millis(2_500), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_server_that_ends_answers_waiting_polls_at_once() {
        let world = World::new().await;
        let poll = Poll { wait_ms: 60_000, ..world.poll() };
        let begun = Instant::now();
        let stop = async {
            tokio::task::yield_now().await;
            world.app().shutdown.cancel();
        };
        let (polled, ()) = tokio::join!(ask(&world, &poll), stop);
        assert!(polled.is_empty() && begun.elapsed() < Duration::from_secs(30));
        world.queue_run().await;
        assert!(ask(&world, &world.poll()).await.is_empty(), "it grants nothing any more");
    }

    #[tokio::test]
    async fn strangers_and_absurd_polls_are_refused() {
        let world = World::new().await;
        let stranger = Poll { agent: holm_domain::AgentId::from_uuid(uuid::Uuid::from_u128(9)), ..world.poll() };
        world.agent().post("/agent/v1/poll", &stranger).await.problem(ErrorCode::NotFound);
        world.other_org_agent().post("/agent/v1/poll", &world.poll()).await.problem(ErrorCode::NotFound);
        let held = world.claim_run().await;
        for (poll, field) in [
            (Poll { wait_ms: 60_001, ..world.poll() }, "wait_ms"),
            (Poll { claims_max: 65, ..world.poll() }, "claims_max"),
            (Poll { held: vec![held; 1_001], ..world.poll() }, "held"),
        ] {
            let problem = world.agent().post("/agent/v1/poll", &poll).await.problem(ErrorCode::InvalidField);
            assert_eq!(problem.field.as_deref(), Some(field));
        }
        let narrow = World::with_limits(|limits| limits.polls_per_org_max = 0).await;
        narrow.agent().post("/agent/v1/poll", &narrow.poll()).await.problem(ErrorCode::TooMany);
    }
}
