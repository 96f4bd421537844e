//! Every link in a page leads to a file or folder of the checkout, and every page of the guide stands in its summary.
//!
//! Left out: links to other hosts, which nothing here may ask, and the part behind a `#`.

use std::{
    collections::BTreeSet,
    path::{Component, Path},
};

use super::{File, Finding};

const GUIDE: &str = "docs/guide/src/";
const SUMMARY: &str = "SUMMARY.md";

/// Checks all pages.
pub fn check(files: &[File]) -> Vec<Finding> {
    let there = there(files);
    let pages = files.iter().filter(|file| file.path.ends_with(".md"));
    let mut findings: Vec<Finding> = pages.flat_map(|page| dead(page, &there)).collect();
    findings.extend(unlisted(files));
    findings
}

/// The files and the folders in which they lie.
fn there(files: &[File]) -> BTreeSet<String> {
    let paths = files.iter().flat_map(|file| Path::new(&file.path).ancestors());
    paths.map(|path| path.to_string_lossy().into_owned()).collect()
}

fn dead(page: &File, there: &BTreeSet<String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(prose(&page.text)) {
        for link in links(line).filter(|link| !is_elsewhere(link)) {
            let path = link.split('#').next().unwrap_or(link);
            if resolve(&page.path, path).is_none_or(|found| !there.contains(&found)) {
                let place = format!("{}:{number}", page.path);
                findings.push(Finding::error(place, format!("the link `{link}` leads nowhere")));
            }
        }
    }
    findings
}

/// The lines of a page, those of blocks of code empty. What a fence begins ends at one that is at least as long.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut open = 0;
    text.lines().map(move |line| {
        let fence = line.trim_start().bytes().take_while(|byte| *byte == b'`').count();
        match open {
            0 if fence >= 3 => open = fence,
            0 => return line,
            _ if fence >= open => open = 0,
            _ => {}
        }
        ""
    })
}

/// Where the links of a line lead: what stands in the parentheses of `[…](…)`.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next()).filter(|link| !link.is_empty())
}

fn is_elsewhere(link: &str) -> bool {
    link.contains("://") || link.starts_with('#') || link.starts_with("mailto:")
}

/// The path from the top of the checkout; nothing if it leads out of it.
fn resolve(page: &str, link: &str) -> Option<String> {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for component in Path::new(link).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::ParentDir => drop(parts.pop()?),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

/// Pages of the guide that nobody comes to.
fn unlisted(files: &[File]) -> Vec<Finding> {
    let pages = files.iter().filter_map(|file| file.path.strip_prefix(GUIDE).map(|name| (name, file)));
    let summary = pages.clone().find(|(name, _)| *name == SUMMARY).map_or("", |(_, file)| &file.text);
    let listed: BTreeSet<&str> = summary.lines().flat_map(links).collect();
    let lost = pages.filter(|(name, _)| name.ends_with(".md") && *name != SUMMARY && !listed.contains(name));
    lost.map(|(_, file)| Finding::error(&file.path, format!("it does not stand in {GUIDE}{SUMMARY}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.into(), text: text.into() }
    }

    #[test]
    fn dead_links_are_found() {
        let page = "[a](b.md) and [c](../x/#part)\n````\n```\n[d](none.md)\n````\n[e](https://example.org) [f](#here) [g](gone.md)";
        let files = [file("docs/a.md", page), file("docs/b.md", ""), file("x/y.rs", "")];
        let found = check(&files);
        assert_eq!(found, [Finding::error("docs/a.md:6", "the link `gone.md` leads nowhere")]);
        let out = [file("docs/a.md", "[out](../../etc/passwd) [root](/etc/passwd)")];
        assert_eq!(check(&out).len(), 2);
    }

    #[test]
    fn lost_pages_of_the_guide_are_found() {
        let summary = file("docs/guide/src/SUMMARY.md", "- [One](one.md)\n");
        let files = [summary, file("docs/guide/src/one.md", ""), file("docs/guide/src/two.md", "")];
        let found = check(&files);
        assert!(found.len() == 1 && found[0].place.ends_with("two.md"), "{found:?}");
    }
}
