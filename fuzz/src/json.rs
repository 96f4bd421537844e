//! Whether what was read says everything that was given.

use serde_json::Value;

/// The first thing that stands in `given` and not, at the same place, in `read`: what a reader ignored or changed.
pub(crate) fn left_out(given: &Value, read: &Value) -> Option<String> {
    match (given, read) {
        (Value::Object(given), Value::Object(read)) => given.iter().find_map(|(key, value)| match read.get(key) {
            Some(read) => left_out(value, read).map(|rest| format!(".{key}{rest}")),
            None => Some(format!(".{key}")),
        }),
        (Value::Array(given), Value::Array(read)) if given.len() == read.len() => {
            let mut pairs = given.iter().zip(read).enumerate();
            pairs.find_map(|(index, (given, read))| left_out(given, read).map(|rest| format!("[{index}]{rest}")))
        }
        _ => (given != read).then(|| format!(": {given} became {read}")),
    }
}

/// The first key of an object in `given` that the object at the same place in `read` does not have.
pub(crate) fn unknown(given: &Value, read: &Value) -> Option<String> {
    match (given, read) {
        (Value::Object(given), Value::Object(read)) => given.iter().find_map(|(key, value)| match read.get(key) {
            Some(read) => unknown(value, read).map(|rest| format!(".{key}{rest}")),
            None => Some(format!(".{key}")),
        }),
        (Value::Array(given), Value::Array(read)) => {
            let mut pairs = given.iter().zip(read).enumerate();
            pairs.find_map(|(index, (given, read))| unknown(given, read).map(|rest| format!("[{index}]{rest}")))
        }
        _ => None,
    }
}
