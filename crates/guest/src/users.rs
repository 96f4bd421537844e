//! Who a command runs as: names and numbers looked up in the workload's own /etc/passwd and /etc/group.
//!
//! The files belong to the workload and are read with limits; a line that cannot be understood is passed over, as the C
//! library does.

use std::{io, os::fd::AsFd};

use rustix::fs::ResolveFlags;

use crate::files;

const FILE_BYTES_MAX: usize = 1024 * 1024;
/// The largest number of supplementary groups.
const GROUPS_MAX: usize = 256;

/// The ids of a command, and where its user is at home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The user id inside.
    pub uid: u32,
    /// The group id inside.
    pub gid: u32,
    /// Supplementary groups inside.
    pub groups: Vec<u32>,
    /// The home directory.
    pub home: String,
}

/// Why a user cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// There is none of this name or number.
    #[error("no user `{0}` inside")]
    Unknown(String),
    /// The files cannot be read.
    #[error("cannot read {0}: {1}")]
    Unreadable(&'static str, io::Error),
}

/// Finds `wanted` (`NAME`, `UID` or `UID:GID`) beneath `root`, where ids go from 0 to below `ids`.
pub fn find(root: impl AsFd, wanted: &str, ids: u32) -> Result<User, UserError> {
    let passwd = read(&root, "etc/passwd")?;
    let group = read(&root, "etc/group")?;
    find_in(&passwd, &group, wanted, ids).ok_or_else(|| UserError::Unknown(wanted.to_owned()))
}

fn read(root: impl AsFd, path: &'static str) -> Result<String, UserError> {
    let content = files::read_small(root, path, FILE_BYTES_MAX, ResolveFlags::empty());
    let content = content.map_err(|error| UserError::Unreadable(path, error))?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&content).into_owned())
}

fn find_in(passwd: &str, group: &str, wanted: &str, ids: u32) -> Option<User> {
    let (user, explicit_gid) = match wanted.split_once(':') {
        Some((user, gid)) => (user, Some(gid.parse::<u32>().ok()?)),
        None => (wanted, None),
    };
    let number = user.parse::<u32>().ok();
    let entry = passwd.lines().filter_map(Entry::parse).find(|entry| match number {
        Some(uid) => entry.uid == uid,
        None => entry.name == user,
    });
    // An image of nothing but a program has no list of users; root is there all the same.
    let nameless = number.or((user == "root").then_some(0));
    let found = match (entry, nameless) {
        (Some(entry), _) => User {
            uid: entry.uid,
            gid: explicit_gid.unwrap_or(entry.gid),
            // As with container engines: a group that was asked for stands alone.
            groups: if explicit_gid.is_some() { Vec::new() } else { groups_of(group, entry.name, ids) },
            home: entry.home.to_owned(),
        },
        (None, Some(uid)) => User { uid, gid: explicit_gid.unwrap_or(0), groups: Vec::new(), home: "/".to_owned() },
        (None, None) => return None,
    };
    (found.uid < ids && found.gid < ids).then_some(found)
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).filter(|home| home.starts_with('/')).unwrap_or("/");
        Some(Self { name, uid, gid, home })
    }
}

fn groups_of(group: &str, user: &str, ids: u32) -> Vec<u32> {
    let member = |line: &str| {
        let mut fields = line.split(':');
        let gid = fields.nth(2)?.parse::<u32>().ok()?;
        fields.next()?.split(',').any(|name| name == user).then_some(gid)
    };
    group.lines().filter_map(member).filter(|&gid| gid < ids).take(GROUPS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\n:x:7:7::/:\nann:x:1000:1000::/home/ann:/bin/sh\nfar:x:70000:1::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:ann,root\nfar:x:70000:ann\nbad:x:y:ann\n";

    fn find(wanted: &str) -> Option<User> {
        find_in(PASSWD, GROUP, wanted, 65_536)
    }

    #[test]
    fn finds_names_and_numbers() {
        let ann = User { uid: 1000, gid: 1000, groups: vec![10], home: "/home/ann".into() };
        assert_eq!(find("ann"), Some(ann.clone()));
        assert_eq!(find("1000"), Some(ann.clone()));
        assert_eq!(find("1000:5"), Some(User { gid: 5, groups: vec![], ..ann }));
        assert_eq!(find("4242:7"), Some(User { uid: 4242, gid: 7, groups: vec![], home: "/".into() }));
        assert_eq!(find("root").map(|user| (user.uid, user.home)), Some((0, "/root".into())));
        let bare = find_in("", "", "root", 65_536);
        assert_eq!(bare, Some(User { uid: 0, gid: 0, groups: vec![], home: "/".into() }));
        assert_eq!(find_in("", "", "ann", 65_536), None);
    }

    #[test]
    fn refuses_what_is_not_there_or_out_of_range() {
        for wanted in ["nobody", "", "broken", "far", "70000", "1:70000", "1:x", "-1", "ann:", "4294967296"] {
            assert_eq!(find(wanted), None, "{wanted}");
        }
        assert_eq!(find_in(PASSWD, GROUP, "1000", 1), None, "a plain user has one id only");
    }
}
