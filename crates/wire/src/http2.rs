//! HTTP/2 settings and helpers.
