//! Answers in which secrets are masked, in pieces and with pauses.
//!
//! An input has two secrets, then what an answer is made of: pieces as they are, forms of a secret, cuts, and pauses. What must hold:
//! what comes out is what the same forms, looked for in the whole, leave of it, but for what was let go where it paused; no more is
//! held back than the longest form.

use std::sync::Arc;

use bytes::Bytes;
use holm_proxy::egress::intercept::{
    forms::forms,
    mask::{Mask, Patterns, SHOWN_MAX},
};

use crate::input::{Input, piece};

/// The longest secret of an input, and the longest answer.
const SECRET_MAX: usize = 48;
const ANSWER_MAX: usize = 8 * 1024;
/// What secrets are made of: one sort of each that some form writes otherwise.
const CHARACTERS: &[u8] = b"aAbkst019-_+/=\"\\<&' %";

/// Seeds: each step once, and secrets in each of their forms.
pub fn seeds() -> Vec<Vec<u8>> {
    let secrets =
        [piece(b"\x03\x04\x09\x00\x01\x02\x05\x06\x07\x0b\x0c"), piece(b"\x00\x00\x00\x00\x00\x00\x00\x00\x0d")]
            .concat();
    let all: Vec<u8> = (0..=255).flat_map(|form| [1, form, 2]).collect();
    let steps =
        [&[0][..], &piece(b"said aaaa"), &[2, 3, 1, 7, 2, 3, 0], &piece(b"aaaaaaa"), &[2, 3, 0], &piece(b"aa%61")]
            .concat();
    vec![[&secrets[..], &all].concat(), [&secrets[..], &steps].concat()]
}

enum Step {
    Says(Vec<u8>),
    Cut,
    Pause,
}

/// Masks it.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let secrets = [secret(input.piece()), secret(input.piece())];
    let all: Vec<Vec<u8>> = secrets.iter().flat_map(|secret| forms(secret)).collect();
    let patterns = Patterns::new(secrets.iter().map(String::as_str)).expect("few patterns");
    let (mut steps, mut length) = (Vec::new(), 0);
    while !input.is_empty() && length < ANSWER_MAX {
        steps.push(match input.byte() % 4 {
            0 => Step::Says(input.piece().to_vec()),
            1 => Step::Says(all[usize::from(input.byte()) % all.len()].clone()),
            2 => Step::Cut,
            _ => Step::Pause,
        });
        length += if let Some(Step::Says(bytes)) = steps.last() { bytes.len() } else { 0 };
    }
    compare(&steps, &patterns, &all);
}

fn secret(bytes: &[u8]) -> String {
    let character = |byte: &u8| char::from(CHARACTERS[usize::from(*byte) % CHARACTERS.len()]);
    let text: String = bytes.iter().take(SECRET_MAX).map(character).collect();
    if text.len() < 8 { format!("{text:k<8}") } else { text }
}

fn compare(steps: &[Step], patterns: &Arc<Patterns>, forms: &[Vec<u8>]) {
    let longest = forms.iter().map(Vec::len).max().unwrap_or_default();
    let (mut mask, mut whole, mut waits, mut out, mut let_go) =
        (Mask::new(patterns), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for step in steps {
        match step {
            Step::Says(bytes) => waits.extend_from_slice(bytes),
            Step::Cut | Step::Pause => {
                whole.extend_from_slice(&waits);
                // Who guesses too often hears no more.
                let Ok(passed) = mask.pass(Bytes::from(std::mem::take(&mut waits))) else { return };
                out.extend_from_slice(&passed);
                assert!(mask.held() < longest, "{} are held back", mask.held());
                if matches!(step, Step::Pause) && mask.may_let_go() {
                    let more = mask.let_go();
                    assert!(more.len() <= SHOWN_MAX, "{more:?}");
                    let_go.extend(out.len()..out.len() + more.len());
                    out.extend_from_slice(&more);
                }
            }
        }
    }
    whole.extend_from_slice(&waits);
    let Ok(passed) = mask.pass(waits.into()) else { return };
    out.extend_from_slice(&passed);
    let Ok(rest) = mask.end() else { return };
    out.extend_from_slice(&rest);
    let expected = masked(&whole, forms);
    assert_eq!(out.len(), whole.len());
    for (at, (is, wanted)) in out.iter().zip(&expected).enumerate() {
        assert!(is == wanted || (*is == whole[at] && let_go.contains(&at)), "byte {at} of {}", whole.escape_ascii());
    }
}

/// The same, looked for in the whole.
fn masked(whole: &[u8], forms: &[Vec<u8>]) -> Vec<u8> {
    let mut masked = whole.to_vec();
    for form in forms {
        for at in 0..whole.len() {
            if whole[at..].starts_with(form) {
                masked[at..at + form.len()].fill(b'*');
            }
        }
    }
    masked
}
