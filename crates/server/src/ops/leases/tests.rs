//! A process that was heard, and superseded before its word counted: what a request that was under way for long finds.

use holm_api::{
    LOG_BATCH,
    agent::{AppendEvents, FinishRun, Renew, Renewed, SandboxEnded, StartRun},
};
use holm_domain::{
    ErrorCode, InstanceId, UnixMicros,
    lease::Lease,
    run::{EventKind, ExitStatus, Outcome, Reason, Run, RunState, SandboxInfo},
};
use http::StatusCode;
use uuid::Uuid;

use crate::testing::{World, batch};

#[tokio::test]
async fn a_word_that_was_heard_before_a_newer_process_took_the_lease_over_changes_nothing() {
    let world = World::new().await;
    let held = world.claim_run().await;
    let (store, org) = (&world.app().store, world.member_token().await.org);
    // What the store has when the newer process has registered and renewed; the record of the host is as it was when the
    // older one was heard.
    let stored = store.run_get(org, held.run).await.unwrap().unwrap();
    let newer = InstanceId::from_uuid(Uuid::from_u128(77));
    let lease = stored.lease.map(|lease| Lease { instance: newer, ..lease });
    let taken = Run { lease, version: stored.version + 1, ..stored.clone() };
    store.run_save(stored.version, &taken, &[], None, UnixMicros(9)).await.unwrap();

    let (agent, instance, fence) = (world.agent_id, world.instance, held.fence);
    let path = |operation: &str| format!("/agent/v1/runs/{}/{operation}", held.run);
    let host = world.agent();
    let outcome = Outcome::failed(Reason::HostFailed, "no room");
    let sandbox = SandboxInfo { agent, runtime: "process".to_owned(), image_digest: None, unenforced: Vec::new() };
    host.post(&path("start"), &StartRun { instance, fence, sandbox }).await.problem(ErrorCode::StaleFence);
    let events = vec![
        EventKind::EgressRefused { host: "a".to_owned(), port: 0, protocol: "dns".to_owned(), count: 1, reason: None }
            .into(),
    ];
    let events = AppendEvents { agent, instance, fence, first_seq: 1, events };
    host.post(&path("events"), &events).await.problem(ErrorCode::StaleFence);
    let lines = world.fenced(held, "logs");
    host.send("POST", &lines, LOG_BATCH, batch(1, &["a line"])).await.problem(ErrorCode::StaleFence);
    let ended = SandboxEnded { agent, instance, fence, outcome: Outcome::exited(ExitStatus::Code(0)) };
    host.post(&path("ended"), &ended).await.problem(ErrorCode::StaleFence);
    let end = FinishRun { agent, instance, fence, outcome, usage: None, result: None, next_log_seq: 1 };
    host.post(&path("finish"), &end).await.problem(ErrorCode::StaleFence);
    let renew = Renew { agent, instance, leases: vec![held.into()] };
    let answer: Renewed = host.post("/agent/v1/renew", &renew).await.json(StatusCode::OK);
    assert_eq!(answer.leases[0].ttl_ms, None);

    let after = store.run_get(org, held.run).await.unwrap().unwrap();
    assert_eq!((after.state, after), (RunState::Claimed, taken));
}
