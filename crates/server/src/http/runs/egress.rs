//! `GET /v1/runs/{id}/egress`: what a run reached, and what it was refused.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{egress::EgressPage, problem::Problem, runs::After};

use crate::{
    app::App,
    auth::{May, Read},
    config::{ENTRIES_PAGE_DEFAULT, ENTRIES_PAGE_MAX},
    http::extract::{Params, RunPath, within},
    ops,
    problem::Failure,
};

/// Read what a run reached
///
/// Each connection and each request that is seen, once it has ended, with what became of it; oldest first. They are kept with the
/// log, for as long as that. A page may have none although more follow; go on with `last_seq` until `complete`.
#[utoipa::path(
    get, path = "/v1/runs/{id}/egress", tag = "logs", operation_id = "egress_page",
    params(("id" = String, Path, description = "The run, as `run_…`."), After),
    responses(
        (status = 200, description = "A page of records.", body = EgressPage),
        (status = 410, description = "`logs_deleted`.", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "`too_many` pages, or bytes of answers.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn egress(
    State(app): State<Arc<App>>,
    caller: May<Read>,
    RunPath(id): RunPath,
    Params(query): Params<After>,
) -> Result<axum::Json<EgressPage>, Failure> {
    let limit = query.limit.unwrap_or(ENTRIES_PAGE_DEFAULT);
    within("limit", limit.into(), 1, ENTRIES_PAGE_MAX.into())?;
    let _pass = app.pages.enter(caller.org())?;
    Ok(axum::Json(ops::logs::egress_page(&app, caller.org(), id, query.after.unwrap_or(0), limit).await?))
}

#[cfg(test)]
mod tests {
    use holm_api::{LOG_BATCH, logs::LogPage};
    use holm_domain::{
        ErrorCode, UnixMicros,
        log::{BatchBuilder, Stream},
    };
    use http::StatusCode;

    use super::*;
    use crate::testing::World;

    /// A batch of lines, each of them followed by a note.
    fn noted(first: u64, lines: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = BatchBuilder::new(first);
        for (line, note) in lines {
            assert!(builder.push(UnixMicros(1), Stream::Stdout, false, line.as_bytes()));
            assert!(builder.note(UnixMicros(2), note.as_bytes()));
        }
        let mut bytes = Vec::new();
        builder.finish(|batch| std::io::Write::write_all(&mut bytes, batch)).unwrap();
        bytes
    }

    fn record(host: &str) -> String {
        format!(r#"{{"host":"{host}","port":443,"sent":1,"received":2,"duration_ms":3}}"#)
    }

    #[tokio::test]
    async fn records_are_paged_apart_from_the_output() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let [a, b, c] = ["a.example", "b.example", "c.example"].map(record);
        let batch = noted(1, &[("one\n", &a), ("two\n", &b), ("three\n", &c)]);
        let path = world.fenced(held, "logs");
        assert_eq!(world.agent().send("POST", &path, LOG_BATCH, batch).await.status, StatusCode::OK);
        world.finish(held, 7).await;
        let path = format!("/v1/runs/{}", held.run);
        let page = |query: &str| {
            let (path, member) = (format!("{path}/egress?{query}"), world.member());
            async move { member.get(&path).await.json::<EgressPage>(StatusCode::OK) }
        };
        let hosts = |page: &EgressPage| page.records.iter().map(|one| one.record.host.clone()).collect::<Vec<_>>();
        let first = page("limit=2").await;
        assert_eq!(
            (hosts(&first), first.last_seq, first.complete),
            (vec!["a.example".into(), "b.example".into()], 4, false)
        );
        let second = page("after=4").await;
        assert_eq!((hosts(&second), second.last_seq, second.complete), (vec!["c.example".to_owned()], 6, true));
        assert_eq!(second.records[0].at, UnixMicros(2));
        let output: LogPage = world.member().get(&format!("{path}/logs")).await.json(StatusCode::OK);
        let texts: String = output.entries.iter().filter_map(|entry| entry.text.clone()).collect();
        assert_eq!((texts.as_str(), output.last_seq, output.complete), ("one\ntwo\nthree\n", 6, true));
        let found = world.member().get(&format!("{path}/logs/search?text=absent")).await;
        let found: holm_api::logs::LogMatches = found.json(StatusCode::OK);
        assert_eq!((found.matches.len(), found.last_seq, found.complete), (0, 6, true));
        let range = world.member().get(&format!("{path}/logs/range?tail=2")).await;
        let range: holm_api::logs::LogRange = range.json(StatusCode::OK);
        assert!((1..3).contains(&range.after), "{range:?}");
        let followed = world.member().follow(&format!("{path}/logs/follow")).await.rest().await;
        let note = |seq: u64| format!("{seq} note {{\"seq\":{seq}}}");
        let expected =
            ["1 log one\n".to_owned(), note(2), "3 log two\n".to_owned(), note(4), "5 log three\n".to_owned(), note(6)];
        assert_eq!(followed[..6], expected);
        assert_eq!(followed[6..], ["- end {\"last_seq\":6}"]);
        world.other_org().get(&format!("{path}/egress")).await.problem(ErrorCode::NotFound);
        world.member().get(&format!("{path}/egress?limit=0")).await.problem(ErrorCode::InvalidField);
    }
}
