//! Attempts to get out of a sandbox, each refused: as root inside and as a user inside.
//!
//! The attempts run inside, in Python, one after the other; see [`holm_e2e::probe`] for why an attempt that was not made
//! fails the test. Numbers of system calls are those of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl).

mod files;
mod kernel;
mod outside;
mod processes;

use holm_e2e::{World, host, probe, probe::Attempts};

/// Who tries. A plain user on the host has one id to give, so inside there is only root.
fn users() -> &'static [&'static str] {
    if host::is_root() { &["0", "1000:1000"] } else { &["0"] }
}

fn attempts(world: &World, user: &str, body: &str) -> Attempts {
    let program = probe::program(body);
    Attempts::of(world.run(["--user", user, "--", "/usr/bin/python3", "-c", &program]))
}

/// The kernel's ways to say no: not permitted, no access, or a filter that acts as if there were no such call.
const NO: [&str; 3] = ["EPERM", "EACCES", "ENOSYS"];
/// What is not there cannot be opened.
const ABSENT: [&str; 3] = ["ENOENT", "EACCES", "EPERM"];
