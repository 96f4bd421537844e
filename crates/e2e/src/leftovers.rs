//! What a world has left on the host: processes, control groups, mounts, folders of runs.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::host;

/// By what a world's traces are known.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    /// The world's folder: its own copy of the binary and its state folders lie in it.
    pub dir: PathBuf,
    /// The runs that it executed.
    pub runs: Vec<String>,
    /// Where the test itself mounted something.
    pub disks: Vec<PathBuf>,
}

/// How deep control groups are looked for: Holm makes its own right below a group of its own.
const CGROUP_DEPTH_MAX: usize = 8;

impl Marks {
    /// The processes of this world that are there.
    pub fn processes(&self) -> Vec<u32> {
        let own = std::process::id();
        let mut found: Vec<u32> = host::processes();
        found.retain(|pid| *pid != own && host::is_alive(*pid) && self.is_mine(*pid));
        found
    }

    fn is_mine(&self, pid: u32) -> bool {
        // The copy of the binary is the world's own, so whoever executes it belongs to the world. The guest and what runs
        // inside execute other files, and what a shim executes is hidden from its own user: they are known by their control
        // group, or by the run that a shim's command line and the guest's environment name.
        let executes = host::executable(pid).is_some_and(|path| path.starts_with(&self.dir));
        let (groups, line) = (host::control_groups(pid), host::command_line(pid));
        let guests = if line.starts_with("holm-guest") { host::environment(pid) } else { String::new() };
        let named = [groups, line, guests];
        executes || self.runs.iter().any(|run| named.iter().any(|text| text.contains(run.as_str())))
    }

    /// Everything that is left, a line each.
    pub fn find(&self) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        for pid in self.processes() {
            found.push(format!("process {pid}: {}", host::command_line(pid)));
        }
        let mut groups = Vec::new();
        self.find_groups(Path::new("/sys/fs/cgroup"), 0, &mut groups);
        found.extend(groups.into_iter().map(|path| format!("control group {}", path.display())));
        found.extend(self.mounts());
        found.extend(self.run_folders().into_iter().map(|path| format!("folder {}", path.display())));
        found
    }

    /// Mounts of what is this world's, wherever they can be: here, and in the mount namespaces of its agents and shims.
    fn mounts(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        for pid in std::iter::once(std::process::id()).chain(self.processes()) {
            if fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|namespace| !seen.insert(namespace)) {
                continue;
            }
            match fs::read_to_string(format!("/proc/{pid}/mountinfo")) {
                Ok(table) => found.extend(self.mounts_in(&table).map(|line| format!("mount seen by {pid}: {line}"))),
                // It has ended meanwhile; a zombie has no mounts any more either.
                Err(_) if !host::is_alive(pid) => {}
                Err(error) => found.push(format!("mount table of process {pid} cannot be read: {error}")),
            }
        }
        found
    }

    fn mounts_in(&self, table: &str) -> impl Iterator<Item = String> {
        let dir = self.dir.to_string_lossy().into_owned();
        let own: Vec<String> = self.disks.iter().map(|disk| format!(" {} ", disk.display())).collect();
        let mine = move |line: &&str| line.contains(&dir) && !own.iter().any(|disk| line.contains(disk));
        table.lines().filter(mine).map(str::to_owned).collect::<Vec<_>>().into_iter()
    }

    fn find_groups(&self, dir: &Path, depth: usize, found: &mut Vec<PathBuf>) {
        if depth > CGROUP_DEPTH_MAX {
            return;
        }
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            if self.runs.iter().any(|run| name.contains(run.as_str())) {
                found.push(entry.path());
            }
            self.find_groups(&entry.path(), depth + 1, found);
        }
    }

    /// The folders of attempts of every agent of this world.
    pub fn run_folders(&self) -> Vec<PathBuf> {
        let homes = fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let attempts = homes.flat_map(|home| fs::read_dir(home.join("agent/runs")).into_iter().flatten().flatten());
        attempts.map(|entry| entry.path()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_the_world_are_found_but_its_own_disks() {
        let marks = Marks { dir: "/tmp/w1".into(), disks: vec!["/tmp/w1/home".into()], ..Marks::default() };
        let table = "1 2 0:1 / / rw - ext4 a rw\n2 1 0:2 / /tmp/w1/agent/x rw - tmpfs none rw\n\
                     3 1 0:3 / /tmp/w1/home rw - tmpfs none rw\n";
        assert_eq!(marks.mounts_in(table).collect::<Vec<_>>(), ["2 1 0:2 / /tmp/w1/agent/x rw - tmpfs none rw"]);
    }
}
