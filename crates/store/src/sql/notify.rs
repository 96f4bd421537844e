//! Notifications of PostgreSQL.

use std::io;

use sqlx::postgres::PgListener;

use super::{Db, broken, in_time, pools};
use crate::Result;

const CHANNEL: &str = "holm";
const LISTENING: &str = "listen for hints";

/// Somebody who listens, on a connection of its own: it is in no pool that others use, so nobody is ever given it. One whose
/// other end is lost without a word is closed once the kernel gives it up.
#[derive(Debug)]
pub(crate) struct Listening(PgListener);

impl Db {
    /// Notifies everybody who listens to the database; nobody does where one server has it to itself.
    pub(crate) async fn notify(&self, text: &str) -> Result<()> {
        let Self::Postgres(sessions) = self else { return Ok(()) };
        let notify = sqlx::query("select pg_notify($1, $2)").bind(CHANNEL).bind(text);
        let notifying = async { sessions.take().await?.ask(async |connection| notify.execute(connection).await).await };
        notifying.await.map(drop).map_err(|error| broken("give a hint", error))
    }

    /// Listens to whoever notifies from now on.
    pub(crate) async fn listen(&self) -> Result<Option<Listening>> {
        let Self::Postgres(sessions) = self else { return Ok(None) };
        let listening = async {
            let mut listener = PgListener::connect_with(&pools::one_more(sessions.pool())).await?;
            listener.eager_reconnect(false);
            listener.listen(CHANNEL).await?;
            Ok(Listening(listener))
        };
        in_time(listening).await.map(Some).map_err(|error| broken(LISTENING, error))
    }
}

impl Listening {
    /// The next notification; an error once the connection is lost.
    pub(crate) async fn next(&mut self) -> Result<String> {
        let lost = || sqlx::Error::Io(io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was lost"));
        let notified = self.0.try_recv().await.and_then(|notified| notified.ok_or_else(lost));
        notified.map(|notified| notified.payload().to_owned()).map_err(|error| broken(LISTENING, error))
    }
}
