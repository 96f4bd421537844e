//! `holm logs`: the part that was asked for, and nothing else.

use std::path::Path;

use holm_e2e::{World, eventually};

fn numbers(from: u32, to: u32) -> String {
    (from..=to).map(|number| format!("{number}\n")).collect()
}

#[test]
fn the_last_lines_and_those_of_a_time_are_shown() {
    let world = World::up();
    world.run(["--", "seq", "1", "3000"]).succeeds();
    let run = world.newest();
    let logs = |flags: &[&str]| world.holm([&["logs"], flags, &[&run]].concat()).succeeds().text().to_owned();
    assert_eq!(logs(&["-n", "3"]), numbers(2_998, 3_000));
    assert_eq!(logs(&["--tail", "0"]), "");
    assert!(logs(&["--tail", "all"]) == numbers(1, 3_000));
    assert_eq!(logs(&["--since", "1h", "--tail", "2"]), numbers(2_999, 3_000));
    assert_eq!(logs(&["--since", "2999-01-01T00:00:00Z"]), "");
    assert_eq!(logs(&["--until", "1h"]), "");
    assert_eq!(logs(&["--after", "2999", "--tail", "100"]), "3000\n");
    let timed = logs(&["--timestamps", "-n", "1"]);
    let (time, line) = timed.split_once(' ').expect("a time and a line");
    assert!(time.ends_with('Z') && line == "3000\n", "{timed}");
    for flags in [&["--tail", "ten"][..], &["--since", "soon"]] {
        let ran = world.holm([&["logs"], flags, &[&run]].concat());
        assert!(ran.code != 0 && ran.complaint().contains(flags[0]), "{ran}");
    }
}

#[test]
fn following_begins_where_it_was_asked_to() {
    let world = World::up();
    let run = world.detach(["--", "sh", "-c", "seq 1 100; sleep 6; echo late"]);
    eventually("the first lines are stored", || (world.logs(&run).text() == numbers(1, 100)).then_some(()));
    let followed = world.holm(["logs", "-f", "--tail", "2", &run]).succeeds();
    assert_eq!(followed.text(), "99\n100\nlate\n");
    assert_eq!(world.holm(["logs", "-f", "-n", "1", &run]).succeeds().text(), "late\n", "after its end as well");
}

#[test]
fn lines_are_found_with_their_sequence() {
    let world = World::up();
    let script = "seq 1 200; printf '\\033[31mred 77\\033[0m\\n'; printf 'in pie'; sleep 0.3; echo 'ces 77'; echo end";
    world.sh(script).succeeds();
    let run = world.newest();
    let found = world.holm(["logs", "--search", "77", &run]).succeeds();
    assert_eq!(found.text(), "77:77\n177:177\n201:\x1b[31mred 77\x1b[0m\n203:in pieces 77\n");
    let found = world.holm(["logs", "--search", "^1?99$", "--regex", &run]).succeeds();
    assert_eq!(found.text(), "99:99\n199:199\n");
    assert_eq!(world.holm(["logs", "--search", "77", "-n", "4", &run]).succeeds().text().lines().count(), 2);
    assert_eq!(world.holm(["logs", "--search", "1.9", &run]).exits(1).text(), "");
    let too_many = world.holm(["logs", "--tail", "100001", &run]);
    assert!(too_many.code != 0 && too_many.complaint().contains("100000"), "{too_many}");
    let refused = world.holm(["logs", "--search", "(", "--regex", &run]);
    assert!(refused.code != 0 && refused.complaint().contains("regex"), "{refused}");
}

#[test]
fn a_long_line_is_cut_where_lines_are_shown_and_nowhere_else() {
    let world = World::up();
    let script = "import sys; sys.stdout.write('y' * 200_000 + '\\nz\\n')";
    world.run(["--", "/usr/bin/python3", "-c", script]).succeeds();
    let run = world.newest();
    assert_eq!(world.logs(&run).stdout.len(), 200_003);
    let shown = world.holm(["logs", "--timestamps", &run]).succeeds();
    let lines: Vec<&str> = shown.text().lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].ends_with(&format!("y… [{} bytes more]", 200_000 - 16 * 1024)), "{}", &lines[0][16_000..]);
    assert!(lines[1].ends_with(" z"));
    let found = world.holm(["logs", "--search", "yyy", &run]).succeeds();
    // Of the line, 64 KiB are looked at in a time: three times that, and the rest.
    let cut: Vec<bool> = found.text().lines().map(|line| line.ends_with("bytes more]")).collect();
    assert_eq!(cut, [true, true, true, false]);
}

/// How many files lie below a folder whose path names a log.
fn log_objects(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let count = |path: &Path| if path.is_dir() { log_objects(path) } else { usize::from(is_of_log(path)) };
    entries.map(|entry| count(&entry.path())).sum()
}

fn is_of_log(path: &Path) -> bool {
    path.parent().is_some_and(|folder| folder.ends_with("logs"))
}

#[test]
fn a_log_that_is_too_old_is_deleted_and_its_run_says_so() {
    let mut world = World::with_config("log_retention = \"4s\"\n", "");
    world.start_up();
    // Long enough that its bytes are in the blob store, not in rows.
    world.run(["--", "seq", "1", "200000"]).succeeds();
    let run = world.newest();
    let live = world.detach(["--", "sh", "-c", "echo live; sleep 86387"]);
    eventually("the live run has said it", || (world.logs(&live).text() == "live\n").then_some(()));
    // Whatever the server was at, the next one brings it to its end.
    world.kill_up();
    world.start_up();
    let view =
        eventually("its log is deleted", || Some(world.show(&run)).filter(|run| !run["logs_deleted_at"].is_null()));
    let kept_us = view["logs_deleted_at"].as_i64().zip(view["ended_at"].as_i64()).map(|(gone, end)| gone - end);
    assert!(kept_us >= Some(4_000_000), "{view}");
    assert_eq!(view["outcome"]["kind"], "succeeded", "{view}");
    for arguments in [&["logs"][..], &["logs", "-f"], &["logs", "-n", "1"], &["logs", "--search", "7"]] {
        let ran = world.holm([arguments, &[&run]].concat()).exits(1);
        assert!(ran.stdout.is_empty(), "{ran}");
        ran.complains_of(&[&run, "deleted at", "--log-retention", "logs_deleted", "holm show"]);
    }
    for query in ["", "/follow", "/batches?follow=true", "/range", "/search?text=7"] {
        world.http().get(&format!("/v1/runs/{run}/logs{query}")).is_problem(410, "logs_deleted");
    }
    let shown = world.holm(["show", &run]).succeeds();
    assert!(shown.text().contains("deleted at"), "{shown}");
    assert_eq!(world.events_of(&run, "ended").len(), 1);
    eventually("no object of it is left", || (log_objects(&world.home().join("server/blobs")) == 0).then_some(()));
    assert_eq!(world.logs(&live).text(), "live\n", "what goes on keeps its log");
    world.holm(["rm", &run]).succeeds();
}

#[test]
fn a_time_for_logs_that_cannot_be_is_refused() {
    let world = World::new();
    for time in ["0", "900ms", "soon"] {
        world.holm(["up", "--private", "--log-retention", time]).exits(2).complains_of(&[
            "--log-retention",
            time,
            "give",
        ]);
    }
}
