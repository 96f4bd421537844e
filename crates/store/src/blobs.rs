//! Large objects: log segments, archives of changes.
//!
//! What always holds: keys are built from ids alone and never from text that a user chose; an object is seen whole or not
//! at all; once a put has returned, the object is kept: on a disk, it and the directories above it are there (fsync), and S3
//! has it with the digest that was sent; streaming up and down holds a few parts in memory, whatever the size; whoever is
//! asked over a network answers within a time, or is said not to. Who may read an object is decided before this module is
//! asked.

mod key;
mod place;
mod s3;
mod upload;

use std::{
    fmt,
    ops::Range,
    os::unix::fs::DirBuilderExt,
    path::Path as FsPath,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures_util::{
    Stream, StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use holm_domain::{OrgId, RunId};
use object_store::{
    Error as ObjectError, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload, local::LocalFileSystem,
    memory::InMemory, path::Path,
};

use crate::{Error, Result, error::Cause};
pub use key::BlobKey;
pub(crate) use key::is_log_key;
use key::{log_path, run_path};
pub use place::{BlobPlace, S3Place};
pub use s3::{S3Keys, Unreached};
use upload::{Parts, Upload};

/// The size of the parts in which a stream is written to a disk, in bytes.
const PART_BYTES: usize = 1024 * 1024;
/// How many parts of one stream may be on their way to disk at once.
const PARTS_IN_FLIGHT: usize = 4;
/// How many objects are removed at once, of many.
const REMOVALS_AT_ONCE: usize = 8;
/// The most that is read into memory at once by [`Blobs::get`] and [`Blobs::get_range`], in bytes.
pub const BLOB_READ_BYTES_MAX: u64 = 64 * 1024 * 1024;

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

/// How objects are moved.
#[derive(Debug, Clone, Copy)]
struct Manner {
    /// The size of the parts in which a stream is written, in bytes.
    part_bytes: usize,
    /// How many parts of one stream may be on their way at once.
    parts_in_flight: usize,
    /// How long one operation may take. A disk has none: the kernel takes nothing back that it was asked for.
    deadline: Option<Duration>,
}

impl Manner {
    const NEAR: Self = Self { part_bytes: PART_BYTES, parts_in_flight: PARTS_IN_FLIGHT, deadline: None };
}

/// Where large objects are kept.
#[derive(Clone)]
pub struct Blobs {
    objects: Arc<dyn ObjectStore>,
    manner: Manner,
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
        Ok(Self { objects: Arc::new(files.with_fsync(true).with_automatic_cleanup(true)), manner: Manner::NEAR })
    }

    /// Objects in a bucket. Nothing is asked of it yet.
    pub fn s3(place: &S3Place, keys: S3Keys) -> Result<Self> {
        Ok(Self { objects: s3::open(place, keys)?, manner: s3::MANNER })
    }

    /// Objects in memory, for tests and the simulator.
    pub fn memory() -> Self {
        Self { objects: Arc::new(InMemory::new()), manner: Manner::NEAR }
    }

    /// Asks for one object, whichever; returns how long the answer took. Nothing is changed.
    pub async fn reach(&self) -> Result<Duration, Unreached> {
        let begun = Instant::now();
        let asked = within(self.manner.deadline, "look at the blobs", self.objects.list(None).next()).await;
        match asked.map_err(Unreached::silent)? {
            Some(Err(error)) => Err(Unreached::of(&error)),
            Some(Ok(_)) | None => Ok(begun.elapsed()),
        }
    }

    /// Whether what is put there can be got again. The object by which that is tried stays: it is always the same.
    pub async fn prove(&self) -> Result<(), Unreached> {
        let (path, wanted) = (Path::from("probe"), Bytes::from_static(b"Holm keeps large objects here.\n"));
        let put = self.objects.put(&path, PutPayload::from_bytes(wanted.clone()));
        let put = within(self.manner.deadline, "try the blobs", put).await.map_err(Unreached::silent)?;
        put.map_err(|error| Unreached::of(&error))?;
        let get = async { self.objects.get(&path).await?.bytes().await };
        let got = within(self.manner.deadline, "try the blobs", get).await.map_err(Unreached::silent)?;
        match got.map_err(|error| Unreached::of(&error))? {
            got if got == wanted => Ok(()),
            _ => Err(Unreached::other_bytes()),
        }
    }

    /// Stores an object, in place of one that has the same key.
    pub async fn put(&self, key: &BlobKey, bytes: Bytes) -> Result<()> {
        let put = self.objects.put(&key.0, PutPayload::from_bytes(bytes));
        let put = within(self.manner.deadline, "store a blob", put).await?;
        let Err(error) = put else { return Ok(()) };
        if s3::is_other_bytes(&error)
            // What was stored is not what was sent, so it is no object of ours.
            && let Err(error) = self.delete(key).await
        {
            tracing::warn!(%key, %error, "an object that is not what was to be stored could not be removed");
        }
        Err(failure("store a blob", error))
    }

    /// Stores what `source` yields, at most `bytes_max`; returns how much that was. Either all of it is stored or nothing.
    pub async fn put_stream<S, E>(&self, key: &BlobKey, source: S, bytes_max: u64) -> Result<u64, PutStreamError>
    where
        S: Stream<Item = Result<Bytes, E>>,
        E: Into<Cause>,
    {
        let source = std::pin::pin!(source);
        let mut parts = Parts::new(source, self.manner.part_bytes, bytes_max);
        let first = parts.next().await?;
        if parts.is_empty() {
            self.put(key, first).await?;
            return Ok(parts.size());
        }
        let mut upload = Upload::begin(self, key).await?;
        match copy(&mut upload, first, &mut parts).await {
            Ok(()) => Ok(parts.size()),
            Err(error) => {
                upload.give_up().await;
                Err(error)
            }
        }
    }

    /// The whole object, if it is there and at most [`BLOB_READ_BYTES_MAX`] long.
    pub async fn get(&self, key: &BlobKey) -> Result<Option<Bytes>> {
        let Some(mut found) = self.get_stream(key).await? else { return Ok(None) };
        read_limit(found.size)?;
        let mut whole = BytesMut::with_capacity(usize::try_from(found.size).unwrap_or_default());
        while let Some(piece) = found.pieces.try_next().await? {
            whole.extend_from_slice(&piece);
        }
        if bytes_of(whole.len()) != found.size {
            let problem = format!("{} bytes are there, and {} were stored", whole.len(), found.size);
            return Err(Error::corrupt("blobs", key.as_str(), problem));
        }
        Ok(Some(whole.freeze()))
    }

    /// The bytes of the object in `range`. An object that is not there, or is shorter, is an error.
    pub async fn get_range(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes> {
        let wanted = range.end.saturating_sub(range.start);
        read_limit(wanted)?;
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        let doing = "read a part of a blob";
        let bytes = match within(self.manner.deadline, doing, self.objects.get_range(&key.0, range.clone())).await? {
            Ok(bytes) => bytes,
            Err(error) => return Err(self.cut_off(key, range, error).await),
        };
        if bytes_of(bytes.len()) != wanted {
            let problem = format!("{wanted} bytes were asked for and {} are there", bytes.len());
            return Err(Error::corrupt("blobs", key.as_str(), problem));
        }
        Ok(bytes)
    }

    /// Why a part of an object cannot be read: because there is no such object or it ends before, if that is so.
    async fn cut_off(&self, key: &BlobKey, range: Range<u64>, error: ObjectError) -> Error {
        let is_about_it = matches!(error, ObjectError::NotFound { .. }) || s3::is_out_of_range(&error);
        if self.manner.deadline.is_some() && !is_about_it {
            return failure("read a part of a blob", error);
        }
        match self.head(key).await {
            Ok(Some(meta)) if meta.size < range.end => {
                let problem = format!("{} bytes are there, and {} were stored", meta.size, range.end);
                Error::corrupt("blobs", key.as_str(), problem)
            }
            Ok(None) => Error::corrupt("blobs", key.as_str(), "the object is missing"),
            Ok(Some(_)) => failure("read a part of a blob", error),
            Err(error) => error,
        }
    }

    /// What there is to know of an object, if it is there. One is missing only where the others are not.
    async fn head(&self, key: &BlobKey) -> Result<Option<ObjectMeta>> {
        match within(self.manner.deadline, "look for a blob", self.objects.head(&key.0)).await? {
            Ok(meta) => Ok(Some(meta)),
            Err(error @ ObjectError::NotFound { .. }) => self.missing("look for a blob", error).await.map(|()| None),
            Err(error) => Err(failure("look for a blob", error)),
        }
    }

    /// Whether an object that was not found is missing, or all of them are, with their bucket: that says nothing of the one.
    async fn missing(&self, doing: &'static str, error: ObjectError) -> Result<()> {
        if s3::is_no_bucket(&error) {
            return Err(failure(doing, error));
        }
        if self.manner.deadline.is_none() {
            return Ok(());
        }
        self.reach().await.map(drop).map_err(|unreached| Error::unavailable(doing, unreached))
    }

    /// The object piece by piece, if it is there.
    pub async fn get_stream(&self, key: &BlobKey) -> Result<Option<BlobStream>> {
        if self.manner.deadline.is_some() {
            return self.get_in_parts(key).await;
        }
        let found = match self.objects.get(&key.0).await {
            Ok(found) => found,
            Err(ObjectError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failure("read a blob", error)),
        };
        let size = found.meta.size;
        let pieces = found.into_stream().map_err(|error| failure("read a blob", error)).boxed();
        Ok(Some(BlobStream { size, pieces }))
    }

    /// The same from afar: each part is a request of its own, so that whoever reads slowly keeps no connection waiting, and
    /// a part that breaks off is asked for again. All are parts of the object that was there at first.
    async fn get_in_parts(&self, key: &BlobKey) -> Result<Option<BlobStream>> {
        let Some(meta) = self.head(key).await? else { return Ok(None) };
        let (blobs, key, size) = (self.clone(), key.clone(), meta.size);
        let pieces = stream::try_unfold(0u64, move |at| {
            let (blobs, key, e_tag) = (blobs.clone(), key.clone(), meta.e_tag.clone());
            async move {
                if at == size {
                    return Ok(None);
                }
                let end = size.min(at.saturating_add(bytes_of(blobs.manner.part_bytes)));
                let part = blobs.get_part(&key, e_tag, at..end).await?;
                Ok(Some((part, end)))
            }
        });
        Ok(Some(BlobStream { size, pieces: pieces.boxed() }))
    }

    async fn get_part(&self, key: &BlobKey, e_tag: Option<String>, range: Range<u64>) -> Result<Bytes> {
        let (doing, wanted) = ("read a blob", range.end - range.start);
        let options = GetOptions { if_match: e_tag, range: Some(range.clone().into()), ..GetOptions::default() };
        let get = async { self.objects.get_opts(&key.0, options).await?.bytes().await };
        match within(self.manner.deadline, doing, get).await? {
            Ok(bytes) if bytes_of(bytes.len()) == wanted => Ok(bytes),
            Ok(bytes) => {
                let problem = format!("{wanted} bytes were asked for and {} are there", bytes.len());
                Err(Error::corrupt("blobs", key.as_str(), problem))
            }
            Err(ObjectError::Precondition { .. }) => {
                Err(Error::corrupt("blobs", key.as_str(), "it was replaced while it was read"))
            }
            Err(error) => Err(self.cut_off(key, range, error).await),
        }
    }

    /// Removes an object. One that is not there is no error.
    pub async fn delete(&self, key: &BlobKey) -> Result<()> {
        let doing = "remove a blob";
        match within(self.manner.deadline, doing, self.objects.delete(&key.0)).await? {
            Ok(()) => Ok(()),
            Err(error @ ObjectError::NotFound { .. }) => self.missing(doing, error).await,
            Err(error) => Err(failure(doing, error)),
        }
    }

    /// The keys of all objects of a run, with their sizes, piece by piece and in no order.
    pub fn list_of_run(&self, org: OrgId, run: RunId) -> BoxStream<'static, Result<(BlobKey, u64)>> {
        self.list_below(&run_path(org, run))
    }

    fn list_below(&self, prefix: &Path) -> BoxStream<'static, Result<(BlobKey, u64)>> {
        let (doing, deadline, listed) = ("list blobs", self.manner.deadline, self.objects.list(Some(prefix)));
        let listed = stream::unfold(Some(listed), move |listed| async move {
            let mut listed = listed?;
            match within(deadline, doing, listed.next()).await {
                Ok(Some(Ok(meta))) => Some((Ok((BlobKey(meta.location), meta.size)), Some(listed))),
                Ok(Some(Err(error))) => Some((Err(failure(doing, error)), None)),
                Ok(None) => None,
                Err(silent) => Some((Err(silent), None)),
            }
        });
        listed.boxed()
    }

    /// Removes all objects of a run; returns how many.
    pub async fn delete_of_run(&self, org: OrgId, run: RunId) -> Result<u64> {
        self.delete_below(&run_path(org, run)).await
    }

    /// Removes all objects of the log of a run; returns how many.
    pub async fn delete_of_log(&self, org: OrgId, run: RunId) -> Result<u64> {
        self.delete_below(&log_path(org, run)).await
    }

    async fn delete_below(&self, prefix: &Path) -> Result<u64> {
        let removals = self.list_below(prefix).map_ok(|(key, _)| async move { self.delete(&key).await });
        removals.try_buffer_unordered(REMOVALS_AT_ONCE).try_fold(0, async |removed, ()| Ok(removed + 1)).await
    }
}

async fn copy<S, E>(upload: &mut Upload<'_>, first: Bytes, parts: &mut Parts<S>) -> Result<(), PutStreamError>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: Into<Cause>,
{
    upload.write(first).await?;
    while !parts.is_empty() {
        let part = parts.next().await?;
        if !part.is_empty() {
            upload.write(part).await?;
        }
    }
    Ok(upload.complete().await?)
}

/// What `operation` returns, or word that it did not within the time that it may take.
async fn within<T>(deadline: Option<Duration>, doing: &'static str, operation: impl Future<Output = T>) -> Result<T> {
    let Some(deadline) = deadline else { return Ok(operation.await) };
    let told = tokio::time::timeout(deadline, operation).await;
    told.map_err(|_| Error::unavailable(doing, format!("no answer within {} s", deadline.as_secs())))
}

fn bytes_of(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

fn read_limit(bytes: u64) -> Result<()> {
    if bytes <= BLOB_READ_BYTES_MAX {
        return Ok(());
    }
    Err(Error::Limit { what: "bytes of a blob read at once", given: bytes, max: BLOB_READ_BYTES_MAX })
}

fn failure(doing: &'static str, error: ObjectError) -> Error {
    Error::unavailable(doing, s3::told(error))
}
