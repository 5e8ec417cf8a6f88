//! A record that was refused, or came too late, kept raw with its place and the reason.
//!
//! Invariant: no record disappears; one that can't be decoded, is too long or
//! too late becomes a dead letter and is counted. The engine writes them to the
//! topic `<program>.dead`.

use crate::{BatchId, Offset, PartitionId, StreamName};

/// A refused record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Input stream that it came from.
    pub stream: StreamName,
    /// Partition of the stream; empty where it is not known.
    pub partition: PartitionId,
    /// Its offset there; for a line that was never appended, of the next record;
    /// 0 for a record that came too late where functions or a view stand before the window: its place is not known.
    pub offset: Offset,
    /// Batch that refused it; `None` when it was refused before any batch.
    pub batch: Option<BatchId>,
    /// Why, in words that name the field or the place.
    pub reason: String,
    /// Its bytes; of an oversized line, the beginning; of a late row, its columns as JSON.
    pub raw: Vec<u8>,
}
