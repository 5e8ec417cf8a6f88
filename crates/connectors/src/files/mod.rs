//! Files as input and as output.
//!
//! [`FilesSource`] reads a file, a directory or a glob of files by byte
//! offsets, lines or (`blocks.rs`) containers of Avro; [`FilesSink`] writes one file a batch, partition and, if asked, directory.

mod blocks;
mod encode;
mod listing;
mod partition;
mod reader;
mod recording;
mod sink;
mod source;
#[cfg(test)]
mod tests;
mod undo;

pub use encode::FileFormat;
#[cfg(feature = "objects")]
pub(crate) use encode::{Encoder, Encoding};
#[cfg(feature = "objects")]
pub(crate) use partition::PartitionBy;
pub use recording::{is_parquet, parquet_recording};
pub use sink::FilesSink;
#[cfg(feature = "objects")]
pub(crate) use sink::takes;
pub use source::{Complete, FilesSource};
#[cfg(feature = "objects")]
pub(crate) use undo::batch_of;

use std::{fs::File, io::Read};
use tidemill_core::{Error, Options, Result};

/// Bytes of a file that columns are sampled from.
const SAMPLE: u64 = 256 << 10;

/// The first whole lines of the file that option `sample` names, or of the
/// first file of a `files` stream.
pub(crate) fn sample(options: &Options) -> Result<Vec<u8>> {
    let owner = options.owner();
    let path = match options.get("sample") {
        Some(path) => path.into(),
        None if options.get("connector") == Some("files") => {
            let path = options.require("path", "it names a file, a directory or a glob")?;
            let first = listing::Listing::new(path)?.files()?.next();
            first.ok_or_else(|| {
                Error::user(format!("{owner}: `{path}` has no file yet to sample columns from; declare the columns"))
            })?
        }
        None => {
            return Err(Error::user(format!(
                "{owner}: declare the columns, or name a file with sample records in option `sample`"
            )));
        }
    };
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(SAMPLE).read_to_end(&mut bytes))
        .map_err(|e| Error::user(format!("{owner}: can't sample columns from {}", path.display())).because(e))?;
    if bytes.len() as u64 == SAMPLE {
        let whole = memchr::memrchr(b'\n', &bytes).map_or(bytes.len(), |last| last + 1);
        bytes.truncate(whole);
    }
    Ok(bytes)
}

/// Bytes of a file that is read whole at most.
const SMALL: u64 = 16 << 20;

/// A file that belongs to the user, such as a schema, as a whole.
///
/// # Errors
/// With the reason, when it can't be read or is too large for what it should be.
pub(crate) fn small(path: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(SMALL + 1).read_to_end(&mut bytes));
    match read {
        Err(e) => Err(format!("can't read {path}: {e}")),
        Ok(_) if bytes.len() as u64 > SMALL => Err(format!("{path} has more than {SMALL} bytes")),
        Ok(_) => Ok(bytes),
    }
}
