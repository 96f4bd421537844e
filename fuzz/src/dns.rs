//! Questions that programs inside put to the guest's name server.
//!
//! What must hold: an answer has the number and the question of the query, and nothing else of it; a name has as many labels as the
//! question, and each is fit for people.

use std::net::Ipv4Addr;

use holm_wire::dns::{Question, Reply};

const HEADER: usize = 12;

/// Seeds: questions for an address, for another kind, with more behind them.
pub fn seeds() -> Vec<Vec<u8>> {
    let head = b"\x12\x34\x01\x20\0\x01\0\0\0\0\0\x01";
    let name = b"\x07example\x03com\0";
    let rest: [&[u8]; 3] = [b"\0\x01\0\x01", b"\0\x1c\0\x01", b"\0\x01\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0"];
    rest.map(|rest| [&head[..], name, rest].concat()).into()
}

/// Reads it.
pub fn check(query: &[u8]) {
    let Some(question) = Question::parse(query) else { return };
    let labels = labels(query);
    let told: Vec<&str> = question.name.split('.').filter(|label| !label.is_empty()).collect();
    assert_eq!(told.len(), labels.len(), "{question:?}");
    for (told, asked) in told.iter().zip(&labels) {
        assert_eq!(told.len(), asked.len());
        assert!(told.bytes().all(|byte| byte.is_ascii_graphic()));
    }
    let length = HEADER + labels.iter().map(|label| label.len() + 1).sum::<usize>() + 1 + 4;
    for reply in [Reply::Refused, Reply::Failed, Reply::NoData, Reply::Address(Ipv4Addr::new(198, 18, 0, 1), 30)] {
        let answer = question.clone().answer(reply);
        assert_eq!(answer[..2], query[..2], "its number");
        assert!(answer[2] & 0x80 != 0, "it is an answer");
        assert_eq!(answer[HEADER..length], query[HEADER..length], "its question");
        let is_address = matches!(reply, Reply::Address(..));
        assert_eq!(answer.len(), length + if is_address { 16 } else { 0 });
        assert_eq!(answer[6..HEADER], [0, u8::from(is_address), 0, 0, 0, 0]);
    }
}

fn labels(query: &[u8]) -> Vec<&[u8]> {
    let (mut labels, mut rest) = (Vec::new(), &query[HEADER..]);
    while let Some((&length, after)) = rest.split_first().filter(|(length, _)| **length > 0) {
        let (label, after) = after.split_at(usize::from(length));
        labels.push(label);
        rest = after;
    }
    labels
}
