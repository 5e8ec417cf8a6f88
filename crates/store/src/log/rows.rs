//! Rows with their place and time, and the meta part of a frame of rows.
//!
//! ```text
//! u32 runs │ u32 length of resume + 1, or 0 │ runs × (u32 rows, i64 time) │ resume
//! ```
//!
//! Invariant: the runs of (rows, time) add up to the rows, times never fall.

use arrow_array::RecordBatch;
use tidemill_core::{Offset, Timestamp};

/// A run of rows in the log.
#[derive(Debug, Clone)]
pub struct LogRows {
    /// Offset of row 0; row *i* has `base + i`.
    pub base: Offset,
    /// The rows.
    pub rows: RecordBatch,
    /// When they were appended: (rows, time) runs that add up to the rows.
    pub times: Vec<(u32, Timestamp)>,
}

impl LogRows {
    /// First offset after the rows.
    pub fn next(&self) -> Offset {
        Offset(self.base.0 + self.rows.num_rows() as u64)
    }

    /// The part inside `[from, to)`, without copying rows; the range must overlap.
    pub(super) fn cut(&self, from: u64, to: u64) -> LogRows {
        let (base, next) = (self.base.0, self.next().0);
        if from <= base && to >= next {
            return self.clone();
        }
        let (from, to) = (from.max(base), to.min(next).max(from.max(base)));
        let index = |n: u64| usize::try_from(n).expect("inside a batch");
        LogRows {
            base: Offset(from),
            rows: self.rows.slice(index(from - base), index(to - from)),
            times: cut_runs(&self.times, from - base, to - from),
        }
    }
}

fn cut_runs(runs: &[(u32, Timestamp)], mut skip: u64, mut take: u64) -> Vec<(u32, Timestamp)> {
    let mut cut = Vec::new();
    for &(rows, time) in runs {
        let rows = u64::from(rows);
        let kept = rows.saturating_sub(skip).min(take);
        skip = skip.saturating_sub(rows);
        take -= kept;
        if kept > 0 {
            cut.push((u32::try_from(kept).expect("at most the run"), time));
        }
    }
    cut
}

/// The meta part of a frame of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RowsMeta {
    pub(super) times: Vec<(u32, Timestamp)>,
    pub(super) resume: Option<String>,
}

impl RowsMeta {
    /// Of the first `rows` of the frame; a token stands for all of it, and goes.
    pub(super) fn cut(&self, rows: u32) -> Self {
        Self { times: cut_runs(&self.times, 0, u64::from(rows)), resume: None }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let resume = self.resume.as_deref().map_or(0, |r| r.len() + 1);
        let mut bytes = Vec::with_capacity(8 + self.times.len() * 12 + resume + 16);
        let count = |n: usize| u32::try_from(n).expect("a frame is below 256 MiB").to_le_bytes();
        bytes.extend_from_slice(&count(self.times.len()));
        bytes.extend_from_slice(&count(resume));
        for (rows, time) in &self.times {
            bytes.extend_from_slice(&rows.to_le_bytes());
            bytes.extend_from_slice(&time.0.to_le_bytes());
        }
        bytes.extend_from_slice(self.resume.as_deref().unwrap_or_default().as_bytes());
        bytes
    }

    /// `None` when the bytes are not such a part, or the runs don't add up to `rows`.
    pub(super) fn decode(bytes: &[u8], rows: u32) -> Option<Self> {
        let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
        let (runs, resume) = (usize::try_from(u32_at(0)?).ok()?, usize::try_from(u32_at(4)?).ok()?);
        let runs_end = runs.checked_mul(12)?.checked_add(8)?;
        let times: Vec<_> = bytes
            .get(8..runs_end)?
            .chunks_exact(12)
            .map(|run| {
                let (rows, time) = run.split_at(4);
                let rows = u32::from_le_bytes(rows.try_into().expect("four bytes"));
                (rows, Timestamp(i64::from_le_bytes(time.try_into().expect("eight bytes"))))
            })
            .collect();
        let tail = bytes.get(runs_end..)?;
        if tail.len() != resume.saturating_sub(1)
            || times.iter().map(|t| u64::from(t.0)).sum::<u64>() != u64::from(rows)
        {
            return None;
        }
        let resume = if resume == 0 { None } else { Some(std::str::from_utf8(tail).ok()?.to_owned()) };
        Some(Self { times, resume })
    }
}
