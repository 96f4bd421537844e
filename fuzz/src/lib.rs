//! Every reader of bytes that come from outside, with what must hold for whatever it is given.
//!
//! A module is a target: `check` gives one input to the real code and panics where something does not hold, `seeds` makes
//! inputs by the real encoders, from which a fuzzer begins. The programs in `targets/` hand both to libFuzzer, built by
//! `cargo xtask fuzz` so that it sees which code an input reaches. What always holds for every target: time stands still
//! but for what waits for it, nothing is shared between inputs that could change what one of them does, and files lie in
//! a folder of their own.
//!
//! Deliberately left out: what the readers mean, which their own tests say.

pub mod archive;
pub mod batches;
pub mod bodies;
pub mod cursors;
pub mod dns;
pub mod follow;
pub mod greeting;
pub mod guest;
pub mod heads;
pub mod hello;
pub mod http2;
pub mod journal;
pub mod masking;
pub mod names;
pub mod output;
pub mod shim_files;
pub mod spool;

mod control_plane;
mod input;
mod json;
mod place;

use std::{cell::OnceCell, path::PathBuf};

#[doc(hidden)]
pub use libfuzzer_sys;
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};

/// The variable that names the folder into which a target writes its seeds before it begins.
pub const SEEDS_DIR: &str = "HOLM_FUZZ_SEEDS";

/// The program of a target.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        use $crate::libfuzzer_sys;

        libfuzzer_sys::fuzz_target!(
            init: $crate::write_seeds(&$crate::$name::seeds()),
            |data: &[u8]| $crate::$name::check(data)
        );
    };
}

/// Writes seeds into the folder that [`SEEDS_DIR`] names, each under its number; nothing where none is named.
pub fn write_seeds(seeds: &[Vec<u8>]) {
    let Some(dir) = std::env::var_os(SEEDS_DIR).map(PathBuf::from) else { return };
    for (number, seed) in seeds.iter().enumerate() {
        std::fs::write(dir.join(format!("{number:03}")), seed).expect("a seed is written");
    }
}

/// Runs something to its end on this thread's runtime. Its clock stands still and goes on to the next timer by itself when
/// nothing else is to be done, so no input waits for a deadline.
fn run<T>(what: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() };
    }
    RUNTIME.with(|runtime| runtime.get_or_init(runtime_of_targets).block_on(what))
}

fn runtime_of_targets() -> Runtime {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime = built.expect("a runtime");
    // The main function is libFuzzer's: nobody has seen to it that a peer that is gone is an error and not a signal. What
    // listens once listens to the end of the program.
    let listening = runtime.block_on(async { signal(SignalKind::pipe()) });
    drop(listening.expect("a signal that can be listened for"));
    runtime
}
