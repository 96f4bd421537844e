//! Makes the output of a command harmless to the terminal that shows it.
//!
//! What comes out of a sandbox could move the cursor over what was said before, change the title, or have the terminal
//! answer into the shell's input. So where it goes to a terminal, control characters become visible (`^[`, `^G`,
//! `\u{9b}`), bytes that are no UTF-8 too (`\x9b`), and only line feed, tab, carriage return and colours (SGR, ECMA-48
//! §8.3.117) are left as they are. What goes to a pipe or a file never comes here.
//!
//! What always holds: no byte is lost; a character or colour that is cut between two pieces is recognised all the same;
//! at most [`SGR_BYTES_MAX`] bytes are held back for that.

/// The longest colour that is recognised, in bytes.
const SGR_BYTES_MAX: usize = 64;
const ESC: u8 = 0x1b;
/// Takes every colour back.
const RESET: &[u8] = b"\x1b[0m";

/// Tames one stream.
#[derive(Debug, Default)]
pub struct Tamer {
    held: Vec<u8>,
    coloured: bool,
}

/// What begins at a place in the bytes.
enum Found {
    /// Something harmless of so many bytes.
    Harmless(usize),
    /// Something of so many bytes, and what is shown for it.
    Shown(usize, String),
    /// The beginning of something of which the rest has not come.
    Unfinished,
}

impl Tamer {
    /// What is to be written for the next piece.
    pub fn feed(&mut self, piece: &[u8]) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.held);
        bytes.extend_from_slice(piece);
        let (mut tame, mut at) = (Vec::with_capacity(bytes.len()), 0);
        while at < bytes.len() {
            let rest = &bytes[at..];
            match look(rest) {
                Found::Harmless(length) => {
                    if rest[0] == ESC {
                        self.coloured = &rest[..length] != RESET && &rest[..length] != b"\x1b[m";
                    }
                    tame.extend_from_slice(&rest[..length]);
                    at += length;
                }
                Found::Shown(length, shown) => {
                    tame.extend_from_slice(shown.as_bytes());
                    at += length;
                }
                Found::Unfinished => {
                    self.held = rest.to_vec();
                    break;
                }
            }
        }
        tame
    }

    /// What is to be written at the end: what was held back, and the end of a colour that was left on.
    pub fn finish(&mut self) -> Vec<u8> {
        let held = std::mem::take(&mut self.held);
        let mut tame: Vec<u8> = held.iter().flat_map(|byte| visible(*byte).into_bytes()).collect();
        if std::mem::take(&mut self.coloured) {
            tame.extend_from_slice(RESET);
        }
        tame
    }
}

fn look(rest: &[u8]) -> Found {
    match rest[0] {
        ESC => sgr(rest),
        b'\n' | b'\t' | b'\r' | b' '..=b'~' => Found::Harmless(1),
        control @ ..=0x7f => Found::Shown(1, visible(control)),
        _ => character(rest),
    }
}

/// `ESC [`, numbers, `m`.
fn sgr(rest: &[u8]) -> Found {
    let no = || Found::Shown(1, visible(ESC));
    if rest.len() > 1 && rest[1] != b'[' {
        return no();
    }
    let numbers = rest.iter().skip(2).take_while(|byte| byte.is_ascii_digit() || b";:".contains(byte)).count();
    match rest.get(2 + numbers) {
        Some(b'm') if 3 + numbers <= SGR_BYTES_MAX => Found::Harmless(3 + numbers),
        None if rest.len() < SGR_BYTES_MAX => Found::Unfinished,
        _ => no(),
    }
}

/// A character of several bytes.
fn character(rest: &[u8]) -> Found {
    let window = &rest[..rest.len().min(4)];
    let (valid, broken) = match std::str::from_utf8(window) {
        Ok(text) => (text, None),
        Err(error) => {
            (std::str::from_utf8(&window[..error.valid_up_to()]).unwrap_or_default(), Some(error.error_len()))
        }
    };
    match (valid.chars().next(), broken) {
        (Some(char), _) if char.is_control() => Found::Shown(char.len_utf8(), char.escape_default().to_string()),
        (Some(char), _) => Found::Harmless(char.len_utf8()),
        (None, Some(None)) => Found::Unfinished,
        (None, _) => Found::Shown(1, visible(rest[0])),
    }
}

/// A byte as terminals' manuals write it, and one that is no ASCII as C does.
fn visible(byte: u8) -> String {
    match byte {
        b' '..=b'~' => char::from(byte).to_string(),
        ..=0x7f => format!("^{}", char::from(byte ^ 0x40)),
        _ => format!("\\x{byte:02x}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tamed(pieces: &[&[u8]]) -> String {
        let mut tamer = Tamer::default();
        let mut tame: Vec<u8> = pieces.iter().flat_map(|piece| tamer.feed(piece)).collect();
        tame.extend(tamer.finish());
        String::from_utf8(tame).unwrap()
    }

    #[test]
    fn text_lines_and_colours_pass() {
        let text = "a\tb\r\n\x1b[1;38:5:9mrot\x1b[0m größe 🏝\x1b[m\n";
        assert_eq!(tamed(&[text.as_bytes()]), text);
        assert_eq!(tamed(&[b"\x1b[31mleft on"]), "\x1b[31mleft on\x1b[0m", "Holm's own words are not coloured by it");
    }

    #[test]
    fn what_steers_a_terminal_becomes_visible() {
        let table: [(&[u8], &str); 9] = [
            (b"\x1b[2J\x1b[H", "^[[2J^[[H"),
            (b"\x1b]0;title\x07", "^[]0;title^G"),
            (b"\x1b]52;c;cm0=\x1b\\", "^[]52;c;cm0=^[\\"),
            (b"\x1bP$q\x1bc\x1b[6n", "^[P$q^[c^[[6n"),
            (b"\x1b[?1049h\x1b[>1m\x1b[ m", "^[[?1049h^[[>1m^[[ m"),
            ("\u{9b}2J\u{9d}x\u{85}".as_bytes(), "\\u{9b}2J\\u{9d}x\\u{85}"),
            (b"\x9b2J\xff\xc3", "\\x9b2J\\xff\\xc3"),
            (b"\x00\x08\x0b\x0c\x0e\x7f", "^@^H^K^L^N^?"),
            (b"\x1b\x1b[31m\x1b", "^[\x1b[31m^[\x1b[0m"),
        ];
        for (nasty, shown) in table {
            assert_eq!(tamed(&[nasty]), shown, "{nasty:?}");
        }
        let endless = [b"\x1b[".as_slice(), &[b'1'; 500], b"m"].concat();
        assert_eq!(tamed(&[&endless]), format!("^[[{}m", "1".repeat(500)));
    }

    fn steers(text: &str) -> bool {
        let sound = |at: usize| matches!(sgr(&text.as_bytes()[at..]), Found::Harmless(_));
        text.char_indices().any(|(at, c)| c.is_control() && !"\n\t\r".contains(c) && !(c == '\x1b' && sound(at)))
    }

    proptest! {
        #[test]
        fn nothing_that_steers_comes_out_however_it_is_cut(
            pieces in prop::collection::vec(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..20),
                Just(b"\x1b[1;".to_vec()), Just(b"2m".to_vec()), Just(b"\xc2".to_vec()), Just(b"\x9b".to_vec()), Just(b"\x1b".to_vec()),
            ], 0..30)
        ) {
            let whole: Vec<u8> = pieces.concat();
            let cut: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let tame = tamed(&cut);
            prop_assert!(!steers(&tame), "{tame:?}");
            prop_assert_eq!(&tame, &tamed(&[&whole]), "how it is cut makes no difference");
            let mut tamer = Tamer::default();
            for piece in &cut {
                tamer.feed(piece);
                prop_assert!(tamer.held.len() <= SGR_BYTES_MAX);
            }
        }
    }
}
