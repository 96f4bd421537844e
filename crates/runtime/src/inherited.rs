//! Descriptors that a process got from its parent without anybody meaning it.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// Closes every descriptor but standard input, output and error. To be called by a `main` before it has opened anything:
/// whoever still holds another descriptor loses it.
pub fn close_all() -> io::Result<()> {
    close(3, u32::MAX)
}

/// Closes every descriptor but these. To be called by a fork that uses nothing else of what it has from its parent, and ends
/// without running destructors.
pub fn close_all_but(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    kept.sort_unstable();
    let mut first = 0;
    for number in kept {
        if first < number {
            close(first, number - 1)?;
        }
        first = number + 1;
    }
    close(first, u32::MAX)
}

fn close(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: close_range(2) touches no memory. That no owner of a descriptor acts on it any more is what the callers say.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0_u32) };
    if closed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
