//! An object that is written in parts.
//!
//! What always holds: nothing is seen of it before it is whole; whatever ends it before that, an error or whoever drops it,
//! what was stored of it is given up; as many parts as [`Manner::parts_in_flight`] are on their way, and no more.

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};
use tokio::{runtime::Handle, task::JoinSet};

use super::{BlobKey, Blobs, Manner, PutStreamError, bytes_of, failure, within};
use crate::{Error, Result, error::Cause};

/// What a source yields, gathered into parts.
pub(super) struct Parts<S> {
    source: S,
    buffer: BytesMut,
    part_bytes: usize,
    bytes_max: u64,
    size: u64,
    is_over: bool,
}

impl<S, E> Parts<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: Into<Cause>,
{
    pub(super) fn new(source: S, part_bytes: usize, bytes_max: u64) -> Self {
        Self { source, buffer: BytesMut::new(), part_bytes, bytes_max, size: 0, is_over: false }
    }

    /// How much has come.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Whether the source has ended and all that came was taken.
    pub(super) fn is_empty(&self) -> bool {
        self.is_over && self.buffer.is_empty()
    }

    /// The next part; the last may be shorter than the others, or nothing at all.
    pub(super) async fn next(&mut self) -> Result<Bytes, PutStreamError> {
        while !self.is_over && self.buffer.len() < self.part_bytes {
            let Some(piece) = self.source.next().await else {
                self.is_over = true;
                break;
            };
            let piece = piece.map_err(|error| PutStreamError::Source(error.into()))?;
            self.size = self.size.saturating_add(bytes_of(piece.len()));
            if self.size > self.bytes_max {
                let limit = Error::Limit { what: "bytes of a blob", given: self.size, max: self.bytes_max };
                return Err(limit.into());
            }
            // Many small pieces are copied together: keeping each would keep its whole allocation alive.
            self.buffer.extend_from_slice(&piece);
        }
        let length = self.part_bytes.min(self.buffer.len());
        Ok(self.buffer.split_to(length).freeze())
    }
}

/// An object of which parts are on their way.
pub(super) struct Upload<'a> {
    key: &'a BlobKey,
    manner: Manner,
    /// Nothing once it is whole or given up.
    upload: Option<Box<dyn MultipartUpload>>,
    parts: JoinSet<object_store::Result<()>>,
}

impl<'a> Upload<'a> {
    pub(super) async fn begin(blobs: &Blobs, key: &'a BlobKey) -> Result<Self> {
        let begun = within(blobs.manner.deadline, "begin a blob", blobs.objects.put_multipart(&key.0)).await?;
        let upload = begun.map_err(|error| failure("begin a blob", error))?;
        Ok(Self { key, manner: blobs.manner, upload: Some(upload), parts: JoinSet::new() })
    }

    /// Sends a part once there is room for one more.
    pub(super) async fn write(&mut self, part: Bytes) -> Result<()> {
        self.settle(self.manner.parts_in_flight - 1).await?;
        if let Some(upload) = &mut self.upload {
            let sending = upload.put_part(PutPayload::from_bytes(part));
            self.parts.spawn(sending);
        }
        Ok(())
    }

    /// Waits until at most so many parts are on their way.
    async fn settle(&mut self, in_flight_max: usize) -> Result<()> {
        while self.parts.len() > in_flight_max {
            let Some(stored) = within(self.manner.deadline, "write a blob", self.parts.join_next()).await? else {
                break;
            };
            let stored = stored.map_err(|error| Error::unavailable("write a blob", error))?;
            stored.map_err(|error| failure("write a blob", error))?;
        }
        Ok(())
    }

    /// Makes the object of its parts.
    pub(super) async fn complete(&mut self) -> Result<()> {
        self.settle(0).await?;
        let Some(upload) = &mut self.upload else { return Ok(()) };
        let completed = within(self.manner.deadline, "complete a blob", upload.complete()).await?;
        completed.map_err(|error| failure("complete a blob", error))?;
        self.upload = None;
        Ok(())
    }

    /// Removes what was stored of it.
    pub(super) async fn give_up(&mut self) {
        if let Some(upload) = self.upload.take() {
            abort(upload, std::mem::take(&mut self.parts), self.key.clone(), self.manner).await;
        }
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        let (Some(upload), Ok(runtime)) = (self.upload.take(), Handle::try_current()) else { return };
        runtime.spawn(abort(upload, std::mem::take(&mut self.parts), self.key.clone(), self.manner));
    }
}

/// Parts that are on their way end first: what a store takes in after the rest was removed stays there (AbortMultipartUpload in
/// the API of Amazon S3).
async fn abort(
    mut upload: Box<dyn MultipartUpload>,
    mut parts: JoinSet<object_store::Result<()>>,
    key: BlobKey,
    manner: Manner,
) {
    let ended =
        within(manner.deadline, "end the parts of a blob", async { while parts.join_next().await.is_some() {} });
    if let Err(error) = ended.await {
        tracing::warn!(%key, %error, "parts of a blob that is given up are cut off");
        parts.shutdown().await;
    }
    let aborted = match within(manner.deadline, "give a blob up", upload.abort()).await {
        Ok(aborted) => aborted.map_err(|error| failure("give a blob up", error)),
        Err(silent) => Err(silent),
    };
    if let Err(error) = aborted {
        tracing::warn!(%key, %error, "the rest of a blob that was given up could not be removed");
    }
}
