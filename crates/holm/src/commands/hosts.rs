//! `holm hosts`: the machines and what they can do; which of them take new runs ([`cordon`], [`drain`]); how they say who
//! they are ([`join`], [`revoke`]).

pub mod cordon;
pub mod drain;
pub mod join;
pub mod revoke;

use holm_api::hosts::{HostIdentity, HostView};

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
    let rows: Vec<[Cell; 8]> = list
        .hosts
        .iter()
        .map(|host| {
            let runtimes: Vec<String> = host.runtimes.iter().map(|runtime| escaped(&runtime.name)).collect();
            [
                host.id.to_string().into(),
                escaped(&host.name).into(),
                format!("{} of {}", host.runs_held, host.capacity.runs).into(),
                show_cpus(host.capacity.cpus_milli).into(),
                show_bytes(host.capacity.memory_bytes).into(),
                runtimes.join(",").into(),
                identity(host),
                seen(host),
            ]
        })
        .collect();
    output.table(["HOST", "NAME", "RUNS", "CPUS", "MEMORY", "RUNTIMES", "IDENTITY", "SEEN"], &rows)?;
    Ok(0)
}

/// With what the agent of a host says who it is.
fn identity(host: &HostView) -> Cell {
    match host.identity {
        Some(HostIdentity::Key { revoked_at: Some(at), .. }) => Cell(Tone::Bad, format!("key revoked {}", ago(at))),
        Some(HostIdentity::Key { revoked_at: None, .. }) => Cell(Tone::Plain, "key".to_owned()),
        Some(HostIdentity::Token { .. }) => Cell(Tone::Plain, "token".to_owned()),
        None if host.is_shared => Cell(Tone::Dim, "shared".to_owned()),
        // A server of before hosts had keys.
        None => Cell(Tone::Dim, "-".to_owned()),
    }
}

/// When the agent of a host was heard of, and why it takes nothing new. What one that is away said of itself is old.
fn seen(host: &HostView) -> Cell {
    let why = match (host.alive, &host.cordon) {
        (true, _) => host.refusal(),
        (false, cordon) => cordon.as_ref().map(|cordon| cordon.to_string()),
    };
    let when = if host.alive { "now".to_owned() } else { ago(host.seen_at) };
    let tone = if host.alive && why.is_none() { Tone::Good } else { Tone::Bad };
    Cell(tone, why.map_or(when.clone(), |why| format!("{when}; {}", escaped(&why))))
}

/// The host of the own org that somebody means by a name or an id.
pub fn named<'a>(hosts: &'a [HostView], wanted: &str) -> anyhow::Result<&'a HostView> {
    let own = hosts.iter().filter(|host| !host.is_shared);
    let found: Vec<&HostView> = own.filter(|host| host.name == wanted || host.id.to_string() == wanted).collect();
    match found[..] {
        [host] => Ok(host),
        [] => anyhow::bail!("the org has no host `{}`; `holm hosts` lists them", escaped(wanted)),
        _ => {
            let ids: Vec<String> = found.iter().map(|host| host.id.to_string()).collect();
            anyhow::bail!("several hosts are called `{}`; give an id: {}", escaped(wanted), ids.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use holm_domain::{
        AgentId, TokenId, UnixMicros,
        host::{Capacity, Cordon, PRESSURE_LABEL},
    };
    use uuid::Uuid;

    use super::*;

    fn host(number: u128, name: &str) -> HostView {
        HostView {
            id: AgentId::from_uuid(Uuid::from_u128(number)),
            name: name.to_owned(),
            version: String::new(),
            capacity: Capacity::default(),
            runs_held: 0,
            runtimes: Vec::new(),
            labels: [(PRESSURE_LABEL.to_owned(), "io".to_owned())].into(),
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
    fn a_host_is_found_by_its_name_or_its_id_and_never_guessed() {
        let hosts = [host(1, "isle"), host(2, "twin"), host(3, "twin")];
        assert_eq!(named(&hosts, "isle").unwrap().id, hosts[0].id);
        assert_eq!(named(&hosts, &hosts[2].id.to_string()).unwrap().id, hosts[2].id);
        assert!(named(&hosts, "isl").unwrap_err().to_string().contains("no host `isl`"));
        let twins = named(&hosts, "twin").unwrap_err().to_string();
        assert!(twins.contains(&hosts[1].id.to_string()) && twins.contains(&hosts[2].id.to_string()), "{twins}");
    }

    #[test]
    fn who_cordoned_a_host_is_shown_whether_it_is_there_or_away() {
        let by = TokenId::from_uuid(Uuid::nil());
        let cordon = Some(Cordon { by, by_name: "alice".to_owned(), at: UnixMicros(0) });
        let cordoned = HostView { cordon, ..host(1, "isle") };
        assert_eq!(seen(&cordoned).1, "now; cordoned by alice; under pressure: io; it takes nothing new");
        let away = HostView { alive: false, ..cordoned };
        assert!(seen(&away).1.ends_with(" ago; cordoned by alice"), "{}", seen(&away).1);
        assert!(!seen(&HostView { alive: false, ..host(1, "isle") }).1.contains("pressure"));
    }
}
