//! The one place from which xtask writes to the terminal.
#![allow(clippy::print_stdout, clippy::print_stderr)]

/// A heading: what begins now.
pub fn step(text: &str) {
    eprintln!("\n==> {text}");
}

/// A line about what happens, for people.
pub fn note(text: &str) {
    eprintln!("    {text}");
}

/// What went wrong.
pub fn error(text: &str) {
    eprintln!("error: {text}");
}

/// A result, on standard output.
pub fn result(text: &str) {
    println!("{text}");
}

/// A line that a program wrote which xtask runs.
pub fn passed_on(text: &str) {
    eprintln!("{text}");
}
