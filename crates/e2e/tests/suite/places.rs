//! Places inside that are Holm's own: the folder of the structured result, the layers, /proc and /dev. No image, mount or
//! command changes what becomes of them, and none of them changes what is the host's.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use holm_e2e::{World, host};
use serde_json::json;

/// A root file system of nothing but a static busybox.
fn image(world: &World, name: &str) -> PathBuf {
    let root = world.folder(name);
    fs::create_dir_all(root.join("bin")).expect("a folder");
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let busybox = busybox.expect("busybox is not installed: run `cargo xtask setup`");
    fs::copy(busybox, root.join("bin/busybox")).expect("a copy");
    for name in ["sh", "ls", "cat", "echo", "mkdir", "true"] {
        symlink("busybox", root.join("bin").join(name)).expect("a link");
    }
    root
}

/// The argument that names an image.
fn root_of(image: &Path) -> String {
    format!("dir:{}", image.display())
}

/// A folder of the host's with a mode that nothing of Holm's gives.
fn private(world: &World) -> PathBuf {
    let dir = world.folder("private");
    fs::write(dir.join("file"), "of the host\n").expect("a file");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o710)).expect("a mode");
    dir
}

#[track_caller]
fn assert_untouched(private: &Path) {
    let meta = fs::metadata(private).expect("a folder");
    assert_eq!(meta.mode() & 0o7777, 0o710, "the mode of a folder of the host was changed");
    let names: Vec<_> = fs::read_dir(private).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["file"], "something was made in a folder of the host");
}

#[test]
fn a_result_that_cannot_be_one_costs_the_run_nothing_else() {
    let world = World::up();
    for (make, words) in [
        ("head -c 70000 /dev/zero > $HOLM_RESULT", "larger than 65536 bytes"),
        ("ln -s /etc/passwd $HOLM_RESULT", "symbolic link"),
        ("mkfifo $HOLM_RESULT", "no regular file"),
        ("mkdir $HOLM_RESULT", "no regular file"),
        ("echo '{' > $HOLM_RESULT", "not JSON"),
    ] {
        let dir = world.folder(&holm_e2e::unique("work"));
        let path = dir.to_str().expect("UTF-8");
        let script = format!("set -e; {make}; echo kept > kept.txt");
        world.run(["--dir", path, "--write-back", "--", "sh", "-c", &script]).succeeds();
        assert_eq!(fs::read_to_string(dir.join("kept.txt")).expect("written back"), "kept\n", "{make}");
        let id = world.newest();
        assert_eq!(world.show(&id)["result"], json!(null), "{make}");
        let events = world.events_of(&id, "result_refused");
        let [event] = &events[..] else { panic!("{make}: {events:?}") };
        let problem = event["problem"].as_str().unwrap_or_default();
        assert!(
            problem.contains(words) && !problem.contains('{') && !problem.contains("answered"),
            "{make}: {problem}"
        );
    }
    let script = "echo '{' > $HOLM_RESULT; exit 7";
    world.sh(script).exits(7);
}

#[test]
fn a_result_arrives_whatever_becomes_of_the_folders_above_it() {
    let world = World::up();
    let result = |ran: holm_e2e::Ran| {
        let ran = ran.succeeds();
        assert_eq!(world.show(&world.newest())["result"], json!({ "a": 1 }), "{ran}");
    };
    let write = r#"echo '{"a": 1}' > $HOLM_RESULT"#;
    result(world.sh(&format!("mv /run /run2 2>/dev/null; ln -s run2 /run; {write}")));
    result(world.sh(&format!("rm -rf /run; mkdir -p /run/holm; {write}")));
    let linked = image(&world, "linked");
    fs::create_dir_all(linked.join("var/run")).expect("a folder");
    symlink("var/run", linked.join("run")).expect("a link");
    let root = root_of(&linked);
    result(world.run(["--root", &root, "--", "sh", "-c", write]));
}

#[test]
fn no_mount_takes_the_place_of_the_result() {
    let world = World::up();
    let private = private(&world);
    for target in ["/run/holm", "/run/holm/x", "//run//holm/", "/run"] {
        let mount = format!("{}:{target}", private.display());
        world.run(["--mount", &mount, "--", "true"]).exits(125).complains_of(&["--mount", "/run/holm"]);
        assert_untouched(&private);
    }
    // Through links: of the host's frame, and of an image.
    let mount = format!("{}:/var/run/holm", private.display());
    world.run(["--mount", &mount, "--", "true"]).exits(125).complains_of(&["/var/run/holm", "--mount"]);
    assert_untouched(&private);
    let linked = image(&world, "linked");
    fs::create_dir_all(linked.join("mnt/x")).expect("a folder");
    symlink("mnt/x", linked.join("run")).expect("a link");
    let (root, mount) = (root_of(&linked), format!("{}:/mnt/x", private.display()));
    world.run(["--root", &root, "--mount", &mount, "--", "true"]).exits(125).complains_of(&["/mnt/x", "--mount"]);
    assert_untouched(&private);
}

#[test]
fn no_mount_leads_to_what_is_holms_own() {
    let world = World::up();
    let private = private(&world);
    let refused = |arguments: &[&str], target: &str| {
        let mount = format!("{}:{target}", private.display());
        let arguments = arguments.iter().copied().chain(["--mount", &mount, "--", "true"]);
        world.run(arguments).exits(125).complains_of(&[target, "mount"]);
        assert_untouched(&private);
    };
    for target in ["/.holm", "/.holm/root/upper", "//proc/1", "/dev/shm", "//dev"] {
        refused(&[], target);
    }
    let linked = image(&world, "linked");
    for (link, to) in [("p", "/proc"), ("d", "dev"), ("h", "/.holm"), ("u", ".holm/root/upper"), ("top", "/")] {
        symlink(to, linked.join(link)).expect("a link");
    }
    fs::create_dir_all(linked.join("mnt")).expect("a folder");
    let root = root_of(&linked);
    for target in ["/p/sys", "/p", "/d/shm", "/d/new", "/h/root/upper", "/h/new", "/u/new", "/top", "/top/proc/sys"] {
        refused(&["--root", &root], target);
    }
    // Through a link in another mount.
    let other = world.folder("other");
    symlink("/dev", other.join("d")).expect("a link");
    symlink("/.holm/root", other.join("h")).expect("a link");
    let first = format!("{}:/mnt/other", other.display());
    for target in ["/mnt/other/d/shm", "/mnt/other/h/upper", "/mnt/other/d"] {
        refused(&["--mount", &first], target);
    }
}

#[test]
fn a_mount_that_has_no_place_is_refused_with_a_sentence() {
    let world = World::up();
    let (above, below) = (world.folder("above"), world.folder("below"));
    fs::write(above.join("file"), "of the host\n").expect("a file");
    let (first, second) = (format!("{}:/mnt/a:ro", above.display()), format!("{}:/mnt/a/new", below.display()));
    let ran = world.run(["--mount", &first, "--mount", &second, "--", "true"]).exits(125);
    ran.complains_of(&["--mount", "/mnt/a/new"]);
    let onto_a_file = format!("{}:/mnt/a/file", below.display());
    let ran = world.run(["--mount", &first, "--mount", &onto_a_file, "--", "true"]).exits(125);
    ran.complains_of(&["--mount", "/mnt/a/file"]);
}

#[test]
fn the_layers_are_closed_to_the_workload() {
    let world = World::up();
    let dir = world.folder("work");
    let script = "ls -A /.holm; echo listed; touch /.holm/x /.holm/root/upper/x /.holm/work/upper/x 2>&1 | wc -l";
    for arguments in [vec![], vec!["--dir", dir.to_str().expect("UTF-8")]] {
        let ran = world.run(arguments.into_iter().chain(["--", "sh", "-c", script])).succeeds();
        assert_eq!(ran.text(), "listed\n3\n", "{ran}");
    }
}

#[test]
fn an_image_with_something_in_the_place_of_the_layers_is_refused() {
    let world = World::up();
    let (linked, filed) = (image(&world, "linked"), image(&world, "filed"));
    symlink("bin", linked.join(".holm")).expect("a link");
    fs::write(filed.join(".holm"), "").expect("a file");
    for image in [linked, filed] {
        let ran = world.run(["--root", &root_of(&image), "--", "true"]).exits(125);
        ran.complains_of(&["/.holm", "the image"]);
    }
    if !host::is_root() {
        return; // What follows is about owners, of which a plain user has one.
    }
    let own = image(&world, "own");
    fs::create_dir_all(own.join(".holm/root")).expect("a folder");
    fs::write(own.join(".holm/root/file"), "of the image\n").expect("a file");
    world.run(["--root", &root_of(&own), "--", "ls", "/.holm"]).succeeds();
}
