//! The control plane over HTTP.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use holm_api::{
    agent::{
        AGENT_FIELD, AppendEvents, Appended, Fenced, FinishRun, LOG_GAP_FIELD, Poll, Polled, Register, Registered,
        Renew, Renewed, SandboxEnded, StartRun,
    },
    client::{Client, ClientError},
    run_secrets::{AskSecrets, SealedSecrets},
};
use holm_domain::{AgentId, ErrorCode, RunId};

use super::{
    ControlError, ControlPlane, IdentityError,
    sessions::{JoinToken, Sessions},
};

/// How long a request may take that has nothing to wait for.
pub(super) const SHORT_DEADLINE: Duration = Duration::from_secs(10);

/// A control plane behind the API's client.
#[derive(Debug, Clone)]
pub struct HttpControl(Speaks);

/// With what the agent speaks.
#[derive(Debug, Clone)]
enum Speaks {
    /// A token, which the client has.
    Token(Client),
    /// The key of its host.
    Key(Arc<Sessions>),
}

impl HttpControl {
    /// A control plane that `client` speaks to; its token must be that of an agent.
    pub fn new(client: Client) -> Self {
        Self(Speaks::Token(client))
    }

    /// A control plane to which the host says who it is by a key of its own; `join_token` is asked where that is not enrolled.
    /// `anonymous` has no token.
    pub fn with_own_key(anonymous: Client, join_token: JoinToken) -> Self {
        Self(Speaks::Key(Arc::new(Sessions::new(anonymous, join_token))))
    }

    /// The session that it has.
    #[cfg(test)]
    pub(super) fn held(&self) -> Option<Arc<super::sessions::Held>> {
        match &self.0 {
            Speaks::Token(_) => None,
            Speaks::Key(sessions) => sessions.living(),
        }
    }

    /// Does what `ask` does. A session that the server refuses is replaced at once, and it is asked once more.
    async fn ask<T, F>(&self, ask: impl Fn(Client) -> F + Send + Sync) -> Result<T, ControlError>
    where
        F: Future<Output = Result<T, ClientError>> + Send,
    {
        let sessions = match &self.0 {
            Speaks::Token(client) => return Ok(ask(client.clone()).await?),
            Speaks::Key(sessions) => sessions,
        };
        let held = sessions.current().await?;
        match ask(held.client.clone()).await {
            Err(error) if is_of_session(&error) => {
                tracing::info!(%error, "the session was refused; another one is asked for");
                let held = sessions.instead_of(&held).await?;
                ask(held.client.clone()).await.map_err(of_session)
            }
            told => Ok(told?),
        }
    }
}

fn is_of_session(error: &ClientError) -> bool {
    error.code() == Some(ErrorCode::Unauthenticated)
}

/// What is refused for the session alone is not refused for good.
fn of_session(error: ClientError) -> ControlError {
    if is_of_session(&error) { ControlError::Unavailable(error.to_string()) } else { error.into() }
}

impl From<ClientError> for ControlError {
    fn from(error: ClientError) -> Self {
        if let Some(after) = error.limited() {
            return Self::Later { after, problem: error.to_string() };
        }
        if error.is_transient() {
            return Self::Unavailable(error.to_string());
        }
        match error {
            ClientError::Problem(problem) if problem.code == ErrorCode::StaleFence => Self::StaleFence,
            ClientError::Problem(problem) if problem.code == ErrorCode::AgentSuperseded => Self::Superseded,
            ClientError::Problem(problem) if problem.code == ErrorCode::HostRevoked => Self::Revoked,
            ClientError::Problem(problem) if problem.code == ErrorCode::LogGap => {
                let told = problem.value.as_deref().filter(|_| problem.field.as_deref() == Some(LOG_GAP_FIELD));
                Self::LogGap { next_seq: told.and_then(|value| value.parse().ok()) }
            }
            ClientError::Problem(problem)
                if problem.code == ErrorCode::NotFound && problem.field.as_deref() == Some(AGENT_FIELD) =>
            {
                Self::Unregistered
            }
            other => Self::Refused(other.to_string()),
        }
    }
}

impl ControlPlane for HttpControl {
    async fn identify(&self, dir: &Path, agent: AgentId) -> Result<(), IdentityError> {
        match &self.0 {
            Speaks::Token(_) => Ok(()),
            Speaks::Key(sessions) => sessions.begin(dir, agent).await,
        }
    }

    async fn register(&self, body: Register) -> Result<Registered, ControlError> {
        let body = &body;
        self.ask(|client| async move { client.agent_register(body, SHORT_DEADLINE).await }).await
    }

    async fn poll(&self, body: Poll) -> Result<Polled, ControlError> {
        let deadline = Duration::from_millis(body.wait_ms) + SHORT_DEADLINE;
        let body = &body;
        self.ask(|client| async move { client.agent_poll(body, deadline).await }).await
    }

    async fn renew(&self, body: Renew) -> Result<Renewed, ControlError> {
        let body = &body;
        self.ask(|client| async move { client.agent_renew(body, SHORT_DEADLINE).await }).await
    }

    async fn start(&self, run: RunId, body: StartRun) -> Result<(), ControlError> {
        let body = &body;
        self.ask(|client| async move { client.agent_start(run, body, SHORT_DEADLINE).await }).await
    }

    async fn secrets(&self, run: RunId, body: AskSecrets) -> Result<SealedSecrets, ControlError> {
        let body = &body;
        self.ask(|client| async move { client.agent_secrets(run, body, SHORT_DEADLINE).await }).await
    }

    async fn append_logs(&self, run: RunId, fenced: Fenced, batches: Bytes) -> Result<Appended, ControlError> {
        let (fenced, batches) = (&fenced, &batches);
        self.ask(|client| async move { client.agent_append_logs(run, fenced, batches.clone()).await }).await
    }

    async fn append_events(&self, run: RunId, body: AppendEvents) -> Result<(), ControlError> {
        let body = &body;
        self.ask(|client| async move { client.agent_append_events(run, body, SHORT_DEADLINE).await }).await
    }

    async fn put_changes(
        &self,
        run: RunId,
        fenced: Fenced,
        file: std::fs::File,
        length: u64,
    ) -> Result<(), ControlError> {
        let (client, held) = match &self.0 {
            Speaks::Token(client) => (client.clone(), None),
            Speaks::Key(sessions) => {
                let held = sessions.current().await?;
                (held.client.clone(), Some((sessions, held)))
            }
        };
        let file = tokio::fs::File::from_std(file);
        let stream =
            tokio_util::io::ReaderStream::with_capacity(tokio::io::AsyncReadExt::take(file, length), 256 * 1024);
        match (client.agent_put_changes(run, &fenced, stream, length).await, held) {
            // The stream is used up: whoever uploads begins it again, with the session that is asked for here.
            (Err(error), Some((sessions, held))) if is_of_session(&error) => {
                sessions.instead_of(&held).await?;
                Err(of_session(error))
            }
            (put, _) => Ok(put?),
        }
    }

    async fn ended(&self, run: RunId, body: SandboxEnded) -> Result<(), ControlError> {
        let body = &body;
        self.ask(|client| async move { client.agent_ended(run, body, SHORT_DEADLINE).await }).await
    }

    async fn finish(&self, run: RunId, body: FinishRun) -> Result<(), ControlError> {
        let body = &body;
        self.ask(|client| async move { client.agent_finish(run, body, SHORT_DEADLINE).await }).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holm_api::problem::Problem;

    fn problem(code: ErrorCode, value: Option<&str>) -> ControlError {
        problem_at("next_seq", code, value)
    }

    fn problem_at(field: &str, code: ErrorCode, value: Option<&str>) -> ControlError {
        let field = Some(field.to_owned());
        let problem = Problem { field, value: value.map(str::to_owned), ..Problem::new(code, "so it is") };
        ControlError::from(ClientError::Problem(Box::new(problem)))
    }

    #[test]
    fn a_rate_that_is_used_up_says_when_to_come_back() {
        let problem = Problem { retry_after_s: Some(7), ..Problem::new(ErrorCode::TooMany, "so it is") };
        let error = ControlError::from(ClientError::Problem(Box::new(problem)));
        assert!(matches!(error, ControlError::Later { after, .. } if after == Duration::from_secs(7)), "{error}");
    }

    #[test]
    fn problems_are_told_apart() {
        assert_eq!(problem(ErrorCode::StaleFence, None), ControlError::StaleFence);
        assert_eq!(problem(ErrorCode::AgentSuperseded, None), ControlError::Superseded);
        assert_eq!(problem(ErrorCode::HostRevoked, None), ControlError::Revoked);
        assert_eq!(problem(ErrorCode::LogGap, Some("17")), ControlError::LogGap { next_seq: Some(17) });
        assert_eq!(problem(ErrorCode::LogGap, None), ControlError::LogGap { next_seq: None });
        assert_eq!(problem_at("agent", ErrorCode::NotFound, Some("agent_1")), ControlError::Unregistered);
        for transient in [ErrorCode::Unavailable, ErrorCode::Internal, ErrorCode::TooMany, ErrorCode::DeadlineExceeded]
        {
            assert!(matches!(problem(transient, None), ControlError::Unavailable(_)), "{transient}");
        }
        for lasting in [ErrorCode::Forbidden, ErrorCode::NotFound, ErrorCode::TooLarge, ErrorCode::InvalidField] {
            assert!(matches!(problem(lasting, None), ControlError::Refused(_)), "{lasting}");
        }
    }
}
