//! Cursors and queries.
//!
//! The first byte says which: a cursor that was given and then changed, a text that somebody takes for one, or a whole
//! query for the server (`CURSOR` stands for one that was given). What must hold: a cursor that was given leads back to its
//! run, in its org and with its filters alone; whatever else is taken for one is, letter by letter, the one that would have
//! been given; no query makes an error of the server's own, and what is refused names the field.

use std::{cell::RefCell, rc::Rc, time::Duration};

use holm_api::{LOG_BATCH, runs::RunPage};
use holm_domain::{ErrorCode, OrgId, RunId};
use holm_server::cursor::{decode, encode};
use http::StatusCode;
use serde_json::json;
use tokio::time::timeout;
use uuid::Uuid;

use crate::{
    batches::batch,
    control_plane::{AGENT, By, INSTANCE, World},
    input::Input,
    run,
};

/// Far more than any answer takes; no time passes while anything is to be done.
const END: Duration = Duration::from_secs(3_600);
const ROUTES: [&str; 6] = [
    "/v1/runs",
    "/v1/runs/RUN/events",
    "/v1/runs/RUN/logs",
    "/v1/runs/RUN/logs/range",
    "/v1/runs/RUN/logs/search",
    "/v1/runs/RUN/logs/batches",
];

fn org(number: u128) -> OrgId {
    OrgId::from_uuid(Uuid::from_u128(number))
}

/// Seeds: cursors, and a query for each route.
pub fn seeds() -> Vec<Vec<u8>> {
    let text = encode(org(1), "state=queued;", RunId::from_uuid(Uuid::from_u128(7)));
    let mut seeds = vec![
        [&[0], &[7; 16][..], &[3, b'A'], b"state=queued;"].concat(),
        [b"\x01", &b"state=queued;"[..], b"\0", text.as_bytes()].concat(),
    ];
    for (route, query) in [
        (0, "limit=1&cursor=CURSOR"),
        (0, "project=default&state=queued,ended&label=a%3Db,c%3Dd&limit=200"),
        (1, "after=1&limit=2"),
        (2, "after=1&limit=10000"),
        (3, "since=-1&until=1700000000000000&tail=3"),
        (4, "regex=%5Ea%2B(b%7Cc)%24&after=1&upto=9&limit=3"),
        (4, "text=%FFa"),
        (5, "after=1&upto=2"),
        (5, "follow=true"),
    ] {
        seeds.push([&[2, route], query.as_bytes()].concat());
    }
    seeds
}

/// Reads it.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 3 {
        0 => given(input),
        1 => claimed(input.rest()),
        _ => run(query(input)),
    }
}

fn given(mut input: Input<'_>) {
    let last = RunId::from_uuid(Uuid::from_bytes(std::array::from_fn(|_| input.byte())));
    let (at, letter) = (usize::from(input.byte()), input.byte());
    let filter = String::from_utf8_lossy(input.rest()).into_owned();
    let cursor = encode(org(1), &filter, last);
    assert_eq!(decode(org(1), &filter, &cursor).expect("it was given"), last);
    let refused = |org, filter: &str, cursor: &str| {
        let failure = decode(org, filter, cursor).expect_err("it is of no use here");
        assert_eq!(failure.code(), ErrorCode::InvalidCursor);
    };
    refused(org(2), &filter, &cursor);
    refused(org(1), &format!("{filter};"), &cursor);
    let mut changed = cursor.clone().into_bytes();
    let at = at % changed.len();
    changed[at] = letter;
    if let Ok(changed) = String::from_utf8(changed)
        && changed != cursor
    {
        refused(org(1), &filter, &changed);
    }
    refused(org(1), &filter, &cursor[..at]);
}

/// A filter, a NUL byte, and a text.
fn claimed(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (filter, cursor) = text.split_once('\0').unwrap_or(("", &text));
    if let Ok(last) = decode(org(1), filter, cursor) {
        assert_eq!(encode(org(1), filter, last), cursor);
        assert!(decode(org(2), filter, cursor).is_err());
    }
}

/// A server whose run has ended, so that streams of it end, and that has a second one; and a cursor of its list. It is made
/// once, because no query changes it.
async fn world() -> Rc<(World, String)> {
    thread_local! {
        static WORLD: RefCell<Option<Rc<(World, String)>>> = const { RefCell::new(None) };
    }
    if let Some(world) = WORLD.with_borrow(Clone::clone) {
        return world;
    }
    let world = World::new().await;
    let run = world.run;
    let lines: [&[u8]; 4] = [b"abc\n", b"a", b"c\n", b"\xff\n"];
    let path = format!("/agent/v1/runs/{run}/logs?{}", world.fenced());
    let appended = world.ask(By::Agent, "POST", &path, LOG_BATCH, &batch(1, &lines)).await.expect("a path");
    assert_eq!(appended.status, StatusCode::OK);
    let outcome = json!({"kind": "succeeded", "exit": {"code": 0}});
    let end = json!({"agent": AGENT, "instance": INSTANCE, "fence": 1, "outcome": outcome, "next_log_seq": 5});
    let ended = world.post(By::Agent, &format!("/agent/v1/runs/{run}/finish"), &end).await;
    assert_eq!(ended.status, StatusCode::NO_CONTENT);
    let spec = json!({"root": {"kind": "host"}, "argv": ["true"]});
    assert_eq!(world.post(By::Member, "/v1/runs", &json!({"spec": spec})).await.status, StatusCode::CREATED);
    let cursor = world.cursor().await;
    let world = Rc::new((world, cursor));
    WORLD.set(Some(Rc::clone(&world)));
    world
}

async fn query(mut input: Input<'_>) {
    let route = ROUTES[usize::from(input.byte()) % ROUTES.len()];
    let Ok(query) = std::str::from_utf8(input.rest()) else { return };
    let world = world().await;
    let (world, cursor) = (&world.0, &world.1);
    let path = format!("{}?{}", route.replace("RUN", &world.run.to_string()), query.replace("CURSOR", cursor));
    let asked = timeout(END, world.ask(By::Member, "GET", &path, "", b"")).await;
    let Some(answer) = asked.expect("every answer ends") else { return };
    let theirs = timeout(END, world.ask(By::Stranger, "GET", &path, "", b"")).await;
    let theirs = theirs.expect("every answer ends").expect("a path");
    if answer.status.is_success() && route != "/v1/runs" {
        assert_eq!(theirs.problem().code, ErrorCode::NotFound, "another org has no such run");
    }
    if answer.status.is_success() && route == "/v1/runs" {
        let page: RunPage = answer.read();
        assert!(page.runs.iter().all(|run| run.org == org(1)));
        let is_empty = theirs.status.is_success() && theirs.read::<RunPage>().runs.is_empty();
        let is_refused = theirs.status.is_client_error() && theirs.problem().code == ErrorCode::InvalidCursor;
        // A fragment is never sent (RFC 9110, section 7.1).
        let sent = query.split('#').next().unwrap_or_default().replace("CURSOR", cursor);
        let names_it = sent.split('&').any(|parameter| parameter.strip_prefix("cursor=") == Some(cursor));
        assert!(if names_it { is_refused } else { is_empty || is_refused });
    }
}
