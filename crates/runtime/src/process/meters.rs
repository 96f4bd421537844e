//! What the kernel counted of a sandbox: files of its control groups that the agent opened, read by the shim at the end,
//! and by the agent while it lives.
//!
//! What always holds: a file that a kernel does not have, or that cannot be read, gives nothing and never a 0; each is read
//! once and at most [`FILE_BYTES_MAX`] bytes of it. The formats are those of cgroups(7) and of the kernel's
//! Documentation/admin-guide/cgroup-v1 and cgroup-v2.

use std::{
    io::{self, Read as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

use holm_domain::run::{LiveUsage, Usage};
use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
};

use super::{
    cgroup::{Controller, Hierarchy},
    sys::Resources,
};
use crate::{Context, Counted, Descriptor, Error};

/// What the names of the descriptors begin with.
const PREFIX: &str = "meter.";
/// How much of a file is read, in bytes. Only `io.stat` has a line for each device.
const FILE_BYTES_MAX: usize = 8 * 1024;
/// How long the thread that waits for the guest may take to tell what it learnt.
const WAITED_TIME: Duration = Duration::from_secs(1);

const MEMORY_EVENTS: &str = "memory.events";
const MEMORY_PEAK: &str = "memory.peak";
const PIDS_EVENTS: &str = "pids.events";
const PIDS_PEAK: &str = "pids.peak";
const CPU_STAT: &str = "cpu.stat";
const CPU_USER_NS: &str = "cpuacct.usage_user";
const CPU_SYSTEM_NS: &str = "cpuacct.usage_sys";
const IO_STAT: &str = "io.stat";

/// The files of a hierarchy that count, by the name under which they are read.
fn files(hierarchy: &Hierarchy) -> Vec<(&'static str, &'static str)> {
    let has = |controller| hierarchy.controllers.contains(&controller);
    let mut files = Vec::new();
    if has(Controller::Memory) {
        files.extend(match hierarchy.unified {
            true => [(MEMORY_EVENTS, "memory.events"), (MEMORY_PEAK, "memory.peak")],
            false => [(MEMORY_EVENTS, "memory.oom_control"), (MEMORY_PEAK, "memory.max_usage_in_bytes")],
        });
    }
    if has(Controller::Pids) {
        files.extend([(PIDS_EVENTS, "pids.events"), (PIDS_PEAK, "pids.peak")]);
    }
    if hierarchy.unified {
        files.extend([(CPU_STAT, "cpu.stat"), (IO_STAT, "io.stat")]);
    } else if hierarchy.counts_cpu {
        files.extend([(CPU_USER_NS, "cpuacct.usage_user"), (CPU_SYSTEM_NS, "cpuacct.usage_sys")]);
    }
    files
}

/// Agent: opens what counts in a group of `hierarchy`.
pub fn open_all(group: &Path, hierarchy: &Hierarchy) -> Result<Vec<Descriptor>, Error> {
    let mut meters = Vec::new();
    for (name, file) in files(hierarchy) {
        let path = group.join(file);
        match open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => meters.push(Descriptor { name: format!("{PREFIX}{name}"), fd }),
            // An older kernel.
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).context(|| format!("opening {}", path.display())),
        }
    }
    Ok(meters)
}

/// Shim: the files that the agent opened.
#[derive(Debug)]
pub struct Meters {
    files: Vec<Descriptor>,
}

impl Meters {
    /// Takes them out of what was handed over.
    pub fn take(descriptors: &mut Vec<Descriptor>) -> Self {
        let (files, rest) = std::mem::take(descriptors).into_iter().partition(|fd| fd.name.starts_with(PREFIX));
        *descriptors = rest;
        Self { files }
    }

    /// What was counted so far.
    pub fn read(&self) -> Counted {
        let text = |name| self.text(name);
        let number = |name| text(name)?.trim().parse::<u64>().ok();
        let cpu = text(CPU_STAT);
        let cpu_us = |key, ns| cpu.as_deref().and_then(|text| field(text, key)).or(number(ns).map(|ns| ns / 1_000));
        let io = text(IO_STAT);
        Counted {
            usage: Usage {
                cpu_user_us: cpu_us("user_usec", CPU_USER_NS),
                cpu_system_us: cpu_us("system_usec", CPU_SYSTEM_NS),
                memory_peak_bytes: number(MEMORY_PEAK),
                pids_peak: number(PIDS_PEAK),
                io_read_bytes: io.as_deref().map(|text| sum(text, "rbytes=")),
                io_write_bytes: io.as_deref().map(|text| sum(text, "wbytes=")),
                log_bytes: None,
            },
            waited: Usage::default(),
            oom_kills: text(MEMORY_EVENTS).and_then(|text| field(&text, "oom_kill")),
            pids_refused: text(PIDS_EVENTS).and_then(|text| field(&text, "max")),
        }
    }

    fn text(&self, name: &str) -> Option<String> {
        let file = self.files.iter().find(|file| file.name.strip_prefix(PREFIX) == Some(name))?;
        let mut bytes = vec![0; FILE_BYTES_MAX];
        match rustix::io::retry_on_intr(|| rustix::io::pread(&file.fd, bytes.as_mut_slice(), 0)) {
            Ok(length) => bytes.truncate(length),
            Err(errno) => {
                tracing::warn!(%errno, name, "what the kernel counted of a sandbox cannot be read");
                return None;
            }
        }
        String::from_utf8(bytes).ok()
    }
}

/// Agent: what is counted now in the groups of a sandbox. A group that is not there yet, or not any more, counts nothing.
pub fn measure(groups: &[PathBuf], hierarchies: &[Hierarchy]) -> LiveUsage {
    let mut usage = LiveUsage::default();
    for group in groups {
        let Some(hierarchy) = hierarchies.iter().find(|known| group.parent() == Some(known.base.as_path())) else {
            continue;
        };
        let has = |controller| hierarchy.controllers.contains(&controller);
        let number = |file: &str| beginning(&group.join(file))?.trim().parse::<u64>().ok();
        if has(Controller::Memory) {
            let (now, peak) = match hierarchy.unified {
                true => ("memory.current", "memory.peak"),
                false => ("memory.usage_in_bytes", "memory.max_usage_in_bytes"),
            };
            (usage.memory_bytes, usage.memory_peak_bytes) = (number(now), number(peak));
        }
        if has(Controller::Pids) {
            usage.pids = number("pids.current");
        }
        if hierarchy.unified {
            usage.cpu_us = beginning(&group.join("cpu.stat")).and_then(|text| field(&text, "usage_usec"));
        } else if hierarchy.counts_cpu {
            usage.cpu_us = number("cpuacct.usage").map(|nanos| nanos / 1_000);
        }
    }
    usage
}

/// The first [`FILE_BYTES_MAX`] bytes of a file.
fn beginning(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(FILE_BYTES_MAX as u64).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The number in the line `KEY NUMBER`.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The sum of the numbers in all words `KEYNUMBER`.
fn sum(text: &str, key: &str) -> u64 {
    let numbers = text.split_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
    numbers.fold(0, u64::saturating_add)
}

/// What became known when the guest was waited for: the times of the processes inside whose parents waited for them.
#[derive(Debug, Default)]
pub struct Waited {
    told: Mutex<Option<Usage>>,
    changed: Condvar,
}

impl Waited {
    /// Tells it.
    pub fn tell(&self, waited: io::Result<Resources>) {
        let usage = match waited {
            Ok(used) => Usage {
                cpu_user_us: Some(used.user_us),
                cpu_system_us: Some(used.system_us),
                io_read_bytes: Some(used.read_bytes),
                io_write_bytes: Some(used.written_bytes),
                ..Usage::default()
            },
            Err(error) => {
                tracing::error!(%error, "the guest could not be waited for");
                Usage::default()
            }
        };
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(usage);
        self.changed.notify_all();
    }

    /// What was told, or nothing if nobody tells within a second of the guest's end.
    pub fn get(&self) -> Usage {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let told = self.changed.wait_timeout_while(told, WAITED_TIME, |told| told.is_none());
        told.map_or(None, |(told, _)| *told).unwrap_or_default()
    }
}

/// Which process a pidfd stands for, as the calling process numbers it (pidfd_open(2)).
pub fn number_of(pidfd: &OwnedFd) -> Option<u32> {
    use std::os::fd::AsRawFd as _;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
}

/// Fewer free blocks than this count as none.
const FREE_BLOCKS_MIN: u64 = 16;

/// Whether the file system at the root of process `pid` takes no more files, or hardly any more bytes.
pub fn root_is_full(pid: u32) -> Option<bool> {
    let free = rustix::fs::statfs(format!("/proc/{pid}/root")).ok()?;
    Some(free.f_bavail < FREE_BLOCKS_MIN || free.f_ffree == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meters(files: &[(&str, &str)]) -> Meters {
        let files = files.iter().map(|(name, content)| {
            let fd = rustix::fs::memfd_create("meter", rustix::fs::MemfdFlags::empty()).unwrap();
            rustix::io::write(&fd, content.as_bytes()).unwrap();
            Descriptor { name: format!("{PREFIX}{name}"), fd }
        });
        Meters { files: files.collect() }
    }

    fn hierarchy(base: &Path, unified: bool, controllers: &[Controller], counts_cpu: bool) -> Hierarchy {
        Hierarchy { base: base.to_owned(), unified, controllers: controllers.to_vec(), counts_cpu }
    }

    #[test]
    fn what_lives_is_measured_in_both_versions_and_what_is_not_there_is_absent() {
        let temp = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = temp.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let base = |name: &str| temp.path().join(name);
        write("v2/a/memory.current", "4096\n");
        write("v2/a/memory.peak", "8192\n");
        write("v2/a/pids.current", "3\n");
        write("v2/a/cpu.stat", "usage_usec 35\nuser_usec 30\n");
        let unified = hierarchy(&base("v2"), true, &[Controller::Memory, Controller::Pids], false);
        let whole = LiveUsage {
            cpu_us: Some(35),
            cpus_milli: None,
            memory_bytes: Some(4_096),
            memory_peak_bytes: Some(8_192),
            pids: Some(3),
        };
        assert_eq!(measure(&[base("v2/a")], std::slice::from_ref(&unified)), whole);
        write("memory/a/memory.usage_in_bytes", "4096\n");
        write("memory/a/memory.max_usage_in_bytes", "8192\n");
        write("pids/a/pids.current", "3\n");
        write("cpu/a/cpuacct.usage", "35999\n");
        let apart = [
            hierarchy(&base("memory"), false, &[Controller::Memory], false),
            hierarchy(&base("pids"), false, &[Controller::Pids], false),
            hierarchy(&base("cpu"), false, &[], true),
        ];
        let groups = ["memory/a", "pids/a", "cpu/a"].map(base);
        assert_eq!(measure(&groups, &apart), whole);
        assert_eq!(measure(&[base("v2/b")], &[unified]), LiveUsage::default(), "it is not there");
        assert_eq!(measure(&groups, &[]), LiveUsage::default(), "nobody knows what it is");
        assert_eq!(measure(&[], &apart), LiveUsage::default(), "a plain user has none");
    }

    #[test]
    fn version_2_is_read() {
        let counted = meters(&[
            (MEMORY_EVENTS, "low 0\nhigh 0\nmax 31\noom 2\noom_kill 1\noom_group_kill 0\n"),
            (MEMORY_PEAK, "83886080\n"),
            (PIDS_EVENTS, "max 7\n"),
            (PIDS_PEAK, "12\n"),
            (CPU_STAT, "usage_usec 35\nuser_usec 30\nsystem_usec 5\nnr_periods 0\n"),
            (IO_STAT, "8:0 rbytes=100 wbytes=7 rios=1 wios=1\n8:16 rbytes=23 wbytes=0 rios=1 wios=0\n"),
        ])
        .read();
        let usage = Usage {
            cpu_user_us: Some(30),
            cpu_system_us: Some(5),
            memory_peak_bytes: Some(83_886_080),
            pids_peak: Some(12),
            io_read_bytes: Some(123),
            io_write_bytes: Some(7),
            log_bytes: None,
        };
        assert_eq!(counted, Counted { usage, oom_kills: Some(1), pids_refused: Some(7), ..Counted::default() });
    }

    #[test]
    fn version_1_is_read() {
        let counted = meters(&[
            (MEMORY_EVENTS, "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            (CPU_USER_NS, "2500000\n"),
            (CPU_SYSTEM_NS, "999\n"),
        ])
        .read();
        assert_eq!((counted.oom_kills, counted.pids_refused), (Some(3), None));
        let usage = Usage { cpu_user_us: Some(2_500), cpu_system_us: Some(0), ..Usage::default() };
        assert_eq!(counted.usage, usage);
    }

    #[test]
    fn what_is_not_there_or_makes_no_sense_is_absent() {
        assert_eq!(meters(&[]).read(), Counted::default());
        let strange = meters(&[(MEMORY_PEAK, "max\n"), (MEMORY_EVENTS, "oom_killer 4\noom_kill many\n")]);
        assert_eq!(strange.read(), Counted::default());
    }

    #[test]
    fn a_pidfd_has_the_number_of_its_process() {
        let own = rustix::process::getpid();
        let pidfd = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).unwrap();
        assert_eq!(number_of(&pidfd), Some(own.as_raw_nonzero().get().unsigned_abs()));
        assert_eq!(root_is_full(u32::MAX), None, "there is no such process");
    }

    #[test]
    fn whoever_asks_first_waits_for_who_tells() {
        let waited = std::sync::Arc::new(Waited::default());
        let teller = waited.clone();
        let thread = std::thread::spawn(move || {
            teller.tell(Ok(Resources { user_us: 5, system_us: 6, read_bytes: 512, written_bytes: 0 }));
        });
        let usage = waited.get();
        assert_eq!((usage.cpu_user_us, usage.io_read_bytes, usage.io_write_bytes), (Some(5), Some(512), Some(0)));
        assert_eq!(waited.get(), usage, "as often as it is asked");
        thread.join().unwrap();
    }
}
