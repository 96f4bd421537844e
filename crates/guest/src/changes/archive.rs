//! The heads of a tar archive: ustar, with a pax head before it for what does not fit (long names and links, large files,
//! folders that hide what was in them).

use holm_wire::guest_api::{CHANGES_OPAQUE, CHANGES_SOCKET};

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
    /// Another name of a file that came before.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A folder, and whether it hides what was in it.
    Folder {
        /// Whether it does.
        opaque: bool,
    },
    /// A character device with its major and minor number. 0:0 stands for a deletion.
    CharDevice(u32, u32),
    /// A block device with its major and minor number.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl Kind {
    fn flag(self) -> u8 {
        match self {
            Kind::File => b'0',
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::CharDevice(..) => b'3',
            Kind::BlockDevice(..) => b'4',
            Kind::Folder { .. } => b'5',
            Kind::Fifo => b'6',
            Kind::Socket => CHANGES_SOCKET,
        }
    }
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
    if head.kind == (Kind::Folder { opaque: true }) {
        records.extend(record(CHANGES_OPAQUE, b"y"));
    }
    let mut encoded = Vec::new();
    if !records.is_empty() {
        let pax = Head { path: b"pax", kind: Kind::File, link: b"", size: records.len() as u64, mode: 0o644, ..*head };
        encoded.extend(block(&pax, b'x'));
        encoded.extend(&records);
        encoded.resize(encoded.len().next_multiple_of(BLOCK_BYTES), 0);
    }
    encoded.extend(block(head, head.kind.flag()));
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
    if let Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) = head.kind {
        octal(&mut block[329..337], u64::from(major));
        octal(&mut block[337..345], u64::from(minor));
    }
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
    fn kinds_and_numbers_have_their_places() {
        let head = |kind| Head { path: b"p", kind, link: b"", mode: 0o644, uid: 0, gid: 0, size: 0, mtime: 0 };
        let deleted = encode(&head(Kind::CharDevice(0, 0)));
        assert_eq!((deleted[156], &deleted[329..345]), (b'3', &b"0000000\x000000000\0"[..]));
        let device = encode(&head(Kind::BlockDevice(8, 17)));
        assert_eq!((device[156], &device[329..345]), (b'4', &b"0000010\x000000021\0"[..]));
        assert_eq!((encode(&head(Kind::Fifo))[156], encode(&head(Kind::Socket))[156]), (b'6', b'Q'));
        let folder = encode(&head(Kind::Folder { opaque: true }));
        assert_eq!((folder.len(), folder[156], folder[2 * BLOCK_BYTES + 156]), (3 * BLOCK_BYTES, b'x', b'5'));
        assert!(folder[BLOCK_BYTES..].starts_with(b"38 SCHILY.xattr.user.overlay.opaque=y\n"));
        assert_eq!(encode(&head(Kind::Folder { opaque: false })).len(), BLOCK_BYTES);
    }

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
