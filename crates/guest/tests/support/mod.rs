//! A place for the guest as a runtime makes it: outer namespaces, a pivoted root, two lanes. Needs root.
#![allow(unsafe_code, missing_docs, clippy::unwrap_used, dead_code)]

use std::{
    ffi::CString,
    fs,
    io::{Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{net::UnixStream as StdStream, process::CommandExt},
    },
    process::{Child, Command, Stdio},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use holm_wire::{
    guest_api::{
        Exit, FrameDecoder, IdRange, OutputStream, ProcessStatus, SendSignal, SetUp, Setup, Spawn, Spawned,
        WorkDirLayers,
    },
    hello::{self, Hello, Lane, Limits},
    host_api::Refused,
    http2::{self, Client, Settings},
};
use http::{Method, StatusCode};
use tokio::{net::UnixStream, sync::mpsc};

static NEXT: AtomicU32 = AtomicU32::new(0);
static HOLD: Once = Once::new();

pub struct Sandbox {
    child: Child,
    pub lanes: [StdStream; 2],
    pub base_uid: u32,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One epoch from the host's side.
pub struct Epoch {
    pub client: Client,
    pub refused: mpsc::UnboundedReceiver<Refused>,
    tasks: tokio::task::JoinSet<()>,
}

fn check(result: libc::c_int) -> std::io::Result<()> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// The outer user namespace: 0 is one id, 1 to 65536 another range, as the runtime maps them.
fn user_namespace(base: u32) -> OwnedFd {
    let mut helper =
        Command::new("unshare").args(["-U", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // An echoed byte says that unshare has become cat.
    helper.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    helper.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let proc = format!("/proc/{}", helper.id());
    let map = format!("0 {} 1\n1 {} 65536\n", base + 1, base + 65_536);
    fs::write(format!("{proc}/gid_map"), &map).unwrap();
    fs::write(format!("{proc}/uid_map"), &map).unwrap();
    let namespace = fs::File::open(format!("{proc}/ns/user")).unwrap();
    drop(helper.stdin.take());
    helper.wait().unwrap();
    namespace.into()
}

fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong, data: &str) -> std::io::Result<()> {
    let [source, target, kind, data] = [source, target, kind, data].map(|text| CString::new(text).unwrap());
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) })
        .map_err(|error| std::io::Error::other(format!("mount {target:?}: {error}")))
}

/// The root as a runtime lays it out, with a work dir that is an overlay.
fn make_root() -> std::io::Result<()> {
    let root = "/tmp";
    mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE, "")?;
    mount("root", root, "tmpfs", libc::MS_NOSUID, "mode=0755")?;
    for dir in [
        "usr",
        "proc",
        "dev",
        "tmp",
        "etc",
        "run",
        "work",
        "layers",
        "layers/upper",
        "layers/work",
        "layers/lower",
        "ro",
        "home",
        "home/ann",
        "old",
    ] {
        fs::create_dir(format!("{root}/{dir}"))?;
    }
    for link in ["bin", "lib", "lib64", "sbin"] {
        std::os::unix::fs::symlink(format!("usr/{link}"), format!("{root}/{link}"))?;
    }
    mount("/usr", &format!("{root}/usr"), "", libc::MS_BIND | libc::MS_REC, "")?;
    for device in ["null", "zero", "urandom", "full"] {
        let target = format!("{root}/dev/{device}");
        fs::write(&target, "")?;
        mount(&format!("/dev/{device}"), &target, "", libc::MS_BIND, "")?;
    }
    fs::write(format!("{root}/etc/passwd"), "root:x:0:0::/:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n")?;
    fs::write(format!("{root}/etc/group"), "root:x:0:\nann:x:1000:\nextra:x:77:ann\n")?;
    fs::write(format!("{root}/etc/resolv.conf"), "nameserver 127.0.0.53\n")?;
    for (path, owner) in
        [("", 1), ("run", 1), ("home/ann", 1001), ("work", 1), ("layers/upper", 1), ("layers/lower", 1), ("tmp", 1)]
    {
        std::os::unix::fs::chown(format!("{root}/{path}"), Some(owner), Some(owner))?;
    }
    fs::write(format!("{root}/layers/lower/gone"), "gone")?;
    fs::create_dir(format!("{root}/layers/lower/replaced"))?;
    fs::write(format!("{root}/layers/lower/replaced/old"), "old")?;
    for path in ["gone", "replaced", "replaced/old"] {
        std::os::unix::fs::chown(format!("{root}/layers/lower/{path}"), Some(1), Some(1))?;
    }
    let layers =
        format!("userxattr,lowerdir={root}/layers/lower,upperdir={root}/layers/upper,workdir={root}/layers/work");
    mount("overlay", &format!("{root}/work"), "overlay", 0, &layers)?;
    mount("none", &format!("{root}/ro"), "tmpfs", 0, "")?;
    mount("proc", &format!("{root}/proc"), "proc", 0, "")?;
    let (new, old) = (CString::new(root).unwrap(), CString::new(format!("{root}/old")).unwrap());
    check(unsafe { libc::syscall(libc::SYS_pivot_root, new.as_ptr(), old.as_ptr()) as libc::c_int })?;
    std::env::set_current_dir("/")?;
    check(unsafe { libc::umount2(c"/old".as_ptr(), libc::MNT_DETACH) })?;
    fs::remove_dir("/old")
}

/// Becomes PID 1 of new namespaces; the process in between waits and passes the exit on.
fn isolate(namespace: RawFd, lanes: [RawFd; 2]) -> std::io::Result<()> {
    check(unsafe { libc::setns(namespace, libc::CLONE_NEWUSER) })?;
    check(unsafe { libc::setgroups(0, std::ptr::null()) })?;
    check(unsafe { libc::setresgid(0, 0, 0) })?;
    check(unsafe { libc::setresuid(0, 0, 0) })?;
    let flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    check(unsafe { libc::unshare(flags | libc::CLONE_NEWCGROUP) })?;
    match unsafe { libc::fork() } {
        0 => {}
        pid => unsafe {
            check(pid)?;
            // Dies with the test, and the guest with it.
            libc::close_range(3, libc::c_uint::MAX, 0);
            let mut status = 0;
            libc::waitpid(pid, &mut status, 0);
            libc::_exit(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 200 });
        },
    }
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    make_root()?;
    check(unsafe { libc::dup2(lanes[0], 3) })?;
    check(unsafe { libc::dup2(lanes[1], 4) })
}

impl Sandbox {
    pub fn start() -> Self {
        Self::start_without("")
    }

    /// With walls taken away: their names with commas between (needs the feature `walls`).
    pub fn start_without(walls: &str) -> Self {
        // std's own pipes must not sit on the lanes' numbers.
        HOLD.call_once(|| while fs::File::open("/dev/null").unwrap().into_raw_fd_leaked() < 16 {});
        // Above the ids of agents on this machine.
        let base_uid =
            0x6000_0000 + (std::process::id() % 4096) * 0x4_0000 + NEXT.fetch_add(1, Ordering::Relaxed) % 2 * 0x2_0000;
        let namespace = user_namespace(base_uid);
        let (in_host, in_guest) = StdStream::pair().unwrap();
        let (out_host, out_guest) = StdStream::pair().unwrap();
        let binary = fs::File::open(env!("CARGO_BIN_EXE_holm-guest")).unwrap();
        let mut command = Command::new(format!("/proc/self/fd/{}", binary.as_raw_fd()));
        let lanes = [in_guest.as_raw_fd(), out_guest.as_raw_fd()];
        let namespace_fd = namespace.as_raw_fd();
        unsafe { command.pre_exec(move || isolate(namespace_fd, lanes)) };
        let child = command
            .stdin(Stdio::null())
            .env_clear()
            .env("HOLM_GUEST_WALLS_DOWN", walls)
            .spawn()
            .expect("root, and namespaces");
        Self { child, lanes: [in_host, out_host], base_uid }
    }

    pub async fn epoch(&self, epoch: u64) -> Epoch {
        let limits = Limits { deadline: Duration::from_secs(20), ..Limits::default() };
        let open = |stream: &StdStream| {
            let stream = stream.try_clone().unwrap();
            stream.set_nonblocking(true).unwrap();
            UnixStream::from_std(stream).unwrap()
        };
        let (mut lane_in, mut lane_out) = (open(&self.lanes[0]), open(&self.lanes[1]));
        let nonce = [epoch as u8 + 1; 32];
        hello::host(&mut lane_in, &Hello { lane: Lane::In, epoch, nonce }, &limits).await.unwrap();
        hello::host(&mut lane_out, &Hello { lane: Lane::Out, epoch, nonce }, &limits).await.unwrap();
        let (client, driver) = http2::connect(lane_in, &Settings::HOST).await.unwrap();
        let (tell, refused) = mpsc::unbounded_channel();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            let _ = driver.await;
        });
        tasks.spawn(async move {
            let Ok(mut server) = http2::accept(lane_out, &Settings::HOST_OUT).await else { return };
            while let Ok(Some(exchange)) = server.next().await {
                let tell = tell.clone();
                tokio::spawn(async move {
                    assert_eq!(exchange.head.uri.path(), "/refused");
                    let _ = tell.send(http2::read_json(exchange.body).await.unwrap());
                    let _ = exchange.answer.empty(StatusCode::NO_CONTENT);
                });
            }
        });
        Epoch { client, refused, tasks }
    }

    /// Ready for commands.
    pub async fn ready() -> (Self, Epoch) {
        Self::ready_with(false, false).await
    }

    pub async fn ready_with(allow_sudo: bool, writes_to_host: bool) -> (Self, Epoch) {
        let (sandbox, epoch, set_up) = Self::start().set_up(allow_sudo, writes_to_host).await;
        assert_eq!(set_up.unenforced, Vec::<String>::new(), "this kernel has all the walls");
        (sandbox, epoch)
    }

    pub async fn set_up(self, allow_sudo: bool, writes_to_host: bool) -> (Self, Epoch, SetUp) {
        let sandbox = self;
        let epoch = sandbox.epoch(0).await;
        let setup = Setup {
            hostname: "isle".into(),
            ids: IdRange { outer_first: 1, count: 65_536 },
            allow_sudo,
            hidden: Some("/layers".into()),
            work_dir: Some(WorkDirLayers { upper: "/layers/upper".into(), target: "/work".into() }),
            read_only: vec!["/ro".into()],
            writes_to_host,
            redirect: None,
            trusted: None,
        };
        let set_up = epoch.client.json(Method::POST, "/setup", Some(&setup)).await.expect("setup");
        (sandbox, epoch, set_up)
    }

    /// The process that is the guest, as the host numbers it.
    pub fn guest_pid(&self) -> u32 {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        fs::read_to_string(children).unwrap().trim().parse().expect("one child")
    }

    /// The inner init, as the host sees it. To be asked for before a command was started.
    pub fn inner_init(&self) -> rustix::process::Pid {
        let guest = child_of(self.child.id() as i32);
        rustix::process::Pid::from_raw(child_of(guest)).unwrap()
    }

    /// The exit code of the guest, once it has ended.
    pub fn wait(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

/// The only child of a process.
fn child_of(parent: i32) -> i32 {
    let of = |stat: &str| {
        let (head, rest) = stat.rsplit_once(')')?;
        let found: i32 = rest.split_whitespace().nth(1)?.parse().ok()?;
        (found == parent).then(|| head.split(' ').next().unwrap().parse::<i32>().unwrap())
    };
    let stats =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let children: Vec<i32> = stats.filter_map(|stat| of(&stat)).collect();
    let [child] = children[..] else { panic!("{parent} has the children {children:?}") };
    child
}

trait IntoRawFdLeaked {
    fn into_raw_fd_leaked(self) -> RawFd;
}

impl IntoRawFdLeaked for fs::File {
    fn into_raw_fd_leaked(self) -> RawFd {
        std::os::fd::IntoRawFd::into_raw_fd(self)
    }
}

pub fn spawn_of(user: &str, argv: &[&str]) -> Spawn {
    Spawn {
        argv: argv.iter().map(|&word| word.to_owned()).collect(),
        env: [("PATH".to_owned(), "/usr/bin:/usr/sbin:/bin".to_owned())].into(),
        cwd: None,
        user: user.to_owned(),
        stdin: false,
        main: false,
    }
}

/// A command with which the workload ends.
pub fn main_of(user: &str, argv: &[&str]) -> Spawn {
    Spawn { main: true, ..spawn_of(user, argv) }
}

/// What a command wrote, and how it ended.
#[derive(Debug, Default)]
pub struct Told {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub bytes: u64,
}

impl Told {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl Epoch {
    pub async fn spawn(&self, spawn: &Spawn) -> Result<u32, http2::Error> {
        self.client.json::<Spawned>(Method::POST, "/processes", Some(spawn)).await.map(|spawned| spawned.id)
    }

    /// Reads output from `from` on until it ends or `enough` bytes came, acknowledging all of it.
    pub async fn read(&self, id: u32, from: u64, enough: u64) -> Told {
        let mut body = self.client.download(&format!("/processes/{id}/output?from={from}")).await.unwrap();
        let mut decoder = FrameDecoder::default();
        let mut told = Told { bytes: from, ..Told::default() };
        while told.bytes < enough {
            let Some(piece) = body.next().await.unwrap() else {
                decoder.end().unwrap();
                break;
            };
            decoder.put(piece);
            while let Some(frame) = decoder.take().unwrap() {
                told.bytes += frame.data.len() as u64;
                match frame.stream {
                    OutputStream::Stdout => told.stdout.extend(&frame.data),
                    OutputStream::Stderr => told.stderr.extend(&frame.data),
                }
            }
            let path = format!("/processes/{id}/ack?to={}", told.bytes);
            self.client.empty(Method::POST, &path, None::<&()>).await.unwrap();
        }
        told
    }

    pub async fn wait(&self, id: u32) -> Exit {
        let status: ProcessStatus =
            self.client.json(Method::GET, &format!("/processes/{id}?wait=1"), None::<&()>).await.unwrap();
        status.exit.unwrap()
    }

    /// Runs a command to its end.
    pub async fn run(&self, spawn: &Spawn) -> (Exit, Told) {
        let id = self.spawn(spawn).await.unwrap();
        let told = self.read(id, 0, u64::MAX).await;
        (self.wait(id).await, told)
    }

    pub async fn signal(&self, id: u32, signal: i32, all: bool) {
        let body = SendSignal { signal: signal as u8, all };
        self.client.empty(Method::POST, &format!("/processes/{id}/signal"), Some(&body)).await.unwrap();
    }

    pub async fn post(&self, path: &str) {
        self.client.empty(Method::POST, path, None::<&()>).await.unwrap();
    }

    /// Ends this side of the epoch.
    pub async fn shut(mut self) {
        self.tasks.shutdown().await;
    }
}
