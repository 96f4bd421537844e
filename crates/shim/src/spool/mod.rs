//! Output on its way from the command to the store, on disk until the store has it.
//!
//! [`lines`] cuts bytes into whole lines and pieces of lines, [`writer`] makes batches of them ([`holm_domain::log`]),
//! [`beside`] has those packed and written, [`keeper`] is all that for an attempt, and [`reader`] reads them in the agent.
//! Files lie in one folder, are named by the sequence of their first entry in 20 digits and `.log`, only grow, and are
//! deleted whole once everything in them was acknowledged.
//!
//! What always holds: the sequences on disk have no gap from the first file's name on; a batch lies in one file; only the
//! last batch of the last file may be torn, and then only because its writer died or has not finished.

mod beside;
mod files;
pub mod keeper;
pub mod lines;
pub mod reader;
pub mod writer;

use std::{io, path::Path};

/// The name of the file whose first entry has the sequence `first_seq`.
pub(crate) fn file_name(first_seq: u64) -> String {
    format!("{first_seq:020}.log")
}

/// The sequences by which the files of a spool are named, in order. Names that are not a spool's are passed over.
pub(crate) fn files(dir: &Path) -> io::Result<Vec<u64>> {
    let mut firsts = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_suffix(".log"));
        let digits = digits.filter(|digits| digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit()));
        firsts.extend(digits.and_then(|digits| digits.parse::<u64>().ok()));
    }
    firsts.sort_unstable();
    Ok(firsts)
}
