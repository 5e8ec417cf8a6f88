//! Late rows as dead letters.
//!
//! A row all of whose windows have closed, or that has no time, goes to the
//! program's dead letters in the same commit as its batch: reason `late: …`, and
//! as its bytes the row as JSON, with the columns that the query reads. Where the
//! row lay in its stream is not known any more after it was decoded, so the
//! letter's partition is empty and its offset 0; the batch is named.
//!
//! Invariant: at most [`KEPT`] rows of a batch are kept so, the others are
//! counted in one letter more. Called by [`super::window`].

use crate::plan::BatchRun;
use arrow_array::{Array, RecordBatch, TimestampMicrosecondArray};
use arrow_json::writer::{LineDelimited, WriterBuilder};
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
}

impl Late {
    /// Counts rows and sets them aside; `times` are theirs.
    pub(super) fn set_aside(&self, run: &BatchRun, rows: &RecordBatch, times: &TimestampMicrosecondArray) {
        let kept = run.count_late(rows.num_rows(), KEPT);
        if kept == 0 {
            return;
        }
        let column = &self.column;
        let before = run.watermark_before(&self.operator);
        let raws = json(&rows.slice(0, kept));
        let letters = raws.into_iter().enumerate().map(|(row, raw)| {
            let reason = if times.is_null(row) {
                format!("late: `{column}` is empty, so the row is in no window of `{}`", self.operator)
            } else {
                let time = Timestamp(times.value(row));
                format!("late: `{column}` is {time}, and the watermark of `{}` was at {before}", self.operator)
            };
            letter(run, &self.stream, reason, raw)
        });
        run.late_letters.lock().extend(letters);
    }
}

/// The letters of late rows of a batch, in an order that does not depend on threads.
pub(crate) fn letters(run: &BatchRun, late: u64) -> Vec<DeadLetter> {
    let mut letters = std::mem::take(&mut *run.late_letters.lock());
    letters.sort_by(|a, b| (&a.stream, &a.reason, &a.raw).cmp(&(&b.stream, &b.reason, &b.raw)));
    let more = late.saturating_sub(letters.len() as u64);
    if let (Some(first), true) = (letters.first(), more > 0) {
        let reason = format!("late: {more} more rows of this batch, of which nothing else is kept");
        let letter = letter(run, &first.stream, reason, Vec::new());
        letters.push(letter);
    }
    letters
}

fn letter(run: &BatchRun, stream: &str, reason: String, raw: Vec<u8>) -> DeadLetter {
    let partition = PartitionId::new("");
    DeadLetter { stream: stream.to_string(), partition, offset: Offset(0), batch: Some(run.batch.id), reason, raw }
}

/// Each row as an object; in Rust's notation where JSON has none for a column's type.
fn json(rows: &RecordBatch) -> Vec<Vec<u8>> {
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
    let written = writer.write(rows).and_then(|()| writer.finish());
    let text = writer.into_inner();
    let lines: Vec<Vec<u8>> = text.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect();
    if written.is_ok() && lines.len() == rows.num_rows() {
        return lines;
    }
    (0..rows.num_rows()).map(|row| format!("{:?}", rows.slice(row, 1).columns()).into_bytes()).collect()
}
