//! `holm man`: the command line as manual pages, and as the reference of the user guide. Both come from clap alone.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use crate::{cli::Cli, session::Session};

/// How wide the help texts of the reference are, whatever the terminal is.
const COLUMNS: usize = 100;

/// Writes the pages, or prints one.
pub fn execute(session: &Session, dir: Option<&Path>, markdown: bool) -> anyhow::Result<u8> {
    if markdown {
        session.output.verbatim(reference()?.as_bytes())?;
        return Ok(0);
    }
    let Some(dir) = dir else {
        session.output.verbatim(&page(Cli::command())?)?;
        return Ok(0);
    };
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for command in shown() {
        let path = dir.join(format!("{}.1", command.get_display_name().unwrap_or("holm")));
        fs::write(&path, page(command)?).with_context(|| format!("cannot write {}", path.display()))?;
        session.output.line(path.display().to_string())?;
    }
    Ok(0)
}

fn page(command: Command) -> anyhow::Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command).manual("Holm").render(&mut page)?;
    Ok(page)
}

/// Every command that help lists, parents before their children.
fn shown() -> Vec<Command> {
    let mut root = Cli::command().term_width(COLUMNS);
    root.build();
    let mut all = Vec::new();
    collect(&root, &mut all);
    all
}

fn collect(command: &Command, all: &mut Vec<Command>) {
    all.push(command.clone());
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        collect(below, all);
    }
}

/// All commands as Markdown.
fn reference() -> anyhow::Result<String> {
    let mut text = "# Commands\n\nEvery command with its options, as `holm COMMAND --help` tells them; options of all commands stand once, under `holm`. `holm man DIR` writes the same as manual pages. This page is \
                    made by `holm man --markdown`.\n"
        .to_owned();
    for mut command in shown() {
        let name = command.get_bin_name().unwrap_or("holm").to_owned();
        let help = command.render_long_help().to_string();
        let help = if name == "holm" { help } else { without_globals(&help) };
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        write!(text, "\n## {name}\n\n```text\n{}\n```\n", help.join("\n").trim_end())?;
    }
    Ok(text)
}

/// What applies to every command stands once, with `holm` itself.
fn without_globals(help: &str) -> String {
    let mut is_global = false;
    let kept = help.lines().filter(|line| {
        if !line.is_empty() && !line.starts_with(' ') {
            is_global = *line == "Global options:";
        }
        !is_global
    });
    kept.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_of_the_guide_is_the_command_line_as_it_is() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide/src/commands.md");
        let written = fs::read_to_string(path).unwrap();
        let way_out = "write it anew: holm man --markdown > docs/guide/src/commands.md";
        assert!(written == reference().unwrap(), "{way_out}");
    }

    #[test]
    fn each_command_has_a_page() {
        let names: Vec<String> =
            shown().iter().filter_map(|command| command.get_display_name().map(str::to_owned)).collect();
        for name in ["holm-run", "holm-token-create", "holm-config-check", "holm-up"] {
            assert!(names.iter().any(|it| it == name), "{names:?}");
        }
        for command in shown() {
            let text = String::from_utf8(page(command).unwrap()).unwrap();
            assert!(text.contains(".SH SYNOPSIS") && text.contains(".SH DESCRIPTION"), "{text}");
        }
    }
}
