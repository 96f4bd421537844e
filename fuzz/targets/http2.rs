//! The fuzz target `http2`: see [`holm_fuzz::http2`].
#![no_main]
#![allow(missing_docs)]

holm_fuzz::target!(http2);
