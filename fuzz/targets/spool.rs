//! The fuzz target `spool`: see [`holm_fuzz::spool`].
#![no_main]
#![allow(missing_docs)]

holm_fuzz::target!(spool);
