//! Running a command and looking at it: output, exit codes, signals, `ps`, `show`, `logs`, `rm`.

use holm_e2e::World;
use serde_json::json;

#[test]
fn a_command_runs_and_its_output_comes_back() {
    let world = World::up();
    let ran = world.run(["--quiet", "--", "echo", "hello", "two words"]).succeeds();
    assert_eq!(ran.text(), "hello two words\n");
    assert_eq!(ran.complaint(), "", "nothing but the command's own output");
}

#[test]
fn standard_output_and_error_stay_apart() {
    let world = World::up();
    let ran = world.run(["--quiet", "--", "sh", "-c", "echo out; echo err >&2; echo out2; echo err2 >&2"]).succeeds();
    assert_eq!((ran.text(), ran.complaint().as_str()), ("out\nout2\n", "err\nerr2\n"));
}

#[test]
fn exit_codes_and_signals_are_those_of_the_command() {
    let world = World::up();
    for code in [1, 7, 125, 255] {
        world.sh(&format!("exit {code}")).exits(code);
    }
    for signal in [6, 9, 15] {
        world.sh(&format!("kill -{signal} $$")).exits(128 + signal);
    }
    let view = world.show(&world.newest());
    assert_eq!(view["outcome"]["kind"], "failed", "{view}");
    assert_eq!(view["outcome"]["exit"], json!({ "signal": 15 }), "{view}");
}

#[test]
fn arguments_reach_the_command_as_they_are() {
    let world = World::up();
    let odd = ["$HOME", "`id`", "a'b\"c", "*", "", "--flag", "\\n", "ü\u{1F600}"];
    let ran = world.run(["--", "printf", "<%s>\n"].into_iter().chain(odd)).succeeds();
    let wanted: String = odd.iter().map(|word| format!("<{word}>\n")).collect();
    assert_eq!(ran.text(), wanted);
}

#[test]
fn environment_and_labels_are_given_and_shown() {
    let world = World::up();
    let arguments = ["--env", "GREETING=good day", "--label", "team=blue", "--", "sh", "-c", "echo \"$GREETING\""];
    assert_eq!(world.run(arguments).succeeds().text(), "good day\n");
    let view = world.show(&world.newest());
    assert_eq!(view["spec"]["labels"], json!({ "team": "blue" }));
    assert_eq!(view["outcome"]["kind"], "succeeded");
    for time in ["queued_at", "claimed_at", "started_at", "ended_at"] {
        assert!(view[time].is_i64(), "{time} is missing: {view}");
    }
    assert!(view["queued_at"].as_i64() <= view["started_at"].as_i64(), "{view}");
    assert!(view["started_at"].as_i64() <= view["ended_at"].as_i64(), "{view}");
}

#[test]
fn a_detached_run_is_listed_followed_and_removed() {
    let world = World::up();
    let id = world.detach(["--label", "kind=detached", "--", "sh", "-c", "echo one; sleep 1; echo two"]);
    let followed = world.holm(["logs", "-f", &id]).succeeds();
    assert_eq!(followed.text(), "one\ntwo\n");
    world.until_ended(&id);
    assert_eq!(world.logs(&id).text(), "one\ntwo\n");
    let listed = world.holm(["ps", "--all", "--json"]).succeeds();
    assert!(listed.text().contains(&id), "{listed}");
    let shown = world.holm(["show", &id]).succeeds();
    assert!(shown.text().contains("succeeded"), "{shown}");
    world.holm(["rm", &id]).succeeds();
    world.http().get(&format!("/v1/runs/{id}")).is_problem(404, "not_found");
    world.holm(["show", &id]).exits(1).complains_of(&[&id]);
}

#[test]
fn a_run_that_has_not_ended_is_not_removed() {
    let world = World::up();
    let id = world.detach(["--", "sleep", "600"]);
    world.until_state(&id, "running");
    assert_ne!(world.holm(["rm", &id]).code, 0);
    world.http().delete(&format!("/v1/runs/{id}")).is_problem(409, "conflict");
    assert_eq!(world.show(&id)["state"], "running");
}

#[test]
fn a_structured_result_is_kept_and_nonsense_is_refused() {
    let world = World::up();
    world.sh("printf '{\"tests\": 3}' > \"$HOLM_RESULT\"").succeeds();
    assert_eq!(world.show(&world.newest())["result"], json!({ "tests": 3 }));
    world.sh("printf 'no json' > \"$HOLM_RESULT\"").succeeds();
    let id = world.newest();
    assert_eq!(world.show(&id)["result"], json!(null));
    assert_eq!(world.events_of(&id, "result_refused").len(), 1, "{:?}", world.events(&id));
}

#[test]
fn events_tell_the_way_of_a_run() {
    let world = World::up();
    world.run(["--", "true"]).succeeds();
    let id = world.newest();
    let kinds: Vec<String> =
        world.events(&id).iter().map(|event| event["kind"].as_str().unwrap_or_default().to_owned()).collect();
    assert_eq!(kinds, ["queued", "claimed", "started", "ended"]);
    let sequences: Vec<u64> = world.events(&id).iter().filter_map(|event| event["seq"].as_u64()).collect();
    assert_eq!(sequences, [1, 2, 3, 4]);
}

#[test]
fn a_folder_and_a_file_agree_on_the_inode() {
    let world = World::up();
    let script = "import os\nfor folder in ('/tmp', '/root', '/etc'):\n    open(folder + '/new', 'w').close()\n    \
                  print(*(entry.inode() == os.lstat(entry.path).st_ino for entry in os.scandir(folder)))";
    let ran = world.run(["--", "python3", "-c", script]).succeeds();
    assert!(ran.text().contains("True") && !ran.text().contains("False"), "{ran}");
}
