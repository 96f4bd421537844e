//! Logs that SQLite wrote, whole, torn, cut off, written meanwhile, and damaged at each of many places.

use std::{fs, io::Cursor, ops::Range};

use sqlx::{
    Connection as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tempfile::TempDir;

use super::{
    super::{Db, Expect},
    *,
};

/// A database whose log grows until it is told to be brought in.
pub(super) struct Bench {
    folder: TempDir,
    connection: SqliteConnection,
}

impl Bench {
    pub(super) async fn new(page_bytes: u32) -> Self {
        let mut bench = Self::on(tempfile::tempdir().unwrap(), page_bytes).await;
        bench.says("create table filling (bytes blob)").await;
        bench
    }

    async fn on(folder: TempDir, page_bytes: u32) -> Self {
        let options = SqliteConnectOptions::new().filename(folder.path().join("db")).create_if_missing(true);
        let options = options.page_size(page_bytes).journal_mode(SqliteJournalMode::Wal);
        // So small a cache is written to the log before its transaction ends, and some of it again.
        let options = options.synchronous(SqliteSynchronous::Full).pragma("cache_size", "8");
        let connection = SqliteConnection::connect_with(&options.pragma("wal_autocheckpoint", "0")).await.unwrap();
        Self { folder, connection }
    }

    /// What would be there after the power went: the file as it is, and such a log.
    pub(super) async fn with_log(&self, log: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(self.folder.path().join("db"), folder.path().join("db")).unwrap();
        fs::write(folder.path().join("db-wal"), log).unwrap();
        Self::on(folder, 0).await
    }

    pub(super) async fn says(&mut self, statements: &'static str) {
        sqlx::raw_sql(statements).execute(&mut self.connection).await.unwrap();
    }

    /// Stores a row of so many bytes, and changes all others where `all`.
    pub(super) async fn fill(&mut self, bytes: u32, all: bool) {
        let row = sqlx::query("insert into filling values (randomblob($1))").bind(bytes);
        row.execute(&mut self.connection).await.unwrap();
        if all {
            self.says("update filling set bytes = randomblob(length(bytes))").await;
        }
    }

    pub(super) async fn rows(&mut self) -> usize {
        let asked = sqlx::query_scalar::<_, i64>("select count(*) from filling").fetch_one(&mut self.connection).await;
        asked.unwrap_or_default().try_into().unwrap()
    }

    pub(super) fn log(&self) -> Vec<u8> {
        fs::read(self.folder.path().join("db-wal")).unwrap_or_default()
    }
}

/// A log, and how many frames it had after each of its transactions.
struct Written {
    bench: Bench,
    log: Vec<u8>,
    frame_bytes: usize,
    ends: Vec<usize>,
}

impl Written {
    /// Each transaction after the first stores one row.
    async fn new(page_bytes: u32, transactions: u32) -> Self {
        let mut bench = Bench::new(page_bytes).await;
        let frame_bytes = FRAME_HEAD_BYTES + page_bytes as usize;
        let mut ends = Vec::new();
        for number in 0..transactions {
            ends.push((bench.log().len() - HEAD_BYTES) / frame_bytes);
            bench.fill(number % 3 * page_bytes, false).await;
        }
        let log = bench.log();
        ends.push((log.len() - HEAD_BYTES) / frame_bytes);
        Self { bench, log, frame_bytes, ends }
    }

    fn frames(&self) -> usize {
        self.ends.last().copied().unwrap()
    }

    fn begin_of(&self, frame: usize) -> usize {
        HEAD_BYTES + frame * self.frame_bytes
    }

    /// Whether a commit that itself can be told to be whole, and a frame after it, follow such harm.
    fn is_witnessed(&self, frame: usize, harms_sum: bool) -> bool {
        let first_whole = frame + 1 + usize::from(harms_sum);
        self.ends.iter().any(|end| (first_whole + 1..self.frames()).contains(end))
    }
}

pub(super) fn judged(log: &[u8]) -> Option<u64> {
    damage(&mut Cursor::new(log)).unwrap()
}

fn harmed(log: &[u8], at: usize) -> Vec<u8> {
    let mut log = log.to_vec();
    log[at] ^= 0x55;
    log
}

#[tokio::test]
async fn a_byte_that_is_another_is_damage_wherever_more_was_stored_later() {
    for (page_bytes, transactions) in [(512, 24), (4_096, 16), (65_536, 4)] {
        let written = Written::new(page_bytes, transactions).await;
        assert_eq!(judged(&written.log), None);
        for at in 0..HEAD_BYTES {
            assert_eq!(judged(&harmed(&written.log, at)), Some(0), "byte {at} of the head");
        }
        let mut noticed = 0;
        for frame in 0..written.frames() {
            for (place, harms_sum) in [
                (0, false),
                (7, false),
                (8, false),
                (16, true),
                (23, true),
                (24, false),
                (written.frame_bytes - 1, false),
            ] {
                let begin = written.begin_of(frame);
                let wanted = written.is_witnessed(frame, harms_sum).then_some(begin as u64);
                let found = judged(&harmed(&written.log, begin + place));
                assert_eq!(found, wanted, "byte {place} of frame {frame} of {:?}", written.ends);
                noticed += usize::from(found.is_some());
            }
        }
        assert!(noticed > 0);
    }
}

/// Whatever is left of the frames: they were written behind a head that was whole.
#[tokio::test]
async fn a_head_that_is_not_whole_is_damage_where_anything_lies_behind_it() {
    let log = Written::new(512, 2).await.log;
    for lost in [&log[..HEAD_BYTES + 600], &log] {
        assert_eq!(judged(&vec![0x55; lost.len()]), Some(0));
        assert_eq!(judged(&[&[0; HEAD_BYTES], &lost[HEAD_BYTES..]].concat()), Some(0));
        assert_eq!(judged(&[&harmed(&log, 9)[..HEAD_BYTES], &vec![0; lost.len()]].concat()), None);
    }
    assert_eq!(judged(&vec![0; 3 * READ_BYTES]), None);
    assert_eq!(judged(&[vec![0; 3 * READ_BYTES], vec![1]].concat()), Some(0));
}

/// As a disk that loses a stretch of its own, of any length, at any place.
#[tokio::test]
async fn what_is_opened_in_spite_of_damage_has_lost_only_the_last_transactions() {
    let written = Written::new(512, 12).await;
    let mut opened = 0;
    for begin in (0..written.log.len()).step_by(101) {
        for length in [1, 24, 511] {
            let mut log = written.log.clone();
            log.iter_mut().skip(begin).take(length).for_each(|byte| *byte ^= 0x55);
            if judged(&log).is_none() {
                let rows = written.bench.with_log(&log).await.rows().await;
                assert!(rows >= 12 - 4, "{rows} rows are left after {length} bytes at {begin} were lost");
                opened += 1;
            }
        }
    }
    assert!(opened > 0);
}

#[tokio::test]
async fn a_log_that_ends_anywhere_is_normal() {
    let written = Written::new(512, 12).await;
    let borders = (0..=written.frames()).map(|frame| written.begin_of(frame));
    let near: Vec<usize> = borders.flat_map(|at| at.saturating_sub(26)..at + 26).collect();
    for end in near.into_iter().chain((0..written.log.len()).step_by(31)) {
        let log = &written.log[..end.min(written.log.len())];
        assert_eq!(judged(log), None, "the first {end} bytes");
        let mut zeros = log.to_vec();
        zeros.resize(written.log.len(), 0);
        // Room that a file system gave and nobody filled; a head is on the disk before any frame is.
        assert_eq!(judged(&zeros), None, "zeros after {end} bytes");
    }
}

/// Each half of each frame of the last transaction is there or is not, over nothing and over an earlier generation.
#[tokio::test]
async fn a_last_transaction_that_is_torn_in_any_way_is_normal() {
    for has_earlier in [false, true] {
        let mut bench = Bench::new(512).await;
        for _ in 0..6 {
            bench.fill(600, false).await;
        }
        if has_earlier {
            bench.says("pragma wal_checkpoint(restart)").await;
            bench.fill(10, false).await;
        }
        let before = bench.log();
        let from = if has_earlier { committed(&before) } else { before.len() };
        bench.fill(1_000, false).await;
        let after = bench.log();
        let end = committed(&after);
        let halves: Vec<Range<usize>> = (from..end).step_by(268).map(|at| at..at + 268).collect();
        assert!((4..12).contains(&halves.len()), "{halves:?}");
        for kept in 0..1_u32 << halves.len() {
            let mut torn = before.clone();
            torn.resize(after.len(), 0);
            for (_, half) in halves.iter().enumerate().filter(|(index, _)| kept & 1 << index != 0) {
                torn[half.clone()].copy_from_slice(&after[half.clone()]);
            }
            assert_eq!(judged(&torn), None, "{kept:b} of {halves:?}");
        }
    }
}

/// Where the frames of the newest generation end.
fn committed(log: &[u8]) -> usize {
    let frames = log[HEAD_BYTES..].chunks_exact(FRAME_HEAD_BYTES + 512);
    let newest = frames.take_while(|frame| pair(frame, 8) == pair(log, 16));
    HEAD_BYTES + newest.count() * (FRAME_HEAD_BYTES + 512)
}

/// Frames of an earlier generation behind the end of the newest are no witnesses.
#[tokio::test]
async fn what_an_earlier_generation_left_is_normal_and_hides_no_damage() {
    let mut bench = Bench::new(512).await;
    for _ in 0..10 {
        bench.fill(600, false).await;
    }
    bench.says("pragma wal_checkpoint(restart)").await;
    for _ in 0..4 {
        bench.fill(10, false).await;
    }
    let log = bench.log();
    let end = committed(&log);
    assert!(end + 2_000 < log.len());
    assert_eq!(judged(&log), None);
    assert_eq!(judged(&harmed(&log, end - 1)), None);
    assert_eq!(judged(&harmed(&log, HEAD_BYTES)), Some(32));
}

/// What only a machine of the other kind writes, and SQLite reads everywhere.
#[tokio::test]
async fn checksums_of_either_order_are_understood() {
    let mut written = Written::new(512, 12).await;
    let format = Format { is_big_endian: cfg!(target_endian = "little"), page_bytes: 512 };
    let magic = MAGIC | u32::from(format.is_big_endian);
    written.log[..4].copy_from_slice(&magic.to_be_bytes());
    let put = |log: &mut [u8], at: usize, sum: [u32; 2]| {
        log[at..at + 4].copy_from_slice(&sum[0].to_be_bytes());
        log[at + 4..at + 8].copy_from_slice(&sum[1].to_be_bytes());
    };
    let mut sum = format.sum([0, 0], &written.log[..24]);
    put(&mut written.log, 24, sum);
    for frame in 0..written.frames() {
        let begin = written.begin_of(frame);
        sum = format.sum(sum, &written.log[begin..begin + 8]);
        sum = format.sum(sum, &written.log[begin + FRAME_HEAD_BYTES..begin + written.frame_bytes]);
        put(&mut written.log, begin + 16, sum);
    }
    assert_eq!(written.bench.with_log(&written.log).await.rows().await, 12, "SQLite reads all of it");
    assert_eq!(judged(&written.log), None);
    let at = written.begin_of(3);
    assert_eq!(judged(&harmed(&written.log, at + 100)), Some(at as u64));
    assert_eq!(judged(&harmed(&written.log, 0)), Some(0));
}

/// A log that is another one each time that it is read from its begin.
struct Changing {
    logs: Vec<Vec<u8>>,
    current: Cursor<Vec<u8>>,
}

impl Read for Changing {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.current.read(bytes)
    }
}

impl Seek for Changing {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        if to == SeekFrom::Start(0) && !self.logs.is_empty() {
            self.current = Cursor::new(self.logs.remove(0));
        }
        self.current.seek(to)
    }
}

#[tokio::test]
async fn what_seems_damaged_while_it_is_written_is_looked_at_again() {
    let written = Written::new(512, 12).await;
    let torn = |frame: usize| harmed(&written.log, written.begin_of(frame));
    let look = |logs: &[Vec<u8>]| damage(&mut Changing { logs: logs.to_vec(), current: Cursor::default() });
    assert_eq!(look(&[torn(1), written.log.clone()]).unwrap(), None);
    assert_eq!(look(&[torn(1), torn(2), torn(3), written.log.clone()]).unwrap(), None);
    // It was whole under another head, of which nothing is left where the second look ends.
    let mut restarted = written.log.clone();
    restarted[..HEAD_BYTES].copy_from_slice(&Written::new(512, 1).await.log[..HEAD_BYTES]);
    assert_eq!(look(&[torn(1), torn(1), restarted]).unwrap(), None);
    assert_eq!(look(&[torn(1), torn(2), torn(2), torn(2)]).unwrap(), Some(written.begin_of(2) as u64));
    let always: Vec<Vec<u8>> = (0..LOOKS_MAX as usize).map(torn).collect();
    assert!(look(&always).unwrap_err().to_string().contains("end that program"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_written_and_begun_anew_meanwhile_is_never_called_damaged() {
    let mut bench = Bench::new(512).await;
    bench.says("pragma wal_autocheckpoint = 30").await;
    let database = bench.folder.path().join("db");
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let looking = thread::spawn(move || {
        let mut looks = 0;
        while ended.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
            look(&database).unwrap();
            looks += 1;
        }
        looks
    });
    for number in 0..400 {
        bench.fill(number % 7 * 400, false).await;
    }
    drop(end);
    assert!(looking.join().unwrap() > 0);
}

/// As whoever deletes a database, or restores none of it, and leaves the log of a server that was killed.
#[tokio::test]
async fn a_log_whose_database_is_gone_is_not_removed() {
    let log = Written::new(512, 12).await.log;
    for emptied in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (path, beside) = (folder.path().join("db"), folder.path().join("db-wal"));
        fs::write(&beside, &log).unwrap();
        if emptied {
            fs::write(&path, "").unwrap();
        }
        let text = path.display().to_string();
        let opened = Db::open_sqlite(&text, Expect::Anything).await.map(drop);
        let looked = Db::look(&format!("sqlite:{text}")).await.map(drop);
        for refused in [opened, looked, Db::examine_sqlite(&text, Expect::Anything).await] {
            let told = refused.unwrap_err().to_string();
            assert!(told.contains("it is gone or empty, and its log `"), "{told}");
            assert!(told.contains("db-wal` is not") && told.contains("restore both from a copy"), "{told}");
        }
        assert!(fs::read(&beside).unwrap() == log && path.exists() == emptied, "it was touched");
        // What SQLite leaves of a log in which nothing is.
        fs::write(&beside, "").unwrap();
        Db::open_sqlite(&text, Expect::Anything).await.unwrap();
    }
}

/// A database that was open when its server was killed: nothing of it is touched, whichever way it is opened.
#[tokio::test]
async fn a_database_whose_log_is_damaged_is_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let db = Db::open_sqlite(path("live").to_str().unwrap(), Expect::Anything).await.unwrap();
    let Db::Sqlite { writer, .. } = &db else { panic!("another engine") };
    let synchronous = sqlx::query_scalar::<_, i64>("pragma synchronous").fetch_one(writer).await;
    assert_eq!(synchronous.unwrap(), 2, "FULL: each commit is on the disk before the next frame is written");
    for _ in 0..20 {
        sqlx::query("insert into schema_steps select 1 - count(*) from schema_steps").execute(writer).await.unwrap();
    }
    for end in ["", "-wal"] {
        fs::copy(path(&format!("live{end}")), path(&format!("killed{end}"))).unwrap();
    }
    std::os::unix::fs::symlink(path("killed"), path("link")).unwrap();
    let files = || ["killed", "killed-wal"].map(|name| fs::read(path(name)).unwrap());
    let [_, whole] = files();
    let mut harmed = whole.clone();
    let third = harmed.len() / 3;
    harmed[third..third + 4_000].iter_mut().for_each(|byte| *byte ^= 0x55);
    fs::write(path("killed-wal"), &harmed).unwrap();
    let left = files();
    for name in ["killed", "link"] {
        let text = path(name).display().to_string();
        let opened = Db::open_sqlite(&text, Expect::Anything).await.map(drop);
        let looked = Db::look(&format!("sqlite:{text}")).await.map(drop);
        for refused in [opened, looked, Db::examine_sqlite(&text, Expect::Anything).await] {
            let error = refused.unwrap_err();
            assert!(matches!(error, Error::Damaged { .. }), "{error}");
            let told = error.to_string();
            assert!(
                told.contains("killed-wal` is broken at byte") && told.contains("restore it from a copy"),
                "{told}"
            );
        }
    }
    assert!(files() == left && !path("killed-shm").exists(), "it was touched");
    fs::write(path("killed-wal"), whole).unwrap();
    let db = Db::open_sqlite(path("killed").to_str().unwrap(), Expect::Anything).await.unwrap();
    let Db::Sqlite { writer, .. } = &db else { panic!("another engine") };
    let rows = sqlx::query_scalar::<_, i64>("select count(*) from schema_steps where step < 1").fetch_one(writer).await;
    assert!(rows.unwrap() >= 20 - 4);
}
