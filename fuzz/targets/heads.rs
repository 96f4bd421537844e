//! The fuzz target `heads`: see [`holm_fuzz::heads`].
#![no_main]
#![allow(missing_docs)]

holm_fuzz::target!(heads);
