//! holm-guest: the first program in every sandbox.
//!
//! It serves `holm_wire::guest_api` on the lane in and asks `holm_wire::host_api` on the lane out; it makes the workload's
//! place, starts commands in it, keeps their output until it was acknowledged, and ends with the wire. It decides nothing:
//! limits, deadlines and the meaning of an exit are the shim's.
//!
//! What always holds: one thread, so that forking is safe; nothing of the workload's is trusted; it is not dumpable, so no
//! process inside can look into it; it writes to no console, which may be missing. In process mode it expects to be PID 1
//! of its namespaces with every capability over them, /proc mounted, and the lanes on descriptors 3 and 4.

mod api;
mod changes;
mod files;
mod init;
mod inner;
mod lane;
mod machine;
mod mounts;
mod names;
mod network;
mod process;
mod ring;
mod seal;
mod seccomp;
mod serve;
mod spawn;
mod sys;
mod trust;
mod users;
mod walls;
mod watch;

use std::{io, process::ExitCode, rc::Rc};

use rustix::fs::{Mode, OFlags};

use crate::{lane::Lane, machine::Machine};

fn main() -> ExitCode {
    let machine = Machine::detect();
    let ended = run(machine);
    // The sandbox ends with its guest; in a machine that takes a reboot, also after an error.
    let rebooted = machine.end();
    if ended.is_ok() && rebooted.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(machine: Machine) -> io::Result<()> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    let lanes = machine.boot()?;
    hold_standard_streams()?;
    // 3 and 4 included: whatever else was left open, no command inherits it.
    sys::close_on_exec_from(3)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let [lane_in, lane_out] = lanes;
        serve::run(machine, Lane::new(lane_in)?, Lane::new(lane_out)?, Rc::default()).await
    })
}

/// 0, 1 and 2 have to be taken, so that no pipe of a command ever gets one of these numbers.
fn hold_standard_streams() -> io::Result<()> {
    loop {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())?;
        if std::os::fd::AsRawFd::as_raw_fd(&null) > 2 {
            return Ok(());
        }
        std::mem::forget(null);
    }
}
