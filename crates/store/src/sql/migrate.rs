//! The schema, step by step. Each step is embedded, numbered, and applied once, under a lock and in one transaction with
//! the note that it was: any number of servers may start at once. A database that is newer than this program is refused.

use sqlx::{AssertSqlSafe, Executor};

use super::{Db, Tx, args, queries};
use crate::{Error, Result};

/// The steps in order; the number of a step is its place, from 1.
const STEPS: &[&str] =
    &[include_str!("../../migrations/0001_begin.sql"), include_str!("../../migrations/0002_log_times.sql")];

const TABLE: &str = "create table if not exists schema_steps (step bigint primary key)";

/// The lock under which servers on one PostgreSQL database apply steps: the letters HOLM.
const LOCK_POSTGRES: &str = "select pg_advisory_xact_lock(1213156429)";

queries! {
    of "schema step" in "schema";
    SCHEMA_STEP = "select coalesce(max(step), 0) as step from schema_steps";
    SCHEMA_STEP_DONE = "insert into schema_steps (step) values ($1)";
}

/// Brings the schema up to date.
pub(crate) async fn up(db: &Db) -> Result<()> {
    // On SQLite the transaction begins as the only writer; that is the lock.
    let mut tx = db.begin().await?;
    if matches!(tx, Tx::Postgres(_)) {
        script(&mut tx, LOCK_POSTGRES).await?;
    }
    script(&mut tx, TABLE).await?;
    let row = tx.row(SCHEMA_STEP, args![]).await?.ok_or(Error::NotFound { what: "schema step" })?;
    let done = row.under("schema_steps", "step").number("step")?;
    let known = u64::try_from(STEPS.len()).unwrap_or(u64::MAX);
    if done > known {
        let problem = format!("the database is at step {done}, this program knows {known}: start a newer one");
        return Err(Error::corrupt("schema_steps", "step", problem));
    }
    for (number, step) in (1u64..).zip(STEPS).filter(|(number, _)| *number > done) {
        script(&mut tx, step).await?;
        tx.execute(SCHEMA_STEP_DONE, args![number]).await?;
        tracing::info!(step = number, "the schema of the store was brought forward");
    }
    tx.commit().await
}

/// Executes statements whose types are written for either engine.
async fn script(tx: &mut Tx, text: &'static str) -> Result<()> {
    // Bytes are ordered as bytes on both engines, whatever the locale of the database is.
    let (text_type, bytes_type) = match tx {
        Tx::Sqlite(_) => ("text", "blob"),
        Tx::Postgres(_) => ("text collate \"C\"", "bytea"),
    };
    let text = text.replace("{text}", text_type).replace("{bytes}", bytes_type);
    let sql = sqlx::raw_sql(AssertSqlSafe(text));
    let done = match tx {
        Tx::Sqlite(tx) => (&mut **tx).execute(sql).await.map(drop),
        Tx::Postgres(tx) => (&mut **tx).execute(sql).await.map(drop),
    };
    done.map_err(|error| Error::unavailable("bring the schema forward", error))
}
