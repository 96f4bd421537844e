//! What a run used, as the kernel of its host counted it.
//!
//! A value that a host does not count is absent, never 0. Nothing here comes from inside the sandbox.

use serde::{Deserialize, Serialize};

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
    fn the_first_source_wins() {
        let first = Usage { pids_peak: Some(3), ..Usage::default() };
        let second = Usage { pids_peak: Some(9), cpu_user_us: Some(1), ..Usage::default() };
        assert_eq!(first.or(second), Usage { pids_peak: Some(3), cpu_user_us: Some(1), ..Usage::default() });
    }
}
