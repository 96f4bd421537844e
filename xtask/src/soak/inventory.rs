//! What there is on the host: processes, mounts, control groups, network namespaces, temporary files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

/// How deep control groups are looked at.
const CGROUP_DEPTH_MAX: usize = 10;

/// A process, told from a later one of the same id by when it started.
type ProcessKey = (u32, u64);

/// What there is.
#[derive(Debug, Default)]
pub struct Inventory {
    processes: BTreeMap<ProcessKey, Process>,
    things: BTreeSet<String>,
}

#[derive(Debug, Clone, Default)]
struct Process {
    parent: u32,
    command: String,
}

impl Inventory {
    /// Looks at the host.
    pub fn take() -> Result<Self> {
        let mut this = Self::default();
        let mut namespaces = BTreeSet::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // A process may go away while it is looked at: then there is nothing to tell of it.
            let Some((key, process)) = read_process(pid) else { continue };
            if let Ok(namespace) = fs::read_link(entry.path().join("ns/net")) {
                namespaces.insert(format!("network namespace {}", namespace.display()));
            }
            this.processes.insert(key, process);
        }
        this.things.extend(namespaces);
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        this.things.extend(points.map(|point| format!("mount {point}")));
        control_groups(Path::new("/sys/fs/cgroup"), 0, &mut this.things);
        for dir in ["/run/netns", "/dev/shm", "/tmp", "/var/tmp"].map(PathBuf::from) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                this.things.insert(format!("file {}", entry.path().display()));
            }
        }
        Ok(this)
    }

    /// What is here and was not before. Processes that others on this machine have started since then do not count: whoever
    /// descends from a process that was there before, except from the first process, which adopts what nobody waits for.
    pub fn more_than(&self, before: &Inventory) -> Vec<String> {
        let mut more: Vec<String> =
            self.things.difference(&before.things).filter(|thing| is_ours(thing)).cloned().collect();
        for ((pid, start), process) in &self.processes {
            if !before.processes.contains_key(&(*pid, *start)) && !self.has_old_ancestor(*pid, before) {
                more.push(format!("process {pid}: {}", process.command));
            }
        }
        more
    }

    fn has_old_ancestor(&self, pid: u32, before: &Inventory) -> bool {
        let own = std::process::id();
        let by_pid: BTreeMap<u32, (&ProcessKey, &Process)> =
            self.processes.iter().map(|(key, process)| (key.0, (key, process))).collect();
        let mut current = pid;
        // Far deeper than any tree of processes; ends a loop that a change during the look may have made.
        for _ in 0..64 {
            let Some((_, process)) = by_pid.get(&current) else { return false };
            let parent = process.parent;
            if parent == own || parent <= 1 {
                return false;
            }
            // Kernel threads come and go as they like: they descend from the second process.
            let old = parent == 2 || by_pid.get(&parent).is_some_and(|(key, _)| before.processes.contains_key(*key));
            if old {
                return true;
            }
            current = parent;
        }
        false
    }
}

/// Files and groups of other programs come and go; those of Holm bear its name. Mounts and namespaces are rare: all count.
fn is_ours(thing: &str) -> bool {
    match thing.split_once(' ') {
        Some(("file" | "group", path)) => path.contains("holm"),
        _ => true,
    }
}

fn read_process(pid: u32) -> Option<(ProcessKey, Process)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (parent, start) = parse_stat(&stat)?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command = String::from_utf8_lossy(&command).replace('\0', " ").trim_end().to_owned();
    Some(((pid, start), Process { parent, command }))
}

/// The parent and the start time (proc(5): the 4th and 22nd field; the name before them may hold anything).
fn parse_stat(stat: &str) -> Option<(u32, u64)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?))
}

fn control_groups(dir: &Path, depth: usize, found: &mut BTreeSet<String>) {
    if depth > CGROUP_DEPTH_MAX {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.insert(format!("group {}", entry.path().display()));
            control_groups(&entry.path(), depth + 1, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_is_no_trap() {
        let stat = "12 (a) b (c)) S 7 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
        assert_eq!(parse_stat(stat), Some((7, 4711)));
    }

    fn with(processes: &[(u32, u32, u64)], things: &[&str]) -> Inventory {
        let process = |parent| Process { parent, command: "x".into() };
        Inventory {
            processes: processes.iter().map(|(pid, parent, start)| ((*pid, *start), process(*parent))).collect(),
            things: things.iter().map(|thing| (*thing).to_owned()).collect(),
        }
    }

    #[test]
    fn what_is_left_is_found_and_what_others_do_is_not() {
        let before = with(&[(1, 0, 1), (50, 1, 5)], &["mount /"]);
        assert!(with(&[(1, 0, 1), (50, 1, 5)], &["mount /"]).more_than(&before).is_empty());
        // Somebody's shell has a new child; a kernel thread is new.
        assert!(with(&[(1, 0, 1), (50, 1, 5), (60, 50, 9), (61, 2, 9)], &["mount /"]).more_than(&before).is_empty());
        // Adopted by the first process: nobody waits for it.
        assert_eq!(with(&[(1, 0, 1), (60, 1, 9), (61, 60, 9)], &[]).more_than(&before).len(), 2);
        // An id that was given anew is another process.
        assert_eq!(with(&[(1, 0, 1), (50, 1, 6)], &[]).more_than(&before).len(), 1);
        let left = with(&[], &["mount /", "mount /tmp/x", "group /sys/fs/cgroup/holm.run_1.1", "file /tmp/other"]);
        assert_eq!(left.more_than(&before), ["group /sys/fs/cgroup/holm.run_1.1", "mount /tmp/x"]);
    }

    #[test]
    fn this_process_is_seen() {
        let inventory = Inventory::take().expect("the host");
        assert!(inventory.processes.keys().any(|(pid, _)| *pid == std::process::id()));
    }
}
