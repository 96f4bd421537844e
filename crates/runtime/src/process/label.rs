//! The names by which everything that is made for an attempt is found again.

use std::{ffi::CStr, fmt, str::FromStr};

use crate::AttemptId;

const PREFIX: &str = "holm";
const LABEL_BYTES_MAX: usize = 32;
/// The verb of `holm` after which the label of an attempt stands, and after that the ids that a shim takes, if any.
pub const LABELLED_VERB: &[u8] = b"shim";
/// The one argument of the guest: what is inside can read it, as its init is a copy of the guest.
pub const GUEST_NAME: &CStr = c"holm-guest";
/// The one variable in the guest's environment, with the label of the attempt: nobody inside may read it.
pub const GUEST_LABEL: &str = "HOLM_LABEL";

/// Tells what belongs to one agent from what belongs to other agents of the same host: 1 to 32 of `a-z0-9`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label(String);

/// A text that is no label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a label: give 1 to {LABEL_BYTES_MAX} characters of a-z0-9")]
pub struct InvalidLabel(String);

impl FromStr for Label {
    type Err = InvalidLabel;

    fn from_str(text: &str) -> Result<Self, InvalidLabel> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if text.is_empty() || text.len() > LABEL_BYTES_MAX || !text.bytes().all(allowed) {
            return Err(InvalidLabel(text.chars().take(64).collect()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl Label {
    /// The name of what belongs to an attempt: control groups and its processes bear it.
    pub fn of(&self, attempt: AttemptId) -> String {
        format!("{self}.{}.{}", attempt.run, attempt.fence)
    }

    /// The attempt that a name of this agent stands for; nothing for any other name.
    pub fn attempt(&self, name: &str) -> Option<AttemptId> {
        let rest = name.strip_prefix(&self.to_string())?.strip_prefix('.')?;
        let (run, fence) = rest.split_once('.')?;
        let attempt = AttemptId { run: run.parse().ok()?, fence: fence.parse().ok()? };
        // Only the one spelling: `+1` and `01` also parse as numbers.
        (self.of(attempt) == name).then_some(attempt)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_attempt_and_no_other_name_does() {
        let label: Label = "a1".parse().unwrap();
        let run: holm_domain::RunId = "run_01j9zzzzzzzzzzzzzzzzzzzzzz".parse().unwrap();
        let attempt = AttemptId { run, fence: 7 };
        let name = label.of(attempt);
        assert_eq!(name, format!("holm.a1.{run}.7"));
        assert_eq!(label.attempt(&name), Some(attempt));
        let other: Label = "a".parse().unwrap();
        assert_eq!(other.attempt(&name), None);
        for wrong in [format!("holm.a1.{run}.07"), format!("holm.a1.{run}.+7"), format!("holm.a1.{run}"), "x".into()] {
            assert_eq!(label.attempt(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn labels_are_checked() {
        for wrong in ["", "A", "a.b", "a/b", &"a".repeat(33)] {
            assert!(wrong.parse::<Label>().is_err(), "{wrong}");
        }
    }
}
