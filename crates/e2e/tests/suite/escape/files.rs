//! Files: of the host, above the root, through other processes, read-only ones.

use std::{collections::BTreeSet, fs};

use holm_e2e::{
    World,
    probe::{self, Attempts},
};

use super::{ABSENT, NO, attempts, users};

#[test]
fn files_of_the_host_are_not_there() {
    let world = World::up();
    let canary = world.folder("user").join("canary.txt");
    fs::write(&canary, "of the host\n").expect("a file");
    let home = world.home();
    let body = format!(
        r#"
attempt("shadow", lambda: open("/etc/shadow").read(1))
attempt("gshadow", lambda: open("/etc/gshadow").read(1))
attempt("ssh-keys", lambda: os.listdir("/etc/ssh"))
attempt("home", lambda: open("{canary}").read())
attempt("state", lambda: os.listdir("{home}"))
attempt("token", lambda: open("{home}/token").read())
attempt("var", lambda: os.listdir("/var/lib/dpkg"))
attempt("boot", lambda: os.listdir("/boot"))
"#,
        canary = canary.display(),
        home = home.display(),
    );
    for user in users() {
        let mut attempts = attempts(&world, user, &body);
        for name in ["shadow", "gshadow", "ssh-keys", "home", "state", "token", "var", "boot"] {
            attempts.refused(name, &ABSENT);
        }
        attempts.no_more();
    }
    // The home inside is empty, or holds what the sandbox itself put there: nothing that the host's holds.
    let inside = world.run(["--", "ls", "-A", "/root"]).succeeds();
    let host: BTreeSet<String> = fs::read_dir("/root")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let seen: Vec<&str> = inside.text().lines().filter(|name| host.contains(*name)).collect();
    assert!(seen.is_empty(), "the host's home is seen: {seen:?}");
}

#[test]
fn there_is_nothing_above_the_root_and_no_way_through_other_processes() {
    let world = World::up();
    let body = r#"
def same(a, b):
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
own = os.getpid()
root = os.stat("/")
print("root-parent", same(os.stat("/.."), root))
for name in os.listdir("/proc"):
    if not name.isdigit() or int(name) == own:
        continue
    try:
        inside = same(os.stat("/proc/%s/root" % name), root)
    except OSError:
        inside = True
    if not inside:
        print("another root:", name, flush=True)
    try:
        links = [os.readlink("/proc/%s/fd/%s" % (name, fd)) for fd in os.listdir("/proc/%s/fd" % name)]
    except OSError:
        links = []
    if links:
        print("open descriptors of", name, links, flush=True)
inherited = {}
for fd in range(3, 256):
    try:
        inherited[fd] = os.readlink("/proc/self/fd/%d" % fd)
    except OSError:
        pass
print("inherited:", inherited)
def walk_up():
    os.chroot("/tmp")
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    return same(os.stat("/"), root)
try:
    print("chroot-walk stays:", walk_up())
except OSError as error:
    print("chroot-walk stays: True")
"#;
    for user in users() {
        let ran = world.run(["--user", user, "--", "/usr/bin/python3", "-c", &probe::program(body)]).succeeds();
        let text = ran.text();
        assert!(text.contains("root-parent True"), "{ran}");
        assert!(text.contains("inherited: {}"), "a descriptor came in: {ran}");
        assert!(text.contains("chroot-walk stays: True"), "{ran}");
        assert!(!text.contains("another root") && !text.contains("open descriptors"), "{ran}");
    }
}

#[test]
fn what_is_read_only_stays_so() {
    let world = World::up();
    let closed = world.folder("closed");
    fs::write(closed.join("file"), "before\n").expect("a file");
    fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("a mode");
    let mount = format!("{}:/mnt/closed:ro", closed.display());
    let body = r#"
def remount(target):
    return checked(libc.mount(b"none", target, None, ctypes.c_ulong(32 | 4096), None))
attempt("usr", lambda: open("/usr/bin/evil", "w"))
attempt("usr-remove", lambda: os.remove("/usr/bin/env"))
attempt("lib", lambda: open("/usr/lib/evil", "w"))
attempt("mount", lambda: open("/mnt/closed/evil", "w"))
attempt("mount-truncate", lambda: os.truncate("/mnt/closed/file", 0))
attempt("mount-chmod", lambda: os.chmod("/mnt/closed/file", 0o777))
attempt("mount-remount", lambda: remount(b"/mnt/closed"))
attempt("usr-remount", lambda: remount(b"/usr"))
attempt("mount-umount", lambda: checked(libc.umount2(b"/mnt/closed", 2)))
"#;
    for user in users() {
        let program = probe::program(body);
        let arguments = ["--user", user, "--mount", &mount, "--", "/usr/bin/python3", "-c", &program];
        let mut attempts = Attempts::of(world.run(arguments));
        for name in ["usr", "usr-remove", "lib", "mount", "mount-truncate", "mount-chmod"] {
            attempts.refused(name, &["EROFS", "EACCES", "EPERM"]);
        }
        for name in ["mount-remount", "usr-remount", "mount-umount"] {
            attempts.refused(name, &NO);
        }
        attempts.no_more();
    }
    let text = fs::read_to_string(closed.join("file")).expect("a file");
    assert!(text == "before\n" && !closed.join("evil").exists());
}
