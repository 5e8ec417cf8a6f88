//! Tidemill cuts live input into batches and runs each batch as one plan of a
//! columnar query engine, exactly once.
//!
//! A program is declared on a [`StreamingContext`], as typed streams or as
//! SQL, and then started. [`context`] begins one that knows all connectors:
//!
//! ```
//! use tidemill::prelude::*;
//!
//! let context = tidemill::context("words").trigger(Trigger::Drain).build();
//! let lines = context.queue_stream([vec!["to be or not to be".to_string()]])?;
//! lines
//!     .flat_map::<Str, _>(|line, out| out.extend(line.split(' ')))
//!     .map(|word| (Str::from(word), 1_i64))
//!     .reduce_by_key(|a, b| a + b)
//!     .foreach_batch(|batch, mut counts| {
//!         counts.sort_by(|a, b| b.1.cmp(&a.1));
//!         println!("batch {}: {counts:?}", batch.id);
//!         Ok(())
//!     });
//! context.start()?;
//! context.await_termination()?;
//! # Ok::<(), tidemill::Error>(())
//! ```
//!
//! What cannot be replayed (a socket, a WebSocket) enters through receivers,
//! which need a data directory for their log:
//!
//! ```no_run
//! # use tidemill::prelude::*;
//! let context = tidemill::context("shout").data_dir("shout-data").interval(Duration::from_millis(500)).build();
//! context.socket_text_stream("127.0.0.1", 9999)?.map(|line: &str| line.to_uppercase()).print();
//! # Ok::<(), tidemill::Error>(())
//! ```
//!
//! [`assemble`] runs a context with a web page, a view in the terminal and a
//! graceful end on Ctrl-C, as the command line does.
//!
//! The rooms behind this face are [`core`] (what all agree on),
//! [`store`] (the log and all durable files), [`engine`] (streams and
//! batches), [`agent`] (agents without code), [`connectors`] and [`web`] (the page). Arrows between them go
//! down only; this crate alone knows them all.

pub mod assemble;
pub mod logging;
pub mod notebooks;
mod terminal;

pub use tidemill_agent as agent;
pub use tidemill_connectors as connectors;
pub use tidemill_core as core;
pub use tidemill_engine as engine;
pub use tidemill_store as store;
pub use tidemill_web as web;

pub use tidemill_core::{Batch, BatchId, Board, Duration, Error, Options, Registry, Result, Timestamp};
pub use tidemill_engine::{
    BatchInfo, ContextBuilder, DStream, Emit, Key, Keyed, List, MapWithState, RateControl, Record, State, StateStream,
    Str, StreamingContext, Timer, Trigger, WithTimers, testing,
};
pub use tidemill_store::log::{Retention, Sync};

#[doc(hidden)]
pub use tidemill_engine::record_support;

/// Begins a context for the program `name` that knows all connectors and formats.
///
/// ```
/// let context = tidemill::context("demo").build();
/// assert_eq!(context.name(), "demo");
/// ```
pub fn context(name: impl Into<String>) -> ContextBuilder {
    StreamingContext::builder(name).registry(tidemill_connectors::registry())
}

/// What nearly every program names.
pub mod prelude {
    pub use crate::{
        BatchInfo, ContextBuilder, DStream, Duration, Emit, Error, Key, Keyed, List, RateControl, Record, Result,
        Retention, State, Str, StreamingContext, Timer, Timestamp, Trigger,
        assemble::{Assembly, Show},
    };
}
