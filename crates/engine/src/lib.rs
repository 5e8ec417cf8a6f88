//! The engine: streams as batches of one kept plan, exactly once.
//!
//! A program is declared on a [`StreamingContext`] as [`DStream`]s, typed
//! sequences of batches, or as SQL. Both become a lineage of named operators
//! that is lowered once to DataFusion plans; each batch runs them over the
//! offset ranges that the ledger recorded.
//!
//! ```
//! use tidemill_engine::{Str, StreamingContext, Trigger};
//!
//! let context = StreamingContext::builder("words").trigger(Trigger::Drain).build();
//! let lines = context.queue_stream([vec!["to be or not to be".to_string()]])?;
//! lines
//!     .flat_map::<Str, _>(|line, out| out.extend(line.split(' ')))
//!     .map(|word| (Str::from(word), 1_i64))
//!     .reduce_by_key(|a, b| a + b)
//!     .print();
//! context.start()?;
//! context.await_termination()?;
//! # Ok::<(), tidemill_core::Error>(())
//! ```
//!
//! Where things are, in the order in which data passes: [`ingest`](self) brings
//! records into the log; `batch` cuts them into batches and tells a batch's
//! life in `batch/run.rs`; `plan` turns lineage into kept plans; `ops` has one
//! file an operator; `state` keeps rows from batch to batch; `emit` shows and
//! stores results.

mod batch;
mod change;
mod clock;
mod config;
mod context;
mod declare;
mod emit;
mod ingest;
mod inputs;
mod inspect;
#[cfg(test)]
#[path = "../../store/src/tests/mutations.rs"]
mod mutations;
mod ops;
mod plan;
mod record;
mod sql;
mod standing;
mod state;
mod stream;
pub mod testing;
pub mod text;
#[cfg(test)]
#[path = "../../store/src/tests/tries.rs"]
mod tries;

pub use batch::{Pid, RateControl, Trigger};
pub use change::{Action, Changes, OperatorChange, OutputChange};
pub use clock::SystemClock;
pub use config::{ContextBuilder, Versions};
pub use context::StreamingContext;
pub use emit::{BatchInfo, Remembered, TopicPast, TopicPlace, TopicSink};
pub use ingest::{DeadShare, KeptLetter, LetterFilter, Letters, QueueSource};
pub use inspect::{Replayed, StateChange};
pub use ops::{
    Bounds, CountWindow, EventStream, EventWindows, Filter, FlatMap, Keyed, Map, MapWithState, Records, Split, State,
    StateStream, TimeWindow, Timer, WithTimers,
};
pub use record::{Key, List, Record, Str, batch_of, records_of, schema_of};
pub use sql::Shell;
pub use standing::Standing;
pub use stream::{Chain, DStream, Emit, Emittable, Read};
pub use tidemill_derive::{Key, Record};
pub use tidemill_store::log::Retention;

#[doc(hidden)]
pub use record::support as record_support;
