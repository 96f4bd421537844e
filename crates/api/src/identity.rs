//! How a host proves who it is: the texts that it signs with its key, for those who sign and those who verify alike.
//!
//! What always holds: what is signed for one purpose is refused for another, by its first bytes; an enrolment binds agent, key
//! and join token; what is signed to be given a session names the deployment for which it is.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use holm_domain::{AgentId, enrol::HostPublicKey};
use serde::{Deserialize, Serialize};

use crate::signed_token::SignedToken;

/// The `typ` of the header of what a host signs to be given a session.
pub const HOST_TYP: &str = "holm-host+jwt";
/// For whom it is.
pub const SESSION_AUDIENCE: &str = "holm:session";
/// How every text begins that a host signs to enrol. No JSON web token begins so.
const ENROL_BEGINS: &str = "holm enrolment 1";

/// `POST /agent/v1/enrol`: the body; the join token is the bearer token of the request. Repeating it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Enrol {
    /// The identity that the agent drew once and keeps in its state folder.
    #[schema(value_type = String)]
    pub agent: AgentId,
    /// The public half of its key (Ed25519): 43 characters of base 64 (RFC 4648 §5).
    #[schema(value_type = String)]
    pub key: HostPublicKey,
    /// A signature by that key over the lines `holm enrolment 1`, agent, key, and SHA-256 of the join token in base 64, each with
    /// its line feed: 86 characters of base 64.
    pub proof: String,
}

/// The answer to an enrolment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Enrolled {
    /// Which deployment it is, as it says it in tokens: what the host signs from now on names it.
    pub issuer: String,
}

/// `POST /agent/v1/session`: the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Session {
    /// What opens the agent protocol to this agent; its holder need not read it.
    #[schema(value_type = String)]
    pub token: SignedToken,
    /// How long it lasts, in milliseconds from before it was asked for.
    pub life_ms: u64,
}

/// What an agent signs to enrol.
pub fn enrol_text(agent: AgentId, key: HostPublicKey, join_token_digest: &[u8; 32]) -> String {
    let digest = URL_SAFE_NO_PAD.encode(join_token_digest);
    format!("{ENROL_BEGINS}\n{agent}\n{key}\n{digest}\n")
}

/// The claims of what a host signs to be given a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostClaims {
    /// The agent.
    pub iss: AgentId,
    /// [`SESSION_AUDIENCE`].
    pub aud: String,
    /// The deployment that is to take it: [`Enrolled::issuer`].
    pub deployment: String,
    /// When it was signed, in seconds since the Unix epoch.
    pub iat: i64,
    /// When it expires.
    pub exp: i64,
}

#[derive(Serialize)]
struct HostHeader {
    alg: &'static str,
    kid: HostPublicKey,
    typ: &'static str,
}

/// The part of a JSON web token (RFC 7515 §7.1) that a host signs with `key` to be given a session; [`assertion`] is the whole
/// of it.
pub fn assertion_text(key: HostPublicKey, claims: &HostClaims) -> Result<String, serde_json::Error> {
    let header = HostHeader { alg: "EdDSA", kid: key, typ: HOST_TYP };
    let [header, claims] = [serde_json::to_vec(&header)?, serde_json::to_vec(claims)?];
    Ok(format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims)))
}

/// The JSON web token of a signed text and its signature.
pub fn assertion(text: &str, signature: &[u8]) -> String {
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_to_enrol_is_nothing_that_is_signed_for_a_session() {
        let [agent, another]: [AgentId; 2] = ['1', '2'].map(|digit| format!("agt_{digit:0>26}").parse().unwrap());
        let text = enrol_text(agent, HostPublicKey([1; 32]), &[2; 32]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[0], lines[1]), (4, "holm enrolment 1", agent.to_string().as_str()));
        for other in [
            enrol_text(another, HostPublicKey([1; 32]), &[2; 32]),
            enrol_text(agent, HostPublicKey([2; 32]), &[2; 32]),
            enrol_text(agent, HostPublicKey([1; 32]), &[3; 32]),
        ] {
            assert_ne!(text, other, "each part is bound");
        }
        let claims =
            HostClaims { iss: agent, aud: SESSION_AUDIENCE.into(), deployment: "holm:org_a".into(), iat: 1, exp: 2 };
        assert!(assertion_text(HostPublicKey([1; 32]), &claims).unwrap().starts_with("eyJ"));
    }
}
