//! Secrets over HTTP: who may do what, and that no answer bears a value.

use holm_api::secrets::{SecretList, SecretView};
use holm_domain::ErrorCode;
use http::StatusCode;
use serde_json::json;
use tracing::Level;

use crate::testing::{Caller, World, log::Log};

const VALUE: &str = "geheimnis-47110815";
const API: &str = "api.example.org/v1";

/// To where each secret may be brought, by name.
async fn bound(caller: &Caller) -> Vec<(String, Vec<String>)> {
    let list: SecretList = caller.get("/v1/secrets").await.json(StatusCode::OK);
    list.secrets.into_iter().map(|secret| (secret.name.to_string(), secret.bound.texts())).collect()
}

async fn listed(caller: &Caller) -> Vec<(String, Option<String>, u64)> {
    let list: SecretList = caller.get("/v1/secrets").await.json(StatusCode::OK);
    list.secrets.into_iter().map(|secret| (secret.name.to_string(), secret.project, secret.version)).collect()
}

#[tokio::test]
async fn a_secret_is_kept_replaced_and_removed_and_no_answer_bears_its_value() {
    let world = World::new().await;
    let (admin, log) = (world.admin(), Log::default());
    let _kept = log.keep(Level::TRACE);
    let answers = [
        admin.post("/v1/secrets", &json!({"name": "token", "value": VALUE, "for": [API]})).await,
        admin.post("/v1/secrets", &json!({"name": "token", "value": VALUE, "for": [API], "project": "default"})).await,
        admin.put("/v1/secrets/token", &json!({"value": VALUE, "project": "default"})).await,
        admin.get("/v1/secrets").await,
        admin.post("/v1/secrets", &json!({"name": "token", "value": VALUE, "for": [API]})).await,
        admin.put("/v1/secrets/other", &json!({"value": VALUE})).await,
    ];
    for answer in &answers {
        let text = String::from_utf8_lossy(&answer.body);
        assert!(!text.contains("geheim") && !text.contains("4711") && !text.contains("sealed"), "{text}");
    }
    let [made, of_project, replaced, list, again, missing] = answers;
    let made: SecretView = made.json(StatusCode::CREATED);
    let of_project: SecretView = of_project.json(StatusCode::CREATED);
    let replaced: SecretView = replaced.json(StatusCode::OK);
    assert_eq!((made.version, &made.project, made.name.as_str()), (1, &None, "token"));
    assert_eq!((of_project.version, of_project.project.as_deref()), (1, Some("default")));
    assert_eq!((replaced.id, replaced.version), (of_project.id, 2));
    assert_eq!(list.json::<SecretList>(StatusCode::OK).secrets, [made, replaced]);
    let again = again.problem(ErrorCode::Conflict);
    assert!(again.detail.contains("`holm secret rotate token`"), "{again}");
    let missing = missing.problem(ErrorCode::NotFound);
    assert!(missing.detail.contains("`holm secret set other`"), "{missing}");

    let path = "/v1/secrets/token";
    assert_eq!(admin.delete(path).await.status, StatusCode::NO_CONTENT);
    admin.delete(path).await.problem(ErrorCode::NotFound);
    assert_eq!(listed(&admin).await, [("token".to_owned(), Some("default".to_owned()), 2)]);
    assert_eq!(admin.delete(&format!("{path}?project=default")).await.status, StatusCode::NO_CONTENT);
    let gone = admin.delete(&format!("{path}?project=default")).await.problem(ErrorCode::NotFound);
    assert!(gone.detail.contains("`holm secret set token --project default`"), "{gone}");
    assert_eq!(listed(&admin).await, []);
    for (words, count) in [("a secret was made", 2), ("a secret was replaced", 1), ("a secret was removed", 2)] {
        assert_eq!(log.lines_with(words), count, "{words}");
    }
    assert_eq!((log.lines_with("geheim"), log.lines_with("4711")), (0, 0));
}

#[tokio::test]
async fn members_see_names_and_change_nothing() {
    let world = World::new().await;
    world.admin().post("/v1/secrets", &json!({"name": "token", "value": VALUE, "for": [API]})).await;
    let member = world.member();
    assert_eq!(listed(&member).await.len(), 1);
    let body = json!({"name": "other", "value": VALUE, "for": [API]});
    member.post("/v1/secrets", &body).await.problem(ErrorCode::Forbidden);
    member.put("/v1/secrets/token", &json!({"value": VALUE})).await.problem(ErrorCode::Forbidden);
    let body = json!({"for": ["evil.example"]});
    member.put("/v1/secrets/token/for", &body).await.problem(ErrorCode::Forbidden);
    member.delete("/v1/secrets/token").await.problem(ErrorCode::Forbidden);
    world.agent().get("/v1/secrets").await.problem(ErrorCode::Forbidden);
    assert_eq!(listed(&member).await, [("token".to_owned(), None, 1)]);
    assert_eq!(bound(&member).await, [("token".to_owned(), vec![API.to_owned()])]);
}

#[tokio::test]
async fn a_secret_is_bound_where_it_is_made_and_anew_with_its_value_or_without() {
    let world = World::new().await;
    let admin = world.admin();
    let is_bound = async |rules: &[&str]| {
        assert_eq!(bound(&admin).await, [("token".to_owned(), rules.iter().map(|rule| (*rule).to_owned()).collect())]);
    };
    let body = json!({"name": "token", "value": VALUE, "for": ["GET Api.Example.org:443/v1/", "git.example.org"]});
    admin.post("/v1/secrets", &body).await.json::<SecretView>(StatusCode::CREATED);
    is_bound(&["GET api.example.org/v1", "git.example.org"]).await;
    let path = "/v1/secrets/token";
    let bind: SecretView =
        admin.put(&format!("{path}/for"), &json!({"for": ["git.example.org/team"]})).await.json(StatusCode::OK);
    assert_eq!((bind.version, bind.bound.to_string().as_str()), (1, "git.example.org/team"));
    is_bound(&["git.example.org/team"]).await;
    let kept: SecretView = admin.put(path, &json!({"value": VALUE})).await.json(StatusCode::OK);
    assert_eq!((kept.version, kept.bound), (2, bind.bound));
    is_bound(&["git.example.org/team"]).await;
    let both: SecretView = admin.put(path, &json!({"value": VALUE, "for": ["anywhere"]})).await.json(StatusCode::OK);
    assert_eq!((both.version, both.bound.to_string().as_str()), (3, "anywhere"));
    is_bound(&["anywhere"]).await;
    let missing = admin.put("/v1/secrets/other/for", &json!({"for": [API]})).await.problem(ErrorCode::NotFound);
    assert!(missing.detail.contains("`holm secret set other`"), "{missing}");
}

#[tokio::test]
async fn what_a_secret_cannot_be_bound_to_is_refused_by_its_field() {
    let world = World::new().await;
    let admin = world.admin();
    let made = admin.post("/v1/secrets", &json!({"name": "token", "value": VALUE, "for": [API]})).await;
    assert_eq!(made.status, StatusCode::CREATED);
    for (rules, value, words) in [
        (json!([]), "", "rules such as `api.example.org/v1`, or `anywhere`"),
        (json!(["*.example.org"]), "*.example.org", "by their names"),
        (json!(["public"]), "public", "by their names"),
        (json!(["10.0.0.0/8"]), "10.0.0.0/8", "by their names"),
        (json!(["https://api.example.org"]), "https://api.example.org", "is a URL"),
        (json!([API, "anywhere"]), "api.example.org/v1, anywhere", "stands alone"),
        (json!(["Anywhere"]), "Anywhere", "the word for all hosts"),
    ] {
        for answer in [
            admin.post("/v1/secrets", &json!({"name": "other", "value": VALUE, "for": rules})).await,
            admin.put("/v1/secrets/token", &json!({"value": VALUE, "for": rules})).await,
            admin.put("/v1/secrets/token/for", &json!({"for": rules})).await,
        ] {
            let problem = answer.problem(ErrorCode::InvalidField);
            assert_eq!((problem.field.as_deref(), problem.value.as_deref()), (Some("for"), Some(value)), "{rules}");
            assert!(problem.detail.contains(words), "{rules}: {problem}");
        }
    }
    for answer in [
        admin.post("/v1/secrets", &json!({"name": "other", "value": VALUE})).await,
        admin.put("/v1/secrets/token/for", &json!({})).await,
    ] {
        let problem = answer.problem(ErrorCode::InvalidField);
        assert_eq!(problem.field.as_deref(), Some("for"));
        assert!(problem.detail.contains("or `anywhere`"), "{problem}");
    }
    assert_eq!(bound(&admin).await, [("token".to_owned(), vec![API.to_owned()])]);
}

#[tokio::test]
async fn another_org_neither_sees_nor_changes_them() {
    let world = World::new().await;
    let (admin, other) = (world.admin(), world.other_org());
    for project in [None, Some("default")] {
        let body = json!({"name": "token", "value": VALUE, "for": [API], "project": project});
        admin.post("/v1/secrets", &body).await.json::<SecretView>(StatusCode::CREATED);
    }
    let before = listed(&admin).await;
    assert_eq!(listed(&other).await, []);
    for project in [None, Some("default")] {
        let body = json!({"value": "another-value-0815", "project": project});
        other.put("/v1/secrets/token", &body).await.problem(ErrorCode::NotFound);
        let body = json!({"for": ["evil.example"], "project": project});
        let unbound = other.put("/v1/secrets/token/for", &body).await.problem(ErrorCode::NotFound);
        assert!(!unbound.to_string().contains("api.example.org"), "{unbound}");
        let query = project.map(|name| format!("?project={name}")).unwrap_or_default();
        other.delete(&format!("/v1/secrets/token{query}")).await.problem(ErrorCode::NotFound);
    }
    let own: SecretView = other
        .post("/v1/secrets", &json!({"name": "token", "value": VALUE, "for": [API]}))
        .await
        .json(StatusCode::CREATED);
    assert_eq!(own.version, 1, "the name is free there");
    assert_eq!(listed(&admin).await, before);
}

#[tokio::test]
async fn what_is_no_secret_is_refused_by_its_field_and_not_told() {
    let world = World::new().await;
    let (admin, log) = (world.admin(), Log::default());
    let _kept = log.keep(Level::TRACE);
    admin.post("/v1/secrets", &json!({"name": "token", "value": VALUE, "for": [API]})).await;
    for (value, why) in [
        ("changeme", "placeholder"),
        ("your-api-key", "placeholder"),
        ("geheim", "shorter than 8 bytes"),
        ("geheimnis\ngeheimnis", "line break"),
        (" geheimnis", "blank"),
        (&"geheim".repeat(1_000), "longer than 4096 bytes"),
    ] {
        for answer in [
            admin.post("/v1/secrets", &json!({"name": "other", "value": value, "for": [API]})).await,
            admin.put("/v1/secrets/token", &json!({"value": value})).await,
        ] {
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            assert!(!text.contains(value) && !text.contains("geheim"), "{text}");
            let problem = answer.problem(ErrorCode::InvalidField);
            assert_eq!((problem.field.as_deref(), problem.value.as_deref()), (Some("value"), Some("[redacted]")));
            assert!(problem.detail.contains(why), "{value}: {problem}");
        }
    }
    let of_fields = [
        (json!({"name": "a b", "value": VALUE}), "name"),
        (json!({"name": "", "value": VALUE}), "name"),
        (json!({"name": "other", "value": VALUE, "for": [API], "project": "nope"}), "project"),
        (json!({"name": "other", "value": VALUE, "for": [API], "project": "a\u{0}b"}), "project"),
        (json!({"name": "other", "valeu": VALUE}), "valeu"),
        (json!({"name": "other", "value": [VALUE]}), "value"),
    ];
    for (body, field) in of_fields {
        let problem = admin.post("/v1/secrets", &body).await.problem(ErrorCode::InvalidField);
        assert_eq!(problem.field.as_deref(), Some(field), "{body}");
        assert!(!format!("{problem:?}").contains("geheim"), "{problem:?}");
    }
    for path in ["/v1/secrets/a%20b", "/v1/secrets/1"] {
        let problem = admin.put(path, &json!({"value": VALUE})).await.problem(ErrorCode::InvalidField);
        assert_eq!(problem.field.as_deref(), Some("name"));
    }
    let unknown = admin.delete("/v1/secrets/token?project=nope").await.problem(ErrorCode::InvalidField);
    assert_eq!((unknown.field.as_deref(), unknown.value.as_deref()), (Some("project"), Some("nope")));
    assert_eq!(listed(&admin).await, [("token".to_owned(), None, 1)], "nothing was changed");
    assert_eq!(log.lines_with("geheim"), 0);
}
