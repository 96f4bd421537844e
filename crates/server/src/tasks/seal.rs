//! Moves log entries from many small rows into a few large blobs: when a log has grown, and when its run has ended. What
//! the store would not put into a blob at once ([`holm_store::LOG_INLINE_BYTES`]) is not worth one later either: a short
//! log stays in its rows.
//!
//! Which logs are worth it is read from the store, where every append and every end of a run keeps it up to date; a server
//! that is killed forgets nothing. Any number of servers may seal at once.

use holm_domain::RunId;
use holm_store::{Error, Sealable};

use crate::{app::App, problem::Failure, told::Told};

/// How many logs are looked for together.
const PAGE: u32 = 256;

/// Seals every log that is worth it now; returns how many there were. One that cannot be sealed is told, and stands in
/// nobody's way.
pub async fn seal(app: &App, told: &mut Told<RunId>) -> Result<u64, Failure> {
    let (mut logs, mut after) = (0, None);
    loop {
        let page = app.store.log_sealable(after, PAGE).await?;
        for Sealable { org, run, bytes_min } in &page {
            match app.store.log_seal(*org, *run, *bytes_min).await {
                Ok(sealed) => {
                    logs += u64::from(sealed.blobs > 0);
                    tracing::debug!(%run, sealed.blobs, sealed.bytes, "sealed");
                }
                // The run was deleted in the meantime.
                Err(Error::NotFound { .. }) => {}
                Err(error @ Error::Unavailable { .. }) => return Err(error.into()),
                Err(error) => told.tell(*run, &error, "a log cannot be sealed; it stays as it is until it is repaired"),
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE as usize => after = Some(last.run),
            _ => return Ok(logs),
        }
    }
}
