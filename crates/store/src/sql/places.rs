//! Where the files of a SQLite database are (sqlite.org/tempfiles.html, 2).

use std::{
    io,
    path::{Path, PathBuf},
};

/// The files of a SQLite database, some of which need not be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteFiles {
    /// The database itself.
    pub database: PathBuf,
    /// Its write-ahead log.
    pub log: PathBuf,
    /// What those who have it open share.
    pub shared: PathBuf,
}

impl SqliteFiles {
    /// Those of the database that the URL of a store names, if it is a file. It need not be there.
    pub fn of(url: &str) -> io::Result<Option<Self>> {
        let path = url.strip_prefix("sqlite:").filter(|path| is_file(path));
        path.map(|path| Self::at(Path::new(path))).transpose()
    }

    /// Those of the database with this name. By whatever name it is given, it is the same file, and the others lie beside that.
    pub(super) fn at(name: &Path) -> io::Result<Self> {
        let database = real(name)?;
        let beside = |end: &str| {
            let mut path = database.clone().into_os_string();
            path.push(end);
            PathBuf::from(path)
        };
        let (log, shared) = (beside("-wal"), beside("-shm"));
        Ok(Self { database, log, shared })
    }
}

/// Whether a database of SQLite with this name is a file.
pub(super) fn is_file(name: &str) -> bool {
    !name.is_empty() && !name.starts_with(":memory:")
}

/// A path without links in it. The last part of it need not be there; where its folder is not there either, it stays as it is.
fn real(path: &Path) -> io::Result<PathBuf> {
    if let Some(real) = if_there(path.canonicalize())? {
        return Ok(real);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = if_there(folder.canonicalize())?;
    Ok(folder.zip(path.file_name()).map_or_else(|| path.to_owned(), |(folder, name)| folder.join(name)))
}

/// What was found, if it was there.
pub(super) fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_has_one_place_by_whatever_name_before_it_is_there_and_after() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        std::fs::create_dir(folder.join("real")).unwrap();
        std::os::unix::fs::symlink("real", folder.join("link")).unwrap();
        let of = |name: &str| SqliteFiles::of(&format!("sqlite:{}", folder.join(name).display())).unwrap().unwrap();
        let early = of("link/db");
        assert_eq!(early.database, folder.join("real/db"));
        assert_eq!(early.log, folder.join("real/db-wal"));
        assert_eq!(early.shared, folder.join("real/db-shm"));
        std::fs::write(&early.database, "").unwrap();
        std::os::unix::fs::symlink("link/db", folder.join("other")).unwrap();
        for name in ["link/db", "real/../real/db", "other"] {
            assert_eq!(of(name), early, "{name}");
        }
        assert_eq!(of("gone/db").database, folder.join("gone/db"));
        for url in ["memory:", "sqlite:", "sqlite::memory:", "postgres://host/db"] {
            assert_eq!(SqliteFiles::of(url).unwrap(), None, "{url}");
        }
    }
}
