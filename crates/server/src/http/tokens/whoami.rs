//! `GET /v1/whoami`: whose token this is.

use std::sync::Arc;

use axum::extract::State;
use holm_api::tokens::WhoAmI;

use super::view;
use crate::{app::App, auth::Known, problem::Failure};

/// Who am I
#[utoipa::path(
    get, path = "/v1/whoami", tag = "tokens", operation_id = "whoami",
    responses((status = 200, description = "The token, its org, and the version of the server.", body = WhoAmI))
)]
pub async fn whoami(State(app): State<Arc<App>>, caller: Known) -> Result<axum::Json<WhoAmI>, Failure> {
    let org = app.store.org_get(caller.token.org).await?;
    let org = org.ok_or_else(|| Failure::internal("a token of an org that is not there"))?;
    Ok(axum::Json(WhoAmI {
        token: view(caller.token),
        org: org.id,
        org_name: org.name,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use holm_domain::access::Role;
    use http::StatusCode;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn every_role_may_ask_who_it_is() {
        let world = World::new().await;
        for (caller, role) in
            [(world.admin(), Role::Admin), (world.member(), Role::Member), (world.agent(), Role::Agent)]
        {
            let me: WhoAmI = caller.get("/v1/whoami").await.json(StatusCode::OK);
            assert_eq!((me.token.role, me.org, me.org_name.as_str()), (role, world.org, "default"));
        }
    }
}
