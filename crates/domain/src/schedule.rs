//! Which of the waiting runs an agent gets.

use std::collections::BTreeMap;

use crate::{
    AgentId, UnixMicros,
    host::{Capacity, Host, RuntimeInfo},
    limits::{ROOM_KEPT_AFTER, ROOM_KEPT_FOR},
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

/// The first label that `spec` wants of its host and that is not among `labels` with that value.
pub fn missing_label<'a>(spec: &'a RunSpec, labels: &BTreeMap<String, String>) -> Option<(&'a str, &'a str)> {
    let missing = spec.host_labels.iter().find(|(key, value)| labels.get(*key) != Some(value));
    missing.map(|(key, value)| (key.as_str(), value.as_str()))
}

/// Whether `host` could ever execute `spec`, were it idle. Memory is a limit and not a reservation, so a run may ask for
/// more processors than there are (it is throttled) but not for more memory than the host has.
pub fn could_run(spec: &RunSpec, host: &Host) -> bool {
    runtime_for(spec, host).is_some()
        && missing_label(spec, &host.labels).is_none()
        && spec.limits.memory_bytes <= host.capacity.memory_bytes
}

/// What an org has of a pool that several share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// How many of its runs are running there.
    pub running: u64,
    /// The number of the last grant to it; 0 before the first.
    pub granted: u64,
}

/// Whose turn it is among those that want something: the place of the one with the fewest runs, and of those that have as
/// many of the one whose last grant lies furthest back.
pub fn in_turn(shares: impl IntoIterator<Item = Share>) -> Option<usize> {
    let placed = shares.into_iter().enumerate();
    placed.min_by_key(|(_, share)| (share.running, share.granted)).map(|(place, _)| place)
}

/// What a host with some room left does about a run of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// It can execute the run now.
    Fits,
    /// It is to keep room for it from now on: the run has waited for long, and nobody else keeps any.
    WantsRoom,
    /// It keeps room for it, and takes nothing that stands behind it.
    HasRoomKept,
    /// The run is not for it, or not now.
    Passes,
}

/// What `host`, with `free` left, does about `run` of the queue at `now`. It does nothing while it takes nothing new
/// ([`Host::refusal`]).
///
/// Processors are shared: a run waits for memory and for a place, never for processor time. What waits for more memory than
/// a host has left would wait for as long as smaller runs come: after [`ROOM_KEPT_AFTER`] one host keeps for it what becomes
/// free there.
pub fn matches(run: &Run, host: &Host, free: &Capacity, now: UnixMicros) -> Match {
    let demand = demand(&run.spec);
    if !is_for(run, host) || demand.runs > free.runs {
        return Match::Passes;
    }
    if demand.memory_bytes <= free.memory_bytes {
        return Match::Fits;
    }
    match run.room_kept.filter(|kept| now < kept.until) {
        Some(kept) if kept.agent != host.id => Match::Passes,
        Some(kept) if kept.until.since(now) * 2 > ROOM_KEPT_FOR => Match::HasRoomKept,
        None if now.since(run.queued_at) < ROOM_KEPT_AFTER => Match::Passes,
        Some(_) | None => Match::WantsRoom,
    }
}

/// Whether `run`, which is in the queue, may be granted to `host`, whatever room that has left. Whose runs it executes at
/// all, who offers them to it has to know.
fn is_for(run: &Run, host: &Host) -> bool {
    run.state == RunState::Queued
        && run.retry_at.is_none()
        && !run.passes_over(host.id)
        && run.affinity.is_none_or(|agent: AgentId| agent == host.id)
        && could_run(&run.spec, host)
        && host.refusal().is_none()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        InstanceId, OrgId, ProjectId, RunId, TokenId, UnixMicros,
        host::{Cordon, PRESSURE_LABEL, STORAGE_LABEL},
        lease::{
            Claimant,
            grant::{claim, keep_room},
        },
        limits::LeaseConfig,
        run::{Admission, PassedOver, admit},
    };

    const ROOM: Capacity = Capacity { runs: 4, cpus_milli: 1_000, memory_bytes: 1 << 40 };

    /// The first of `queue` that `host` can execute; its index.
    fn pick(queue: &[Run], host: &Host, free: &Capacity) -> Option<usize> {
        queue.iter().position(|run| matches(run, host, free, UnixMicros(0)) == Match::Fits)
    }

    fn host() -> Host {
        let capabilities = vec!["root.host".to_owned()];
        Host {
            id: AgentId::from_uuid(Uuid::nil()),
            org: OrgId::from_uuid(Uuid::nil()),
            name: "isle".to_owned(),
            version: String::new(),
            capacity: ROOM,
            runtimes: vec![RuntimeInfo { name: "process".to_owned(), capabilities, unenforced: Vec::new() }],
            labels: BTreeMap::new(),
            token: TokenId::from_uuid(Uuid::nil()),
            key: None,
            instance: InstanceId::from_uuid(Uuid::nil()),
            superseded: Vec::new(),
            registered_at: UnixMicros(1),
            seen_at: UnixMicros(1),
            cordon: None,
            pool: None,
        }
    }

    fn queued(memory_bytes: u64) -> Run {
        let id = RunId::from_uuid(Uuid::nil());
        let project = ProjectId::from_uuid(Uuid::nil());
        let admission = Admission { id, org: host().org, project, created_by: TokenId::from_uuid(Uuid::nil()) };
        let mut spec = RunSpec::new(["true"]);
        spec.limits.memory_bytes = memory_bytes;
        admit(admission, spec, UnixMicros(1), &LeaseConfig::default()).run
    }

    #[test]
    fn the_first_that_fits_is_picked() {
        let queue = [queued(1 << 41), queued(1 << 30), queued(1 << 30)];
        assert_eq!(pick(&queue, &host(), &ROOM), Some(1));
        assert_eq!(pick(&queue, &host(), &Capacity { runs: 0, ..ROOM }), None);
    }

    #[test]
    fn a_run_that_pauses_is_not_picked() {
        let paused = Run { retry_at: Some(UnixMicros(2)), ..queued(1 << 30) };
        assert_eq!(pick(&[paused, queued(1 << 30)], &host(), &ROOM), Some(1));
    }

    #[test]
    fn a_host_that_could_not_make_the_sandbox_is_passed_over() {
        let passing = |agent| PassedOver { agent, until: UnixMicros(2) };
        let elsewhere = Run { passed_over: vec![passing(AgentId::from_uuid(Uuid::max()))], ..queued(1 << 30) };
        let here = Run { passed_over: vec![passing(host().id)], ..queued(1 << 30) };
        assert_eq!(pick(&[here.clone(), elsewhere], &host(), &ROOM), Some(1));
        assert_eq!(pick(&[here], &host(), &ROOM), None);
    }

    #[test]
    fn who_has_the_fewest_runs_comes_first_and_then_who_waits_longest() {
        let share = |running, granted| Share { running, granted };
        assert_eq!(in_turn([]), None);
        assert_eq!(in_turn([share(2, 1), share(1, 9), share(3, 0)]), Some(1));
        assert_eq!(in_turn([share(1, 7), share(1, 3), share(1, 5)]), Some(1));
        // Runs of one org last ten times as long: both have half of the places all the same.
        let mut places: Vec<(usize, u32)> = vec![(2, 0); 8];
        let (mut shares, mut grants) = ([Share::default(); 2], 0);
        for _ in 0..500 {
            for (org, left) in &mut places {
                if *left > 0 {
                    *left -= 1;
                    continue;
                }
                if let Some(share) = shares.get_mut(*org) {
                    share.running -= 1;
                }
                let next = in_turn(shares).unwrap();
                grants += 1;
                shares[next] = Share { running: shares[next].running + 1, granted: grants };
                (*org, *left) = (next, [40, 4][next]);
            }
        }
        assert_eq!(shares.map(|share| share.running), [4, 4]);
    }

    #[test]
    fn room_is_kept_by_one_host_for_what_has_waited_long_enough_for_it() {
        let (small, full) = (Capacity { memory_bytes: 1 << 30, ..ROOM }, Capacity { runs: 0, ..ROOM });
        let large = queued(2 << 30);
        let long = large.queued_at.plus(ROOM_KEPT_AFTER);
        let of = |run: &Run, free: &Capacity, now| matches(run, &host(), free, now);
        assert_eq!(of(&large, &small, UnixMicros(long.0 - 1)), Match::Passes);
        assert_eq!(of(&large, &small, long), Match::WantsRoom);
        assert_eq!(of(&large, &ROOM, long), Match::Fits);
        assert_eq!(of(&large, &full, long), Match::Passes, "a host without a place keeps none");
        assert_eq!(of(&queued(ROOM.memory_bytes + 1), &small, long), Match::Passes, "it never fits");
        let here = keep_room(&large, host().id, long).unwrap().run;
        assert_eq!(of(&here, &small, long), Match::HasRoomKept);
        let half = long.plus(ROOM_KEPT_FOR / 2);
        assert_eq!(of(&here, &small, half), Match::WantsRoom, "it says so again in time");
        let other = AgentId::from_uuid(Uuid::max());
        assert_eq!(keep_room(&here, other, half), None);
        let elsewhere = keep_room(&large, other, long).unwrap().run;
        assert_eq!(of(&elsewhere, &small, half), Match::Passes);
        assert_eq!(of(&elsewhere, &ROOM, half), Match::Fits, "who has room takes it all the same");
        let given_up = long.plus(ROOM_KEPT_FOR);
        assert_eq!(of(&elsewhere, &small, given_up), Match::WantsRoom);
        let by = Claimant { agent: host().id, instance: host().instance };
        assert_eq!(claim(&elsewhere, by, half, &LeaseConfig::default()).unwrap().run.room_kept, None);
    }

    #[test]
    fn a_run_goes_where_every_label_is_that_it_wants() {
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
        };
        let mut run = queued(1 << 30);
        run.spec.host_labels = labels(&[("arch", "arm64"), ("zone", "")]);
        let picked = |pairs| pick(std::slice::from_ref(&run), &Host { labels: labels(pairs), ..host() }, &ROOM);
        assert_eq!(picked(&[("arch", "arm64"), ("zone", ""), ("gpu", "1")]), Some(0));
        for pairs in
            [&[][..], &[("arch", "arm64")], &[("arch", "amd64"), ("zone", "")], &[("arch", "arm64"), ("zone", "a")]]
        {
            assert_eq!(picked(pairs), None, "{pairs:?}");
        }
        assert_eq!(missing_label(&run.spec, &labels(&[("arch", "arm64")])), Some(("zone", "")));
    }

    #[test]
    fn a_host_that_refuses_is_given_nothing_whatever_the_reason() {
        let queue = [queued(1 << 30)];
        let cordon = Cordon { by: host().token, by_name: "alice".to_owned(), at: UnixMicros(1) };
        let labelled = |key: &str| Host { labels: [(key.to_owned(), "why".to_owned())].into(), ..host() };
        let refusing = [Host { cordon: Some(cordon), ..host() }, labelled(STORAGE_LABEL), labelled(PRESSURE_LABEL)];
        for host in refusing {
            assert_eq!(pick(&queue, &host, &ROOM), None, "{:?}", host.refusal());
        }
        assert_eq!(pick(&queue, &labelled("zone"), &ROOM), Some(0));
    }
}
