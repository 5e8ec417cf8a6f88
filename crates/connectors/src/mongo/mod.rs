//! Collections of MongoDB: as sinks, exactly once in effect, as histories that are played again, and as streams.
//!
//! [`MongoSink`] writes; [`MongoHistory`] reads the documents of a span of time
//! in their order; [`MongoTail`] follows what comes. All speak through the
//! official driver, without its DNS resolver (`mongodb+srv://`).
//!
//! Invariant: no password stands in a program, a log or an error.

mod bulk;
mod encode;
mod history;
mod ids;
mod index;
mod json;
#[doc(hidden)]
pub mod probe;
mod server;
mod sink;
mod tail;
#[cfg(test)]
mod tests;

pub use history::{MongoHistory, Span};
pub use server::Server;
pub use sink::MongoSink;
pub use tail::MongoTail;
