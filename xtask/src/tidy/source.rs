//! Rules for Rust files: how they begin, how long they and their functions are, where `unsafe` may stand, what may panic,
//! and which steps on the file system need a name.
//!
//! Files are parsed, so strings and comments are never mistaken for code. Left out: what a file system is changed by besides
//! [`STEPS`], such as a file that is opened and so made.

use syn::visit::Visit;

use super::{File, Finding, names};

/// A file longer than this deserves a look.
const FILE_LINES_WARN: usize = 400;
/// A file longer than this is refused.
const FILE_LINES_MAX: usize = 800;
/// A function with more lines of code than this is refused.
const FUNCTION_LINES_MAX: usize = 70;
/// The only crates that may contain `unsafe`.
const UNSAFE_ALLOWED: [&str; 2] = ["crates/runtime/", "crates/guest/"];

/// Where a step whose trace outlives its process has a name (`holm_runtime::crash`), at which a test has the process die.
const EFFECTS_IN: [&str; 3] = ["crates/agent/src/", "crates/runtime/src/process/", "crates/shim/src/"];
/// Such steps: type or module, and function.
const STEPS: [(&str, &str); 10] = [
    ("File", "create"),
    ("File", "create_new"),
    ("fs", "create_dir"),
    ("fs", "create_dir_all"),
    ("fs", "hard_link"),
    ("fs", "remove_dir"),
    ("fs", "remove_dir_all"),
    ("fs", "remove_file"),
    ("fs", "rename"),
    ("fs", "write"),
];
/// How the line before such a step begins that stands within the effect of a caller, or is none; what follows says which or why.
const REMARKS: [&str; 2] = ["// Effect: ", "// No effect: "];

/// Checks all Rust files.
pub fn check_all(files: &[File]) -> Vec<Finding> {
    let tests: Vec<String> = files.iter().flat_map(test_modules).collect();
    let of_tests = |path: &str| tests.iter().any(|module| is_of_module(path, module));
    let rust = files.iter().filter(|file| file.path.ends_with(".rs"));
    rust.flat_map(|file| check(file, of_tests(&file.path))).collect()
}

/// The paths, without their ending, of modules that a file declares for tests only: `#[cfg(test)] mod name;`.
fn test_modules(file: &File) -> Vec<String> {
    let Some(stem) = file.path.strip_suffix(".rs") else { return Vec::new() };
    let Ok(syntax) = syn::parse_file(&file.text) else { return Vec::new() };
    // Modules lie beside lib.rs, main.rs and mod.rs, and below any other file.
    let dir = match stem.rsplit_once('/') {
        Some((dir, "lib" | "main" | "mod")) => dir,
        _ => stem,
    };
    let modules = syntax.items.iter().filter_map(|item| match item {
        syn::Item::Mod(item) if item.content.is_none() && item.attrs.iter().any(is_test_attribute) => Some(&item.ident),
        _ => None,
    });
    modules.map(|name| format!("{dir}/{name}")).collect()
}

fn is_of_module(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// Checks one Rust file.
fn check(file: &File, of_tests: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !file.text.starts_with("//!") {
        findings
            .push(Finding::error(&file.path, "does not begin with `//!`: say what it is for and what always holds"));
    }
    let lines = file.text.lines().count();
    if lines > FILE_LINES_MAX {
        findings.push(Finding::error(&file.path, format!("{lines} lines, {FILE_LINES_MAX} at most: split it")));
    } else if lines > FILE_LINES_WARN {
        findings.push(Finding::warning(&file.path, format!("{lines} lines: {FILE_LINES_WARN} is a lot")));
    }
    match syn::parse_file(&file.text) {
        Ok(syntax) => {
            let mut visitor = Visitor::new(file, of_tests);
            visitor.visit_file(&syntax);
            findings.extend(visitor.findings);
        }
        Err(error) => {
            let line = error.span().start().line;
            findings.push(Finding::error(format!("{}:{line}", file.path), format!("does not parse: {error}")));
        }
    }
    findings
}

struct Visitor<'a> {
    path: &'a str,
    lines: Vec<&'a str>,
    unsafe_allowed: bool,
    effects_wanted: bool,
    /// How many effects deep this is.
    effects: usize,
    /// How many items deep this is within test code, where panics are the point.
    tests: usize,
    findings: Vec<Finding>,
}

impl<'a> Visitor<'a> {
    fn new(file: &'a File, of_tests: bool) -> Self {
        Self {
            path: &file.path,
            lines: file.text.lines().collect(),
            unsafe_allowed: UNSAFE_ALLOWED.iter().any(|folder| file.path.starts_with(folder)),
            effects_wanted: EFFECTS_IN.iter().any(|folder| file.path.starts_with(folder)),
            effects: 0,
            tests: usize::from(of_tests || is_test_file(&file.path)),
            findings: Vec::new(),
        }
    }

    fn found(&mut self, span: proc_macro2::Span, problem: impl Into<String>) {
        self.findings.push(Finding::error(format!("{}:{}", self.path, span.start().line), problem));
    }

    fn check_unsafe(&mut self, token: Option<&syn::Token![unsafe]>) {
        if let Some(token) = token.filter(|_| !self.unsafe_allowed) {
            self.found(token.span, "`unsafe` belongs into crates/runtime and crates/guest only");
        }
    }

    fn check_length(&mut self, name: &syn::Ident, block: &syn::Block) {
        let braces = block.brace_token.span;
        let (first, last) = (braces.open().start().line, braces.close().end().line);
        // The lines between the braces, without empty ones and comments: what clippy's `too_many_lines` counts.
        let body = self.lines.get(first..last.saturating_sub(1)).unwrap_or_default();
        let code =
            body.iter().map(|line| line.trim()).filter(|line| !line.is_empty() && !line.starts_with("//")).count();
        if code > FUNCTION_LINES_MAX {
            self.found(name.span(), format!("`{name}` has {code} lines of code, {FUNCTION_LINES_MAX} at most"));
        }
    }

    fn check_step(&mut self, called: &syn::ExprPath) {
        let line = called.path.segments.first().map_or(0, |first| first.ident.span().start().line);
        let before = line.checked_sub(2).and_then(|before| self.lines.get(before)).map_or("", |before| before.trim());
        let is_remarked = REMARKS.iter().any(|remark| before.starts_with(remark));
        if self.effects_wanted && self.effects == 0 && self.tests == 0 && is_step(&called.path) && !is_remarked {
            let [within, none] = REMARKS.map(str::trim_end);
            let problem = format!(
                "a step that outlives its process: name it (`effect`), or say `{within}` or `{none}` before it"
            );
            self.found(called.path.segments[0].ident.span(), problem);
        }
    }

    fn within_tests(&mut self, attributes: &[syn::Attribute], visit: impl FnOnce(&mut Self)) {
        let entered = usize::from(attributes.iter().any(is_test_attribute));
        self.tests += entered;
        visit(self);
        self.tests -= entered;
    }
}

fn is_step(called: &syn::Path) -> bool {
    let mut names = called.segments.iter().rev().map(|segment| &segment.ident);
    let (Some(function), Some(of)) = (names.next(), names.next()) else { return false };
    STEPS.iter().any(|(owner, name)| of == owner && function == name)
}

fn is_effect(called: &syn::Path) -> bool {
    called.segments.last().is_some_and(|last| last.ident == "effect" || last.ident == "effect_of")
}

/// Files that are compiled for tests only.
fn is_test_file(path: &str) -> bool {
    path.starts_with("crates/e2e/")
        || path.starts_with("fuzz/")
        || path.contains("/tests/")
        || path.ends_with("/tests.rs")
}

fn is_test_attribute(attribute: &syn::Attribute) -> bool {
    let path = attribute.path();
    if path.is_ident("cfg") {
        return matches!(&attribute.meta, syn::Meta::List(list) if list.tokens.to_string() == "test");
    }
    path.segments.last().is_some_and(|segment| segment.ident == "test")
}

impl<'ast> Visit<'ast> for Visitor<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if names::REFUSED.iter().any(|name| item.ident == name) {
            self.found(item.ident.span(), names::problem(&item.ident.to_string()));
        }
        self.within_tests(&item.attrs, |this| syn::visit::visit_item_mod(this, item));
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.check_unsafe(item.sig.unsafety.as_ref());
        self.check_length(&item.sig.ident, &item.block);
        self.within_tests(&item.attrs, |this| syn::visit::visit_item_fn(this, item));
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.check_unsafe(item.sig.unsafety.as_ref());
        self.check_length(&item.sig.ident, &item.block);
        self.within_tests(&item.attrs, |this| syn::visit::visit_impl_item_fn(this, item));
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.check_unsafe(item.sig.unsafety.as_ref());
        if let Some(block) = &item.default {
            self.check_length(&item.sig.ident, block);
        }
        syn::visit::visit_trait_item_fn(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.check_unsafe(item.unsafety.as_ref());
        self.within_tests(&item.attrs, |this| syn::visit::visit_item_impl(this, item));
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.check_unsafe(item.unsafety.as_ref());
        syn::visit::visit_item_trait(self, item);
    }

    fn visit_expr_unsafe(&mut self, item: &'ast syn::ExprUnsafe) {
        self.check_unsafe(Some(&item.unsafe_token));
        syn::visit::visit_expr_unsafe(self, item);
    }

    fn visit_expr_call(&mut self, item: &'ast syn::ExprCall) {
        let mut entered = 0;
        if let syn::Expr::Path(called) = &*item.func {
            entered = usize::from(is_effect(&called.path));
            self.check_step(called);
        }
        self.effects += entered;
        syn::visit::visit_expr_call(self, item);
        self.effects -= entered;
    }

    fn visit_expr_method_call(&mut self, item: &'ast syn::ExprMethodCall) {
        let panics =
            (item.method == "unwrap" && item.args.is_empty()) || (item.method == "expect" && item.args.len() == 1);
        if panics && self.tests == 0 {
            self.found(item.method.span(), format!("`{}` outside tests: return an error", item.method));
        }
        syn::visit::visit_expr_method_call(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        let file = File { path: path.into(), text: text.into() };
        check(&file, false).into_iter().map(|finding| format!("{}: {}", finding.place, finding.problem)).collect()
    }

    fn only(path: &str, text: &str, wanted: &str) {
        let findings = found(path, text);
        assert!(findings.len() == 1 && findings[0].contains(wanted), "{findings:?}");
    }

    #[test]
    fn beginnings_and_lengths_of_files() {
        assert!(found("a.rs", "//! Something.\n").is_empty());
        only("a.rs", "fn a() {}\n", "`//!`");
        only("a.rs", &format!("//! A.\n{}", "// a\n".repeat(800)), "801 lines");
        only("a.rs", &format!("//! A.\n{}", "// a\n".repeat(500)), "is a lot");
        only("a.rs", "//! A.\nfn a( {}\n", "does not parse");
    }

    #[test]
    fn lengths_of_functions() {
        let function = |lines: usize| format!("//! A.\nfn a() {{\n    // why\n\n{}}}\n", "    a();\n".repeat(lines));
        assert!(found("a.rs", &function(70)).is_empty());
        only("a.rs", &function(71), "`a` has 71 lines");
        let method = format!("//! A.\nimpl A {{\nfn b() {{\n{}}}\n}}\n", "a();\n".repeat(71));
        only("a.rs", &method, "`b` has 71 lines");
    }

    #[test]
    fn unsafe_has_its_two_places() {
        let text = "//! A.\nfn a() {\n    unsafe { b() }\n}\n";
        only("crates/shim/src/a.rs", text, "a.rs:3: `unsafe`");
        only("crates/shim/src/a.rs", "//! A.\nunsafe impl Send for A {}\n", "`unsafe`");
        assert!(found("crates/guest/src/a.rs", text).is_empty());
        assert!(found("crates/shim/src/a.rs", "//! A.\n// unsafe { }\nconst A: &str = \"unsafe {}\";\n").is_empty());
    }

    #[test]
    fn panics_are_for_tests() {
        only("crates/a/src/a.rs", "//! A.\nfn a() { b.unwrap(); }\n", "`unwrap` outside tests");
        only("crates/a/src/a.rs", "//! A.\nfn a() { b.expect(\"c\"); }\n", "`expect` outside tests");
        let tested = "//! A.\n#[cfg(test)]\nmod tests {\n    fn a() { b.unwrap(); }\n}\n";
        assert!(found("crates/a/src/a.rs", tested).is_empty());
        only("crates/a/src/a.rs", "//! A.\n#[cfg(not(test))]\nfn a() { b.unwrap(); }\n", "outside tests");
        assert!(found("crates/a/tests/a.rs", "//! A.\nfn a() { b.unwrap(); }\n").is_empty());
        assert!(found("crates/a/src/a.rs", "//! A.\n#[tokio::test]\nasync fn a() { b.unwrap(); }\n").is_empty());
    }

    #[test]
    fn steps_that_outlive_their_process_have_a_name() {
        let step = |text: &str| format!("//! A.\nfn a() {{\n    {text};\n}}\n");
        for text in [
            "std::fs::rename(b, c)",
            "at(b, fs::remove_file(b))",
            "File::create(b)",
            "effect(\"d\", b); fs::write(b, c)",
        ] {
            only("crates/agent/src/a.rs", &step(text), "a.rs:3: a step that outlives");
            assert!(found("crates/server/src/a.rs", &step(text)).is_empty());
        }
        let named = ["crash::effect(\"d\", || fs::rename(b, c))", "effect_of(\"d\", async { fs::write(b, c) }).await"];
        let others = ["fs::read(b)", "write(b, c)", "b.create(c)", "// Effect: `d`.\n    fs::write(b, c)"];
        for text in named.iter().chain(&others).chain(&["// No effect: why.\n    fs::write(b, c)"]) {
            assert!(found("crates/shim/src/a.rs", &step(text)).is_empty(), "{text}");
        }
        let tested = "//! A.\n#[test]\nfn a() { fs::write(b, c); }\n";
        assert!(found("crates/runtime/src/process/a.rs", tested).is_empty());
    }

    #[test]
    fn modules_for_tests_are_known_by_their_declaration() {
        let file = |path: &str, text: &str| File { path: path.into(), text: format!("//! A.\n{text}\n") };
        let declared = file("crates/a/src/lib.rs", "#[cfg(test)]\nmod testing;\nmod real;");
        let nested = file("crates/a/src/b.rs", "#[cfg(test)]\nmod testing;");
        let panics = "fn a() { b.unwrap(); }";
        let of_tests = ["crates/a/src/testing.rs", "crates/a/src/testing/world.rs", "crates/a/src/b/testing.rs"];
        let others = ["crates/a/src/real.rs", "crates/a/src/testing_not.rs", "crates/a/src/c/testing.rs"];
        let mut files = vec![declared, nested];
        files.extend(of_tests.iter().chain(&others).map(|path| file(path, panics)));
        let found: Vec<String> = check_all(&files).into_iter().map(|finding| finding.place).collect();
        assert_eq!(found, others.map(|path| format!("{path}:2")));
    }

    #[test]
    fn names_of_modules() {
        only("crates/a/src/a.rs", "//! A.\nmod utils {}\n", "`utils` says nothing");
    }
}
