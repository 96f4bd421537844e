//! What the workload trusts beside what its image does: the certificate authority of the sandbox's own egress proxy.
//!
//! Programs find it in three ways: in files of its own, which the workload's environment names; at the end of the image's own
//! list of authorities, for those that look nowhere else; and where distributions keep what is added to that list, so that it
//! is still there when the list is made anew. Nothing is written to what is mounted into the image: that is not the sandbox's.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
};

use holm_wire::guest_api::{IdRange, TRUST_AUTHORITY, TRUST_BUNDLE, TRUST_DIR, Trusted};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use crate::{files, mounts, sys};

/// Where images have the authorities that they trust, as PEM: Debian, Fedora, openSUSE, Alpine.
const LISTS: [&str; 4] = [
    "etc/ssl/certs/ca-certificates.crt",
    "etc/pki/tls/certs/ca-bundle.crt",
    "etc/ssl/ca-bundle.pem",
    "etc/ssl/cert.pem",
];
/// Where they have those that are added to the list whenever it is made: Debian and Alpine, Fedora, openSUSE.
const ADDED: [&str; 3] =
    ["usr/local/share/ca-certificates", "etc/pki/ca-trust/source/anchors", "etc/pki/trust/anchors"];
/// The name of the authority there.
const ADDED_NAME: &str = "holm-sandbox.crt";
/// The most bytes of a list: five times those of the largest that is in use.
const LIST_BYTES_MAX: usize = 1024 * 1024;
/// Beneath the root, and on no other file system than its own.
const OF_THE_IMAGE: ResolveFlags = ResolveFlags::NO_XDEV;

/// Has the workload trust an authority. In the mount namespace that becomes the workload's.
pub fn place(trusted: &Trusted, ids: IdRange) -> io::Result<()> {
    let Trusted { authority, others } = trusted;
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // What the user mounted there is what counts.
    let read = |path: &&str| files::read_small(&root, path, LIST_BYTES_MAX, ResolveFlags::empty()).ok().flatten();
    let mut bundle = LISTS.iter().find_map(read).unwrap_or_else(|| others.clone().into_bytes());
    bundle.extend_from_slice(format!("\n{authority}").as_bytes());
    let folder = folder_of(&[(TRUST_AUTHORITY, authority.as_bytes()), (TRUST_BUNDLE, &bundle)])?;
    let folders: Vec<&str> = TRUST_DIR.trim_start_matches('/').split('/').collect();
    mounts::place(&folder, &folders, ids)?;
    sys::make_read_only(TRUST_DIR)?;
    for list in LISTS {
        add(&root, list, authority);
    }
    for folder in ADDED {
        add_file(&root, folder, authority);
    }
    Ok(())
}

/// A file system that has these files, not mounted yet.
fn folder_of(files: &[(&str, &[u8])]) -> io::Result<OwnedFd> {
    let folder = mounts::in_memory(&[("size", "4m"), ("nr_inodes", "8"), ("mode", "0755")])?;
    for (name, content) in files {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&folder, *name, flags, Mode::from_raw_mode(0o644))?;
        File::from(file).write_all(content)?;
    }
    Ok(folder)
}

/// Adds the authority to a list of the image, if it has that one and it can be written.
fn add(root: &OwnedFd, list: &str, authority: &str) {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK | OFlags::NOCTTY;
    let Ok(file) = files::open_beneath(root, list, flags, OF_THE_IMAGE) else { return };
    let is_file =
        rustix::fs::fstat(&file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    if is_file {
        // A root that is full or read-only still has the environment say where the authority is.
        let _or_not = File::from(file).write_all(format!("\n{authority}").as_bytes());
    }
}

/// Adds it to what an image adds to its lists, if it has such a folder and that can be written.
fn add_file(root: &OwnedFd, folder: &str, authority: &str) {
    let Ok(folder) = files::open_beneath(root, folder, OFlags::PATH | OFlags::DIRECTORY, OF_THE_IMAGE) else { return };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    if let Ok(file) = rustix::fs::openat(&folder, ADDED_NAME, flags, Mode::from_raw_mode(0o644)) {
        let _or_not = File::from(file).write_all(authority.as_bytes());
    }
}
