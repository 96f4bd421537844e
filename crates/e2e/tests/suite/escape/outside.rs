//! What lies outside: sockets of the host and of Holm, control groups.

use std::os::{
    linux::net::SocketAddrExt,
    unix::net::{SocketAddr, UnixListener},
};

use holm_e2e::{World, host, probe::Attempts, unique};

use super::{python, users};

#[test]
fn sockets_of_the_host_are_not_reached() {
    let world = World::up();
    let name = unique("holm-canary");
    let address = SocketAddr::from_abstract_name(&name).expect("an address");
    let _listener = UnixListener::bind_addr(&address).expect("a listener");
    let tcp = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a listener");
    let port = tcp.local_addr().expect("an address").port();
    let home = world.home();
    // The paths that are tried below lead to sockets, on the host.
    let id = world.detach(["--", "sleep", "86391"]);
    world.until_state(&id, "running");
    for socket in [home.join("up.sock"), home.join(format!("agent/runs/{id}.1/shim.sock"))] {
        let kind = std::fs::symlink_metadata(&socket).map(|meta| meta.file_type());
        let is_socket = kind.as_ref().is_ok_and(std::os::unix::fs::FileTypeExt::is_socket);
        assert!(is_socket, "{}: {kind:?}", socket.display());
    }
    world.holm(["cancel", "--kill", &id]).succeeds();
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
run = os.environ["HOLM_RUN_ID"]
attempt("shim", lambda: connect("{home}/agent/runs/%s.1/shim.sock" % run))
attempt("dbus", lambda: connect("/run/dbus/system_bus_socket"))
attempt("docker", lambda: connect("/var/run/docker.sock"))
found = [os.path.join(d, f) for top in ["/run", "/tmp", "/var", "/dev"] for d, _, fs in os.walk(top) for f in fs]
sockets = [p for p in found if os.path.lexists(p) and stat.S_ISSOCK(os.lstat(p).st_mode)]
print("sockets:", sockets)
# Flags (the fourth field) say that a socket listens; an eighth field is its name. Pairs of the guest's have neither.
rows = [line.split() for line in open("/proc/net/unix").read().splitlines()[1:]]
print("listening:", [row for row in rows if row[3] != "00000000" or len(row) > 7])
attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3))
attempt("vsock", lambda: socket.socket(40, socket.SOCK_STREAM).connect((2, 1024)))
"#,
        home = home.display(),
    );
    for user in users() {
        let ran = python(&world, user, &body).succeeds();
        assert!(ran.text().contains("sockets: []") && ran.text().contains("listening: []"), "{ran}");
        let mut attempts = Attempts::of(ran);
        attempts.refused("abstract", &["ECONNREFUSED", "EPERM", "EACCES"]);
        attempts.refused("server", &["ENOENT", "EACCES"]);
        attempts.refused("shim", &["ENOENT", "EACCES"]);
        attempts.refused("loopback", &["ECONNREFUSED"]);
        attempts.refused("dbus", &["ENOENT", "EACCES"]);
        attempts.refused("docker", &["ENOENT", "EACCES"]);
        attempts.refused("packet", &["EPERM", "EACCES", "EAFNOSUPPORT"]);
        attempts.refused("vsock", &["EPERM", "EACCES", "EAFNOSUPPORT", "ENODEV", "ENETUNREACH"]);
        attempts.no_more();
    }
}

#[test]
fn control_groups_are_out_of_reach() {
    let world = World::up();
    let body = r#"
kinds = [line.split(" - ")[1].split()[0] for line in open("/proc/self/mountinfo")]
print("mounted:", [kind for kind in kinds if kind.startswith("cgroup")], flush=True)
tops = [os.path.join("/", name) for name in os.listdir("/") if name not in ("proc", "usr")]
names = [f for top in tops for _, _, fs in os.walk(top) for f in fs]
print("files:", [name for name in names if name.startswith(("cgroup.", "memory.", "pids."))], flush=True)
attempt("list", lambda: os.listdir("/sys/fs/cgroup"))
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
        let ran = python(&world, user, body).succeeds();
        if host::is_root() {
            assert!(!ran.text().contains("leaks"), "{ran}");
        }
        assert!(ran.text().contains("mounted: []\nfiles: []\n"), "{ran}");
        let mut attempts = Attempts::of(ran);
        attempts.refused("list", &["ENOENT"]);
        for name in
            ["memory/memory.limit_in_bytes", "pids/pids.max", "cgroup.procs", "unified/cgroup.procs", "release_agent"]
        {
            attempts.refused(&format!("write-{name}"), &["ENOENT"]);
        }
        attempts.no_more();
    }
}
