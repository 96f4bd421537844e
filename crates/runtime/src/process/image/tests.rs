//! Real archives on a real disk.

use std::{
    os::unix::fs::{FileTypeExt, MetadataExt, symlink},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use tar::{Builder, EntryType, Header};

use super::*;
use crate::process::{
    Lend,
    guard::{Guards, Shown},
    lend::{Lending, lend},
};

struct Case {
    dir: tempfile::TempDir,
    builder: Builder<Vec<u8>>,
    images: Images,
    owners: bool,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::new(&dir.path().join("images"), Budget::default());
        Self { dir, builder: Builder::new(Vec::new()), images, owners: false }
    }

    /// An entry whose name is written as it is; the library refuses hostile ones.
    fn add(&mut self, kind: EntryType, name: &str, link: &str, mode: u32, content: &str) -> &mut Self {
        self.add_owned(kind, name, link, mode, content, (0, 0))
    }

    fn add_owned(
        &mut self,
        kind: EntryType,
        name: &str,
        link: &str,
        mode: u32,
        content: &str,
        (uid, gid): (u64, u64),
    ) -> &mut Self {
        let mut header = Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.builder.append(&header, content.as_bytes()).unwrap();
        self
    }

    fn tar(&self) -> PathBuf {
        self.dir.path().join("image.tar")
    }

    fn write(&mut self) {
        let builder = std::mem::replace(&mut self.builder, Builder::new(Vec::new()));
        fs::write(self.tar(), builder.into_inner().unwrap()).unwrap();
    }

    fn get(&self, stop: &Stop) -> Result<Image, Error> {
        let lends = [Lend { prefix: self.dir.path().to_owned(), write: false }];
        let view = Guards::new(&[]).look().unwrap();
        let lending = Lending { lends: &lends, view: &view };
        self.images.get(&lend(lending, &self.tar(), false, Shown::Layer).unwrap(), self.owners, stop)
    }

    fn unpack(&mut self) -> Result<Image, Error> {
        self.write();
        self.get(&Stop::default())
    }

    #[track_caller]
    fn refused(&mut self, wanted: &str) {
        let problem = self.unpack().unwrap_err().to_string();
        assert!(problem.contains(wanted), "{problem:?} does not say {wanted:?}");
        assert!(problem.contains("image.tar"), "{problem}");
        assert_eq!(self.left(), Vec::<String>::new(), "{wanted}");
    }

    /// What is there besides locks and what is remembered.
    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join("images")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != "known" && !name.ends_with(".lock")).collect();
        names.sort();
        names
    }

    fn tidy(&self, bytes: u64, count: usize) {
        let images = Images { budget: Budget { bytes, count }, ..Images::new(&self.images.dir, Budget::default()) };
        images.tidy().into_iter().for_each(|step| assert_eq!(step.error, None, "{}", step.step));
    }
}

fn digest_name(image: &Image) -> String {
    image.digest.strip_prefix("sha256:").unwrap().to_owned()
}

#[test]
fn files_links_and_modes_arrive() {
    let mut case = Case::new();
    case.add(EntryType::Directory, "closed/", "", 0o555, "");
    case.add(EntryType::Regular, "./closed/file", "", 0o4755, "hello");
    case.add(EntryType::Symlink, "link", "/closed", 0o777, "");
    case.add(EntryType::Regular, "link/through", "", 0o644, "by a link inside");
    case.add(EntryType::Link, "hard", "closed/file", 0o644, "");
    case.add(EntryType::Char, "device", "", 0o666, "");
    case.add(EntryType::Block, "disk", "", 0o666, "");
    case.add(EntryType::Fifo, "pipe", "", 0o622, "");
    case.add(EntryType::Regular, "missing/folders/file", "", 0o644, "");
    let image = case.unpack().unwrap();
    let mode = |name: &str| image.root.join(name).symlink_metadata().unwrap().mode() & 0o7777;
    assert_eq!(fs::read_to_string(image.root.join("closed/file")).unwrap(), "hello");
    assert_eq!(mode("closed/file"), 0o755, "set-id bits are dropped without owners");
    assert_eq!((mode("closed"), mode("pipe")), (0o755, 0o622));
    assert!(image.root.join("closed/through").exists() && image.root.join("missing/folders/file").exists());
    assert_eq!(fs::metadata(image.root.join("hard")).unwrap().nlink(), 2);
    assert!(!image.root.join("device").exists() && !image.root.join("disk").exists());
    assert!(image.root.join("pipe").metadata().unwrap().file_type().is_fifo());
    let said = std::process::Command::new("sha256sum").arg(case.tar()).output().unwrap();
    assert_eq!(image.digest, format!("sha256:{}", &String::from_utf8(said.stdout).unwrap()[..64]));
    fs::write(image.root.join("marker"), "").unwrap();
    let again = case.get(&Stop::default()).unwrap();
    assert!(again.root.join("marker").exists(), "it was unpacked a second time");
}

#[test]
fn owners_and_set_id_bits_are_kept_for_root_alone() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut case = Case::new();
    case.owners = true;
    case.add_owned(EntryType::Regular, "tool", "", 0o6755, "x", (7, 8));
    case.add_owned(EntryType::Directory, "closed/", "", 0o3000, "", (7, 8));
    case.add_owned(EntryType::Regular, "closed/file", "", 0o600, "x", (0, 0));
    case.add_owned(EntryType::Symlink, "link", "tool", 0o777, "", (9, 9));
    let image = case.unpack().unwrap();
    let of = |name: &str| {
        let meta = image.root.join(name).symlink_metadata().unwrap();
        (meta.mode() & 0o7777, meta.uid(), meta.gid())
    };
    assert_eq!((of("tool"), of("closed")), ((0o6755, 7, 8), (0o3000, 7, 8)));
    assert_eq!((of("link").1, of("closed/file")), (9, (0o600, 0, 0)));
    for owner in [(65_536, 0), (0, 1 << 40)] {
        let mut case = Case::new();
        case.owners = true;
        case.add_owned(EntryType::Regular, "x", "", 0o644, "", owner);
        case.refused("above 65535");
    }
}

#[test]
fn attributes_and_capabilities_are_left_out() {
    let mut case = Case::new();
    let capability: &[u8] = &[1, 0, 0, 2, 0, b'\n', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let overlay: &[u8] = b"/etc";
    let records = [("SCHILY.xattr.security.capability", capability), ("SCHILY.xattr.user.overlay.redirect", overlay)];
    case.builder.append_pax_extensions(records).unwrap();
    case.add(EntryType::Regular, "file", "", 0o755, "x");
    let image = case.unpack().unwrap();
    let mut list = [0u8; 256];
    let length = rustix::fs::listxattr(image.root.join("file"), &mut list[..]).unwrap();
    assert_eq!(String::from_utf8_lossy(&list[..length]), "");
}

#[test]
fn nothing_leads_out() {
    for name in ["../escaped", "a/../../escaped"] {
        let mut case = Case::new();
        case.add(EntryType::Regular, name, "", 0o644, "x").refused("leads upwards");
        assert!(!case.dir.path().join("escaped").exists() && !case.dir.path().join("images/escaped").exists());
    }
    let outside = tempfile::tempdir().unwrap();
    let out = outside.path().to_str().unwrap();
    let mut case = Case::new();
    case.add(EntryType::Symlink, "out", out, 0o777, "");
    case.add(EntryType::Symlink, "up", "../../../../../../../../../..", 0o777, "");
    case.add(EntryType::Regular, "up/tmp/holm-escaped-by-a-link", "", 0o644, "x");
    case.add(EntryType::Regular, "/absolute", "", 0o644, "x");
    let image = case.unpack().unwrap();
    assert!(image.root.join("absolute").exists() && image.root.join("tmp/holm-escaped-by-a-link").exists());
    assert!(!Path::new("/tmp/holm-escaped-by-a-link").exists());
    let mut case = Case::new();
    // The link leads to a path that does not exist within the image.
    case.add(EntryType::Symlink, "out", out, 0o777, "");
    assert!(case.add(EntryType::Regular, "out/escaped", "", 0o644, "x").unpack().is_err());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    let mut case = Case::new();
    case.add(EntryType::Link, "shadow", "/etc/shadow", 0o644, "").refused("which is not there");
    let mut case = Case::new();
    case.add(EntryType::Symlink, "way", "/etc", 0o777, "");
    case.add(EntryType::Link, "shadow", "way/shadow", 0o644, "").refused("which is not there");
}

#[test]
fn what_comes_twice_is_what_came_last() {
    let mut case = Case::new();
    case.add(EntryType::Regular, "x", "", 0o644, "first").add(EntryType::Link, "other", "x", 0o644, "");
    case.add(EntryType::Regular, "x", "", 0o600, "second");
    case.add(EntryType::Link, "other", "other", 0o644, "");
    case.add(EntryType::Symlink, "d", "/etc", 0o777, "").add(EntryType::Directory, "d/", "", 0o755, "");
    case.add(EntryType::Regular, "d/inside", "", 0o644, "");
    let image = case.unpack().unwrap();
    assert_eq!(fs::read_to_string(image.root.join("x")).unwrap(), "second");
    assert_eq!(fs::read_to_string(image.root.join("other")).unwrap(), "first");
    assert!(image.root.join("d").symlink_metadata().unwrap().is_dir() && image.root.join("d/inside").exists());
    let mut case = Case::new();
    case.add(EntryType::Directory, "d/", "", 0o755, "");
    case.add(EntryType::Regular, "d", "", 0o644, "").refused("an earlier entry made a folder there");
}

#[test]
fn what_is_no_archive_is_refused_and_leaves_nothing() {
    for (content, expected) in
        [(&[0x1f, 0x8b, 8, 0][..], "gzip"), (b"", "empty"), (&[7; 2048], "no tar archive"), (&[0; 1024], "empty")]
    {
        let case = Case::new();
        fs::write(case.tar(), content).unwrap();
        let problem = case.get(&Stop::default()).unwrap_err().to_string();
        assert!(problem.contains(expected), "{problem}");
        assert_eq!(case.left(), Vec::<String>::new());
    }
    let mut case = Case::new();
    case.add(EntryType::Regular, "a", "", 0o644, "x")
        .add(EntryType::new(b'?'), "b", "", 0o644, "")
        .refused("not taken");
    case.add(EntryType::Regular, ".", "", 0o644, "").refused("is the root and no folder");
    case.add(EntryType::Link, "x", "./", 0o644, "").refused("link to the root");
}

#[test]
fn limits_hold() {
    let mut case = Case::new();
    case.images.limits = Limits { entries: 4, bytes: 10, ..LIMITS };
    case.add(EntryType::Regular, "a", "", 0o644, "12345").add(EntryType::Regular, "b", "", 0o644, "123456");
    case.refused("more than 10 bytes");
    // Folders that are made on the way are files and folders too.
    case.add(EntryType::Regular, "a/b/c/d/e", "", 0o644, "").refused("more than 4 files and folders");
    case.add(EntryType::GNULongName, "l", "", 0o644, &"a".repeat(4_097)).add(EntryType::Regular, "x", "", 0o644, "");
    case.refused("longer than 4096 bytes");
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::XHeader);
    header.set_size(2 << 20);
    header.set_cksum();
    case.builder.append(&header, &vec![b'x'; 2 << 20][..]).unwrap();
    case.refused("described by something longer than 1048576 bytes");
}

#[test]
fn a_few_bytes_with_a_large_hole_take_few_bytes() {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNUSparse);
    header.as_gnu_mut().unwrap().name[..5].copy_from_slice(b"holes");
    header.as_gnu_mut().unwrap().realsize.copy_from_slice(b"20000000000\0"); // 2 GiB
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_cksum();
    let mut case = Case::new();
    case.builder.append(&header, &b""[..]).unwrap();
    let image = case.unpack().unwrap();
    let meta = fs::metadata(image.root.join("holes")).unwrap();
    assert_eq!((meta.len(), meta.blocks()), (2 << 30, 0));
    let mut case = Case::new();
    case.images.limits.bytes = 1 << 30;
    case.builder.append(&header, &b""[..]).unwrap();
    case.refused("more than 1073741824 bytes");
}

impl Case {
    #[track_caller]
    fn is_stopped_within(&self, stop: Stop, patience: Duration) {
        let stopper = thread::spawn({
            let stop = stop.clone();
            move || {
                thread::sleep(Duration::from_millis(100));
                stop.stop();
                Instant::now()
            }
        });
        let result = self.get(&stop);
        let since = stopper.join().unwrap().elapsed();
        assert!(matches!(result, Err(Error::Stopped)), "{result:?}");
        assert!(since < patience, "it took {since:?}");
    }
}

#[test]
fn unpacking_stops_when_it_is_told_and_leaves_nothing() {
    let mut case = Case::new();
    for n in 0..60_000 {
        case.add(EntryType::Regular, &format!("{n}"), "", 0o644, "x");
    }
    case.write();
    case.is_stopped_within(Stop::default(), Duration::from_secs(10));
    let stop = Stop::default();
    stop.stop();
    assert!(matches!(case.get(&stop), Err(Error::Stopped)));
    // After all: what was stopped hinders nobody.
    let mut case = Case { builder: Builder::new(Vec::new()), ..case };
    assert_eq!(case.left().iter().filter(|name| name.starts_with("unfinished")).count(), 0);
    case.add(EntryType::Regular, "a", "", 0o644, "x").unpack().unwrap();
}

#[test]
fn who_waits_for_another_one_stops_too() {
    let mut case = Case::new();
    case.add(EntryType::Regular, "a", "", 0o644, "x");
    let image = case.unpack().unwrap();
    let mut lock = Lock::open(&case.images.dir, &digest_name(&image)).unwrap();
    drop(image);
    assert!(lock.try_own().unwrap());
    case.is_stopped_within(Stop::default(), Duration::from_secs(5));
    let late = Watch { stop: &Stop::default(), until: Instant::now() };
    let problem = Lock::open(&case.images.dir, &"0".repeat(64)).unwrap().share(&late).unwrap_err().to_string();
    assert!(problem.contains("not unpacked within 900 s"), "{problem}");
}

#[test]
fn many_at_once_unpack_it_once() {
    let mut case = Case::new();
    for n in 0..200 {
        case.add(EntryType::Regular, &format!("{n}"), "", 0o644, "x");
    }
    case.write();
    let inodes = std::sync::Mutex::new(std::collections::BTreeSet::new());
    let made = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let image = case.get(&Stop::default()).unwrap();
                inodes.lock().unwrap().insert(fs::metadata(image.root.join("7")).unwrap().ino());
                made.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    assert_eq!((made.into_inner(), inodes.into_inner().unwrap().len()), (8, 1));
}

#[test]
fn what_a_crash_left_is_no_image_and_goes() {
    let mut case = Case::new();
    case.add(EntryType::Regular, "a", "", 0o644, "whole");
    let image = case.unpack().unwrap();
    let digest = digest_name(&image);
    let folder = case.images.dir.join(&digest);
    drop(image);
    // Part of it, as a removal or a power cut may leave it.
    fs::remove_file(folder.join("bytes")).unwrap();
    fs::write(folder.join("root/a"), "half").unwrap();
    let again = case.get(&Stop::default()).unwrap();
    assert_eq!(fs::read_to_string(again.root.join("a")).unwrap(), "whole");
    drop(again);
    let others = ["1", "2", "3"].map(|digit| digit.repeat(64));
    for half in [format!("unfinished-{}", others[0]), format!("gone-{}", others[1]), others[2].clone()] {
        fs::create_dir_all(case.images.dir.join(half).join("root/deep")).unwrap();
    }
    case.tidy(u64::MAX, 10);
    assert_eq!(case.left(), [digest]);
    for other in others {
        assert!(!case.images.dir.join(format!("{other}.lock")).exists());
    }
}

#[test]
fn what_is_being_unpacked_is_left_alone() {
    let case = Case::new();
    let (dir, digest) = (case.images.open_dir().unwrap(), "a".repeat(64));
    let unfinished = dir.join(format!("unfinished-{digest}"));
    fs::create_dir_all(&unfinished).unwrap();
    let mut lock = Lock::open(&dir, &digest).unwrap();
    assert!(lock.try_own().unwrap());
    case.tidy(0, 0);
    assert!(unfinished.exists());
    drop(lock);
    case.tidy(0, 0);
    assert!(!unfinished.exists());
}

#[test]
fn the_least_recently_used_go_first_and_none_in_use() {
    let mut case = Case::new();
    let mut images = Vec::new();
    for content in ["one", "two", "three", "four"] {
        images.push(case.add(EntryType::Regular, content, "", 0o644, content).unpack().unwrap());
    }
    let digests: Vec<String> = images.iter().map(digest_name).collect();
    for (n, digest) in digests.iter().enumerate() {
        let lock = File::options().write(true).open(case.images.dir.join(format!("{digest}.lock"))).unwrap();
        lock.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_000 + n as u64)).unwrap();
    }
    let left = |wanted: &[usize]| {
        let mut wanted: Vec<String> = wanted.iter().map(|n| digests[*n].clone()).collect();
        wanted.sort();
        assert_eq!(case.left(), wanted);
    };
    case.tidy(0, 0);
    left(&[0, 1, 2, 3]);
    let first = images.remove(0);
    images.clear();
    case.tidy(u64::MAX, 3);
    left(&[0, 2, 3]);
    drop(first);
    // Using it makes it the last one to go.
    Lock::open(&case.images.dir, &digests[2]).unwrap().touch().unwrap();
    let each = shelf::size_of(&case.images.dir, &digests[2]).unwrap();
    case.tidy(each * 3 / 2, 100);
    left(&[2]);
    case.tidy(0, 100);
    left(&[]);
    assert!(!case.images.dir.join(format!("{}.lock", digests[2])).exists());
}

#[test]
fn a_lock_that_was_removed_locks_nothing() {
    let case = Case::new();
    let dir = case.images.open_dir().unwrap();
    let digest = "b".repeat(64);
    let (mut first, mut second) = (Lock::open(&dir, &digest).unwrap(), Lock::open(&dir, &digest).unwrap());
    assert!(first.try_own().unwrap());
    first.remove().unwrap();
    drop(first);
    assert!(!second.try_own().unwrap(), "it is another file now");
    assert!(second.try_own().unwrap());
    assert!(!Lock::open(&dir, &digest).unwrap().try_own().unwrap());
}

#[test]
fn a_change_within_one_tick_is_seen() {
    // Not one byte of the size, and as fast as can be: some of these changes leave the times as they were.
    let case = Case::new();
    let mut file = File::options().create(true).truncate(true).write(true).open(case.tar()).unwrap();
    let archive = |content: &str| {
        let mut other = Case::new();
        other.add(EntryType::Regular, "x", "", 0o644, content);
        other.builder.into_inner().unwrap()
    };
    let (one, two) = (archive("one"), archive("two"));
    for _ in 0..50 {
        for (bytes, content) in [(&one, "one"), (&two, "two")] {
            file.rewind().unwrap();
            std::io::Write::write_all(&mut file, bytes).unwrap();
            let image = case.get(&Stop::default()).unwrap();
            assert_eq!(fs::read_to_string(image.root.join("x")).unwrap(), content);
        }
    }
    assert_eq!(fs::read_dir(case.images.dir.join("known")).unwrap().count(), 0, "it changed a moment ago");
}

#[test]
fn what_was_unpacked_is_what_the_digest_is_of() {
    let mut case = Case::new();
    case.add(EntryType::Regular, "x", "", 0o644, "good");
    case.write();
    let dir = case.images.open_dir().unwrap();
    let watch = Watch { stop: &Stop::default(), until: Instant::now() + Duration::from_secs(60) };
    let good = digest::digest(&dir.join("known"), &mut File::open(case.tar()).unwrap(), &watch).unwrap();
    // Another archive comes into its place between the look and the unpacking, and goes before anybody looks again.
    case.add(EntryType::Regular, "x", "", 0o644, "evil").write();
    let mut file = File::open(case.tar()).unwrap();
    let problem =
        make(&dir, &good, &watch, &mut |unfinished| case.images.fill(unfinished, &good, &mut file, false, &watch))
            .unwrap_err()
            .to_string();
    assert!(problem.contains("changed while it was unpacked"), "{problem}");
    assert_eq!(case.left(), Vec::<String>::new());
}

#[test]
fn an_image_is_on_the_disk_before_it_is_one() {
    let mut case = Case::new();
    case.add(EntryType::Regular, "x", "", 0o644, &"x".repeat(1 << 20));
    let image = case.unpack().unwrap();
    match dirty_pages(&image.root.join("x")) {
        Some(dirty) => assert_eq!(dirty, 0, "a power cut would leave it without its content"),
        None => eprintln!("this kernel does not tell (cachestat(2), Linux 6.5)"),
    }
}

/// Pages of a file that wait to be written, or are being written (cachestat(2)).
#[allow(unsafe_code)]
fn dirty_pages(path: &Path) -> Option<u64> {
    const SYS_CACHESTAT: libc::c_long = 451;
    let file = File::open(path).unwrap();
    let (range, mut stat) = ([0u64, 0], [0u64; 5]);
    // SAFETY: both arrays have the sizes of `struct cachestat_range` and `struct cachestat`, and outlive the call.
    let result = unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), range.as_ptr(), stat.as_mut_ptr(), 0) };
    let [_cached, dirty, writeback, ..] = stat;
    (result == 0).then_some(dirty + writeback)
}

#[test]
fn a_link_in_place_of_the_folder_is_resolved_once() {
    let mut case = Case::new();
    fs::create_dir(case.dir.path().join("real")).unwrap();
    symlink("real", case.dir.path().join("images")).unwrap();
    let image = case.add(EntryType::Regular, "x", "", 0o644, "").unpack().unwrap();
    assert!(image.root.starts_with(case.dir.path().canonicalize().unwrap().join("real")));
}

#[test]
fn who_waits_to_make_an_image_uses_the_one_that_another_has_made_and_keeps() {
    let dir = tempfile::tempdir().unwrap();
    let images = Images::new(dir.path(), Budget::default());
    let digest = "a".repeat(64);
    let stop = Stop::default();
    let watch = Watch { stop: &stop, until: Instant::now() + READY_WITHIN };
    let mut other = Lock::open(dir.path(), &digest).unwrap();
    other.share(&watch).unwrap();
    let get = || images.get_passing(&digest, &stop, |_| Ok(1));
    let (first, second) = std::thread::scope(|scope| {
        let (first, second) = (scope.spawn(get), scope.spawn(get));
        // Both have seen by then that there is none, and wait for the one who shares its lock.
        std::thread::sleep(Duration::from_millis(300));
        drop(other);
        let given_up_at = Instant::now() + Duration::from_secs(20);
        while !(first.is_finished() && second.is_finished()) {
            if Instant::now() > given_up_at {
                stop.stop();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // Each result holds the lock of its image, the first one until the second is there.
        (first.join().unwrap(), second.join().unwrap())
    });
    assert_eq!(first.unwrap().root, second.unwrap().root);
}
