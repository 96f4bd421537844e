//! The secrets of runs: whether those are there that a run names, and how they are given to who executes it.
//!
//! What always holds: a credential is for what the keeper of its secret has bound that to, when the run is taken in and again
//! when the secret is given (SPEC G3); they are given to the agent that holds the lease, while that lives and before the command
//! was started, and sealed for the proxy of the sandbox alone; that they were is in the
//! audit log of the org before they are, by name and version.

use holm_api::run_secrets::{AskSecrets, Place, RunSecret, SealedSecrets, seal};
use holm_domain::{
    ErrorCode, OrgId, ProjectId, RunId,
    audit::{Action, Actor, Entry},
    egress::{
        bound::Bound,
        credential::{Credential, VALUES_BYTES_MAX},
    },
    error::InvalidField,
    lease::{
        Claimant,
        grant::{self, StaleFence},
    },
    run::{Run, RunState},
};
use secrecy::ExposeSecret as _;

use super::{
    leases::written_run,
    secrets::{Opened, bound_of, secrets_open},
};
use crate::{app::App, auth::speaker::Speaker, problem::Failure};

/// Refuses credentials for whose secrets nothing is kept, in runs of the project, or that are for what these are not bound to.
pub async fn secrets_are_there(
    app: &App,
    org: OrgId,
    project: ProjectId,
    credentials: &[Credential],
) -> Result<(), Failure> {
    for (index, credential) in credentials.iter().enumerate() {
        let secret = &credential.secret;
        let Some(bound) = bound_of(app, org, project, secret).await? else {
            let problem = format!("there is no such secret, of the project or of the org: `holm secret set {secret}`");
            return Err(InvalidField::new(format!("spec.credentials[{index}].secret"), secret, problem).into());
        };
        if !bound.allows(credential) {
            let field = format!("spec.credentials[{index}]");
            return Err(InvalidField::new(field, credential, elsewhere(credential, &bound)).into());
        }
    }
    Ok(())
}

/// Why a credential is not for what its secret is bound to, and who can change that.
fn elsewhere(credential: &Credential, bound: &Bound) -> String {
    let Credential { to, secret, .. } = credential;
    format!(
        "the secret `{secret}` is bound to `{bound}`, and `{to}` is not within that; an admin says to where it may be \
         brought: `holm secret bind {secret} --for …`"
    )
}

/// Gives the secrets of a run to the agent that holds its lease, sealed for who asks behind it.
pub async fn run_secrets(app: &App, speaker: &Speaker, id: RunId, body: AskSecrets) -> Result<SealedSecrets, Failure> {
    let AskSecrets { agent, instance, fence, key } = body;
    let run = written_run(app, speaker, id, Claimant { agent, instance }, fence).await?;
    if grant::held(&run, agent, fence)?.expires_at <= app.now() {
        return Err(StaleFence { given: fence, newest: run.fence }.into());
    }
    // Whoever asks later is not the proxy for which the command waits.
    if run.state != RunState::Claimed {
        let detail = "the command of the run was started; its secrets are given before that";
        return Err(Failure::new(ErrorCode::Conflict, detail));
    }
    let opened = opened(app, &run).await?;
    let given = |Opened { name, version, .. }: &Opened| {
        let told = Entry::new(run.org, app.now(), Actor::Agent(agent), Action::SecretGiven, name);
        told.with("version", version).with("run", id).with("fence", fence)
    };
    let told: Vec<Entry> = opened.iter().map(given).collect();
    let secrets: Vec<_> =
        opened.into_iter().map(|Opened { name, version, value, .. }| RunSecret { name, version, value }).collect();
    let sealed = seal(key, Place { run: id, fence }, &secrets)
        .map_err(|error| InvalidField::new("key", format!("{key:?}"), format!("{error}; give another key")))?;
    // What cannot be told is not given.
    app.store.audit_append(&told).await?;
    for RunSecret { name, version, .. } in &secrets {
        tracing::info!(run = %id, fence, org = %run.org, %agent, %name, version, "a secret was given to a run");
    }
    Ok(sealed)
}

/// The secrets that the credentials of a run name, each once, by name.
async fn opened(app: &App, run: &Run) -> Result<Vec<Opened>, Failure> {
    let credentials = &run.spec.credentials;
    let mut names: Vec<_> = credentials.iter().map(|credential| credential.secret.clone()).collect();
    names.sort_unstable();
    names.dedup();
    let opened = secrets_open(app, run.org, run.project, &names).await?;
    for (index, credential) in credentials.iter().enumerate() {
        // It may have been bound anew, or made anew, since the run was taken in.
        let bound = opened.iter().find(|opened| opened.name == credential.secret).map(|opened| &opened.bound);
        if let Some(bound) = bound.filter(|bound| !bound.allows(credential)) {
            let failure = Failure::new(ErrorCode::Conflict, elsewhere(credential, bound));
            return Err(failure.at(format!("spec.credentials[{index}]"), credential));
        }
    }
    let bytes: usize = opened.iter().map(|opened| opened.value.expose_secret().len()).sum();
    if bytes > VALUES_BYTES_MAX {
        let problem =
            format!("the secrets of a run have {VALUES_BYTES_MAX} bytes together at most; name fewer of them");
        return Err(InvalidField::new("spec.credentials", format!("{bytes} bytes"), problem).into());
    }
    Ok(opened)
}
