//! Real archives against real directories.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use tar::EntryType;
use tempfile::TempDir;

use super::*;

/// An entry as a hostile sandbox would write it: the `tar` crate refuses to write some of these names.
struct Entry {
    name: &'static str,
    kind: EntryType,
    mode: u32,
    link: &'static str,
    bytes: Vec<u8>,
}

fn file(name: &'static str, bytes: &str) -> Entry {
    Entry { name, kind: EntryType::Regular, mode: 0o644, link: "", bytes: bytes.into() }
}

fn dir(name: &'static str) -> Entry {
    Entry { kind: EntryType::Directory, mode: 0o755, ..file(name, "") }
}

fn link(name: &'static str, target: &'static str) -> Entry {
    Entry { kind: EntryType::Symlink, link: target, ..file(name, "") }
}

fn of_kind(name: &'static str, kind: EntryType) -> Entry {
    Entry { kind, ..file(name, "") }
}

fn header(entry: &Entry) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(entry.kind);
    header.set_mode(entry.mode);
    header.set_size(entry.bytes.len() as u64);
    header.as_old_mut().name[..entry.name.len()].copy_from_slice(entry.name.as_bytes());
    header.as_old_mut().linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
    header.set_cksum();
    header
}

fn archive(entries: &[Entry]) -> File {
    let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
    for entry in entries {
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
        Entry { mode: 0o500, ..dir("new") },
        file("new/.wh..wh..opq", ""),
        file("new/b", "b"),
        link("new/up", "../a"),
        Entry { kind: EntryType::Link, link: "a", ..file("same", "") },
        file(".wh.old", ""),
        file(".wh.never-there", ""),
        dir("opaque"),
        file("opaque/.wh..wh..opq", ""),
        file("opaque/here", ""),
        dir("becomes-dir"),
        file("becomes-dir/.wh..wh..opq", ""),
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
    host.refuses(vec![file("../outside/.wh.secret", "")], "`..`");
    host.refuses(vec![file(".wh...", "")], "nothing that can be deleted");
    host.refuses(vec![file("src/.wh..", "")], "nothing that can be deleted");
    host.refuses(vec![file(".wh.", "")], "nothing that can be deleted");
    host.refuses(vec![file(".wh..wh..opq", "")], "empties the directory itself");
    host.refuses(vec![file("./", "")], "the directory itself");
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
    }
    host.refuses(vec![of_kind("x", EntryType::Char)], "device");
    host.refuses(vec![of_kind("x", EntryType::Block)], "device");
    host.refuses(vec![of_kind("x", EntryType::Fifo)], "named pipe");
    host.refuses(vec![of_kind("x", EntryType::new(b'?'))], "not taken");
    // A few bytes of a sparse file can stand for more than any disk holds.
    host.refuses(vec![of_kind("x", EntryType::GNUSparse)], "");
}

#[test]
fn repositories_are_not_touched() {
    let host = Host::new();
    for name in [".git/config", "src/.git/hooks/pre-commit", "src/.GIT", "a-b/c/.Git/x"] {
        host.refuses(vec![file(name, "")], ".git");
    }
    host.refuses(vec![file("src/.wh..git", "")], ".git");
    host.refuses(vec![file(".git/.wh.config", "")], ".git");
    fs::create_dir(host.work().join("old/deep/.git")).unwrap();
    host.refuses(vec![file(".wh.old", "")], "`.git` below");
    host.refuses(vec![dir("old"), file("old/.wh..wh..opq", "")], "`.git` below");
    host.refuses(vec![file("old", "a file now")], "`.git` below");
    host.refuses(vec![link("old", "src")], "`.git` below");
}

#[test]
fn contradictions_are_refused() {
    let host = Host::new();
    host.refuses(vec![file("x", "1"), file("./x", "2")], "twice");
    host.refuses(vec![file("x", "1"), file(".wh.x", "")], "twice");
    host.refuses(vec![file("x", "1"), dir("x")], "twice");
    host.refuses(vec![dir("d"), file("d/.wh..wh..opq", ""), file("d/.wh..wh..opq", "")], "twice");
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
    // It says that it has more bytes than all of the archive.
    let mut liar = header(&file("liar", ""));
    liar.set_size(1 << 40);
    liar.set_cksum();
    let mut lying = tempfile::tempfile().unwrap();
    lying.write_all(liar.as_bytes()).unwrap();
    lying.write_all(&[0; 4096]).unwrap();
    let problem = format!("{:#}", write_back(lying, &host.work(), |_| {}).unwrap_err());
    assert!(problem.contains("cut off"), "{problem}");
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
    host.refuses(vec![file("way-out/.wh.secret", "")], "cannot be reached");
    host.refuses(vec![dir("way-out/d")], "no directory on the host");
    host.refuses(vec![dir("way-out"), file("way-out/x", "")], "no directory on the host any more");
    host.write_back(&[file("to-secret", "mine"), file(".wh.way-out", "")]).unwrap();
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
fn a_link_that_appears_after_the_check_is_not_followed() {
    for change in [file("src/x", "x"), dir("src/x"), link("src/x", "y"), file("src/.wh.secret", "")] {
        let host = Host::new();
        let archive = archive(&[change]);
        let root = plan::open_root(&host.work()).unwrap();
        let changes = plan::read(rewound(&archive), &root).unwrap();
        fs::remove_dir(host.work().join("src")).unwrap();
        symlink(host.dir.path().join("outside"), host.work().join("src")).unwrap();
        let outcome = apply::apply(rewound(&archive), &root, &changes);
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
            let _either = host.write_back(&[file("src/x", "x"), dir("src/d"), file("src/.wh.secret", "")]);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let left: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["secret"]);
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
}
