//! The fuzz target `hello`: see [`holm_fuzz::hello`].
#![no_main]
#![allow(missing_docs)]

holm_fuzz::target!(hello);
