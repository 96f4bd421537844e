//! Which of the waiting runs an agent gets.

use crate::{
    AgentId,
    host::{Capacity, Host, RuntimeInfo},
    run::{RootSource, Run, RunSpec, RunState},
};

/// What a run takes from a host's capacity.
pub fn demand(spec: &RunSpec) -> Capacity {
    Capacity { runs: 1, cpus_milli: u64::from(spec.limits.cpus_milli.0), memory_bytes: spec.limits.memory_bytes }
}

/// The capability that a root source needs of a runtime.
pub fn root_capability(root: &RootSource) -> &'static str {
    match root {
        RootSource::Host {} => "root.host",
        RootSource::Dir { .. } => "root.dir",
        RootSource::Tar { .. } => "root.tar",
    }
}

/// The name of the first runtime of `host` that meets what `spec` asks for.
pub fn runtime_for<'a>(spec: &RunSpec, host: &'a Host) -> Option<&'a str> {
    runtime_among(spec, &host.runtimes)
}

/// The name of the first of `runtimes` that meets what `spec` asks for.
pub fn runtime_among<'a>(spec: &RunSpec, runtimes: &'a [RuntimeInfo]) -> Option<&'a str> {
    let needed = root_capability(&spec.root);
    runtimes
        .iter()
        .find(|runtime| {
            spec.runtime.as_ref().is_none_or(|wanted| *wanted == runtime.name)
                && runtime.capabilities.iter().any(|capability| capability == needed)
        })
        .map(|runtime| runtime.name.as_str())
}

/// Whether `host` could ever execute `spec`, were it idle. Memory is a limit and not a reservation, so a run may ask for
/// more processors than there are (it is throttled) but not for more memory than the host has.
pub fn could_run(spec: &RunSpec, host: &Host) -> bool {
    runtime_for(spec, host).is_some() && spec.limits.memory_bytes <= host.capacity.memory_bytes
}

/// The first of `queue` (oldest first) that `host` can execute now with `free` left; its index.
///
/// Processors are shared: a run waits for memory and for a place, never for processor time.
pub fn pick(queue: &[Run], host: &Host, free: &Capacity) -> Option<usize> {
    queue.iter().position(|run| {
        let demand = demand(&run.spec);
        run.state == RunState::Queued
            && run.org == host.org
            && run.affinity.is_none_or(|agent: AgentId| agent == host.id)
            && demand.runs <= free.runs
            && demand.memory_bytes <= free.memory_bytes
            && could_run(&run.spec, host)
    })
}
