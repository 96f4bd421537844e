//! Whether the files of a SQLite database that is open are still those under their names.
//!
//! SQLite goes on with a file that was removed or replaced, and what it stores there is gone with its last descriptor. What
//! always holds: SQLite itself keeps both files for as long as the connection that writes is open, so that they are others
//! means that somebody else did it. Left out: what was done to a file that is in its place.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::places::SqliteFiles;

/// The files of a database that is open, as they were when its connection that writes was opened.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files(Arc<Mutex<Vec<Noted>>>);

#[derive(Debug)]
struct Noted {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Files {
    /// Notes which they are now.
    pub(super) fn note(&self, database: &Path) -> io::Result<()> {
        let SqliteFiles { database, log, .. } = SqliteFiles::at(database)?;
        let mut noted = Vec::new();
        for path in [database, log] {
            let file = fs::metadata(&path)?;
            noted.push(Noted { path, device: file.dev(), inode: file.ino() });
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = noted;
        Ok(())
    }

    /// The first that is not in its place, if that can be told.
    pub(crate) fn displaced(&self) -> Option<PathBuf> {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noted.iter().find(|noted| noted.is_displaced()).map(|noted| noted.path.clone())
    }
}

impl Noted {
    fn is_displaced(&self) -> bool {
        match fs::metadata(&self.path) {
            Ok(file) => (file.dev(), file.ino()) != (self.device, self.inode),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Db, Expect};

    #[tokio::test]
    async fn each_file_that_is_removed_or_replaced_is_told_until_it_is_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("db");
        let db = Db::open_sqlite(path.to_str().unwrap(), Expect::Anything).await.unwrap();
        let Db::Sqlite { writer, files, .. } = &db else { panic!("another engine") };
        let aside = path.with_extension("aside");
        for file in [path.clone(), path.with_file_name("db-wal")] {
            assert_eq!(files.displaced(), None);
            std::fs::rename(&file, &aside).unwrap();
            assert_eq!(files.displaced().as_ref(), Some(&file), "removed");
            std::fs::copy(&aside, &file).unwrap();
            assert_eq!(files.displaced().as_ref(), Some(&file), "replaced");
            std::fs::rename(&aside, &file).unwrap();
        }
        sqlx::raw_sql("pragma wal_checkpoint(truncate)").execute(writer).await.unwrap();
        assert_eq!(files.displaced(), None, "SQLite itself empties the log in its place");
        writer.acquire().await.unwrap().close().await.unwrap();
        sqlx::raw_sql("create table filling (bytes blob)").execute(writer).await.unwrap();
        assert_eq!(files.displaced(), None, "another connection has a log of its own");
    }
}
