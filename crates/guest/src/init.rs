//! The inner init as the guest holds it: ended when the workload is to end, and watched, for when it goes the workload goes.
//!
//! It is never reaped, so its number stays its own, and how it ended can be asked for at any time.

use std::{
    cell::Cell,
    fs, io,
    os::fd::{AsFd, OwnedFd},
};

use holm_wire::guest_api::Exit;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use crate::process::exit_of;

/// PF_EXITING of the kernel's task flags, as /proc/PID/stat shows them.
const EXITING: u64 = 0x4;
/// Where the flags stand in /proc/PID/stat, counted from behind the program's name.
const FLAGS_FIELD: usize = 6;

/// PID 1 of the workload's pid namespace, a child of this process.
#[derive(Debug)]
pub struct Init {
    pid: Pid,
    pidfd: OwnedFd,
    ended: Cell<bool>,
}

impl Init {
    /// Takes hold of a child that was just forked.
    pub fn new(pid: Pid) -> io::Result<Self> {
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        Ok(Self { pid, pidfd, ended: Cell::new(false) })
    }

    /// Ends the workload: the init of a pid namespace takes everything in it along.
    pub fn end(&self) {
        // One that broke down before was not ended.
        self.ended.set(self.ended.get() || self.death().is_none());
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Why no process can be started any more, if so.
    pub fn fate(&self) -> Option<String> {
        if self.ended.get() { Some("the workload has ended".to_owned()) } else { self.death() }
    }

    /// How it died without having been ended, if so. Known before the first process that it takes along has ended.
    pub fn death(&self) -> Option<String> {
        if self.ended.get() {
            return None;
        }
        let how = match self.exit() {
            Some(Exit::Code(code)) => format!("ended with exit code {code}"),
            Some(Exit::Signal(signal)) => format!("was ended by signal {signal}"),
            // It counts as ended only after all that it takes along.
            None if self.is_exiting() => "is ending".to_owned(),
            None => return None,
        };
        Some(format!("the workload broke down: its init {how}"))
    }

    fn exit(&self) -> Option<Exit> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options).ok()??;
        exit_of(&status).ok()
    }

    fn is_exiting(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid.as_raw_nonzero()));
        stat.ok().and_then(|stat| task_flags(&stat)).is_some_and(|flags| flags & EXITING != 0)
    }
}

/// The task flags in the text of /proc/PID/stat. The program's name, in brackets, may hold anything.
fn task_flags(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(FLAGS_FIELD)?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn init_of(command: &mut Command) -> (Child, Init) {
        let child = command.spawn().unwrap();
        let init = Init::new(Pid::from_child(&child)).unwrap();
        (child, init)
    }

    fn wait_until_dead(init: &Init) -> String {
        let mut ready = [rustix::event::PollFd::new(&init.pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut ready, None).unwrap();
        init.death().unwrap()
    }

    #[test]
    fn one_that_lives_has_no_fate_and_one_that_was_ended_did_not_break_down() {
        let (mut child, init) = init_of(Command::new("sleep").arg("1000"));
        assert_eq!((init.fate(), init.death()), (None, None));
        init.end();
        assert_eq!(init.fate().unwrap(), "the workload has ended");
        assert_eq!(init.death(), None);
        child.wait().unwrap();
    }

    #[test]
    fn says_how_it_died_as_often_as_it_is_asked() {
        let (mut killed, init) = init_of(Command::new("sleep").arg("1000"));
        killed.kill().unwrap();
        for _ in 0..2 {
            assert_eq!(wait_until_dead(&init), "the workload broke down: its init was ended by signal 9");
        }
        killed.wait().unwrap();
        let (mut failed, init) = init_of(Command::new("sh").args(["-c", "exit 7"]));
        assert_eq!(wait_until_dead(&init), "the workload broke down: its init ended with exit code 7");
        assert_eq!(init.fate(), init.death());
        failed.wait().unwrap();
    }

    #[test]
    fn flags_are_found_behind_any_name() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194308 120 0 0 0 1 2";
        assert_eq!(task_flags(stat), Some(4_194_308));
        assert_eq!(task_flags("7 (short) S 1"), None);
        let own = fs::read_to_string("/proc/self/stat").unwrap();
        assert_eq!(task_flags(&own).unwrap() & EXITING, 0);
    }
}
