//! `POST /v1/hosts/{id}/cordon`: has a host take no new runs.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{hosts::HostView, problem::Problem};

use crate::{
    app::App,
    auth::{Administer, May},
    http::extract::HostPath,
    ops,
    problem::Failure,
};

/// Cordon a host
///
/// It takes no new runs until it is uncordoned, whatever its agent says; the runs that it has go on. Who cordons it first
/// stands in its record.
#[utoipa::path(
    post, path = "/v1/hosts/{id}/cordon", tag = "hosts", operation_id = "host_cordon",
    params(("id" = String, Path, description = "The host, by the identity of its agent, as `agt_…`.")),
    responses(
        (status = 200, description = "The host as it is now.", body = HostView),
        (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn cordon(
    State(app): State<Arc<App>>,
    caller: May<Administer>,
    HostPath(id): HostPath,
) -> Result<axum::Json<HostView>, Failure> {
    Ok(axum::Json(ops::hosts::host_cordon(&app, &caller.token, id).await?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holm_api::agent::{Poll, Polled};
    use holm_domain::ErrorCode;
    use http::StatusCode;

    use super::*;
    use crate::testing::World;

    async fn asked(world: &World, verb: &str) -> HostView {
        world.admin().post(&format!("/v1/hosts/{}/{verb}", world.agent_id), &()).await.json(StatusCode::OK)
    }

    #[tokio::test]
    async fn a_cordoned_host_is_granted_nothing_until_it_is_uncordoned_and_keeps_what_it_has() {
        let world = World::with_limits(|limits| limits.reread_every = Duration::from_secs(3_600)).await;
        let held = world.claim_run().await;
        let host = asked(&world, "cordon").await;
        let cordon = host.cordon.clone().unwrap();
        assert_eq!((host.runs_held, cordon.by_name.as_str(), cordon.at), (1, "bootstrap", world.clock.now()));
        world.clock.advance(Duration::from_secs(1));
        assert_eq!(asked(&world, "cordon").await.cordon, Some(cordon.clone()), "the first one stays");
        // The agent starts anew: it does not lift what people want.
        let registration = world.registration();
        assert_eq!(world.agent().post("/agent/v1/register", &registration).await.status, StatusCode::OK);
        let id = world.queue_run().await;
        let poll = Poll { held: vec![held], ..world.poll() };
        let polled: Polled = world.agent().post("/agent/v1/poll", &poll).await.json(StatusCode::OK);
        assert!(polled.is_empty(), "{polled:?}");
        // A poll that waits hears that the host is uncordoned.
        let waiting = Poll { wait_ms: 60_000, ..poll };
        let agent = world.agent();
        let uncordon = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            asked(&world, "uncordon").await
        };
        let (polled, host) = tokio::join!(agent.post("/agent/v1/poll", &waiting), uncordon);
        assert_eq!(host.cordon, None);
        assert_eq!(polled.json::<Polled>(StatusCode::OK).claimed[0].run, id);
        world.append_log(held, 1, &["on\n"]).await;
        world.finish(held, 2).await;
    }

    #[tokio::test]
    async fn only_admins_of_its_org_cordon_a_host_that_there_is() {
        let world = World::new().await;
        for verb in ["cordon", "uncordon"] {
            let path = format!("/v1/hosts/{}/{verb}", world.agent_id);
            world.member().post(&path, &()).await.problem(ErrorCode::Forbidden);
            world.other_org().post(&path, &()).await.problem(ErrorCode::NotFound);
            let unknown = format!("/v1/hosts/agt_00000000000000000000000001/{verb}");
            world.admin().post(&unknown, &()).await.problem(ErrorCode::NotFound);
            world.admin().post(&format!("/v1/hosts/host-1/{verb}"), &()).await.problem(ErrorCode::InvalidField);
        }
    }
}
