//! Control groups: limits on version 1, version 2 and mixtures of both, and where it is there `cgroup.kill`.
//!
//! Where what can be done is found out is [`Layout::detect`]: a function of three texts and of what may be written. All else
//! follows the layout. What always holds: the groups of an attempt bear its label as their name, are flat (one folder a
//! hierarchy), and a limit that a layout does not offer is named in `missing` with the reason.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use holm_domain::limits::Limits;
use rustix::fs::{Access, Mode, OFlags, access, open};

use super::meters;
use crate::{Context, Descriptor, Error, crash::effect};

/// The tasks of a sandbox that are not the workload's, at their most: the guest, which has one thread, and the init of the
/// workload; before there is an init, the launcher and the guest. All that is left of the limit is the workload's.
const GUEST_PIDS: u64 = 2;
/// What the guest needs beyond the workload's own memory.
const GUEST_MEMORY_BYTES: u64 = 16 * 1024 * 1024;
/// The largest number that `pids.max` accepts (PID_MAX_LIMIT of Linux on 64 bits).
const PIDS_MAX: u64 = 4_194_304;
const CPU_PERIOD_US: u64 = 100_000;

/// What can be limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    /// Memory.
    Memory,
    /// Processes.
    Pids,
    /// Processor time.
    Cpu,
}

impl Controller {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Pids, Self::Cpu];

    /// Its name in the kernel and in capabilities (`limits.NAME`).
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
        }
    }
}

/// A hierarchy in which groups are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// The folder in which they are made.
    pub base: PathBuf,
    /// Whether it is version 2.
    pub unified: bool,
    /// What it limits.
    pub controllers: Vec<Controller>,
    /// Whether it is of version 1 and counts processor time. Version 2 always does.
    pub counts_cpu: bool,
}

/// Where groups are made, and what they can limit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// The hierarchies that are used.
    pub hierarchies: Vec<Hierarchy>,
    /// What cannot be limited, and why.
    pub missing: BTreeMap<Controller, String>,
}

/// What [`Layout::detect`] asks of the file system.
pub trait Host {
    /// Whether groups may be made in a folder and processes moved into them.
    fn writable(&self, folder: &Path) -> bool;
    /// The content of a small file.
    fn read(&self, file: &Path) -> Option<String>;
}

/// The real host.
pub struct ThisHost;

impl Host for ThisHost {
    fn writable(&self, folder: &Path) -> bool {
        let procs = folder.join("cgroup.procs");
        access(folder, Access::WRITE_OK | Access::EXEC_OK).is_ok() && access(procs, Access::WRITE_OK).is_ok()
    }

    fn read(&self, file: &Path) -> Option<String> {
        fs::read_to_string(file).ok()
    }
}

/// One mounted hierarchy, as /proc/self/mountinfo tells it.
struct Mounted {
    root: String,
    point: PathBuf,
    unified: bool,
    controllers: Vec<String>,
}

impl Layout {
    /// What this host offers to the calling process.
    pub fn of_this_host() -> Result<Self, Error> {
        let read = |file: &str| fs::read_to_string(file).context(|| format!("reading {file}"));
        Ok(Self::detect(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?, &ThisHost))
    }

    /// Finds out what a host offers, from /proc/self/mountinfo and /proc/self/cgroup (proc(5), cgroups(7)).
    pub fn detect(mountinfo: &str, own: &str, host: &dyn Host) -> Self {
        let mut layout = Self::default();
        let mounted: Vec<Mounted> = mountinfo.lines().filter_map(parse_mount).collect();
        for controller in Controller::ALL {
            let holds = |m: &&Mounted| m.controllers.iter().any(|name| name == controller.name());
            let Some(mounted) = mounted.iter().find(holds) else { continue };
            let base = own_group(mounted, own, Some(controller.name())).unwrap_or_else(|| mounted.point.clone());
            if !host.writable(&base) {
                layout.missing.insert(controller, format!("{} is not writable to this user", base.display()));
                continue;
            }
            layout.add(Hierarchy { base, unified: false, controllers: vec![controller], counts_cpu: false });
        }
        layout.detect_cpu_count(&mounted, own, host);
        if let Some(mounted) = mounted.iter().find(|m| m.unified) {
            layout.detect_unified(mounted, own, host);
        }
        for controller in Controller::ALL {
            let found = layout.hierarchies.iter().any(|h| h.controllers.contains(&controller));
            if !found && !layout.missing.contains_key(&controller) {
                layout.missing.insert(controller, "no control-group hierarchy offers it to this user".to_owned());
            }
        }
        layout
    }

    /// Two controllers may be one hierarchy of version 1 (cpu,cpuacct).
    fn add(&mut self, new: Hierarchy) {
        match self.hierarchies.iter_mut().find(|known| known.base == new.base) {
            Some(known) => {
                known.controllers.extend(new.controllers);
                known.counts_cpu |= new.counts_cpu;
            }
            None => self.hierarchies.push(new),
        }
    }

    /// Version 1 counts processor time by a controller of its own. Where it may not be used, nothing is missing but a number.
    fn detect_cpu_count(&mut self, mounted: &[Mounted], own: &str, host: &dyn Host) {
        const COUNTS: &str = "cpuacct";
        let Some(mounted) = mounted.iter().find(|m| m.controllers.iter().any(|name| name == COUNTS)) else { return };
        let base = own_group(mounted, own, Some(COUNTS)).unwrap_or_else(|| mounted.point.clone());
        if host.writable(&base) {
            self.add(Hierarchy { base, unified: false, controllers: Vec::new(), counts_cpu: true });
        }
    }

    /// Version 2 gives controllers only to children of a group without processes of its own (its root excepted), so the
    /// first writable group of that kind is sought upwards from the caller's.
    fn detect_unified(&mut self, mounted: &Mounted, own: &str, host: &dyn Host) {
        let own_group = own_group(mounted, own, None).unwrap_or_else(|| mounted.point.clone());
        let wanted: Vec<Controller> = Controller::ALL
            .into_iter()
            .filter(|c| !self.hierarchies.iter().any(|h| h.controllers.contains(c)))
            .collect();
        let mut best: Option<Hierarchy> = None;
        for folder in own_group.ancestors().take_while(|folder| folder.starts_with(&mounted.point)) {
            if !host.writable(folder) {
                continue;
            }
            let lists = |file: &str, controller: &Controller| {
                let text = host.read(&folder.join(file)).unwrap_or_default();
                text.split_whitespace().any(|name| name == controller.name())
            };
            let empty = host.read(&folder.join("cgroup.procs")).is_some_and(|procs| procs.trim().is_empty());
            // Only the real root of the hierarchy has no cgroup.type.
            let may_enable = empty || host.read(&folder.join("cgroup.type")).is_none();
            let offered = |controller: &Controller| {
                lists("cgroup.subtree_control", controller) || may_enable && lists("cgroup.controllers", controller)
            };
            let controllers: Vec<Controller> = wanted.iter().copied().filter(offered).collect();
            if best.as_ref().is_none_or(|best| best.controllers.len() < controllers.len()) {
                best = Some(Hierarchy { base: folder.to_owned(), unified: true, controllers, counts_cpu: false });
            }
        }
        for controller in best.iter().flat_map(|best| &best.controllers) {
            self.missing.remove(controller);
        }
        // Joining a group of version 2 waits for an RCU grace period (8 ms and more). For `cgroup.kill` alone that is too
        // much: killing PID 1 of the pid namespace ends the same processes.
        self.hierarchies.extend(best.filter(|best| !best.controllers.is_empty()));
    }

    /// The groups that an attempt named `name` gets.
    pub fn plan(&self, name: &str) -> Vec<PathBuf> {
        self.hierarchies.iter().map(|hierarchy| hierarchy.base.join(name)).collect()
    }

    /// Makes the groups of `plan` and sets their limits. Returns descriptors to join them (`cgroup.join.N`), and, where there
    /// are such, to kill what is in them (`cgroup.kill`) and to read what they counted ([`super::meters`]).
    pub fn create(&self, name: &str, limits: &Limits) -> Result<Vec<Descriptor>, Error> {
        let mut descriptors = Vec::new();
        for (n, hierarchy) in self.hierarchies.iter().enumerate() {
            let group = hierarchy.base.join(name);
            if hierarchy.unified {
                hierarchy.enable()?;
            }
            match effect("group.make", || fs::create_dir(&group)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(error).context(|| format!("making control group {}", group.display()));
                }
                _ => {}
            }
            for controller in &hierarchy.controllers {
                limit(&group, hierarchy.unified, *controller, limits)?;
            }
            let mut give = |name: String, file: &str, flags: OFlags| {
                let fd = open_file(&group.join(file), flags)?;
                descriptors.push(Descriptor { name, fd });
                Ok::<(), Error>(())
            };
            // Writing to `tasks` moves one thread, which all that joins has; `cgroup.procs` waits for an RCU grace period.
            let join = if hierarchy.unified { "cgroup.procs" } else { "tasks" };
            give(format!("cgroup.join.{n}"), join, OFlags::WRONLY)?;
            if hierarchy.unified && group.join("cgroup.kill").exists() {
                give("cgroup.kill".to_owned(), "cgroup.kill", OFlags::WRONLY)?;
            }
            descriptors.extend(meters::open_all(&group, hierarchy)?);
        }
        Ok(descriptors)
    }
}

impl Hierarchy {
    fn enable(&self) -> Result<(), Error> {
        let file = self.base.join("cgroup.subtree_control");
        for controller in &self.controllers {
            let enabled = fs::read_to_string(&file).context(|| format!("reading {}", file.display()))?;
            if !enabled.split_whitespace().any(|name| name == controller.name()) {
                write(&file, &format!("+{}", controller.name()))?;
            }
        }
        Ok(())
    }
}

fn limit(group: &Path, unified: bool, controller: Controller, limits: &Limits) -> Result<(), Error> {
    let memory = limits.memory_bytes.saturating_add(GUEST_MEMORY_BYTES);
    let quota_us = u64::from(limits.cpus_milli.0) * (CPU_PERIOD_US / 1_000);
    match (controller, unified) {
        (Controller::Memory, true) => {
            write(&group.join("memory.max"), &memory.to_string())?;
            write_if_there(&group.join("memory.swap.max"), "0")
        }
        (Controller::Memory, false) => {
            write(&group.join("memory.limit_in_bytes"), &memory.to_string())?;
            write_if_there(&group.join("memory.memsw.limit_in_bytes"), &memory.to_string())
        }
        (Controller::Pids, _) => {
            let pids = (u64::from(limits.pids) + GUEST_PIDS).min(PIDS_MAX);
            write(&group.join("pids.max"), &pids.to_string())
        }
        (Controller::Cpu, true) => write(&group.join("cpu.max"), &format!("{quota_us} {CPU_PERIOD_US}")),
        (Controller::Cpu, false) => {
            write(&group.join("cpu.cfs_period_us"), &CPU_PERIOD_US.to_string())?;
            write(&group.join("cpu.cfs_quota_us"), &quota_us.to_string())
        }
    }
}

fn write(file: &Path, value: &str) -> Result<(), Error> {
    let fd = open_file(file, OFlags::WRONLY)?;
    rustix::io::write(&fd, value.as_bytes()).context(|| format!("writing {value} to {}", file.display()))?;
    Ok(())
}

/// The limit on memory with swap exists only where the kernel accounts swap; without swap the other limit is enough.
fn write_if_there(file: &Path, value: &str) -> Result<(), Error> {
    if file.exists() { write(file, value) } else { Ok(()) }
}

fn open_file(file: &Path, flags: OFlags) -> Result<OwnedFd, Error> {
    open(file, flags | OFlags::CLOEXEC, Mode::empty()).context(|| format!("opening {}", file.display()))
}

fn parse_mount(line: &str) -> Option<Mounted> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(3);
    let (root, point) = (fields.next()?.to_owned(), PathBuf::from(fields.next()?));
    let mut fields = after.split(' ');
    let unified = match fields.next()? {
        "cgroup2" => true,
        "cgroup" => false,
        _ => return None,
    };
    let options = fields.nth(1)?;
    let controllers = if unified { Vec::new() } else { options.split(',').map(str::to_owned).collect() };
    Some(Mounted { root, point, unified, controllers })
}

/// The folder of the caller's own group in a hierarchy; nothing if it lies outside of what is mounted.
fn own_group(mounted: &Mounted, own: &str, controller: Option<&str>) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let matches = match controller {
            None => controllers.is_empty(),
            Some(controller) => controllers.split(',').any(|name| name == controller),
        };
        matches.then_some(path)
    })?;
    if path.split('/').any(|part| part == "..") {
        return None;
    }
    let below = Path::new(path).strip_prefix(&mounted.root).ok()?;
    Some(if below.as_os_str().is_empty() { mounted.point.clone() } else { mounted.point.join(below) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use holm_domain::limits::MilliCpus;

    /// A host made of files and writable folders.
    struct Told {
        writable: &'static [&'static str],
        files: &'static [(&'static str, &'static str)],
    }

    impl Host for Told {
        fn writable(&self, folder: &Path) -> bool {
            self.writable.iter().any(|known| Path::new(known) == folder)
        }

        fn read(&self, file: &Path) -> Option<String> {
            self.files.iter().find(|(known, _)| Path::new(known) == file).map(|(_, content)| (*content).to_owned())
        }
    }

    const V1: &str = "\
33 32 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
34 32 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
35 32 0:31 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
36 32 0:32 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
1 0 8:1 / / rw - ext4 /dev/vda rw
";
    const V1_OWN: &str = "4:memory:/outer/own\n3:pids:/\n2:cpu,cpuacct:/\n0::/\n";
    const V2: &str = "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const ALL: &str = "cpuset cpu io memory pids";

    fn bases(layout: &Layout) -> Vec<(&str, bool, &[Controller])> {
        let one = |h: &'_ Hierarchy| (h.base.to_str().unwrap().to_owned(), h.unified);
        assert!(layout.hierarchies.iter().map(one).all(|(base, _)| base.starts_with("/sys/fs/cgroup")));
        layout.hierarchies.iter().map(|h| (h.base.to_str().unwrap(), h.unified, h.controllers.as_slice())).collect()
    }

    #[test]
    fn a_mixture_limits_through_version_1() {
        let writable = &[
            "/sys/fs/cgroup/memory/outer/own",
            "/sys/fs/cgroup/pids",
            "/sys/fs/cgroup/cpu,cpuacct",
            "/sys/fs/cgroup/unified",
        ];
        let layout = Layout::detect(V1, V1_OWN, &Told { writable, files: &[] });
        let wanted: Vec<(&str, bool, &[Controller])> = vec![
            ("/sys/fs/cgroup/memory/outer/own", false, &[Controller::Memory]),
            ("/sys/fs/cgroup/pids", false, &[Controller::Pids]),
            ("/sys/fs/cgroup/cpu,cpuacct", false, &[Controller::Cpu]),
        ];
        assert_eq!(bases(&layout), wanted);
        assert_eq!(layout.missing, BTreeMap::new());
        assert_eq!(layout.plan("x")[1], Path::new("/sys/fs/cgroup/pids/x"));
        assert_eq!(layout.hierarchies.iter().map(|h| h.counts_cpu).collect::<Vec<_>>(), [false, false, true]);
    }

    #[test]
    fn processor_time_may_be_counted_apart_and_is_not_missed_as_a_limit() {
        let apart =
            "33 32 0:29 / /cg/cpu rw - cgroup cgroup rw,cpu\n34 32 0:30 / /cg/cpuacct rw - cgroup cgroup rw,cpuacct\n";
        let layout = Layout::detect(apart, "", &Told { writable: &["/cg/cpu", "/cg/cpuacct"], files: &[] });
        let found: Vec<_> = layout.hierarchies.iter().map(|h| (h.controllers.len(), h.counts_cpu)).collect();
        assert_eq!(found, [(1, false), (0, true)]);
        let layout = Layout::detect(apart, "", &Told { writable: &["/cg/cpu"], files: &[] });
        assert!(layout.hierarchies.len() == 1 && !layout.missing.contains_key(&Controller::Cpu));
    }

    #[test]
    fn what_may_not_be_written_is_missing_with_the_reason() {
        let layout = Layout::detect(V1, V1_OWN, &Told { writable: &["/sys/fs/cgroup/pids"], files: &[] });
        assert_eq!(layout.hierarchies.len(), 1);
        let reason = &layout.missing[&Controller::Memory];
        assert!(reason.contains("/memory/outer/own is not writable"), "{reason}");
        let nothing = Layout::detect("", "", &Told { writable: &[], files: &[] });
        assert_eq!(nothing.missing.len(), 3);
    }

    #[test]
    fn version_2_needs_a_group_without_processes() {
        let own = "0::/user.slice/app.slice/shell.scope\n";
        let files: &[(&str, &str)] = &[
            ("/sys/fs/cgroup/user.slice/app.slice/shell.scope/cgroup.procs", "7\n"),
            ("/sys/fs/cgroup/user.slice/app.slice/shell.scope/cgroup.type", "domain\n"),
            ("/sys/fs/cgroup/user.slice/app.slice/shell.scope/cgroup.controllers", "memory pids"),
            ("/sys/fs/cgroup/user.slice/app.slice/cgroup.procs", ""),
            ("/sys/fs/cgroup/user.slice/app.slice/cgroup.type", "domain\n"),
            ("/sys/fs/cgroup/user.slice/app.slice/cgroup.controllers", "memory pids"),
        ];
        let delegated = &["/sys/fs/cgroup/user.slice/app.slice", "/sys/fs/cgroup/user.slice/app.slice/shell.scope"];
        let layout = Layout::detect(V2, own, &Told { writable: delegated, files });
        let wanted: Vec<(&str, bool, &[Controller])> =
            vec![("/sys/fs/cgroup/user.slice/app.slice", true, &[Controller::Memory, Controller::Pids])];
        assert_eq!(bases(&layout), wanted);
        assert!(layout.missing.contains_key(&Controller::Cpu) && layout.missing.len() == 1);
    }

    #[test]
    fn the_root_of_version_2_may_have_processes() {
        let files = &[("/sys/fs/cgroup/cgroup.procs", "1\n"), ("/sys/fs/cgroup/cgroup.controllers", ALL)];
        let layout = Layout::detect(V2, "0::/\n", &Told { writable: &["/sys/fs/cgroup"], files });
        assert_eq!(bases(&layout), [("/sys/fs/cgroup", true, Controller::ALL.as_slice())]);
        assert_eq!(layout.missing, BTreeMap::new());
    }

    #[test]
    fn groups_of_another_namespace_are_not_climbed_to() {
        let layout = Layout::detect(V2, "0::/../sibling\n", &Told { writable: &[], files: &[] });
        assert_eq!(layout.hierarchies, []);
    }

    /// The files that version 2 would have, in a plain folder.
    fn version_2(dir: &Path, group: &Path) -> Layout {
        fs::create_dir(group).unwrap();
        fs::write(dir.join("cgroup.subtree_control"), "memory pids").unwrap();
        for file in [
            "cgroup.procs",
            "cgroup.kill",
            "memory.events",
            "cpu.stat",
            "memory.max",
            "memory.swap.max",
            "pids.max",
            "cpu.max",
        ] {
            fs::write(group.join(file), "").unwrap();
        }
        let controllers = Controller::ALL.to_vec();
        let hierarchy = Hierarchy { base: dir.to_owned(), unified: true, controllers, counts_cpu: false };
        Layout { hierarchies: vec![hierarchy], missing: BTreeMap::new() }
    }

    #[test]
    fn limits_of_version_2_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("group");
        let layout = version_2(dir.path(), &group);
        let limits =
            Limits { cpus_milli: MilliCpus(1_500), memory_bytes: 1 << 30, pids: 4_194_304, ..Limits::default() };
        let descriptors = layout.create("group", &limits).unwrap();
        let names: Vec<&str> = descriptors.iter().map(|descriptor| descriptor.name.as_str()).collect();
        assert_eq!(names, ["cgroup.join.0", "cgroup.kill", "meter.memory.events", "meter.cpu.stat"]);
        let content = |file: &str| fs::read_to_string(group.join(file)).unwrap();
        assert_eq!(content("cpu.max"), "150000 100000");
        assert_eq!(content("memory.max"), ((1u64 << 30) + GUEST_MEMORY_BYTES).to_string());
        assert_eq!((content("memory.swap.max"), content("pids.max")), ("0".to_owned(), "4194304".to_owned()));
        // Only what is missing is enabled, and a plain file keeps what is not written over.
        let enabled = fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap();
        assert_eq!(enabled, "+cpury pids");
    }
}
