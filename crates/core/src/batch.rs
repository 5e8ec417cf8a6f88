//! What a batch is: a set of offset ranges under a number and a time.
//!
//! Invariant: the ranges of consecutive batches of one stream partition touch
//! and do not overlap, so that the position of a stream is the end of its last
//! range. The ledger writes these values; sources read them back.

use crate::Timestamp;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, sync::Arc};

/// Number of a batch; grows by one, never repeats, has no gap. A program that
/// is rewound goes on with new numbers: those of batches that were undone are
/// not used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BatchId(pub u64);

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A place in a partition. What it counts (records, bytes) is the source's
/// affair; it grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub u64);

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Name of a partition of a source: `0` for a log, a path for a directory of files.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartitionId(pub Arc<str>);

impl PartitionId {
    /// From any text.
    pub fn new(name: impl AsRef<str>) -> Self {
        Self(Arc::from(name.as_ref()))
    }
}

impl From<u32> for PartitionId {
    fn from(number: u32) -> Self {
        Self::new(number.to_string())
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of an input stream of a program.
pub type StreamName = String;

/// How far each partition of a stream has been read: the next offset to read.
pub type Position = BTreeMap<PartitionId, Offset>;

/// Offsets `[start, end)` of one partition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OffsetRange {
    /// The partition.
    pub partition: PartitionId,
    /// First offset inside.
    pub start: Offset,
    /// First offset after.
    pub end: Offset,
}

impl OffsetRange {
    /// Number of offsets inside.
    pub fn len(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether nothing is inside.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Display for OffsetRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}, {})", self.partition, self.start, self.end)
    }
}

/// One tick: a number, a time, and the ranges that it reads.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Batch {
    /// Its number.
    pub id: BatchId,
    /// Its time: the end of its interval. Strictly greater than the batch before.
    pub time: Timestamp,
    /// Ranges to read, by stream. A partition may appear several times with
    /// ranges that touch, so that one large partition is read in parallel.
    /// A stream with nothing new has no ranges and is named all the same; see [`Batch::is_end`].
    pub ranges: BTreeMap<StreamName, Vec<OffsetRange>>,
}

impl Batch {
    /// The batch after all that an exhausted input gave: it names no stream, and
    /// every event-time window closes in it. The ledger keeps it as any other,
    /// so it is still the end when it is run again.
    pub fn end(id: BatchId, time: Timestamp) -> Self {
        Self { id, time, ranges: BTreeMap::new() }
    }

    /// Whether this is the batch that [`Batch::end`] makes.
    pub fn is_end(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether it reads nothing.
    pub fn is_empty(&self) -> bool {
        self.ranges.values().flatten().all(OffsetRange::is_empty)
    }

    /// Moves `position` of `stream` past this batch.
    pub fn advance(&self, stream: &str, position: &mut Position) {
        for range in self.ranges.get(stream).into_iter().flatten() {
            let at = position.entry(range.partition.clone()).or_default();
            *at = (*at).max(range.end);
        }
    }
}
