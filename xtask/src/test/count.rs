//! Counting tests from what the harnesses print.

use std::fmt;

/// How many tests ran, and how they ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those that passed.
    pub passed: u64,
    /// Those that failed or took too long.
    pub failed: u64,
    /// Those that did not run.
    pub skipped: u64,
}

impl Counts {
    /// Adds what a line says, if it is the last line of a harness.
    pub fn see(&mut self, line: &str) {
        let line = without_colours(line);
        let nextest = line.trim_start().starts_with("Summary [") && line.contains(" run: ");
        if !nextest && !line.starts_with("test result: ") {
            return;
        }
        self.passed += before(&line, " passed");
        self.failed += before(&line, " failed") + before(&line, " timed out");
        self.skipped += before(&line, " skipped") + before(&line, " ignored");
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 { write!(f, ", {} skipped", self.skipped) } else { Ok(()) }
    }
}

/// The number that stands right before `word`; 0 where there is none.
fn before(line: &str, word: &str) -> u64 {
    let Some((head, _)) = line.split_once(word) else { return 0 };
    let digits = head.len() - head.bytes().rev().take_while(u8::is_ascii_digit).count();
    head[digits..].parse().unwrap_or(0)
}

fn without_colours(line: &str) -> String {
    let mut plain = String::new();
    let mut rest = line;
    while let Some((text, escape)) = rest.split_once('\x1b') {
        plain.push_str(text);
        rest = escape.split_once('m').map_or("", |(_, after)| after);
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(lines: &[&str]) -> Counts {
        let mut counts = Counts::default();
        lines.iter().for_each(|line| counts.see(line));
        counts
    }

    #[test]
    fn both_harnesses_are_read() {
        let nextest = "     Summary [   0.006s] 7 tests run: 4 passed (1 slow), 1 failed, 2 timed out, 3 skipped";
        assert_eq!(seen(&[nextest]), Counts { passed: 4, failed: 3, skipped: 3 });
        let libtest =
            "test result: FAILED. 19 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.90s";
        assert_eq!(seen(&[libtest, libtest]), Counts { passed: 38, failed: 2, skipped: 4 });
        let coloured = "\x1b[32;1m     Summary\x1b[0m [   1.0s] \x1b[1m1\x1b[0m test run: \x1b[1m1\x1b[0m \x1b[32;1mpassed\x1b[0m, 0 skipped";
        assert_eq!(seen(&[coloured]), Counts { passed: 1, failed: 0, skipped: 0 });
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(seen(&["test a ... ok", "5 passed", "        PASS [   0.0s] 3 passed"]), Counts::default());
    }

    #[test]
    fn the_last_line_is_plain() {
        assert_eq!(Counts { passed: 3, failed: 0, skipped: 0 }.to_string(), "3 passed, 0 failed");
        assert_eq!(Counts { passed: 3, failed: 1, skipped: 2 }.to_string(), "3 passed, 1 failed, 2 skipped");
    }
}
