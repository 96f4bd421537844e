//! What an agent with a key speaks with: a session, asked for anew in time.
//!
//! What always holds: a session that still works is used, whatever becomes of the request for the next one, which is made
//! beside; only where there is none that works is one waited for, and no longer than a request may take. One that the server
//! refuses, because its signing key was withdrawn, is never shown again.

use std::{
    fmt,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use holm_api::client::{Client, ClientError};
use holm_domain::{AgentId, ErrorCode};
use holm_runtime::crash::effect_of;
use secrecy::SecretString;
use tokio::time::Instant;

use super::{ControlError, IdentityError, http::SHORT_DEADLINE};
use crate::{
    backoff::Backoff,
    own_key::{self, Enrolment, OwnKey},
};

/// How soon a session is asked for again where the request for the next one failed.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Where the join token is read when one is needed, or why there is none.
pub type JoinToken = Box<dyn Fn() -> Result<SecretString, String> + Send + Sync>;

/// The key of this host and the session that it has.
pub(super) struct Sessions {
    anonymous: Client,
    join_token: JoinToken,
    identity: OnceLock<(OwnKey, Enrolment)>,
    held: Mutex<Option<Arc<Held>>>,
    /// Held by whoever asks the server; the last failure, if nothing has come since.
    asking: tokio::sync::Mutex<Option<ControlError>>,
    /// How many requests for a session have ended.
    ended: AtomicU64,
}

/// A session.
pub(super) struct Held {
    /// A client that speaks with it.
    pub(super) client: Client,
    life: Duration,
    ends_at: Instant,
    /// When the next one is to be asked for.
    next_at: Mutex<Instant>,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("identity", &self.identity).finish_non_exhaustive()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sessions {
    /// One that has asked for nothing yet.
    pub(super) fn new(anonymous: Client, join_token: JoinToken) -> Self {
        Self {
            anonymous,
            join_token,
            identity: OnceLock::new(),
            held: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
            ended: AtomicU64::default(),
        }
    }

    /// Enrols the key of this folder if it is not enrolled yet, and begins a session. Nothing but a revocation of the key is
    /// for good: a clock may be set, a server restored, at any time.
    pub(super) async fn begin(&self, dir: &Path, agent: AgentId) -> Result<(), IdentityError> {
        let key = own_key::load_or_make(dir)?;
        let enrolment = match own_key::enrolment(dir)? {
            Some(enrolment) => own_key::for_agent(dir, agent, enrolment)?,
            None => {
                let enrolment = self.enrol(&key, agent).await?;
                own_key::note_enrolment(dir, &enrolment)?;
                tracing::info!(%agent, key = %key.public(), issuer = enrolment.issuer, "this host is enrolled");
                enrolment
            }
        };
        let (key, enrolment) = self.identity.get_or_init(|| (key, enrolment));
        match self.ask(key, enrolment).await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some(ErrorCode::HostRevoked) => Err(IdentityError::Revoked(agent)),
            Err(error) => {
                tracing::warn!(%error, "there is no session yet; whoever registers asks for one again");
                Ok(())
            }
        }
    }

    /// Enrols; goes on trying while the control plane is not available.
    async fn enrol(&self, key: &OwnKey, agent: AgentId) -> Result<Enrolment, IdentityError> {
        let join_token = (self.join_token)().map_err(IdentityError::NoJoinToken)?;
        let body = key.enrolment(agent, &join_token);
        let refused = |error: &ClientError| IdentityError::of(agent, error);
        let client = self.anonymous.with_token(&join_token).map_err(|error| refused(&error))?;
        let mut backoff = Backoff::default();
        loop {
            match effect_of("agent.enrol", client.host_enrol(&body, SHORT_DEADLINE)).await {
                Ok(enrolled) => {
                    // What could not be read again is not written.
                    return Enrolment::new(agent, &enrolled.issuer).ok_or_else(|| {
                        let issuer = enrolled.issuer.chars().take(80).collect::<String>();
                        IdentityError::Refused(format!(
                            "the server calls its deployment `{issuer}`, which is no name of one"
                        ))
                    });
                }
                Err(error) if error.is_transient() => {
                    tracing::warn!(%error, "the control plane is not available; trying again to enrol");
                    match error.limited() {
                        Some(after) => tokio::time::sleep(after).await,
                        None => backoff.wait().await,
                    }
                }
                Err(error) => return Err(refused(&error)),
            }
        }
    }

    /// A session that works, as far as is known.
    pub(super) async fn current(self: &Arc<Self>) -> Result<Arc<Held>, ControlError> {
        let Some(held) = self.living() else { return self.anew(None).await };
        if held.take_turn() {
            let (this, held) = (Arc::clone(self), Arc::clone(&held));
            tokio::spawn(async move {
                if let Err(error) = this.anew(Some(&held)).await {
                    tracing::warn!(%error, "the next session is not there yet; the one of before goes on");
                }
            });
        }
        Ok(held)
    }

    pub(super) fn living(&self) -> Option<Arc<Held>> {
        locked(&self.held).clone().filter(|held| Instant::now() < held.ends_at)
    }

    /// The server has refused a session: it is not shown again. Another one comes at once.
    pub(super) async fn instead_of(&self, refused: &Arc<Held>) -> Result<Arc<Held>, ControlError> {
        locked(&self.held).take_if(|held| Arc::ptr_eq(held, refused));
        self.anew(None).await
    }

    /// A session other than `before`. Many who ask at once ask the server once, and share what comes of it, be it a failure.
    async fn anew(&self, before: Option<&Arc<Held>>) -> Result<Arc<Held>, ControlError> {
        let ended = self.ended.load(Ordering::Acquire);
        let mut failed = self.asking.lock().await;
        let other = |held: &Arc<Held>| before.is_none_or(|before| !Arc::ptr_eq(held, before));
        if let Some(held) = self.living().filter(other) {
            return Ok(held);
        }
        match &*failed {
            // It was under way, or begun, while this one waited.
            Some(error) if self.ended.load(Ordering::Acquire) != ended => return Err(error.clone()),
            _ => {}
        }
        let (key, enrolment) = self
            .identity
            .get()
            .ok_or_else(|| ControlError::Unavailable("this host has not said who it is yet".to_owned()))?;
        let asked = self.ask(key, enrolment).await.map_err(|error| match ControlError::from(error) {
            // The host may be enrolled, and its clock be set, at any time; leases are not given up for it before they end.
            ControlError::Refused(problem) => ControlError::Unavailable(problem),
            other => other,
        });
        *failed = asked.as_ref().err().cloned();
        self.ended.fetch_add(1, Ordering::Release);
        asked
    }

    async fn ask(&self, key: &OwnKey, enrolment: &Enrolment) -> Result<Arc<Held>, ClientError> {
        let sent_at = Instant::now();
        let signed = key.assertion(enrolment).map_err(|error| ClientError::Decode {
            endpoint: self.anonymous.endpoint().to_string(),
            problem: error.to_string(),
        })?;
        let session = self.anonymous.with_token(&signed)?.session_open(SHORT_DEADLINE).await?;
        let life = Duration::from_millis(session.life_ms);
        let held = Arc::new(Held {
            client: self.anonymous.with_token(session.token.secret())?,
            life,
            ends_at: sent_at + life,
            next_at: Mutex::new(sent_at + life * 2 / 3),
        });
        *locked(&self.held) = Some(Arc::clone(&held));
        Ok(held)
    }
}

impl Held {
    /// Whether the caller is to ask for the next session: it is time, and nobody else does.
    fn take_turn(&self) -> bool {
        let (mut next_at, now) = (locked(&self.next_at), Instant::now());
        let is_due = now >= *next_at;
        if is_due {
            *next_at = now + AGAIN_AFTER.min(self.life / 6);
        }
        is_due
    }
}

impl IdentityError {
    fn of(agent: AgentId, error: &ClientError) -> Self {
        match error.code() {
            Some(ErrorCode::HostRevoked) => Self::Revoked(agent),
            Some(ErrorCode::JoinTokenUsed | ErrorCode::Unauthenticated) => Self::NotAdmitted(error.to_string()),
            _ => Self::Refused(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32};

    use holm_api::{
        agent::{Register, Renew},
        client::Endpoint,
        problem::Problem,
    };
    use holm_domain::InstanceId;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::control::{ControlPlane as _, http::HttpControl};

    /// A server of which a test says what it does.
    #[derive(Default)]
    struct Scene {
        enrolments: AtomicU32,
        sessions: AtomicU32,
        renewals: AtomicU32,
        /// How long a session lasts.
        life_ms: AtomicU32,
        /// Whether requests for sessions are heard and never answered.
        is_mute: AtomicBool,
        /// Whether requests for sessions are refused, as they are while the clock of the host is wrong.
        is_unheard: AtomicBool,
        /// Whether enrolments are answered with the name of no deployment.
        is_nameless: AtomicBool,
        /// As what enrolments are refused, if they are.
        enrols_not: Mutex<Option<ErrorCode>>,
        /// Whether they are refused since the key was revoked.
        is_revoked: AtomicBool,
        /// How long an answer to them takes.
        takes_ms: AtomicU32,
        /// Sessions up to this number are refused.
        refused_to: AtomicU32,
    }

    impl Scene {
        /// The answer to a request; nothing if there is to be none.
        fn answer(&self, head: &str) -> Option<(u16, String)> {
            let problem = |code: ErrorCode| (code.status(), serde_json::to_string(&Problem::new(code, "no")).unwrap());
            if head.starts_with("POST /agent/v1/enrol") {
                self.enrolments.fetch_add(1, Ordering::SeqCst);
                if let Some(code) = *locked(&self.enrols_not) {
                    return Some(problem(code));
                }
                let issuer = if self.is_nameless.load(Ordering::SeqCst) { "here there" } else { "holm:org_1" };
                return Some((200, format!(r#"{{"issuer":"{issuer}"}}"#)));
            }
            if head.starts_with("POST /agent/v1/session") {
                if self.is_mute.load(Ordering::SeqCst) {
                    return None;
                }
                let number = self.sessions.fetch_add(1, Ordering::SeqCst) + 1;
                for (is_so, code) in
                    [(&self.is_unheard, ErrorCode::Unauthenticated), (&self.is_revoked, ErrorCode::HostRevoked)]
                {
                    if is_so.load(Ordering::SeqCst) {
                        return Some(problem(code));
                    }
                }
                let life = self.life_ms.load(Ordering::SeqCst);
                return Some((200, format!(r#"{{"token":"session-{number}","life_ms":{life}}}"#)));
            }
            let shown = head.lines().find_map(|line| line.strip_prefix("authorization: Bearer session-"));
            let number: u32 = shown.and_then(|number| number.trim().parse().ok()).unwrap_or(0);
            if number <= self.refused_to.load(Ordering::SeqCst) {
                return Some(problem(ErrorCode::Unauthenticated));
            }
            if head.starts_with("POST /agent/v1/register") {
                return Some((200, r#"{"lease_ttl_ms":30000,"renew_every_ms":10000}"#.to_owned()));
            }
            self.renewals.fetch_add(1, Ordering::SeqCst);
            Some((200, r#"{"leases":[]}"#.to_owned()))
        }

        async fn serve(self: Arc<Self>, mut stream: TcpStream) {
            let mut read = Vec::new();
            loop {
                let end = loop {
                    if let Some(end) = read.windows(4).position(|part| part == b"\r\n\r\n") {
                        break end + 4;
                    }
                    if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                        return;
                    }
                };
                let head = String::from_utf8_lossy(&read[..end]).to_lowercase().replace("post /", "POST /");
                let head = head.replace("bearer", "Bearer");
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
                let whole = end + length.unwrap_or(0);
                while read.len() < whole {
                    if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                read.drain(..whole);
                let Some((status, body)) = self.answer(&head) else { return std::future::pending().await };
                if head.starts_with("POST /agent/v1/session") {
                    tokio::time::sleep(Duration::from_millis(self.takes_ms.load(Ordering::SeqCst).into())).await;
                }
                let kind = if status == 200 { "application/json" } else { "application/problem+json" };
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n{body}");
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    }

    fn agent() -> AgentId {
        format!("agt_{:0>26}", 7).parse().unwrap()
    }

    /// An agent that has begun, with sessions of that life.
    async fn begun(dir: &Path, life_ms: u32) -> (Arc<Scene>, HttpControl) {
        let (scene, control) = made(life_ms).await;
        control.identify(dir, agent()).await.unwrap();
        (scene, control)
    }

    /// One that has not.
    async fn made(life_ms: u32) -> (Arc<Scene>, HttpControl) {
        let scene = Arc::new(Scene::default());
        scene.life_ms.store(life_ms, Ordering::SeqCst);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let of_server = Arc::clone(&scene);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&of_server).serve(stream));
            }
        });
        let anonymous = Client::anonymous(Endpoint::parse(&url).unwrap()).unwrap();
        let token: JoinToken = Box::new(|| Ok("holm_join_x".into()));
        (scene, HttpControl::with_own_key(anonymous, token))
    }

    async fn renew(control: &HttpControl) -> Result<(), ControlError> {
        let instance: InstanceId = format!("ins_{:0>26}", 7).parse().unwrap();
        control.renew(Renew { agent: agent(), instance, leases: Vec::new() }).await.map(drop)
    }

    #[tokio::test]
    async fn a_host_enrols_once_and_many_requests_need_one_session() {
        let temp = tempfile::tempdir().unwrap();
        let (scene, control) = begun(temp.path(), 900_000).await;
        let renewals = (0..8).map(|_| renew(&control));
        futures_util::future::try_join_all(renewals).await.unwrap();
        assert_eq!((scene.sessions.load(Ordering::SeqCst), scene.renewals.load(Ordering::SeqCst)), (1, 8));
        control.identify(temp.path(), agent()).await.unwrap();
        assert_eq!(scene.enrolments.load(Ordering::SeqCst), 1);
        let (other, _) = begun(temp.path(), 900_000).await;
        assert_eq!(other.enrolments.load(Ordering::SeqCst), 0, "the folder says that it has enrolled");
    }

    #[tokio::test]
    async fn a_session_that_is_refused_is_replaced_at_once_and_never_shown_again() {
        let temp = tempfile::tempdir().unwrap();
        let (scene, control) = begun(temp.path(), 900_000).await;
        scene.refused_to.store(1, Ordering::SeqCst);
        let renewals = (0..8).map(|_| renew(&control));
        futures_util::future::try_join_all(renewals).await.unwrap();
        assert_eq!((scene.sessions.load(Ordering::SeqCst), scene.renewals.load(Ordering::SeqCst)), (2, 8));
        scene.refused_to.store(u32::MAX, Ordering::SeqCst);
        let told = renew(&control).await.unwrap_err();
        assert!(matches!(told, ControlError::Unavailable(_)), "it may be taken later: {told}");
    }

    #[tokio::test]
    async fn an_agent_that_begins_with_a_wrong_clock_registers_once_it_is_set() {
        let temp = tempfile::tempdir().unwrap();
        let (scene, control) = made(900_000).await;
        scene.is_unheard.store(true, Ordering::SeqCst);
        control.identify(temp.path(), agent()).await.unwrap();
        assert!(control.held().is_none());
        let body = serde_json::json!({
            "agent": agent(), "instance": format!("ins_{:0>26}", 7), "name": "isle", "version": "0.1.0",
            "capacity": {"runs": 1, "cpus_milli": 1, "memory_bytes": 1}, "runtimes": [], "labels": {},
        });
        let body: Register = serde_json::from_value(body).unwrap();
        let registering = {
            let (control, body) = (control.clone(), body.clone());
            tokio::spawn(async move { crate::registration::persist(&control, body).await })
        };
        let patience = Instant::now() + Duration::from_secs(20);
        while scene.sessions.load(Ordering::SeqCst) < 3 {
            assert!(!registering.is_finished() && Instant::now() < patience, "it does not try again");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        scene.is_unheard.store(false, Ordering::SeqCst);
        registering.await.unwrap().unwrap();
        scene.is_revoked.store(true, Ordering::SeqCst);
        let told = control.identify(temp.path(), agent()).await.unwrap_err();
        assert!(matches!(told, IdentityError::Revoked(_)), "that alone is for good: {told}");
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_one_of_a_deployment_is_told_and_not_written() {
        let temp = tempfile::tempdir().unwrap();
        let (scene, control) = made(900_000).await;
        scene.is_nameless.store(true, Ordering::SeqCst);
        let told = control.identify(temp.path(), agent()).await.unwrap_err().to_string();
        assert!(told.contains("`here there`") && !own_key::is_enrolled(temp.path()), "{told}");
        scene.is_nameless.store(false, Ordering::SeqCst);
        control.identify(temp.path(), agent()).await.unwrap();
        assert!(own_key::is_enrolled(temp.path()));
    }

    #[tokio::test]
    async fn only_what_somebody_has_to_mend_is_for_good() {
        let temp = tempfile::tempdir().unwrap();
        let (scene, control) = made(900_000).await;
        for (code, is_for_good) in [
            (ErrorCode::JoinTokenUsed, true),
            (ErrorCode::Unauthenticated, true),
            (ErrorCode::HostRevoked, true),
            (ErrorCode::Conflict, false),
            (ErrorCode::InvalidField, false),
        ] {
            *locked(&scene.enrols_not) = Some(code);
            let told: crate::AgentError = control.identify(temp.path(), agent()).await.unwrap_err().into();
            assert_eq!(told.is_for_good(), is_for_good, "{code}: {told}");
        }
        *locked(&scene.enrols_not) = None;
        scene.is_revoked.store(true, Ordering::SeqCst);
        let told: crate::AgentError = control.identify(temp.path(), agent()).await.unwrap_err().into();
        assert!(told.is_for_good(), "{told}");
    }

    #[tokio::test]
    async fn those_who_wait_for_a_session_share_a_failure() {
        let temp = tempfile::tempdir().unwrap();
        let (scene, control) = made(900_000).await;
        scene.is_unheard.store(true, Ordering::SeqCst);
        control.identify(temp.path(), agent()).await.unwrap();
        scene.takes_ms.store(300, Ordering::SeqCst);
        let told = futures_util::future::join_all((0..8).map(|_| renew(&control))).await;
        assert!(told.iter().all(|told| matches!(told, Err(ControlError::Unavailable(_)))), "{told:?}");
        assert_eq!(scene.sessions.load(Ordering::SeqCst), 2, "one at the start, and one for all eight");
        scene.is_unheard.store(false, Ordering::SeqCst);
        renew(&control).await.unwrap();
        assert_eq!(scene.sessions.load(Ordering::SeqCst), 3, "who comes later asks anew");
    }

    #[tokio::test]
    async fn a_session_endpoint_that_hangs_holds_nothing_up_while_a_session_works() {
        let temp = tempfile::tempdir().unwrap();
        let (scene, control) = begun(temp.path(), 60_000).await;
        let Some(held) = control.held() else { panic!("a session") };
        // Its time for the next one has come.
        *locked(&held.next_at) = Instant::now();
        scene.is_mute.store(true, Ordering::SeqCst);
        let begun = Instant::now();
        for _ in 0..4 {
            renew(&control).await.unwrap();
            *locked(&held.next_at) = Instant::now();
        }
        assert!(begun.elapsed() < SHORT_DEADLINE / 2, "a renewal waited for the next session");
        assert_eq!((scene.sessions.load(Ordering::SeqCst), scene.renewals.load(Ordering::SeqCst)), (1, 4));
    }

    #[tokio::test]
    async fn the_next_session_comes_when_two_thirds_of_one_are_over() {
        let temp = tempfile::tempdir().unwrap();
        let (scene, control) = begun(temp.path(), 60_000).await;
        let held = control.held().unwrap();
        let left = |at: Instant| at.duration_since(Instant::now());
        let (next, end) = (left(*locked(&held.next_at)), left(held.ends_at));
        assert!((35..=40).contains(&next.as_secs()) && (55..=60).contains(&end.as_secs()), "{next:?} {end:?}");
        renew(&control).await.unwrap();
        assert_eq!(scene.sessions.load(Ordering::SeqCst), 1);
        *locked(&held.next_at) = Instant::now();
        let patience = Instant::now() + Duration::from_secs(20);
        while control.held().is_some_and(|now| Arc::ptr_eq(&now, &held)) {
            assert!(Instant::now() < patience, "no next session");
            renew(&control).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(scene.sessions.load(Ordering::SeqCst), 2);
    }
}
