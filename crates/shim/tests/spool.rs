//! The spool on a real disk: what is written is what is read, whatever the bytes, the rhythm and the acknowledgements.
#![allow(clippy::unwrap_used)]

mod small_disk;

use std::{io, path::Path, rc::Rc, time::Duration};

use holm_domain::{
    BootMicros, UnixMicros,
    log::{BATCH_BYTES_MAX, Batch, HEAD_BYTES, Stream, parse_all},
};
use holm_shim::{
    full_disk::FullDisk,
    protocol::SPOOL_DIR_NAME,
    spool::{
        keeper::Keeper,
        reader::{self, Chunk, Reader},
        writer::{BATCH_BYTES, BATCH_BYTES_FULL, BATCH_HELD_FOR, Now, TakenBack, Writer},
    },
};
use proptest::prelude::*;
use small_disk::SmallDisk;

const LARGE: u64 = 256 * 1024 * 1024;

fn at(micros: u64) -> Now {
    Now { boot: BootMicros(micros), unix: UnixMicros(1_700_000_000_000_000 + micros as i64) }
}

/// What a reader saw: the bytes of each stream, and the sequence after the last entry.
#[derive(Debug, Default)]
struct Seen {
    streams: [Vec<u8>; 2],
    next_seq: u64,
}

impl Seen {
    fn take(&mut self, chunk: &Chunk) {
        for batch in parse_all(&chunk.bytes).unwrap() {
            let new = self.next_seq;
            for entry in batch.read().unwrap().iter().filter(|entry| entry.seq >= new) {
                assert_eq!(entry.seq, self.next_seq, "no sequence is left out");
                self.next_seq += 1;
                self.streams[usize::from(entry.stream == Stream::Stderr)].extend_from_slice(entry.data);
            }
        }
    }
}

fn read_all(dir: &Path, from: u64, seen: &mut Seen) -> Reader {
    let mut reader = Reader::new(dir, from);
    loop {
        let chunk = reader.read(100_000).unwrap();
        assert!(chunk.bytes.len() <= HEAD_BYTES + BATCH_BYTES_MAX);
        assert_eq!(chunk.next_seq, reader.next_seq());
        if chunk.bytes.is_empty() {
            return reader;
        }
        seen.take(&chunk);
    }
}

fn spool_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> =
        std::fs::read_dir(dir.join(SPOOL_DIR_NAME)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// A line that does not shrink by packing.
fn line(number: usize, length: usize) -> Vec<u8> {
    let mut state = number as u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    });
    noise.filter(|byte| *byte != b'\n').take(length - 1).chain([b'\n']).collect()
}

fn lines(writer: &mut Writer, count: usize, length: usize) {
    for number in 0..count {
        writer.push(Stream::Stdout, &line(number, length), at(0)).unwrap();
        write(writer, at(0)).unwrap();
    }
}

/// Writes everything that is due.
fn write(writer: &mut Writer, now: Now) -> io::Result<()> {
    while let Some(append) = writer.append(now.boot) {
        if let TakenBack::NoRoom(error) = writer.take_back(append.execute())? {
            return Err(error);
        }
    }
    Ok(())
}

fn tick(writer: &mut Writer, now: Now) {
    writer.tick(now).unwrap();
    write(writer, now).unwrap();
}

fn finish(writer: &mut Writer, now: Now) {
    writer.end(now).unwrap();
    write(writer, now).unwrap();
}

fn acked(writer: &mut Writer, next_seq: u64) {
    writer.acked(next_seq);
    writer.delete_acked().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn what_goes_in_comes_out(
        first in 1u64..1_000_000,
        limit in 40_000u64..600_000,
        writes in prop::collection::vec((any::<bool>(), prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..100), 1usize..300, 0u64..30_000, any::<bool>()), 1..30)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(dir.path(), first, limit).unwrap();
        let mut reader = Reader::new(dir.path(), first);
        let mut seen = Seen { next_seq: first, ..Seen::default() };
        let (mut written, mut now) = ([Vec::new(), Vec::new()], 0);
        for (stderr, data, repeat, pause, follow) in &writes {
            let data = data.repeat(*repeat);
            written[usize::from(*stderr)].extend_from_slice(&data);
            writer.push(if *stderr { Stream::Stderr } else { Stream::Stdout }, &data, at(now)).unwrap();
            now += pause;
            tick(&mut writer, at(now));
            prop_assert!(writer.next_tick().is_none_or(|due| due > BootMicros(now)));
            if *follow {
                seen.take(&reader.read(50_000).unwrap());
                prop_assert!(seen.next_seq <= writer.next_seq());
                acked(&mut writer, seen.next_seq);
            }
        }
        finish(&mut writer, at(now));
        prop_assert_eq!(writer.next_tick(), None);
        // A second agent goes on where the first one had everything stored.
        let next = seen.next_seq;
        read_all(dir.path(), next, &mut seen);
        prop_assert_eq!(seen.next_seq, writer.next_seq());
        prop_assert_eq!(seen.streams, written);
        // Whatever the limit is, there is room again once everything is stored.
        acked(&mut writer, seen.next_seq);
        prop_assert!(writer.has_room());
    }
}

#[test]
fn entries_wait_ten_milliseconds_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(dir.path(), 1, LARGE).unwrap();
    writer.push(Stream::Stdout, b"one\n", at(1_000)).unwrap();
    let due = at(1_000).boot.plus(BATCH_HELD_FOR);
    assert_eq!(writer.next_tick(), Some(due));
    tick(&mut writer, at(due.0 - 1));
    assert_eq!((writer.next_seq(), reader::first_seq(dir.path()).unwrap()), (1, None));
    writer.push(Stream::Stderr, b"two\n", at(due.0 - 1)).unwrap();
    tick(&mut writer, at(due.0));
    assert_eq!((writer.next_seq(), reader::first_seq(dir.path()).unwrap()), (3, Some(1)));
    let chunk = Reader::new(dir.path(), 1).read(1).unwrap();
    assert_eq!((chunk.first_seq, chunk.next_seq, parse_all(&chunk.bytes).unwrap().len()), (1, 3, 1));
}

#[test]
fn a_time_of_day_that_jumps_is_told_and_decides_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(dir.path(), 1, LARGE).unwrap();
    let (hour, day) = (3_600_000_000, 24 * 3_600_000_000);
    let jumps = [0, hour, -hour, 3 * day, -3 * day];
    for (now, jump) in (1u64..).zip(jumps) {
        let Now { boot, unix } = at(now);
        writer.push(Stream::Stdout, b"line\n", Now { boot, unix: UnixMicros(unix.0 + jump) }).unwrap();
    }
    let due = at(1).boot.plus(BATCH_HELD_FOR);
    assert_eq!(writer.next_tick(), Some(due), "by the boot clock alone");
    tick(&mut writer, Now { boot: due, unix: UnixMicros(0) });
    let chunk = Reader::new(dir.path(), 1).read(1).unwrap();
    let [batch] = &parse_all(&chunk.bytes).unwrap()[..] else { panic!("one batch") };
    let told: Vec<_> =
        batch.read().unwrap().iter().map(|entry| (entry.seq, entry.at.0 - at(entry.seq).unix.0)).collect();
    assert_eq!(told, (1..).zip(jumps).collect::<Vec<_>>(), "in the order in which they came");
}

#[test]
fn files_are_deleted_whole_and_only_once_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(dir.path(), 1, 1024 * 1024).unwrap();
    lines(&mut writer, 1_000, 1_024);
    finish(&mut writer, at(0));
    let before = spool_files(dir.path());
    assert!(before.len() >= 4, "{before:?}");
    let second: u64 = before[1].file_stem().unwrap().to_str().unwrap().parse().unwrap();
    acked(&mut writer, second - 1);
    assert_eq!(spool_files(dir.path()), before);
    acked(&mut writer, second);
    assert_eq!(spool_files(dir.path()), before[1..]);
    assert_eq!(reader::first_seq(dir.path()).unwrap(), Some(second));
    acked(&mut writer, u64::MAX);
    assert_eq!(spool_files(dir.path()), before[before.len() - 1..], "the open file stays");
}

#[test]
fn a_full_spool_asks_for_a_pause_until_something_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(dir.path(), 1, 1024 * 1024).unwrap();
    lines(&mut writer, 900, 1_024);
    assert!(writer.has_room());
    lines(&mut writer, 300, 1_024);
    assert!(!writer.has_room());
    let all = writer.next_seq();
    acked(&mut writer, all);
    assert!(writer.has_room());
}

#[test]
fn a_batch_grows_while_the_one_before_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(dir.path(), 1, LARGE).unwrap();
    let mut pushed = 0;
    let mut push = |writer: &mut Writer, until: usize| {
        while pushed < until {
            writer.push(Stream::Stdout, &line(pushed, 1_024), at(0)).unwrap();
            pushed += 1_024;
        }
    };
    push(&mut writer, BATCH_BYTES);
    let away = writer.append(BootMicros(0)).expect("it is due");
    push(&mut writer, BATCH_BYTES + BATCH_BYTES_FULL - 1_024);
    assert!(writer.has_room() && writer.append(BootMicros(u64::MAX)).is_none(), "one at a time");
    assert_eq!((writer.next_tick(), writer.next_seq()), (None, 1));
    push(&mut writer, BATCH_BYTES + BATCH_BYTES_FULL);
    assert!(!writer.has_room());
    // What is acknowledged meanwhile is deleted when the files are back.
    writer.acked(u64::MAX);
    writer.delete_acked().unwrap();
    writer.take_back(away.execute()).unwrap();
    let first = (BATCH_BYTES / 1_024) as u64;
    assert_eq!(writer.next_seq(), 1 + first);
    write(&mut writer, at(0)).unwrap();
    assert!(writer.has_room());
    let mut seen = Seen { next_seq: 1, ..Seen::default() };
    read_all(dir.path(), 1, &mut seen);
    assert_eq!(seen.next_seq, 1 + first + (BATCH_BYTES_FULL / 1_024) as u64);
}

#[test]
fn after_a_write_that_failed_there_is_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(dir.path(), 1, LARGE).unwrap();
    let folder = dir.path().join(SPOOL_DIR_NAME);
    std::fs::remove_dir(&folder).unwrap();
    writer.push(Stream::Stdout, b"lost\n", at(0)).unwrap();
    writer.end(at(0)).unwrap();
    write(&mut writer, at(0)).unwrap_err();
    std::fs::create_dir(&folder).unwrap();
    writer.push(Stream::Stdout, b"after a gap\n", at(0)).unwrap();
    finish(&mut writer, at(0));
    assert_eq!((writer.next_seq(), spool_files(dir.path()).len()), (1, 0));
}

#[test]
fn what_found_no_room_is_written_later_and_once() {
    let disk = SmallDisk::new(1 << 20);
    let mut writer = Writer::create(disk.path(), 1, LARGE).unwrap();
    lines(&mut writer, 3, 10);
    tick(&mut writer, at(20_000));
    let file = &spool_files(disk.path())[0];
    let whole = std::fs::metadata(file).unwrap().len();
    let ballast = disk.fill();
    for number in 0..100 {
        writer.push(Stream::Stdout, &line(number, 1_000), at(20_000)).unwrap();
    }
    for _ in 0..3 {
        let append = writer.append(BootMicros(40_000)).expect("it is due again");
        let taken = writer.take_back(append.execute()).unwrap();
        assert!(matches!(&taken, TakenBack::NoRoom(error) if error.kind() == io::ErrorKind::StorageFull), "{taken:?}");
        assert_eq!((writer.next_seq(), std::fs::metadata(file).unwrap().len()), (4, whole), "nothing is torn");
        writer.push(Stream::Stdout, b"after it\n", at(40_000)).unwrap();
    }
    std::fs::remove_file(ballast).unwrap();
    finish(&mut writer, at(40_000));
    assert_eq!(writer.next_seq(), 107);
    let mut seen = Seen { next_seq: 1, ..Seen::default() };
    read_all(disk.path(), 1, &mut seen);
    let lines = |count, length| (0..count).flat_map(move |number| line(number, length));
    let expected: Vec<u8> = lines(3, 10).chain(lines(100, 1_000)).chain(*b"after it\nafter it\nafter it\n").collect();
    assert!(seen.streams[0] == expected, "each byte once and in order");
}

#[test]
fn acknowledged_files_are_deleted_while_the_disk_is_full() {
    let disk = SmallDisk::new(1 << 20);
    let mut writer = Writer::create(disk.path(), 1, 1 << 20).unwrap();
    lines(&mut writer, 600, 1_000);
    disk.fill();
    lines(&mut writer, 100, 1_000);
    writer.end(at(0)).unwrap();
    let append = writer.append(BootMicros(0)).expect("it is due");
    assert!(matches!(writer.take_back(append.execute()).unwrap(), TakenBack::NoRoom(_)));
    let before = spool_files(disk.path()).len();
    let stored = writer.next_seq();
    acked(&mut writer, stored);
    assert!(spool_files(disk.path()).len() < before, "its own files do not keep it waiting");
    write(&mut writer, at(0)).unwrap();
    assert_eq!(writer.next_seq(), 701);
}

#[test]
fn an_acknowledged_file_that_could_take_more_is_deleted_while_the_disk_is_full() {
    let disk = SmallDisk::new(1 << 20);
    let mut writer = Writer::create(disk.path(), 1, LARGE).unwrap();
    lines(&mut writer, 200, 1_000);
    write(&mut writer, at(1_000_000)).unwrap();
    let stored = writer.next_seq();
    acked(&mut writer, stored);
    assert_eq!((stored, spool_files(disk.path()).len()), (201, 1), "it may take more, and stays");
    disk.fill();
    lines(&mut writer, 100, 1_000);
    writer.end(at(0)).unwrap();
    let append = writer.append(BootMicros(0)).expect("it is due");
    assert!(matches!(writer.take_back(append.execute()).unwrap(), TakenBack::NoRoom(_)));
    writer.delete_acked().unwrap();
    assert!(spool_files(disk.path()).is_empty(), "the server has all of it");
    write(&mut writer, at(0)).unwrap();
    assert_eq!(writer.next_seq(), 301);
}

#[tokio::test]
async fn a_disk_that_stays_full_is_waited_for_no_longer_than_that() {
    let disk = SmallDisk::new(1 << 20);
    let patience = Duration::from_millis(600);
    let keeper = Keeper::create(disk.path(), 1, LARGE, Rc::new(FullDisk::new(patience))).unwrap();
    disk.fill();
    keeper.push(Stream::Stdout, b"lost\n").unwrap();
    let begun = std::time::Instant::now();
    let keep = keeper.keep(|| panic!("nothing is written"));
    let error = tokio::time::timeout(100 * patience, keep).await.expect("it is given up");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
    assert!(begun.elapsed() >= patience);
}

#[test]
fn a_torn_last_batch_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(dir.path(), 1, LARGE).unwrap();
    for _ in 0..2 {
        lines(&mut writer, 3, 10);
        tick(&mut writer, at(20_000));
    }
    let path = &spool_files(dir.path())[0];
    let whole = std::fs::read(path).unwrap();
    for torn in whole.len() / 2 + 1..whole.len() {
        std::fs::write(path, &whole[..torn]).unwrap();
        let mut reader = Reader::new(dir.path(), 1);
        assert_eq!(reader.read(1).unwrap().next_seq, 4);
        assert_eq!(reader.read(1).unwrap().bytes, Vec::<u8>::new(), "torn at {torn}");
        std::fs::write(path, &whole).unwrap();
        assert_eq!(reader.read(1).unwrap().next_seq, 7);
    }
}

#[test]
fn damage_and_gaps_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(dir.path(), 10, LARGE).unwrap();
    lines(&mut writer, 3, 10);
    finish(&mut writer, at(0));
    assert!(matches!(Reader::new(dir.path(), 9).read(1), Err(reader::Error::Gap { wanted: 9, found: 10 })));
    let path = &spool_files(dir.path())[0];
    let mut bytes = std::fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(path, &bytes).unwrap();
    assert!(matches!(Reader::new(dir.path(), 10).read(1), Err(reader::Error::Damaged { next_seq: 10, .. })));
}

#[test]
fn a_file_that_is_missing_between_others_is_a_gap_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(dir.path(), 1, 1024 * 1024).unwrap();
    lines(&mut writer, 1_000, 1_024);
    finish(&mut writer, at(0));
    let files = spool_files(dir.path());
    let first_of = |path: &Path| path.file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap();
    let (missing, after) = (first_of(&files[1]), first_of(&files[2]));
    std::fs::remove_file(&files[1]).unwrap();
    let mut reader = Reader::new(dir.path(), 1);
    let refused = loop {
        match reader.read(100_000) {
            Ok(chunk) => assert!(!chunk.bytes.is_empty(), "the reader waits for what will never come"),
            Err(error) => break error,
        }
    };
    let wanted = (missing, after);
    assert!(
        matches!(refused, reader::Error::Gap { wanted, found } if (wanted, found) == (missing, after)),
        "{wanted:?}"
    );
    // Nor does one begin in the gap.
    assert!(matches!(Reader::new(dir.path(), missing).read(1), Err(reader::Error::Gap { .. })));
}

#[test]
fn a_full_disk_is_an_error_and_leaves_whole_batches() {
    let disk = SmallDisk::new(256 << 10);
    let path = disk.path();
    let mut writer = Writer::create(path, 1, LARGE).unwrap();
    let mut push = |index: u64| {
        writer.push(Stream::Stdout, &line(index as usize, 1_024), at(index))?;
        write(&mut writer, at(index))
    };
    let error = (0..1_000).map(&mut push).find_map(Result::err).unwrap();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NOSPC.raw_os_error()));
    let mut seen = Seen { next_seq: 1, ..Seen::default() };
    read_all(path, 1, &mut seen);
    assert_eq!(seen.next_seq, writer.next_seq());
    assert!(seen.next_seq > 100);
    let mut rest = std::fs::read(&spool_files(path)[0]).unwrap();
    while !rest.is_empty() {
        let (_, after) = Batch::parse(&rest).expect("no torn batch is left");
        rest = after.to_vec();
    }
}
