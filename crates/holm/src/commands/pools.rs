//! `holm pools`: hosts of the default org that execute runs of others as well.

use holm_api::orgs::PoolView;

use crate::{
    commands::hosts::named,
    output::{Cell, escaped},
    session::Session,
};

/// Lists pools.
pub async fn list(session: &Session) -> anyhow::Result<u8> {
    let list = session.client().await?.pool_list().await?;
    if session.output.json {
        session.output.value(&list.pools)?;
        return Ok(0);
    }
    table(session, &list.pools)
}

/// Puts a host into a pool.
pub async fn add(session: &Session, pool: &str, host: &str) -> anyhow::Result<u8> {
    let client = session.client().await?;
    let id = named(&client.host_list().await?.hosts, host)?.id;
    print(session, client.pool_add(pool, id).await?)
}

/// Takes a host out of a pool.
pub async fn remove(session: &Session, pool: &str, host: &str) -> anyhow::Result<u8> {
    let client = session.client().await?;
    let id = named(&client.host_list().await?.hosts, host)?.id;
    print(session, client.pool_remove(pool, id).await?)
}

/// Has a pool serve an org.
pub async fn share(session: &Session, pool: &str, org: &str) -> anyhow::Result<u8> {
    print(session, session.client().await?.pool_share(pool, org).await?)
}

/// Has a pool serve an org no longer.
pub async fn unshare(session: &Session, pool: &str, org: &str) -> anyhow::Result<u8> {
    print(session, session.client().await?.pool_unshare(pool, org).await?)
}

fn print(session: &Session, pool: PoolView) -> anyhow::Result<u8> {
    if session.output.json {
        session.output.value(&pool)?;
        return Ok(0);
    }
    table(session, &[pool])
}

fn table(session: &Session, pools: &[PoolView]) -> anyhow::Result<u8> {
    let row = |pool: &PoolView| -> [Cell; 4] {
        let orgs: Vec<String> = pool.orgs.iter().map(|org| escaped(&org.name)).collect();
        let orgs = if orgs.is_empty() { "-".to_owned() } else { orgs.join(", ") };
        let numbers = [pool.hosts.to_string(), pool.runs_running.to_string()];
        let [hosts, runs] = numbers;
        [escaped(&pool.name).into(), hosts.into(), runs.into(), orgs.into()]
    };
    session.output.table(["POOL", "HOSTS", "RUNS", "SHARED WITH"], &pools.iter().map(row).collect::<Vec<_>>())?;
    Ok(0)
}
