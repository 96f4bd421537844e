//! Large objects: log segments, archives of changes.
//!
//! What always holds: keys are built from ids alone and never from text that a user chose; an object is seen whole or not
//! at all; once a put has returned, the object and the directories above it are on disk (fsync); streaming up and down
//! holds a few parts in memory, whatever the size. Who may read an object is decided before this module is asked.

use std::{fmt, ops::Range, os::unix::fs::DirBuilderExt, path::Path as FsPath, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use holm_domain::{OrgId, RunId};
use object_store::{
    Error as ObjectError, ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart, local::LocalFileSystem,
    memory::InMemory, path::Path,
};

use crate::{Error, Result, error::Cause};

/// The size of the parts in which a stream is written, in bytes.
const PART_BYTES: usize = 1024 * 1024;
/// How many parts of one stream may be on their way to disk at once.
const PARTS_IN_FLIGHT: usize = 4;
/// The most that is read into memory at once by [`Blobs::get`] and [`Blobs::get_range`], in bytes.
pub const BLOB_READ_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The name of an object; made of ids only.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BlobKey(Path);

impl BlobKey {
    /// The archive of changes that the attempt of `run` with `fence` left.
    pub fn run_changes(org: OrgId, run: RunId, fence: u64) -> Self {
        Self(run_path(org, run).join(format!("changes.{fence:020}.tar")))
    }

    /// A piece of the log of `run`. The digest of the bytes is part of the name, so that no writer, however late, puts
    /// other bytes under a name that the index already knows.
    pub(crate) fn log_segment(org: OrgId, run: RunId, first_seq: u64, bytes: &[u8]) -> Self {
        use sha2::{Digest, Sha256};
        let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Self(log_path(org, run).join(format!("{first_seq:020}.{digest}")))
    }

    /// The key as it stands in the index.
    pub(crate) fn as_str(&self) -> &str {
        self.0.as_ref()
    }

    /// Reads a key from the index, if it is one of the log of `run`.
    pub(crate) fn parse_log_segment(text: &str, org: OrgId, run: RunId) -> Option<Self> {
        let path = Path::parse(text).ok()?;
        path.prefix_matches(&log_path(org, run)).then_some(Self(path))
    }
}

impl fmt::Debug for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn run_path(org: OrgId, run: RunId) -> Path {
    Path::from_iter(["orgs".to_owned(), org.to_string(), "runs".to_owned(), run.to_string()])
}

fn log_path(org: OrgId, run: RunId) -> Path {
    run_path(org, run).join("logs")
}

/// Whether a key, as it stands in the index, is one of the log of a run.
pub(crate) fn is_log_key(key: &str) -> bool {
    key.split('/').nth_back(1) == Some("logs")
}

/// An object that is read piece by piece.
pub struct BlobStream {
    /// Its whole size in bytes.
    pub size: u64,
    /// The pieces in order; an error ends it.
    pub pieces: BoxStream<'static, Result<Bytes>>,
}

impl fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobStream").field("size", &self.size).finish_non_exhaustive()
    }
}

/// Why a stream did not become an object. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum PutStreamError {
    /// The stream itself broke off.
    #[error("the stream broke off: {0}")]
    Source(Cause),
    /// The stream is longer than allowed, or the store failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Where large objects are kept.
#[derive(Clone)]
pub struct Blobs {
    objects: Arc<dyn ObjectStore>,
}

impl fmt::Debug for Blobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blobs({})", self.objects)
    }
}

impl Blobs {
    /// Objects as files under `root`, which is made, for its owner alone, if it is not there.
    pub fn local(root: &FsPath) -> Result<Self> {
        let opening = |error: Cause| Error::unavailable("open the folder of the blobs", error);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(|error| opening(error.into()))?;
        let files = LocalFileSystem::new_with_prefix(root).map_err(|error| opening(error.into()))?;
        Ok(Self { objects: Arc::new(files.with_fsync(true).with_automatic_cleanup(true)) })
    }

    /// Objects in memory, for tests and the simulator.
    pub fn memory() -> Self {
        Self { objects: Arc::new(InMemory::new()) }
    }

    /// Stores an object, in place of one that has the same key.
    pub async fn put(&self, key: &BlobKey, bytes: Bytes) -> Result<()> {
        let put = self.objects.put(&key.0, PutPayload::from_bytes(bytes)).await;
        put.map(drop).map_err(|error| failure("store a blob", key, error))
    }

    /// Stores what `source` yields, at most `bytes_max`; returns how much that was. Either all of it is stored or nothing.
    pub async fn put_stream<S, E>(&self, key: &BlobKey, source: S, bytes_max: u64) -> Result<u64, PutStreamError>
    where
        S: Stream<Item = Result<Bytes, E>>,
        E: Into<Cause>,
    {
        let begun = self.objects.put_multipart(&key.0).await;
        let upload = begun.map_err(|error| failure("begin a blob", key, error))?;
        let mut parts = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        match copy(&mut parts, key, source, bytes_max).await {
            Ok(size) => {
                parts.finish().await.map_err(|error| failure("complete a blob", key, error))?;
                Ok(size)
            }
            Err(error) => {
                if let Err(abort) = parts.abort().await {
                    tracing::warn!(%key, error = %abort, "the rest of a blob that was given up could not be removed");
                }
                Err(error)
            }
        }
    }

    /// The whole object, if it is there and at most [`BLOB_READ_BYTES_MAX`] long.
    pub async fn get(&self, key: &BlobKey) -> Result<Option<Bytes>> {
        let found = match self.objects.get(&key.0).await {
            Ok(found) => found,
            Err(ObjectError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failure("read a blob", key, error)),
        };
        read_limit(found.meta.size)?;
        found.bytes().await.map(Some).map_err(|error| failure("read a blob", key, error))
    }

    /// The bytes of the object in `range`. An object that is not there, or is shorter, is an error.
    pub async fn get_range(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes> {
        let wanted = range.end.saturating_sub(range.start);
        read_limit(wanted)?;
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        let bytes = match self.objects.get_range(&key.0, range.clone()).await {
            Ok(bytes) => bytes,
            Err(error) => return Err(self.cut_off(key, range, error).await),
        };
        if u64::try_from(bytes.len()) != Ok(wanted) {
            let problem = format!("{wanted} bytes were asked for and {} are there", bytes.len());
            return Err(Error::corrupt("blobs", key.as_str(), problem));
        }
        Ok(bytes)
    }

    /// Why a part of an object cannot be read: because it ends before, if it does.
    async fn cut_off(&self, key: &BlobKey, range: Range<u64>, error: ObjectError) -> Error {
        match self.objects.head(&key.0).await {
            Ok(meta) if meta.size < range.end => {
                let problem = format!("{} bytes are there, and {} were stored", meta.size, range.end);
                Error::corrupt("blobs", key.as_str(), problem)
            }
            _ => failure("read a part of a blob", key, error),
        }
    }

    /// The object piece by piece, if it is there.
    pub async fn get_stream(&self, key: &BlobKey) -> Result<Option<BlobStream>> {
        let found = match self.objects.get(&key.0).await {
            Ok(found) => found,
            Err(ObjectError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failure("read a blob", key, error)),
        };
        let size = found.meta.size;
        let key = key.clone();
        let pieces = found.into_stream().map_err(move |error| failure("read a blob", &key, error)).boxed();
        Ok(Some(BlobStream { size, pieces }))
    }

    /// Removes an object. One that is not there is no error.
    pub async fn delete(&self, key: &BlobKey) -> Result<()> {
        match self.objects.delete(&key.0).await {
            Ok(()) | Err(ObjectError::NotFound { .. }) => Ok(()),
            Err(error) => Err(failure("remove a blob", key, error)),
        }
    }

    /// The keys of all objects of a run, with their sizes, piece by piece and in no order.
    pub fn list_of_run(&self, org: OrgId, run: RunId) -> BoxStream<'static, Result<(BlobKey, u64)>> {
        self.list_below(BlobKey(run_path(org, run)))
    }

    fn list_below(&self, prefix: BlobKey) -> BoxStream<'static, Result<(BlobKey, u64)>> {
        let listed = self.objects.list(Some(&prefix.0));
        listed
            .map(move |found| match found {
                Ok(meta) => Ok((BlobKey(meta.location), meta.size)),
                Err(error) => Err(failure("list blobs", &prefix, error)),
            })
            .boxed()
    }

    /// Removes all objects of a run; returns how many.
    pub async fn delete_of_run(&self, org: OrgId, run: RunId) -> Result<u64> {
        self.delete_below(BlobKey(run_path(org, run))).await
    }

    /// Removes all objects of the log of a run; returns how many.
    pub async fn delete_of_log(&self, org: OrgId, run: RunId) -> Result<u64> {
        self.delete_below(BlobKey(log_path(org, run))).await
    }

    async fn delete_below(&self, prefix: BlobKey) -> Result<u64> {
        let mut removed = 0;
        let mut listed = self.list_below(prefix);
        while let Some((key, _)) = listed.try_next().await? {
            self.delete(&key).await?;
            removed += 1;
        }
        Ok(removed)
    }
}

async fn copy<S, E>(parts: &mut WriteMultipart, key: &BlobKey, source: S, bytes_max: u64) -> Result<u64, PutStreamError>
where
    S: Stream<Item = Result<Bytes, E>>,
    E: Into<Cause>,
{
    let mut source = std::pin::pin!(source);
    let mut size = 0u64;
    while let Some(piece) = source.next().await {
        let piece = piece.map_err(|error| PutStreamError::Source(error.into()))?;
        size = size.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        if size > bytes_max {
            return Err(Error::Limit { what: "bytes of a blob", given: size, max: bytes_max }.into());
        }
        // Many small pieces are copied together: keeping each would keep its whole allocation alive.
        for part in piece.chunks(PART_BYTES) {
            let room = parts.wait_for_capacity(PARTS_IN_FLIGHT).await;
            room.map_err(|error| failure("write a blob", key, error))?;
            parts.write(part);
        }
    }
    Ok(size)
}

fn read_limit(bytes: u64) -> Result<()> {
    if bytes <= BLOB_READ_BYTES_MAX {
        return Ok(());
    }
    Err(Error::Limit { what: "bytes of a blob read at once", given: bytes, max: BLOB_READ_BYTES_MAX })
}

fn failure(doing: &'static str, key: &BlobKey, error: ObjectError) -> Error {
    match error {
        ObjectError::NotFound { .. } => Error::corrupt("blobs", key.as_str(), "the object is missing"),
        other => Error::unavailable(doing, other),
    }
}
