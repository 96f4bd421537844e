//! The root file system `host`: the host's programs and libraries, and of /etc what programs need and nobody keeps secret.
//!
//! It is an image like any other: a folder with the frame (/etc, empty /home, /var, …), made anew whenever what it shows
//! of the host changes, below the run's own writable layer. The folders with programs are mounted on it. What stands in /etc
//! is copied by an allow list; files that would tell about the host or its users (passwd, group, hosts, resolv.conf,
//! machine-id) are not the host's. What always holds: nothing is shown that not every user of the host may read. In the
//! mounted folders that is the kernel's to see to: their owners have no id inside, so they are shown as nobody's and only
//! the bits for others count, for the workload's root as well. Where the agent is a plain user, that user's own files below
//! these folders can be read: its id is the workload's.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use super::image::{Image, Images};
use crate::{Context, Error, Stop};

/// The folders with programs and libraries, each a symbolic link below /usr on most hosts.
const TOP: &[&str] = &["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];

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

/// The most files, folders and links that are copied.
const ENTRIES_MAX: usize = 32_768;
/// The most bytes that are copied.
const BYTES_MAX: u64 = 128 * 1024 * 1024;
/// The deepest path below /etc.
const DEPTH_MAX: usize = 16;
/// How old a look at the host may be. A change of the host is seen by runs that start that much later.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The frame: folders that every root has, with their modes.
const FOLDERS: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("run/holm", 0o755),
    ("run/lock", 0o1777),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];
const LINKS: &[(&str, &str)] = &[("etc/mtab", "/proc/self/mounts"), ("var/run", "/run")];
/// The user beside root, where a sandbox has more ids than one.
const USER_ID: u32 = 1_000;

/// The image of the host, made when it is asked for.
pub struct HostRoot {
    /// Whether a sandbox has more ids than one.
    mapped: bool,
    seen: Mutex<Option<(Instant, Arc<View>)>>,
}

/// What is shown of the host.
struct View {
    seen: Vec<Seen>,
    /// What was found where; as long as that is so, the view is the same. A link in a folder that is among them is not
    /// looked at again: it cannot change without its folder.
    found: Vec<(PathBuf, Option<Stamp>)>,
    bytes: u64,
    digest: String,
}

impl View {
    fn is_current(&self) -> Result<bool, Error> {
        for (path, stamp) in &self.found {
            if stat(path)?.as_ref().map(stamp_of) != *stamp {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Changes whenever a file or folder does: device, inode, mode, size, and the times of its content and of itself.
type Stamp = (u64, u64, u32, u64, (i64, i64), (i64, i64));

fn stamp_of(meta: &Metadata) -> Stamp {
    let times = ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
    (meta.dev(), meta.ino(), meta.mode(), meta.size(), times.0, times.1)
}

/// What stands at a path, links not followed; nothing if there is nothing.
fn stat(path: &Path) -> Result<Option<Metadata>, Error> {
    match fs::symlink_metadata(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        other => other.map(Some).context(|| format!("looking at {}", path.display())),
    }
}

impl HostRoot {
    /// Nothing is looked at yet.
    pub fn new(mapped: bool) -> Self {
        Self { mapped, seen: Mutex::default() }
    }

    /// The image of the host as it is now, and the host's folders that are to be mounted on it, as paths.
    pub fn image(&self, images: &Images, stop: &Stop) -> Result<(Image, Vec<String>), Error> {
        let view = self.look()?;
        let image = images.get_passing(&view.digest, stop, |root| self.fill(&view.seen, root).map(|()| view.bytes))?;
        let mounted = view.seen.iter().filter(|seen| seen.is_mounted());
        Ok((image, mounted.map(|seen| format!("/{}", seen.path)).collect()))
    }

    fn look(&self) -> Result<Arc<View>, Error> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((looked_at, view)) = &*seen
            && looked_at.elapsed() < LOOK_AGAIN
        {
            return Ok(view.clone());
        }
        let looked_at = Instant::now();
        let view = match &*seen {
            Some((_, view)) if view.is_current()? => view.clone(),
            _ => Arc::new(self.view(Path::new("/"))?),
        };
        *seen = Some((looked_at, view.clone()));
        Ok(view)
    }

    /// What is shown of the host whose root is `root`. After a boot all has another digest: images are not synced to the
    /// disk.
    fn view(&self, root: &Path) -> Result<View, Error> {
        let Look { seen, found, bytes } = look(root)?;
        let boot = "/proc/sys/kernel/random/boot_id";
        let mut hash = Sha256::new_with_prefix(fs::read(boot).context(|| format!("reading {boot}"))?);
        hash.update([u8::from(self.mapped)]);
        for seen in &seen {
            hash.update(seen.fingerprint());
        }
        let digest = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(View { seen, found, bytes, digest })
    }

    fn fill(&self, seen: &[Seen], root: &Path) -> io::Result<()> {
        fs::set_permissions(root, Permissions::from_mode(0o755))?;
        for (path, mode) in FOLDERS {
            folder(&root.join(path), *mode)?;
        }
        for (path, target) in LINKS {
            symlink(target, root.join(path))?;
        }
        if self.mapped {
            folder(&root.join("home/holm"), 0o700)?;
            chown(root.join("home/holm"), Some(USER_ID), Some(USER_ID))?;
        }
        for (name, content) in users(self.mapped) {
            file(&root.join("etc").join(name), 0o644, &mut content.as_bytes())?;
        }
        seen.iter().try_for_each(|seen| seen.copy(root))
    }
}

/// Something of the host that is shown.
#[derive(Debug)]
struct Seen {
    /// Where it stands on the host.
    source: PathBuf,
    /// Where it is shown, relative.
    path: String,
    meta: Metadata,
}

impl Seen {
    /// Whether it is a folder of the first level, which is mounted and not copied.
    fn is_mounted(&self) -> bool {
        self.meta.is_dir() && TOP.contains(&&*self.path)
    }

    /// Changes whenever what it stands for does. A folder of the first level is itself whatever is in it.
    fn fingerprint(&self) -> String {
        let Self { path, meta, .. } = self;
        let times = match self.is_mounted() {
            true => String::new(),
            false => format!("{}.{} {}.{}", meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()),
        };
        let size = if meta.is_dir() { 0 } else { meta.size() };
        format!("{path}\0{} {} {} {size} {times}\0", meta.dev(), meta.ino(), meta.mode())
    }

    fn copy(&self, root: &Path) -> io::Result<()> {
        let at = root.join(&self.path);
        if let Some(parent) = at.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        let mode = self.meta.mode() & 0o755;
        if self.meta.is_symlink() {
            symlink(fs::read_link(&self.source)?, at)
        } else if self.meta.is_dir() {
            folder(&at, mode)
        } else {
            let source = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&self.source)?;
            file(&at, mode, &mut source.take(self.meta.size()))
        }
    }
}

fn folder(path: &Path, mode: u32) -> io::Result<()> {
    // Effect: `image.fill`.
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::set_permissions(path, Permissions::from_mode(mode))
}

fn file(path: &Path, mode: u32, content: &mut impl Read) -> io::Result<()> {
    // Effect: `image.fill`.
    let mut file = File::create_new(path)?;
    io::copy(content, &mut file)?;
    file.flush()?;
    file.set_permissions(Permissions::from_mode(mode))
}

/// What is shown of the host whose root is `root`, folders before what is in them.
fn look(root: &Path) -> Result<Look, Error> {
    let mut look = Look { seen: Vec::new(), found: Vec::new(), bytes: 0 };
    for name in TOP {
        look.watch(&root.join(name))?;
        look.at(&root.join(name), name)?;
    }
    let etc = root.join("etc");
    if !look.is_open(&etc, Path::new("any"))? {
        return Ok(look);
    }
    for name in names(&etc)?.into_iter().filter(|name| allowed(name)) {
        match ETC_PARTS.iter().find(|(folder, _)| *folder == name) {
            None => look.all(&etc.join(&name), &format!("etc/{name}"), DEPTH_MAX)?,
            Some((folder, parts)) => {
                for part in *parts {
                    if look.is_open(&etc, &Path::new(folder).join(part))? {
                        look.all(&etc.join(folder).join(part), &format!("etc/{folder}/{part}"), DEPTH_MAX)?;
                    }
                }
            }
        }
    }
    Ok(look)
}

struct Look {
    seen: Vec<Seen>,
    found: Vec<(PathBuf, Option<Stamp>)>,
    bytes: u64,
}

impl Look {
    /// What stands at a path that is looked at again later.
    fn watch(&mut self, path: &Path) -> Result<Option<Metadata>, Error> {
        let meta = stat(path)?;
        self.found.push((path.to_owned(), meta.as_ref().map(stamp_of)));
        Ok(meta)
    }

    /// Whether everybody may come through all folders from `etc` to what is at `path` beneath it, and no link leads there.
    fn is_open(&mut self, etc: &Path, path: &Path) -> Result<bool, Error> {
        let above = path.parent().into_iter().flat_map(Path::ancestors);
        for folder in above.map(|folder| etc.join(folder)) {
            let meta = self.watch(&folder)?;
            if meta.is_none_or(|meta| !meta.is_dir() || meta.mode() & 0o005 != 0o005) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes down what stands at `source`, with everything in it.
    fn all(&mut self, source: &Path, path: &str, depth: usize) -> Result<(), Error> {
        if !self.at(source, path)? {
            return Ok(());
        }
        if depth == 0 {
            return Err(Error::Image(format!("{} is deeper than {DEPTH_MAX} folders", source.display())));
        }
        for name in names(source)? {
            self.all(&source.join(&name), &format!("{path}/{name}"), depth - 1)?;
        }
        Ok(())
    }

    /// Takes down what stands at `source`; whether it is a folder. Nothing if there is nothing, if not everybody may read
    /// it, or if it is no file, folder or link.
    fn at(&mut self, source: &Path, path: &str) -> Result<bool, Error> {
        let Some(meta) = stat(source)? else { return Ok(false) };
        if !meta.is_symlink() {
            self.found.push((source.to_owned(), Some(stamp_of(&meta))));
        }
        let readable = if meta.is_dir() { 0o005 } else { 0o004 };
        let is_known_kind = meta.is_dir() || meta.is_file();
        if !meta.is_symlink() && (!is_known_kind || meta.mode() & readable != readable) {
            return Ok(false);
        }
        let is_dir = meta.is_dir();
        self.bytes += if meta.is_file() { meta.size() } else { 0 };
        if self.bytes > BYTES_MAX || self.seen.len() >= ENTRIES_MAX {
            let problem = format!("the host's /etc has more than {ENTRIES_MAX} entries or {BYTES_MAX} bytes to show");
            return Err(Error::Image(format!("{problem}, {} among them", source.display())));
        }
        self.seen.push(Seen { source: source.to_owned(), path: path.to_owned(), meta });
        Ok(is_dir)
    }
}

/// The names in a folder that are text, sorted. One that has gone or is closed has none.
fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let context = || format!("reading {}", folder.display());
    let entries = match fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            return Ok(Vec::new());
        }
        other => other.context(context)?,
    };
    let mut names = Vec::new();
    for entry in entries.take(ENTRIES_MAX) {
        names.extend(entry.context(context)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

fn allowed(name: &str) -> bool {
    ETC.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == *pattern,
    })
}

/// The files of /etc that name the users.
fn users(mapped: bool) -> [(&'static str, String); 2] {
    let id = USER_ID;
    let holm_user = if mapped { format!("holm:x:{id}:{id}:holm:/home/holm:/bin/sh\n") } else { String::new() };
    let holm_group = if mapped { format!("holm:x:{id}:\n") } else { String::new() };
    let passwd = format!(
        "root:x:0:0:root:/root:/bin/sh\n{holm_user}nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    );
    [("passwd", passwd), ("group", format!("root:x:0:\ntty:x:5:\n{holm_group}nogroup:x:65534:\n"))]
}

/// The files of /etc that tell of the machine, in every root file system.
pub fn machine_files(hostname: &str) -> [(&'static str, String); 3] {
    [
        ("hosts", format!("127.0.0.1 localhost {hostname}\n::1 localhost ip6-localhost ip6-loopback\n")),
        ("hostname", format!("{hostname}\n")),
        ("resolv.conf", "nameserver 127.0.0.53\noptions timeout:1 attempts:1\n".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::image::Budget;

    /// A host with this much of a root.
    fn host() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let etc = dir.path().join("etc");
        for folder in ["usr/bin", "etc/ssl/certs", "etc/ssl/private", "etc/ssh", "etc/alternatives", "etc/python3/sub"]
        {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        symlink("usr/bin", dir.path().join("bin")).unwrap();
        for file in ["shadow", "passwd", "nsswitch.conf", "services", "machine-id", "pythonrc", "ssl/openssl.cnf"] {
            fs::write(etc.join(file), file).unwrap();
        }
        for file in ["ssl/private/key", "python3/sub/secret", "python3/sub/open"] {
            fs::write(etc.join(file), file).unwrap();
        }
        symlink("/usr/share/zoneinfo/Etc/UTC", etc.join("localtime")).unwrap();
        for closed in ["services", "python3/sub/secret"] {
            fs::set_permissions(etc.join(closed), Permissions::from_mode(0o600)).unwrap();
        }
        fs::set_permissions(etc.join("python3/sub/open"), Permissions::from_mode(0o4755)).unwrap();
        dir
    }

    fn shown(root: &Path) -> Vec<String> {
        look(root).unwrap().seen.into_iter().map(|seen| seen.path).collect()
    }

    #[test]
    fn only_the_list_is_shown_and_no_secret_in_it() {
        let host = host();
        let wanted = [
            "usr",
            "bin",
            "etc/alternatives",
            "etc/localtime",
            "etc/nsswitch.conf",
            "etc/python3",
            "etc/python3/sub",
            "etc/python3/sub/open",
            "etc/pythonrc",
            "etc/ssl/certs",
            "etc/ssl/openssl.cnf",
        ];
        assert_eq!(shown(host.path()), wanted);
    }

    #[test]
    fn nothing_is_shown_below_a_folder_that_is_closed() {
        for (closed, hidden) in [
            ("etc/ssl", vec!["etc/ssl/certs", "etc/ssl/openssl.cnf"]),
            ("etc/pki/tls", vec!["etc/pki/tls/certs"]),
            ("etc/pki", vec!["etc/pki/tls/certs", "etc/pki/java"]),
            ("etc", vec!["etc/ssl/certs", "etc/pki/java", "etc/nsswitch.conf"]),
        ] {
            let host = host();
            for folder in ["etc/pki/tls/certs", "etc/pki/java"] {
                fs::create_dir_all(host.path().join(folder)).unwrap();
            }
            let before = shown(host.path());
            assert!(hidden.iter().all(|path| before.iter().any(|seen| seen == path)), "{before:?}");
            for mode in [0o750, 0o754, 0o751] {
                fs::set_permissions(host.path().join(closed), Permissions::from_mode(mode)).unwrap();
                let seen = shown(host.path());
                assert!(!hidden.iter().any(|path| seen.iter().any(|seen| seen == path)), "{closed} {mode:o}: {seen:?}");
            }
        }
    }

    fn image(host: &Path, images: &Path) -> Image {
        let root = HostRoot::new(false);
        *root.seen.lock().unwrap() = Some((Instant::now(), Arc::new(root.view(host).unwrap())));
        let (image, top) = root.image(&Images::new(images, Budget::default()), &Stop::default()).unwrap();
        assert_eq!(top, ["/usr"]);
        image
    }

    #[test]
    fn an_image_has_what_is_shown_and_nothing_of_the_hosts_users() {
        let (host, images) = (host(), tempfile::tempdir().unwrap());
        let image = image(host.path(), images.path());
        let read = |path: &str| fs::read_to_string(image.root.join(path)).unwrap();
        assert_eq!(read("etc/python3/sub/open"), "python3/sub/open");
        assert!(read("etc/passwd").starts_with("root:x:0:0:") && !read("etc/passwd").contains("holm"));
        assert!(users(true)[0].1.contains("holm:x:1000:") && users(true)[1].1.contains("holm:x:1000:"));
        assert_eq!(fs::read_link(image.root.join("bin")).unwrap(), Path::new("usr/bin"));
        assert!(!image.root.join("usr/bin").exists(), "folders of the first level are mounted, not copied");
        assert!(!image.root.join("etc/shadow").exists() && !image.root.join("etc/python3/sub/secret").exists());
        let mode = |path: &str| fs::metadata(image.root.join(path)).unwrap().mode() & 0o7777;
        assert_eq!((mode("etc/python3/sub/open"), mode("tmp"), mode("root")), (0o755, 0o1777, 0o700));
    }

    #[test]
    fn a_change_of_the_host_makes_another_image_and_the_same_host_the_same() {
        let (host, images) = (host(), tempfile::tempdir().unwrap());
        let first = image(host.path(), images.path());
        fs::write(host.path().join("usr/bin/new"), "").unwrap();
        assert_eq!(image(host.path(), images.path()).root, first.root);
        fs::write(host.path().join("etc/nsswitch.conf"), "changed").unwrap();
        let second = image(host.path(), images.path());
        assert_ne!(second.root, first.root);
        assert_eq!(fs::read_to_string(second.root.join("etc/nsswitch.conf")).unwrap(), "changed");
        assert_eq!(fs::read_to_string(first.root.join("etc/nsswitch.conf")).unwrap(), "nsswitch.conf", "runs use it");
    }

    #[test]
    fn an_image_of_the_host_that_nobody_uses_goes_and_one_in_use_stays() {
        let (host, dir) = (host(), tempfile::tempdir().unwrap());
        let images = Images::new(dir.path(), Budget { bytes: u64::MAX, count: 0 });
        let image = image(host.path(), dir.path());
        images.tidy();
        assert!(image.root.exists());
        drop(image.lock);
        images.tidy();
        assert!(!image.root.exists());
    }

    #[test]
    fn a_view_is_current_until_something_of_it_changes() {
        let root = HostRoot::new(false);
        let changes: [fn(&Path); 7] = [
            |etc| fs::write(etc.join("nsswitch.conf"), "changed").unwrap(),
            |etc| fs::write(etc.join("python3/sub/new"), "").unwrap(),
            |etc| fs::write(etc.join("magic"), "").unwrap(),
            |etc| fs::remove_file(etc.join("localtime")).unwrap(),
            |etc| fs::set_permissions(etc.join("services"), Permissions::from_mode(0o644)).unwrap(),
            |etc| fs::set_permissions(etc.join("ssl"), Permissions::from_mode(0o700)).unwrap(),
            |etc| fs::create_dir(etc.join("../lib64")).unwrap(),
        ];
        for (n, change) in changes.into_iter().enumerate() {
            let host = host();
            let view = root.view(host.path()).unwrap();
            assert!(view.is_current().unwrap());
            // Seen by everybody, but never shown.
            fs::write(host.path().join("etc/ssh/config"), "").unwrap();
            fs::write(host.path().join("usr/bin/program"), "").unwrap();
            assert!(view.is_current().unwrap());
            change(&host.path().join("etc"));
            assert!(!view.is_current().unwrap(), "change {n}");
        }
    }

    #[test]
    fn too_much_is_refused() {
        let host = host();
        let mut path = host.path().join("etc/alternatives");
        for _ in 0..=DEPTH_MAX {
            path.push("d");
        }
        fs::create_dir_all(path).unwrap();
        let error = look(host.path()).err().unwrap();
        assert!(error.to_string().contains("deeper"), "{error}");
    }
}
