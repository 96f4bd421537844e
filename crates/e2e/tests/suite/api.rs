//! The API as a stranger speaks it: problem documents, tokens, pages, streams that resume.

use std::collections::BTreeSet;

use holm_e2e::{World, http::Http};
use serde_json::{Value, json};

fn spec(argv: &[&str]) -> Value {
    json!({ "spec": { "root": { "kind": "host" }, "argv": argv } })
}

#[test]
fn errors_are_problem_documents() {
    let world = World::up();
    let http = world.http();
    http.with_token(None).get("/v1/runs").is_problem(401, "unauthenticated");
    http.with_token(Some("holm_nonsense")).get("/v1/runs").is_problem(401, "unauthenticated");
    http.get("/v1/nowhere").is_problem(404, "not_found");
    http.get("/v1/runs/run_00000000000000000000000000").is_problem(404, "not_found");
    http.send("PATCH", "/v1/runs", &[], b"").is_problem(405, "method_not_allowed");
    http.get("/v1/runs?cursor=nonsense").is_problem(400, "invalid_cursor");
    http.send("POST", "/v1/runs", &[("content-type", "application/json")], b"{").is_problem(400, "invalid_request");
    let problem = http.post("/v1/runs", &spec(&[])).is_problem(422, "invalid_field");
    assert_eq!(problem["field"], "spec.argv", "{problem}");
    let mut wrong = spec(&["true"]);
    wrong["spec"]["limits"] = json!({ "pids": 0 });
    let problem = http.post("/v1/runs", &wrong).is_problem(422, "invalid_field");
    assert_eq!((&problem["field"], &problem["value"]), (&"spec.limits.pids".into(), &"0".into()), "{problem}");
    let large = vec![b' '; 32 * 1024 * 1024];
    http.send("POST", "/v1/runs", &[("content-type", "application/json")], &large).is_problem(413, "too_large");
    assert!(world.all_runs().is_empty());
}

#[test]
fn unknown_fields_are_refused() {
    let world = World::up();
    let mut wrong = spec(&["true"]);
    wrong["spec"]["privileged"] = json!(true);
    let answer = world.http().post("/v1/runs", &wrong);
    assert!(answer.status == 400 || answer.status == 422, "{}", answer.status);
    assert!(answer.json()["detail"].as_str().unwrap_or_default().contains("privileged"));
}

#[test]
fn health_needs_no_token_and_the_description_is_served() {
    let world = World::up();
    let nobody = world.http().with_token(None);
    nobody.get("/healthz").is(200);
    nobody.get("/readyz").is(200);
    let document = nobody.get("/v1/openapi.json").is(200).json();
    assert!(document["paths"]["/v1/runs"]["post"].is_object());
}

#[test]
fn a_repeated_creation_is_the_same_run() {
    let world = World::up();
    let http = world.http();
    let create = |body: &Value| {
        let headers = [("content-type", "application/json"), ("idempotency-key", "key-1")];
        http.send("POST", "/v1/runs", &headers, body.to_string().as_bytes())
    };
    let first = create(&spec(&["true"]));
    assert!(first.status == 201 || first.status == 200, "{}", first.status);
    let again = create(&spec(&["true"]));
    assert_eq!(first.json()["id"], again.json()["id"]);
    create(&spec(&["false"])).is_problem(409, "idempotency_mismatch");
    assert_eq!(world.all_runs().len(), 1);
}

#[test]
fn pages_hold_every_run_once_newest_first() {
    let world = World::up();
    let ids: Vec<String> = (0..7).map(|n| world.detach(["--label", &format!("n={n}"), "--", "true"])).collect();
    let mut seen = Vec::new();
    let mut path = "/v1/runs?limit=3".to_owned();
    loop {
        let page = world.http().get(&path).is(200).json();
        let runs = page["runs"].as_array().expect("a list");
        assert!(runs.len() <= 3);
        seen.extend(runs.iter().filter_map(|run| run["id"].as_str().map(str::to_owned)));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/runs?limit=3&cursor={cursor}");
    }
    let newest_first: Vec<String> = ids.iter().rev().cloned().collect();
    assert_eq!(seen, newest_first);
    let page = world.http().get("/v1/runs?label=n%3D4").is(200).json();
    let found: Vec<&str> = page["runs"].as_array().into_iter().flatten().filter_map(|run| run["id"].as_str()).collect();
    assert_eq!(found, [ids[4].as_str()]);
    world.http().get("/v1/runs?limit=0").is_problem(422, "invalid_field");
    for id in &ids {
        world.until_ended(id);
    }
    let page = world.http().get("/v1/runs?state=queued,running").is(200).json();
    assert_eq!(page["runs"], json!([]));
}

#[test]
fn a_stream_of_logs_resumes_after_the_last_id() {
    let world = World::up();
    let id = world.detach(["--", "sh", "-c", "for n in 1 2 3 4 5 6 7 8 9; do echo $n; sleep 0.05; done"]);
    let path = format!("/v1/runs/{id}/logs/follow");
    let first: Vec<_> = world.http().follow(&path, None).take(4).collect();
    let last = first.last().and_then(|event| event.id.clone()).expect("events have ids");
    let rest: Vec<_> = world.http().follow(&path, Some(&last)).collect();
    let (end, rest) = rest.split_last().expect("an event that ends the stream");
    assert_eq!(end.event, "end", "{end:?}");
    let entries = first.iter().chain(rest).filter(|event| event.event == "log");
    let data: Vec<Value> = entries.map(|event| serde_json::from_str(&event.data).expect("an entry")).collect();
    let sequences: Vec<u64> = data.iter().filter_map(|entry| entry["seq"].as_u64()).collect();
    assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>(), "each once and in order");
    let text: String = data.iter().filter_map(|entry| entry["text"].as_str()).collect();
    assert_eq!(text, "1\n2\n3\n4\n5\n6\n7\n8\n9\n");
}

#[test]
fn a_stream_of_events_ends_with_the_run() {
    let world = World::up();
    let id = world.detach(["--", "true"]);
    let events: Vec<_> = world.http().follow(&format!("/v1/runs/{id}/events/follow"), None).collect();
    let kinds: Vec<String> = events
        .iter()
        .filter_map(|event| serde_json::from_str::<Value>(&event.data).ok()?["kind"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(kinds, ["queued", "claimed", "started", "ended"]);
}

/// The secret of a new token of that role.
fn token(http: &Http, role: &str) -> (String, String) {
    let made = http.post("/v1/tokens", &json!({ "name": format!("a {role}"), "role": role }));
    assert!(made.status == 201 || made.status == 200, "{}", made.status);
    let made = made.json();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    (text(&made["token"]["id"]), text(&made["secret"]))
}

#[test]
fn roles_do_what_they_may_and_nothing_else() {
    let world = World::with_server();
    let admin = world.http();
    let (_, member) = token(&admin, "member");
    let (_, agent) = token(&admin, "agent");
    let (member, agent) = (admin.with_token(Some(&member)), admin.with_token(Some(&agent)));
    member.get("/v1/runs").is(200);
    member.get("/v1/tokens").is_problem(403, "forbidden");
    member.post("/v1/tokens", &json!({ "name": "x", "role": "admin" })).is_problem(403, "forbidden");
    agent.get("/v1/runs").is_problem(403, "forbidden");
    let renewal = json!({ "agent": "agt_00000000000000000000000000", "instance": "ins_00000000000000000000000000", "leases": [] });
    assert_eq!(member.post("/agent/v1/renew", &renewal).is_problem(403, "forbidden")["code"], "forbidden");
    assert_ne!(agent.post("/agent/v1/renew", &renewal).status, 403, "the protocol is what an agent may speak");
}

#[test]
fn a_revoked_token_works_no_more_and_secrets_are_shown_once() {
    let world = World::with_server();
    let admin = world.http();
    let (id, secret) = token(&admin, "member");
    let member = admin.with_token(Some(&secret));
    member.get("/v1/whoami").is(200);
    let listed = String::from_utf8(admin.get("/v1/tokens").is(200).body).expect("UTF-8");
    assert!(listed.contains(&id) && !listed.contains(&secret));
    let answer = admin.delete(&format!("/v1/tokens/{id}"));
    assert!(answer.status < 300, "{}", answer.status);
    member.get("/v1/whoami").is_problem(401, "unauthenticated");
    // Nothing that is kept on disk holds a secret of an API token but the two files that are made for it.
    let mut holders = BTreeSet::new();
    holders_of(&world.home(), secret.as_bytes(), &mut holders);
    assert_eq!(holders, BTreeSet::new());
}

fn holders_of(dir: &std::path::Path, secret: &[u8], found: &mut BTreeSet<std::path::PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            holders_of(&path, secret, found);
        } else if std::fs::read(&path).is_ok_and(|bytes| bytes.windows(secret.len()).any(|part| part == secret)) {
            found.insert(path);
        }
    }
}

#[test]
fn an_operation_without_the_newest_fence_is_refused() {
    let mut world = World::with_server();
    world.start_agent("only");
    let word = |file: &str| std::fs::read_to_string(world.dir().join(file)).expect("a file").trim().to_owned();
    let agent = world.http().with_token(Some(&word("agent-token")));
    let id = world.detach(["--", "sleep", "600"]);
    let view = world.until_state(&id, "running");
    let instance = word("agent-only/agent/instance");
    let finish = json!({
        "agent": view["agent"],
        "instance": instance,
        "fence": view["fence"].as_u64().expect("a number") + 1,
        "outcome": { "kind": "succeeded", "exit": { "code": 0 }, "reason": null, "message": null },
        "result": null,
        "next_log_seq": 1,
    });
    agent.post(&format!("/agent/v1/runs/{id}/finish"), &finish).is_problem(409, "stale_fence");
    let by = view["agent"].as_str().expect("an agent");
    let append = format!("/agent/v1/runs/{id}/logs?agent={by}&instance={instance}&fence=0");
    let answer = agent.send("POST", &append, &[("content-type", "application/vnd.holm.log-batch")], b"");
    assert!(answer.status >= 400, "{}", answer.status);
    // The right fence is not enough: neither an earlier process of the agent nor another token may use it.
    let (_, secret) = token(&world.http(), "agent");
    let mut live = finish;
    live["fence"] = view["fence"].clone();
    let stranger = world.http().with_token(Some(&secret));
    stranger.post(&format!("/agent/v1/runs/{id}/finish"), &live).is_problem(403, "forbidden");
    live["instance"] = "ins_00000000000000000000000000".into();
    agent.post(&format!("/agent/v1/runs/{id}/finish"), &live).is_problem(409, "agent_superseded");
    assert_eq!(world.show(&id)["state"], "running");
}

#[test]
fn a_private_server_makes_no_tokens() {
    let world = World::up();
    let refused =
        world.http().post("/v1/tokens", &json!({ "name": "x", "role": "member" })).is_problem(403, "forbidden");
    assert!(refused["detail"].as_str().is_some_and(|detail| detail.contains("private server")), "{refused}");
    world.holm(["token", "create", "x", "--role", "member"]).exits(1).complains_of(&["private server", "--private"]);
}
