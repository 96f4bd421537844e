//! Attempts to get out of a sandbox, each refused: as root inside and as a user inside.
//!
//! The attempts run inside, in Python, one after the other; see [`holm_e2e::probe`] for why an attempt that was not made
//! fails the test. Numbers of system calls are those of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl).

use std::{
    collections::BTreeSet,
    fs,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    process::{Command, Stdio},
};

use holm_e2e::{World, host, probe, probe::Attempts, ran::Running, unique};

/// Who tries. A plain user on the host has one id to give, so inside there is only root.
fn users() -> &'static [&'static str] {
    if host::is_root() { &["0", "1000:1000"] } else { &["0"] }
}

fn attempts(world: &World, user: &str, body: &str) -> Attempts {
    let program = probe::program(body);
    Attempts::of(world.run(["--user", user, "--", "/usr/bin/python3", "-c", &program]))
}

/// The kernel's ways to say no: not permitted, no access, or a filter that acts as if there were no such call.
const NO: [&str; 3] = ["EPERM", "EACCES", "ENOSYS"];
/// What is not there cannot be opened.
const ABSENT: [&str; 3] = ["ENOENT", "EACCES", "EPERM"];

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
fn processes_of_the_host_are_neither_seen_nor_reached() {
    let world = World::up();
    let word = unique("86392");
    let mut canary = Command::new("bash");
    canary.args(["-c", &format!("exec -a {word} sleep 86392")]).stdin(Stdio::null());
    let mut canary = Running::start(&mut canary);
    holm_e2e::eventually("the canary runs", || (!host::find(&word).is_empty()).then_some(()));
    let shim_and_server: Vec<u32> = world.marks().processes();
    let ids: Vec<String> =
        shim_and_server.iter().chain([&canary.pid()]).filter(|pid| **pid > 1_000).map(u32::to_string).collect();
    let body = format!(
        r#"
import signal
seen = [open("/proc/%s/cmdline" % p).read() for p in os.listdir("/proc") if p.isdigit()]
print("canary", any("{word}" in line for line in seen))
for pid in [{ids}]:
    attempt("kill", lambda: os.kill(pid, signal.SIGKILL))
    attempt("pidfd", lambda: os.pidfd_open(pid))
    attempt("status", lambda: open("/proc/%d/status" % pid).read())
try:
    os.kill(-1, signal.SIGKILL)
except OSError:
    pass
print("end", flush=True)
"#,
        ids = ids.join(", "),
    );
    for user in users() {
        let ran = world.run(["--user", user, "--", "/usr/bin/python3", "-c", &probe::program(&body)]).succeeds();
        assert!(ran.text().contains("canary False") && ran.text().contains("end"), "{ran}");
        let mut attempts = Attempts::of(ran);
        attempts.refused("kill", &["ESRCH"]);
        attempts.refused("pidfd", &["ESRCH", "EINVAL", "EPERM", "ENOSYS"]);
        attempts.refused("status", &["ENOENT"]);
        attempts.no_more();
        assert!(canary.is_alive(), "a signal to everybody reached the host");
    }
    assert!(shim_and_server.iter().all(|pid| host::is_alive(*pid)), "a process of Holm was hit");
}

#[test]
fn the_guest_is_neither_traced_nor_read() {
    let world = World::up();
    let body = r#"
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
own = os.getpid()
others = [int(p) for p in os.listdir("/proc") if p.isdigit() and int(p) != own]
print("pids", others)
class iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
buffer = ctypes.create_string_buffer(64)
vector = iovec(ctypes.addressof(buffer), 64)
attempt("attach", lambda: syscall(101, PTRACE_ATTACH, 1, 0, 0))
attempt("seize", lambda: syscall(101, PTRACE_SEIZE, 1, 0, 0))
attempt("read-memory", lambda: syscall(310, 1, ctypes.byref(vector), 1, ctypes.byref(vector), 1, 0))
attempt("write-memory", lambda: syscall(311, 1, ctypes.byref(vector), 1, ctypes.byref(vector), 1, 0))
attempt("mem", lambda: open("/proc/1/mem", "rb"))
attempt("mem-write", lambda: open("/proc/1/mem", "wb"))
attempt("environ", lambda: open("/proc/1/environ", "rb").read())
attempt("maps", lambda: open("/proc/1/maps").read(1))
attempt("fds", lambda: os.listdir("/proc/1/fd"))
attempt("exe", lambda: open("/proc/1/exe", "rb").read(4))
attempt("cwd", lambda: os.listdir("/proc/1/cwd"))
def steal():
    fd = os.pidfd_open(1)
    return [syscall(438, fd, number, 0) for number in range(3, 16)]
attempt("steal-descriptor", steal)
import signal
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
    try:
        os.kill(1, number)
    except OSError:
        pass
print("still here", flush=True)
"#;
    for user in users() {
        let ran = world.run(["--user", user, "--", "/usr/bin/python3", "-c", &probe::program(body)]).succeeds();
        assert!(ran.text().contains("still here"), "{ran}");
        let mut attempts = Attempts::of(ran);
        for name in ["attach", "seize", "read-memory", "write-memory", "mem", "mem-write", "environ", "maps"] {
            attempts.refused(name, &NO);
        }
        for name in ["fds", "exe", "cwd"] {
            attempts.refused(name, &["EPERM", "EACCES", "ENOENT"]);
        }
        attempts.refused("steal-descriptor", &NO);
        attempts.no_more();
    }
}

#[test]
fn mounts_and_namespaces_are_refused() {
    let world = World::up();
    let body = r#"
NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
def mount(source, target, kind, flags=0, data=None):
    return checked(libc.mount(source, target, kind, ctypes.c_ulong(flags), data))
os.makedirs("/tmp/place", exist_ok=True)
attempt("mount-tmpfs", lambda: mount(b"none", b"/tmp/place", b"tmpfs"))
attempt("mount-proc", lambda: mount(b"none", b"/tmp/place", b"proc"))
attempt("mount-sysfs", lambda: mount(b"none", b"/tmp/place", b"sysfs"))
attempt("mount-cgroup", lambda: mount(b"none", b"/tmp/place", b"cgroup"))
attempt("mount-cgroup2", lambda: mount(b"none", b"/tmp/place", b"cgroup2"))
attempt("mount-overlay", lambda: mount(b"none", b"/tmp/place", b"overlay", 0, b"lowerdir=/usr:/etc"))
attempt("bind", lambda: mount(b"/proc", b"/tmp/place", None, 4096))
attempt("remount", lambda: mount(b"none", b"/usr", None, 32 | 4096))
attempt("propagate", lambda: mount(b"none", b"/", None, 1 << 20 | 16384))
attempt("umount", lambda: checked(libc.umount2(b"/proc", 2)))
attempt("pivot", lambda: syscall(155, b"/tmp", b"/tmp/place"))
attempt("open-tree", lambda: syscall(428, -100, b"/", 1))
attempt("move-mount", lambda: syscall(429, -100, b"/tmp", -100, b"/tmp/place", 0))
attempt("fsopen", lambda: syscall(430, b"tmpfs", 0))
attempt("mount-setattr", lambda: syscall(442, -100, b"/", 0, (ctypes.c_uint64 * 4)(), 32))
for name, flag in [("user", NEWUSER), ("mount", NEWNS), ("net", NEWNET), ("pid", NEWPID), ("uts", NEWUTS),
                   ("ipc", NEWIPC), ("cgroup", NEWCGROUP), ("user-mount", NEWUSER | NEWNS)]:
    attempt("unshare-" + name, lambda: checked(libc.unshare(flag)))
attempt("clone-user", lambda: syscall(56, NEWUSER | 17, 0, 0, 0, 0))
attempt("clone3", lambda: syscall(435, (ctypes.c_uint64 * 11)(NEWUSER, 0, 0, 0, 17), 88))
for name in ["user", "mnt", "net", "pid", "uts", "ipc"]:
    attempt("setns-" + name, lambda: checked(libc.setns(os.open("/proc/1/ns/" + name, os.O_RDONLY), 0)))
"#;
    let kinds = ["tmpfs", "proc", "sysfs", "cgroup", "cgroup2", "overlay"].map(|kind| format!("mount-{kind}"));
    let unshared = ["user", "mount", "net", "pid", "uts", "ipc", "cgroup", "user-mount"];
    let unshared = unshared.map(|name| format!("unshare-{name}"));
    let others = ["bind", "remount", "propagate", "umount", "pivot", "open-tree", "move-mount", "fsopen"];
    let joined = ["user", "mnt", "net", "pid", "uts", "ipc"].map(|name| format!("setns-{name}"));
    for user in users() {
        let mut attempts = attempts(&world, user, body);
        for name in kinds.iter().chain(&unshared).map(String::as_str).chain(others) {
            attempts.refused(name, &NO);
        }
        for name in ["mount-setattr", "clone-user", "clone3"] {
            attempts.refused(name, &NO);
        }
        for name in &joined {
            attempts.refused(name, &["EPERM", "EACCES", "ENOSYS", "EINVAL"]);
        }
        attempts.no_more();
    }
}

#[test]
fn calls_that_reach_into_the_kernel_are_refused() {
    let world = World::up();
    let body = r#"
empty = ctypes.create_string_buffer(256)
calls = {
    "init-module": (175, empty, 256, b""), "finit-module": (313, 0, b"", 0), "delete-module": (176, b"loop", 0),
    "kexec-load": (246, 0, 0, None, 0), "reboot": (169, 0xfee1dead, 672274793, 0, None), "acct": (163, b"/tmp/acct"),
    "swapon": (167, b"/tmp/swap", 0), "swapoff": (168, b"/tmp/swap"), "settimeofday": (164, empty, None),
    "clock-settime": (227, 0, empty), "sethostname": (170, b"evil", 4), "setdomainname": (171, b"evil", 4),
    "add-key": (248, b"user", b"name", b"x", 1, -3), "request-key": (249, b"user", b"name", None, -3),
    "keyctl": (250, 0, -3, 1), "keyctl-join": (250, 1, b"name"), "bpf": (321, 0, empty, 72),
    "userfaultfd": (323, 0), "perf-event-open": (298, empty, 0, -1, -1, 0), "io-uring-setup": (425, 8, empty),
    "open-by-handle-at": (304, -100, empty, 0), "iopl": (172, 3), "ioperm": (173, 0, 1024, 1),
    "quotactl": (179, 0, None, 0, None), "syslog": (103, 3, empty, 16),
}
for name, (number, *arguments) in calls.items():
    attempt(name, lambda: syscall(number, *arguments))
"#;
    let names = [
        "init-module",
        "finit-module",
        "delete-module",
        "kexec-load",
        "reboot",
        "acct",
        "swapon",
        "swapoff",
        "settimeofday",
        "clock-settime",
        "sethostname",
        "setdomainname",
        "add-key",
        "request-key",
        "keyctl",
        "keyctl-join",
        "bpf",
        "userfaultfd",
        "perf-event-open",
        "io-uring-setup",
        "open-by-handle-at",
        "iopl",
        "ioperm",
        "quotactl",
        "syslog",
    ];
    for user in users() {
        let mut attempts = attempts(&world, user, body);
        for name in names {
            attempts.refused(name, &NO);
        }
        attempts.no_more();
    }
}

#[test]
fn devices_are_neither_made_nor_found() {
    let world = World::up();
    let body = r#"
attempt("mknod-block", lambda: os.mknod("/tmp/sda", stat.S_IFBLK | 0o600, os.makedev(8, 0)))
attempt("mknod-char", lambda: os.mknod("/tmp/mem", stat.S_IFCHR | 0o600, os.makedev(1, 1)))
for name in ["mem", "kmem", "port", "kmsg", "sda", "vda", "kvm", "fuse", "loop-control", "net/tun", "mapper/control"]:
    attempt("open-" + name, lambda: os.open("/dev/" + name, os.O_RDONLY))
attempt("core-pattern", lambda: open("/proc/sys/kernel/core_pattern", "w"))
attempt("sysrq", lambda: open("/proc/sysrq-trigger", "w"))
attempt("kcore", lambda: open("/proc/kcore", "rb").read(1))
attempt("hotplug", lambda: open("/sys/kernel/uevent_helper", "w"))
attempt("modprobe", lambda: open("/proc/sys/kernel/modprobe", "w"))
devices = sorted(os.path.join(d, f) for d, _, fs in os.walk("/dev") for f in fs)
block = [p for p in devices if stat.S_ISBLK(os.lstat(p).st_mode)]
print("block devices:", block)
"#;
    for user in users() {
        let ran = world.run(["--user", user, "--", "/usr/bin/python3", "-c", &probe::program(body)]).succeeds();
        assert!(ran.text().contains("block devices: []"), "{ran}");
        let mut attempts = Attempts::of(ran);
        attempts.refused("mknod-block", &NO);
        attempts.refused("mknod-char", &NO);
        let names =
            ["mem", "kmem", "port", "kmsg", "sda", "vda", "kvm", "fuse", "loop-control", "net/tun", "mapper/control"];
        for name in names {
            attempts.refused(&format!("open-{name}"), &["ENOENT", "EACCES", "EPERM", "ENOTDIR"]);
        }
        for name in ["core-pattern", "sysrq", "kcore", "hotplug", "modprobe"] {
            attempts.refused(name, &["EROFS", "EACCES", "EPERM", "ENOENT"]);
        }
        attempts.no_more();
    }
}

#[test]
fn limits_and_priorities_are_not_raised() {
    let world = World::up();
    let body = r#"
import resource
class rlimit(ctypes.Structure):
    _fields_ = [("soft", ctypes.c_uint64), ("hard", ctypes.c_uint64)]
for name in ["NOFILE", "NPROC", "CORE", "MEMLOCK", "NICE", "RTPRIO"]:
    number = getattr(resource, "RLIMIT_" + name)
    hard = resource.getrlimit(number)[1]
    if hard == resource.RLIM_INFINITY:
        print("unlimited", name, flush=True)
        continue
    attempt("raise-" + name, lambda: syscall(302, 0, number, ctypes.byref(rlimit(hard + 1, hard + 1)), None))
attempt("nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, -10))
attempt("realtime", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10)))
attempt("oom", lambda: open("/proc/self/oom_score_adj", "w").write("-1000") and None)
"#;
    for user in users() {
        let ran = world.run(["--user", user, "--", "/usr/bin/python3", "-c", &probe::program(body)]).succeeds();
        let unlimited: Vec<String> =
            ran.text().lines().filter_map(|line| Some(line.strip_prefix("unlimited ")?.to_owned())).collect();
        // Processes are limited by the control group where the host has no limit of its own for them.
        assert!(unlimited.iter().all(|name| ["NPROC", "MEMLOCK"].contains(&name.as_str())), "{ran}");
        let mut attempts = Attempts::of(ran);
        for name in ["NOFILE", "NPROC", "CORE", "MEMLOCK", "NICE", "RTPRIO"] {
            if !unlimited.iter().any(|found| found == name) {
                attempts.refused(&format!("raise-{name}"), &NO);
            }
        }
        for name in ["nice", "realtime", "oom"] {
            attempts.refused(name, &NO);
        }
        attempts.no_more();
    }
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
fn sockets_of_the_host_are_not_reached() {
    let world = World::up();
    let name = unique("holm-canary");
    let address = SocketAddr::from_abstract_name(&name).expect("an address");
    let _listener = UnixListener::bind_addr(&address).expect("a listener");
    let tcp = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a listener");
    let port = tcp.local_addr().expect("an address").port();
    let home = world.home();
    let body = format!(
        r#"
def connect(address):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(30)
    s.connect(address)
def tcp(host, port):
    s = socket.socket()
    s.settimeout(30)
    s.connect((host, port))
attempt("abstract", lambda: connect("\0{name}"))
attempt("server", lambda: connect("{home}/up.sock"))
attempt("loopback", lambda: tcp("127.0.0.1", {port}))
attempt("dbus", lambda: connect("/run/dbus/system_bus_socket"))
attempt("docker", lambda: connect("/var/run/docker.sock"))
found = [os.path.join(d, f) for top in ["/run", "/tmp", "/var", "/dev"] for d, _, fs in os.walk(top) for f in fs]
sockets = [p for p in found if os.path.lexists(p) and stat.S_ISSOCK(os.lstat(p).st_mode)]
print("sockets:", sockets)
print("listening:", open("/proc/net/unix").read().splitlines()[1:])
attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3))
attempt("vsock", lambda: socket.socket(40, socket.SOCK_STREAM).connect((2, 1024)))
"#,
        home = home.display(),
    );
    for user in users() {
        let ran = world.run(["--user", user, "--", "/usr/bin/python3", "-c", &probe::program(&body)]).succeeds();
        assert!(ran.text().contains("sockets: []") && ran.text().contains("listening: []"), "{ran}");
        let mut attempts = Attempts::of(ran);
        attempts.refused("abstract", &["ECONNREFUSED", "EPERM", "EACCES"]);
        attempts.refused("server", &["ENOENT", "EACCES"]);
        attempts.refused("loopback", &["ECONNREFUSED"]);
        attempts.refused("dbus", &["ENOENT", "EACCES"]);
        attempts.refused("docker", &["ENOENT", "EACCES"]);
        attempts.refused("packet", &["EPERM", "EACCES", "EAFNOSUPPORT"]);
        attempts.refused("vsock", &["EPERM", "EACCES", "EAFNOSUPPORT", "ENODEV", "ENETUNREACH"]);
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

#[test]
fn control_groups_are_out_of_reach() {
    let world = World::up();
    let body = r#"
attempt("list", lambda: os.listdir("/sys/fs/cgroup") or checked(-1))
for line in open("/proc/self/cgroup"):
    path = line.rstrip("\n").split(":", 2)[2]
    print("group", path, flush=True)
    # Seen from a namespace of its own a process stands at the root: nothing above shows.
    if path.startswith("/..") or "holm" in path or "run_" in path:
        print("leaks", path, flush=True)
for name in ["memory/memory.limit_in_bytes", "pids/pids.max", "cgroup.procs", "unified/cgroup.procs", "release_agent"]:
    attempt("write-" + name, lambda: open("/sys/fs/cgroup/" + name, "w"))
"#;
    for user in users() {
        let ran = world.run(["--user", user, "--", "/usr/bin/python3", "-c", &probe::program(body)]).succeeds();
        if host::is_root() {
            assert!(!ran.text().contains("leaks"), "{ran}");
        }
        let mut attempts = Attempts::of(ran);
        attempts.refused("list", &["ENOENT", "EACCES", "EPERM", "0"]);
        for name in
            ["memory/memory.limit_in_bytes", "pids/pids.max", "cgroup.procs", "unified/cgroup.procs", "release_agent"]
        {
            attempts.refused(&format!("write-{name}"), &["ENOENT", "EACCES", "EPERM", "EROFS"]);
        }
        attempts.no_more();
    }
}
