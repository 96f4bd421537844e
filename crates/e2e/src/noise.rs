//! Much output that does not shrink by packing: what has to reach the disk in full.

use std::fmt::Write as _;

/// What to append to `holm run`: a command that writes numbered lines, the number and 200 digits of chance each.
pub fn command(lines: u32) -> [String; 4] {
    let mut program = "import random\nrandom.seed(7)\n".to_owned();
    let _ = writeln!(program, "for n in range(1, {lines} + 1):\n    print(n, '%0200x' % random.getrandbits(800))");
    ["--".to_owned(), "/usr/bin/python3".to_owned(), "-c".to_owned(), program]
}

/// Whether `text` is what the command writes, each line once and in order.
pub fn is_whole(text: &str, lines: u32) -> bool {
    let numbers = text.lines().map(|line| line.split_once(' ').map(|(number, rest)| (number.parse(), rest.len())));
    numbers.eq((1..=lines).map(|number| Some((Ok(number), 200))))
}
