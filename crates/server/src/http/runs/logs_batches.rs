//! `GET /v1/runs/{id}/logs/batches`: the log as it is stored.

use std::sync::Arc;

use axum::{
    extract::{Extension, State},
    response::Response,
};
use holm_api::{logs::StreamLogs, problem::Problem};
use holm_domain::error::InvalidField;
use http::HeaderMap;

use crate::{
    account::Account,
    app::App,
    auth::{May, Read},
    http::{
        extract::{Params, RunPath},
        follow::{self, From},
    },
    ops::{self, logs::stream::BatchSource},
    problem::Failure,
};

/// Read the log as batches
///
/// The bytes of the stored batches, one after the other, for readers of large logs: `HLB3`, the first sequence (8 bytes),
/// the number of entries (4), the newest time of an entry (8), the length of the entries (4), the length of what follows
/// (4), a CRC-32 of everything but `HLB3` and itself (4); then the entries or, where that is shorter, a frame of Zstandard
/// with them. Entries lie in blocks: flags (1; bit 0: standard error, bit 1: the last line goes on, bit 2: it has a time), the
/// length of the data (3), the time (8) unless it is that of the block before, and the data, in which each line feed ends an
/// entry, and so does its end. Numbers are little-endian. Between batches `HLBK` may stand, which means nothing; at the end
/// of what was asked for stands `HLBE` with the last sequence (8), or, behind all of the log of a run that has ended, `HLBR`
/// with the last sequence (8), a length (4) and as much JSON: the run as `GET /v1/runs/{id}` has it. A stream that ends
/// without it is to be resumed after the last sequence that was received. The first batch may begin before, and the last may
/// go on behind, what was asked for.
#[utoipa::path(
    get, path = "/v1/runs/{id}/logs/batches", tag = "logs", operation_id = "log_batches",
    params(
        ("id" = String, Path, description = "The run, as `run_…`."),
        StreamLogs,
        ("last-event-id" = Option<u64>, Header, description = "The last sequence that was received."),
    ),
    responses(
        (status = 200, description = "The batches.", body = [u8], content_type = "application/vnd.holm.log-batches"),
        (status = 410, description = "`logs_deleted`.", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "`too_many` streams.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn logs_batches(
    State(app): State<Arc<App>>,
    caller: May<Read>,
    Extension(account): Extension<Arc<Account>>,
    RunPath(id): RunPath,
    Params(query): Params<StreamLogs>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let after = follow::position(&headers, &From { after: query.after })?;
    ops::logs::readable(&app, caller.org(), id).await?;
    let upto = match (query.follow, query.upto) {
        (true, None) => None,
        (true, Some(upto)) => {
            return Err(
                InvalidField::new("upto", upto, "leave it out, or `follow`: following ends with the run").into()
            );
        }
        (false, upto) => {
            let last_seq = ops::logs::log_head(&app, caller.org(), id).await?.saturating_sub(1);
            Some(upto.unwrap_or(last_seq).min(last_seq))
        }
    };
    let pass = app.streams.enter(caller.org())?;
    follow::respond(app, &caller.token, id, BatchSource::new(caller.org(), id, after, upto), pass, &account).await
}

#[cfg(test)]
mod tests {
    use holm_api::{
        LAST_EVENT_ID, LOG_BATCHES,
        batches::{Frame, FrameReader},
    };
    use holm_domain::{ErrorCode, run::RunState};
    use http::{StatusCode, header::CONTENT_TYPE};

    use crate::testing::{Answer, World};

    /// The last sequence, and the state of the run that is told.
    type End = (u64, Option<RunState>);

    /// The sequences of the batches, and the end.
    fn frames(answer: &Answer) -> (Vec<(u64, u64)>, Option<End>) {
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.headers[CONTENT_TYPE], LOG_BATCHES);
        let (mut reader, mut batches) = (FrameReader::default(), Vec::new());
        reader.push(&answer.body);
        while let Some(frame) = reader.pull().unwrap() {
            match frame {
                Frame::Batch(batch) => batches.push((batch.first_seq(), batch.last_seq())),
                Frame::Alive => {}
                Frame::End(seq, run) => return (batches, Some((seq, run.map(|run| run.state)))),
            }
        }
        (batches, None)
    }

    #[tokio::test]
    async fn what_is_stored_is_sent_and_the_end_is_told() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let path = format!("/v1/runs/{}/logs/batches", held.run);
        assert_eq!(frames(&world.member().get(&path).await), (vec![], Some((0, None))));
        for first in [1, 3, 5] {
            world.append_log(held, first, &["a\n", "b\n"]).await;
        }
        let all = vec![(1, 2), (3, 4), (5, 6)];
        assert_eq!(frames(&world.member().get(&path).await), (all.clone(), Some((6, None))), "of a run that goes on");
        assert_eq!(frames(&world.member().get(&format!("{path}?after=3")).await), (all[1..].to_vec(), Some((6, None))));
        assert_eq!(frames(&world.member().get(&format!("{path}?after=9")).await), (vec![], Some((9, None))));
        let resumed = world.member().header(LAST_EVENT_ID, "4").get(&format!("{path}?after=0")).await;
        assert_eq!(frames(&resumed), (all[2..].to_vec(), Some((6, None))));
        world.finish(held, 7).await;
        assert_eq!(
            frames(&world.member().get(&format!("{path}?follow=true&after=2")).await),
            (all[1..].to_vec(), Some((6, Some(RunState::Ended))))
        );
        world.other_org().get(&path).await.problem(ErrorCode::NotFound);
        let wrong = world.member().get(&format!("{path}?follow=true&upto=3")).await.problem(ErrorCode::InvalidField);
        assert_eq!(wrong.field.as_deref(), Some("upto"));
    }
}
