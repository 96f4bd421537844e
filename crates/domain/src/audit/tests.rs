//! No change of a log goes unseen; which of them only a head tells that was kept.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn org(number: u128) -> OrgId {
    OrgId::from_uuid(Uuid::from_u128(number))
}

fn entry() -> impl Strategy<Value = Entry> {
    let details = prop::collection::btree_map("[a-z]{0,3}", ".{0,4}", 0..4);
    let actor = prop_oneof![
        Just(Actor::Server),
        any::<u128>().prop_map(|n| Actor::Token(TokenId::from_uuid(Uuid::from_u128(n)))),
        any::<u128>().prop_map(|n| Actor::Agent(AgentId::from_uuid(Uuid::from_u128(n)))),
    ];
    let action = prop::sample::select(Action::ALL.to_vec());
    (any::<i64>(), actor, action, ".{0,4}", details).prop_map(|(at, actor, action, subject, details)| {
        let entry = Entry::new(org(1), UnixMicros(at), actor, action, subject);
        details.iter().fold(entry, |entry, (name, value)| entry.with(name, value))
    })
}

fn chain(entries: &[Entry]) -> Vec<Record> {
    let mut head = Head::default();
    let next = |entry: &Entry| {
        let record = entry.after(head);
        head = record.head();
        record
    };
    entries.iter().map(next).collect()
}

fn log() -> impl Strategy<Value = Vec<Record>> {
    prop::collection::vec(entry(), 1..8).prop_map(|entries| chain(&entries))
}

/// What somebody finds who has kept a head.
fn check(records: &[Record], kept: Head) -> Result<Head, Wrong> {
    let end = verify(org(1), records, Head::default())?;
    kept.stands_in(records)?;
    kept.is_reached_by(end)?;
    Ok(end)
}

/// Writes all digests anew, as somebody does who can write everything.
fn rewritten(mut records: Vec<Record>) -> Vec<Record> {
    let mut head = Head::default();
    for record in &mut records {
        (record.seq, record.previous) = (head.seq + 1, head.digest);
        record.digest = record.digest_anew();
        head = record.head();
    }
    records
}

/// Changes one part of a record, whatever it is.
fn change(record: &mut Record, part: u8) {
    match part {
        0 => record.org = org(2),
        1 => record.seq = record.seq.wrapping_add(1),
        2 => record.at.0 = record.at.0.wrapping_add(1),
        3 => record.actor.push('x'),
        4 => record.action.push('x'),
        5 => record.subject.push('x'),
        6 => drop(record.details.insert("another".to_owned(), String::new())),
        7 => record.previous.0[31] ^= 1,
        8 => record.digest.0[0] ^= 0x80,
        // What two parts say together stays the same.
        _ => {
            record.action.extend(record.subject.pop());
            record.subject.push('x');
        }
    }
}

proptest! {
    #[test]
    fn what_was_written_is_verified_as_a_whole_and_page_by_page(records in log(), cut in any::<prop::sample::Index>()) {
        let head = records.last().unwrap().head();
        prop_assert_eq!(check(&records, head), Ok(head));
        let (first, second) = records.split_at(cut.index(records.len()));
        let between = verify(org(1), first, Head::default()).unwrap();
        prop_assert_eq!(verify(org(1), second, between), Ok(head));
        prop_assert_eq!(check(&records, between), Ok(head));
        prop_assert_eq!(head.to_string().parse(), Ok(head));
    }

    #[test]
    fn a_change_is_found_at_the_record(records in log(), at in any::<prop::sample::Index>(), part in 0u8..10) {
        let (at, head) = (at.index(records.len()), records.last().unwrap().head());
        let mut changed = records;
        change(&mut changed[at], part);
        prop_assert_eq!(check(&changed, head).unwrap_err().seq, at as u64 + 1);
    }

    #[test]
    fn a_change_with_its_digest_is_found_at_the_next_or_by_the_head(
        records in log(), at in any::<prop::sample::Index>(), part in 2u8..7
    ) {
        let (at, head) = (at.index(records.len()), records.last().unwrap().head());
        let mut changed = records.clone();
        change(&mut changed[at], part);
        changed[at].digest = changed[at].digest_anew();
        let next = (at + 2).min(records.len());
        prop_assert_eq!(check(&changed, head).unwrap_err().seq, next as u64);
        // All later digests as well: what was kept elsewhere tells.
        prop_assert!(check(&rewritten(changed), head).is_err());
    }

    #[test]
    fn a_removal_is_found_where_it_was(records in log(), at in any::<prop::sample::Index>()) {
        let (at, head) = (at.index(records.len()), records.last().unwrap().head());
        let mut fewer = records;
        fewer.remove(at);
        prop_assert_eq!(check(&fewer, head).unwrap_err().seq, at as u64 + 1);
        prop_assert!(check(&rewritten(fewer), head).is_err());
    }

    #[test]
    fn another_order_is_found_at_the_first_that_moved(records in log(), one in any::<prop::sample::Index>(), other in any::<prop::sample::Index>()) {
        let (one, other) = (one.index(records.len()), other.index(records.len()));
        let head = records.last().unwrap().head();
        let mut moved = records;
        moved.swap(one, other);
        match one == other {
            true => prop_assert!(check(&moved, head).is_ok()),
            false => prop_assert_eq!(check(&moved, head).unwrap_err().seq, one.min(other) as u64 + 1),
        }
    }

    #[test]
    fn an_insertion_is_found(records in log(), new in entry(), at in any::<prop::sample::Index>()) {
        let at = at.index(records.len());
        let head = records.last().unwrap().head();
        let before = at.checked_sub(1).map(|before| records[before].head()).unwrap_or_default();
        let mut more = records.clone();
        more.insert(at, new.after(before));
        // One that happens to say the same as the next is that record, and the next one comes twice.
        let first = if more[at] == more[at + 1] { at + 2 } else { at + 1 };
        let found = check(&more, head).unwrap_err().seq;
        prop_assert!(found == first as u64 || found == first as u64 + 1, "{}", found);
        prop_assert!(check(&rewritten(more), head).is_err());
    }

    #[test]
    fn an_end_that_was_cut_off_is_found_where_the_head_is_known(records in log(), left in any::<prop::sample::Index>()) {
        let (left, head) = (left.index(records.len()), records.last().unwrap().head());
        prop_assert!(verify(org(1), &records[..left], Head::default()).is_ok(), "the chain alone does not tell");
        let wrong = Wrong { seq: left as u64 + 1, why: Why::Cut { end: left as u64, kept: head.seq } };
        prop_assert_eq!(check(&records[..left], head), Err(wrong));
    }
}

#[test]
fn the_log_of_another_org_is_not_taken_for_this_one() {
    let entry = Entry::new(org(2), UnixMicros(1), Actor::Server, Action::OrgCreated, "x");
    let wrong = verify(org(1), &chain(&[entry]), Head::default()).unwrap_err();
    assert_eq!((wrong.seq, wrong.why), (1, Why::OtherOrg(org(2))));
}

/// What a third party computes by the text at the top, byte by byte.
#[test]
fn the_digest_is_that_of_the_documented_form() {
    let entry =
        Entry::new(org(1), UnixMicros(1_700), Actor::Server, Action::SecretGiven, "KEY").with("b", 2).with("a", "ä");
    let record = entry.after(Head::default());
    let mut bytes = Vec::new();
    let org = org(1).to_string();
    let texts = [org.as_str(), "1", "1700", "server", "secret.given", "KEY", "2", "a", "ä", "b", "2"];
    for field in [b"holm.audit.1".as_slice(), &[0; 32]].into_iter().chain(texts.map(str::as_bytes)) {
        bytes.extend([0, 0, 0, 0, 0, 0, 0, field.len() as u8]);
        bytes.extend(field);
    }
    assert_eq!(record.digest.0, <[u8; 32]>::from(Sha256::digest(&bytes)));
    assert_eq!(record.digest.to_string(), "ee8ee2aef3f0e6d7de299d19698d861436c9f820f7cd1a29a01a041e48327fec",);
}

#[test]
fn what_is_too_long_is_cut_and_what_is_too_much_left_out() {
    let entry = Entry::new(org(1), UnixMicros(1), Actor::Server, Action::OrgCreated, "ä".repeat(300));
    let entry = (0..20).fold(entry, |entry, n| entry.with(&format!("{n:040}"), "ä".repeat(DETAIL_BYTES_MAX)));
    let record = entry.with_any("none", None::<&str>).after(Head::default());
    assert!(
        (SUBJECT_BYTES_MAX - 1..=SUBJECT_BYTES_MAX).contains(&record.subject.len()) && record.subject.ends_with('…')
    );
    // Their names begin alike, so they are one.
    assert_eq!(record.details.len(), 1);
    let (name, value) = record.details.first_key_value().unwrap();
    assert_eq!(name.chars().count(), DETAIL_NAME_BYTES_MAX - 2);
    assert!((DETAIL_BYTES_MAX - 1..=DETAIL_BYTES_MAX).contains(&value.len()) && value.ends_with('…'));
    let entry = Entry::new(org(1), UnixMicros(1), Actor::Server, Action::OrgCreated, "x");
    let record = (0..20).fold(entry, |entry, n| entry.with(&n.to_string(), n)).after(Head::default());
    assert_eq!(record.details.len(), DETAILS_MAX);
}

#[test]
fn names_of_actions_are_different_and_plain() {
    let names: std::collections::BTreeSet<&str> = Action::ALL.map(Action::as_str).into();
    assert_eq!(names.len(), Action::ALL.len());
    assert!(names.iter().all(|name| name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'_' | b'.'))));
}

#[test]
fn texts_that_are_no_head_are_refused() {
    let zeros = "0".repeat(64);
    for text in [
        "",
        "1",
        ":",
        &format!("x:{zeros}"),
        &format!("1:{}", &zeros[1..]),
        &format!("1:{}A", &zeros[1..]),
        &format!("0:{}1", &zeros[1..]),
    ] {
        assert_eq!(text.parse::<Head>(), Err(InvalidHead), "{text}");
    }
    assert_eq!(format!("0:{zeros}").parse(), Ok(Head::default()));
}
