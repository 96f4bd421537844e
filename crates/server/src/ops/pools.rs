//! Pools: list them, put hosts into them, share them with orgs, and take that back.

use std::collections::BTreeMap;

use holm_api::orgs::{OrgView, PoolView};
use holm_domain::{
    AgentId, ErrorCode, OrgId, access::Token, audit::Action, error::InvalidField, host::Host, limits::LABEL_BYTES_MAX,
};

use super::{
    audit,
    orgs::{must_rule, visible},
};
use crate::{app::App, problem::Failure};

fn check_pool(pool: &str) -> Result<(), InvalidField> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let begins = pool.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins && pool.len() <= LABEL_BYTES_MAX && pool.chars().all(is_plain) {
        return Ok(());
    }
    let problem = format!(
        "give letters, digits, hyphens, dots and underscores, a letter or a digit first, at most {LABEL_BYTES_MAX}"
    );
    Err(InvalidField::new("pool", pool, problem))
}

/// All pools that are shared with an org, or have a host of the default org.
pub async fn pool_list(app: &App, by: &Token) -> Result<Vec<PoolView>, Failure> {
    must_rule(app, by, "pools are listed").await?;
    let hosts = app.store.host_list(by.org).await?;
    let mut pools = app.store.pool_list().await?;
    for pool in hosts.iter().filter_map(|host| host.pool.clone()) {
        pools.entry(pool).or_default();
    }
    let names = org_views(app).await?;
    let running = app.store.pool_counts(by.org).await?;
    Ok(pools.into_iter().map(|(name, orgs)| view(name, orgs, &hosts, (&names, &running))).collect())
}

/// Has a pool serve an org.
pub async fn pool_share(app: &App, by: &Token, pool: &str, org: &str) -> Result<PoolView, Failure> {
    must_rule(app, by, "pools are shared").await?;
    check_pool(pool)?;
    let org = visible(app, by, org).await?;
    if org.id == by.org {
        let problem = "name another org: the hosts are of this one, and serve it anyway";
        return Err(InvalidField::new("org", org.name, problem).into());
    }
    let told = audit::told(app, by, Action::PoolShared, pool).with("org", org.id).with("org_name", &org.name);
    app.store.pool_share(by.org, pool, org.id, &[told]).await?;
    tracing::info!(pool, org = %org.id, by = %by.id, "a pool is shared");
    changed(app, by.org, pool);
    show(app, by.org, pool).await
}

/// Has a pool serve an org no longer; the runs that it has there go on. Doing so again changes nothing.
pub async fn pool_unshare(app: &App, by: &Token, pool: &str, org: &str) -> Result<PoolView, Failure> {
    must_rule(app, by, "pools are shared").await?;
    check_pool(pool)?;
    let org = visible(app, by, org).await?;
    let told = audit::told(app, by, Action::PoolUnshared, pool).with("org", org.id).with("org_name", &org.name);
    if app.store.pool_unshare(pool, org.id, &[told]).await? {
        tracing::info!(pool, org = %org.id, by = %by.id, "a pool is shared no longer");
        changed(app, by.org, pool);
    }
    show(app, by.org, pool).await
}

/// Puts a host of the default org into a pool: it executes runs of the orgs with which that is shared as well. Doing so again
/// changes nothing.
pub async fn pool_add(app: &App, by: &Token, pool: &str, id: AgentId) -> Result<PoolView, Failure> {
    must_rule(app, by, "hosts are put into pools").await?;
    check_pool(pool)?;
    let host = host_of(app, by.org, id).await?;
    match &host.pool {
        Some(other) if other != pool => {
            let detail = format!("{id} is in the pool `{other}`; take it out of that first (`holm pools remove`)");
            return Err(Failure::new(ErrorCode::Conflict, detail).at("pool", other));
        }
        Some(_) => {}
        None => move_host(app, by, &host, (pool, true)).await?,
    }
    show(app, by.org, pool).await
}

/// Takes a host out of a pool: it takes nothing new of other orgs. Where it is not in that pool, nothing changes.
pub async fn pool_remove(app: &App, by: &Token, pool: &str, id: AgentId) -> Result<PoolView, Failure> {
    must_rule(app, by, "hosts are taken out of pools").await?;
    check_pool(pool)?;
    let host = host_of(app, by.org, id).await?;
    if host.pool.as_deref() == Some(pool) {
        move_host(app, by, &host, (pool, false)).await?;
    }
    show(app, by.org, pool).await
}

async fn host_of(app: &App, org: OrgId, id: AgentId) -> Result<Host, Failure> {
    app.store.host_get(org, id).await?.ok_or_else(|| Failure::not_found("host", id))
}

async fn move_host(app: &App, by: &Token, host: &Host, (pool, is_in): (&str, bool)) -> Result<(), Failure> {
    let action = if is_in { Action::PoolHostAdded } else { Action::PoolHostRemoved };
    let told = audit::told(app, by, action, pool).with("host", host.id).with("host_name", &host.name);
    app.store.host_pool(host, is_in.then_some(pool), &[told]).await?;
    tracing::info!(pool, agent = %host.id, by = %by.id, is_in, "the pool of a host changed");
    changed(app, by.org, pool);
    Ok(())
}

/// Those that wait for runs look again.
fn changed(app: &App, owner: OrgId, pool: &str) {
    app.pools.forget(pool);
    app.wakers.ring_agents(owner);
}

async fn org_views(app: &App) -> Result<BTreeMap<OrgId, OrgView>, Failure> {
    let view = |org: holm_store::Org| (org.id, OrgView { id: org.id, name: org.name, created_at: org.created_at });
    Ok(app.store.org_list().await?.into_iter().map(view).collect())
}

async fn show(app: &App, owner: OrgId, pool: &str) -> Result<PoolView, Failure> {
    let (orgs, hosts) = (app.store.pool_orgs(pool).await?, app.store.host_list(owner).await?);
    let running = app.store.pool_counts(owner).await?;
    Ok(view(pool.to_owned(), orgs, &hosts, (&org_views(app).await?, &running)))
}

fn view(
    name: String,
    orgs: Vec<OrgId>,
    hosts: &[Host],
    (names, running): (&BTreeMap<OrgId, OrgView>, &BTreeMap<String, u64>),
) -> PoolView {
    let mut orgs: Vec<OrgView> = orgs.iter().filter_map(|org| names.get(org).cloned()).collect();
    orgs.sort_by(|a, b| a.name.cmp(&b.name));
    let hosts = hosts.iter().filter(|host| host.pool.as_ref() == Some(&name)).count();
    let hosts = u32::try_from(hosts).unwrap_or(u32::MAX);
    PoolView { runs_running: running.get(&name).copied().unwrap_or(0), name, orgs, hosts }
}
