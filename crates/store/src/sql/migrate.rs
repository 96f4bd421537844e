//! The schema, step by step. Each step is embedded, numbered, and applied once, under a lock and in one transaction with
//! the note that it was: any number of servers may start at once. A database that is newer than this program is refused.

use sqlx::{AssertSqlSafe, Executor};

use super::{Db, Tx, args, broken, queries};
use crate::{Error, Result};

/// The steps in order; the number of a step is its place, from 1.
const STEPS: &[&str] = &[
    include_str!("../../migrations/0001_begin.sql"),
    include_str!("../../migrations/0002_log_times.sql"),
    include_str!("../../migrations/0003_log_retention.sql"),
    include_str!("../../migrations/0004_host_cordon.sql"),
    include_str!("../../migrations/0005_queue_order.sql"),
    include_str!("../../migrations/0006_keys.sql"),
    include_str!("../../migrations/0007_org_limits.sql"),
    include_str!("../../migrations/0008_lease_cancel.sql"),
    include_str!("../../migrations/0009_host_keys.sql"),
    include_str!("../../migrations/0010_pools.sql"),
    include_str!("../../migrations/0011_secrets.sql"),
    include_str!("../../migrations/0012_audit.sql"),
];

/// By which either engine refuses to change the audit log: triggers, of which each has its own form.
const AUDIT_SQLITE: &str = include_str!("../../migrations/0012_audit_sqlite.sql");
const AUDIT_POSTGRES: &str = include_str!("../../migrations/0012_audit_postgres.sql");

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
    bring(db, STEPS).await
}

async fn bring(db: &Db, steps: &'static [&'static str]) -> Result<()> {
    // On SQLite the transaction begins as the only writer; that is the lock.
    let mut tx = db.begin().await?;
    if matches!(tx, Tx::Postgres(_)) {
        script(&mut tx, LOCK_POSTGRES).await?;
    }
    script(&mut tx, TABLE).await?;
    let row = tx.row(SCHEMA_STEP, args![]).await?.ok_or(Error::NotFound { what: "schema step" })?;
    let done = row.under("schema_steps", "step").number("step")?;
    let known = u64::try_from(steps.len()).unwrap_or(u64::MAX);
    if done > known {
        let problem = format!("the database is at step {done}, this program knows {known}: start a newer one");
        return Err(Error::corrupt("schema_steps", "step", problem));
    }
    for (number, step) in (1u64..).zip(steps).filter(|(number, _)| *number > done) {
        script(&mut tx, step).await?;
        tx.execute(SCHEMA_STEP_DONE, args![number]).await?;
        tracing::info!(step = number, "the schema of the store was brought forward");
    }
    tx.commit().await
}

/// Executes statements whose types, and what has a form of its own on each engine, are written for either.
async fn script(tx: &mut Tx, text: &'static str) -> Result<()> {
    // Bytes are ordered as bytes on both engines, whatever the locale of the database is.
    let (text_type, bytes_type, append_only) = match tx {
        Tx::Sqlite(_) => ("text", "blob", AUDIT_SQLITE),
        Tx::Postgres(_) => ("text collate \"C\"", "bytea", AUDIT_POSTGRES),
    };
    let text = text.replace("{text}", text_type).replace("{bytes}", bytes_type);
    let text = text.replace("{append_only_audit}", append_only);
    let sql = sqlx::raw_sql(AssertSqlSafe(text));
    let done = match tx {
        Tx::Sqlite(tx) => (&mut **tx).execute(sql).await.map(drop),
        Tx::Postgres(session) => session.ask(async |connection| connection.execute(sql).await).await.map(drop),
    };
    done.map_err(|error| broken("bring the schema forward", error))
}

#[cfg(test)]
mod tests {
    use holm_domain::UnixMicros;

    use super::{super::Expect, *};
    use crate::{Blobs, Store, postgres::TestDatabase};

    /// What a program of the second step left: a run that goes on and one that has ended.
    const RUNS: &str = "insert into orgs (id, name, created_at) values ('org_1', 'a', 1);
        insert into projects (id, org, name, created_at) values ('prj_1', 'org_1', 'a', 1);
        insert into runs (id, org, project, state, version, fence, queued_at, deadline_at, body)
          values ('run_1', 'org_1', 'prj_1', 'running', 1, 1, 1, 9, '{}'),
            ('run_2', 'org_1', 'prj_1', 'ended', 1, 1, 1, null, '{}');";

    async fn brought_forward(db: &Db, url: &str) {
        bring(db, &STEPS[..2]).await.unwrap();
        let mut tx = db.begin().await.unwrap();
        script(&mut tx, RUNS).await.unwrap();
        tx.commit().await.unwrap();
        for _ in 0..2 {
            let store = Store::open(url, Blobs::memory()).await.unwrap();
            let found = store.logs_kept(UnixMicros(0), None, 10).await.unwrap();
            // Its body is not one that can be read: what counts is that it is found.
            assert_eq!(found.iter().map(|due| due.place.id.as_str()).collect::<Vec<_>>(), ["run_2"]);
        }
    }

    #[tokio::test]
    async fn runs_of_earlier_steps_are_found_on_sqlite() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db").display().to_string();
        brought_forward(&Db::reach_sqlite(&path, Expect::Anything).await.unwrap(), &format!("sqlite:{path}")).await;
    }

    #[tokio::test]
    async fn runs_of_earlier_steps_are_found_on_postgres() {
        let database = TestDatabase::create().await;
        brought_forward(&Db::reach_postgres(&database.url).await.unwrap(), &database.url).await;
        database.remove().await;
    }
}
