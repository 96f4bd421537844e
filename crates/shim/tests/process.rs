//! A shim as a process of its own, with the real `process` runtime and the real guest.
//!
//! This program plays the agent (itself) and the shim (`shim`).
#![allow(clippy::unwrap_used)]

use std::{
    os::{
        fd::OwnedFd,
        unix::{fs::MetadataExt as _, net::UnixStream, process::CommandExt as _},
    },
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use holm_domain::{
    RunId,
    run::{Cancel, OutcomeKind, Reason, RunSpec},
};
use holm_runtime::{
    AttemptId, Descriptor, Prepared, Request, Resources, Runtime as _, SharedRuntime, ShimIdentity, Stop, passing,
    process::{Config, ProcessRuntime},
};
use holm_shim::{
    client::{self, Statuses},
    clock,
    confine::{self, MEMORY_BYTES_MAX, Network},
    protocol::{Command as Order, DIR_DESCRIPTOR, Launch, Phase, Status, Tuning, WaysOut},
    spool::reader::Reader,
};
use libtest_mimic::{Arguments, Trial};
use rustix::net::{AddressFamily, SocketType};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("confined") => confined(),
        Some("shim") => holm_shim::shim_main(|name| {
            let config = Config::new("shim".parse().ok()?, "/nonexistent".into());
            let runtime: SharedRuntime = Arc::new(ProcessRuntime::new(config));
            (name == runtime.name()).then_some(runtime)
        }),
        _ => libtest_mimic::run(&Arguments::from_args(), trials()).exit_code(),
    }
}

fn trials() -> Vec<Trial> {
    let trial = |name: &str, test: fn()| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    vec![
        trial("output_and_code_come_back", output_and_code_come_back),
        trial("a_missing_command_is_said_to_be_missing", a_missing_command_is_said_to_be_missing),
        trial("an_abandoned_sandbox_dies_at_its_deadline", an_abandoned_sandbox_dies_at_its_deadline),
        trial("the_time_limit_kills_everything", the_time_limit_kills_everything),
        trial("cancelling_asks_first", cancelling_asks_first),
        trial("a_terminated_shim_takes_its_sandbox_along", a_terminated_shim_takes_its_sandbox_along),
        trial("a_killed_shim_takes_its_sandbox_along", a_killed_shim_takes_its_sandbox_along),
        trial("what_the_kernel_holds_has_not_ended", what_the_kernel_holds_has_not_ended),
        trial("a_shim_is_confined", a_shim_is_confined),
        trial("a_confined_process_makes_no_other", a_confined_process_makes_no_other),
        trial(
            "one_with_a_way_out_makes_sockets_of_ip_and_no_others",
            one_with_a_way_out_makes_sockets_of_ip_and_no_others,
        ),
        trial("ids_that_are_not_whole_are_refused", ids_that_are_not_whole_are_refused),
        trial("nothing_goes_on_as_root", nothing_goes_on_as_root),
    ]
}

fn uuid() -> uuid::Uuid {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap().trim().parse().unwrap()
}

/// A shim that was started by this program as its agent.
struct Started {
    home: tempfile::TempDir,
    runtime: ProcessRuntime,
    resources: Resources,
    shim: Child,
    label: String,
}

fn config(home: &Path) -> Config {
    let label = uuid().simple().to_string().parse().unwrap();
    // Places of user ids come from the file that every agent of this host uses: one may be at work beside these tests.
    Config::new(label, home.join("images"))
}

fn start(spec: RunSpec, deadline: Duration) -> Started {
    start_tuned(spec, deadline, Tuning { terminate_grace_ms: 500, ..Tuning::default() })
}

fn start_tuned(spec: RunSpec, deadline: Duration, tuning: Tuning) -> Started {
    let home = tempfile::tempdir().unwrap();
    // The shim's user id has to get through.
    std::fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let dir = home.path().join("run");
    std::fs::create_dir(&dir).unwrap();
    let runtime = ProcessRuntime::new(config(home.path()));
    let attempt = AttemptId { run: RunId::from_uuid(uuid()), fence: 1 };
    let request = Request { attempt, spec: spec.clone(), dir: dir.clone() };
    let resources = runtime.plan(&request, &[]).unwrap();
    let prepared = runtime.prepare(&request, &resources, &Stop::default()).unwrap();
    let Prepared { launch, mut descriptors, .. } = prepared;
    let ShimIdentity { label, ids } = runtime.shim(&resources);
    let folder = std::fs::File::open(&dir).unwrap();
    descriptors.push(Descriptor { name: DIR_DESCRIPTOR.to_owned(), fd: folder.into() });
    let (socket, theirs) = UnixStream::pair().unwrap();
    let mut command = Command::new("/proc/self/exe");
    command.arg("shim").arg(&label).stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
    if let Some((uid, gid)) = ids {
        std::os::unix::fs::chown(&dir, Some(uid), Some(gid)).unwrap();
        command.args([uid.to_string(), gid.to_string()]);
    }
    let shim = command.spawn().unwrap();
    let launch = Launch {
        attempt,
        spec,
        dir,
        first_log_seq: 1,
        deadline_us: clock::boot().plus(deadline),
        runtime: "process".into(),
        launch,
        storage_floor_bytes: 0,
        ways_out: WaysOut::default(),
        tuning,
        trace: None,
        host: None,
    };
    passing::send(&socket, &launch, &descriptors).unwrap();
    Started { home, runtime, resources, shim, label }
}

fn patient() -> Duration {
    Duration::from_secs(60)
}

impl Started {
    fn dir(&self) -> std::path::PathBuf {
        self.home.path().join("run")
    }

    /// Plays the agent: sends `orders` once the command runs, waits for the end, and sends the shim away.
    fn attend(&mut self, orders: &[Order]) -> Status {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let last = runtime.block_on(async {
            let (mut commands, mut statuses) = self.connect().await;
            next(&mut statuses, Phase::Running).await;
            for order in orders {
                commands.send(order).await.unwrap();
            }
            let last = next(&mut statuses, Phase::Ended).await;
            commands.send(&Order::Quit {}).await.unwrap();
            last
        });
        assert!(self.shim.wait().unwrap().success());
        assert_eq!(client::read_exit(&self.dir()).unwrap().as_ref(), Some(&last));
        last
    }

    async fn connect(&self) -> (client::Commands, Statuses) {
        let begun = Instant::now();
        loop {
            match client::connect(&self.dir()).await {
                Ok(connected) => return connected,
                Err(error) => assert!(begun.elapsed() < patient(), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits for the final status of a shim that nobody talks to.
    fn left(&self) -> Status {
        wait_until("the final status", || client::read_exit(&self.dir()).unwrap().is_some());
        client::read_exit(&self.dir()).unwrap().unwrap()
    }

    fn output(&self, next_seq: u64) -> String {
        let mut reader = Reader::new(&self.dir(), 1);
        let mut output = Vec::new();
        while reader.next_seq() < next_seq {
            let chunk = reader.read(1 << 20).unwrap();
            assert!(!chunk.bytes.is_empty());
            for batch in holm_domain::log::parse_all(&chunk.bytes).unwrap() {
                batch.read().unwrap().iter().for_each(|entry| output.extend_from_slice(entry.data));
            }
        }
        String::from_utf8(output).unwrap()
    }

    /// How many processes bear the label of this attempt: shim, launcher, guest.
    fn labelled(&self) -> usize {
        let labelled = |pid: &std::fs::DirEntry| self.is_labelled(&pid.path(), "cmdline") || self.is_guest(&pid.path());
        std::fs::read_dir("/proc").unwrap().flatten().filter(labelled).count()
    }

    /// The process that is the guest.
    fn guest(&self) -> u32 {
        let mut processes = std::fs::read_dir("/proc").unwrap().flatten();
        let guest = processes.find(|process| self.is_guest(&process.path())).unwrap();
        guest.file_name().to_str().unwrap().parse().unwrap()
    }

    fn is_guest(&self, process: &Path) -> bool {
        self.is_labelled(process, "environ")
    }

    fn is_labelled(&self, process: &Path, file: &str) -> bool {
        let text = std::fs::read(process.join(file)).unwrap_or_default();
        let mut words = text.split(|&byte| byte == 0);
        words.any(|word| word.strip_prefix(b"HOLM_LABEL=").unwrap_or(word) == self.label.as_bytes())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.shim.kill();
        let _ = self.shim.wait();
        for step in self.runtime.destroy(&self.resources) {
            assert!(step.error.is_none() || std::thread::panicking(), "{step:?}");
        }
    }
}

async fn next(statuses: &mut Statuses, phase: Phase) -> Status {
    let waiting = async {
        loop {
            let status = statuses.next().await.unwrap().expect("the shim is there");
            if status.phase >= phase {
                return status;
            }
        }
    };
    tokio::time::timeout(patient(), waiting).await.expect("in time")
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < patient(), "waited for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn sh(script: &str) -> RunSpec {
    RunSpec::new(["sh", "-c", script])
}

fn output_and_code_come_back() {
    let mut started = start(sh("echo out; echo err >&2; echo $HOLM_RUN_ID; exit 3"), patient());
    let status = started.attend(&[]);
    let outcome = status.outcome.unwrap();
    assert_eq!(outcome.exit_code(), 3, "{outcome:?}");
    let output = started.output(status.next_seq);
    let mut lines: Vec<&str> = output.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["err", "out", &started.resources.attempt.run.to_string()]);
    assert_eq!(started.labelled(), 0);
    // What the shim wrote is its own, and only the agent's user and root may come near it.
    let mode = std::fs::metadata(started.dir().join("exit.json")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
}

fn a_missing_command_is_said_to_be_missing() {
    let started = start(RunSpec::new(["no-such-program"]), patient());
    let outcome = started.left().outcome.unwrap();
    assert_eq!((outcome.exit_code(), outcome.reason), (127, Some(Reason::CommandNotFound)), "{outcome:?}");
}

fn an_abandoned_sandbox_dies_at_its_deadline() {
    let begun = Instant::now();
    let started = start(sh("echo begun; exec sleep 1000"), Duration::from_secs(2));
    let status = started.left();
    assert_eq!(status.outcome.as_ref().unwrap().reason, Some(Reason::LeaseExpired));
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(started.output(status.next_seq), "begun\n");
    assert_eq!(started.labelled(), 1, "only the shim is left, for its agent");
}

fn the_time_limit_kills_everything() {
    let mut spec = sh("sleep 1000 & sleep 1000 & wait");
    spec.limits.timeout_ms = 300;
    let mut started = start(spec, patient());
    let outcome = started.attend(&[]).outcome.unwrap();
    assert_eq!((outcome.kind, outcome.exit_code()), (OutcomeKind::TimedOut, 124));
    assert_eq!(started.labelled(), 0);
}

fn cancelling_asks_first() {
    // Without a child, which would get the signal as well: shells tell of that.
    let mut polite = start(sh("trap 'echo bye; exit 0' TERM; echo up; while :; do :; done"), patient());
    wait_until("the command", || Reader::new(&polite.dir(), 1).read(1).is_ok_and(|chunk| chunk.next_seq > 1));
    let status = polite.attend(&[Order::Cancel(Cancel::Terminate)]);
    assert_eq!(status.outcome.unwrap().kind, OutcomeKind::Cancelled);
    assert_eq!(polite.output(status.next_seq), "up\nbye\n");
    let mut stubborn = start(sh("trap '' TERM; echo up; while :; do sleep 0.01; done"), patient());
    let status = stubborn.attend(&[Order::Cancel(Cancel::Terminate)]);
    assert_eq!(status.outcome.unwrap().kind, OutcomeKind::Cancelled);
}

fn a_terminated_shim_takes_its_sandbox_along() {
    let mut started = start(sh("exec sleep 1000"), patient());
    wait_until("the guest", || started.labelled() >= 2);
    let pid = rustix::process::Pid::from_child(&started.shim);
    wait_until("the shim's readiness", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_commands, mut statuses) = started.connect().await;
            next(&mut statuses, Phase::Running).await.phase == Phase::Running
        })
    });
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(started.shim.wait().unwrap().success());
    assert_eq!(started.left().outcome.unwrap().reason, Some(Reason::GuestLost));
    assert_eq!(started.labelled(), 0);
}

fn a_killed_shim_takes_its_sandbox_along() {
    let mut started = start(sh("exec sleep 1000"), patient());
    wait_until("the guest", || started.labelled() >= 2);
    started.shim.kill().unwrap();
    started.shim.wait().unwrap();
    wait_until("the end of the sandbox", || started.labelled() == 0);
    assert!(client::read_exit(&started.dir()).unwrap().is_none());
}

/// A group of a freezer of version 1, mounted for this test where the host has not mounted it: what is frozen in it dies of
/// no signal before it is thawed, other than in a group of version 2.
struct Freezer {
    group: std::path::PathBuf,
    mounted: Option<tempfile::TempDir>,
}

impl Freezer {
    fn new() -> std::io::Result<Self> {
        let name = format!("holm-test-{}", uuid().simple());
        let group = Path::new("/sys/fs/cgroup/freezer").join(&name);
        if std::fs::create_dir(&group).is_ok() {
            return Ok(Self { group, mounted: None });
        }
        let place = tempfile::tempdir()?;
        let mount = Command::new("mount").args(["-t", "cgroup", "-o", "freezer", "none"]).arg(place.path()).output()?;
        if !mount.status.success() {
            return Err(std::io::Error::other(String::from_utf8_lossy(&mount.stderr).trim().to_owned()));
        }
        let group = place.path().join(&name);
        std::fs::create_dir(&group)?;
        Ok(Self { group, mounted: Some(place) })
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        wait_until("the end of the group", || std::fs::remove_dir(&self.group).is_ok());
        if let Some(place) = &self.mounted {
            assert!(Command::new("umount").arg(place.path()).status().unwrap().success());
        }
    }
}

/// Only root has a freezer, and a kernel without one of version 1 has none; where nothing may be left out that is an error.
fn what_the_kernel_holds_has_not_ended() {
    let freezer = match Freezer::new() {
        Ok(freezer) => freezer,
        Err(error) => {
            let must = rustix::process::geteuid().is_root() && std::env::var_os("CI").is_some_and(|ci| ci == "true");
            assert!(!must, "no freezer of version 1, so what this test is about was not tested: {error}");
            return;
        }
    };
    let group = freezer.group.clone();
    let write = |file: &str, text: &str| std::fs::write(group.join(file), text).unwrap();
    let tuning = Tuning { death_ms: 100, ..Tuning::default() };
    let mut started = start_tuned(sh("echo up; exec sleep 1000"), patient(), tuning);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut commands, mut statuses) = started.connect().await;
        next(&mut statuses, Phase::Running).await;
        write("cgroup.procs", &started.guest().to_string());
        write("freezer.state", "FROZEN");
        commands.send(&Order::Cancel(Cancel::Kill)).await.unwrap();
        assert_eq!(next(&mut statuses, Phase::Undying).await.phase, Phase::Undying);
        assert!(client::read_exit(&started.dir()).unwrap().is_none());
        write("freezer.state", "THAWED");
        let last = next(&mut statuses, Phase::Ended).await;
        assert_eq!(last.outcome.unwrap().kind, OutcomeKind::Cancelled);
        commands.send(&Order::Quit {}).await.unwrap();
    });
    assert!(started.shim.wait().unwrap().success());
    assert_eq!(started.labelled(), 0);
}

/// What the kernel says of every thread of a shim that has a sandbox.
fn a_shim_is_confined() {
    let started = start(RunSpec::new(["sleep", "1000"]), patient());
    let pid = started.shim.id();
    let deadline = Instant::now() + Duration::from_secs(30);
    let is_confined = |status: &str| {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        field("Seccomp:") == Some("2")
            && field("NoNewPrivs:") == Some("1")
            && field("CapEff:") == Some("0000000000000000")
    };
    loop {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let statuses: Vec<String> =
            threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("status")).ok()).collect();
        // The main thread, the watchdog, and the one that attends the sandbox.
        if statuses.len() >= 3 && statuses.iter().all(|status| is_confined(status)) {
            break;
        }
        assert!(Instant::now() < deadline, "not confined: {statuses:#?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn a_confined_process_makes_no_other() {
    let said = said_confined("none");
    let sockets = "tcp: EPERM\nudp: EPERM\ntcp6: EPERM\nnetlink: EPERM\npacket: EPERM\n";
    assert_eq!(said, format!("{CONFINED}{sockets}"));
}

fn one_with_a_way_out_makes_sockets_of_ip_and_no_others() {
    let said = said_confined("egress");
    let sockets = "tcp: ok\nudp: ok\ntcp6: ok\nnetlink: EPERM\npacket: EPERM\n";
    assert_eq!(said, format!("{CONFINED}{sockets}"));
}

/// What every confined process may and may not.
const CONFINED: &str = "before: ok\nhalf of the memory: ok\nall of it: Some(12)\nspawn: EPERM\nexec: EPERM\nnamespace: EPERM\n\
    thread: ok\nfile: ok\nsocket: ok\n";

fn said_confined(network: &str) -> String {
    let output = Command::new("/proc/self/exe").args(["confined", network]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    said
}

fn ids_that_are_not_whole_are_refused() {
    for ids in [&["54321"][..], &["54321", "54321", "54321"], &["54321", "0"], &["0", "54321"], &["x", "54321"]] {
        let (_orders, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new("/proc/self/exe");
        command.args(["shim", "label"]).args(ids).stdin(OwnedFd::from(theirs));
        let mut shim = command.stdout(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        // One that went on would wait for orders.
        let ended = loop {
            match shim.try_wait().unwrap() {
                None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
                ended => break ended,
            }
        };
        let _ = shim.kill();
        shim.wait().unwrap();
        assert_eq!(ended.map(|status| status.success()), Some(false), "{ids:?}");
    }
}

fn nothing_goes_on_as_root() {
    let output = Command::new("/proc/self/exe").args(["confined", "as-it-is"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let refused = said.contains("a shim is never root");
    assert_eq!(refused, rustix::process::geteuid().is_root(), "{said}");
    assert_eq!(refused, !output.status.success(), "{said}");
}

/// In a process of its own, which tells by its standard output what works before and after.
#[allow(clippy::print_stdout)]
fn confined() -> ExitCode {
    let tell = |what: &str, result: std::io::Result<()>| match result.map_err(|error| error.raw_os_error()) {
        Ok(()) => println!("{what}: ok"),
        Err(Some(errno)) if errno == rustix::io::Errno::PERM.raw_os_error() => println!("{what}: EPERM"),
        Err(other) => println!("{what}: {other:?}"),
    };
    let ids = ["-", "shim", "label", "54321", "54321"].map(str::to_owned);
    let how = std::env::args().nth(2);
    if rustix::process::geteuid().is_root()
        && how.as_deref() != Some("as-it-is")
        && let Err(error) = confine::take_own_ids(&ids)
    {
        println!("{error}");
        return ExitCode::FAILURE;
    }
    tell("before", Command::new("true").status().map(drop));
    let network = if how.as_deref() == Some("egress") { Network::Egress } else { Network::None };
    if let Err(error) = confine::confine(network) {
        println!("{error}");
        return ExitCode::FAILURE;
    }
    for (what, bytes) in [("half of the memory", MEMORY_BYTES_MAX / 2), ("all of it", MEMORY_BYTES_MAX)] {
        tell(what, reserve(bytes));
    }
    tell("spawn", Command::new("true").status().map(drop));
    tell("exec", Err(Command::new("true").exec()));
    tell(
        "namespace",
        rustix::thread::move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&std::fs::File::open("/proc/self/ns/net").unwrap()),
            None,
        )
        .map_err(std::io::Error::from),
    );
    tell("thread", std::thread::spawn(|| ()).join().map_err(|_| std::io::Error::other("panicked")));
    tell("file", tempfile::tempfile().map(drop));
    tell("socket", UnixStream::pair().map(drop));
    for (what, family, kind) in [
        ("tcp", AddressFamily::INET, SocketType::STREAM),
        ("udp", AddressFamily::INET, SocketType::DGRAM),
        ("tcp6", AddressFamily::INET6, SocketType::STREAM),
        ("netlink", AddressFamily::NETLINK, SocketType::RAW),
        ("packet", AddressFamily::PACKET, SocketType::RAW),
    ] {
        tell(what, rustix::net::socket(family, kind, None).map(drop).map_err(std::io::Error::from));
    }
    ExitCode::SUCCESS
}

fn reserve(bytes: u64) -> std::io::Result<()> {
    let reserved = Vec::<u8>::new().try_reserve_exact(usize::try_from(bytes).unwrap());
    reserved.map_err(|_| rustix::io::Errno::NOMEM.into())
}
