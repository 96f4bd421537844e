//! Orgs: look at their limits, and set them.

use holm_api::orgs::{OrgLimitView, OrgLimitsView, SetOrgLimits};
use holm_domain::{
    ErrorCode,
    access::{Action, Token},
    error::InvalidField,
    org_limits::{OrgLimit, OrgLimits},
};
use holm_store::Org;

use crate::{app::App, auth::bootstrap::DEFAULT_ORG, problem::Failure};

/// The org of that name or id, as far as the holder of `token` may know of it.
async fn visible(app: &App, token: &Token, org: &str) -> Result<Org, Failure> {
    let found = match org.parse() {
        Ok(id) => app.store.org_get(id).await?,
        Err(_) => app.store.org_by_name(org).await?,
    };
    let found = found.ok_or_else(|| Failure::not_found("org", org))?;
    if found.id == token.org || (token.role.allows(Action::Administer) && is_of_default(app, token).await?) {
        return Ok(found);
    }
    Err(Failure::not_found("org", org))
}

async fn is_of_default(app: &App, token: &Token) -> Result<bool, Failure> {
    let default = app.store.org_by_name(DEFAULT_ORG).await?;
    Ok(default.is_some_and(|org| org.id == token.org))
}

/// What an org may have and do at most.
pub async fn org_limits(app: &App, token: &Token, org: &str) -> Result<OrgLimitsView, Failure> {
    let org = visible(app, token, org).await?;
    show(app, &org).await
}

/// Sets limits of an org; a name that is none, and a value that cannot be, changes nothing.
pub async fn org_limits_set(
    app: &App,
    token: &Token,
    org: &str,
    body: &SetOrgLimits,
) -> Result<OrgLimitsView, Failure> {
    if !is_of_default(app, token).await? {
        let detail = format!("limits are set by admins of the org `{DEFAULT_ORG}`");
        return Err(Failure::new(ErrorCode::Forbidden, detail));
    }
    let org = visible(app, token, org).await?;
    let read = body.limits.iter().map(|(name, value)| read(name, *value));
    for (limit, value) in read.collect::<Result<Vec<_>, _>>()? {
        app.store.org_limit_set(org.id, limit, value).await?;
        tracing::info!(org = %org.id, limit = limit.as_str(), value, "a limit was set");
    }
    app.limiter.forget(org.id);
    // Runs that waited for it may go on.
    app.wakers.ring_queue(org.id);
    show(app, &org).await
}

fn read(name: &str, value: Option<u64>) -> Result<(OrgLimit, Option<u64>), InvalidField> {
    let field = format!("limits.{name}");
    let Some(limit) = OrgLimit::parse(name) else {
        let names: Vec<&str> = OrgLimit::ALL.iter().map(|limit| limit.as_str()).collect();
        return Err(InvalidField::new(field, name, format!("give the name of a limit: {}", names.join(", "))));
    };
    let checked = value.map(|value| limit.check(value)).transpose();
    checked.map(|value| (limit, value)).map_err(|error| InvalidField { field, ..error })
}

async fn show(app: &App, org: &Org) -> Result<OrgLimitsView, Failure> {
    // A server that limits nobody is a simulation's, and asks nobody.
    let told: OrgLimits = app.config.org_limits.unwrap_or_default();
    let own = app.store.org_limits_get(org.id).await?;
    let limits = told.with(&own);
    let view = |limit: OrgLimit| OrgLimitView { value: limits.of(limit), is_own: own.of(limit).is_some() };
    Ok(OrgLimitsView {
        org: org.id,
        org_name: org.name.clone(),
        limits: OrgLimit::ALL.iter().map(|limit| (limit.as_str().to_owned(), view(*limit))).collect(),
        runs_running: app.store.org_leases_count(org.id, limits.runs_running_max).await?,
    })
}
