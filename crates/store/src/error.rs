//! What can go wrong in the store, by what a caller can do about it.

use std::path::Path;

use crate::blobs::is_log_key;

/// A cause that another library told.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else was first: the version is another one now, or the name is taken. Read again and decide anew.
    #[error("{what} was changed by somebody else, or is already there")]
    Conflict {
        /// The thing.
        what: &'static str,
    },
    /// There is no such thing in this org.
    #[error("there is no such {what}")]
    NotFound {
        /// The thing.
        what: &'static str,
    },
    /// What the store stands on did not answer, or not in time. The operation may be tried again.
    #[error("the store did not answer ({doing}): {source}")]
    Unavailable {
        /// The operation.
        doing: &'static str,
        /// What the engine said.
        source: Cause,
    },
    /// A row or a blob is there and cannot be read. It is never skipped: somebody has to look at it.
    #[error("`{table}` holds under `{key}` what cannot be read: {problem}")]
    Corrupt {
        /// The table, or `blobs`.
        table: &'static str,
        /// The key of the row.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The database as a whole cannot be read, or a part of it that bears no key.
    #[error("the database is damaged ({problem}): {way_out}")]
    Damaged {
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        way_out: &'static str,
    },
    /// More was asked for than is allowed at once.
    #[error("{what}: {given} is more than {max}")]
    Limit {
        /// What there was too much of.
        what: &'static str,
        /// How much was given.
        given: u64,
        /// How much is allowed.
        max: u64,
    },
    /// What was asked for cannot be stored, whatever the state.
    #[error("{what} is not accepted: {problem}")]
    Invalid {
        /// What was given.
        what: &'static str,
        /// Why it is not accepted.
        problem: String,
    },
}

/// The result of an operation of the store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether what is stored cannot be read.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Damaged { .. })
    }

    /// Whether a part of a log is there no more, or is not what was stored.
    pub fn is_damaged_log(&self) -> bool {
        match self {
            Self::Corrupt { table: "log_segments", .. } => true,
            Self::Corrupt { table: "blobs", key, .. } => is_log_key(key),
            _ => false,
        }
    }

    /// The store did not answer while it was asked to do that, for the cause.
    pub fn unavailable(doing: &'static str, source: impl Into<Cause>) -> Self {
        Self::Unavailable { doing, source: source.into() }
    }

    pub(crate) fn corrupt(table: &'static str, key: impl Into<String>, problem: impl ToString) -> Self {
        Self::Corrupt { table, key: key.into(), problem: problem.to_string() }
    }

    pub(crate) fn damaged(problem: impl Into<String>) -> Self {
        let way_out = "restore it from a copy, or move it away to begin with nothing";
        Self::Damaged { problem: problem.into(), way_out }
    }

    pub(crate) fn displaced(database: &Path) -> Self {
        let problem = format!(
            "`{}` was removed or replaced while it was open, and what was stored last lies in its log alone",
            database.display()
        );
        Self::Damaged { problem, way_out: "put it back before the next start" }
    }

    pub(crate) fn invalid(what: &'static str, problem: impl Into<String>) -> Self {
        Self::Invalid { what, problem: problem.into() }
    }
}

/// The largest number that is stored; no sequence and no fence ever comes near it.
pub(crate) const NUMBER_MAX: u64 = i64::MAX.unsigned_abs();

/// A statement that adds a row only below a maximum did not add one.
pub(crate) fn full_unless_one(added: u64, what: &'static str, max: u32) -> Result<()> {
    if added == 1 {
        return Ok(());
    }
    Err(Error::Limit { what, given: u64::from(max) + 1, max: u64::from(max) })
}

/// Refuses `given` above `max`.
pub(crate) fn limit(what: &'static str, given: usize, max: usize) -> Result<()> {
    if given <= max {
        return Ok(());
    }
    let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    Err(Error::Limit { what, given: wide(given), max: wide(max) })
}

/// Refuses a page of nothing, and one that is longer than allowed.
pub(crate) fn page(limit: u32, max: u32) -> Result<usize> {
    if limit == 0 {
        return Err(Error::invalid("limit", "give at least 1"));
    }
    if limit > max {
        return Err(Error::Limit { what: "rows of a page", given: u64::from(limit), max: u64::from(max) });
    }
    Ok(limit as usize)
}
