//! Destroying what a plan names, and finding what bears a label.
//!
//! Processes are found in the label's control groups, by the label as an argument of their command lines, and by user ids of
//! the plan's place, these only while nobody else holds the place: a place is given anew as soon as its shim has ended, to any
//! agent of the host, and what runs there then is another's. A process is only ever killed through a descriptor of it that was checked after it was opened, so a
//! number that was given to another process in between does no harm.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};

use super::{
    cgroup::{Hierarchy, Layout},
    ids::{self, Slot},
    label::Label,
    runtime::NAME,
};
use crate::{AttemptId, Context, Error, Resources, StepReport};

/// How long the kernel may take to end what was killed.
const KILL_TIME: Duration = Duration::from_secs(10);
/// How long a place may stay reserved by a process of the attempt that was killed and has not ended altogether.
const RELEASE_TIME: Duration = Duration::from_millis(200);
/// How long a control group may stay busy after its processes have ended.
const REMOVE_TIME: Duration = Duration::from_secs(5);
const RETRY_EVERY: Duration = Duration::from_millis(2);
/// How far below a mount point groups are sought, and how many folders are looked at.
const DEPTH_MAX: usize = 8;
const FOLDERS_MAX: usize = 65_536;

/// Kills and removes everything that `resources` names. `slots` is the file of reservations.
pub fn destroy(label: &Label, slots: &Path, resources: &Resources) -> Vec<StepReport> {
    let name = label.of(resources.attempt);
    let mut steps = vec![report("processes".to_owned(), kill_all(&name, slots, resources))];
    for group in resources.cgroups.iter().rev() {
        steps.push(report(format!("cgroup {}", group.display()), remove_group(group, &name)));
    }
    for mount in resources.mounts.iter().rev() {
        let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
        let unmounted = match rustix::mount::unmount(mount, flags) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => Ok(()),
            other => other.context(|| format!("unmounting {}", mount.display())),
        };
        steps.push(report(format!("mount {}", mount.display()), unmounted));
    }
    steps
}

fn report(step: String, result: Result<(), Error>) -> StepReport {
    StepReport { step, error: result.err().map(|error| error.to_string()) }
}

fn kill_all(name: &str, slots: &Path, resources: &Resources) -> Result<(), Error> {
    let labelled = Resources { uid_slot: None, ..resources.clone() };
    kill_until_none(name, &labelled)?;
    let Some(slot) = resources.uid_slot else { return Ok(()) };
    let deadline = Instant::now() + RELEASE_TIME;
    while !processes(name, resources)?.is_empty() {
        if let Some(_reservation) = ids::reserve(slots, slot)? {
            return kill_until_none(name, resources);
        }
        if Instant::now() > deadline {
            // The shim of this attempt is dead and would have let go: the place is another attempt's now.
            return Ok(());
        }
        std::thread::sleep(RETRY_EVERY);
    }
    Ok(())
}

fn kill_until_none(name: &str, resources: &Resources) -> Result<(), Error> {
    let deadline = Instant::now() + KILL_TIME;
    loop {
        for group in &resources.cgroups {
            let kill = group.join("cgroup.kill");
            if is_ours(group, name) && kill.exists() {
                match fs::write(&kill, "1") {
                    Err(error) if !gone(&error) => return Err(error).context(|| format!("writing {}", kill.display())),
                    _ => {}
                }
            }
        }
        let left = processes(name, resources)?;
        if left.is_empty() {
            return Ok(());
        }
        for pid in &left {
            kill(*pid, name, resources)?;
        }
        if Instant::now() > deadline {
            return Err(Error::Launch(format!("processes {left:?} did not end within {} s", KILL_TIME.as_secs())));
        }
        std::thread::sleep(RETRY_EVERY);
    }
}

/// The living processes of an attempt.
fn processes(name: &str, resources: &Resources) -> Result<HashSet<Pid>, Error> {
    let mut found = HashSet::new();
    for group in resources.cgroups.iter().filter(|group| is_ours(group, name)) {
        found.extend(members(group)?);
    }
    for pid in all_pids()? {
        if belongs(pid, name, resources.uid_slot) {
            found.insert(pid);
        }
    }
    Ok(found)
}

fn kill(pid: Pid, name: &str, resources: &Resources) -> Result<(), Error> {
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        other => other.context(|| format!("opening process {}", pid.as_raw_nonzero()))?,
    };
    let in_group = |group: &PathBuf| is_ours(group, name) && members(group).is_ok_and(|pids| pids.contains(&pid));
    if !belongs(pid, name, resources.uid_slot) && !resources.cgroups.iter().any(in_group) {
        return Ok(());
    }
    match pidfd_send_signal(&pidfd, Signal::KILL) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        other => other.context(|| format!("killing process {}", pid.as_raw_nonzero())),
    }
}

/// A plan may come from a file: only groups that bear the label are touched.
fn is_ours(group: &Path, name: &str) -> bool {
    group.file_name().is_some_and(|file| file == name)
}

/// What /proc tells about a process.
struct Seen {
    uids: Vec<u32>,
    zombie: bool,
    arguments: Vec<Vec<u8>>,
}

fn look_at(pid: Pid) -> Option<Seen> {
    let proc = format!("/proc/{}", pid.as_raw_nonzero());
    let status = fs::read_to_string(format!("{proc}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let uids = field("Uid:")?.split_whitespace().filter_map(|uid| uid.parse().ok()).collect();
    let zombie = field("State:")?.trim_start().starts_with(['Z', 'X']);
    let arguments = fs::read(format!("{proc}/cmdline")).ok()?;
    Some(Seen { uids, zombie, arguments: arguments.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect() })
}

impl Seen {
    /// A label counts only in processes that this agent can have made: another user's may say what they like.
    fn may_be_ours(&self) -> bool {
        let own = geteuid().as_raw();
        self.uids.iter().all(|uid| *uid == own || own == 0 && Slot::of(*uid).is_some())
    }

    fn slot(&self) -> Option<Slot> {
        self.uids.iter().find_map(|uid| Slot::of(*uid))
    }
}

fn belongs(pid: Pid, name: &str, slot: Option<u32>) -> bool {
    let Some(seen) = look_at(pid) else { return false };
    if seen.zombie || pid == rustix::process::getpid() {
        return false;
    }
    let labelled = seen.may_be_ours() && seen.arguments.iter().any(|argument| argument == name.as_bytes());
    labelled || slot.is_some() && seen.slot().map(|slot| slot.0) == slot
}

fn all_pids() -> Result<Vec<Pid>, Error> {
    let names = fs::read_dir("/proc").context(|| "reading /proc".to_owned())?;
    let number =
        |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok().and_then(Pid::from_raw);
    Ok(names.filter_map(number).collect())
}

/// The processes in a group and the groups below it. A group that is gone has none.
fn members(group: &Path) -> Result<Vec<Pid>, Error> {
    let mut pids = Vec::new();
    for folder in below(group)?.iter().chain([&group.to_owned()]) {
        let procs = folder.join("cgroup.procs");
        let text = match fs::read_to_string(&procs) {
            Err(error) if gone(&error) => continue,
            other => other.context(|| format!("reading {}", procs.display()))?,
        };
        pids.extend(text.lines().filter_map(|line| line.parse().ok().and_then(Pid::from_raw)));
    }
    Ok(pids)
}

fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// The groups below one, parents before children.
fn below(group: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut folders = vec![group.to_owned()];
    let mut at = 0;
    while at < folders.len() && folders.len() < FOLDERS_MAX {
        let folder = folders[at].clone();
        at += 1;
        let entries = match fs::read_dir(&folder) {
            Err(error) if gone(&error) => continue,
            other => other.context(|| format!("reading {}", folder.display()))?,
        };
        let is_folder = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        folders.extend(entries.filter_map(Result::ok).filter(is_folder).map(|entry| entry.path()));
    }
    Ok(folders.split_off(1))
}

fn remove_group(group: &Path, name: &str) -> Result<(), Error> {
    if !is_ours(group, name) {
        return Err(Error::Malformed(format!("{} does not bear the label {name}", group.display())));
    }
    let deadline = Instant::now() + REMOVE_TIME;
    for folder in below(group)?.iter().rev().chain([&group.to_owned()]) {
        loop {
            match fs::remove_dir(folder) {
                Ok(()) => break,
                Err(error) if gone(&error) => break,
                // Busy until the last of its processes was reaped by the kernel.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                    std::thread::sleep(RETRY_EVERY);
                }
                Err(error) => return Err(error).context(|| format!("removing {}", folder.display())),
            }
        }
    }
    Ok(())
}

/// Everything on this host that bears the label.
pub fn inventory(label: &Label, groups: &Layout) -> Result<Vec<Resources>, Error> {
    let mut found: BTreeMap<AttemptId, Resources> = BTreeMap::new();
    for Hierarchy { base, .. } in &groups.hierarchies {
        for folder in labelled_folders(base, label)? {
            let Some(attempt) = folder.file_name().and_then(|name| label.attempt(name.to_str()?)) else { continue };
            let slot = members(&folder)?.into_iter().find_map(|pid| look_at(pid)?.slot());
            let resources = entry(&mut found, attempt);
            resources.uid_slot = resources.uid_slot.or(slot.map(|slot| slot.0));
            resources.cgroups.push(folder);
        }
    }
    for pid in all_pids()? {
        let Some(seen) = look_at(pid).filter(|seen| !seen.zombie && seen.may_be_ours()) else { continue };
        let attempt = seen.arguments.iter().find_map(|text| label.attempt(std::str::from_utf8(text).ok()?));
        if let Some(attempt) = attempt {
            let resources = entry(&mut found, attempt);
            resources.uid_slot = resources.uid_slot.or(seen.slot().map(|slot| slot.0));
        }
    }
    Ok(found.into_values().collect())
}

fn entry(found: &mut BTreeMap<AttemptId, Resources>, attempt: AttemptId) -> &mut Resources {
    found.entry(attempt).or_insert_with(|| Resources {
        runtime: NAME.to_owned(),
        attempt,
        uid_slot: None,
        cgroups: Vec::new(),
        mounts: Vec::new(),
        paths: Vec::new(),
    })
}

/// Folders beneath `base` that bear the label of any attempt. Groups are made directly in it; the agent may have been in
/// another group at that time, so what lies deeper is looked at as well.
fn labelled_folders(base: &Path, label: &Label) -> Result<Vec<PathBuf>, Error> {
    let depth = base.components().count() + DEPTH_MAX;
    let bears = |folder: &&PathBuf| {
        folder.file_name().and_then(|name| name.to_str()).is_some_and(|name| label.attempt(name).is_some())
    };
    let folders = below(base)?;
    Ok(folders.iter().filter(|folder| folder.components().count() <= depth).filter(bears).cloned().collect())
}
