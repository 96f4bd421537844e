//! `docs/limits.md` has every bound in the code: each constant that by its name is one, with its value and its meaning.
//!
//! The table is written from the code (`cargo xtask limits`) and compared here, so no bound is missing in it, none is named
//! that is not there, and none has another value. So are the defaults of the types of [`DEFAULTS`], field by field. Left
//! out: other bounds that are no item of their own.

use std::collections::BTreeMap;

use syn::{BinOp, Expr, ExprLit, Item, Lit, Stmt};

use super::{File, Finding};

/// The page.
pub const PAGE: &str = "docs/limits.md";
/// The table follows this line, to the end.
const MARK: &str = "| crate | constant | value | what |";
/// A constant whose name ends with one of these words is a bound.
const LAST_WORDS: [&str; 8] = ["MAX", "DEADLINE", "TIMEOUT", "PATIENCE", "WITHIN", "TIME", "ATTEMPTS", "KILL"];
/// Bounds with other names.
const OTHERS: [&str; 16] = [
    "BATCH_BYTES",
    "BATCH_BYTES_FULL",
    "BATCH_ENTRIES",
    "BATCH_HELD_FOR",
    "CONNECTION_WINDOW_BYTES",
    "GUEST_MEMORY_BYTES",
    "GUEST_PIDS",
    "KILL_AGAIN_AFTER",
    "LINE_HELD_FOR",
    "LOG_SEGMENT_BYTES",
    "OPEN_FILES",
    "PARTS_IN_FLIGHT",
    "POSTGRES_CONNECTIONS",
    "RING_BYTES",
    "SEND_BUFFER_BYTES",
    "SLOTS",
];
/// Types of which each default is a bound.
const DEFAULTS: [&str; 2] = ["ServeLimits", "Tuning"];
/// Files that are there for tests.
const FOR_TESTS: [&str; 7] =
    ["/tests/", "/testing.rs", "/tests.rs", "/scripted.rs", "/conformance.rs", "/properties.rs", "crates/e2e/"];

/// A value that could be worked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    Number(u128),
    Micros(u128),
}

/// Every constant of the checkout by its name, with the file in which it stands.
type Constants<'a> = BTreeMap<String, Vec<(&'a str, &'a syn::ItemConst)>>;

/// Checks that the page has the table that the code makes.
pub fn check(files: &[File]) -> Vec<Finding> {
    let Some(page) = files.iter().find(|file| file.path == PAGE) else {
        return vec![Finding::error(PAGE, "is not there: `cargo xtask limits` writes its table")];
    };
    match page_with_table(&page.text, files) {
        None => vec![Finding::error(PAGE, format!("has no line `{MARK}`"))],
        Some(wanted) if wanted == page.text => Vec::new(),
        Some(wanted) => {
            let (given, wanted) = (page.text.lines(), wanted.lines());
            let differs = given.zip(wanted).position(|(given, wanted)| given != wanted).map_or(0, |at| at + 1);
            let place = format!("{PAGE}:{differs}");
            vec![Finding::error(place, "is not what the code says: run `cargo xtask limits` and commit it")]
        }
    }
}

/// The text of the page with the table that the code makes; nothing if it has no place for it.
pub fn page_with_table(page: &str, files: &[File]) -> Option<String> {
    let (before, _) = page.split_once(MARK)?;
    Some(format!("{before}{MARK}\n|---|---|---|---|\n{}", rows(files)))
}

fn rows(files: &[File]) -> String {
    let parsed = parsed(files);
    let constants = constants(&parsed);
    let mut rows: Vec<(String, String, &str, String)> = Vec::new();
    let owner = |path: &str| {
        let within = path.strip_prefix("crates/").unwrap_or(path);
        within.split_once('/').map_or(within, |(owner, _)| owner).to_owned()
    };
    for (name, places) in constants.iter().filter(|(name, _)| is_bound(name)) {
        for (path, item) in places {
            if let Some(shown) = shown(name, path, item, &constants) {
                rows.push((owner(path), name.clone(), path, shown));
            }
        }
    }
    for (path, syntax) in &parsed {
        let defaults = defaults(path, syntax, &constants);
        rows.extend(defaults.into_iter().map(|(name, shown)| (owner(path), name, *path, shown)));
    }
    rows.sort();
    let row = |(owner, name, path, shown): (String, String, &str, String)| {
        format!("| {owner} | [`{name}`](../{path}) | {shown} |\n")
    };
    rows.into_iter().map(row).collect()
}

/// Each file of the crates that is not there for tests alone, with its path.
fn parsed(files: &[File]) -> Vec<(&str, syn::File)> {
    let of_crates = |file: &&File| file.path.starts_with("crates/") && file.path.ends_with(".rs");
    let kept = files.iter().filter(of_crates).filter(|file| !FOR_TESTS.iter().any(|part| file.path.contains(part)));
    kept.filter_map(|file| Some((file.path.as_str(), syn::parse_file(&file.text).ok()?))).collect()
}

fn constants<'a>(parsed: &'a [(&'a str, syn::File)]) -> Constants<'a> {
    let mut constants = Constants::new();
    for (path, syntax) in parsed {
        let local = default_bodies(syntax).flat_map(|(_, body)| &body.stmts).filter_map(|statement| match statement {
            Stmt::Item(item) => Some(item),
            _ => None,
        });
        for item in syntax.items.iter().chain(local) {
            if let Item::Const(item) = item {
                constants.entry(item.ident.to_string()).or_default().push((*path, item));
            }
        }
    }
    constants
}

/// The bodies of `Default::default` of the types of [`DEFAULTS`], with the name of the type.
fn default_bodies(syntax: &syn::File) -> impl Iterator<Item = (&'static str, &syn::Block)> {
    syntax.items.iter().filter_map(|item| {
        let Item::Impl(item) = item else { return None };
        let (_, of, _) = item.trait_.as_ref()?;
        let syn::Type::Path(own) = &*item.self_ty else { return None };
        let name = DEFAULTS.into_iter().find(|name| own.path.is_ident(name))?;
        match item.items.first()? {
            syn::ImplItem::Fn(function) if of.is_ident("Default") => Some((name, &function.block)),
            _ => None,
        }
    })
}

/// The fields of the defaults in a file by their names, each with its value and its meaning.
fn defaults(path: &str, syntax: &syn::File, constants: &Constants<'_>) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (owner, body) in default_bodies(syntax) {
        let Some(Stmt::Expr(Expr::Struct(made), None)) = body.stmts.last() else { continue };
        for given in &made.fields {
            let syn::Member::Named(field) = &given.member else { continue };
            let name = field.to_string();
            let Some(value) = evaluate(&given.expr, path, constants, 0) else { continue };
            let value = match value {
                Value::Number(millis) if name.ends_with("_ms") => Value::Micros(millis * 1_000),
                value => value,
            };
            let meaning = meaning(&name, attributes(syntax, owner, field));
            found.push((format!("{owner}::{name}"), format!("{} | {meaning}", value.shown(name.contains("bytes")))));
        }
    }
    found
}

/// What stands before a field of a type.
fn attributes<'a>(syntax: &'a syn::File, owner: &str, field: &syn::Ident) -> &'a [syn::Attribute] {
    let is_field = |item: &&'a syn::Field| item.ident.as_ref() == Some(field);
    let of_type = |item: &'a Item| match item {
        Item::Struct(item) if item.ident == owner => item.fields.iter().find(is_field),
        _ => None,
    };
    syntax.items.iter().find_map(of_type).map_or(&[], |field| &field.attrs)
}

fn is_bound(name: &str) -> bool {
    // EXIT_TIMEOUT and the like are codes.
    !name.starts_with("EXIT_") && is_named_as_bound(name)
}

fn is_named_as_bound(name: &str) -> bool {
    OTHERS.contains(&name) || name.rsplit('_').next().is_some_and(|word| LAST_WORDS.contains(&word))
}

/// Value and meaning; nothing for what is neither a number nor a time.
fn shown(name: &str, path: &str, item: &syn::ItemConst, constants: &Constants<'_>) -> Option<String> {
    let value = evaluate(&item.expr, path, constants, 0)?;
    Some(format!("{} | {}", value.shown(name.contains("BYTES")), meaning(name, &item.attrs)))
}

/// The first sentence of its documentation, or the words of its name.
fn meaning(name: &str, attributes: &[syn::Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        syn::Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value().trim().to_owned()),
            _ => None,
        },
        _ => None,
    });
    let text = lines.collect::<Vec<_>>().join(" ");
    let sentence = text.split_once(". ").map_or(text.as_str(), |(first, _)| first);
    let sentence = sentence.trim_end_matches('.').replace('|', "\\|").replace("[`", "`").replace("`]", "`");
    if sentence.is_empty() { name.to_lowercase().replace('_', " ") } else { sentence }
}

/// How deep a constant may lean on others.
const DEPTH_LIMIT: u32 = 8;

fn evaluate(expr: &Expr, path: &str, constants: &Constants<'_>, depth: u32) -> Option<Value> {
    if depth > DEPTH_LIMIT {
        return None;
    }
    let again = |expr: &Expr| evaluate(expr, path, constants, depth + 1);
    match expr {
        Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) => number.base10_parse().ok().map(Value::Number),
        Expr::Paren(inner) => again(&inner.expr),
        Expr::Cast(cast) => again(&cast.expr),
        Expr::Binary(binary) => calculated(&binary.op, again(&binary.left)?, again(&binary.right)?),
        Expr::Path(named) => {
            let name = named.path.segments.last()?.ident.to_string();
            let places = constants.get(&name)?;
            let own = places.iter().find(|(place, _)| *place == path).or(places.first())?;
            evaluate(&own.1.expr, own.0, constants, depth + 1)
        }
        Expr::Call(call) => {
            let Expr::Path(function) = &*call.func else { return None };
            let Value::Number(number) = again(call.args.first()?)? else { return None };
            let micros = match function.path.segments.last()?.ident.to_string().as_str() {
                "from_secs" => 1_000_000,
                "from_millis" => 1_000,
                "from_micros" => 1,
                _ => return None,
            };
            Some(Value::Micros(number * micros))
        }
        Expr::Struct(time) if time.path.is_ident("Timespec") => {
            let field = |name: &str| {
                let named = |field: &&syn::FieldValue| matches!(&field.member, syn::Member::Named(id) if id == name);
                match again(&time.fields.iter().find(named)?.expr)? {
                    Value::Number(number) => Some(number),
                    Value::Micros(_) => None,
                }
            };
            Some(Value::Micros(field("tv_sec")? * 1_000_000 + field("tv_nsec")? / 1_000))
        }
        _ => None,
    }
}

fn calculated(op: &BinOp, left: Value, right: Value) -> Option<Value> {
    let (Value::Number(left), Value::Number(right)) = (left, right) else { return None };
    let number = match op {
        BinOp::Add(_) => left.checked_add(right),
        BinOp::Sub(_) => left.checked_sub(right),
        BinOp::Mul(_) => left.checked_mul(right),
        BinOp::Div(_) => left.checked_div(right),
        BinOp::Shl(_) => left.checked_shl(u32::try_from(right).ok()?),
        _ => None,
    };
    number.map(Value::Number)
}

impl Value {
    fn shown(self, is_bytes: bool) -> String {
        match self {
            Value::Micros(micros) if micros % 1_000_000 == 0 => format!("{} s", grouped(micros / 1_000_000)),
            Value::Micros(micros) if micros % 1_000 == 0 => format!("{} ms", grouped(micros / 1_000)),
            Value::Micros(micros) => format!("{} µs", grouped(micros)),
            Value::Number(bytes) if is_bytes => {
                let units = [("TiB", 1u128 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
                let unit = units.into_iter().find(|(_, size)| bytes >= *size && bytes % size == 0);
                unit.map_or_else(|| grouped(bytes), |(unit, size)| format!("{} {unit}", grouped(bytes / size)))
            }
            Value::Number(number) => grouped(number),
        }
    }
}

/// With a comma after every three digits from the right.
fn grouped(number: u128) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.into(), text: text.into() }
    }

    const CODE: &str = "
/// The longest line, in bytes. Longer ones are cut.
pub const LINE_BYTES_MAX: usize = 64 * 1024;
/// How many | there are.
const THINGS_MAX: u64 = (1 << 20) + FEW as u64;
const FEW: usize = 5;
const WRITE_TIMEOUT: Duration = Duration::from_millis(1_500);
const LAUNCH_TIME: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };
const NAME_MAX: &str = \"no number\";
mod tests { const INNER_MAX: u8 = 1; }
/// What can be set.
pub struct Tuning {
    /// How long the answer may take.
    pub answer_ms: u64,
    /// The most that is kept. Not more.
    pub kept_bytes: usize,
    pub write_timeout: Duration,
}
impl Default for Tuning {
    fn default() -> Self {
        const KIB: usize = 1024;
        Self { answer_ms: 10_000, kept_bytes: 8 * KIB, write_timeout: Duration::from_millis(7) }
    }
}
impl Default for Other {
    fn default() -> Self {
        Self { other_max: 3 }
    }
}
";

    fn sound() -> Vec<File> {
        let files = vec![
            file("crates/shim/src/a.rs", CODE),
            file("crates/domain/src/b.rs", "pub const ITEMS_MAX: usize = crate::LINE_BYTES_MAX / 2;"),
            file("crates/shim/tests/c.rs", "const TEST_MAX: usize = 1;"),
        ];
        let page = page_with_table(&format!("# Limits\n\n{MARK}\n"), &files).unwrap();
        files.into_iter().chain([file(PAGE, &page)]).collect()
    }

    #[test]
    fn the_table_has_each_bound_with_value_and_meaning() {
        let files = sound();
        assert_eq!(check(&files), Vec::new());
        let rows: Vec<&str> = files[3].text.lines().skip(4).collect();
        assert_eq!(
            rows,
            [
                "| domain | [`ITEMS_MAX`](../crates/domain/src/b.rs) | 32,768 | items max |",
                "| shim | [`LAUNCH_TIME`](../crates/shim/src/a.rs) | 30 s | launch time |",
                "| shim | [`LINE_BYTES_MAX`](../crates/shim/src/a.rs) | 64 KiB | The longest line, in bytes |",
                "| shim | [`THINGS_MAX`](../crates/shim/src/a.rs) | 1,048,581 | How many \\| there are |",
                "| shim | [`Tuning::answer_ms`](../crates/shim/src/a.rs) | 10 s | How long the answer may take |",
                "| shim | [`Tuning::kept_bytes`](../crates/shim/src/a.rs) | 8 KiB | The most that is kept |",
                "| shim | [`Tuning::write_timeout`](../crates/shim/src/a.rs) | 7 ms | write timeout |",
                "| shim | [`WRITE_TIMEOUT`](../crates/shim/src/a.rs) | 1,500 ms | write timeout |",
            ]
        );
    }

    #[test]
    fn another_value_a_missing_and_an_invented_bound_are_found() {
        let changes: [(usize, &str, &str); 5] = [
            (0, "64 * 1024", "63 * 1024"),
            (0, "const FEW: usize", "pub const MORE_MAX: u8 = 9; const FEW: usize"),
            (0, "answer_ms: 10_000", "answer_ms: 10_001"),
            (0, "KIB: usize = 1024", "KIB: usize = 1000"),
            (3, "| domain |", "| domain | invented | 1 | nothing |\n| domain |"),
        ];
        for (index, from, to) in changes {
            let mut files = sound();
            files[index].text = files[index].text.replacen(from, to, 1);
            assert_eq!(check(&files).len(), 1, "{to}");
        }
        let mut files = sound();
        files.pop();
        assert_eq!(check(&files).len(), 1, "no page");
        files.push(file(PAGE, "# Limits\n"));
        assert_eq!(check(&files).len(), 1, "no table");
    }
}
