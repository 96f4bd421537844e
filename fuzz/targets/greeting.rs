//! The fuzz target `greeting`: see [`holm_fuzz::greeting`].
#![no_main]
#![allow(missing_docs)]

holm_fuzz::target!(greeting);
