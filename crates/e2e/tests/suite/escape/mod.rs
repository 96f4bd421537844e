//! Attempts to get out of a sandbox, each refused: as root inside and as a user inside.
//!
//! The attempts run inside, in Python, one after the other; see [`holm_e2e::probe`] for why an attempt that was not made
//! fails the test. Numbers of system calls are those of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl).

mod files;
mod kernel;
mod outside;
mod processes;

use holm_e2e::{Ran, World, host, probe, probe::Attempts};

/// Who tries: arguments of `holm run`. A plain user on the host has one id to give, so inside there is only root.
fn users() -> &'static [&'static [&'static str]] {
    const ALL: [&[&str]; 4] = [
        &["--user", "0"],
        &["--allow-sudo", "--user", "0"],
        &["--user", "1000:1000"],
        &["--allow-sudo", "--user", "1000:1000"],
    ];
    if host::is_root() { &ALL } else { &ALL[..2] }
}

/// Whether the arguments of [`users`] are those of root inside.
fn is_root_inside(user: &[&str]) -> bool {
    user.ends_with(&["0"])
}

/// `holm run`, as `user`, with further arguments.
fn run_as<'a>(world: &World, user: &[&'a str], arguments: impl IntoIterator<Item = &'a str>) -> Ran {
    world.run(user.iter().copied().chain(arguments))
}

/// A Python program to its end.
fn python(world: &World, user: &[&str], body: &str) -> Ran {
    let program = probe::program(body);
    run_as(world, user, ["--", "/usr/bin/python3", "-c", program.as_str()])
}

fn attempts(world: &World, user: &[&str], body: &str) -> Attempts {
    Attempts::of(python(world, user, body))
}

/// The kernel's ways to say no: not permitted, no access, or a filter that acts as if there were no such call.
const NO: [&str; 3] = ["EPERM", "EACCES", "ENOSYS"];
/// What is not there cannot be opened.
const ABSENT: [&str; 3] = ["ENOENT", "EACCES", "EPERM"];
