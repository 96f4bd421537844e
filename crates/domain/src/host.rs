//! A machine with an agent on it, as the control plane knows it, and who speaks for that agent.
//!
//! What always holds: an agent that has enrolled speaks with its key alone, and with nothing once that was revoked; any other
//! speaks with the token by which it registered first, until that is revoked or expires; its newest process speaks for it,
//! and none before it ever again. [`Host::hears`] is where that is decided.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    AgentId, InstanceId, OrgId, TokenId, UnixMicros,
    enrol::{HostKey, HostPublicKey},
    lease::{Claimant, Lease, grant::StaleFence},
    run::Run,
};

/// How many earlier processes of an agent are remembered.
pub const SUPERSEDED_MAX: usize = 16;

/// The label by which a host says that it takes no new runs for want of room on its disk.
pub const STORAGE_LABEL: &str = "holm.storage";
/// The label by which a host says that it takes no new runs because it is under pressure.
pub const PRESSURE_LABEL: &str = "holm.pressure";

/// The label by which a host says that it takes no new runs for a while because it could not make the last sandboxes.
pub const FAILING_LABEL: &str = "holm.failing";

/// That somebody wants a host to take no new runs. Those that it has go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cordon {
    /// The token with which it was asked for.
    pub by: TokenId,
    /// What that token is called.
    pub by_name: String,
    /// When it was asked for.
    pub at: UnixMicros,
}

impl std::fmt::Display for Cordon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cordoned by {}", self.by_name)
    }
}

/// Why a host takes no new runs, a clause without a full stop; nothing if it does. There is no other way in which a host
/// refuses: what it says of itself stands in its labels, what people want of it in `cordon`.
pub fn refusal(labels: &BTreeMap<String, String>, cordon: Option<&Cordon>) -> Option<String> {
    let cordon = cordon.map(Cordon::to_string);
    let storage = labels.get(STORAGE_LABEL).map(|why| format!("disk {why}"));
    let pressure = labels.get(PRESSURE_LABEL).map(|why| format!("under pressure: {why}"));
    let failing = labels.get(FAILING_LABEL).map(|why| format!("it cannot make sandboxes: {why}"));
    let reasons: Vec<String> = cordon.into_iter().chain(storage).chain(pressure).chain(failing).collect();
    (!reasons.is_empty()).then(|| format!("{}; it takes nothing new", reasons.join("; ")))
}

/// How much of something there is on a host, or is free on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Capacity {
    /// Runs at once.
    pub runs: u32,
    /// Thousandths of a processor.
    pub cpus_milli: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

impl Capacity {
    /// Whether `wanted` fits into this.
    pub fn fits(&self, wanted: &Capacity) -> bool {
        wanted.runs <= self.runs && wanted.cpus_milli <= self.cpus_milli && wanted.memory_bytes <= self.memory_bytes
    }

    /// This less `taken`; nothing is ever less than zero.
    pub fn less(&self, taken: &Capacity) -> Capacity {
        Capacity {
            runs: self.runs.saturating_sub(taken.runs),
            cpus_milli: self.cpus_milli.saturating_sub(taken.cpus_milli),
            memory_bytes: self.memory_bytes.saturating_sub(taken.memory_bytes),
        }
    }
}

/// What a runtime on a host can do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RuntimeInfo {
    /// `process`, `container` or `vm`.
    pub name: String,
    /// What it can do, by name: `limits.memory`, `snapshot`, `root.tar`, …
    pub capabilities: Vec<String>,
    /// What it cannot enforce on this host, each with the reason.
    pub unenforced: Vec<String>,
}

/// With what somebody speaks for an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Voice {
    /// A token with the role `agent`.
    Token(TokenId),
    /// The key of this agent, by a session that it was given for it.
    Key(AgentId, HostPublicKey),
}

/// A machine with an agent on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The identity of its agent.
    pub id: AgentId,
    /// The org whose runs it executes.
    pub org: OrgId,
    /// A name for people, usually the host's own.
    pub name: String,
    /// The version of the agent.
    pub version: String,
    /// All that there is.
    pub capacity: Capacity,
    /// The runtimes on it.
    pub runtimes: Vec<RuntimeInfo>,
    /// Names and values by which it is found.
    pub labels: BTreeMap<String, String>,
    /// The token with which its agent speaks; where it has a key, that with which it registered last or was enrolled.
    pub token: TokenId,
    /// The key of its agent, if that has enrolled.
    pub key: Option<HostKey>,
    /// The newest process of its agent.
    pub instance: InstanceId,
    /// Earlier ones, the last one last: a word of theirs that was under way for long changes nothing.
    pub superseded: Vec<InstanceId>,
    /// When its agent registered first.
    pub registered_at: UnixMicros,
    /// When its agent was heard of last.
    pub seen_at: UnixMicros,
    /// That it is to take no new runs. It stays when the agent registers again.
    pub cordon: Option<Cordon>,
    /// The pool in which it is: it executes runs of the orgs with which that is shared as well. It stays as long as the
    /// host speaks with the same key, or token.
    pub pool: Option<String>,
}

/// Why somebody does not speak for an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotHeard {
    /// The agent registered with another token, which still works.
    #[error("{agent} registered with {bound}, and speaks with no other token")]
    OtherToken {
        /// The agent.
        agent: AgentId,
        /// Its token.
        bound: TokenId,
    },
    /// The agent has enrolled with a key, and this is not it; or there is no key of it.
    #[error("{0} speaks with the key with which it has enrolled, and with nothing else")]
    OtherKey(AgentId),
    /// The key of the agent was revoked.
    #[error("the key of {0} was revoked")]
    Revoked(AgentId),
    /// A newer process of the agent registered.
    #[error("a newer process of {agent} has registered; {instance} does not speak for it any more")]
    Superseded {
        /// The agent.
        agent: AgentId,
        /// The process that is not heard.
        instance: InstanceId,
    },
}

/// Whether one speaks with `voice` for `agent`, whose key is `key`, as far as that says; which token it is, the record of the
/// host says.
pub fn speaks(agent: AgentId, key: Option<&HostKey>, voice: Voice) -> Result<(), NotHeard> {
    match (key, voice) {
        (None, Voice::Token(_)) => Ok(()),
        (Some(key), Voice::Key(of, public)) if (of, public) == (agent, key.public) => match key.revoked_at {
            None => Ok(()),
            Some(_) => Err(NotHeard::Revoked(agent)),
        },
        _ => Err(NotHeard::OtherKey(agent)),
    }
}

impl Host {
    /// With what its agent speaks: its key, or the id of its token.
    pub fn voice(&self) -> String {
        self.key.as_ref().map_or_else(|| self.token.to_string(), |key| key.public.to_string())
    }

    /// Why it takes no new runs; see [`refusal`].
    pub fn refusal(&self) -> Option<String> {
        refusal(&self.labels, self.cordon.as_ref())
    }

    /// Whether the process `by` speaks for the agent of this host with `voice`.
    pub fn hears(&self, by: Claimant, voice: Voice) -> Result<(), NotHeard> {
        self.hears_with(voice, true)?;
        if self.instance != by.instance {
            return Err(NotHeard::Superseded { agent: self.id, instance: by.instance });
        }
        Ok(())
    }

    /// Whether the process of this record may speak under the lease of `run`: it has it, or one before it had. A process that
    /// was heard before a newer one took the lease over may have found no sandbox where there is one by now.
    pub fn follows(&self, run: &Run) -> Result<(), StaleFence> {
        let is_known = |lease: &Lease| lease.instance == self.instance || self.superseded.contains(&lease.instance);
        match run.lease.filter(|lease| lease.agent == self.id && !is_known(lease)) {
            Some(lease) => Err(StaleFence { given: lease.fence, newest: run.fence }),
            None => Ok(()),
        }
    }

    fn hears_with(&self, voice: Voice, is_bound: bool) -> Result<(), NotHeard> {
        speaks(self.id, self.key.as_ref(), voice)?;
        match voice {
            Voice::Token(token) if is_bound && token != self.token => {
                Err(NotHeard::OtherToken { agent: self.id, bound: self.token })
            }
            Voice::Token(_) | Voice::Key(..) => Ok(()),
        }
    }

    /// What becomes of this record when its agent registers as `wanted`, speaking with `voice`: the newest registration wins.
    /// `after` is the process that the new one found in its folder, `is_bound` whether the token of this record still works.
    pub fn registered_as(
        &self,
        mut wanted: Host,
        voice: Voice,
        after: Option<InstanceId>,
        is_bound: bool,
    ) -> Result<Host, NotHeard> {
        self.hears_with(voice, is_bound)?;
        if self.superseded.contains(&wanted.instance) {
            return Err(NotHeard::Superseded { agent: self.id, instance: wanted.instance });
        }
        wanted.registered_at = self.registered_at;
        wanted.key = self.key;
        wanted.cordon.clone_from(&self.cordon);
        wanted.superseded.clone_from(&self.superseded);
        for earlier in [after, Some(self.instance)].into_iter().flatten() {
            if earlier != wanted.instance && !wanted.superseded.contains(&earlier) {
                wanted.superseded.push(earlier);
            }
        }
        let surplus = wanted.superseded.len().saturating_sub(SUPERSEDED_MAX);
        wanted.superseded.drain(..surplus);
        Ok(wanted)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        ProjectId, RunId,
        lease::grant::claim,
        limits::LeaseConfig,
        run::{Admission, RunSpec, admit},
    };

    fn queued() -> Run {
        let (org, created_by) = (OrgId::from_uuid(Uuid::nil()), TokenId::from_uuid(Uuid::nil()));
        let (id, project) = (RunId::from_uuid(Uuid::nil()), ProjectId::from_uuid(Uuid::nil()));
        let admission = Admission { id, org, project, created_by };
        admit(admission, RunSpec::new(["true"]), UnixMicros(1), &LeaseConfig::default()).run
    }

    fn process(number: u128) -> InstanceId {
        InstanceId::from_uuid(Uuid::from_u128(number))
    }

    /// A host whose agent speaks with that token as that process.
    pub(crate) fn host(token: u128, instance: u128) -> Host {
        Host {
            id: AgentId::from_uuid(Uuid::nil()),
            org: OrgId::from_uuid(Uuid::nil()),
            name: String::new(),
            version: String::new(),
            capacity: Capacity::default(),
            runtimes: Vec::new(),
            labels: BTreeMap::new(),
            token: TokenId::from_uuid(Uuid::from_u128(token)),
            key: None,
            instance: process(instance),
            superseded: Vec::new(),
            registered_at: UnixMicros(1),
            seen_at: UnixMicros(1),
            cordon: None,
            pool: None,
        }
    }

    fn hears(host: &Host, instance: u128, token: u128) -> Result<(), NotHeard> {
        let by = Claimant { agent: host.id, instance: process(instance) };
        host.hears(by, with(token))
    }

    fn with(token: u128) -> Voice {
        Voice::Token(TokenId::from_uuid(Uuid::from_u128(token)))
    }

    /// What becomes of `known` when its agent registers so, with the token of `wanted`.
    fn registered(known: &Host, wanted: Host, after: Option<InstanceId>, is_bound: bool) -> Result<Host, NotHeard> {
        let voice = Voice::Token(wanted.token);
        known.registered_as(wanted, voice, after, is_bound)
    }

    #[test]
    fn the_newest_registration_wins_and_no_late_word_undoes_it() {
        let first = host(1, 1);
        let again = registered(&first, host(1, 1), None, true).unwrap();
        assert_eq!(again, first, "repeating it changes nothing");
        // The process 2 was killed before its registration was heard; 3 found its word in the folder.
        let third = registered(&again, host(1, 3), Some(process(2)), true).unwrap();
        assert_eq!((hears(&third, 3, 1), third.registered_at), (Ok(()), UnixMicros(1)));
        for late in [1, 2] {
            assert!(matches!(hears(&third, late, 1), Err(NotHeard::Superseded { .. })));
            let refused = registered(&third, host(1, late), None, true);
            assert!(matches!(refused, Err(NotHeard::Superseded { .. })), "{late}");
        }
    }

    #[test]
    fn who_was_heard_before_a_newer_process_took_the_lease_over_does_not_speak_under_it() {
        let known = host(1, 1);
        let by = Claimant { agent: known.id, instance: process(1) };
        let claimed = claim(&queued(), by, UnixMicros(1), &LeaseConfig::default()).unwrap().run;
        let (newer, lease) = (registered(&known, host(1, 2), None, true).unwrap(), claimed.lease.unwrap());
        assert_eq!((known.follows(&claimed), newer.follows(&claimed)), (Ok(()), Ok(())));
        let renewed = Run { lease: Some(Lease { instance: process(2), ..lease }), ..claimed };
        assert_eq!(newer.follows(&renewed), Ok(()));
        assert_eq!(known.follows(&renewed), Err(StaleFence { given: 1, newest: 1 }));
        assert_eq!(known.follows(&queued()), Ok(()), "what has no lease is not decided here");
    }

    #[test]
    fn another_token_is_heard_only_once_the_first_does_not_work_any_more() {
        let known = host(1, 1);
        assert!(matches!(hears(&known, 1, 2), Err(NotHeard::OtherToken { .. })));
        assert!(matches!(registered(&known, host(2, 2), None, true), Err(NotHeard::OtherToken { .. })));
        let moved = registered(&known, host(2, 2), None, false).unwrap();
        assert_eq!(hears(&moved, 2, 2), Ok(()));
    }

    #[test]
    fn an_agent_that_has_enrolled_speaks_with_its_key_alone_until_that_is_revoked() {
        let public = HostPublicKey([1; 32]);
        let live = HostKey {
            public,
            join: TokenId::from_uuid(Uuid::from_u128(1)),
            enrolled_at: UnixMicros(1),
            revoked_at: None,
        };
        let enrolled = Host { key: Some(live), ..host(1, 1) };
        let by = Claimant { agent: enrolled.id, instance: process(1) };
        let another = AgentId::from_uuid(Uuid::from_u128(9));
        assert_eq!(enrolled.hears(by, Voice::Key(by.agent, public)), Ok(()));
        for voice in [with(1), Voice::Key(by.agent, HostPublicKey([2; 32])), Voice::Key(another, public)] {
            assert_eq!(enrolled.hears(by, voice), Err(NotHeard::OtherKey(by.agent)), "{voice:?}");
            let refused = enrolled.registered_as(host(1, 2), voice, None, false);
            assert_eq!(refused, Err(NotHeard::OtherKey(by.agent)), "{voice:?}");
        }
        let again = enrolled.registered_as(host(3, 2), Voice::Key(by.agent, public), None, true).unwrap();
        assert_eq!((again.key, again.instance), (Some(live), process(2)));
        let revoked = Host { key: Some(HostKey { revoked_at: Some(UnixMicros(5)), ..live }), ..enrolled };
        assert_eq!(revoked.hears(by, Voice::Key(by.agent, public)), Err(NotHeard::Revoked(by.agent)));
        assert_eq!(revoked.hears(by, with(1)), Err(NotHeard::OtherKey(by.agent)));
        let never = host(1, 1).hears(by, Voice::Key(by.agent, public));
        assert_eq!(never, Err(NotHeard::OtherKey(by.agent)), "nobody enrolled it");
    }

    fn cordon() -> Cordon {
        Cordon { by: TokenId::from_uuid(Uuid::nil()), by_name: "alice".to_owned(), at: UnixMicros(7) }
    }

    #[test]
    fn a_cordon_outlives_the_process_of_the_agent() {
        let cordoned = Host { cordon: Some(cordon()), ..host(1, 1) };
        let again = registered(&cordoned, host(1, 2), None, true).unwrap();
        assert_eq!(again.cordon, Some(cordon()));
        assert_eq!(again.refusal().as_deref(), Some("cordoned by alice; it takes nothing new"));
    }

    #[test]
    fn labels_and_people_say_why_nothing_new_is_taken() {
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(refusal(&BTreeMap::from([label("zone", "a")]), None), None);
        let failing = BTreeMap::from([label(FAILING_LABEL, "no mounts")]);
        let told = refusal(&failing, None);
        assert_eq!(told.as_deref(), Some("it cannot make sandboxes: no mounts; it takes nothing new"));
        let both = BTreeMap::from([label(PRESSURE_LABEL, "io"), label(STORAGE_LABEL, "full")]);
        assert_eq!(refusal(&both, None).as_deref(), Some("disk full; under pressure: io; it takes nothing new"));
        let all = refusal(&both, Some(&cordon()));
        assert_eq!(all.as_deref(), Some("cordoned by alice; disk full; under pressure: io; it takes nothing new"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut known = host(1, 0);
        for instance in 1..100 {
            known = registered(&known, host(1, instance), None, true).unwrap();
        }
        assert_eq!(known.superseded.len(), SUPERSEDED_MAX);
        assert_eq!(known.superseded.last(), Some(&process(98)));
    }
}
