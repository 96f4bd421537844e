//! The table of mounts, and where on its file system something lies.

use std::{
    ffi::OsString,
    fs, io,
    os::{fd::AsFd, unix::ffi::OsStringExt},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, StatxFlags, statx};

use crate::{Context, Error};

/// The most mounts that are looked at: as many as the kernel allows in a namespace by default.
const MOUNTS_MAX: usize = 100_000;

/// One line of the table of mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number, as statx(2) tells it of what lies on it.
    pub id: u64,
    /// The file system: major and minor number.
    pub device: String,
    /// Which folder of the file system is mounted.
    pub root: PathBuf,
    /// Where.
    pub at: PathBuf,
    /// The type of the file system.
    pub kind: String,
}

/// Where something lies on its file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file system: major and minor number.
    pub device: String,
    /// The path on it.
    pub path: PathBuf,
}

impl Place {
    /// Whether it is the other, or lies in it.
    pub fn is_in(&self, other: &Self) -> bool {
        self.device == other.device && self.path.starts_with(&other.path)
    }
}

/// The mount on which what was opened lies.
pub fn mount_of(mounts: &[Mount], fd: impl AsFd) -> io::Result<Option<&Mount>> {
    let id = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id;
    Ok(mounts.iter().find(|mount| mount.id == id))
}

/// Where `real`, which lies on this mount, lies on the file system.
pub fn place_on(mount: &Mount, real: &Path) -> Option<Place> {
    let rest = real.strip_prefix(&mount.at).ok()?;
    // Joining nothing would add a slash.
    let path = if rest.as_os_str().is_empty() { mount.root.clone() } else { mount.root.join(rest) };
    Some(Place { device: mount.device.clone(), path })
}

/// All mounts that this process sees.
pub fn mounts() -> Result<Vec<Mount>, Error> {
    let table = fs::read("/proc/self/mountinfo").context(|| "reading the table of mounts".to_owned())?;
    let lines = table.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let mounts: Option<Vec<Mount>> = lines.take(MOUNTS_MAX + 1).map(mount).collect();
    match mounts {
        Some(mounts) if mounts.len() <= MOUNTS_MAX => Ok(mounts),
        _ => Err(Error::Malformed("the table of mounts cannot be read, so nothing can be lent".to_owned())),
    }
}

/// A line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
pub(super) fn mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let text = |field: &[u8]| Some(std::str::from_utf8(field).ok()?.to_owned());
    let device = text(fields.nth(1)?)?;
    let (root, at) = (unescape(fields.next()?), unescape(fields.next()?));
    let kind = text(fields.skip_while(|field| *field != b"-").nth(1)?)?;
    Some(Mount { id, device, root, at, kind })
}

/// Blanks and the like stand as a backslash and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_with_optional_fields_and_odd_names() {
        let line =
            br"36 35 98:0 /mnt1 /a\040b\134c rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue";
        let read = mount(line).unwrap();
        assert_eq!((read.id, read.device.as_str(), read.kind.as_str()), (36, "98:0", "ext3"));
        assert_eq!((read.root, read.at), (PathBuf::from("/mnt1"), PathBuf::from(r"/a b\c")));
        assert_eq!(mount(b"36 35 98:0 /mnt1"), None);
    }

    #[test]
    fn the_table_of_this_process_knows_where_it_is() {
        let here = std::env::current_dir().unwrap();
        let mounts = mounts().unwrap();
        let mount = mount_of(&mounts, fs::File::open(&here).unwrap()).unwrap().unwrap();
        assert!(here.starts_with(&mount.at), "{mount:?}");
        assert!(place_on(mount, &here).unwrap().path.starts_with(&mount.root));
    }
}
