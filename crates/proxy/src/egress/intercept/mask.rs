//! Answers in which a secret stands that was added to their requests: it is masked before they reach the sandbox (SPEC N7).
//!
//! What always holds: what comes out is as long as what went in, and is the same but for stars where a secret stands, plain or in
//! one of the forms of [`forms`], wherever its pieces were cut; nothing is held back that is not the begin of such a form, and
//! so never as much as the longest of them. Of that no more than [`SHOWN_MAX`] bytes are let go before it is known whether the
//! rest follows, where an answer pauses there: its reader would wait for them in vain.
//!
//! What it cannot do: whoever answers may write a secret in a form of his own (reversed, in pieces, enciphered). A credential is
//! therefore bound to those who are trusted with it.

use std::{sync::Arc, time::Duration};

use aho_corasick::{
    Anchored, MatchKind,
    automaton::{Automaton as _, StateID},
    nfa::contiguous::NFA,
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};

use super::super::checks::is_off;

/// How many bytes of a begin are let go where an answer pauses.
pub const SHOWN_MAX: usize = 3;
/// For how long an answer pauses until then.
pub const PAUSE: Duration = Duration::from_millis(20);
/// What stands in the place of each byte of a secret.
const STAR: u8 = b'*';

/// All forms of all secrets of a sandbox.
pub struct Patterns {
    automaton: NFA,
    longest: usize,
}

impl Patterns {
    /// Those of `values`. Fails where they are too many to be looked for.
    pub fn new<'a>(values: impl Iterator<Item = &'a str>) -> Result<Arc<Self>, aho_corasick::BuildError> {
        let mut forms: Vec<Vec<u8>> = values.flat_map(forms).collect();
        forms.sort_unstable();
        forms.dedup();
        let longest = forms.iter().map(Vec::len).max().unwrap_or_default();
        let automaton = NFA::builder().match_kind(MatchKind::Standard).prefilter(false).build(&forms)?;
        Ok(Arc::new(Self { automaton, longest }))
    }

    fn start(&self) -> StateID {
        // It is made for both kinds of search.
        self.automaton.start_state(Anchored::No).unwrap_or_default()
    }

    /// Masks what stands in fields of a head, or in trailers.
    pub fn mask_fields(self: &Arc<Self>, fields: &mut HeaderMap) {
        for value in fields.values_mut() {
            let mut mask = Mask::new(self);
            let whole = Bytes::copy_from_slice(value.as_bytes());
            let masked = [&mask.pass(whole.clone())[..], &mask.end()].concat();
            // As long, and of what may stand in a field.
            if masked != whole
                && let Ok(masked) = HeaderValue::from_bytes(&masked)
            {
                *value = masked;
            }
        }
    }
}

/// The forms in which a secret is told: as it is, in base 64 (RFC 4648) wherever it stands in what is encoded, in hexadecimal
/// digits, with percent signs (RFC 3986, section 2.1), and in strings of JSON (RFC 8259, section 7).
pub fn forms(value: &str) -> Vec<Vec<u8>> {
    let bytes = value.as_bytes();
    let each = |form: fn(u8) -> String| bytes.iter().copied().map(form).collect::<String>();
    let mut all = vec![
        value.to_owned(),
        each(|byte| format!("{byte:02x}")),
        each(|byte| format!("{byte:02X}")),
        each(|byte| format!("%{byte:02x}")),
        each(|byte| format!("%{byte:02X}")),
        each(|byte| if is_unreserved(byte) { char::from(byte).into() } else { format!("%{byte:02x}") }),
        each(|byte| if is_unreserved(byte) { char::from(byte).into() } else { format!("%{byte:02X}") }),
        each(|byte| match byte {
            b' ' => "+".to_owned(),
            byte if is_unreserved(byte) || byte == b'*' => char::from(byte).into(),
            byte => format!("%{byte:02X}"),
        }),
    ];
    all.extend(of_json(value));
    let mut all: Vec<Vec<u8>> = all.into_iter().map(String::into_bytes).collect();
    all.extend((0..3).flat_map(|before| {
        [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD]
            .map(|alphabet| whole_digits(&alphabet.encode(at(bytes, before)), before, bytes.len()))
    }));
    all
}

/// What needs no percent sign (RFC 3986, section 2.3).
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Strings of JSON: with escapes only where they must be, with a slash escaped too, with what is not ASCII escaped, and with all.
fn of_json(value: &str) -> [String; 6] {
    let must = serde_json::Value::from(value).to_string();
    let must = must[1..must.len() - 1].to_owned();
    let units = |all: bool, form: fn(u16) -> String| -> String {
        let is_plain = |c: char| !all && c.is_ascii();
        must_or_unit(if all { value } else { &must }, is_plain, form)
    };
    let (small, large): (fn(u16) -> String, fn(u16) -> String) =
        (|unit| format!("\\u{unit:04x}"), |unit| format!("\\u{unit:04X}"));
    [must.replace('/', "\\/"), units(false, small), units(false, large), units(true, small), units(true, large), must]
}

fn must_or_unit(text: &str, is_plain: impl Fn(char) -> bool, form: fn(u16) -> String) -> String {
    let mut whole = String::new();
    for c in text.chars() {
        if is_plain(c) {
            whole.push(c);
        } else {
            whole.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| form(*unit)));
        }
    }
    whole
}

/// A value behind `before` other bytes.
fn at(bytes: &[u8], before: usize) -> Vec<u8> {
    [&[0; 2][..before], bytes].concat()
}

/// Those digits of base 64 that come from the value alone, of `length` bytes behind `before` others.
fn whole_digits(encoded: &str, before: usize, length: usize) -> Vec<u8> {
    let (first, end) = ((before * 8).div_ceil(6), (before + length) * 8 / 6);
    encoded.as_bytes()[first..end].to_vec()
}

/// Masks one answer, a piece at a time.
pub struct Mask {
    patterns: Arc<Patterns>,
    state: StateID,
    /// What may be the begin of a form.
    held: BytesMut,
    /// How much of such a begin was let go already.
    let_go: usize,
}

impl Mask {
    /// One that has seen nothing yet.
    pub fn new(patterns: &Arc<Patterns>) -> Self {
        Self { state: patterns.start(), patterns: patterns.clone(), held: BytesMut::new(), let_go: 0 }
    }

    /// What is known to be no begin of a form, of what was held back and of `piece`.
    pub fn pass(&mut self, piece: Bytes) -> Bytes {
        let automaton = &self.patterns.automaton;
        let (before, let_go) = (self.held.len(), self.let_go);
        // Where a form that is not complete yet may begin, counted from what was let go of one on.
        let mut begin = 0;
        let mut found: Vec<(usize, usize)> = Vec::new();
        for (at, byte) in piece.iter().enumerate() {
            self.state = automaton.next_state(Anchored::No, self.state, *byte);
            let end = let_go + before + at + 1;
            if automaton.is_match(self.state) && !is_off("mask") {
                let lengths = (0..automaton.match_len(self.state))
                    .map(|index| automaton.pattern_len(automaton.match_pattern(self.state, index)));
                found.extend(lengths.max().map(|length| (end.saturating_sub(length), end)));
            }
            if self.state == self.patterns.start() {
                begin = end;
            }
        }
        let end = let_go + before + piece.len();
        begin = begin.max((end + 1).saturating_sub(self.patterns.longest));
        if begin == end && before == 0 && found.is_empty() {
            self.let_go = 0;
            return piece;
        }
        self.held.extend_from_slice(&piece);
        for (from, to) in found {
            self.held[from.saturating_sub(let_go)..to - let_go].fill(STAR);
        }
        self.let_go = let_go.saturating_sub(begin);
        self.held.split_to(begin.saturating_sub(let_go)).freeze()
    }

    /// Whether something is held back that is let go where the answer pauses.
    pub fn may_let_go(&self) -> bool {
        !self.held.is_empty() && self.let_go + self.held.len() <= SHOWN_MAX
    }

    /// Lets go of what is held back, as the answer pauses; what follows of it is masked all the same.
    pub fn let_go(&mut self) -> Bytes {
        self.let_go += self.held.len();
        self.held.split().freeze()
    }

    /// What is looked for.
    pub fn patterns(&self) -> Arc<Patterns> {
        self.patterns.clone()
    }

    /// How many bytes are held back.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// The rest, as nothing follows.
    pub fn end(&mut self) -> Bytes {
        self.held.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "sk-live/\"q+7 \u{e4}Zk3v9";

    /// Passes `text` in pieces that are cut at `cuts`.
    fn passed(mask: &mut Mask, text: &[u8], cuts: &[usize]) -> Vec<u8> {
        let mut whole = Vec::new();
        let mut from = 0;
        for to in cuts.iter().copied().chain([text.len()]) {
            let to = to.clamp(from, text.len());
            whole.extend(mask.pass(Bytes::copy_from_slice(&text[from..to])));
            assert!(mask.held() < mask.patterns.longest);
            from = to;
        }
        whole.extend(mask.end());
        whole
    }

    fn patterns() -> Arc<Patterns> {
        Patterns::new([SECRET, "another-one-8", "sk-livelier"].into_iter()).unwrap()
    }

    fn contains(text: &[u8], part: &[u8]) -> bool {
        text.windows(part.len()).any(|window| window == part)
    }

    #[test]
    fn each_form_is_masked_wherever_it_is_cut() {
        for form in forms(SECRET) {
            let text = [b"before ", &form[..], b" after"].concat();
            let stars = [b"before ", &vec![b'*'; form.len()][..], b" after"].concat();
            for cut in 0..=text.len() {
                let masked = passed(&mut Mask::new(&patterns()), &text, &[cut]);
                assert_eq!(String::from_utf8_lossy(&masked), String::from_utf8_lossy(&stars), "cut at {cut}");
            }
            let cuts: Vec<usize> = (0..text.len()).collect();
            assert_eq!(passed(&mut Mask::new(&patterns()), &text, &cuts), stars, "a byte at a time");
        }
    }

    #[test]
    fn base_64_is_masked_wherever_the_secret_stands_in_it() {
        for before in 0..6 {
            for after in 0..6 {
                let plain = ["x".repeat(before), SECRET.to_owned(), "y".repeat(after)].concat();
                for encoded in [STANDARD_NO_PAD.encode(&plain), URL_SAFE_NO_PAD.encode(&plain)] {
                    let masked = passed(&mut Mask::new(&patterns()), encoded.as_bytes(), &[]);
                    let digits = SECRET.len() * 8 / 6;
                    let stars = masked.iter().filter(|byte| **byte == STAR).count();
                    assert!(stars >= digits - 1, "{encoded}: {}", String::from_utf8_lossy(&masked));
                }
            }
        }
    }

    #[test]
    fn what_is_none_passes_at_once_as_it_is() {
        let mut mask = Mask::new(&patterns());
        let piece = Bytes::from_static(b"data: nothing of it\n\n");
        let passed = mask.pass(piece.clone());
        assert_eq!(passed, piece);
        assert_eq!(passed.as_ptr(), piece.as_ptr(), "it is not copied");
        assert_eq!(mask.held(), 0);
        assert_eq!(&mask.pass(Bytes::from_static(b"an sk-li"))[..], b"an ", "what may be the begin of one waits");
        assert_eq!(&mask.pass(Bytes::from_static(b"on"))[..], b"sk-lion", "and is none");
    }

    #[test]
    fn what_overlaps_is_masked_as_a_whole() {
        let patterns = Patterns::new(["abcdefgh", "efghijkl"].into_iter()).unwrap();
        for cut in 0..14 {
            assert_eq!(passed(&mut Mask::new(&patterns), b"-abcdefghijkl-", &[cut]), b"-************-", "cut at {cut}");
        }
    }

    #[test]
    fn where_an_answer_pauses_no_more_than_a_few_bytes_are_let_go_and_the_rest_is_masked() {
        let patterns = patterns();
        for shown in 1..SECRET.len() {
            if !SECRET.is_char_boundary(shown) {
                continue;
            }
            let mut mask = Mask::new(&patterns);
            let (first, rest) = SECRET.split_at(shown);
            let mut told = mask.pass(Bytes::copy_from_slice(first.as_bytes())).to_vec();
            assert_eq!(mask.may_let_go(), shown <= SHOWN_MAX);
            if mask.may_let_go() {
                told.extend(mask.let_go());
                assert!(!mask.may_let_go());
            }
            told.extend(mask.pass(Bytes::copy_from_slice(rest.as_bytes())));
            told.extend(mask.pass(Bytes::from_static(b"!")));
            told.extend(mask.end());
            let seen = if shown <= SHOWN_MAX { shown } else { 0 };
            let expected = [&SECRET.as_bytes()[..seen], &vec![b'*'; SECRET.len() - seen][..], b"!"].concat();
            assert_eq!(String::from_utf8_lossy(&told), String::from_utf8_lossy(&expected), "{shown} let go");
        }
    }

    #[test]
    fn pauses_again_and_again_let_go_of_no_more() {
        let patterns = patterns();
        let mut mask = Mask::new(&patterns);
        let mut told = Vec::new();
        for byte in SECRET.bytes() {
            told.extend(mask.pass(Bytes::copy_from_slice(&[byte])));
            if mask.may_let_go() {
                told.extend(mask.let_go());
            }
        }
        told.extend(mask.end());
        let expected = [&SECRET.as_bytes()[..SHOWN_MAX], &vec![b'*'; SECRET.len() - SHOWN_MAX][..]].concat();
        assert_eq!(String::from_utf8_lossy(&told), String::from_utf8_lossy(&expected));
    }

    #[test]
    fn fields_are_masked() {
        let mut fields = HeaderMap::new();
        fields.insert("location", HeaderValue::from_static("https://example.org/?key=another-one-8&x"));
        fields.insert("x-plain", HeaderValue::from_static("plain"));
        patterns().mask_fields(&mut fields);
        assert_eq!(fields["location"], "https://example.org/?key=*************&x");
        assert_eq!(fields["x-plain"], "plain");
    }

    proptest::proptest! {
        #[test]
        fn whatever_stands_around_it_and_wherever_it_is_cut_no_form_gets_through(
            noise in proptest::collection::vec("[a-zA-Z0-9 %\\\\{}\"sk-]{0,12}", 1..6),
            which in proptest::collection::vec(0usize..14, 1..6),
            cuts in proptest::collection::vec(0usize..200, 0..8),
        ) {
            let forms = forms(SECRET);
            let mut text = Vec::new();
            for (noise, which) in noise.iter().zip(&which) {
                text.extend_from_slice(noise.as_bytes());
                text.extend_from_slice(&forms[which % forms.len()]);
            }
            let mut cuts = cuts;
            cuts.sort_unstable();
            let masked = passed(&mut Mask::new(&patterns()), &text, &cuts);
            proptest::prop_assert_eq!(masked.len(), text.len());
            for form in &forms {
                proptest::prop_assert!(!contains(&masked, form));
            }
            for (was, is) in text.iter().zip(&masked) {
                proptest::prop_assert!(is == was || *is == STAR);
            }
        }
    }
}
