//! Where large objects are kept, as people say it: `file:/PATH`, or `s3://BUCKET/PREFIX` with parameters.
//!
//! What always holds: a place bears no credentials, so it may be shown; what is not understood is refused by a word that
//! quotes nothing in which somebody may have put them.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr};

use crate::{Error, Result};

/// Where large objects are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobPlace {
    /// A folder.
    Folder(PathBuf),
    /// A bucket.
    S3(S3Place),
}

/// A bucket of S3-compatible storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Place {
    /// The bucket.
    pub bucket: String,
    /// What stands before every key, without a slash at its ends; it may be empty.
    pub prefix: String,
    /// `https://HOST[:PORT]`; nothing for that of AWS.
    pub endpoint: Option<String>,
    /// The region, if one was named.
    pub region: Option<String>,
    /// Whether the bucket stands in the path of requests, and not before the name of the host.
    pub is_path_style: bool,
}

/// What the parameters of a bucket are called.
const PARAMETERS: &str = "endpoint=URL, region=NAME, style=path or style=host, http=allowed";
/// The longest prefix, in bytes: a key of S3 has 1,024, and ours need a quarter of them.
const PREFIX_BYTES_MAX: usize = 512;

fn refused(problem: impl Into<String>) -> Error {
    Error::invalid("the place of large objects", problem)
}

impl FromStr for BlobPlace {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(rest) = text.strip_prefix("s3://") {
            return S3Place::parse(rest).map(Self::S3);
        }
        match text.strip_prefix("file:") {
            Some(path) => {
                let path = path.strip_prefix("//").unwrap_or(path);
                if !path.starts_with('/') {
                    return Err(refused("give the whole path of the folder: `file:/PATH`"));
                }
                Ok(Self::Folder(PathBuf::from(path)))
            }
            None => Err(refused("give `file:/PATH` or `s3://BUCKET/PREFIX`")),
        }
    }
}

impl fmt::Display for BlobPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::S3(place) => place.fmt(f),
        }
    }
}

impl fmt::Display for S3Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        match &self.endpoint {
            Some(endpoint) => write!(f, " at {endpoint}"),
            None => f.write_str(" at AWS"),
        }
    }
}

impl S3Place {
    fn parse(text: &str) -> Result<Self> {
        let (name, parameters) = text.split_once('?').unwrap_or((text, ""));
        if name.contains('@') {
            return Err(refused(
                "credentials are no part of it: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a file of them",
            ));
        }
        let (bucket, prefix) = name.split_once('/').unwrap_or((name, ""));
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        check_bucket(bucket)?;
        check_prefix(prefix)?;
        let mut place = Self {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            endpoint: None,
            region: None,
            is_path_style: false,
        };
        let (mut style, mut is_http_allowed) = (None, false);
        for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            match parameter.split_once('=').unwrap_or((parameter, "")) {
                ("endpoint", url) => place.endpoint = Some(url.strip_suffix('/').unwrap_or(url).to_owned()),
                ("region", name) => place.region = Some(check_region(name)?),
                ("style", "path") => style = Some(true),
                ("style", "host") => style = Some(false),
                ("http", "allowed") => is_http_allowed = true,
                _ => return Err(refused(format!("after `?` it has only {PARAMETERS}, joined by `&`"))),
            }
        }
        if let Some(endpoint) = &place.endpoint {
            check_endpoint(endpoint, is_http_allowed)?;
        }
        // Few stores but that of AWS answer to a name of each bucket.
        place.is_path_style = style.unwrap_or(place.endpoint.is_some());
        Ok(place)
    }

    /// The same in a region that was named elsewhere, unless it names one itself.
    pub fn in_region(self, region: Option<&str>) -> Result<Self> {
        match region {
            Some(region) if self.region.is_none() => Ok(Self { region: Some(check_region(region)?), ..self }),
            _ => Ok(self),
        }
    }

    /// Whether requests go by TLS.
    pub(super) fn is_encrypted(&self) -> bool {
        self.endpoint.as_deref().is_none_or(|endpoint| endpoint.starts_with("https://"))
    }

    /// The URL below which requests go.
    pub(super) fn request_base(&self) -> Option<String> {
        let endpoint = self.endpoint.as_deref()?;
        match endpoint.split_once("://") {
            Some((scheme, host)) if !self.is_path_style => Some(format!("{scheme}://{}.{host}", self.bucket)),
            _ => Some(endpoint.to_owned()),
        }
    }
}

fn check_bucket(bucket: &str) -> Result<()> {
    let is_of_a_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    let is_name = (3..=63).contains(&bucket.len())
        && bucket.bytes().all(is_of_a_name)
        && !bucket.starts_with(['-', '.'])
        && !bucket.ends_with(['-', '.'])
        && !bucket.contains("..");
    if is_name {
        return Ok(());
    }
    Err(refused("the name of a bucket has 3 to 63 small letters, digits, `-` and `.`: `s3://BUCKET/PREFIX`"))
}

fn check_prefix(prefix: &str) -> Result<()> {
    let is_of_a_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.!'()".contains(&byte);
    let is_part = |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(is_of_a_part);
    if prefix.is_empty() || (prefix.len() <= PREFIX_BYTES_MAX && prefix.split('/').all(is_part)) {
        return Ok(());
    }
    Err(refused(format!(
        "a prefix has parts of letters, digits and `-_.!'()` with `/` between, {PREFIX_BYTES_MAX} bytes in all"
    )))
}

fn check_region(region: &str) -> Result<String> {
    let is_name = (1..=64).contains(&region.len())
        && region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if is_name { Ok(region.to_owned()) } else { Err(refused("a region is a word: `region=eu-central-1`")) }
}

fn check_endpoint(endpoint: &str, is_http_allowed: bool) -> Result<()> {
    let (scheme, host) = endpoint.split_once("://").unwrap_or(("", ""));
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-.:[]".contains(&byte);
    if !matches!(scheme, "http" | "https") || host.is_empty() || !host.bytes().all(is_host) {
        return Err(refused("an endpoint is `https://HOST` or `https://HOST:PORT`, without a path or credentials"));
    }
    if scheme == "https" || is_http_allowed || is_loopback(host) {
        return Ok(());
    }
    Err(refused(
        "its endpoint speaks http, so others may read and change what is stored: use https, or add `http=allowed` where \
         nobody else reads the network",
    ))
}

/// Whether that host, with its port, is this machine. A name is whatever somebody made of it; `localhost` is this machine
/// (RFC 6761).
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> S3Place {
        match text.parse() {
            Ok(BlobPlace::S3(place)) => place,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn places_are_read() {
        assert_eq!("file:/srv/b".parse::<BlobPlace>().unwrap(), BlobPlace::Folder("/srv/b".into()));
        assert_eq!("file:///srv/b".parse::<BlobPlace>().unwrap(), BlobPlace::Folder("/srv/b".into()));
        let aws = parsed("s3://holm-blobs/fleet/one?region=eu-central-1");
        assert_eq!((aws.bucket.as_str(), aws.prefix.as_str()), ("holm-blobs", "fleet/one"));
        assert_eq!((aws.region.as_deref(), aws.is_path_style, aws.request_base()), (Some("eu-central-1"), false, None));
        assert_eq!(aws.to_string(), "s3://holm-blobs/fleet/one at AWS");
        let own = parsed("s3://holm/?endpoint=https://minio.example:9000/");
        assert_eq!((own.prefix.as_str(), own.is_path_style), ("", true));
        assert_eq!(own.request_base().as_deref(), Some("https://minio.example:9000"));
        assert_eq!(own.to_string(), "s3://holm at https://minio.example:9000");
        let hosted = parsed("s3://holm?endpoint=https://s3.example&style=host");
        assert_eq!(hosted.request_base().as_deref(), Some("https://holm.s3.example"));
    }

    #[test]
    fn http_is_for_this_machine_or_for_who_says_so() {
        for near in ["http://127.0.0.1:9000", "http://localhost:9000", "http://[::1]:9000"] {
            parsed(&format!("s3://holm?endpoint={near}"));
        }
        for far in ["http://minio:9000", "http://10.0.0.7", "http://localhost.example", "http://127.0.0.1.example"] {
            let refused = format!("s3://holm?endpoint={far}").parse::<BlobPlace>().unwrap_err().to_string();
            assert!(refused.contains("http=allowed"), "{refused}");
            parsed(&format!("s3://holm?endpoint={far}&http=allowed"));
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_and_not_quoted() {
        let cases = [
            ("/srv/hunter2", "`file:/PATH` or `s3://BUCKET/PREFIX`"),
            ("file:hunter2", "the whole path"),
            ("s3://AKIA:hunter2@holm/p", "AWS_SECRET_ACCESS_KEY"),
            ("s3://holm?secret_access_key=hunter2", "only endpoint=URL"),
            ("s3://holm?style=hunter2", "style=path or style=host"),
            ("s3://holm?endpoint=https://u:hunter2@host", "without a path or credentials"),
            ("s3://holm?endpoint=https://host/hunter2", "without a path or credentials"),
            ("s3://holm?endpoint=hunter2", "an endpoint is"),
            ("s3://holm?region=hunter2/", "a region is a word"),
            ("s3://hunter2_/p", "3 to 63"),
            ("s3://h/hunter2", "3 to 63"),
            ("s3://holm/../hunter2", "a prefix has parts"),
            ("s3://holm//hunter2", "a prefix has parts"),
            ("s3://holm/hunter2%2f", "a prefix has parts"),
        ];
        for (text, words) in cases {
            let refused = text.parse::<BlobPlace>().unwrap_err().to_string();
            assert!(refused.contains(words) && !refused.contains("hunter2"), "{text}: {refused}");
        }
    }
}
