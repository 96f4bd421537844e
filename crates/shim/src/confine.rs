//! What the shim gives up once the sandbox stands: from here on it parses what a hostile guest sends.
//!
//! What always holds afterwards, for all threads that there are and will be: no privileges can be gained; no program can be
//! executed and no process made, so whoever took the shim over has only what the shim has; no other process can be traced or
//! read; where the run may reach nothing, no socket but Unix ones can be made, so the host's network, in whose namespace the
//! shim lives, is out of reach, and otherwise none but those of IP; mounts, namespaces and the corners of the kernel of which a
//! shim needs none are refused (EPERM); it has no more memory than [`MEMORY_BYTES_MAX`], so a guest that has found out how to
//! make it grow ends its own shim and nothing else on the host. It is a list of what is refused, not of what is allowed: files,
//! Unix sockets and signals stay, and the user id limits them.
//!
//! A runtime that starts a program for the sandbox does so before ([`holm_runtime::Runtime::launch`]).

use std::{collections::BTreeMap, io};

use rustix::{
    fs::{Gid, Uid},
    process::{DumpableBehavior, Resource, Rlimit},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Far more descriptors than a shim needs.
const DESCRIPTORS_MAX: u64 = 256;
/// As many more for its egress proxy: each connection has two ends, and each that is being made tries several addresses.
const EGRESS_DESCRIPTORS_MAX: u64 = 2_048;
/// How much memory of its own a shim may have, in bytes: twenty times what it has at work (measured), and twice what its
/// guest can make it hold on both lanes; 512 connections whose clients stop in the middle of their greetings are another 40 MiB.
pub const MEMORY_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Refused whatever the arguments.
const REFUSED: &[i64] = &[
    // Programs and processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Mounts, roots and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
    // Corners of the kernel.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_personality,
];

/// Takes the user and the group id that follow the label on the command line (`shim LABEL UID GID`), for good; without them
/// the shim stays what it is. To be called while there is one thread.
pub fn take_own_ids(arguments: &[String]) -> io::Result<()> {
    let (uid, gid) = match arguments {
        [_, _, _] => return Ok(()),
        [_, _, _, uid, gid] => (uid, gid),
        _ => return Err(io::Error::other("a shim is started as `shim LABEL` or `shim LABEL UID GID`")),
    };
    let number = |text: &String| text.parse::<u32>().map_err(|_| io::Error::other(format!("`{text}` is no id")));
    let (uid, gid) = (Uid::from_raw(number(uid)?), Gid::from_raw(number(gid)?));
    if uid.is_root() || gid.as_raw() == 0 {
        return Err(io::Error::other("a shim is never root"));
    }
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    // The kernel closes /proc/self to a process that has changed its ids; the launcher needs it once more.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(io::Error::from)
}

/// What a shim has to do with the network of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Nothing.
    None,
    /// It makes connections for its sandbox.
    Egress,
}

/// Gives up what the shim does not need from now on. Refuses to go on as root, whose rights no filter takes away.
pub fn confine(network: Network) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        return Err(io::Error::other("a shim is never root: it was given no ids of its own"));
    }
    // Neither traced nor dumped, not even by what runs under the same user id.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let descriptors = match network {
        Network::None => DESCRIPTORS_MAX,
        Network::Egress => DESCRIPTORS_MAX + EGRESS_DESCRIPTORS_MAX,
    };
    for (resource, most) in [(Resource::Core, 0), (Resource::Nofile, descriptors), (Resource::Data, MEMORY_BYTES_MAX)] {
        limit(resource, most)?;
    }
    for program in programs(network).map_err(io::Error::other)? {
        // This sets no_new_privs as well, and both for every thread.
        seccompiler::apply_filter_all_threads(&program).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Takes a limit down for good; a stricter one stays.
fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let most = rustix::process::getrlimit(resource).maximum.map_or(most, |maximum| maximum.min(most));
    Ok(rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?)
}

/// Two filters, of which the kernel obeys the stricter: what is refused, and clone3(2), whose flags no filter can see and for
/// which the C library takes clone(2) when the kernel seems not to know it.
fn programs(network: Network) -> Result<[BpfProgram; 2], BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let mut refused: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(|&call| (call, Vec::new())).collect();
    let thread = libc::CLONE_THREAD as u64;
    let no_thread = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(thread), 0)?;
    refused.insert(libc::SYS_clone, vec![SeccompRule::new(vec![no_thread])?]);
    let families: &[i32] = match network {
        Network::None => &[libc::AF_UNIX],
        Network::Egress => &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6],
    };
    let other = |family: &i32| SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, *family as u64);
    let none_of_them = families.iter().map(other).collect::<Result<_, _>>()?;
    refused.insert(libc::SYS_socket, vec![SeccompRule::new(none_of_them)?]);
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let filter = |rules, errno: i32| -> Result<BpfProgram, BackendError> {
        SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), arch)?.try_into()
    };
    Ok([filter(refused, libc::EPERM)?, filter(unknown, libc::ENOSYS)?])
}
