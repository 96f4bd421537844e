//! The user guide, executed: every `console` block of every page, in order, with the real binary and nothing set up.
//!
//! A line `$ COMMAND` is executed by one shell a page, so `cd` and variables last; lines `> …` go on with it. What is printed
//! below it must be what the page has, standard error included; `…` stands for anything. A block marked `console,no-test` is
//! not executed, and an HTML comment in the line before it says why. What a plain user's host cannot enforce is told by
//! notes that the page, written as root, does not have; they are left out.

use std::{fs, path::PathBuf, process::Command};

use holm_e2e::{World, host, ran::run};

/// Stands before the output of each command.
const MARK: &str = "\u{1}next\u{1}";

struct Step {
    line: usize,
    command: String,
    wanted: String,
}

/// The commands of a page and what they print.
fn steps(page: &str, text: &str) -> Vec<Step> {
    let (mut steps, mut is_inside, mut before): (Vec<Step>, bool, &str) = (Vec::new(), false, "");
    for (index, line) in text.lines().enumerate() {
        let at = format!("{page}:{}", index + 1);
        match line {
            "```console" => is_inside = true,
            "```console,no-test" => {
                assert!(before.starts_with("<!-- ") && before.ends_with(" -->"), "{at}: say why it is not executed");
            }
            "```" => is_inside = false,
            _ if !is_inside => assert!(!line.starts_with("```console"), "{at}: an unknown mark"),
            _ => match (line.strip_prefix("$ "), line.strip_prefix("> "), steps.last_mut()) {
                (Some(command), ..) => {
                    steps.push(Step { line: index + 1, command: command.to_owned(), wanted: String::new() });
                }
                (None, Some(more), Some(step)) if step.wanted.is_empty() => {
                    step.command.push('\n');
                    step.command.push_str(more);
                }
                (None, _, Some(step)) => {
                    step.wanted.push_str(line);
                    step.wanted.push('\n');
                }
                (None, _, None) => panic!("{at}: output before any command"),
            },
        }
        before = line;
    }
    steps
}

/// The status of a command is there for the next one, as at a prompt.
fn script(steps: &[Step]) -> String {
    let mut script = "exec 2>&1\n".to_owned();
    for step in steps {
        script.push_str(&format!("{}\n__status=$?; printf '{MARK}'; (exit $__status)\n", step.command));
    }
    script
}

/// Whether `got` is `wanted`, in which `…` is anything.
fn fits(wanted: &str, got: &str) -> bool {
    let mut pieces = wanted.trim_end().split('…');
    let Some(mut rest) = got.trim_end().strip_prefix(pieces.next().unwrap_or_default()) else { return false };
    let pieces: Vec<&str> = pieces.collect();
    let Some((last, middle)) = pieces.split_last() else { return rest.is_empty() };
    for piece in middle {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

/// What a page need not have.
fn told(got: &str) -> String {
    let is_kept = |line: &&str| host::is_root() || !line.starts_with("holm: not enforced on this host: ");
    got.lines().filter(is_kept).map(|line| format!("{line}\n")).collect()
}

fn check(page: &str) {
    let path = guide().join(page);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let steps = steps(page, &text);
    assert!(!steps.is_empty(), "{page} has nothing to execute");
    let world = World::new();
    let mut shell = Command::new("sh");
    let template = world.command();
    shell.env_clear().envs(template.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let path = std::env::var("PATH").expect("a PATH");
    shell.env("PATH", format!("{}:{path}", world.dir().display())).env("LC_ALL", "C.UTF-8");
    let ran = run(shell.current_dir(world.folder("user")).args(["-c", &script(&steps)]));
    let _not_every_page_started_one = world.holm(["down"]);
    let output = String::from_utf8_lossy(&ran.stdout).into_owned();
    let got: Vec<&str> = output.split(MARK).collect();
    assert_eq!(got.len(), steps.len() + 1, "{page}: a command ended the shell:\n{output}");
    for (step, got) in steps.iter().zip(got) {
        let (Step { line, command, wanted }, got) = (step, told(got));
        assert!(fits(wanted, &got), "{page}:{line}: $ {command}\n--- the page\n{wanted}--- really\n{got}");
    }
}

fn guide() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide/src")
}

/// One test a page, and a test that none is left out.
macro_rules! pages {
    ($($test:ident: $page:literal;)+) => {
        const PAGES: &[&str] = &[$($page),+];
        $(#[test]
        fn $test() {
            check($page);
        })+
    };
}

pages! {
    getting_started: "getting-started.md";
    untrusted_work: "untrusted-work.md";
    network: "network.md";
    secrets: "secrets.md";
    audit_log: "audit.md";
    working_directories: "working-directories.md";
    images: "images.md";
    limits_and_usage: "limits.md";
    logs_and_events: "logs.md";
    several_machines: "several-machines.md";
    operation: "operations.md";
    monitoring: "monitoring.md";
    security: "security.md";
    troubleshooting: "troubleshooting.md";
    exit_codes: "exit-codes.md";
}

#[test]
fn every_page_is_listed_and_every_page_with_commands_is_executed() {
    let summary = fs::read_to_string(guide().join("SUMMARY.md")).expect("a summary");
    let mut others = Vec::new();
    for entry in fs::read_dir(guide()).expect("the guide") {
        let name = entry.expect("an entry").file_name().into_string().expect("text");
        if name != "SUMMARY.md" {
            assert!(summary.contains(&format!("({name})")), "{name} is not in SUMMARY.md");
            others.extend((!PAGES.contains(&name.as_str())).then_some(name));
        }
    }
    others.sort();
    assert_eq!(others, ["commands.md", "introduction.md"], "these have nothing to execute");
}

#[test]
fn a_page_that_is_wrong_is_found() {
    assert!(fits("a\n", "a\n") && fits("a … c\n", "a b c") && fits("…", "") && fits("x…", "x\ny\n"));
    assert!(!fits("a\n", "a\nb\n") && !fits("a … c", "a b d") && !fits("", "a") && !fits("b…", "ab"));
    let found = steps("p", "```console\n$ a \\\n> b\nout\n\n$ c\n```\n<!-- why -->\n```console,no-test\n$ d\n```\n");
    let shown: Vec<(&str, &str)> = found.iter().map(|step| (step.command.as_str(), step.wanted.as_str())).collect();
    assert_eq!(shown, [("a \\\nb", "out\n\n"), ("c", "")]);
}
