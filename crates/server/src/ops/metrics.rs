//! Metrics: of the whole server, so for those alone who run it.

use holm_domain::{ErrorCode, access::Token, host::Host};

use super::hosts::is_alive;
use crate::{DEFAULT_ORG, app::App, metrics::Census, problem::Failure};

/// Everything that is counted, as text. It tells of all orgs together, so another org than the first one may not read it.
pub async fn metrics_read(app: &App, token: &Token) -> Result<String, Failure> {
    if app.pools.default_org(app).await? != Some(token.org) {
        let detail = format!("metrics tell of the whole server; a token of the org `{DEFAULT_ORG}` may read them");
        return Err(Failure::new(ErrorCode::Forbidden, detail));
    }
    let census = census(app).await?;
    app.metrics.text(&census).map_err(Failure::internal)
}

async fn census(app: &App) -> Result<Census, Failure> {
    let runs = app.store.run_census().await?;
    let (mut ready, mut cordoned, mut refusing, mut away, mut unreadable) = (0, 0, 0, 0, 0);
    let count = |host: holm_store::Result<Host>| {
        let state = match host {
            Err(_) => &mut unreadable,
            Ok(host) if !is_alive(app, &host) => &mut away,
            Ok(host) if host.cordon.is_some() => &mut cordoned,
            Ok(host) if host.refusal().is_some() => &mut refusing,
            Ok(_) => &mut ready,
        };
        *state += 1;
    };
    app.store.host_census(count).await?;
    Ok(Census {
        oldest_wait: runs.oldest_queued_at.map(|at| app.now().since(at)).unwrap_or_default(),
        runs,
        hosts: vec![
            ("ready", ready),
            ("cordoned", cordoned),
            ("refusing", refusing),
            ("away", away),
            ("unreadable", unreadable),
        ],
        open: [&app.streams, &app.searches, &app.polls].map(|gate| (gate.what(), gate.total())).into(),
        spans: app.config.tracer.counts(),
    })
}
