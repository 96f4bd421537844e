//! Much output that does not shrink by packing: what has to reach the disk, or to go through memory, in full.

/// A program for Python that writes the lines `first` to `last`, the number and 200 digits of chance each.
pub fn program(first: u32, last: u32) -> String {
    format!(
        "import random\nrandom.seed({first})\n\
         for n in range({first}, {last} + 1):\n    print(n, '%0200x' % random.getrandbits(800))\n"
    )
}

/// What to append to `holm run`: a command that writes that many lines.
pub fn command(lines: u32) -> [String; 4] {
    ["--".to_owned(), "/usr/bin/python3".to_owned(), "-c".to_owned(), program(1, lines)]
}

/// Whether the lines of `text` begin with the numbers 1 to `lines`, each once and in order, and have nothing or 200 digits
/// behind them.
pub fn is_whole(text: &str, lines: u32) -> bool {
    let told = text.lines().map(|line| {
        let (number, digits) = line.split_once(' ').unwrap_or((line, ""));
        (number.parse(), digits.len())
    });
    told.map(|(number, digits)| number.ok().filter(|_| [0, 200].contains(&digits))).eq((1..=lines).map(Some))
}
