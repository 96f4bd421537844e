//! The fuzz target `dns`: see [`holm_fuzz::dns`].
#![no_main]
#![allow(missing_docs)]

holm_fuzz::target!(dns);
