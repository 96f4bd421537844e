//! The forms in which a secret is told by whoever writes it somewhere: those that libraries in common use give it.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};

/// As it is and in large or small letters alone; in base 64 (RFC 4648) wherever it stands in what is encoded; in hexadecimal
/// digits; with percent signs (RFC 3986, section 2.1); in strings of JSON (RFC 8259, section 7); in HTML; in UTF-16. Some of them are
/// the same.
pub fn forms(value: &str) -> Vec<Vec<u8>> {
    let plain = [value.to_owned(), value.to_ascii_lowercase(), value.to_ascii_uppercase()];
    let texts = plain.into_iter().chain(hexadecimal(value)).chain(percent(value)).chain(json(value)).chain(html(value));
    let texts = texts.map(String::into_bytes);
    texts.chain(base64(value.as_bytes())).chain(utf16(value)).collect()
}

fn each(value: &str, form: impl Fn(u8) -> String) -> String {
    value.bytes().map(form).collect()
}

fn hexadecimal(value: &str) -> impl Iterator<Item = String> {
    let small: Vec<String> = value.bytes().map(|byte| format!("{byte:02x}")).collect();
    let large: Vec<String> = value.bytes().map(|byte| format!("{byte:02X}")).collect();
    [small, large].into_iter().flat_map(|digits| [digits.concat(), digits.join(":")])
}

/// What stays as it is beside letters, digits and `-._~`: nothing; for `quote` of Python; for `encodeURIComponent` and `encodeURI`
/// of JavaScript; and in forms, where a blank is a plus sign.
const STAY: [(&str, bool); 6] =
    [("", false), ("/", false), ("!'()*", false), (";,/?:@&=+$#!'()*", false), ("*", true), ("", true)];

fn percent(value: &str) -> Vec<String> {
    let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    let escape = |byte: u8, is_large| if is_large { format!("%{byte:02X}") } else { format!("%{byte:02x}") };
    let mut all = Vec::new();
    for is_large in [false, true] {
        all.push(each(value, |byte| escape(byte, is_large)));
        all.extend(STAY.iter().map(|(stay, is_form)| {
            each(value, |byte| match byte {
                b' ' if *is_form => "+".to_owned(),
                byte if is_unreserved(byte) || stay.as_bytes().contains(&byte) => char::from(byte).into(),
                byte => escape(byte, is_large),
            })
        }));
    }
    all
}

/// A character by its units in UTF-16.
fn units(c: char, is_large: bool) -> String {
    let unit = |unit: &u16| if is_large { format!("\\u{unit:04X}") } else { format!("\\u{unit:04x}") };
    c.encode_utf16(&mut [0; 2]).iter().map(unit).collect()
}

/// What is written by its number beside what must be: nothing; what could be taken for HTML; what Gson and .NET add to that; all.
const BY_NUMBER: [fn(char) -> bool; 5] = [
    |_| false,
    |c| matches!(c, '<' | '>' | '&'),
    |c| matches!(c, '<' | '>' | '&' | '=' | '\''),
    |c| matches!(c, '<' | '>' | '&' | '\'' | '+' | '`' | '"'),
    |_| true,
];

fn json(value: &str) -> Vec<String> {
    let mut all = Vec::new();
    for is_by_number in BY_NUMBER {
        for (is_large, is_ascii, slash) in (0..8).map(|bits| (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0)) {
            let form = |c: char| match c {
                c if is_by_number(c) || (is_ascii && !c.is_ascii()) => units(c, is_large),
                '"' | '\\' => format!("\\{c}"),
                '/' if slash => "\\/".to_owned(),
                c => c.into(),
            };
            all.push(value.chars().map(form).collect());
        }
    }
    all
}

/// How `"`, `'` and `/` are written where `&`, `<` and `>` have their names.
const QUOTES: [[&str; 3]; 5] = [
    ["\"", "'", "/"],
    ["&quot;", "&#x27;", "/"],
    ["&quot;", "&#39;", "/"],
    ["&#34;", "&#39;", "/"],
    ["&quot;", "&#x27;", "&#x2F;"],
];

fn html(value: &str) -> impl Iterator<Item = String> {
    QUOTES.into_iter().map(|[double, single, slash]| {
        let form = |c: char| match c {
            '&' => "&amp;".to_owned(),
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            '"' => double.to_owned(),
            '\'' => single.to_owned(),
            '/' => slash.to_owned(),
            c => c.into(),
        };
        value.chars().map(form).collect()
    })
}

fn utf16(value: &str) -> [Vec<u8>; 2] {
    [u16::to_le_bytes, u16::to_be_bytes].map(|bytes| value.encode_utf16().flat_map(bytes).collect())
}

/// Behind none, one and two other bytes, in both alphabets, and with its signs written as in JSON and in a query.
fn base64(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for before in 0..3 {
        let behind = [&[0; 2][..before], bytes].concat();
        let digits = |encoded: String| whole_digits(&encoded, before, bytes.len());
        let standard = digits(STANDARD_NO_PAD.encode(&behind));
        let texts = [
            standard.replace('/', "\\/"),
            standard.replace('+', "%2B").replace('/', "%2F"),
            standard.replace('+', "\\u002B"),
            standard,
            digits(URL_SAFE_NO_PAD.encode(&behind)),
        ];
        all.extend(texts.map(String::into_bytes));
    }
    all
}

/// Those digits of base 64 that come from the value alone, of `length` bytes behind `before` others; those at its ends come from
/// what stands beside as well.
fn whole_digits(encoded: &str, before: usize, length: usize) -> String {
    let (first, end) = ((before * 8).div_ceil(6), (before + length) * 8 / 6);
    encoded[first..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What libraries make of one text: `json.dumps`, `urllib.parse.quote` and `quote_plus`, `html.escape` and `bytes.hex(":")`
    /// of Python, `JSON.stringify`, `encodeURIComponent`, `encodeURI` and `URLSearchParams` of JavaScript.
    const TEXT: &str = "a+b/c=d\"e<f>&g'h\\i j(k)!\u{e9}";
    const WRITTEN: [&str; 10] = [
        "a+b/c=d\\\"e<f>&g'h\\\\i j(k)!\\u00e9",
        "a+b/c=d\\\"e<f>&g'h\\\\i j(k)!\u{e9}",
        "a%2Bb/c%3Dd%22e%3Cf%3E%26g%27h%5Ci%20j%28k%29%21%C3%A9",
        "a%2Bb%2Fc%3Dd%22e%3Cf%3E%26g%27h%5Ci%20j%28k%29%21%C3%A9",
        "a%2Bb%2Fc%3Dd%22e%3Cf%3E%26g%27h%5Ci+j%28k%29%21%C3%A9",
        "a%2Bb%2Fc%3Dd%22e%3Cf%3E%26g'h%5Ci%20j(k)!%C3%A9",
        "a+b/c=d%22e%3Cf%3E&g'h%5Ci%20j(k)!%C3%A9",
        "a+b/c=d&quot;e&lt;f&gt;&amp;g&#x27;h\\i j(k)!\u{e9}",
        "61:2b:62:2f:63:3d:64:22:65:3c:66:3e:26:67:27:68:5c:69:20:6a:28:6b:29:21:c3:a9",
        "612b622f633d6422653c663e266727685c69206a286b2921c3a9",
    ];

    #[test]
    fn what_libraries_write_is_among_them() {
        let forms = forms(TEXT);
        for written in WRITTEN {
            assert!(forms.iter().any(|form| form == written.as_bytes()), "{written}");
        }
    }

    #[test]
    fn what_is_written_where_each_sign_has_a_name_is_among_them() {
        let forms = forms("a+b/c=d");
        for written in ["a\\u002Bb/c=d", "a+b/c\\u003dd", "a+b\\/c=d", "a+b&#x2F;c=d", "A+B/C=D"] {
            assert!(forms.iter().any(|form| form == written.as_bytes()), "{written}");
        }
        assert!(forms.contains(&b"a\0+\0b\0/\0c\0=\0d\0".to_vec()));
    }
}
