//! Orgs: look at their limits, and set them.

use holm_api::orgs::{CreateOrg, OrgLimitView, OrgLimitsView, SetOrgLimits};
use holm_domain::{
    ErrorCode,
    access::{self, Role, Token},
    audit::{Action, Actor, Entry},
    error::InvalidField,
    org_limits::{OrgLimit, OrgLimits},
};
use holm_store::{Error, Org, Project};
use secrecy::SecretString;

use super::{
    audit,
    runs::DEFAULT_PROJECT,
    tokens::{not_private, token_draw, token_told},
};
use crate::{app::App, auth::bootstrap::DEFAULT_ORG, ids, problem::Failure};

/// The name of the token with which an org begins.
const FIRST_TOKEN: &str = "first admin";

/// The longest name of an org, in characters.
const ORG_NAME_MAX: usize = 63;

fn check_org_name(name: &str) -> Result<(), InvalidField> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.len() <= ORG_NAME_MAX && name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(is_plain) {
        return Ok(());
    }
    let problem = format!("give 1 to {ORG_NAME_MAX} small letters, digits and hyphens, a letter first");
    Err(InvalidField::new("name", name, problem))
}

/// Makes an org with its default project and a token for its admins; the secret is nowhere but in the answer. For admins of
/// the default org.
pub async fn org_create(app: &App, by: &Token, body: CreateOrg) -> Result<(Org, Token, SecretString), Failure> {
    not_private(app)?;
    must_rule(app, by, "orgs are made").await?;
    check_org_name(&body.name)?;
    let now = app.now();
    let org = Org { id: ids::org(), name: body.name, created_at: now };
    let project = Project { id: ids::project(), org: org.id, name: DEFAULT_PROJECT.to_owned(), created_at: now };
    let (token, secret) = token_draw(&app.config.clock, org.id, Role::Admin, FIRST_TOKEN.to_owned(), None);
    let told = audit::told(app, by, Action::OrgCreated, org.id).with("name", &org.name);
    let first = Entry::new(org.id, now, Actor::Server, Action::TokenCreated, token.id);
    match app.store.org_found(&org, &project, &token, &[told, token_told(first, &token)]).await {
        Ok(()) => {}
        Err(Error::Conflict { .. }) => {
            let detail = format!("there is an org `{}` already; choose another name", org.name);
            return Err(Failure::new(ErrorCode::Conflict, detail).at("name", org.name));
        }
        Err(error) => return Err(error.into()),
    }
    tracing::info!(org = %org.id, name = org.name, by = %by.id, "an org was made");
    Ok((org, token, secret))
}

/// All orgs, by name. For admins of the default org.
pub async fn org_list(app: &App, by: &Token) -> Result<Vec<Org>, Failure> {
    must_rule(app, by, "orgs are listed").await?;
    Ok(app.store.org_list().await?)
}

/// Refuses who is no admin of the org that rules the server.
pub(super) async fn must_rule(app: &App, by: &Token, what: &str) -> Result<(), Failure> {
    if is_of_default(app, by).await? {
        return Ok(());
    }
    let detail = format!("{what} by admins of the org `{DEFAULT_ORG}`");
    Err(Failure::new(ErrorCode::Forbidden, detail))
}

/// The org of that name or id, as far as the holder of `token` may know of it.
pub(super) async fn visible(app: &App, token: &Token, org: &str) -> Result<Org, Failure> {
    let found = match org.parse() {
        Ok(id) => app.store.org_get(id).await?,
        Err(_) => app.store.org_by_name(org).await?,
    };
    let found = found.ok_or_else(|| Failure::not_found("org", org))?;
    if found.id == token.org || (token.role.allows(access::Action::Administer) && is_of_default(app, token).await?) {
        return Ok(found);
    }
    Err(Failure::not_found("org", org))
}

async fn is_of_default(app: &App, token: &Token) -> Result<bool, Failure> {
    Ok(app.pools.default_org(app).await? == Some(token.org))
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
    must_rule(app, token, "limits are set").await?;
    let org = visible(app, token, org).await?;
    let read = body.limits.iter().map(|(name, value)| read(name, *value));
    for (limit, value) in read.collect::<Result<Vec<_>, _>>()? {
        let told = audit::told(app, token, Action::OrgLimitsSet, org.id).with("name", &org.name);
        let told = told
            .with("limit", limit.as_str())
            .with("value", value.map_or("default".to_owned(), |value| value.to_string()));
        app.store.org_limit_set(org.id, limit, value, &[told]).await?;
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
