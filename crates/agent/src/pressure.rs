//! What the kernel tells of the pressure on this host: pressure stall information and the memory that is available
//! (Documentation/accounting/psi.rst, proc_meminfo(5)).
//!
//! What always holds: what is absent or cannot be understood is unknown, with the reason, and never a number.

use std::{fs::File, io::Read as _, path::Path};

use holm_domain::pressure::{ALL_BP, Pressure};

/// The most that is read of a file, in bytes.
const FILE_BYTES_MAX: u64 = 8 * 1024;

/// What is known of the pressure on a host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// The pressure.
    pub pressure: Pressure,
    /// What is not known, each with the reason.
    pub unknown: Vec<String>,
}

/// Looks at the files under `proc_dir`, which is `/proc` but in tests.
pub fn read(proc_dir: &Path) -> Seen {
    let mut seen = Seen::default();
    if let Some(memory) = seen.text(proc_dir, "pressure/memory") {
        seen.pressure.memory_some_bp = seen.share("pressure/memory", "some", stalled(&memory, "some"));
        seen.pressure.memory_full_bp = seen.share("pressure/memory", "full", stalled(&memory, "full"));
    }
    if let Some(io) = seen.text(proc_dir, "pressure/io") {
        seen.pressure.io_full_bp = seen.share("pressure/io", "full", stalled(&io, "full"));
    }
    if let Some(memory) = seen.text(proc_dir, "meminfo") {
        seen.pressure.memory_available_bp = seen.share("meminfo", "MemAvailable", available(&memory));
    }
    seen
}

impl Seen {
    fn text(&mut self, proc_dir: &Path, name: &str) -> Option<String> {
        let mut text = String::new();
        let read = File::open(proc_dir.join(name)).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
        match read {
            Ok(_) => Some(text),
            // Where it is switched off the files are there, and reading them fails.
            Err(error) => {
                self.unknown.push(format!("{}: {error}", proc_dir.join(name).display()));
                None
            }
        }
    }

    fn share(&mut self, name: &str, what: &str, share: Option<u32>) -> Option<u32> {
        if share.is_none() {
            self.unknown.push(format!("{name} does not tell `{what}`"));
        }
        share
    }
}

/// The average over ten seconds in the line that begins with `kind`.
fn stalled(text: &str, kind: &str) -> Option<u32> {
    let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
    percent(line.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?)
}

/// A number of percents with two digits behind the point, in hundredths; nothing beyond all.
fn percent(text: &str) -> Option<u32> {
    let (whole, rest) = text.split_once('.')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(rest) || rest.len() != 2 {
        return None;
    }
    let share = whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(rest.parse().ok()?)?;
    (share <= ALL_BP).then_some(share)
}

/// The share of the memory that is available.
fn available(text: &str) -> Option<u32> {
    let kib = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    };
    let (all, free) = (kib("MemTotal")?, kib("MemAvailable")?);
    let share = u128::from(free) * u128::from(ALL_BP) / u128::from(std::num::NonZeroU64::new(all)?.get());
    u32::try_from(share).ok().filter(|share| *share <= ALL_BP)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_the_kernel_writes_is_read() {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir(proc.path().join("pressure")).unwrap();
        let write = |name: &str, text: &str| fs::write(proc.path().join(name), text).unwrap();
        let of = |some: &str, full: &str| {
            format!(
                "some avg10={some} avg60=1.28 avg300=0.14 total=38744835\nfull avg10={full} avg60=0.13 avg300=0.06 total=9\n"
            )
        };
        write("pressure/memory", &of("100.00", "7.05"));
        write("pressure/io", &of("1.23", "0.03"));
        write("meminfo", "MemTotal:       8000 kB\nMemFree:  5 kB\nMemAvailable:   2001 kB\n");
        let pressure = Pressure {
            memory_some_bp: Some(10_000),
            memory_full_bp: Some(705),
            io_full_bp: Some(3),
            memory_available_bp: Some(2_501),
        };
        assert_eq!(read(proc.path()), Seen { pressure, unknown: Vec::new() });
        // An older kernel has no line `full` for everything.
        write("pressure/io", "some avg10=99.00 avg60=99.00 avg300=99.00 total=1\n");
        let seen = read(proc.path());
        assert_eq!((seen.pressure.io_full_bp, seen.unknown.len()), (None, 1), "{seen:?}");
    }

    #[test]
    fn a_kernel_that_tells_nothing_is_under_no_pressure_that_is_known() {
        let proc = tempfile::tempdir().unwrap();
        let seen = read(proc.path());
        assert_eq!((seen.pressure, seen.unknown.len()), (Pressure::default(), 3));
        assert!(seen.unknown[0].contains("pressure/memory: "), "{seen:?}");
    }

    #[test]
    fn nonsense_is_unknown() {
        let memory = |all: &str, free: &str| available(&format!("MemTotal: {all} kB\nMemAvailable: {free} kB\n"));
        assert_eq!(memory("4", "1"), Some(2_500));
        for (all, free) in [("0", "0"), ("1", "2"), ("x", "1"), ("1", "-1"), ("99999999999999999999", "1")] {
            assert_eq!(memory(all, free), None, "{free} of {all}");
        }
        for text in ["", "1", "1.5", "1.000", "+1.00", "1.+5", "100.01", "99999999999.00", "-1.00", "nan", "1.0 0"] {
            assert_eq!(percent(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_there_is_a_share_or_unknown(text in ".{0,200}", some in 0..=100_000u32) {
            let known = [stalled(&text, "some"), percent(&text), available(&text)];
            prop_assert!(known.into_iter().flatten().all(|share| share <= ALL_BP));
            let line = format!("some avg10={}.{:02} avg60=0.00\n{text}", some / 100, some % 100);
            prop_assert_eq!(stalled(&line, "some"), Some(some).filter(|share| *share <= ALL_BP));
        }
    }
}
