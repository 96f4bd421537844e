//! `GET /healthz`: whether the server lives.

/// Whether the server lives
///
/// Says nothing about what it stands on.
#[utoipa::path(
    get, path = "/healthz", tag = "service", operation_id = "healthz", security(()),
    responses((status = 200, description = "It lives.", body = String, content_type = "text/plain"))
)]
pub async fn healthz() -> &'static str {
    "ok\n"
}
