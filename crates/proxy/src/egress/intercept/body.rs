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
use tokio::time::Sleep;

use super::{
    super::Refusal,
    exchange::Exchange,
    mask::{Guessed, Mask, PAUSE},
};

/// What a client is answered: the body of a server's answer, or ours.
pub type Answer = Either<Full<Bytes>, Passing>;
/// The body of a request.
pub type Outgoing = Passing;

type Withdrawn = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Which way a body goes.
pub enum Way {
    /// To the server. What follows it (trailers) is not passed on: it might be taken for what stands in a head.
    Out {
        /// Whether it came by HTTP/2, where a stream may be taken back as if it had ended.
        is_http2: bool,
    },
    /// To the sandbox.
    In {
        /// By which secrets in it are masked.
        mask: Option<Mask>,
    },
}

/// A body on its way.
pub struct Passing {
    inner: Incoming,
    way: Way,
    withdrawn: Withdrawn,
    exchange: Arc<Exchange>,
    /// Until when what a mask holds back is waited for, if that is let go then.
    pause: Option<Pin<Box<Sleep>>>,
    /// What follows the body, while the last of that is on its way.
    last: Option<Frame<Bytes>>,
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
        Self { inner, way, withdrawn: Box::pin(withdrawn), exchange, pause: None, last: None }
    }

    /// All of it has passed.
    fn end(&self) {
        if matches!(self.way, Way::In { .. }) {
            self.exchange.complete();
        }
    }

    /// Whether what looks like its end is none.
    fn is_cut_off(&self) -> bool {
        match self.way {
            Way::Out { is_http2: true } => !self.inner.is_end_stream(),
            Way::Out { is_http2: false } => self.exchange.is_cut(),
            Way::In { .. } => false,
        }
    }

    fn count(&self, frame: &Frame<Bytes>) {
        let counts = &self.exchange.counts;
        let count = if matches!(self.way, Way::In { .. }) { &counts.received } else { &counts.sent };
        count.fetch_add(frame.data_ref().map_or(0, |data| data.len() as u64), Ordering::Relaxed);
    }

    fn mask(&mut self) -> Option<&mut Mask> {
        if let Way::In { mask } = &mut self.way { mask.as_mut() } else { None }
    }

    fn held(&self) -> usize {
        if let Way::In { mask: Some(mask) } = &self.way { mask.held() } else { 0 }
    }

    /// What of a frame may pass now; nothing where all of it is held back.
    fn masked(&mut self, frame: Frame<Bytes>) -> Result<Option<Frame<Bytes>>, Guessed> {
        self.pause = None;
        let Some(mask) = self.mask() else { return Ok(Some(frame)) };
        match frame.into_data() {
            Ok(data) => Ok(Some(mask.pass(data)?).filter(|data| !data.is_empty()).map(Frame::data)),
            Err(mut frame) => {
                if let Some(trailers) = frame.trailers_mut() {
                    mask.patterns().mask_fields(trailers);
                }
                let rest = self.rest()?;
                if rest.is_some() {
                    self.last = Some(frame);
                    return Ok(rest);
                }
                Ok(Some(frame))
            }
        }
    }

    /// Breaks off, for who guesses.
    fn guessed(&self, guessed: Guessed) -> BrokeOff {
        self.exchange.refuse(guessed.into());
        Refusal::from(guessed).into()
    }

    /// Lets go of what is held back where nothing follows for a while.
    fn poll_pause(&mut self, context: &mut Context<'_>) -> Poll<Frame<Bytes>> {
        if !self.mask().is_some_and(|mask| mask.may_let_go()) {
            return Poll::Pending;
        }
        let pause = self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(PAUSE)));
        std::task::ready!(pause.as_mut().poll(context));
        self.pause = None;
        Poll::Ready(Frame::data(self.mask().map(Mask::let_go).unwrap_or_default()))
    }

    /// What is still held back as the body ends.
    fn rest(&mut self) -> Result<Option<Frame<Bytes>>, Guessed> {
        let rest = self.mask().map(Mask::end).transpose()?;
        Ok(rest.filter(|rest| !rest.is_empty()).map(Frame::data))
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        // Nobody asks for an end that is known.
        if self.is_end_stream() {
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
        if let Some(last) = self.last.take() {
            return Poll::Ready(Some(Ok(last)));
        }
        loop {
            let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) else {
                return self.poll_pause(context).map(|frame| Some(Ok(frame)));
            };
            return Poll::Ready(match frame {
                Some(Ok(frame)) if matches!(self.way, Way::Out { .. }) && frame.is_trailers() => None,
                Some(Ok(frame)) => {
                    self.count(&frame);
                    match self.masked(frame) {
                        Ok(None) => continue,
                        Ok(Some(frame)) => Some(Ok(frame)),
                        Err(guessed) => Some(Err(self.guessed(guessed))),
                    }
                }
                Some(Err(error)) => Some(Err(error.into())),
                None if self.is_cut_off() => Some(Err(Refusal::BrokenOff.into())),
                None => match self.rest() {
                    Ok(Some(rest)) => Some(Ok(rest)),
                    Ok(None) => {
                        self.end();
                        None
                    }
                    Err(guessed) => Some(Err(self.guessed(guessed))),
                },
            });
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream() && self.held() == 0 && self.last.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, held) = (self.inner.size_hint(), self.held() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + held);
        }
        hint.set_lower(hint.lower() + held);
        hint
    }
}
