//! A bucket as options name it, reached over our own connections.
//!
//! Invariant: nothing is asked of the server, and no credential is shown. A request is repeated a few times with growing
//! waits (errors 5xx, too many requests, broken connections) before it fails. Called by the source and the sink.

use crate::{aws::Over, objects::Place};
use object_store::{
    RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    path::Path as Key,
};
use std::{sync::Arc, time::Duration};
use tidemill_core::{Error, Options, Result};

/// Tries of a request, and how long they may take together, before the batch as a whole is tried again.
const TRIES: usize = 4;
const TRYING: Duration = Duration::from_secs(60);

/// The place that option `url` names, with `endpoint` and `region`.
pub(super) fn place(options: &Options, what: &str) -> Result<Place> {
    let url = options.require("url", what)?;
    let wrong = |why: &str| Error::user(format!("{}: option `url`: {why}", options.owner()));
    let rest = url.strip_prefix("s3://").or_else(|| url.strip_prefix("s3a://"));
    let rest = rest.ok_or_else(|| wrong("write it as s3://bucket/posts"))?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    within(options, bucket, prefix)
}

/// The place of a prefix in a bucket.
pub(super) fn within(options: &Options, bucket: &str, prefix: &str) -> Result<Place> {
    let owner = options.owner();
    let wrong = |key: &str, why: &str| Error::user(format!("{owner}: option `{key}`: {why}"));
    let fine =
        bucket.len() >= 3 && bucket.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if !fine {
        return Err(wrong("url", &format!("`{bucket}` can't be a bucket's name")));
    }
    let prefix = Key::parse(prefix.trim_end_matches('/'))
        .map_err(|e| wrong("url", "what follows the bucket can't begin names").because(e))?;
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_http_connector(Over::default())
        .with_retry(RetryConfig { max_retries: TRIES, retry_timeout: TRYING, ..RetryConfig::default() });
    if let Some(region) = options.get("region") {
        builder = builder.with_region(region);
    }
    let endpoint = options.get("endpoint").map(|endpoint| endpoint.trim_end_matches('/').to_string());
    if let Some(endpoint) = &endpoint {
        crate::http::Request::to_server(endpoint).map_err(|why| wrong("endpoint", &why))?;
        builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
    }
    // Buckets of S3 Express don't list by name.
    let is_sorted = builder.get_config_value(&AmazonS3ConfigKey::S3Express).is_none_or(|is| is != "true");
    let store = builder.build().map_err(|e| Error::user(format!("{owner}: S3 can't be reached so")).because(e))?;
    Ok(Place {
        store: Arc::new(store),
        kind: "s3",
        root: format!("s3://{bucket}"),
        prefix: prefix.to_string(),
        is_sorted,
        endpoint,
        tree: None,
        fix,
    })
}

/// What a human has to mend.
fn fix(place: &Place, error: &object_store::Error) -> Option<String> {
    use object_store::Error as Cause;
    let said = error.to_string();
    // Of a list that is refused the client makes a general error.
    let denied = matches!(error, Cause::PermissionDenied { .. } | Cause::Unauthenticated { .. })
        || said.contains("status code: 403")
        || said.contains("status code: 401");
    if denied {
        return Some("check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may do".to_string());
    }
    // The store's word for a bucket that is not there.
    said.contains("NoSuchBucket").then(|| {
        let bucket = place.root.rsplit('/').next().unwrap_or_default();
        format!("there is no bucket `{bucket}`: make it first")
    })
}
