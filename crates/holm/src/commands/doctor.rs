//! `holm doctor`: what this host can do, and what to do about the rest.
//!
//! Looks and changes nothing, each look bounded in time. What a server and an agent here stand on is looked at in [`bucket`],
//! [`database`] and [`state`], what a server tells in [`server`]. What a runtime can do is the runtime's to say; the probes beside it
//! explain why.

mod bucket;
mod database;
mod deadline;
mod server;
mod state;

use std::{fs, path::Path};

use holm_agent::{Damage, storage};
use holm_domain::pressure::{PressureLimits, Stall, judge};
use rustix::process::geteuid;
use serde::Serialize;

use crate::{
    output::{Cell, Tone, escaped, told},
    session::Session,
    units::show_bytes,
};

/// Below this a server keeps no run: the database, spools and its log need room.
const HOME_FREE_BYTES: u64 = 16 << 20;

/// How something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    /// As it should be.
    Good,
    /// It works with less.
    Less,
    /// Something does not work at all.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
struct Probe {
    name: &'static str,
    status: Status,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    way_out: Option<String>,
}

fn good(name: &'static str, found: impl Into<String>) -> Probe {
    Probe { name, status: Status::Good, found: found.into(), way_out: None }
}

fn less(name: &'static str, found: impl Into<String>, way_out: impl Into<String>) -> Probe {
    Probe { name, status: Status::Less, found: found.into(), way_out: Some(way_out.into()) }
}

fn missing(name: &'static str, found: impl Into<String>, way_out: impl Into<String>) -> Probe {
    Probe { status: Status::Missing, ..less(name, found, way_out) }
}

/// Prints what was found; the exit code is 1 if no sandbox can be made here, or no server and agent can work.
pub async fn execute(session: &Session) -> anyhow::Result<u8> {
    let mut probes = vec![user(), kernel(), user_namespaces(), cgroups(), pressure(Path::new("/proc"))];
    probes.extend([security_modules(), overlay(), vm(), qemu()]);
    probes.extend(in_home(session).await);
    let unusable = probes.iter().any(|probe| probe.status == Status::Missing);
    let output = session.output;
    if output.json {
        output.value(&probes)?;
        return Ok(u8::from(unusable));
    }
    let mut rows = Vec::new();
    for probe in &probes {
        let mark = match probe.status {
            Status::Good => Cell(Tone::Good, "ok".into()),
            Status::Less => Cell(Tone::Warn, "less".into()),
            Status::Missing => Cell(Tone::Bad, "missing".into()),
        };
        rows.push([mark, probe.name.into(), escaped(&probe.found).into()]);
        if let Some(way_out) = &probe.way_out {
            rows.push(["".into(), "".into(), Cell(Tone::Dim, format!("-> {}", escaped(way_out)))]);
        }
    }
    output.table(["", "WHAT", "FOUND"], &rows)?;
    Ok(u8::from(unusable))
}

/// What needs the home. Where a folder of it does not answer, nothing more is looked at, which would hang as well.
async fn in_home(session: &Session) -> Vec<Probe> {
    let home = session.home();
    let (bucket, folder) = bucket::told(session, &home);
    let (mut probes, answers) = state::probes(&home, folder).await;
    if answers {
        probes.extend(bucket.probe().await);
        probes.extend(database::probes(session, &home).await);
        probes.extend(server::probes(session, &home).await);
        probes.extend(runtimes(session));
    }
    probes
}

fn runtimes(session: &Session) -> Vec<Probe> {
    let runtime = match crate::serve::process_runtime(&session.home(), crate::serve::agent::Lending::default()) {
        Ok(runtime) => runtime,
        Err(error) => {
            let (found, way_out) = match error.downcast::<Damage>() {
                Ok(Damage { path, problem, way_out }) => (format!("{}: {problem}", path.display()), way_out),
                Err(error) => (told(&error), "look as the user of the agent, and look after that disk"),
            };
            return vec![missing("runtime process", found, way_out)];
        }
    };
    let info = runtime.fingerprint();
    let mut probes = Vec::new();
    if info.capabilities.is_empty() {
        let way_out = "see what is missing above";
        probes.push(missing("runtime process", "it cannot make a sandbox here", way_out));
    } else {
        probes.push(good("runtime process", info.capabilities.join(", ")));
    }
    for reason in info.unenforced {
        let way_out = "runs go on without it, unless they ask for --require-limits";
        probes.push(less("not enforced", reason, way_out));
    }
    probes
}

fn user() -> Probe {
    if geteuid().is_root() {
        return good("user", "root: each sandbox gets user ids of its own");
    }
    let way_out = "start the agent as root for user ids of their own and enforced limits";
    less("user", format!("uid {}: one id for all sandboxes", geteuid().as_raw()), way_out)
}

fn kernel() -> Probe {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (5, 15) {
        return good("kernel", format!("{release} ({})", name.machine().to_string_lossy()));
    }
    missing("kernel", release, "5.15 or newer is needed")
}

fn first_word(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.split_whitespace().next()?.to_owned())
}

fn user_namespaces() -> Probe {
    let name = "user namespaces";
    let switch = |path: &str| first_word(path);
    if switch("/proc/sys/user/max_user_namespaces").as_deref() == Some("0") {
        return missing(name, "user.max_user_namespaces is 0", "sysctl -w user.max_user_namespaces=65536");
    }
    if !Path::new("/proc/self/ns/user").exists() {
        return missing(name, "the kernel has none", "use a kernel with CONFIG_USER_NS");
    }
    if !geteuid().is_root() {
        if switch("/proc/sys/kernel/unprivileged_userns_clone").as_deref() == Some("0") {
            let way_out = "sysctl -w kernel.unprivileged_userns_clone=1, or start the agent as root";
            return missing(name, "forbidden for plain users (kernel.unprivileged_userns_clone is 0)", way_out);
        }
        if switch("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1") {
            let way_out = "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or start the agent as root";
            return missing(name, "forbidden for plain users by AppArmor", way_out);
        }
    }
    good(name, "allowed")
}

fn cgroups() -> Probe {
    let name = "control groups";
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let of_type = |wanted: &str| -> Vec<(String, String)> {
        let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let matching = fields.filter(|fields| fields.get(2) == Some(&wanted));
        matching.map(|f| (f[1].to_owned(), f.get(3).copied().unwrap_or("").to_owned())).collect()
    };
    let (v1, v2) = (of_type("cgroup"), of_type("cgroup2"));
    let unified =
        v2.first().map(|(path, _)| fs::read_to_string(format!("{path}/cgroup.controllers")).unwrap_or_default());
    let has = |controller: &str| {
        unified.as_deref().is_some_and(|list| list.split_whitespace().any(|name| name == controller))
            || v1.iter().any(|(_, options)| options.split(',').any(|option| option == controller))
    };
    let absent: Vec<&str> = ["memory", "pids", "cpu"].into_iter().filter(|controller| !has(controller)).collect();
    let version = match (v1.is_empty(), v2.is_empty()) {
        (true, true) => return less(name, "none are mounted", "mount -t cgroup2 none /sys/fs/cgroup"),
        (true, false) => "version 2",
        (false, true) => "version 1",
        (false, false) => "versions 1 and 2 side by side",
    };
    if !absent.is_empty() {
        let way_out = "enable these controllers in the kernel; without them memory, pids or cpu are not limited";
        return less(name, format!("{version}, without {}", absent.join(", ")), way_out);
    }
    if !geteuid().is_root() {
        let way_out = "start the agent as root, or in a unit with Delegate=yes";
        return less(name, format!("{version}; a plain user needs a group that was delegated"), way_out);
    }
    good(name, format!("{version}, with memory, pids and cpu"))
}

fn pressure(proc_dir: &Path) -> Probe {
    let name = "pressure";
    let seen = holm_agent::pressure::read(proc_dir);
    let excesses = judge(&[], &seen.pressure, &PressureLimits::default());
    if let Some(excess) = excesses.first() {
        let way_out = "new runs wait until it is below half of that, or give agents other limits with --host-pressure";
        return less(name, excess.to_string(), way_out);
    }
    if let Some(unknown) = seen.unknown.first() {
        let way_out = "boot a kernel that has CONFIG_PSI with `psi=1`; what is not known holds no run up";
        return less(name, unknown, way_out);
    }
    let share = |stall: Stall| {
        let share_bp = seen.pressure.of(stall)?;
        Some(format!("{} {}.{:02} %", stall.as_str(), share_bp / 100, share_bp % 100))
    };
    let shares: Vec<String> = Stall::ALL.into_iter().filter_map(share).collect();
    good(name, format!("{} of the last ten seconds", shares.join(", ")))
}

fn security_modules() -> Probe {
    match fs::read_to_string("/sys/kernel/security/lsm") {
        Ok(list) if list.split(',').any(|name| name.trim() == "landlock") => good("Landlock", list.trim()),
        Ok(list) => less(
            "Landlock",
            format!("not among the active modules ({})", list.trim()),
            "add `landlock` to the kernel's `lsm=`; sandboxes have one layer less without it",
        ),
        Err(_) => less(
            "Landlock",
            "securityfs cannot be read, so it is not known",
            "mount -t securityfs none /sys/kernel/security",
        ),
    }
}

fn overlay() -> Probe {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.trim_end().ends_with("\toverlay")) {
        return good("overlay", "the kernel has it");
    }
    less("overlay", "not loaded", "modprobe overlay")
}

fn vm() -> Probe {
    let kvm = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    match kvm {
        Ok(_) => good("KVM", "/dev/kvm opens"),
        Err(error) => less(
            "KVM",
            format!("/dev/kvm: {error}"),
            "VMs run in software emulation; with the hardware: modprobe kvm, group kvm",
        ),
    }
}

fn qemu() -> Probe {
    let in_path = |program: &str| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
    };
    let found: Vec<String> = ["qemu-system-x86_64", "firecracker"]
        .into_iter()
        .filter_map(in_path)
        .map(|path| path.display().to_string())
        .collect();
    if found.is_empty() {
        return less("VMMs", "neither qemu-system-x86_64 nor firecracker", "install qemu-system-x86 for VMs");
    }
    good("VMMs", found.join(", "))
}

/// The room in a folder, or in the one in which it will be made, for bytes and for files. Where runs leave something, none is
/// claimed below `floor` bytes.
fn room(name: &'static str, folder: &Path, floor: u64) -> Probe {
    let existing = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if let Err(error) = rustix::fs::access(existing, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK) {
        let found = format!("{} cannot be written: {error}", existing.display());
        return missing(name, found, "give a folder that is yours with --home or HOLM_HOME");
    }
    if let Some(why) = storage::shortage(existing, floor).or_else(|| storage::shortage_of_files(existing)) {
        let way_out = "make room, give another folder with --home, or another floor with --host-storage-floor";
        return missing(name, format!("{}: {why}", folder.display()), way_out);
    }
    match rustix::fs::statvfs(existing) {
        Ok(stat) if stat.f_blocks == 0 => {
            let found = format!("{}: its file system keeps no files", folder.display());
            missing(name, found, "give another folder with --home or HOLM_HOME")
        }
        Ok(stat) if stat.f_bavail * stat.f_frsize < HOME_FREE_BYTES => {
            let free = show_bytes(stat.f_bavail * stat.f_frsize);
            let found = format!("{}: {free} free, {} are needed", folder.display(), show_bytes(HOME_FREE_BYTES));
            missing(name, found, "make room there, or give another folder with --home or HOLM_HOME")
        }
        Ok(stat) => good(name, format!("{}, {} free", folder.display(), show_bytes(stat.f_bavail * stat.f_frsize))),
        Err(error) => missing(name, format!("{}: {error}", existing.display()), "give another folder with --home"),
    }
}
