//! The `holm` binary: control plane, agent, shim and command line.
//!
//! `holm shim` is started by Holm itself, for every sandbox, and is decided before anything else happens: it has no use for
//! what a command line needs.

mod cli;
mod commands;
mod config;
mod home;
mod local;
mod lock;
mod output;
mod screen;
mod serve;
mod session;
mod status_line;
mod tame;
mod typed;
mod units;
mod writeback;

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory as _, Parser as _, builder::Styles, error::ErrorKind};
use holm_agent::AgentError;
use holm_domain::run::outcome::EXIT_HOLM;

use cli::{Cli, Command};
use commands::Usage;
use config::{Config, Environment};
use output::{EXIT_PIPE, Output, escaped_lines};
use session::Session;
use typed::Interrupted;

/// The exit code of a command line that is not understood, as most programs have it.
const EXIT_USAGE: u8 = 2;

/// The exit code of an agent that need not be started anew before somebody has acted: `EX_NOPERM` of sysexits(3). The unit of
/// systemd names it.
const EXIT_FOR_GOOD: u8 = 77;

/// The exit code of a program that SIGINT ended, as shells tell it.
const EXIT_INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|name| name == "shim") {
        serve::logging::start_for_shim();
        return holm_shim::shim_main(serve::runtime_of_shim);
    }
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Err(error) = detach_if_asked(&args) {
        Output::new(false, false).error(format!("cannot leave the terminal: {error}"));
        return ExitCode::FAILURE;
    }
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(not_understood(&error, &args)),
    };
    let escaped = matches!(&cli.command, Command::Run(run) if is_escaped(&args, run.command.len()));
    ExitCode::from(execute(cli, escaped))
}

/// A server in the background has a session of its own, so that it survives the terminal, and keeps nothing open that its
/// starter happened to have open: a pipe, for example, whose reader waits for its end. To be done before anything is
/// opened.
fn detach_if_asked(args: &[OsString]) -> std::io::Result<()> {
    let is_up = args.get(1).is_some_and(|name| name == "up");
    if is_up && args.iter().any(|arg| arg == "--detached") {
        holm_runtime::inherited::close_all()?;
        rustix::process::setsid()?;
    }
    Ok(())
}

/// A flag that `holm run` does not have would be taken for the command, which nobody means who did not write `--`.
fn flag_as_command(args: &commands::run::RunArgs, escaped: bool) -> Option<Usage> {
    let first = args.command.first().filter(|first| first.starts_with('-') && !escaped)?;
    let problem = "`holm run` has no such flag: see `holm run --help`, or put `--` before a command of that name";
    Some(Usage::new("COMMAND", first, problem))
}

/// Whether a `--` stands before the last `count` words.
fn is_escaped(args: &[OsString], count: usize) -> bool {
    args.len().checked_sub(count + 1).is_some_and(|index| args[index] == "--")
}

fn execute(cli: Cli, escaped: bool) -> u8 {
    let quiet = matches!(&cli.command, Command::Run(args) if args.quiet);
    let output = Output::new(cli.global.json, quiet);
    let is_run = matches!(cli.command, Command::Run(_));
    if let Command::Run(args) = &cli.command
        && let Some(error) = flag_as_command(args, escaped)
    {
        return failed(output, &error.into(), true);
    }
    let is_detached = matches!(&cli.command, Command::Up(args) if args.detached);
    let done = match Config::load(&cli.global, &Environment::of_process()) {
        Ok(config) => dispatch(Session { config, output }, cli.command),
        Err(error) => Err(error),
    };
    done.unwrap_or_else(|error| {
        if is_detached {
            local::tell_starter(&error);
        }
        failed(output, &error, is_run)
    })
}

fn dispatch(session: Session, command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Up(args) => serve::up::run(session, *args),
        Command::Server(args) => serve::server::run(session, *args),
        Command::Agent(args) => serve::agent::run(session, *args),
        command => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let done = runtime.block_on(commands::execute(&session, &command));
            // A thread that still writes to a pipe that nobody reads must not hold the end up.
            runtime.shutdown_background();
            done
        }
    }
}

/// Shows an error once, where it ends, and chooses the exit code.
fn failed(output: Output, error: &anyhow::Error, is_run: bool) -> u8 {
    let broken_pipe = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(broken_pipe) {
        return EXIT_PIPE;
    }
    let told = output::told(error);
    output.error(&told);
    if let Some(way_out) = commands::way_out::of(error, &told) {
        output.error(way_out);
    }
    match error.downcast_ref::<Usage>() {
        _ if is_run => exit_holm(),
        Some(_) => EXIT_USAGE,
        None if error.is::<Interrupted>() => EXIT_INTERRUPTED,
        None if error.downcast_ref::<AgentError>().is_some_and(AgentError::is_for_good) => EXIT_FOR_GOOD,
        None => 1,
    }
}

fn exit_holm() -> u8 {
    u8::try_from(EXIT_HOLM).unwrap_or(u8::MAX)
}

/// Shows what clap says: help and version are what was asked for, everything else is an error.
fn not_understood(error: &clap::Error, args: &[OsString]) -> u8 {
    let output = Output::new(false, false);
    let printed = match quoting(args).filter(|_| error.use_stderr()) {
        Some(text) => {
            output.stderr_verbatim(&text);
            Ok(())
        }
        None => error.print(),
    };
    if error.kind() == ErrorKind::InvalidSubcommand {
        output.stderr_verbatim("To run a command in a sandbox: `holm run COMMAND…`\n");
    }
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion if printed.is_err() => EXIT_PIPE,
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
        _ if is_run(args) => exit_holm(),
        _ => EXIT_USAGE,
    }
}

/// What clap says of a command line, without its colours, where it quotes something that would steer a terminal; nothing
/// where its own words may stay. With its colours, those that it quotes could not be told from them.
fn quoting(args: &[OsString]) -> Option<String> {
    let error = Cli::command().styles(Styles::plain()).try_get_matches_from(args).err()?;
    let said = error.render().ansi().to_string();
    let tame = escaped_lines(&said);
    (tame != said).then_some(tame)
}

/// Whether the command is `run`, in a command line that could not be understood as a whole.
fn is_run(args: &[OsString]) -> bool {
    let takes_value = ["--server", "--context", "--token-file", "--config", "--home", "--otlp-endpoint"];
    let mut args = args.iter().skip(1);
    while let Some(arg) = args.next() {
        if takes_value.iter().any(|flag| arg == flag) {
            args.next();
        } else if !arg.as_encoded_bytes().starts_with(b"-") {
            return arg == "run";
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    fn run_of(line: &str) -> commands::run::RunArgs {
        match parse(line).unwrap().command {
            Command::Run(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_after_the_command_are_the_commands_own() {
        let args = run_of("holm run -d -e A=1 ls -d --json --help");
        assert!(args.detach);
        assert_eq!(args.command, ["ls", "-d", "--json", "--help"]);
        assert_eq!(run_of("holm run -- -x -- y").command, ["-x", "--", "y"]);
        assert!(!parse("holm run ls --json").unwrap().global.json);
        assert!(parse("holm --json run ls").unwrap().global.json);
        assert!(parse("holm run --json ls").unwrap().global.json);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        assert!(parse("holm run --write-back true").is_err());
        assert!(parse("holm run -d --dir . --write-back true").is_err());
        assert!(parse("holm --server http://a --context b ps").is_err());
        assert!(parse("holm run").is_err());
    }

    #[test]
    fn usage_errors_of_run_are_told_from_others() {
        let is_run = |line: &str| is_run(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(is_run("holm run --nonsense"));
        assert!(is_run("holm --server run --json run --nonsense"));
        assert!(!is_run("holm --server run ps"));
        assert!(!is_run("holm ps run"));
    }

    #[test]
    fn what_is_quoted_of_a_command_line_steers_nothing() {
        let quoted = |words: &[&str]| quoting(&words.iter().map(OsString::from).collect::<Vec<_>>());
        for words in [["holm", "ps", "--last", "five"], ["holm", "pss", "", ""], ["holm", "logs", "--tail", "x"]] {
            assert_eq!(quoted(&words), None, "clap's own words have nothing to be escaped");
        }
        let nasty = "\x1b[31m\x1b]0;PWN\x07\u{202e}";
        for words in [["holm", "ps", "--last", nasty], ["holm", nasty, "", ""], ["holm", "show", nasty, ""]] {
            let said = quoted(&words).unwrap();
            assert!(said.starts_with("error: ") && said.contains(r"\u{1b}[31m\u{1b}]0;PWN\u{7}\u{202e}"), "{said:?}");
            assert!(said.lines().count() > 1 && !said.chars().any(|c| tame::steers(c) && c != '\n'), "{said:?}");
        }
    }

    #[test]
    fn a_flag_that_is_not_there_is_no_command() {
        let refused = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let args = run_of(line);
            flag_as_command(&args, is_escaped(&words, args.command.len())).map(|error| error.to_string())
        };
        assert!(refused("holm run --memroy 1g true").unwrap().contains("`--memroy`"));
        assert_eq!(refused("holm run -m 1g -- --odd true"), None);
        assert_eq!(refused("holm run ls --odd"), None);
    }

    #[test]
    fn errors_choose_the_exit_code() {
        let output = Output::new(false, false);
        let usage = || anyhow::Error::from(Usage::new("--x", "y", "give z"));
        assert_eq!(failed(output, &usage(), false), 2);
        assert_eq!(failed(output, &usage(), true), 125);
        assert_eq!(failed(output, &anyhow::anyhow!("x"), true), 125);
        assert_eq!(failed(output, &anyhow::anyhow!("x"), false), 1);
        let pipe = anyhow::Error::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe)).context("x");
        assert_eq!(failed(output, &pipe, true), 141);
    }
}
