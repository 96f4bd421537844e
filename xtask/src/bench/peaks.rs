//! The most memory that each process of an installation has had (proc(5), `VmHWM`).

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

/// How often processes are looked at: the kernel keeps their peaks in between, and what looks takes processor time from them.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The name of the guest's processes, as the kernel cuts it.
const GUEST: &str = "memfd:holm-gues";

/// Peaks in KiB: of the server, the agent, the largest shim and the largest guest.
pub type Peaks = BTreeMap<&'static str, u64>;

/// What the processes of the installation whose binary is `bin` reach while `work` goes on.
pub fn during<T>(bin: &Path, work: impl FnOnce() -> T) -> (T, Peaks) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut peaks = Peaks::new();
            loop {
                let last = done.load(Ordering::Relaxed);
                look(bin, &mut peaks);
                if last {
                    return peaks;
                }
                thread::sleep(LOOK_EVERY);
            }
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        (result, watching.join().unwrap_or_default())
    })
}

fn look(bin: &Path, peaks: &mut Peaks) {
    let Ok(processes) = fs::read_dir("/proc") else { return };
    for entry in processes.flatten() {
        let dir = entry.path();
        // A process that has ended meanwhile has nothing to tell.
        let Ok(status) = fs::read_to_string(dir.join("status")) else { continue };
        let Some(role) = role(bin, &dir, &status) else { continue };
        let peak = number(&status, "VmHWM:").unwrap_or(0);
        let known = peaks.entry(role).or_default();
        *known = peak.max(*known);
    }
}

/// The processes of a role in the installation whose binary is `bin`.
pub fn processes(bin: &Path, wanted: &str) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let of_role = processes.filter_map(|entry| {
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        (role(bin, &entry.path(), &status)? == wanted).then(|| entry.file_name().to_str()?.parse().ok())?
    });
    of_role.collect()
}

/// What a process is in this installation, if it is of it.
fn role(bin: &Path, dir: &Path, status: &str) -> Option<&'static str> {
    if status.starts_with(&format!("Name:\t{GUEST}")) {
        // Somebody else's guest may run at the same time.
        let parent = number(status, "PPid:")?;
        let parent = Path::new("/proc").join(parent.to_string());
        let above = fs::read_to_string(parent.join("status")).ok()?;
        return (is_shim(bin, &parent) || role(bin, &parent, &above) == Some("guest")).then_some("guest");
    }
    if is_shim(bin, dir) {
        return Some("shim");
    }
    if fs::read_link(dir.join("exe")).ok()? != bin {
        return None;
    }
    match verb(dir)?.as_str() {
        "server" => Some("server"),
        "agent" => Some("agent"),
        _ => None,
    }
}

fn is_shim(bin: &Path, dir: &Path) -> bool {
    fs::read_link(dir.join("exe")).is_ok_and(|exe| exe == bin) && verb(dir).as_deref() == Some("shim")
}

fn verb(dir: &Path) -> Option<String> {
    let line = fs::read(dir.join("cmdline")).ok()?;
    line.split(|byte| *byte == 0).nth(1).map(|word| String::from_utf8_lossy(word).into_owned())
}

/// A number in a file of proc(5) with a field a line.
pub fn number(status: &str, field: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(field))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_status_are_read() {
        let status = "Name:\tholm\nPPid:\t12\nVmHWM:\t   40428 kB\n";
        assert_eq!((number(status, "PPid:"), number(status, "VmHWM:")), (Some(12), Some(40_428)));
        assert_eq!(number(status, "Missing:"), None);
    }
}
