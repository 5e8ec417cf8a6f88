//! What a running program shows on a terminal: a screen, or plain lines.
//!
//! ```text
//! Board ─► Facts ─┬─► frame ─► Screen      (a terminal: redrawn each slide)
//!                 └─► lines                (a pipe: one line a slide and view)
//! ```
//!
//! Invariant: text from the stream reaches the terminal without control
//! characters, so no record can steer it. Called by [`crate::assemble`].

mod bars;
mod frame;
mod lines;
mod screen;
mod text;

pub(crate) use bars::Chart;
pub(crate) use frame::{Facts, frame};
pub(crate) use lines::{Stats, status_line, view_line};
pub(crate) use screen::{Screen, restore};

use std::env;

/// Whether colours may be used on a stream: a terminal, and no `NO_COLOR`.
pub(crate) fn may_colour(terminal: bool) -> bool {
    terminal && env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && env::var_os("TERM").is_none_or(|t| t != "dumb")
}
