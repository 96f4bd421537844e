//! The fuzz target `output`: see [`holm_fuzz::output`].
#![no_main]
#![allow(missing_docs)]

holm_fuzz::target!(output);
