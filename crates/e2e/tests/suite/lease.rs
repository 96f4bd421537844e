//! Leases: a run never has two live sandboxes, and an agent that dies takes no run with it.

use std::{fs, path::Path};

use holm_e2e::{World, eventually, host, ran::send, unique};
use rustix::process::Signal;

/// Holds a lock on a file of the host for as long as it lives, and tells by what it writes whether it got it. Two live
/// sandboxes of one run would both want it: the second would say so.
const WITNESS: &str = r#"
import fcntl, os, sys, time
file = open("/shared/lock", "a")
try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    open("/shared/overlap", "w").close()
    sys.exit(9)
with open("/shared/lives", "a") as lives:
    lives.write("life\n")
life = len(open("/shared/lives").readlines())
while not os.path.exists("/shared/enough"):
    open(f"/shared/beat{life}", "w").close()
    time.sleep(0.02)
print("done", flush=True)
"#;

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).unwrap_or_default().lines().count()
}

#[test]
fn a_stopped_agent_loses_its_sandbox_before_the_run_is_granted_anew() {
    let mut world = World::with_short_leases();
    let shared = world.folder("shared");
    world.start_agent("first");
    let mount = format!("{}:/shared", shared.display());
    let id = world.detach(["--mount", &mount, "--", "/usr/bin/python3", "-c", WITNESS]);
    eventually("the first life", || (lines(&shared.join("lives")) == 1).then_some(()));
    let first = world.show(&id);
    world.start_agent("second");
    send(world.agent_pid("first"), Signal::STOP);
    // The lock is free for the second life only if every process of the first is dead: its shim kept the deadline.
    eventually("the second life", || (lines(&shared.join("lives")) == 2).then_some(()));
    assert!(!shared.join("overlap").exists(), "two sandboxes of one run were alive at once");
    let second = world.until_state(&id, "running");
    assert_ne!(second["agent"], first["agent"]);
    assert_eq!(second["fence"].as_u64(), first["fence"].as_u64().map(|fence| fence + 1));
    assert_eq!(second["attempt"], 2);
    let last_beat = fs::metadata(shared.join("beat1")).and_then(|beat| beat.modified()).expect("a beat");
    let last_beat = last_beat.duration_since(std::time::UNIX_EPOCH).expect("a time").as_micros();
    for kind in ["lease_expired", "claimed"] {
        let told = world.events_of(&id, kind);
        let at = told.last().and_then(|event| event["at"].as_u64()).expect("a time");
        assert!(
            last_beat < u128::from(at),
            "the first life was alive {} us after `{kind}`",
            last_beat - u128::from(at)
        );
    }

    // The stopped agent wakes up and must find that it holds nothing any more.
    send(world.agent_pid("first"), Signal::CONT);
    fs::write(shared.join("enough"), "").expect("a file");
    let ended = world.until_ended(&id);
    assert_eq!(ended["outcome"]["kind"], "succeeded", "{ended}");
    assert_eq!(world.logs(&id).text(), "done\n");
    assert!(!shared.join("overlap").exists());
    let kinds: Vec<String> =
        world.events(&id).iter().filter_map(|event| event["kind"].as_str().map(str::to_owned)).collect();
    let wanted = ["queued", "claimed", "started", "lease_expired", "requeued", "claimed", "started", "ended"];
    assert_eq!(kinds, wanted);
}

#[test]
fn a_killed_agent_is_killed_with_its_sandbox_when_nobody_comes_back() {
    let mut world = World::with_short_leases();
    world.start_agent("only");
    let word = unique("86394");
    let id = world.detach(["--", "bash", "-c", &format!("exec -a {word} sleep 86394")]);
    eventually("it runs", || (!host::find(&word).is_empty()).then_some(()));
    world.kill_agent("only");
    eventually("its sandbox is dead", || host::find(&word).is_empty().then_some(()));
    let requeued = world.until_state(&id, "queued");
    assert_eq!(requeued["attempt"], 1, "{requeued}");
    world.doctor_says(0, &["0 of 1 take runs; only was heard of", "see its log if it was killed"]);
    // Its agent comes back, cleans up what is left and carries on.
    world.start_agent("only");
    world.until_state(&id, "running");
    world.holm(["cancel", "--kill", &id]).succeeds();
    world.until_ended(&id);
}

#[test]
fn a_stopped_shim_is_killed_with_its_sandbox() {
    let mut world = World::with_short_leases();
    world.start_agent("only");
    let word = unique("86391");
    let id = world.detach(["--", "bash", "-c", &format!("exec -a {word} sleep 86391")]);
    eventually("it runs", || (!host::find(&word).is_empty()).then_some(()));
    let shim = host::find(&id).into_iter().find(|pid| host::command_line(*pid).contains(" shim "));
    send(shim.expect("a shim"), Signal::STOP);
    // The agent lives and renews the lease; what it tells the shim has no effect.
    world.holm(["cancel", "--kill", &id]).succeeds();
    let ended = world.until_ended(&id);
    assert_eq!((&ended["outcome"]["reason"], &ended["fence"]), (&"guest_lost".into(), &1.into()), "{ended}");
    assert!(host::find(&word).is_empty(), "something of it lives");
    assert_eq!(world.run(["--", "echo", "next"]).succeeds().text(), "next\n");
}

#[test]
fn a_run_whose_agents_all_vanish_is_lost_and_says_so() {
    // Long enough that no lease runs out by itself on a machine that does much else: each would be an attempt.
    let mut world = World::with_config("lease_ttl = \"4s\"\nlease_margin = \"1s\"\nattempts_max = 2\n", "");
    world.start_up();
    let word = unique("86393");
    let id = world.detach(["--", "bash", "-c", &format!("exec -a {word} sleep 86393")]);
    for _ in 0..2 {
        eventually("it runs", || (!host::find(&word).is_empty()).then_some(()));
        world.kill_up();
        eventually("its sandbox is dead", || host::find(&word).is_empty().then_some(()));
        world.start_up();
    }
    let view = world.until_ended(&id);
    assert_eq!(
        (&view["outcome"]["kind"], &view["outcome"]["reason"]),
        (&"lost".into(), &"agent_lost".into()),
        "{view}"
    );
    assert_eq!(view["attempt"], 2, "{view}");
}

/// Counts slowly enough that agents die and come back while it does.
const COUNT: &str = "import time\nfor n in range(1, 601):\n    print(n, flush=True)\n    time.sleep(0.01)\n";

fn counted() -> String {
    (1..=600).map(|number| format!("{number}\n")).collect()
}

fn lines_stored(world: &World, id: &str) -> usize {
    let page = world.http().get(&format!("/v1/runs/{id}/logs?limit=10000")).is(200).json();
    page["entries"].as_array().map_or(0, Vec::len)
}

fn until_more_lines(world: &World, id: &str) {
    let before = lines_stored(world, id);
    eventually("more lines arrived", || (lines_stored(world, id) > before).then_some(()));
}

#[test]
fn a_server_that_is_killed_alone_and_comes_back_loses_no_line_and_no_run() {
    let mut world = World::with_server();
    world.start_agent("only");
    let agent = world.agent_pid("only");
    let id = world.detach(["--", "/usr/bin/python3", "-c", COUNT]);
    let begun = world.until_state(&id, "running");
    for _ in 0..3 {
        until_more_lines(&world, &id);
        world.kill_server();
        // The command goes on writing while nobody takes it.
        std::thread::sleep(std::time::Duration::from_millis(200));
        world.start_server();
    }
    let view = world.until_ended(&id);
    assert_eq!(view["outcome"]["kind"], "succeeded", "{view}");
    assert_eq!((&view["attempt"], &view["fence"]), (&1.into(), &1.into()), "the same sandbox all along: {view}");
    assert_eq!((world.agent_pid("only"), &view["sandbox"]), (agent, &begun["sandbox"]), "the agent went on");
    assert!(host::is_alive(agent));
    assert!(world.logs(&id).text() == counted(), "lines are missing, doubled or out of order");
    let kinds: Vec<String> =
        world.events(&id).iter().filter_map(|event| event["kind"].as_str().map(str::to_owned)).collect();
    assert_eq!(kinds, ["queued", "claimed", "started", "ended"]);
}

#[test]
fn an_agent_that_is_killed_alone_takes_its_run_up_again_within_the_lease() {
    let mut world = World::with_server();
    world.start_agent("only");
    let id = world.detach(["--", "/usr/bin/python3", "-c", COUNT]);
    let begun = world.until_state(&id, "running");
    for _ in 0..3 {
        until_more_lines(&world, &id);
        world.kill_agent("only");
        // The command goes on writing while nobody takes it.
        std::thread::sleep(std::time::Duration::from_millis(200));
        world.start_agent("only");
    }
    let view = world.until_ended(&id);
    assert_eq!(view["outcome"]["kind"], "succeeded", "{view}");
    assert_eq!((&view["attempt"], &view["fence"]), (&1.into(), &1.into()), "the same sandbox all along: {view}");
    assert_eq!(view["sandbox"], begun["sandbox"]);
    assert!(world.logs(&id).text() == counted(), "lines are missing, doubled or out of order");
    assert_eq!(world.events_of(&id, "started").len(), 1);
}

#[test]
fn an_agent_that_is_killed_and_comes_back_loses_no_line() {
    let mut world = World::up();
    let id = world.detach(["--", "/usr/bin/python3", "-c", COUNT]);
    world.until_state(&id, "running");
    for _ in 0..3 {
        until_more_lines(&world, &id);
        world.kill_up();
        world.start_up();
    }
    let view = world.until_ended(&id);
    assert_eq!(view["outcome"]["kind"], "succeeded", "{view}");
    assert_eq!((&view["attempt"], &view["fence"]), (&1.into(), &1.into()), "the same sandbox all along: {view}");
    assert!(world.logs(&id).text() == counted(), "lines are missing, doubled or out of order");
    assert_eq!(world.events_of(&id, "ended").len(), 1);
}

#[test]
fn a_run_that_ends_while_its_agent_is_dead_keeps_output_and_exit_code() {
    let mut world = World::up();
    let gate = world.folder("gate");
    let mount = format!("{}:/gate", gate.display());
    let script = "echo before; touch /gate/begun; while [ ! -e /gate/open ]; do sleep 0.02; done; \
                  seq 1 5000; touch /gate/over; exit 6";
    let id = world.detach(["--mount", &mount, "--", "sh", "-c", script]);
    eventually("it runs", || gate.join("begun").exists().then_some(()));
    world.kill_up();
    fs::write(gate.join("open"), "").expect("a file");
    eventually("it is over", || gate.join("over").exists().then_some(()));
    world.start_up();
    let view = world.until_ended(&id);
    assert_eq!(view["outcome"]["exit"], serde_json::json!({ "code": 6 }), "{view}");
    let wanted: String =
        std::iter::once("before\n".to_owned()).chain((1..=5000).map(|number| format!("{number}\n"))).collect();
    assert!(world.logs(&id).text() == wanted, "the tail was lost");
}
