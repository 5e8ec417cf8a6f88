//! What is given in turn as it was when that began, while batches change it.
//!
//! ```text
//! at the begin     0  1  2  3  4  5  6  7      by number: groups, or keys
//! given so far     └──────┘        at
//! a batch touches  1           5               5 is set aside as it was; 1 was given
//! ```
//!
//! Invariant: each number of the begin is given once: when its turn comes, or before that with
//! the rows that it had when it was to change. Numbers that came later have no turn. Called by
//! [`super::held`] and [`super::tops`] for snapshots.

use arrow_array::RecordBatch;

/// Whose turn it is.
#[derive(Debug)]
pub(super) struct Turns {
    /// By number: whether its rows were given, or set aside.
    given: Vec<bool>,
    /// Those before this one were given.
    at: usize,
    /// Rows that were set aside and wait to be given.
    rows: Vec<RecordBatch>,
}

/// What is given at once.
pub(super) struct Turn {
    /// Rows that were set aside.
    pub(super) aside: Vec<RecordBatch>,
    /// Whose rows are to be given as they are.
    pub(super) next: Vec<u32>,
    /// How many rows these are together.
    pub(super) rows: usize,
}

impl Turns {
    /// So many numbers.
    pub(super) fn new(count: usize) -> Self {
        Self { given: vec![false; count], at: 0, rows: Vec::new() }
    }

    /// Whether a number waits for its turn.
    pub(super) fn waits(&self, number: u32) -> bool {
        let number = number as usize;
        number >= self.at && self.given.get(number) == Some(&false)
    }

    /// The rows of this one are set aside, or will be ([`Self::set_aside`]).
    pub(super) fn pass(&mut self, number: u32) {
        self.given[number as usize] = true;
    }

    /// Sets rows aside of numbers that passed.
    pub(super) fn set_aside(&mut self, rows: RecordBatch) {
        self.rows.push(rows);
    }

    /// Only these are left, numbered in this order.
    pub(super) fn renumber(&mut self, stay: &[u32]) {
        self.given = stay.iter().map(|number| !self.waits(*number)).collect();
        self.at = 0;
    }

    /// What was set aside, and whose turn it is until there are about `limit` rows; `of` tells how many one has.
    pub(super) fn next(&mut self, limit: usize, of: impl Fn(u32) -> usize) -> Turn {
        let aside = std::mem::take(&mut self.rows);
        let mut rows = aside.iter().map(RecordBatch::num_rows).sum();
        let mut next = Vec::new();
        while self.at < self.given.len() && rows < limit {
            if !self.given[self.at] {
                let number = u32::try_from(self.at).unwrap_or(u32::MAX);
                next.push(number);
                rows += of(number);
            }
            self.at += 1;
        }
        Turn { aside, next, rows }
    }

    /// Whether all were given.
    pub(super) fn are_over(&self) -> bool {
        self.at >= self.given.len() && self.rows.is_empty()
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.given.capacity() + self.rows.iter().map(RecordBatch::get_array_memory_size).sum::<usize>()
    }
}
