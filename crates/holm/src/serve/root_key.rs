//! The root key of a server: 32 random bytes in a file, which open the keys in the database.
//!
//! What always holds: the file is made once, whole and on the disk before anything is sealed by it, and only where the database
//! holds nothing that another root key has sealed; it is never replaced; nobody but its owner may read it, and no run may have
//! it lent.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use holm_server::{Clock, SEALING_KEY_BYTES, SealingKey, keys_begin};
use holm_store::Store;
use zeroize::Zeroizing;

use crate::{
    config::Config,
    home::{Home, open_nofollow},
    serve::server::ServeArgs,
};

/// What a server on `store` is told, with the root key; and where that is.
pub async fn told(
    config: &Config,
    home: &Home,
    args: &ServeArgs,
    store: &Store,
    server: holm_server::Config,
) -> anyhow::Result<(holm_server::Config, PathBuf)> {
    let (path, server) = (path(config, home, args.root_key_file.as_ref())?, server.on(store));
    let root_key = Some(open(&path, store, &server.clock).await?);
    Ok((holm_server::Config { root_key, ..server }, path))
}

/// Where the root key of a server is: the file that was named, or `root-key` in its home.
fn path(config: &Config, home: &Home, flag: Option<&PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(path) = flag {
        return std::path::absolute(path).with_context(|| format!("--root-key-file: {}", path.display()));
    }
    let folder = config.path.parent().unwrap_or(Path::new("/"));
    let of_file = config.file.server.root_key_file.as_ref().map(|path| folder.join(path));
    Ok(of_file.unwrap_or_else(|| home.root_key()))
}

/// Reads the root key, or makes it where there is none and the database holds nothing that was sealed; then opens what the
/// database holds.
async fn open(path: &Path, store: &Store, clock: &Clock) -> anyhow::Result<SealingKey> {
    let cannot = || format!("cannot use the root key {}", path.display());
    let key = match read(path).with_context(cannot)? {
        Some(key) => key,
        None => {
            let holds = store.envelope_current().await.context("cannot look for keys in the database")?.is_some();
            ensure!(
                !holds,
                "there is no root key {}, and the database holds keys that were sealed with one: copy the file `root-key` from \
                 the home of a server on this database, or from the backup that belongs to it, to that place, or name it with \
                 --root-key-file",
                path.display()
            );
            make(path).with_context(|| format!("cannot make the root key {}", path.display()))?;
            // Of several that begin at once in one home, one has made it.
            read(path).with_context(cannot)?.with_context(cannot)?
        }
    };
    keys_begin(store, clock, &key).await.with_context(cannot)?;
    Ok(key)
}

fn read(path: &Path) -> anyhow::Result<Option<SealingKey>> {
    let file = match open_nofollow(fs::OpenOptions::new().read(true), path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("give a file that this user may read and that is no symbolic link"),
    };
    let metadata = file.metadata()?;
    ensure!(metadata.is_file(), "it is no file");
    let mode = metadata.mode() & 0o7777;
    ensure!(mode & 0o077 == 0, "others than its owner may read it (mode {mode:04o}): `chmod 600` it");
    let mut bytes = Zeroizing::new(Vec::with_capacity(SEALING_KEY_BYTES + 1));
    let limit = u64::try_from(SEALING_KEY_BYTES)? + 1;
    file.take(limit).read_to_end(&mut bytes)?;
    let Ok(key) = <[u8; SEALING_KEY_BYTES]>::try_from(&bytes[..]) else {
        bail!("it has not {SEALING_KEY_BYTES} bytes, as a root key has: put the right file in its place");
    };
    let key = Zeroizing::new(key);
    ensure!(key.iter().any(|byte| *byte != key[0]), "all its bytes are alike, so it is no random key");
    Ok(Some(SealingKey::new(key)))
}

/// Makes the file, on the disk under its name before this returns. One that is there already stays.
fn make(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = path.with_added_extension(format!("{:016x}", rand::random::<u64>()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(SealingKey::draw().expose()).and_then(|()| file.sync_all());
    // A name of its own for the file: unlike a rename, it replaces nothing.
    let named = written.and_then(|()| fs::hard_link(&temporary, path));
    fs::remove_file(&temporary)?;
    match named {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        named => named?,
    }
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use holm_server::{Wanted, bootstrap};

    use super::*;

    async fn store() -> (Store, Clock) {
        let (store, clock) = (Store::memory(), Clock::default());
        bootstrap(&store, &clock, Wanted::default()).await.unwrap();
        (store, clock)
    }

    async fn refused(path: &Path, store: &Store, clock: &Clock) -> String {
        format!("{:#}", open(path, store, clock).await.unwrap_err())
    }

    #[tokio::test]
    async fn a_root_key_is_made_once_and_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root-key");
        let (store, clock) = store().await;
        open(&path, &store, &clock).await.unwrap();
        let bytes = fs::read(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().mode() & 0o7777;
        assert_eq!((bytes.len(), mode, fs::read_dir(dir.path()).unwrap().count()), (32, 0o600, 1));
        open(&path, &store, &clock).await.unwrap();
        make(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes, "nothing replaces it");
    }

    #[tokio::test]
    async fn a_database_that_holds_keys_needs_the_key_that_sealed_them() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("root-key"), dir.path().join("other"));
        let (store, clock) = store().await;
        open(&path, &store, &clock).await.unwrap();
        let missing = refused(&other, &store, &clock).await;
        assert!(missing.contains("copy the file `root-key`") && !other.exists(), "{missing}");
        make(&other).unwrap();
        let wrong = refused(&other, &store, &clock).await;
        assert!(wrong.contains("does not open the keys") && wrong.contains("copy the file `root-key`"), "{wrong}");
        fs::copy(&path, &other).unwrap();
        open(&other, &store, &clock).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_root_key_is_refused_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root-key");
        let (store, clock) = store().await;
        for (bytes, mode, words) in [
            (&[1, 2, 3][..], 0o600, "has not 32 bytes"),
            (&[7; 33][..], 0o600, "has not 32 bytes"),
            (&[0; 32][..], 0o600, "no random key"),
            (&[1, 2, 3][..], 0o640, "chmod 600"),
        ] {
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let told = refused(&path, &store, &clock).await;
            assert!(told.contains(words) && told.contains("root-key"), "{told}");
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        fs::rename(&path, dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("real"), &path).unwrap();
        assert!(refused(&path, &store, &clock).await.contains("symbolic link"));
        assert!(store.envelope_current().await.unwrap().is_none(), "nothing was sealed");
    }
}
