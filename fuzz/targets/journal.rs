//! The fuzz target `journal`: see [`holm_fuzz::journal`].
#![no_main]
#![allow(missing_docs)]

holm_fuzz::target!(journal);
