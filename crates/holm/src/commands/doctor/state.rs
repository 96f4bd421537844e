//! The home, and what a server and an agent of it keep on disks: the folder of large objects, folders on disks of their own,
//! the attempts of an agent that is away, and what was set aside.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use holm_agent::{
    DAMAGE_NAME, Damage, FolderError, Presence, SET_ASIDE_NAME, examine, presence,
    storage::{STORAGE_FLOOR_BYTES, shortage_of_files},
};
use rustix::{
    fs::{Access, access, statvfs},
    process::geteuid,
};

use super::{
    HOME_FREE_BYTES, Probe,
    deadline::{self, LOOK_DEADLINE},
    good, less, missing, room,
};
use crate::{home::Home, units::show_bytes};

/// A name, where it is looked, and the look itself.
type Look = (&'static str, fn(&Home) -> PathBuf, fn(&Home) -> Vec<Probe>);

const BLOBS: &str = "blobs";

const SERVER: &str = "server's folder";
const AGENT: &str = "agent's folder";

const LOOKS: [Look; 5] = [
    ("home", |home| home.0.clone(), |home| vec![room("home", &home.0, STORAGE_FLOOR_BYTES)]),
    (SERVER, Home::server, |home| Vec::from_iter(apart(SERVER, &home.0, &home.server(), 0))),
    (AGENT, Home::agent, |home| Vec::from_iter(apart(AGENT, &home.0, &home.agent(), STORAGE_FLOOR_BYTES))),
    ("agent", Home::agent, |home| agent(&home.agent())),
    ("set aside", Home::agent, |home| vec![set_aside(&home.agent().join(SET_ASIDE_NAME))]),
];

/// Looks at all of it, and at the folder of large objects if they lie in one, up to the first that does not answer; returns
/// whether none was such.
pub async fn probes(home: &Home, folder: Option<PathBuf>) -> (Vec<Probe>, bool) {
    let mut probes = Vec::new();
    for (name, place, look) in LOOKS {
        let own = home.clone();
        match deadline::look(name, &place(home), LOOK_DEADLINE, move || look(&own)).await {
            Ok(found) => probes.extend(found),
            Err(gone) => {
                probes.push(gone);
                return (probes, false);
            }
        }
    }
    let Some(folder) = folder else { return (probes, true) };
    let looked_at = folder.clone();
    let found = deadline::look(BLOBS, &looked_at, LOOK_DEADLINE, move || blobs(&folder)).await;
    let answers = found.is_ok();
    probes.push(found.unwrap_or_else(|gone| gone));
    (probes, answers)
}

/// The room in a folder of the home that lies on another disk than the home.
fn apart(name: &'static str, home: &Path, folder: &Path, floor: u64) -> Option<Probe> {
    let device = |path: &Path| fs::metadata(path).ok().map(|meta| meta.dev());
    let own = device(folder)?;
    (device(home) != Some(own)).then(|| room(name, folder, floor))
}

fn blobs(path: &Path) -> Probe {
    let name = BLOBS;
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return good(name, "none yet; the first start of a server makes their folder");
        }
        Err(error) => return missing(name, format!("{}: {error}", path.display()), "look after that disk"),
        Ok(meta) if !meta.is_dir() => {
            let way_out = "move it away; the server makes the folder, or restore it from a copy";
            return missing(name, format!("{} is not a folder", path.display()), way_out);
        }
        Ok(_) => {}
    }
    let free = match statvfs(path) {
        Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
        Err(error) => return missing(name, format!("{}: {error}", path.display()), "look after that disk"),
    };
    if free < HOME_FREE_BYTES {
        let found =
            format!("{}: {} free, {} are needed", path.display(), show_bytes(free), show_bytes(HOME_FREE_BYTES));
        return missing(name, found, "make room there; what waits to be stored is then stored");
    }
    if let Some(why) = shortage_of_files(path) {
        return missing(name, format!("{}: {why}", path.display()), "remove files there, or give it a larger disk");
    }
    match access(path, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => good(name, path.display().to_string()),
        Err(error) => missing(name, format!("{} cannot be written: {error}", path.display()), "give it to this user"),
    }
}

/// Whether an agent can work in that folder, and whether one does.
fn agent(path: &Path) -> Vec<Probe> {
    let name = "agent";
    if let Ok(meta) = fs::symlink_metadata(path)
        && meta.uid() != geteuid().as_raw()
    {
        let found = format!("{} belongs to user {}", path.display(), meta.uid());
        return vec![less(name, found, "look as the user of the agent")];
    }
    let damaged: Vec<Probe> = examine(path).into_iter().map(|error| unusable(name, error)).collect();
    if damaged.is_empty() { vec![at_work(path)] } else { damaged }
}

fn unusable(name: &'static str, error: FolderError) -> Probe {
    match error {
        FolderError::Damaged(Damage { path, problem, way_out }) => {
            missing(name, format!("{}: {problem}", path.display()), way_out)
        }
        error => missing(name, error.to_string(), "look after that disk, and give the file to this user"),
    }
}

fn at_work(path: &Path) -> Probe {
    let name = "agent";
    match presence(path) {
        Ok(Presence::Never) => good(name, "none was here yet"),
        Ok(Presence::AtWork) => good(name, "at work"),
        Ok(Presence::Away { attempts: 0 }) => good(name, "none is at work, and nothing waits for one"),
        Ok(Presence::Away { attempts }) => {
            let way_out = "start it again before their leases run out, and they lose nothing; if it was killed, its log says \
                           why, or that of the kernel (`dmesg`) does where memory ran out";
            less(name, format!("none is at work, and {attempts} of its attempts wait for one"), way_out)
        }
        Err(error) => unusable(name, error),
    }
}

fn set_aside(path: &Path) -> Probe {
    let name = "set aside";
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        // What is in its place is the agent's matter, and was told there.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return good(name, "nothing");
        }
        Err(error) => return less(name, format!("{}: {error}", path.display()), "look as the user of the agent"),
    };
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.sort_unstable();
    let Some(last) = found.last() else { return good(name, "nothing") };
    let folder = last.file_name().unwrap_or_default().to_string_lossy();
    let note = fs::read_to_string(last.join(DAMAGE_NAME)).unwrap_or_default();
    let why = if note.is_empty() { String::new() } else { format!(": {}", note.trim_end()) };
    let found = format!("{} of an attempt that could not be taken up, the last {folder}{why}", found.len());
    less(name, found, format!("look into {}; what was looked at may be removed", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{super::Status, *};

    #[test]
    fn a_folder_on_a_disk_of_its_own_is_looked_at_by_itself() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("agent")).unwrap();
        let look = |folder: &Path| apart("agent's folder", home.path(), folder, 0);
        assert!(look(&home.path().join("agent")).is_none());
        assert!(look(&home.path().join("none")).is_none());
        // Of all file systems the one that is on every machine, and keeps no files.
        assert_eq!(look(Path::new("/proc")).unwrap().status, Status::Missing);
    }

    fn one(mut probes: Vec<Probe>) -> Probe {
        assert_eq!(probes.len(), 1, "{probes:?}");
        probes.remove(0)
    }

    #[test]
    fn attempts_without_an_agent_are_told() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(one(agent(home.path())).status, Status::Good);
        fs::write(home.path().join("lock"), "").unwrap();
        fs::create_dir_all(home.path().join("runs")).unwrap();
        assert_eq!(one(agent(home.path())).status, Status::Good);
        fs::create_dir(home.path().join("runs/one")).unwrap();
        let left = one(agent(home.path()));
        assert_eq!((left.status, left.found.starts_with("none is at work, and 1 of")), (Status::Less, true));
    }

    #[test]
    fn whatever_keeps_an_agent_from_starting_is_told_each_by_itself() {
        let home = tempfile::tempdir().unwrap();
        for name in ["runs", "set-aside", "id"] {
            fs::write(home.path().join(name), "").unwrap();
        }
        let found = agent(home.path());
        assert!(found.iter().all(|probe| probe.status == Status::Missing && probe.way_out.is_some()), "{found:?}");
        let told: Vec<&str> = found.iter().map(|probe| probe.found.rsplit_once('/').unwrap().1).collect();
        assert_eq!(told, ["runs: it is no folder", "set-aside: it is no folder", "id: it is empty"]);
        assert_eq!(set_aside(&home.path().join("set-aside")).status, Status::Good, "it is not told twice");
    }
}
