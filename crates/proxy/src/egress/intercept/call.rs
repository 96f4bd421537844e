//! One request, from its head to the end of its answer.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use holm_domain::egress::name::Host;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Version,
    header::{CONTENT_TYPE, EXPECT},
    request,
};
use http_body_util::{BodyExt as _, Either, Full};
use hyper::{
    body::{Body as _, Incoming},
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use super::{
    super::{Refusal, Told, relay::relay},
    At, HEADERS_MAX, Interceptor,
    body::{Answer, Passing, Way},
    exchange::Exchange,
    head,
    mask::{Mask, Patterns},
    masked::masked,
    tasks::Tasks,
};

/// How long a server may take until it begins to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(600);
/// How long what a command has sent goes on after its end.
const PASSED_ON_WITHIN: Duration = Duration::from_secs(5);
/// How long a request goes on whose client may have gone.
const GONE_FOR: Duration = Duration::from_secs(10);
/// How much of a body that is refused is taken, and for how long: who sends first and listens then hears nothing otherwise.
const REFUSED_BYTES_MAX: usize = 64 * 1024 * 1024;
const REFUSED_WITHIN: Duration = Duration::from_secs(2);

/// What answers the requests of one connection.
#[derive(Clone)]
pub struct Call {
    of: Arc<Interceptor>,
    at: Arc<At>,
    told: mpsc::Sender<Told>,
    tasks: Tasks,
    is_last: watch::Receiver<bool>,
}

/// A request that is allowed.
struct Begun {
    head: request::Parts,
    body: Incoming,
    inside: OnUpgrade,
    exchange: Arc<Exchange>,
}

impl Call {
    /// One for a connection that was made to `at`; what that becomes is done among `tasks`.
    pub(super) fn new(
        of: Arc<Interceptor>,
        at: Arc<At>,
        told: mpsc::Sender<Told>,
        tasks: Tasks,
        is_last: watch::Receiver<bool>,
    ) -> Self {
        Self { of, at, told, tasks, is_last }
    }

    /// What the connection was made to.
    pub(super) fn at(&self) -> Arc<At> {
        self.at.clone()
    }

    /// Answers a request.
    pub async fn answer(self, request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
        let version = request.version();
        let answered = match self.begin(request).await {
            Ok(begun) => {
                let exchange = begun.exchange.clone();
                self.pass(begun).await.inspect_err(|refusal| exchange.refuse(*refusal))
            }
            Err(refusal) => Err(refusal),
        };
        Ok(answered.unwrap_or_else(|refusal| refused(refusal, &self.at, version)))
    }

    /// Decides whether it is passed on.
    async fn begin(&self, mut request: Request<Incoming>) -> Result<Begun, Refusal> {
        // What waits for its place is not to have many fields, nor what may come after its body.
        let fields = head::fields(request.headers());
        if fields.is_err() {
            *request.headers_mut() = HeaderMap::new();
        }
        let inside = hyper::upgrade::on(&mut request);
        let (head, body) = request.into_parts();
        let body = fields.map(|()| body);
        let place = self.of.requests.clone().acquire_owned().await.map_err(|_| Refusal::SandboxEnded)?;
        let room = self.told.clone().reserve_owned().await.map_err(|_| Refusal::SandboxEnded)?;
        let exchange = Exchange::new(self.at.clone(), &head, room, place);
        let body = body.inspect_err(|refusal| exchange.refuse(*refusal))?;
        let checked = head::check(&head, &self.at.name, self.at.port);
        if let Err(refusal) = checked.and_then(|()| self.decide(&head)) {
            exchange.refuse(refusal);
            drop(exchange);
            if !head.headers.contains_key(EXPECT) {
                take(body).await;
            }
            return Err(refusal);
        }
        Ok(Begun { head, body, inside, exchange })
    }

    /// Passes it on.
    async fn pass(&self, begun: Begun) -> Result<Response<Answer>, Refusal> {
        let Begun { mut head, body, inside, exchange } = begun;
        let (is_websocket, is_the_last) = (head::is_websocket(&head), head::is_the_last(&head));
        let [out, early, back] = std::array::from_fn(|_| self.withdrawn(&head));
        let is_http2 = head.version == Version::HTTP_2;
        head::outgoing(&mut head, &self.at.name, self.at.port)?;
        let patterns = self.inject(&mut head, &exchange)?;
        let body = Passing::new(body, Way::Out { is_http2 }, out, exchange.clone());
        let sending = self.of.upstream.send(Request::from_parts(head, body), is_websocket);
        let mut answer = tokio::select! {
            answered = timeout(ANSWER_WITHIN, sending) => answered.unwrap_or(Err(Refusal::TooSlow)),
            () = early => Err(Refusal::Withdrawn),
            () = self.given_up(is_http2) => Err(Refusal::BrokenOff),
        }
        .map_err(|refusal| self.of.why(refusal))?;
        exchange.answered(answer.status());
        let outside = hyper::upgrade::on(&mut answer);
        let (mut head, body) = answer.into_parts();
        let became = head.status == StatusCode::SWITCHING_PROTOCOLS;
        if head.headers.len() > HEADERS_MAX || became && !is_websocket {
            return Err(Refusal::BadAnswer);
        }
        if patterns.is_some() && head::is_encoded(&head) && !body.is_end_stream() {
            return Err(Refusal::EncodedAnswer);
        }
        head::incoming(&mut head);
        if let Some(patterns) = &patterns {
            patterns.mask_fields(&mut head.headers);
        }
        if is_the_last {
            head::close(&mut head.headers);
        }
        if became {
            head::upgrade(&mut head.headers);
            self.splice(inside, (outside, patterns), back, exchange);
            return Ok(Response::from_parts(head, Either::Left(Full::default())));
        }
        Ok(Response::from_parts(
            head,
            Either::Right(Passing::new(body, Way::In { mask: patterns.as_ref().map(Mask::new) }, back, exchange)),
        ))
    }

    /// Adds what credentials add to it; returns by what its answer is to be masked.
    fn inject(&self, head: &mut request::Parts, exchange: &Exchange) -> Result<Option<Arc<Patterns>>, Refusal> {
        let At { name, port, .. } = &*self.at;
        let Some(vault) = self.of.vault.get() else {
            let is_bound = self.of.outside.is_bound(&Host::Name(name.clone()), *port);
            return if is_bound { Err(Refusal::NoCredential) } else { Ok(None) };
        };
        Ok(vault.apply(head, name, *port)?.map(|secrets| {
            exchange.bears(secrets);
            vault.patterns().clone()
        }))
    }

    /// Waits until the client has gone, and for some time then: what a command has sent when it ends is passed on. Over HTTP/1.1 a
    /// client that has gone is not told from one that has said all it will; over HTTP/2 it takes its requests back.
    async fn given_up(&self, is_http2: bool) {
        if is_http2 {
            return std::future::pending().await;
        }
        self.at.quiet().await;
        let mut is_last = self.is_last.clone();
        let ended = is_last.wait_for(|is_last| *is_last);
        if matches!(timeout(GONE_FOR, ended).await, Ok(Ok(_))) {
            tokio::time::sleep(PASSED_ON_WITHIN).await;
        }
    }

    /// Whether some rule allows it.
    fn decide(&self, head: &request::Parts) -> Result<(), Refusal> {
        let is_allowed = self.of.outside.allows(&self.at.name, self.at.port, head.method.as_str(), head.uri.path());
        if is_allowed { Ok(()) } else { Err(Refusal::NotAllowed) }
    }

    /// Waits until it is not allowed any more.
    fn withdrawn(&self, head: &request::Parts) -> impl Future<Output = ()> + Send + 'static + use<> {
        let (method, path) = (head.method.as_str().to_owned(), head.uri.path().to_owned());
        self.of.outside.withdrawn(self.at.name.clone(), self.at.port, method, path)
    }

    /// Passes on what a connection became, until it ends.
    fn splice(
        &self,
        inside: OnUpgrade,
        (outside, patterns): (OnUpgrade, Option<Arc<Patterns>>),
        withdrawn: impl Future<Output = ()> + Send + 'static,
        exchange: Arc<Exchange>,
    ) {
        let is_last = self.is_last.clone();
        self.tasks.spawn(async move {
            let (Ok(inside), Ok(outside)) = (inside.await, outside.await) else {
                return exchange.refuse(Refusal::BrokenOff);
            };
            let outside = masked(TokioIo::new(outside), patterns.as_ref());
            let passing = relay(TokioIo::new(inside), outside, None, &exchange.counts, is_last);
            let ended = tokio::select! {
                ended = passing => ended,
                () = withdrawn => Err(Refusal::Withdrawn),
            };
            match ended {
                Ok(()) => exchange.complete(),
                Err(refusal) => exchange.refuse(refusal),
            }
        });
    }
}

/// Takes some of what is not passed on.
async fn take(mut body: Incoming) {
    let taking = async {
        let mut taken = 0;
        while taken < REFUSED_BYTES_MAX
            && let Some(Ok(frame)) = body.frame().await
        {
            taken += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    let _enough = timeout(REFUSED_WITHIN, taking).await;
}

/// What is answered where a request was not passed on, or came to nothing.
fn refused(refusal: Refusal, at: &At, version: Version) -> Response<Answer> {
    let status = refusal.status();
    let problem = serde_json::json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or_default(),
        "status": status.as_u16(),
        "code": refusal.code(),
        "detail": format!("{}: {refusal}", at.name),
    });
    let mut answer = Response::new(Either::Left(Full::new(Bytes::from(problem.to_string()))));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if version < Version::HTTP_2 {
        // What follows may be the body of what was refused.
        head::close(answer.headers_mut());
    }
    answer
}
