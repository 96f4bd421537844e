//! The credentials for a bucket.
//!
//! What always holds: they are shown to nobody; a file of them is read again while a server lives, so that they are renewed
//! by replacing it; placeholders are refused by name.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use object_store::{CredentialProvider, aws::AwsCredential};

use crate::{Error, Result};

/// How long what a file held is used before it is read again.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// The longest file of credentials that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The credentials for a bucket.
pub struct S3Keys(Source);

enum Source {
    Given(Arc<AwsCredential>),
    File { path: PathBuf, profile: String, read: Mutex<Option<(Instant, Arc<AwsCredential>)>> },
}

impl fmt::Debug for S3Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Given(_) => f.write_str("S3Keys(given)"),
            Source::File { path, profile, .. } => write!(f, "S3Keys({}, {profile})", path.display()),
        }
    }
}

fn refused(problem: impl Into<String>) -> Error {
    Error::invalid("a credential of the blobs", problem)
}

impl S3Keys {
    /// Those given here; temporary ones come with a token.
    pub fn given(id: &str, secret: &str, token: Option<&str>) -> Result<Self> {
        Ok(Self(Source::Given(Arc::new(checked(id, secret, token)?))))
    }

    /// Those under `[profile]` in a file of the format that all tools for S3 have (`~/.aws/credentials`). It is read now, and
    /// again while they are used.
    pub fn of_file(path: &Path, profile: &str) -> Result<Self> {
        let read = Some((Instant::now(), Arc::new(read(path, profile)?)));
        Ok(Self(Source::File { path: path.to_owned(), profile: profile.to_owned(), read: Mutex::new(read) }))
    }

    fn current(&self) -> Result<Arc<AwsCredential>> {
        match &self.0 {
            Source::Given(keys) => Ok(Arc::clone(keys)),
            Source::File { path, profile, read: last } => {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((at, keys)) = last.as_ref()
                    && at.elapsed() < READ_AGAIN_AFTER
                {
                    return Ok(Arc::clone(keys));
                }
                let keys = Arc::new(read(path, profile)?);
                *last = Some((Instant::now(), Arc::clone(&keys)));
                Ok(keys)
            }
        }
    }
}

type Told<'a> = Pin<Box<dyn Future<Output = object_store::Result<Arc<AwsCredential>>> + Send + 'a>>;

impl CredentialProvider for S3Keys {
    type Credential = AwsCredential;

    fn get_credential<'a, 'b>(&'a self) -> Told<'b>
    where
        'a: 'b,
        Self: 'b,
    {
        let keys = self.current();
        let keys = keys.map_err(|error| object_store::Error::Generic { store: "S3", source: Box::new(error) });
        Box::pin(std::future::ready(keys))
    }
}

fn checked(id: &str, secret: &str, token: Option<&str>) -> Result<AwsCredential> {
    for (name, value) in [("access key id", Some(id)), ("secret access key", Some(secret)), ("session token", token)] {
        let Some(value) = value else { continue };
        if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(refused(format!("the {name} is empty, or has a character that none has")));
        }
        if is_placeholder(value) {
            return Err(refused(format!("the {name} is the placeholder of an example: give one that works")));
        }
    }
    Ok(AwsCredential { key_id: id.to_owned(), secret_key: secret.to_owned(), token: token.map(str::to_owned) })
}

/// Whether that is what stands in examples.
fn is_placeholder(value: &str) -> bool {
    let lower = value.to_ascii_lowercase();
    let is_example = value.starts_with("AKIA") || value.contains('/');
    (is_example && (value.ends_with("EXAMPLE") || value.ends_with("EXAMPLEKEY")))
        || value.starts_with(['<', '$', '{'])
        || ["changeme", "change-me", "your-", "your_", "xxx"].iter().any(|word| lower.starts_with(word))
}

fn read(path: &Path, profile: &str) -> Result<AwsCredential> {
    let shown = path.display();
    let unread = |error: std::io::Error| refused(format!("{shown} cannot be read: {error}"));
    if fs::metadata(path).map_err(unread)?.len() > FILE_BYTES_MAX {
        return Err(refused(format!("{shown} is longer than {FILE_BYTES_MAX} bytes")));
    }
    let text = fs::read_to_string(path).map_err(unread)?;
    let (mut id, mut secret, mut token, mut is_there) = (None, None, None, false);
    let mut is_wanted = false;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';'])) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            is_wanted = name.trim() == profile;
            is_there |= is_wanted;
            continue;
        }
        let Some((name, value)) = line.split_once('=') else { continue };
        let place = match name.trim() {
            "aws_access_key_id" => &mut id,
            "aws_secret_access_key" => &mut secret,
            "aws_session_token" => &mut token,
            _ => continue,
        };
        if is_wanted {
            *place = Some(value.trim());
        }
    }
    if !is_there {
        return Err(refused(format!("{shown} has no line [{profile}]: name a profile of it with AWS_PROFILE")));
    }
    let (Some(id), Some(secret)) = (id, secret) else {
        let problem = format!("{shown} has under [{profile}] not both aws_access_key_id and aws_secret_access_key");
        return Err(refused(problem));
    };
    checked(id, secret, token)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# people write remarks
[default]
aws_access_key_id = AKIAONE
aws_secret_access_key=secret/one

[other]
aws_access_key_id=AKIATWO
aws_secret_access_key = secret+two=
aws_session_token = token
region = somewhere
";

    fn of(text: &str, profile: &str) -> Result<AwsCredential> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        fs::write(&path, text).unwrap();
        read(&path, profile)
    }

    #[test]
    fn a_file_has_profiles() {
        let one = of(FILE, "default").unwrap();
        assert_eq!((one.key_id.as_str(), one.secret_key.as_str(), one.token), ("AKIAONE", "secret/one", None));
        let two = of(FILE, "other").unwrap();
        assert_eq!((two.secret_key.as_str(), two.token.as_deref()), ("secret+two=", Some("token")));
        for (text, profile, words) in [
            (FILE, "third", "no line [third]"),
            ("[default]\naws_access_key_id=a\n", "default", "not both"),
            ("[default]\naws_access_key_id=a\naws_secret_access_key=\n", "default", "is empty"),
        ] {
            let refused = of(text, profile).unwrap_err().to_string();
            assert!(refused.contains(words), "{refused}");
        }
    }

    #[test]
    fn placeholders_are_refused_and_no_secret_is_shown() {
        for (id, secret) in [
            ("AKIAIOSFODNN7EXAMPLE", "x"),
            ("AKIAX", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
            ("<id>", "x"),
            ("AKIAX", "changeme"),
            ("AKIAX", "your-secret-key"),
            ("AKIAX", "${SECRET}"),
        ] {
            let refused = S3Keys::given(id, secret, None).unwrap_err().to_string();
            assert!(refused.contains("placeholder"), "{id}: {refused}");
        }
        let shown = format!("{:?}", S3Keys::given("AKIAX", "hunter2", None).unwrap());
        assert!(!shown.contains("hunter2") && !shown.contains("AKIAX"), "{shown}");
    }

    #[test]
    fn a_file_that_was_replaced_counts_after_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        fs::write(&path, FILE).unwrap();
        let keys = S3Keys::of_file(&path, "default").unwrap();
        fs::write(&path, FILE.replace("secret/one", "renewed")).unwrap();
        assert_eq!(keys.current().unwrap().secret_key, "secret/one");
        let Source::File { read, .. } = &keys.0 else { panic!("it is a file") };
        let long_ago = Instant::now().checked_sub(READ_AGAIN_AFTER).unwrap();
        read.lock().unwrap().as_mut().unwrap().0 = long_ago;
        assert_eq!(keys.current().unwrap().secret_key, "renewed");
    }
}
