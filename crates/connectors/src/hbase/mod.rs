//! Tables of Apache HBase as sinks, through its REST gateway, exactly once in effect.
//!
//! ```text
//! batches ─► rows aside ─► cells by row key, at a timestamp of the batch's own ─► mark     sink.rs
//! ```
//!
//! - `server.rs` has the gateway as options name it, its connections, and what its answers mean.
//! - `table.rs` has the table's and the rows' columns as options name them, and makes the table.
//! - `values.rs` turns rows into row keys and cells, `cut.rs` those into requests.
//! - `mark.rs` knows which batch is in the table, and at which timestamp the next one goes in.
//!
//! Invariant: no password stands in a program, a log or an error, and nothing waits without an end.

mod cut;
mod mark;
#[doc(hidden)]
pub mod probe;
mod server;
mod sink;
mod table;
#[cfg(test)]
mod tests;
mod values;

pub use sink::HbaseSink;
