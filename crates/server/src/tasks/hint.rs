//! Passes on what is rung: servers on one store tell each other what may have changed, so that nobody waits until it reads
//! anew.
//!
//! A hint is the name of the server that gives it and the names of bells, or `*` for all, divided by spaces. What always
//! holds: what was rung elsewhere is never passed on; what this server cannot read in a hint is left out, since a newer one
//! may know more bells; where hints may have been lost every bell is rung; trouble with hearing holds up no giving, and the
//! other way about. Both are told once, and once more when they are over.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use holm_store::{Cause, HINT_BYTES_MAX, Hints};
use tokio::time::sleep;

use crate::{
    app::App,
    ids,
    metrics::Task,
    told::Outage,
    wakers::{Gathered, Rung},
};

/// How long hints are gathered after some were given: a busy server gives few long ones.
const GATHERED_FOR: Duration = Duration::from_millis(10);
/// How long what is heard is gathered after some was rung: however busy other servers are, nobody here reads the store for
/// their sake more often than this.
const ECHO_EVERY: Duration = Duration::from_millis(50);
/// How long hints that cannot be given or heard are waited for.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// After how long without a hint this server gives one itself, to see that it still hears.
const QUIET_MAX: Duration = Duration::from_secs(30);
/// How long that hint may take.
const ECHO_MAX: Duration = Duration::from_secs(10);
const ALL: &str = "*";

/// Gives and hears hints until the server is to end.
pub async fn run(app: &App) {
    if !app.store.is_shared() {
        return;
    }
    let name = ids::server();
    app.wakers.share();
    tokio::select! {
        ((), ()) = async { tokio::join!(hear(app, &name), give(app, &name)) } => {}
        () = app.shutdown.cancelled() => {}
    }
}

/// Returns only where nobody else is on the store.
async fn hear(app: &App, name: &str) {
    let what = "hints of other servers are not heard: this one looks by itself, and tries again";
    let mut outage = Outage::counting(app.metrics.troubles(Task::Hint), what);
    loop {
        let error = match app.store.hints().await {
            Ok(None) => return,
            Ok(Some(hints)) => listen(app, name, hints, &mut outage).await,
            Err(error) => error.into(),
        };
        outage.trouble(&error);
        sleep(RETRY_EVERY).await;
    }
}

/// Returns when hints do not come any more.
async fn listen(app: &App, name: &str, hints: Hints, outage: &mut Outage) -> Cause {
    let (heard, count) = (Gathered::default(), AtomicU64::new(0));
    // Between the last look and now hints may have been given.
    heard.add_rung(Rung::All);
    tokio::select! {
        error = gather(name, hints, &heard, &count, outage) => error,
        error = prove(app, name, &count) => error,
        never = echo(app, &heard) => match never {},
    }
}

/// Gathers what is heard, and counts all hints, those of this server included. With the first an outage is over.
async fn gather(name: &str, mut hints: Hints, heard: &Gathered, count: &AtomicU64, outage: &mut Outage) -> Cause {
    loop {
        match hints.next().await {
            Ok(text) => {
                outage.over();
                count.fetch_add(1, Ordering::Relaxed);
                if let Some(rung) = read(&text, name) {
                    heard.add_rung(rung);
                }
            }
            Err(error) => return error.into(),
        }
    }
}

/// Rings what is heard.
async fn echo(app: &App, heard: &Gathered) -> Infallible {
    loop {
        app.wakers.echo(&heard.take().await);
        sleep(ECHO_EVERY).await;
    }
}

/// Returns when a hint of this server's own was given and did not come back: at first, and later after each quiet time. A
/// connection may be lost unseen, and there may be something on the way that passes none on.
async fn prove(app: &App, name: &str, count: &AtomicU64) -> Cause {
    loop {
        let before = count.load(Ordering::Relaxed);
        // What is in the way of giving is told where hints are given.
        let is_given = app.store.hint(name).await.is_ok();
        sleep(ECHO_MAX).await;
        if is_given && count.load(Ordering::Relaxed) == before {
            return format!("a hint of this server's own did not come back within {ECHO_MAX:?}").into();
        }
        quiet(count).await;
    }
}

/// Waits until nothing was heard for a while.
async fn quiet(count: &AtomicU64) {
    loop {
        let before = count.load(Ordering::Relaxed);
        sleep(QUIET_MAX).await;
        if count.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

async fn give(app: &App, name: &str) {
    let what = "hints cannot be given to other servers: they look by themselves, and it is tried again";
    let mut outage = Outage::counting(app.metrics.troubles(Task::Hint), what);
    loop {
        let rung = app.wakers.untold().await;
        for text in write(name, &rung) {
            while let Err(error) = app.store.hint(&text).await {
                outage.trouble(&error);
                sleep(RETRY_EVERY).await;
            }
            outage.over();
        }
        sleep(GATHERED_FOR).await;
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
    Some(Rung::Some(words.iter().filter_map(|word| word.parse().ok()).collect()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

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

    /// However often others ring: a server that is busy does not keep those who listen at another at work.
    #[tokio::test(start_paused = true)]
    async fn what_is_heard_in_a_moment_is_rung_once() {
        let here = World::new().await;
        let app = here.app();
        let heard = Gathered::default();
        let Bell::Run(number) = run(1) else { unreachable!("it is a run's") };
        let rings = async {
            let listener = app.wakers.listen_run(number);
            let mut rings = 0;
            while tokio::time::timeout(ECHO_EVERY * 3, listener.heard()).await.is_ok() {
                rings += 1;
            }
            rings
        };
        let busy = async {
            for _ in 0..1_000 {
                heard.add([run(1)]);
                sleep(Duration::from_millis(1)).await;
            }
        };
        let rings = tokio::select! {
            never = echo(app, &heard) => match never {},
            (rings, ()) = async { tokio::join!(rings, busy) } => rings,
        };
        assert!((15..=25).contains(&rings), "{rings} in a second");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_hear_itself_is_not_content() {
        let here = World::new().await;
        let (app, count) = (here.app(), AtomicU64::new(0));
        let begun = tokio::time::Instant::now();
        let trouble = prove(app, "here", &count).await;
        assert!(trouble.to_string().contains("did not come back"), "{trouble}");
        assert_eq!(begun.elapsed(), ECHO_MAX, "it asks at once");
        let hints = app.store.hints().await.unwrap().unwrap();
        let mut outage = Outage::counting(app.metrics.troubles(Task::Hint), "a test");
        let hearing = listen(app, "here", hints, &mut outage);
        assert!(tokio::time::timeout(QUIET_MAX * 10, hearing).await.is_err(), "one that hears itself is");
    }

    /// Somebody follows a run at one server, and its agent speaks to another.
    #[tokio::test]
    async fn a_follower_at_one_server_hears_of_output_at_another() {
        let far = Duration::from_secs(3_600);
        let here = World::with_limits(|limits| limits.reread_every = far).await;
        let there = Server::new(here.app().config.clone(), here.app().store.clone()).unwrap();
        let tasks =
            [here.app().clone(), there.app.clone()].map(|app| tokio::spawn(async move { super::run(&app).await }));
        let held = here.claim_run().await;
        let member = here.member_at(&there);
        let follower = member.follow(&format!("/v1/runs/{}/logs/follow", held.run)).await;
        // It waits for what comes first.
        sleep(Duration::from_millis(300)).await;
        here.append_log(held, 1, &["a\n"]).await;
        here.finish(held, 2).await;
        let told = follower.rest().await;
        assert_eq!(told.first().map(String::as_str), Some("1 log a\n"), "{told:?}");
        tasks.iter().for_each(|task| task.abort());
    }
}
