//! The agent's journal of an attempt, and the record of its shim.
//!
//! The first byte says which file the rest is. What must hold: what was read says everything that stands in the file, and
//! comes back when it is written; a file of another attempt is refused; a file that is there is never taken for none.

use holm_agent::journal::{RECORD_NAME, Record, SHIM_NAME, ShimRecord};
use holm_domain::{RunId, run::RunSpec};
use holm_runtime::AttemptId;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{input::Input, json::left_out, place};

fn attempt() -> AttemptId {
    AttemptId { run: RunId::from_uuid(Uuid::from_u128(1)), fence: 3 }
}

/// Seeds: records as the agent writes them.
pub fn seeds() -> Vec<Vec<u8>> {
    let spec = json!({
        "root": {"kind": "dir", "path": "/srv/image"}, "argv": ["make", "test"], "env": {"A": "b"}, "user": "1:1",
        "work_dir": {"source": "/home", "keep_changes": true},
        "mounts": [{"source": "/a", "target": "/b", "read_only": true}], "labels": {"job": "nightly"},
    });
    let records = [serde_json::to_value(RunSpec::new(["true"])).expect("JSON"), spec].map(|spec| {
        let resources = json!({
            "runtime": "process", "attempt": attempt(), "uid_slot": 4, "cgroups": ["/sys/fs/cgroup/x"],
            "mounts": ["/run/holm/x"], "paths": [],
        });
        let claim = json!({"attempt": attempt(), "runtime": "process", "spec": spec, "first_log_seq": 1});
        json!({"version": 1, "boot_id": "boot", "claim": claim, "deadline": 9, "resources": resources})
    });
    let sandbox = json!({
        "agent": "agt_00000000000000000000000007", "runtime": "process", "image_digest": "sha256:1",
        "unenforced": ["limits.memory: no cgroup"],
    });
    let shim = json!({"shim": {"pid": 12, "started_ticks": 4711}, "sandbox": sandbox});
    let written = |what: u8, value: &Value| {
        let text = serde_json::to_vec_pretty(value).expect("JSON");
        [&[what][..], &text].concat()
    };
    let mut seeds: Vec<_> = records.iter().map(|record| written(0, record)).collect();
    seeds.push(written(1, &shim));
    seeds.iter().for_each(|seed| assert!(is_taken(seed), "{}", String::from_utf8_lossy(seed)));
    seeds
}

/// Has the agent read the file.
pub fn check(data: &[u8]) {
    is_taken(data);
}

fn is_taken(data: &[u8]) -> bool {
    let mut input = Input::new(data);
    let is_shim = input.byte() & 1 != 0;
    let bytes = input.rest();
    place::with(|dir| {
        let name = if is_shim { SHIM_NAME } else { RECORD_NAME };
        std::fs::write(dir.join(name), bytes).expect("a file");
        if is_shim {
            let read = ShimRecord::read(dir).map(|read| read.expect("the file is there"));
            let Ok(record) = read else { return false };
            says_all(bytes, &serde_json::to_value(&record).expect("JSON"));
            record.write(dir).expect("a file");
            assert_eq!(ShimRecord::read(dir), Ok(Some(record)));
        } else {
            let read = Record::read(dir, attempt()).map(|read| read.expect("the file is there"));
            let Ok(record) = read else { return false };
            says_all(bytes, &serde_json::to_value(&record).expect("JSON"));
            record.write(dir).expect("a file");
            assert_eq!(Record::read(dir, attempt()), Ok(Some(record)));
            let other = AttemptId { fence: 4, ..attempt() };
            assert!(Record::read(dir, other).is_err(), "the folder of another attempt");
        }
        true
    })
}

fn says_all(bytes: &[u8], read: &Value) {
    let given: Value = serde_json::from_slice(bytes).expect("what was read is JSON");
    assert_eq!(left_out(&given, read), None, "what stands in the file was not believed as it stands");
}
