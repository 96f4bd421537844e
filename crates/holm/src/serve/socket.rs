//! Binds what a server listens on.

use std::{
    fs, io,
    net::SocketAddr,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            ffi::OsStrExt as _,
            fs::{FileTypeExt as _, MetadataExt as _},
        },
    },
    path::{Path, PathBuf},
    time::SystemTime,
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

    /// Binds it; tells the URL under which it is reached, and the socket that was made for it.
    pub async fn bind(&self) -> anyhow::Result<(Listener, String, Option<OwnSocket>)> {
        match self {
            Self::Tcp(address) => {
                let listener = TcpListener::bind(address).await.map_err(|error| not_bound(*address, error))?;
                let bound = listener.local_addr()?;
                Ok((Listener::Tcp(listener), format!("http://{bound}"), None))
            }
            Self::Unix(path) => {
                let listener =
                    bind_unix(path).await.with_context(|| format!("cannot listen on unix:{}", path.display()))?;
                let socket = OwnSocket::at(path).with_context(|| format!("cannot find {}", path.display()))?;
                Ok((Listener::Unix(listener), format!("unix:{}", path.display()), Some(socket)))
            }
        }
    }
}

/// A socket that this server made.
#[derive(Debug)]
pub struct OwnSocket {
    path: PathBuf,
    file: File,
}

/// Which file one is. The number of one that was removed is given to another, so when it was made counts as well, where the
/// file system knows it.
#[derive(Debug, PartialEq, Eq)]
struct File {
    device: u64,
    inode: u64,
    made: Option<SystemTime>,
}

impl OwnSocket {
    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self { file: Self::file(path)?, path: path.to_owned() })
    }

    fn file(path: &Path) -> io::Result<File> {
        let file = fs::symlink_metadata(path)?;
        Ok(File { device: file.dev(), inode: file.ino(), made: file.created().ok() })
    }

    /// Where it was made.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is where it was made. What keeps that from being told does not say that it is not.
    pub fn is_there(&self) -> bool {
        match Self::file(&self.path) {
            Ok(file) => file == self.file,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Removes it. Another's in its place is left alone.
    pub fn remove(&self) -> anyhow::Result<()> {
        if !self.is_there() {
            return Ok(());
        }
        fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))
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
        let (listener, _, socket) = listen.bind().await.unwrap();
        let taken = format!("{:#}", listen.bind().await.unwrap_err());
        assert!(taken.contains("listens there already"), "{taken}");
        drop(listener);
        let (_listener, _, next) = listen.bind().await.unwrap();
        socket.unwrap().remove().unwrap();
        let next = next.unwrap();
        assert!(next.is_there(), "another's is left alone");
        next.remove().unwrap();
        assert!(!next.is_there());
        let file = deep.join("file");
        fs::write(&file, "x").unwrap();
        Listen::Unix(file.clone()).bind().await.unwrap_err();
        assert_eq!(fs::read(&file).unwrap(), b"x");
    }
}
