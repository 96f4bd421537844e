//! Binds what a server listens on.

use std::{
    fs, io,
    net::SocketAddr,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::FileTypeExt as _},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use holm_server::Listener;
use tokio::net::{TcpListener, UnixListener, UnixStream};

use crate::commands::Usage;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// An address and a port; port 0 is any that is free.
    Tcp(SocketAddr),
    /// A socket at an absolute path.
    Unix(PathBuf),
}

/// The longest path that fits into a socket address with its NUL byte (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

impl Listen {
    /// Reads `ADDRESS:PORT` or `unix:/PATH`; `at` names where it was given.
    pub fn parse(at: &str, text: &str) -> Result<Self, Usage> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(PathBuf::from(path))),
            Some(_) => Err(Usage::new(at, text, "give an absolute path: unix:/PATH")),
            None => text
                .parse()
                .map(Self::Tcp)
                .map_err(|_| Usage::new(at, text, "give ADDRESS:PORT such as 127.0.0.1:4656, or unix:/PATH")),
        }
    }

    /// Binds it; tells the URL under which it is reached.
    pub async fn bind(&self) -> anyhow::Result<(Listener, String)> {
        match self {
            Self::Tcp(address) => {
                let listener = TcpListener::bind(address).await.map_err(|error| not_bound(*address, error))?;
                let bound = listener.local_addr()?;
                Ok((Listener::Tcp(listener), format!("http://{bound}")))
            }
            Self::Unix(path) => {
                let listener =
                    bind_unix(path).await.with_context(|| format!("cannot listen on unix:{}", path.display()))?;
                Ok((Listener::Unix(listener), format!("unix:{}", path.display())))
            }
        }
    }
}

/// Names the address and the way out.
fn not_bound(address: SocketAddr, error: io::Error) -> anyhow::Error {
    let way_out = match error.kind() {
        io::ErrorKind::AddrInUse => "; another process listens there: end it, or give another --listen",
        io::ErrorKind::AddrNotAvailable => "; give an address of this machine, or 0.0.0.0 for all of them",
        io::ErrorKind::PermissionDenied => "; ports below 1024 are for root: give a higher one",
        _ => "",
    };
    anyhow::anyhow!("cannot listen on {address}: {error}{way_out}")
}

/// Binds a Unix socket at a path of any length. A socket on which nobody listens any more is what a server leaves that was
/// killed, and is replaced; anything else at the path is left alone.
async fn bind_unix(path: &Path) -> anyhow::Result<UnixListener> {
    let (short, _dir) = short_path(path)?;
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => match UnixStream::connect(&short).await {
            Ok(_) => bail!("somebody listens there already"),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) => return Err(error.into()),
        },
        Ok(_) => bail!("there is something that is no socket"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    Ok(UnixListener::bind(&short)?)
}

/// A path to the same socket that fits into a socket address, for as long as the descriptor lives.
pub fn short_path(path: &Path) -> io::Result<(PathBuf, Option<OwnedFd>)> {
    if path.as_os_str().as_bytes().len() <= SOCKET_PATH_MAX {
        return Ok((path.to_owned(), None));
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no path of a socket"));
    };
    let dir = OwnedFd::from(fs::File::open(dir)?);
    Ok((Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name), Some(dir)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        assert_eq!(Listen::parse("--listen", "unix:/a").unwrap(), Listen::Unix("/a".into()));
        assert!(matches!(Listen::parse("--listen", "[::1]:0").unwrap(), Listen::Tcp(_)));
        for bad in ["", "unix:a", "localhost:80", "127.0.0.1", "1.2.3.4:99999"] {
            let error = Listen::parse("--listen", bad).unwrap_err().to_string();
            assert!(error.starts_with("--listen") && error.contains("give"), "{error}");
        }
    }

    #[tokio::test]
    async fn long_paths_stale_sockets_and_what_is_no_socket() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(100)).join("y".repeat(100));
        fs::create_dir_all(&deep).unwrap();
        let listen = Listen::Unix(deep.join("up.sock"));
        let (listener, _) = listen.bind().await.unwrap();
        let taken = format!("{:#}", listen.bind().await.unwrap_err());
        assert!(taken.contains("listens there already"), "{taken}");
        drop(listener);
        listen.bind().await.unwrap();
        let file = deep.join("file");
        fs::write(&file, "x").unwrap();
        Listen::Unix(file.clone()).bind().await.unwrap_err();
        assert_eq!(fs::read(&file).unwrap(), b"x");
    }
}
