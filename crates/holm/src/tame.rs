//! Makes the output of a command harmless to the terminal that shows it.
//!
//! What comes out of a sandbox could move the cursor over what was said before, change the title, turn text around, or have
//! the terminal answer into the shell's input. So where it goes to a terminal, characters that steer it ([`steers`]) become
//! visible (`^[`, `^G`, `\u{9b}`, `\u{202e}`), bytes that are no UTF-8 too (`\x9b`), and only line feed, tab, carriage return
//! and colours (SGR, ECMA-48 §8.3.117) are left as they are; of those, what conceals text is dropped. What goes to a pipe or
//! a file never comes here.
//!
//! What always holds: no byte is lost but what conceals others; a character or colour that is cut between two pieces is
//! recognised all the same; at most [`SGR_BYTES_MAX`] bytes are held back for that.

/// The longest colour that is recognised, in bytes.
const SGR_BYTES_MAX: usize = 64;
const ESC: u8 = 0x1b;
/// The parameter of SGR by which text is there and is not seen.
const CONCEAL: u32 = 8;
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
    /// A colour of so many bytes.
    Sgr(usize),
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
                    tame.extend_from_slice(&rest[..length]);
                    at += length;
                }
                Found::Sgr(length) => {
                    if let Some(sgr) = without_conceal(&rest[..length]) {
                        self.coloured = sgr != RESET && sgr != b"\x1b[m";
                        tame.extend_from_slice(&sgr);
                    }
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

/// A line of Holm's own with its colours, and with whatever else it quotes made harmless.
pub fn line(text: &str) -> Vec<u8> {
    let mut tamer = Tamer::default();
    let mut tame = tamer.feed(text.as_bytes());
    tame.extend(tamer.finish());
    tame
}

/// Whether a character steers what shows it: a control character, or one that turns the direction of text (UAX #9 §2).
pub fn steers(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns
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
        Some(b'm') if 3 + numbers <= SGR_BYTES_MAX => Found::Sgr(3 + numbers),
        None if rest.len() < SGR_BYTES_MAX => Found::Unfinished,
        _ => no(),
    }
}

/// A colour without what conceals; nothing where that was all of it.
fn without_conceal(sgr: &[u8]) -> Option<Vec<u8>> {
    let numbers: Vec<&[u8]> = sgr[2..sgr.len() - 1].split(|byte| *byte == b';').collect();
    let (mut kept, mut rest) = (Vec::new(), numbers.as_slice());
    while !rest.is_empty() {
        let (one, others) = rest.split_at(extent(rest));
        if first_number(one[0]) != Some(CONCEAL) {
            kept.extend_from_slice(one);
        }
        rest = others;
    }
    (!kept.is_empty()).then(|| [b"\x1b[", kept.join(&b';').as_slice(), b"m"].concat())
}

/// How many numbers belong together: `38` and `48` take the colour that follows (`5;N`, `2;R;G;B`). Terminals that do not
/// know `58` would take its numbers each by itself.
fn extent(numbers: &[&[u8]]) -> usize {
    let plain = || numbers.iter().take_while(|number| !number.contains(&b':'));
    let mut values = plain().map(|number| first_number(number));
    let wanted = match (values.next().flatten(), values.next().flatten()) {
        (Some(38 | 48), Some(5)) => 3,
        (Some(38 | 48), Some(2)) => 5,
        _ => 1,
    };
    plain().take(wanted).count().max(1)
}

/// The number before the first colon, if there is one.
fn first_number(number: &[u8]) -> Option<u32> {
    let digits = number.split(|byte| *byte == b':').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
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
        (Some(char), _) if steers(char) => Found::Shown(char.len_utf8(), char.escape_default().to_string()),
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
        let table: [(&[u8], &str); 11] = [
            (b"\x1b[2J\x1b[H", "^[[2J^[[H"),
            (b"\x1b]0;title\x07", "^[]0;title^G"),
            (b"\x1b]52;c;cm0=\x1b\\", "^[]52;c;cm0=^[\\"),
            (b"\x1bP$q\x1bc\x1b[6n", "^[P$q^[c^[[6n"),
            (b"\x1b[?1049h\x1b[>1m\x1b[ m", "^[[?1049h^[[>1m^[[ m"),
            ("\u{9b}2J\u{9d}x\u{85}".as_bytes(), "\\u{9b}2J\\u{9d}x\\u{85}"),
            (b"\x9b2J\xff\xc3", "\\x9b2J\\xff\\xc3"),
            (b"\x00\x08\x0b\x0c\x0e\x7f", "^@^H^K^L^N^?"),
            (b"\x1b\x1b[31m\x1b", "^[\x1b[31m^[\x1b[0m"),
            ("a\u{202e}b\u{202a}\u{2066}\u{2069}".as_bytes(), "a\\u{202e}b\\u{202a}\\u{2066}\\u{2069}"),
            ("\u{61c}\u{200e}\u{200f}\u{200d}".as_bytes(), "\\u{61c}\\u{200e}\\u{200f}\u{200d}"),
        ];
        for (nasty, shown) in table {
            assert_eq!(tamed(&[nasty]), shown, "{nasty:?}");
        }
        let endless = [b"\x1b[".as_slice(), &[b'1'; 500], b"m"].concat();
        assert_eq!(tamed(&[&endless]), format!("^[[{}m", "1".repeat(500)));
    }

    #[test]
    fn what_conceals_is_dropped_and_its_neighbours_stay() {
        let table = [
            ("\x1b[8mpassword", "password"),
            ("\x1b[1;8;31mx\x1b[0m", "\x1b[1;31mx\x1b[0m"),
            ("\x1b[08m\x1b[8;8m\x1b[8:1m\x1b[28m\x1b[m", "\x1b[28m\x1b[m"),
            ("\x1b[0;8mx", "\x1b[0mx"),
            ("\x1b[8;mx", "\x1b[mx"),
            ("\x1b[38;5;8;48;2;8;8;8;8;4mx\x1b[0m", "\x1b[38;5;8;48;2;8;8;8;4mx\x1b[0m"),
            ("\x1b[38:5:8;58:2::8:8:8mx\x1b[0m", "\x1b[38:5:8;58:2::8:8:8mx\x1b[0m"),
            ("\x1b[38;8m\x1b[38:5;8m\x1b[38;5;8:1m\x1b[58;5;8m\x1b[m", "\x1b[38m\x1b[38:5m\x1b[38;5m\x1b[58;5m\x1b[m"),
        ];
        for (hiding, shown) in table {
            assert_eq!(tamed(&[hiding.as_bytes()]), shown, "{hiding:?}");
        }
    }

    fn is_tame(text: &str) -> bool {
        let sound = |at: usize| matches!(sgr(&text.as_bytes()[at..]), Found::Sgr(_));
        text.char_indices().all(|(at, c)| !steers(c) || "\n\t\r".contains(c) || (c == '\x1b' && sound(at)))
    }

    /// What stands between the semicolons of a colour and belongs together, and whether it conceals.
    fn attribute() -> impl Strategy<Value = (String, bool)> {
        let ground = || prop_oneof![Just(38), Just(48)];
        prop_oneof![
            (0..110u8).prop_filter("takes a colour", |n| ![38, 48].contains(n)).prop_map(|n| (n.to_string(), n == 8)),
            Just(("8".to_owned(), true)),
            (ground(), any::<u8>()).prop_map(|(ground, n)| (format!("{ground};5;{n}"), false)),
            (ground(), 0..10u8, 0..10u8).prop_map(|(ground, a, b)| (format!("{ground};2;{a};8;{b}"), false)),
            (ground(), 0..10u8).prop_map(|(ground, n)| (format!("{ground}:5:{n}"), false)),
        ]
    }

    proptest! {
        #[test]
        fn of_a_colour_all_stays_but_what_conceals(attributes in prop::collection::vec(attribute(), 1..6)) {
            let list = |attributes: &mut dyn Iterator<Item = &(String, bool)>| {
                attributes.map(|(text, _)| text.as_str()).collect::<Vec<_>>().join(";")
            };
            let all = list(&mut attributes.iter());
            prop_assume!(all.len() + 3 <= SGR_BYTES_MAX);
            let stays = list(&mut attributes.iter().filter(|(_, conceals)| !conceals));
            let stays = if stays.is_empty() { stays } else { format!("\x1b[{stays}m") };
            prop_assert_eq!(tamed(&[format!("\x1b[{all}mx\x1b[m").as_bytes()]), format!("{stays}x\x1b[m"));
        }

        #[test]
        fn nothing_that_steers_comes_out_however_it_is_cut(
            pieces in prop::collection::vec(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..20),
                Just(b"\x1b[1;".to_vec()), Just(b"2m".to_vec()), Just(b"\xc2".to_vec()), Just(b"\x9b".to_vec()), Just(b"\x1b".to_vec()),
                Just(b"\x1b[1;8;".to_vec()), Just(b"8m".to_vec()), Just(b"\xe2\x80".to_vec()), Just(b"\xae".to_vec()),
            ], 0..30)
        ) {
            let whole: Vec<u8> = pieces.concat();
            let cut: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let tame = tamed(&cut);
            prop_assert!(is_tame(&tame), "{tame:?}");
            prop_assert_eq!(&tame, &tamed(&[&whole]), "how it is cut makes no difference");
            let mut tamer = Tamer::default();
            for piece in &cut {
                tamer.feed(piece);
                prop_assert!(tamer.held.len() <= SGR_BYTES_MAX);
            }
        }
    }
}
