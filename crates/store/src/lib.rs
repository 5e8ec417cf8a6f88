//! The only room that opens durable files.
//!
//! - [`disk`]: the file system, real or simulated with all that a crash can do.
//! - [`DataDir`]: a data directory and its one owner.
//! - [`log`]: topics of rows by offset; what can't be replayed enters here.
//! - [`ledger`]: which batches were planned and which are committed.
//! - [`state`]: the versioned rows of an operator.
//! - [`backup`]: a data directory copied, checked and put back, also while a program runs.
//! - [`rewind`] and [`fork`]: a program as it was after an earlier batch, in its place or in another.
//!
//! ```
//! use arrow_array::{RecordBatch, StringArray};
//! use arrow_schema::{DataType, Field, Schema};
//! use std::{path::Path, sync::Arc};
//! use tidemill_core::{ManualClock, Offset};
//! use tidemill_store::{SimDisk, log::{Log, TopicConfig}};
//!
//! let schema = Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8, false)]));
//! let log = Log::open(Arc::new(SimDisk::new()), Path::new("/log"), Arc::new(ManualClock::default()))?;
//! let topic = log.create_topic("posts", &TopicConfig::new(Arc::clone(&schema)))?;
//! let rows = RecordBatch::try_new(schema, vec![Arc::new(StringArray::from(vec!["ebb", "flow"]))])?;
//! let appended = topic.append(0, &rows, None)?;
//! topic.sync_to(0, appended.next)?;
//! let back = topic.read(0, Offset(1), Offset(2)).next().expect("one row")?;
//! assert_eq!(back.rows, rows.slice(1, 1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Invariants: what was acked survives; what is read was checked; after a
//! failed sync nothing is acked. Everything blocks; nothing here is async.

pub mod backup;
mod dir;
pub mod disk;
mod fault;
pub mod fork;
mod frame;
mod ipc;
pub mod ledger;
pub mod log;
mod overflow;
pub mod rewind;
pub mod small;
mod staged;
pub mod state;
#[cfg(test)]
mod tests;

pub use dir::{DataDir, Gate, Passing};
pub use disk::{Disk, FrozenDisk, RealDisk, SimDisk, atomic_write};
pub use fault::io_error;
pub use ledger::{Ledger, Past};
pub use log::{Log, Topic, TopicConfig};
pub use overflow::{Overflow, OverflowBlock, OverflowBlocks, OverflowPart, OverflowView, machine_memory};
pub use staged::StagedFiles;
pub use state::StateFiles;
