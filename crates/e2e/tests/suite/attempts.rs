//! What an agent that comes back finds damaged of its attempts: it is set aside and told, and the run ends with a reason.

use std::{
    fs,
    path::{Path, PathBuf},
};

use holm_e2e::{World, eventually, host, ran::send, unique};
use rustix::process::Signal;

/// The folder of the only attempt.
fn attempt(world: &World) -> PathBuf {
    let folders = world.marks().run_folders();
    let [folder] = &folders[..] else { panic!("one attempt was expected: {folders:?}") };
    folder.clone()
}

/// What was noted of the first attempt of a run when it was set aside.
fn note(world: &World, run: &str) -> String {
    let path = world.dir().join(format!("agent-only/agent/set-aside/{run}.1.0/damaged"));
    eventually("the attempt is set aside", || fs::read_to_string(&path).ok())
}

/// Replaces a file that belongs to whoever it likes.
fn write(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).expect("a file");
    fs::write(path, bytes).expect("a file");
}

#[test]
fn a_journal_that_cannot_be_read_costs_its_sandbox_and_the_run_begins_anew() {
    for file in ["journal.json", "shim.json"] {
        let mut world = World::with_short_leases();
        world.start_agent("only");
        let word = unique("86386");
        let run = world.detach(["--", "bash", "-c", &format!("exec -a {word} sleep 86386")]);
        let first = eventually("it runs", || Some(host::find(&word)).filter(|found| !found.is_empty()));
        world.kill_agent("only");
        write(&attempt(&world).join(file), b"{");
        world.start_agent("only");
        assert!(note(&world, &run).contains(file));
        eventually("its sandbox is dead", || first.iter().all(|pid| !host::is_alive(*pid)).then_some(()));
        let again = eventually("it begins anew", || Some(world.show(&run)).filter(|run| run["attempt"] == 2));
        assert_eq!(again["fence"], 2, "{again}");
        let doctor = world.holm(["doctor", "--home", &world.dir().join("agent-only").display().to_string()]);
        assert!(doctor.text().contains(&format!("{run}.1.0: the journal cannot be used: {file}")), "{doctor}");
        world.holm(["cancel", "--kill", &run]).succeeds();
        assert_eq!(world.until_ended(&run)["outcome"]["kind"], "cancelled");
    }
}

#[test]
fn a_spool_that_cannot_be_read_fails_its_run() {
    let mut world = World::with_server();
    world.start_agent("only");
    let run = world.detach(["--", "sh", "-c", "echo begun; while :; do echo more; sleep 0.01; done"]);
    eventually("its first output", || world.logs(&run).text().starts_with("begun\n").then_some(()));
    world.kill_server();
    let spool = attempt(&world).join("spool");
    let files = || fs::read_dir(&spool).expect("a spool").flatten().map(|entry| entry.path()).collect::<Vec<_>>();
    let held = || files().iter().filter_map(|path| fs::metadata(path).ok()).map(|meta| meta.len()).sum::<u64>();
    let before = held();
    eventually("output that nobody takes", || (held() > before + 4_096).then_some(()));
    world.kill_agent("only");
    for path in files() {
        let mut bytes = fs::read(&path).expect("a spool");
        bytes.iter_mut().step_by(16).for_each(|byte| *byte ^= 0x55);
        fs::write(&path, bytes).expect("a spool");
    }
    world.start_server();
    world.start_agent("only");
    let ended = world.until_ended(&run);
    assert_eq!((&ended["outcome"]["reason"], &ended["attempt"]), (&"spool_failed".into(), &1.into()), "{ended}");
    let message = ended["outcome"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("the log spool is damaged"), "{ended}");
    assert!(note(&world, &run).contains("the log spool is damaged"));
    assert!(world.logs(&run).text().starts_with("begun\n"), "what had arrived is kept");
}

#[test]
fn a_last_word_that_cannot_be_read_is_no_success() {
    let mut world = World::with_server();
    world.start_agent("only");
    let gate = world.folder("gate");
    let mount = format!("{}:/gate", gate.display());
    let script = "echo begun; while [ ! -e /gate/open ]; do sleep 0.02; done";
    let run = world.detach(["--mount", &mount, "--", "sh", "-c", script]);
    eventually("its output", || (world.logs(&run).text() == "begun\n").then_some(()));
    world.kill_agent("only");
    fs::write(gate.join("open"), "").expect("a file");
    let folder = attempt(&world);
    eventually("its last word", || folder.join("exit.json").exists().then_some(()));
    let record = fs::read(folder.join("shim.json")).expect("a record");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("a record");
    let shim = record["shim"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a number");
    send(shim, Signal::KILL);
    eventually("the shim is gone", || (!host::is_alive(shim)).then_some(()));
    write(&folder.join("exit.json"), b"{\"phase\":");
    world.start_agent("only");
    let ended = world.until_ended(&run);
    assert_eq!((&ended["outcome"]["reason"], &ended["attempt"]), (&"guest_lost".into(), &1.into()), "{ended}");
    assert!(ended["outcome"]["message"].as_str().unwrap_or_default().contains("exit.json"), "{ended}");
    assert!(note(&world, &run).contains("exit.json"));
    assert_eq!(world.logs(&run).text(), "begun\n");
}

/// A host that cannot make a sandbox until it is mended: a file lies where the folder of attempts was.
struct Broken {
    place: PathBuf,
    aside: PathBuf,
}

impl Broken {
    fn host_of(world: &World, agent: &str) -> Self {
        let place = world.dir().join(format!("agent-{agent}/agent/runs"));
        let aside = place.with_extension("aside");
        fs::rename(&place, &aside).expect("the folder of attempts");
        fs::write(&place, b"").expect("a file");
        Self { place, aside }
    }

    fn mend(self) {
        fs::remove_file(&self.place).expect("a file");
        fs::rename(&self.aside, &self.place).expect("the folder of attempts");
    }
}

#[test]
fn a_sandbox_that_one_host_cannot_make_is_made_by_another() {
    let mut world = World::with_server();
    world.start_agent("bad");
    let broken = Broken::host_of(&world, "bad");
    let run = world.detach(["--", "echo", "made"]);
    let passed_over = || world.show(&run)["passed_over"][0]["agent"].as_str().map(str::to_owned);
    let bad = eventually("the first failure", passed_over);
    let hosts = || world.holm(["hosts"]).succeeds().text().to_owned();
    eventually("a host that fails takes nothing for a while", || {
        hosts().contains("cannot make sandboxes").then_some(())
    });
    world.start_agent("good");
    let ended = world.until_ended(&run);
    assert_eq!(ended["outcome"]["kind"], "succeeded", "{ended}");
    assert_ne!(ended["sandbox"]["agent"], bad.as_str(), "{ended}");
    assert_eq!(world.logs(&run).text(), "made\n");
    let events = world.holm(["events", &run]).succeeds();
    assert!(events.text().contains(&format!("the host of {bad} could not make its sandbox (fence 1)")), "{events}");
    broken.mend();
}
