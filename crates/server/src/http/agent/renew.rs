//! `POST /agent/v1/renew`: extend leases.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{
    agent::{Renew, Renewed},
    problem::Problem,
};

use crate::{
    app::App, auth::speaker::Speaker, config::LEASES_BODY_BYTES_MAX, http::extract::Short, ops, problem::Failure,
};

/// Renew leases
///
/// One answer for each lease, in order; one that is no longer held has no `ttl_ms`. A lease whose run cannot be read, because
/// the store is damaged, has no answer.
#[utoipa::path(
    post, path = "/agent/v1/renew", tag = "agent", operation_id = "lease_renew",
    request_body = Renew,
    responses(
        (status = 200, description = "One answer for each lease.", body = Renewed),
        (status = 403, description = "`forbidden`: the agent speaks with another token or key; `host_revoked`: the key with which it speaks was revoked.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`: register first.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`agent_superseded`: a newer process of the agent has registered.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn renew(
    State(app): State<Arc<App>>,
    speaker: Speaker,
    Short(body): Short<LEASES_BODY_BYTES_MAX, Renew>,
) -> Result<axum::Json<Renewed>, Failure> {
    Ok(axum::Json(ops::leases::renew::lease_renew(&app, &speaker, body).await?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holm_api::{
        agent::{HeldLease, RenewLease, SandboxEnded},
        runs::RunView,
    };
    use holm_domain::{
        ErrorCode,
        run::{Cancel, ExitStatus, LiveUsage, Measured, Outcome, RunState},
    };
    use holm_store::RENEWALS_MAX;
    use http::StatusCode;
    use serde_json::json;

    use super::*;
    use crate::{tasks::reap::reap, testing::World};

    async fn ask(world: &World, leases: Vec<HeldLease>) -> Renewed {
        let leases = leases.into_iter().map(Into::into).collect();
        let body = Renew { agent: world.agent_id, instance: world.instance, leases };
        world.agent().post("/agent/v1/renew", &body).await.json(StatusCode::OK)
    }

    #[tokio::test]
    async fn a_lease_that_is_renewed_lives_and_one_that_is_not_expires() {
        let world = World::new().await;
        let (kept, dropped) = (world.claim_run().await, world.claim_run().await);
        for _ in 0..4 {
            world.clock.advance(Duration::from_secs(10));
            assert_eq!(ask(&world, vec![kept]).await.leases[0].ttl_ms, Some(30_000));
            reap(world.app()).await.unwrap();
        }
        let answers = ask(&world, vec![kept, dropped]).await.leases;
        assert_eq!((answers[0].ttl_ms, answers[1].ttl_ms), (Some(30_000), None));
    }

    async fn live(world: &World, held: HeldLease) -> Option<Measured> {
        world.member().get(&format!("/v1/runs/{}", held.run)).await.json::<RunView>(StatusCode::OK).live
    }

    #[tokio::test]
    async fn a_run_shows_what_it_uses_as_it_was_told_last_and_no_longer_than_its_sandbox_lives() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let told = |usage| Renew {
            agent: world.agent_id,
            instance: world.instance,
            leases: vec![RenewLease { usage, ..held.into() }],
        };
        let usage = LiveUsage { cpus_milli: Some(250), memory_bytes: Some(1 << 20), ..LiveUsage::default() };
        assert_eq!(live(&world, held).await, None, "nothing was told yet");
        for (told_usage, shown) in
            [(Some(usage), Some(usage)), (Some(LiveUsage::default()), None), (Some(usage), Some(usage))]
        {
            world.clock.advance(Duration::from_secs(1));
            let renewed = world.agent().post("/agent/v1/renew", &told(told_usage)).await;
            assert!(renewed.json::<Renewed>(StatusCode::OK).leases[0].ttl_ms.is_some());
            let seen = live(&world, held).await;
            assert_eq!(seen, shown.map(|usage| Measured { at: world.app().now(), usage }));
        }
        let outcome = Outcome::exited(ExitStatus::Code(0));
        let ended = SandboxEnded { agent: world.agent_id, instance: world.instance, fence: held.fence, outcome };
        world.agent().post(&format!("/agent/v1/runs/{}/ended", held.run), &ended).await;
        assert_eq!(live(&world, held).await, None, "the sandbox is dead");
    }

    #[tokio::test]
    async fn leases_of_one_request_are_judged_one_by_one() {
        let world = World::new().await;
        let mut held = Vec::new();
        for _ in 0..6 {
            held.push(world.claim_run().await);
        }
        world.member().post(&format!("/v1/runs/{}/cancel", held[1].run), &json!({})).await;
        let finished = held[2];
        world.finish(finished, 1).await;
        let theirs = HeldLease { run: crate::ids::run(), ..held[3] };
        let asked =
            vec![held[0], held[1], finished, theirs, HeldLease { fence: 9, ..held[4] }, held[5], held[5], held[4]];
        world.clock.advance(Duration::from_secs(20));
        let answers = ask(&world, asked.clone()).await.leases;
        let told: Vec<(_, u64)> = answers.iter().map(|answer| (answer.run, answer.fence)).collect();
        assert_eq!(told, asked.iter().map(|lease| (lease.run, lease.fence)).collect::<Vec<_>>());
        let ttls: Vec<bool> = answers.iter().map(|answer| answer.ttl_ms.is_some()).collect();
        assert_eq!(ttls, [true, true, false, false, false, true, true, true]);
        assert_eq!((answers[0].cancel, answers[1].cancel), (None, Some(Cancel::Terminate)));
        world.clock.advance(Duration::from_secs(29));
        reap(world.app()).await.unwrap();
        let state = async |lease: HeldLease| {
            world.member().get(&format!("/v1/runs/{}", lease.run)).await.json::<RunView>(StatusCode::OK).state
        };
        assert_eq!(state(held[0]).await, RunState::Claimed, "renewed");
        world.clock.advance(Duration::from_secs(7));
        reap(world.app()).await.unwrap();
        assert_eq!((state(held[0]).await, state(held[3]).await), (RunState::Queued, RunState::Queued), "expired");
    }

    #[tokio::test]
    async fn more_leases_than_are_read_together_are_renewed_by_one_request() {
        let world = World::new().await;
        let mut held = Vec::new();
        for _ in 0..RENEWALS_MAX * 2 + 3 {
            held.push(world.claim_run().await);
        }
        held.reverse();
        held.swap(0, RENEWALS_MAX);
        world.clock.advance(Duration::from_secs(20));
        let answers = ask(&world, held.clone()).await.leases;
        let told: Vec<_> = answers.iter().map(|answer| (answer.run, answer.ttl_ms)).collect();
        assert_eq!(told, held.iter().map(|lease| (lease.run, Some(30_000))).collect::<Vec<_>>());
        let of_one_look = world.app().store.runs_of_agent(world.agent_id, held[held.len() - 1].run..=held[1].run).await;
        assert_eq!(of_one_look.unwrap().len(), RENEWALS_MAX, "no more are held in memory at once");
    }

    #[tokio::test]
    async fn renewals_that_meet_changes_of_their_runs_are_decided_again() {
        let world = World::new().await;
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(world.claim_run().await);
        }
        for _ in 0..5 {
            world.clock.advance(Duration::from_secs(5));
            let cancels = held.iter().map(|lease| {
                let member = world.member();
                async move { member.post(&format!("/v1/runs/{}/cancel", lease.run), &json!({})).await }
            });
            let asks = (0..3).map(|_| ask(&world, held.clone()));
            let (answers, _) =
                tokio::join!(futures_util::future::join_all(asks), futures_util::future::join_all(cancels));
            for answer in answers.iter().flat_map(|answer| &answer.leases) {
                assert_eq!(answer.ttl_ms, Some(30_000), "{answer:?}");
            }
        }
    }

    #[tokio::test]
    async fn renewals_tell_of_cancellations_and_refuse_old_fences() {
        let world = World::new().await;
        let held = world.claim_run().await;
        world.member().post(&format!("/v1/runs/{}/cancel", held.run), &json!({})).await;
        let stale = HeldLease { fence: 2, ..held };
        let answers = ask(&world, vec![held, stale]).await.leases;
        assert_eq!((answers[0].cancel, answers[1].ttl_ms), (Some(Cancel::Terminate), None));
        let foreign = Renew { agent: world.agent_id, instance: world.instance, leases: vec![held.into()] };
        world.other_org_agent().post("/agent/v1/renew", &foreign).await.problem(ErrorCode::NotFound);
        let empty = Renew { agent: world.agent_id, instance: world.instance, leases: Vec::new() };
        world.agent().post("/agent/v1/renew", &empty).await.problem(ErrorCode::InvalidField);
    }
}
