//! Questions of DNS, as programs inside put them to the guest, and short answers to them (RFC 1035, section 4).
//!
//! What always holds: nothing is taken for a name that is none in part, no label for two, and an answer has the question that was
//! put.

use std::net::Ipv4Addr;

/// More than a question of one name takes.
pub const QUESTION_BYTES_MAX: usize = 2_048;
const HEADER: usize = 12;
const NAME_BYTES_MAX: usize = 255;
const KIND_A: u16 = 1;
const CLASS_IN: u16 = 1;
/// Stands for the name of the question.
const POINTER_TO_QUESTION: [u8; 2] = [0xc0, HEADER as u8];

/// A query with one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The name, as it is asked for but for what is not printable.
    pub name: String,
    /// Whether an address of IPv4 is asked for.
    pub is_for_address: bool,
    /// The header and the question as they came.
    bytes: Vec<u8>,
}

/// What a name server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// An address, and how long it may be kept, in seconds.
    Address(Ipv4Addr, u32),
    /// The name exists; nothing of the kind is known of it.
    NoData,
    /// It failed.
    Failed,
    /// It does not say.
    Refused,
}

impl Question {
    /// The question of a query, if it is one with one question.
    pub fn parse(query: &[u8]) -> Option<Self> {
        let is_answer = query.get(2)? & 0x80 != 0;
        if is_answer || query.get(4..6)? != [0, 1] {
            return None;
        }
        let mut name = String::new();
        let mut at = HEADER;
        loop {
            let length = usize::from(*query.get(at)?);
            // Pointers have no place in a question.
            if length > 63 {
                return None;
            }
            at += 1;
            if length == 0 {
                break;
            }
            let label = query.get(at..at + length)?;
            if !name.is_empty() {
                name.push('.');
            }
            // A dot within a label would be taken for one between two.
            let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b'.';
            name.extend(label.iter().map(|&byte| if is_plain(byte) { char::from(byte) } else { '?' }));
            if name.len() > NAME_BYTES_MAX {
                return None;
            }
            at += length;
        }
        let [kind_high, kind_low, class_high, class_low] = *query.get(at..)?.first_chunk()?;
        let (kind, class) = (u16::from_be_bytes([kind_high, kind_low]), u16::from_be_bytes([class_high, class_low]));
        let bytes = query.get(..at + 4)?.to_vec();
        Some(Self { name, is_for_address: (kind, class) == (KIND_A, CLASS_IN), bytes })
    }

    /// The answer: the same id and question, and what there is to say.
    pub fn answer(self, reply: Reply) -> Vec<u8> {
        let (code, answers) = match reply {
            Reply::Address(..) => (0, 1),
            Reply::NoData => (0, 0),
            Reply::Failed => (2, 0),
            Reply::Refused => (5, 0),
        };
        let mut bytes = self.bytes;
        if let Some(head) = bytes.first_chunk_mut::<HEADER>() {
            let (opcode, recursion_desired) = (head[2] & 0x78, head[2] & 0x01);
            head[2] = 0x80 | opcode | recursion_desired;
            // Who answers a question asks others in the client's place.
            head[3] = code | if code == 0 { 0x80 } else { 0 };
            head[6..].fill(0);
            head[7] = answers;
        }
        if let Reply::Address(address, ttl_s) = reply {
            bytes.extend(POINTER_TO_QUESTION);
            bytes.extend(KIND_A.to_be_bytes());
            bytes.extend(CLASS_IN.to_be_bytes());
            bytes.extend(ttl_s.to_be_bytes());
            bytes.extend(4_u16.to_be_bytes());
            bytes.extend(address.octets());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &[u8] =
        b"\x12\x34\x01\x20\0\x01\0\0\0\0\0\x01\x07example\x03com\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0";

    #[test]
    fn answers_have_the_same_question() {
        let question = Question::parse(QUERY).unwrap();
        assert_eq!((question.name.as_str(), question.is_for_address), ("example.com", true));
        let refused = question.clone().answer(Reply::Refused);
        assert_eq!(refused, b"\x12\x34\x81\x05\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01");
        let nothing = question.clone().answer(Reply::NoData);
        assert_eq!(nothing, b"\x12\x34\x81\x80\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01");
        let address = question.answer(Reply::Address(Ipv4Addr::new(198, 18, 0, 1), 30));
        let expected = b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0\x07example\x03com\0\0\x01\0\x01\
            \xc0\x0c\0\x01\0\x01\0\0\0\x1e\0\x04\xc6\x12\0\x01";
        assert_eq!(address, expected);
    }

    #[test]
    fn what_else_is_asked_for_is_no_address() {
        let mut aaaa = QUERY.to_vec();
        aaaa[26] = 28;
        assert!(!Question::parse(&aaaa).unwrap().is_for_address);
        let mut chaos = QUERY.to_vec();
        chaos[28] = 3;
        assert!(!Question::parse(&chaos).unwrap().is_for_address);
    }

    #[test]
    fn a_label_is_not_taken_for_two() {
        let mut query = QUERY.to_vec();
        query[16] = b'.';
        assert_eq!(Question::parse(&query).unwrap().name, "exa?ple.com");
    }

    #[test]
    fn drops_what_is_no_query() {
        for length in 0..29 {
            assert_eq!(Question::parse(&QUERY[..length]), None, "{length} bytes");
        }
        let mut answer = QUERY.to_vec();
        answer[2] |= 0x80;
        assert_eq!(Question::parse(&answer), None);
        let mut pointer = QUERY.to_vec();
        pointer[12] = 0xc0;
        assert_eq!(Question::parse(&pointer), None);
    }
}
