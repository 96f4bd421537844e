//! The fuzz target `bodies`: see [`holm_fuzz::bodies`].
#![no_main]
#![allow(missing_docs)]

holm_fuzz::target!(bodies);
