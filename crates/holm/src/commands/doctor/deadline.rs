//! Looks that end: a file system whose disk or server is gone keeps whoever asks it anything.
//!
//! Such a look cannot be taken back. It has a thread of its own, which is left behind and ends with the process, where the
//! kernel lets it end: a call that nothing may interrupt, of a disk that has died, keeps the process as well.

use std::{io, path::Path, thread, time::Duration};

use tokio::sync::oneshot;

use super::{Probe, missing};
use crate::units::show_duration;

/// How long a file system may take to answer.
pub const LOOK_DEADLINE: Duration = Duration::from_secs(5);

/// What `look` finds at `path`, or word that nothing was found within `deadline`.
pub async fn look<T: Send + 'static>(
    name: &'static str,
    path: &Path,
    deadline: Duration,
    look: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Probe> {
    let way_out = "look after its disk, or the server of its file system, or give another folder with --home";
    let not_found = |error| missing(name, format!("{}: {error}", path.display()), way_out);
    answer(deadline, look).await.map_err(not_found)
}

/// What `look` returns, or an error if it does not within `deadline`.
async fn answer<T: Send + 'static>(deadline: Duration, look: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (tell, told) = oneshot::channel();
    // Nobody waits for what is told too late.
    thread::Builder::new().spawn(move || drop(tell.send(look())))?;
    match tokio::time::timeout(deadline, told).await {
        Ok(found) => found.map_err(io::Error::other),
        Err(_) => {
            let problem = format!("it does not answer within {}", show_duration(deadline));
            Err(io::Error::new(io::ErrorKind::TimedOut, problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::{
        super::{Status, good},
        *,
    };

    #[tokio::test]
    async fn a_look_that_hangs_is_told_and_left_behind() {
        let (release, hang) = mpsc::channel::<()>();
        let look = move || {
            hang.recv().unwrap_or_default();
            vec![good("home", "late")]
        };
        let probe = super::look("home", Path::new("/gone"), Duration::from_secs(1), look).await.unwrap_err();
        assert_eq!((probe.status, probe.found.as_str()), (Status::Missing, "/gone: it does not answer within 1 s"));
        drop(release);
        let found = super::look("home", Path::new("/there"), LOOK_DEADLINE, || vec![good("home", "there")]).await;
        assert_eq!(found.unwrap()[0].found, "there");
    }
}
