//! Where a test has a process die.
//!
//! An *effect* is a step whose trace outlives the process that takes it: a file, a process, a control group, a request that
//! was answered. Agent, shim and runtime name theirs with [`effect`] and [`effect_of`], so that a test can find them out and
//! have a process die right before or right after each. That is so in builds with debug assertions alone; in others nothing
//! is left of it.
//!
//! `HOLM_CRASH_TRACE` names a file to which each point that is reached is added, a line each. `HOLM_CRASH_AT` names a point;
//! who reaches it and can add its process id to the name of the file that `HOLM_CRASH_ARMED` names kills itself with SIGKILL,
//! so one process dies once, and is known.

use std::{
    ffi::OsString,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use rustix::process::{Signal, getpid, kill_process};

/// The variables by which a test asks; an agent hands them on to its shims.
pub const VARIABLES: [&str; 3] = ["HOLM_CRASH_TRACE", "HOLM_CRASH_AT", "HOLM_CRASH_ARMED"];

/// Takes a step that outlives this process.
pub fn effect<T>(name: &str, step: impl FnOnce() -> T) -> T {
    reached("before", name);
    let done = step();
    reached("after", name);
    done
}

/// Takes a step that outlives this process, and for which others are waited for.
pub async fn effect_of<T>(name: &str, step: impl Future<Output = T>) -> T {
    reached("before", name);
    let done = step.await;
    reached("after", name);
    done
}

struct Plan {
    trace: Option<PathBuf>,
    at: Option<OsString>,
    armed: Option<PathBuf>,
}

static PLAN: LazyLock<Plan> = LazyLock::new(|| {
    let [trace, at, armed] = VARIABLES.map(std::env::var_os);
    Plan { trace: trace.map(PathBuf::from), at, armed: armed.map(PathBuf::from) }
});

fn reached(side: &str, name: &str) {
    if cfg!(debug_assertions) {
        PLAN.reached(&format!("{side} {name}"));
    }
}

fn claim(armed: &Path) -> bool {
    let mut mine = armed.as_os_str().to_owned();
    mine.push(format!(".{}", std::process::id()));
    fs::rename(armed, mine).is_ok()
}

impl Plan {
    fn reached(&self, point: &str) {
        if let Some(trace) = &self.trace {
            let noted = fs::File::options().append(true).open(trace);
            if let Err(error) = noted.and_then(|mut file| file.write_all(format!("{point}\n").as_bytes())) {
                tracing::error!(point, %error, "a point that was reached cannot be noted");
            }
        }
        let is_here = self.at.as_ref().is_some_and(|at| at == point);
        if is_here && self.armed.as_ref().is_some_and(|armed| claim(armed)) {
            // Nobody survives this; should the kernel refuse, the test sees that nothing died.
            let refused = kill_process(getpid(), Signal::KILL);
            tracing::error!(?refused, point, "this process was to die");
        }
    }
}
