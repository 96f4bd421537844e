//! Passes on what is rung: servers on one store tell each other what may have changed, so that nobody waits until it reads
//! anew.
//!
//! A hint is the name of the server that gives it and the names of bells, or `*` for all, divided by spaces. What always
//! holds: what was rung elsewhere is never passed on; what this server cannot read in a hint is left out, since a newer one
//! may know more bells; after any trouble every bell is rung, because some hints may have been lost.

use std::{collections::HashSet, time::Duration};

use holm_store::{Error, HINT_BYTES_MAX, Hints};

use super::Told;
use crate::{app::App, ids, metrics::Task, wakers::Rung};

/// How long hints are gathered after some were given: a busy server gives few long ones.
const GATHERED_FOR: Duration = Duration::from_millis(5);
/// How long hints that cannot be given or heard are waited for.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// After how long without a hint this server gives one itself, to see that it still hears.
const QUIET_MAX: Duration = Duration::from_secs(30);
/// How long that hint may take.
const ECHO_MAX: Duration = Duration::from_secs(10);
const ALL: &str = "*";

/// Gives and hears hints until the server is to end.
pub async fn run(app: &App) {
    let name = ids::server();
    tokio::select! {
        () = hear(app, &name) => {}
        () = app.shutdown.cancelled() => {}
    }
}

/// Returns where nobody else is on the store.
async fn hear(app: &App, name: &str) {
    let mut told = Told::counting(app.metrics.troubles(Task::Hint));
    loop {
        let trouble = match app.store.hints().await {
            Ok(None) => return,
            Ok(Some(hints)) => {
                app.wakers.share();
                // Between the last look and now hints may have been given.
                app.wakers.echo(&Rung::All);
                tokio::select! {
                    error = listen(app, name, hints) => error,
                    error = give(app, name) => error,
                }
            }
            Err(error) => error,
        };
        told.tell((), &trouble, "hints of other servers are not heard: this one looks by itself, and tries again");
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

/// Returns when hints do not come any more.
async fn listen(app: &App, name: &str, mut hints: Hints) -> Error {
    let mut is_asked = false;
    loop {
        // A connection that is lost unseen is noticed by a hint of our own that does not come back.
        let patience = if is_asked { ECHO_MAX } else { QUIET_MAX };
        let heard = match tokio::time::timeout(patience, hints.next()).await {
            Ok(Ok(heard)) => heard,
            Ok(Err(error)) => return error,
            Err(_) if is_asked => {
                tracing::warn!("a hint of this server's own did not come back; it listens anew");
                match app.store.hints().await {
                    Ok(Some(anew)) => hints = anew,
                    Ok(None) => {}
                    Err(error) => return error,
                }
                None
            }
            Err(_) => {
                if let Err(error) = app.store.hint(name).await {
                    return error;
                }
                is_asked = true;
                continue;
            }
        };
        is_asked = false;
        let rung = heard.map_or(Some(Rung::All), |text| read(&text, name));
        if let Some(rung) = rung {
            app.wakers.echo(&rung);
        }
    }
}

async fn give(app: &App, name: &str) -> Error {
    loop {
        let rung = app.wakers.rung().await;
        for text in write(name, &rung) {
            if let Err(error) = app.store.hint(&text).await {
                return error;
            }
        }
        tokio::time::sleep(GATHERED_FOR).await;
    }
}

/// As many hints as it takes.
fn write(name: &str, rung: &Rung) -> Vec<String> {
    let Rung::Some(bells) = rung else { return vec![format!("{name} {ALL}")] };
    let mut texts: Vec<String> = Vec::new();
    for bell in bells.iter().map(|bell| format!(" {bell}")) {
        match texts.last_mut() {
            Some(text) if text.len() + bell.len() <= HINT_BYTES_MAX => text.push_str(&bell),
            _ => texts.push(format!("{name}{bell}")),
        }
    }
    texts
}

/// What a hint of another server tells; nothing where it is one of our own.
fn read(text: &str, name: &str) -> Option<Rung> {
    let mut words = text.split(' ');
    if words.next() == Some(name) {
        return None;
    }
    let words: Vec<&str> = words.collect();
    if words.contains(&ALL) {
        return Some(Rung::All);
    }
    Some(Rung::Some(words.iter().filter_map(|word| word.parse().ok()).collect::<HashSet<_>>()))
}

#[cfg(test)]
mod tests {
    use holm_api::agent::{Poll, Polled};
    use holm_domain::RunId;
    use http::StatusCode;
    use uuid::Uuid;

    use super::*;
    use crate::{Server, testing::World, wakers::Bell};

    fn run(number: u128) -> Bell {
        Bell::Run(RunId::from_uuid(Uuid::from_u128(number)))
    }

    #[test]
    fn hints_come_back_however_many_there_are() {
        for count in [1, 2, 500] {
            let rung: HashSet<Bell> = (0..count).map(run).collect();
            let texts = write("here", &Rung::Some(rung.clone()));
            assert!(texts.iter().all(|text| text.len() <= HINT_BYTES_MAX));
            assert!(texts.len() as u128 <= 1 + count / 50, "{} texts", texts.len());
            let mut heard = HashSet::new();
            for text in &texts {
                assert_eq!(read(text, "here"), None, "our own");
                match read(text, "there") {
                    Some(Rung::Some(bells)) => heard.extend(bells),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(heard, rung);
        }
        assert_eq!(read(&write("here", &Rung::All)[0], "there"), Some(Rung::All));
    }

    #[test]
    fn what_a_newer_server_tells_is_left_out() {
        let text = format!("there door=1 {} \u{1f514}", run(1));
        assert_eq!(read(&text, "here"), Some(Rung::Some(HashSet::from([run(1)]))));
        assert_eq!(read("", "here"), Some(Rung::Some(HashSet::new())));
    }

    /// An agent that asks one server is told of a run that another took in, though neither looks again for an hour.
    #[tokio::test]
    async fn a_poll_at_one_server_hears_of_a_run_at_another() {
        let far = Duration::from_secs(3_600);
        let here = World::with_limits(|limits| limits.reread_every = far).await;
        let there = Server::new(here.app().config.clone(), here.app().store.clone()).unwrap();
        let tasks =
            [here.app().clone(), there.app.clone()].map(|app| tokio::spawn(async move { super::run(&app).await }));
        let poll = Poll { wait_ms: 20_000, ..here.poll() };
        let agent = here.agent_at(&there);
        let (answer, submitted) = tokio::join!(agent.post("/agent/v1/poll", &poll), async {
            // The poll is there first.
            tokio::time::sleep(Duration::from_millis(300)).await;
            here.queue_run().await
        });
        let claimed: Vec<_> = answer.json::<Polled>(StatusCode::OK).claimed.iter().map(|claimed| claimed.run).collect();
        assert_eq!(claimed, [submitted]);
        tasks.iter().for_each(|task| task.abort());
    }
}
