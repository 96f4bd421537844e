//! Descriptors that a process got from its parent without anybody meaning it.
#![allow(unsafe_code)]

use std::io;

/// Closes every descriptor but standard input, output and error. To be called by a `main` before it has opened anything:
/// whoever still holds another descriptor loses it.
pub fn close_all() -> io::Result<()> {
    // SAFETY: close_range(2) touches no memory. That no owner of a descriptor exists yet is what the caller says.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
    if closed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
