//! The `process` runtime: namespaces of the kernel, without anything installed.
