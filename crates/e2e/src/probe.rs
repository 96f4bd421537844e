//! Attempts to get out of a sandbox: Python programs that try one thing after the other and tell of each how it went.
//!
//! A program prints one line an attempt: `NAME refused ERRNO` or `NAME allowed WHAT`. A test names every attempt together
//! with the errors that count as a refusal, so an attempt that was never made, or that failed for another reason than the
//! one that is meant (a typing error, a file that is not there), fails the test as surely as one that succeeded. Attempts
//! of the same name are judged together.

use std::collections::BTreeMap;

use crate::Ran;

/// What every program begins with.
const PRELUDE: &str = r#"
import ctypes, errno, os, socket, stat, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def attempt(name, what):
    try:
        value = what()
    except OSError as error:
        print(name, "refused", errno.errorcode.get(error.errno, error.errno), flush=True)
    else:
        print(name, "allowed", repr(value)[:200], flush=True)

# What is there and holds nothing gives nothing away.
def something(found):
    if not found:
        raise OSError(errno.ENOENT, "nothing there")
    return found

def checked(value):
    if value == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return value

def syscall(number, *arguments):
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return checked(libc.syscall(ctypes.c_long(number), *words))
"#;

/// The whole text of a program whose attempts are `body`.
pub fn program(body: &str) -> String {
    format!("{PRELUDE}\n{body}\n")
}

/// How the attempts of a program went.
#[derive(Debug)]
pub struct Attempts {
    results: BTreeMap<String, Vec<(String, String)>>,
    said: String,
}

impl Attempts {
    /// Reads what a program printed; it must have come to its end.
    #[track_caller]
    pub fn of(ran: Ran) -> Self {
        let ran = ran.succeeds();
        let mut results: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for line in ran.text().lines() {
            let mut words = line.splitn(3, ' ');
            if let (Some(name), Some(verdict @ ("refused" | "allowed")), Some(rest)) =
                (words.next(), words.next(), words.next())
            {
                results.entry(name.to_owned()).or_default().push((verdict.to_owned(), rest.to_owned()));
            }
        }
        Self { results, said: ran.to_string() }
    }

    /// Fails the test unless the attempt was made and refused with one of these errors, each time if there were several.
    #[track_caller]
    pub fn refused(&mut self, name: &str, errors: &[&str]) {
        let Some(results) = self.results.remove(name) else { panic!("{name} was not attempted\n{}", self.said) };
        for (verdict, rest) in results {
            let is_refusal = verdict == "refused" && errors.contains(&rest.as_str());
            assert!(is_refusal, "{name}: {verdict} {rest}, wanted one of {errors:?}\n{}", self.said);
        }
    }

    /// Fails the test if there was an attempt of which the test does not know.
    #[track_caller]
    pub fn no_more(self) {
        assert!(self.results.is_empty(), "not judged: {:?}\n{}", self.results, self.said);
    }
}
