//! `holm hosts`: the machines and what they can do.

use holm_domain::host::refusal;

use super::ago;
use crate::{
    output::{Cell, Tone, escaped},
    session::Session,
    units::{show_bytes, show_cpus},
};

/// Lists hosts.
pub async fn execute(session: &Session) -> anyhow::Result<u8> {
    let list = session.client().await?.host_list().await?;
    let output = session.output;
    if output.json {
        output.value(&list.hosts)?;
        return Ok(0);
    }
    let rows: Vec<[Cell; 7]> = list
        .hosts
        .iter()
        .map(|host| {
            let runtimes: Vec<String> = host.runtimes.iter().map(|runtime| escaped(&runtime.name)).collect();
            let seen = match (host.alive, refusal(&host.labels)) {
                (true, None) => Cell(Tone::Good, "now".into()),
                (true, Some(why)) => Cell(Tone::Bad, format!("now; {}", escaped(&why))),
                (false, _) => Cell(Tone::Bad, ago(host.seen_at)),
            };
            [
                host.id.to_string().into(),
                escaped(&host.name).into(),
                format!("{} of {}", host.runs_held, host.capacity.runs).into(),
                show_cpus(host.capacity.cpus_milli).into(),
                show_bytes(host.capacity.memory_bytes).into(),
                runtimes.join(",").into(),
                seen,
            ]
        })
        .collect();
    output.table(["HOST", "NAME", "RUNS", "CPUS", "MEMORY", "RUNTIMES", "SEEN"], &rows)?;
    Ok(0)
}
