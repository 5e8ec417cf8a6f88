//! Files of batches that were undone, and of batches that nobody knows.
//!
//! ```text
//! out/batch-000000000018-part-00000.json ─► out/.undone/17-40/batch-000000000018-part-00000.json
//! ```
//!
//! Invariant: nothing is removed; moving may be repeated after a crash. The
//! `files` source passes over what is aside, as its name begins with a dot.
//! Called by [`super::sink`].

use std::{io, path::Path};
use tidemill_core::{BatchId, Error, Result};
use tidemill_store::disk::{self, Disk};

/// The directory of what was undone, within the sink's own.
pub(super) const ASIDE: &str = ".undone";

/// The batch that a file in a sink's directory belongs to.
fn batch_of(name: &str) -> Option<BatchId> {
    let digits = name.strip_prefix("batch-")?.split_once('-')?.0;
    digits.parse().ok().map(BatchId)
}

fn failed(what: &str, path: &Path, error: io::Error) -> Error {
    Error::external(format!("files: can't {what} {}", path.display())).because(error)
}

/// Moves the files of the batches after `to`, up to `upto`, out of sight.
pub(super) fn move_aside(disk: &dyn Disk, dir: &Path, to: BatchId, upto: BatchId) -> Result<()> {
    let names = disk.list(dir).map_err(|e| failed("list", dir, e))?;
    let undone = |name: &&String| batch_of(name).is_some_and(|batch| batch > to && batch <= upto);
    let names: Vec<&String> = names.iter().filter(undone).collect();
    if names.is_empty() {
        return Ok(());
    }
    let aside = dir.join(ASIDE).join(format!("{to}-{upto}"));
    disk::create_dir(disk, &aside).map_err(|e| failed("make", &aside, e))?;
    for name in names {
        disk.rename(&dir.join(name), &aside.join(name)).map_err(|e| failed("move aside", &dir.join(name), e))?;
    }
    // First the new names, then the end of the old ones: a crash between them leaves both, and this is done again.
    for dir in [&*aside, dir] {
        disk.sync_dir(dir).map_err(|e| failed("sync", dir, e))?;
    }
    Ok(())
}

/// Refuses a directory with files of batches that the ledger does not know: the
/// program would write them a second time under other names, or beside those of another.
pub(super) fn refuse_unknown(disk: &dyn Disk, dir: &Path, last: Option<BatchId>) -> Result<()> {
    let names = disk.list(dir).map_err(|e| failed("list", dir, e))?;
    let last = last.unwrap_or_default();
    let Some(newest) = names.iter().filter_map(|name| batch_of(name)).max().filter(|newest| *newest > last) else {
        return Ok(());
    };
    let after = if last.0 == 0 {
        "and this program has committed none: they are another program's, or its data directory is a new one."
            .to_string()
    } else {
        format!(
            "and this program's ledger ends with batch {last}: it has lost commits, or the files are another program's. \
             `tidemill rewind --to {last} --upto {newest}` lets them be moved aside."
        )
    };
    Err(Error::user(format!(
        "files: {} has files of batches up to {newest}, {after} Nothing was written: name another directory, or move them away",
        dir.display()
    )))
}
