//! Histories of a database, in which the power goes as often as not: its log is never called damaged.

use std::ops::Range;

use proptest::prelude::*;

use super::{
    HEAD_BYTES,
    tests::{Bench, judged},
};

/// A disk writes so much as a whole.
const SECTOR_BYTES: usize = 512;

/// What is done to a database.
#[derive(Debug, Clone)]
enum Step {
    Commit {
        bytes: u32,
        all: bool,
    },
    GiveUp {
        bytes: u32,
        all: bool,
    },
    Bring {
        restart: bool,
    },
    /// The power goes in a commit: of its sectors those are on the disk that are kept, and SQLite goes on from there.
    PowerCut {
        bytes: u32,
        all: bool,
        kept: Vec<bool>,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let transaction = || (0_u32..12_000, any::<bool>());
    let step = prop_oneof![
        4 => transaction().prop_map(|(bytes, all)| Step::Commit { bytes, all }),
        2 => transaction().prop_map(|(bytes, all)| Step::GiveUp { bytes, all }),
        1 => any::<bool>().prop_map(|restart| Step::Bring { restart }),
        2 => (transaction(), prop::collection::vec(any::<bool>(), 1..40))
            .prop_map(|((bytes, all), kept)| Step::PowerCut { bytes, all, kept }),
    ];
    prop::collection::vec(step, 1..16)
}

/// What is on a disk when some sectors of what was written are. A head is on it before any frame is written.
fn torn(before: &[u8], after: &[u8], kept: &[bool]) -> Vec<u8> {
    let mut torn = before.to_vec();
    torn.resize(before.len().max(after.len()), 0);
    let sectors = (0..after.len()).step_by(SECTOR_BYTES).map(|at| at..after.len().min(at + SECTOR_BYTES));
    for (sector, _) in sectors.zip(kept.iter().cycle()).filter(|(_, is_kept)| **is_kept) {
        torn[sector.clone()].copy_from_slice(&after[sector]);
    }
    torn[..HEAD_BYTES].copy_from_slice(&after[..HEAD_BYTES]);
    torn
}

impl Bench {
    /// Returns how many rows there may be then, at least and at most.
    async fn goes_through(&mut self, step: Step, rows: usize) -> Range<usize> {
        match step {
            Step::Commit { bytes, all } => {
                self.says("begin immediate").await;
                self.fill(bytes, all).await;
                self.says("commit").await;
                rows + 1..rows + 2
            }
            Step::GiveUp { bytes, all } => {
                self.says("begin immediate").await;
                self.fill(bytes, all).await;
                self.says("rollback").await;
                rows..rows + 1
            }
            Step::Bring { restart } => {
                let how = if restart { "pragma wal_checkpoint(restart)" } else { "pragma wal_checkpoint(passive)" };
                self.says(how).await;
                rows..rows + 1
            }
            Step::PowerCut { bytes, all, kept } => {
                let before = self.log();
                self.says("begin immediate").await;
                self.fill(bytes, all).await;
                self.says("commit").await;
                let torn = torn(&before, &self.log(), &kept);
                assert_eq!(judged(&torn), None, "a torn transaction");
                *self = self.with_log(&torn).await;
                rows..rows + 2
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_log_that_sqlite_wrote_is_never_called_damaged(steps in steps(), page_bytes in prop::sample::select(vec![512, 4_096])) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut bench, mut rows) = (Bench::new(page_bytes).await, 0);
            for step in steps {
                let allowed = bench.goes_through(step, rows).await;
                assert_eq!(judged(&bench.log()), None);
                rows = bench.rows().await;
                assert!(allowed.contains(&rows), "{rows} rows, not {allowed:?}");
            }
        });
    }
}
