"""Tries one thing after the other and prints how each went: `NAME ok` or `NAME ERRNO`."""
import ctypes, errno, os, stat, sys

libc = ctypes.CDLL(None, use_errno=True)
NEWUSER, NEWNS = 0x10000000, 0x00020000
BIND, REMOUNT, RDONLY = 4096, 32, 1


def attempt(name, what):
    try:
        what()
    except OSError as error:
        print(name, errno.errorcode.get(error.errno, error.errno), flush=True)
    else:
        print(name, "ok", flush=True)


def call(number, *arguments):
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    if libc.syscall(ctypes.c_long(number), *words) < 0:
        raise OSError(ctypes.get_errno(), "refused")


def mount(source, target, kind, flags=0):
    call(165, source, target, kind, flags, None)


def in_child(what):
    """As a process of its own, because what works would change this one."""
    pid = os.fork()
    if pid == 0:
        try:
            what()
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(abs(code), "refused")


def in_own_namespaces(what):
    def enter():
        call(272, NEWUSER | NEWNS)
        what()
    in_child(enter)


for line in open("/proc/self/status"):
    name, value = line.split(":", 1)
    if name in ("CapEff", "Seccomp"):
        print(name, value.strip(), flush=True)
buffer = ctypes.create_string_buffer(64)
os.makedirs("/tmp/place", exist_ok=True)
attempt("mount-tmpfs", lambda: in_child(lambda: mount(b"none", b"/tmp/place", b"tmpfs")))
attempt("mount-bind", lambda: in_child(lambda: mount(b"/ro", b"/tmp/place", None, BIND)))
attempt("mount-writable", lambda: in_child(lambda: mount(b"none", b"/ro", None, REMOUNT | BIND)))
attempt("mount-unmask", lambda: in_child(lambda: call(166, b"/proc/sys", 2)))
attempt("mount-own-namespaces", lambda: in_own_namespaces(lambda: mount(b"none", b"/tmp/place", b"tmpfs")))
attempt("write-read-only", lambda: open("/ro/file", "w"))
attempt("trace-attach", lambda: call(101, 16, 1, 0, 0))
attempt("trace-seize", lambda: call(101, 0x4206, 1, 0, 0))
attempt("trace-mem", lambda: os.open("/proc/1/mem", os.O_RDWR))
attempt("trace-environ", lambda: open("/proc/1/environ").read())
attempt("trace-root", lambda: os.listdir("/proc/1/root/"))
vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 64)
attempt("trace-read", lambda: call(310, 1, vector, 1, vector, 1, 0))
attempt("trace-write", lambda: call(311, 1, vector, 1, vector, 1, 0))
attempt("trace-steal", lambda: call(438, os.pidfd_open(1), 3, 0))
attempt("device-char", lambda: os.mknod("/tmp/mem", stat.S_IFCHR | 0o600, os.makedev(1, 1)))
attempt("device-block", lambda: os.mknod("/tmp/sda", stat.S_IFBLK | 0o600, os.makedev(8, 0)))
for pid in map(int, sys.argv[1:]):
    attempt("signal-outward", lambda: os.kill(pid, 9))
try:
    # The kernel lets root inside send it, and drops it: nobody kills the init of the namespace that he is in.
    os.kill(1, 9)
except OSError:
    pass
print("end", flush=True)
