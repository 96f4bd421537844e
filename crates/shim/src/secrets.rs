//! The secrets of a run, on their way from the control plane to the proxy of its sandbox.
//!
//! What always holds: they are asked for anew by each shim, with a key that lives in its memory alone; the agent carries what it
//! cannot read. No command is started before the proxy has them, and they are in no file and in no text.

use std::time::Duration;

use holm_api::run_secrets::{Asking, NotSealed, Place, RunSecret, SealedSecrets};
use holm_proxy::egress::Vault;
use holm_runtime::AttemptId;
use tokio::time::timeout;

use crate::{
    outcome::Ending,
    protocol::{PublicKey, SecretsAnswer},
    supervise::Attempt,
    ways_out::Proxy,
};

/// How long the control plane may take to give them.
const GIVEN_WITHIN: Duration = Duration::from_secs(60);

fn not_given(problem: impl std::fmt::Display) -> Ending {
    Ending::NotLaunched(format!("the secrets of the run were not given: {problem}"))
}

impl Attempt {
    /// Has the proxy add the credentials of the run, once it has their values.
    pub(crate) async fn fill(&self, proxy: Option<&Proxy>) -> Result<(), Ending> {
        let credentials = &self.launch.spec.credentials;
        let Some(proxy) = proxy.filter(|_| !credentials.is_empty()) else { return Ok(()) };
        let asking = Asking::new().map_err(not_given)?;
        self.update(|status| status.asks = Some(asking.key()));
        let answered = timeout(GIVEN_WITHIN, self.answered(asking.key())).await;
        self.update(|status| status.asks = None);
        let answer = answered.map_err(|_| not_given(format!("there was no answer within {GIVEN_WITHIN:?}")))?;
        let secrets = match answer {
            SecretsAnswer::Sealed(sealed) => self.open(asking, &sealed).map_err(not_given)?,
            SecretsAnswer::Refused { problem, .. } => return Err(not_given(problem)),
        };
        let values = secrets.into_iter().map(|RunSecret { name, value, .. }| (name, value)).collect();
        proxy.egress.add(Vault::new(credentials, &values).map_err(not_given)?);
        Ok(())
    }

    /// Waits for the answer to who asks with `key`; it is not kept.
    async fn answered(&self, key: PublicKey) -> SecretsAnswer {
        let mut answers = self.secrets.subscribe();
        let is_ours = |answer: &Option<SecretsAnswer>| answer.as_ref().is_some_and(|answer| answer.key() == key);
        let answer = answers.wait_for(is_ours).await.ok().and_then(|answer| answer.clone());
        self.secrets.send_replace(None);
        match answer {
            Some(answer) => answer,
            // Whoever sends them is there as long as this is.
            None => std::future::pending().await,
        }
    }

    fn open(&self, asking: Asking, sealed: &SealedSecrets) -> Result<Vec<RunSecret>, NotSealed> {
        let AttemptId { run, fence } = self.launch.attempt;
        asking.open(Place { run, fence }, sealed)
    }
}
