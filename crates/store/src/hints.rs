//! Hints between the servers on one store: that something may have changed, so that nobody has to wait until it looks again.
//!
//! On PostgreSQL they are notifications (LISTEN and NOTIFY), in memory a channel. What is stored never depends on one: a
//! hint may be lost, come late or twice, and is no part of the transaction that it tells of. What it means is the servers'
//! business.

use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::{Backend, Error, Result, Store, sql::Listening};

/// The longest hint, in bytes: PostgreSQL takes less than 8,000 (NOTIFY in its manual).
pub const HINT_BYTES_MAX: usize = 4 * 1024;

/// What one server hears, until an error: then hints may have been lost, and no more come.
#[derive(Debug)]
pub struct Hints(Source);

#[derive(Debug)]
enum Source {
    Memory(Receiver<String>),
    Postgres(Listening),
}

impl Store {
    /// Gives a hint to everybody on this store, whoever gives it included. Nobody hears it where a server has the store to
    /// itself.
    pub async fn hint(&self, text: &str) -> Result<()> {
        if text.len() > HINT_BYTES_MAX {
            return Err(Error::invalid("a hint", format!("give at most {HINT_BYTES_MAX} bytes")));
        }
        match &self.backend {
            Backend::Memory(memory) => memory.hint(text),
            Backend::Sql(db) => return db.notify(text).await,
        }
        Ok(())
    }

    /// Hears the hints from now on; nothing where a server has the store to itself.
    pub async fn hints(&self) -> Result<Option<Hints>> {
        Ok(match &self.backend {
            Backend::Memory(memory) => Some(Hints(Source::Memory(memory.hints()))),
            Backend::Sql(db) => db.listen().await?.map(|listening| Hints(Source::Postgres(listening))),
        })
    }
}

impl Hints {
    /// The next hint. A wait that is dropped may take one along.
    pub async fn next(&mut self) -> Result<String> {
        match &mut self.0 {
            Source::Memory(receiver) => receiver.recv().await.map_err(|error| match error {
                RecvError::Lagged(_) | RecvError::Closed => Error::unavailable("hear hints", error),
            }),
            Source::Postgres(listening) => listening.next().await,
        }
    }
}
