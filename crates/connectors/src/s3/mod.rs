//! Source and sink `s3`: objects of an S3 bucket. The source is in `source.rs`; this is the sink, which writes one a
//! batch, part and directory, exactly once.
//!
//! | Option | Meaning |
//! |---|---|
//! | `url` | the bucket and what names begin with: `s3://bucket/posts` |
//! | `format` | `parquet` (default), `avro`, `protobuf` (messages, each behind its length; options as of the sink `kafka`, without a registry), `json` (one object a line), `csv` (with a header) or `text` (one text column) |
//! | `partition_by` | columns whose values name directories, such as `day,lang`: `day=2026-01-31/lang=en/…` |
//! | `endpoint` | the server of another than Amazon: `https://minio.example.org`; `http://` only on this machine |
//! | `region` | the bucket's region (`us-east-1`, or as `AWS_REGION` says) |
//!
//! Credentials are those of the environment, as Amazon's tools have them:
//! `AWS_ACCESS_KEY_ID` with `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`, a
//! web identity, or the role of the machine.
//!
//! How a batch is committed, undone and found again is the [sink of objects'](crate::objects::ObjectsSink).
//!
//! Invariant: what is of S3 alone is here: options, credentials, and what its errors mean. Called by the registry.

mod bucket;
#[doc(hidden)]
pub mod probe;
mod source;
#[cfg(test)]
mod tests;

pub use source::source;

use crate::objects::ObjectsSink;
use tidemill_core::{Options, Result};

/// The objects that a sink's options name.
///
/// # Errors
/// When an option is missing or wrong.
pub fn sink(options: &Options) -> Result<ObjectsSink> {
    ObjectsSink::from_options(options, bucket::place(options, "it names the bucket: s3://bucket/posts")?)
}
