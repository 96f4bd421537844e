//! The fuzz target `names`: see [`holm_fuzz::names`].
#![no_main]
#![allow(missing_docs)]

holm_fuzz::target!(names);
