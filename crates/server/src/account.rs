//! What one request makes the server hold in memory: its body until it is answered, its answer until that is sent.
//!
//! What always holds: whoever has sent a token holds at most as much as an org may ([`crate::config::ServeLimits`]), whether
//! or not it goes on sending, and whether or not it reads. What is not longer than [`HELD_FREE_BYTES`] is not counted: the
//! number of connections bounds it. An answer that tells of something that was done is never refused: what it tells of runs
//! was counted before that was done ([`Account::take`]).
//!
//! Left out: streams, which hold one piece at a time and are counted as what they are; what a handler makes of a body; the
//! bodies by which leases are kept ([`crate::http::extract::Short`]), which nothing else may keep out.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use axum::{
    body::{Body, HttpBody as _},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use holm_domain::access::Token;
use http::{Extensions, Method};
use http_body_util::BodyExt as _;
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    config::HELD_FREE_BYTES,
    gate::{Party, Pass},
    problem::Failure,
    serve::{Seat, UnderWay},
};

/// On whose account a request is, and what it has taken. It lasts until the answer is sent.
#[derive(Debug, Default)]
pub struct Account {
    party: OnceLock<Party>,
    taken: Mutex<Taken>,
    under_way: Option<UnderWay>,
}

#[derive(Debug, Default)]
struct Taken {
    passes: Vec<Pass>,
    counted: usize,
    uncounted: usize,
    spare: usize,
}

/// An answer that is on its account until the last byte of it is dropped.
struct Held {
    bytes: Bytes,
    _account: Arc<Account>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Account {
    /// The account of the request that has these extensions.
    pub fn of(extensions: &Extensions) -> Result<&Arc<Self>, Failure> {
        extensions.get().ok_or_else(|| Failure::internal("a request has no account"))
    }

    /// One of a request that came on the connection of `seat`; one that is called in process has none.
    pub fn on(seat: Option<&Arc<Seat>>) -> Self {
        Self { under_way: seat.map(|seat| seat.begin()), ..Self::default() }
    }

    /// One of what the holder of `token` asks in process.
    pub fn of_token(token: &Token) -> Self {
        Self { party: Party::of(token).into(), ..Self::default() }
    }

    /// The request waits from now on, and is to end in order once this is cancelled.
    pub fn wait(&self) -> CancellationToken {
        self.under_way.as_ref().map_or_else(CancellationToken::new, UnderWay::wait)
    }

    /// Says who sends the request. What it said first counts.
    pub fn open(&self, party: Party) {
        self.party.get_or_init(|| party);
    }

    /// Counts `bytes` more, of the body or of the answer to come, or answers `too_many`.
    pub fn take(&self, app: &App, bytes: usize) -> Result<(), Failure> {
        let party =
            self.party.get().ok_or_else(|| Failure::internal("something is held before it is known for whom"))?;
        let mut taken = self.taken();
        let uncounted = taken.uncounted + bytes.saturating_sub(taken.spare);
        if uncounted > HELD_FREE_BYTES {
            let pass = app.held.enter(*party, uncounted)?;
            taken.passes.push(pass);
            taken.counted += uncounted;
            taken.uncounted = 0;
        } else {
            taken.uncounted = uncounted;
        }
        taken.spare = taken.spare.saturating_sub(bytes);
        Ok(())
    }

    /// Leaves `bytes` that were taken for nothing to what is taken next.
    pub fn spare(&self, bytes: usize) {
        self.taken().spare += bytes;
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the account until the answer is sent. One that lies in memory counts as far as it is longer than what was
    /// counted before, and is refused where that is too much, unless it tells of something that was done. What is answered
    /// to nobody in particular is the same for all.
    pub async fn give(self: &Arc<Self>, app: &App, method: &Method, answer: Response) -> Response {
        let account = Arc::clone(self);
        let (head, body) = answer.into_parts();
        let Some(size) = body.size_hint().exact().and_then(|size| usize::try_from(size).ok()) else {
            let kept = body.map_frame(move |frame| {
                let _kept = &account;
                frame
            });
            return Response::from_parts(head, Body::new(kept));
        };
        let more = size.saturating_sub(self.taken().counted);
        let counts = self.party.get().is_some() && method.is_safe() && more > HELD_FREE_BYTES;
        if counts && let Err(refused) = self.take(app, more) {
            return refused.into_response();
        }
        match body.collect().await {
            Ok(collected) => {
                let held = Held { bytes: collected.to_bytes(), _account: account };
                Response::from_parts(head, Body::from(Bytes::from_owner(held)))
            }
            Err(error) => Failure::internal(error).into_response(),
        }
    }
}
