//! Values that go into a query, and queries with their values.

use holm_domain::{AgentId, EnvelopeId, InstanceId, KeyId, OrgId, ProjectId, RunId, SecretId, TokenId, UnixMicros};
use sqlx::{Postgres, Sqlite, postgres::PgArguments, query::Query as Prepared, sqlite::SqliteArguments};

use super::Query;
use crate::{Error, Result};

/// The values of a query, `$1` first.
pub(crate) type Args = Vec<Value>;

/// A value that goes into a query. The engines want to know the type of what is not there.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Int(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
    /// A number that no column holds: the query is not executed.
    TooLarge(u64),
}

/// The values of a query.
macro_rules! args {
    ($($value:expr),* $(,)?) => { vec![$($crate::sql::Value::from($value)),*] };
}
pub(crate) use args;

macro_rules! from_ids {
    ($($id:ty),+) => { $(impl From<$id> for Value {
        fn from(id: $id) -> Self {
            Self::Text(Some(id.to_string()))
        }
    })+ };
}
from_ids!(OrgId, ProjectId, RunId, AgentId, InstanceId, TokenId, KeyId, EnvelopeId, SecretId, &str);

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Some(text))
    }
}

impl From<UnixMicros> for Value {
    fn from(at: UnixMicros) -> Self {
        Self::Int(Some(at.0))
    }
}

impl From<Option<UnixMicros>> for Value {
    fn from(at: Option<UnixMicros>) -> Self {
        Self::Int(at.map(|at| at.0))
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        i64::try_from(number).map_or(Self::TooLarge(number), |number| Self::Int(Some(number)))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Int(Some(i64::from(number)))
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::from(u64::try_from(number).unwrap_or(u64::MAX))
    }
}

impl From<Option<u64>> for Value {
    fn from(number: Option<u64>) -> Self {
        number.map_or(Self::Int(None), Self::from)
    }
}

impl From<Option<&[u8]>> for Value {
    fn from(bytes: Option<&[u8]>) -> Self {
        Self::Bytes(bytes.map(<[u8]>::to_vec))
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(Some(bytes.to_vec()))
    }
}

impl From<&[u8; 32]> for Value {
    fn from(bytes: &[u8; 32]) -> Self {
        Self::Bytes(Some(bytes.to_vec()))
    }
}

impl From<Option<&str>> for Value {
    fn from(text: Option<&str>) -> Self {
        Self::Text(text.map(str::to_owned))
    }
}

impl From<Option<String>> for Value {
    fn from(text: Option<String>) -> Self {
        Self::Text(text)
    }
}

macro_rules! bind {
    ($(#[$doc:meta])* $name:ident, $database:ty, $arguments:ty) => {
        $(#[$doc])*
        pub(crate) fn $name(query: Query, args: Args) -> Result<Prepared<'static, $database, $arguments>> {
            let mut prepared = sqlx::query::<$database>(query.sql);
            for value in args {
                prepared = match value {
                    Value::Int(number) => prepared.bind(number),
                    Value::Text(text) => prepared.bind(text),
                    Value::Bytes(bytes) => prepared.bind(bytes),
                    Value::TooLarge(given) => {
                        return Err(Error::Limit { what: "a number", given, max: i64::MAX.unsigned_abs() });
                    }
                };
            }
            Ok(prepared)
        }
    };
}

bind!(
    /// The query with its values, for SQLite.
    sqlite, Sqlite, SqliteArguments
);
bind!(
    /// The query with its values, for PostgreSQL.
    postgres, Postgres, PgArguments
);
