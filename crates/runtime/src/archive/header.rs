//! Heads of entries, and what describes them from before: long names and pax records.

use std::borrow::Cow;

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::{BLOCK_BYTES, Entry, Kind, Limits, Name, Problem, name, pax};

/// A part of a sparse file that is no hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub length: u64,
}

/// A head whose checksum is right.
pub struct Block(Header);

impl Block {
    pub fn new(bytes: &[u8; BLOCK_BYTES]) -> Result<Self, Problem> {
        let header = Header::from_byte_slice(bytes).clone();
        let said = number(&header.as_old().cksum).ok_or(Problem::Damaged("a checksum is no number"))?;
        // The field itself counts as spaces.
        let sum = bytes[..148].iter().chain(&bytes[156..]).map(|byte| u64::from(*byte)).sum::<u64>() + 8 * 32;
        if said == sum { Ok(Self(header)) } else { Err(Problem::Damaged("a checksum is wrong")) }
    }

    /// The type flag; a regular file's is always `0`.
    pub fn flag(&self) -> u8 {
        match self.0.as_old().linkflag[0] {
            0 | b'7' => b'0',
            flag => flag,
        }
    }

    pub fn path(&self) -> Cow<'_, [u8]> {
        self.0.path_bytes()
    }

    pub fn size(&self) -> Result<u64, Problem> {
        self.number(&self.0.as_old().size, "size")
    }

    fn number(&self, field: &[u8], what: &str) -> Result<u64, Problem> {
        number(field).ok_or_else(|| {
            Problem::of(
                &self.path(),
                format!("has the {what} `{}`, which is no number from 0 to 2^63 - 1", field.escape_ascii()),
            )
        })
    }

    fn gnu(&self) -> Result<&tar::GnuHeader, Problem> {
        self.0.as_gnu().ok_or_else(|| Problem::of(&self.path(), "is sparse without being of the GNU format"))
    }

    pub fn real_size(&self) -> Result<u64, Problem> {
        self.number(&self.gnu()?.realsize, "size")
    }

    pub fn is_extended(&self) -> Result<bool, Problem> {
        Ok(self.gnu()?.isextended[0] != 0)
    }

    pub fn segments(&self) -> Result<Vec<Segment>, Problem> {
        let mut segments = Vec::new();
        add(&self.gnu()?.sparse, &mut segments).map_err(|problem| Problem::of(&self.path(), problem))?;
        Ok(segments)
    }

    fn device(&self) -> Result<(u64, u64), Problem> {
        let (major, minor) = match (self.0.as_gnu(), self.0.as_ustar()) {
            (Some(gnu), _) => (&gnu.dev_major, &gnu.dev_minor),
            (None, Some(ustar)) => (&ustar.dev_major, &ustar.dev_minor),
            (None, None) => return Err(Problem::of(&self.path(), "is a device without numbers")),
        };
        Ok((self.number(major, "device")?, self.number(minor, "device")?))
    }
}

/// A number in a head: octal digits between spaces and NULs, or the GNU form with the highest bit set.
fn number(field: &[u8]) -> Option<u64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // The next bit is the sign.
        let (high, low) = field.split_at_checked(field.len().checked_sub(8)?)?;
        let mut low: [u8; 8] = low.try_into().ok()?;
        match high.split_first() {
            Some((_, rest)) if first != 0x80 || rest.iter().any(|byte| *byte != 0) => return None,
            Some(_) => {}
            // The field has eight bytes, the first of which is the mark.
            None if first & 0x40 != 0 => return None,
            None => low[0] &= 0x7f,
        }
        return Some(u64::from_be_bytes(low)).filter(|number| i64::try_from(*number).is_ok());
    }
    let text = field.split(|byte| *byte == 0).next()?.trim_ascii();
    text.iter().try_fold(0u64, |number, digit| match digit {
        b'0'..=b'7' => number.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn add(fields: &[GnuSparseHeader], segments: &mut Vec<Segment>) -> Result<(), String> {
    for field in fields.iter().filter(|field| field.offset[0] != 0 && field.numbytes[0] != 0) {
        let parse = |field| number(field).ok_or("has a map of its holes that is not made of numbers");
        segments.push(Segment { offset: parse(&field.offset)?, length: parse(&field.numbytes)? });
    }
    Ok(())
}

/// The parts that a block after the head names; whether one more follows.
pub fn more_segments(block: &[u8; BLOCK_BYTES], segments: &mut Vec<Segment>) -> Result<bool, String> {
    let mut more = GnuExtSparseHeader::new();
    more.as_mut_bytes().copy_from_slice(block);
    add(more.sparse(), segments)?;
    Ok(more.is_extended())
}

/// Parts come in order, overlap nowhere, end with the file, and are the data that there is.
pub fn check_segments(segments: &[Segment], size: u64, real_size: u64) -> Result<(), String> {
    let (mut at, mut data) = (0u64, 0u64);
    for Segment { offset, length } in segments {
        if *offset < at {
            return Err("has a map of its holes with parts that overlap".to_owned());
        }
        // Writers fill every part up to a block; where one is not filled by itself, the next one's place is uncertain.
        if *length > 0 && data % BLOCK_BYTES as u64 != 0 {
            return Err("has a map of its holes with parts that are no blocks".to_owned());
        }
        at = offset.checked_add(*length).ok_or("has a map of its holes that goes beyond all numbers")?;
        data = data.checked_add(*length).ok_or("has a map of its holes that goes beyond all numbers")?;
    }
    if at > real_size || data != size {
        return Err("has a map of its holes that does not fit its size".to_owned());
    }
    Ok(())
}

/// What pieces before a head say about its entry.
#[derive(Default)]
pub struct Description {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Option<Vec<u8>>,
}

impl Description {
    pub fn is_empty(&self) -> bool {
        self.path.is_none() && self.link.is_none() && self.records.is_none()
    }

    /// Takes one piece; each kind may come once.
    pub fn take(&mut self, block: &Block, mut body: Vec<u8>) -> Result<(), Problem> {
        let place = match block.flag() {
            b'L' => &mut self.path,
            b'K' => &mut self.link,
            _ => &mut self.records,
        };
        if block.flag() != b'x' && body.last() == Some(&0) {
            body.pop();
        }
        match place.replace(body) {
            None => Ok(()),
            Some(_) => Err(Problem::of(&block.path(), "is described twice")),
        }
    }

    /// What the records say the size is.
    pub fn size(&self) -> Result<Option<u64>, Problem> {
        self.number("size")
    }

    fn number(&self, key: &str) -> Result<Option<u64>, Problem> {
        self.read(|records| pax::number(records, key))
    }

    fn read<T>(&self, read: impl FnOnce(&[pax::Record<'_>]) -> Result<T, String>) -> Result<T, Problem> {
        let body = self.records.as_deref().unwrap_or_default();
        let path = self.path.as_deref().unwrap_or(b"pax header");
        pax::records(body).and_then(|records| read(&records)).map_err(|problem| Problem::of(path, problem))
    }

    /// What was said before wins over what the head says: it is there because the head has no room for it.
    pub fn entry(
        self,
        block: &Block,
        size: u64,
        segments: Option<Vec<Segment>>,
        limits: &Limits,
    ) -> Result<Entry, Problem> {
        let (recorded_path, recorded_link, attributes) = self.read(|records| {
            pax::check_sparse(records)?;
            let owned = |key| pax::value(records, key).map(<[u8]>::to_vec);
            Ok((owned("path"), owned("linkpath"), pax::attributes(records)))
        })?;
        let (uid, gid) = (self.number("uid")?, self.number("gid")?);
        let path = one(self.path, recorded_path, "paths")?.unwrap_or_else(|| block.path().into_owned());
        let name = Name::parse(&path, limits).map_err(|problem| Problem::of(&path, problem))?;
        let link = one(self.link, recorded_link, "targets")?;
        let link = link.or_else(|| block.0.link_name_bytes().map(Cow::into_owned)).unwrap_or_default();
        let kind = kind(block, &path, size, link, limits)?;
        let old = block.0.as_old();
        let mode = (block.number(&old.mode, "mode")? & 0o7777) as u32;
        let or_said = |said: Option<u64>, field: &[u8], what| said.map_or_else(|| block.number(field, what), Ok);
        let (uid, gid) = (or_said(uid, &old.uid, "owner")?, or_said(gid, &old.gid, "group")?);
        let size = if kind == Kind::File { size } else { 0 };
        Ok(Entry { name, kind, mode, uid, gid, size, attributes, segments })
    }
}

/// What two forms of description say, if they do not contradict each other.
fn one(long: Option<Vec<u8>>, recorded: Option<Vec<u8>>, what: &str) -> Result<Option<Vec<u8>>, Problem> {
    match (long, recorded) {
        (Some(long), Some(recorded)) if long != recorded => Err(Problem::of(&long, format!("has two {what}"))),
        (long, recorded) => Ok(long.or(recorded)),
    }
}

fn kind(block: &Block, path: &[u8], size: u64, link: Vec<u8>, limits: &Limits) -> Result<Kind, Problem> {
    let problem = |problem: String| Problem::of(path, problem);
    let target = |link: Vec<u8>| match link.is_empty() {
        true => Err(problem("is a link to nothing".to_owned())),
        false => name::check(&link, limits).map(|()| link).map_err(|text| problem(format!("is a link that {text}"))),
    };
    // Some writers say the size of what is linked to, without its data: what follows would be uncertain.
    if matches!(block.flag(), b'1' | b'2') && size != 0 {
        return Err(problem(format!("is a link that says it has {size} bytes")));
    }
    Ok(match block.flag() {
        // Archives from before POSIX have no folders, but slashes.
        b'0' if path.ends_with(b"/") && size == 0 => Kind::Folder,
        b'0' | b'S' => Kind::File,
        b'5' => Kind::Folder,
        b'2' => Kind::Symlink(target(link)?),
        b'1' => {
            let target = target(link)?;
            Kind::HardLink(Name::parse(&target, limits).map_err(|text| problem(format!("is a link that {text}")))?)
        }
        b'6' => Kind::Fifo,
        b'3' => {
            let (major, minor) = block.device()?;
            Kind::CharDevice(major, minor)
        }
        b'4' => Kind::BlockDevice,
        // The name of the volume.
        b'V' => Kind::Remark,
        other => Kind::Other(other),
    })
}
