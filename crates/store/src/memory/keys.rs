//! The keys of the deployment in memory.

use holm_domain::{EnvelopeId, KeyId, UnixMicros, audit::Entry};

use super::{Memory, State};
use crate::{
    ENVELOPES_RETIRED_MAX, EnvelopeKey, Error, Resealed, Result, SIGNING_KEYS_MAX, SealedSecret, SigningKey,
    keys::WITHDRAWN_KEYS_MAX,
};

const CONFLICT: Error = Error::Conflict { what: "key" };

/// The keys of the deployment.
#[derive(Debug, Default, Clone)]
pub(super) struct Keys {
    envelope: Option<EnvelopeKey>,
    /// Those that seal no more, oldest first.
    retired: Vec<EnvelopeKey>,
    signing: Vec<SigningKey>,
}

fn signs(key: &SigningKey) -> bool {
    key.times.retires_at.is_none() && key.times.withdrawn_at.is_none()
}

impl Keys {
    pub(super) fn seals_still(&self, id: EnvelopeId) -> Result<()> {
        match &self.envelope {
            Some(envelope) if envelope.id == id => Ok(()),
            _ => Err(Error::Conflict { what: "data key" }),
        }
    }

    fn add(&mut self, new: &SigningKey, most: u32) -> Result<()> {
        let Some(SealedSecret { by, .. }) = &new.private else {
            return Err(Error::invalid("a signing key", "it has no private half"));
        };
        self.seals_still(*by)?;
        if self.signing.iter().any(|other| signs(other) || other.times.id == new.times.id) {
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
    fn keys_change<T>(&mut self, change: impl FnOnce(&mut Keys) -> Result<T>) -> Result<T> {
        let mut keys = self.keys.clone();
        let done = change(&mut keys)?;
        self.keys = keys;
        Ok(done)
    }
}

impl Memory {
    pub(crate) fn envelope_current(&self) -> Option<EnvelopeKey> {
        self.lock().keys.envelope.clone()
    }

    pub(crate) fn envelope_get(&self, id: EnvelopeId) -> Option<EnvelopeKey> {
        let state = self.lock();
        state.keys.envelope.iter().chain(&state.keys.retired).find(|envelope| envelope.id == id).cloned()
    }

    pub(crate) fn envelopes_retired(&self) -> Vec<EnvelopeKey> {
        self.lock().keys.retired.iter().take(ENVELOPES_RETIRED_MAX as usize).cloned().collect()
    }

    pub(crate) fn envelopes_forget(&self) -> u64 {
        let mut state = self.lock();
        let (kept, forgotten): (Vec<EnvelopeKey>, Vec<EnvelopeKey>) =
            state.keys.retired.iter().cloned().partition(|envelope| state.is_sealing_secrets(envelope.id));
        state.keys.retired = kept;
        forgotten.len() as u64
    }

    pub(crate) fn envelope_create(&self, key: &EnvelopeKey) -> Result<()> {
        self.lock().keys_change(|keys| match keys.envelope.replace(key.clone()) {
            None => Ok(()),
            Some(_) => Err(CONFLICT),
        })
    }

    pub(crate) fn envelope_rotate(
        &self,
        old: EnvelopeId,
        new: &EnvelopeKey,
        resealed: &[Resealed],
        told: &[Entry],
    ) -> Result<()> {
        let mut state = self.lock();
        state.keys_change(|keys| {
            match keys.envelope.replace(new.clone()) {
                Some(found) if found.id == old => keys.retired.push(found),
                _ => return Err(CONFLICT),
            }
            for private in keys.signing.iter_mut().filter_map(|key| Some((key.times.id, key.private.as_mut()?))) {
                let sealed = resealed.iter().find(|one| one.id == private.0).ok_or(CONFLICT)?;
                *private.1 = SealedSecret { by: new.id, bytes: sealed.sealed.clone() };
            }
            Ok(())
        })?;
        state.tell(told);
        Ok(())
    }

    pub(crate) fn signing_keys(&self) -> Vec<SigningKey> {
        self.lock().keys.signing.clone()
    }

    pub(crate) fn signing_key_rotate(
        &self,
        old: Option<(KeyId, UnixMicros)>,
        new: &SigningKey,
        forget_before: UnixMicros,
        told: &[Entry],
    ) -> Result<()> {
        let mut state = self.lock();
        state.keys_change(|keys| {
            if let Some((id, retires_at)) = old {
                let found = keys.signing.iter_mut().find(|key| key.times.id == id && signs(key)).ok_or(CONFLICT)?;
                found.times.retires_at = Some(retires_at);
                found.private = None;
            }
            let ended = |key: &SigningKey| key.times.withdrawn_at.or(key.times.retires_at);
            keys.signing.retain(|key| ended(key).is_none_or(|at| at >= forget_before));
            keys.add(new, SIGNING_KEYS_MAX)
        })?;
        state.tell(told);
        Ok(())
    }

    pub(crate) fn signing_key_withdraw(
        &self,
        id: KeyId,
        now: UnixMicros,
        new: Option<&SigningKey>,
        told: &[Entry],
    ) -> Result<()> {
        let mut state = self.lock();
        let is_new = state.keys_change(|keys| {
            let found = keys.signing.iter_mut().find(|key| key.times.id == id);
            let found = found.ok_or(Error::NotFound { what: "key" })?;
            let is_new = found.times.withdrawn_at.is_none();
            found.times.withdrawn_at.get_or_insert(now);
            found.private = None;
            match new {
                Some(new) => keys.add(new, WITHDRAWN_KEYS_MAX)?,
                None if !keys.signing.iter().any(signs) => return Err(CONFLICT),
                None => {}
            }
            Ok(is_new)
        })?;
        state.tell(if is_new { told } else { &[] });
        Ok(())
    }
}
