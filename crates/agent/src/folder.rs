//! The agent's folder: its lock, and one folder for each attempt.
//!
//! What always holds: one agent at a time uses the folder; a file written by [`write_durably`] is there whole or not at
//! all, also after a loss of power. The shim of an attempt may create files in the attempt's folder, but can neither
//! replace nor remove what the agent put there (sticky bit): a journal that it could forge would make the agent, which
//! may be root, remove whatever the forger likes.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use holm_runtime::{AttemptId, crash::effect};
use holm_shim::protocol::SPOOL_DIR_NAME;
use rustix::fs::{FlockOperation, OFlags, flock};
use zeroize::Zeroizing;

/// The folder, in the agent's, with what could not be read of attempts.
pub const SET_ASIDE_NAME: &str = "set-aside";
/// The file that an agent keeps locked.
const LOCK_NAME: &str = "lock";
/// The folder, in the agent's, with one folder for each attempt.
const RUNS_NAME: &str = "runs";
/// The file that says what of an attempt's folder is damaged.
pub const DAMAGE_NAME: &str = "damaged";
/// The most that is read of it, in bytes.
const DAMAGE_BYTES_MAX: u64 = 4 * 1024;
/// How many folders that cannot be understood are kept for people to look at.
const SET_ASIDE_MAX: usize = 16;
/// For how long.
const SET_ASIDE_FOR: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How long an agent that was killed may go on having its folder by what it was just about to start.
const LET_GO_WITHIN: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Why the agent's folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another agent uses it.
    #[error("another agent is at work in {0}: stop it first, or give this one a folder of its own")]
    Locked(PathBuf),
    /// Something in it is not what an agent left there.
    #[error(transparent)]
    Damaged(Damage),
    /// A file or folder cannot be made, read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What keeps an agent from starting and does not mend by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}; {way_out}")]
pub struct Damage {
    /// The file or folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
    /// What to do about it.
    pub way_out: &'static str,
}

/// Adds the path to an error.
pub(crate) fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, FolderError> {
    result.map_err(|source| FolderError::Io { path: path.to_owned(), source })
}

/// The agent's folder, locked.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(error),
    }
    // The umask took bits away, or an earlier version made it otherwise.
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Refuses what is in the place of a folder.
fn check_dir(path: &Path) -> Result<(), FolderError> {
    let is_dir = match fs::metadata(path) {
        Ok(meta) => meta.is_dir(),
        // A link that leads nowhere is in its place.
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::symlink_metadata(path).is_err(),
        Err(error) => return at(path, Err(error)),
    };
    if is_dir {
        return Ok(());
    }
    let way_out = "move it away, and the agent makes the folder";
    Err(FolderError::Damaged(Damage { path: path.to_owned(), problem: "it is no folder".to_owned(), way_out }))
}

/// Refuses a folder in the place of the lock.
fn check_lock(path: &Path) -> Result<(), FolderError> {
    if !path.is_dir() {
        return Ok(());
    }
    let way_out = "move it away, and the agent makes the file";
    Err(FolderError::Damaged(Damage { path: path.to_owned(), problem: "it is a folder".to_owned(), way_out }))
}

fn own_dir(path: &Path) -> Result<(), FolderError> {
    check_dir(path)?;
    at(path, make_dir(path, 0o700))
}

/// What of the lock and the folders of an agent in `path` keeps it from starting; nothing is made. Those that are not there
/// are made at its start.
pub(crate) fn check(path: &Path) -> Vec<FolderError> {
    if let Err(error) = check_dir(path) {
        return vec![error];
    }
    let places =
        [check_lock(&path.join(LOCK_NAME)), check_dir(&path.join(RUNS_NAME)), check_dir(&path.join(SET_ASIDE_NAME))];
    places.into_iter().filter_map(Result::err).collect()
}

impl Folder {
    /// Makes the folder if it is not there, and locks it.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        // No effect: nothing of an attempt, and it stays.
        at(parent, fs::create_dir_all(parent))?;
        // Shims run under ids of their own; each gets its attempt's folder as a descriptor, so none has to come through here.
        own_dir(path)?;
        let lock_path = path.join(LOCK_NAME);
        check_lock(&lock_path)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
        let lock = at(&lock_path, lock)?;
        let begun = Instant::now();
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < LET_GO_WITHIN => thread::sleep(LOOK_EVERY),
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(FolderError::Locked(path.to_owned())),
                Err(error) => return at(&lock_path, Err(error.into())),
            }
        }
        let folder = Self { path: path.to_owned(), _lock: lock };
        own_dir(&folder.runs())?;
        own_dir(&folder.set_aside())?;
        Ok(folder)
    }

    /// The path of the folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn runs(&self) -> PathBuf {
        self.path.join(RUNS_NAME)
    }

    fn set_aside(&self) -> PathBuf {
        self.path.join(SET_ASIDE_NAME)
    }

    /// Where the attempt's folder is or would be.
    pub(crate) fn attempt(&self, attempt: AttemptId) -> PathBuf {
        self.runs().join(name_of(attempt))
    }

    /// Makes the attempt's folder; nobody but the agent may enter it yet.
    pub(crate) fn make_attempt(&self, attempt: AttemptId) -> Result<PathBuf, FolderError> {
        let path = self.attempt(attempt);
        at(&path, make_dir(&path, 0o700))?;
        let spool = path.join(SPOOL_DIR_NAME);
        at(&spool, make_dir(&spool, 0o700))?;
        Ok(path)
    }

    /// Every folder of an attempt, and the names under `runs` that are none.
    pub(crate) fn attempts(&self) -> Result<(Vec<AttemptId>, Vec<PathBuf>), FolderError> {
        let (mut attempts, mut strangers) = (Vec::new(), Vec::new());
        let runs = self.runs();
        for entry in at(&runs, fs::read_dir(&runs))? {
            let entry = at(&runs, entry)?;
            match entry.file_name().to_str().and_then(attempt_of) {
                Some(attempt) => attempts.push(attempt),
                None => strangers.push(entry.path()),
            }
        }
        attempts.sort_unstable();
        Ok((attempts, strangers))
    }

    /// Removes what was set aside long ago, and the oldest of what is too much; returns what is gone. Each may be as large as
    /// a spool.
    pub(crate) fn collect_set_aside(&self, now: SystemTime) -> Result<Vec<PathBuf>, FolderError> {
        let dir = self.set_aside();
        let mut found = Vec::new();
        for entry in at(&dir, fs::read_dir(&dir))? {
            let path = at(&dir, entry)?.path();
            // Being set aside was the last change of the folder itself.
            let meta = at(&path, fs::symlink_metadata(&path))?;
            let since = Duration::from_secs(u64::try_from(meta.ctime()).unwrap_or(0));
            found.push((UNIX_EPOCH + since, meta.is_dir(), path));
        }
        found.sort_unstable_by(|one, other| other.cmp(one));
        let is_old = |since: &SystemTime| now.duration_since(*since).is_ok_and(|age| age > SET_ASIDE_FOR);
        let mut removed = Vec::new();
        for (number, (since, is_dir, path)) in found.into_iter().enumerate() {
            if number >= SET_ASIDE_MAX || is_old(&since) {
                let done =
                    effect("aside.remove", || if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) });
                at(&path, done)?;
                removed.push(path);
            }
        }
        Ok(removed)
    }

    /// Sets every attempt aside, with a note why: they are another agent's, so nothing of them is ended or told. Returns where
    /// they are now.
    pub fn disown(&self, why: &str) -> Result<Vec<PathBuf>, FolderError> {
        let (attempts, _) = self.attempts()?;
        let put_aside = |attempt| {
            let dir = self.attempt(attempt);
            note_damage(&dir, why);
            self.put_aside(&dir)
        };
        attempts.into_iter().map(put_aside).collect()
    }

    /// Moves a folder that cannot be understood out of the way, where people can look at it for a while.
    pub(crate) fn put_aside(&self, path: &Path) -> Result<PathBuf, FolderError> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        for number in 0..1_000 {
            let target = self.set_aside().join(format!("{name}.{number}"));
            if !target.exists() {
                at(path, effect("attempt.set_aside", || fs::rename(path, &target)))?;
                return Ok(target);
            }
        }
        at(path, Err(io::Error::other("a thousand folders of this name were set aside; remove some")))
    }
}

/// Whether an agent is at work in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// None ever was.
    Never,
    /// One is.
    AtWork,
    /// None is any more.
    Away {
        /// How many attempts wait for the next.
        attempts: usize,
    },
}

/// Looks whether an agent is at work in the folder `path`. One that starts at this moment is held up by no more than that.
pub fn presence(path: &Path) -> Result<Presence, FolderError> {
    let lock_path = path.join(LOCK_NAME);
    let lock = match File::open(&lock_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Presence::Never),
        lock => at(&lock_path, lock)?,
    };
    match flock(&lock, FlockOperation::NonBlockingLockShared) {
        Ok(()) => drop(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Presence::AtWork),
        Err(error) => return at(&lock_path, Err(error.into())),
    }
    let runs = path.join(RUNS_NAME);
    Ok(Presence::Away { attempts: at(&runs, fs::read_dir(&runs))?.count() })
}

fn name_of(attempt: AttemptId) -> String {
    format!("{}.{}", attempt.run, attempt.fence)
}

fn attempt_of(name: &str) -> Option<AttemptId> {
    let (run, fence) = name.split_once('.')?;
    let attempt = AttemptId { run: run.parse().ok()?, fence: fence.parse().ok()? };
    (name_of(attempt) == name).then_some(attempt)
}

/// Lets the shim, which runs under `ids`, create files in the attempt's folder.
pub(crate) fn hand_over(dir: &Path, ids: Option<(u32, u32)>) -> Result<(), FolderError> {
    let Some((_, gid)) = ids else { return Ok(()) };
    for path in [dir.join(SPOOL_DIR_NAME), dir.to_owned()] {
        at(&path, std::os::unix::fs::chown(&path, None, Some(gid)))?;
        at(&path, fs::set_permissions(&path, Permissions::from_mode(0o1770)))?;
    }
    Ok(())
}

/// Notes that something in the folder of an attempt cannot be read: when the attempt is over, the folder is set aside with
/// this note instead of being removed.
pub(crate) fn note_damage(dir: &Path, problem: &str) {
    let note = format!("{}\n", &problem[..problem.floor_char_boundary(DAMAGE_BYTES_MAX as usize - 1)]);
    if let Err(error) = effect("attempt.note", || write_whole(dir, DAMAGE_NAME, note.as_bytes())) {
        tracing::error!(%error, "noting what is damaged");
    }
}

/// What was noted of it.
pub(crate) fn noted_damage(dir: &Path) -> Option<String> {
    let note = read_own(&dir.join(DAMAGE_NAME), DAMAGE_BYTES_MAX);
    note.ok().flatten().map(|bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

/// Writes a file that is there whole or not at all once this returned.
pub(crate) fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), FolderError> {
    let draft = write_draft(dir, name, bytes, true)?;
    let path = dir.join(name);
    // Effect: that of whoever has the file written.
    at(&path, fs::rename(draft, &path))?;
    at(dir, File::open(dir).and_then(|dir| dir.sync_all()))
}

/// The same for a file that nothing may replace: where there is one, it stays, and that is an error.
pub(crate) fn write_once(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), FolderError> {
    let draft = write_draft(dir, name, bytes, true)?;
    let path = dir.join(name);
    // Effect: that of whoever has the file written.
    at(&path, fs::hard_link(&draft, &path))?;
    settle_once(dir, name)
}

/// Ends what [`write_once`] does, also where a process died in it: the file is there whatever becomes of the machine, and
/// nothing else has what is in it.
pub(crate) fn settle_once(dir: &Path, name: &str) -> Result<(), FolderError> {
    remove_draft(&draft_of(dir, name))?;
    at(dir, File::open(dir).and_then(|dir| dir.sync_all()))
}

/// Writes a file that is there whole or not at all as long as the machine does not fail.
pub(crate) fn write_whole(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), FolderError> {
    let draft = write_draft(dir, name, bytes, false)?;
    let path = dir.join(name);
    // Effect: that of whoever has the file written.
    at(&path, fs::rename(draft, &path))
}

fn draft_of(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!(".{name}.draft"))
}

fn remove_draft(path: &Path) -> Result<(), FolderError> {
    // Effect: that of whoever has the file written.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => at(path, Err(error)),
        _ => Ok(()),
    }
}

fn write_draft(dir: &Path, name: &str, bytes: &[u8], sync: bool) -> Result<PathBuf, FolderError> {
    let path = draft_of(dir, name);
    remove_draft(&path)?;
    let write = || {
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path)?;
        file.write_all(bytes)?;
        if sync { file.sync_all() } else { Ok(()) }
    };
    at(&path, write())?;
    Ok(path)
}

/// Reads a file that the agent itself wrote: one that somebody else owns, or a link, is refused. Nothing if it is not there.
pub(crate) fn read_own(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match open_plain(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if file.metadata()?.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other("it belongs to somebody else"));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is longer than {bytes_max} bytes")));
    }
    Ok(Some(bytes))
}

/// Reads a file as [`read_own`] does, and refuses one that others than its owner may read or change.
pub(crate) fn read_secret(path: &Path, bytes_max: u64) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let file = match open_plain(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other("it belongs to somebody else"));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        let problem = format!("others than its owner may use it (mode {mode:04o})");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
    }
    // Room from the start, so that no copy is left behind where it grows.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(bytes_max).unwrap_or(0) + 1));
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Opens a regular file; a link or anything else is refused.
pub(crate) fn open_plain(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt() -> AttemptId {
        AttemptId { run: holm_domain::RunId::from_uuid(uuid::Uuid::from_u128(7)), fence: 3 }
    }

    #[test]
    fn a_second_agent_is_refused_until_the_first_is_gone() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("agent");
        assert_eq!(presence(&path).unwrap(), Presence::Never);
        let first = Folder::open(&path).unwrap();
        assert_eq!(presence(&path).unwrap(), Presence::AtWork);
        let error = Folder::open(&path).unwrap_err();
        assert!(matches!(&error, FolderError::Locked(locked) if *locked == path), "{error}");
        first.make_attempt(attempt()).unwrap();
        drop(first);
        assert_eq!(presence(&path).unwrap(), Presence::Away { attempts: 1 });
        Folder::open(&path).unwrap();
    }

    #[test]
    fn what_is_in_the_place_of_a_folder_is_told_with_the_way_out_which_works() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("agent");
        assert!(check(&path).is_empty(), "what is not there is made");
        for name in ["", RUNS_NAME, SET_ASIDE_NAME] {
            let place = path.join(name);
            let aside = temp.path().join("aside");
            for is_link in [false, true] {
                drop(Folder::open(&path).unwrap());
                fs::rename(&place, &aside).unwrap();
                let place = place.components().as_path();
                let made =
                    if is_link { std::os::unix::fs::symlink("nowhere", place) } else { fs::write(place, "a file") };
                made.unwrap();
                let [error] = &check(&path)[..] else { panic!("{name}: {:?}", check(&path)) };
                let opened = Folder::open(&path).unwrap_err();
                assert_eq!(error.to_string(), opened.to_string());
                assert!(matches!(error, FolderError::Damaged(damage) if damage.path == place), "{error}");
                fs::remove_file(place).unwrap();
                fs::remove_dir_all(&aside).unwrap();
            }
        }
        fs::remove_file(path.join(LOCK_NAME)).unwrap();
        fs::create_dir(path.join(LOCK_NAME)).unwrap();
        let told = Folder::open(&path).unwrap_err().to_string();
        assert!(told.ends_with("lock: it is a folder; move it away, and the agent makes the file"), "{told}");
        assert_eq!(check(&path).iter().map(ToString::to_string).collect::<Vec<_>>(), [told]);
        fs::remove_dir(path.join(LOCK_NAME)).unwrap();
        Folder::open(&path).unwrap();
        assert!(check(&path).is_empty());
    }

    #[test]
    fn folders_of_attempts_are_found_and_others_told_apart() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::open(temp.path()).unwrap();
        folder.make_attempt(attempt()).unwrap();
        let padded = folder.runs().join(format!("{}.03", attempt().run));
        fs::create_dir(&padded).unwrap();
        let (attempts, strangers) = folder.attempts().unwrap();
        assert_eq!((attempts, strangers), (vec![attempt()], vec![padded.clone()]));
        let first = folder.put_aside(&padded).unwrap();
        fs::create_dir(&padded).unwrap();
        assert_ne!(folder.put_aside(&padded).unwrap(), first);
    }

    #[test]
    fn what_was_set_aside_is_kept_in_bounds() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::open(temp.path()).unwrap();
        let put = |name: &str| {
            let path = folder.runs().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("journal.json"), "damaged").unwrap();
            folder.put_aside(&path).unwrap()
        };
        let now = fs::metadata(put("first")).unwrap().modified().unwrap();
        let soon = now + Duration::from_secs(60);
        assert!(folder.collect_set_aside(soon).unwrap().is_empty());
        let set_back = now - 3 * SET_ASIDE_FOR;
        assert!(folder.collect_set_aside(set_back).unwrap().is_empty(), "what the future set aside is not old");
        for number in 0..SET_ASIDE_MAX + 2 {
            put(&number.to_string());
        }
        assert_eq!(folder.collect_set_aside(soon).unwrap().len(), 3);
        assert_eq!(fs::read_dir(folder.set_aside()).unwrap().count(), SET_ASIDE_MAX);
        assert!(folder.collect_set_aside(soon).unwrap().is_empty());
        let later = soon + SET_ASIDE_FOR + Duration::from_secs(1);
        assert_eq!(folder.collect_set_aside(later).unwrap().len(), SET_ASIDE_MAX);
        assert_eq!(fs::read_dir(folder.set_aside()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_a_shim_could_have_planted_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("journal.json");
        assert_eq!(read_own(&path, 10).unwrap(), None);
        write_durably(temp.path(), "journal.json", b"0123456789").unwrap();
        assert_eq!(read_own(&path, 10).unwrap().as_deref(), Some(&b"0123456789"[..]));
        assert!(read_own(&path, 9).is_err(), "too long");
        let link = temp.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(read_own(&link, 10).is_err(), "a link");
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(54321), None).unwrap();
            assert!(read_own(&path, 10).is_err(), "somebody else's");
        }
    }

    #[test]
    fn a_shim_can_create_files_but_not_replace_the_journal() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::open(temp.path()).unwrap();
        let dir = folder.make_attempt(attempt()).unwrap();
        write_durably(&dir, "journal.json", b"{}").unwrap();
        hand_over(&dir, None).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o700, "one id only: nothing is opened up");
        if rustix::process::geteuid().is_root() {
            hand_over(&dir, Some((54321, 54321))).unwrap();
            let meta = fs::metadata(&dir).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o1770, 0, 54321));
            for closed in [temp.path().to_owned(), folder.runs()] {
                fs::set_permissions(closed, Permissions::from_mode(0o711)).unwrap();
            }
            let script = "echo ours > $0/exit.json && ! mv $0/journal.json $0/x && ! rm -f $0/journal.json && ! mv $0/spool $0/y";
            let status = std::process::Command::new("setpriv")
                .args(["--reuid", "54321", "--regid", "54321", "--clear-groups", "sh", "-c", script])
                .arg(&dir)
                .stderr(std::process::Stdio::null())
                .status()
                .unwrap();
            assert!(status.success());
        }
    }
}
