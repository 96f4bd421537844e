//! The store on which a world's server stands, as `HOLM_TEST_STORE` says: `sqlite` or `postgres`.
//!
//! A world on PostgreSQL has a database of its own, made and dropped by psql on the server that `HOLM_TEST_POSTGRES` names.

use std::process::{Command, Stdio};

use crate::{ran, unique};

/// Where a world keeps its records.
#[derive(Debug)]
pub enum Store {
    /// The embedded database in the state folder: what the binary does unless it is told otherwise.
    Sqlite,
    /// A database of its own.
    Postgres(Database),
}

/// A database that is dropped with this.
#[derive(Debug)]
pub struct Database {
    server: String,
    name: String,
}

impl Store {
    /// The store that the environment asks for.
    #[track_caller]
    pub fn from_environment() -> Self {
        match std::env::var("HOLM_TEST_STORE").as_deref() {
            Err(_) | Ok("sqlite") => Self::Sqlite,
            Ok("postgres") => Self::Postgres(Database::create()),
            Ok(other) => panic!("HOLM_TEST_STORE is `{other}`: give `sqlite` or `postgres`"),
        }
    }

    /// The URL to start a server with, where it is not the embedded one.
    pub fn url(&self) -> Option<String> {
        match self {
            Self::Sqlite => None,
            Self::Postgres(database) => Some(database.url()),
        }
    }
}

impl Database {
    #[track_caller]
    fn create() -> Self {
        let server = std::env::var("HOLM_TEST_POSTGRES")
            .expect("HOLM_TEST_POSTGRES is not set: `cargo xtask test` starts a server and sets it");
        let database = Self { server, name: unique("holm_e2e").replace('-', "_") };
        database.psql(&format!("create database {}", database.name));
        database
    }

    fn url(&self) -> String {
        let (head, _) = self.server.rsplit_once('/').expect("the URL of a server ends with a database");
        format!("{head}/{}", self.name)
    }

    #[track_caller]
    fn psql(&self, statement: &str) {
        let mut command = Command::new("psql");
        command.args(["--no-psqlrc", "--quiet", "--no-password", "--command", statement, &self.server]);
        ran::run(command.stdin(Stdio::null())).succeeds();
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.psql(&format!("drop database {} with (force)", self.name));
        }
    }
}
