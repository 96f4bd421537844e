//! The `process` runtime on the real kernel, as root and as a plain user.
//!
//! This program plays every part: the agent (itself), a guest that executes commands and tells what they said (when it was
//! executed as `holm-guest`), and the shim under its own user id (`shim`).
#![allow(clippy::unwrap_used)] // Nothing here is a #[test] that clippy would know as one.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::fd::{AsFd, FromRawFd, OwnedFd},
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode},
};

use holm_domain::{
    RunId,
    run::{Mount, RootSource, RunSpec, WorkDir},
};
use holm_runtime::{
    AttemptId, Descriptor, Error, Request, Resources, Runtime, Sandbox, Stop,
    conformance::{self, Subject},
    passing,
    process::{Config, ImageBudget, Lend, ProcessRuntime},
};
use libtest_mimic::{Arguments, Failed, Trial};
use rustix::{
    event::{PollFd, PollFlags, poll},
    time::Timespec,
};
use serde::{Deserialize, Serialize};

/// Nobody on any machine that runs tests, hopefully.
const PLAIN_USER: u32 = 54_321;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments[0] == "holm-guest" {
        return guest();
    }
    if arguments.get(1).is_some_and(|argument| argument == "shim") {
        return shim();
    }
    libtest_mimic::run(&Arguments::from_args(), trials()).exit_code()
}

/// What a command inside said.
#[derive(Debug, Serialize, Deserialize)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

/// The guest of these tests: executes what the lane in asks for.
fn guest() -> ExitCode {
    // SAFETY: the launcher put the lane in there, for this program alone.
    #[allow(unsafe_code)]
    let lane = UnixStream::from(unsafe { OwnedFd::from_raw_fd(3) });
    let mut answers = lane.try_clone().unwrap();
    for line in BufReader::new(lane).lines() {
        let argv: Vec<String> = serde_json::from_str(&line.unwrap()).unwrap();
        let said = match execute(&argv) {
            Err(error) => Said { code: None, out: String::new(), err: error.to_string() },
            Ok(said) => said,
        };
        writeln!(answers, "{}", serde_json::to_string(&said).unwrap()).unwrap();
    }
    ExitCode::SUCCESS
}

/// A command, or one of `@read`, `@write`, `@list` where no programs are.
fn execute(argv: &[String]) -> std::io::Result<Said> {
    let out = match argv[0].as_str() {
        "@read" => fs::read_to_string(&argv[1])?,
        "@write" => fs::write(&argv[1], &argv[2]).map(|()| String::new())?,
        "@list" => {
            let names = fs::read_dir(&argv[1])?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            let mut names = names.collect::<std::io::Result<Vec<String>>>()?;
            names.sort();
            names.join(" ")
        }
        program => {
            let output = Command::new(program).args(&argv[1..]).output()?;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            return Ok(Said { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) });
        }
    };
    Ok(Said { code: Some(0), out, err: String::new() })
}

fn uuid() -> uuid::Uuid {
    fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap().trim().parse().unwrap()
}

/// An agent's runtime with folders of its own.
struct World {
    dir: tempfile::TempDir,
    runtime: ProcessRuntime,
}

fn world() -> World {
    world_with(ImageBudget::default())
}

fn world_with(image_budget: ImageBudget) -> World {
    let dir = tempfile::tempdir().unwrap();
    let label = uuid().simple().to_string().parse().unwrap();
    let mut config = Config::new(label, dir.path().join("images"));
    config.image_budget = image_budget;
    config.lend = vec![
        Lend { prefix: dir.path().join("read"), write: false },
        Lend { prefix: dir.path().join("write"), write: true },
    ];
    for name in ["read", "write", "images"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    config.guarded = vec![dir.path().join("read/guarded")];
    World { runtime: ProcessRuntime::new(config), dir }
}

impl World {
    fn request(&self, spec: RunSpec) -> Request {
        let run = RunId::from_uuid(uuid());
        Request { attempt: AttemptId { run, fence: 1 }, spec, dir: self.dir.path().to_owned() }
    }

    /// A sandbox with this program as its guest.
    fn start(&self, spec: RunSpec) -> Live<'_> {
        let request = self.request(spec);
        let resources = self.runtime.plan(&request, &[]).unwrap();
        let mut prepared = self.runtime.prepare(&request, &resources, &Stop::default()).unwrap();
        let program = fs::File::open("/proc/self/exe").unwrap();
        let at = prepared.descriptors.iter().position(|d| d.name == "guest.binary").unwrap();
        prepared.descriptors[at] = Descriptor { name: "guest.binary".into(), fd: program.into() };
        let sandbox = self.runtime.launch(prepared.launch, prepared.descriptors).unwrap();
        let lane = UnixStream::from(sandbox.lane_in.try_clone().unwrap());
        Live { world: self, resources, sandbox, lane: BufReader::new(lane) }
    }
}

struct Live<'w> {
    world: &'w World,
    resources: Resources,
    sandbox: Sandbox,
    lane: BufReader<UnixStream>,
}

impl Live<'_> {
    fn execute(&mut self, argv: &[&str]) -> Said {
        writeln!(self.lane.get_mut(), "{}", serde_json::to_string(argv).unwrap()).unwrap();
        let mut line = String::new();
        self.lane.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{argv:?}: {error}: {line}"))
    }

    /// The output of a command that must succeed.
    fn out(&mut self, argv: &[&str]) -> String {
        let said = self.execute(argv);
        assert_eq!(said.code, Some(0), "{argv:?}: {said:?}");
        said.out.trim().to_owned()
    }
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        for step in self.world.runtime.destroy(&self.resources) {
            assert_eq!(step.error, None, "{}", step.step);
        }
    }
}

/// Every test, with whether it needs root.
const TESTS: &[(&str, fn(), bool)] = &[
    ("conforms", conforms, false),
    ("the_host_root_shows_what_it_should", the_host_root_shows_what_it_should, false),
    ("everything_writable_shares_one_limit", everything_writable_shares_one_limit, false),
    ("a_work_dir_is_a_copy_on_write", a_work_dir_is_a_copy_on_write, false),
    ("mounts_are_lent", mounts_are_lent, false),
    ("what_is_guarded_is_never_lent", what_is_guarded_is_never_lent, false),
    ("a_folder_is_a_root", a_folder_is_a_root, false),
    ("an_archive_is_a_root", an_archive_is_a_root, false),
    ("an_image_stays_as_long_as_its_shim", an_image_stays_as_long_as_its_shim, false),
    ("required_limits_are_refused_where_they_cannot_be", required_limits_are_refused_where_they_cannot_be, false),
    ("limits_are_set_and_hold", limits_are_set_and_hold, true),
    ("a_place_that_was_given_anew_is_left_alone", a_place_that_was_given_anew_is_left_alone, true),
    ("what_cannot_be_killed_keeps_its_place", what_cannot_be_killed_keeps_its_place, true),
    ("errors_of_the_launcher_arrive", errors_of_the_launcher_arrive, false),
    ("a_shim_launches_and_its_death_ends_the_sandbox", a_shim_launches_and_its_death_ends_the_sandbox, false),
];

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// As root, every test twice: as root, and in a copy of this program as a plain user.
fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (name, test, needs_root) in TESTS {
        let run = move || {
            test();
            Ok(())
        };
        // Counted as not run where they cannot be.
        trials.push(Trial::test(format!("root::{name}"), run).with_ignored_flag(!is_root()));
        if !needs_root {
            let plain = format!("plain::{name}");
            let again = plain.clone();
            let as_plain_user = move || if is_root() { again_as_plain_user(&again) } else { run() };
            trials.push(Trial::test(plain, as_plain_user));
        }
    }
    trials
}

fn again_as_plain_user(name: &str) -> Result<(), Failed> {
    let mut again = Command::new("/proc/self/exe");
    again.args(["--exact", name]).uid(PLAIN_USER).gid(PLAIN_USER).current_dir("/").env("TMPDIR", "/tmp");
    let output = again.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && text.contains("1 passed") {
        return Ok(());
    }
    Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr)).into())
}

fn conforms() {
    let world = world();
    let attempt = || AttemptId { run: RunId::from_uuid(uuid()), fence: 1 };
    // The guest's own side of the wire is tested with the guest: here it has to be alive, and to hold its lanes.
    let hello = |sandbox: &Sandbox| {
        let mut polled = [
            PollFd::new(&sandbox.lane_in, PollFlags::RDHUP),
            PollFd::new(&sandbox.lane_out, PollFlags::RDHUP),
            PollFd::from_borrowed_fd(sandbox.handle.ended(), PollFlags::IN),
        ];
        let ready = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 })).unwrap();
        assert_eq!(ready, 0, "the guest has ended, or let go of a lane");
    };
    conformance::all(&Subject { runtime: &world.runtime, dir: world.dir.path(), attempt: &attempt, hello: &hello });
}

fn the_host_root_shows_what_it_should() {
    let world = world();
    let mut live = world.start(RunSpec::new(["true"]));
    for hidden in ["/etc/shadow", "/etc/ssh", "/etc/ssl/private", "/boot", "/work", "/etc/machine-id"] {
        assert!(live.execute(&["@list", hidden]).code.is_none(), "{hidden} is seen");
        assert!(live.execute(&["@read", hidden]).code.is_none(), "{hidden} is seen");
    }
    for empty in ["/root", "/tmp", "/sys", "/mnt", "/opt"] {
        assert_eq!(live.out(&["@list", empty]), "", "{empty}");
    }
    assert!(live.out(&["cat", "/etc/passwd"]).starts_with("root:x:0:0:"));
    assert_eq!(live.out(&["cat", "/etc/resolv.conf"]).lines().next(), Some("nameserver 127.0.0.53"));
    let error = live.execute(&["@write", "/usr/holm-test", "x"]).err;
    assert!(error.contains("Read-only"), "{error}");
    // What is shown of /etc is a copy below the run's own layer.
    let before = fs::read_to_string("/etc/services").unwrap();
    live.out(&["@write", "/etc/services", "x"]);
    assert_eq!(live.out(&["cat", "/etc/services"]), "x");
    assert!(fs::read_to_string("/etc/services").unwrap() == before, "the host's own was changed");
    let mut other = world.start(RunSpec::new(["true"]));
    assert!(other.out(&["cat", "/etc/services"]).trim() == before.trim(), "another run sees what one wrote");
    live.out(&["@write", "/tmp/file", "x"]);
    live.out(&["sh", "-c", "echo > /dev/null; test -c /dev/urandom; test -c /dev/pts/ptmx; test -e /dev/fd/0"]);
    // Nothing of the host is mounted but what was asked for, and nothing of it is writable.
    for line in live.out(&["cat", "/proc/mounts"]).lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let ours = ["tmpfs", "overlay", "proc", "devpts"].contains(&fields[2]) || fields[1].starts_with("/dev/");
        let read_only = fields[3].split(',').any(|option| option == "ro");
        assert!(ours || read_only && fields[1].starts_with("/usr"), "{line}");
    }
    assert_eq!(live.sandbox.setup.read_only.first().map(String::as_str), Some("/usr"));
    for mounted in live.sandbox.setup.read_only.clone() {
        live.out(&["mountpoint", &mounted]);
    }
    let ids: Vec<String> = live.out(&["cat", "/proc/self/uid_map"]).split_whitespace().map(str::to_owned).collect();
    assert_ne!(ids[1], "0", "the guest's root is the host's");
    // The guest and `ls`: no process of the host.
    let listed = live.out(&["ls", "/proc"]);
    assert_eq!(listed.split_whitespace().filter(|name| name.parse::<u32>().is_ok()).count(), 2);
    // The label tells of the agent and the lease.
    assert_eq!(live.out(&["cat", "/proc/1/cmdline"]), "holm-guest\0");
    let hostname = live.resources.attempt.run.to_string().replace('_', "-");
    assert_eq!(live.out(&["uname", "-n"]), hostname);
    assert_eq!(live.sandbox.setup.hostname, hostname);
}

fn everything_writable_shares_one_limit() {
    let world = world();
    let mut spec = RunSpec::new(["true"]);
    spec.limits.disk_bytes = 4 * 1024 * 1024;
    let mut live = world.start(spec);
    let fill = |file: &str, mebibytes: u32| format!("head -c {mebibytes}M /dev/zero > {file}");
    assert_eq!(live.execute(&["sh", "-c", &fill("/tmp/a", 2)]).code, Some(0));
    for file in ["/dev/shm/b", "/var/tmp/c", "/root/d", "/run/e"] {
        let said = live.execute(&["sh", "-c", &fill(file, 3)]);
        assert!(said.err.contains("No space left"), "{file}: {said:?}");
        live.execute(&["rm", file]);
    }
}

fn a_work_dir_is_a_copy_on_write() {
    let world = world();
    let work = world.dir.path().join("read/project");
    fs::create_dir(&work).unwrap();
    fs::write(work.join("source"), "old").unwrap();
    let mut spec = RunSpec::new(["true"]);
    spec.work_dir = Some(WorkDir { source: work.to_str().unwrap().into(), keep_changes: true });
    let mut live = world.start(spec);
    assert_eq!(live.out(&["cat", "/work/source"]), "old");
    live.out(&[
        "sh",
        "-c",
        "echo new > /work/source; echo x > /work/added; mkdir /work/folder; mv /work/folder /work/f2",
    ]);
    let layers = live.sandbox.setup.work_dir.clone().unwrap();
    assert_eq!(layers.target, "/work");
    assert_eq!(live.out(&["cat", &format!("{}/source", layers.upper)]), "new");
    assert_eq!(live.out(&["@list", &layers.upper]), "added f2 source");
    live.out(&["rm", "/work/source"]);
    assert_eq!(fs::read_to_string(work.join("source")).unwrap(), "old");
    assert_eq!(fs::read_dir(&work).unwrap().count(), 1);
}

fn mount(source: &Path, target: &str, read_only: bool) -> Mount {
    Mount { source: source.to_str().unwrap().into(), target: target.into(), read_only }
}

fn mounts_are_lent() {
    let world = world();
    let (read, write) = (world.dir.path().join("read"), world.dir.path().join("write"));
    fs::write(read.join("file"), "content").unwrap();
    let mut spec = RunSpec::new(["true"]);
    spec.mounts = vec![
        mount(&read, "/deep/er/read", true),
        mount(&write, "/write", false),
        mount(&read.join("file"), "/f", true),
    ];
    let mut live = world.start(spec.clone());
    assert_eq!(live.out(&["cat", "/deep/er/read/file", "/f"]), "contentcontent");
    assert!(live.execute(&["@write", "/deep/er/read/new", "x"]).err.contains("Read-only"));
    assert!(live.execute(&["@write", "/f", "x"]).err.contains("Read-only"));
    let inner_root = if is_root() { "1:1" } else { "0:0" };
    assert_eq!(live.out(&["stat", "-c", "%u:%g", "/write"]), inner_root);
    // Only the workload's ids stand for owners on the disk; as a plain user there is one.
    let as_workload: &[&str] = if is_root() { &["setpriv", "--reuid=1", "--regid=1", "--clear-groups"] } else { &[] };
    live.out(&[as_workload, &["sh", "-c", "printf 'from inside' > /write/new"]].concat());
    let owner = |path: &Path| std::os::unix::fs::MetadataExt::uid(&fs::metadata(path).unwrap());
    assert_eq!(owner(&write.join("new")), owner(&write));
    assert_eq!(fs::read_to_string(write.join("new")).unwrap(), "from inside");
    assert!(live.sandbox.setup.read_only.contains(&"/deep/er/read".to_owned()));
    drop(live);
    for (source, read_only, problem) in [
        (Path::new("/etc"), true, "this agent lends"),
        (read.as_path(), false, "for reading only"),
        (&read.join("nothing"), true, "does not exist"),
    ] {
        let request = world.request(RunSpec { mounts: vec![mount(source, "/m", read_only)], ..spec.clone() });
        let resources = world.runtime.plan(&request, &[]).unwrap();
        let error = world.runtime.prepare(&request, &resources, &Stop::default()).unwrap_err();
        assert!(matches!(&error, Error::HostPath { problem: found, .. } if found.contains(problem)), "{error}");
        assert!(world.runtime.destroy(&resources).iter().all(|step| step.error.is_none()));
    }
}

fn what_is_guarded_is_never_lent() {
    let world = world();
    let (read, write) = (world.dir.path().join("read"), world.dir.path().join("write"));
    let guarded = read.join("guarded");
    fs::create_dir_all(guarded.join("deep")).unwrap();
    fs::write(guarded.join("token"), "secret").unwrap();
    fs::write(read.join("file"), "content").unwrap();
    std::os::unix::fs::symlink(&guarded, read.join("link")).unwrap();
    let mut spec = RunSpec::new(["true"]);
    spec.mounts = vec![mount(&read, "/r", true), mount(&write, "/w", false)];
    let mut live = world.start(spec.clone());
    assert_eq!(live.out(&["@read", "/r/file"]), "content");
    assert_eq!(live.out(&["@list", "/r/guarded"]), "");
    assert!(live.execute(&["@write", "/r/guarded/x", "x"]).err.contains("Read-only"));
    drop(live);
    let work_dir = |source: &Path| Some(WorkDir { source: source.to_str().unwrap().into(), keep_changes: false });
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let guest = RunSpec::new(["true"]);
    for (refused, problem) in [
        (RunSpec { mounts: vec![mount(&guarded, "/m", true)], ..guest.clone() }, "it lies in"),
        (RunSpec { mounts: vec![mount(&guarded.join("token"), "/m", true)], ..guest.clone() }, "it lies in"),
        (RunSpec { mounts: vec![mount(&read.join("link/deep"), "/m", true)], ..guest.clone() }, "it lies in"),
        (RunSpec { root: RootSource::Tar { path: text(&guarded.join("token")) }, ..guest.clone() }, "it lies in"),
        (RunSpec { root: RootSource::Dir { path: text(&read) }, ..guest.clone() }, "it contains"),
        (RunSpec { work_dir: work_dir(&read), ..guest.clone() }, "it contains"),
        (RunSpec { work_dir: work_dir(&guarded.join("deep")), ..guest.clone() }, "it lies in"),
    ] {
        let request = world.request(refused);
        let resources = world.runtime.plan(&request, &[]).unwrap();
        let error = world.runtime.prepare(&request, &resources, &Stop::default()).unwrap_err();
        let named = error.to_string().contains(&*guarded.to_string_lossy());
        assert!(named && error.to_string().contains(problem), "{error}");
        assert!(world.runtime.destroy(&resources).iter().all(|step| step.error.is_none()));
    }
}

/// A folder with this program and the libraries that it needs, at the places where it looks for them.
fn image_at(root: &Path) {
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let libraries = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).filter(|path| path.contains(".so"));
    for library in libraries {
        let target = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(library, target).unwrap();
    }
    for link in ["lib", "lib64", "bin"] {
        match fs::read_link(Path::new("/").join(link)) {
            Ok(target) => std::os::unix::fs::symlink(target, root.join(link)).unwrap(),
            Err(_) => continue,
        }
    }
    fs::create_dir_all(root.join("usr/lib64")).unwrap();
    let loader = fs::canonicalize("/lib64/ld-linux-x86-64.so.2").unwrap();
    fs::copy(loader, root.join("usr/lib64/ld-linux-x86-64.so.2")).unwrap();
    fs::write(root.join("marker"), "image").unwrap();
    std::os::unix::fs::symlink("/", root.join("up")).unwrap();
}

fn look_at_an_image(live: &mut Live<'_>) {
    assert_eq!(live.out(&["@read", "/marker"]), "image");
    live.out(&["@write", "/marker", "changed"]);
    live.out(&["@write", "/tmp/file", "x"]);
    assert_eq!(live.out(&["@read", "/marker"]), "changed");
    assert!(live.out(&["@list", "/dev"]).contains("null"));
    assert!(live.execute(&["@list", "/etc/ssl"]).code.is_none());
}

fn a_folder_is_a_root() {
    let world = world();
    let root = world.dir.path().join("read/image");
    image_at(&root);
    let mut spec = RunSpec::new(["true"]);
    spec.root = RootSource::Dir { path: root.to_str().unwrap().into() };
    // A target through a link of the image stays inside.
    spec.mounts = vec![mount(&world.dir.path().join("read"), "/up/lent", true)];
    let mut live = world.start(spec);
    look_at_an_image(&mut live);
    assert_eq!(live.out(&["@list", "/lent"]), "image");
    assert_eq!(fs::read_to_string(root.join("marker")).unwrap(), "image");
    assert!(!Path::new("/lent").exists());
}

/// A run whose root is an archive.
fn spec_of_archive(world: &World) -> RunSpec {
    let root = world.dir.path().join("image");
    image_at(&root);
    let path = world.dir.path().join("read/image.tar");
    let mut builder = tar::Builder::new(fs::File::create(&path).unwrap());
    builder.follow_symlinks(false);
    builder.append_dir_all(".", &root).unwrap();
    builder.into_inner().unwrap().flush().unwrap();
    let mut spec = RunSpec::new(["true"]);
    spec.root = RootSource::Tar { path: path.to_str().unwrap().into() };
    spec
}

fn an_image_stays_as_long_as_its_shim() {
    let world = world_with(ImageBudget { bytes: 0, count: 0 });
    let tidy = || world.runtime.tidy().into_iter().for_each(|step| assert_eq!(step.error, None, "{}", step.step));
    let (mut shim, resources, guest) = launch_by_a_shim(&world, spec_of_archive(&world));
    let images = world.dir.path().join("images");
    let is_there = || fs::read_dir(&images).unwrap().any(|entry| entry.unwrap().path().join("root/marker").exists());
    tidy();
    assert!(is_there(), "an image was removed below a live sandbox");
    shim.kill().unwrap();
    shim.wait().unwrap();
    let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&guest, PollFlags::IN)], Some(&patience)), Ok(1));
    tidy();
    assert!(!is_there());
    assert!(world.runtime.destroy(&resources).iter().all(|step| step.error.is_none()));
}

fn an_archive_is_a_root() {
    let world = world();
    let spec = spec_of_archive(&world);
    for _ in 0..2 {
        look_at_an_image(&mut world.start(spec.clone()));
    }
    let request = world.request(spec);
    let resources = world.runtime.plan(&request, &[]).unwrap();
    let prepared = world.runtime.prepare(&request, &resources, &Stop::default()).unwrap();
    assert!(prepared.image_digest.unwrap().starts_with("sha256:"));
    assert!(world.runtime.destroy(&resources).iter().all(|step| step.error.is_none()));
}

fn required_limits_are_refused_where_they_cannot_be() {
    let world = world();
    let mut spec = RunSpec::new(["true"]);
    spec.require_limits = true;
    let planned = world.runtime.plan(&world.request(spec), &[]);
    let info = world.runtime.fingerprint();
    // Memory, processes, processor and disk: what else is not enforced is told, and refuses no run.
    let limits: Vec<&String> = info.unenforced.iter().filter(|reason| reason.starts_with("limits.")).collect();
    match planned {
        Ok(_) => assert!(limits.is_empty(), "{limits:?}"),
        Err(Error::LimitsNotEnforceable(reasons)) => assert_eq!(reasons.iter().collect::<Vec<_>>(), limits),
        Err(error) => panic!("{error}"),
    }
    if !is_root() {
        assert!(info.unenforced.iter().any(|reason| reason.starts_with("ids.unique")));
    }
}

fn limits_are_set_and_hold() {
    let world = world();
    let mut spec = RunSpec::new(["true"]);
    spec.limits.pids = 20;
    spec.limits.memory_bytes = 64 * 1024 * 1024;
    spec.limits.disk_bytes = 1024 * 1024 * 1024;
    let mut live = world.start(spec.clone());
    assert_eq!(live.world.runtime.fingerprint().unenforced, Vec::<String>::new());
    let said = live.execute(&["sh", "-c", "for n in $(seq 60); do sleep 60 >/dev/null 2>&1 & done; wait"]);
    assert!(said.err.contains("fork"), "{said:?}");
    let counted = live.sandbox.handle.counted();
    assert!(counted.pids_refused.is_some_and(|refused| refused > 0), "{counted:?}");
    assert!(counted.usage.pids_peak.is_some_and(|peak| (15..=28).contains(&peak)), "{counted:?}");
    drop(live);
    let mut live = world.start(spec);
    assert_eq!(live.sandbox.handle.counted().oom_kills, Some(0));
    let said = live.execute(&["sh", "-c", "head -c 200M /dev/zero | tail"]);
    let counted = live.sandbox.handle.counted();
    assert!(counted.oom_kills.is_some_and(|kills| kills > 0), "{said:?}");
    assert!(counted.usage.memory_peak_bytes.is_some_and(|peak| peak >= 60 * 1024 * 1024), "{counted:?}");
}

/// An attempt ends, its place is given to another agent's sandbox, and only then the first agent cleans up.
fn a_place_that_was_given_anew_is_left_alone() {
    let (late, other) = (world(), world());
    let mut live = other.start(RunSpec::new(["true"]));
    assert!(live.resources.uid_slot.is_some());
    let attempt = late.request(RunSpec::new(["true"])).attempt;
    let ended = Resources { attempt, cgroups: Vec::new(), ..live.resources.clone() };
    assert!(late.runtime.destroy(&ended).iter().all(|step| step.error.is_none()));
    assert_eq!(live.out(&["echo", "alive"]), "alive");
}

/// A group of version 1's freezer: what is frozen dies of no signal before it is thawed.
struct Freezer(PathBuf);

impl Freezer {
    /// Nothing where the host has no such hierarchy.
    fn new() -> Option<Self> {
        let group = Path::new("/sys/fs/cgroup/freezer").join(uuid().simple().to_string());
        fs::create_dir(&group).ok().map(|()| Self(group))
    }

    fn freeze(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
        fs::write(self.0.join("freezer.state"), "FROZEN").unwrap();
    }

    fn thaw(&self) {
        fs::write(self.0.join("freezer.state"), "THAWED").unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.thaw();
        while fs::remove_dir(&self.0).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

fn what_cannot_be_killed_keeps_its_place() {
    // What the kernel does not let go of cannot be ordered where there is no such group.
    let Some(freezer) = Freezer::new() else { return };
    let world = world();
    let request = world.request(RunSpec::new(["true"]));
    let mut resources = world.runtime.plan(&request, &[]).unwrap();
    resources.cgroups.clear();
    let place = resources.uid_slot.unwrap();
    let id = 0x7000_0000 + place * 0x2_0000 + 0x1_0000;
    let mut stuck = Command::new("sleep").arg("1000").uid(id).gid(id).spawn().unwrap();
    freezer.freeze(stuck.id());
    let steps = world.runtime.destroy(&resources);
    assert!(
        steps.iter().any(|step| step.error.as_ref().is_some_and(|error| error.contains("did not end"))),
        "{steps:?}"
    );
    let others: Vec<u32> = (0..2_048).filter(|other| *other != place).collect();
    let another_agent = self::world();
    let refused = another_agent.runtime.plan(&another_agent.request(RunSpec::new(["true"])), &others);
    assert!(matches!(refused, Err(Error::Exhausted(_))), "{refused:?}");
    freezer.thaw();
    stuck.wait().unwrap();
    let steps = world.runtime.destroy(&resources);
    assert!(steps.iter().all(|step| step.error.is_none()), "{steps:?}");
    let request = another_agent.request(RunSpec::new(["true"]));
    // Other suites of this host give it to their sandboxes meanwhile.
    let given = (0..1_000).find_map(|_| {
        let planned = another_agent.runtime.plan(&request, &others);
        planned.inspect_err(|_| std::thread::sleep(std::time::Duration::from_millis(10))).ok()
    });
    assert_eq!(given.and_then(|resources| resources.uid_slot), Some(place));
}

fn errors_of_the_launcher_arrive() {
    let world = world();
    let mut spec = RunSpec::new(["true"]);
    spec.mounts = vec![mount(&world.dir.path().join("read"), "/usr/holm/not-there", true)];
    let request = world.request(spec);
    let resources = world.runtime.plan(&request, &[]).unwrap();
    let prepared = world.runtime.prepare(&request, &resources, &Stop::default()).unwrap();
    let error = world.runtime.launch(prepared.launch, prepared.descriptors).err().unwrap().to_string();
    assert!(error.contains("/usr/holm/not-there") && error.contains("Read-only"), "{error}");
    assert!(world.runtime.destroy(&resources).iter().all(|step| step.error.is_none()));
    assert_eq!(world.runtime.inventory().unwrap(), []);
}

/// A sandbox in the hands of a shim that is a process of its own; the shim, and the guest's pidfd.
fn launch_by_a_shim(world: &World, spec: RunSpec) -> (Child, Resources, OwnedFd) {
    let request = world.request(spec);
    let resources = world.runtime.plan(&request, &[]).unwrap();
    let prepared = world.runtime.prepare(&request, &resources, &Stop::default()).unwrap();
    let (ours, shims) = UnixStream::pair().unwrap();
    let mut command = Command::new("/proc/self/exe");
    let identity = world.runtime.shim(&resources);
    command.args(["shim", &identity.label]).stdin(OwnedFd::from(shims)).current_dir("/");
    if let Some((uid, gid)) = identity.ids {
        command.uid(uid).gid(gid);
    }
    let shim = command.spawn().unwrap();
    drop(command);
    passing::send(&ours, &prepared.launch, &prepared.descriptors).unwrap();
    drop(prepared);
    // The shim passes on the guest's pidfd.
    let (problem, mut descriptors): (Option<String>, Vec<Descriptor>) = passing::receive(&ours).unwrap();
    assert_eq!(problem, None);
    // As long as the socket is open the shim stays.
    std::mem::forget(ours);
    (shim, resources, descriptors.remove(0).fd)
}

fn a_shim_launches_and_its_death_ends_the_sandbox() {
    let world = world();
    let (mut shim, resources, guest) = launch_by_a_shim(&world, RunSpec::new(["true"]));
    let found = world.runtime.inventory().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].attempt, found[0].uid_slot), (resources.attempt, resources.uid_slot));
    shim.kill().unwrap();
    shim.wait().unwrap();
    let guest = PollFd::new(&guest, PollFlags::IN);
    let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(poll(&mut [guest], Some(&patience)), Ok(1), "the guest outlives its shim");
    assert!(world.runtime.destroy(&resources).iter().all(|step| step.error.is_none()));
    assert_eq!(world.runtime.inventory().unwrap(), []);
}

/// The shim of these tests: launches, tells of it, and waits to be killed.
fn shim() -> ExitCode {
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let (launch, descriptors): (serde_json::Value, _) = passing::receive(&socket).unwrap();
    let label = "shim".parse().unwrap();
    let runtime = ProcessRuntime::new(Config::new(label, PathBuf::from("/nonexistent")));
    match runtime.launch(launch, descriptors) {
        Err(error) => passing::send(&socket, &Some(error.to_string()), &[]).unwrap(),
        Ok(sandbox) => {
            let fd = sandbox.handle.ended().try_clone_to_owned().unwrap();
            passing::send(&socket, &None::<String>, &[Descriptor { name: "guest".into(), fd }]).unwrap();
            let _ = (&socket).read(&mut [0]);
            drop(sandbox);
        }
    }
    ExitCode::SUCCESS
}
