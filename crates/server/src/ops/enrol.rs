//! Join tokens and the keys of hosts: make, list and revoke tokens, enrol a host, revoke its key. Who did what is in the log.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use holm_api::{
    agent::AGENT_FIELD,
    hosts::{CreateJoin, HostKeyView, JoinView},
    identity::{Enrol, Enrolled, enrol_text},
};
use holm_domain::{
    AgentId, ErrorCode, OrgId, TokenId, UnixMicros,
    access::Token,
    audit::{Action, Actor, Entry},
    enrol::{
        Admitted, Enrols, HostKey, HostPublicKey, JOIN_LIFE_DEFAULT, JOIN_LIFE_MAX, JOIN_LIFE_MIN, Join, JoinUse,
        NotAdmitted, NotEnrolled, enrols,
    },
    error::InvalidField,
    host::Host,
};
use holm_store::Error;
use ring::signature::{ED25519, UnparsedPublicKey};
use secrecy::{ExposeSecret as _, SecretString};

use super::{
    audit,
    hosts::{is_bound, not_here},
    tokens::{check_name, not_private},
};
use crate::{
    app::App,
    auth::{self, speaker},
    config::SWAPS_MAX,
    ids,
    problem::Failure,
};

/// For how long a join token stands in the list after it has expired.
const SHOWN_FOR: Duration = Duration::from_secs(24 * 3_600);

/// Makes a join token of the org of `by`; the secret is nowhere but in the answer.
pub async fn join_create(app: &App, by: &Token, body: CreateJoin) -> Result<(JoinView, SecretString), Failure> {
    not_private(app)?;
    check_name("name", &body.name)?;
    let (least, most) = (JOIN_LIFE_MIN.as_secs(), JOIN_LIFE_MAX.as_secs());
    let seconds = body.expires_in_s.unwrap_or(JOIN_LIFE_DEFAULT.as_secs());
    if !(least..=most).contains(&seconds) {
        let problem = format!("give {least} to {most} seconds, or leave it out for {}", JOIN_LIFE_DEFAULT.as_secs());
        return Err(InvalidField::new("expires_in_s", seconds, problem).into());
    }
    let (secret, now) = (ids::join_secret(), app.now());
    let join = Join {
        id: ids::token(),
        org: by.org,
        name: body.name,
        hash: auth::hash(secret.expose_secret()),
        created_at: now,
        expires_at: now.plus(Duration::from_secs(seconds)),
        revoked_at: None,
        used: None,
    };
    let told = audit::told(app, by, Action::HostJoinCreated, join.id).with("name", &join.name);
    let told = told.with("expires_at", join.expires_at.0);
    match app.store.join_create(&join, now.minus(SHOWN_FOR), &[told]).await {
        Ok(()) => {}
        Err(Error::Limit { max, .. }) => return Err(too_many(max, now, &app.store.join_list(by.org).await?)),
        Err(error) => return Err(error.into()),
    }
    tracing::info!(join = %join.id, name = join.name, by = %by.id, by_name = by.name, "a join token was made");
    Ok((view(join), secret))
}

fn too_many(max: u64, now: UnixMicros, joins: &[Join]) -> Failure {
    let open = joins.iter().filter(|join| join.used.is_none() && join.works(now).is_ok());
    let first = open.min_by_key(|join| join.expires_at);
    let or_wait = first.map_or_else(String::new, |first| {
        let seconds = first.expires_at.since(now).as_secs() + 1;
        format!(", or wait: the first of them, {}, expires in {seconds} s", first.id)
    });
    let detail = format!(
        "the org has {max} join tokens that nobody has used, as many as it may; revoke some (`holm hosts joins` lists them, \
         `holm hosts revoke TOKEN` takes one out of use){or_wait}"
    );
    Failure::new(ErrorCode::TooMany, detail)
}

/// The join tokens of the org, newest first.
pub async fn join_list(app: &App, org: OrgId) -> Result<Vec<JoinView>, Failure> {
    Ok(app.store.join_list(org).await?.into_iter().map(view).collect())
}

fn view(join: Join) -> JoinView {
    let Join { id, name, created_at, expires_at, revoked_at, used, .. } = join;
    let (agent, used_at) = used.map(|used| (used.agent, used.at)).unzip();
    JoinView { id, name, created_at, expires_at, revoked_at, used_at, agent }
}

/// Revokes a join token of the org at once. Revoking again changes nothing; one that has enrolled a host is refused, since it
/// does nothing more, and the host goes on.
pub async fn join_revoke(app: &App, by: &Token, id: TokenId) -> Result<(), Failure> {
    let told = audit::told(app, by, Action::HostJoinRevoked, id);
    match app.store.join_revoke(by.org, id, app.now(), &[told]).await {
        Ok(()) => {}
        Err(Error::Conflict { .. }) => return Err(used_up(app.store.join_get(by.org, id).await?, id)),
        Err(error) => return Err(error.into()),
    }
    tracing::info!(join = %id, by = %by.id, by_name = by.name, "a join token was revoked");
    Ok(())
}

fn used_up(join: Option<Join>, id: TokenId) -> Failure {
    let Some(used) = join.and_then(|join| join.used) else { return Failure::not_found("join token", id) };
    let agent = used.agent;
    let detail = format!(
        "the join token has enrolled {agent}, and does nothing any more; `holm hosts revoke {agent}` takes the key of that \
         host out of use"
    );
    Failure::new(ErrorCode::Conflict, detail).at(AGENT_FIELD, agent)
}

/// Enrols the key of an agent with a join token; with the same agent and key as often as somebody asks. Nothing is written
/// before the proof holds.
pub async fn host_enrol(app: &App, join: Join, body: Enrol) -> Result<Enrolled, Failure> {
    prove(&join, &body)?;
    let Enrol { agent, key, .. } = body;
    // What it has enrolled, it has for good.
    if join.used.is_some() {
        return enrolled_before(app, &join, agent, key).await;
    }
    let issuer = app.keys.keys(&app.store).await?.issuer();
    for _ in 0..SWAPS_MAX {
        let now = app.now();
        let join = app.store.join_by_hash(&join.hash).await?.ok_or(Error::NotFound { what: "join token" })?;
        if join.admits(agent, key, now)? == Admitted::Again {
            return enrolled_before(app, &join, agent, key).await;
        }
        let (current, same) = (app.store.host_key_of(agent).await?, app.store.host_key_get(key).await?);
        if current.is_some_and(|(org, _)| org != join.org) {
            return Err(not_here(agent));
        }
        let host = app.store.host_get(join.org, agent).await?;
        let is_bound = match &host {
            Some(host) => is_bound(app, host).await?,
            None => false,
        };
        let key_of = current.map(|(_, key)| key);
        if enrols(agent, same.as_ref(), key_of.as_ref(), host.as_ref(), is_bound)? == Enrols::Already {
            tracing::info!(%agent, %key, join = %join.id, "a host that is enrolled was told so; the join token is not used");
            return Ok(Enrolled { issuer });
        }
        let told = Entry::new(join.org, now, Actor::Token(join.id), Action::HostEnrolled, agent);
        let told = told.with("name", &join.name).with("key", key);
        let used = JoinUse { agent, key, at: now };
        match app.store.host_enrol(join.org, join.id, used, host.as_ref(), &[told]).await {
            Ok(()) => {
                tracing::info!(%agent, key = %key, join = %join.id, name = join.name, "a host was enrolled");
                return Ok(Enrolled { issuer });
            }
            // Nobody was faster.
            Err(Error::Conflict { what: "host key" })
                if (app.store.host_key_of(agent).await?, app.store.host_key_get(key).await?) == (current, same) =>
            {
                return Err(not_here(agent));
            }
            Err(Error::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let cause = format!("{SWAPS_MAX} attempts to enrol {agent} found it changed by somebody else");
    Err(Failure::unavailable("the host is being enrolled by many at once; try again", cause))
}

/// What is told of an enrolment with a join token that was used.
async fn enrolled_before(app: &App, join: &Join, agent: AgentId, key: HostPublicKey) -> Result<Enrolled, Failure> {
    join.admits(agent, key, app.now())?;
    let known = app.store.host_key_get(key).await?;
    if known.is_none_or(|known| known.agent != agent || known.key.revoked_at.is_some()) {
        return Err(speaker::revoked(agent));
    }
    Ok(Enrolled { issuer: app.keys.keys(&app.store).await?.issuer() })
}

fn prove(join: &Join, body: &Enrol) -> Result<(), Failure> {
    let text = enrol_text(body.agent, body.key, &join.hash);
    let holds =
        |signature: Vec<u8>| UnparsedPublicKey::new(&ED25519, body.key.0).verify(text.as_bytes(), &signature).is_ok();
    if URL_SAFE_NO_PAD.decode(&body.proof).is_ok_and(holds) {
        return Ok(());
    }
    let problem = "it is no signature by `key` over this agent, this key and this join token";
    Err(InvalidField::new("proof", &body.proof, problem).into())
}

impl From<NotAdmitted> for Failure {
    fn from(error: NotAdmitted) -> Self {
        let (code, way_out) = match error {
            NotAdmitted::Used(_) => (ErrorCode::JoinTokenUsed, "make one for this host"),
            NotAdmitted::Revoked | NotAdmitted::Expired => (ErrorCode::Unauthenticated, "make another"),
        };
        Self::new(code, format!("{error}; {way_out}: `holm hosts join NAME`"))
    }
}

impl From<NotEnrolled> for Failure {
    fn from(error: NotEnrolled) -> Self {
        let (agent, way_out) = match error {
            NotEnrolled::Enrolled(agent) => (
                agent,
                "bring back `agent/key` and `agent/enrolled` in its state folder, or revoke the key \
                 (`holm hosts revoke HOST`) and enrol again",
            ),
            NotEnrolled::Bound { agent, .. } => (
                agent,
                "revoke that token first (`holm token revoke TOKEN`), or, where other agents speak with it, remove \
                 `agent/id` in the state folder once the host has no runs, which makes it another host",
            ),
            NotEnrolled::Copied(agent) => (
                agent,
                "remove `agent/key` in its state folder, so that the agent makes one of its own, and start it again with the \
                 join token",
            ),
            NotEnrolled::Revoked(agent) => return speaker::revoked(agent),
        };
        Self::new(ErrorCode::Conflict, format!("{error}; {way_out}")).at(AGENT_FIELD, agent)
    }
}

/// Revokes a key of a host at once, `meant` or else the newest: nothing that is said with it is heard any more, and its leases
/// run out. One that was revoked before stays so, and where it is named, another one is not touched.
pub async fn host_revoke(
    app: &App,
    by: &Token,
    agent: AgentId,
    meant: Option<HostPublicKey>,
) -> Result<HostKeyView, Failure> {
    let forget = app.host_keys.forget_after(move |of, _| *of == agent);
    let told = audit::told(app, by, Action::HostRevoked, agent).with_any("key", meant);
    let key = match app.store.host_key_revoke(by.org, agent, meant, app.now(), &[told]).await {
        Ok(key) => key,
        Err(Error::NotFound { .. }) => return Err(no_key(agent, meant, app.store.host_get(by.org, agent).await?)),
        Err(error) => return Err(error.into()),
    };
    drop(forget);
    tracing::warn!(%agent, by = %by.id, by_name = by.name, "the key of a host was revoked");
    // Whoever waits with it is refused now.
    app.wakers.ring_agents(by.org);
    let HostKey { public, enrolled_at, revoked_at, .. } = key;
    Ok(HostKeyView { agent, key: public, enrolled_at, revoked_at })
}

fn no_key(agent: AgentId, meant: Option<HostPublicKey>, host: Option<Host>) -> Failure {
    let Some(host) = host else { return Failure::not_found("host", agent) };
    if let (Some(meant), Some(current)) = (meant, host.key) {
        let detail =
            format!("this is no key of the host, whose newest is {}; name that, or leave `key` out", current.public);
        return Failure::new(ErrorCode::Conflict, detail).at("key", meant);
    }
    let detail = format!(
        "the host has no key: its agent registered last with {token}; `holm token revoke {token}` takes that out of use, for \
         whichever agents speak with it",
        token = host.token
    );
    Failure::new(ErrorCode::Conflict, detail).at(AGENT_FIELD, agent)
}
