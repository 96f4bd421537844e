//! Notifications of PostgreSQL.

use sqlx::postgres::PgListener;

use super::{Db, broken, in_time};
use crate::Result;

const CHANNEL: &str = "holm";
const LISTENING: &str = "listen for hints";

impl Db {
    /// Notifies everybody who listens to the database; nobody does where one server has it to itself.
    pub(crate) async fn notify(&self, text: &str) -> Result<()> {
        let Self::Postgres(pool) = self else { return Ok(()) };
        let notify = sqlx::query("select pg_notify($1, $2)").bind(CHANNEL).bind(text);
        in_time(notify.execute(pool)).await.map(drop).map_err(|error| broken("give a hint", error))
    }

    /// Listens on a connection of its own, for as long as the listener lives.
    pub(crate) async fn listen(&self) -> Result<Option<PgListener>> {
        let Self::Postgres(pool) = self else { return Ok(None) };
        let listening = async {
            let mut listener = PgListener::connect_with(pool).await?;
            listener.listen(CHANNEL).await?;
            Ok(listener)
        };
        in_time(listening).await.map(Some).map_err(|error| broken(LISTENING, error))
    }
}

/// The next notification; nothing where the connection was lost: the listener makes another.
pub(crate) async fn notified(listener: &mut PgListener) -> Result<Option<String>> {
    let notified = listener.try_recv().await.map_err(|error| broken(LISTENING, error))?;
    Ok(notified.map(|notified| notified.payload().to_owned()))
}
