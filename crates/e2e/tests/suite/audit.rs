//! The audit log of an org: what is told, how it is verified, and that a change behind the back of the server is found.

use std::process::Command;

use holm_e2e::{Ran, World, ran::run};
use serde_json::Value;

/// A server on a file, which can be changed.
fn world() -> World {
    let mut world = World::on_file();
    world.start_server();
    world
}

fn with_variable(world: &World, arguments: &[&str]) -> Ran {
    run(world.command().env("GIVEN", "geheim-4711-0815").args(arguments).args(["--from-env", "GIVEN"]))
}

fn records(world: &World, flags: &[&str]) -> Vec<Value> {
    let told = world.holm([&["audit", "--json"], flags].concat()).succeeds().json();
    told["records"].as_array().expect("records").clone()
}

fn told(records: &[Value]) -> Vec<String> {
    let text = |record: &Value, field: &str| record[field].as_str().expect("a text").to_owned();
    records.iter().map(|record| format!("{} {}", text(record, "action"), text(record, "subject"))).collect()
}

/// Has another program write into the database of the server; returns what it complains of.
fn written(world: &World, sql: &str) -> Ran {
    let database = world.home().join("server/holm.db");
    let script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.executescript(sys.argv[2]); c.commit()";
    run(Command::new("python3").args(["-c", script]).arg(database).arg(sql))
}

#[test]
fn who_did_what_is_told_and_verified_and_what_is_changed_behind_it_is_named() {
    let world = world();
    let before = records(&world, &[]).len() as u64;
    with_variable(&world, &["secret", "set", "github", "--for", "api.example.org"]).succeeds();
    with_variable(&world, &["secret", "rotate", "github"]).succeeds();
    with_variable(&world, &["secret", "set", "github", "--for", "api.example.org"]).exits(1);
    world.holm(["secret", "rm", "github"]).succeeds();
    world.holm(["token", "create", "ci"]).succeeds();
    let mine = records(&world, &["--after", &before.to_string()]);
    let token = mine[3]["subject"].as_str().expect("a token");
    let created = format!("token.created {token}");
    let wanted = ["secret.created github", "secret.replaced github", "secret.removed github", &created];
    assert_eq!(told(&mine), wanted);
    assert_eq!(mine, records(&world, &["--limit", "4"]), "the newest are shown");
    assert_eq!(mine, records(&world, &["--since", "1h"]).split_off(before.try_into().expect("few")));
    assert_eq!(records(&world, &["--since", "2100-01-01T00:00:00Z"]), [Value::Null; 0]);
    assert_eq!((&mine[0]["details"]["version"], &mine[1]["details"]["version"]), (&"1".into(), &"2".into()));
    assert!(mine.iter().all(|record| record["actor"] == mine[0]["actor"]), "{mine:?}");

    let table = world.holm(["audit", "-n", "4"]).succeeds();
    let lines: Vec<Vec<&str>> = table.text().lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["SEQ", "WHEN", "WHO", "WHAT", "SUBJECT", "DETAILS"]);
    assert_eq!(lines[4][3..5], ["token.created", token]);
    assert!(lines[4].contains(&"role=member") && !table.text().contains("geheim"), "{table}");

    let last = before + 4;
    let kept = world.holm(["audit", "verify"]).succeeds().text().trim().to_owned();
    assert_eq!(kept, format!("{last}:{}", mine[3]["digest"].as_str().expect("a digest")));
    assert_eq!(world.holm(["audit", "verify", "--json"]).succeeds().json()["seq"], last);
    world.holm(["audit", "verify", "--head", &kept]).succeeds();
    world.holm(["audit", "verify", "--head", "nonsense"]).exits(2).complains_of(&["--head", "SEQ:DIGEST"]);

    let change = format!("update audit set subject = 'gitlab' where seq = {};", before + 2);
    written(&world, &change).exits(1).complains_of(&["append-only"]);
    written(&world, "delete from audit;").exits(1).complains_of(&["append-only"]);
    world.holm(["audit", "verify"]).succeeds();
    written(&world, &format!("drop trigger audit_no_update; {change}")).succeeds();
    let wrong = format!("record {}", before + 2);
    world.holm(["audit", "verify"]).exits(1).complains_of(&[&wrong, "its digest is not that of what it says"]);
    written(&world, &change.replace("gitlab", "github")).succeeds();
    world.holm(["audit", "verify", "--head", &kept]).succeeds();

    // The end is cut off, and at last the head that the server has as well: what was kept tells.
    written(&world, &format!("drop trigger audit_no_delete; delete from audit where seq = {last};")).succeeds();
    let missing = format!("record {last}");
    world.holm(["audit", "verify"]).exits(1).complains_of(&[&missing, "missing"]);
    let digest = mine[2]["digest"].as_str().expect("a digest");
    written(&world, &format!("update audit_heads set seq = seq - 1, digest = x'{digest}';")).succeeds();
    world.holm(["audit", "verify"]).succeeds();
    world.holm(["audit", "verify", "--head", &kept]).exits(1).complains_of(&[&missing, "missing"]);
    // Another record takes the place of that which is gone.
    world.holm(["token", "create", "ci"]).succeeds();
    world.holm(["audit", "verify"]).succeeds();
    world.holm(["audit", "verify", "--head", &kept]).exits(1).complains_of(&[&missing, "was"]);
}
