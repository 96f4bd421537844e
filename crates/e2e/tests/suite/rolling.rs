//! Servers that are restarted one after the other, as for an upgrade: no client sees an error, and nothing is lost.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use holm_e2e::{Fleet, Ran, Running, host, ran::run, world::fleet::Part};

/// How many clients do one thing after the other all the while.
const CLIENTS: usize = 4;
/// How often each server is restarted.
const ROUNDS: usize = 2;
/// Between the start of one server and the end of the next.
const PAUSE: Duration = Duration::from_secs(2);
/// How many lines somebody follows meanwhile, one every hundredth of a second.
const LINES: usize = 2_000;
const COUNT: &str = "\
import time
for n in range(2000):
    print(n, flush=True)
    time.sleep(0.01)
";

/// The same command once more.
fn again(command: &Command) -> Command {
    let mut copy = Command::new(command.get_program());
    copy.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    copy.current_dir(command.get_current_dir().expect("a folder"));
    copy
}

/// Does what clients do until it is over; what each answer is to be, and what it is.
fn day(client: &Command, number: usize, is_over: &AtomicBool) -> Vec<(String, Ran)> {
    let mut day = Vec::new();
    while !is_over.load(Ordering::SeqCst) {
        let word = format!("client {number}, run {}", day.len());
        day.push((format!("{word}\n"), run(again(client).args(["run", "--quiet", "--", "echo", &word]))));
        let listed = run(again(client).args(["ps", "--all", "--last", "1"]));
        day.push((listed.text().to_owned(), listed));
    }
    day
}

fn restart_each(fleet: &mut Fleet) {
    let servers = fleet.servers();
    for server in (0..ROUNDS * servers).map(|step| step % servers) {
        fleet.stop(Part::Server(server));
        fleet.launch(Part::Server(server));
        fleet.until_all_ready();
        thread::sleep(PAUSE);
    }
}

#[test]
fn servers_are_restarted_one_by_one_and_no_client_sees_an_error() {
    let is_on_postgres = std::env::var("HOLM_TEST_STORE").is_ok_and(|store| store == "postgres");
    if !is_on_postgres || !host::is_root() {
        eprintln!("a fleet has a PostgreSQL, and networks that only root can make");
        return;
    }
    let mut fleet = Fleet::start(2, 2);
    let servers = fleet.balancer();
    let client = || again(&fleet.client(&servers));
    let following = Running::start(client().args(["run", "--quiet", "--", "/usr/bin/python3", "-c", COUNT]));
    let is_over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (client, is_over) = (client(), is_over.clone());
            thread::spawn(move || day(&client, number, &is_over))
        })
        .collect();
    restart_each(&mut fleet);
    is_over.store(true, Ordering::SeqCst);
    let days: Vec<Vec<(String, Ran)>> = clients.into_iter().map(|day| day.join().expect("a day")).collect();
    assert!(days.iter().all(|day| day.len() >= ROUNDS * 2), "each client has done something");
    for (wanted, answer) in days.into_iter().flatten() {
        let answer = answer.succeeds();
        assert_eq!((answer.text(), answer.complaint().as_str()), (wanted.as_str(), ""), "{answer}");
    }
    let followed = following.wait().succeeds();
    let lines: String = (0..LINES).map(|line| format!("{line}\n")).collect();
    assert!(followed.text() == lines, "each line once, in order: {followed}");
    for run in fleet.runs() {
        let events = fleet.events(run["id"].as_str().expect("an id"));
        let is_requeued = events.iter().any(|event| event["kind"] == "requeued");
        assert!(!is_requeued, "no lease is lost while a server is restarted: {events:?}");
    }
}
