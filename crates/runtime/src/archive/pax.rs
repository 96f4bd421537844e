//! The records of pax headers: `LENGTH KEY=VALUE\n`, where the length counts the whole record.
//!
//! They are taken apart by their lengths and not by line feeds, which values may have in them.

/// A key and its value.
pub type Record<'a> = (&'a [u8], &'a [u8]);

/// Keys that say what an entry is.
const DECISIVE: &[&[u8]] = &[b"path", b"linkpath", b"size", b"uid", b"gid"];
/// Keys of extended attributes and access control lists, as those begin that GNU tar, star and libarchive write.
const ATTRIBUTES: &[&[u8]] = &[b"SCHILY.xattr.", b"SCHILY.acl.", b"LIBARCHIVE.xattr.", b"RHT.security."];
const SPARSE: &[u8] = b"GNU.sparse.";

/// The records of a pax header.
pub fn records(body: &[u8]) -> Result<Vec<Record<'_>>, String> {
    let mut records = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        let (record, after) = cut(rest).ok_or("has malformed pax records")?;
        if DECISIVE.contains(&record.0) && records.iter().any(|(key, _)| *key == record.0) {
            return Err(format!("has the pax record `{}` twice", super::shown(record.0)));
        }
        records.push(record);
        rest = after;
    }
    Ok(records)
}

fn cut(bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space])?).ok()?;
    let (record, after) = bytes.split_at_checked(length)?;
    let pair = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|byte| *byte == b'=')?;
    (equals > 0).then(|| ((&pair[..equals], &pair[equals + 1..]), after))
}

/// Digits and nothing else.
pub fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The value under a key; an empty one means that there is none (POSIX.1-2017, pax, "pax Extended Header").
pub fn value<'a>(records: &[Record<'a>], key: &str) -> Option<&'a [u8]> {
    records.iter().find(|(known, value)| *known == key.as_bytes() && !value.is_empty()).map(|(_, value)| *value)
}

/// The number under a key.
pub fn number(records: &[Record<'_>], key: &str) -> Result<Option<u64>, String> {
    let Some(text) = value(records, key) else { return Ok(None) };
    let number = decimal(text).ok_or_else(|| format!("has the {key} `{}`, which is no number", super::shown(text)))?;
    Ok(Some(number))
}

/// Refuses what is described by a form of sparse files that is not read.
pub fn check_sparse(records: &[Record<'_>]) -> Result<(), String> {
    match records.iter().any(|(key, _)| key.starts_with(SPARSE)) {
        true => Err("is sparse in a form that is not read; pack without --sparse, or with --format=gnu".to_owned()),
        false => Ok(()),
    }
}

/// Refuses records for all that follows that would change what it is.
pub fn check_global(records: &[Record<'_>]) -> Result<(), String> {
    check_sparse(records)?;
    match records.iter().find(|(key, _)| DECISIVE.contains(key)) {
        Some((key, _)) => Err(format!("sets `{}` for all entries that follow, which is not taken", super::shown(key))),
        None => Ok(()),
    }
}

/// Extended attributes and access control lists.
pub fn attributes(records: &[Record<'_>]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let is_attribute = |key: &[u8]| ATTRIBUTES.iter().any(|prefix| key.starts_with(prefix));
    let found = records.iter().filter(|(key, _)| is_attribute(key));
    found.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}
