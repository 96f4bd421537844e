//! What is to be seen of processes from the host.

use std::{fs, path::PathBuf};

/// Whether these tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The ids of all processes.
pub fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The command line of a process with blanks between its words; empty when it is gone or a kernel thread.
pub fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_owned()
}

/// The environment of a process with blanks between its variables; empty where it may not be read.
pub fn environment(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_owned()
}

/// The processes whose command line contains `word`, other than this one.
pub fn find(word: &str) -> Vec<u32> {
    let own = std::process::id();
    processes().into_iter().filter(|pid| *pid != own && command_line(*pid).contains(word)).collect()
}

/// The file that a process executes.
pub fn executable(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// A field of `/proc/PID/status`, such as `Uid`.
pub fn status_field(pid: u32, field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    field_of(&text, field)
}

/// A field of the text of a status file.
pub fn field_of(status: &str, field: &str) -> Option<String> {
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// The effective user id of a process.
pub fn uid(pid: u32) -> Option<u32> {
    status_field(pid, "Uid")?.split_whitespace().nth(1)?.parse().ok()
}

/// The parent of a process.
pub fn parent(pid: u32) -> Option<u32> {
    status_field(pid, "PPid")?.parse().ok()
}

/// Whether a process is there and is no zombie.
pub fn is_alive(pid: u32) -> bool {
    status_field(pid, "State").is_some_and(|state| !state.starts_with('Z'))
}

/// A path of the control group of a process, all hierarchies after one another.
pub fn control_groups(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default()
}
