//! Files of batches that were undone, and of batches that nobody knows.
//!
//! ```text
//! out/batch-000000000018-part-00000.json ─► out/.undone/17-40/batch-000000000018-part-00000.json
//! ```
//!
//! Invariant: nothing is removed; moving may be repeated after a crash. The
//! `files` source passes over what is aside, as its name begins with a dot.
//! Called by [`super::sink`].

use super::partition;
use std::{collections::BTreeSet, io, path::Path};
use tidemill_core::{BatchId, Error, Result};
use tidemill_store::disk::{self, Disk};

/// The directory of what was undone, within the sink's own.
pub(super) const ASIDE: &str = ".undone";

/// The batch that a file of a sink belongs to, by its name.
pub(crate) fn batch_of(name: &str) -> Option<BatchId> {
    let digits = name.strip_prefix("batch-")?.split_once('-')?.0;
    digits.parse().ok().map(BatchId)
}

fn failed(what: &str, path: &Path, error: io::Error) -> Error {
    Error::external(format!("files: can't {what} {}", path.display())).because(error)
}

/// The files of batches in a directory and in those of its partitions: where they lie below it, and their batch.
fn files(disk: &dyn Disk, dir: &Path, below: &str) -> Result<Vec<(String, BatchId)>> {
    let at = dir.join(below);
    let mut found = Vec::new();
    for name in disk.list(&at).map_err(|e| failed("list", &at, e))? {
        let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
        if let Some(batch) = batch_of(&name) {
            found.push((path, batch));
        } else if partition::is_dir(&name) && disk.list(&dir.join(&path)).is_ok() {
            found.extend(files(disk, dir, &path)?);
        }
    }
    Ok(found)
}

/// Moves the files of the batches after `to`, up to `upto`, out of sight.
pub(super) fn move_aside(disk: &dyn Disk, dir: &Path, to: BatchId, upto: BatchId) -> Result<()> {
    let aside = dir.join(ASIDE).join(format!("{to}-{upto}"));
    let mut touched = BTreeSet::new();
    for (file, _) in files(disk, dir, "")?.into_iter().filter(|(_, batch)| *batch > to && *batch <= upto) {
        let (from, into) = (dir.join(&file), aside.join(&file));
        let parents = [into.parent().unwrap_or(&aside).to_owned(), from.parent().unwrap_or(dir).to_owned()];
        disk::create_dir(disk, &parents[0]).map_err(|e| failed("make", &parents[0], e))?;
        disk.rename(&from, &into).map_err(|e| failed("move aside", &from, e))?;
        touched.extend(parents);
    }
    // A crash between them may leave both names, or the old one: then this is done again.
    touched.iter().try_for_each(|dir| disk.sync_dir(dir).map_err(|e| failed("sync", dir, e)))
}

/// Refuses a directory with files of batches that the ledger does not know: the
/// program would write them a second time under other names, or beside those of another.
pub(super) fn refuse_unknown(disk: &dyn Disk, dir: &Path, last: Option<BatchId>) -> Result<()> {
    let last = last.unwrap_or_default();
    let newest = files(disk, dir, "")?.into_iter().map(|(_, batch)| batch).max();
    let Some(newest) = newest.filter(|newest| *newest > last) else { return Ok(()) };
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
