//! The fuzz target `follow`: see [`holm_fuzz::follow`].
#![no_main]
#![allow(missing_docs)]

holm_fuzz::target!(follow);
