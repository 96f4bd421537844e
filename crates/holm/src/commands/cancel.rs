//! `holm cancel`: asks runs to end.

use holm_api::runs::CancelRun;
use holm_domain::RunId;

use super::for_each;
use crate::session::Session;

/// Cancels each run and prints its id.
pub async fn execute(session: &Session, runs: &[RunId], kill: bool) -> anyhow::Result<u8> {
    let client = &session.client().await?;
    let output = session.output;
    let cancel = |id| async move { client.run_cancel(id, &CancelRun { kill }).await };
    for_each(session, runs, cancel, |run| {
        if output.json {
            output.value_line(run)?;
        } else {
            output.line(run.id.to_string())?;
        }
        Ok(())
    })
    .await
}
