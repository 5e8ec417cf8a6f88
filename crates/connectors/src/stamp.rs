//! Batches in stores that keep, of two values of a cell, the one of the later stamp: which batch is whole, and at
//! which stamp the next one is written.
//!
//! A store's stamp is a number that grows: a write time, a timestamp. A batch has one, its own time in the unit of the
//! store, or just behind the last batch's where clocks went back.
//!
//! Invariant: the stamp of a batch depends on its own time and the mark alone, which stays until the batch is whole;
//! it is behind that of all whole batches, so nothing that was given up and comes late stands over it. A batch writes
//! each key once. Called by the sinks `cassandra` and `hbase`, which say how a mark is kept.

use crate::aside::{Aside, Part};
use arrow_array::RecordBatch;
use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
};
use tidemill_core::{BatchId, Error, Result, Timestamp};

/// The table of marks.
pub(crate) const BATCHES: &str = "tidemill_batches";

/// The time of a mark that was set back: what it says is in the table, whatever its time was.
pub(crate) const ANY: i64 = i64::MIN;

/// What is whole in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Mark {
    /// The last batch; 0 is none.
    pub(crate) batch: i64,
    /// Its time, or [`ANY`].
    pub(crate) time: i64,
    /// Its stamp.
    pub(crate) stamp: i64,
}

/// What a commit has to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The batch is in the table, or later ones are: `recover` decides.
    Nothing,
    /// Its rows go in at this stamp.
    Write(i64),
}

/// Number of a batch, as the store counts.
pub(crate) fn signed(batch: BatchId) -> Result<i64> {
    i64::try_from(batch.0).map_err(|_| Error::internal("a batch's number exceeds what a database counts"))
}

impl Mark {
    /// What is to be done for a batch; `unit` is that of the stamps, in microseconds.
    pub(crate) fn step(&self, batch: i64, time: Timestamp, unit: i64) -> Step {
        let is_whole = self.batch == batch && (self.time == time.0 || self.time == ANY);
        if is_whole || self.batch > batch {
            return Step::Nothing;
        }
        // One that none before it reaches.
        Step::Write(time.0.div_euclid(unit).max(self.stamp.saturating_add(1)))
    }

    /// The mark of a batch that was written.
    pub(crate) fn of(batch: i64, time: Timestamp, stamp: i64) -> Self {
        Self { batch, time: time.0, stamp }
    }

    /// The mark of a program that is at an earlier batch.
    pub(crate) fn back(&self, batch: i64) -> Self {
        Self { batch, time: ANY, stamp: self.stamp.saturating_add(1) }
    }

    /// What the mark must be set to when a program starts after `last`, if the table is ahead of it. Else what is
    /// written again would be taken for whole, or for older than what is there.
    pub(crate) fn set_back(&self, table: &str, last: Option<BatchId>) -> Result<Option<Self>> {
        let at = last.map_or(Ok(0), signed)?;
        if self.batch <= at {
            return Ok(None);
        }
        let stands = match last {
            Some(last) => format!("the program is at batch {last}: were its data restored from a backup?"),
            None => "the program has committed none: are its data new?".to_string(),
        };
        tracing::warn!(table, batch = self.batch, "the table is ahead: {stands} Rows are written again by their key");
        Ok(Some(self.back(at)))
    }
}

/// The rows of a batch that are the last of their key, as numbers in the order of its parts. Each key is written once
/// at a stamp: of two rows at one stamp a store takes the greater value of each cell, or the one that came last, and
/// not the later row.
///
/// # Errors
/// When what was staged can't be read, or `keys` fails.
pub(crate) async fn last_of_keys<K: Eq + Hash>(
    aside: &Aside,
    batch: BatchId,
    parts: &[Part],
    keys: impl Fn(&RecordBatch) -> Result<Vec<K>>,
) -> Result<HashSet<usize>> {
    let (mut last, mut place) = (HashMap::new(), 0);
    for part in parts {
        for rows in aside.read(batch, part).await? {
            last.extend(keys(&rows)?.into_iter().zip(place..));
            place += rows.num_rows();
        }
    }
    Ok(last.into_values().collect())
}
