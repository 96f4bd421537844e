//! Rows that come out of a query. A value that cannot be read is told with its table and key.

use std::{fmt::Display, str::FromStr};

use holm_domain::UnixMicros;
use serde::de::DeserializeOwned;
use sqlx::{Decode, Postgres, Row as _, Sqlite, Type, postgres::PgRow, sqlite::SqliteRow};

use crate::{Error, Result};

/// The form in which bodies are written.
const BODY_VERSION: u64 = 1;

/// A row of either engine.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// A row under the name by which its errors are told.
pub(crate) struct Fields<'r> {
    row: &'r Row,
    table: &'static str,
    key: String,
}

/// A versioned body.
#[derive(serde::Serialize, serde::Deserialize)]
struct Body<T> {
    v: u64,
    is: T,
}

/// The version alone, for what cannot be read: a body of another version may have any form.
#[derive(serde::Deserialize)]
struct BodyVersion {
    v: u64,
}

/// Writes a body in the form of today.
pub(crate) fn encode<T: serde::Serialize>(what: &'static str, is: &T) -> Result<String> {
    serde_json::to_string(&Body { v: BODY_VERSION, is }).map_err(|error| Error::invalid(what, error.to_string()))
}

impl Row {
    fn get<T>(&self, column: &str) -> Result<T, sqlx::Error>
    where
        T: for<'d> Decode<'d, Sqlite> + Type<Sqlite> + for<'d> Decode<'d, Postgres> + Type<Postgres>,
    {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
    }

    /// The row as one of `table`, whose key is in `column`.
    pub(crate) fn of(&self, table: &'static str, column: &str) -> Result<Fields<'_>> {
        let key = self.get::<String>(column).map_err(|error| Error::corrupt(table, column, error))?;
        Ok(self.under(table, key))
    }

    /// The row as one of `table` under a key that the caller knows.
    pub(crate) fn under(&self, table: &'static str, key: impl Display) -> Fields<'_> {
        Fields { row: self, table, key: key.to_string() }
    }
}

impl Fields<'_> {
    /// An error about this row.
    pub(crate) fn corrupt(&self, problem: impl Display) -> Error {
        Error::corrupt(self.table, self.key.as_str(), problem)
    }

    fn get<T>(&self, column: &str) -> Result<T>
    where
        T: for<'d> Decode<'d, Sqlite> + Type<Sqlite> + for<'d> Decode<'d, Postgres> + Type<Postgres>,
    {
        self.row.get(column).map_err(|error| self.corrupt(error))
    }

    /// A number that is never negative.
    pub(crate) fn number(&self, column: &str) -> Result<u64> {
        let number = self.get::<i64>(column)?;
        u64::try_from(number).map_err(|_| self.negative(column, number))
    }

    /// A number that is never negative and may be missing.
    pub(crate) fn number_if_any(&self, column: &str) -> Result<Option<u64>> {
        let number = self.get::<Option<i64>>(column)?;
        number.map(|number| u64::try_from(number).map_err(|_| self.negative(column, number))).transpose()
    }

    fn negative(&self, column: &str, number: i64) -> Error {
        self.corrupt(format!("`{column}` is {number}"))
    }

    /// An instant.
    pub(crate) fn at(&self, column: &str) -> Result<UnixMicros> {
        self.get(column).map(UnixMicros)
    }

    /// An instant that may be missing.
    pub(crate) fn at_if_any(&self, column: &str) -> Result<Option<UnixMicros>> {
        Ok(self.get::<Option<i64>>(column)?.map(UnixMicros))
    }

    /// A text.
    pub(crate) fn text(&self, column: &str) -> Result<String> {
        self.get(column)
    }

    /// A text that may be missing.
    pub(crate) fn text_if_any(&self, column: &str) -> Result<Option<String>> {
        self.get(column)
    }

    /// Bytes that may be missing.
    pub(crate) fn bytes_if_any(&self, column: &str) -> Result<Option<Vec<u8>>> {
        self.get(column)
    }

    /// A digest.
    pub(crate) fn digest(&self, column: &str) -> Result<[u8; 32]> {
        let bytes = self.get::<Vec<u8>>(column)?;
        bytes.try_into().map_err(|bytes: Vec<u8>| self.corrupt(format!("`{column}` has {} bytes", bytes.len())))
    }

    /// A text that is parsed, such as an id.
    pub(crate) fn parsed<T: FromStr<Err: Display>>(&self, column: &str) -> Result<T> {
        self.text(column)?.parse().map_err(|error| self.corrupt(format!("`{column}`: {error}")))
    }

    /// A versioned body.
    pub(crate) fn body<T: DeserializeOwned>(&self, column: &str) -> Result<T> {
        self.decoded(column, &self.text(column)?)
    }

    /// A versioned body that may be missing.
    pub(crate) fn body_if_any<T: DeserializeOwned>(&self, column: &str) -> Result<Option<T>> {
        self.text_if_any(column)?.map(|text| self.decoded(column, &text)).transpose()
    }

    fn decoded<T: DeserializeOwned>(&self, column: &str, text: &str) -> Result<T> {
        let bad = |error: serde_json::Error| self.corrupt(format!("`{column}`: {error}"));
        let cause = match serde_json::from_str::<Body<T>>(text) {
            Ok(body) if body.v == BODY_VERSION => return Ok(body.is),
            read => read.err(),
        };
        let BodyVersion { v } = serde_json::from_str(text).map_err(bad)?;
        match cause {
            Some(error) if v == BODY_VERSION => Err(bad(error)),
            _ => Err(self.corrupt(format!("`{column}` has version {v}; this program reads version {BODY_VERSION}"))),
        }
    }
}
