//! What one request makes the server hold in memory: its body until it is answered, its answer until that is sent.
//!
//! What always holds: whoever has sent a token holds at most as much as an org may ([`crate::config::ServeLimits`]), whether
//! or not it goes on sending, and whether or not it reads. What is not longer than [`HELD_FREE_BYTES`] is not counted: the
//! number of connections bounds it.
//!
//! Left out: streams, which hold one piece at a time and are counted as what they are; what a handler makes of a body.

use std::sync::{Arc, OnceLock};

use axum::{
    body::{Body, HttpBody as _},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use http::{Extensions, Method};
use http_body_util::BodyExt as _;

use crate::{
    app::App,
    config::HELD_FREE_BYTES,
    gate::{Party, Pass},
    problem::Failure,
};

/// On whose account a request is, and what it has taken for its body.
#[derive(Debug, Default)]
pub struct Account {
    party: OnceLock<Party>,
    body: OnceLock<Pass>,
}

/// Bytes that are counted until the last of them is dropped.
struct Counted {
    bytes: Bytes,
    _pass: Pass,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Account {
    /// The account of the request that has these extensions.
    pub fn of(extensions: &Extensions) -> Result<&Arc<Self>, Failure> {
        extensions.get().ok_or_else(|| Failure::internal("a request has no account"))
    }

    /// Says who sends the request. What it said first counts.
    pub fn open(&self, party: Party) {
        self.party.get_or_init(|| party);
    }

    /// Counts a body of up to `bytes` until the request is answered.
    pub fn take_body(&self, app: &App, bytes: usize) -> Result<(), Failure> {
        let party = self.party.get().ok_or_else(|| Failure::internal("a body is read before its sender is known"))?;
        if bytes > HELD_FREE_BYTES {
            let pass = app.held.enter(*party, bytes)?;
            self.body.get_or_init(|| pass);
        }
        Ok(())
    }

    /// Counts an answer that lies in memory until it is sent. One that is too much is refused, unless it tells of something
    /// that was done. What is answered to nobody in particular is the same for all.
    pub async fn give(&self, app: &App, method: &Method, answer: Response) -> Response {
        let size = answer.body().size_hint().exact().and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
        let Some(party) = self.party.get().filter(|_| size > HELD_FREE_BYTES) else { return answer };
        let pass = match app.held.enter(*party, size) {
            Ok(pass) => pass,
            Err(failure) if method.is_safe() => return failure.into_response(),
            Err(_) => app.held.admit(*party, size),
        };
        let (head, body) = answer.into_parts();
        match body.collect().await {
            Ok(collected) => {
                let counted = Counted { bytes: collected.to_bytes(), _pass: pass };
                Response::from_parts(head, Body::from(Bytes::from_owner(counted)))
            }
            Err(error) => Failure::internal(error).into_response(),
        }
    }
}
