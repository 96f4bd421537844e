//! Destroying what a plan names, and finding what bears a label.
//!
//! Processes are found in the label's control groups, by the label where the programs of a sandbox bear it ([`label_of`]),
//! and by user ids of the plan's place, these only while nobody else holds the place: a place is given anew as soon as its
//! shim has ended, to any agent of the host, and what runs there then is another's. A process is only ever killed through a
//! descriptor of it that was checked after it was opened, so a number that was given to another process in between does no
//! harm. What cannot be killed keeps its place: the reservation is held until it can.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};

use super::{
    cgroup::{Hierarchy, Layout},
    ids::{self, Reservation, Slot},
    label::{GUEST_LABEL, GUEST_NAME, LABELLED_VERB, Label},
    runtime::NAME,
};
use crate::{AttemptId, Context, Error, Resources, StepReport, crash::effect};

/// How long the kernel may take to end what was killed.
const KILL_TIME: Duration = Duration::from_secs(10);
/// How long a place may stay reserved by a process of the attempt that was killed and has not ended altogether.
const RELEASE_TIME: Duration = Duration::from_millis(200);
/// How long a control group may stay busy after its processes have ended.
const REMOVE_TIME: Duration = Duration::from_secs(5);
const RETRY_EVERY: Duration = Duration::from_millis(2);
/// How far below a mount point groups are sought, and how many folders are looked at.
const DEPTH_MAX: usize = 8;
/// How much of a process's files is read: a path of a program, a verb and a label fit, and what stands first in its status.
const COMMAND_BYTES_MAX: u64 = 4_096 + 256;
const FOLDERS_MAX: usize = 65_536;

/// Kills and removes everything that `resources` names. `slots` is the folder of reservations; a reservation of the place that
/// the caller has stays in `kept` as long as something there lives.
pub fn destroy(label: &Label, slots: &Path, resources: &Resources, kept: &mut Option<Reservation>) -> Vec<StepReport> {
    let name = label.of(resources.attempt);
    let killed = effect("processes.kill", || kill_all(&name, slots, resources, kept));
    if killed.is_ok() {
        *kept = None;
    }
    let mut steps = vec![report("processes".to_owned(), killed)];
    for group in resources.cgroups.iter().rev() {
        let removed = effect("group.remove", || remove_group(group, &name));
        steps.push(report(format!("cgroup {}", group.display()), removed));
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

fn kill_all(name: &str, slots: &Path, resources: &Resources, kept: &mut Option<Reservation>) -> Result<(), Error> {
    let mut reserve = || -> Result<bool, Error> {
        if let (None, Some(slot)) = (&kept, resources.uid_slot) {
            *kept = ids::reserve(slots, slot)?;
        }
        Ok(kept.is_some())
    };
    if reserve()? && groups_are_empty(name, resources)? {
        return Ok(());
    }
    let labelled = kill_until_none(name, &Resources { uid_slot: None, ..resources.clone() });
    if resources.uid_slot.is_none() {
        return labelled;
    }
    if labelled.is_err() {
        // Whoever held the place may be dead, and what lives in it must not get company.
        reserve()?;
        return labelled;
    }
    let deadline = Instant::now() + RELEASE_TIME;
    while !processes(name, resources)?.is_empty() {
        if reserve()? {
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

/// Whether there are groups and nothing is in them. If the place is free as well, none of the attempt's processes is left, and
/// nobody needs to look at every process of the host: the shim, which held the place, has let go, and whatever it made was
/// born into the groups. A launcher that has not joined them yet ends by itself, for it finds its shim gone.
fn groups_are_empty(name: &str, resources: &Resources) -> Result<bool, Error> {
    for group in &resources.cgroups {
        if !is_ours(group, name) || !members(group)?.is_empty() {
            return Ok(false);
        }
    }
    Ok(!resources.cgroups.is_empty())
}

fn kill_until_none(name: &str, resources: &Resources) -> Result<(), Error> {
    let deadline = Instant::now() + KILL_TIME;
    loop {
        for group in &resources.cgroups {
            let kill = group.join("cgroup.kill");
            if is_ours(group, name) && kill.exists() {
                // Effect: `processes.kill`.
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
    /// The label that it bears. Only processes that this agent can have made are asked for one: another user's may say what
    /// they like.
    label: Option<String>,
}

fn look_at(pid: Pid) -> Option<Seen> {
    let proc = format!("/proc/{}", pid.as_raw_nonzero());
    let status = start_of(&format!("{proc}/status"))?;
    let status = String::from_utf8_lossy(&status);
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let uids: Vec<u32> = field("Uid:")?.split_whitespace().filter_map(|uid| uid.parse().ok()).collect();
    let zombie = field("State:")?.trim_start().starts_with(['Z', 'X']);
    let own = geteuid().as_raw();
    let may_be_ours = uids.iter().all(|uid| *uid == own || own == 0 && Slot::of(*uid).is_some());
    let label = if may_be_ours {
        let command = start_of(&format!("{proc}/cmdline"))?;
        label_of(&command, || start_of(&format!("{proc}/environ")))
    } else {
        None
    };
    Some(Seen { uids, zombie, label })
}

/// The start of a file that says of its process what that likes, and as much as that likes.
fn start_of(path: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(COMMAND_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The label that a process bears: shim and launcher after their verb, with nothing but ids behind it; the guest in its
/// environment, which nobody inside may read, as its command line can be.
fn label_of(command: &[u8], environment: impl FnOnce() -> Option<Vec<u8>>) -> Option<String> {
    let arguments: Vec<&[u8]> = command.strip_suffix(&[0])?.split(|byte| *byte == 0).collect();
    let label = match arguments.as_slice() {
        [_, verb, label, ids @ ..] if *verb == LABELLED_VERB && ids.len() <= 2 && ids.iter().all(is_number) => {
            label.to_vec()
        }
        [program] if *program == GUEST_NAME.to_bytes() => {
            environment()?.strip_suffix(&[0])?.strip_prefix(GUEST_LABEL.as_bytes())?.strip_prefix(b"=")?.to_vec()
        }
        _ => return None,
    };
    String::from_utf8(label).ok()
}

fn is_number(text: &&[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

fn belongs(pid: Pid, name: &str, slot: Option<u32>) -> bool {
    let Some(seen) = look_at(pid) else { return false };
    if seen.zombie || pid == rustix::process::getpid() {
        return false;
    }
    seen.label.as_deref() == Some(name) || slot.is_some() && seen.slot().map(|slot| slot.0) == slot
}

impl Seen {
    fn slot(&self) -> Option<Slot> {
        self.uids.iter().find_map(|uid| Slot::of(*uid))
    }
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
            // Effect: `group.remove`.
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
        let Some(seen) = look_at(pid).filter(|seen| !seen.zombie) else { continue };
        if let Some(attempt) = seen.label.as_deref().and_then(|name| label.attempt(name)) {
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

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "holm.a1.run_01j9zzzzzzzzzzzzzzzzzzzzzz.7";

    fn label(arguments: &[&str], environment: &str) -> Option<String> {
        let command: String = arguments.iter().map(|argument| format!("{argument}\0")).collect();
        label_of(command.as_bytes(), || Some(environment.as_bytes().to_vec()))
    }

    #[test]
    fn a_label_counts_where_holms_programs_bear_it() {
        let some = Some(LABEL.to_owned());
        assert_eq!(label(&["/usr/bin/holm", "shim", LABEL], ""), some);
        assert_eq!(label(&["/proc/self/exe", "shim", LABEL, "1879048192", "1879048192"], ""), some);
        assert_eq!(label(&["holm-guest"], &format!("HOLM_LABEL={LABEL}\0")), some);
    }

    #[test]
    fn a_users_process_with_the_label_among_its_arguments_is_left_alone() {
        let environment = format!("HOLM_LABEL={LABEL}\0");
        for arguments in [
            &["grep", LABEL][..],
            &["holm", "logs", LABEL],
            &["vi", "a", "shim", LABEL],
            &["holm", "launch", LABEL],
            &["holm", "shim", LABEL, "1", "1", "1"],
            &["holm", "shim", LABEL, ""],
            &["holm", "shim", LABEL, "more"],
            &["holm", LABEL, "shim"],
            &["holm-guest", LABEL],
            &["other-program"],
            &["holm", "shim"],
        ] {
            assert_eq!(label(arguments, &environment), None, "{arguments:?}");
        }
        assert_eq!(label(&["holm-guest"], &format!("X=1\0HOLM_LABEL={LABEL}\0")), None);
        assert_eq!(label_of(format!("holm\0shim\0{LABEL}").as_bytes(), || None), None, "cut off");
    }

    #[test]
    fn what_a_process_says_is_read_in_part() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cmdline");
        fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
        assert_eq!(start_of(path.to_str().unwrap()).unwrap().len() as u64, COMMAND_BYTES_MAX);
    }
}
