//! Which crate may import which: the table in `docs/architecture.md` against what cargo knows.
//!
//! The table in the document is the rule itself, so the document cannot fall behind. Dependencies for tests and build
//! scripts count as well.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use cargo_metadata::MetadataCommand;

use super::{File, Finding, names};
use crate::places;

const DOCUMENT: &str = "docs/architecture.md";
const TABLE_HEAD: &str = "| crate | may import |";

/// What one crate may import.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Allowed {
    Everything,
    Only(BTreeSet<String>),
}

/// The crates of the project, each with those of the project that it depends on; names without `holm-`.
type Imports = BTreeMap<String, BTreeSet<String>>;

/// Checks the manifests.
pub fn check(files: &[File]) -> Result<Vec<Finding>> {
    let document = files.iter().find(|file| file.path == DOCUMENT).with_context(|| format!("{DOCUMENT} is missing"))?;
    let imports = imports()?;
    let mut findings: Vec<Finding> = imports.keys().filter_map(|name| names::check_crate(name)).collect();
    match parse_table(&document.text) {
        Ok(table) => findings.extend(compare(&table, &imports)),
        Err(problem) => findings.push(Finding::error(DOCUMENT, problem)),
    }
    Ok(findings)
}

fn bare(name: &str) -> &str {
    name.strip_prefix("holm-").unwrap_or(name)
}

/// Reads every manifest: the workspace, and the guest, which stands outside it.
fn imports() -> Result<Imports> {
    let root = places::root()?;
    let mut packages = Vec::new();
    for manifest in ["Cargo.toml", "crates/guest/Cargo.toml"].map(|path| root.join(path)) {
        if manifest.is_file() {
            let metadata = MetadataCommand::new().manifest_path(&manifest).no_deps().exec();
            packages.extend(metadata.with_context(|| format!("cannot read {}", manifest.display()))?.packages);
        }
    }
    let mut imports = Imports::new();
    for package in &packages {
        let ours = package.dependencies.iter().filter(|dependency| dependency.path.is_some());
        let names = ours.map(|dependency| bare(&dependency.name).to_owned()).collect();
        imports.insert(bare(package.name.as_str()).to_owned(), names);
    }
    Ok(imports)
}

/// Reads the table: `| crate, crate | crate, crate |`, where a note in parentheses is for people.
fn parse_table(text: &str) -> Result<BTreeMap<String, Allowed>, String> {
    let mut lines = text.lines().skip_while(|line| line.trim() != TABLE_HEAD).skip(2).peekable();
    if lines.peek().is_none() {
        return Err(format!("there is no table that begins with `{TABLE_HEAD}`"));
    }
    let mut table = BTreeMap::new();
    for line in lines.take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let &[crates, allowed] = cells.as_slice() else { return Err(format!("`{line}` has not two cells")) };
        let allowed = parse_allowed(allowed);
        for name in crates.split(',') {
            table.insert(name.trim().to_owned(), allowed.clone());
        }
    }
    Ok(table)
}

fn parse_allowed(cell: &str) -> Allowed {
    match cell {
        "everything" => Allowed::Everything,
        "nothing of ours" => Allowed::Only(BTreeSet::new()),
        _ => {
            let names = cell.split(',').filter_map(|part| part.split_whitespace().next());
            Allowed::Only(names.map(str::to_owned).collect())
        }
    }
}

fn compare(table: &BTreeMap<String, Allowed>, imports: &Imports) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, imported) in imports {
        let place = format!("crate {name}");
        match table.get(name) {
            None => findings.push(Finding::error(place, format!("has no row in the table of {DOCUMENT}"))),
            Some(Allowed::Everything) => {}
            Some(Allowed::Only(allowed)) => {
                for import in imported.difference(allowed) {
                    let problem = format!("imports {import}, which the table of {DOCUMENT} does not allow");
                    findings.push(Finding::error(&place, problem));
                }
            }
        }
    }
    for name in table.keys().filter(|name| !imports.contains_key(*name)) {
        findings.push(Finding::error(DOCUMENT, format!("the table names {name}, and there is no such crate")));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "text\n\n| crate | may import |\n|---|---|\n| domain, wire | nothing of ours |\n\
                         | agent | domain, shim (its client only) |\n| holm | everything |\n\nmore\n";

    fn found(imports: &[(&str, &[&str])]) -> Vec<String> {
        let table = parse_table(TABLE).expect("the table is well-formed");
        let all = [("domain", &[][..]), ("wire", &[]), ("agent", &["domain", "shim"]), ("holm", &["agent"])];
        let mut known: Imports = BTreeMap::new();
        for (name, imported) in all.iter().chain(imports) {
            known.insert((*name).to_owned(), imported.iter().map(|import| (*import).to_owned()).collect());
        }
        compare(&table, &known).into_iter().map(|finding| format!("{}: {}", finding.place, finding.problem)).collect()
    }

    #[test]
    fn what_the_table_allows_passes() {
        assert_eq!(found(&[]), Vec::<String>::new());
    }

    #[test]
    fn what_it_does_not_is_found() {
        let findings = found(&[("wire", &["domain"])]);
        assert!(findings.len() == 1 && findings[0].contains("wire: imports domain"), "{findings:?}");
        let findings = found(&[("agent", &["domain", "store"])]);
        assert!(findings.len() == 1 && findings[0].contains("imports store"), "{findings:?}");
        let findings = found(&[("new", &[])]);
        assert!(findings.len() == 1 && findings[0].contains("no row"), "{findings:?}");
    }

    #[test]
    fn a_document_without_its_table_is_found() {
        assert!(parse_table("text\n").is_err());
        let table = parse_table(TABLE).expect("the table is well-formed");
        assert_eq!(compare(&table, &Imports::new()).len(), table.len(), "every row names a crate that is not there");
    }

    #[test]
    fn the_crates_of_this_checkout_are_seen() {
        let imports = imports().expect("cargo metadata");
        assert!(imports["shim"].contains("domain") && imports["xtask"].is_empty(), "{imports:?}");
    }
}
