//! Apache Kafka: topics as input, read by offset ranges, and as output, exactly once if asked.
//!
//! ```text
//! topic partition ─ ranges of offsets, planned by us, kept in the ledger ─► batches     source.rs
//! batches ─► rows aside ─► one transaction: rows + the number of the batch ─► topic     sink.rs
//! ```
//!
//! No consumer group has a part in what is read: the ledger says where each partition stands, a restart goes on
//! there, and a rewind goes back there. With option `group` the offsets are committed to a group as well, for tools
//! that show lag. Nothing here speaks to ZooKeeper: brokers are asked, whatever they keep their own state in.
//!
//! - `client.rs` has the options that both share, the calls and what their errors mean.
//! - `place.rs` has where a stream begins and ends, `topics.rs` which partitions there are and how far they go.
//! - `source.rs` plans, `cursor.rs` and `reader.rs` read a range, `envelope.rs` has the columns of key and headers.
//! - `sink.rs` writes; `encode.rs` and `typed.rs` make rows records, `producer.rs` sends them, `transaction.rs` makes a batch happen once.
//! - `admin.rs` has what the command line does with topics.
//!
//! Invariant: a record between two offsets of the ledger is read, or the range fails with the offsets that are gone;
//! a wait for the network happens on a thread that may block.

pub mod admin;
mod client;
mod cursor;
mod encode;
mod envelope;
mod place;
#[doc(hidden)]
pub mod probe;
mod producer;
mod reader;
mod sink;
mod source;
#[cfg(test)]
mod tests;
mod topics;
mod transaction;
mod typed;

pub use client::Servers;
pub use sink::KafkaSink;
pub use source::KafkaSource;

use tidemill_core::{Error, Result};

/// Does what waits for the network where nothing else waits for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal("kafka: a call panicked").because(e))?
}
