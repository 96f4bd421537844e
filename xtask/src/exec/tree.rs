//! The processes that descend from one.

use std::{collections::BTreeMap, fs, os::fd::OwnedFd};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process, held by a descriptor: its number may be given to another when it is gone.
pub struct Process(OwnedFd);

impl Process {
    /// Kills it. One that is gone needs none.
    pub fn kill(&self) {
        let _gone = pidfd_send_signal(&self.0, Signal::KILL);
    }
}

/// Every process that descends from `ancestor`, as far as those between are still there.
pub fn descendants(ancestor: u32) -> Vec<Process> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for pid in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid: Option<u32> = pid.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some((pid, parent)) = pid.and_then(|pid| Some((pid, parent(pid)?))) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut found, mut next) = (Vec::new(), vec![ancestor]);
    while let Some(pid) = next.pop() {
        let below = children.remove(&pid).unwrap_or_default();
        found.extend(below.iter().filter_map(|pid| open(*pid)));
        next.extend(below);
    }
    found
}

fn open(pid: u32) -> Option<Process> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    pidfd_open(pid, PidfdFlags::empty()).ok().map(Process)
}

/// The fourth field (proc_pid_stat(5)); the name before it may hold anything.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}
