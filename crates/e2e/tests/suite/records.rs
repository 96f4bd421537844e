//! What a run reached is recorded, and is none of its output.

use holm_e2e::World;
use serde_json::Value;

use crate::site::{SITE, Site, names, world};

/// The records of the newest run.
fn records(world: &World) -> Vec<Value> {
    let run = world.newest();
    let listed = world.holm(["show", "--egress", "--json", &run]).succeeds();
    listed.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn ask(world: &World, site: &Site, flags: &[&str], script: &str) -> String {
    let rule = site.rule("GET", "/open");
    let command = ["--", "/bin/sh", "-c", script];
    let ran = world.run(["--allow", &rule].iter().chain(flags).chain(&command)).succeeds();
    ran.text().to_owned()
}

#[test]
fn each_request_and_connection_is_recorded_with_what_became_of_it() {
    let names = names();
    let (world, site) = world(&names);
    std::fs::write(world.dir().join("value"), "geheim-of-the-records").expect("a file");
    world
        .holm([
            "secret",
            "set",
            "KEY",
            "--for",
            &format!("{SITE}:{}", site.port),
            "--from-file",
            &world.dir().join("value").display().to_string(),
        ])
        .succeeds();
    let (port, credential) = (site.port, format!("GET {SITE}:{}/open=bearer:KEY", site.port));
    let script = format!(
        "curl --silent https://{SITE}:{port}/open/a?secret=query
curl --silent --output /dev/null https://{SITE}:{port}/closed
curl --silent --output /dev/null https://{SITE}:{port}/open/b --request POST --data 12345
curl --silent --output /dev/null http://other.example/ || true
echo first; echo second >&2"
    );
    assert_eq!(ask(&world, &site, &["--credential", &credential], &script), "site\nfirst\n");
    let told = records(&world);
    let requests: Vec<(&str, &str, Option<&str>, Option<u64>)> = told
        .iter()
        .filter_map(|record| {
            let request = record.get("request")?;
            let status = request["status"].as_u64();
            Some((request["method"].as_str()?, request["path"].as_str()?, record["refused"].as_str(), status))
        })
        .collect();
    assert_eq!(
        requests,
        [
            ("GET", "/open/a", None, Some(200)),
            ("GET", "/closed", Some("not_allowed"), None),
            ("POST", "/open/b", Some("not_allowed"), None),
        ],
        "{told:?}"
    );
    let first = told.iter().find(|record| record["request"]["path"] == "/open/a").expect("the first");
    assert_eq!(first["request"]["secrets"][0], "KEY");
    assert_eq!((first["host"].as_str(), first["port"].as_u64()), (Some(SITE), Some(port.into())));
    assert_eq!((first["sent"].as_u64(), first["received"].as_u64()), (Some(0), Some("site\n".len() as u64)));
    let connections = told.iter().filter(|record| record.get("request").is_none()).count();
    assert_eq!(connections, 3, "one for each of the three clients: {told:?}");
    let text = format!("{told:?}");
    assert!(!text.contains("query") && !text.contains("geheim"), "{text}");
    // For people as well.
    let run = world.newest();
    let shown = world.holm(["show", "--egress", &run]).succeeds();
    for words in [
        format!("ok  GET https://{SITE}:{port}/open/a 200 +KEY"),
        format!("refused (not_allowed)  GET https://{SITE}:{port}/closed"),
    ] {
        assert!(shown.text().contains(&words), "{shown}");
    }
    // None of it is output, however that is read.
    for arguments in [&["logs", &run][..], &["logs", "--follow", &run], &["logs", "--tail", "3", &run]] {
        let logs = world.holm(arguments).succeeds();
        assert_eq!((logs.text(), logs.complaint().as_str()), ("site\nfirst\n", "second\n"), "{arguments:?}");
    }
    let found = world.holm(["logs", "--search", "not_allowed", &run]);
    assert_eq!(found.text(), "", "{found}");
    let page = world.http().get(&format!("/v1/runs/{run}/logs")).is(200).json();
    assert_eq!((page["entries"].as_array().map(Vec::len), page["complete"].as_bool()), (Some(3), Some(true)), "{page}");
}

/// What is told when everything ends at once is recorded too.
#[test]
fn what_is_open_when_its_run_ends_is_recorded() {
    let names = names();
    let (world, site) = world(&names);
    let script = format!(
        "for n in 1 2 3 4 5 6 7 8; do curl --silent https://{SITE}:{port}/hang >/dev/null & done; sleep 2; echo done",
        port = site.port
    );
    let rule = site.rule("GET", "/");
    world.run(["--allow", &rule, "--", "/bin/sh", "-c", &script]).succeeds();
    let told = records(&world);
    let requests: Vec<_> = told.iter().filter(|record| record["request"]["path"] == "/hang").collect();
    assert_eq!((requests.len(), told.len()), (8, 16), "{told:?}");
    assert!(requests.iter().all(|record| record["refused"].is_string()), "{told:?}");
}
