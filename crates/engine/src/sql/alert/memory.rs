//! What a key of an alert remembers of its rows: `previous`, `change`, `rate`, `zscore`.
//!
//! | Function | Of the row, against those of its key before it | Remembers |
//! |---|---|---|
//! | `previous(x)` | the value of the last row | that value |
//! | `change(x)` | how much more it is | that value |
//! | `rate(x)` | how much more a second, by batch time | that value and its batch time |
//! | `zscore(x)`, `zscore(x, 100)` | how many standard deviations from the mean | mean, variance, number of rows |
//!
//! Mean and variance weigh the last rows most: each row has a share of 2/(n+1) for
//! `zscore(x, n)`, and more while there are fewer than that. There is no score
//! before the key has ten rows (or n, when that is less).
//!
//! Invariant: what is remembered follows from the key's rows and their order
//! alone. Called by [`super::step`].

use datafusion::physical_expr::PhysicalExpr;
use std::sync::Arc;
use tidemill_core::Timestamp;

/// Rows that a score goes by when the program does not say.
const ROWS: u32 = 100;
/// Rows of a key before the first score.
const WARM: u32 = 10;
/// What is further off than this is that far off: a series that never moved has no measure for a move.
const FURTHEST: f64 = 1000.0;
/// The value of what is not known yet.
const NONE: f64 = f64::NAN;

/// A function of a key's rows so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Previous,
    Change,
    Rate,
    /// By about so many rows.
    Zscore(u32),
}

impl Function {
    /// By its name.
    pub(super) fn of(name: &str) -> Option<Self> {
        match name {
            "previous" => Some(Self::Previous),
            "change" => Some(Self::Change),
            "rate" => Some(Self::Rate),
            "zscore" => Some(Self::Zscore(ROWS)),
            _ => None,
        }
    }

    /// Numbers that it remembers.
    fn slots(self) -> usize {
        match self {
            Self::Previous | Self::Change => 1,
            Self::Rate => 2,
            Self::Zscore(_) => 3,
        }
    }

    /// Its value of `x`, which is remembered.
    fn of_row(self, memory: &mut [f64], x: f64, now: Timestamp) -> Option<f64> {
        let known = |slot: f64| (!slot.is_nan()).then_some(slot);
        match self {
            Self::Previous => known(std::mem::replace(&mut memory[0], x)),
            Self::Change => known(std::mem::replace(&mut memory[0], x)).map(|last| x - last),
            Self::Rate => {
                let last = known(std::mem::replace(&mut memory[0], x));
                #[expect(clippy::cast_precision_loss, reason = "microseconds of some thousand years")]
                let now = now.0 as f64;
                let at = std::mem::replace(&mut memory[1], now);
                last.filter(|_| now > at).map(|last| (x - last) / ((now - at) / 1e6))
            }
            Self::Zscore(rows) => {
                let [mean, variance, count] = memory else { return None };
                let seen = known(*count).unwrap_or(0.0);
                let score = (seen >= f64::from(WARM.min(rows))).then(|| {
                    let off = x - *mean;
                    let score = if off == 0.0 { 0.0 } else { off / variance.sqrt() };
                    score.clamp(-FURTHEST, FURTHEST)
                });
                if seen == 0.0 {
                    (*mean, *variance) = (x, 0.0);
                } else {
                    let share = (2.0 / (f64::from(rows) + 1.0)).max(1.0 / (seen + 1.0));
                    let off = x - *mean;
                    *mean += share * off;
                    *variance = (1.0 - share) * (*variance + share * off * off);
                }
                *count = seen + 1.0;
                score
            }
        }
    }
}

/// A call in a condition: the function, and what it is of.
#[derive(Debug)]
pub(super) struct Tracked {
    /// As it stands there.
    pub(super) text: String,
    pub(super) function: Function,
    /// A DOUBLE over a row of the view.
    pub(super) of: Arc<dyn PhysicalExpr>,
}

/// What a key remembers for all calls, one after the other.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory(Vec<f64>);

impl PartialEq for Memory {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| a.to_bits() == b.to_bits())
    }
}

impl Memory {
    /// The values of the calls for a row in which they are of `values`.
    pub(super) fn take(&mut self, tracked: &[Tracked], values: &[Option<f64>], now: Timestamp) -> Vec<Option<f64>> {
        let slots = tracked.iter().map(|call| call.function.slots()).sum();
        self.0.resize(slots, NONE);
        let mut rest = self.0.as_mut_slice();
        let mut found = Vec::with_capacity(tracked.len());
        for (call, value) in tracked.iter().zip(values) {
            let (own, others) = rest.split_at_mut(call.function.slots());
            rest = others;
            let value = value.filter(|value| value.is_finite());
            found.push(value.and_then(|value| call.function.of_row(own, value, now)));
        }
        found
    }

    /// As it is kept: behind a number that stands for the calls.
    pub(super) fn kept(&self, tracked: &[Tracked]) -> Vec<f64> {
        if self.0.is_empty() {
            return Vec::new();
        }
        std::iter::once(mark(tracked)).chain(self.0.iter().copied()).collect()
    }

    /// From how it was kept; of other calls nothing is remembered.
    pub(super) fn restored(kept: &[f64], tracked: &[Tracked]) -> Self {
        match kept.split_first() {
            Some((of, memory)) if of.to_bits() == mark(tracked).to_bits() => Self(memory.to_vec()),
            _ => Self::default(),
        }
    }
}

/// A number for the calls: their text by FNV-1a.
fn mark(tracked: &[Tracked]) -> f64 {
    let texts = tracked.iter().flat_map(|call| call.text.bytes().chain([0]));
    f64::from(texts.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(function: Function, of: &[f64]) -> Vec<Option<f64>> {
        let mut memory = vec![NONE; function.slots()];
        (0_i64..).zip(of).map(|(at, x)| function.of_row(&mut memory, *x, Timestamp(at * 2_000_000))).collect()
    }

    #[test]
    fn a_row_is_compared_with_the_one_before_it() {
        assert_eq!(series(Function::Previous, &[3.0, 5.0, 4.0]), [None, Some(3.0), Some(5.0)]);
        assert_eq!(series(Function::Change, &[3.0, 5.0, 4.0]), [None, Some(2.0), Some(-1.0)]);
        assert_eq!(series(Function::Rate, &[3.0, 5.0, 4.0]), [None, Some(1.0), Some(-0.5)], "two seconds apart");
    }

    #[test]
    fn a_score_is_the_distance_from_the_mean_in_standard_deviations() {
        let mut rows: Vec<f64> = [1.0, 3.0].repeat(6);
        rows.push(5.0);
        let scores = series(Function::Zscore(100), &rows);
        assert!(scores[..10].iter().all(Option::is_none), "ten rows say what is usual");
        // While there are fewer rows than it goes by, these are the plain mean 2 and variance 1.
        assert!((scores[10].unwrap() + 1.0).abs() < 1e-9 && (scores[12].unwrap() - 3.0).abs() < 1e-9, "{scores:?}");
        let still = series(Function::Zscore(4), &[7.0, 7.0, 7.0, 7.0, 7.0, 8.0]);
        assert_eq!(still[4..], [Some(0.0), Some(FURTHEST)], "four rows are enough for four");
    }

    #[test]
    fn the_last_rows_weigh_most() {
        let mut rows: Vec<f64> = [1.0, 3.0].repeat(50);
        rows.extend([11.0, 13.0].repeat(50));
        rows.push(14.0);
        let short = series(Function::Zscore(10), &rows).pop().unwrap().unwrap();
        let long = series(Function::Zscore(1000), &rows).pop().unwrap().unwrap();
        assert!(short > 1.0 && short < 3.0 && long < 1.4, "{short} {long}");
    }
}
