//! Whether the files of a SQLite database that is open are still those under their names.
//!
//! SQLite goes on with a file that was removed or replaced, and what it stores there is gone with its last descriptor. What
//! always holds: SQLite itself keeps both files for as long as one connection is open, and all of a store are while it is, so
//! that they are others means that somebody else did it. Then no connection takes the place of another: it would begin a log
//! of its own, and the others would read that in the place of theirs. Left out: what was done to a file that is in its place.

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
    /// Notes which they are now. Those that were noted before are still to be in their places.
    pub(super) fn note(&self, database: &Path) -> io::Result<()> {
        if let Some(path) = self.displaced() {
            let problem = format!("{} was removed or replaced while it was open", path.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, problem));
        }
        let SqliteFiles { database, log, .. } = SqliteFiles::at(database)?;
        let mut noted = Vec::new();
        for path in [database, log] {
            let file = fs::metadata(&path)?;
            noted.push(Noted { path, device: file.dev(), inode: file.ino() });
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = noted;
        Ok(())
    }

    /// The first that is not in its place, if that can be told; the database itself before its log.
    pub(crate) fn displaced(&self) -> Option<PathBuf> {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noted.iter().find(|noted| noted.is_displaced()).map(|noted| noted.path.clone())
    }

    /// The database itself, if that is not in its place.
    pub(super) fn displaced_database(&self) -> Option<PathBuf> {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noted.first().filter(|noted| noted.is_displaced()).map(|noted| noted.path.clone())
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
        let Db::Sqlite { writer, readers, files } = &db else { panic!("another engine") };
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
        assert_eq!(files.displaced(), None, "the readers kept it for the connection that follows");
        assert_eq!(readers.size(), 4);
    }

    #[tokio::test]
    async fn all_that_is_open_reads_on_without_its_log_and_no_connection_begins_another() {
        for is_gathered in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().canonicalize().unwrap().join("db");
            let db = Db::open_sqlite(path.to_str().unwrap(), Expect::Anything).await.unwrap();
            let Db::Sqlite { writer, readers, files } = &db else { panic!("another engine") };
            if is_gathered {
                sqlx::raw_sql("pragma wal_checkpoint(truncate)").execute(writer).await.unwrap();
            }
            let log = path.with_file_name("db-wal");
            std::fs::remove_file(&log).unwrap();
            let reads = async || {
                let mut reading = Vec::new();
                for _ in 0..4 {
                    let mut reader = readers.acquire().await.unwrap();
                    let asked = sqlx::query_scalar::<_, i64>("select count(*) from schema_steps");
                    assert!(asked.fetch_one(&mut *reader).await.unwrap() > 0);
                    reading.push(reader);
                }
            };
            reads().await;
            writer.acquire().await.unwrap().close().await.unwrap();
            let refused = sqlx::raw_sql("create table filling (bytes blob)").execute(writer).await;
            assert!(refused.is_err(), "where the log held nothing it could be opened anew");
            assert_eq!(files.displaced(), Some(log));
            reads().await;
        }
    }

    #[tokio::test]
    async fn a_database_that_was_removed_keeps_its_log_and_says_so_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("db");
        let text = path.to_str().unwrap();
        let db = Db::open_sqlite(text, Expect::Anything).await.unwrap();
        let aside = path.with_file_name("aside");
        std::fs::rename(&path, &aside).unwrap();
        let told = db.close().await.unwrap_err().to_string();
        assert!(told.contains("/db` was removed or replaced") && told.contains("put it back"), "{told}");
        let refused = Db::open_sqlite(text, Expect::Anything).await.map(drop).unwrap_err().to_string();
        assert!(refused.contains("it is gone or empty"), "{refused}");
        std::fs::rename(&aside, &path).unwrap();
        Db::open_sqlite(text, Expect::Used).await.unwrap();
    }
}
