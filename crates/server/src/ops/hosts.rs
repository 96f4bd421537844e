//! Hosts: register an agent, note that it was heard of, show all.

use holm_api::{
    agent::{Register, Registered},
    hosts::HostView,
};
use holm_domain::{
    AgentId, ErrorCode, OrgId,
    error::InvalidField,
    host::Host,
    limits::{LABEL_BYTES_MAX, LABELS_MAX},
};

use super::tokens::check_name;
use crate::{app::App, problem::Failure};

/// The most runtimes of a host, and the most capabilities or remarks of one.
const RUNTIMES_MAX: usize = 64;

/// Takes a host in, or brings its record up to date.
pub async fn agent_register(app: &App, org: OrgId, body: Register) -> Result<Registered, Failure> {
    check(&body)?;
    let now = app.now();
    let host = Host {
        id: body.agent,
        org,
        name: body.name,
        version: body.version,
        capacity: body.capacity,
        runtimes: body.runtimes,
        labels: body.labels,
        registered_at: now,
        seen_at: now,
    };
    app.store.host_upsert(&host).await.map_err(|error| match error {
        // The id is taken in another org; to say so would tell that it exists.
        holm_store::Error::Conflict { .. } => {
            Failure::new(ErrorCode::Conflict, "the agent's id cannot be used here; remove `agent/id` to draw a new one")
        }
        other => other.into(),
    })?;
    app.wakers.ring_org(org);
    Ok(times(app))
}

fn times(app: &App) -> Registered {
    let millis = |span: std::time::Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let lease = &app.config.lease;
    Registered { lease_ttl_ms: millis(lease.ttl), renew_every_ms: millis(lease.renew_every()) }
}

fn check(body: &Register) -> Result<(), InvalidField> {
    check_name("name", &body.name)?;
    check_name("version", &body.version)?;
    let fits = |list: &[String]| list.len() <= RUNTIMES_MAX && list.iter().all(|text| text.len() <= 1_024);
    let too_many = format!("give at most {RUNTIMES_MAX}");
    if body.runtimes.len() > RUNTIMES_MAX {
        return Err(InvalidField::new("runtimes", body.runtimes.len(), too_many));
    }
    for (index, runtime) in body.runtimes.iter().enumerate() {
        check_name(&format!("runtimes[{index}].name"), &runtime.name)?;
        if !fits(&runtime.capabilities) || !fits(&runtime.unenforced) {
            let problem = format!("{too_many} capabilities and remarks of at most 1,024 bytes");
            return Err(InvalidField::new(format!("runtimes[{index}]"), &runtime.name, problem));
        }
    }
    let short = |text: &String| text.len() <= LABEL_BYTES_MAX && !text.contains('\0');
    if body.labels.len() > LABELS_MAX || !body.labels.iter().all(|(key, value)| short(key) && short(value)) {
        let problem = format!("give at most {LABELS_MAX} labels of at most {LABEL_BYTES_MAX} bytes");
        return Err(InvalidField::new("labels", body.labels.len(), problem));
    }
    Ok(())
}

/// The host of a registered agent; its record says at most a third of a lease late when it was heard of.
pub(crate) async fn host_heard(app: &App, org: OrgId, agent: AgentId) -> Result<Host, Failure> {
    let host = app.store.host_get(org, agent).await?;
    let host = host.ok_or_else(|| {
        Failure::new(ErrorCode::NotFound, "the agent is not registered in this org; register first").at("agent", agent)
    })?;
    let now = app.now();
    if now.since(host.seen_at) >= app.config.lease.renew_every() {
        app.store.host_seen(org, agent, now).await?;
    }
    Ok(host)
}

/// All hosts of the org, by name.
pub async fn host_list(app: &App, org: OrgId) -> Result<Vec<HostView>, Failure> {
    let held = app.store.lease_counts(org).await?;
    let hosts = app.store.host_list(org).await?;
    let view = |host: Host| {
        let runs_held = held.get(&host.id).copied().unwrap_or(0);
        view(app, host, runs_held)
    };
    Ok(hosts.into_iter().map(view).collect())
}

fn view(app: &App, host: Host, runs_held: u32) -> HostView {
    HostView {
        alive: app.now().since(host.seen_at) <= app.config.lease.ttl,
        id: host.id,
        name: host.name,
        version: host.version,
        capacity: host.capacity,
        runs_held,
        runtimes: host.runtimes,
        registered_at: host.registered_at,
        seen_at: host.seen_at,
    }
}
