//! Tables of Apache Cassandra as sinks, exactly once in effect.
//!
//! ```text
//! batches ─► rows aside ─► upserts by primary key, at a write time of the batch's own ─► mark     sink.rs
//! ```
//!
//! - `server.rs` has the nodes as options name them, the session and what its errors mean; `tls.rs` the trust.
//! - `table.rs` compares the rows' columns with the table's, or makes the table; `values.rs` turns rows into values.
//! - `mark.rs` knows which batch is in the table, and at which write time the next one goes in.
//!
//! Invariant: no password stands in a program, a log or an error, and nothing waits without an end.

mod mark;
#[doc(hidden)]
pub mod probe;
mod server;
mod sink;
mod table;
#[cfg(test)]
mod tests;
#[cfg(feature = "cassandra-tls")]
mod tls;
mod values;

pub use sink::CassandraSink;
