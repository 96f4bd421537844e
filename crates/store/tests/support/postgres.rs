//! A database of its own for a test, on the server that `HOLM_TEST_POSTGRES` names.

use std::{
    str::FromStr,
    sync::atomic::{AtomicU32, Ordering},
};

use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, postgres::PgConnectOptions};

/// A database that was made for one test.
pub struct TestDatabase {
    /// Its URL.
    pub url: String,
    name: String,
}

fn server() -> PgConnectOptions {
    let url = std::env::var("HOLM_TEST_POSTGRES")
        .expect("HOLM_TEST_POSTGRES is not set: `cargo xtask test` starts a PostgreSQL and sets it");
    PgConnectOptions::from_str(&url).expect("HOLM_TEST_POSTGRES is a URL of PostgreSQL")
}

impl TestDatabase {
    /// Makes a database.
    pub async fn create() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("holm_store_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut admin = PgConnection::connect_with(&server()).await.expect("PostgreSQL answers");
        // A database of that name can only be left from an earlier process with the same id.
        let drop_it = format!("drop database if exists {name} with (force)");
        admin.execute(AssertSqlSafe(drop_it)).await.expect("an old test database can be dropped");
        let create = format!("create database {name}");
        admin.execute(AssertSqlSafe(create)).await.expect("a test database can be made");
        admin.close().await.expect("PostgreSQL answers");
        let url = server().database(&name).to_url_lossy().to_string();
        Self { url, name }
    }

    /// Has every session that begins from now on be read-only, and ends those that there are; or no more, and leaves those.
    #[allow(dead_code, reason = "some of the tests that share this file do without")]
    pub async fn turn_read_only(&self, is_on: bool) {
        let mut admin = PgConnection::connect_with(&server()).await.expect("PostgreSQL answers");
        let name = &self.name;
        let turn = format!("alter database {name} set default_transaction_read_only = {is_on}");
        admin.execute(AssertSqlSafe(turn)).await.expect("a test database can be changed");
        if !is_on {
            return;
        }
        let end = format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'");
        admin.execute(AssertSqlSafe(end)).await.expect("sessions can be ended");
    }

    /// Drops it, whoever is still connected.
    pub async fn remove(self) {
        let mut admin = PgConnection::connect_with(&server()).await.expect("PostgreSQL answers");
        let drop_it = format!("drop database {} with (force)", self.name);
        admin.execute(AssertSqlSafe(drop_it)).await.expect("the test database can be dropped");
    }
}
