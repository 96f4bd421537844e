//! Rules for every text file: no trailing blanks, a line feed at the end, Unix line ends.

use super::{File, Finding};

/// Checks one file.
pub fn check(file: &File) -> Vec<Finding> {
    // Texts that are not ours stand as their authors wrote them, and what a fuzzer found as it is.
    if file.path == "LICENSE" || file.path.starts_with("fuzz/corpus/") || file.text.is_empty() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (index, line) in file.text.split('\n').enumerate() {
        if line.ends_with([' ', '\t', '\r']) {
            findings.push(Finding::error(format!("{}:{}", file.path, index + 1), "blanks at the end of the line"));
        }
    }
    if !file.text.ends_with('\n') {
        findings.push(Finding::error(&file.path, "no line feed at the end of the file"));
    } else if file.text.ends_with("\n\n") {
        findings.push(Finding::error(&file.path, "empty lines at the end of the file"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let file = File { path: "a.md".into(), text: text.into() };
        check(&file).into_iter().map(|finding| finding.place).collect()
    }

    #[test]
    fn blanks_and_ends_are_found() {
        assert!(found("fine\n\nfine\n").is_empty());
        assert_eq!(found("bad \nfine\n"), ["a.md:1"]);
        assert_eq!(found("fine\nbad\t\n"), ["a.md:2"]);
        assert_eq!(found("windows\r\n"), ["a.md:1"]);
        assert_eq!(found("no end"), ["a.md"]);
        assert_eq!(found("too many\n\n"), ["a.md"]);
        assert!(check(&File { path: "fuzz/corpus/spool/1".into(), text: "no end ".into() }).is_empty());
    }
}
