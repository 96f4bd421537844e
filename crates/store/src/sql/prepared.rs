//! Prepares every query on both engines: a text that one of them does not understand, or that names what the schema does
//! not have, is found without waiting for the case that executes it.

use std::collections::BTreeSet;

use sqlx::{Executor, Row, Statement};

use super::{Db, Expect, Query, migrate};
use crate::{
    audit, census, doomed, enrol, events, examined, hosts, keys, leases, logs, org_limits, orgs, pools,
    postgres::TestDatabase, projects, retention, runs, secrets, tokens,
};

fn all() -> Vec<Query> {
    let lists = [
        crate::QUERIES,
        migrate::QUERIES,
        orgs::QUERIES,
        org_limits::QUERIES,
        projects::QUERIES,
        tokens::QUERIES,
        hosts::QUERIES,
        enrol::QUERIES,
        pools::QUERIES,
        keys::QUERIES,
        secrets::QUERIES,
        audit::QUERIES,
        census::QUERIES,
        runs::QUERIES,
        retention::QUERIES,
        leases::QUERIES,
        events::QUERIES,
        examined::QUERIES,
        logs::QUERIES,
        logs::READ_QUERIES,
        doomed::QUERIES,
    ];
    lists.concat()
}

/// The largest `$n` in the text.
fn values_of(query: Query) -> usize {
    let after_dollars = query.sql.split('$').skip(1);
    let number = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok());
    after_dollars.filter_map(number).max().unwrap_or(0)
}

async fn prepare_all(db: &Db) {
    let own = if matches!(db, Db::Postgres(_)) { runs::POSTGRES_QUERIES } else { &[] };
    for query in all().into_iter().chain(own.iter().copied()) {
        let parameters = match db {
            Db::Sqlite { writer, .. } => {
                let prepared = writer.prepare(sqlx::SqlStr::from_static(query.sql)).await;
                prepared.map(|statement| statement.parameters().map(|p| p.right_or_else(|l| l.len())))
            }
            Db::Postgres(sessions) => {
                let prepared = sessions.pool().prepare(sqlx::SqlStr::from_static(query.sql)).await;
                prepared.map(|statement| statement.parameters().map(|p| p.right_or_else(|l| l.len())))
            }
        };
        let parameters = parameters.unwrap_or_else(|error| panic!("{}: {error}\n{}", query.name, query.sql));
        assert_eq!(parameters.unwrap_or(0), values_of(query), "{}", query.name);
    }
}

#[tokio::test]
async fn every_query_is_prepared_on_sqlite() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("holm.db");
    prepare_all(&Db::open_sqlite(path.to_str().expect("a path"), Expect::Anything).await.expect("opens")).await;
}

#[tokio::test]
async fn every_query_is_prepared_on_postgres() {
    let database = TestDatabase::create().await;
    prepare_all(&Db::open_postgres(&database.url).await.expect("opens")).await;
    database.remove().await;
}

/// The steps by which SQLite would execute a query.
async fn plan(db: &Db, query: Query) -> Vec<String> {
    let Db::Sqlite { writer, .. } = db else { panic!("SQLite alone") };
    let explain = sqlx::AssertSqlSafe(format!("explain query plan {}", query.sql));
    let rows = sqlx::query(explain).fetch_all(writer).await;
    rows.expect("a plan").iter().map(|row| row.get::<String, _>("detail")).collect()
}

#[tokio::test]
async fn no_query_reads_a_whole_table_and_no_page_is_sorted() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("holm.db");
    let db = Db::open_sqlite(path.to_str().expect("a path"), Expect::Anything).await.expect("opens");
    // What stands in brackets or is a derived table (c, w) is as short as its limit says.
    let derived = ["SCAN c", "SCAN w", "SCAN CONSTANT ROW", "SCAN (subquery"];
    // These look at all of a table that holds a bounded number of rows.
    let bounded = [
        "SIGNING_KEYS",
        "SIGNING_KEY_CREATE",
        "SIGNING_KEYS_FORGET",
        "ENVELOPES_FORGET",
        "POOL_LIST",
        "POOL_PAIRS",
        "ORG_LIST",
        "ORG_FOUND",
    ];
    let pages = [
        "RUN_LIST",
        "RUN_LIST_LIVE",
        "RUN_LIST_OF_PROJECT",
        "RUN_LIST_LABELLED",
        "RUN_QUEUE",
        "RUNS_EXAMINED",
        "RUNS_DUE",
        "LOG_SEALABLE",
        "DOOMED_DUE",
        "DOOMED_LOG_DUE",
        "LOGS_KEPT",
        "HOST_CENSUS",
        "SECRETS",
        "SECRETS_SEALED_BY",
    ];
    for query in all().into_iter().filter(|query| query.of != "schema step") {
        let steps = plan(&db, query).await;
        for step in &steps {
            let whole = step.starts_with("SCAN") && !derived.iter().any(|allowed| step.starts_with(allowed));
            assert!(!whole || bounded.contains(&query.name), "{}: {steps:#?}", query.name);
        }
        let sorted = steps.iter().any(|step| step.contains("TEMP B-TREE"));
        assert!(!(sorted && pages.contains(&query.name)), "{}: {steps:#?}", query.name);
    }
    for (name, index) in [
        ("RUN_QUEUE", "INDEX runs_queue (org=? AND (queue_at,id)>(?,?))"),
        ("RUNS_DUE", "runs_due"),
        ("RUNS_EXAMINED", "runs_live"),
        ("LOG_SEALABLE", "log_heads_sealable"),
        ("DOOMED_DUE", "doomed_runs_due"),
        ("DOOMED_LOG_DUE", "doomed_logs_due"),
        ("LOGS_KEPT", "runs_log_kept"),
        ("RUN_CENSUS_QUEUED", "COVERING INDEX runs_queue"),
        ("SECRETS_SEALED_BY", "INDEX secrets_of_envelope (envelope_key=? AND id>?)"),
    ] {
        let steps = plan(&db, all().into_iter().find(|query| query.name == name).expect("there")).await;
        assert!(steps[0].contains(index), "{name}: {steps:?}");
    }
}

#[tokio::test]
async fn queued_runs_are_counted_in_their_index() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("holm.db");
    let db = Db::open_sqlite(path.to_str().expect("a path"), Expect::Anything).await.expect("opens");
    let query = org_limits::QUERIES.iter().find(|query| query.name == "ORG_QUEUED_COUNT").expect("there");
    let steps = plan(&db, *query).await;
    assert!(steps.iter().any(|step| step.contains("INDEX runs_queue (org=?)")), "{steps:?}");
}

/// SQLite looks at the value of a bare `limit $n` when it plans (`sqlite3ExprIsInteger` in its sources), and therefore
/// prepares the statement anew whenever it is executed with a value; at one in a sum it does not look.
#[test]
fn no_limit_lets_a_query_be_prepared_each_time() {
    let limited = all().into_iter().filter(|query| query.sql.contains("limit $"));
    let mut count = 0;
    for query in limited {
        for after in query.sql.split("limit $").skip(1) {
            let rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
            assert!(rest.starts_with(" + 0"), "{}: write `limit $n + 0`: {}", query.name, query.sql);
            count += 1;
        }
    }
    assert!(count >= 15, "{count} are not all");
}

/// The module that defines queries and is forgotten above would be found by nobody: so the sources are counted.
#[test]
fn no_module_is_forgotten() {
    let mut defining = 0;
    let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if std::fs::read_to_string(&path).expect("a source").lines().any(|line| line == "queries! {") {
                defining += 1;
            }
        }
    }
    assert_eq!(defining, 22, "list the queries of every module in `all`");
    let names: BTreeSet<&str> = all().iter().map(|query| query.name).collect();
    assert_eq!(names.len(), all().len(), "names are unique");
}
