//! What a server that answers tells: its time, the hosts, and whether logs can be read.

use std::time::Duration;

use holm_api::{
    client::{Client, ClientError},
    hosts::HostView,
    logs::LogRangeOf,
    runs::{After, ListRuns},
};
use holm_domain::{ErrorCode, RunId};
use jiff::{Timestamp, fmt::rfc2822::DateTimeParser};
use tokio::time::{Instant, timeout, timeout_at};

use super::{Probe, good, less};
use crate::{commands::ago, config::Target, home::Home, local, session::Session, units::show_duration};

/// How long a server may take to tell its time, and as long its hosts.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// How far the times of two machines may be apart: the margin of leases where nobody says.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(5);
/// How many hosts that take no runs are named.
const HOSTS_NAMED_MAX: usize = 3;
/// Of how many runs the log is looked at, the newest.
const LOGS_MAX: u32 = 20;
/// How long that may take.
const LOGS_DEADLINE: Duration = Duration::from_secs(5);
/// How many of the last lines of a log are read: of most that is all.
const LOG_LINES: u32 = 10_000;

/// Asks the server that is meant; nothing where none answers.
pub async fn probes(session: &Session, home: &Home) -> Vec<Probe> {
    let Some(client) = client(session, home).await else { return Vec::new() };
    let mut probes = Vec::from_iter(clock(&client).await);
    probes.push(hosts(&client).await);
    probes.push(logs(&client).await);
    probes
}

async fn client(session: &Session, home: &Home) -> Option<Client> {
    let client = match session.config.target().ok()? {
        Target::Local => local::connect(home).await.ok().flatten()?,
        Target::Named { endpoint, token } => Client::new(endpoint, token.value).ok()?,
    };
    client.ready(ANSWER_DEADLINE).await.ok()?;
    Some(client)
}

/// Whether the time of the server is the one of this machine.
async fn clock(client: &Client) -> Option<Probe> {
    let date = client.date(ANSWER_DEADLINE).await.ok().flatten()?;
    let there = DateTimeParser::new().parse_timestamp(&date).ok()?;
    Some(compare(there, jiff::Timestamp::now()))
}

fn compare(there: Timestamp, here: Timestamp) -> Probe {
    let name = "clock";
    let apart = Duration::from_secs(there.as_second().abs_diff(here.as_second()));
    if apart <= CLOCKS_APART_MAX {
        return good(name, "the server's agrees with this machine's");
    }
    let where_to = if there < here { "behind" } else { "ahead of" };
    let found = format!("the server's is {} {where_to} this machine's", show_duration(apart));
    let way_out = "a server goes on by the time at which it started, and follows slowly where that is set: restart it; \
                   or set the clock of the other machine right";
    less(name, found, way_out)
}

/// Whether the hosts take runs.
async fn hosts(client: &Client) -> Probe {
    let name = "hosts";
    match timeout(ANSWER_DEADLINE, client.host_list()).await {
        Ok(Ok(list)) => judge(&list.hosts),
        Ok(Err(error)) => less(name, error.to_string(), "ask with a token that may see them"),
        Err(_) => less(name, format!("not told within {}", show_duration(ANSWER_DEADLINE)), "look again"),
    }
}

fn judge(hosts: &[HostView]) -> Probe {
    let name = "hosts";
    if hosts.is_empty() {
        return less(name, "none", "runs wait for one: `holm agent` on a machine that this server knows not yet");
    }
    let mut idle: Vec<String> = hosts.iter().filter_map(why_not).collect();
    let found = format!("{} of {} take runs", hosts.len() - idle.len(), hosts.len());
    if idle.is_empty() {
        return good(name, found);
    }
    idle.truncate(HOSTS_NAMED_MAX);
    let way_out = "start the agent of one that is not heard of, and see its log if it was killed; `holm hosts` lists all, and \
                   `holm doctor` there says what it lacks";
    less(name, format!("{found}; {}", idle.join("; ")), way_out)
}

/// Why a host takes no runs; nothing if it does.
fn why_not(host: &HostView) -> Option<String> {
    if !host.alive {
        return Some(format!("{} was heard of {}", host.name, ago(host.seen_at)));
    }
    host.refusal().map(|why| format!("{}: {why}", host.name))
}

/// Whether both ends of the newest logs can be read: what is stored of them, in the database and as objects.
async fn logs(client: &Client) -> Probe {
    let name = "logs";
    let newest = ListRuns { limit: Some(LOGS_MAX), ..ListRuns::default() };
    let runs = match timeout(ANSWER_DEADLINE, client.run_list(&newest)).await {
        Ok(Ok(page)) => page.runs,
        Ok(Err(error)) => {
            return less(
                name,
                error.to_string(),
                "ask with a token that may see runs; see `runs` above, and the log of the server",
            );
        }
        Err(_) => return less(name, format!("not told within {}", show_duration(ANSWER_DEADLINE)), "look again"),
    };
    let until = Instant::now() + LOGS_DEADLINE;
    let (mut read, mut damaged, mut unread) = (0, Vec::new(), None);
    for run in &runs {
        match timeout_at(until, read_ends(client, run.id)).await {
            Ok(Ok(())) => read += 1,
            Ok(Err(error)) if is_damage(&error) => damaged.push(format!("{}: {error}", run.id)),
            // That says nothing of the log.
            Ok(Err(error)) => unread = Some(error.to_string()),
            Err(_) => unread = Some(format!("{} were over", show_duration(LOGS_DEADLINE))),
        }
        if unread.is_some() {
            break;
        }
    }
    let looked_at = read + damaged.len();
    match (damaged.first(), unread) {
        (None, None) => good(name, format!("both ends of the newest {read} can be read")),
        (None, Some(why)) => {
            less(name, format!("only {read} of the newest {} were read: {why}", runs.len()), "look again")
        }
        (Some(first), _) => {
            let found = format!("{} of the newest {looked_at} cannot be read; {first}", damaged.len());
            less(name, found, "restore the folder of blobs from a copy, and look after its disk; other logs go on")
        }
    }
}

/// Whether an error is about what is stored, and not about the way to it.
fn is_damage(error: &ClientError) -> bool {
    matches!(error, ClientError::Problem(problem) if problem.code == ErrorCode::LogDamaged)
}

/// Reads the first of a log and the last lines. One that was deleted is not damaged.
async fn read_ends(client: &Client, run: RunId) -> Result<(), ClientError> {
    let first = client.run_logs(run, &After { limit: Some(1), ..After::default() }).await.map(drop);
    let tail = LogRangeOf { tail: Some(LOG_LINES), ..LogRangeOf::default() };
    let read = match first {
        Ok(()) => client.run_logs_range(run, &tail).await.map(drop),
        failed => failed,
    };
    match read {
        Err(ClientError::Problem(problem)) if matches!(problem.code, ErrorCode::LogsDeleted | ErrorCode::NotFound) => {
            Ok(())
        }
        read => read,
    }
}

#[cfg(test)]
mod tests {
    use holm_domain::{
        AgentId, UnixMicros,
        host::{Capacity, PRESSURE_LABEL},
    };
    use uuid::Uuid;

    use super::{super::Status, *};

    #[test]
    fn clocks_that_differ_are_told() {
        let here = Timestamp::from_second(1_700_000_000).unwrap();
        let at = |seconds: i64| compare(Timestamp::from_second(1_700_000_000 + seconds).unwrap(), here);
        for near in [-5, 0, 5] {
            assert_eq!(at(near).status, Status::Good, "{near}");
        }
        for (far, words) in [(-259_200, "3 d 0 h behind"), (3_600, "1 h 0 min ahead of"), (6, "6 s ahead of")] {
            let probe = at(far);
            assert_eq!(probe.status, Status::Less);
            assert!(probe.found.contains(words), "{}", probe.found);
        }
    }

    fn host(name: &str) -> HostView {
        HostView {
            id: AgentId::from_uuid(Uuid::nil()),
            name: name.to_owned(),
            version: String::new(),
            capacity: Capacity::default(),
            runs_held: 0,
            runtimes: Vec::new(),
            labels: [].into(),
            identity: None,
            pool: None,
            is_shared: false,
            cordon: None,
            registered_at: UnixMicros(0),
            seen_at: UnixMicros(0),
            alive: true,
        }
    }

    #[test]
    fn hosts_that_take_no_runs_are_named_with_the_reason() {
        assert_eq!(judge(&[]).status, Status::Less);
        assert_eq!(
            (judge(&[host("a")]).status, judge(&[host("a")]).found.as_str()),
            (Status::Good, "1 of 1 take runs")
        );
        let away = HostView { alive: false, ..host("away") };
        let pressed = HostView { labels: [(PRESSURE_LABEL.to_owned(), "io".to_owned())].into(), ..host("pressed") };
        let probe = judge(&[host("a"), away, pressed]);
        assert_eq!(probe.status, Status::Less);
        for words in ["1 of 3 take runs", "away was heard of", "pressed: under pressure: io"] {
            assert!(probe.found.contains(words), "{}", probe.found);
        }
    }
}
