//! `POST /agent/v1/runs/{id}/events`: tell what happened in a sandbox.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{agent::AppendEvents, problem::Problem};
use http::StatusCode;

use crate::{
    app::App,
    auth::speaker::Speaker,
    http::extract::{Json, RunPath},
    ops,
    problem::Failure,
};

/// Append events
///
/// An event whose number within the lease was stored before is not stored again. One that is not accepted, because only the
/// server tells its kind, or it is not understood, is recorded as `event_refused` under its number.
#[utoipa::path(
    post, path = "/agent/v1/runs/{id}/events", tag = "agent", operation_id = "event_append",
    params(("id" = String, Path, description = "The run, as `run_…`.")),
    request_body = AppendEvents,
    responses(
        (status = 204, description = "They are stored."),
        (status = 409, description = "`stale_fence`, `agent_superseded`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid_field`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn events(
    State(app): State<Arc<App>>,
    speaker: Speaker,
    RunPath(id): RunPath,
    Json(body): Json<AppendEvents>,
) -> Result<StatusCode, Failure> {
    ops::events::event_append(&app, &speaker, id, body).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use holm_api::runs::EventPage;
    use holm_domain::{ErrorCode, run::EventKind};

    use super::*;
    use crate::testing::World;

    fn refused(host: &str) -> EventKind {
        EventKind::EgressRefused { host: host.into(), port: 443, protocol: "tcp".into(), count: 1, reason: None }
    }

    #[tokio::test]
    async fn events_of_an_agent_are_stored_once() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let path = format!("/agent/v1/runs/{}/events", held.run);
        let body = |first_seq, events: Vec<EventKind>| AppendEvents {
            agent: world.agent_id,
            instance: world.instance,
            fence: held.fence,
            first_seq,
            events: events.into_iter().map(Into::into).collect(),
        };
        let (a, b) = (refused("a.example"), refused("b.example"));
        for body in [body(1, vec![a.clone()]), body(1, vec![a.clone(), b.clone()]), body(2, vec![b.clone()])] {
            assert_eq!(world.agent().post(&path, &body).await.status, StatusCode::NO_CONTENT);
        }
        let page: EventPage =
            world.member().get(&format!("/v1/runs/{}/events?after=2", held.run)).await.json(StatusCode::OK);
        let kinds: Vec<_> = page.events.into_iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [a.clone(), b]);

        let old = AppendEvents { fence: 9, ..body(3, vec![a.clone()]) };
        world.agent().post(&path, &old).await.problem(ErrorCode::StaleFence);
        world.other_org_agent().post(&path, &body(3, vec![a.clone()])).await.problem(ErrorCode::NotFound);
        for absurd in
            [body(3, Vec::new()), body(3, vec![a.clone(); 257]), body(0, vec![a.clone()]), body(u64::MAX, vec![a])]
        {
            world.agent().post(&path, &absurd).await.problem(ErrorCode::InvalidField);
        }
    }

    #[tokio::test]
    async fn a_bad_event_is_recorded_as_refused_and_those_after_it_are_kept() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let path = format!("/agent/v1/runs/{}/events", held.run);
        let known = |event: &EventKind| serde_json::to_value(event).unwrap();
        let body = serde_json::json!({
            "agent": world.agent_id, "instance": world.instance, "fence": held.fence, "first_seq": 1,
            "events": [
                known(&refused("a.example")),
                known(&EventKind::Claimed { agent: world.agent_id, fence: 9 }),
                known(&refused(&"x".repeat(1_025))),
                {"kind": "of_the_future", "n": 1},
                "nonsense",
                known(&refused("b.example")),
            ],
        });
        for _ in 0..2 {
            assert_eq!(world.agent().post(&path, &body).await.status, StatusCode::NO_CONTENT);
        }
        let page: EventPage =
            world.member().get(&format!("/v1/runs/{}/events?after=2", held.run)).await.json(StatusCode::OK);
        assert_eq!(page.events.iter().map(|event| event.seq).collect::<Vec<_>>(), [3, 4, 5, 6, 7, 8], "each once");
        let kinds: Vec<_> = page.events.into_iter().map(|event| event.kind).collect();
        assert_eq!((&kinds[0], &kinds[5]), (&refused("a.example"), &refused("b.example")));
        let problems: Vec<_> = kinds[1..5]
            .iter()
            .map(|kind| match kind {
                EventKind::EventRefused { problem } => problem.as_str(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(problems[0].contains("only the server") && problems[1].contains("too long"), "{problems:?}");
        assert!(problems[2].contains("of_the_future"), "{problems:?}");
    }
}
