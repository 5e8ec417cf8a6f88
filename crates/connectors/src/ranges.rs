//! Cutting a range of a file or an object into records, whatever the pieces that its bytes come in.
//!
//! A range has the records that begin in it. Whoever reads it begins a little before, to find where its first record
//! begins, and goes on behind its end until its last record ends; so a plan may cut anywhere and looks at no byte.
//!
//! Invariant: ranges that touch give each record once, wherever they were cut. Called by the source of files and by
//! sources of objects, which bring the bytes.

use tidemill_core::Chunk;

/// Bytes that are handed on together.
pub(crate) const CHUNK: usize = 256 << 10;

/// What a cutter has next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Records, or one that is refused.
    Chunk(Chunk),
    /// It needs the bytes that come next, or to be told that there are none.
    More,
    /// The range has no more.
    Done,
}

/// Cuts the bytes of a range.
pub(crate) trait RangeCutter: Send {
    /// The first byte that it needs.
    fn begins(&self) -> u64;
    /// Takes the bytes that follow those before; at best [`CHUNK`] of them.
    fn push(&mut self, piece: &[u8]);
    /// There are no more bytes.
    fn end(&mut self);
    /// What is next.
    fn next(&mut self) -> Step;
}
