//! The keys of the deployment as a server knows them: read from the store, opened with the root key, trusted for a second.
//!
//! What always holds: what was read of the keys is trusted for at most [`KEYS_TRUSTED_FOR`] from before it was read, and not
//! after a change that this server made; so a withdrawn key stops everywhere within that time, and here at once. The private
//! half of a key is opened once and goes with the last who signs by it. Nothing is made where something is that cannot be
//! opened.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use holm_domain::{
    KeyId, OrgId, UnixMicros,
    audit::{Action, Actor, Entry},
    keys::{KEYS_TRUSTED_FOR, KeyState, KeyTimes},
};
use holm_store::{EnvelopeKey, Error, SealedSecret, SigningKey, Store};
use tokio::time::Instant;

use super::{
    bootstrap::DEFAULT_ORG,
    jose::SigningPair,
    sealing::{Kind, NotOpened, SealingKey},
};
use crate::{clock::Clock, config::SWAPS_MAX, ids, problem::Failure};

/// How soon keys are read again where one is missing.
const KEYS_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// What was read of the keys at once.
#[derive(Debug)]
pub struct Keys {
    /// Whose keys they are: the org to which the deployment belongs.
    pub deployment: OrgId,
    /// All of them, newest first.
    pub all: Vec<SigningKey>,
    /// They were as they are here at that time or later.
    pub read_at: Instant,
    signer: Arc<SigningPair>,
}

impl Keys {
    /// Who gives tokens out, as they say it.
    pub fn issuer(&self) -> String {
        format!("holm:{}", self.deployment)
    }

    /// The key that signs.
    pub fn signer(&self) -> &SigningPair {
        &self.signer
    }

    /// The public half of a key that verifies at `now`.
    pub fn verifying(&self, id: KeyId, now: UnixMicros) -> Option<[u8; 32]> {
        self.all.iter().find(|key| key.times.id == id && key.times.verifies(now)).map(|key| key.public)
    }
}

/// The keys of the deployment; a server that was told no root key has none.
#[derive(Debug)]
pub struct Keyring {
    root: Option<SealingKey>,
    known: Mutex<Known>,
    reading: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    keys: Option<Arc<Keys>>,
    changes: u64,
}

impl Keyring {
    /// One that has read nothing yet.
    pub fn new(root: Option<SealingKey>) -> Self {
        Self { root, known: Mutex::default(), reading: tokio::sync::Mutex::default() }
    }

    /// Whether there is a root key, so that tokens can be signed.
    pub fn signs(&self) -> bool {
        self.root.is_some()
    }

    /// The root key.
    pub fn root(&self) -> Result<&SealingKey, Failure> {
        self.root.as_ref().ok_or_else(|| {
            Failure::unavailable(
                "this server was told no root key, so it has no keys",
                "it was made without a root key",
            )
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fresh(&self) -> Option<Arc<Keys>> {
        self.known().keys.clone().filter(|keys| keys.read_at.elapsed() < KEYS_TRUSTED_FOR)
    }

    /// The keys, as they were at most a moment ago. Many who ask at once read once.
    pub async fn keys(&self, store: &Store) -> Result<Arc<Keys>, Failure> {
        let root = self.root()?;
        if let Some(keys) = self.fresh() {
            return Ok(keys);
        }
        let _alone = self.reading.lock().await;
        if let Some(keys) = self.fresh() {
            return Ok(keys);
        }
        let (begun, changes, before) = {
            let known = self.known();
            (Instant::now(), known.changes, known.keys.as_ref().map(|keys| Arc::clone(&keys.signer)))
        };
        let keys = Arc::new(read(store, root, before, begun).await?);
        let mut known = self.known();
        if known.changes == changes {
            known.keys = Some(Arc::clone(&keys));
        }
        Ok(keys)
    }

    /// The keys anew, for a token whose key is not among them: another server may have made it a moment ago. They are read no
    /// more often than every [`KEYS_AGAIN_AFTER`], whoever shows what; so long it may take.
    pub async fn keys_again(&self, store: &Store) -> Result<Arc<Keys>, Failure> {
        let read_at = self.known().keys.as_ref().map(|keys| keys.read_at);
        if let Some(at) = read_at {
            tokio::time::sleep_until(at + KEYS_AGAIN_AFTER).await;
        }
        // What somebody else has read meanwhile is new enough.
        self.known().keys.take_if(|keys| keys.read_at.elapsed() >= KEYS_AGAIN_AFTER);
        self.keys(store).await
    }

    /// Forgets what was read when what is returned is dropped: whatever becomes of the request that changes keys.
    pub fn forget_after(&self) -> impl Drop {
        Forget(self)
    }
}

struct Forget<'a>(&'a Keyring);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let mut known = self.0.known();
        known.changes += 1;
        known.keys = None;
    }
}

async fn read(
    store: &Store,
    root: &SealingKey,
    before: Option<Arc<SigningPair>>,
    read_at: Instant,
) -> Result<Keys, Failure> {
    let deployment = store.org_by_name(DEFAULT_ORG).await?;
    let deployment = deployment.ok_or_else(|| Failure::internal("there is no org to which the deployment belongs"))?.id;
    for _ in 0..SWAPS_MAX {
        let all = store.signing_keys().await?;
        let Some((id, private)) = signing(&all).and_then(|key| Some((key.times.id, key.private.as_ref()?))) else {
            return Err(Failure::internal("no key signs; a start of the server makes one"));
        };
        if let Some(signer) = before.as_ref().filter(|signer| signer.id() == id) {
            return Ok(Keys { deployment, signer: Arc::clone(signer), all, read_at });
        }
        let envelope = store.envelope_current().await?;
        // Otherwise it was sealed anew between the two looks.
        if let Some(envelope) = envelope.filter(|envelope| envelope.id == private.by) {
            let data = data_key(root, &envelope).map_err(Failure::internal)?;
            let signer = Arc::new(signing_pair(&data, id, private).map_err(Failure::internal)?);
            return Ok(Keys { deployment, signer, all, read_at });
        }
    }
    Err(Failure::unavailable("keys are being changed by many at once; try again", "each look found another data key"))
}

/// The key that signs.
pub fn signing(all: &[SigningKey]) -> Option<&SigningKey> {
    let signs = |times: &KeyTimes| times.retires_at.is_none() && times.withdrawn_at.is_none();
    all.iter().find(|key| signs(&key.times))
}

/// Opens a data key.
pub fn data_key(root: &SealingKey, envelope: &EnvelopeKey) -> Result<SealingKey, NotOpened> {
    root.open_key(Kind::Envelope, envelope.id, &envelope.sealed).map(SealingKey::new)
}

fn signing_pair(data: &SealingKey, id: KeyId, private: &SealedSecret) -> Result<SigningPair, NotOpened> {
    let seed = data.open_key(Kind::SigningKey, id, &private.bytes)?;
    SigningPair::of(id, &seed).ok_or(NotOpened)
}

/// Draws a data key.
pub fn envelope_draw(root: &SealingKey, now: UnixMicros) -> Result<(EnvelopeKey, SealingKey), NotOpened> {
    let (id, data) = (ids::envelope(), SealingKey::draw());
    let sealed = root.seal(Kind::Envelope, id, data.expose())?;
    Ok((EnvelopeKey { id, sealed, created_at: now }, data))
}

/// Draws a signing key, sealed by the data key `by`.
pub fn signing_key_draw(by: &EnvelopeKey, data: &SealingKey, now: UnixMicros) -> Result<SigningKey, NotOpened> {
    let (id, seed) = (ids::key(), ids::secret_bytes());
    let pair = SigningPair::of(id, &seed).ok_or(NotOpened)?;
    let private = SealedSecret { by: by.id, bytes: data.seal(Kind::SigningKey, id, &seed[..])? };
    Ok(SigningKey {
        times: KeyTimes { id, created_at: now, retires_at: None, withdrawn_at: None },
        public: pair.public().ok_or(NotOpened)?,
        private: Some(private),
    })
}

/// Why a server does not begin with the keys that the store holds.
#[derive(Debug, thiserror::Error)]
pub enum NotBegun {
    /// The root key is another one.
    #[error(
        "this root key does not open the keys that the database holds: they were sealed with another one, which the \
         servers on this database share; copy the file `root-key` from the home of a server that works, or from the backup \
         that belongs to this database, and name it with --root-key-file"
    )]
    OtherRoot,
    /// What the data key sealed is damaged.
    #[error("the signing key {0} in the database cannot be opened by its data key: restore the database from a copy")]
    Damaged(KeyId),
    /// Others made and changed keys at the same time, again and again.
    #[error("others change the keys of this database at the same time; start again")]
    Busy,
    /// The store.
    #[error(transparent)]
    Store(#[from] Error),
}

impl From<NotOpened> for NotBegun {
    fn from(_: NotOpened) -> Self {
        Self::OtherRoot
    }
}

/// Makes a data key and a signing key where the store has none, and otherwise opens what it holds. Safe to repeat, and with
/// several servers at once.
pub async fn keys_begin(store: &Store, clock: &Clock, root: &SealingKey) -> Result<(), NotBegun> {
    for _ in 0..SWAPS_MAX {
        match begin(store, clock, root).await {
            // Somebody else was first: what they made is there by now.
            Err(NotBegun::Store(Error::Conflict { .. })) => {}
            begun => return begun,
        }
    }
    Err(NotBegun::Busy)
}

async fn begin(store: &Store, clock: &Clock, root: &SealingKey) -> Result<(), NotBegun> {
    let (envelope, data) = match store.envelope_current().await? {
        Some(envelope) => {
            let data = data_key(root, &envelope)?;
            (envelope, data)
        }
        None => {
            let (envelope, data) = envelope_draw(root, clock.now())?;
            store.envelope_create(&envelope).await?;
            tracing::info!(envelope = %envelope.id, "a data key was made");
            (envelope, data)
        }
    };
    let all = store.signing_keys().await?;
    if let Some((key, private)) = signing(&all).and_then(|key| Some((key, key.private.as_ref()?))) {
        if private.by != envelope.id {
            return Err(Error::Conflict { what: "key" }.into());
        }
        let id = key.times.id;
        return signing_pair(&data, id, private).map(drop).map_err(|_| NotBegun::Damaged(id));
    }
    let new = signing_key_draw(&envelope, &data, clock.now())?;
    let org = store.org_by_name(DEFAULT_ORG).await?;
    let told = org.map(|org| Entry::new(org.id, clock.now(), Actor::Server, Action::KeyRotated, new.times.id));
    store.signing_key_rotate(None, &new, UnixMicros(i64::MIN), told.as_slice()).await?;
    tracing::info!(key = %new.times.id, state = KeyState::Signing.as_str(), "a signing key was made");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::bootstrap::{Wanted, bootstrap};

    async fn begun() -> (Store, Clock, SealingKey) {
        let (store, clock, root) = (Store::memory(), Clock::default(), SealingKey::draw());
        bootstrap(&store, &clock, Wanted::default()).await.unwrap();
        keys_begin(&store, &clock, &root).await.unwrap();
        (store, clock, root)
    }

    #[tokio::test]
    async fn keys_are_made_once_and_opened_afterwards() {
        let (store, clock, root) = begun().await;
        let (envelope, keys) = (store.envelope_current().await.unwrap(), store.signing_keys().await.unwrap());
        keys_begin(&store, &clock, &root).await.unwrap();
        assert_eq!(store.envelope_current().await.unwrap(), envelope);
        assert_eq!(store.signing_keys().await.unwrap(), keys);
        let read = Keyring::new(Some(root)).keys(&store).await.unwrap();
        assert_eq!(read.signer().id(), keys[0].times.id);
        assert_eq!(read.signer().public(), Some(keys[0].public));
    }

    #[tokio::test]
    async fn another_root_key_is_refused_and_nothing_is_made_anew() {
        let (store, clock, _) = begun().await;
        let before = (store.envelope_current().await.unwrap(), store.signing_keys().await.unwrap());
        let refused = keys_begin(&store, &clock, &SealingKey::draw()).await.unwrap_err();
        assert!(matches!(refused, NotBegun::OtherRoot), "{refused}");
        assert!(refused.to_string().contains("copy the file `root-key`"), "{refused}");
        assert_eq!((store.envelope_current().await.unwrap(), store.signing_keys().await.unwrap()), before);
    }

    #[tokio::test]
    async fn servers_that_begin_at_once_have_the_same_keys() {
        let (store, clock, root) = (Store::memory(), Clock::default(), SealingKey::draw());
        let begins = (0..8).map(|_| keys_begin(&store, &clock, &root));
        for begun in futures_util::future::join_all(begins).await {
            begun.unwrap();
        }
        assert_eq!(store.signing_keys().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn what_was_read_before_a_change_is_not_trusted_after_it() {
        let (store, _, root) = begun().await;
        let ring = Keyring::new(Some(root));
        ring.keys(&store).await.unwrap();
        assert!(ring.fresh().is_some());
        drop(ring.forget_after());
        assert!(ring.fresh().is_none());
        assert!(Keyring::new(None).keys(&store).await.is_err());
    }
}
