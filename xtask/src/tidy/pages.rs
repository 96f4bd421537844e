//! Each stable code has a page, and each page a code: `docs/errors/` for errors of the API, `docs/reasons/` for the reasons
//! for which runs end.

use std::collections::BTreeSet;

use super::{File, Finding};

/// What a page must have, so that whoever meets the code knows what to do.
const HEADINGS: [&str; 3] = ["## Why it happens", "## Example", "## What to do"];

/// A set of codes and the folder of their pages.
struct Kind {
    source: &'static str,
    folder: &'static str,
    codes: fn(&str) -> BTreeSet<String>,
}

const KINDS: [Kind; 2] = [
    Kind { source: "crates/domain/src/error.rs", folder: "docs/errors/", codes: error_codes },
    Kind { source: "crates/domain/src/run/outcome.rs", folder: "docs/reasons/", codes: reasons },
];

/// Checks both folders.
pub fn check(files: &[File]) -> Vec<Finding> {
    KINDS.iter().flat_map(|kind| check_kind(kind, files)).collect()
}

fn check_kind(kind: &Kind, files: &[File]) -> Vec<Finding> {
    let text = files.iter().find(|file| file.path == kind.source).map(|file| file.text.as_str());
    let codes = text.map(kind.codes).unwrap_or_default();
    if codes.is_empty() {
        return vec![Finding::error(kind.source, "no codes were found in it: this check must be brought up to date")];
    }
    let mut findings = Vec::new();
    let mut paged = BTreeSet::new();
    for file in files {
        let Some(name) = file.path.strip_prefix(kind.folder).and_then(|name| name.strip_suffix(".md")) else {
            continue;
        };
        if name == "README" {
            continue;
        }
        paged.insert(name.to_owned());
        findings.extend(check_page(file, name));
    }
    for code in codes.difference(&paged) {
        findings.push(Finding::error(kind.source, format!("`{code}` has no page {}{code}.md", kind.folder)));
    }
    for code in paged.difference(&codes) {
        findings.push(Finding::error(format!("{}{code}.md", kind.folder), "there is no such code"));
    }
    findings
}

fn check_page(file: &File, name: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !file.text.starts_with(&format!("# {name}\n")) {
        findings.push(Finding::error(&file.path, format!("does not begin with `# {name}`")));
    }
    for heading in HEADINGS.iter().filter(|heading| !file.text.lines().any(|line| line == **heading)) {
        findings.push(Finding::error(&file.path, format!("has no `{heading}`")));
    }
    findings
}

/// The codes of the macro `codes!`: each stands in a line `Name = "code", status, "title";`.
fn error_codes(text: &str) -> BTreeSet<String> {
    let lines = text.lines().map(str::trim).filter(|line| line.ends_with(';'));
    let codes = lines.filter_map(|line| {
        let (name, rest) = line.split_once(" = \"")?;
        let (code, rest) = rest.split_once("\", ")?;
        let (status, _) = rest.split_once(',')?;
        let named = name.chars().all(char::is_alphanumeric) && status.parse::<u16>().is_ok();
        named.then(|| code.to_owned())
    });
    codes.collect()
}

/// The variants of `enum Reason` as serde writes them.
fn reasons(text: &str) -> BTreeSet<String> {
    let Ok(file) = syn::parse_file(text) else { return BTreeSet::new() };
    let found = file.items.iter().find_map(|item| match item {
        syn::Item::Enum(item) if item.ident == "Reason" => Some(item),
        _ => None,
    });
    found.into_iter().flat_map(|item| &item.variants).map(|variant| snake_case(&variant.ident.to_string())).collect()
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for (index, letter) in name.chars().enumerate() {
        if letter.is_uppercase() && index > 0 {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.into(), text: text.into() }
    }

    fn page(path: &str, name: &str) -> File {
        file(path, &format!("# {name}\n\n{}\n", HEADINGS.join("\n")))
    }

    fn sound() -> Vec<File> {
        vec![
            file("crates/domain/src/error.rs", "codes! {\n    NotFound = \"not_found\", 404, \"No such thing\";\n}\n"),
            file("crates/domain/src/run/outcome.rs", "pub enum Reason { GuestLost }\n"),
            page("docs/errors/not_found.md", "not_found"),
            page("docs/reasons/guest_lost.md", "guest_lost"),
        ]
    }

    #[test]
    fn codes_with_pages_pass() {
        assert_eq!(check(&sound()), Vec::new());
    }

    #[test]
    fn a_code_without_a_page_and_a_page_without_a_code_are_found() {
        for index in [2, 3] {
            let mut files = sound();
            files.remove(index);
            assert_eq!(check(&files).len(), 1, "without {}", sound()[index].path);
        }
        let mut files = sound();
        files.push(page("docs/errors/gone.md", "gone"));
        assert_eq!(check(&files).len(), 1);
    }

    #[test]
    fn a_page_that_says_too_little_is_found() {
        let mut files = sound();
        files[2].text = "# other\n## Example\n".into();
        assert_eq!(check(&files).len(), 3, "the title and two headings");
    }

    #[test]
    fn a_source_without_codes_is_found() {
        let mut files = sound();
        files[0].text = "codes!{}\n".into();
        assert!(check(&files).iter().any(|finding| finding.problem.contains("brought up to date")));
    }
}
