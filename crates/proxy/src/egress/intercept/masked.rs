//! What a connection became, in which secrets are masked.

use std::{io, sync::Arc};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use tokio::{
    io::{AsyncRead, AsyncWrite, join, split},
    time::timeout,
};
use tokio_util::{
    either::Either,
    io::{ReaderStream, StreamReader},
};

use super::{
    super::Refusal,
    mask::{Guessed, Mask, PAUSE, Patterns},
};

fn guessed(guessed: Guessed) -> io::Error {
    io::Error::other(Refusal::from(guessed))
}

/// How much is read at once.
const PIECE_BYTES: usize = 16 * 1024;

/// What comes from `outside`, masked by `patterns`, and what goes there as it is.
pub fn masked<Outside>(
    outside: Outside,
    patterns: Option<&Arc<Patterns>>,
) -> impl AsyncRead + AsyncWrite + Unpin + Send + use<Outside>
where
    Outside: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(patterns) = patterns else { return Either::Left(outside) };
    let (stream, sink) = split(outside);
    let pieces = ReaderStream::with_capacity(stream, PIECE_BYTES);
    let state = (pieces, Some(Mask::new(patterns)));
    let masked = stream::unfold(state, |(mut pieces, mask)| async move {
        let mut mask = mask?;
        loop {
            let next = if mask.may_let_go() {
                match timeout(PAUSE, pieces.next()).await {
                    Ok(next) => next,
                    Err(_) => return Some((Ok(mask.let_go()), (pieces, Some(mask)))),
                }
            } else {
                pieces.next().await
            };
            let passed: io::Result<Bytes> = match next {
                Some(Ok(piece)) => mask.pass(piece).map_err(guessed),
                Some(Err(error)) => Err(error),
                None => return Some((mask.end().map_err(guessed), (pieces, None))),
            };
            if !matches!(&passed, Ok(piece) if piece.is_empty()) {
                return Some((passed, (pieces, Some(mask))));
            }
        }
    });
    Either::Right(join(StreamReader::new(Box::pin(masked)), sink))
}
