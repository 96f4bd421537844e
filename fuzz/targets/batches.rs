//! The fuzz target `batches`: see [`holm_fuzz::batches`].
#![no_main]
#![allow(missing_docs)]

holm_fuzz::target!(batches);
