//! `GET /v1/hosts`: the hosts of the org.

use std::sync::Arc;

use axum::extract::State;
use holm_api::hosts::HostList;

use crate::{
    app::App,
    auth::{May, Read},
    ops,
    problem::Failure,
};

/// List hosts
#[utoipa::path(
    get, path = "/v1/hosts", tag = "hosts", operation_id = "host_list",
    responses((status = 200, description = "All hosts of the org, by name.", body = HostList))
)]
pub async fn list(State(app): State<Arc<App>>, caller: May<Read>) -> Result<axum::Json<HostList>, Failure> {
    Ok(axum::Json(HostList { hosts: ops::hosts::host_list(&app, caller.org()).await? }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn hosts_show_what_they_hold_and_whether_they_live() {
        let world = World::new().await;
        world.claim_run().await;
        let list: HostList = world.member().get("/v1/hosts").await.json(StatusCode::OK);
        let [host] = &list.hosts[..] else { panic!("{list:?}") };
        assert_eq!((host.id, host.runs_held, host.alive), (world.agent_id, 1, true));
        world.clock.advance(Duration::from_secs(31));
        let later: HostList = world.member().get("/v1/hosts").await.json(StatusCode::OK);
        assert!(!later.hosts[0].alive);
        let theirs: HostList = world.other_org().get("/v1/hosts").await.json(StatusCode::OK);
        assert!(theirs.hosts.is_empty());
    }
}
