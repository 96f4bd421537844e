//! `--write-back`: brings what a run changed in its work dir back to the host.
//!
//! The archive comes from a sandbox, so it is hostile. What always holds: it is read as a whole and checked against the
//! directory before the first byte is written, and one bad entry refuses all of it, with the reason; every path is opened
//! below the directory without following a symbolic link (openat2(2), `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`), also if
//! somebody swaps a directory for a link meanwhile; what is made belongs to the user who called, as the umask has it, with
//! no set-id bits, devices, pipes, sockets, links that leave, nor anything in a repository of git. docs/write-back.md tells
//! the user.
//!
//! Deliberately left out: owners, times, extended attributes. And an undo: if the disk fills up in the middle of writing,
//! the error says so and names the entry.

mod apply;
mod git;
mod plan;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use holm_api::client::{Client, ClientError};
use holm_domain::{RunId, limits::CHANGES_BYTES_MAX};

/// How long the archive may say nothing while it is downloaded.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long the download is begun anew while the server cannot be reached.
const PATIENCE: Duration = Duration::from_secs(60);
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Downloads the archive of a run's changes into a file that has no name.
pub async fn download(client: &Client, run: RunId) -> anyhow::Result<File> {
    let begun = Instant::now();
    let mut wait = BACKOFF_FIRST;
    loop {
        let is_transient =
            |error: &anyhow::Error| error.downcast_ref::<ClientError>().is_some_and(ClientError::is_transient);
        match download_once(client, run).await {
            Err(error) if is_transient(&error) && begun.elapsed() < PATIENCE => tokio::time::sleep(wait).await,
            done => return done,
        }
        wait = (wait * 2).min(BACKOFF_MAX);
    }
}

async fn download_once(client: &Client, run: RunId) -> anyhow::Result<File> {
    let mut file = unnamed_file().context("cannot make a temporary file")?;
    let mut pieces = std::pin::pin!(client.run_changes(run).await?);
    let mut length = 0u64;
    while let Some(piece) = tokio::time::timeout(SILENCE_MAX, pieces.next())
        .await
        .with_context(|| format!("the archive of run {run}: nothing came for {SILENCE_MAX:?}"))?
    {
        let piece = piece?;
        length += piece.len() as u64;
        anyhow::ensure!(length <= CHANGES_BYTES_MAX, "the archive has more than {CHANGES_BYTES_MAX} bytes");
        file.write_all(&piece).context("cannot keep the archive")?;
    }
    Ok(file)
}

fn unnamed_file() -> std::io::Result<File> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    Ok(File::from(open(std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR)?))
}

/// Lists what would change with `tell`, checks all of it, and only then writes it below `dir`.
pub fn write_back(archive: File, dir: &Path, tell: impl Fn(&str)) -> anyhow::Result<()> {
    let root = plan::open_root(dir)?;
    let changes = plan::read(&archive, &root)?;
    if changes.is_empty() {
        tell("--write-back: nothing changed");
        return Ok(());
    }
    for change in &changes {
        tell(&change.to_string());
    }
    apply::apply(&archive, &root, &changes, umask()?)
}

/// The umask of this process, without changing it for a moment, as umask(2) would for every thread.
fn umask() -> anyhow::Result<u32> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read the umask")?;
    let text = status.lines().find_map(|line| line.strip_prefix("Umask:")).context("the kernel tells no umask")?;
    u32::from_str_radix(text.trim(), 8).context("the kernel tells no umask")
}
