//! `holm rm`: forgets runs.

use holm_domain::RunId;

use super::for_each;
use crate::session::Session;

/// Deletes each run and prints its id.
pub async fn execute(session: &Session, runs: &[RunId]) -> anyhow::Result<u8> {
    let client = &session.client().await?;
    let output = session.output;
    let delete = |id: RunId| async move { client.run_delete(id).await.map(|()| id) };
    for_each(session, runs, delete, |id| {
        if output.json {
            output.value_line(id)?;
        } else {
            output.line(id.to_string())?;
        }
        Ok(())
    })
    .await
}
