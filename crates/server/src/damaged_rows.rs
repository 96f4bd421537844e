//! What holds when single rows of the database are damaged: the runs beside them go on, and nobody is told anything of a run
//! about which nothing is known.

use std::time::Duration;

use holm_api::{
    agent::{DirectiveKind, HeldLease, Poll, Polled, Renew, Renewed},
    logs::{LogMatches, LogPage, LogRange},
    runs::RunPage,
};
use holm_domain::{ErrorCode, RunId};
use http::StatusCode;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};
use tracing::Level;

use crate::{
    config::QUEUE_LOOK_MAX,
    testing::{World, log::Log},
};

/// A server whose database is a file, and the file.
struct OnFile {
    world: World,
    url: String,
    _folder: tempfile::TempDir,
}

impl OnFile {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("holm.db").display());
        let store = holm_store::Store::open(&url, holm_store::Blobs::memory()).await.unwrap();
        Self { world: World::on_store(store, |_| {}).await, url, _folder: folder }
    }

    /// Changes rows behind the server's back.
    async fn tamper(&self, sql: String) {
        let mut database = SqliteConnection::connect(&self.url).await.unwrap();
        let changed = sqlx::query(AssertSqlSafe(sql)).execute(&mut database).await.unwrap();
        assert!(changed.rows_affected() > 0, "the test changes something");
        database.close().await.unwrap();
    }

    async fn damage(&self, run: RunId) {
        self.tamper(format!("update runs set body = 'x' where id = '{run}'")).await;
    }

    async fn poll(&self, held: &[HeldLease], claims_max: u32) -> Polled {
        let poll = Poll { held: held.to_vec(), claims_max, ..self.world.poll() };
        self.world.agent().post("/agent/v1/poll", &poll).await.json(StatusCode::OK)
    }

    async fn renew(&self, held: &[HeldLease]) -> Vec<(RunId, Option<u64>)> {
        let leases = held.iter().copied().map(Into::into).collect();
        let body = Renew { agent: self.world.agent_id, instance: self.world.instance, leases };
        let renewed: Renewed = self.world.agent().post("/agent/v1/renew", &body).await.json(StatusCode::OK);
        renewed.leases.into_iter().map(|lease| (lease.run, lease.ttl_ms)).collect()
    }

    async fn counted(&self) -> f64 {
        let text = self.world.admin().get("/metrics").await.body;
        let text = String::from_utf8(text.to_vec()).unwrap();
        let sample = text.lines().find_map(|line| line.strip_prefix("holm_unreadable_runs_total "));
        sample.unwrap().parse().unwrap()
    }
}

#[tokio::test]
async fn an_agent_hears_of_its_good_runs_and_nothing_of_the_damaged_one() {
    let server = OnFile::new().await;
    let world = &server.world;
    let (good, damaged, cancelled) = (world.claim_run().await, world.claim_run().await, world.claim_run().await);
    world.member().post(&format!("/v1/runs/{}/cancel", cancelled.run), &json!({})).await;
    server.damage(damaged.run).await;

    let held = [good, damaged, HeldLease { fence: damaged.fence + 1, ..damaged }, cancelled];
    let polled = server.poll(&held, 0).await;
    let told: Vec<_> = polled.directives.iter().map(|directive| (directive.run, directive.what)).collect();
    // Its lease can be read, so what has another fence is stale.
    assert_eq!(told, [(damaged.run, DirectiveKind::Stale), (cancelled.run, DirectiveKind::Terminate)]);
    server.tamper(format!("update leases set cancel = 'x' where run = '{}'", damaged.run)).await;
    let polled = server.poll(&held, 0).await;
    let told: Vec<_> = polled.directives.iter().map(|directive| (directive.run, directive.what)).collect();
    assert_eq!(told, [(cancelled.run, DirectiveKind::Terminate)]);
    let renewed = server.renew(&[good, damaged, cancelled]).await;
    assert_eq!(renewed, [(good.run, Some(30_000)), (cancelled.run, Some(30_000))]);
    assert_eq!(server.renew(&[damaged]).await, [], "nor is it refused");

    world.clock.advance(Duration::from_secs(20));
    let again = server.poll(&[cancelled], 8).await;
    let claimed: Vec<_> = again.claimed.iter().map(|claimed| claimed.run).collect();
    assert_eq!(claimed, [good.run], "what it does not list is granted once more, the damaged one aside");
}

#[tokio::test]
async fn runs_behind_damaged_ones_are_claimed_however_many_stand_first() {
    let last_version = i64::MAX;
    for damage in [
        "update runs set body = 'x'",
        "update log_heads set next_log_seq = -1",
        "delete from log_heads",
        &format!("update runs set version = {last_version}, body = json_set(body, '$.is.version', {last_version})"),
    ] {
        let server = OnFile::new().await;
        let world = &server.world;
        for _ in 0..=QUEUE_LOOK_MAX {
            world.queue_run().await;
        }
        server.tamper(damage.to_owned()).await;
        let (first, damaged, last) = (world.queue_run().await, world.queue_run().await, world.queue_run().await);
        server.damage(damaged).await;
        let claimed = server.poll(&[], 8).await.claimed;
        assert_eq!(claimed.iter().map(|claimed| claimed.run).collect::<Vec<_>>(), [first, last], "{damage}");
        let last = world.queue_run().await;
        assert_eq!(world.claim().await.run, last, "{damage}: at every look");
    }
}

#[tokio::test]
async fn a_run_whose_log_head_is_damaged_is_passed_over() {
    let server = OnFile::new().await;
    let world = &server.world;
    let (damaged, good) = (world.queue_run().await, world.queue_run().await);
    server.tamper(format!("update log_heads set next_log_seq = -1 where run = '{damaged}'")).await;
    let claimed = server.poll(&[], 8).await.claimed;
    assert_eq!(claimed.iter().map(|claimed| claimed.run).collect::<Vec<_>>(), [good]);
}

#[tokio::test]
async fn each_damaged_run_is_told_once_and_counted_each_time() {
    let server = OnFile::new().await;
    let world = &server.world;
    let (good, damaged, waiting) = (world.claim_run().await, world.claim_run().await, world.queue_run().await);
    server.damage(damaged.run).await;
    server.damage(waiting).await;
    let log = Log::default();
    let _kept = log.keep(Level::ERROR);
    assert_eq!(server.counted().await, 0.0);
    for _ in 0..3 {
        assert!(server.poll(&[good, damaged], 8).await.is_empty());
        server.renew(&[good, damaged]).await;
    }
    assert_eq!([good.run, damaged.run, waiting].map(|run| log.lines_with(&run.to_string())), [0, 1, 1]);
    assert_eq!(server.counted().await, 6.0, "a poll reads the queue, a renewal the runs");
}

#[tokio::test]
async fn an_error_that_is_no_damage_is_told_each_time_and_holds_no_other_lease_up() {
    let server = OnFile::new().await;
    let world = &server.world;
    let (good, bad) = (world.claim_run().await, world.claim_run().await);
    // The lease stays under the fence 1, and no run is saved whose lease bears another fence than itself.
    server.tamper(format!("update runs set body = json_set(body, '$.is.fence', 9) where id = '{}'", bad.run)).await;
    let log = Log::default();
    let _kept = log.keep(Level::ERROR);
    for _ in 0..3 {
        assert_eq!(server.renew(&[good, bad]).await, [(good.run, Some(30_000))]);
        assert_eq!(server.renew(&[bad]).await, [], "nor is it refused");
    }
    let cause = "its fence is not that of the run";
    assert_eq!((log.lines_with(&bad.run.to_string()), log.lines_with(cause), server.counted().await), (6, 6, 0.0));
}

#[tokio::test]
async fn a_list_shows_the_good_runs_and_names_the_damaged_ones() {
    let server = OnFile::new().await;
    let world = &server.world;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(world.queue_run().await);
    }
    for place in [0, 2, 3] {
        server.damage(ids[place]).await;
    }
    let list = |query: String| {
        let (path, member) = (format!("/v1/runs?{query}"), world.member());
        async move { member.get(&path).await.json::<RunPage>(StatusCode::OK) }
    };
    let shown = |page: &RunPage| page.runs.iter().map(|run| run.id).collect::<Vec<_>>();
    for query in ["", "state=queued", "project=default"] {
        let all = list(query.to_owned()).await;
        assert_eq!((shown(&all), all.next_cursor), (vec![ids[4], ids[1]], None));
        assert_eq!(all.unreadable, [ids[3], ids[2], ids[0]]);
    }
    let (mut runs, mut unreadable, mut pages, mut query) = (Vec::new(), Vec::new(), 0, "limit=1".to_owned());
    loop {
        let page = list(query).await;
        assert_eq!(page.runs.len() + page.unreadable.len(), 1, "one that cannot be read takes its place");
        runs.extend(shown(&page));
        unreadable.extend(page.unreadable);
        pages += 1;
        let Some(cursor) = page.next_cursor else { break };
        query = format!("limit=1&cursor={cursor}");
    }
    assert_eq!((runs, unreadable, pages), (vec![ids[4], ids[1]], vec![ids[3], ids[2], ids[0]], 5));
    let whole = world.other_org().get("/v1/runs").await;
    assert!(!String::from_utf8_lossy(&whole.body).contains("unreadable"), "only where there are any");
}

#[tokio::test]
async fn a_damaged_run_is_deleted_once_it_has_ended_and_says_until_then_what_keeps_it() {
    let server = OnFile::new().await;
    let world = &server.world;
    let held = world.claim_run().await;
    let path = format!("/v1/runs/{}", held.run);
    server.damage(held.run).await;
    let refused = world.member().delete(&path).await.problem(ErrorCode::Conflict);
    assert!(refused.detail.contains("is claimed and cannot be read; repair its row or restore"), "{refused}");
    let ended = world.claim_run().await;
    world.finish(ended, 1).await;
    server.damage(ended.run).await;
    let path = format!("/v1/runs/{}", ended.run);
    world.other_org().delete(&path).await.problem(ErrorCode::NotFound);
    assert_eq!(world.member().delete(&path).await.status, StatusCode::NO_CONTENT);
    world.member().get(&path).await.problem(ErrorCode::NotFound);
}

#[tokio::test]
async fn a_log_whose_end_is_gone_is_read_up_to_there_and_nowhere_to_an_end() {
    let server = OnFile::new().await;
    let world = &server.world;
    let held = world.claim_run().await;
    world.append_log(held, 1, &["a\n", "b\n"]).await;
    world.append_log(held, 3, &["c\n", "d\n"]).await;
    let logs = format!("/v1/runs/{}/logs", held.run);
    let read = |query: &str| {
        let (path, member) = (format!("{logs}{query}"), world.member());
        async move { member.get(&path).await }
    };
    let of_run = format!("where run = '{}'", held.run);
    server.tamper(format!("delete from log_segments {of_run} and last_seq = 4")).await;
    for has_ended in [false, true] {
        if has_ended {
            world.finish(held, 5).await;
        }
        let page: LogPage = read("").await.json(StatusCode::OK);
        assert_eq!((page.entries.len(), page.last_seq, page.complete), (2, 2, false));
        for query in ["?after=2", "/search?text=d", "/range?tail=1", "/range?since=9000000000000000"] {
            read(query).await.problem(ErrorCode::LogDamaged);
        }
        let rest = world.member().follow(&format!("{logs}/follow")).await.rest().await;
        assert_eq!(rest, ["1 log a\n", "2 log b\n"], "no end is told");
        for query in ["", "?follow=true"] {
            let batches = read(&format!("/batches{query}")).await;
            assert!(!batches.body.windows(4).any(|word| word == b"HLBE" || word == b"HLBR"), "no end is told");
        }
        read("/batches?after=2").await.problem(ErrorCode::LogDamaged);
        read("/follow?after=2").await.problem(ErrorCode::LogDamaged);
    }
    server.tamper(format!("delete from log_segments {of_run}")).await;
    for query in ["", "/search?text=d", "/range?tail=1", "/range?since=0", "/batches", "/follow"] {
        read(query).await.problem(ErrorCode::LogDamaged);
    }
    server.tamper(format!("delete from log_heads {of_run}")).await;
    for query in ["", "/search?text=d", "/range", "/batches", "/follow"] {
        read(query).await.problem(ErrorCode::LogDamaged);
    }
}

#[tokio::test]
async fn a_log_with_a_gap_is_read_up_to_it_and_from_behind_it() {
    let server = OnFile::new().await;
    let world = &server.world;
    let held = world.claim_run().await;
    for (first, entries) in [(1, ["a\n", "b\n"]), (3, ["c\n", "d\n"]), (5, ["e\n", "f\n"])] {
        world.append_log(held, first, &entries).await;
    }
    server.tamper(format!("delete from log_segments where run = '{}' and last_seq = 4", held.run)).await;
    let logs = format!("/v1/runs/{}/logs", held.run);
    let read = |query: &str| {
        let (path, member) = (format!("{logs}{query}"), world.member());
        async move { member.get(&path).await }
    };
    for has_ended in [false, true] {
        if has_ended {
            world.finish(held, 7).await;
        }
        let page: LogPage = read("").await.json(StatusCode::OK);
        assert_eq!((page.entries.len(), page.last_seq, page.complete), (2, 2, false));
        let before = world.member().follow(&format!("{logs}/follow")).await.rest().await;
        assert_eq!(before, ["1 log a\n", "2 log b\n"], "no end is told");
        for query in ["?after=2", "?after=3", "/batches?after=3", "/follow?after=2", "/search?text=f", "/range?tail=3"]
        {
            read(query).await.problem(ErrorCode::LogDamaged);
        }
        let page: LogPage = read("?after=4").await.json(StatusCode::OK);
        assert_eq!((page.entries.len(), page.last_seq, page.complete), (2, 6, has_ended));
        let range: LogRange = read("/range?tail=1").await.json(StatusCode::OK);
        assert_eq!((range.after, range.last_seq), (5, 6));
        let found: LogMatches = read("/search?text=f&after=4").await.json(StatusCode::OK);
        assert_eq!((found.matches.len(), found.last_seq, found.complete), (1, 6, true));
    }
    let behind = world.member().follow(&format!("{logs}/follow?after=4")).await.rest().await;
    assert_eq!(behind[..2], ["5 log e\n", "6 log f\n"]);
    assert_eq!(behind.len(), 3, "and the end: {behind:?}");
}
