//! Cursors of pages of runs: opaque, checked, and of use only in the org and with the filters for which they were given.
//!
//! A cursor is the id of the last run that was shown and eight bytes of a digest over that id, the org and the filters.
//! It is no secret and grants nothing: every page is read by the org of the caller. The digest catches cursors that were
//! cut, changed, or carried over to another list. It is public for the crate that fuzzes it, and for nobody else.

use base64::Engine as _;
use holm_domain::{ErrorCode, OrgId, RunId};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::problem::Failure;

const VERSION: u8 = 1;
const CHECK_BYTES: usize = 8;
const CURSOR_BYTES: usize = 1 + 16 + CHECK_BYTES;

/// The cursor after `last`, for the list of `org` that `filter` describes.
pub fn encode(org: OrgId, filter: &str, last: RunId) -> String {
    let mut bytes = Vec::with_capacity(CURSOR_BYTES);
    bytes.push(VERSION);
    bytes.extend_from_slice(last.uuid().as_bytes());
    bytes.extend_from_slice(&check(org, filter, last));
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

/// The run after which a cursor that [`encode`] gave goes on.
pub fn decode(org: OrgId, filter: &str, cursor: &str) -> Result<RunId, Failure> {
    let refused = || {
        let detail = "give a `next_cursor` as it came, with the same filters; or begin anew without one";
        Failure::new(ErrorCode::InvalidCursor, detail).at("cursor", cursor)
    };
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(cursor).map_err(|_| refused())?;
    let (id, given) = match bytes.as_slice() {
        [VERSION, rest @ ..] if bytes.len() == CURSOR_BYTES => rest.split_at(16),
        _ => return Err(refused()),
    };
    let last = RunId::from_uuid(Uuid::from_slice(id).map_err(|_| refused())?);
    if check(org, filter, last) == given { Ok(last) } else { Err(refused()) }
}

fn check(org: OrgId, filter: &str, last: RunId) -> [u8; CHECK_BYTES] {
    let digest = Sha256::new()
        .chain_update(b"runs\0")
        .chain_update(org.uuid().as_bytes())
        .chain_update(last.uuid().as_bytes())
        .chain_update(filter.as_bytes())
        .finalize();
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&digest[..CHECK_BYTES]);
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_bound_to_its_list() {
        let id = |n| Uuid::from_u128(n);
        let (org, other, run) = (OrgId::from_uuid(id(1)), OrgId::from_uuid(id(2)), RunId::from_uuid(id(3)));
        let cursor = encode(org, "state=queued", run);
        assert_eq!(decode(org, "state=queued", &cursor).unwrap(), run);
        assert_eq!(decode(other, "state=queued", &cursor).unwrap_err().code(), ErrorCode::InvalidCursor);
        assert_eq!(decode(org, "state=ended", &cursor).unwrap_err().code(), ErrorCode::InvalidCursor);
        for broken in ["", "x", "AAAA", &cursor[1..], &format!("{cursor}A"), "äö"] {
            assert_eq!(decode(org, "state=queued", broken).unwrap_err().code(), ErrorCode::InvalidCursor, "{broken}");
        }
        for index in 0..cursor.len() {
            let mut changed = cursor.clone().into_bytes();
            changed[index] = if changed[index] == b'A' { b'Q' } else { b'A' };
            assert!(decode(org, "state=queued", std::str::from_utf8(&changed).unwrap()).is_err(), "digit {index}");
        }
    }
}
