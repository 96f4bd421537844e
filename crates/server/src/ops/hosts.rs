//! Hosts: register an agent, note that it was heard of, show all, say which take new runs.

use std::time::Duration;

use holm_api::{
    agent::{AGENT_FIELD, Register, Registered},
    hosts::{HostIdentity, HostView},
};
use holm_domain::{
    AgentId, ErrorCode, OrgId, TokenId, UnixMicros,
    access::Token,
    audit::Action,
    enrol::HostKey,
    error::InvalidField,
    host::{Cordon, Host, NotHeard, Voice, speaks},
    lease::Claimant,
    limits::{LABEL_BYTES_MAX, LABELS_MAX},
};

use holm_store::LeaseRow;

use super::{audit, tokens::check_name};
use crate::{
    app::App,
    auth::speaker::{Speaker, key_that_counts, revoked},
    config::SWAPS_MAX,
    ids,
    problem::Failure,
};

/// What is said instead of who of its owner put a cordon on a shared host.
const OWNER: &str = "its owner";

/// The most runtimes of a host, and the most capabilities or remarks of one.
const RUNTIMES_MAX: usize = 64;

/// Takes a host in, or brings its record up to date. The process that registers is the one that is heard from then on;
/// decided and saved until nobody else was faster.
pub async fn agent_register(app: &App, by: &Speaker, body: Register) -> Result<Registered, Failure> {
    check(&body)?;
    let after = body.after;
    let wanted = host_wanted(app, by, body);
    for _ in 0..SWAPS_MAX {
        let found = app.store.host_key_of(wanted.id).await?;
        if found.is_some_and(|(org, _)| org != by.org) {
            return Err(not_here(wanted.id));
        }
        let key = found.map(|(_, key)| key);
        if let Err(error) = speaks(wanted.id, key.as_ref(), by.voice) {
            return Err(not_heard(app, by.voice, error).await);
        }
        let known = app.store.host_get(by.org, wanted.id).await?;
        let wanted = Host { key, token: token_of(by.voice, key), ..wanted.clone() };
        let host = match &known {
            None => wanted,
            Some(known) => known.registered_as(wanted, by.voice, after, is_bound(app, known).await?)?,
        };
        match app.store.host_upsert(known.as_ref().map(|known| known.instance), &host).await {
            Ok(()) => {
                tracing::info!(agent = %host.id, instance = %host.instance, "registered");
                // What an earlier process waits for is answered now.
                app.wakers.ring_agents(by.org);
                return Ok(times(app));
            }
            Err(holm_store::Error::Conflict { .. })
                if known.is_none()
                    && app.store.host_key_of(host.id).await? == found
                    && !is_there(app, &host).await? =>
            {
                return Err(not_here(host.id));
            }
            Err(holm_store::Error::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let cause = format!("{SWAPS_MAX} attempts to register {} found it registered by another process", wanted.id);
    Err(Failure::unavailable("many processes register as this agent at once; try again", cause))
}

/// The id belongs to another org; to say so would tell that it exists.
pub(super) fn not_here(agent: AgentId) -> Failure {
    let detail = "the agent's id cannot be used here; remove `agent/id` to draw a new one";
    Failure::new(ErrorCode::Conflict, detail).at(AGENT_FIELD, agent)
}

async fn is_there(app: &App, host: &Host) -> Result<bool, Failure> {
    Ok(app.store.host_get(host.org, host.id).await?.is_some())
}

/// Whether the token with which the agent of `host` speaks still works.
pub(super) async fn is_bound(app: &App, host: &Host) -> Result<bool, Failure> {
    let token = app.store.token_get(host.org, host.token).await?;
    Ok(token.is_some_and(|token| token.is_live(app.now())))
}

/// A program of before keys wants a token for each host, and hears nobody who speaks with that by which one was enrolled.
fn token_of(voice: Voice, key: Option<HostKey>) -> TokenId {
    match voice {
        Voice::Token(token) => token,
        Voice::Key(..) => key.map_or_else(ids::token, |key| key.join),
    }
}

/// The record that is asked for, before it is known with which key the agent speaks.
fn host_wanted(app: &App, by: &Speaker, body: Register) -> Host {
    let now = app.now();
    Host {
        id: body.agent,
        org: by.org,
        name: body.name,
        version: body.version,
        capacity: body.capacity,
        runtimes: body.runtimes,
        labels: body.labels,
        token: token_of(by.voice, None),
        key: None,
        instance: body.instance,
        superseded: Vec::new(),
        registered_at: now,
        seen_at: now,
        cordon: None,
        pool: None,
    }
}

fn times(app: &App) -> Registered {
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
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

/// The time between two instants. One that lies ahead was written by a clock that has been set back since.
fn apart(one: UnixMicros, other: UnixMicros) -> Duration {
    one.since(other).max(other.since(one))
}

/// The host for whose agent the process `by` speaks. Its record says at most a third of a lease late when it
/// was heard of.
pub(crate) async fn host_heard(app: &App, speaker: &Speaker, by: Claimant) -> Result<Host, Failure> {
    let host = app.store.host_get(speaker.org, by.agent).await?;
    note_heard(app, speaker, by, host).await
}

/// The same, with the leases that the agent holds.
pub(crate) async fn host_heard_with_leases(
    app: &App,
    speaker: &Speaker,
    by: Claimant,
) -> Result<(Host, Vec<LeaseRow>), Failure> {
    let (host, leases) = app.store.host_and_leases(speaker.org, by.agent).await?;
    Ok((note_heard(app, speaker, by, host).await?, leases))
}

async fn note_heard(app: &App, speaker: &Speaker, by: Claimant, host: Option<Host>) -> Result<Host, Failure> {
    let Claimant { agent, .. } = by;
    let host = host.ok_or_else(|| {
        let detail = "the agent is not registered in this org; register first";
        Failure::new(ErrorCode::NotFound, detail).at(AGENT_FIELD, agent)
    })?;
    if let Err(error) = host.hears(by, speaker.voice) {
        return Err(not_heard(app, speaker.voice, error).await);
    }
    let now = app.now();
    if apart(now, host.seen_at) >= app.config.lease.renew_every() {
        app.store.host_seen(speaker.org, agent, now).await?;
    }
    Ok(host)
}

/// Why somebody is not heard. Who speaks with another key than that of the host may have had that of before, which was revoked.
async fn not_heard(app: &App, voice: Voice, error: NotHeard) -> Failure {
    match (error, voice) {
        (NotHeard::OtherKey(_), Voice::Key(agent, key)) => {
            key_that_counts(app, agent, key).await.err().unwrap_or_else(|| error.into())
        }
        _ => error.into(),
    }
}

impl From<NotHeard> for Failure {
    fn from(error: NotHeard) -> Self {
        match error {
            NotHeard::OtherToken { agent, bound } => {
                let detail = format!(
                    "the agent registered with {bound} and speaks with no other token while that works; give it that \
                     token, or revoke that one first, or remove `agent/id` in its state folder to draw a new identity"
                );
                Self::new(ErrorCode::Forbidden, detail).at(AGENT_FIELD, agent)
            }
            NotHeard::OtherKey(agent) => {
                let detail = format!(
                    "{error}; give its agent the folder with that key, or, if that is lost, revoke it \
                     (`holm hosts revoke HOST`) and enrol the host again (`holm hosts join NAME`)"
                );
                Self::new(ErrorCode::Forbidden, detail).at(AGENT_FIELD, agent)
            }
            NotHeard::Revoked(agent) => revoked(agent),
            NotHeard::Superseded { instance, .. } => {
                Self::new(ErrorCode::AgentSuperseded, error.to_string()).at("instance", instance)
            }
        }
    }
}

/// All hosts of the org, by name, and then those of pools that are shared with it.
pub async fn host_list(app: &App, org: OrgId) -> Result<Vec<HostView>, Failure> {
    let mut hosts = host_views(app, org, app.store.host_list(org).await?).await?;
    if let Some(owner) = app.pools.default_org(app).await?.filter(|owner| *owner != org) {
        let shared = app.store.hosts_shared(owner, org).await?;
        if !shared.is_empty() {
            hosts.extend(host_views(app, owner, shared).await?.into_iter().map(to_guests));
        }
    }
    Ok(hosts)
}

/// The hosts of an org as they are shown.
async fn host_views(app: &App, owner: OrgId, hosts: Vec<Host>) -> Result<Vec<HostView>, Failure> {
    let held = app.store.lease_counts(owner).await?;
    let view = |host: Host| {
        let runs_held = held.get(&host.id).copied().unwrap_or(0);
        view(app, host, runs_held)
    };
    Ok(hosts.into_iter().map(view).collect())
}

/// What others than its owner are shown of a host: not how it is identified, nor who of the owner said something.
fn to_guests(host: HostView) -> HostView {
    let cordon = host.cordon.map(|cordon| Cordon {
        by: TokenId::from_uuid(uuid::Uuid::nil()),
        by_name: OWNER.to_owned(),
        ..cordon
    });
    HostView { identity: None, cordon, is_shared: true, ..host }
}

/// Has a host take no new runs; those that it has go on. A claim that is being made meanwhile may still be granted.
pub async fn host_cordon(app: &App, by: &Token, id: AgentId) -> Result<HostView, Failure> {
    let cordon = Cordon { by: by.id, by_name: by.name.clone(), at: app.now() };
    host_cordon_as(app, by, id, Some(cordon)).await
}

/// Has a host take new runs again.
pub async fn host_uncordon(app: &App, by: &Token, id: AgentId) -> Result<HostView, Failure> {
    let host = host_cordon_as(app, by, id, None).await?;
    // What its agent waits for may be there.
    app.wakers.ring_queue(by.org);
    Ok(host)
}

/// Where nothing changes, nothing is told.
async fn host_cordon_as(app: &App, by: &Token, id: AgentId, cordon: Option<Cordon>) -> Result<HostView, Failure> {
    let find = || async { app.store.host_get(by.org, id).await?.ok_or_else(|| Failure::not_found("host", id)) };
    let mut host = find().await?;
    if host.cordon.is_some() != cordon.is_some() {
        let is_cordoned = cordon.is_some();
        let action = if is_cordoned { Action::HostCordoned } else { Action::HostUncordoned };
        let told = audit::told(app, by, action, id).with("name", &host.name);
        app.store.host_cordon(by.org, id, cordon.as_ref(), &[told]).await?;
        tracing::info!(agent = %id, host = host.name, by = %by.id, by_name = by.name, is_cordoned, "a cordon changed");
        host = find().await?;
    }
    let held = app.store.lease_counts(by.org).await?;
    Ok(view(app, host, held.get(&id).copied().unwrap_or(0)))
}

/// Whether the agent of the host was heard of within the time of a lease.
pub(crate) fn is_alive(app: &App, host: &Host) -> bool {
    apart(app.now(), host.seen_at) <= app.config.lease.ttl
}

fn view(app: &App, host: Host, runs_held: u32) -> HostView {
    let identity = match host.key {
        None => HostIdentity::Token { token: host.token },
        Some(HostKey { public: key, enrolled_at, revoked_at, .. }) => {
            HostIdentity::Key { key, enrolled_at, revoked_at }
        }
    };
    HostView {
        alive: is_alive(app, &host),
        id: host.id,
        name: host.name,
        version: host.version,
        capacity: host.capacity,
        runs_held,
        runtimes: host.runtimes,
        labels: host.labels,
        identity: Some(identity),
        pool: host.pool,
        is_shared: false,
        cordon: host.cordon,
        registered_at: host.registered_at,
        seen_at: host.seen_at,
    }
}
