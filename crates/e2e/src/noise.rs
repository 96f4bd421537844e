//! Much output that does not shrink by packing: what has to reach the disk, or to go through memory, in full.

use std::process::Command;

/// A program for Python that writes the lines `first` to `last`, the number and 200 digits of chance each, always the same.
pub fn program(first: u32, last: u32) -> String {
    format!(
        "import random\nrandom.seed({last})\n\
         for n in range({first}, {last} + 1):\n    print(n, '%0200x' % random.getrandbits(800))\n"
    )
}

/// What to append to `holm run`: a command that writes that many lines.
pub fn command(lines: u32) -> [String; 4] {
    ["--".to_owned(), "/usr/bin/python3".to_owned(), "-c".to_owned(), program(1, lines)]
}

/// What a program writes, outside of every sandbox.
pub fn written(program: &str) -> String {
    crate::ran::run(Command::new("/usr/bin/python3").args(["-c", program])).succeeds().text().to_owned()
}

/// Whether `text` is what [`command`] writes.
pub fn is_whole(text: &str, lines: u32) -> bool {
    text == written(&program(1, lines))
}
