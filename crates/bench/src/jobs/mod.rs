//! The engine's side of each job.
//!
//! Each function hands back the side that [`crate::measure::interleave`] runs
//! beside the loop. A side wraps its work in [`crate::measure::timed`]: from
//! building the program until its answer can be read, all inside. Every program
//! has a data directory: ledger, log and state are kept as in real use.

mod latency;
mod states;
mod words;

pub(crate) use latency::w4;
pub(crate) use states::{killed_program, w3};
pub(crate) use words::{w1_file, w1_tcp};

use crate::{input::files::Files, measure::Side};

/// W2: the ten most frequent tags of each window, as [`crate::loops::w2::Trends`] has them.
pub(crate) fn w2(_files: &Files, _threads: usize) -> Option<Side<'_, i64, Vec<(String, u64)>>> {
    None
}
