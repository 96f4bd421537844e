//! Directories of the host inside: `--dir`, `--write-back`, `--mount`, and roots that are directories and archives.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use holm_e2e::{World, ran::run};

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path.as_ref()).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

/// A directory with a file and a folder in it.
fn project(world: &World) -> std::path::PathBuf {
    let dir = world.folder("project");
    fs::write(dir.join("kept.txt"), "before\n").expect("a file");
    fs::write(dir.join("removed.txt"), "before\n").expect("a file");
    fs::create_dir(dir.join("sub")).expect("a folder");
    fs::write(dir.join("sub/deep.txt"), "before\n").expect("a file");
    dir
}

const CHANGE: &str = "set -e; pwd; cat kept.txt sub/deep.txt; echo after > kept.txt; rm removed.txt; \
                      mkdir new; echo new > new/file.txt; printf '#!/bin/sh\\n' > run.sh; chmod 755 run.sh";

#[test]
fn a_directory_is_brought_in_and_changes_stay_inside() {
    let world = World::up();
    let dir = project(&world);
    let path = dir.to_str().expect("UTF-8");
    let ran = world.run(["--dir", path, "--", "sh", "-c", CHANGE]).succeeds();
    assert_eq!(ran.text(), "/work\nbefore\nbefore\n");
    assert_eq!(text(dir.join("kept.txt")), "before\n");
    assert!(dir.join("removed.txt").exists() && !dir.join("new").exists() && !dir.join("run.sh").exists());
}

#[test]
fn write_back_copies_changes_out_after_success_only() {
    let world = World::up();
    let dir = project(&world);
    let path = dir.to_str().expect("UTF-8");
    world.run(["--dir", path, "--write-back", "--", "sh", "-c", &format!("{CHANGE}; exit 4")]).exits(4);
    assert_eq!(text(dir.join("kept.txt")), "before\n");
    assert!(dir.join("removed.txt").exists() && !dir.join("new").exists());

    let ran = world.run(["--dir", path, "--write-back", "--", "sh", "-c", CHANGE]).succeeds();
    for named in ["kept.txt", "removed.txt", "new/file.txt", "run.sh"] {
        assert!(ran.complaint().contains(named), "{named} is not listed: {ran}");
    }
    assert_eq!(text(dir.join("kept.txt")), "after\n");
    assert_eq!(text(dir.join("new/file.txt")), "new\n");
    assert!(!dir.join("removed.txt").exists());
    assert_eq!(text(dir.join("sub/deep.txt")), "before\n");
    let mode = fs::metadata(dir.join("run.sh")).expect("a file").permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
}

#[test]
fn write_back_refuses_what_could_do_harm() {
    let attempts = [
        ("cp /bin/true tool; chmod 4755 tool", "tool"),
        ("cp /bin/true tool; chmod 2755 tool", "tool"),
        ("ln -s ../../../../../../etc/passwd out", "out"),
        ("ln -s /etc/passwd out", "out"),
        ("mkdir -p .git/hooks; echo evil > .git/hooks/post-checkout", ".git"),
        ("mkdir -p sub/.git; echo evil > sub/.git/config", ".git"),
    ];
    let world = World::up();
    for (script, named) in attempts {
        let dir = world.folder(&holm_e2e::unique("attempt"));
        fs::create_dir(dir.join("sub")).expect("a folder");
        fs::write(dir.join("kept.txt"), "before\n").expect("a file");
        let path = dir.to_str().expect("UTF-8");
        let script = format!("{script}; echo after > kept.txt");
        let ran = world.run(["--dir", path, "--write-back", "--", "sh", "-c", &script]);
        assert_ne!(ran.code, 0, "{script}: {ran}");
        ran.complains_of(&[named]);
        // All or nothing: what was refused keeps the rest out as well.
        assert_eq!(text(dir.join("kept.txt")), "before\n", "{script}");
        let left: Vec<_> = fs::read_dir(&dir).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left.len(), 2, "{script}: {left:?}");
    }
}

#[test]
fn write_back_does_not_follow_links_of_the_host() {
    let world = World::up();
    let dir = project(&world);
    let outside = world.folder("outside");
    fs::write(outside.join("victim.txt"), "untouched\n").expect("a file");
    let path = dir.to_str().expect("UTF-8");
    let gate = world.folder("gate");
    let mount = format!("{}:/gate:ro", gate.display());
    let script = "while [ ! -e /gate/open ]; do sleep 0.05; done; echo evil > sub/victim.txt";
    let running = world.running(["--dir", path, "--write-back", "--mount", &mount, "--", "sh", "-c", script]);
    holm_e2e::eventually("it runs", || {
        let runs = world.all_runs();
        runs.first().is_some_and(|run| run["state"] == "running").then_some(())
    });
    // Somebody on the host exchanges the folder for a link while the run goes on.
    fs::rename(dir.join("sub"), dir.join("sub-before")).expect("renamed");
    symlink(&outside, dir.join("sub")).expect("a link");
    fs::write(gate.join("open"), "").expect("a file");
    let ran = running.wait();
    assert_eq!(text(outside.join("victim.txt")), "untouched\n", "{ran}");
    assert_ne!(ran.code, 0, "{ran}");
}

#[test]
fn mounts_are_writable_or_not_as_asked() {
    let world = World::up();
    let (source, closed) = (world.folder("source"), world.folder("closed"));
    fs::write(source.join("in.txt"), "in\n").expect("a file");
    fs::write(closed.join("in.txt"), "in\n").expect("a file");
    let writable = format!("{}:/mnt/rw", source.display());
    let read_only = format!("{}:/mnt/ro:ro", closed.display());
    let script = "cat /mnt/rw/in.txt /mnt/ro/in.txt; echo out > /mnt/rw/out.txt; \
                  echo bad > /mnt/ro/out.txt; rm /mnt/ro/in.txt; true";
    let ran = world.run(["--mount", &writable, "--mount", &read_only, "--", "sh", "-c", script]).succeeds();
    assert_eq!(ran.text(), "in\nin\n");
    assert_eq!(ran.complaint().matches("Read-only file system").count(), 2, "{ran}");
    assert_eq!(text(source.join("out.txt")), "out\n");
    assert!(closed.join("in.txt").exists() && !closed.join("out.txt").exists());
}

#[test]
fn no_set_id_file_is_made_on_the_host() {
    let world = World::up();
    let source = world.folder("source");
    let mount = format!("{}:/mnt/rw", source.display());
    let script = "cp /bin/true /mnt/rw/tool; chmod 4755 /mnt/rw/tool; chmod 2755 /mnt/rw/tool; true";
    let ran = world.run(["--mount", &mount, "--", "sh", "-c", script]).succeeds();
    assert_eq!(ran.complaint().matches("Operation not permitted").count(), 2, "{ran}");
    let mode = fs::metadata(source.join("tool")).expect("a file").permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
}

/// A root file system of nothing but a static busybox.
fn busybox_root(world: &World) -> std::path::PathBuf {
    let root = world.folder("root");
    fs::create_dir_all(root.join("bin")).expect("a folder");
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let busybox = busybox.expect("busybox is not installed: run `cargo xtask setup`");
    fs::copy(busybox, root.join("bin/busybox")).expect("a copy");
    for name in ["sh", "ls", "cat", "echo", "id"] {
        symlink("busybox", root.join("bin").join(name)).expect("a link");
    }
    fs::create_dir_all(root.join("etc")).expect("a folder");
    fs::write(root.join("etc/mark"), "of the image\n").expect("a file");
    root
}

#[test]
fn a_root_may_be_a_directory_or_an_archive() {
    let world = World::up();
    let root = busybox_root(&world);
    let archive = world.dir().join("root.tar");
    let (from, to) = (root.to_str().expect("UTF-8"), archive.to_str().expect("UTF-8"));
    run(Command::new("tar").args(["-C", from, "-cf", to, "."])).succeeds();
    for source in [format!("dir:{from}"), format!("tar:{to}")] {
        let script = "cat /etc/mark; echo changed > /etc/mark; cat /etc/mark; id -u; ls /usr";
        let ran = world.run(["--root", &source, "--", "sh", "-c", script]);
        assert_eq!(ran.text(), "of the image\nchanged\n0\n", "{source}: {ran}");
        assert_ne!(ran.code, 0, "nothing of the host's /usr is there: {ran}");
        assert_eq!(text(root.join("etc/mark")), "of the image\n");
    }
}
