//! What an org may have and do at most: over several servers and their restarts, and without anything lost.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use holm_e2e::{Fleet, World, eventually, host, http::Http, ran, world::fleet::Part};
use serde_json::json;

/// The burst of a rate of 60 a minute: ten seconds' worth.
const BURST: u64 = 10;

/// Sets a limit of the default org.
fn set(world: &World, limit: &str) {
    world.holm(["org", "limits", "set", "default", limit]).succeeds();
}

/// Submits what is no run: it counts as any other does. Whether that was not too many.
fn submits(http: &Http) -> bool {
    let answer = http.post("/v1/runs", &json!({}));
    if answer.status != 429 {
        answer.is_problem(422, "invalid_field");
        return true;
    }
    let wait: u64 = answer.header("retry-after").expect("a header").parse().expect("whole seconds");
    let problem = answer.is_problem(429, "too_many");
    assert!((1..=60).contains(&wait) && problem["retry_after_s"] == wait, "{wait}: {problem}");
    assert_eq!((problem["field"].as_str(), problem["value"].as_str()), (Some("submits_per_minute"), Some("60")));
    false
}

#[test]
fn two_servers_of_which_one_starts_anew_take_no_more_than_one() {
    if !host::is_root() {
        // A fleet needs root; what one server does is tested below for everybody.
        return;
    }
    let mut fleet = Fleet::start(2, 1);
    let body = json!({ "limits": { "submits_per_minute": 60 } });
    fleet.http(0).post("/v1/orgs/default/limits", &body).is(200);
    // The other server has heard of it.
    std::thread::sleep(Duration::from_secs(2));
    let (begun, mut taken, mut refused) = (Instant::now(), 0, 0);
    for round in 0..3 {
        for number in 0..60 {
            let is_taken = submits(&fleet.http(number % 2));
            taken += u64::from(is_taken);
            refused += u64::from(!is_taken);
        }
        if round < 2 {
            fleet.kill(Part::Server(round));
            fleet.launch(Part::Server(round));
            fleet.until_all_ready();
        }
    }
    // What a server has taken ahead is spent within a second.
    let most = BURST + begun.elapsed().as_secs() + 2;
    assert!((BURST..=most).contains(&taken), "{taken} of at most {most} after {:?}", begun.elapsed());
    assert!(refused > 0);
    for server in 0..2 {
        let metrics = fleet.http(server).get("/metrics").is(200);
        let text = String::from_utf8_lossy(&metrics.body).into_owned();
        assert!(text.contains("holm_limited_total{limit=\"submits_per_minute\"} "), "{text}");
    }
}

#[test]
fn a_restart_gives_nothing_anew() {
    let mut world = World::with_server();
    set(&world, "submits_per_minute=60");
    let begun = Instant::now();
    let mut taken = 0;
    while submits(&world.http()) {
        taken += 1;
        assert!(taken < 100, "nothing is refused");
    }
    world.kill_server();
    world.start_server();
    for _ in 0..50 {
        taken += u64::from(submits(&world.http()));
    }
    let most = BURST + begun.elapsed().as_secs() + 2;
    assert!((BURST..=most).contains(&taken), "{taken} of at most {most}");
    let shown = world.holm(["org", "limits", "show"]).succeeds();
    assert!(shown.text().contains("submits_per_minute") && shown.text().contains("this org"), "{shown}");
}

#[test]
fn a_command_waits_and_says_why() {
    let mut world = World::with_server();
    world.start_agent("isle");
    set(&world, "submits_per_minute=60");
    while submits(&world.http()) {}
    let ran = world.run(["--", "echo", "hello"]).succeeds();
    assert_eq!(ran.text(), "hello\n");
    assert!(ran.complaint().contains("submits_per_minute") && ran.complaint().contains("waiting"), "{ran}");
}

#[test]
fn a_flood_of_output_waits_and_arrives_complete() {
    let mut world = World::with_server();
    world.start_agent("isle");
    // What does not become shorter when it is packed, and more of it than the burst has: that is ten seconds' worth.
    set(&world, "log_bytes_per_second=1048576");
    let script = "head -c 15000000 /dev/urandom | base64 > /tmp/flood; cat /tmp/flood; sha256sum < /tmp/flood >&2";
    let run = world.detach(["--", "sh", "-c", script]);
    world.until_ended(&run);
    let logs = world.holm(["logs", &run]).succeeds();
    let copy = world.dir().join("flood");
    std::fs::write(&copy, logs.text()).expect("a file");
    let sum = ran::run(Command::new("sha256sum").arg(&copy)).succeeds();
    let (printed, stored) = (logs.complaint(), sum.text());
    assert_eq!(printed.split(' ').next(), stored.split(' ').next(), "{} bytes", logs.text().len());
    let metrics = world.http().get("/metrics").is(200);
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    let limited = text.lines().find(|line| line.starts_with("holm_limited_total{limit=\"log_bytes_per_second\"}"));
    assert!(limited.is_some_and(|line| !line.ends_with(" 0")), "it was limited: {limited:?}");
}

#[test]
fn a_run_waits_for_another_of_its_org_and_says_so() {
    let mut world = World::with_server();
    world.start_agent("isle");
    set(&world, "runs_running_max=1");
    let first = world.detach(["--", "sleep", "600"]);
    world.until_state(&first, "running");
    let second = world.detach(["--", "true"]);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(world.show(&second)["state"], "queued");
    let shown = world.holm(["show", &second]).succeeds();
    assert!(shown.text().contains("its org has 1 runs running, as many as it may have at once"), "{shown}");
    world.holm(["cancel", "--kill", &first]).succeeds();
    world.until_ended(&first);
    // It is woken: nobody looks at the queue of a file for half a minute otherwise.
    let begun = Instant::now();
    let ended = world.until_ended(&second);
    assert_eq!(ended["outcome"]["kind"], "succeeded");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    set(&world, "runs_running_max=default");
    eventually("it is as before", || {
        let limits = world.http().get("/v1/orgs/default/limits").is(200).json();
        (limits["limits"]["runs_running_max"]["is_own"] == false).then_some(())
    });
}
