//! The keys of the deployment in memory.

use holm_domain::{EnvelopeId, KeyId, UnixMicros};

use super::{Memory, State};
use crate::{
    EnvelopeKey, Error, Resealed, Result, SIGNING_KEYS_MAX, SealedSecret, SigningKey, keys::WITHDRAWN_KEYS_MAX,
};

const CONFLICT: Error = Error::Conflict { what: "key" };

/// The keys of the deployment.
#[derive(Debug, Default, Clone)]
pub(super) struct Keys {
    envelope: Option<EnvelopeKey>,
    signing: Vec<SigningKey>,
}

fn signs(key: &SigningKey) -> bool {
    key.times.retires_at.is_none() && key.times.withdrawn_at.is_none()
}

impl Keys {
    fn add(&mut self, new: &SigningKey, most: u32) -> Result<()> {
        let Some(SealedSecret { by, .. }) = &new.private else {
            return Err(Error::invalid("a signing key", "it has no private half"));
        };
        let is_known = self.envelope.as_ref().is_some_and(|envelope| envelope.id == *by);
        if !is_known || self.signing.iter().any(|other| signs(other) || other.times.id == new.times.id) {
            return Err(CONFLICT);
        }
        if self.signing.len() >= most as usize {
            return crate::error::full_unless_one(0, "signing keys", most);
        }
        self.signing.push(new.clone());
        self.signing.sort_by_key(|key| std::cmp::Reverse(key.times.id));
        Ok(())
    }
}

impl State {
    /// Changes a copy and keeps it if nothing went wrong: a transaction.
    fn keys_change(&mut self, change: impl FnOnce(&mut Keys) -> Result<()>) -> Result<()> {
        let mut keys = self.keys.clone();
        change(&mut keys)?;
        self.keys = keys;
        Ok(())
    }
}

impl Memory {
    pub(crate) fn envelope_current(&self) -> Option<EnvelopeKey> {
        self.lock().keys.envelope.clone()
    }

    pub(crate) fn envelope_create(&self, key: &EnvelopeKey) -> Result<()> {
        self.lock().keys_change(|keys| match keys.envelope.replace(key.clone()) {
            None => Ok(()),
            Some(_) => Err(CONFLICT),
        })
    }

    pub(crate) fn envelope_rotate(&self, old: EnvelopeId, new: &EnvelopeKey, resealed: &[Resealed]) -> Result<()> {
        self.lock().keys_change(|keys| {
            if keys.envelope.replace(new.clone()).is_none_or(|found| found.id != old) {
                return Err(CONFLICT);
            }
            for private in keys.signing.iter_mut().filter_map(|key| Some((key.times.id, key.private.as_mut()?))) {
                let sealed = resealed.iter().find(|one| one.id == private.0).ok_or(CONFLICT)?;
                *private.1 = SealedSecret { by: new.id, bytes: sealed.sealed.clone() };
            }
            Ok(())
        })
    }

    pub(crate) fn signing_keys(&self) -> Vec<SigningKey> {
        self.lock().keys.signing.clone()
    }

    pub(crate) fn signing_key_rotate(
        &self,
        old: Option<(KeyId, UnixMicros)>,
        new: &SigningKey,
        forget_before: UnixMicros,
    ) -> Result<()> {
        self.lock().keys_change(|keys| {
            if let Some((id, retires_at)) = old {
                let found = keys.signing.iter_mut().find(|key| key.times.id == id && signs(key)).ok_or(CONFLICT)?;
                found.times.retires_at = Some(retires_at);
                found.private = None;
            }
            let ended = |key: &SigningKey| key.times.withdrawn_at.or(key.times.retires_at);
            keys.signing.retain(|key| ended(key).is_none_or(|at| at >= forget_before));
            keys.add(new, SIGNING_KEYS_MAX)
        })
    }

    pub(crate) fn signing_key_withdraw(&self, id: KeyId, now: UnixMicros, new: Option<&SigningKey>) -> Result<()> {
        self.lock().keys_change(|keys| {
            let found = keys.signing.iter_mut().find(|key| key.times.id == id);
            let found = found.ok_or(Error::NotFound { what: "key" })?;
            found.times.withdrawn_at.get_or_insert(now);
            found.private = None;
            match new {
                Some(new) => keys.add(new, WITHDRAWN_KEYS_MAX),
                None if !keys.signing.iter().any(signs) => Err(CONFLICT),
                None => Ok(()),
            }
        })
    }
}
