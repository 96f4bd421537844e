//! What an attempt occupies and what it is for, written before any of it exists.
//!
//! [`Record`] is written before the runtime creates anything (SPEC L6). [`ShimRecord`] is written after the shim was
//! spawned and before it is told what to do: a shim that is in no record got no orders, and ends by itself when its
//! standard input ends. So after a crash the two files, with what the shim left, tell exactly how far an attempt had come.
//!
//! A crash is that of the agent: the files outlive it once they were renamed into place, without being forced to the disk.
//! Nothing that a record names outlives the machine but files, and these lie in the attempt's own folder or are found by
//! their label.
//!
//! It is public for the crate that fuzzes it, and for nobody else.

use std::path::Path;

use holm_domain::{
    BootMicros,
    run::{RunSpec, SandboxInfo},
};
use holm_runtime::{AttemptId, Resources};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    folder::{FolderError, read_own, write_whole},
    shim_process::ShimId,
};

/// The file of a [`Record`] in the attempt's folder.
pub const RECORD_NAME: &str = "journal.json";
/// The file of a [`ShimRecord`] in the attempt's folder.
pub const SHIM_NAME: &str = "shim.json";
const VERSION: u32 = 1;
/// A spec of the largest size fits, with its resources.
const BYTES_MAX: u64 = 8 * 1024 * 1024;

/// An attempt as it was claimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The run and the number of the lease.
    pub(crate) attempt: AttemptId,
    /// The runtime by which it is to be executed.
    pub(crate) runtime: String,
    /// What it is asked to do.
    pub(crate) spec: RunSpec,
    /// The sequence of the first log entry of this attempt.
    pub(crate) first_log_seq: u64,
}

/// The journal of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// The boot under which `deadline` means something.
    pub(crate) boot_id: String,
    /// The attempt.
    pub(crate) claim: Claim,
    /// Until when the lease was held when it was claimed.
    pub(crate) deadline: BootMicros,
    /// Everything that it may occupy.
    pub(crate) resources: Resources,
}

/// The shim of one attempt, and the place that was made for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShimRecord {
    /// Which process it is.
    pub(crate) shim: ShimId,
    /// What is to be reported when the command was started.
    pub(crate) sandbox: SandboxInfo,
}

impl Record {
    /// A record that is not written yet.
    pub(crate) fn new(boot_id: String, claim: Claim, deadline: BootMicros, resources: Resources) -> Self {
        Self { version: VERSION, boot_id, claim, deadline, resources }
    }

    /// Writes it; when this returned, no end of the agent takes it away.
    pub fn write(&self, dir: &Path) -> Result<(), FolderError> {
        write_whole(dir, RECORD_NAME, &to_json(self)?)
    }

    /// Reads the record in the folder of `attempt`; nothing if none was written, an error if it cannot be trusted.
    pub fn read(dir: &Path, attempt: AttemptId) -> Result<Option<Self>, Unreadable> {
        let Some(record) = read::<Self>(dir, RECORD_NAME)? else { return Ok(None) };
        if record.version != VERSION {
            return Err(Unreadable(format!("{RECORD_NAME} has version {}, not {VERSION}", record.version)));
        }
        if record.claim.attempt != attempt || record.resources.attempt != attempt {
            return Err(Unreadable(format!("{RECORD_NAME} is that of another attempt")));
        }
        Ok(Some(record))
    }
}

impl ShimRecord {
    /// Writes it. It need not outlast the machine, as the shim does not either.
    pub fn write(&self, dir: &Path) -> Result<(), FolderError> {
        write_whole(dir, SHIM_NAME, &to_json(self)?)
    }

    /// Reads it; nothing if no shim was told what to do.
    pub fn read(dir: &Path) -> Result<Option<Self>, Unreadable> {
        read(dir, SHIM_NAME)
    }
}

/// Why a journal cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the journal cannot be used: {0}")]
pub struct Unreadable(String);

fn to_json(value: &impl Serialize) -> Result<Vec<u8>, FolderError> {
    let json = serde_json::to_vec_pretty(value).map_err(std::io::Error::other);
    crate::folder::at(Path::new(RECORD_NAME), json)
}

/// Reads a file. One that says anything that the type does not, at any depth, is not one that this version wrote.
fn read<T: Serialize + DeserializeOwned>(dir: &Path, name: &str) -> Result<Option<T>, Unreadable> {
    let unreadable = |problem: &dyn std::fmt::Display| Unreadable(format!("{name}: {problem}"));
    let bytes = read_own(&dir.join(name), BYTES_MAX).map_err(|error| unreadable(&error))?;
    let Some(bytes) = bytes else { return Ok(None) };
    let record: T = serde_json::from_slice(&bytes).map_err(|error| unreadable(&error))?;
    let given: Value = serde_json::from_slice(&bytes).map_err(|error| unreadable(&error))?;
    let read = serde_json::to_value(&record).map_err(|error| unreadable(&error))?;
    if !is_said_by(&given, &read) {
        return Err(unreadable(&"there is something in it that this version does not write"));
    }
    Ok(Some(record))
}

/// Whether everything that stands in `given` stands in `read`. What is left out there has a default.
fn is_said_by(given: &Value, read: &Value) -> bool {
    match (given, read) {
        (Value::Object(given), Value::Object(read)) => {
            given.iter().all(|(key, value)| read.get(key).is_some_and(|read| is_said_by(value, read)))
        }
        (Value::Array(given), Value::Array(read)) => {
            given.len() == read.len() && given.iter().zip(read).all(|(given, read)| is_said_by(given, read))
        }
        _ => given == read,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(fence: u64) -> Record {
        let attempt = AttemptId { run: holm_domain::RunId::from_uuid(uuid::Uuid::from_u128(1)), fence };
        let claim = Claim { attempt, runtime: "fake".to_owned(), spec: RunSpec::new(["true"]), first_log_seq: 1 };
        let resources = Resources {
            runtime: "fake".to_owned(),
            attempt,
            uid_slot: Some(4),
            cgroups: vec!["/sys/fs/cgroup/x".into()],
            mounts: Vec::new(),
            paths: Vec::new(),
        };
        Record::new("boot".to_owned(), claim, BootMicros(9), resources)
    }

    #[test]
    fn written_and_read() {
        let temp = tempfile::tempdir().unwrap();
        let record = record(3);
        assert_eq!(Record::read(temp.path(), record.claim.attempt), Ok(None));
        record.write(temp.path()).unwrap();
        assert_eq!(Record::read(temp.path(), record.claim.attempt), Ok(Some(record.clone())));
        let other = AttemptId { fence: 4, ..record.claim.attempt };
        assert!(Record::read(temp.path(), other).is_err(), "the folder of another attempt");
    }

    #[test]
    fn a_damaged_record_is_an_error_and_never_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let record = record(3);
        record.write(temp.path()).unwrap();
        let path = temp.path().join(RECORD_NAME);
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 1, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(Record::read(temp.path(), record.claim.attempt).is_err(), "cut to {length}");
        }
        let newer = String::from_utf8(whole).unwrap().replace("\"version\": 1", "\"version\": 2");
        std::fs::write(&path, newer).unwrap();
        assert!(Record::read(temp.path(), record.claim.attempt).is_err(), "another version");
    }

    #[test]
    fn what_stands_in_a_record_and_means_nothing_is_not_passed_over() {
        let temp = tempfile::tempdir().unwrap();
        let record = record(3);
        record.write(temp.path()).unwrap();
        let path = temp.path().join(RECORD_NAME);
        let good: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let read = |value: &Value| {
            std::fs::write(&path, value.to_string()).unwrap();
            Record::read(temp.path(), record.claim.attempt)
        };
        for place in ["/resources", "/resources/attempt", "/claim/attempt", "/claim/spec/root", "/claim/spec/limits"] {
            let mut more = good.clone();
            more.pointer_mut(place).unwrap()["devices"] = Value::from(["/dev/kvm"]);
            assert!(read(&more).is_err(), "{place}");
        }
        let mut positional = good.clone();
        let attempt = good["claim"]["attempt"].clone();
        positional["claim"]["attempt"] = Value::from([attempt["run"].clone(), attempt["fence"].clone()]);
        assert!(read(&positional).is_err(), "a form that is never written");
        let mut older = good.clone();
        older["claim"]["spec"].as_object_mut().unwrap().remove("labels");
        assert_eq!(read(&older), Ok(Some(record.clone())), "what has a default may be missing");
    }
}
