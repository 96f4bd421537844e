//! `GET /metrics`: what the server counts, for Prometheus.

use std::sync::Arc;

use axum::extract::State;
use holm_api::problem::Problem;
use http::header::CONTENT_TYPE;
use prometheus_client::encoding::prometheus_text;

use crate::{
    app::App,
    auth::{May, Observe},
    ops,
    problem::Failure,
};

/// Metrics
///
/// In the text exposition format 0.0.4 of Prometheus. They tell of the whole server, so only tokens of its first org may
/// read them, with the role `monitor`, which may do nothing else, or `admin`.
#[utoipa::path(
    get, path = "/metrics", tag = "service", operation_id = "metrics_read",
    responses(
        (status = 200, description = "Everything that is counted.", body = String, content_type = "text/plain"),
        (status = 403, description = "`forbidden`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn metrics(
    State(app): State<Arc<App>>,
    caller: May<Observe>,
) -> Result<([(http::HeaderName, &'static str); 1], String), Failure> {
    let text = ops::metrics::metrics_read(&app, &caller.token).await?;
    Ok(([(CONTENT_TYPE, prometheus_text::CONTENT_TYPE)], text))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        time::Duration,
    };

    use holm_domain::{ErrorCode, RunId, host::PRESSURE_LABEL};
    use http::StatusCode;
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::testing::World;

    /// Every sample: the series with its labels, and its value.
    async fn scrape(world: &World) -> BTreeMap<String, f64> {
        let answer = world.monitor().await.get("/metrics").await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.headers[CONTENT_TYPE], "text/plain; version=0.0.4; charset=utf-8");
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        });
        samples.collect()
    }

    #[tokio::test]
    async fn what_happens_is_counted() {
        let world = World::new().await;
        let held = world.claim_run().await;
        world.append_log(held, 1, &["a\n"]).await;
        let renewal = |fence| {
            let lease = json!({"run": held.run, "fence": fence});
            json!({"agent": world.agent_id, "instance": world.instance, "leases": [lease]})
        };
        for fence in [held.fence, held.fence + 1] {
            assert_eq!(world.agent().post("/agent/v1/renew", &renewal(fence)).await.status, StatusCode::OK);
        }
        let stale =
            world.agent().post(&world.fenced(holm_api::agent::HeldLease { fence: 9, ..held }, "logs"), &()).await;
        assert!(stale.status.is_client_error());
        world.queue_run().await;
        world.clock.advance(Duration::from_secs(7));
        let mut told = crate::told::Told::counting(world.app().metrics.troubles(crate::metrics::Task::Seal));
        crate::tasks::seal::seal(world.app(), &mut told).await.unwrap();
        let live = scrape(&world).await;
        for (series, value) in [
            ("holm_claims_total", 1.0),
            ("holm_queue_wait_seconds_count", 1.0),
            ("holm_lease_renewals_total{outcome=\"renewed\"}", 1.0),
            ("holm_lease_renewals_total{outcome=\"refused\"}", 1.0),
            ("holm_lease_renewals_total{outcome=\"unreadable\"}", 0.0),
            ("holm_unreadable_runs_total", 0.0),
            ("holm_runs{state=\"queued\"}", 1.0),
            ("holm_runs{state=\"claimed\"}", 1.0),
            ("holm_runs{state=\"running\"}", 0.0),
            ("holm_queue_oldest_age_seconds", 7.0),
            ("holm_hosts{state=\"ready\"}", 1.0),
            ("holm_open{what=\"streams\"}", 0.0),
            ("holm_runs_ended_total{outcome=\"succeeded\"}", 0.0),
            ("holm_http_requests_total{method=\"POST\",route=\"/v1/runs\",status=\"2xx\"}", 2.0),
            ("holm_http_request_duration_seconds_count{method=\"POST\",route=\"/v1/runs\"}", 2.0),
        ] {
            assert_eq!(live.get(series), Some(&value), "{series}: {live:#?}");
        }
        assert!(live["holm_log_appended_bytes_total"] > 0.0);
        assert!(live[&format!("holm_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))] > 0.0);

        let mut following = world.member().follow(&format!("/v1/runs/{}/logs/follow", held.run)).await;
        following.events(1).await;
        assert_eq!(scrape(&world).await["holm_open{what=\"streams\"}"], 1.0);
        drop(following);
        world.finish(held, 2).await;
        world.clock.advance(Duration::from_secs(60));
        let later = scrape(&world).await;
        assert_eq!(later["holm_open{what=\"streams\"}"], 0.0);
        assert_eq!(later["holm_runs_ended_total{outcome=\"succeeded\"}"], 1.0);
        assert_eq!((later["holm_runs{state=\"claimed\"}"], later["holm_hosts{state=\"away\"}"]), (0.0, 1.0));
    }

    #[tokio::test]
    async fn refusals_are_counted_by_their_code_and_hosts_by_whether_they_take_runs() {
        let world = World::with_limits(|limits| limits.polls_per_org_max = 0).await;
        world.agent().post("/agent/v1/poll", &world.poll()).await.problem(ErrorCode::TooMany);
        let labels = [(PRESSURE_LABEL.to_owned(), "io".to_owned())].into();
        let pressed = holm_api::agent::Register { labels, ..world.registration() };
        assert_eq!(world.agent().post("/agent/v1/register", &pressed).await.status, StatusCode::OK);
        let found = scrape(&world).await;
        assert_eq!(found["holm_refusals_total{code=\"too_many\"}"], 1.0);
        assert_eq!(found["holm_refusals_total{code=\"stale_fence\"}"], 0.0, "there before the first one");
        assert_eq!((found["holm_hosts{state=\"ready\"}"], found["holm_hosts{state=\"refusing\"}"]), (0.0, 1.0));
    }

    /// Names of labels and their values.
    fn labels(series: &str) -> Vec<(String, String)> {
        let Some((_, inside)) = series.split_once('{') else { return Vec::new() };
        let inside = inside.strip_suffix('}').unwrap();
        inside
            .split("\",")
            .map(|pair| {
                let (name, value) = pair.split_once("=\"").unwrap();
                (name.to_owned(), value.trim_end_matches('"').to_owned())
            })
            .collect()
    }

    async fn use_everything(world: &World, mark: &str) {
        let number = u128::from(mark.as_bytes()[0]);
        let id = RunId::from_uuid(Uuid::from_u128(number));
        let member = world.member();
        for path in [format!("/v1/runs/{id}"), format!("/v1/runs/{mark}/logs"), format!("/{mark}"), "/v1/runs".into()] {
            for method in ["GET", "DELETE", "PUT", mark] {
                member.send(method, &path, "application/json", b"{}".to_vec()).await;
            }
        }
        member.get(&format!("/v1/runs?label={mark}%3D{mark}")).await;
        let spec = json!({"root": {"kind": "host"}, "argv": [mark], "labels": {(mark): mark}});
        let made = member.post("/v1/runs", &json!({"spec": spec})).await;
        assert_eq!(made.status, StatusCode::CREATED, "{:?}", made.body);
        let held = world.claim().await;
        world.append_log(held, 1, &[mark]).await;
        world.finish(held, 2).await;
        let body = json!({"name": mark, "role": "member"});
        assert_eq!(world.admin().post("/v1/tokens", &body).await.status, StatusCode::CREATED);
        let labels = [(mark.to_owned(), mark.to_owned())].into();
        let host =
            holm_api::agent::Register { name: mark.into(), version: mark.into(), labels, ..world.registration() };
        assert_eq!(world.agent().post("/agent/v1/register", &host).await.status, StatusCode::OK);
    }

    #[tokio::test]
    async fn no_label_has_a_value_that_users_choose() {
        let world = World::new().await;
        // A series of the route itself comes with its first scrape.
        scrape(&world).await;
        use_everything(&world, "AVERYODDWORD").await;
        let first = scrape(&world).await;
        use_everything(&world, "BANOTHERWORD").await;
        use_everything(&world, "CTHIRDWORD").await;
        let later = scrape(&world).await;
        assert_eq!(first.keys().collect::<Vec<_>>(), later.keys().collect::<Vec<_>>(), "users add no series");

        let document: serde_json::Value = serde_json::from_str(&crate::openapi().to_json().unwrap()).unwrap();
        let mut routes: BTreeSet<String> = document["paths"].as_object().unwrap().keys().cloned().collect();
        routes.insert("none".into());
        for (name, value) in later.keys().flat_map(|series| labels(series)) {
            let is_known = match name.as_str() {
                "route" => routes.contains(&value),
                "method" => ["GET", "HEAD", "POST", "PUT", "DELETE", "other"].contains(&value.as_str()),
                "status" => ["1xx", "2xx", "3xx", "4xx", "5xx"].contains(&value.as_str()),
                "le" => value == "+Inf" || value.parse::<f64>().is_ok(),
                "version" => value == env!("CARGO_PKG_VERSION"),
                "code" => ErrorCode::ALL.iter().any(|code| code.as_str() == value),
                "limit" => holm_domain::org_limits::OrgLimit::parse(&value).is_some(),
                // Words of Holm's own.
                "outcome" | "state" | "task" | "what" => value.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
                _ => false,
            };
            assert!(is_known, "{name}={value:?}");
        }
    }

    #[tokio::test]
    async fn only_who_runs_the_server_reads_them() {
        let world = World::new().await;
        assert_eq!(world.admin().get("/metrics").await.status, StatusCode::OK);
        world.member().get("/metrics").await.problem(ErrorCode::Forbidden);
        let refused = world.other_org().get("/metrics").await.problem(ErrorCode::Forbidden);
        assert!(refused.detail.contains("`default`"), "{refused}");
        world.monitor().await.get("/v1/runs").await.problem(ErrorCode::Forbidden);
    }
}
