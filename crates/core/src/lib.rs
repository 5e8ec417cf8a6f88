//! What every room of Tidemill agrees on, and nothing that touches the world.
//!
//! A record enters as raw bytes in a [`Block`], through a [`Receiver`] that
//! hands it to an [`Intake`] (the durable log), or from a replayable
//! [`Source`]. A [`Batch`] names it by [`OffsetRange`]s. A [`Format`] decodes it
//! into Arrow columns, or refuses it with a reason ([`DeadLetter`]). What the
//! batch computed goes to a [`Sink`] that stages and then commits, and to the
//! [`Board`] of views that pages and terminals read.
//!
//! Invariant: this crate reads no clock, disk or network. Time comes in
//! through [`Clock`].
//!
//! ```
//! use tidemill_core::{Timestamp, WindowSpec};
//!
//! let hop = WindowSpec::hop(60_000_000, 10_000_000)?;
//! let closing: Vec<_> = hop.windows_of(Timestamp(61_000_000)).collect();
//! assert_eq!(closing.len(), 6);
//! # Ok::<(), tidemill_core::Error>(())
//! ```

mod alert;
mod ask;
mod batch;
mod board;
mod claim;
mod connector;
mod dead;
mod detail;
mod error;
mod format;
mod graph;
mod inspect;
mod lookup;
mod notices;
mod options;
mod receiver;
mod sink;
mod source;
mod time;
mod watermark;
mod window;

pub use alert::{AlertAsk, AlertChange, AlertNow, AlertReport, AlertState, Silence};
pub use ask::{Answer, Answers, AskedTable, Names, Notebook, Parameter, Progress, Question, Shelf, Shelved};
pub use batch::{Batch, BatchId, Offset, OffsetRange, PartitionId, Position, StreamName};
pub use board::{BatchReport, Board, Event, InputReport, PartitionReport, Phase, Program, TracesReport, ViewSnapshot};
pub use claim::Claim;
pub use connector::{FormatFactory, Input, InputFactory, LookupFactory, Registry, SinkFactory};
pub use dead::{DeadLetter, reason_kind};
pub use detail::{BatchDetail, LetterReport, OperatorReport, ReadReport, Stage, StageReport, Stretch};
pub use error::{Blame, Error, Result};
pub use format::{Block, Decoder, Format, OffsetStep, Refusal, Span};
pub use graph::{Graph, GraphColumn, GraphNode, NodeKind};
pub use inspect::{Inspect, Kept, PlanNode, PlanReport, ProgramThen, Rerun, RerunOutput, RerunState, Sample};
pub use lookup::Lookup;
pub use notices::Notices;
pub use options::{Options, nearest, parse_bytes, parse_duration};
pub use receiver::{Ack, Intake, Receiver, Stop, StopHandle};
pub use sink::{Guarantee, Sink, StagedPart};
pub use source::{Budget, Chunk, ChunkStream, Shape, Source};
pub use time::{Clock, Duration, ManualClock, Timestamp};
pub use watermark::{Watermark, WatermarkSpec};
pub use window::{Interval, WindowKind, WindowSpec};
