//! Why a run waits in the queue, as far as what the server tells of hosts and runs says it.

use std::collections::HashMap;

use holm_api::{
    client::{Client, ClientError},
    hosts::HostView,
    runs::{ListRuns, RunView},
};
use holm_domain::{
    AgentId, ErrorCode, UnixMicros,
    org_limits::OrgLimit,
    run::{RoomKept, RunSpec, RunState},
    schedule,
};

use super::{ago, instant, now};
use crate::{output::escaped, units::show_bytes};

/// How many live runs are looked at for what they hold; with more of them it is not known.
const LIVE_MAX: u32 = 200;

/// One clause without a full stop.
pub async fn why(client: &Client, run: &RunView) -> Result<String, ClientError> {
    if let Some(at) = run.retry_at {
        return Ok(format!("it pauses; it is granted anew from {} on", instant(at)));
    }
    if let Some(reason) = of_org(client, run).await? {
        return Ok(reason);
    }
    let hosts = client.host_list().await?.hosts;
    if let Some(reason) = of_failures(run, &hosts) {
        return Ok(reason);
    }
    if let Some(reason) = of_hosts(&run.spec, &hosts) {
        return Ok(reason);
    }
    if let Some(reason) = run.room_kept.and_then(|kept| of_room(kept, &run.spec, &hosts, now())) {
        return Ok(reason);
    }
    let on_hosts = RunState::ALL.iter().filter(|state| !matches!(state, RunState::Queued | RunState::Ended));
    let state = Some(on_hosts.map(|state| state.as_str()).collect::<Vec<_>>().join(","));
    let page = client.run_list(&ListRuns { state, limit: Some(LIVE_MAX), ..ListRuns::default() }).await?;
    let is_all = page.next_cursor.is_none() && page.unreadable.is_empty();
    let held = is_all.then(|| held(&page.runs));
    let of_memory = held.and_then(|held| of_memory(&run.spec, &hosts, &held));
    Ok(of_memory.unwrap_or_else(|| of_others(&run.spec, &hosts).to_owned()))
}

/// What is left to say: a host takes it next, unless only those could that orgs share, of whose runs the others see nothing.
fn of_others(spec: &RunSpec, hosts: &[HostView]) -> &'static str {
    let is_able = |host: &&HostView| host.alive && host.refusal().is_none() && could_run(spec, host);
    let (shared, own): (Vec<_>, Vec<_>) =
        hosts.iter().filter(is_able).partition(|host| host.is_shared || host.pool.is_some());
    if own.is_empty() && !shared.is_empty() {
        "hosts that could take it are shared with other orgs; it is their turn, or their runs leave too little memory"
    } else {
        "a host will take it"
    }
}

/// That only hosts could take it now that could not make its sandbox a moment ago.
fn of_failures(run: &RunView, hosts: &[HostView]) -> Option<String> {
    let takes_it = |host: &&HostView| {
        host.alive && host.refusal().is_none() && host.runs_held < host.capacity.runs && could_run(&run.spec, host)
    };
    let until =
        |host: &HostView| run.passed_over.iter().find(|failed| failed.agent == host.id).map(|failed| failed.until);
    let taking: Vec<&HostView> = hosts.iter().filter(takes_it).collect();
    let failed: Option<Vec<_>> = taking.iter().map(|host| until(host)).collect();
    let at = failed?.into_iter().min()?;
    let names = taking.iter().map(|host| escaped(&host.name)).collect::<Vec<_>>().join(", ");
    let at = instant(at);
    Some(format!("{names} could not make its sandbox, as `holm events` says, and is asked again from {at} on"))
}

/// Whether its org has as many runs running as it may have.
async fn of_org(client: &Client, run: &RunView) -> Result<Option<String>, ClientError> {
    let view = match client.org_limits(&run.org.to_string()).await {
        Ok(view) => view,
        // A server of an earlier version limits nobody.
        Err(error) if error.code() == Some(ErrorCode::NotFound) => return Ok(None),
        Err(error) => return Err(error),
    };
    let name = OrgLimit::RunsRunning.as_str();
    let most = view.limits.get(name).map(|limit| limit.value);
    Ok(most.filter(|most| view.runs_running >= *most).map(|most| {
        format!("its org has {most} runs running, as many as it may have at once ({name}); it waits until one ends")
    }))
}

/// What hosts alone tell: none is there, none can, none has a place, none takes anything.
fn of_hosts(spec: &RunSpec, hosts: &[HostView]) -> Option<String> {
    let alive: Vec<&HostView> = hosts.iter().filter(|host| host.alive).collect();
    if alive.is_empty() {
        return Some(match hosts.iter().max_by_key(|host| host.seen_at) {
            None => "no host has registered; start `holm agent` on one".to_owned(),
            Some(last) => {
                let (name, seen) = (escaped(&last.name), ago(last.seen_at));
                format!("no host is connected ({name} was seen {seen}); start its agent")
            }
        });
    }
    if alive.iter().all(|host| schedule::missing_label(spec, &host.labels).is_some()) {
        let wanted = spec.host_labels.iter().map(|(key, value)| escaped(&format!("{key}={value}")));
        let wanted = wanted.collect::<Vec<_>>().join(" and ");
        return Some(format!("no connected host has the label {wanted}; `holm agent --host-label` gives it to one"));
    }
    let able: Vec<&HostView> = alive.into_iter().filter(|host| could_run(spec, host)).collect();
    let Some(largest) = able.iter().map(|host| host.capacity.memory_bytes).max() else {
        let needed = schedule::root_capability(&spec.root);
        let wanted = spec.runtime.as_ref().map_or("a runtime".to_owned(), |name| format!("`{}`", escaped(name)));
        return Some(format!("no connected host has {wanted} with {needed}; `holm doctor` there says what is missing"));
    };
    let wanted = spec.limits.memory_bytes;
    if wanted > largest {
        let (wanted, largest) = (show_bytes(wanted), show_bytes(largest));
        return Some(format!("no connected host has {wanted} of memory, {largest} at most; give a smaller --memory"));
    }
    let large = able.into_iter().filter(|host| host.capacity.memory_bytes >= wanted);
    let with_place: Vec<&HostView> = large.filter(|host| host.runs_held < host.capacity.runs).collect();
    let Some(first) = with_place.first() else {
        return Some("each host that could take it has as many runs as it takes at once".to_owned());
    };
    let takes_some = with_place.iter().any(|host| host.refusal().is_none());
    let why = first.refusal().filter(|_| !takes_some)?;
    Some(format!("no host that could take it takes anything new now ({}: {})", escaped(&first.name), escaped(&why)))
}

/// Whether the host could execute it but for memory.
fn could_run(spec: &RunSpec, host: &HostView) -> bool {
    schedule::runtime_among(spec, &host.runtimes).is_some() && schedule::missing_label(spec, &host.labels).is_none()
}

/// What the live runs of each agent may use.
fn held(runs: &[RunView]) -> HashMap<AgentId, u64> {
    let mut held = HashMap::new();
    for run in runs {
        if let Some(agent) = run.agent {
            *held.entry(agent).or_default() += run.spec.limits.memory_bytes;
        }
    }
    held
}

/// Which host keeps room for it.
fn of_room(kept: RoomKept, spec: &RunSpec, hosts: &[HostView], now: UnixMicros) -> Option<String> {
    if kept.until <= now {
        return None;
    }
    let host = hosts.iter().find(|host| host.id == kept.agent)?;
    let (wanted, name) = (show_bytes(spec.limits.memory_bytes), escaped(&host.name));
    Some(format!(
        "it may use {wanted} of memory; {name} keeps room for it, and takes it once enough of its runs have ended"
    ))
}

/// Whether the memory of each host with a place is promised to other runs.
fn of_memory(spec: &RunSpec, hosts: &[HostView], held: &HashMap<AgentId, u64>) -> Option<String> {
    let wanted = spec.limits.memory_bytes;
    let free =
        |host: &HostView| host.capacity.memory_bytes.saturating_sub(held.get(&host.id).copied().unwrap_or_default());
    let able = hosts.iter().filter(|host| {
        let takes_runs = host.runs_held < host.capacity.runs && host.refusal().is_none();
        host.alive && takes_runs && could_run(spec, host)
    });
    let most = able.map(free).max()?;
    (most < wanted).then(|| {
        let (wanted, most) = (show_bytes(wanted), show_bytes(most));
        format!("it may use {wanted} of memory, and other runs leave {most}; it waits, or give a smaller --memory")
    })
}

#[cfg(test)]
mod tests {
    use holm_domain::host::{Capacity, RuntimeInfo};

    use super::*;

    const GIB: u64 = 1 << 30;

    fn host(runs_held: u32) -> HostView {
        let capabilities = vec!["root.host".to_owned()];
        HostView {
            id: AgentId::from_uuid(uuid::Uuid::from_u128(1)),
            name: "isle".to_owned(),
            version: String::new(),
            capacity: Capacity { runs: 2, cpus_milli: 1_000, memory_bytes: 4 * GIB },
            runs_held,
            labels: std::collections::BTreeMap::new(),
            identity: None,
            pool: None,
            is_shared: false,
            cordon: None,
            runtimes: vec![RuntimeInfo { name: "process".to_owned(), capabilities, unenforced: vec![] }],
            registered_at: UnixMicros(0),
            seen_at: UnixMicros(0),
            alive: true,
        }
    }

    fn spec(memory_bytes: u64) -> RunSpec {
        let mut spec = RunSpec::new(["x"]);
        spec.limits.memory_bytes = memory_bytes;
        spec
    }

    #[test]
    fn hosts_tell_why() {
        let of = |spec: &RunSpec, hosts: &[HostView]| of_hosts(spec, hosts).unwrap();
        assert!(of(&spec(GIB), &[]).contains("holm agent"));
        let dead = HostView { alive: false, ..host(0) };
        assert!(of(&spec(GIB), std::slice::from_ref(&dead)).contains("isle was seen"));
        assert!(of(&spec(5 * GIB), &[host(0)]).contains("5 GiB of memory, 4 GiB at most"));
        assert!(of(&spec(GIB), &[host(2), dead]).contains("as many runs"));
        let vm = RunSpec { runtime: Some("vm".to_owned()), ..spec(GIB) };
        assert!(of(&vm, &[host(0)]).contains("`vm` with root.host"));
        assert_eq!(of_hosts(&spec(GIB), &[host(2), host(1)]), None);
        let there = RunSpec { host_labels: [("zone".to_owned(), "a".to_owned())].into(), ..spec(GIB) };
        assert!(of(&there, &[host(0)]).contains("has the label zone=a;"));
        let labelled = |held| HostView { labels: there.host_labels.clone(), ..host(held) };
        assert_eq!(of_hosts(&there, &[host(0), labelled(0)]), None);
        assert!(of(&there, &[host(0), labelled(2)]).contains("as many runs"), "only those with the label count");
        let labels = [("holm.pressure".to_owned(), "all tasks wait".to_owned())].into();
        let pressed = HostView { labels, ..host(0) };
        let reason = of(&spec(GIB), &[host(2), pressed.clone()]);
        assert!(reason.contains("(isle: under pressure: all tasks wait; it takes nothing new)"), "{reason}");
        assert_eq!(of_hosts(&spec(GIB), &[pressed, host(1)]), None);
        let by = holm_domain::TokenId::from_uuid(uuid::Uuid::nil());
        let cordon = Some(holm_domain::host::Cordon { by, by_name: "alice".to_owned(), at: UnixMicros(0) });
        let reason = of(&spec(GIB), &[HostView { cordon, ..host(0) }]);
        assert!(reason.contains("(isle: cordoned by alice; it takes nothing new)"), "{reason}");
    }

    #[test]
    fn the_host_that_keeps_room_is_named() {
        let kept = RoomKept { agent: host(1).id, until: UnixMicros(9) };
        let told = of_room(kept, &spec(2 * GIB), &[host(1)], UnixMicros(8)).unwrap();
        assert!(told.contains("2 GiB") && told.contains("isle keeps room"), "{told}");
        assert_eq!(of_room(kept, &spec(2 * GIB), &[host(1)], UnixMicros(9)), None);
        assert_eq!(of_room(kept, &spec(2 * GIB), &[], UnixMicros(8)), None);
    }

    #[test]
    fn memory_that_is_promised_is_not_free() {
        let held = HashMap::from([(host(1).id, 3 * GIB)]);
        assert_eq!(of_memory(&spec(GIB), &[host(1)], &held), None);
        let reason = of_memory(&spec(2 * GIB), &[host(1)], &held).unwrap();
        assert!(reason.contains("2 GiB") && reason.contains("leave 1 GiB"), "{reason}");
        assert_eq!(of_memory(&spec(2 * GIB), &[host(2)], &held), None, "no place is another reason");
    }
}
