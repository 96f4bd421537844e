//! Secrets, carried from the control plane to the proxy that asks for them.
//!
//! What always holds: what is carried is sealed for that proxy, is in no journal and in no spool, and is forgotten once it was
//! taken.

use std::convert::Infallible;

use holm_api::run_secrets::{AskSecrets, PublicKey};
use holm_runtime::{AttemptId, crash::effect_of};
use holm_shim::protocol::{MESSAGE_BYTES_MAX, SecretsAnswer};
use tokio::sync::watch;

use super::{orders::Wants, seen::Seen};
use crate::{
    backoff::persist,
    control::{ControlError, ControlPlane},
    station::Shared,
};

/// Carries the secrets of one attempt.
pub(crate) struct Courier<'a, C> {
    pub(crate) shared: &'a Shared<C>,
    pub(crate) attempt: AttemptId,
    pub(crate) seen: watch::Receiver<Seen>,
    pub(crate) wants: &'a watch::Sender<Wants>,
}

impl<C: ControlPlane> Courier<'_, C> {
    /// Fetches what is asked for, each time that it is.
    pub(crate) async fn run(mut self) -> Infallible {
        loop {
            let asks = self.seen.borrow_and_update().asks;
            let answered = self.wants.borrow().secrets.as_ref().map(SecretsAnswer::key);
            match asks {
                Some(key) if answered != Some(key) => {
                    if let Some(answer) = self.ask(key).await {
                        self.wants.send_modify(|wants| wants.secrets = Some(answer));
                    }
                }
                None if answered.is_some() => self.wants.send_modify(|wants| wants.secrets = None),
                _ => {}
            }
            if self.seen.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The answer; nothing where the lease is lost, which others hear of as well.
    async fn ask(&self, key: PublicKey) -> Option<SecretsAnswer> {
        let Shared { control, config, agent, .. } = self.shared;
        let AttemptId { run, fence } = self.attempt;
        let body = AskSecrets { agent: *agent, instance: self.shared.instance(), fence, key };
        let asking = persist("secrets", config.patience, || control.secrets(run, body));
        match effect_of("secrets.ask", asking).await {
            Ok(sealed) => Some(SecretsAnswer::Sealed(sealed)),
            Err(ControlError::StaleFence | ControlError::Superseded | ControlError::Revoked) => None,
            Err(error) => {
                let mut problem = error.to_string();
                problem.truncate(problem.floor_char_boundary(MESSAGE_BYTES_MAX));
                tracing::info!(problem, "the secrets of a run are not given");
                Some(SecretsAnswer::Refused { key, problem })
            }
        }
    }
}
