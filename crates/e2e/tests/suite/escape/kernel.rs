//! The kernel: mounts, namespaces, modules, keyrings, devices, limits.

use holm_e2e::{World, probe::Attempts};

use super::{NO, attempts, python, users};

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
    # One's own can be opened, so it is the call that is refused: without a filter the answer would be another.
    own = os.open("/proc/self/ns/" + name, os.O_RDONLY)
    attempt("setns-own-" + name, lambda: checked(libc.setns(own, 0)))
own = os.pidfd_open(os.getpid())
attempt("setns-pidfd", lambda: checked(libc.setns(own, NEWUSER)))
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
            attempts.refused(name, &["EPERM", "EACCES"]);
            attempts.refused(&name.replace("setns-", "setns-own-"), &["EPERM"]);
        }
        attempts.refused("setns-pidfd", &["EPERM"]);
        attempts.no_more();
    }
}

/// What a user sees. Most of these calls the kernel refuses by itself to who has no capability over the host, so this cannot
/// tell by which wall it was: it fails where no wall is left, not where one of several is missing.
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
        let ran = python(&world, user, body).succeeds();
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
fn a_crash_leaves_no_core_whatever_limit_is_asked_for() {
    let world = World::up();
    // Both calls answer that it is done, as careful programs lower the limit and end where they cannot; nothing changes.
    let body = r#"
import resource, signal
class rlimit(ctypes.Structure):
    _fields_ = [("soft", ctypes.c_uint64), ("hard", ctypes.c_uint64)]
CORE, INFINITY = 4, 2 ** 64 - 1
print("before", *resource.getrlimit(resource.RLIMIT_CORE), flush=True)
for wanted in (INFINITY, 1 << 30, 0):
    limit = rlimit(wanted, wanted)
    print("prlimit", syscall(302, 0, CORE, ctypes.byref(limit), None), *resource.getrlimit(resource.RLIMIT_CORE))
    print("setrlimit", syscall(160, CORE, ctypes.byref(limit)), *resource.getrlimit(resource.RLIMIT_CORE))
sys.stdout.flush()
os.makedirs("/tmp/crash")
os.chdir("/tmp/crash")
child = os.fork()
if child == 0:
    resource.setrlimit(resource.RLIMIT_CORE, (1 << 30, 1 << 30))
    os.kill(os.getpid(), signal.SIGSEGV)
_, status = os.waitpid(child, 0)
print("crashed", os.WTERMSIG(status), "core", os.WCOREDUMP(status), os.listdir("."), flush=True)
"#;
    let hard = rustix::process::getrlimit(rustix::process::Resource::Core).maximum;
    let kept = if hard == Some(0) { "0 0" } else { "1 1" };
    for user in users() {
        let ran = python(&world, user, body).succeeds();
        let asked = format!("prlimit 0 {kept}\nsetrlimit 0 {kept}\n").repeat(3);
        assert_eq!(ran.text(), format!("before {kept}\n{asked}crashed 11 core False []\n"), "{ran}");
    }
}

#[test]
fn limits_and_priorities_are_not_raised() {
    let world = World::up();
    let body = r#"
import resource
class rlimit(ctypes.Structure):
    _fields_ = [("soft", ctypes.c_uint64), ("hard", ctypes.c_uint64)]
for name in ["NOFILE", "NPROC", "MEMLOCK", "NICE", "RTPRIO"]:
    number = getattr(resource, "RLIMIT_" + name)
    hard = resource.getrlimit(number)[1]
    if hard == resource.RLIM_INFINITY:
        print("unlimited", name, flush=True)
        continue
    attempt("raise-" + name, lambda: syscall(302, 0, number, ctypes.byref(rlimit(hard + 1, hard + 1)), None))
attempt("nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, -10))
attempt("realtime", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10)))
attempt("oom", lambda: os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"-1000"))
"#;
    for user in users() {
        let ran = python(&world, user, body).succeeds();
        let unlimited: Vec<String> =
            ran.text().lines().filter_map(|line| Some(line.strip_prefix("unlimited ")?.to_owned())).collect();
        // Processes are limited by the control group where the host has no limit of its own for them.
        assert!(unlimited.iter().all(|name| ["NPROC", "MEMLOCK"].contains(&name.as_str())), "{ran}");
        let mut attempts = Attempts::of(ran);
        for name in ["NOFILE", "NPROC", "MEMLOCK", "NICE", "RTPRIO"] {
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
