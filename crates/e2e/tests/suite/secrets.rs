//! Secrets of orgs and projects: kept from wherever they are given, listed without values, and sealed where they lie.

use std::{fs, io::Write as _, process::Command};

use holm_e2e::{
    OnTerminal, Ran, Running, World, eventually,
    ran::{run, send},
};
use rustix::process::Signal;
use serde_json::json;

/// To where most of them may be brought.
const API: &str = "api.example.org/v1";

/// A server on a file, which can be searched.
fn world() -> World {
    let mut world = World::on_file();
    world.start_server();
    world
}

fn from_stdin(world: &World, arguments: &[&str], input: &[u8]) -> Ran {
    let (running, mut stdin) = Running::start_with_stdin(world.command().arg("secret").args(arguments));
    stdin.write_all(input).expect("written");
    drop(stdin);
    running.wait()
}

fn with_variable(world: &World, arguments: &[&str], value: &str) -> Ran {
    run(world.command().env("GIVEN_TOKEN", value).arg("secret").args(arguments).args(["--from-env", "GIVEN_TOKEN"]))
}

#[test]
fn a_secret_is_kept_listed_replaced_and_removed_and_lies_nowhere_in_the_clear() {
    let mut world = world();
    let values = ["geheim-of-stdin-4711", "geheim-of-file-0815", "geheim-of-env-4712", "geheim-of-later-0816"];
    let file = world.dir().join("value");
    fs::write(&file, format!("{}\n", values[1])).expect("a file");
    let file = file.display().to_string();
    let mut said = vec![
        from_stdin(&world, &["set", "stdin", "--for", API], format!("{}\r\n", values[0]).as_bytes()),
        world.holm(["secret", "set", "file", "--for", API, "--from-file", &file]),
        with_variable(&world, &["set", "file", "--for", "anywhere", "--project", "default"], values[2]),
        with_variable(&world, &["rotate", "file", "--for", API, "--for", "git.example.org"], values[3]),
    ];
    for (ran, version) in said.iter().zip(["1", "1", "1", "2"]) {
        assert_eq!((ran.code, ran.text()), (0, format!("{version}\n").as_str()), "{ran}");
    }
    let refused = from_stdin(&world, &["set", "stdin", "--for", API], values[0].as_bytes()).exits(1);
    said.push(refused.complains_of(&["stdin", "already", "`holm secret rotate stdin`"]));
    let refused = with_variable(&world, &["rotate", "stdin", "--project", "default"], values[2]).exits(1);
    said.push(refused.complains_of(&["no secret `stdin`", "`holm secret set stdin --project default`"]));

    let listed = world.holm(["secret", "ls"]).succeeds();
    let lines: Vec<Vec<&str>> = listed.text().lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "SCOPE", "VERSION", "FOR", "UPDATED"]);
    let rows: Vec<&[&str]> = lines[1..].iter().map(|row| &row[..4]).collect();
    assert_eq!(rows, [["file", "org", "2", API], ["file", "default", "1", "anywhere"], ["stdin", "org", "1", API]]);
    assert_eq!(lines[1][4], "+1", "and another: {listed}");
    let rotated = world.holm(["keys", "rotate", "--envelope"]).succeeds();
    assert!(rotated.complaint().contains("sealed anew: 4"), "{rotated}");
    let bound = world.holm(["secret", "bind", "stdin", "--for", "GET api.example.org:443/v1/"]).succeeds();
    assert_eq!(bound.text(), "GET api.example.org/v1\n");
    let removed = world.holm(["secret", "rm", "file", "--project", "default"]).succeeds();
    assert_eq!(removed.text(), "file\n");
    let json = world.holm(["secret", "ls", "--json"]).succeeds();
    assert_eq!((&json.json()[0]["project"], &json.json()[0]["version"]), (&json!(null), &json!(2)), "{json}");
    assert_eq!(json.json()[0]["for"], json!([API, "git.example.org"]), "{json}");
    assert_eq!(json.json()[1]["for"], json!(["GET api.example.org/v1"]), "{json}");
    said.extend([listed, rotated, bound, removed, json]);

    said.push(world.stop_server());
    assert!(said.last().is_some_and(|server| server.complaint().contains("a secret was replaced")), "the log tells it");
    let everything: String = said.iter().map(ToString::to_string).collect();
    let mut searched = 0;
    for entry in fs::read_dir(world.home().join("server")).expect("a folder").flatten() {
        let Ok(bytes) = fs::read(entry.path()) else { continue };
        searched += usize::from(bytes.starts_with(b"SQLite format 3"));
        for value in values {
            let found = bytes.windows(value.len()).any(|part| part == value.as_bytes());
            assert!(!found && !everything.contains(value), "{value} lies in {}", entry.path().display());
        }
    }
    assert_eq!(searched, 1, "the database was among them");
}

#[test]
fn what_an_example_has_is_refused_by_the_name_of_where_it_stands() {
    let world = world();
    let file = world.dir().join("example.env");
    fs::write(&file, "your-api-key\n").expect("a file");
    let file = file.display().to_string();
    with_variable(&world, &["set", "a", "--for", API], "changeme")
        .exits(2)
        .complains_of(&["GIVEN_TOKEN", "placeholder"]);
    let of_file = world.holm(["secret", "set", "a", "--for", API, "--from-file", &file]).exits(2);
    let of_file = of_file.complains_of(&[&file, "placeholder"]);
    assert!(!of_file.complaint().contains("your-api-key"), "{of_file}");
    from_stdin(&world, &["set", "a", "--for", API], b"<token>\n")
        .exits(2)
        .complains_of(&["standard input", "placeholder"]);
    from_stdin(&world, &["set", "a", "--for", API], b"geheim\ngeheim\n").exits(2).complains_of(&["line break"]);
    world
        .holm(["secret", "set", "a", "--for", API, "--from-env", "NOT_SET"])
        .exits(2)
        .complains_of(&["NOT_SET", "no such variable"]);
    world
        .holm(["secret", "set", "a b", "--for", API, "--from-env", "HOME"])
        .exits(2)
        .complains_of(&["a letter and then"]);
    for (rules, words) in [
        (&[][..], "--for <RULE>"),
        (&["--for", "*.example.org"], "by their names"),
        (&["--for", "anywhere", "--for", API], "stands alone"),
        (&["--for", "https://api.example.org"], "is a URL"),
    ] {
        let refused = with_variable(&world, &[&["set", "a"], rules].concat(), "geheimnis-4711").exits(2);
        refused.complains_of(&["--for", words]);
    }
    let unknown = with_variable(&world, &["set", "a", "--for", API, "--project", "nope"], "geheimnis-4711").exits(1);
    unknown.complains_of(&["project", "nope"]);
    // The server refuses them as well, whoever asks.
    let body = json!({"name": "a", "value": "changeme"});
    let problem = world.http().post("/v1/secrets", &body).is_problem(422, "invalid_field");
    assert_eq!((&problem["field"], &problem["value"]), (&json!("value"), &json!("[redacted]")));
    assert_eq!(world.holm(["secret", "ls", "--json"]).succeeds().json(), json!([]));
}

#[test]
fn what_is_typed_is_not_shown_and_the_terminal_is_given_back() {
    let world = world();
    let mut typing = OnTerminal::start(world.command().args(["secret", "set", "typed", "--for", API]));
    typing.says("Value of typed: ");
    typing.types("geheim-typed-4711\n");
    let (got, code) = typing.wait();
    assert_eq!((code, got.lines().last()), (0, Some("1")), "{got:?}");
    assert!(!got.contains("geheim"), "{got:?}");

    // In a shell, so that somebody is there afterwards who can ask for the modes.
    let template = world.command();
    let mut shell = Command::new("sh");
    shell.env_clear().envs(template.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let script =
        r#"exec 3<&0; "$0" secret set left --for anywhere <&3 & echo "pid=$!;"; wait $!; echo "code=$?;"; stty -a <&3"#;
    let leaving = OnTerminal::start(shell.args(["-c", script]).arg(world.dir().join("holm")));
    leaving.says("Value of left: ");
    let pid = eventually("the id of the process", || {
        leaving.so_far().split("pid=").nth(1)?.split_once(';')?.0.parse::<u32>().ok()
    });
    send(pid, Signal::INT);
    let (got, _) = leaving.wait();
    assert!(got.contains("code=130;") && got.contains("nothing was changed"), "{got:?}");
    let modes: Vec<&str> = got.split_whitespace().collect();
    assert!(modes.contains(&"echo") && !modes.contains(&"-echo"), "{got:?}");
    let listed = world.holm(["secret", "ls"]).succeeds();
    assert!(listed.text().contains("typed") && !listed.text().contains("left"), "{listed}");
}
