//! The secrets of runs: whether those are there that a run names, and how they are given to who executes it.
//!
//! What always holds: they are given to the agent that holds the lease, while that lives, and sealed for the proxy of the sandbox
//! alone; that they were is in the log, by name and version.

use holm_api::run_secrets::{AskSecrets, Place, RunSecret, SealedSecrets, seal};
use holm_domain::{
    OrgId, ProjectId, RunId,
    egress::credential::Credential,
    error::InvalidField,
    lease::{
        Claimant,
        grant::{self, StaleFence},
    },
};

use super::{
    leases::written_run,
    secrets::{Opened, bound_of, secrets_open},
};
use crate::{app::App, auth::speaker::Speaker, problem::Failure};

/// Refuses credentials for whose secrets nothing is kept, in runs of the project.
pub async fn secrets_are_there(
    app: &App,
    org: OrgId,
    project: ProjectId,
    credentials: &[Credential],
) -> Result<(), Failure> {
    for (index, Credential { secret, .. }) in credentials.iter().enumerate() {
        if bound_of(app, org, project, secret).await?.is_none() {
            let problem = format!("there is no such secret, of the project or of the org: `holm secret set {secret}`");
            return Err(InvalidField::new(format!("spec.credentials[{index}].secret"), secret, problem).into());
        }
    }
    Ok(())
}

/// Gives the secrets of a run to the agent that holds its lease, sealed for who asks behind it.
pub async fn run_secrets(app: &App, speaker: &Speaker, id: RunId, body: AskSecrets) -> Result<SealedSecrets, Failure> {
    let AskSecrets { agent, instance, fence, key } = body;
    let run = written_run(app, speaker, id, Claimant { agent, instance }, fence).await?;
    if grant::held(&run, agent, fence)?.expires_at <= app.now() {
        return Err(StaleFence { given: fence, newest: run.fence }.into());
    }
    let mut names: Vec<_> = run.spec.credentials.iter().map(|credential| credential.secret.clone()).collect();
    names.sort_unstable();
    names.dedup();
    let opened = secrets_open(app, run.org, run.project, &names).await?;
    for Opened { name, version, .. } in &opened {
        tracing::info!(run = %id, fence, org = %run.org, %agent, %name, version, "a secret was given to a run");
    }
    let secrets: Vec<_> =
        opened.into_iter().map(|Opened { name, version, value }| RunSecret { name, version, value }).collect();
    seal(key, Place { run: id, fence }, &secrets)
        .map_err(|error| InvalidField::new("key", format!("{key:?}"), format!("{error}; give another key")).into())
}
