//! Metrics, as Prometheus scrapes them.

use holm_e2e::{World, eventually};

/// The value of one series.
#[track_caller]
fn sample(world: &World, series: &str) -> Option<f64> {
    let text = String::from_utf8(world.http().get("/metrics").is(200).body).expect("UTF-8");
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).map(str::to_owned);
    line.map(|value| value.parse().unwrap_or_else(|error| panic!("{series}: {value:?}: {error}")))
}

#[test]
fn a_run_leaves_its_trace_in_the_metrics_and_its_words_do_not() {
    let mut world = World::with_server();
    world.start_agent("peculiar");
    assert_eq!(sample(&world, "holm_hosts{state=\"ready\"}"), Some(1.0));
    world.run(["--label", "team=peculiar", "--", "sh", "-c", "echo peculiar; exit 3"]).exits(3);
    assert_eq!(sample(&world, "holm_runs_ended_total{outcome=\"failed\"}"), Some(1.0));
    assert_eq!(sample(&world, "holm_claims_total"), Some(1.0));
    assert!(sample(&world, "holm_log_appended_bytes_total").is_some_and(|bytes| bytes > 0.0));
    let finish = "method=\"POST\",route=\"/agent/v1/runs/{id}/finish\"";
    assert_eq!(sample(&world, &format!("holm_http_request_duration_seconds_count{{{finish}}}")), Some(1.0));
    let long = world.detach(["--", "sleep", "600"]);
    world.until_state(&long, "running");
    assert_eq!(sample(&world, "holm_runs{state=\"running\"}"), Some(1.0));
    world.holm(["cancel", "--kill", &long]).succeeds();
    eventually("the end of the run", || {
        sample(&world, "holm_runs_ended_total{outcome=\"cancelled\"}").filter(|n| *n > 0.0)
    });
    let text = String::from_utf8(world.http().get("/metrics").is(200).body).expect("UTF-8");
    for word in ["peculiar", "run_", "org_", "agt_"] {
        assert!(!text.contains(word), "{word}: {text}");
    }
}

#[test]
fn a_token_for_monitors_reads_metrics_and_nothing_else() {
    let world = World::with_server();
    let secret = world.holm(["token", "create", "graphs", "--role", "monitor"]).succeeds().word();
    let monitor = world.http().with_token(Some(&secret));
    let answer = monitor.get("/metrics").is(200);
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    for path in ["/v1/runs", "/v1/hosts", "/v1/tokens"] {
        monitor.get(path).is_problem(403, "forbidden");
    }
    world.http().with_token(None).get("/metrics").is_problem(401, "unauthenticated");
}
