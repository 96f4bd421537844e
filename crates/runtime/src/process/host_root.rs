//! The root file system `host`: the host's programs and libraries, and of /etc what programs need and nobody keeps secret.
//!
//! What stands in /etc is shown by an allow list; files that would tell about the host or its users (passwd, group, hosts,
//! resolv.conf, machine-id) are written anew by the launcher.

use std::{fs, io, path::Path};

use super::blueprint::{Entry, Source};
use crate::{Context, Error};

/// The folders with programs and libraries, each a symbolic link below /usr on most hosts.
pub const TOP: &[&str] = &["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// Names in /etc that are shown; a `*` at the end stands for anything. Folders are shown with all that is in them.
const ETC: &[&str] = &[
    "alternatives",
    "bash.bashrc",
    "bindresvport.blacklist",
    "ca-certificates",
    "ca-certificates.conf",
    "crypto-policies",
    "debian_version",
    "ethertypes",
    "fonts",
    "gai.conf",
    "host.conf",
    "inputrc",
    "issue",
    "java*",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "locale.conf",
    "localtime",
    "lsb-release",
    "magic",
    "magic.mime",
    "mailcap",
    "manpath.config",
    "mime.types",
    "netconfig",
    "networks",
    "nsswitch.conf",
    "openssl",
    "os-release",
    "perl",
    "pki",
    "profile",
    "profile.d",
    "protocols",
    "python*",
    "redhat-release",
    "rpc",
    "services",
    "shells",
    "ssl",
    "terminfo",
    "timezone",
    "xattr.conf",
];

/// Folders of the list above of which only some entries are shown, because keys may lie beside them.
const ETC_PARTS: &[(&str, &[&str])] = &[
    ("ssl", &["certs", "openssl.cnf", "cert.pem"]),
    ("pki", &["ca-trust", "java", "tls/certs", "tls/cert.pem", "tls/openssl.cnf"]),
    ("openssl", &["openssl.cnf"]),
];

/// The most names in /etc that are looked at.
const NAMES_MAX: usize = 4_096;

/// What is shown of the first level, without trees: a tree is added by who may make it.
pub fn top(root: &Path) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    for name in TOP {
        entries.extend(entry(root, name)?);
    }
    Ok(entries)
}

/// What is shown of `etc`.
pub fn etc(etc: &Path) -> Result<Vec<Entry>, Error> {
    let mut names: Vec<String> = Vec::new();
    for found in fs::read_dir(etc).context(|| format!("reading {}", etc.display()))?.take(NAMES_MAX) {
        let found = found.context(|| format!("reading {}", etc.display()))?;
        names.extend(found.file_name().into_string().ok().filter(|name| allowed(name)));
    }
    names.sort();
    let mut entries = Vec::new();
    for name in names {
        match ETC_PARTS.iter().find(|(folder, _)| *folder == name) {
            None => entries.extend(entry(etc, &name)?),
            Some((folder, parts)) => {
                for part in *parts {
                    entries.extend(entry(etc, &format!("{folder}/{part}"))?);
                }
            }
        }
    }
    Ok(entries)
}

fn allowed(name: &str) -> bool {
    ETC.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == *pattern,
    })
}

/// What stands at a path. Nothing if there is nothing, if not everybody may read it, or if it is no file, folder or link.
fn entry(base: &Path, path: &str) -> Result<Option<Entry>, Error> {
    use std::os::unix::fs::PermissionsExt;
    let full = base.join(path);
    let context = || format!("looking at {}", full.display());
    let meta = match fs::symlink_metadata(&full) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        other => other.context(context)?,
    };
    let path = path.to_owned();
    if meta.is_symlink() {
        let target = fs::read_link(&full).context(context)?;
        // A link whose target is no text leads nowhere that is shown.
        return Ok(target.into_os_string().into_string().ok().map(|target| Entry::Link { path, target }));
    }
    let readable = if meta.is_dir() { 0o005 } else { 0o004 };
    if meta.permissions().mode() & readable != readable {
        return Ok(None);
    }
    Ok(match meta.is_dir() {
        true => Some(Entry::Dir { path, source: None::<Source> }),
        false if meta.is_file() => Some(Entry::File { path }),
        false => None,
    })
}

/// The files of /etc that are written anew.
pub fn generated(hostname: &str, mapped: bool) -> Vec<(&'static str, String)> {
    let holm_user = if mapped { "holm:x:1000:1000:holm:/home/holm:/bin/sh\n" } else { "" };
    let holm_group = if mapped { "holm:x:1000:\n" } else { "" };
    let passwd = format!(
        "root:x:0:0:root:/root:/bin/sh\n{holm_user}nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    );
    let group = format!("root:x:0:\ntty:x:5:\n{holm_group}nogroup:x:65534:\n");
    let hosts = format!("127.0.0.1 localhost {hostname}\n::1 localhost ip6-localhost ip6-loopback\n");
    vec![
        ("passwd", passwd),
        ("group", group),
        ("hosts", hosts),
        ("hostname", format!("{hostname}\n")),
        ("resolv.conf", "nameserver 127.0.0.53\noptions timeout:1 attempts:1\n".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn path_of(entry: &Entry) -> &str {
        match entry {
            Entry::Link { path, .. } | Entry::Dir { path, .. } | Entry::File { path } => path,
        }
    }

    #[test]
    fn only_the_list_is_shown_and_no_secret_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let etc_dir = dir.path();
        for file in ["shadow", "passwd", "nsswitch.conf", "services", "machine-id", "pythonrc"] {
            fs::write(etc_dir.join(file), "").unwrap();
        }
        for folder in ["ssl/certs", "ssl/private", "ssh", "alternatives", "python3"] {
            fs::create_dir_all(etc_dir.join(folder)).unwrap();
        }
        fs::write(etc_dir.join("ssl/openssl.cnf"), "").unwrap();
        symlink("/usr/share/zoneinfo/Etc/UTC", etc_dir.join("localtime")).unwrap();
        fs::set_permissions(etc_dir.join("services"), fs::Permissions::from_mode(0o600)).unwrap();
        let entries = etc(etc_dir).unwrap();
        let shown: Vec<&str> = entries.iter().map(path_of).collect();
        let wanted =
            ["alternatives", "localtime", "nsswitch.conf", "python3", "pythonrc", "ssl/certs", "ssl/openssl.cnf"];
        assert_eq!(shown, wanted);
        let target = "/usr/share/zoneinfo/Etc/UTC".to_owned();
        assert_eq!(entries[1], Entry::Link { path: "localtime".into(), target });
    }

    #[test]
    fn generated_files_name_the_users_that_there_are() {
        let with = generated("h", true);
        assert!(with[0].1.contains("holm:x:1000:") && with[1].1.contains("holm:x:1000:"));
        assert!(!generated("h", false)[0].1.contains("holm"));
    }
}
