//! The `process` runtime on the real kernel, as root and as a plain user.
//!
//! This program plays every part: the agent (itself), the launcher (`launch`), a guest that executes commands and tells
//! what they said (when it was executed as `holm-guest`), and the shim under its own user id (`shim`).

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    os::fd::{FromRawFd, OwnedFd},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use holm_domain::{
    RunId,
    run::{Mount, RootSource, RunSpec, WorkDir},
};
use holm_runtime::{
    AttemptId, Descriptor, Request, Resources, Runtime, Sandbox,
    process::{Config, Lend, ProcessRuntime, launcher_main},
};
use libtest_mimic::{Arguments, Failed, Trial};
use serde::{Deserialize, Serialize};

/// Nobody on any machine that runs tests, hopefully.
const PLAIN_USER: u32 = 54_321;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments[0] == "holm-guest" {
        return guest();
    }
    match arguments.get(1).map(String::as_str) {
        Some("launch") => return launcher_main(),
        _ => {}
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
        let said = match Command::new(&argv[0]).args(&argv[1..]).output() {
            Err(error) => Said { code: None, out: String::new(), err: error.to_string() },
            Ok(output) => Said {
                code: output.status.code(),
                out: String::from_utf8_lossy(&output.stdout).into_owned(),
                err: String::from_utf8_lossy(&output.stderr).into_owned(),
            },
        };
        writeln!(answers, "{}", serde_json::to_string(&said).unwrap()).unwrap();
    }
    ExitCode::SUCCESS
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
    let dir = tempfile::tempdir().unwrap();
    let label = uuid().simple().to_string().parse().unwrap();
    let mut config = Config::new(label, dir.path().join("images"));
    config.lend = vec![
        Lend { prefix: dir.path().join("read"), write: false },
        Lend { prefix: dir.path().join("write"), write: true },
    ];
    for name in ["read", "write", "images"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    config.slots = std::env::temp_dir().join("holm-test-slots");
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
        let mut prepared = self.runtime.prepare(&request, &resources).unwrap();
        let program = fs::File::open("/proc/self/exe").unwrap();
        let at = prepared.descriptors.iter().position(|d| d.name == "guest.binary").unwrap();
        prepared.descriptors[at] = Descriptor { name: "guest.binary".into(), fd: program.into() };
        let begun = Instant::now();
        let sandbox = self.runtime.launch(prepared.launch, prepared.descriptors).unwrap();
        eprintln!("launch took {:?}", begun.elapsed());
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

fn trials() -> Vec<Trial> {
    vec![Trial::test("smoke", || {
        let world = world();
        println!("{:#?}", world.runtime.fingerprint());
        let mut live = world.start(RunSpec::new(["true"]));
        for argv in [
            &["id"][..],
            &["cat", "/proc/self/uid_map"],
            &["ls", "-la", "/", "/dev", "/etc"],
            &["cat", "/proc/mounts"],
            &["ps", "aux"],
            &["ls", "-l", "/proc/self/fd"],
            &["sh", "-c", "ulimit -a; cat /proc/self/status"],
        ] {
            let said = live.execute(argv);
            println!("{argv:?}\n{}{}", said.out, said.err);
        }
        Ok(())
    })]
}
