//! The heads of a tar archive: ustar, with a pax head before it for what does not fit (long names and links, large files).

/// The unit of a tar archive.
pub const BLOCK_BYTES: usize = 512;
/// What ends an archive.
pub const END: [u8; 2 * BLOCK_BYTES] = [0; 2 * BLOCK_BYTES];

const NAME_BYTES_MAX: usize = 100;
/// Eleven octal digits.
const OCTAL_MAX: u64 = 0o777_7777_7777;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A folder.
    Folder,
}

/// The head of an entry.
#[derive(Debug, Clone)]
pub struct Head<'a> {
    /// Relative to the work dir.
    pub path: &'a [u8],
    /// What it is.
    pub kind: Kind,
    /// Where a link leads.
    pub link: &'a [u8],
    /// Permission bits.
    pub mode: u32,
    /// The owner inside.
    pub uid: u32,
    /// The group inside.
    pub gid: u32,
    /// The bytes that follow.
    pub size: u64,
    /// Seconds since the Unix epoch.
    pub mtime: i64,
}

/// Encodes a head, with a pax head before it if it needs one.
pub fn encode(head: &Head<'_>) -> Vec<u8> {
    let mut records = Vec::new();
    if head.path.len() > NAME_BYTES_MAX {
        records.extend(record("path", head.path));
    }
    if head.link.len() > NAME_BYTES_MAX {
        records.extend(record("linkpath", head.link));
    }
    if head.size > OCTAL_MAX {
        records.extend(record("size", head.size.to_string().as_bytes()));
    }
    let mut encoded = Vec::new();
    if !records.is_empty() {
        let pax = Head { path: b"pax", kind: Kind::File, link: b"", size: records.len() as u64, mode: 0o644, ..*head };
        encoded.extend(block(&pax, b'x'));
        encoded.extend(&records);
        encoded.resize(encoded.len().next_multiple_of(BLOCK_BYTES), 0);
    }
    let flag = match head.kind {
        Kind::File => b'0',
        Kind::Symlink => b'2',
        Kind::Folder => b'5',
    };
    encoded.extend(block(head, flag));
    encoded
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    let mut record = format!("{length} {key}=").into_bytes();
    record.extend(value);
    record.push(b'\n');
    record
}

fn block(head: &Head<'_>, flag: u8) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    put(&mut block[..100], head.path);
    octal(&mut block[100..108], u64::from(head.mode));
    octal(&mut block[108..116], u64::from(head.uid));
    octal(&mut block[116..124], u64::from(head.gid));
    octal(&mut block[124..136], head.size.min(OCTAL_MAX));
    octal(&mut block[136..148], u64::try_from(head.mtime).unwrap_or(0).min(OCTAL_MAX));
    block[148..156].fill(b' ');
    block[156] = flag;
    put(&mut block[157..257], head.link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    octal(&mut block[148..155], u64::from(sum));
    block
}

fn put(field: &mut [u8], value: &[u8]) {
    let count = value.len().min(field.len());
    field[..count].copy_from_slice(&value[..count]);
}

/// Digits and a NUL.
fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let text = format!("{value:0digits$o}");
    put(&mut field[..digits], &text.as_bytes()[text.len() - digits..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_itself() {
        assert_eq!(record("path", b"a"), b"9 path=a\n");
        for length in [1, 88, 89, 90, 91, 92, 987, 988, 989, 990, 9999] {
            let record = record("path", &vec![b'x'; length]);
            let said: usize = std::str::from_utf8(&record).unwrap().split(' ').next().unwrap().parse().unwrap();
            assert_eq!(said, record.len());
        }
    }
}
