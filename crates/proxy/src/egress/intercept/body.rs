//! The bodies of requests and answers on their way, a piece at a time.
//!
//! What always holds: a body that is under way when its request is not allowed any more breaks off, and who reads it hears no
//! end.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::{super::Refusal, exchange::Exchange};

/// What a client is answered: the body of a server's answer, or ours.
pub type Answer = Either<Full<Bytes>, Passing>;
/// The body of a request.
pub type Outgoing = Passing;

type Withdrawn = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Which way a body goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the server. What follows it (trailers) is not passed on: it might be taken for what stands in a head.
    Out {
        /// Whether it came by HTTP/2, where a stream may be taken back as if it had ended.
        is_http2: bool,
    },
    /// To the sandbox.
    In,
}

/// A body on its way.
pub struct Passing {
    inner: Incoming,
    way: Way,
    withdrawn: Withdrawn,
    exchange: Arc<Exchange>,
}

/// Why a body has broken off.
#[derive(Debug, thiserror::Error)]
pub enum BrokeOff {
    /// It is not allowed any more.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Who sent it broke off.
    #[error(transparent)]
    Sender(#[from] hyper::Error),
}

impl Passing {
    /// Passes `inner` on until `withdrawn` is ready.
    pub fn new(
        inner: Incoming,
        way: Way,
        withdrawn: impl Future<Output = ()> + Send + 'static,
        exchange: Arc<Exchange>,
    ) -> Self {
        Self { inner, way, withdrawn: Box::pin(withdrawn), exchange }
    }

    /// All of it has passed.
    fn end(&self) {
        if self.way == Way::In {
            self.exchange.complete();
        }
    }

    /// Whether what looks like its end is none.
    fn is_cut_off(&self) -> bool {
        match self.way {
            Way::Out { is_http2: true } => !self.inner.is_end_stream(),
            Way::Out { is_http2: false } => self.exchange.is_cut(),
            Way::In => false,
        }
    }

    fn count(&self, frame: &Frame<Bytes>) {
        let counts = &self.exchange.counts;
        let count = if self.way == Way::In { &counts.received } else { &counts.sent };
        count.fetch_add(frame.data_ref().map_or(0, |data| data.len() as u64), Ordering::Relaxed);
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        // Nobody asks for an end that is known.
        if self.inner.is_end_stream() {
            self.end();
        }
    }
}

impl Body for Passing {
    type Data = Bytes;
    type Error = BrokeOff;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokeOff>>> {
        if self.withdrawn.as_mut().poll(context).is_ready() {
            self.exchange.refuse(Refusal::Withdrawn);
            return Poll::Ready(Some(Err(Refusal::Withdrawn.into())));
        }
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(context));
        Poll::Ready(match frame {
            Some(Ok(frame)) if self.way != Way::In && frame.is_trailers() => None,
            Some(Ok(frame)) => {
                self.count(&frame);
                Some(Ok(frame))
            }
            Some(Err(error)) => Some(Err(error.into())),
            None if self.is_cut_off() => Some(Err(Refusal::BrokenOff.into())),
            None => {
                self.end();
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
