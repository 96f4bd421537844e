//! Starting a command in the workload's namespaces.
//!
//! Everything that allocates happens before the fork ([`Prepared::new`]); after it the child makes system calls only
//! ([`child`]). The child reports a failure over a pipe that exec closes, so that the answer is the truth: either the
//! program runs, or it is known at which step it failed and why.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use holm_wire::guest_api::{self, SpawnFailure, SpawnFailureKind};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::{inner::Inner, users};

mod child;

pub(crate) use child::{close_everything, drop_privileges_for_good, fork};

/// Where a command is looked for when its environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The largest number of arguments and variables together.
const STRINGS_MAX: usize = 128 * 1024;

/// A command of which nothing is left to be decided.
pub struct Prepared {
    argv: Vec<CString>,
    envp: Vec<CString>,
    /// What to try to execute, in order.
    candidates: Vec<CString>,
    cwd: CString,
    user: users::User,
    /// Whether supplementary groups may be set at all.
    set_groups: bool,
    /// Whether programs may gain privileges.
    allow_sudo: bool,
    /// Whether the workload ends with it.
    pub main: bool,
}

/// A command on its way: forked, not yet known to be executing.
pub struct Started {
    /// The process, as the guest sees it.
    pub pid: rustix::process::Pid,
    /// The process as a descriptor.
    pub pidfd: OwnedFd,
    /// The other end of its standard input, if it has one.
    pub stdin: Option<OwnedFd>,
    /// The other end of its standard output.
    pub stdout: OwnedFd,
    /// The other end of its standard error.
    pub stderr: OwnedFd,
    /// Ends when the program executes; bears a report if it cannot.
    pub report: OwnedFd,
}

/// How long a pipe for output is to be, in bytes; the kernel's own length is 64 KiB.
const OUTPUT_PIPE_BYTES: usize = 256 * 1024;

/// At which step of a child something failed. The numbers cross a pipe between parent and child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    Descriptors = 1,
    Namespaces = 2,
    Privileges = 3,
    Filter = 4,
    Ids = 5,
    WorkDir = 6,
    Execute = 7,
}

/// The size of a report: step and errno.
pub const REPORT_BYTES: usize = 5;

impl Prepared {
    /// Checks and lays out everything that the child will need.
    pub fn new(spawn: &guest_api::Spawn, inner: &Inner) -> Result<Self, SpawnFailure> {
        let Some(command) = spawn.argv.first().filter(|command| !command.is_empty()) else {
            return Err(failure(SpawnFailureKind::NotFound, "the command is empty"));
        };
        if spawn.argv.len() + spawn.env.len() > STRINGS_MAX {
            return Err(failure(SpawnFailureKind::Other, "too many arguments and variables"));
        }
        let user = users::find(&inner.root, &spawn.user, inner.ids.count).map_err(|error| {
            let kind = match error {
                users::UserError::Unknown(_) => SpawnFailureKind::UnknownUser,
                users::UserError::Unreadable(..) => SpawnFailureKind::Other,
            };
            failure(kind, error.to_string())
        })?;
        let path = spawn.env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
        let cwd = spawn.cwd.clone().unwrap_or_else(|| user.home.clone());
        Ok(Self {
            argv: spawn.argv.iter().map(|word| c_string(word)).collect::<Result<_, _>>()?,
            envp: spawn.env.iter().map(|(name, value)| variable(name, value)).collect::<Result<_, _>>()?,
            candidates: candidates(command, path)?,
            cwd: c_string(&cwd)?,
            user,
            set_groups: inner.ids.count > 1,
            allow_sudo: inner.allow_sudo,
            main: spawn.main,
        })
    }

    /// Forks. The report on the returned pipe says whether the program came to execute.
    pub fn start(&self, inner: &Inner, stdin: bool) -> io::Result<Started> {
        let (report_read, report_write) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stdout_read, stdout_write) = output_pipe()?;
        let (stderr_read, stderr_write) = output_pipe()?;
        let (stdin_read, stdin_write) = if stdin {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            (read, Some(write))
        } else {
            (inner.null.try_clone()?, None)
        };
        let argv = pointers(&self.argv);
        let envp = pointers(&self.envp);
        let orders = child::Orders {
            stdio: [stdin_read.as_raw_fd(), stdout_write.as_raw_fd(), stderr_write.as_raw_fd()],
            report: report_write.as_raw_fd(),
            namespaces: inner.namespaces.each_ref().map(|namespace| namespace.as_raw_fd()),
            filters: &inner.filters,
            bound: child::bound(inner.writes_to_host),
            uid: self.user.uid,
            gid: self.user.gid,
            groups: if self.set_groups { Some(&self.user.groups) } else { None },
            no_new_privs: !self.allow_sudo,
            cwd: &self.cwd,
            candidates: &self.candidates,
            argv: &argv,
            envp: &envp,
        };
        let pid = fork(|| child::run(&orders))?;
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::NONBLOCK)?;
        Ok(Started { pid, pidfd, stdin: stdin_write, stdout: stdout_read, stderr: stderr_read, report: report_read })
    }

    /// What a report means.
    pub fn explain(&self, report: [u8; REPORT_BYTES]) -> SpawnFailure {
        let errno = i32::from_le_bytes([report[1], report[2], report[3], report[4]]);
        let error = io::Error::from_raw_os_error(errno);
        let name = |text: Option<&CString>| text.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
        if report[0] == Step::Execute as u8 {
            let command = name(self.argv.first());
            return match errno {
                libc::ENOENT | libc::ENOTDIR => {
                    failure(SpawnFailureKind::NotFound, format!("`{command}` was not found"))
                }
                libc::ENOMEM | libc::EAGAIN | libc::E2BIG => {
                    failure(SpawnFailureKind::Other, format!("`{command}`: {error}"))
                }
                _ => failure(SpawnFailureKind::NotExecutable, format!("`{command}` cannot be executed: {error}")),
            };
        }
        if report[0] == Step::WorkDir as u8 {
            return failure(SpawnFailureKind::BadWorkDir, format!("cannot enter `{}`: {error}", name(Some(&self.cwd))));
        }
        failure(
            SpawnFailureKind::Other,
            format!("the sandbox could not start the command (step {}): {error}", report[0]),
        )
    }
}

/// A pipe for output, long enough that a command which writes much is seldom stopped for each piece.
fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // A user's pipes have a limit together (pipe(7)): beyond it one stays as long as it was made.
    let _ = fcntl_setpipe_size(&read, OUTPUT_PIPE_BYTES);
    Ok((read, write))
}

/// A failure with its class.
pub fn failure(kind: SpawnFailureKind, message: impl Into<String>) -> SpawnFailure {
    SpawnFailure { kind, message: message.into() }
}

fn c_string(text: &str) -> Result<CString, SpawnFailure> {
    CString::new(text).map_err(|_| failure(SpawnFailureKind::Other, "a NUL byte in an argument, a variable or a path"))
}

fn variable(name: &str, value: &str) -> Result<CString, SpawnFailure> {
    if name.is_empty() || name.contains('=') {
        return Err(failure(SpawnFailureKind::Other, format!("`{name}` cannot be the name of a variable")));
    }
    c_string(&format!("{name}={value}"))
}

/// A command with a slash is a path; any other is looked for in each directory of PATH, an empty one being the work dir.
fn candidates(command: &str, path: &str) -> Result<Vec<CString>, SpawnFailure> {
    if command.contains('/') {
        return Ok(vec![c_string(command)?]);
    }
    path.split(':')
        .map(|dir| c_string(&if dir.is_empty() { format!("./{command}") } else { format!("{dir}/{command}") }))
        .collect()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
}
