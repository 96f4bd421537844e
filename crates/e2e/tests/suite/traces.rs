//! Traces: what a collector is sent of a run, and what a collector can do to one.

use std::{
    collections::BTreeMap,
    fs::File,
    path::Path,
    time::{Duration, Instant},
};

use holm_e2e::{
    World,
    collector::{Collector, Manner},
    eventually, host, ran,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value as Any},
};
use prost::Message as _;
use rustix::{
    fs::{FlockOperation, flock},
    process::Signal,
};
use serde_json::{Value, json};

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const CANARY: &str = "canary-that-nobody-records";
/// By how much the clocks of two processes may differ, in nanoseconds: each takes the time of day once.
const APART_NS: u64 = 20_000_000;
/// When nothing came for so long, nothing more will: spans wait for others for a second.
const QUIET: Duration = Duration::from_millis(1_500);

/// All spans of a run that ends by itself: the part, the span, and within which span it lies.
const TREE: [(&str, &str, &str); 13] = [
    ("cli", "holm run", ""),
    ("server", "run.submit", "holm run"),
    ("server", "run", "holm run"),
    ("server", "run.queued", "run"),
    ("server", "run.claim", "run"),
    ("agent", "attempt", "run"),
    ("agent", "attempt.prepare", "attempt"),
    ("shim", "sandbox", "attempt"),
    ("shim", "sandbox.make", "sandbox"),
    ("guest", "command", "sandbox"),
    ("shim", "sandbox.end", "sandbox"),
    ("agent", "attempt.flush", "attempt"),
    ("server", "run.finish", "run"),
];

/// A span as it was received.
#[derive(Debug, Clone)]
struct Told {
    service: String,
    scope: String,
    name: String,
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    start_ns: u64,
    end_ns: u64,
    attributes: BTreeMap<String, String>,
    is_failed: bool,
}

fn texts(pairs: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |pair: &KeyValue| match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Any::StringValue(text)) => (pair.key.clone(), text.clone()),
        other => panic!("{}: {other:?}", pair.key),
    };
    pairs.iter().map(text).collect()
}

fn spans(collector: &Collector) -> Vec<Told> {
    let mut told = Vec::new();
    for body in collector.bodies() {
        let request = ExportTraceServiceRequest::decode(&body[..]).expect("a request of OTLP");
        for of_part in request.resource_spans {
            let resource = texts(&of_part.resource.expect("a resource").attributes);
            for of_scope in of_part.scope_spans {
                let scope = of_scope.scope.expect("a scope").name;
                told.extend(of_scope.spans.into_iter().map(|span| Told {
                    service: resource["service.name"].clone(),
                    scope: scope.clone(),
                    attributes: texts(&span.attributes),
                    is_failed: span.status.is_some_and(|status| status.code == 2),
                    name: span.name,
                    trace: span.trace_id,
                    id: span.span_id,
                    parent: span.parent_span_id,
                    start_ns: span.start_time_unix_nano,
                    end_ns: span.end_time_unix_nano,
                }));
            }
        }
    }
    told
}

/// The spans of a run, once `count` of them are there and no more come.
#[track_caller]
fn spans_of(collector: &Collector, run: &str, count: usize) -> Vec<Told> {
    let of_run =
        || spans(collector).into_iter().filter(|span| span.attributes.get("holm.run").is_some_and(|id| id == run));
    eventually("the spans of the run", || (of_run().count() >= count).then_some(()));
    eventually("a collector that hears no more", || (collector.quiet_for() >= QUIET).then_some(()));
    let found: Vec<_> = of_run().collect();
    assert_eq!(found.len(), count, "{found:#?}");
    found
}

#[track_caller]
fn named<'a>(spans: &'a [Told], name: &str) -> &'a Told {
    let mut found = spans.iter().filter(|span| span.name == name);
    let first = found.next().unwrap_or_else(|| panic!("no `{name}` in {spans:#?}"));
    assert!(found.next().is_none(), "several `{name}` in {spans:#?}");
    first
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Which process tells the spans of a part.
fn process(scope: &str) -> &str {
    if ["holm.shim", "holm.guest"].contains(&scope) { "holm.agent" } else { scope }
}

/// Fails the test unless `spans` are those of [`TREE`], each in its place and time, below `above`.
#[track_caller]
fn is_the_tree(spans: &[Told], above: &[u8]) {
    for (part, name, parent) in TREE {
        let span = named(spans, name);
        assert_eq!((span.scope.as_str(), span.service.as_str()), (&*format!("holm.{part}"), &*format!("holm-{part}")));
        assert_eq!(span.trace, spans[0].trace, "{name}");
        assert!(span.start_ns <= span.end_ns, "{span:#?}");
        if parent.is_empty() {
            assert_eq!(span.parent, above, "{name}");
            continue;
        }
        let parent = named(spans, parent);
        assert_eq!(span.parent, parent.id, "{name}");
        // What one process tells by one clock holds exactly.
        let apart_ns = if process(&span.scope) == process(&parent.scope) { 0 } else { APART_NS };
        let (earliest, latest) = (parent.start_ns - apart_ns, parent.end_ns + apart_ns);
        assert!(earliest <= span.start_ns && span.end_ns <= latest, "{span:#?}\ndoes not lie in {parent:#?}");
    }
    for (first, then) in [("sandbox.make", "command"), ("command", "sandbox.end"), ("sandbox", "attempt.flush")] {
        assert!(named(spans, first).end_ns <= named(spans, then).start_ns, "{first} before {then}: {spans:#?}");
    }
}

/// A server and an agent, each a process of its own, that send spans to `url`.
#[track_caller]
fn traced_world(url: &str) -> World {
    let mut world = World::new();
    world.start_server_with(&["--otlp-endpoint", url]);
    world.start_agent_with("a1", &["--otlp-endpoint", url]);
    world
}

#[track_caller]
fn last_run(world: &World) -> Value {
    world.http().get("/v1/runs?limit=1").is(200).json()["runs"][0].clone()
}

fn id_of(run: &Value) -> String {
    run["id"].as_str().expect("an id").to_owned()
}

#[test]
fn one_trace_shows_a_run_from_its_submission_to_its_end() {
    let collector = Collector::start(Manner::Takes);
    let world = traced_world(&collector.url);
    let script = format!("echo {CANARY}; echo $SECRET >&2; sleep 0.2; exit 3");
    let secret = format!("SECRET={CANARY}");
    let label = format!("note={CANARY}");
    let mut command = world.command();
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url).env("OTEL_EXPORTER_OTLP_HEADERS", format!("x={CANARY}"));
    ran::run(command.args(["run", "-e", &secret, "--label", &label, "--", "sh", "-c", &script])).exits(3);
    let run = last_run(&world);
    let spans = spans_of(&collector, &id_of(&run), TREE.len());
    is_the_tree(&spans, b"");
    assert_eq!(run["trace_id"], hex(&spans[0].trace), "people find the trace by the run");
    for span in &spans {
        let is_failed = !["run.submit", "run.queued", "run.claim", "run.finish"].contains(&span.name.as_str());
        let is_failed = is_failed
            && !["attempt.prepare", "sandbox.make", "sandbox.end", "attempt.flush"].contains(&span.name.as_str());
        let reason = span.attributes.get("error.type").map(String::as_str);
        assert_eq!((span.is_failed, reason), (is_failed, is_failed.then_some("command_failed")), "{span:#?}");
    }
    let command = named(&spans, "command");
    assert!(command.end_ns - command.start_ns >= 200_000_000, "{command:#?}");
    assert_eq!(command.attributes["holm.host"], "a1");
    assert_eq!(named(&spans, "attempt").attributes["holm.fence"], "1");
    // Those of the server; the answer of the collector may be on its way.
    for (outcome, count) in [("sent", 5), ("dropped", 0), ("failed", 0)] {
        let line = format!("holm_trace_spans_total{{outcome=\"{outcome}\"}} {count}");
        eventually(&line, || {
            let metrics = String::from_utf8(world.http().get("/metrics").is(200).body).expect("UTF-8");
            metrics.lines().any(|found| found == line).then_some(())
        });
    }
    let all: Vec<u8> = collector.bodies().concat();
    let token = std::fs::read_to_string(world.home().join("token")).expect("a token");
    for secret in [CANARY, token.trim(), "SECRET", "sleep 0.2"] {
        assert!(!all.windows(secret.len()).any(|part| part == secret.as_bytes()), "{secret} is in a span");
    }
}

#[test]
fn a_caller_decides_to_which_trace_a_run_belongs_and_whether_it_is_recorded() {
    let collector = Collector::start(Manner::Takes);
    let world = traced_world(&collector.url);
    let run = |caller: &str, endpoint: Option<&str>| {
        let mut command = world.command();
        command.env("TRACEPARENT", caller).args(["run", "--", "true"]);
        command.envs(endpoint.map(|url| ("OTEL_EXPORTER_OTLP_ENDPOINT", url)));
        ran::run(&mut command).succeeds();
        last_run(&world)
    };
    let unrecorded = run(&CALLER.replace("-01", "-00"), Some(&collector.url));
    let recorded = run(CALLER, Some(&collector.url));
    let spans = spans_of(&collector, &id_of(&recorded), TREE.len());
    is_the_tree(&spans, &[0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]);
    assert_eq!(hex(&spans[0].trace), &CALLER[3..35]);
    // One who records nothing passes the caller on.
    let passed_on = run(CALLER, None);
    let spans = spans_of(&collector, &id_of(&passed_on), TREE.len() - 1);
    assert_eq!(hex(&named(&spans, "run").parent), &CALLER[36..52]);
    assert_eq!(unrecorded["trace_id"], CALLER[3..35], "it is known, for the logs");
    let of_unrecorded = |span: &Told| span.attributes.get("holm.run").is_some_and(|id| *id == id_of(&unrecorded));
    assert!(!self::spans(&collector).iter().any(of_unrecorded));
}

#[test]
fn a_header_that_is_not_as_it_should_be_changes_nothing() {
    let collector = Collector::start(Manner::Takes);
    let world = traced_world(&collector.url);
    let body = json!({ "spec": { "root": { "kind": "host" }, "argv": ["true"] } }).to_string();
    let submit = |headers: &[(&str, &str)]| {
        let headers = [&[("content-type", "application/json")], headers].concat();
        let run = world.http().send("POST", "/v1/runs", &headers, body.as_bytes()).is(201).json();
        world.until_ended(&id_of(&run))
    };
    let plain = submit(&[]);
    let long = format!("{}-{}", CALLER.replacen("00", "01", 1), "x".repeat(8_192));
    let zero = CALLER.replace("b7ad6b7169203331", "0000000000000000");
    let upper = CALLER.to_uppercase();
    let twice = [("traceparent", CALLER), ("traceparent", CALLER)];
    let mut runs = Vec::new();
    for headers in [
        &[("traceparent", "nonsense")][..],
        &[("traceparent", "")],
        &[("traceparent", zero.as_str())],
        &[("traceparent", upper.as_str())],
        &[("traceparent", long.as_str())],
        &[("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\t'; drop table runs; --")],
        &[("traceparent", "\u{fc}")],
        &twice,
    ] {
        let run = submit(headers);
        assert_eq!((&run["outcome"], &run["spec"]), (&plain["outcome"], &plain["spec"]), "{headers:?}");
        let trace = run["trace_id"].as_str().expect("a trace of the server's own");
        assert!(trace != &CALLER[3..35] && trace.len() == 32, "{headers:?}: {trace}");
        runs.push(run);
    }
    for run in runs {
        let spans = spans_of(&collector, &id_of(&run), TREE.len() - 1);
        assert_eq!(named(&spans, "run").parent, b"");
        assert_eq!(named(&spans, "run.submit").parent, named(&spans, "run").id);
    }
}

#[test]
fn a_collector_that_is_down_or_hangs_neither_slows_nor_fails_a_run() {
    let hanging = Collector::start(Manner::Hangs);
    for url in [Collector::nobody(), hanging.url.clone()] {
        let world = traced_world(&url);
        let timed = |flags: &[&str]| {
            let begun = Instant::now();
            let ran = world.holm([&["run"], flags, &["--", "echo", "well"]].concat()).succeeds();
            assert_eq!(ran.text(), "well\n");
            (begun.elapsed(), ran)
        };
        timed(&[]);
        let (plain, _) = timed(&[]);
        let (recorded, ran) = timed(&["--otlp-endpoint", &url]);
        // The command waits half a second at its end, and says why; the run has ended by then. The rest is for a busy machine.
        let most = plain * 2 + Duration::from_millis(1_000);
        assert!(recorded < most, "{plain:?} without, {recorded:?} with {url}");
        assert!(ran.complaint().contains("the collector of traces did not take"), "{ran}");
        let run = last_run(&world);
        let took = run["ended_at"].as_i64().zip(run["queued_at"].as_i64()).map(|(end, begin)| end - begin);
        assert!(took.is_some_and(|us| us < 10_000_000), "{run}");
    }
    assert!(!hanging.bodies().is_empty(), "it was asked");
}

#[test]
fn variables_that_are_for_other_programs_stop_nothing_and_are_warned_of() {
    let mut world = World::new();
    world.set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317");
    world.set("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    world.start_server();
    world.start_agent("a1");
    let ran = world.run(["--", "echo", "well"]).succeeds();
    assert_eq!(ran.text(), "well\n");
    let warning = "nothing is recorded: OTEL_EXPORTER_OTLP_PROTOCOL: `grpc` is not accepted";
    assert_eq!(ran.complaint().matches(warning).count(), 1, "{ran}");
    let said = world.all_said("a1");
    assert_eq!(said.matches(warning).count(), 2, "once by the server, once by the agent: {said}");
    let check = world.holm(["config", "check"]).exits(1);
    assert!(check.text().contains("OTEL_EXPORTER_OTLP_PROTOCOL"), "{check}");
    // What was told to Holm itself is refused, by all of them.
    world.holm(["run", "--otlp-endpoint", "nonsense", "--", "true"]).exits(125).complains_of(&["--otlp-endpoint"]);
    world.holm(["agent", "--otlp-endpoint", "nonsense"]).exits(2).complains_of(&["--otlp-endpoint"]);
}

#[test]
fn a_collector_that_hangs_does_not_hold_an_end_up() {
    let hanging = Collector::start(Manner::Hangs);
    let timed_end = |mut world: World| {
        world.run(["--", "true"]).succeeds();
        let begun = Instant::now();
        let said = world.stop_agent("a1").complaint();
        let of_agent = begun.elapsed();
        let said = said + &world.stop_server().complaint();
        (of_agent, begun.elapsed() - of_agent, said)
    };
    let mut plain = World::new();
    plain.start_server();
    plain.start_agent("a1");
    let (plain_agent, plain_server, _) = timed_end(plain);
    let (agent, server, said) = timed_end(traced_world(&hanging.url));
    assert_eq!(said.matches("not all spans were taken by the collector").count(), 2, "{said}");
    for (who, plain, held) in [("agent", plain_agent, agent), ("server", plain_server, server)] {
        // Half a second is waited for, and a request may take ten. The rest is for a busy machine.
        let most = plain * 2 + Duration::from_millis(1_000);
        assert!(held < most, "{who}: {plain:?} without, {held:?} with one that hangs");
    }
}

/// Whether nobody has the database of a server any more.
fn is_free(database: &Path) -> bool {
    let lock = File::open(database.with_added_extension("lock")).expect("a lock");
    flock(&lock, FlockOperation::NonBlockingLockShared).is_ok()
}

#[test]
fn a_server_waits_for_a_collector_without_its_locks_and_not_beyond_a_second_signal() {
    let hanging = Collector::start(Manner::Hangs);
    // The wait is short, and this test may be held up for longer than that.
    for is_last in [false, false, false, true] {
        let mut world = World::on_file();
        world.start_server_with(&["--otlp-endpoint", &hanging.url]);
        world.detach(["--", "true"]);
        let (database, mut leaving) = (world.home().join("server/holm.db"), world.leaving_server());
        while leaving.is_alive() && !is_free(&database) {
            std::thread::sleep(Duration::from_millis(1));
        }
        // It is there still, and another may start: only spans are waited for, which a second signal ends.
        let was_alive = leaving.is_alive();
        if was_alive {
            leaving.signal(Signal::TERM);
        }
        let signalled = Instant::now();
        let said = leaving.wait_alone().exits(0).complaint();
        if was_alive && said.contains("asked to end twice; spans may be lost") {
            assert!(signalled.elapsed() < Duration::from_millis(450), "{:?}", signalled.elapsed());
            world.start_server();
            return;
        }
        assert!(!is_last, "it waits with its locks, or does not heed a second signal: {said}");
    }
}

#[test]
fn a_server_in_the_background_records_what_its_configuration_says() {
    let of_command = Collector::start(Manner::Takes);
    let world = World::on_file();
    let home = world.dir().join("own");
    let mut command = world.command();
    command.env("HOLM_HOME", &home).env("OTEL_EXPORTER_OTLP_ENDPOINT", &of_command.url).env("TRACEPARENT", CALLER);
    ran::run(command.args(["run", "--", "true"])).succeeds();
    let server: u32 = std::fs::read_to_string(home.join("up.lock")).expect("a lock").trim().parse().expect("a process");
    let environment = host::environment(server);
    assert!(environment.contains("HOLM_HOME="), "it can be read: {environment}");
    for foreign in ["OTEL_", "TRACEPARENT"] {
        assert!(!environment.contains(foreign), "{environment}");
    }
    world.holm_in(&home, ["down"]).succeeds();
    let told = spans(&of_command);
    assert!(told.iter().all(|span| span.name == "holm run") && told.len() == 1, "{told:#?}");
}

#[test]
fn an_agent_that_is_started_again_goes_on_with_the_span_of_an_attempt() {
    let collector = Collector::start(Manner::Takes);
    let mut world = traced_world(&collector.url);
    let run = world.detach(["--", "sh", "-c", "until test -e /tmp/never; do sleep 1; done"]);
    world.until_state(&run, "running");
    // What an agent has told already is not told by the next.
    eventually("the first agent told what it prepared", || {
        spans(&collector).iter().any(|span| span.name == "attempt.prepare").then_some(())
    });
    world.kill_agent("a1");
    world.start_agent_with("a1", &["--otlp-endpoint", &collector.url]);
    world.holm(["cancel", "--kill", &run]).succeeds();
    world.until_ended(&run);
    // All but that of the command line, and that of the end, of which the guest told nothing.
    let spans = spans_of(&collector, &run, TREE.len() - 2);
    let (attempt, sandbox) = (named(&spans, "attempt"), named(&spans, "sandbox"));
    assert_eq!((&attempt.parent, &sandbox.parent), (&named(&spans, "run").id, &attempt.id));
    assert_eq!(named(&spans, "command").parent, sandbox.id);
    assert_eq!(attempt.attributes["error.type"], "cancelled");
}

#[test]
fn lines_of_the_log_say_which_run_fence_host_and_trace_they_are_about() {
    let mut world = World::new();
    let collector = Collector::start(Manner::Takes);
    world.start_up_with(&["--log-format", "json", "--name", "h1", "--otlp-endpoint", &collector.url]);
    world.run(["--", "true"]).succeeds();
    let run = last_run(&world);
    let lines = || -> Vec<Value> {
        world
            .up_complains()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
            .collect()
    };
    let line = |message: &str| eventually(message, || lines().into_iter().find(|line| line["message"] == message));
    let claimed = line("claimed");
    for (key, value) in
        [("run", &run["id"]), ("fence", &json!(1)), ("host", &json!("h1")), ("trace_id", &run["trace_id"])]
    {
        assert_eq!(&claimed[key], value, "{claimed}");
    }
    // The shim's own words, on the standard error of its agent.
    let ended = &line("the attempt has ended")["span"];
    for (key, value) in
        [("run", &run["id"]), ("fence", &json!(1)), ("host", &json!("h1")), ("trace_id", &run["trace_id"])]
    {
        assert_eq!(&ended[key], value, "{ended}");
    }
    for line in lines().iter().filter(|line| line["span"]["run"].is_string()) {
        assert!(line["run"].is_null() && line["fence"].is_null(), "the span says it, and the line once more: {line}");
    }
}
