//! What a server is told when it is made, and the limits within which it serves.
//!
//! Every body, page, stream, connection and wait has a limit:
//!
//! | what | field or constant | default | beyond it |
//! |---|---|---|---|
//! | JSON body | `body_bytes_max` | 8 MiB | 413 `too_large` |
//! | JSON body by which leases are kept | [`LEASES_BODY_BYTES_MAX`] | 512 KiB | 413 `too_large` |
//! | body of log batches | `log_body_bytes_max` | 8 MiB | 413 `too_large` |
//! | archive of changes | `changes_bytes_max` | 4 GiB | 413 `too_large` |
//! | structured result | [`holm_domain::limits::RESULT_BYTES_MAX`] | 64 KiB | 413 `too_large` |
//! | runs in a page | [`RUNS_PAGE_MAX`] | 200 | 422 `invalid_field` |
//! | bytes of what the runs in a page were asked to do | [`RUNS_PAGE_BYTES_MAX`] | 4 MiB | a shorter page |
//! | log entries or events in a page | [`ENTRIES_PAGE_MAX`] | 10,000 | 422 `invalid_field` |
//! | bytes of a page of log entries, before JSON | [`LOG_PAGE_BYTES_MAX`] | 4 MiB | a shorter page |
//! | leases in a renewal or a poll | [`LEASES_MAX`] | 1,000 | 422 `invalid_field` |
//! | claims of one poll | [`CLAIMS_MAX`] | 64 | 422 `invalid_field` |
//! | bytes of what the runs of one poll are asked to do | [`CLAIMS_BYTES_MAX`] | 4 MiB | the next poll |
//! | events in an append | [`EVENTS_MAX`] | 256 | 422 `invalid_field` |
//! | candidates that one poll looks at | [`QUEUE_LOOK_MAX`] | 256 | the next look |
//! | candidates that one poll cannot grant because something beside their rows is damaged | [`QUEUE_DAMAGED_MAX`] | 4,096 | the next look |
//! | wait of a poll | [`POLL_WAIT_MS_MAX`] | 60 s | 422 `invalid_field` |
//! | live streams of one org | `streams_per_org_max` | 2,048 | 429 `too_many` |
//! | lines of `tail` | [`TAIL_LINES_MAX`] | 100,000 | 422 `invalid_field` |
//! | searches of one org | `searches_per_org_max` | 8 | 429 `too_many` |
//! | pages of logs, events or runs that are made for one org at once | `pages_per_org_max` | 8 | 429 `too_many` |
//! | waiting polls of one org | `polls_per_org_max` | 4,096 | 429 `too_many` |
//! | connections | `connections_max` | 4,096 | the oldest without a token is cut; where those with one have all but a sixteenth, an idle one of who has more is to leave, else one of whoever has the most, else 429 `too_many`; agents are heard all the same |
//! | connections of one org, without those of its agents | `connections_per_org_max` | 2,048 | 429 `too_many` |
//! | connections of one org with those of its agents | `connections_per_org_max` + `connections_for_agents` | 3,072 | 429 `too_many` |
//! | connections that only agents take, of which newcomers have a sixteenth of all connections first | `connections_for_agents` | 1,024 | for others, an idle one of who has more is to leave, else one of whoever has the most, else 429 `too_many` |
//! | bodies and answers in memory of one org above 64 KiB each, those of agents apart | `held_bytes_per_org_max` | 128 MiB | 429 `too_many` |
//! | the same of all orgs | `held_bytes_max` | 512 MiB | 429 `too_many` |
//! | an answer that is not read | `write_timeout` | 60 s | the connection is cut |
//! | head of a request, and an idle connection | `head_timeout`, `head_bytes_max` | 100 s, 64 KiB | closed, 431 |
//! | a request, until its answer begins | `request_timeout` | 30 s | 504 `deadline_exceeded` |
//! | an upload of changes | `upload_timeout`, `upload_idle_timeout` | 1 h, 30 s | 504 `deadline_exceeded` |
//! | runs of one org that hold a lease, on all servers | `runs_running_max` of `org_limits` | 10,000 | others wait in the queue |
//! | queued runs of one org | `runs_queued_max` | 2,000,000 | 429 `too_many` |
//! | runs that one org submits in a minute, on all servers | `submits_per_minute` | 300,000 | 429 `too_many` |
//! | bytes of logs that the agents of one org append in a second, on all servers | `log_bytes_per_second` | 256 MiB | 429 `too_many` |
//! | other changes of one org in a minute, on all servers, those of its agents apart | `api_writes_per_minute`, `agent_writes_per_minute` | 60,000, 600,000 | 429 `too_many` |
//! | polls, starts and ends of the agents of one org in a minute, and renewals of leases, on all servers | `lease_requests_per_minute`, `renewals_per_minute` | 1,800,000, 600,000 | 429 `too_many` |
//! | appends of logs of the agents of one org in a minute, on all servers | `appends_per_minute` | 1,200,000 | 429 `too_many` |
//! | the time for which logs are kept | `log_retention` | for ever | deleted, 410 `logs_deleted` |
//! | new runs, output and changes while the disk is nearly full | `storage` | 256 MiB free, room for 1,024 files | 507 `storage_full` |
//! | attempts of a compare-and-swap | [`SWAPS_MAX`] | 16 | 503 `unavailable` |
//! | the end of the server | `drain_timeout` | 10 s | connections are cut |

use std::{path::PathBuf, time::Duration};

use holm_domain::{
    error::InvalidField,
    limits::{CHANGES_BYTES_MAX, LeaseConfig},
    org_limits::OrgLimits,
};
use holm_store::Store;
use holm_trace::Tracer;

use crate::{auth::sealing::SealingKey, clock::Clock};

/// The most runs in a page.
pub const RUNS_PAGE_MAX: u32 = 200;
/// From how many bytes of what they were asked to do on no further run is added to a page.
pub const RUNS_PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The runs in a page where the request does not say.
pub const RUNS_PAGE_DEFAULT: u32 = 50;
/// The most log entries or events in a page.
pub const ENTRIES_PAGE_MAX: u32 = 10_000;
/// The log entries or events in a page where the request does not say.
pub const ENTRIES_PAGE_DEFAULT: u32 = 1_000;
/// The most bytes of log batches that are read for one page.
pub const LOG_PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bodies and answers that are not longer are not counted, in bytes.
pub const HELD_FREE_BYTES: usize = 64 * 1024;
/// The most lines that the end of a log is counted back.
pub const TAIL_LINES_MAX: u32 = 100_000;
/// The most leases in a renewal or a poll.
pub const LEASES_MAX: usize = 1_000;
/// The most runs that one poll may claim.
pub const CLAIMS_MAX: u32 = 64;
/// A poll claims no more once what the runs were asked to do has as many bytes.
pub const CLAIMS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The longest body by which leases are kept, in bytes: a renewal of [`LEASES_MAX`] has up to 260 KiB, a result with its
/// outcome 420 KiB where each byte is written as six.
pub const LEASES_BODY_BYTES_MAX: usize = 512 * 1024;
/// The most events in one append.
pub const EVENTS_MAX: usize = 256;
/// The most queued runs that one look at the queue considers.
pub const QUEUE_LOOK_MAX: u32 = 256;
/// The most runs that one look at the queue passes over because they turn out to be damaged when they are granted.
pub const QUEUE_DAMAGED_MAX: usize = 4_096;
/// The longest wait of a poll, in milliseconds.
pub const POLL_WAIT_MS_MAX: u64 = 60_000;
/// How often a compare-and-swap is tried again after somebody else was faster.
pub const SWAPS_MAX: u32 = 16;
/// How long a poll waits at most before it reads a store again that no other server changes. Nothing hangs on it.
pub const REREAD_OWN_EVERY: Duration = Duration::from_secs(30);
/// How often a quiet stream says that it is alive.
pub const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);

/// What a server is told when it is made.
#[derive(Debug, Clone)]
pub struct Config {
    /// The times by which leases work.
    pub lease: LeaseConfig,
    /// The limits within which it serves.
    pub limits: ServeLimits,
    /// What each org may do at most, on all servers together, unless it has limits of its own; nothing limits orgs where this
    /// is left out, as in a simulation.
    pub org_limits: Option<OrgLimits>,
    /// Where the time of day comes from.
    pub clock: Clock,
    /// The room that must be left for what the server stores.
    pub storage: Option<StorageFloor>,
    /// How long after the end of a run its log is kept; for ever where it is left out. At least [`LOG_RETENTION_MIN`].
    pub log_retention: Option<Duration>,
    /// The key that opens the keys in the store. A server that is told none signs no tokens.
    pub root_key: Option<SealingKey>,
    /// Whether it is a user's own server, which lends all of the host to whoever has a token: it makes none for others.
    pub private: bool,
    /// Where what is recorded of runs goes.
    pub tracer: Tracer,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lease: LeaseConfig::default(),
            limits: ServeLimits::default(),
            org_limits: Some(OrgLimits::default()),
            clock: Clock::default(),
            storage: None,
            log_retention: None,
            root_key: None,
            private: false,
            tracer: Tracer::default(),
        }
    }
}

/// The least room where nobody says, in bytes.
pub const STORAGE_FLOOR_BYTES: u64 = 256 * 1024 * 1024;

/// The shortest time for which logs are kept: who follows a run is still to hear its end.
pub const LOG_RETENTION_MIN: Duration = Duration::from_secs(1);

impl Config {
    /// The same for a server on `store`: what other servers write as well is judged by a time that they show, too.
    pub fn on(self, store: &Store) -> Self {
        let clock = if store.is_shared() { self.clock.of_day() } else { self.clock };
        Self { clock, ..self }
    }

    /// Refuses times that cannot be.
    pub fn validate(&self) -> Result<(), InvalidField> {
        self.lease.validate()?;
        match self.log_retention {
            Some(given) if given < LOG_RETENTION_MIN => {
                let problem = format!("give at least {} s", LOG_RETENTION_MIN.as_secs());
                Err(InvalidField::new("log_retention", format!("{given:?}"), problem))
            }
            _ => Ok(()),
        }
    }
}

/// How much room must be left on a file system, besides that for [`holm_domain::limits::STORAGE_FLOOR_FILES`] files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageFloor {
    /// A folder on it.
    pub dir: PathBuf,
    /// How many bytes must be free.
    pub bytes: u64,
}

/// The limits that a server can be told; see the module for the whole table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServeLimits {
    /// The longest JSON body, in bytes.
    pub body_bytes_max: usize,
    /// The longest body of log batches, in bytes.
    pub log_body_bytes_max: usize,
    /// The longest archive of changes, in bytes.
    pub changes_bytes_max: u64,
    /// The most live streams of one org.
    pub streams_per_org_max: usize,
    /// The most searches in logs of one org.
    pub searches_per_org_max: usize,
    /// The most pages of logs, events or runs that are made for one org at once.
    pub pages_per_org_max: usize,
    /// The most waiting polls of one org.
    pub polls_per_org_max: usize,
    /// The most connections, all listeners together.
    pub connections_max: usize,
    /// The most connections of one org that are not its agents'.
    pub connections_per_org_max: usize,
    /// How many of the connections nobody but agents can have, and those who have not said yet who they are.
    pub connections_for_agents: usize,
    /// The most bytes of bodies and answers longer than [`HELD_FREE_BYTES`] that one org has in memory; as much again for
    /// its agents.
    pub held_bytes_per_org_max: usize,
    /// The same of all orgs together.
    pub held_bytes_max: usize,
    /// How long what is written may not get on, because the client does not read.
    pub write_timeout: Duration,
    /// The longest head of a request, in bytes; at least 8 KiB.
    pub head_bytes_max: usize,
    /// How long the head of a request may take, and how long a connection may be idle.
    pub head_timeout: Duration,
    /// How long a request may take until its answer begins.
    pub request_timeout: Duration,
    /// How long an upload of changes may take.
    pub upload_timeout: Duration,
    /// How long an upload of changes may bring nothing.
    pub upload_idle_timeout: Duration,
    /// How long a server that is to end waits for its connections.
    pub drain_timeout: Duration,
    /// How long a wait lasts at most before the store is read again: wakers of other servers do not reach this one.
    pub reread_every: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        Self {
            body_bytes_max: 8 * MIB,
            log_body_bytes_max: 8 * MIB,
            changes_bytes_max: CHANGES_BYTES_MAX,
            streams_per_org_max: 2_048,
            searches_per_org_max: 8,
            pages_per_org_max: 8,
            polls_per_org_max: 4_096,
            connections_max: 4_096,
            connections_per_org_max: 2_048,
            connections_for_agents: 1_024,
            held_bytes_per_org_max: 128 * MIB,
            held_bytes_max: 512 * MIB,
            write_timeout: Duration::from_secs(60),
            head_bytes_max: 64 * 1024,
            // Longer than clients keep idle connections (reqwest: 90 s), so that they are closed by who reuses them.
            head_timeout: Duration::from_secs(100),
            request_timeout: Duration::from_secs(30),
            upload_timeout: Duration::from_secs(3_600),
            upload_idle_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
            reread_every: Duration::from_secs(1),
        }
    }
}
