//! The label by which the agent under a home finds what it made, and the folder for which that was drawn.
//!
//! What always holds: what another agent of this host made bears another label, though one folder be a copy of the other;
//! so the reaper of neither takes what the other made for its own. A folder that was moved within its file system keeps its
//! label; a copy, and what was moved to another file system, gets a new one and leaves the attempts that lie in it alone.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use holm_agent::{Damage, Folder, boot_id};
use holm_runtime::process::{InvalidLabel, Label};

use super::write_whole;
use crate::home::{Home, create_dir};

/// After a start of the machine there is nothing of before that bears the old label.
const WAY_OUT: &str = "remove it, and a new one is drawn; unless the machine was started anew meanwhile, end processes and \
                       control groups of the agent first: they are named `holm.`, the old label, and a run";
/// Why attempts were set aside.
const WHY_DISOWNED: &str = "it came with a copy of the folder, or from another file system: its run is the original's";

/// A folder, as the kernel tells it from others.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    device: u64,
    inode: u64,
    boot: String,
}

/// What the file says.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    label: String,
    /// Earlier versions did not say.
    place: Option<Place>,
}

impl Place {
    fn of(dir: &Path) -> io::Result<Self> {
        let meta = fs::metadata(dir)?;
        Ok(Self { device: meta.dev(), inode: meta.ino(), boot: boot_id()? })
    }

    /// Whether it is the same folder. A start of the machine may number devices anew.
    fn is(&self, other: &Self) -> bool {
        self.inode == other.inode && (self.device == other.device || self.boot != other.boot)
    }
}

impl Kept {
    fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("it is empty".to_owned());
        }
        let (label, place) = text.split_once('\n').unwrap_or((text, ""));
        let label = label.trim().to_owned();
        label.parse::<Label>().map_err(|error: InvalidLabel| error.to_string())?;
        let words: Vec<&str> = place.split_whitespace().collect();
        let place = match words.as_slice() {
            [] => None,
            [device, inode, boot] => device.parse().ok().zip(inode.parse().ok()).map(|(device, inode)| Place {
                device,
                inode,
                boot: (*boot).to_owned(),
            }),
            _ => None,
        };
        if place.is_none() && !words.is_empty() {
            return Err("its second line does not say for which folder it was drawn".to_owned());
        }
        Ok(Self { label, place })
    }
}

fn file(home: &Home) -> PathBuf {
    home.agent().join("label")
}

fn read(home: &Home) -> anyhow::Result<Option<Kept>> {
    let path = file(home);
    let damaged = |problem: String| Damage { path: path.clone(), problem, way_out: WAY_OUT };
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(Kept::parse(&text).map_err(damaged)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::IsADirectory) => {
            Err(damaged(error.to_string()).into())
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn draw() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// What belongs to the agent under this home bears this label. It is drawn once: whoever comes after a crash must find
/// what was left. A home that was never used has none yet, and looking at it leaves no trace.
pub(super) fn label(home: &Home) -> anyhow::Result<Label> {
    Ok(read(home)?.map_or_else(draw, |kept| kept.label).parse()?)
}

/// Draws the label if there is none for this folder. What lies in a folder whose label was drawn for another is set aside
/// before, or an agent that begins after a crash in between would take it up.
pub(super) fn keep(home: &Home) -> anyhow::Result<()> {
    let dir = home.agent();
    create_dir(&dir).with_context(|| format!("cannot use {}", dir.display()))?;
    let place = Place::of(&dir).with_context(|| format!("cannot tell which folder {} is", dir.display()))?;
    let is_kept = |kept: Option<Kept>| kept.is_some_and(|kept| kept.place.as_ref() == Some(&place));
    if is_kept(read(home)?) {
        return Ok(());
    }
    // Nobody else does the same, or is at work with what is there.
    let folder = Folder::open(&dir)?;
    let label = match read(home)? {
        Some(kept) if kept.place.as_ref().is_none_or(|known| known.is(&place)) => kept.label,
        Some(kept) => {
            let (label, aside) = (draw(), folder.disown(WHY_DISOWNED)?);
            tracing::warn!(
                dir = %dir.display(), old = kept.label, label, aside = aside.len(),
                "the agent's folder is a copy, or was moved from another file system: it has a new label, and the attempts \
                 in it were set aside"
            );
            label
        }
        None => draw(),
    };
    let Place { device, inode, boot } = &place;
    let path = file(home);
    write_whole(&path, format!("{label}\n{device} {inode} {boot}\n").as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTEMPT: &str = "run_01j9zzzzzzzzzzzzzzzzzzzzzz.1";

    fn used(dir: &Path) -> Home {
        let home = Home(dir.to_owned());
        create_dir(dir).unwrap();
        keep(&home).unwrap();
        fs::create_dir_all(home.agent().join("runs").join(ATTEMPT)).unwrap();
        home
    }

    fn attempts(home: &Home, below: &str) -> usize {
        fs::read_dir(home.agent().join(below)).unwrap().count()
    }

    #[test]
    fn a_label_stays_with_its_folder_wherever_that_is() {
        let dir = tempfile::tempdir().unwrap();
        let home = used(&dir.path().join("one"));
        let drawn = label(&home).unwrap();
        keep(&home).unwrap();
        let moved = Home(dir.path().join("two"));
        fs::rename(&home.0, &moved.0).unwrap();
        keep(&moved).unwrap();
        assert_eq!((label(&moved).unwrap(), attempts(&moved, "runs")), (drawn, 1));
    }

    #[test]
    fn a_copy_has_a_label_of_its_own_and_no_attempts() {
        let dir = tempfile::tempdir().unwrap();
        let (home, copy) = (used(&dir.path().join("one")), used(&dir.path().join("two")));
        fs::copy(file(&home), file(&copy)).unwrap();
        keep(&copy).unwrap();
        let own = label(&copy).unwrap();
        assert_ne!(own, label(&home).unwrap());
        assert_eq!((attempts(&copy, "runs"), attempts(&copy, "set-aside")), (0, 1));
        keep(&copy).unwrap();
        assert_eq!(label(&copy).unwrap(), own, "it is drawn once");
    }

    #[test]
    fn a_label_that_says_no_folder_is_taken_as_drawn_for_this_one() {
        let dir = tempfile::tempdir().unwrap();
        let home = used(&dir.path().join("one"));
        fs::write(file(&home), "a1\n").unwrap();
        keep(&home).unwrap();
        assert_eq!((label(&home).unwrap(), attempts(&home, "runs")), ("a1".parse().unwrap(), 1));
        assert!(read(&home).unwrap().unwrap().place.is_some());
    }

    #[test]
    fn devices_count_within_one_boot() {
        let place = |device, inode, boot: &str| Place { device, inode, boot: boot.to_owned() };
        let known = place(1, 2, "a");
        assert!(known.is(&place(1, 2, "a")) && known.is(&place(9, 2, "b")));
        assert!(!known.is(&place(9, 2, "a")) && !known.is(&place(1, 3, "a")) && !known.is(&place(1, 3, "b")));
    }

    #[test]
    fn a_second_line_that_says_no_folder_is_damage() {
        for line in ["1", "1 2", "x 2 boot", "1 2 boot more"] {
            assert!(Kept::parse(&format!("a1\n{line}\n")).is_err(), "{line}");
        }
    }
}
