//! What a run used, and what it uses now, as the kernel of its host counted it.
//!
//! A value that a host does not count is absent, never 0. Nothing here comes from inside the sandbox.

use serde::{Deserialize, Serialize};

use crate::UnixMicros;

/// What one sandbox used until everything in it had died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Processor time in programs, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_user_us: Option<u64>,
    /// Processor time in the kernel, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_system_us: Option<u64>,
    /// The most memory at one instant, written files included, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
    /// The most processes and threads at one instant, those few of the sandbox itself included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_peak: Option<u64>,
    /// What was read from block devices, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_read_bytes: Option<u64>,
    /// What was written to block devices, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_write_bytes: Option<u64>,
    /// The output of the command that was kept, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_bytes: Option<u64>,
}

impl Usage {
    /// What is known of it, and what `other` knows where this knows nothing.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            cpu_user_us: self.cpu_user_us.or(other.cpu_user_us),
            cpu_system_us: self.cpu_system_us.or(other.cpu_system_us),
            memory_peak_bytes: self.memory_peak_bytes.or(other.memory_peak_bytes),
            pids_peak: self.pids_peak.or(other.pids_peak),
            io_read_bytes: self.io_read_bytes.or(other.io_read_bytes),
            io_write_bytes: self.io_write_bytes.or(other.io_write_bytes),
            log_bytes: self.log_bytes.or(other.log_bytes),
        }
    }
}

/// What one sandbox uses while it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LiveUsage {
    /// Processor time since its beginning, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_us: Option<u64>,
    /// Thousandths of a processor, on average since the measurement before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus_milli: Option<u64>,
    /// Memory, written files included, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The most of it at one instant so far, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
    /// Processes and threads, those few of the sandbox itself included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
}

impl LiveUsage {
    /// Itself, if anything of it is known.
    pub fn known(self) -> Option<Self> {
        (self != Self::default()).then_some(self)
    }
}

/// What a sandbox used at an instant of its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Measured {
    /// When the server heard of it.
    pub at: UnixMicros,
    /// What it was.
    #[serde(flatten)]
    pub usage: LiveUsage,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_absent_and_what_is_nothing_is_zero() {
        let usage = Usage { log_bytes: Some(0), pids_peak: Some(3), ..Usage::default() };
        let text = serde_json::to_string(&usage).unwrap();
        assert_eq!(text, r#"{"pids_peak":3,"log_bytes":0}"#);
        assert_eq!(serde_json::from_str::<Usage>(&text).unwrap(), usage);
        assert_eq!(serde_json::from_str::<Usage>("{}").unwrap(), Usage::default());
    }

    #[test]
    fn what_is_measured_is_one_flat_object() {
        let usage = LiveUsage { memory_bytes: Some(5), ..LiveUsage::default() };
        let measured = Measured { at: UnixMicros(9), usage };
        let text = serde_json::to_string(&measured).unwrap();
        assert_eq!(text, r#"{"at":9,"memory_bytes":5}"#);
        assert_eq!(serde_json::from_str::<Measured>(&text).unwrap(), measured);
        assert_eq!((usage.known(), LiveUsage::default().known()), (Some(usage), None));
    }

    #[test]
    fn the_first_source_wins() {
        let first = Usage { pids_peak: Some(3), ..Usage::default() };
        let second = Usage { pids_peak: Some(9), cpu_user_us: Some(1), ..Usage::default() };
        assert_eq!(first.or(second), Usage { pids_peak: Some(3), cpu_user_us: Some(1), ..Usage::default() });
    }
}
