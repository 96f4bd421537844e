//! Objects in a bucket of S3-compatible storage.
//!
//! What always holds: every request is signed, with its body, and has a time in which it is answered; it is tried again a
//! bounded number of times within a bounded time, and only where that changes nothing twice; what is stored bears its SHA-256,
//! and a store that tells another one has not stored it. Redirects are not followed: they lead away from what was named.

mod keys;
mod told;

use std::{pin::Pin, sync::Arc, time::Duration};

use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, Checksum},
    client::{HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse},
    path::Path,
    prefix::PrefixStore,
};

use super::{Manner, S3Place};
use crate::{Error, Result};
pub use keys::S3Keys;
pub use told::Unreached;
pub(super) use told::{is_no_bucket, is_other_bytes, is_out_of_range, told};

/// The size of the parts in which a stream goes up and comes down, in bytes: the least that S3 takes, of which it takes 10,000.
const S3_PART_BYTES: usize = 5 * 1024 * 1024;
/// How many parts of one stream may be on their way up at once.
const S3_PARTS_IN_FLIGHT: usize = 2;
/// How long a connection may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// How long one request may take, with its body and its answer: a part goes through at half a mebibyte a second.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// How long an operation may take with all its tries: less than a client waits for its answer.
const OPERATION_DEADLINE: Duration = Duration::from_secs(25);
/// When no further try begins.
const RETRIES_WITHIN: Duration = Duration::from_secs(12);
/// How often a request is tried again.
const RETRIES_MAX: usize = 5;
/// The pause before the first of them; each further one is up to twice as long, at random.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// The longest pause.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(2);
/// The region where nobody says: stores that have none take this one.
const DEFAULT_REGION: &str = "us-east-1";
/// The header with the digest of what is stored.
const SHA256_HEADER: &str = "x-amz-checksum-sha256";

pub(super) const MANNER: Manner =
    Manner { part_bytes: S3_PART_BYTES, parts_in_flight: S3_PARTS_IN_FLIGHT, deadline: Some(OPERATION_DEADLINE) };

/// The objects below the prefix of a bucket.
pub(super) fn open(place: &S3Place, keys: S3Keys) -> Result<Arc<dyn ObjectStore>> {
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&place.bucket)
        .with_region(place.region.as_deref().unwrap_or(DEFAULT_REGION))
        .with_virtual_hosted_style_request(!place.is_path_style)
        .with_credentials(Arc::new(keys))
        .with_checksum_algorithm(Checksum::SHA256)
        // The plain request is the one that every store has.
        .with_disable_bulk_delete(true)
        .with_retry(RetryConfig {
            backoff: BackoffConfig { init_backoff: RETRY_AFTER, max_backoff: RETRY_AFTER_MAX, base: 2.0 },
            max_retries: RETRIES_MAX,
            retry_timeout: RETRIES_WITHIN,
        })
        .with_http_connector(Connector { is_encrypted: place.is_encrypted() });
    if let Some(base) = place.request_base() {
        builder = builder.with_endpoint(base);
    }
    let bucket =
        builder.build().map_err(|error| Error::invalid("the place of large objects", told(error).to_string()))?;
    let prefix = Path::parse(&place.prefix).map_err(|error| Error::invalid("the prefix", error.to_string()))?;
    Ok(Arc::new(PrefixStore::new(bucket, prefix)))
}

/// Makes the client of a bucket.
#[derive(Debug)]
struct Connector {
    is_encrypted: bool,
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        // An error means that another client installed a provider before, which is as good.
        let _installed_before = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_DEADLINE)
            .timeout(REQUEST_DEADLINE)
            .redirect(reqwest::redirect::Policy::none())
            .http1_only()
            .user_agent(concat!("holm/", env!("CARGO_PKG_VERSION")));
        if !self.is_encrypted {
            // Without TLS the system's certificates are not read, and no proxy stands between: http is for who is near.
            builder = builder.tls_certs_only([]).no_proxy();
        }
        let client = builder.build();
        let client = client.map_err(|error| object_store::Error::Generic { store: "S3", source: Box::new(error) })?;
        Ok(HttpClient::new(Checked(HttpClient::new(client))))
    }
}

/// A client that compares the digests that a store tells with those that were sent.
#[derive(Debug)]
struct Checked(HttpClient);

type Answer<'a> = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'a>>;

impl object_store::client::HttpService for Checked {
    fn call<'a, 'b>(&'a self, request: HttpRequest) -> Answer<'b>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let sent = request.headers().get(SHA256_HEADER).cloned();
            let answer = self.0.execute(request).await?;
            match (sent, answer.headers().get(SHA256_HEADER)) {
                // Said to have been cut short, so that it is sent again.
                (Some(sent), Some(stored)) if answer.status().is_success() && sent != stored => {
                    Err(HttpError::new(HttpErrorKind::Interrupted, told::OtherBytes))
                }
                _ => Ok(answer),
            }
        })
    }
}
