//! `GET /.well-known/jwks.json`: the keys that verify, for everybody.

use std::sync::Arc;

use axum::{
    extract::State,
    response::{IntoResponse as _, Response},
};
use holm_api::keys::KeySet;
use http::{HeaderValue, header::CACHE_CONTROL};

use crate::{app::App, ops, problem::Failure};

/// For how long the set may be kept: who keeps it hears of a withdrawal that much later.
const CACHE: HeaderValue = HeaderValue::from_static("public, max-age=10");

/// The keys that verify
///
/// A JSON Web Key Set (RFC 7517, RFC 8037): the key that signs tokens, and those of before until what they signed has expired.
#[utoipa::path(
    get, path = "/.well-known/jwks.json", tag = "keys", operation_id = "jwks", security(()),
    responses((status = 200, description = "The set; to be kept for ten seconds at most.", body = KeySet))
)]
pub async fn jwks(State(app): State<Arc<App>>) -> Result<Response, Failure> {
    let mut response = axum::Json(ops::keys::key_set(&app).await?).into_response();
    response.headers_mut().insert(CACHE_CONTROL, CACHE);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use http::StatusCode;
    use ring::signature::{ED25519, UnparsedPublicKey};

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn whoever_has_the_set_can_verify_a_token() {
        let world = World::new().await;
        let token = world.claim_token().await;
        let answer = world.nobody().get("/.well-known/jwks.json").await;
        assert_eq!(answer.headers[CACHE_CONTROL], "public, max-age=10");
        let set: serde_json::Value = answer.json(StatusCode::OK);
        let key = &set["keys"][0];
        for (member, value) in [("kty", "OKP"), ("crv", "Ed25519"), ("alg", "EdDSA"), ("use", "sig")] {
            assert_eq!(key[member], value, "{key}");
        }
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let header = URL_SAFE_NO_PAD.decode(signed.split_once('.').unwrap().0).unwrap();
        let header: serde_json::Value = serde_json::from_slice(&header).unwrap();
        assert_eq!(header["kid"], key["kid"]);
        let public = URL_SAFE_NO_PAD.decode(key["x"].as_str().unwrap()).unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        UnparsedPublicKey::new(&ED25519, public).verify(signed.as_bytes(), &signature).unwrap();
    }
}
