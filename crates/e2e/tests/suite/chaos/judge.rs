//! What must hold of every run of a fleet once it has come to rest, whatever happened to it.

use std::collections::{BTreeMap, BTreeSet};

use holm_e2e::{Fleet, http::Http};
use serde_json::Value;

use super::runs::{Asked, Line, log};

/// What was found.
#[derive(Debug, Default)]
pub struct Judged {
    /// What does not hold, a line each.
    pub problems: Vec<String>,
    /// How many runs ended in each way.
    pub ends: BTreeMap<String, usize>,
    /// How many runs were granted once more after a lease had expired, each time.
    pub granted_anew: usize,
    /// How many lines the logs hold, and how many of them are of attempts that were cut short.
    pub lines: usize,
    pub lines_cut_short: usize,
}

/// Why a run may have failed: its shim was killed, or no sandbox could be made of it before its deadline.
const FAILURES: [&str; 2] = ["guest_lost", "host_failed"];

/// Looks at every run that has ended.
#[track_caller]
pub fn judge(fleet: &Fleet, asked: &[Asked]) -> Judged {
    let mut judged = Judged::default();
    let runs = fleet.runs();
    let by_id: BTreeMap<&str, &Asked> = asked.iter().filter_map(|asked| Some((asked.id.as_deref()?, asked))).collect();
    if by_id.len() != asked.len() || runs.len() != asked.len() {
        let count = (asked.len(), by_id.len(), runs.len());
        judged.problems.push(format!("{count:?} runs were submitted, have an id, and are there"));
    }
    for (nth, run) in runs.iter().enumerate() {
        let id = run["id"].as_str().unwrap_or_default();
        let Some(asked) = by_id.get(id) else {
            judged.problems.push(format!("{id} was not submitted"));
            continue;
        };
        if run["state"] != "ended" {
            continue;
        }
        // Each is asked of another server.
        let http = fleet.http(nth % fleet.servers());
        if let Err(problem) = judge_run(fleet, &http, run, asked, &mut judged) {
            judged.problems.push(format!("{problem}: {}\n  {}", brief(run), told(&fleet.events(id))));
        }
    }
    let overlaps = fleet.overlaps();
    judged.problems.extend(overlaps.lines().map(str::to_owned));
    judged
}

/// A run in short.
pub fn brief(run: &Value) -> String {
    let members = ["id", "state", "attempt", "fence", "agent", "outcome"];
    members.map(|member| format!("{member} {}", run[member])).join(", ")
}

/// The events of a run in short.
fn told(events: &[Value]) -> String {
    let short = |event: &Value| format!("{} {}", event["at"], event["kind"].as_str().unwrap_or_default());
    events.iter().map(short).collect::<Vec<_>>().join(", ")
}

fn judge_run(fleet: &Fleet, http: &Http, run: &Value, asked: &Asked, judged: &mut Judged) -> Result<(), String> {
    let id = run["id"].as_str().unwrap_or_default();
    let events = fleet.events(id);
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["kind"].as_str()).collect();
    let count = |kind: &str| kinds.iter().filter(|found| **found == kind).count();
    if count("ended") != 1 || kinds.last() != Some(&"ended") {
        return Err("it did not end once and for all".to_owned());
    }
    let claims: Vec<u64> = events.iter().filter(|event| event["kind"] == "claimed").map(fence_of).collect();
    if claims.iter().enumerate().any(|(nth, fence)| *fence != nth as u64 + 1) {
        return Err(format!("its fences are {claims:?}"));
    }
    // A lease ends when it expires, or by the word of its holder that there is no sandbox.
    let is_over = |before: &str| matches!(before, "lease_expired" | "host_failed");
    if claims.len() > count("requeued") + 1
        || kinds.windows(2).any(|pair| pair[1] == "requeued" && !is_over(pair[0]))
        || kinds[0] == "requeued"
    {
        return Err("it was granted anew before a lease had ended".to_owned());
    }
    judged.granted_anew += claims.len().saturating_sub(1);
    if count("started") > 0 && !fleet.is_witnessed(id) {
        return Err("nobody witnessed its sandbox".to_owned());
    }
    let (lines, is_complete) = log(http, id).map_err(|error| error.to_string())?.ok_or("its log cannot be read")?;
    let last_attempt = judge_log(&lines, claims.len())?;
    if asked.readings.iter().any(|reading| !lines.starts_with(reading)) {
        return Err("lines that were read before are missing, or others".to_owned());
    }
    judged.lines += lines.len();
    let (kind, reason) = (text(&run["outcome"]["kind"]), text(&run["outcome"]["reason"]));
    *judged.ends.entry(format!("{kind} {reason}").trim_end().to_owned()).or_default() += 1;
    match (kind, reason) {
        ("succeeded", _) => {
            judged.lines_cut_short += lines.len() - last_attempt;
            let is_whole = last_attempt == asked.lines as usize && is_complete;
            if is_whole { Ok(()) } else { Err(format!("{last_attempt} of {} lines are there", asked.lines)) }
        }
        ("cancelled", _) if asked.is_cancelled => Ok(()),
        ("failed", reason) if FAILURES.contains(&reason) => Ok(()),
        // It ended, and its agent was away for too long to say all of it.
        ("lost", "report_lost") => Ok(()),
        _ => Err("that is no end for it".to_owned()),
    }
}

fn fence_of(event: &Value) -> u64 {
    event["fence"].as_u64().unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Lines follow each other without a gap; those of an attempt are together, from its first on, each once and in order, and
/// there are no more attempts than claims. How many lines the last attempt has.
fn judge_log(lines: &[Line], claims: usize) -> Result<usize, String> {
    let mut attempts = BTreeSet::new();
    let mut last = ("", 0);
    for (nth, (seq, text)) in lines.iter().enumerate() {
        let wrong = || format!("line {} of {} is `{}` with sequence {seq}", nth + 1, lines.len(), text.trim_end());
        let (attempt, number) = text.trim_end_matches('\n').split_once(' ').ok_or_else(wrong)?;
        let number: usize = number.parse().map_err(|_| wrong())?;
        if attempt != last.0 {
            if !attempts.insert(attempt) {
                return Err(wrong());
            }
            last = (attempt, 0);
        }
        if *seq != nth as u64 + 1 || number != last.1 + 1 {
            return Err(wrong());
        }
        last.1 = number;
    }
    if attempts.len() > claims {
        return Err(format!("{} attempts wrote, and {claims} were granted", attempts.len()));
    }
    Ok(last.1)
}

#[test]
fn a_log_with_a_line_too_many_too_few_or_out_of_place_is_seen() {
    let log =
        |texts: &[&str]| -> Vec<Line> { texts.iter().zip(1..).map(|(text, seq)| (seq, format!("{text}\n"))).collect() };
    assert_eq!(judge_log(&log(&["a 1", "a 2", "b 1", "b 2", "b 3"]), 2), Ok(3));
    assert_eq!(judge_log(&[], 0), Ok(0));
    for wrong in [&["a 1", "a 3"][..], &["a 2"], &["a 1", "a 1"], &["a 1", "b 1", "a 2"], &["a 2", "a 1"], &["x"]] {
        assert!(judge_log(&log(wrong), 2).is_err(), "{wrong:?}");
    }
    assert!(judge_log(&log(&["a 1", "b 1"]), 1).is_err(), "an attempt that nobody granted");
    let gap = vec![(1, "a 1\n".to_owned()), (3, "a 2\n".to_owned())];
    assert!(judge_log(&gap, 1).is_err());
}
