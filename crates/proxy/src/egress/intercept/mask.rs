//! Answers in which a secret stands that was added to their requests: it is masked before they reach the sandbox (SPEC N7).
//!
//! What always holds: what comes out is as long as what went in, and is the same but for stars where a secret stands in one of
//! its [`forms`], wherever its pieces were cut; nothing is held back that is not the begin of such a form, and so never as much as the
//! longest of them. Of that no more than [`SHOWN_MAX`] bytes are let go before it is known whether the rest follows, where an
//! answer pauses there: its reader would wait for them in vain.
//!
//! That something is held back can be told inside, by the lengths of pieces and by the time that they take: who has a server
//! repeat what he guesses hears whether it is how a secret begins. So what was longer than that and came to nothing is counted
//! for the sandbox as a whole, and after [`GUESSES_MAX`] such answers break off.
//!
//! What it cannot do: whoever answers may write a secret in a form of his own (reversed, in pieces, enciphered). A credential is
//! therefore bound to those who are trusted with it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use aho_corasick::{
    Anchored, MatchKind,
    automaton::{Automaton as _, StateID},
    nfa::contiguous::NFA,
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};

use super::{
    super::{Refusal, checks::is_off},
    forms::forms,
};

/// How many bytes of a begin are let go where an answer pauses.
pub const SHOWN_MAX: usize = 3;
/// For how long an answer pauses until then.
pub const PAUSE: Duration = Duration::from_millis(20);
/// How often something longer may look like the begin of a secret and be none, in all answers of a sandbox.
pub const GUESSES_MAX: u32 = 3;
/// What stands in the place of each byte of a secret.
const STAR: u8 = b'*';

/// All forms of all secrets of a sandbox.
pub struct Patterns {
    automaton: NFA,
    /// In order.
    forms: Vec<Vec<u8>>,
    longest: usize,
    guesses: AtomicU32,
}

/// Answers were repeated again and again that begin as a secret does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guessed;

impl From<Guessed> for Refusal {
    fn from(_: Guessed) -> Self {
        Self::Guessed
    }
}

impl Patterns {
    /// Those of `values`. Fails where they are too many to be looked for.
    pub fn new<'a>(values: impl Iterator<Item = &'a str>) -> Result<Arc<Self>, aho_corasick::BuildError> {
        let mut forms: Vec<Vec<u8>> = values.flat_map(forms).collect();
        forms.sort_unstable();
        forms.dedup();
        let longest = forms.iter().map(Vec::len).max().unwrap_or(1);
        let automaton = NFA::builder().match_kind(MatchKind::Standard).prefilter(false).build(&forms)?;
        Ok(Arc::new(Self { automaton, forms, longest, guesses: AtomicU32::new(0) }))
    }

    fn start(&self) -> StateID {
        // It is made for both kinds of search.
        self.automaton.start_state(Anchored::No).unwrap_or_default()
    }

    /// The length of the longest end of a text with which a form begins that goes on.
    fn begun(&self, text: &[u8]) -> usize {
        let first = (text.len() + 1).saturating_sub(self.longest);
        let is_begin = |end: &[u8]| {
            // The form that is the end itself stands before all that go on.
            let at = self.forms.partition_point(|form| &form[..] <= end);
            self.forms.get(at).is_some_and(|form| form.starts_with(end))
        };
        (first..text.len()).find(|from| is_begin(&text[*from..])).map_or(0, |from| text.len() - from)
    }

    /// The length of the longest form that ends in a state.
    fn ended(&self, state: StateID) -> usize {
        let length = |index| self.automaton.pattern_len(self.automaton.match_pattern(state, index));
        (0..self.automaton.match_len(state)).map(length).max().unwrap_or_default()
    }

    /// Goes on from a state; where forms stand in `piece`, counted from `start` bytes before it on.
    fn find(&self, state: &mut StateID, piece: &[u8], start: usize) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        for (at, byte) in piece.iter().enumerate() {
            *state = self.automaton.next_state(Anchored::No, *state, *byte);
            if self.automaton.is_match(*state) && !is_off("mask") {
                let end = start + at + 1;
                found.push((end - self.ended(*state), end));
            }
        }
        found
    }

    /// Counts what looked like the begin of a secret and was none.
    fn guess(&self) -> Result<(), Guessed> {
        let before = self.guesses.fetch_add(1, Ordering::Relaxed);
        if before < GUESSES_MAX { Ok(()) } else { Err(Guessed) }
    }

    /// Masks what stands in fields of a head, or in trailers.
    pub fn mask_fields(&self, fields: &mut HeaderMap) {
        for value in fields.values_mut() {
            let found = self.find(&mut self.start(), value.as_bytes(), 0);
            let mut masked = value.as_bytes().to_vec();
            found.iter().for_each(|(from, to)| masked[*from..*to].fill(STAR));
            // As long, and of what may stand in a field.
            if !found.is_empty()
                && let Ok(masked) = HeaderValue::from_bytes(&masked)
            {
                *value = masked;
            }
        }
    }
}

/// Masks one answer, a piece at a time.
pub struct Mask {
    patterns: Arc<Patterns>,
    state: StateID,
    /// What may be the begin of a form, as it came and as it is told.
    held: BytesMut,
    told: BytesMut,
    /// How much of that was let go already.
    shown: usize,
}

impl Mask {
    /// One that has seen nothing yet.
    pub fn new(patterns: &Arc<Patterns>) -> Self {
        let state = patterns.start();
        Self { state, patterns: patterns.clone(), held: BytesMut::new(), told: BytesMut::new(), shown: 0 }
    }

    /// What is known to be no begin of a form, of what was held back and of `piece`.
    pub fn pass(&mut self, piece: Bytes) -> Result<Bytes, Guessed> {
        let before = self.held.len();
        let found = self.patterns.find(&mut self.state, &piece, before);
        let is_idle = self.state == self.patterns.start();
        if before == 0 && found.is_empty() && (is_idle || self.patterns.begun(&piece) == 0) {
            return Ok(piece);
        }
        self.held.extend_from_slice(&piece);
        self.told.extend_from_slice(&piece);
        for (from, to) in &found {
            self.told[(*from).max(self.shown)..*to].fill(STAR);
        }
        let rest = if is_idle { 0 } else { self.patterns.begun(&self.held) };
        let is_decided = rest < self.held.len();
        if before > SHOWN_MAX && is_decided && !found.iter().any(|(from, _)| *from == 0) {
            self.patterns.guess()?;
        }
        Ok(self.release(self.held.len() - rest))
    }

    /// The first bytes of what is held back, without what was let go of them.
    fn release(&mut self, count: usize) -> Bytes {
        let shown = self.shown.min(count);
        self.shown -= shown;
        let _known = self.held.split_to(count);
        self.told.split_to(count).freeze().slice(shown..)
    }

    /// Whether something is held back that is let go where the answer pauses.
    pub fn may_let_go(&self) -> bool {
        self.held() > 0 && self.held.len() <= SHOWN_MAX
    }

    /// Lets go of what is held back, as the answer pauses; what follows of it is masked all the same.
    pub fn let_go(&mut self) -> Bytes {
        let told = Bytes::copy_from_slice(&self.told[self.shown..]);
        self.shown = self.held.len();
        told
    }

    /// What is looked for.
    pub fn patterns(&self) -> Arc<Patterns> {
        self.patterns.clone()
    }

    /// How many bytes are held back.
    pub fn held(&self) -> usize {
        self.held.len() - self.shown
    }

    /// The rest, as nothing follows.
    pub fn end(&mut self) -> Result<Bytes, Guessed> {
        if self.held.len() > SHOWN_MAX {
            self.patterns.guess()?;
        }
        Ok(self.release(self.held.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use base64::{
        Engine as _,
        engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
    };

    const SECRET: &str = "sk-live/\"q+7 \u{e4}Zk3v9";

    /// Passes `text` in pieces that are cut at `cuts`.
    fn passed(mask: &mut Mask, text: &[u8], cuts: &[usize]) -> Vec<u8> {
        let mut whole = Vec::new();
        let mut from = 0;
        for to in cuts.iter().copied().chain([text.len()]) {
            let to = to.clamp(from, text.len());
            whole.extend(mask.pass(Bytes::copy_from_slice(&text[from..to])).unwrap());
            assert!(mask.held() < mask.patterns.longest);
            from = to;
        }
        whole.extend(mask.end().unwrap());
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
        let patterns = patterns();
        for form in forms(SECRET) {
            let text = [b"before ", &form[..], b" after"].concat();
            let stars = [b"before ", &vec![b'*'; form.len()][..], b" after"].concat();
            for cut in 0..=text.len() {
                let masked = passed(&mut Mask::new(&patterns), &text, &[cut]);
                assert_eq!(String::from_utf8_lossy(&masked), String::from_utf8_lossy(&stars), "cut at {cut}");
            }
            let cuts: Vec<usize> = (0..text.len()).collect();
            assert_eq!(passed(&mut Mask::new(&patterns), &text, &cuts), stars, "a byte at a time");
        }
    }

    #[test]
    fn base_64_is_masked_wherever_the_secret_stands_in_it() {
        let patterns = patterns();
        for before in 0..6 {
            for after in 0..6 {
                let plain = ["x".repeat(before), SECRET.to_owned(), "y".repeat(after)].concat();
                for encoded in [STANDARD_NO_PAD.encode(&plain), URL_SAFE_NO_PAD.encode(&plain)] {
                    let masked = passed(&mut Mask::new(&patterns), encoded.as_bytes(), &[]);
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
        let passed = mask.pass(piece.clone()).unwrap();
        assert_eq!(passed, piece);
        assert_eq!(passed.as_ptr(), piece.as_ptr(), "it is not copied");
        assert_eq!(mask.held(), 0);
        assert_eq!(
            &mask.pass(Bytes::from_static(b"an sk-li")).unwrap()[..],
            b"an ",
            "what may be the begin of one waits"
        );
        assert_eq!(&mask.pass(Bytes::from_static(b"on")).unwrap()[..], b"sk-lion", "and is none");
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
            let mut told = mask.pass(Bytes::copy_from_slice(first.as_bytes())).unwrap().to_vec();
            assert_eq!(mask.may_let_go(), shown <= SHOWN_MAX);
            if mask.may_let_go() {
                told.extend(mask.let_go());
                assert!(!mask.may_let_go());
            }
            told.extend(mask.pass(Bytes::copy_from_slice(rest.as_bytes())).unwrap());
            told.extend(mask.pass(Bytes::from_static(b"!")).unwrap());
            told.extend(mask.end().unwrap());
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
            told.extend(mask.pass(Bytes::copy_from_slice(&[byte])).unwrap());
            if mask.may_let_go() {
                told.extend(mask.let_go());
            }
        }
        told.extend(mask.end().unwrap());
        let expected = [&SECRET.as_bytes()[..SHOWN_MAX], &vec![b'*'; SECRET.len() - SHOWN_MAX][..]].concat();
        assert_eq!(String::from_utf8_lossy(&told), String::from_utf8_lossy(&expected));
    }

    #[test]
    fn no_more_is_held_back_than_how_a_form_begins() {
        let mut mask = Mask::new(&patterns());
        assert_eq!(mask.pass(Bytes::from_static(b"> sssss")).unwrap(), "> ssss");
        assert!(mask.may_let_go());
        assert_eq!((mask.let_go(), mask.held()), (Bytes::from_static(b"s"), 0));
        assert_eq!(mask.pass(Bytes::from_static(b"!")).unwrap(), "!");
    }

    #[test]
    fn who_guesses_how_a_secret_begins_is_answered_a_few_times_and_no_more() {
        let patterns = patterns();
        let guess = |text: &'static str| {
            let mut mask = Mask::new(&patterns);
            mask.pass(text.into())?;
            mask.pass("\n".into()).map(drop)
        };
        // What is not held back tells nothing, and a few bytes are told anyway.
        for _ in 0..20 {
            assert_eq!([guess("no guess"), guess("sk-l?"), guess("sk-")], [Ok(()); 3]);
        }
        for _ in 0..GUESSES_MAX {
            assert_eq!(guess("sk-l"), Ok(()));
        }
        assert_eq!(guess("sk-l"), Err(Guessed));
        let mut mask = Mask::new(&patterns);
        mask.pass("sk-liv".into()).unwrap();
        assert_eq!(mask.end(), Err(Guessed), "an end tells as much");
        assert_eq!(guess("no guess"), Ok(()));
        let whole = Mask::new(&patterns).pass(SECRET.into()).unwrap();
        assert_eq!(whole, "*".repeat(SECRET.len()), "what is one is no guess");
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
            which in proptest::collection::vec(0usize..200, 1..6),
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
            static PATTERNS: std::sync::LazyLock<Arc<Patterns>> = std::sync::LazyLock::new(patterns);
            let masked = passed(&mut Mask::new(&PATTERNS), &text, &cuts);
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
