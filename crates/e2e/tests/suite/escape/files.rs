//! Files: of the host, above the root, through other processes, read-only ones.

use std::{fs, path::Path};

use holm_e2e::{
    World, host,
    probe::{self, Attempts},
};

use super::{ABSENT, NO, attempts, is_root_inside, python, run_as, users};

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
            // Not closed but absent: a plain user of the host, too, would be refused what is closed.
            attempts.refused(name, &["ENOENT"]);
        }
        attempts.no_more();
    }
}

#[test]
fn holms_own_folder_and_the_hosts_interfaces_are_never_lent() {
    // The agent of this world lends everything.
    let world = World::up();
    let (dir, home) = (world.dir().display().to_string(), world.home().display().to_string());
    fs::write(world.folder("beside").join("file"), "lent\n").expect("a file");
    // Listing works, and lists nothing: what is not masked is either not empty or cannot be listed.
    let script = "cat $1; shift; for at; do ls -A $at && echo listed; touch $at/evil 2>/dev/null && echo written; done";
    for (source, above, masked) in [(dir.as_str(), "", Vec::new()), ("/", &dir, vec!["/proc", "/sys", "/dev", "/run"])]
    {
        let own = ["home", "config/holm"].map(|at| format!("/mnt/it{above}/{at}"));
        let masked: Vec<String> = masked.into_iter().map(|at| format!("/mnt/it{at}")).chain(own).collect();
        // A plain user may not write to the root of the host, and so cannot lend it for writing.
        let modes: &[&str] = if source == "/" && !host::is_root() { &[":ro"] } else { &["", ":ro"] };
        for mode in modes {
            let (mount, beside) = (format!("{source}:/mnt/it{mode}"), format!("/mnt/it{above}/beside/file"));
            let arguments = ["--mount", &mount, "--", "sh", "-c", script, "sh", &beside];
            let ran = world.run(arguments.into_iter().chain(masked.iter().map(String::as_str)));
            assert_eq!(ran.text(), format!("lent\n{}", "listed\n".repeat(masked.len())), "{mount}: {ran}");
        }
    }
    for path in ["/proc", "/sys", "/dev", "/run", &home, &format!("{home}/agent")] {
        world.run(["--mount", &format!("{path}:/mnt/it"), "--", "true"]).exits(125).complains_of(&["never lent"]);
        world.run(["--dir", path, "--", "true"]).exits(125).complains_of(&["never lent"]);
        world.run(["--root", &format!("dir:{path}"), "--", "true"]).exits(125).complains_of(&["never lent"]);
    }
    for path in [&dir, "/"] {
        world.run(["--dir", path, "--", "true"]).exits(125).complains_of(&["it contains", "never lent"]);
    }
    world.run(["--root", &format!("tar:{home}/token"), "--", "true"]).exits(125).complains_of(&["never lent"]);
    world.run(["--mount", &format!("{home}/token:/mnt/it"), "--", "true"]).exits(125).complains_of(&["never lent"]);
}

#[test]
fn the_home_of_the_hosts_root_is_another_one() {
    if !host::is_root() {
        return; // Nobody else can put something there to look for; the user's own home is tested above.
    }
    let world = World::up();
    let canary = tempfile::Builder::new().prefix("holm-e2e-canary-").tempfile_in("/root").expect("a file");
    let name = canary.path().file_name().expect("a name").to_string_lossy().into_owned();
    let body = format!(
        r#"
attempt("canary", lambda: open("/root/{name}"))
print("listed", os.listdir("/root") if os.getuid() == 0 else [], flush=True)
"#
    );
    for user in users() {
        let ran = python(&world, user, &body).succeeds();
        assert!(ran.text().contains("listed []"), "{ran}");
        let mut attempts = Attempts::of(ran);
        attempts.refused("canary", &ABSENT);
        attempts.no_more();
    }
}

#[test]
fn among_the_hosts_programs_only_what_everybody_may_read_is_shown() {
    if !host::is_root() {
        return; // Nobody else can put something there to look for.
    }
    let world = World::up();
    let place = Path::new("/usr/local");
    let file = tempfile::Builder::new().prefix("holm-e2e-canary-").tempfile_in(place).expect("a file");
    let folder = tempfile::Builder::new().prefix("holm-e2e-canary-").tempdir_in(place).expect("a folder");
    let open = tempfile::Builder::new().prefix("holm-e2e-canary-").tempfile_in(place).expect("a file");
    fs::write(&open, "for all\n").expect("a file");
    fs::write(folder.path().join("within"), "of the host\n").expect("a file");
    for (path, mode) in [(file.path(), 0o600), (folder.path(), 0o700), (open.path(), 0o644)] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("a mode");
    }
    fs::set_permissions(folder.path().join("within"), std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .expect("a mode");
    let body = format!(
        r#"
print("open to all:", open("{open}").read(), flush=True)
attempt("file", lambda: open("{file}").read())
attempt("folder", lambda: os.listdir("{folder}"))
attempt("within", lambda: open("{folder}/within").read())
attempt("chmod", lambda: os.chmod("{file}", 0o644))
"#,
        open = open.path().display(),
        file = file.path().display(),
        folder = folder.path().display(),
    );
    for user in users() {
        let ran = python(&world, user, &body).succeeds();
        assert!(ran.text().contains("open to all: for all"), "{ran}");
        let mut attempts = Attempts::of(ran);
        for name in ["file", "folder", "within"] {
            attempts.refused(name, &["EACCES"]);
        }
        attempts.refused("chmod", &["EROFS", "EPERM", "EOVERFLOW"]);
        attempts.no_more();
    }
}

#[test]
fn there_is_nothing_above_the_root_and_no_way_through_other_processes() {
    let world = World::up();
    let body = r#"
def same(a, b):
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
root = os.stat("/")
print("root-parent", same(os.stat("/.."), root))
# Asked one by one as well: /proc tells what the kernel likes to tell.
print("open:", sorted(os.listdir("/proc/self/fd"), key=int)[:-1])
def is_open(number):
    try:
        return os.fstat(number) is not None
    except OSError:
        return False
print("found:", [number for number in range(65536) if is_open(number)])
for number in range(3):
    mode = os.fstat(number).st_mode
    kind = "pipe" if stat.S_ISFIFO(mode) else "device %x" % os.fstat(number).st_rdev if stat.S_ISCHR(mode) else "other"
    print("descriptor", number, kind, os.readlink("/proc/self/fd/%d" % number).split(":")[0])
others = [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
print("others:", others)
for name in others:
    attempt("root", lambda: os.stat("/proc/%s/root/" % name))
    attempt("work-dir", lambda: os.stat("/proc/%s/cwd/" % name))
    attempt("descriptors", lambda: something(os.listdir("/proc/%s/fd" % name)))
    attempt("descriptor", lambda: os.open("/proc/%s/fd/3" % name, os.O_RDONLY))
    attempt("mounts", lambda: os.readlink("/proc/%s/ns/mnt" % name))
# The classical way out of a root: a folder held open, another root below it, and up from there.
held = os.open("/", os.O_RDONLY)
try:
    os.chroot("/tmp")
    os.fchdir(held)
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    print("walked up:", same(os.stat("/"), root))
except PermissionError:
    print("walked up: not permitted")
"#;
    for user in users() {
        let ran = python(&world, user, body).succeeds();
        let text = ran.text();
        assert!(text.contains("root-parent True"), "{ran}");
        assert!(text.contains("open: ['0', '1', '2']"), "a descriptor came in: {ran}");
        assert!(text.contains("found: [0, 1, 2]\n"), "a descriptor came in: {ran}");
        let kinds = "descriptor 0 device 103 /dev/null\ndescriptor 1 pipe pipe\ndescriptor 2 pipe pipe\n";
        assert!(text.contains(kinds), "something of the host's came in: {ran}");
        assert!(text.contains("others: ['1']"), "the init inside, and no other: {ran}");
        let walked = if is_root_inside(user) { "walked up: True" } else { "walked up: not permitted" };
        assert!(text.contains(walked), "{ran}");
        let mut attempts = Attempts::of(ran);
        for name in ["root", "work-dir", "descriptors", "descriptor", "mounts"] {
            attempts.refused(name, &ABSENT);
        }
        attempts.no_more();
    }
}

#[test]
fn a_folder_that_is_moved_out_of_what_is_lent_leads_nowhere() {
    let world = World::up();
    let (lent, outside) = (world.folder("lent"), world.folder("outside"));
    fs::write(outside.join("secret"), "of the host\n").expect("a file");
    // Held open from inside, then moved on the host: its parent is a folder that was never lent.
    let body = r#"
import time
held = os.open("/mnt/lent/sub", os.O_RDONLY)
print("here:", sorted(os.listdir(held)), flush=True)
print("held", flush=True)
while not os.path.exists("/mnt/lent/moved"):
    time.sleep(0.01)
print("still there:", sorted(os.listdir(held)), flush=True)
attempt("parent", lambda: os.open("..", os.O_RDONLY, dir_fd=held))
attempt("beside", lambda: os.open("../secret", os.O_RDONLY, dir_fd=held))
os.fchdir(held)
attempt("parent-of-work-dir", lambda: os.listdir(".."))
attempt("through-proc", lambda: os.listdir("/proc/self/cwd/.."))
attempt("root", lambda: os.listdir("/proc/self/root/../outside"))
"#;
    for (number, user) in users().iter().enumerate() {
        let (sub, moved) = (lent.join("sub"), outside.join(format!("sub{number}")));
        fs::create_dir(&sub).expect("a folder");
        fs::write(sub.join("file"), "lent\n").expect("a file");
        let (mount, program) = (format!("{}:/mnt/lent:ro", lent.display()), probe::program(body));
        let mut command = world.command();
        command.arg("run").args(*user).args(["--mount", &mount, "--", "/usr/bin/python3", "-c", &program]);
        let mut running = holm_e2e::ran::Running::start(&mut command);
        running.says("held");
        fs::rename(&sub, &moved).expect("moved");
        fs::write(lent.join("moved"), "").expect("a file");
        let ran = running.wait().succeeds();
        assert!(ran.text().contains("here: ['file']") && ran.text().contains("still there: ['file']"), "{ran}");
        let mut attempts = Attempts::of(ran);
        for name in ["parent", "beside", "parent-of-work-dir", "through-proc", "root"] {
            attempts.refused(name, &["ENOENT"]);
        }
        attempts.no_more();
        fs::remove_file(lent.join("moved")).expect("a file");
    }
}

#[test]
fn the_kernels_files_tell_and_take_nothing() {
    let world = World::up();
    let body = r#"
for path in ["kernel/hostname", "kernel/core_pattern", "vm/drop_caches", "fs/binfmt_misc/register", "net/ipv4/ip_forward"]:
    attempt("sysctl", lambda: open("/proc/sys/" + path, "w"))
attempt("irq", lambda: open("/proc/irq/default_smp_affinity", "w"))
attempt("dmesg", lambda: os.open("/dev/kmsg", os.O_RDONLY))
attempt("init-environment", lambda: open("/proc/1/environ").read())
for name in ["keys", "kmsg", "timer_list", "locks", "diskstats", "partitions", "config.gz"]:
    if os.path.exists("/proc/" + name):
        print("masked", name, repr(open("/proc/" + name).read()), flush=True)
print("sys:", os.listdir("/sys"))
print("pressure:", os.listdir("/proc/pressure") if os.path.exists("/proc/pressure") else [])
print("environment:", sorted(v for v in os.environ.values() if "HOST" in v))
"#
    .replace("HOST", &world.dir().display().to_string());
    for user in users() {
        let ran = python(&world, user, &body).succeeds();
        let text = ran.text();
        for name in ["keys", "locks", "diskstats", "partitions"] {
            assert!(text.contains(&format!("masked {name} ''")), "{name}: {ran}");
        }
        assert!(text.lines().filter(|line| line.starts_with("masked")).all(|line| line.ends_with("''")), "{ran}");
        assert!(text.contains("sys: []") && text.contains("pressure: []") && text.contains("environment: []"), "{ran}");
        let mut attempts = Attempts::of(ran);
        attempts.refused("sysctl", &["EROFS", "EACCES", "EPERM", "ENOENT"]);
        attempts.refused("irq", &["EROFS", "EACCES", "EPERM"]);
        attempts.refused("dmesg", &["ENOENT"]);
        attempts.refused("init-environment", &["EACCES", "EPERM"]);
        attempts.no_more();
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
        let arguments = ["--mount", mount.as_str(), "--", "/usr/bin/python3", "-c", program.as_str()];
        let mut attempts = Attempts::of(run_as(&world, user, arguments));
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
