//! Where a program's results go: sinks, views, callbacks.
//!
//! Invariant: what the outside can see of a batch appears after its commit,
//! except for callbacks ([`OutputKind::Call`]), which run before it, may see a
//! batch again after a crash, and get its number to tell.

mod outputs;
mod print;
mod remember;
mod text_files;
mod topic_sink;

use crate::plan::Lineage;
use arrow_array::RecordBatch;
use std::{fmt, sync::Arc};
use tidemill_core::{Result, Sink};

pub use outputs::BatchInfo;
pub use remember::Remembered;
pub(crate) use topic_sink::plain;
pub use topic_sink::{TopicPast, TopicPlace, TopicSink};

/// A function on the rows of a batch.
pub(crate) type Call = Arc<dyn Fn(&BatchInfo, &[RecordBatch]) -> Result<()> + Send + Sync>;

/// One output of a program.
#[derive(Clone)]
pub(crate) struct Output {
    pub(crate) name: String,
    pub(crate) node: Arc<Lineage>,
    pub(crate) kind: OutputKind,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} of {}", self.name, self.kind, self.node.name)
    }
}

/// What kind of output it is.
#[derive(Clone)]
pub(crate) enum OutputKind {
    /// Stages, then commits.
    Sink(Arc<dyn Sink>),
    /// Shown on the board after the commit. `sticky` keeps the last rows when a batch has none.
    View { sticky: bool },
    /// Called with the rows of each batch before the commit.
    Call(Call),
    /// Called with the rows of each batch after the commit: for memory of this process.
    Kept(Call),
}

impl fmt::Debug for OutputKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sink(sink) => write!(f, "sink {}", sink.describe()),
            Self::View { .. } => f.write_str("view"),
            Self::Call(_) => f.write_str("call"),
            Self::Kept(_) => f.write_str("kept"),
        }
    }
}

/// What an output of a batch gave, kept until the commit.
#[derive(Debug)]
pub(crate) enum Emitted {
    Staged(Vec<tidemill_core::StagedPart>),
    Rows(Vec<RecordBatch>),
    Nothing,
}

impl Emitted {
    /// Rows given, as far as they are known here.
    pub(crate) fn rows(&self) -> u64 {
        match self {
            Self::Rows(rows) => rows.iter().map(|r| r.num_rows() as u64).sum(),
            Self::Staged(_) | Self::Nothing => 0,
        }
    }
}
