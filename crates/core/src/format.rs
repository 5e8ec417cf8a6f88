//! From raw bytes to columns.
//!
//! A [`Block`] is a run of raw records in one buffer. A [`Format`] knows the
//! columns, a [`Decoder`] turns blocks into record batches of just the columns
//! that the plan asks for, and names the rows that it refuses.
//!
//! Invariant: `accepted + refused = rows of the block`; a bad record never
//! hides the good one after it. Receivers and sources make blocks; the engine's
//! leaf calls decoders.

use crate::{Error, Notices, Offset, Result, Timestamp};
use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_schema::SchemaRef;
use std::{fmt, sync::Arc};

/// Bytes `[start, end)` of a block: one record without its line end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First byte inside.
    pub start: u32,
    /// First byte after.
    pub end: u32,
}

/// What a row's offset is, given the block's first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetStep {
    /// Rows count: row *i* has `base + i`.
    Row,
    /// Bytes count: row *i* has `base + spans[i].start`.
    Byte,
}

/// A run of raw records in one buffer.
#[derive(Debug, Clone)]
pub struct Block {
    /// All bytes, line ends and all.
    pub bytes: Buffer,
    /// The records, in order.
    pub spans: Vec<Span>,
    /// Offset of the first row (or byte 0, see `step`); ignored on the way into a log.
    pub base: Offset,
    /// How row offsets follow.
    pub step: OffsetStep,
    /// When the rows arrived: (rows, time) runs that add up to the rows. Empty
    /// on the way into a log, which stamps them.
    pub times: Vec<(u32, Timestamp)>,
}

impl Block {
    /// A block of the given records, offsets from zero.
    ///
    /// # Panics
    /// When the records exceed 4 GiB: callers bound their blocks far below.
    pub fn from_records<R: AsRef<[u8]>>(records: impl IntoIterator<Item = R>) -> Self {
        let (mut bytes, mut spans) = (Vec::new(), Vec::new());
        for record in records {
            let start = u32::try_from(bytes.len()).expect("a block below 4 GiB");
            bytes.extend_from_slice(record.as_ref());
            spans.push(Span { start, end: u32::try_from(bytes.len()).expect("a block below 4 GiB") });
        }
        Self::new(bytes, spans)
    }

    /// A block over bytes and the records in them, offsets from zero by row.
    pub fn new(bytes: impl Into<Buffer>, spans: Vec<Span>) -> Self {
        Self { bytes: bytes.into(), spans, base: Offset(0), step: OffsetStep::Row, times: Vec::new() }
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether it has no record.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Bytes of record `row`.
    pub fn record(&self, row: usize) -> &[u8] {
        let span = self.spans[row];
        &self.bytes[span.start as usize..span.end as usize]
    }

    /// All records in order.
    pub fn records(&self) -> impl Iterator<Item = &[u8]> {
        let bytes = self.bytes.as_slice();
        self.spans.iter().map(move |s| &bytes[s.start as usize..s.end as usize])
    }

    /// Offset of record `row`.
    pub fn offset(&self, row: usize) -> Offset {
        Offset(
            self.base.0
                + match self.step {
                    OffsetStep::Row => row as u64,
                    OffsetStep::Byte => u64::from(self.spans[row].start),
                },
        )
    }
}

/// A row that a decoder refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its row in the block.
    pub row: usize,
    /// Why, naming the field or the byte: `field "count": expected an integer, found "many"`.
    pub reason: String,
}

/// A way to read records: text lines, JSON, CSV.
pub trait Format: Send + Sync + fmt::Debug {
    /// Name as written in `format = '…'`.
    fn name(&self) -> &'static str;

    /// All columns that it can give.
    fn schema(&self) -> SchemaRef;

    /// A decoder for the columns of the schema at `projection`, in that order.
    /// The projection may be empty: then rows are only checked and counted.
    fn decoder(&self, projection: &[usize]) -> Box<dyn Decoder>;

    /// Who reads those of its records that take earlier ones back; `None` when none do.
    fn notices(&self) -> Option<Arc<dyn Notices>> {
        None
    }
}

/// Decodes the blocks of one partition, one after another.
pub trait Decoder: Send {
    /// Decodes a block. Rows that it can't decode are pushed to `refused` in
    /// ascending order and left out of the result.
    ///
    /// # Errors
    /// Only for what is no record's fault.
    fn decode(&mut self, block: &Block, refused: &mut Vec<Refusal>) -> Result<RecordBatch, Error>;
}
