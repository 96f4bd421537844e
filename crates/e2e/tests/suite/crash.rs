//! A process of Holm dies right before and right after every step whose trace outlives it: the run ends once, its output is
//! there in order and nothing of it twice, and nothing is left on the host.
//!
//! The steps are those that the code names (`holm_runtime::crash`). They are found out by runs that note each of them, and a
//! step that no such run reaches fails the test, but those of an enrolment (`identity`) and of secrets (`credentials`). A crash of `holm up` is one of server
//! and agent together; where they are apart the agent dies alone, while the server holds its poll and its leases. Either way
//! the run must succeed all the same. A run whose shim dies has lost who looks after it, and ends as failed with a reason,
//! unless its end had been noted.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    thread,
};

use holm_e2e::{Ran, Running, World, eventually, host, ran::run};

use crate::{credentials::STEPS_OF_SECRETS, identity::STEPS_OF_ENROLMENT};

const LINES: u32 = 40;
/// Leases short enough that a run whose agent died with its claim begins anew soon.
const SERVER: &str = "lease_ttl = \"3s\"\nlease_margin = \"1s\"\n";
/// The name of an agent that is apart from its server.
const AGENT: &str = "a1";
/// At which points one dies unless it is to be all of them: it is known, has claimed, and has told of each part of a run.
const APART: [&str; 6] = [
    "after agent.register",
    "after sandbox.prepare",
    "before report.start",
    "after report.logs",
    "after report.sandbox_ended",
    "after report.finish",
];
/// The folder of an attempt of which nothing can be read.
const DAMAGED: &str = "run_00000000000000000000000007.1";
/// How many folders the agent keeps that it set aside.
const KEPT_ASIDE: usize = 16;
/// How many points a test tries at once: most of the time each of them waits.
const AT_ONCE: usize = 2;
/// Set to `all` for every point on every store and of both setups; otherwise PostgreSQL and a plain user get a fifth.
const EXTENT: &str = "HOLM_TEST_CRASHES";

/// Prints lines, changes a file, is refused a connection, and prints the rest.
fn script() -> String {
    let half = LINES / 2;
    format!(
        "i=1; while [ $i -le {LINES} ]; do echo $i; i=$((i+1)); [ $i -eq {half} ] && sleep 0.4; done; \
         echo new > changed; (: > /dev/tcp/192.0.2.1/80) 2>/dev/null; exit 0"
    )
}

fn all_lines() -> String {
    (1..=LINES).map(|line| format!("{line}\n")).collect()
}

/// When the process that is to die is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scene {
    /// Before the run is submitted.
    Fresh,
    /// After another one was killed under the run.
    Recovering,
}

/// Who dies where it is not a shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setup {
    /// `holm up`, server and agent together.
    Together,
    /// An agent, whose server lives on.
    Apart,
}

impl Setup {
    fn start(self, world: &mut World) {
        match self {
            Self::Together => world.start_up(),
            Self::Apart => world.start_agent(AGENT),
        }
    }

    fn launch(self, world: &mut World, variables: &[(&str, PathBuf)]) {
        match self {
            Self::Together => world.launch_up(variables),
            Self::Apart => world.launch_agent(AGENT, variables),
        }
    }

    fn kill(self, world: &mut World) {
        match self {
            Self::Together => world.kill_up(),
            Self::Apart => world.kill_agent(AGENT),
        }
    }

    fn ended(self, world: &mut World) -> Option<Ran> {
        match self {
            Self::Together => world.up_ended(),
            Self::Apart => world.agent_ended(AGENT),
        }
    }

    fn pid(self, world: &World) -> u32 {
        match self {
            Self::Together => world.up_pid(),
            Self::Apart => world.agent_pid(AGENT),
        }
    }

    fn home(self, world: &World) -> PathBuf {
        match self {
            Self::Together => world.home(),
            Self::Apart => world.agent_home(AGENT),
        }
    }
}

/// What an earlier agent left: an attempt with a damaged journal, as much set aside as is kept, and halves of images.
fn leave_behind(agent: &Path) {
    let folder = |path: PathBuf| {
        fs::create_dir_all(&path).expect("a folder");
        path
    };
    fs::write(folder(agent.join("runs").join(DAMAGED)).join("journal.json"), "damaged").expect("a file");
    (0..KEPT_ASIDE).for_each(|number| drop(folder(agent.join(format!("set-aside/earlier-{number}")))));
    let digests = ["1", "2", "3"].map(|digit| digit.repeat(64));
    for half in [format!("unfinished-{}", digests[0]), format!("gone-{}", digests[1]), digests[2].clone()] {
        folder(agent.join("images").join(half).join("root/etc"));
    }
}

/// An archive whose programs are those of the host, which is mounted at `/usr`.
fn archive(world: &World) -> PathBuf {
    let root = world.folder("root");
    fs::create_dir(root.join("usr")).expect("a folder");
    for name in ["bin", "lib", "lib64", "sbin"] {
        symlink(format!("usr/{name}"), root.join(name)).expect("a link");
    }
    let archive = world.dir().join("root.tar");
    run(Command::new("tar").arg("-C").arg(root).arg("-cf").arg(&archive).arg(".")).succeeds();
    archive
}

/// Where what the crashing processes read and write lies; shims have ids of their own.
struct Stage {
    trace: PathBuf,
    armed: PathBuf,
}

impl Stage {
    fn new(world: &World) -> Self {
        let dir = world.folder("crash");
        let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
        open(&dir, 0o777);
        let stage = Self { trace: dir.join("trace"), armed: dir.join("armed") };
        for path in [&stage.trace, &stage.armed] {
            fs::write(path, "").expect("a file");
            open(path, 0o666);
        }
        stage
    }

    fn trace(&self) -> Vec<(&'static str, PathBuf)> {
        vec![("HOLM_CRASH_TRACE", self.trace.clone())]
    }

    fn crash_at(&self, point: &str) -> Vec<(&'static str, PathBuf)> {
        vec![("HOLM_CRASH_AT", PathBuf::from(point)), ("HOLM_CRASH_ARMED", self.armed.clone())]
    }

    /// Whether somebody was to die and is dead.
    fn is_over(&self) -> bool {
        self.victim().is_some_and(|pid| !host::is_alive(pid))
    }

    /// Who was to die.
    fn victim(&self) -> Option<u32> {
        let files = fs::read_dir(self.armed.parent().expect("a folder")).expect("a folder").flatten();
        let names = files.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| name.strip_prefix("armed.")?.parse().ok()).next()
    }

    fn points(&self) -> BTreeSet<String> {
        fs::read_to_string(&self.trace).expect("a trace").lines().map(str::to_owned).collect()
    }
}

/// A run that is attached to, and what became of who looks after it.
struct Play {
    setup: Setup,
    world: World,
    stage: Stage,
    folder: PathBuf,
    archive: Option<PathBuf>,
    client: Option<Running>,
    died: bool,
}

impl Play {
    /// Everything up to the end of the run; `variables` are for the process that may die.
    fn act(setup: Setup, scene: Scene, variables: impl Fn(&Stage) -> Vec<(&'static str, PathBuf)>) -> Self {
        let mut world = World::with_config(SERVER, "");
        if setup == Setup::Apart {
            world.start_server();
        }
        let stage = Stage::new(&world);
        let folder = world.folder("work");
        fs::write(folder.join("changed"), "old\n").expect("a file");
        let mut play = Self { setup, world, stage, folder, archive: None, client: None, died: false };
        let mut variables = variables(&play.stage);
        // Nothing listens there; what is kept of a trace is kept and removed all the same.
        variables.push(("OTEL_EXPORTER_OTLP_ENDPOINT", PathBuf::from("http://127.0.0.1:9")));
        match scene {
            Scene::Fresh => {
                leave_behind(&play.agent());
                play.archive = Some(archive(&play.world));
                setup.launch(&mut play.world, &variables);
                play.until_served();
                play.submit();
            }
            Scene::Recovering => {
                setup.start(&mut play.world);
                play.submit();
                let client = play.client.as_ref().expect("it was started");
                eventually("the first line", || (!client.stdout().is_empty()).then_some(()));
                setup.kill(&mut play.world);
                setup.launch(&mut play.world, &variables);
            }
        }
        play
    }

    /// The agent's folder.
    fn agent(&self) -> PathBuf {
        self.setup.home(&self.world).join("agent")
    }

    fn submit(&mut self) {
        // By its socket: a client that looks for the server of this machine would start one where there is none.
        let mut command = self.world.command();
        command.env("HOLM_SERVER", format!("unix:{}", self.world.http().socket.display()));
        command.env("HOLM_TOKEN_FILE", self.world.home().join("token"));
        command.env("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        let folder = self.folder.to_str().expect("a path");
        let script = script();
        command.args(["run", "--dir", folder, "--write-back"]);
        if let Some(archive) = &self.archive {
            command.args(["--mount", "/usr:/usr:ro", "--root", &format!("tar:{}", archive.display())]);
        }
        command.args(["--", "bash", "-c", &script]);
        self.client = Some(Running::start(&mut command));
    }

    /// Starts `holm up` or the agent again if it has died.
    fn look_after(&mut self) {
        if let Some(ran) = self.setup.ended(&mut self.world) {
            assert_eq!(ran.code, 137, "it ended by itself: {ran}");
            assert!(!self.died, "it died twice");
            self.died = true;
            self.setup.start(&mut self.world);
        }
    }

    fn until_served(&mut self) {
        eventually("a host is there", || {
            self.look_after();
            let http = self.world.http();
            let hosts = http.token.as_ref().and_then(|_| http.try_send("GET", "/v1/hosts", &[], b"").ok())?;
            (hosts.status == 200 && !hosts.json()["hosts"].as_array()?.is_empty()).then_some(())
        });
    }

    /// Waits for the client's end and for `is_over`.
    fn until(&mut self, what: &str, is_over: impl Fn(&Stage) -> bool) -> Ran {
        let mut client = self.client.take().expect("it was started");
        eventually(what, || {
            self.look_after();
            (!client.is_alive() && is_over(&self.stage)).then_some(())
        });
        // It may have died last of all, while it removed what the run had left.
        let died_last = !self.died && self.stage.victim() == Some(self.setup.pid(&self.world));
        eventually("its end is seen", || {
            self.look_after();
            (self.died || !died_last).then_some(())
        });
        client.wait_alone()
    }

    /// What must hold whoever died where.
    fn judge(&self, ran: &Ran) {
        let run = self.world.newest();
        let view = self.world.show(&run);
        assert_eq!(self.world.all_runs().len(), 1);
        assert_eq!(view["state"], "ended", "{view}");
        let count = |kind: &str| self.world.events_of(&run, kind).len();
        assert_eq!(count("ended"), 1, "{:?}", self.world.events(&run));
        assert!(count("started") <= 1, "{:?}", self.world.events(&run));
        assert_eq!(self.world.logs(&run).text(), ran.text(), "what was stored and what the client saw");
        let reason = view["outcome"]["reason"].as_str().unwrap_or_default();
        let changed = fs::read_to_string(self.folder.join("changed")).expect("a file");
        if view["outcome"]["kind"] == "succeeded" {
            assert_eq!(ran.code, 0, "{ran}");
            assert_eq!(ran.text(), all_lines());
            assert_eq!(changed, "new\n");
            assert_eq!(count("egress_refused"), 1, "{:?}", self.world.events(&run));
        } else {
            assert!(!self.died, "the death of an agent does a run no harm: {view}");
            assert!(["guest_lost", "host_failed"].contains(&reason), "{view}");
            assert_eq!(ran.code, 125, "{ran}");
            assert!(all_lines().starts_with(ran.text()), "{ran}");
            assert_eq!(changed, "old\n", "nothing is written back of a run that failed");
        }
        if self.archive.is_some() {
            self.judge_what_was_left();
        }
    }

    /// What [`leave_behind`] left was looked after, and the image is whole.
    fn judge_what_was_left(&self) {
        let agent = self.agent();
        let names = |folder: &str| -> Vec<String> {
            let found = fs::read_dir(agent.join(folder)).expect("a folder").flatten();
            found.map(|entry| entry.file_name().into_string().expect("UTF-8")).collect()
        };
        eventually("the damaged attempt is set aside, and no more is kept than may be", || {
            let aside = names("set-aside");
            (names("runs").is_empty() && aside.len() == KEPT_ASIDE).then_some(())
        });
        let noted = agent.join(format!("set-aside/{DAMAGED}.0/damaged"));
        assert!(fs::read_to_string(&noted).is_ok_and(|note| note.contains("journal.json")), "{}", noted.display());
        eventually("there is one image, and half of none", || {
            let images = names("images");
            let images: Vec<_> = images.iter().filter(|name| *name != "known" && !name.ends_with(".lock")).collect();
            let [image] = images[..] else { return None };
            (image.len() == 64 && agent.join("images").join(image).join("bytes").exists()).then_some(())
        });
    }
}

/// The points that a run of a scene reaches, which is right in itself.
fn reached_in(scene: Scene) -> BTreeSet<String> {
    let mut play = Play::act(Setup::Together, scene, Stage::trace);
    // The folder of the attempt is the last to go.
    let ran = play.until("the run ends and is cleared", |stage| stage.points().contains("after attempt.remove"));
    play.judge(&ran);
    assert_eq!(ran.code, 0, "{ran}");
    play.stage.points()
}

fn crash(setup: Setup, scene: Scene, point: &str) {
    let mut play = Play::act(setup, scene, |stage| stage.crash_at(point));
    let ran =
        play.until(&format!("{setup:?}, {scene:?}, {point}: the run ends and the crash was there"), Stage::is_over);
    play.judge(&ran);
}

/// The names that the code gives its steps.
fn named_in_the_code() -> BTreeSet<String> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut names = BTreeSet::new();
    let mut folders = ["agent", "runtime", "shim"].map(|name| crates.join(name).join("src")).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap_or_default();
            for call in ["effect(\"", "effect_of(\""] {
                let named = text.split(call).skip(1).filter_map(|rest| rest.split('"').next());
                names.extend(named.map(str::to_owned));
            }
        }
    }
    names
}

/// How many tests share the points.
const SHARES: u64 = 6;

/// A death: who dies when, and where.
type Death = (Setup, Scene, String);

/// Whether a death is tried here by the test with the number `share`. Its name decides, so that each is somebody's.
fn is_chosen(share: u64, (setup, scene, point): &Death) -> bool {
    let number = point.bytes().fold(*scene as u64, |number, byte| number * 31 % 1_000_003 + u64::from(byte));
    let is_whole = std::env::var(EXTENT).is_ok_and(|extent| extent == "all");
    let is_main = host::is_root() && std::env::var("HOLM_TEST_STORE").is_ok_and(|store| store == "sqlite");
    let is_wanted = match setup {
        Setup::Together => is_main || (number / SHARES).is_multiple_of(5),
        Setup::Apart => is_main && *scene == Scene::Fresh && APART.contains(&point.as_str()),
    };
    number % SHARES == share && (is_whole || is_wanted)
}

fn deaths(share: u64) {
    let reached: [(Scene, BTreeSet<String>); 2] = thread::scope(|scope| {
        let plays = [Scene::Fresh, Scene::Recovering].map(|scene| (scene, scope.spawn(move || reached_in(scene))));
        plays.map(|(scene, play)| (scene, play.join().expect("a run that is right in itself")))
    });
    let anywhere: BTreeSet<String> = reached
        .iter()
        .flat_map(|(_, points)| points)
        .filter_map(|point| Some(point.split_once(' ')?.1.to_owned()))
        .collect();
    let mut named = named_in_the_code();
    if !host::is_root() && !anywhere.contains("group.make") {
        // Who may make no control groups has none to remove.
        named.retain(|name| !name.starts_with("group."));
    }
    // An agent with a token does none of these, nor one whose runs need no secrets; `identity` and `credentials` die at each.
    for step in STEPS_OF_ENROLMENT.into_iter().chain(STEPS_OF_SECRETS) {
        assert!(named.remove(step), "no step is called {step}, so nobody dies there");
    }
    assert_eq!(anywhere, named, "steps that are reached, and steps that the code names");
    let (_, fresh) = &reached[0];
    assert!(APART.iter().all(|point| fresh.contains(*point)), "{APART:?} are among {fresh:?}");
    let mut points: Vec<Death> = Vec::new();
    for (scene, reached) in reached {
        let of_scene = reached
            .into_iter()
            .flat_map(|point| [Setup::Together, Setup::Apart].map(|setup| (setup, scene, point.clone())));
        points.extend(of_scene.filter(|death| is_chosen(share, death)));
    }
    let total = points.len();
    let points = Mutex::new(points);
    let work = || {
        let mut failed = Vec::new();
        loop {
            let next = points.lock().expect("a list").pop();
            let Some((setup, scene, point)) = next else { return failed };
            if thread::scope(|alone| alone.spawn(|| crash(setup, scene, &point)).join()).is_err() {
                failed.push(format!("{setup:?}, {scene:?}, {point}"));
            }
        }
    };
    let failed: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("it catches panics")).collect()
    });
    assert!(failed.is_empty(), "{} of {total} points: {failed:#?}", failed.len());
}

macro_rules! shares {
    ($($name:ident = $share:literal),+) => {
        $(
            #[test]
            fn $name() {
                deaths($share);
            }
        )+
    };
}

// A death at any step leaves one end, all output and nothing else.
shares!(
    a_death_at_any_step_1 = 0,
    a_death_at_any_step_2 = 1,
    a_death_at_any_step_3 = 2,
    a_death_at_any_step_4 = 3,
    a_death_at_any_step_5 = 4,
    a_death_at_any_step_6 = 5
);
