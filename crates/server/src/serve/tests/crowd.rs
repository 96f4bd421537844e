//! Connections where there are no more places: who gets in, who is refused, who is asked to leave.

use holm_api::{
    agent::{Poll, Register},
    runs::RunView,
};
use holm_domain::AgentId;
use hyper::client::conn::http1::SendRequest;
use serde_json::json;
use uuid::Uuid;

use super::*;

/// A connection that is kept.
struct Kept(SendRequest<Body>);

impl Kept {
    async fn begin(serving: &Serving) -> Self {
        let stream = TcpStream::connect(serving.address).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn whoami(&mut self, secret: &str) -> StatusCode {
        self.ask(secret).await.expect("the connection lives")
    }

    async fn ask(&mut self, secret: &str) -> hyper::Result<StatusCode> {
        let asked = self.0.send_request(empty(get(secret, "/v1/whoami")));
        let answer = timeout(PATIENCE, asked).await.expect("an answer in time")?;
        let status = answer.status();
        answer.into_body().collect().await?;
        Ok(status)
    }
}

#[tokio::test]
async fn an_agent_is_heard_whoever_has_connections() {
    let world = World::with_limits(|limits| {
        limits.connections_max = 6;
        limits.connections_for_agents = 3;
        limits.connections_per_org_max = 2;
    })
    .await;
    let serving = Serving::begin(&world).await;
    let (member, other) = (world.member_secret(), world.other_org_secret());
    let mut known = Vec::new();
    for secret in [member, member, other] {
        let mut kept = Kept::begin(&serving).await;
        assert_eq!(kept.whoami(secret).await, StatusCode::OK);
        known.push((kept, secret));
    }
    let mut refused = Vec::new();
    for _ in 0..2 {
        let mut kept = Kept::begin(&serving).await;
        assert_eq!(kept.whoami(member).await, StatusCode::TOO_MANY_REQUESTS, "the org has its connections");
        refused.push(kept);
    }
    // Those that were refused and one of these have the last places; the others wait to be let in.
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(TcpStream::connect(serving.address).await.unwrap());
    }
    let mut agent = Kept::begin(&serving).await;
    assert_eq!(agent.whoami(world.agent_secret()).await, StatusCode::OK);
    for _ in 0..4 {
        silent.push(TcpStream::connect(serving.address).await.unwrap());
    }
    let mut second = Kept::begin(&serving).await;
    assert_eq!(second.whoami(world.agent_secret()).await, StatusCode::OK);
    assert_eq!(agent.whoami(world.agent_secret()).await, StatusCode::OK, "a known connection makes no room");
    for (kept, secret) in &mut known {
        assert_eq!(kept.whoami(secret).await, StatusCode::OK, "nor do those of others");
    }
    serving.end().await;
}

#[tokio::test]
async fn a_connection_counts_for_whoever_asks_on_it() {
    let world = World::with_limits(|limits| limits.connections_per_org_max = 1).await;
    let serving = Serving::begin(&world).await;
    let (mut first, mut second) = (Kept::begin(&serving).await, Kept::begin(&serving).await);
    assert_eq!(first.whoami(world.member_secret()).await, StatusCode::OK);
    assert_eq!(first.whoami(world.member_secret()).await, StatusCode::OK);
    assert_eq!(second.whoami(world.member_secret()).await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(first.whoami(world.agent_secret()).await, StatusCode::OK, "as behind a proxy");
    assert_eq!(second.whoami(world.member_secret()).await, StatusCode::OK);
    assert_eq!(first.whoami(world.member_secret()).await, StatusCode::TOO_MANY_REQUESTS);
    serving.end().await;
}

/// So many streams of each of two orgs.
async fn follow_as_two_orgs(world: &World, serving: &Serving, of_each: usize) -> Vec<Response<Incoming>> {
    let mut streams = Vec::new();
    for (caller, secret) in [(world.member(), world.member_secret()), (world.other_org(), world.other_org_secret())] {
        let spec = json!({"spec": {"root": {"kind": "host"}, "argv": ["true"]}});
        let run: RunView = caller.post("/v1/runs", &spec).await.json(StatusCode::CREATED);
        for _ in 0..of_each {
            let follow = format!("/v1/runs/{}/logs/follow", run.id);
            let stream = serving.ask(empty(get(secret, &follow))).await;
            assert_eq!(stream.status(), StatusCode::OK);
            streams.push(stream);
        }
    }
    streams
}

#[tokio::test]
async fn where_each_org_has_one_that_is_busy_one_more_is_refused_until_one_ends() {
    let world = World::with_limits(|limits| {
        limits.connections_max = 3;
        limits.connections_for_agents = 1;
    })
    .await;
    let [third, _] = world.third_org_secrets().await;
    let serving = Serving::begin(&world).await;
    let mut streams = follow_as_two_orgs(&world, &serving, 1).await;
    let mut late = Kept::begin(&serving).await;
    assert_eq!(late.whoami(&third).await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(world.app().streams.total(), 2, "nobody left for it");
    drop(streams.pop());
    until(|| world.app().streams.total() == 1).await;
    let deadline = Instant::now() + PATIENCE;
    while late.whoami(&third).await != StatusCode::OK {
        assert!(Instant::now() < deadline, "who was refused gets in once there is a place");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    serving.end().await;
}

#[tokio::test]
async fn an_agent_for_which_nobody_can_leave_is_heard_all_the_same() {
    let world = World::with_limits(|limits| {
        limits.connections_max = 3;
        limits.connections_for_agents = 1;
    })
    .await;
    let [third, agent_of_third] = world.third_org_secrets().await;
    let serving = Serving::begin(&world).await;
    let _streams = follow_as_two_orgs(&world, &serving, 1).await;
    let mut agents = Kept::begin(&serving).await;
    for _ in 0..2 {
        assert_eq!(agents.whoami(&agent_of_third).await, StatusCode::OK);
    }
    assert_eq!(world.app().streams.total(), 2, "nobody left for it");
    let mut next = Kept::begin(&serving).await;
    assert_eq!(
        next.whoami(&third).await,
        StatusCode::TOO_MANY_REQUESTS,
        "its connection makes room as a stranger does"
    );
    serving.end().await;
}

#[tokio::test]
async fn a_member_of_an_org_that_has_nothing_gets_in_where_two_orgs_have_all_places_for_streams() {
    let world = narrow().await;
    let [third, _] = world.third_org_secrets().await;
    let serving = Serving::begin(&world).await;
    let mut streams = follow_as_two_orgs(&world, &serving, 2).await;
    let mut kept = Kept::begin(&serving).await;
    assert_eq!(kept.whoami(&third).await, StatusCode::OK);
    assert_eq!(read(&mut streams[0], 1).await, (Vec::new(), true), "the longest ends in order, and is to be resumed");
    assert_eq!(world.app().streams.total(), 3);
    serving.end().await;
}

#[tokio::test]
async fn an_agent_of_an_org_that_has_nothing_gets_in_where_two_orgs_have_all_places_for_polls() {
    let world = narrow().await;
    let [_, third] = world.third_org_secrets().await;
    let other = world.registration();
    let other = Register { agent: AgentId::from_uuid(Uuid::from_u128(8)), ..other };
    assert_eq!(world.other_org_agent().post("/agent/v1/register", &other).await.status, StatusCode::OK);
    let serving = Serving::begin(&world).await;
    let mut polls = Vec::new();
    let (one, two) = ((world.agent_secret(), world.agent_id), (world.other_org_agent_secret(), other.agent));
    for (secret, agent) in [one, two, one, two, one] {
        let poll = Poll { agent, wait_ms: 20_000, ..world.poll() };
        let mut kept = Kept::begin(&serving).await;
        let poll = post(secret, "/agent/v1/poll", &poll);
        polls.push(tokio::spawn(async move { kept.0.send_request(poll).await }));
    }
    until(|| world.app().polls.total() == 5).await;
    let mut kept = Kept::begin(&serving).await;
    assert_eq!(kept.whoami(&third).await, StatusCode::OK);
    let (ended, ..) = futures_util::future::select_all(polls).await;
    assert_eq!(ended.unwrap().expect("it is answered before it could be cut").status(), StatusCode::OK);
    serving.end().await;
}

/// A server with six places, of which one org has at most four, two of them not its agents'.
async fn narrow() -> World {
    World::with_limits(|limits| {
        limits.connections_max = 6;
        limits.connections_for_agents = 2;
        limits.connections_per_org_max = 2;
    })
    .await
}

#[tokio::test]
async fn an_org_with_all_that_it_may_have_keeps_no_agent_of_another_out() {
    let world = narrow().await;
    let serving = Serving::begin(&world).await;
    let (member, agent, other) = (world.member_secret(), world.agent_secret(), world.other_org_agent_secret());
    let mut held = Vec::new();
    for secret in [member, member, agent, agent] {
        let mut kept = Kept::begin(&serving).await;
        assert_eq!(kept.whoami(secret).await, StatusCode::OK);
        held.push(kept);
    }
    for secret in [member, agent] {
        assert_eq!(Kept::begin(&serving).await.whoami(secret).await, StatusCode::TOO_MANY_REQUESTS);
    }
    for _ in 0..3 {
        let mut kept = Kept::begin(&serving).await;
        assert_eq!(kept.whoami(other).await, StatusCode::OK);
        held.push(kept);
    }
    serving.end().await;
}

#[tokio::test]
async fn where_agents_have_all_places_an_idle_one_of_who_has_the_most_makes_room() {
    let world = narrow().await;
    let lease = world.claim_run().await;
    let serving = Serving::begin(&world).await;
    let (agent, other) = (world.agent_secret(), world.other_org_agent_secret());
    let mut busy = serving.ask(empty(get(world.member_secret(), &format!("/v1/runs/{}/logs/follow", lease.run)))).await;
    let mut held = Vec::new();
    for secret in [agent, agent, agent, other] {
        let mut kept = Kept::begin(&serving).await;
        assert_eq!(kept.whoami(secret).await, StatusCode::OK);
        held.push((kept, secret));
    }
    let mut late = Kept::begin(&serving).await;
    assert_eq!(late.whoami(other).await, StatusCode::OK);
    world.append_log(lease, 1, &["a\n"]).await;
    assert_eq!(read(&mut busy, 1).await.0, ["1 log a\n"], "who is busy makes no room");
    let mut lives = Vec::new();
    for (kept, secret) in &mut held {
        lives.push(kept.ask(secret).await.is_ok());
    }
    assert_eq!(lives, [false, true, true, true], "the one that was idle for longest");
    serving.end().await;
}

#[tokio::test]
async fn nobody_is_cut_where_nobody_waits() {
    let world = World::with_limits(|limits| limits.connections_max = 1).await;
    let serving = Serving::begin(&world).await;
    let mut only = Kept::begin(&serving).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(only.ask("holm_guess").await.unwrap(), StatusCode::UNAUTHORIZED);
    serving.end().await;
}

#[tokio::test]
async fn a_connection_goes_over_to_another_org_where_all_have_theirs() {
    let world = World::with_limits(|limits| {
        limits.connections_max = 3;
        limits.connections_for_agents = 1;
        limits.connections_per_org_max = 2;
    })
    .await;
    let serving = Serving::begin(&world).await;
    let (mut first, mut second) = (Kept::begin(&serving).await, Kept::begin(&serving).await);
    for kept in [&mut first, &mut second] {
        assert_eq!(kept.whoami(world.member_secret()).await, StatusCode::OK);
    }
    assert_eq!(first.whoami(world.other_org_secret()).await, StatusCode::OK);
    assert_eq!(second.whoami(world.other_org_secret()).await, StatusCode::OK);
    assert_eq!(first.whoami(world.other_org_secret()).await, StatusCode::OK, "nobody left for it");
    serving.end().await;
}
