//! The layout of `HOLM_HOME`, whose it is, and the lock that says who serves it.
//!
//! What always holds: nothing in a home is believed before the folder itself was looked at. It is the own user's, no link,
//! and nobody else may write in it; so whatever lies in it was put there by this user, the socket included.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use crate::{
    lock::{self, Lock, Served},
    serve::socket::short_path,
};

/// The files under `HOLM_HOME`.
#[derive(Debug, Clone)]
pub struct Home(pub PathBuf);

impl Home {
    /// The socket on which `holm up` listens.
    pub fn socket(&self) -> PathBuf {
        self.0.join("up.sock")
    }
    /// The admin token of the default org.
    pub fn token(&self) -> PathBuf {
        self.0.join("token")
    }
    /// The token of the agent that runs beside the server.
    pub fn agent_token(&self) -> PathBuf {
        self.0.join("agent-token")
    }
    /// The root key of the server, where none was named.
    pub fn root_key(&self) -> PathBuf {
        self.0.join("root-key")
    }
    /// What a server in the background says.
    pub fn log(&self) -> PathBuf {
        self.0.join("up.log")
    }
    /// The data of the server.
    pub fn server(&self) -> PathBuf {
        self.0.join("server")
    }
    /// The database of the server, where none was named.
    pub fn database(&self) -> PathBuf {
        self.server().join("holm.db")
    }
    /// The large objects of the server.
    pub fn blobs(&self) -> PathBuf {
        self.server().join("blobs")
    }
    /// The data of the agent.
    pub fn agent(&self) -> PathBuf {
        self.0.join("agent")
    }
    fn lock_file(&self) -> PathBuf {
        self.0.join("up.lock")
    }

    /// Makes the folder, closed to others: what is below that another user must reach opens itself.
    pub fn create(&self) -> io::Result<()> {
        create_dir(&self.0)
    }

    /// What is said when it cannot be made.
    pub fn not_made(&self) -> String {
        format!("cannot make {} (--home or HOLM_HOME give another folder)", self.0.display())
    }

    /// Whether there is a home; an error if it may be somebody else's.
    pub fn is_there(&self) -> io::Result<bool> {
        match own_dir(&self.0) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The process that listens on the socket of this home now, if one does and it is this user's. Who is not gets no word.
    pub async fn listener(&self) -> io::Result<Option<Listening>> {
        let path = self.socket();
        if !self.is_there()? || !own_socket(&path)? {
            return Ok(None);
        }
        let (short, _dir) = short_path(&path)?;
        let stream = match tokio::net::UnixStream::connect(&short).await {
            Ok(stream) => stream,
            Err(error) if nobody_listens(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let peer = stream.peer_cred()?;
        own(peer.uid(), &format!("the server on {}", path.display()))?;
        Ok(Some(Listening { pid: peer.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|&pid| pid > 0) }))
    }

    /// Takes the lock, or tells which process has it.
    pub fn lock(&self) -> io::Result<Result<Lock, Option<u32>>> {
        Lock::take(&self.lock_file())
    }

    /// The process that serves this home now, if one does. The lock is what says so; its number is only told by it.
    pub fn served_by(&self) -> io::Result<Served> {
        if !self.is_there()? {
            return Ok(Served::Nobody);
        }
        lock::served_by(&self.lock_file())
    }
}

/// Who listens on the socket of a home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listening {
    /// The process, unless it is one of another pid namespace.
    pub pid: Option<u32>,
}

/// Opens a file that must be no link.
pub fn open_nofollow(options: &mut fs::OpenOptions, path: &Path) -> io::Result<fs::File> {
    let nofollow = i32::try_from(OFlags::NOFOLLOW.bits()).map_err(io::Error::other)?;
    options.custom_flags(nofollow).open(path)
}

/// Makes a folder and those above it, closed to others. One that is there already must be the own user's.
pub fn create_dir(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(path) {
        // What is there instead is told below.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => own_dir(path),
    }
}

/// Accepts a folder that is the own user's, no link, and that nobody else may write in.
fn own_dir(path: &Path) -> io::Result<()> {
    let what = format!("the folder {}", path.display());
    let metadata = fs::symlink_metadata(path).map_err(|error| {
        io::Error::new(error.kind(), format!("{what}: {error}; give another with --home or HOLM_HOME"))
    })?;
    if metadata.is_symlink() {
        return Err(refused(format!(
            "{what} is a symbolic link: give --home or HOLM_HOME the folder that it points to"
        )));
    }
    if !metadata.is_dir() {
        return Err(refused(format!("{} is no folder: give another with --home or HOLM_HOME", path.display())));
    }
    own(metadata.uid(), &what)?;
    if metadata.mode() & 0o022 != 0 {
        let mode = metadata.mode() & 0o7777;
        return Err(refused(format!(
            "{what} can be written by other users (mode {mode:04o}): `chmod go-w` it if only you used it so far, or give \
             another with --home or HOLM_HOME"
        )));
    }
    Ok(())
}

/// Whether there is a socket at `path`; an error if it is another user's.
fn own_socket(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            own(metadata.uid(), &format!("the socket {}", path.display())).map(|()| true)
        }
        Ok(_) => Err(refused(format!("{} is no socket: move it away", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn own(uid: u32, what: &str) -> io::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    if uid == own {
        return Ok(());
    }
    Err(refused(format!(
        "{what} belongs to user {uid}, and this is user {own}: give a folder of your own with --home or HOLM_HOME"
    )))
}

fn refused(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, problem)
}

fn nobody_listens(error: &io::Error) -> bool {
    // One that ends while somebody waits to be accepted resets him.
    let gone = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused, io::ErrorKind::ConnectionReset];
    gone.contains(&error.kind())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home(dir.path().join("a/b"));
        home.create().unwrap();
        assert_eq!(home.served_by().unwrap(), Served::Nobody);
        let lock = home.lock().unwrap().unwrap();
        assert_eq!(home.lock().unwrap().unwrap_err(), Some(std::process::id()));
        assert_eq!(home.served_by().unwrap(), Served::By(Some(std::process::id())));
        drop(lock);
        assert_eq!(home.served_by().unwrap(), Served::Nobody);
        home.lock().unwrap().unwrap();
    }

    #[test]
    fn a_home_that_others_can_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home(dir.path().join("home"));
        home.create().unwrap();
        let mode = |mode| fs::set_permissions(&home.0, fs::Permissions::from_mode(mode)).unwrap();
        for bad in [0o770, 0o707, 0o1777] {
            mode(bad);
            for error in [home.create().unwrap_err(), home.served_by().unwrap_err()] {
                let text = error.to_string();
                assert!(text.contains(&home.0.display().to_string()) && text.contains("chmod go-w"), "{text}");
            }
        }
        mode(0o755);
        home.create().unwrap();
        let link = Home(dir.path().join("link"));
        std::os::unix::fs::symlink(&home.0, &link.0).unwrap();
        assert!(link.create().unwrap_err().to_string().contains("symbolic link"));
        assert!(link.served_by().is_err());
        std::os::unix::fs::symlink(dir.path().join("victim"), home.lock_file()).unwrap();
        home.lock().unwrap_err();
        assert!(!dir.path().join("victim").exists(), "the link was followed");
    }

    #[tokio::test]
    async fn what_another_user_made_is_refused() {
        if !rustix::process::geteuid().is_root() {
            // Only root can give files away.
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let home = Home(dir.path().join("home"));
        home.create().unwrap();
        let socket = std::os::unix::net::UnixListener::bind(home.socket()).unwrap();
        assert_eq!(home.listener().await.unwrap(), Some(Listening { pid: Some(std::process::id()) }));
        std::os::unix::fs::chown(home.socket(), Some(12_345), None).unwrap();
        let text = home.listener().await.unwrap_err().to_string();
        assert!(text.contains("belongs to user 12345"), "{text}");
        drop(socket);
        std::os::unix::fs::chown(&home.0, Some(12_345), None).unwrap();
        for error in [home.create().unwrap_err(), home.served_by().unwrap_err(), home.listener().await.unwrap_err()] {
            let text = error.to_string();
            assert!(text.contains("belongs to user 12345") && text.contains("HOLM_HOME"), "{text}");
        }
    }
}
