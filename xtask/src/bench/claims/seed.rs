//! Many queued runs and many hosts at once, as the server itself has written one of each.
//!
//! One run is submitted and one agent registers through the server. What stands in the database then is copied, each time
//! with another id and a later time, by the database itself: one text for both engines. That the copies are what the server
//! writes is proved by its claiming them.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{exec, places, postgres};

/// How many runs are made in one transaction.
const PORTION: u64 = 50_000;
/// Numbers are written as so many digits of base 32, so there are more than enough.
const DIGITS: usize = 5;
const ALPHABET: &str = "0123456789abcdefghjkmnpqrstvwxyz";

/// A database that is filled.
pub enum Database {
    /// By its URL.
    Postgres(String),
    /// By its file.
    Sqlite(PathBuf),
}

impl Database {
    /// As `holm server --database` has it.
    pub fn url(&self) -> String {
        match self {
            Self::Postgres(url) => url.clone(),
            Self::Sqlite(path) => format!("sqlite:{}", path.display()),
        }
    }

    /// Executes statements, all or nothing of them.
    fn execute(&self, sql: &str) -> Result<()> {
        match self {
            Self::Postgres(url) => psql(url, &["--single-transaction", "-c", sql]).map(drop),
            Self::Sqlite(path) => {
                let script = "import sqlite3, sys\n\
                              db = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)\n\
                              db.executescript('begin immediate;' + sys.argv[2] + ';commit')\n";
                exec::read(Command::new("python3").args(["-c", script]).arg(path).arg(sql)).map(drop)
            }
        }
    }

    /// Keeps what stands there of the run `template`, which is in the queue: it may be claimed afterwards.
    pub fn keep_template(&self, template: &str) -> Result<()> {
        let keep = |table: &str, key: &str| {
            format!("create table bench_{table} as select * from {table} where {key} = '{template}'")
        };
        self.execute(&[keep("runs", "id"), keep("log_heads", "run"), keep("events", "run")].join(";\n"))
    }

    /// Adds `count` runs like the run `template`, of which that is kept; their numbers begin behind `first`.
    pub fn add_runs(&self, template: &str, first: u64, count: u64) -> Result<()> {
        for begin in (first..first + count).step_by(PORTION as usize) {
            exec::check_interrupt()?;
            let end = (begin + PORTION).min(first + count);
            let statements = [runs(template, begin, end)?, heads(template, begin, end)?, events(template, begin, end)?];
            self.execute(&statements.join(";\n")).context("cannot fill the queue")?;
        }
        self.settle()
    }

    /// Adds `count` hosts like that of the agent `template`; their agents are those of [`agent`], from 1 on.
    pub fn add_hosts(&self, template: &str, count: u64) -> Result<()> {
        let id = numbered("t.id")?;
        self.execute(&format!(
            "{} insert into hosts (id, org, name, version, instance, body, registered_at, seen_at)
             select {id}, t.org, t.name, t.version, t.instance, t.body, t.registered_at, t.seen_at
             from s, hosts t where t.id = '{template}'",
            numbers(0, count)
        ))
    }

    /// What a server that has been running for long would know of its tables.
    fn settle(&self) -> Result<()> {
        match self {
            Self::Postgres(url) => psql(url, &["-c", "vacuum analyze"]).map(drop),
            Self::Sqlite(_) => Ok(()),
        }
    }
}

/// What psql prints.
pub fn psql(url: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(postgres::bin_dir()?.join("psql"));
    exec::read(command.args(["-w", "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1"]).args(arguments).arg(url))
}

/// The id of the agent with a number.
pub fn agent(number: u64) -> Result<String> {
    let mut digits = vec![b'0'; 26];
    let (mut rest, mut at) = (number, digits.len());
    while rest > 0 {
        at -= 1;
        digits[at] = ALPHABET.as_bytes()[usize::try_from(rest % 32)?];
        rest /= 32;
    }
    Ok(format!("agt_{}", String::from_utf8(digits)?))
}

fn numbers(begin: u64, end: u64) -> String {
    format!("with recursive s(n) as (select {} union all select n + 1 from s where n < {end})", begin + 1)
}

/// SQL for an id as that in `column`, with the number `n` for its last digits.
fn numbered(column: &str) -> Result<String> {
    let digit = |place: usize| -> Result<String> {
        let worth = 32u64.checked_pow(u32::try_from(place)?).context("a digit too many")?;
        Ok(format!("substr('{ALPHABET}', (n / {worth}) % 32 + 1, 1)"))
    };
    let digits: Vec<String> = (0..DIGITS).rev().map(digit).collect::<Result<_>>()?;
    Ok(format!("substr({column}, 1, {}) || {}", 30 - DIGITS, digits.join(" || ")))
}

/// The digit before the number is none that the template has, so no number makes an id of the template again.
fn of_run(template: &str, column: &str) -> Result<String> {
    ensure!(template.len() == 30 && template.is_ascii(), "`{template}` is no id of a run");
    let other = if template.as_bytes()[29 - DIGITS] == b'0' { "1" } else { "0" };
    let id = numbered(column)?;
    Ok(format!("substr({column}, 1, {}) || '{other}' || substr({id}, {}, {DIGITS})", 29 - DIGITS, 31 - DIGITS))
}

fn runs(template: &str, begin: u64, end: u64) -> Result<String> {
    let id = of_run(template, "t.id")?;
    Ok(format!(
        "{} insert into runs (id, org, project, state, version, fence, queued_at, deadline_at, body, log_kept_since, queue_at)
         select {id}, t.org, t.project, t.state, t.version, t.fence, t.queued_at + n, t.deadline_at + n,
           replace(replace(t.body, t.id, {id}), '\"queued_at\":' || t.queued_at, '\"queued_at\":' || (t.queued_at + n)),
           t.log_kept_since, t.queue_at + n
         from s, bench_runs t",
        numbers(begin, end)
    ))
}

fn heads(template: &str, begin: u64, end: u64) -> Result<String> {
    let id = of_run(template, "t.run")?;
    Ok(format!(
        "{} insert into log_heads (org, run, fence, next_log_seq, next_event_seq, unsealed_bytes, seal_from, newest_at)
         select t.org, {id}, t.fence, t.next_log_seq, t.next_event_seq, t.unsealed_bytes, t.seal_from, t.newest_at
         from s, bench_log_heads t",
        numbers(begin, end)
    ))
}

fn events(template: &str, begin: u64, end: u64) -> Result<String> {
    let id = of_run(template, "t.run")?;
    Ok(format!(
        "{} insert into events (org, run, seq, told_at, fence, source_seq, body)
         select t.org, {id}, t.seq, t.told_at, t.fence, t.source_seq, t.body
         from s, bench_events t",
        numbers(begin, end)
    ))
}

/// Whether what filling needs is there.
pub fn check_programs() -> Result<()> {
    places::program("python3").context("python3 is not installed: `cargo xtask setup` does it").map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_have_ids_of_their_own() {
        assert_eq!(agent(0).expect("an id"), format!("agt_{}", "0".repeat(26)));
        assert_eq!(agent(33).expect("an id"), format!("agt_{}11", "0".repeat(24)));
    }

    #[test]
    fn a_copy_is_never_its_template() {
        let zero = format!("run_{}", "0".repeat(26));
        let other = format!("run_{}", "1".repeat(26));
        assert!(of_run(&zero, "t.id").expect("an id").contains("|| '1' ||"));
        assert!(of_run(&other, "t.id").expect("an id").contains("|| '0' ||"));
        assert!(of_run("run_", "t.id").is_err());
    }
}
