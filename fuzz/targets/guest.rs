//! The fuzz target `guest`: see [`holm_fuzz::guest`].
#![no_main]
#![allow(missing_docs)]

holm_fuzz::target!(guest);
