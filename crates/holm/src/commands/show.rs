//! `holm show`: everything that is known of a run.

use std::time::Duration;

use holm_api::{client::ClientError, runs::RunView};
use holm_domain::{
    RunId,
    run::{Event, ExitStatus, Measured, RootSource, RunState, Usage},
};
use serde::Serialize;

use super::{advice, ago, events, instant, ps, status, waiting};
use crate::{
    output::{Cell, escaped},
    session::Session,
    units::{show_bytes, show_cpus, show_duration, show_percent},
};

/// A run and what happened to it.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    run: RunView,
    events: Vec<Event>,
    /// Whether there are more events than these.
    #[serde(rename = "more_events", skip_serializing_if = "std::ops::Not::not")]
    more: bool,
    /// Why it waits in the queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    waits: Option<String>,
}

/// Shows each run; with `--json` an array, as `docker inspect` does.
pub async fn execute(session: &Session, runs: &[RunId]) -> anyhow::Result<u8> {
    let client = session.client().await?;
    let output = session.output;
    let mut views = Vec::new();
    let mut failed = false;
    for id in runs {
        let shown = async {
            let run = client.run_get(*id).await?;
            let (events, more) = events::first(&client, *id).await?;
            let waits = if run.state == RunState::Queued { Some(waiting::why(&client, &run).await?) } else { None };
            Ok::<_, ClientError>(Shown { run, events, more, waits })
        };
        match shown.await {
            Ok(shown) => views.push(shown),
            Err(error) => {
                failed = true;
                output.error(format!("{id}: {error}"));
            }
        }
    }
    if output.json {
        output.value(&views)?;
        return Ok(u8::from(failed));
    }
    for (index, Shown { run, events, more, waits }) in views.iter().enumerate() {
        if index > 0 {
            output.line("")?;
        }
        let mut pairs = pairs(run);
        if let Some(waits) = waits {
            pairs.insert(2, ("waits", waits.as_str().into()));
        }
        pairs.extend(events.iter().map(|event| ("event", Cell::from(events::line(event)))));
        if *more {
            pairs.push(("event", format!("… `holm events {}` tells the others", run.id).into()));
        }
        output.pairs(&pairs)?;
    }
    Ok(u8::from(failed))
}

fn pairs(run: &RunView) -> Vec<(&'static str, Cell)> {
    let (tone, word) = status(run);
    let mut pairs: Vec<(&'static str, Cell)> = vec![("run", run.id.to_string().into()), ("status", Cell(tone, word))];
    let mut add = |name, text: Option<String>| pairs.extend(text.map(|text| (name, Cell::from(text))));
    add("command", Some(ps::command(&run.spec.argv)));
    if let Some(outcome) = &run.outcome {
        add("message", outcome.message.as_deref().map(escaped));
        add("exit", outcome.exit.map(exit));
        add("to do", advice::of(run));
    }
    add("image", Some(image(&run.spec.root)));
    add("work dir", run.spec.work_dir.as_ref().map(|dir| escaped(&dir.source)));
    for mount in &run.spec.mounts {
        let mode = if mount.read_only { " (read-only)" } else { "" };
        add("mount", Some(format!("{} at {}{mode}", escaped(&mount.source), escaped(&mount.target))));
    }
    let limits = &run.spec.limits;
    add(
        "limits",
        Some(format!(
            "{} cpus, {} memory, {} pids, {} disk, {} output, {}",
            show_cpus(u64::from(limits.cpus_milli.0)),
            show_bytes(limits.memory_bytes),
            limits.pids,
            show_bytes(limits.disk_bytes),
            show_bytes(limits.log_bytes),
            show_duration(limits.timeout()),
        )),
    );
    for (key, value) in &run.spec.labels {
        add("label", Some(escaped(&format!("{key}={value}"))));
    }
    add("queued", Some(instant(run.queued_at)));
    add("claimed", run.claimed_at.map(instant));
    add("started", run.started_at.map(instant));
    add("ended", run.ended_at.map(instant));
    add("took", run.started_at.zip(run.ended_at).map(|(start, end)| show_duration(end.since(start))));
    add("log", run.logs_deleted_at.map(|at| format!("deleted at {}, kept no longer", instant(at))));
    add("uses", run.live.as_ref().map(uses));
    add("used", run.usage.as_ref().and_then(used));
    add("attempt", Some(format!("{} (fence {})", run.attempt, run.fence)));
    add("agent", run.agent.or(run.sandbox.as_ref().map(|sandbox| sandbox.agent)).map(|id| id.to_string()));
    if let Some(sandbox) = &run.sandbox {
        add("runtime", Some(escaped(&sandbox.runtime)));
        add("digest", sandbox.image_digest.as_deref().map(escaped));
        for reason in &sandbox.unenforced {
            add("not enforced", Some(escaped(reason)));
        }
    }
    add("result", run.result.as_ref().map(|result| escaped(&result.to_string())));
    add("project", Some(run.project.to_string()));
    add("trace", run.trace_id.map(|trace| trace.to_string()));
    pairs
}

/// What of it is known, and how old it is.
fn uses(live: &Measured) -> String {
    let usage = &live.usage;
    let parts = [
        usage.cpus_milli.map(|milli| format!("{} cpu", show_percent(milli))),
        usage.cpu_us.map(|micros| format!("{:.2} s cpu so far", Duration::from_micros(micros).as_secs_f64())),
        usage.memory_bytes.map(|bytes| format!("{} memory", show_bytes(bytes))),
        usage.memory_peak_bytes.map(|bytes| format!("{} at most so far", show_bytes(bytes))),
        usage.pids.map(|pids| format!("{pids} pids")),
    ];
    let known: Vec<String> = parts.into_iter().flatten().collect();
    format!("{} ({})", known.join(", "), ago(live.at))
}

/// What of it is known; nothing if nothing is.
fn used(usage: &Usage) -> Option<String> {
    let seconds = |micros: u64| format!("{:.2} s", Duration::from_micros(micros).as_secs_f64());
    let cpu = match (usage.cpu_user_us, usage.cpu_system_us) {
        (Some(user), Some(system)) => Some(format!("{} cpu ({} system)", seconds(user + system), seconds(system))),
        _ => None,
    };
    let parts = [
        cpu,
        usage.memory_peak_bytes.map(|bytes| format!("{} memory at most", show_bytes(bytes))),
        usage.pids_peak.map(|pids| format!("{pids} pids at most")),
        usage.io_read_bytes.map(|bytes| format!("{} read", show_bytes(bytes))),
        usage.io_write_bytes.map(|bytes| format!("{} written", show_bytes(bytes))),
        usage.log_bytes.map(|bytes| format!("{} output", show_bytes(bytes))),
    ];
    let known: Vec<String> = parts.into_iter().flatten().collect();
    (!known.is_empty()).then(|| known.join(", "))
}

fn exit(exit: ExitStatus) -> String {
    match exit {
        ExitStatus::Code(code) => format!("code {code}"),
        ExitStatus::Signal(signal) => format!("signal {signal}"),
    }
}

fn image(root: &RootSource) -> String {
    match root {
        RootSource::Host {} => "host".to_owned(),
        RootSource::Dir { path } => escaped(&format!("dir:{path}")),
        RootSource::Tar { path } => escaped(&format!("tar:{path}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_is_shown() {
        assert_eq!(used(&Usage::default()), None);
        let half = Usage { cpu_user_us: Some(1), ..Usage::default() };
        assert_eq!(used(&half), None);
        let usage = Usage {
            cpu_user_us: Some(1_250_000),
            cpu_system_us: Some(250_000),
            memory_peak_bytes: Some(64 << 20),
            log_bytes: Some(0),
            ..Usage::default()
        };
        assert_eq!(used(&usage).as_deref(), Some("1.50 s cpu (0.25 s system), 64 MiB memory at most, 0 B output"));
    }
}
