//! The key of this host: made once, in the agent's folder, and never sent anywhere.
//!
//! What always holds: nobody but the owner of the folder may read the file; it is there whole or not at all, and nothing
//! replaces it; one that is damaged, or that others may read, is told and never made anew by itself, since the server hears
//! this host under that key alone. What says for which deployment the key is enrolled is written after the server has said so,
//! so an enrolment whose answer was lost is repeated with the same key.
//!
//! Left out: what is said to the server ([`crate::control`]).

use std::{fmt, io, path::Path};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use holm_api::identity::{Enrol, HostClaims, SESSION_AUDIENCE, assertion, assertion_text, enrol_text};
use holm_domain::{
    AgentId,
    enrol::{ASSERTION_LIFE_MAX, HostPublicKey},
};
use holm_runtime::crash::effect;
use ring::{
    digest::{SHA256, digest},
    signature::{Ed25519KeyPair, KeyPair as _},
};
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use crate::{
    clock,
    folder::{Damage, FolderError, at, read_own, read_secret, settle_once, write_durably, write_once},
    ids::refused,
};

/// The file with the key: its seed (RFC 8032 §5.1.5) and its public half, which shows whether the file is whole.
const KEY_NAME: &str = "key";
/// The file that says which agent is enrolled with the key, and in which deployment.
const ENROLLED_NAME: &str = "enrolled";
const SEED_BYTES: usize = 32;
const KEY_BYTES: usize = 2 * SEED_BYTES;
/// The most that is read of the second file, in bytes.
const ENROLLED_BYTES_MAX: u64 = 256;

const MODE_WAY_OUT: &str = "`chmod 600` it if nobody has read it; otherwise have the key of this host revoked (`holm hosts revoke \
                            HOST`), remove `key` and `enrolled`, and give the agent a new join token";
const KEY_WAY_OUT: &str = "put the right file in its place; or have the key of this host revoked (`holm hosts revoke HOST`), \
                           remove `key` and `enrolled`, and give the agent a new join token (`holm hosts join NAME`)";
const ENROLLED_WAY_OUT: &str = "put the right file in its place; or have the key of this host revoked (`holm hosts revoke HOST`), \
                                remove `key` and `enrolled`, and give the agent a new join token (`holm hosts join NAME`)";

/// The key of this host.
pub(crate) struct OwnKey {
    pair: Ed25519KeyPair,
    public: HostPublicKey,
}

impl fmt::Debug for OwnKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnKey").field("public", &self.public).finish_non_exhaustive()
    }
}

/// For which agent and in which deployment the key is enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Enrolment {
    pub(crate) agent: AgentId,
    pub(crate) issuer: String,
}

impl Enrolment {
    /// One in the deployment `issuer`, if that is the name of one and may stand in the file.
    pub(crate) fn new(agent: AgentId, issuer: &str) -> Option<Self> {
        let is_named =
            issuer.starts_with("holm:") && !issuer.contains(|it: char| it.is_whitespace() || it.is_control());
        let enrolment = Self { agent, issuer: issuer.to_owned() };
        (is_named && enrolment.line().len() as u64 <= ENROLLED_BYTES_MAX).then_some(enrolment)
    }

    fn line(&self) -> String {
        format!("{} {}\n", self.agent, self.issuer)
    }
}

impl OwnKey {
    fn of_seed(seed: &[u8]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).ok()?;
        let public = HostPublicKey(pair.public_key().as_ref().try_into().ok()?);
        Some(Self { pair, public })
    }

    /// Its public half.
    pub(crate) fn public(&self) -> HostPublicKey {
        self.public
    }

    /// What enrols it for `agent` with a join token.
    pub(crate) fn enrolment(&self, agent: AgentId, join_token: &SecretString) -> Enrol {
        let mut join_digest = [0; 32];
        join_digest.copy_from_slice(digest(&SHA256, join_token.expose_secret().as_bytes()).as_ref());
        let text = enrol_text(agent, self.public, &join_digest);
        Enrol { agent, key: self.public, proof: URL_SAFE_NO_PAD.encode(self.pair.sign(text.as_bytes())) }
    }

    /// What proves for a minute, to the deployment in which it is enrolled, that this is the host.
    pub(crate) fn assertion(&self, enrolment: &Enrolment) -> Result<SecretString, serde_json::Error> {
        let since = clock::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let iat = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        let life = i64::try_from(ASSERTION_LIFE_MAX.as_secs()).unwrap_or(0);
        let claims = HostClaims {
            iss: enrolment.agent,
            aud: SESSION_AUDIENCE.to_owned(),
            deployment: enrolment.issuer.clone(),
            iat,
            exp: iat.saturating_add(life),
        };
        let text = assertion_text(self.public, &claims)?;
        Ok(assertion(&text, self.pair.sign(text.as_bytes()).as_ref()).into())
    }
}

/// The key of this host: made once, and kept in its folder.
pub(crate) fn load_or_make(dir: &Path) -> Result<OwnKey, FolderError> {
    if let Some(key) = load(dir)? {
        // Whoever made it may have died before that was done.
        effect("agent.key_settled", || settle_once(dir, KEY_NAME))?;
        return Ok(key);
    }
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    rand::fill(&mut bytes[..SEED_BYTES]);
    let path = dir.join(KEY_NAME);
    let unmade = || io::Error::other("no key pair comes of it");
    let key = at(&path, OwnKey::of_seed(&bytes[..SEED_BYTES]).ok_or_else(unmade))?;
    bytes[SEED_BYTES..].copy_from_slice(&key.public.0);
    effect("agent.key", || write_once(dir, KEY_NAME, &bytes[..]))?;
    Ok(key)
}

/// The key of this host, if it has one.
pub(crate) fn load(dir: &Path) -> Result<Option<OwnKey>, FolderError> {
    let path = dir.join(KEY_NAME);
    let bytes = match read_secret(&path, KEY_BYTES as u64) {
        // A new one in its place would be refused.
        Ok(None) if is_enrolled(dir) => {
            let gone = io::Error::other("it is gone, and this host is enrolled with it");
            return Err(refused(&path, gone, KEY_WAY_OUT));
        }
        Ok(None) => return Ok(None),
        Ok(Some(bytes)) => bytes,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && error.raw_os_error().is_none() => {
            return Err(refused(&path, error, MODE_WAY_OUT));
        }
        Err(error) => return Err(refused(&path, error, KEY_WAY_OUT)),
    };
    let damaged = |problem: &str| refused(&path, io::Error::other(problem.to_owned()), KEY_WAY_OUT);
    if bytes.len() != KEY_BYTES {
        return Err(damaged(&format!("it has {} bytes, not the {KEY_BYTES} of a key", bytes.len())));
    }
    let (seed, public) = bytes.split_at(SEED_BYTES);
    let key = OwnKey::of_seed(seed).filter(|key| key.public.0[..] == *public);
    key.map(Some).ok_or_else(|| damaged("its two halves do not belong together, so it is damaged"))
}

/// What was told of the key when it was enrolled, if it was.
pub(crate) fn enrolment(dir: &Path) -> Result<Option<Enrolment>, FolderError> {
    let path = dir.join(ENROLLED_NAME);
    let damaged = |error: io::Error| refused(&path, error, ENROLLED_WAY_OUT);
    let Some(bytes) = read_own(&path, ENROLLED_BYTES_MAX).map_err(damaged)? else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes);
    let parsed = text.trim_end().split_once(' ');
    let parsed = parsed.and_then(|(agent, issuer)| Enrolment::new(agent.parse().ok()?, issuer));
    parsed.map(Some).ok_or_else(|| damaged(io::Error::other("it does not say for which agent the key is enrolled")))
}

/// Whether the agent of the folder `dir` has enrolled, so that it speaks with a key of its own.
pub fn is_enrolled(dir: &Path) -> bool {
    dir.join(ENROLLED_NAME).symlink_metadata().is_ok()
}

/// Notes that the key is enrolled.
pub(crate) fn note_enrolment(dir: &Path, enrolment: &Enrolment) -> Result<(), FolderError> {
    effect("agent.enrolled", || write_durably(dir, ENROLLED_NAME, enrolment.line().as_bytes()))
}

/// Refuses a key that is enrolled for another agent: its identity was drawn anew, or brought from elsewhere.
pub(crate) fn for_agent(dir: &Path, agent: AgentId, enrolment: Enrolment) -> Result<Enrolment, FolderError> {
    if enrolment.agent == agent {
        return Ok(enrolment);
    }
    let problem = format!("the key is enrolled for {}, and the agent of this folder is {agent}", enrolment.agent);
    let way_out = "write the id of before into `id`; or remove `key` and `enrolled`, and give the agent a new join token \
                   (`holm hosts join NAME`)";
    Err(FolderError::Damaged(Damage { path: dir.join(ENROLLED_NAME), problem, way_out }))
}

/// What of the key and its enrolment keeps `agent` from starting, if that is known.
pub(crate) fn examine(dir: &Path, agent: Option<AgentId>) -> impl Iterator<Item = FolderError> {
    let enrolled = match (agent, enrolment(dir)) {
        (_, Err(error)) => Some(error),
        (Some(agent), Ok(Some(enrolment))) => for_agent(dir, agent, enrolment).err(),
        (None, Ok(Some(_))) | (_, Ok(None)) => None,
    };
    load(dir).err().into_iter().chain(enrolled)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use ring::signature::{ED25519, UnparsedPublicKey};

    use super::*;

    fn agent() -> AgentId {
        format!("agt_{:0>26}", 7).parse().unwrap()
    }

    #[test]
    fn a_key_is_made_once_whole_and_for_its_owner_alone() {
        let temp = tempfile::tempdir().unwrap();
        let key = load_or_make(temp.path()).unwrap();
        let path = temp.path().join(KEY_NAME);
        let bytes = fs::read(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((bytes.len(), mode, fs::read_dir(temp.path()).unwrap().count()), (KEY_BYTES, 0o600, 1));
        assert_eq!(load_or_make(temp.path()).unwrap().public(), key.public());
        assert!(write_once(temp.path(), KEY_NAME, b"other").is_err(), "nothing replaces it");
        assert_eq!(fs::read(&path).unwrap(), bytes);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(load_or_make(other.path()).unwrap().public(), key.public());
        assert!(!format!("{key:?}").contains(&URL_SAFE_NO_PAD.encode(&bytes[..SEED_BYTES])));
    }

    #[test]
    fn what_a_start_left_that_died_is_gone_with_the_next() {
        let temp = tempfile::tempdir().unwrap();
        let key = load_or_make(temp.path()).unwrap();
        let draft = temp.path().join(".key.draft");
        // As if it had died between the two.
        fs::hard_link(temp.path().join(KEY_NAME), &draft).unwrap();
        assert_eq!(load_or_make(temp.path()).unwrap().public(), key.public());
        assert!(!draft.exists(), "a second name of the key is left");
        fs::create_dir(&draft).unwrap();
        assert!(load_or_make(temp.path()).unwrap_err().to_string().contains(".key.draft"), "it is told");
    }

    #[test]
    fn what_is_no_name_of_a_deployment_is_not_written() {
        for good in ["holm:org_1", "holm:"] {
            let enrolment = Enrolment::new(agent(), good).unwrap();
            let temp = tempfile::tempdir().unwrap();
            note_enrolment(temp.path(), &enrolment).unwrap();
            assert_eq!(super::enrolment(temp.path()).unwrap(), Some(enrolment));
        }
        for odd in ["", "org_1", "holm:a b", "holm:a\n", "holm:\u{7}", &format!("holm:{}", "x".repeat(230))] {
            assert_eq!(Enrolment::new(agent(), odd), None, "{odd:?}");
        }
    }

    #[test]
    fn a_key_that_is_damaged_or_that_others_may_read_is_told_and_stays() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        load_or_make(dir).unwrap();
        let path = dir.join(KEY_NAME);
        let whole = fs::read(&path).unwrap();
        let told = || {
            let told = load_or_make(dir).unwrap_err().to_string();
            let found: Vec<String> = examine(dir, None).map(|error| error.to_string()).collect();
            assert_eq!(found, std::slice::from_ref(&told));
            told
        };
        for at in [0, 31, 32, 63] {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&path, &changed).unwrap();
            assert!(told().contains("do not belong together") && told().contains("hosts revoke"), "byte {at}");
            assert_eq!(fs::read(&path).unwrap(), changed);
        }
        for odd in [&whole[..63], &[], &[whole.clone(), vec![0]].concat()] {
            fs::write(&path, odd).unwrap();
            assert!(told().contains("bytes") && told().contains("join token"), "{}", told());
        }
        fs::write(&path, &whole).unwrap();
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(told().contains(&format!("mode {mode:04o}")) && told().contains("chmod 600"), "{}", told());
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        load_or_make(dir).unwrap();
        fs::rename(&path, dir.join("real")).unwrap();
        std::os::unix::fs::symlink(dir.join("real"), &path).unwrap();
        assert!(told().contains(KEY_WAY_OUT), "{}", told());
    }

    #[test]
    fn what_says_where_it_is_enrolled_is_read_or_told() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        assert_eq!(enrolment(dir).unwrap(), None);
        let noted = Enrolment { agent: agent(), issuer: "holm:org_1".to_owned() };
        note_enrolment(dir, &noted).unwrap();
        assert_eq!(enrolment(dir).unwrap(), Some(noted.clone()));
        assert_eq!(for_agent(dir, agent(), noted.clone()).unwrap(), noted);
        assert!(load_or_make(dir).unwrap_err().to_string().contains("it is gone"), "none is made in its place");
        let other = format!("agt_{:0>26}", 8).parse().unwrap();
        let found = |agent| examine(dir, Some(agent)).map(|error| error.to_string()).collect::<Vec<_>>();
        assert!(found(agent()).len() == 1 && found(other).len() == 2, "{:?}", found(other));
        assert!(for_agent(dir, other, noted).unwrap_err().to_string().contains("give the agent a new join token"));
        for damaged in ["", "agt_ holm:org_1", &agent().to_string(), &format!("{} http://x", agent()), &"x".repeat(300)]
        {
            fs::write(dir.join(ENROLLED_NAME), damaged).unwrap();
            let told = enrolment(dir).unwrap_err().to_string();
            assert!(told.contains(ENROLLED_WAY_OUT), "{told}");
        }
    }

    #[test]
    fn what_is_signed_verifies_under_the_public_half() {
        let temp = tempfile::tempdir().unwrap();
        let key = load_or_make(temp.path()).unwrap();
        let public = UnparsedPublicKey::new(&ED25519, key.public().0);
        let body = key.enrolment(agent(), &"holm_join_x".into());
        let join_digest = digest(&SHA256, b"holm_join_x");
        let text = enrol_text(agent(), key.public(), join_digest.as_ref().try_into().unwrap());
        public.verify(text.as_bytes(), &URL_SAFE_NO_PAD.decode(body.proof).unwrap()).unwrap();
        let signed = key.assertion(&Enrolment { agent: agent(), issuer: "holm:org_1".into() }).unwrap();
        let (text, signature) = signed.expose_secret().rsplit_once('.').unwrap();
        public.verify(text.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
    }
}
