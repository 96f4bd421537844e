//! Real archives against real directories.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};
use std::{
    io::{Seek as _, SeekFrom},
    os::unix::ffi::OsStrExt as _,
};

use proptest::prelude::*;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tar::EntryType;
use tempfile::TempDir;

use super::*;

/// An entry as a hostile sandbox would write it: the `tar` crate refuses to write some of these names.
#[derive(Debug, Clone)]
struct Entry {
    name: Vec<u8>,
    kind: EntryType,
    mode: u32,
    link: &'static str,
    bytes: Vec<u8>,
    record: Option<(&'static str, &'static [u8])>,
}

fn file(name: &str, bytes: &str) -> Entry {
    Entry { name: name.into(), kind: EntryType::Regular, mode: 0o644, link: "", bytes: bytes.into(), record: None }
}

/// A deletion, as overlayfs writes it: the character device 0:0.
fn deleted(name: &str) -> Entry {
    of_kind(name, EntryType::Char)
}

/// A directory that hides what was in it.
fn opaque(name: &str) -> Entry {
    Entry { record: Some((holm_wire::guest_api::CHANGES_OPAQUE, b"y")), ..dir(name) }
}

fn dir(name: &str) -> Entry {
    Entry { kind: EntryType::Directory, mode: 0o755, ..file(name, "") }
}

fn link(name: &str, target: &'static str) -> Entry {
    Entry { kind: EntryType::Symlink, link: target, ..file(name, "") }
}

fn of_kind(name: &str, kind: EntryType) -> Entry {
    Entry { kind, ..file(name, "") }
}

fn header(entry: &Entry) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(entry.kind);
    header.set_mode(entry.mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(entry.bytes.len() as u64);
    header.set_device_major(0).unwrap();
    header.set_device_minor(0).unwrap();
    header.as_old_mut().name[..entry.name.len()].copy_from_slice(&entry.name);
    header.as_old_mut().linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
    header.set_cksum();
    header
}

fn archive(entries: &[Entry]) -> File {
    let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
    for entry in entries {
        builder.append_pax_extensions(entry.record).unwrap();
        builder.append(&header(entry), entry.bytes.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A directory of the user, and beside it one that nothing may get into.
struct Host {
    dir: TempDir,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for made in ["work/src", "work/old/deep", "outside"] {
            fs::create_dir_all(dir.path().join(made)).unwrap();
        }
        for (path, text) in [("work/a", "before"), ("work/old/deep/x", "x"), ("outside/secret", "secret")] {
            fs::write(dir.path().join(path), text).unwrap();
        }
        Self { dir }
    }

    fn work(&self) -> std::path::PathBuf {
        self.dir.path().join("work")
    }

    fn write_back(&self, entries: &[Entry]) -> anyhow::Result<Vec<String>> {
        let lines = std::cell::RefCell::new(Vec::new());
        write_back(archive(entries), &self.work(), |line| lines.borrow_mut().push(line.to_owned()))?;
        Ok(lines.into_inner())
    }

    /// Everything there is, links and modes included.
    fn picture(&self) -> Vec<String> {
        fn walk(dir: &Path, seen: &mut Vec<String>) {
            for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                let (path, kind) = (entry.path(), entry.file_type().unwrap());
                let what = if kind.is_file() { fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
                let mode = entry.metadata().unwrap().mode();
                seen.push(format!("{} {mode:o} {what}", path.display()));
                if kind.is_dir() {
                    walk(&path, seen);
                }
            }
        }
        let mut seen = Vec::new();
        walk(self.dir.path(), &mut seen);
        seen.sort();
        seen
    }

    /// The archive is refused for a reason with `wanted` in it, though it has a good entry first, and nothing changed.
    fn refuses(&self, mut entries: Vec<Entry>, wanted: &str) {
        entries.insert(0, file("good", "good"));
        let before = self.picture();
        let problem = format!("{:#}", self.write_back(&entries).unwrap_err());
        assert!(problem.contains(wanted), "{problem:?} does not say {wanted:?}");
        assert_eq!(self.picture(), before, "something was written ({problem})");
    }
}

#[test]
fn creates_changes_deletes_and_lists_it() {
    let host = Host::new();
    let work = host.work();
    fs::create_dir(work.join("opaque")).unwrap();
    fs::write(work.join("opaque/gone"), "").unwrap();
    fs::write(work.join("becomes-dir"), "").unwrap();
    fs::create_dir(work.join("becomes-file")).unwrap();
    let lines = host.write_back(&[
        dir("./"),
        Entry { mode: 0o755, ..file("./a", "after") },
        Entry { mode: 0o500, ..opaque("new") },
        file("new/b", "b"),
        link("new/up", "../a"),
        Entry { kind: EntryType::Link, link: "a", ..file("same", "") },
        deleted("old"),
        deleted("never-there"),
        opaque("opaque/"),
        file("opaque/here", ""),
        opaque("becomes-dir"),
        file("becomes-dir/c", "c"),
        file("becomes-file", "f"),
    ]);
    let lines = lines.unwrap();
    assert_eq!(fs::read_to_string(work.join("a")).unwrap(), "after");
    assert_eq!(fs::metadata(work.join("a")).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(work.join("new")).unwrap().permissions().mode() & 0o7777, 0o500);
    assert_eq!(fs::read_to_string(work.join("new/up")).unwrap(), "after");
    assert_eq!(fs::metadata(work.join("same")).unwrap().ino(), fs::metadata(work.join("a")).unwrap().ino());
    assert!(!work.join("old").exists() && work.join("src").exists());
    let opaque: Vec<_> = fs::read_dir(work.join("opaque")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(opaque, ["here"]);
    assert_eq!(fs::read_to_string(work.join("becomes-dir/c")).unwrap(), "c");
    assert_eq!(fs::read_to_string(work.join("becomes-file")).unwrap(), "f");
    for line in
        ["changed a", "new     new/", "new     new/b", "new     new/up -> ../a", "deleted old", "emptied opaque/"]
    {
        assert!(lines.iter().any(|told| told == line), "{line:?} is not in {lines:?}");
    }
    assert!(
        !lines.iter().any(|told| told.starts_with("emptied new")),
        "what was not there cannot be emptied: {lines:?}"
    );
    let names: Vec<_> = fs::read_dir(&work).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().starts_with(".holm-")), "{names:?}");
}

#[test]
fn names_that_leave_are_refused() {
    let host = Host::new();
    host.refuses(vec![file("/etc/passwd", "")], "absolute");
    host.refuses(vec![file("../outside/x", "")], "`..`");
    host.refuses(vec![file("src/../../outside/x", "")], "`..`");
    host.refuses(vec![file("src/..", "")], "`..`");
    host.refuses(vec![deleted("../outside/secret")], "`..`");
    host.refuses(vec![deleted("./")], "the directory itself");
    host.refuses(vec![opaque("./")], "empties the directory itself");
    host.refuses(vec![file("./", "x")], "the directory itself");
}

#[test]
fn links_that_leave_are_refused() {
    let host = Host::new();
    for target in ["/etc/passwd", "..", "../outside/secret", "src/../../outside", "src/.."] {
        host.refuses(vec![link("l", target)], "link that leaves");
    }
    host.refuses(vec![link("src/l", "../../outside")], "link that leaves");
    host.refuses(vec![link("l", ".git/config")], ".git");
    let other_name = |target| Entry { kind: EntryType::Link, link: target, ..file("l", "") };
    host.refuses(vec![other_name("/etc/passwd")], "absolute");
    host.refuses(vec![other_name("../outside/secret")], "`..`");
    host.refuses(vec![other_name("a")], "no file of the archive");
}

#[test]
fn modes_and_kinds_that_give_power_are_refused() {
    let host = Host::new();
    for mode in [0o4755, 0o2755, 0o6755] {
        host.refuses(vec![Entry { mode, ..file("x", "") }], "set-id");
        host.refuses(vec![Entry { mode, ..dir("x") }], "set-id");
        host.refuses(vec![Entry { mode, ..dir("src") }], "set-id");
        host.refuses(vec![Entry { mode, ..link("x", "a") }], "set-id");
    }
    host.refuses(vec![of_kind("x", EntryType::new(holm_wire::guest_api::CHANGES_SOCKET))], "is a socket");
    for record in [("SCHILY.xattr.security.capability", &b"\x01\0\0\x02\n"[..]), ("SCHILY.acl.access", b"user::rwx")] {
        host.refuses(vec![Entry { record: Some(record), ..file("x", "") }], "extended attributes");
        host.refuses(vec![Entry { record: Some(record), ..dir("x") }], "extended attributes");
    }
    host.refuses(vec![Entry { kind: EntryType::Regular, ..opaque("x") }], "extended attributes");
    host.refuses(vec![of_kind("x", EntryType::Block)], "device");
    host.refuses(vec![of_kind("x", EntryType::Fifo)], "named pipe");
    host.refuses(vec![of_kind("x", EntryType::new(b'?'))], "not taken");
    // A few bytes of a sparse file can stand for more than any disk holds.
    host.refuses(vec![of_kind("x", EntryType::GNUSparse)], "");
}

#[test]
fn numbers_of_devices_tell_them_from_deletions() {
    let host = Host::new();
    for (major, minor) in [(0, 1), (1, 0), (1, 3)] {
        let mut header = header(&deleted("a"));
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header.set_cksum();
        let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
        builder.append(&header, &b""[..]).unwrap();
        let problem = write_back(builder.into_inner().unwrap(), &host.work(), |_| {}).unwrap_err().to_string();
        assert!(problem.contains("`a` is a device"), "{problem}");
    }
    assert!(host.work().join("a").exists());
}

#[test]
fn a_file_may_have_any_name() {
    let host = Host::new();
    for name in [".wh.a", ".wh..wh..opq", "src/.wh.x", ".wh."] {
        host.write_back(&[file(name, "mine")]).unwrap();
        assert_eq!(fs::read_to_string(host.work().join(name)).unwrap(), "mine");
    }
    assert_eq!(fs::read_to_string(host.work().join("a")).unwrap(), "before", "it was taken for a deletion");
    let strange = std::path::PathBuf::from(std::ffi::OsStr::from_bytes(b"caf\xe9\n\x1b[2J"));
    let path = host.work().join(&strange);
    let lines = host.write_back(&[Entry { name: strange.as_os_str().as_bytes().to_vec(), ..file("", "x") }]).unwrap();
    assert_eq!(lines, ["new     caf\\xe9\\n\\u{1b}[2J"]);
    assert!(path.exists());
    host.write_back(&[Entry { name: strange.as_os_str().as_bytes().to_vec(), ..deleted("") }]).unwrap();
    assert!(!path.exists(), "a name that is not UTF-8 was not deleted");
    let long = format!("{}\n{}", "n".repeat(120), "m".repeat(30));
    let record: &'static [u8] = Box::leak(long.clone().into_bytes().into());
    host.write_back(&[Entry { record: Some(("path", record)), ..file("n", "x") }]).unwrap();
    assert!(host.work().join(&long).exists() && !host.work().join("n").exists());
}

#[test]
fn the_umask_is_obeyed_and_special_bits_are_the_users_own() {
    let host = Host::new();
    let mode = |name: &str| fs::metadata(host.work().join(name)).unwrap().permissions().mode() & 0o7777;
    let set = |name: &str, mode| fs::set_permissions(host.work().join(name), fs::Permissions::from_mode(mode)).unwrap();
    set("a", 0o664);
    set("src", 0o2770);
    fs::create_dir(host.work().join("sticky")).unwrap();
    set("sticky", 0o1777);
    let archive = archive(&[
        Entry { mode: 0o666, ..file("new", "") },
        Entry { mode: 0o777, ..file("tool", "") },
        Entry { mode: 0o664, ..file("a", "after") },
        Entry { mode: 0o777, ..file("old/deep/x", "") },
        Entry { mode: 0o777, ..dir("dir") },
        Entry { mode: 0o1777, ..dir("dir/sticky") },
        Entry { mode: 0o2775, ..dir("src") },
        // As they are made in a directory that hands its bit on.
        Entry { mode: 0o2755, ..dir("src/new") },
        Entry { mode: 0o2755, ..dir("src/new/deeper") },
        Entry { mode: 0o777, ..dir("sticky") },
    ]);
    let root = plan::open_root(&host.work()).unwrap();
    let changes = plan::read(&archive, &root).unwrap();
    apply::apply(&archive, &root, &changes, 0o027).unwrap();
    let modes = ["new", "tool", "a", "old/deep/x", "dir", "dir/sticky"].map(mode);
    assert_eq!(modes, [0o640, 0o750, 0o664, 0o754, 0o750, 0o750]);
    assert_eq!((mode("src"), mode("sticky")), (0o2770, 0o1777), "what the user set stays");
    assert_eq!((mode("src/new"), mode("src/new/deeper")), (0o2750, 0o2750));
    host.refuses(vec![Entry { mode: 0o6755, ..dir("src/other") }], "set-id");
    host.refuses(vec![Entry { mode: 0o2755, ..file("src/other", "") }], "set-id");
}

#[test]
fn every_refusal_is_told_up_to_a_limit() {
    let host = Host::new();
    let mut entries: Vec<Entry> = (0..30).map(|n| of_kind(&format!("pipe-{n}"), EntryType::Fifo)).collect();
    entries.push(file("fine", ""));
    let problem = host.write_back(&entries).unwrap_err().to_string();
    assert!(
        problem.starts_with("refused, and nothing was written: `pipe-0` is a named pipe; `pipe-1` is"),
        "{problem}"
    );
    assert!(problem.ends_with("`pipe-19` is a named pipe; and 10 more"), "{problem}");
    assert!(!host.work().join("fine").exists());
}

#[test]
fn repositories_are_not_touched() {
    let host = Host::new();
    for name in [".git/config", "src/.git/hooks/pre-commit", "src/.GIT", "a-b/c/.Git/x"] {
        host.refuses(vec![file(name, "")], ".git");
    }
    for name in [".git", "git~1", ".git.", ".GIT/x", ".g\u{200c}it/config", ".git::$INDEX_ALLOCATION/config"] {
        host.refuses(vec![file(name, "gitdir: evil")], ".git");
        host.refuses(vec![link("l", Box::leak(name.to_owned().into_boxed_str()))], ".git");
    }
    host.refuses(vec![deleted("src/.git")], ".git");
    host.refuses(vec![deleted(".git/config")], ".git");
    fs::create_dir(host.work().join("old/deep/.git")).unwrap();
    host.refuses(vec![deleted("old")], "`.git` below");
    host.refuses(vec![opaque("old")], "`.git` below");
    host.refuses(vec![file("old", "a file now")], "`.git` below");
    host.refuses(vec![link("old", "src")], "`.git` below");
}

#[test]
fn repositories_of_any_name_are_not_made_and_not_touched() {
    let host = Host::new();
    let whole = [dir("repo"), file("repo/HEAD", "ref: refs/heads/x"), dir("repo/objects"), dir("repo/refs")];
    host.refuses(whole.to_vec(), "`repo` is a git repository");
    host.refuses(whole.iter().chain([&file("repo/config", "[core] fsmonitor = evil")]).cloned().collect(), "`repo` is");
    host.refuses(vec![file("HEAD", ""), dir("objects"), dir("refs")], "`.` is a git repository");
    host.refuses(vec![file("old/head", ""), dir("old/Objects"), link("old/REFS", "deep")], "`old` is a git repository");
    host.refuses(vec![file("x/HEAD", ""), file("x/commondir", "../evil")], "`x` is a git repository");
    // Neither of the two is one, together they are.
    fs::create_dir_all(host.work().join("half/objects")).unwrap();
    fs::create_dir_all(host.work().join("half/refs")).unwrap();
    host.refuses(vec![file("half/HEAD", "")], "`half` is a git repository");
    host.write_back(&[file("half/config", ""), dir("x"), file("x/HEAD", ""), dir("x/objects")]).unwrap();
    // One that is the user's own.
    fs::write(host.work().join("half/HEAD"), "ref: refs/heads/main").unwrap();
    host.refuses(vec![file("half/hooks/post-receive", "evil")], "`half` is a git repository");
    host.refuses(vec![file("half/config", "evil")], "`half` is a git repository");
    host.refuses(vec![deleted("half/HEAD"), file("half/config", "")], "`half` is a git repository");
    host.refuses(vec![deleted("half")], "is or has a git repository");
    host.refuses(vec![file("half", "a file now")], "is or has a git repository");
    host.refuses(vec![opaque("half")], "is or has a git repository");
    host.write_back(&[file("beside", "")]).unwrap();
}

#[test]
fn wide_directories_need_few_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let host = Host::new();
    for n in 0..1_000 {
        fs::create_dir_all(host.work().join(format!("old/{n}"))).unwrap();
    }
    // Enough for every test of this program at once, and not for a descriptor a directory.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(600), ..limit }).unwrap();
    let outcome = host.write_back(&[deleted("old")]);
    setrlimit(Resource::Nofile, limit).unwrap();
    outcome.unwrap();
    assert!(!host.work().join("old").exists());
}

#[test]
fn contradictions_are_refused() {
    let host = Host::new();
    host.refuses(vec![file("x", "1"), file("./x", "2")], "twice");
    host.refuses(vec![file("x", "1"), deleted("x")], "twice");
    host.refuses(vec![file("x", "1"), dir("x")], "twice");
    host.refuses(vec![dir("d"), opaque("d")], "twice");
    host.refuses(vec![link("l", "src"), file("l/x", "")], "no directory");
    host.refuses(vec![file("x", ""), file("x/y", "")], "no directory");
}

#[test]
fn what_is_cut_off_or_too_large_is_refused() {
    let host = Host::new();
    let before = host.picture();
    let whole = archive(&[file("a", "after"), file("b", &"b".repeat(5_000))]);
    for length in [512 + 3, 1024 + 512 + 100, 1024 + 512 + 4_999] {
        whole.set_len(whole.metadata().unwrap().len().min(1024 + 512 + 5_120)).unwrap();
        let cut = tempfile::tempfile().unwrap();
        std::io::copy(&mut std::io::Read::take(rewound(&whole), length), &mut &cut).unwrap();
        let problem = format!("{:#}", write_back(cut, &host.work(), |_| {}).unwrap_err());
        assert!(problem.contains("read") || problem.contains("cut off"), "{problem}");
    }
    // It says that it has more bytes than all of the archive, and than any archive.
    for (size, wanted) in [(1 << 31, "cut off"), (1 << 40, "more than 4294967296 bytes")] {
        let mut liar = header(&file("liar", ""));
        liar.set_size(size);
        liar.set_cksum();
        let mut lying = tempfile::tempfile().unwrap();
        lying.write_all(liar.as_bytes()).unwrap();
        lying.write_all(&[0; 4096]).unwrap();
        let problem = format!("{:#}", write_back(lying, &host.work(), |_| {}).unwrap_err());
        assert!(problem.contains(wanted), "{problem}");
    }
    // A name for which memory would be taken.
    let mut long = Entry { kind: EntryType::GNULongName, ..file("././@LongLink", "") };
    long.bytes = vec![b'a'; 1 << 20];
    let problem = format!("{:#}", write_back(archive(&[long, file("x", "")]), &host.work(), |_| {}).unwrap_err());
    assert!(problem.contains("longer"), "{problem}");
    assert_eq!(host.picture(), before);
}

fn rewound(file: &File) -> &File {
    let mut file = file;
    file.seek(SeekFrom::Start(0)).unwrap();
    file
}

#[test]
fn links_of_the_host_are_replaced_and_not_followed() {
    let host = Host::new();
    let outside = host.dir.path().join("outside");
    symlink(&outside, host.work().join("way-out")).unwrap();
    symlink(outside.join("secret"), host.work().join("to-secret")).unwrap();
    host.refuses(vec![file("way-out/x", "")], "no directory on the host");
    host.refuses(vec![deleted("way-out/secret")], "cannot be reached");
    host.refuses(vec![dir("way-out/d")], "no directory on the host");
    host.refuses(vec![dir("way-out"), file("way-out/x", "")], "no directory on the host any more");
    host.write_back(&[file("to-secret", "mine"), deleted("way-out")]).unwrap();
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
    assert_eq!(fs::read_to_string(host.work().join("to-secret")).unwrap(), "mine");
    assert!(!host.work().join("way-out").is_symlink());
}

#[test]
fn files_of_several_names_keep_the_others() {
    let host = Host::new();
    let other = host.dir.path().join("outside/other-name");
    fs::hard_link(host.work().join("a"), &other).unwrap();
    host.write_back(&[file("a", "after")]).unwrap();
    assert_eq!(fs::read_to_string(other).unwrap(), "before");
}

#[test]
fn other_names_on_another_file_system_are_copies() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let host = Host::new();
    let elsewhere = host.work().join("src");
    rustix::mount::mount("tmpfs", &elsewhere, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let other_name = Entry { kind: EntryType::Link, link: "a", mode: 0o755, ..file("src/same", "") };
    let written = host.write_back(&[Entry { mode: 0o755, ..file("a", "after") }, other_name]);
    let text = fs::read_to_string(elsewhere.join("same"));
    let mode = fs::metadata(elsewhere.join("same")).map(|stat| stat.mode() & 0o7777);
    let names = fs::read_dir(&elsewhere).unwrap().count();
    rustix::mount::unmount(&elsewhere, rustix::mount::UnmountFlags::DETACH).unwrap();
    written.unwrap();
    assert_eq!((text.unwrap().as_str(), mode.unwrap(), names), ("after", 0o755, 1));
}

#[test]
fn a_link_that_appears_after_the_check_is_not_followed() {
    for change in [file("src/x", "x"), dir("src/x"), link("src/x", "y"), deleted("src/secret")] {
        let host = Host::new();
        let archive = archive(&[change]);
        let root = plan::open_root(&host.work()).unwrap();
        let changes = plan::read(&archive, &root).unwrap();
        fs::remove_dir(host.work().join("src")).unwrap();
        symlink(host.dir.path().join("outside"), host.work().join("src")).unwrap();
        let outcome = apply::apply(&archive, &root, &changes, 0o022);
        assert!(outcome.is_err(), "{changes:?}");
        let outside: Vec<_> = fs::read_dir(host.dir.path().join("outside")).unwrap().collect();
        assert_eq!(outside.len(), 1, "{changes:?} got out");
    }
}

#[test]
fn links_that_come_and_go_lead_nobody_out() {
    let host = Host::new();
    let (inside, outside) = (host.work().join("src"), host.dir.path().join("outside"));
    let decoy = host.work().join("decoy");
    symlink(&outside, &decoy).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                renameat_with(CWD, &inside, CWD, &decoy, RenameFlags::EXCHANGE).unwrap();
            }
        });
        for _ in 0..300 {
            // Whether it comes through depends on the moment; that it does not get out does not.
            let _either = host.write_back(&[file("src/x", "x"), dir("src/d"), deleted("src/secret")]);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let left: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["secret"]);
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
}

/// Entries of every kind, under names and with targets that are worth trying, in any order.
fn any_entry() -> impl Strategy<Value = Entry> {
    let name = proptest::sample::select(vec![
        "a",
        "src",
        "src/x",
        "old",
        "old/deep",
        "old/deep/x",
        "l",
        "l/x",
        "l/../x",
        "../outside/secret",
        "/etc/x",
        "way-out/x",
        ".git",
        ".GIT/config",
        "src/git~1",
        "HEAD",
        "objects",
        "refs",
        "src/HEAD",
        "src/objects",
        "src/refs",
        ".wh.a",
        ".",
    ]);
    let target =
        proptest::sample::select(vec!["a", "..", "../outside", "/etc/passwd", "src", "old/deep/x", ".git/config"]);
    let kind = proptest::sample::select(vec![
        EntryType::Regular,
        EntryType::Directory,
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Char,
        EntryType::Fifo,
    ]);
    let mode = proptest::sample::select(vec![0o644, 0o755, 0o700, 0o4755, 0o2755, 0o1777]);
    (name, target, kind, mode, any::<bool>()).prop_map(|(name, target, kind, mode, is_opaque)| {
        let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
        let entry = Entry { kind, mode, link: if is_link { target } else { "" }, ..file(name, "") };
        let bytes = if kind == EntryType::Regular { b"written".to_vec() } else { Vec::new() };
        let record = (is_opaque && kind == EntryType::Directory).then(|| opaque("").record).flatten();
        Entry { bytes, record, ..entry }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn whatever_the_archive_says_nothing_gets_out(entries in proptest::collection::vec(any_entry(), 1..7)) {
        let host = Host::new();
        symlink(host.dir.path().join("outside"), host.work().join("way-out")).unwrap();
        let before = host.picture();
        let result = host.write_back(&entries);
        let outside: Vec<_> = fs::read_dir(host.dir.path().join("outside")).unwrap().map(Result::unwrap).collect();
        prop_assert_eq!(outside.len(), 1);
        prop_assert_eq!(fs::read_to_string(outside[0].path()).unwrap(), "secret");
        if let Err(error) = &result && !format!("{error:#}").contains("in the middle") {
            prop_assert_eq!(host.picture(), before);
        }
        for line in host.picture() {
            let lower = line.to_lowercase();
            prop_assert!(!lower.contains("/.git") && !lower.contains("git~1"), "{line}");
            let mode = u32::from_str_radix(line.rsplit(' ').nth(1).unwrap(), 8).unwrap();
            prop_assert_eq!(mode & 0o6000, 0, "{}", line);
        }
        let is_there = |dir: &str| ["HEAD", "objects", "refs"].iter().all(|name| host.work().join(dir).join(name).symlink_metadata().is_ok());
        prop_assert!(!is_there(".") && !is_there("src"));
    }
}
