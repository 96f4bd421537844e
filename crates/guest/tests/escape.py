"""Tries what a sandbox must refuse; prints each attempt that went through."""
import ctypes, errno, os, resource, socket, stat, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
ROOT = os.getuid() == 0
through = []

def call(name, number, *arguments, allowed=(errno.EPERM, errno.ENOSYS)):
    arguments = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result >= 0 or ctypes.get_errno() not in allowed:
        through.append(f"{name}: {result} {errno.errorcode.get(ctypes.get_errno())}")

def refused(name, attempt, allowed=(errno.EPERM, errno.EACCES)):
    try:
        through.append(f"{name}: {attempt()!r}")
    except OSError as error:
        if error.errno not in allowed:
            through.append(f"{name}: {error}")

buffer = ctypes.create_string_buffer(4096)
call("mount", 165, b"none", b"/tmp", b"tmpfs", 0, None)
call("remount /ro", 165, b"none", b"/ro", None, 32 | 4096, None)
call("umount2", 166, b"/proc", 2)
call("pivot_root", 155, b"/", b"/")
call("mount_setattr", 442, -100, b"/ro", 0, buffer, 32)
call("open_tree", 428, -100, b"/", 1)
call("fsopen", 430, b"tmpfs", 0)
call("move_mount", 429, -1, b"", -1, b"", 0)
for flag in (0x10000000, 0x00020000, 0x20000000, 0x40000000, 0x04000000, 0x08000000, 0x02000000):
    call(f"unshare {flag:#x}", 272, flag)
    call(f"clone {flag:#x}", 56, flag | 17, 0, 0, 0, 0)
call("clone3", 435, buffer, 88, allowed=(errno.ENOSYS,))
call("setns", 308, os.open("/proc/self/ns/net", os.O_RDONLY), 0)
call("keyctl", 250, 0, -3, 1)
call("add_key", 248, b"user", b"x", b"x", 1, -3)
call("request_key", 249, b"user", b"x", None, -3)
call("bpf", 321, 0, buffer, 48)
call("io_uring_setup", 425, 1, buffer)
call("userfaultfd", 323, 0)
call("perf_event_open", 298, buffer, 0, -1, -1, 0)
call("init_module", 175, buffer, 16, b"")
call("finit_module", 313, 0, b"", 0)
call("kexec_load", 246, 0, 0, None, 0)
call("open_by_handle_at", 304, -100, buffer, 0)
call("pidfd_getfd", 438, 0, 0, 0)
call("settimeofday", 164, buffer, None)
call("sethostname", 170, b"other", 5)
call("personality", 135, 0x0400000)
call("iopl", 172, 3)
call("swapon", 167, b"/tmp", 0)
call("x32 getpid", 0x40000000 + 39, allowed=(errno.ENOSYS,))
call("unknown", 1000, allowed=(errno.ENOSYS,))
# The init inside, and every number near it: neither traced nor read nor signalled with effect.
call("ptrace init", 101, 16, 1, 0, 0)
refused("/proc/1/mem", lambda: os.open("/proc/1/mem", os.O_RDWR))
refused("/proc/1/root", lambda: os.listdir("/proc/1/root/"))
refused("/proc/1/fd", lambda: os.listdir("/proc/1/fd"))
refused("/proc/1/environ", lambda: open("/proc/1/environ").read())
refused("/proc/1/ns", lambda: os.readlink("/proc/1/ns/mnt"))
try:
    os.kill(1, 9)
except PermissionError:
    pass
# Processes inside only, none of the guest's or the host's.
for pid in filter(str.isdigit, os.listdir("/proc")):
    command = open(f"/proc/{pid}/cmdline", "rb").read()
    if int(pid) not in (1, os.getpid()) and b"guest" in command:
        through.append(f"sees {pid}: {command}")
for kind in (stat.S_IFCHR, stat.S_IFBLK):
    refused("mknod", lambda: os.mknod("/tmp/node", kind | 0o600, os.makedev(1, 1)))
for family, kind, protocol in ((40, 1, 0), (17, 3, 0), (38, 5, 0), (16, 3, 4), (16, 3, 9), (2, 3, 1), (44, 3, 0)):
    refused(f"socket {family} {kind} {protocol}", lambda: socket.socket(family, kind, protocol).close())
for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_NPROC, resource.RLIMIT_MEMLOCK):
    soft, hard = resource.getrlimit(limit)
    if hard != resource.RLIM_INFINITY:
        try:
            resource.setrlimit(limit, (soft, hard + 1))
            through.append(f"limit {limit}")
        except (OSError, ValueError):
            pass
refused("nice", lambda: os.nice(-5))
for path in ("/proc/sys/kernel/hostname", "/proc/sys/net/ipv4/ip_forward", "/proc/sysrq-trigger", "/ro/file"):
    # Not every kernel has each of them; the last has to be refused, not missing.
    if path.startswith("/proc") and not os.path.exists(path):
        continue
    refused(path, lambda: open(path, "w").write("1"), (errno.EROFS, errno.EACCES, errno.EPERM))
for path in ("/proc/kcore", "/proc/keys", "/proc/timer_list"):
    try:
        if open(path, "rb").read(1):
            through.append(f"reads {path}")
    except (PermissionError, FileNotFoundError):
        pass
if os.path.exists("/layers") and os.listdir("/layers"):
    through.append("sees the layers of the work dir")
# Descriptors: the three and what this program opened itself.
for fd in map(int, os.listdir("/proc/self/fd")):
    target = os.readlink(f"/proc/self/fd/{fd}") if os.path.lexists(f"/proc/self/fd/{fd}") else ""
    if fd > 2 and target.startswith(("socket:", "anon_inode:", "pipe:")):
        through.append(f"inherited {fd}: {target}")
# The way out of a chroot ends at the sandbox's own root.
if ROOT:
    os.makedirs("/tmp/jail", exist_ok=True)
    here = os.open("/", os.O_RDONLY)
    os.chroot("/tmp/jail")
    os.fchdir(here)
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    if not os.path.exists("/etc/passwd") or os.path.exists("/boot"):
        through.append("left the root by chroot")
status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
kept = int(status["CapEff"], 16)
if kept != (0x800405FB if ROOT else 0) or int(status["CapBnd"], 16) != 0x800405FB or int(status["CapInh"], 16) or int(status["CapAmb"], 16):
    through.append(f"capabilities {kept:#x} {status['CapBnd']} {status['CapInh']} {status['CapAmb']}")
if status["Seccomp"] != "2" or status["NoNewPrivs"] != "1":
    through.append(f"seccomp {status['Seccomp']}, no_new_privs {status['NoNewPrivs']}")
print("\n".join(through) if through else "sealed")
