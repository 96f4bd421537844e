//! The fuzz target `archive`: see [`holm_fuzz::archive`].
#![no_main]
#![allow(missing_docs)]

holm_fuzz::target!(archive);
