//! The fuzz target `shim_files`: see [`holm_fuzz::shim_files`].
#![no_main]
#![allow(missing_docs)]

holm_fuzz::target!(shim_files);
