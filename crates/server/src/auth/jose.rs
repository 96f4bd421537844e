//! Signed tokens: JSON web tokens (RFC 7519) in the compact form of RFC 7515, signed by Ed25519 (RFC 8037), and nothing else
//! that JOSE can be.
//!
//! What always holds: there is one algorithm, which the header has to name and does not choose; the header has `alg`, `kid`
//! and `typ` and no other member; each kind of token has a `typ` and an audience of its own, so that none is taken for
//! another; nothing of a token is read before its signature holds, but which key is to be asked; a token is not longer than
//! [`SIGNED_BYTES_MAX`].
//!
//! Left out: which keys there are ([`super::keyring`]), what a kind of token stands for.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use holm_api::{
    identity::{HOST_TYP, SESSION_AUDIENCE},
    signed_token::SignedToken,
};
use holm_domain::{
    ErrorCode, KeyId, UnixMicros,
    enrol::{ASSERTION_LIFE_MAX, ASSERTION_MARGIN, SESSION_LIFE},
    keys::SIGNED_LIFE_MAX,
};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use secrecy::SecretString;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::problem::Failure;

/// The longest signed token, in bytes.
pub const SIGNED_BYTES_MAX: usize = 2_048;
/// How every signed token begins: `{"` in base 64.
const BEGIN: &str = "eyJ";
const ALGORITHM: &str = "EdDSA";
const MICROS_PER_S: i64 = 1_000_000;

/// A kind of signed token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It stands for one run under one lease.
    Run,
    /// It proves which host asks for a session; the host signs it, and no server.
    Host,
    /// It stands for one agent that has a key.
    Session,
}

impl Kind {
    /// The `typ` of its header (RFC 8725 §3.11).
    pub const fn typ(self) -> &'static str {
        match self {
            Kind::Run => "holm-run+jwt",
            Kind::Host => HOST_TYP,
            Kind::Session => "holm-session+jwt",
        }
    }

    /// Its audience.
    pub const fn audience(self) -> &'static str {
        match self {
            Kind::Run => "holm:run",
            Kind::Host => SESSION_AUDIENCE,
            Kind::Session => "holm:agent",
        }
    }

    /// For how long it is given out at most.
    pub const fn life_max(self) -> Duration {
        match self {
            Kind::Run => SIGNED_LIFE_MAX,
            Kind::Host => ASSERTION_LIFE_MAX,
            Kind::Session => SESSION_LIFE,
        }
    }
}

/// Why a signed token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is longer than any that was given out.
    #[error("the signed token is longer than {SIGNED_BYTES_MAX} bytes")]
    TooLong,
    /// It has not the form of one that was given out.
    #[error("the signed token is not of the form that is given out here")]
    Malformed,
    /// It is of another kind.
    #[error("the signed token is of another kind than is asked for here")]
    OtherKind,
    /// Its key is unknown, retired or withdrawn.
    #[error("the key that signed the token is unknown, retired or withdrawn; ask for a new token")]
    Key,
    /// The signature does not hold.
    #[error("the signature of the token does not hold")]
    Signature,
    /// It was given out by another deployment, or for another audience.
    #[error("the signed token is for somebody else")]
    Audience,
    /// It has expired.
    #[error("the signed token has expired; ask for a new one")]
    Expired,
    /// Its times cannot be.
    #[error("the times of the signed token cannot be: it was given out in the future, or for longer than any is")]
    Times,
    /// What a host signed is for no time, or for longer than anything is.
    #[error(
        "what the host signed is for {life_s} s (from `iat` to `exp`), and may be for 0 to {longest} s",
        longest = ASSERTION_LIFE_MAX.as_secs()
    )]
    Span {
        /// For how long.
        life_s: i128,
    },
    /// It was signed by a host whose clock is another one.
    #[error(
        "the clocks are {apart} s apart, and may be by {margin} s: by that of the host it was {host} when it signed this \
         (`iat`), by that of the server it is {server}, both in seconds since 1970; set the one that is wrong (`timedatectl`)",
        apart = host.abs_diff(*server),
        margin = ASSERTION_MARGIN.as_secs()
    )]
    Clocks {
        /// What that of the host showed.
        host: i64,
        /// What that of the server shows.
        server: i64,
    },
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Failure::new(ErrorCode::Unauthenticated, refused.to_string())
    }
}

/// A pair of keys that signs.
#[derive(Debug)]
pub struct SigningPair {
    id: KeyId,
    pair: Ed25519KeyPair,
}

impl SigningPair {
    /// The pair whose private half (RFC 8032 §5.1.5) is `seed`.
    pub fn of(id: KeyId, seed: &Zeroizing<[u8; 32]>) -> Option<Self> {
        Ed25519KeyPair::from_seed_unchecked(&seed[..]).ok().map(|pair| Self { id, pair })
    }

    /// The public half.
    pub fn public(&self) -> Option<[u8; 32]> {
        self.pair.public_key().as_ref().try_into().ok()
    }

    /// Which key it is.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// A token of `kind` with these claims.
    pub fn sign(&self, kind: Kind, claims: &impl Serialize) -> Result<SignedToken, serde_json::Error> {
        let header = Header { alg: ALGORITHM.to_owned(), kid: self.id, typ: kind.typ().to_owned() };
        let [header, claims] = [serde_json::to_vec(&header)?, serde_json::to_vec(claims)?];
        let mut token = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.pair.sign(token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(SecretString::from(token).into())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header<K> {
    alg: String,
    kid: K,
    typ: String,
}

/// Whether a text has the form of a signed token, as no opaque one has.
pub fn is_signed(text: &str) -> bool {
    text.starts_with(BEGIN) && text.bytes().filter(|byte| *byte == b'.').count() == 2
}

/// By which key a token of `kind` says that it is signed; nothing is known of that yet.
pub fn key_named<K: DeserializeOwned>(token: &str, kind: Kind) -> Result<K, Refused> {
    if token.len() > SIGNED_BYTES_MAX {
        return Err(Refused::TooLong);
    }
    let (header, _) = token.split_once('.').ok_or(Refused::Malformed)?;
    let header: Header<K> = decoded(header)?;
    if header.alg != ALGORITHM {
        return Err(Refused::Malformed);
    }
    if header.typ != kind.typ() {
        return Err(Refused::OtherKind);
    }
    Ok(header.kid)
}

/// The claims of a token of `kind` whose signature holds under the key that `key_of` knows by its id.
pub fn verify<C: DeserializeOwned, K: DeserializeOwned>(
    token: &str,
    kind: Kind,
    key_of: impl FnOnce(K) -> Option<[u8; 32]>,
) -> Result<C, Refused> {
    // Another kind names its keys otherwise, and is to be told that it is another kind.
    let kid = key_named::<serde_json::Value>(token, kind)?;
    let kid = serde_json::from_value(kid).map_err(|_| Refused::Malformed)?;
    let (signed, signature) = token.rsplit_once('.').ok_or(Refused::Malformed)?;
    let (_, claims) = signed.split_once('.').ok_or(Refused::Malformed)?;
    let public = key_of(kid).ok_or(Refused::Key)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Refused::Malformed)?;
    UnparsedPublicKey::new(&ED25519, public).verify(signed.as_bytes(), &signature).map_err(|_| Refused::Signature)?;
    decoded(claims)
}

fn decoded<T: DeserializeOwned>(part: &str) -> Result<T, Refused> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| Refused::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| Refused::Malformed)
}

/// The second of an instant, as claims have it.
pub fn seconds(at: UnixMicros) -> i64 {
    at.0.div_euclid(MICROS_PER_S)
}

/// The instant of a second.
pub fn instant(seconds: i64) -> UnixMicros {
    UnixMicros(seconds.saturating_mul(MICROS_PER_S))
}

/// The claims that every kind has.
#[derive(Debug, Clone, Copy)]
pub struct Standard<'a> {
    /// Who gave it out.
    pub iss: &'a str,
    /// For whom.
    pub aud: &'a str,
    /// When it was given out.
    pub iat: i64,
    /// When it expires.
    pub exp: i64,
}

impl Standard<'_> {
    /// Refuses what a host did not sign a moment ago, for the deployment `issuer`; `now` is the time of day, as that by which
    /// the host signed.
    pub fn check_of_host(&self, issuer: &str, now: UnixMicros) -> Result<(), Refused> {
        if self.iss != issuer || self.aud != Kind::Host.audience() {
            return Err(Refused::Audience);
        }
        let (life_s, server) = (i128::from(self.exp) - i128::from(self.iat), seconds(now));
        if !(0..=i128::from(ASSERTION_LIFE_MAX.as_secs())).contains(&life_s) {
            return Err(Refused::Span { life_s });
        }
        if server.abs_diff(self.iat) > ASSERTION_MARGIN.as_secs() {
            return Err(Refused::Clocks { host: self.iat, server });
        }
        if server >= self.exp { Err(Refused::Expired) } else { Ok(()) }
    }

    /// Refuses what is not given out by `issuer` as `kind`, or does not live at `now`; clocks are apart by at most `margin`.
    pub fn check(&self, kind: Kind, issuer: &str, now: UnixMicros, margin: Duration) -> Result<(), Refused> {
        if self.iss != issuer || self.aud != kind.audience() {
            return Err(Refused::Audience);
        }
        let longest = i64::try_from(kind.life_max().as_secs()).unwrap_or(i64::MAX);
        let life = self.exp.checked_sub(self.iat);
        if instant(self.iat) > now.plus(margin) || life.is_none_or(|life| !(0..=longest).contains(&life)) {
            return Err(Refused::Times);
        }
        if now >= instant(self.exp) {
            return Err(Refused::Expired);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ring::hmac;
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::*;

    fn pair(number: u8) -> SigningPair {
        SigningPair::of(KeyId::from_uuid(Uuid::from_u128(number.into())), &Zeroizing::new([number; 32])).unwrap()
    }

    type Claims = BTreeMap<String, u64>;

    fn verified(token: &str) -> Result<Claims, Refused> {
        let known = pair(1);
        verify(token, Kind::Run, |id: KeyId| known.public().filter(|_| id == known.id()))
    }

    fn claims() -> Claims {
        [("fence".to_owned(), 7)].into()
    }

    fn token_of(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = URL_SAFE_NO_PAD.encode(sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    fn header() -> Value {
        json!({"alg": "EdDSA", "kid": pair(1).id(), "typ": "holm-run+jwt"})
    }

    fn with(member: &str, value: Value) -> Value {
        let mut header = header();
        header[member] = value;
        header
    }

    #[test]
    fn what_was_signed_is_verified_and_told_from_opaque_tokens_by_its_form() {
        let token = pair(1).sign(Kind::Run, &claims()).unwrap();
        assert_eq!(verified(token.expose()), Ok(claims()));
        assert!(is_signed(token.expose()));
        for other in ["holm_abc", "holm_a.b.c", "eyJ.a", "eyJ.a.b.c", ""] {
            assert!(!is_signed(other), "{other}");
        }
    }

    #[test]
    fn another_algorithm_is_refused_whatever_its_signature() {
        let public = pair(1).public().unwrap();
        let mac = |text: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &public), text).as_ref().to_vec();
        for algorithm in ["none", "None", "HS256", "ES256", "RS256", "eddsa", "Ed25519", ""] {
            let header = with("alg", algorithm.into());
            let signed = |text: &[u8]| pair(1).pair.sign(text).as_ref().to_vec();
            for token in [
                token_of(&header, &json!(claims()), mac),
                token_of(&header, &json!(claims()), |_| Vec::new()),
                token_of(&header, &json!(claims()), signed),
            ] {
                assert_eq!(verified(&token), Err(Refused::Malformed), "{algorithm}");
            }
        }
        let named_right = token_of(&header(), &json!(claims()), mac);
        assert_eq!(verified(&named_right), Err(Refused::Signature));
    }

    #[test]
    fn another_key_kind_or_header_is_refused() {
        let signed = |text: &[u8]| pair(1).pair.sign(text).as_ref().to_vec();
        let of = |header: &Value| verified(&token_of(header, &json!(claims()), signed));
        assert_eq!(of(&header()), Ok(claims()));
        assert_eq!(of(&with("kid", json!(pair(2).id()))), Err(Refused::Key));
        assert_eq!(of(&with("kid", "../../etc/passwd".into())), Err(Refused::Malformed));
        for typ in ["JWT", "holm-host+jwt", "at+jwt", ""] {
            assert_eq!(of(&with("typ", typ.into())), Err(Refused::OtherKind), "{typ}");
        }
        for (member, value) in
            [("crit", json!(["b64"])), ("jwk", json!({})), ("jku", json!("http://x")), ("b64", json!(false))]
        {
            assert_eq!(of(&with(member, value)), Err(Refused::Malformed), "{member}");
        }
        let theirs = pair(2).sign(Kind::Run, &claims()).unwrap();
        assert_eq!(verified(theirs.expose()), Err(Refused::Key));
        let forged = token_of(&header(), &json!(claims()), |text| pair(2).pair.sign(text).as_ref().to_vec());
        assert_eq!(verified(&forged), Err(Refused::Signature), "another key under the id of a known one");
    }

    #[test]
    fn no_kind_is_taken_for_another_and_each_has_its_longest_life() {
        let kinds = [Kind::Run, Kind::Host, Kind::Session];
        let known = pair(1);
        for signed in kinds {
            let token = known.sign(signed, &claims()).unwrap();
            for asked in kinds {
                let key_of = |id: KeyId| known.public().filter(|_| id == known.id());
                let told = verify::<Claims, _>(token.expose(), asked, key_of);
                let expected = if signed == asked { Ok(claims()) } else { Err(Refused::OtherKind) };
                assert_eq!(told, expected, "{signed:?} for {asked:?}");
            }
            let life = i64::try_from(signed.life_max().as_secs()).unwrap();
            let checked = |exp, aud| {
                let standard = Standard { iss: "holm:a", aud, iat: 100, exp };
                standard.check(signed, "holm:a", UnixMicros(100_000_000), Duration::ZERO)
            };
            assert_eq!(checked(100 + life, signed.audience()), Ok(()));
            assert_eq!(checked(101 + life, signed.audience()), Err(Refused::Times), "{signed:?}");
            for other in kinds.into_iter().filter(|other| *other != signed) {
                assert_eq!(checked(100 + life, other.audience()), Err(Refused::Audience));
            }
        }
    }

    #[test]
    fn no_byte_of_a_token_can_be_changed() {
        let token = pair(1).sign(Kind::Run, &claims()).unwrap();
        let token = token.expose();
        for at in 0..token.len() {
            let mut changed = token.as_bytes().to_vec();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(changed == token || verified(&changed).is_err(), "byte {at}");
            assert!(verified(&token[..at]).is_err(), "cut at {at}");
        }
        for odd in [format!("{token}="), format!("{token}."), format!(".{token}"), token.replace('.', "..")] {
            assert!(verified(&odd).is_err(), "{odd}");
        }
        let padded = format!("{token}{}", "A".repeat(SIGNED_BYTES_MAX));
        assert_eq!(verified(&padded), Err(Refused::TooLong));
    }

    #[test]
    fn what_a_host_signs_is_of_this_half_minute_on_either_side() {
        let checked = |iat, exp, now: i64| {
            let standard = Standard { iss: "holm:a", aud: SESSION_AUDIENCE, iat, exp };
            standard.check_of_host("holm:a", instant(now))
        };
        for (iat, exp, now) in [(100, 160, 100), (100, 160, 130), (100, 160, 70), (100, 131, 130), (100, 101, 100)] {
            assert_eq!(checked(iat, exp, now), Ok(()), "{iat} {exp} {now}");
        }
        for (iat, now) in [(100, 131), (100, 69), (i64::MAX - 60, 0)] {
            let told = checked(iat, iat + 60, now).unwrap_err();
            assert_eq!(told, Refused::Clocks { host: iat, server: now });
            let told = told.to_string();
            assert!(told.contains(&format!("{} s apart", iat.abs_diff(now))) && told.contains("by 30 s"), "{told}");
            assert!(told.contains(&iat.to_string()) && told.contains(&now.to_string()), "{told}");
        }
        for (iat, exp) in [(100, 161), (100, 99), (i64::MIN, i64::MAX), (i64::MAX, i64::MIN)] {
            let life_s = i128::from(exp) - i128::from(iat);
            assert_eq!(checked(iat, exp, 100), Err(Refused::Span { life_s }));
        }
        assert_eq!(checked(100, 110, 110), Err(Refused::Expired));
        assert_eq!(checked(100, 100, 100), Err(Refused::Expired));
        for (iss, aud) in [("holm:b", SESSION_AUDIENCE), ("holm:a", "holm:run")] {
            let standard = Standard { iss, aud, iat: 100, exp: 160 };
            assert_eq!(standard.check_of_host("holm:a", instant(100)), Err(Refused::Audience));
        }
    }

    #[test]
    fn a_token_lives_from_when_it_was_given_out_until_it_expires() {
        let margin = Duration::from_secs(5);
        let checked = |iat, exp, now: i64| {
            let standard = Standard { iss: "holm:a", aud: "holm:run", iat, exp };
            standard.check(Kind::Run, "holm:a", UnixMicros(now), margin)
        };
        assert_eq!(checked(100, 160, 100_000_000), Ok(()));
        assert_eq!(checked(100, 160, 159_999_999), Ok(()));
        assert_eq!(checked(100, 160, 160_000_000), Err(Refused::Expired));
        assert_eq!(checked(105, 160, 100_000_000), Ok(()), "clocks are apart");
        assert_eq!(checked(106, 160, 100_000_000), Err(Refused::Times), "from the future");
        assert_eq!(checked(100, 7_301, 100_000_000), Err(Refused::Times), "longer than any is given out for");
        assert_eq!(checked(100, 99, 0), Err(Refused::Times));
        assert_eq!(checked(i64::MIN, i64::MAX, 0), Err(Refused::Times));
        for (iss, aud) in [("holm:b", "holm:run"), ("holm:a", "holm:host"), ("", "")] {
            let standard = Standard { iss, aud, iat: 100, exp: 160 };
            let refused = standard.check(Kind::Run, "holm:a", UnixMicros(100_000_000), margin);
            assert_eq!(refused, Err(Refused::Audience));
        }
    }
}
