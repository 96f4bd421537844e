//! The few system calls that have no safe wrapper.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    io,
    net::Ipv6Addr,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use rustix::thread::UnshareFlags;
use tokio::io::unix::AsyncFd;

/// Leaves namespaces.
pub fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: unsafe for the sake of CLONE_FILES, which takes descriptors away from other threads. There is one thread, and
    // no caller passes it.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Makes a mount and all beneath it read-only and leaves its other flags as they are; they may be locked.
pub fn make_read_only(path: &str) -> io::Result<()> {
    let path = CString::new(path)?;
    let attributes = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: a live C string, and a live structure with its size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE | libc::AT_SYMLINK_NOFOLLOW,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Marks every descriptor from `first` on to be closed on exec.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: changes flags only.
    let result = unsafe { libc::close_range(first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether a descriptor is open and a socket.
pub fn is_socket(number: i32) -> bool {
    // SAFETY: an all-zero stat is a valid one; the call fills it or fails, and looks at the number only.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        libc::fstat(number, &mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFSOCK
    }
}

/// Takes over a descriptor that this process was started with.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: only looks at the number; nothing is done with it if it is not open.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and nothing else in this program refers to it by its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A descriptor that can be waited for.
pub fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd refers to the same open descriptor for as long as it lives.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Sends a signal to a process group, or with 1 to every process but this one and init.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: a plain system call.
    if unsafe { libc::kill(pid, signal) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Attaches a classic BPF program to a socket.
pub fn attach_filter(socket: BorrowedFd<'_>, program: &[libc::sock_filter]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let fprog = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: a live structure with its size; the kernel copies the program.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const fprog).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Asks a raw socket of IPv6 to tell, with each datagram, where it was sent to.
pub fn tell_destinations(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: a live integer with its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_RECVPKTINFO,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes a datagram without waiting: its length, where it came from, and where it was sent to as far as the socket tells.
pub fn take_ipv6(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Ipv6Addr, Option<Ipv6Addr>)> {
    // SAFETY: all-zero structures of these types are valid ones.
    let (mut from, mut head): (libc::sockaddr_in6, libc::msghdr) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // Of u64, so that the headers in it are aligned.
    let mut control = [0_u64; 16];
    head.msg_name = (&raw mut from).cast();
    head.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
    (head.msg_iov, head.msg_iovlen) = (&raw mut part, 1);
    (head.msg_control, head.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
    // SAFETY: `head` refers to live buffers with their sizes.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut head, libc::MSG_DONTWAIT) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    let address = |address: libc::in6_addr| Ipv6Addr::from(address.s6_addr);
    // SAFETY: the kernel filled `head`; the macros walk the control buffer within the length that it set.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(&raw const head) };
    while !control.is_null() {
        // SAFETY: as above; a header that is not null lies whole in the buffer.
        let this = unsafe { &*control };
        let is_info = (this.cmsg_level, this.cmsg_type) == (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO);
        if is_info && this.cmsg_len >= size_of::<libc::cmsghdr>() + size_of::<libc::in6_pktinfo>() {
            // SAFETY: the length was checked; the data may be unaligned.
            let info: libc::in6_pktinfo =
                unsafe { libc::CMSG_DATA(control).cast::<libc::in6_pktinfo>().read_unaligned() };
            return Ok((count, address(from.sin6_addr), Some(address(info.ipi6_addr))));
        }
        // SAFETY: as above.
        control = unsafe { libc::CMSG_NXTHDR(&raw const head, control) };
    }
    Ok((count, address(from.sin6_addr), None))
}

/// Mixes entropy into the kernel's random number generator, credits it, and makes the generator use it at once.
pub fn add_entropy(device: BorrowedFd<'_>, entropy: &[u8]) -> io::Result<()> {
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    // struct rand_pool_info: bits, bytes, then the bytes themselves, 4-aligned.
    let mut pool = vec![0_u32; 2 + entropy.len().div_ceil(4)];
    pool[0] = entropy.len() as u32 * 8;
    pool[1] = entropy.len() as u32;
    for (word, bytes) in pool[2..].iter_mut().zip(entropy.chunks(4)) {
        let mut padded = [0; 4];
        padded[..bytes.len()].copy_from_slice(bytes);
        *word = u32::from_ne_bytes(padded);
    }
    // SAFETY: `pool` is laid out as the kernel wants it and as long as it says.
    if unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, pool.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes no argument.
    if unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets the wall clock.
pub fn set_clock(unix_micros: i64) -> io::Result<()> {
    let time = libc::timespec {
        tv_sec: unix_micros.div_euclid(1_000_000),
        tv_nsec: unix_micros.rem_euclid(1_000_000) * 1_000,
    };
    // SAFETY: a live structure.
    if unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
