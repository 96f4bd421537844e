//! The fuzz target `masking`: see [`holm_fuzz::masking`].
#![no_main]
#![allow(missing_docs)]

holm_fuzz::target!(masking);
