//! `GET /v1/audit`: the audit log of the org, oldest first, page by page.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{
    audit::{AuditPage, ListAudit},
    problem::Problem,
};
use holm_store::AUDIT_PAGE_MAX;

use crate::{
    app::App,
    auth::{Administer, May},
    http::extract::{Params, within},
    ops,
    problem::Failure,
};

/// How many records a page has where nobody says.
const AUDIT_PAGE_DEFAULT: u32 = 100;

/// Read the audit log
///
/// Oldest first, without gaps: the next page is that after the last number. Nothing of it is ever changed or removed. Each record
/// bears the digest of the one before, and a digest over that and over all that it says, so that whoever keeps the head can tell
/// later whether anything before it was touched; how the digest is made stands in the guide.
#[utoipa::path(
    get, path = "/v1/audit", tag = "audit", operation_id = "audit_list",
    params(ListAudit),
    responses(
        (status = 200, description = "Records, and the head of the log.", body = AuditPage),
        (status = 422, description = "`invalid_field`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn list(
    State(app): State<Arc<App>>,
    caller: May<Administer>,
    Params(query): Params<ListAudit>,
) -> Result<axum::Json<AuditPage>, Failure> {
    let (after, limit) = (query.after.unwrap_or(0), query.limit.unwrap_or(AUDIT_PAGE_DEFAULT));
    within("after", after, 0, i64::MAX.unsigned_abs())?;
    within("limit", limit.into(), 1, AUDIT_PAGE_MAX.into())?;
    Ok(axum::Json(ops::audit::audit_page(&app, caller.org(), after, limit).await?))
}
