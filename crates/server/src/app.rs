//! What every handler, operation and task of one server shares.

use std::sync::Arc;

use holm_domain::{AgentId, ErrorCode, TokenId, UnixMicros, limits::STORAGE_FLOOR_FILES};
use holm_store::Store;
use rustix::fs::StatVfs;
use tokio_util::sync::CancellationToken;

use crate::{
    activity::Activity,
    auth::{
        keyring::Keyring,
        known::{KnownHostKeys, KnownTokens},
        speaker::Pace,
    },
    config::{Config, ServeLimits},
    gate::{Gate, Gates},
    limited::Limiter,
    metrics::Metrics,
    ops::leases::queue::Queues,
    pools::Pools,
    problem::Failure,
    told::UnreadableRuns,
    wakers::Wakers,
};

/// What every handler, operation and task of one server shares.
#[derive(Debug)]
pub struct App {
    /// What the server was told.
    pub config: Config,
    /// What is remembered.
    pub store: Store,
    /// Tokens that were looked up a moment ago.
    pub tokens: KnownTokens,
    /// Keys of hosts that were looked up a moment ago.
    pub host_keys: KnownHostKeys,
    /// How often hosts ask for sessions.
    pub session_pace: Pace<AgentId>,
    /// How often join tokens are shown that were used.
    pub join_pace: Pace<TokenId>,
    /// The keys of the deployment.
    pub keys: Keyring,
    /// Hints that something changed.
    pub wakers: Wakers,
    /// What polls know of the queues.
    pub queues: Queues,
    /// What is counted.
    pub metrics: Metrics,
    /// Runs that agents hold or wait for and that cannot be read.
    pub unreadable: UnreadableRuns,
    /// Live streams of each org.
    pub streams: Arc<Gate>,
    /// Searches in logs of each org.
    pub searches: Arc<Gate>,
    /// Pages that are made for each org.
    pub pages: Arc<Gate>,
    /// Bytes of bodies and answers of each org that are in memory.
    pub held: Gates,
    /// Waiting polls of each org.
    pub polls: Arc<Gate>,
    /// What orgs may do at most, on all servers together.
    pub limiter: Limiter,
    /// Whose runs hosts execute.
    pub pools: Pools,
    /// Whether anybody uses the server.
    pub activity: Arc<Activity>,
    /// Cancelled when the server is to end: waits and streams end at once.
    pub shutdown: CancellationToken,
    /// When every lease has run out that was granted or renewed before this server started, whatever the time of day did
    /// meanwhile. Nothing is taken away before.
    pub takes_away_from: UnixMicros,
}

fn held_gate(limits: &ServeLimits) -> Arc<Gate> {
    Gate::bounded("bytes of bodies and answers", limits.held_bytes_per_org_max, limits.held_bytes_max)
}

impl App {
    /// Puts the parts together.
    pub fn new(config: Config, store: Store) -> Self {
        let metrics = Metrics::default();
        Self {
            unreadable: UnreadableRuns::counting(metrics.unreadable_runs()),
            streams: Gate::new("streams", config.limits.streams_per_org_max),
            searches: Gate::new("searches", config.limits.searches_per_org_max),
            pages: Gate::new("pages", config.limits.pages_per_org_max),
            held: Gates { agents: held_gate(&config.limits), others: held_gate(&config.limits) },
            polls: Gate::new("polls", config.limits.polls_per_org_max),
            takes_away_from: config.clock.now().plus(config.lease.ttl + config.lease.margin),
            keys: Keyring::new(config.root_key.clone()),
            config,
            store,
            tokens: KnownTokens::default(),
            host_keys: KnownHostKeys::default(),
            session_pace: Pace::default(),
            join_pace: Pace::default(),
            wakers: Wakers::default(),
            queues: Queues::default(),
            metrics,
            limiter: Limiter::default(),
            pools: Pools::default(),
            activity: Arc::default(),
            shutdown: CancellationToken::new(),
        }
    }

    /// Refuses what needs room while there is less than the floor. Looked at anew each time, so it recovers by itself.
    pub fn needs_room(&self) -> Result<(), Failure> {
        let Some(floor) = &self.config.storage else { return Ok(()) };
        let stat = rustix::fs::statvfs(&floor.dir).map_err(|error| {
            Failure::unavailable("the room that is left for the server's data cannot be told; try again", error)
        })?;
        match shortage(&stat, floor.bytes) {
            None => Ok(()),
            Some(why) => {
                let detail = format!("{why}; make room, it takes runs again by itself");
                Err(Failure::new(ErrorCode::StorageFull, detail))
            }
        }
    }

    /// Refuses new runs while a file of the database is not in its place: what is stored then is gone with the server, unless
    /// that ends in order. What goes on is stored all the same. Looked at anew each time, so it recovers by itself.
    pub fn needs_files(&self) -> Result<(), Failure> {
        let Some(path) = self.store.displaced() else { return Ok(()) };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let detail = format!(
            "the file {name} of the database was removed or replaced while the server has it open: put it back; if it is the \
             log (-wal) and cannot be put back, end the server in order, which brings all that it holds into the database"
        );
        Err(Failure::new(ErrorCode::Unavailable, detail))
    }

    /// The time now.
    pub fn now(&self) -> UnixMicros {
        self.config.clock.now()
    }
}

/// What is missing below a floor of bytes, or of files that can be made. A floor of 0 asks for neither.
fn shortage(stat: &StatVfs, floor_bytes: u64) -> Option<String> {
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    // A file system of no blocks at all does not say how much it has, and one of no files has no limit of them.
    if stat.f_blocks > 0 && free < floor_bytes {
        return Some(format!("{free} bytes are free for the server's data, less than the floor of {floor_bytes}"));
    }
    if stat.f_files > 0 && stat.f_favail < STORAGE_FLOOR_FILES && floor_bytes > 0 {
        let free = stat.f_favail;
        return Some(format!(
            "{free} files can be made for the server's data (inodes), fewer than {STORAGE_FLOOR_FILES}"
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_bytes_and_files() {
        let of_temp = rustix::fs::statvfs(std::env::temp_dir()).unwrap();
        let short = |f_files, f_favail, floor_bytes| {
            let stat = StatVfs { f_blocks: 10, f_bavail: 5, f_frsize: 100, f_files, f_favail, ..of_temp };
            shortage(&stat, floor_bytes)
        };
        assert_eq!(short(9_000, 1_024, 500), None);
        assert!(short(9_000, 1_024, 501).unwrap().starts_with("500 bytes are free"));
        assert!(short(9_000, 1_023, 500).unwrap().starts_with("1023 files can be made"));
        assert_eq!(short(0, 0, 500), None, "it has no limit of files");
        assert_eq!(short(9_000, 0, 0), None, "no floor was asked for");
    }
}
