//! Directories of the host inside: `--dir`, `--write-back`, `--mount`, and roots that are directories and archives.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt as _, PermissionsExt, symlink},
    },
    path::Path,
    process::Command,
};

use holm_e2e::{World, eventually, ran::run};

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
        ("echo 'gitdir: sub' > .GIT", "is in a `.git`"),
        ("mkdir git~1; echo evil > git~1/config", "is in a `.git`"),
        ("mkdir -p evil/objects evil/refs; echo x > evil/HEAD; echo evil > evil/config", "`evil` is a git repository"),
        ("mkdir objects refs; echo 'ref: refs/heads/x' > HEAD", "`.` is a git repository"),
        ("mkfifo pipe", "`pipe` is a named pipe"),
        ("python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")'", "`sock` is a socket"),
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
fn write_back_takes_every_name_for_what_it_is() {
    let world = World::up();
    let dir = project(&world);
    let strange = dir.join(OsStr::from_bytes(b"caf\xe9"));
    fs::write(&strange, "before\n").expect("a file");
    let path = dir.to_str().expect("UTF-8");
    let script = "set -e; echo mine > .wh.kept.txt; echo mine > sub/.wh..wh..opq; echo more > sub/more.txt; \
                  rm $(printf 'caf\\351'); echo new > $(printf 'new\\376')";
    let ran = world.run(["--dir", path, "--write-back", "--", "sh", "-c", script]).succeeds();
    assert_eq!(text(dir.join("kept.txt")), "before\n", "a file was taken for a deletion: {ran}");
    assert_eq!(text(dir.join("sub/deep.txt")), "before\n", "a file was taken for the mark of a folder: {ran}");
    assert_eq!(text(dir.join(".wh.kept.txt")) + &text(dir.join("sub/.wh..wh..opq")), "mine\nmine\n");
    assert!(!strange.exists(), "{ran}");
    assert_eq!(text(dir.join(OsStr::from_bytes(b"new\xfe"))), "new\n");
    ran.complains_of(&["deleted caf\\xe9", "new\\xfe"]);
}

#[test]
fn write_back_obeys_the_umask_and_empties_what_was_made_anew() {
    let world = World::up();
    let dir = project(&world);
    fs::set_permissions(dir.join("kept.txt"), fs::Permissions::from_mode(0o664)).expect("a mode");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o2775)).expect("a mode");
    let path = dir.to_str().expect("UTF-8");
    let script = "set -e; umask 0; echo after > kept.txt; echo x > file; echo x > tool; chmod 777 tool; mkdir folder; \
                  echo x > folder/file; rm -r sub; mkdir sub; echo x > sub/other";
    let holm = world.command();
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 027; exec \"$0\" run --dir \"$1\" --write-back -- sh -c \"$2\""]);
    shell
        .arg(holm.get_program())
        .args([path, script])
        .current_dir(holm.get_current_dir().expect("a folder"))
        .env_clear();
    shell.envs(holm.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let ran = run(&mut shell).succeeds();
    let mode = |name: &str| fs::metadata(dir.join(name)).expect("a file").permissions().mode() & 0o7777;
    let modes = ["file", "tool", "folder/file"].map(mode);
    assert_eq!(modes, [0o640, 0o750, 0o640], "{ran}");
    assert_eq!((mode("kept.txt"), mode("folder") & 0o777), (0o664, 0o750), "{ran}");
    assert!(!dir.join("sub/deep.txt").exists() && dir.join("sub/other").exists(), "{ran}");
}

#[test]
fn write_back_brings_other_names_of_a_file_back_as_such() {
    let world = World::up();
    let dir = project(&world);
    let path = dir.to_str().expect("UTF-8");
    // As files they would be more than are kept.
    let script = "set -e; mkdir copies; head -c 200k /dev/urandom > big; for n in $(seq 50); do ln big copies/$n; done";
    let ran = world.run(["--disk", "1m", "--dir", path, "--write-back", "--", "sh", "-c", script]).succeeds();
    let stat = |name: &str| fs::metadata(dir.join(name)).expect("a file");
    assert_eq!((stat("big").len(), stat("big").nlink()), (200 * 1024, 51), "{ran}");
    assert_eq!(stat("copies/50").ino(), stat("big").ino());
}

#[test]
fn changes_that_are_too_long_are_no_success_and_say_which_file() {
    let world = World::up();
    let dir = project(&world);
    let path = dir.to_str().expect("UTF-8");
    let script = "echo after > kept.txt; truncate -s 1900G sub/holes";
    let ran = world.run(["--dir", path, "--write-back", "--", "sh", "-c", script]).exits(125);
    ran.complains_of(&[
        "its changes are not kept",
        "`sub/holes`",
        "it is sparse",
        "delete what need not come back",
        "--disk",
    ]);
    assert_eq!(text(dir.join("kept.txt")), "before\n");
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
    eventually("it runs", || {
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

/// The head of an entry in a tar archive, written by hand: no tool writes these.
fn head(name: &str, flag: u8, size: u64) -> Vec<u8> {
    let mut head = vec![0u8; 512];
    head[..name.len()].copy_from_slice(name.as_bytes());
    head[100..108].copy_from_slice(b"0000644\0");
    head[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    head[148..156].fill(b' ');
    head[156] = flag;
    head[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u64 = head.iter().map(|byte| u64::from(*byte)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    head
}

#[test]
fn hostile_archives_are_refused_with_the_reason() {
    let world = World::up();
    let archive = world.dir().join("hostile.tar");
    let source = format!("tar:{}", archive.display());
    for (content, wanted) in [
        (head("../../escaped", b'0', 0), "leads upwards"),
        (head("pax", b'x', 1 << 30), "described by something longer than 1048576 bytes"),
        (head("long", b'L', 1 << 30), "described by something longer than 1048576 bytes"),
        (head("file", b'0', 7 << 30), "cut off"),
        ([head("x", b'1', 0), vec![0; 1024]].concat(), "is a link to nothing"),
        (vec![0; 1024], "empty"),
        (vec![0x1f, 0x8b, 8, 0], "gzip"),
    ] {
        fs::write(&archive, content).expect("an archive");
        let ran = world.run(["--root", &source, "--", "true"]).exits(125);
        ran.complains_of(&["hostile.tar", wanted]);
        let left = kept_images(&world);
        assert_eq!(left, Vec::<String>::new(), "{wanted}");
    }
}

/// What lies in the agent's folder of images, besides locks and what is remembered of archives.
fn kept_images(world: &World) -> Vec<String> {
    let Ok(entries) = fs::read_dir(world.home().join("agent/images")) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().into_string().expect("UTF-8"));
    names.filter(|name| name != "known" && !name.ends_with(".lock")).collect()
}

#[test]
fn a_run_is_cancelled_while_its_image_is_unpacked() {
    let world = World::up();
    let archive = world.dir().join("slow.tar");
    let mut content = Vec::new();
    for n in 0..400_000 {
        content.extend(head(&format!("file-{n}"), b'0', 0));
    }
    content.extend([0; 1024]);
    fs::write(&archive, content).expect("an archive");
    let id = world.detach(["--root", &format!("tar:{}", archive.display()), "--", "true"]);
    eventually("it is unpacked", || kept_images(&world).first().map(|name| assert!(name.starts_with("unfinished-"))));
    world.holm(["cancel", &id]).succeeds();
    let view = world.until_ended(&id);
    assert_eq!(view["outcome"]["kind"], "cancelled", "{view}");
    eventually("nothing is half made", || kept_images(&world).is_empty().then_some(()));
}

#[test]
fn what_a_crash_left_of_images_is_swept_on_start() {
    let mut world = World::new();
    let digests = ["1", "2", "3"].map(|digit| digit.repeat(64));
    let images = world.home().join("agent/images");
    for half in [format!("unfinished-{}", digests[0]), format!("gone-{}", digests[1]), digests[2].clone()] {
        fs::create_dir_all(images.join(half).join("root/etc")).expect("a folder");
    }
    world.start_up();
    eventually("it is swept", || kept_images(&world).is_empty().then_some(()));
}
