//! Output, names and answers that would steer the terminal of whoever looks at them.

use std::process::Command;

use holm_e2e::{Impostor, OnTerminal, Ran, World, ran::run};
use serde_json::{Value, json};

use super::lives_on;

/// Clears the screen, sets the title, writes to the clipboard, asks the terminal for an answer, conceals text and turns its
/// direction; and what is harmless.
const NASTY: &str = "printf 'a\\033[2J\\033]0;t\\007\\033]52;c;eA==\\033\\\\\\302\\2336n\\010\\n'; \
     printf '\\033[31mred\\033[0m\\ttab\\n'; printf '\\033[1;8;32mhid\\033[8mden\\033[0m\\342\\200\\256txt\\n'";
const EXACT: &[u8] = b"a\x1b[2J\x1b]0;t\x07\x1b]52;c;eA==\x1b\\\xc2\x9b6n\x08\n\x1b[31mred\x1b[0m\ttab\n\
    \x1b[1;8;32mhid\x1b[8mden\x1b[0m\xe2\x80\xaetxt\n";
const VISIBLE: &str = "a^[[2J^[]0;t^G^[]52;c;eA==^[\\\\u{9b}6n^H\r\n\x1b[31mred\x1b[0m\ttab\r\n\
    \x1b[1;32mhidden\x1b[0m\\u{202e}txt\r\n";

/// What a server or a user can write anywhere: a title, an 8-bit control, another direction of text. Short enough for tables.
const WORD: &str = "w\x1b]0;P\x07\u{9b}2J\u{202e}";
const WORD_SHOWN: &str = r"w\u{1b}]0;P\u{7}\u{9b}2J\u{202e}";

/// Fails the test if any character of what Holm said is not one to be shown.
#[track_caller]
fn is_tame(said: &str) {
    let turns = "\u{61c}\u{200e}\u{200f}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}";
    let steers = |c: char| c.is_control() || turns.contains(c);
    assert!(!said.chars().any(|c| steers(c) && !"\r\n".contains(c)), "{said:?}");
}

/// What a command said, that it ended with `code`, and that it shows [`WORD`] and does not obey it.
#[track_caller]
fn shows_the_word(ran: &Ran, code: i32) {
    let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), ran.complaint());
    assert_eq!(ran.code, code, "{said:?}");
    is_tame(&said);
    assert!(said.contains(WORD_SHOWN), "{said:?}");
}

/// Runs a command on a terminal of its own; what the terminal got.
fn on_a_terminal(command: &mut Command) -> (String, i32) {
    OnTerminal::start(command).wait()
}

#[test]
fn on_a_terminal_it_becomes_visible_and_in_pipes_it_stays_exact() {
    let world = World::up();
    let ran = world.run(["--quiet", "--", "sh", "-c", NASTY]).succeeds();
    assert_eq!(ran.stdout, EXACT);
    let run = world.newest();
    assert_eq!(world.logs(&run).stdout, EXACT);

    let (shown, code) = on_a_terminal(world.command().args(["run", "--quiet", "--", "sh", "-c", NASTY]));
    assert!(code == 0 && shown.contains(VISIBLE), "{code} {shown:?}");
    for arguments in [vec!["logs", &run], vec!["logs", "--follow", &run]] {
        let (shown, code) = on_a_terminal(world.command().args(arguments));
        assert_eq!((shown.as_str(), code), (VISIBLE, 0));
    }
    lives_on(&world);
}

#[test]
fn the_error_stream_is_tamed_as_well() {
    let world = World::up();
    let script = "printf '\\033[2Jboth\\n' >&2; printf '\\033[35mleft on'";
    let (shown, code) = on_a_terminal(world.command().args(["run", "--quiet", "--", "sh", "-c", script]));
    assert!(
        code == 0 && shown.contains("^[[2Jboth\r\n") && shown.contains("\x1b[35mleft on\x1b[0m"),
        "{code} {shown:?}"
    );
    lives_on(&world);
}

#[test]
fn a_problem_is_told_and_not_obeyed() {
    let world = World::new();
    let impostor = Impostor::answering(|_| {
        let mut problem = json!({ "code": "not_found", "status": 404, "detail": format!("{WORD}\nagain") });
        ["type", "title", "field"].into_iter().for_each(|member| problem[member] = json!(WORD));
        (404, problem)
    });
    let id = format!("run_{}", "0".repeat(26));
    for arguments in
        [vec!["ps"], vec!["run", "true"], vec!["logs", &id], vec!["show", &id], vec!["top"], vec!["events", &id]]
    {
        let command = || stranger(&world, &impostor, &arguments);
        let code = if arguments[0] == "run" { 125 } else { 1 };
        shows_the_word(&run(&mut command()), code);
        let (said, shown_code) = on_a_terminal(&mut command());
        assert!(shown_code == code && said.contains(WORD_SHOWN), "{arguments:?} {said:?}");
        is_tame(&said);
    }
    let impostor = Impostor::answering(|_| (502, json!(WORD)));
    is_tame(&run(&mut stranger(&world, &impostor, &["ps"])).exits(1).complaint());
}

/// A command that asks the impostor, without colours.
fn stranger(world: &World, impostor: &Impostor, arguments: &[&str]) -> Command {
    let mut command = world.command();
    command.env("NO_COLOR", "1").env("HOLM_TOKEN", format!("holm_{}", "a".repeat(43)));
    command.args(["--server", &impostor.url()]).args(arguments);
    command
}

/// Puts [`WORD`] wherever a server may say what it wants.
fn poison(value: &mut Value) {
    let Value::Object(members) = value else {
        value.as_array_mut().into_iter().flatten().for_each(poison);
        return;
    };
    for (name, member) in members {
        match name.as_str() {
            "argv" | "unenforced" => *member = json!([WORD]),
            "labels" => *member = json!({ "key": WORD }),
            "message" | "runtime" => *member = json!(WORD),
            "name" if member.is_string() => *member = json!(WORD),
            _ => poison(member),
        }
    }
}

/// A server whose every answer is that of the world's, poisoned; and the id of its newest run, which has ended.
fn poisoned(world: &World) -> (Impostor, String) {
    world.run(["--timeout", "1s", "--", "sleep", "1000"]).exits(124);
    let id = world.newest();
    let http = world.http();
    let get = move |target: &str| {
        let mut answer = http.get(target).is(200).json();
        poison(&mut answer);
        answer
    };
    let agent = get("/v1/hosts")["hosts"][0]["id"].clone();
    let impostor = Impostor::answering(move |target| {
        let mut answer = get(target);
        for run in answer["runs"].as_array_mut().into_iter().flatten() {
            run["agent"] = agent.clone();
        }
        (200, answer)
    });
    (impostor, id)
}

#[test]
fn records_of_a_hostile_server_are_shown_and_not_obeyed() {
    let world = World::up();
    let (impostor, id) = poisoned(&world);
    for arguments in [vec!["ps", "-a"], vec!["show", &id], vec!["events", &id], vec!["hosts"]] {
        shows_the_word(&run(&mut stranger(&world, &impostor, &arguments)), 0);
        let (said, code) = on_a_terminal(&mut stranger(&world, &impostor, &arguments));
        assert!(code == 0 && said.contains(WORD_SHOWN), "{arguments:?} {said:?}");
        is_tame(&said);
    }
    let json = ["show", "--json", &id];
    let exact = run(&mut stranger(&world, &impostor, &json)).succeeds();
    assert!(exact.text().contains('\u{202e}'), "in a pipe JSON is as it always is: {exact}");
    let (said, _) = on_a_terminal(&mut stranger(&world, &impostor, &json));
    is_tame(&said);
    assert_eq!(serde_json::from_str::<Value>(&said).expect("JSON"), exact.json());
    lives_on(&world);
}

#[test]
fn top_shows_what_a_hostile_server_says_and_does_not_obey_it() {
    let world = World::up();
    let sleeping = world.detach(["--", "sleep", "1000"]);
    let (impostor, _) = poisoned(&world);
    shows_the_word(&run(&mut stranger(&world, &impostor, &["top"])), 0);
    let mut top = OnTerminal::start(&mut stranger(&world, &impostor, &["top"]));
    top.says(WORD_SHOWN);
    top.types("q");
    let (said, code) = top.wait();
    assert_eq!(code, 0, "{said:?}");
    let own =
        ["\x1b[?1049h", "\x1b[?25l", "\x1b[?7l", "\x1b[H", "\x1b[K", "\x1b[J", "\x1b[?7h", "\x1b[?25h", "\x1b[?1049l"];
    is_tame(&own.iter().fold(said, |said, sequence| said.replace(sequence, "")));
    world.holm(["cancel", "--kill", &sleeping]).succeeds();
    world.until_ended(&sleeping);
    lives_on(&world);
}

#[test]
fn ones_own_words_are_quoted_and_not_obeyed() {
    let world = World::up();
    let table = [
        (vec!["--server", WORD, "ps"], 1),
        (vec!["--context", WORD, "ps"], 1),
        (vec!["ps", "--project", WORD], 1),
        (vec!["ps", "--last", WORD], 2),
        (vec!["show", WORD], 2),
        (vec![WORD], 2),
        (vec!["run", "--memory", WORD, "true"], 125),
    ];
    for (arguments, code) in table {
        shows_the_word(&world.holm(&arguments), code);
        let (said, shown_code) = on_a_terminal(world.command().env("NO_COLOR", "1").args(&arguments));
        assert!(shown_code == code && said.contains(WORD_SHOWN), "{arguments:?} {said:?}");
        is_tame(&said);
    }
}

#[test]
fn a_file_that_comes_back_cannot_disguise_its_name() {
    let world = World::up();
    let dir = world.folder("work");
    let dir = dir.to_str().expect("text");
    let script = "printf x > \"$(printf 'photo\\342\\200\\256gpj.sh')\"";
    let listed = world.run(["--dir", dir, "--write-back", "--", "sh", "-c", script]).succeeds();
    is_tame(&listed.complaint());
    assert!(listed.complaint().contains(r"new     photo\u{202e}gpj.sh"), "{listed}");
    assert!(std::path::Path::new(dir).join("photo\u{202e}gpj.sh").is_file());
}
