//! Hints: who listens hears them, whoever gives them; what one server has to itself has none.

use holm_store::{HINT_BYTES_MAX, Hints};

use sqlx::{Connection as _, PgConnection};

use crate::support::{Engine, Fixture, cases};

/// Ends every connection to the database but the one that asks.
const KILL: &str = "select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid()";

cases!(everybody_on_the_store_hears_a_hint, a_listener_that_lost_its_connection_says_so_and_goes_on);

async fn heard(hints: &mut Hints) -> Option<String> {
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
        assert_eq!((heard(&mut here).await.as_deref(), heard(&mut there).await.as_deref()), (Some(text), Some(text)));
    }
    fixture.store.hint(&format!("{long}x")).await.expect_err("too long");
    drop(here);
    fixture.store.hint("after one has gone").await.expect("given");
    assert_eq!(heard(&mut there).await.as_deref(), Some("after one has gone"));
}

async fn a_listener_that_lost_its_connection_says_so_and_goes_on(fixture: Fixture) {
    if fixture.engine != Engine::Postgres {
        return;
    }
    let mut hints = fixture.store.hints().await.expect("listening").expect("shared");
    let other = fixture.second_server().await;
    let mut admin = PgConnection::connect(&fixture.url).await.expect("PostgreSQL answers");
    let killed = sqlx::query(KILL).execute(&mut admin).await.expect("they can be ended");
    assert!(killed.rows_affected() > 0);
    assert_eq!(heard(&mut hints).await, None, "some may have been lost");
    // The connections of the other's pool are gone, too; it makes new ones.
    other.hint("again").await.expect("given");
    assert_eq!(heard(&mut hints).await.as_deref(), Some("again"));
}
