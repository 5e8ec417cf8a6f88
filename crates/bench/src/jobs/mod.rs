//! The engine's side of each job.
//!
//! Each function hands back the side that [`crate::measure::interleave`] runs
//! beside the loop, or nothing as long as there is no engine to run. A side
//! wraps its work in [`crate::measure::timed`]: from building the program until
//! its answer can be read, all inside.

use crate::{input::files::Files, measure::Side};

/// W1 from files: how often each word stands in the lines of `files.dir`.
pub(crate) fn w1_file(_files: &Files, _threads: usize) -> Option<Side<'_, String, u64>> {
    None
}

/// W1 over TCP: the same, from two connections to [`crate::input::serve::files`], through the log.
pub(crate) fn w1_tcp(_files: &Files, _threads: usize) -> Option<Side<'_, String, u64>> {
    None
}

/// W2: the ten most frequent tags of each window, as [`crate::loops::w2::Trends`] has them.
pub(crate) fn w2(_files: &Files, _threads: usize) -> Option<Side<'_, i64, Vec<(String, u64)>>> {
    None
}

/// W3: events by key, from [`crate::input::events::key`], checkpoint on.
pub(crate) fn w3<'a>(_seed: u64, _items: u64, _threads: usize) -> Option<Side<'a, u64, u64>> {
    None
}
