//! The harness of the end-to-end tests: real processes of the real binary, seen from the outside.
//!
//! It imports nothing of the project, so a test cannot pass by sharing a mistake with the code: it types commands, speaks
//! plain HTTP and looks at the host. A [`World`] is one installation with a state folder of its own; when it is dropped it
//! ends everything and fails the test if anything of it is left on the host.
//!
//! What always holds: every wait has a deadline, nothing is awaited by sleeping a fixed time, processes are ended by their
//! ids, and tests may run at the same time on one machine.

pub mod collector;
pub mod host;
pub mod http;
pub mod impostor;
pub mod leftovers;
pub mod names;
pub mod network;
pub mod noise;
pub mod postgres;
pub mod probe;
pub mod proxy;
pub mod ran;
pub mod store;
pub mod terminal;
pub mod world;

use std::time::{Duration, Instant};

pub use impostor::Impostor;
pub use ran::{Ran, Running};
pub use terminal::OnTerminal;
pub use world::{World, fleet::Fleet};

/// How long anything that must happen may take; generous, because tests run beside each other on slow machines.
pub const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// Looks again and again until `look` finds something; panics with `what` when the deadline passes.
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(POLL);
    }
}

/// A word that occurs nowhere else on the machine, to find what a test made.
pub fn unique(prefix: &str) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let nanos = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_nsec;
    format!("{prefix}-{}-{}-{nanos}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
