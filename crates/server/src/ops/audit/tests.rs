//! What is told in the audit log, by whom, and to whom.

use std::{cell::Cell, collections::BTreeMap};

use holm_api::{
    audit::{AuditPage, AuditRecord},
    hosts::NewJoin,
    keys::KeyView,
    orgs::NewOrg,
    run_secrets::{AskSecrets, Asking},
    tokens::{NewToken, WhoAmI},
};
use holm_domain::{
    ErrorCode,
    audit::{Head, Record, verify},
};
use http::StatusCode;
use serde_json::json;

use crate::testing::{Answer, Caller, World, own_key::OwnKey};

const VALUE: &str = "geheimnis-47110815";

/// The log of the org of `caller`, which is whole.
async fn log_of(caller: &Caller) -> Vec<Record> {
    let page: AuditPage = caller.get("/v1/audit?limit=500").await.json(StatusCode::OK);
    let records: Vec<Record> = page.records.into_iter().map(|record| record.of(page.org)).collect();
    assert_eq!(verify(page.org, &records, Head::default()), Ok(page.head.into()));
    records
}

/// Somebody who acts, and reads in the log of the org what was told of it.
struct Watch<'w> {
    world: &'w World,
    me: String,
    seen: Cell<usize>,
}

impl<'w> Watch<'w> {
    async fn begin(world: &'w World) -> Self {
        let me: WhoAmI = world.admin().get("/v1/whoami").await.json(StatusCode::OK);
        Self { world, me: me.token.id.to_string(), seen: log_of(&world.admin()).await.len().into() }
    }

    async fn news(&self) -> Vec<Record> {
        let mut all = log_of(&self.world.admin()).await;
        let seen = self.seen.replace(all.len());
        all.split_off(seen)
    }

    /// One thing was told, which the admin did.
    #[track_caller]
    fn told(&self, news: &[Record], action: &str, subject: impl ToString, details: &[(&str, &str)]) {
        let mine = [details, &[("by_name", "bootstrap")]].concat();
        is_told(news, (&self.me, action, &subject.to_string()), &mine);
    }
}

#[track_caller]
fn is_told(news: &[Record], wanted: (&str, &str, &str), details: &[(&str, &str)]) {
    let [record] = news else { panic!("{} records: {news:?}", news.len()) };
    assert_eq!((record.actor.as_str(), record.action.as_str(), record.subject.as_str()), wanted);
    let details: BTreeMap<String, String> =
        details.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    assert_eq!(record.details, details);
}

#[track_caller]
fn done(answer: &Answer) {
    assert!(answer.status.is_success(), "{answer:?}");
}

#[tokio::test]
async fn what_the_server_makes_by_itself_is_told_as_its_own() {
    let world = World::new().await;
    let log = log_of(&world.admin()).await;
    assert!(log.iter().all(|record| record.actor == "server"), "{log:?}");
    let actions: Vec<_> = log.iter().map(|record| record.action.as_str()).collect();
    assert_eq!(actions, ["token.created", "token.created", "key.rotated", "token.created"]);
    assert_eq!((log[0].details["name"].as_str(), log[0].details["role"].as_str()), ("bootstrap", "admin"));
}

#[tokio::test]
async fn each_change_of_a_secret_is_told_once_and_a_refused_one_is_not() {
    let world = World::new().await;
    let (admin, watch) = (world.admin(), Watch::begin(&world).await);
    let set = json!({"name": "github", "value": VALUE, "for": ["api.example.org"]});
    done(&admin.post("/v1/secrets", &set).await);
    watch.told(&watch.news().await, "secret.created", "github", &[("version", "1"), ("for", "api.example.org")]);
    done(
        &admin
            .post("/v1/secrets", &json!({"name": "github", "value": VALUE, "for": ["anywhere"], "project": "default"}))
            .await,
    );
    let details = [("version", "1"), ("for", "anywhere"), ("project", "default")];
    watch.told(&watch.news().await, "secret.created", "github", &details);
    done(&admin.put("/v1/secrets/github", &json!({"value": VALUE})).await);
    watch.told(&watch.news().await, "secret.replaced", "github", &[("version", "2")]);
    let two = json!({"for": ["POST api.example.org/v1", "git.example.org"]});
    done(&admin.put("/v1/secrets/github/for", &two).await);
    let told = watch.news().await;
    assert!(
        told[0].details["for"].contains("POST api.example.org/v1")
            && told[0].details["for"].contains("git.example.org")
    );
    watch.told(&told, "secret.bound", "github", &[("for", told[0].details["for"].as_str())]);
    done(&admin.delete("/v1/secrets/github?project=default").await);
    watch.told(&watch.news().await, "secret.removed", "github", &[("project", "default")]);

    admin.post("/v1/secrets", &set).await.problem(ErrorCode::Conflict);
    admin
        .post("/v1/secrets", &json!({"name": "other", "value": "changeme", "for": ["anywhere"]}))
        .await
        .problem(ErrorCode::InvalidField);
    admin.put("/v1/secrets/other", &json!({"value": VALUE})).await.problem(ErrorCode::NotFound);
    admin.put("/v1/secrets/other/for", &two).await.problem(ErrorCode::NotFound);
    admin.delete("/v1/secrets/other").await.problem(ErrorCode::NotFound);
    world.member().post("/v1/secrets", &set).await.problem(ErrorCode::Forbidden);
    assert_eq!(watch.news().await, []);
    let log = admin.get("/v1/audit?limit=500").await;
    assert!(!String::from_utf8_lossy(&log.body).contains("geheim"), "no value is in it");
}

#[tokio::test]
async fn a_secret_is_told_each_time_that_it_is_given_and_to_which_run() {
    let world = World::new().await;
    for name in ["ONE", "TWO"] {
        done(
            &world
                .admin()
                .post("/v1/secrets", &json!({"name": name, "value": VALUE, "for": ["api.example.org"]}))
                .await,
        );
    }
    let credential = |name: &str| json!({"to": "api.example.org", "secret": name, "fill": {"kind": "header", "name": format!("x-{}", name.to_lowercase()), "value": "{secret}"}});
    let credentials = [credential("TWO"), credential("ONE")];
    let id = world.queue(json!({"root": {"kind": "host"}, "argv": ["true"], "allow": ["api.example.org"], "credentials": credentials})).await;
    let held = world.claim().await;
    let watch = Watch::begin(&world).await;
    let key = Asking::new().unwrap().key();
    let body = AskSecrets { agent: world.agent_id, instance: world.instance, fence: held.fence, key };
    let path = format!("/agent/v1/runs/{id}/secrets");
    let stale = AskSecrets { fence: held.fence + 1, ..body };
    world.agent().post(&path, &stale).await.problem(ErrorCode::StaleFence);
    assert_eq!(watch.news().await, [], "who is given nothing is not told of");
    for _ in 0..2 {
        done(&world.agent().post(&path, &body).await);
        let (news, agent, run) = (watch.news().await, world.agent_id.to_string(), id.to_string());
        assert_eq!(news.len(), 2);
        for (record, name) in news.iter().zip(["ONE", "TWO"]) {
            let details = [("version", "1"), ("run", run.as_str()), ("fence", "1")];
            is_told(std::slice::from_ref(record), (&agent, "secret.given", name), &details);
        }
    }
}

#[tokio::test]
async fn tokens_that_are_made_and_revoked_are_told_once() {
    let world = World::new().await;
    let (admin, watch) = (world.admin(), Watch::begin(&world).await);
    let made = admin.post("/v1/tokens", &json!({"name": "ci", "role": "member", "expires_in_s": 60})).await;
    let made: NewToken = made.json(StatusCode::CREATED);
    let expires_at = made.token.expires_at.unwrap().0.to_string();
    let details = [("name", "ci"), ("role", "member"), ("expires_at", expires_at.as_str())];
    watch.told(&watch.news().await, "token.created", made.token.id, &details);
    let path = format!("/v1/tokens/{}", made.token.id);
    done(&admin.delete(&path).await);
    watch.told(&watch.news().await, "token.revoked", made.token.id, &[]);
    done(&admin.delete(&path).await);
    admin.post("/v1/tokens", &json!({"name": "", "role": "member"})).await.problem(ErrorCode::InvalidField);
    world.member().post("/v1/tokens", &json!({"name": "ci", "role": "admin"})).await.problem(ErrorCode::Forbidden);
    assert_eq!(watch.news().await, []);
}

#[tokio::test]
async fn keys_that_are_rotated_and_withdrawn_are_told_once() {
    let world = World::new().await;
    let (admin, watch) = (world.admin(), Watch::begin(&world).await);
    let rotate = async || admin.post("/v1/keys/rotate", &()).await.json::<KeyView>(StatusCode::OK);
    let first = rotate().await;
    let news = watch.news().await;
    let before = news[0].details["before"].clone();
    watch.told(&news, "key.rotated", first.id, &[("before", &before)]);
    let withdraw = format!("/v1/keys/{}/withdraw", first.id);
    done(&admin.post(&withdraw, &()).await);
    let news = watch.news().await;
    let in_its_place = news[0].details["in_its_place"].clone();
    watch.told(&news, "key.withdrawn", first.id, &[("in_its_place", &in_its_place)]);
    done(&admin.post(&withdraw, &()).await);
    world.other_org().post("/v1/keys/rotate", &()).await.problem(ErrorCode::Forbidden);
    assert_eq!(watch.news().await, []);
    done(&admin.post("/v1/keys/envelope/rotate", &()).await);
    let news = watch.news().await;
    let (new, old) = (news[0].subject.clone(), news[0].details["before"].clone());
    watch.told(&news, "envelope.rotated", new, &[("before", &old)]);
}

#[tokio::test]
async fn hosts_that_join_and_leave_are_told_once() {
    let world = World::new().await;
    let (admin, watch) = (world.admin(), Watch::begin(&world).await);
    let join = async || admin.post("/v1/hosts/joins", &json!({"name": "h"})).await.json::<NewJoin>(StatusCode::CREATED);
    let made = join().await;
    let expires_at = made.join.expires_at.0.to_string();
    let details = [("name", "h"), ("expires_at", expires_at.as_str())];
    watch.told(&watch.news().await, "host.join_created", made.join.id, &details);
    let host = OwnKey::new(40, 1);
    for _ in 0..2 {
        let enrolled = world.with_secret(&made.secret).post("/agent/v1/enrol", &host.enrolment(&made.secret)).await;
        assert!(enrolled.status.is_success() || enrolled.status == StatusCode::TOO_MANY_REQUESTS, "{enrolled:?}");
    }
    let (join_id, agent, key) = (made.join.id.to_string(), host.agent.to_string(), host.public().to_string());
    is_told(&watch.news().await, (&join_id, "host.enrolled", &agent), &[("name", "h"), ("key", &key)]);
    let revoke = format!("/v1/hosts/{agent}/revoke");
    for _ in 0..2 {
        done(&admin.post(&revoke, &()).await);
    }
    watch.told(&watch.news().await, "host.revoked", &agent, &[]);
    let unused = join().await;
    watch.news().await;
    for _ in 0..2 {
        done(&admin.delete(&format!("/v1/hosts/joins/{}", unused.join.id)).await);
    }
    watch.told(&watch.news().await, "host.join_revoked", unused.join.id, &[]);
    for (verb, action) in [("cordon", "host.cordoned"), ("uncordon", "host.uncordoned")] {
        let path = format!("/v1/hosts/{}/{verb}", world.agent_id);
        for _ in 0..2 {
            done(&admin.post(&path, &()).await);
        }
        let name = world.registration().name;
        watch.told(&watch.news().await, action, world.agent_id, &[("name", &name)]);
        world.member().post(&path, &()).await.problem(ErrorCode::Forbidden);
    }
    assert_eq!(watch.news().await, []);
}

#[tokio::test]
async fn orgs_their_limits_and_pools_are_told_to_who_rules_the_deployment() {
    let world = World::new().await;
    let (admin, watch) = (world.admin(), Watch::begin(&world).await);
    let made: NewOrg = admin.post("/v1/orgs", &json!({"name": "acme"})).await.json(StatusCode::CREATED);
    watch.told(&watch.news().await, "org.created", made.org.id, &[("name", "acme")]);
    let theirs = log_of(&world.with_secret(&made.admin.secret)).await;
    let first = made.admin.token.id.to_string();
    is_told(&theirs, ("server", "token.created", &first), &[("name", "first admin"), ("role", "admin")]);
    admin.post("/v1/orgs", &json!({"name": "acme"})).await.problem(ErrorCode::Conflict);
    let limits = json!({"limits": {"runs_running_max": 3}});
    done(&admin.post("/v1/orgs/acme/limits", &limits).await);
    let details = [("name", "acme"), ("limit", "runs_running_max"), ("value", "3")];
    watch.told(&watch.news().await, "org.limits_set", made.org.id, &details);
    admin.post("/v1/orgs/acme/limits", &json!({"limits": {"nope": 3}})).await.problem(ErrorCode::InvalidField);
    let (org, host) = (made.org.id.to_string(), world.agent_id.to_string());
    let pool_told = [("org", org.as_str()), ("org_name", "acme")];
    let name = world.registration().name;
    let host_told = [("host", host.as_str()), ("host_name", name.as_str())];
    for (path, adds, action, details) in [
        ("/v1/pools/ci/orgs/acme".to_owned(), true, "pool.shared", pool_told),
        ("/v1/pools/ci/orgs/acme".to_owned(), false, "pool.unshared", pool_told),
        (format!("/v1/pools/ci/hosts/{host}"), true, "pool.host_added", host_told),
        (format!("/v1/pools/ci/hosts/{host}"), false, "pool.host_removed", host_told),
    ] {
        for _ in 0..2 {
            done(&if adds { admin.post(&path, &()).await } else { admin.delete(&path).await });
        }
        watch.told(&watch.news().await, action, "ci", &details);
    }
    world.other_org().post("/v1/orgs", &json!({"name": "x"})).await.problem(ErrorCode::Forbidden);
    assert_eq!(watch.news().await, []);
    assert_eq!(log_of(&world.with_secret(&made.admin.secret)).await.len(), 1, "to nobody else");
}

#[tokio::test]
async fn the_log_is_read_by_admins_of_the_org_page_by_page() {
    let world = World::new().await;
    let (admin, other) = (world.admin(), world.other_org());
    for caller in [world.member(), world.agent(), world.monitor().await] {
        caller.get("/v1/audit").await.problem(ErrorCode::Forbidden);
    }
    world.nobody().get("/v1/audit").await.problem(ErrorCode::Unauthenticated);
    let (all, theirs) = (log_of(&admin).await, log_of(&other).await);
    let page: AuditPage = admin.get("/v1/audit?after=1&limit=2").await.json(StatusCode::OK);
    let read: Vec<Record> = page.records.into_iter().map(|record| record.of(page.org)).collect();
    assert_eq!(read, all[1..3]);
    assert_eq!(Head::from(page.head), all.last().unwrap().head());
    done(&admin.post("/v1/secrets", &json!({"name": "ours", "value": VALUE, "for": ["anywhere"]})).await);
    assert_eq!(log_of(&other).await, theirs, "another org sees nothing of it");
    assert!(theirs.iter().all(|record| record.org != world.org));
    let beyond: AuditPage = admin.get("/v1/audit?after=9000").await.json(StatusCode::OK);
    assert_eq!(beyond.records, [] as [AuditRecord; 0]);
    for (query, field) in [("limit=0", "limit"), ("limit=501", "limit"), ("after=-1", "after"), ("org=x", "org")] {
        let problem = admin.get(&format!("/v1/audit?{query}")).await.problem(ErrorCode::InvalidField);
        assert_eq!(problem.field.as_deref(), Some(field), "{query}");
    }
}
