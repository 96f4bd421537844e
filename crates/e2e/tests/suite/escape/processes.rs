//! Processes: of the host, and the guest that started the workload.

use std::process::{Command, Stdio};

use holm_e2e::{World, host, probe::Attempts, ran::Running, unique};

use super::{NO, python, users};

/// No sandbox of these tests has ever had so many processes.
const IDS_INSIDE_MAX: u32 = 100;

#[test]
fn processes_of_the_host_are_neither_seen_nor_reached() {
    let world = World::up();
    let word = unique("86392");
    let mut canary = Command::new("bash");
    canary.args(["-c", &format!("exec -a {word} sleep 86392")]).stdin(Stdio::null());
    let mut canary = Running::start(&mut canary);
    holm_e2e::eventually("the canary runs", || (!host::find(&word).is_empty()).then_some(()));
    let shim_and_server: Vec<u32> = world.marks().processes();
    // Small ids exist inside as well, where they mean others.
    let outside = shim_and_server.iter().copied().chain([canary.pid()]).filter(|pid| *pid > IDS_INSIDE_MAX);
    let ids: Vec<String> = outside.map(|pid| pid.to_string()).collect();
    let body = format!(
        r#"
import signal
seen = [open("/proc/%s/cmdline" % p).read() for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()]
print("seen", len(seen))
print("canary", any("{word}" in line for line in seen))
# What is told of the agent and of the lease stays outside.
print("labelled", [line for line in seen if "holm." in line or os.environ["HOLM_RUN_ID"] in line])
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
        let ran = python(&world, user, &body).succeeds();
        assert!(ran.text().contains("canary False") && ran.text().contains("end"), "{ran}");
        assert!(ran.text().contains("labelled []\n"), "{ran}");
        assert!(ran.text().contains("seen 1\n"), "the init inside, and nobody else: {ran}");
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
attempt("fds", lambda: something(os.listdir("/proc/1/fd")))
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
        let ran = python(&world, user, body).succeeds();
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
