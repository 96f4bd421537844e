//! The system calls that the workload may make.
//!
//! The lists follow the default profile of container engines. Filters are stacked; the kernel obeys the strictest one. The
//! first decides by number: the listed calls pass, those that exist to cross borders are answered EPERM, so that a person
//! sees what happened, and all others ENOSYS, as a kernel would that does not know them, so that programs fall back. The
//! second looks at the arguments of calls that pass, and answers EPERM as well. A third one answers "done" and does nothing
//! when a process sets its limit for core dumps, as careful programs do: the runtime set it to 1, which alone keeps the
//! kernel from starting the host's handler of crashes (`core_pattern` with a pipe), with a workload's memory for its input
//! and the rights of the host's root; 0 would not (core(5)).
//! Calls made through another instruction set (`int 0x80`) kill the process; x32 numbers are on neither list.
//!
//! `clone3` is answered ENOSYS because its flags lie in memory, where no filter can see them; libraries fall back to
//! `clone`, of which the flags that make namespaces are refused.
//!
//! Where the workload may write to files of the host, set-id bits are refused as well: a set-uid file of the workload's root
//! would belong to a user of the host, and be there when the sandbox is gone.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::walls::{self, Wall};

mod table;
mod verdicts;

use verdicts::Verdict;

/// Compiled once, before anything is started: a child can only load it.
pub struct Filters {
    /// The workload's, to be loaded in this order: of two errors the last loaded filter's is given.
    pub programs: Vec<BpfProgram>,
    /// The inner init's, which does next to nothing.
    pub init: Vec<BpfProgram>,
}

/// What the inner init still does once it is filtered: give up its capabilities, be read by nobody, say that it is ready,
/// and sleep. All else is refused; it is also far quicker to load than the workload's list.
const OF_INIT: [libc::c_long; 9] = [
    libc::SYS_capset,
    libc::SYS_prctl,
    libc::SYS_rt_sigaction,
    libc::SYS_write,
    libc::SYS_close_range,
    libc::SYS_pause,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_exit_group,
];

/// The flags of clone(2) that make namespaces. (The one for time is part of the exit signal there; unshare(2) is refused.)
const NAMESPACE_FLAGS: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];
/// personality(2): Linux, 32-bit Linux, a query, and the same without address randomisation, as container engines allow.
const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// The address families that a socket may have. AF_VSOCK, AF_PACKET, AF_ALG and the others are ways to the kernel or the host.
const FAMILIES: [libc::c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// The calls that set a mode, and which argument it is. (mkdir(2) takes no set-id bits from its mode.)
const MODES: [(libc::c_long, u8); 7] = [
    (libc::SYS_chmod, 1),
    (libc::SYS_fchmod, 1),
    (libc::SYS_fchmodat, 2),
    (libc::SYS_fchmodat2, 2),
    (libc::SYS_creat, 1),
    (libc::SYS_mknod, 1),
    (libc::SYS_mknodat, 2),
];
/// The calls that open, with their arguments for flags and mode. The mode counts only if something is made.
const OPENS: [(libc::c_long, u8, u8); 2] = [(libc::SYS_open, 1, 2), (libc::SYS_openat, 2, 3)];
const MAKING_FLAGS: [libc::c_int; 2] = [libc::O_CREAT, libc::O_TMPFILE & !libc::O_DIRECTORY];
const SET_ID_BITS: [libc::mode_t; 2] = [libc::S_ISUID, libc::S_ISGID];

/// Compiles all filters.
pub fn compile(writes_to_host: bool) -> Result<Filters, seccompiler::BackendError> {
    if walls::is_down(Wall::Seccomp) {
        return Ok(Filters { programs: Vec::new(), init: Vec::new() });
    }
    let mut refuse: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    refuse.insert(libc::SYS_clone, each(NAMESPACE_FLAGS.iter().map(|&flag| masked(0, flag as u64, flag as u64)))?);
    refuse.insert(
        libc::SYS_personality,
        vec![rule(
            PERSONALITIES.iter().map(|&value| condition(0, SeccompCmpOp::Ne, value)).collect::<Result<_, _>>()?,
        )?],
    );

    refuse.insert(libc::SYS_socket, refused_sockets()?);
    refuse.insert(libc::SYS_socketpair, vec![rule(vec![condition(0, SeccompCmpOp::Ne, libc::AF_UNIX as u64)?])?]);
    refuse.insert(libc::SYS_ioctl, each([libc::TIOCSTI, libc::TIOCLINUX].iter().map(|&request| equal(1, request)))?);

    if writes_to_host {
        refuse.extend(refused_set_id()?);
    }

    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let init = OF_INIT.iter().map(|&call| (call, Verdict::Pass)).collect();
    Ok(Filters {
        init: vec![verdicts::program(&init, Verdict::Fail(libc::EPERM))],
        programs: vec![
            verdicts::program(&verdicts(writes_to_host), Verdict::Fail(libc::ENOSYS)),
            SeccompFilter::new(refuse, SeccompAction::Allow, refused, arch)?.try_into()?,
            SeccompFilter::new(core_limits()?, SeccompAction::Allow, SeccompAction::Errno(0), arch)?.try_into()?,
        ],
    })
}

/// What becomes of calls by their number alone. Of those that pass, some are refused for their arguments.
fn verdicts(writes_to_host: bool) -> BTreeMap<i64, Verdict> {
    let of_arguments =
        [libc::SYS_clone, libc::SYS_personality, libc::SYS_socket, libc::SYS_socketpair, libc::SYS_ioctl];
    let passing = table::ALLOWED.iter().chain(&of_arguments).map(|&call| (call, Verdict::Pass));
    let refused = table::REFUSED.iter().map(|&call| (call, Verdict::Fail(libc::EPERM)));
    let mut verdicts: BTreeMap<i64, Verdict> = passing.chain(refused).collect();
    if writes_to_host {
        // Its mode lies in memory, where no filter can see it; libraries fall back to openat.
        verdicts.remove(&libc::SYS_openat2);
    }
    verdicts
}

/// Sockets that are refused: families beyond the list, and netlink for anything but what getifaddrs(3) asks.
fn refused_sockets() -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let foreign =
        FAMILIES.iter().map(|&family| condition(0, SeccompCmpOp::Ne, family as u64)).collect::<Result<_, _>>()?;
    let netlink = vec![equal(0, libc::AF_NETLINK as u64)?, condition(2, SeccompCmpOp::Ne, libc::NETLINK_ROUTE as u64)?];
    Ok(vec![rule(foreign)?, rule(netlink)?])
}

/// Every way to a set-id bit.
fn refused_set_id() -> Result<Vec<(i64, Vec<SeccompRule>)>, seccompiler::BackendError> {
    let bit = |argument: u8, bit: libc::mode_t| masked(argument, u64::from(bit), u64::from(bit));
    let mut calls = Vec::new();
    for (call, mode) in MODES {
        calls.push((call, each(SET_ID_BITS.iter().map(|&set| bit(mode, set)))?));
    }
    for (call, flags, mode) in OPENS {
        let mut rules = Vec::new();
        for making in MAKING_FLAGS {
            for set in SET_ID_BITS {
                rules.push(rule(vec![masked(flags, making as u64, making as u64)?, bit(mode, set)?])?);
            }
        }
        calls.push((call, rules));
    }
    Ok(calls)
}

/// Calls that set the limit for core dumps; asking for it goes on.
fn core_limits() -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let core = u64::from(libc::RLIMIT_CORE);
    let is_set = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0)?;
    Ok(BTreeMap::from([
        (libc::SYS_prlimit64, vec![rule(vec![equal(1, core)?, is_set])?]),
        (libc::SYS_setrlimit, vec![rule(vec![equal(0, core)?])?]),
    ]))
}

fn each(
    conditions: impl Iterator<Item = Result<SeccompCondition, seccompiler::BackendError>>,
) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    conditions.map(|condition| rule(vec![condition?])).collect()
}

fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(conditions)
}

// The kernel looks at the lower half of these arguments only, so the filter does the same.
fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

fn equal(argument: u8, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    condition(argument, SeccompCmpOp::Eq, value)
}

fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    condition(argument, SeccompCmpOp::MaskedEq(mask), value)
}
