//! What a store tells of its failures, in a line for people.
//!
//! What always holds: of an answer only its code and its words are told, up to a length: what a store sends back of a request
//! may bear its signature.

use std::{error::Error as StdError, fmt};

use object_store::Error as ObjectError;

use crate::Error;

/// The most that is told of what a store or a library says, in characters.
const WORDS_MAX: usize = 300;

/// The digest of what was stored is another one than that of what was sent.
#[derive(Debug, thiserror::Error)]
#[error("the store says that it stored other bytes than were sent (SHA-256)")]
pub(super) struct OtherBytes;

/// Why a store of objects cannot be worked with, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Unreached {
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub way_out: &'static str,
}

const CORRECT_THE_PLACE: &str = "start that store, or correct what --blobs or `[server] blobs` names";

impl Unreached {
    /// Word that nothing came.
    pub(in crate::blobs) fn silent(error: Error) -> Self {
        Self { problem: error.to_string(), way_out: CORRECT_THE_PLACE }
    }

    /// Word that what was put is not what was got.
    pub(in crate::blobs) fn other_bytes() -> Self {
        Self { problem: "what was put there is not what is got".to_owned(), way_out: "use another store" }
    }

    /// What an error says.
    pub(in crate::blobs) fn of(error: &ObjectError) -> Self {
        let told = Told::of(error);
        let way_out = match told.code.as_deref() {
            Some("NoSuchBucket") => "make the bucket, or correct its name",
            Some("RequestTimeTooSkewed") => "set the clock of this machine right, and keep it so (NTP)",
            Some(
                "AuthorizationHeaderMalformed"
                | "IllegalLocationConstraintException"
                | "PermanentRedirect"
                | "IncorrectEndpoint",
            ) => "name the region of the bucket: `s3://BUCKET/PREFIX?region=NAME`",
            Some(
                "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "ExpiredToken"
                | "InvalidToken"
                | "TokenRefreshRequired",
            ) => "give credentials that work, by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or by a file",
            Some("SlowDown" | "ServiceUnavailable" | "InternalError") => {
                "look after that store; what waits is then stored"
            }
            _ if told.is_refusal => "let these credentials list, read, write and delete below the prefix of the bucket",
            _ if told.is_redirect => "name the region of the bucket: `s3://BUCKET/PREFIX?region=NAME`",
            _ => CORRECT_THE_PLACE,
        };
        Self { problem: told.to_string(), way_out }
    }
}

/// An error of a store of objects, in a line.
#[derive(Debug)]
pub(in crate::blobs) struct Told {
    /// The code of S3, where it told one.
    code: Option<String>,
    words: String,
    is_refusal: bool,
    is_redirect: bool,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code.as_deref() {
            Some("NoSuchBucket") => write!(f, "there is no such bucket ({})", self.words),
            Some("RequestTimeTooSkewed") => {
                write!(f, "the clocks of this machine and of the store differ ({})", self.words)
            }
            Some(code) if self.is_refusal => write!(f, "the credentials are refused ({code}: {})", self.words),
            Some(code) => write!(f, "the store says {code}: {}", self.words),
            None if self.is_refusal => write!(f, "the credentials are refused ({})", self.words),
            None => f.write_str(&self.words),
        }
    }
}

impl StdError for Told {}

impl Told {
    fn of(error: &ObjectError) -> Self {
        let whole = error.to_string();
        let code = element(&whole, "Code").filter(|code| code.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        let words = match (&code, element(&whole, "Message")) {
            (Some(_), Some(message)) => message.to_owned(),
            (Some(code), None) => (*code).to_owned(),
            (None, _) => deepest(error),
        };
        let mut words: String = words.chars().take(WORDS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
        if whole.contains("Server returned non-2xx status code") && code.is_none() {
            // Whatever came with it is no answer of S3.
            words = words.split(": ").take(2).collect::<Vec<_>>().join(": ");
        }
        Self {
            is_refusal: ["status code: 401", "status code: 403"].iter().any(|status| whole.contains(status)),
            is_redirect: whole.contains("status code: 3") || whole.contains("redirect without LOCATION"),
            code: code.map(str::to_owned),
            words,
        }
    }
}

/// An error in a line.
pub(in crate::blobs) fn told(error: ObjectError) -> Told {
    Told::of(&error)
}

/// Whether what is not there is the bucket.
pub(in crate::blobs) fn is_no_bucket(error: &ObjectError) -> bool {
    element(&error.to_string(), "Code") == Some("NoSuchBucket")
}

/// Whether the object ends before the part that was asked for begins.
pub(in crate::blobs) fn is_out_of_range(error: &ObjectError) -> bool {
    error.to_string().contains("status code: 416")
}

/// Whether the store says that it stored something else.
pub(in crate::blobs) fn is_other_bytes(error: &ObjectError) -> bool {
    chain(error).any(|cause| cause.is::<OtherBytes>())
}

fn chain<'a>(error: &'a ObjectError) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let first: &(dyn StdError + 'static) = error;
    std::iter::successors(Some(first), |cause: &&'a (dyn StdError + 'static)| (*cause).source())
}

/// The words of the cause of all others.
fn deepest(error: &ObjectError) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

/// What stands in an element of the answer of a store.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(inside, _)| inside)
}
