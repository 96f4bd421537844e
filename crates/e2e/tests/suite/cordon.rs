//! Hosts that are taken out of use for new runs: they keep what they have, and runs that wait say why.

use std::time::{Duration, Instant};

use holm_e2e::{Running, World, eventually};

/// A world with one agent and a run on it that ends when it is told to.
fn with_a_run() -> (World, String) {
    let mut world = World::with_server();
    world.start_agent("isle");
    let running = world.detach(["--", "sleep", "600"]);
    world.until_state(&running, "running");
    (world, running)
}

fn end(world: &World, run: &str) {
    world.holm(["cancel", "--kill", run]).succeeds();
    world.until_ended(run);
}

fn is_cordoned(world: &World) -> bool {
    !world.http().get("/v1/hosts").is(200).json()["hosts"][0]["cordon"].is_null()
}

#[test]
fn a_cordoned_host_takes_nothing_new_and_says_who_wants_that() {
    let (mut world, running) = with_a_run();
    let id = world.holm(["hosts", "cordon", "isle"]).succeeds().word();
    let why = "cordoned by bootstrap; it takes nothing new";
    let shown = world.holm(["hosts"]).succeeds();
    assert!(shown.text().contains(&id) && shown.text().contains(why), "{shown}");
    let waiting = world.detach(["--", "true"]);
    let shown = world.holm(["show", &waiting]).succeeds();
    assert!(shown.text().contains(&format!("isle: {why}")), "{shown}");
    // Neither a new process of the agent nor a new server lifts it, and the run that was there goes on.
    world.kill_agent("isle");
    world.start_agent("isle");
    world.kill_server();
    world.start_server();
    assert!(is_cordoned(&world));
    world.start_agent("other");
    let elsewhere = world.until_ended(&waiting);
    assert_eq!(elsewhere["outcome"]["kind"], "succeeded", "another host takes it");
    let by = elsewhere["sandbox"]["agent"].as_str().expect("an agent");
    assert_ne!(by, id);
    let view = world.show(&running);
    assert_eq!((view["state"].as_str(), view["fence"].as_u64()), (Some("running"), Some(1)));
    world.stop_agent("other");
    world.holm(["hosts", "uncordon", &id]).succeeds();
    let again = world.detach(["--", "true"]);
    assert_eq!(world.until_ended(&again)["sandbox"]["agent"], id.as_str());
    end(&world, &running);
}

#[test]
fn a_run_waits_for_a_host_with_the_label_that_it_wants() {
    let mut world = World::with_server();
    world.start_agent_with("isle", &["--host-label", "zone=a"]);
    world.run(["--on", "zone=a", "--", "true"]).succeeds();
    let first = world.show(&world.newest());
    let waiting = world.detach(["--on", "zone=b", "--", "true"]);
    let shown = world.holm(["show", &waiting]).succeeds();
    assert!(shown.text().contains("no connected host has the label zone=b"), "{shown}");
    world.start_agent_with("other", &["--host-label", "zone=b"]);
    assert_ne!(world.until_ended(&waiting)["sandbox"]["agent"], first["sandbox"]["agent"]);
    world.run(["--on", "=a", "--", "true"]).exits(125).complains_of(&["--on", "KEY=VALUE"]);
}

#[test]
fn a_drain_waits_for_the_runs_and_ends_none() {
    let (world, running) = with_a_run();
    let mut drain = Running::start(world.command().args(["hosts", "drain", "isle"]));
    eventually("the host is cordoned", || is_cordoned(&world).then_some(()));
    eventually("the drain says what it waits for", || drain.stderr().contains("isle has 1 run; waiting").then_some(()));
    let waiting = world.detach(["--", "true"]);
    assert!(drain.is_alive());
    assert_eq!(world.show(&running)["state"], "running");
    end(&world, &running);
    drain.wait().exits(0);
    assert_eq!(world.show(&waiting)["state"], "queued");
    world.holm(["hosts", "uncordon", "isle"]).succeeds();
    world.until_ended(&waiting);
}

#[test]
fn a_drain_whose_time_is_over_leaves_the_cordon_and_the_runs() {
    let (world, running) = with_a_run();
    let begun = Instant::now();
    let drained = world.holm(["hosts", "drain", "isle", "--timeout", "3s"]).exits(1);
    drained.complains_of(&["isle still has 1 run after 3s", "stays cordoned"]);
    assert!(begun.elapsed() >= Duration::from_secs(2));
    assert!(is_cordoned(&world));
    assert_eq!(world.show(&running)["state"], "running");
    end(&world, &running);
}

#[test]
fn a_drain_that_somebody_undoes_is_no_success() {
    let (world, running) = with_a_run();
    let drain = Running::start(world.command().args(["hosts", "drain", "isle"]));
    eventually("the host is cordoned", || is_cordoned(&world).then_some(()));
    world.holm(["hosts", "uncordon", "isle"]).succeeds();
    drain.wait().exits(1).complains_of(&["somebody uncordoned isle"]);
    end(&world, &running);
}

#[test]
fn what_is_no_host_is_named_and_members_move_none() {
    let (world, running) = with_a_run();
    for verb in ["cordon", "uncordon", "drain"] {
        world.holm(["hosts", verb, "atlantis"]).exits(1).complains_of(&["no host `atlantis`", "holm hosts"]);
    }
    world.holm(["hosts", "drain", "isle", "--timeout", "soon"]).exits(2).complains_of(&["--timeout", "soon"]);
    let member = world.holm(["token", "create", "alice"]).succeeds().word();
    let mut command = world.command();
    command.env_remove("HOLM_TOKEN_FILE").env("HOLM_TOKEN", member);
    holm_e2e::ran::run(command.args(["hosts", "cordon", "isle"])).exits(1).complains_of(&["role `member`"]);
    assert!(!is_cordoned(&world));
    end(&world, &running);
}
