//! Sessions with a server of PostgreSQL: who takes one soon after another gave it back is spared the questions of the pool.
//!
//! The pool asks a connection, when it is given back and when it is taken, whether it still is one to a server that takes
//! writes; that costs more ways there and back than most queries. So what worked to the end is kept here for who comes next,
//! and is asked once it was not for [`ASKED_WITHIN`].
//!
//! What always holds: a connection on which a query failed or was given up, or whose transaction is rolled back, goes back to
//! the pool. Nobody waits at the pool for what rests here, but for as long as the pool asks what was given up: no more are
//! taken at once than it has.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{PgConnection, PgPool, Postgres, pool::PoolConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    in_time,
    pools::{PING_MAX, takes_writes},
    within,
};

/// How long after it was asked a connection is used without being asked again.
pub(super) const ASKED_WITHIN: Duration = Duration::from_millis(100);
/// How long a connection stays away from its pool, which closes those that are old or not needed.
const AWAY_MAX: Duration = Duration::from_secs(60);

/// All sessions of one store.
#[derive(Debug, Clone)]
pub(crate) struct Sessions(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pool: PgPool,
    /// One for each connection of the pool.
    places: Arc<Semaphore>,
    rested: Mutex<Vec<Taken>>,
}

/// A connection that was taken from the pool.
#[derive(Debug)]
struct Taken {
    connection: PoolConnection<Postgres>,
    at: Instant,
    asked_at: Instant,
}

impl Taken {
    fn new(connection: PoolConnection<Postgres>) -> Self {
        let at = Instant::now();
        Self { connection, at, asked_at: at }
    }

    /// The same, if it still is a connection to a server that takes writes.
    async fn asked(mut self) -> Option<Self> {
        if self.asked_at.elapsed() < ASKED_WITHIN {
            return Some(self);
        }
        if self.at.elapsed() >= AWAY_MAX {
            return None;
        }
        if takes_writes(&mut self.connection).await.is_err() {
            drop(self.connection.detach());
            return None;
        }
        self.asked_at = Instant::now();
        Some(self)
    }
}

impl Sessions {
    /// Sessions on the connections of `pool`, of which nobody else takes one.
    pub(super) fn new(pool: PgPool) -> Self {
        let places = Arc::new(Semaphore::new(pool.options().get_max_connections() as usize));
        Self(Arc::new(Inner { pool, places, rested: Mutex::default() }))
    }

    /// Where the connections come from.
    pub(super) fn pool(&self) -> &PgPool {
        &self.0.pool
    }

    /// A session for queries one after the other.
    pub(super) async fn take(&self) -> sqlx::Result<Session> {
        let taken = tokio::time::timeout(self.0.pool.options().get_acquire_timeout(), self.taken()).await;
        let (taken, place) = taken.map_err(|_| sqlx::Error::PoolTimedOut)??;
        Ok(Session { taken: Some((taken, place)), is_whole: true, is_open: false, home: Arc::clone(&self.0) })
    }

    async fn taken(&self) -> sqlx::Result<(Taken, OwnedSemaphorePermit)> {
        let place = Arc::clone(&self.0.places).acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
        let rested = self.0.rested().pop();
        if let Some(rested) = rested
            && let Some(taken) = rested.asked().await
        {
            return Ok((taken, place));
        }
        Ok((Taken::new(self.0.pool.acquire().await?), place))
    }

    /// A session in a transaction, which is rolled back unless it is [committed](Session::commit).
    pub(super) async fn begin(&self) -> sqlx::Result<Session> {
        let mut session = self.take().await?;
        session.is_open = true;
        session.ask(async |connection| execute(connection, "begin").await).await?;
        Ok(session)
    }
}

impl Inner {
    fn rested(&self) -> MutexGuard<'_, Vec<Taken>> {
        self.rested.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what was given back; what has rested longest goes back to the pool in its time.
    fn rest(&self, taken: Taken) {
        let mut rested = self.rested();
        rested.push(taken);
        let is_due = rested.first().is_some_and(|first| first.at.elapsed() >= AWAY_MAX);
        let due = is_due.then(|| rested.remove(0));
        drop(rested);
        drop(due);
    }
}

/// A connection that somebody has for himself.
#[derive(Debug)]
pub(crate) struct Session {
    /// There until it is dropped.
    taken: Option<(Taken, OwnedSemaphorePermit)>,
    /// Whether all that was asked was answered.
    is_whole: bool,
    /// Whether a transaction may be open.
    is_open: bool,
    home: Arc<Inner>,
}

impl Session {
    /// Waits for an answer for as long as it may take.
    pub(super) async fn ask<T>(
        &mut self,
        question: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<T>,
    ) -> sqlx::Result<T> {
        let Some((taken, _)) = &mut self.taken else { return Err(sqlx::Error::PoolClosed) };
        self.is_whole = false;
        let answer = in_time(question(&mut taken.connection)).await?;
        self.is_whole = true;
        Ok(answer)
    }

    /// Commits its transaction.
    pub(super) async fn commit(mut self) -> sqlx::Result<()> {
        self.ask(async |connection| execute(connection, "commit").await).await?;
        self.is_open = false;
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some((taken, place)) = self.taken.take() else { return };
        if !self.is_open {
            if self.is_whole {
                self.home.rest(taken);
            }
            return;
        }
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(roll_back(taken.connection, place))),
            // The server rolls back what is open on a connection that ends.
            Err(_) => drop(taken.connection.detach()),
        }
    }
}

/// Rolls back what is open, behind what was given up on the same connection.
async fn roll_back(mut connection: PoolConnection<Postgres>, _place: OwnedSemaphorePermit) {
    if let Err(error) = within(PING_MAX, execute(&mut connection, "rollback")).await {
        tracing::debug!(cause = %error, "a transaction ends with its connection");
        drop(connection.detach());
    }
}

async fn execute(connection: &mut PgConnection, statement: &'static str) -> sqlx::Result<()> {
    sqlx::raw_sql(statement).execute(connection).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{postgres::TestDatabase, sql::Db};

    async fn number(session: &mut Session) -> sqlx::Result<i32> {
        session.ask(async |connection| sqlx::query_scalar("select pg_backend_pid()").fetch_one(connection).await).await
    }

    async fn sessions(url: &str) -> Sessions {
        let Db::Postgres(sessions) = Db::open_postgres(url).await.unwrap() else { panic!("another engine") };
        sessions
    }

    #[tokio::test]
    async fn what_was_given_back_is_used_next_unless_its_query_was_given_up() {
        let database = TestDatabase::create().await;
        let sessions = sessions(&database.url).await;
        let mut one = sessions.take().await.unwrap();
        let first = number(&mut one).await.unwrap();
        drop(one);
        let mut again = sessions.take().await.unwrap();
        assert_eq!(number(&mut again).await.unwrap(), first);
        let asleep = again.ask(async |connection| execute(connection, "select pg_sleep(30)").await);
        assert!(tokio::time::timeout(Duration::from_millis(50), asleep).await.is_err());
        drop(again);
        assert_eq!(sessions.0.rested().len(), 0, "nobody knows what such a connection answers next");
        let mut other = sessions.take().await.unwrap();
        assert_ne!(number(&mut other).await.unwrap(), first);
        database.remove().await;
    }

    #[tokio::test]
    async fn a_transaction_that_is_dropped_is_rolled_back_whatever_was_under_way() {
        let database = TestDatabase::create().await;
        let sessions = sessions(&database.url).await;
        let mut other = sessions.take().await.unwrap();
        other.ask(async |connection| execute(connection, "create table filling (number int)").await).await.unwrap();
        for is_given_up in [false, true] {
            let mut session = sessions.begin().await.unwrap();
            let fill = "insert into filling values (1)";
            session.ask(async |connection| execute(connection, fill).await).await.unwrap();
            if is_given_up {
                let asleep = session.ask(async |connection| execute(connection, "select pg_sleep(1)").await);
                assert!(tokio::time::timeout(Duration::from_millis(50), asleep).await.is_err());
            }
            drop(session);
            // It waits for whoever has the table.
            let empty = "set statement_timeout = '20s'; truncate filling";
            other.ask(async |connection| execute(connection, empty).await).await.unwrap();
        }
        let mut session = sessions.begin().await.unwrap();
        session.ask(async |connection| execute(connection, "insert into filling values (2)").await).await.unwrap();
        session.commit().await.unwrap();
        let count = other
            .ask(async |connection| {
                sqlx::query_scalar::<_, i64>("select sum(number) from filling").fetch_one(connection).await
            })
            .await;
        assert_eq!(count.unwrap(), 2);
        database.remove().await;
    }

    #[tokio::test]
    async fn as_many_are_taken_at_once_as_the_pool_has_and_all_come_back() {
        let database = TestDatabase::create().await;
        let sessions = sessions(&database.url).await;
        let most = sessions.pool().options().get_max_connections() as usize;
        for _ in 0..3 {
            let mut taken = Vec::new();
            for number in 0..most {
                taken.push(if number % 2 == 0 { sessions.take().await } else { sessions.begin().await }.unwrap());
            }
            let more = tokio::time::timeout(Duration::from_millis(100), sessions.take());
            assert!(more.await.is_err(), "more than the pool has");
        }
        database.remove().await;
    }
}
