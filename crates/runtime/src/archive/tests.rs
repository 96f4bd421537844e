//! Archives as tools write them, and as nobody should.

use std::io::Cursor;

use proptest::prelude::*;
use tar::{Builder, EntryType, GnuExtSparseHeader, Header};

use super::*;

const LIMITS: Limits = Limits { entries: 100, bytes: 1 << 40, path_bytes: 4_096, depth: 32, description_bytes: 16_384 };

fn head(flag: u8, name: &[u8], size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(EntryType::new(flag));
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header.set_cksum();
    header
}

fn linked(flag: u8, name: &[u8], target: &[u8]) -> Header {
    let mut header = head(flag, name, 0);
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
    header.set_cksum();
    header
}

/// An archive of heads with their data, and its end.
fn archive(entries: &[(Header, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (header, data) in entries {
        builder.append(header, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (rest..).find(|length| rest + length.to_string().len() == *length).unwrap();
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// An archive of one file that pax records describe.
fn recorded(records: &[u8]) -> Vec<u8> {
    archive(&[(head(b'x', b"pax", records.len() as u64), records), (head(b'0', b"file", 3), b"abc")])
}

fn read_with(bytes: &[u8], limits: Limits) -> Result<Vec<Entry>, Problem> {
    let mut reader = Reader::new(Cursor::new(bytes), limits);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        entries.push(entry);
    }
    Ok(entries)
}

fn read(bytes: &[u8]) -> Result<Vec<Entry>, Problem> {
    read_with(bytes, LIMITS)
}

#[track_caller]
fn refused(bytes: &[u8], wanted: &str) {
    let problem = read(bytes).unwrap_err().to_string();
    assert!(problem.contains(wanted), "{problem:?} does not say {wanted:?}");
}

fn content(bytes: &[u8]) -> Result<Vec<u8>, Problem> {
    let mut reader = Reader::new(Cursor::new(bytes), LIMITS);
    let entry = reader.next_entry()?.unwrap();
    let mut file = tempfile::tempfile().unwrap();
    reader.copy(&entry, &mut file)?;
    file.rewind().unwrap();
    let mut content = Vec::new();
    file.read_to_end(&mut content).unwrap();
    assert_eq!(content.len() as u64, entry.size);
    assert!(reader.next_entry()?.is_none());
    Ok(content)
}

#[test]
fn kinds_are_told_apart() {
    let mut device = head(b'3', b"null", 0);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    device.set_cksum();
    let entries = read(&archive(&[
        (head(b'5', b"./dir/", 0), b""),
        (head(b'0', b"dir/file", 3), b"abc"),
        (head(b'0', b"old-dir/", 0), b""),
        (linked(b'2', b"link", b"../x"), b""),
        (linked(b'1', b"hard", b"dir/file"), b""),
        (head(b'6', b"pipe", 0), b""),
        (device, b""),
        (head(b'4', b"disk", 0), b""),
        (head(b'Q', b"own", 0), b""),
        (head(b'V', b"volume", 0), b""),
    ]));
    let kinds: Vec<Kind> = entries.unwrap().into_iter().map(|entry| entry.kind).collect();
    let name = Name { is_absolute: false, names: vec![b"dir".to_vec(), b"file".to_vec()] };
    let expected = [
        Kind::Folder,
        Kind::File,
        Kind::Folder,
        Kind::Symlink(b"../x".to_vec()),
        Kind::HardLink(name),
        Kind::Fifo,
        Kind::CharDevice(1, 3),
        Kind::BlockDevice,
        Kind::Other(b'Q'),
        Kind::Remark,
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn what_gnu_tar_writes_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let long = "n".repeat(120) + "\nx";
    std::fs::write(dir.path().join(&long), "long").unwrap();
    std::fs::write(dir.path().join("a"), "a").unwrap();
    let holes = std::fs::File::create(dir.path().join("holes")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&holes, b"data", 1 << 20).unwrap();
    holes.set_len(3 << 20).unwrap();
    for args in [&["--format=gnu"][..], &["--format=gnu", "--sparse"], &["--format=pax"], &["--format=ustar"]] {
        let names: &[&str] = if args[0] == "--format=ustar" { &["a", "holes"] } else { &["a", "holes", &long] };
        let run =
            std::process::Command::new("tar").args(args).args(["-cC"]).arg(dir.path()).args(names).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let mut reader = Reader::new(Cursor::new(&run.stdout), LIMITS);
        let mut seen = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            let mut file = tempfile::tempfile().unwrap();
            let copied = reader.copy(&entry, &mut file).unwrap();
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            file.rewind().unwrap();
            file.read_to_end(&mut ours).unwrap();
            let name = String::from_utf8(entry.name.path()).unwrap();
            File::open(dir.path().join(&name)).unwrap().read_to_end(&mut theirs).unwrap();
            assert!(ours == theirs, "{args:?}: {name:?} differs");
            assert_eq!(entry.is_sparse(), args.len() == 2 && name == "holes");
            assert!(!entry.is_sparse() || copied < 1 << 20, "holes were written");
            seen.push(name);
        }
        assert_eq!(seen, names, "{args:?}");
    }
}

#[test]
fn descriptions_have_a_limit_before_they_are_read() {
    for flag in [b'x', b'g', b'L', b'K'] {
        // No byte of it is there: it is refused for what it says.
        refused(head(flag, b"d", 1 << 40).as_bytes(), "longer than 16384 bytes");
    }
    let long = vec![b'a'; 16_384];
    refused(&archive(&[(head(b'L', b"d", 16_384), &long), (head(b'0', b"x", 0), b"")]), "longer than 4096 bytes");
    let links = (head(b'K', b"d", 16_384), &long[..]);
    refused(&archive(&[links, (linked(b'2', b"x", b"y"), b"")]), "is a link that is longer");
    let mut sparse = head(b'S', b"holes", 0);
    sparse.as_gnu_mut().unwrap().set_is_extended(true);
    sparse.set_cksum();
    let mut more = GnuExtSparseHeader::new();
    more.set_is_extended(true);
    let endless = [sparse.as_bytes(), more.as_bytes().repeat(100).as_slice()].concat();
    refused(&endless, "described by something longer");
}

#[test]
fn names_keep_to_their_limits() {
    for name in [&b"../x"[..], b"a/../b", b"a/.."] {
        refused(&archive(&[(head(b'0', name, 0), b"")]), "leads upwards");
    }
    refused(&archive(&[(linked(b'1', b"x", b"../../etc/shadow"), b"")]), "leads upwards");
    refused(&archive(&[(head(b'L', b"d", 4), b"a\0b\0"), (head(b'0', b"x", 0), b"")]), "NUL");
    refused(&recorded(&record("path", b"a\0b")), "NUL");
    refused(&archive(&[(head(b'0', "a/".repeat(33).as_bytes(), 0), b"")]), "deeper than 32");
    refused(&archive(&[(linked(b'2', b"x", b""), b"")]), "link to nothing");
    let entries = read(&archive(&[(head(b'0', b"/./a//b", 0), b""), (head(b'5', b"./", 0), b"")])).unwrap();
    assert!(entries[0].name.is_absolute && entries[0].name.path() == b"a/b");
    assert!(entries[1].name.names.is_empty());
    assert_eq!(entries[1].name.to_string(), ".");
}

#[test]
fn pax_records_are_taken_by_their_lengths() {
    let entries = read(&recorded(&[record("path", b"a\nb\xff"), record("uid", b"7")].concat())).unwrap();
    assert_eq!((entries[0].name.path(), entries[0].uid), (b"a\nb\xff".to_vec(), 7));
    assert_eq!(entries[0].name.to_string(), "a\\nb\\xff");
    let capability = [1, 0, 0, 2, b'\n', 0, b'=', 0];
    let entries = read(&recorded(&record("SCHILY.xattr.security.capability", &capability))).unwrap();
    assert_eq!(entries[0].attributes, [(b"SCHILY.xattr.security.capability".to_vec(), capability.to_vec())]);
    for acl in ["SCHILY.acl.access", "LIBARCHIVE.xattr.user.x"] {
        assert_eq!(read(&recorded(&record(acl, b"x"))).unwrap()[0].attributes.len(), 1);
    }
    assert_eq!(read(&recorded(&record("path", b""))).unwrap()[0].name.path(), b"file", "an empty value is none");
    for bad in
        [&b"5 a=b\n"[..], b"7 a=b\n", b"6 a=bc", b"x a=b\n", b"6 =bcd\n", b"99999999999999999999999 a=b\n", b"0 a"]
    {
        refused(&recorded(bad), "malformed");
    }
    refused(&recorded(&[record("path", b"a"), record("path", b"b")].concat()), "twice");
    for (key, value) in [("size", "-5"), ("uid", "x"), ("gid", "99999999999999999999"), ("size", "+1")] {
        refused(&recorded(&record(key, value.as_bytes())), "no number");
    }
    refused(&recorded(&record("GNU.sparse.major", b"1")), "sparse");
}

#[test]
fn records_for_all_that_follows_change_nothing() {
    let remark = record("comment", b"made by git");
    let entries = read(&archive(&[(head(b'g', b"g", remark.len() as u64), &remark), (head(b'0', b"x", 0), b"")]));
    assert_eq!(entries.unwrap().len(), 1);
    for key in ["path", "linkpath", "size", "uid", "gid"] {
        let records = record(key, b"1");
        refused(&archive(&[(head(b'g', b"g", records.len() as u64), &records)]), "for all entries that follow");
    }
}

#[test]
fn contradictions_are_refused() {
    let file = || (head(b'0', b"x", 0), &b""[..]);
    refused(&archive(&[(head(b'L', b"d", 1), b"a"), (head(b'L', b"d", 1), b"b"), file()]), "described twice");
    let records = record("path", b"b");
    let pax = (head(b'x', b"p", records.len() as u64), &records[..]);
    refused(&archive(&[(head(b'L', b"d", 1), b"a"), pax, file()]), "has two paths");
    refused(&archive(&[(head(b'L', b"d", 1), b"a")]), "cut off");
    let mut with_data = linked(b'1', b"hard", b"x");
    with_data.set_size(3);
    with_data.set_cksum();
    refused(&archive(&[(with_data, b"abc")]), "says it has 3 bytes");
}

#[test]
fn numbers_that_are_none_are_refused() {
    for size in [
        [0xff; 12],
        [b'9'; 12],
        *b"-0000000001\0",
        [0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        [0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let mut header = head(b'0', b"x", 0);
        header.as_old_mut().size = size;
        header.set_cksum();
        refused(header.as_bytes(), "no number");
    }
    for owner in [[0xff; 8], *b"00x0000\0"] {
        let mut header = head(b'0', b"x", 0);
        header.as_old_mut().uid = owner;
        header.set_cksum();
        refused(header.as_bytes(), "no number");
    }
    let mut large = head(b'0', b"x", 0);
    large.as_old_mut().size = [0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1];
    large.set_cksum();
    let entry = Reader::new(Cursor::new(large.as_bytes()), LIMITS).next_entry().unwrap().unwrap();
    assert_eq!(entry.size, (2 << 32) + 1);
    let mut wrong = head(b'0', b"x", 0);
    wrong.as_old_mut().cksum = *b"0000000\0";
    refused(wrong.as_bytes(), "checksum");
}

#[test]
fn sizes_and_counts_have_limits() {
    let files = archive(&[(head(b'0', b"a", 3), b"abc"), (head(b'0', b"b", 3), b"abc")]);
    let problem = |limits| read_with(&files, limits).unwrap_err().to_string();
    assert!(read_with(&files, Limits { entries: 2, bytes: 6, ..LIMITS }).is_ok());
    assert!(problem(Limits { bytes: 5, ..LIMITS }).contains("more than 5 bytes"));
    assert!(problem(Limits { entries: 1, ..LIMITS }).contains("more than 1 entries"));
    let remarks = archive(&(0..200).map(|_| (head(b'g', b"g", 0), &b""[..])).collect::<Vec<_>>());
    refused(&remarks, "more than 100 entries");
    // Both together are more than there are numbers.
    let huge = (i64::MAX as u64).to_string();
    let records = record("size", huge.as_bytes());
    let limits = Limits { bytes: u64::MAX, ..LIMITS };
    assert!(matches!(read_with(&recorded(&records), limits), Err(Problem::CutOff)));
}

fn sparse(parts: &[(u64, u64)], size: u64, real_size: u64) -> Header {
    let mut header = head(b'S', b"holes", size);
    let gnu = header.as_gnu_mut().unwrap();
    for (place, (offset, length)) in gnu.sparse.iter_mut().zip(parts) {
        place.offset.copy_from_slice(format!("{offset:011o}\0").as_bytes());
        place.numbytes.copy_from_slice(format!("{length:011o}\0").as_bytes());
    }
    gnu.realsize.copy_from_slice(format!("{real_size:011o}\0").as_bytes());
    header.set_cksum();
    header
}

#[test]
fn maps_of_holes_are_checked() {
    let whole = content(&archive(&[(sparse(&[(512, 512), (2_048, 3)], 515, 4_000), &[b'x'; 515])])).unwrap();
    assert!(whole[512..1_024].iter().chain(&whole[2_048..2_051]).all(|byte| *byte == b'x'));
    assert_eq!((whole.len(), whole.iter().filter(|byte| **byte == 0).count()), (4_000, 4_000 - 515));
    for (parts, size, real_size, problem) in [
        (&[(512, 512), (0, 3)][..], 515, 4_000, "overlap"),
        (&[(0, 3), (512, 512)], 515, 4_000, "no blocks"),
        (&[(0, 512)], 1_024, 4_000, "does not fit"),
        (&[(0, 1_024)], 512, 4_000, "does not fit"),
        (&[(512, 512)], 512, 600, "does not fit"),
    ] {
        refused(&archive(&[(sparse(parts, size, real_size), &vec![0; size as usize])]), problem);
    }
    // A few bytes that stand for more than is taken.
    let limits = Limits { bytes: 1 << 20, ..LIMITS };
    let bomb = archive(&[(sparse(&[], 0, 7 << 30), b"")]);
    assert!(matches!(read_with(&bomb, limits), Err(Problem::Bytes(_))));
    let mut ustar = head(b'S', b"x", 0);
    ustar.as_old_mut().pad[..8].copy_from_slice(b"ustar\x0000");
    ustar.set_cksum();
    refused(ustar.as_bytes(), "without being of the GNU format");
}

#[test]
fn what_is_cut_off_is_noticed_everywhere() {
    let whole = archive(&[
        (head(b'L', b"d", 150), &[b'n'; 150]),
        (head(b'0', b"x", 600), &[b'x'; 600]),
        (head(b'5', b"d", 0), b""),
    ]);
    assert_eq!(read(&whole).unwrap().len(), 2);
    let end = whole.len() - 2 * BLOCK_BYTES;
    for length in (0..end + BLOCK_BYTES).step_by(97).chain([end]) {
        assert!(matches!(read(&whole[..length]), Err(Problem::CutOff)), "cut off after {length} bytes");
    }
}

#[test]
fn what_follows_the_end_does_not_count() {
    let twice = [archive(&[(head(b'0', b"a", 0), b"")]), archive(&[(head(b'0', b"b", 0), b"")])].concat();
    assert_eq!(read(&twice).unwrap().len(), 1);
}

proptest! {
    #[test]
    fn whatever_is_changed_limits_hold(
        changes in proptest::collection::vec((0..7_168usize, any::<u8>()), 1..12),
        restore_sums in any::<bool>(),
    ) {
        let records = [record("path", &[b'p'; 150]), record("SCHILY.xattr.user.a", b"\n")].concat();
        let mut bytes = archive(&[
            (head(b'x', b"pax", records.len() as u64), &records),
            (head(b'0', b"file", 700), &[1; 700]),
            (head(b'L', b"long", 150), &[b'n'; 150]),
            (sparse(&[(512, 512), (2_048, 3)], 515, 4_000), &[b'x'; 515]),
            (linked(b'2', b"link", b"target"), b""),
        ]);
        for (at, byte) in changes {
            let end = bytes.len();
            bytes[at % end] = byte;
        }
        if restore_sums {
            for block in bytes.chunks_exact_mut(BLOCK_BYTES) {
                if block.iter().any(|byte| *byte != 0) {
                    let mut header = Header::from_byte_slice(block).clone();
                    header.set_cksum();
                    block[148..156].copy_from_slice(&header.as_bytes()[148..156]);
                }
            }
        }
        let mut reader = Reader::new(Cursor::new(&bytes), Limits { bytes: 10_000, entries: 20, ..LIMITS });
        let mut total = 0;
        while let Ok(Some(entry)) = reader.next_entry() {
            total += entry.size;
            prop_assert!(entry.mode <= 0o7777 && entry.name.path().len() <= 4_096);
            prop_assert!(entry.name.names.iter().all(|name| !name.is_empty() && name != b".." && !name.contains(&0)));
            if entry.kind == Kind::File {
                let mut file = tempfile::tempfile().unwrap();
                if reader.copy(&entry, &mut file).is_ok() {
                    prop_assert_eq!(file.metadata().unwrap().len(), entry.size);
                }
            }
        }
        prop_assert!(total <= 10_000);
    }
}
