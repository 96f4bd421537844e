//! The fuzz target `cursors`: see [`holm_fuzz::cursors`].
#![no_main]
#![allow(missing_docs)]

holm_fuzz::target!(cursors);
