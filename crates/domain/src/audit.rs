//! The audit log of an org: who did what, in records that are chained by digest.
//!
//! What always holds: the records of an org are numbered from 1 without gaps; the digest of each covers all that it says and the
//! digest of the one before. So whoever keeps the number and the digest of one record can tell later whether it, or one before
//! it, was changed, removed, moved or put in between, and whether the log ends before it.
//!
//! The digest is SHA-256 over these fields one after the other, each of them preceded by its length in bytes as eight bytes,
//! the most significant first:
//!
//! 1. the text `holm.audit.1`;
//! 2. the digest of the record before, as its 32 bytes: 32 zero bytes in the record with the number 1;
//! 3. the org;
//! 4. the number, in decimal digits;
//! 5. the time in microseconds since the Unix epoch, in decimal digits;
//! 6. who did it;
//! 7. what was done;
//! 8. to what;
//! 9. how many details there are, in decimal digits;
//! 10. and of each detail its name and its value, ordered by the bytes of the names.
//!
//! Texts are in UTF-8. A record holds texts even where only a few words are written, so that a program that is older than the one
//! that wrote it verifies it as well.
//!
//! Left out: where records are kept (`holm-store`), and what is told of (`holm-server`). No value of a secret and no token is ever
//! a part of one.

mod action;

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use action::Action;

use crate::{AgentId, OrgId, TokenId, UnixMicros};

/// The longest subject, in bytes.
pub const SUBJECT_BYTES_MAX: usize = 512;
/// The most details of a record.
pub const DETAILS_MAX: usize = 16;
/// The longest name of a detail, in bytes.
pub const DETAIL_NAME_BYTES_MAX: usize = 32;
/// The longest value of a detail, in bytes.
pub const DETAIL_BYTES_MAX: usize = 9 * 1024;

/// With what each record begins that is digested in this form.
const FORM: &str = "holm.audit.1";

/// Who did something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Actor {
    /// The holder of a token, or of a join token.
    Token(TokenId),
    /// The agent of a host.
    Agent(AgentId),
    /// The server by itself, or whoever started it.
    Server,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Actor::Token(id) => id.fmt(f),
            Actor::Agent(id) => id.fmt(f),
            Actor::Server => f.write_str("server"),
        }
    }
}

/// A SHA-256; in texts as 64 hexadecimal digits with small letters.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Digest(pub [u8; 32]);

/// A text that is no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 hexadecimal digits with small letters")]
pub struct InvalidDigest;

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let is_plain = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 64 || !text.bytes().all(is_plain) {
            return Err(InvalidDigest);
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| InvalidDigest)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| InvalidDigest)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The number and the digest of a record, which stand for all up to it; in texts as `SEQ:DIGEST`. That of a log without
/// records is 0 and zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Head {
    /// The number.
    pub seq: u64,
    /// The digest.
    pub digest: Digest,
}

/// A text that is no head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("give the number of a record and its digest as `SEQ:DIGEST`, such as `holm audit verify` prints")]
pub struct InvalidHead;

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.digest)
    }
}

impl FromStr for Head {
    type Err = InvalidHead;

    fn from_str(text: &str) -> Result<Self, InvalidHead> {
        let (seq, digest) = text.split_once(':').ok_or(InvalidHead)?;
        let head =
            Self { seq: seq.parse().map_err(|_| InvalidHead)?, digest: digest.parse().map_err(|_| InvalidHead)? };
        // What is before all records has one digest.
        if head.seq == 0 && head != Self::default() { Err(InvalidHead) } else { Ok(head) }
    }
}

impl Head {
    /// Whether it still stands among records that were verified: one with its number and another digest is wrong.
    pub fn stands_in(self, records: &[Record]) -> Result<(), Wrong> {
        match records.iter().find(|record| record.seq == self.seq) {
            Some(record) if record.digest != self.digest => {
                Err(Wrong { seq: self.seq, why: Why::NotTheKept { kept: self.digest, found: record.digest } })
            }
            _ => Ok(()),
        }
    }

    /// Whether a log that ends with `end` goes as far as to it.
    pub fn is_reached_by(self, end: Head) -> Result<(), Wrong> {
        if self.seq <= end.seq {
            return Ok(());
        }
        Err(Wrong { seq: end.seq.saturating_add(1), why: Why::Cut { end: end.seq, kept: self.seq } })
    }
}

/// What is to be told, before it has its place in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// In whose log.
    pub org: OrgId,
    at: UnixMicros,
    actor: Actor,
    action: Action,
    subject: String,
    details: BTreeMap<String, String>,
}

impl Entry {
    /// That `actor` did `action` to `subject`, told in the log of `org`. What is longer than a record has room for is cut.
    pub fn new(org: OrgId, at: UnixMicros, actor: Actor, action: Action, subject: impl fmt::Display) -> Self {
        let subject = cut(subject.to_string(), SUBJECT_BYTES_MAX);
        Self { org, at, actor, action, subject, details: BTreeMap::new() }
    }

    /// The same with one detail more, as far as there is room.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        if self.details.len() < DETAILS_MAX {
            let name = cut(name.to_owned(), DETAIL_NAME_BYTES_MAX);
            self.details.insert(name, cut(value.to_string(), DETAIL_BYTES_MAX));
        }
        self
    }

    /// The same with one detail more, if there is something to tell.
    #[must_use]
    pub fn with_any(self, name: &str, value: Option<impl fmt::Display>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// The record after `head`.
    pub fn after(&self, head: Head) -> Record {
        let Self { org, at, actor, action, subject, details } = self.clone();
        let (actor, action) = (actor.to_string(), action.as_str().to_owned());
        let (seq, previous) = (head.seq.saturating_add(1), head.digest);
        let mut record = Record { org, seq, at, actor, action, subject, details, previous, digest: Digest::default() };
        record.digest = record.digest_anew();
        record
    }
}

/// What is cut says so.
fn cut(mut text: String, bytes_max: usize) -> String {
    const CUT: &str = "…";
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max - CUT.len()));
        text.push_str(CUT);
    }
    text
}

/// One record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// In whose log.
    pub org: OrgId,
    /// Its number, from 1.
    pub seq: u64,
    /// When it was done.
    pub at: UnixMicros,
    /// Who did it: a token, an agent, or `server`.
    pub actor: String,
    /// What was done, such as `secret.created`.
    pub action: String,
    /// To what: its id or its name.
    pub subject: String,
    /// What else is to be known.
    pub details: BTreeMap<String, String>,
    /// The digest of the record before.
    pub previous: Digest,
    /// Its digest.
    pub digest: Digest,
}

impl Record {
    /// Its number and its digest.
    pub fn head(&self) -> Head {
        Head { seq: self.seq, digest: self.digest }
    }

    /// The digest that it must have by what it says.
    pub fn digest_anew(&self) -> Digest {
        let mut fields = Fields(Sha256::new());
        fields.add(FORM);
        fields.add(self.previous.0);
        fields.add(self.org.to_string());
        fields.add(self.seq.to_string());
        fields.add(self.at.0.to_string());
        fields.add(&self.actor);
        fields.add(&self.action);
        fields.add(&self.subject);
        fields.add(self.details.len().to_string());
        for (name, value) in &self.details {
            fields.add(name);
            fields.add(value);
        }
        Digest(fields.0.finalize().into())
    }
}

/// With its length before each of them, no two rows of fields are the same bytes.
struct Fields(Sha256);

impl Fields {
    fn add(&mut self, field: impl AsRef<[u8]>) {
        let field = field.as_ref();
        self.0.update((field.len() as u64).to_be_bytes());
        self.0.update(field);
    }
}

/// The first record that is not what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("record {seq} is wrong: {why}")]
pub struct Wrong {
    /// The number that it bears, or must bear.
    pub seq: u64,
    /// What is wrong with it.
    pub why: Why,
}

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// It is from the log of another org.
    #[error("it is of another org, {0}")]
    OtherOrg(OrgId),
    /// Another one stands in its place.
    #[error("the record with the number {0} stands in its place")]
    OtherSeq(u64),
    /// It does not follow the one before.
    #[error("it was written after a record with another digest than that of the one before it")]
    NotAfter,
    /// Its digest is not that of what it says.
    #[error("its digest is not that of what it says")]
    Changed,
    /// It is another one than that which was kept.
    #[error("its digest is {found}, and was {kept} when it was kept")]
    NotTheKept {
        /// The digest that was kept.
        kept: Digest,
        /// That of the record.
        found: Digest,
    },
    /// The log ends before it.
    #[error("it is missing: the log ends with {end}, and had {kept} records before")]
    Cut {
        /// The number of the last record.
        end: u64,
        /// The number of one that was there.
        kept: u64,
    },
}

/// Checks that records of an org follow `from`, one after the other; returns the head that they lead to. Whether more of them
/// were there at the end, and whether all of them were written anew, is told only by a head that was kept elsewhere
/// ([`Head::stands_in`], [`Head::is_reached_by`]).
pub fn verify(org: OrgId, records: &[Record], from: Head) -> Result<Head, Wrong> {
    records.iter().try_fold(from, |head, record| {
        let seq = head.seq.saturating_add(1);
        let why = if record.org != org {
            Why::OtherOrg(record.org)
        } else if record.seq != seq {
            Why::OtherSeq(record.seq)
        } else if record.previous != head.digest {
            Why::NotAfter
        } else if record.digest_anew() != record.digest {
            Why::Changed
        } else {
            return Ok(record.head());
        };
        Err(Wrong { seq, why })
    })
}

#[cfg(test)]
mod tests;
