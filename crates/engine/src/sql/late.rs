//! Late rows as dead letters.
//!
//! A row all of whose windows have closed, or that has no time, goes to the
//! program's dead letters in the same commit as its batch: reason `late: …` (or
//! `ahead: …`, of a row dated too far after its batch), and as its bytes the row
//! as JSON, with the columns that the query reads. The letter names the row's
//! partition and offset, and the batch. Where a view stands between the stream
//! and the window, the place is not known any more: the partition is then empty,
//! and the offset 0. A join and a DISTINCT know it of rows of which the query takes
//! both columns. A view with the option `late` has its late rows in another
//! view instead ([`super::side`]).
//!
//! Invariant: at most [`KEPT`] rows of a batch are kept so, the others are
//! counted in one letter more. Called by [`super::panes`].

use super::panes::place_of;
use crate::plan::BatchRun;
use arrow_array::{Array, RecordBatch, TimestampMicrosecondArray};
use arrow_json::writer::{LineDelimited, WriterBuilder};
use std::sync::atomic::Ordering::Relaxed;
use tidemill_core::{DeadLetter, Offset, PartitionId, Timestamp};

/// Late rows of a batch that are kept.
pub(crate) const KEPT: u64 = 10_000;

/// Whose rows were late.
#[derive(Debug, Clone)]
pub(super) struct Late {
    /// The stream, as far as it is known, else the operator.
    pub(super) stream: String,
    /// The operator that closed the windows.
    pub(super) operator: String,
    /// The column of the row's time.
    pub(super) column: String,
    /// Places of the columns of offset and partition, where the rows have them.
    pub(super) place: Vec<usize>,
    /// Whether they go to a view of their own: they are counted, and no letters.
    pub(super) is_aside: bool,
}

impl Late {
    /// Counts rows and sets them aside; `times` are theirs, and `latest` the last that one may have.
    pub(super) fn set_aside(
        &self,
        run: &BatchRun,
        rows: &RecordBatch,
        times: &TimestampMicrosecondArray,
        latest: Timestamp,
    ) {
        if self.is_aside {
            run.late_aside.fetch_add(rows.num_rows() as u64, Relaxed);
            return;
        }
        let kept = run.count_late(rows.num_rows(), KEPT);
        if kept == 0 {
            return;
        }
        let before = run.watermark_before(&self.operator);
        let shown: Vec<usize> = (0..rows.num_columns()).filter(|column| !self.place.contains(column)).collect();
        let raws = rows.project(&shown).map(|rows| json(&rows.slice(0, kept))).unwrap_or_default();
        let letters = raws.into_iter().enumerate().map(|(row, raw)| {
            let reason = if times.is_null(row) {
                format!("late: `{}` is empty, so the row is in no window of `{}`", self.column, self.operator)
            } else {
                self.reason(Timestamp(times.value(row)), latest, before, run.batch.time)
            };
            let (partition, offset) = place_of(rows, &self.place, row).unwrap_or_else(|| (PartitionId::new(""), 0));
            let (stream, batch) = (self.stream.clone(), Some(run.batch.id));
            DeadLetter { stream, partition, offset: Offset(offset), batch, reason, raw }
        });
        run.late_letters.lock().extend(letters);
    }

    fn reason(&self, time: Timestamp, latest: Timestamp, before: Timestamp, batch: Timestamp) -> String {
        let column = &self.column;
        if time > latest {
            return format!(
                "ahead: `{column}` is {time}, and the batch was at {batch}; the stream's option `max_ahead` says how far ahead a row may be dated"
            );
        }
        format!("late: `{column}` is {time}, and the watermark of `{}` was at {before}", self.operator)
    }
}

/// The letters of the `late` rows of a batch that no view has, in an order that does not depend on threads.
pub(crate) fn letters(run: &BatchRun, late: u64) -> Vec<DeadLetter> {
    let mut letters = std::mem::take(&mut *run.late_letters.lock());
    letters.sort_by(|a, b| {
        let of = |letter: &DeadLetter| (letter.stream.clone(), letter.partition.clone(), letter.offset);
        of(a).cmp(&of(b)).then_with(|| (&a.reason, &a.raw).cmp(&(&b.reason, &b.raw)))
    });
    let more = late.saturating_sub(letters.len() as u64);
    if let (Some(first), true) = (letters.first(), more > 0) {
        let reason = format!("late: {more} more rows of this batch, of which nothing else is kept");
        let (stream, partition, batch) = (first.stream.clone(), PartitionId::new(""), Some(run.batch.id));
        letters.push(DeadLetter { stream, partition, offset: Offset(0), batch, reason, raw: Vec::new() });
    }
    letters
}

/// Each row as an object; in Rust's notation where JSON has none for a column's type.
pub(crate) fn json(rows: &RecordBatch) -> Vec<Vec<u8>> {
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
    let written = writer.write(rows).and_then(|()| writer.finish());
    let text = writer.into_inner();
    let lines: Vec<Vec<u8>> = text.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect();
    if written.is_ok() && lines.len() == rows.num_rows() {
        return lines;
    }
    (0..rows.num_rows()).map(|row| format!("{:?}", rows.slice(row, 1).columns()).into_bytes()).collect()
}
