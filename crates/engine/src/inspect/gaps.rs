//! What retention has given up of what a batch read.
//!
//! A batch stays in the ledger for longer than a topic need keep its records.
//! Invariant: a batch of which any record is gone is not run again over the
//! others, as if there had been fewer: it is refused with the gap, before
//! anything is restored or read. Called by [`super`].

use crate::batch::Keep;
use std::path::Path;
use tidemill_core::{Batch, Error, Result};
use tidemill_store::log::topics_of;

/// Gaps that are told one by one.
const TOLD: usize = 3;

/// Refuses a batch of which records are gone.
///
/// # Errors
/// A user's error with the offsets that are gone, or when the disk refuses.
pub(super) fn refuse(keep: &Keep, data: &Path, program: &str, batch: &Batch) -> Result<()> {
    let mut gaps = Vec::new();
    for (topic, stream) in topics_of(&*keep.disk, &data.join("log"), program)? {
        let (Some(ranges), Some(log)) = (batch.ranges.get(stream.as_str()), keep.log().topic(&topic)) else { continue };
        for range in ranges.iter().filter(|range| range.start < range.end) {
            let Ok(partition) = range.partition.0.parse() else { continue };
            let oldest = log.start(partition);
            if range.start < oldest {
                let gone = oldest.min(range.end);
                gaps.push(format!("topic `{topic}` partition {partition}: offsets [{}, {gone})", range.start));
            }
        }
    }
    if gaps.is_empty() {
        return Ok(());
    }
    let more = gaps.len().saturating_sub(TOLD);
    gaps.truncate(TOLD);
    if more > 0 {
        gaps.push(format!("and {more} more"));
    }
    Err(Error::user(format!(
        "batch {} can't be run again: retention has removed records that it read ({}); a longer `retention_age` or \
         `retention_bytes` keeps those of later batches",
        batch.id,
        gaps.join("; ")
    )))
}
