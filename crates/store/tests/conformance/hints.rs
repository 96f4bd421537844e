//! Hints: who listens hears them, whoever gives them; what one server has to itself has none.

use holm_store::{HINT_BYTES_MAX, Hints};
use sqlx::{Connection as _, PgConnection};

use crate::support::{Engine, Fixture, cases};

/// Ends every connection to the database but the one that asks.
const KILL: &str = "select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid()";
/// The connections that listen, or did so last.
const LISTENERS: &str = "select count(*) from pg_stat_activity
    where datname = current_database() and query ilike any (array['listen%', 'unlisten%'])";

cases!(everybody_on_the_store_hears_a_hint, a_listener_that_lost_its_connection_says_so, who_listens_no_more_is_gone);

async fn heard(hints: &mut Hints) -> String {
    hints.next().await.expect("hints come")
}

async fn everybody_on_the_store_hears_a_hint(fixture: Fixture) {
    let other = fixture.second_server().await;
    let (Some(mut here), Some(mut there)) =
        (fixture.store.hints().await.expect("listening"), other.hints().await.expect("listening"))
    else {
        return assert_eq!(fixture.engine, Engine::Sqlite, "one server has a file to itself");
    };
    let long = "x".repeat(HINT_BYTES_MAX);
    for text in ["one", "", "it's; \u{e9} -- two", &long] {
        other.hint(text).await.expect("given");
        assert_eq!((heard(&mut here).await.as_str(), heard(&mut there).await.as_str()), (text, text));
    }
    fixture.store.hint(&format!("{long}x")).await.expect_err("too long");
    drop(here);
    fixture.store.hint("after one has gone").await.expect("given");
    assert_eq!(heard(&mut there).await, "after one has gone");
}

async fn a_listener_that_lost_its_connection_says_so(fixture: Fixture) {
    if fixture.engine != Engine::Postgres {
        return;
    }
    let mut hints = fixture.store.hints().await.expect("listening").expect("shared");
    let mut admin = PgConnection::connect(&fixture.url).await.expect("PostgreSQL answers");
    let killed = sqlx::query(KILL).execute(&mut admin).await.expect("they can be ended");
    assert!(killed.rows_affected() > 0);
    hints.next().await.expect_err("some may have been lost");
    // The connections of the store's pool are gone, too; it makes new ones.
    let mut anew = fixture.store.hints().await.expect("listening").expect("shared");
    // What it used a moment ago it uses again without a question, and finds then that it is gone.
    for _ in 0..100 {
        if fixture.store.hint("again").await.is_ok() {
            return assert_eq!(heard(&mut anew).await, "again");
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("its connections are not made anew");
}

async fn who_listens_no_more_is_gone(fixture: Fixture) {
    if fixture.engine != Engine::Postgres {
        return;
    }
    let mut admin = PgConnection::connect(&fixture.url).await.expect("PostgreSQL answers");
    for _ in 0..40 {
        drop(fixture.store.hints().await.expect("listening").expect("shared"));
    }
    let _kept = fixture.store.hints().await.expect("listening");
    for _ in 0..500 {
        let count = sqlx::query_scalar::<_, i64>(LISTENERS).fetch_one(&mut admin).await.expect("they can be counted");
        if count == 1 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("listeners that were dropped are there still");
}
