//! Source `s3`: the objects of an S3 bucket below a prefix, each once, and those that come.
//!
//! | Option | Meaning |
//! |---|---|
//! | `url` | the bucket and what names begin with, or a pattern of names: `s3://bucket/logs`, `s3://bucket/logs/**/*.json` |
//! | `format` | `text` (default), `json`, `csv`: objects of lines; `parquet`: columns; `avro`: object container files |
//! | `refresh` | how often new objects are looked for (`5s`) |
//! | `sweep` | how often also those are found whose names come before others that are there (`1m`) |
//! | `after` | names below the prefix up to this one are passed over: `2026-05-01` |
//! | `max_line` | bytes of a line at most (1 MiB); a longer one is refused |
//! | `header` | `true`: an object's first line is no record |
//! | `schema`, `schema_file`, `timestamp` | of Avro, as for [files](crate::files) |
//! | `endpoint`, `region` | the server of another than Amazon, and the bucket's region, as of the [sink](crate::s3) |
//!
//! Credentials are those of the environment. Names of which a part begins with `.` or `_`, or which end in `.tmp`, are
//! passed over, and so are empty objects. What [`ObjectsSource`] says of positions and versions holds here.
//!
//! Invariant: each object once, as it was when it was listed, or an error that names it. Called by the registry.

use super::bucket;
use crate::objects::{ObjectsSource, pattern};
use tidemill_core::{Error, Options, Result};

/// The objects that a stream's options name.
///
/// # Errors
/// When an option is missing or wrong.
pub fn source(options: &Options) -> Result<ObjectsSource> {
    let url = options.require("url", "it names the bucket: s3://bucket/logs")?;
    let wrong = |why: String| Error::user(format!("{}: option `url`: {why}", options.owner()));
    let rest = url.strip_prefix("s3://").or_else(|| url.strip_prefix("s3a://"));
    let rest = rest.ok_or_else(|| wrong("write it as s3://bucket/logs".to_string()))?;
    let (bucket, names) = rest.split_once('/').unwrap_or((rest, ""));
    let (prefix, pattern) = pattern(options, names)?;
    ObjectsSource::from_options(options, bucket::within(options, bucket, prefix)?, pattern)
}

#[cfg(test)]
mod tests;
