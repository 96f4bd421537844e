//! The HTTP surface: one endpoint, one file, with its description, its errors and its test.
//!
//! From outside to inside a request passes: [`frame`] (number, panic, problem document, log), the deadline and the body
//! limit of its group of routes, the token ([`crate::auth`]), the readers of [`extract`], the handler. A handler reads its
//! arguments, calls one operation of [`crate::ops`], and shapes the answer; it decides nothing.

mod agent;
mod audit;
pub mod cursor;
pub mod extract;
pub mod follow;
pub mod frame;
mod hosts;
mod keys;
mod orgs;
mod pools;
mod run_token;
mod runs;
mod secrets;
mod service;
mod tokens;

use std::{sync::Arc, time::Duration};

use axum::{Router, extract::DefaultBodyLimit, middleware};
use utoipa::openapi::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    activity,
    app::App,
    config::{POLL_WAIT_MS_MAX, ServeLimits},
};
use frame::Deadline;

type Routes = OpenApiRouter<Arc<App>>;

/// All routes of a server.
pub fn router(app: Arc<App>) -> Router {
    let (router, _) = routes(&app.config.limits).split_for_parts();
    let count = middleware::from_fn_with_state(Arc::clone(&app.activity), activity::count);
    router.layer(middleware::from_fn_with_state(Arc::clone(&app), frame::frame)).layer(count).with_state(app)
}

/// The description of the API.
pub fn openapi() -> OpenApi {
    let mut openapi = routes(&ServeLimits::default()).into_openapi();
    service::openapi::complete(&mut openapi);
    openapi
}

fn routes(limits: &ServeLimits) -> Routes {
    let polls = limits.request_timeout + Duration::from_millis(POLL_WAIT_MS_MAX);
    let body = DefaultBodyLimit::max;
    OpenApiRouter::with_openapi(service::openapi::head())
        .merge(group(ordinary(), limits.request_timeout, body(limits.body_bytes_max)))
        .merge(group(appends(), limits.request_timeout, body(limits.log_body_bytes_max)))
        .merge(group(waits(), polls, body(limits.body_bytes_max)))
        // The upload counts its bytes itself while it passes them on.
        .merge(group(uploads(), limits.upload_timeout, DefaultBodyLimit::disable()))
}

fn group(routes: Routes, timeout: Duration, body: DefaultBodyLimit) -> Routes {
    routes.layer(body).layer(middleware::from_fn_with_state(Deadline(timeout), frame::deadline))
}

fn ordinary() -> Routes {
    OpenApiRouter::new()
        .routes(routes!(runs::create::create, runs::list::list))
        .routes(routes!(runs::get::get, runs::delete::delete))
        .routes(routes!(runs::cancel::cancel))
        .routes(routes!(runs::logs::logs))
        .routes(routes!(runs::egress::egress))
        .routes(routes!(runs::logs_follow::logs_follow))
        .routes(routes!(runs::logs_batches::logs_batches))
        .routes(routes!(runs::logs_range::logs_range))
        .routes(routes!(runs::logs_search::logs_search))
        .routes(routes!(runs::events::events))
        .routes(routes!(runs::events_follow::events_follow))
        .routes(routes!(runs::changes::changes))
        .routes(routes!(hosts::list::list))
        .routes(routes!(hosts::cordon::cordon))
        .routes(routes!(hosts::uncordon::uncordon))
        .routes(routes!(hosts::revoke::revoke))
        .routes(routes!(hosts::joins::create, hosts::joins::list))
        .routes(routes!(hosts::joins::revoke))
        .routes(routes!(orgs::create::create, orgs::list::list))
        .routes(routes!(orgs::limits::limits, orgs::limits_set::limits_set))
        .routes(routes!(pools::list::list))
        .routes(routes!(pools::share::share, pools::unshare::unshare))
        .routes(routes!(pools::add::add, pools::remove::remove))
        .routes(routes!(tokens::create::create, tokens::list::list))
        .routes(routes!(tokens::revoke::revoke))
        .routes(routes!(tokens::whoami::whoami))
        .routes(routes!(keys::list::list))
        .routes(routes!(keys::rotate::rotate))
        .routes(routes!(keys::envelope_rotate::envelope_rotate))
        .routes(routes!(keys::withdraw::withdraw))
        .routes(routes!(keys::jwks::jwks))
        .routes(routes!(secrets::create::create, secrets::list::list))
        .routes(routes!(secrets::rotate::rotate, secrets::delete::delete))
        .routes(routes!(secrets::bind::bind))
        .routes(routes!(audit::list::list))
        .routes(routes!(run_token::run_token))
        .routes(routes!(agent::enrol::enrol))
        .routes(routes!(agent::session::session))
        .routes(routes!(agent::register::register))
        .routes(routes!(agent::renew::renew))
        .routes(routes!(agent::start::start))
        .routes(routes!(agent::secrets::secrets))
        .routes(routes!(agent::events::events))
        .routes(routes!(agent::ended::ended))
        .routes(routes!(agent::finish::finish))
        .routes(routes!(service::healthz::healthz))
        .routes(routes!(service::readyz::readyz))
        .routes(routes!(service::metrics::metrics))
        .routes(routes!(service::openapi::openapi))
}

fn appends() -> Routes {
    OpenApiRouter::new().routes(routes!(agent::logs::logs))
}

fn waits() -> Routes {
    OpenApiRouter::new().routes(routes!(agent::poll::poll))
}

fn uploads() -> Routes {
    OpenApiRouter::new().routes(routes!(agent::changes::changes))
}

#[cfg(test)]
mod tests;
