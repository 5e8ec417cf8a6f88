//! Collections of MongoDB: as sinks, exactly once in effect, and as histories that are played again.
//!
//! [`MongoSink`] writes; [`MongoHistory`] reads the documents of a span of time
//! in their order. Both speak through the official driver, without its DNS
//! resolver (`mongodb+srv://`).
//!
//! Invariant: no password stands in a program, a log or an error.

mod bulk;
mod encode;
mod history;
mod index;
mod json;
#[doc(hidden)]
pub mod probe;
mod server;
mod sink;
#[cfg(test)]
mod tests;

pub use history::{MongoHistory, Span};
pub use server::Server;
pub use sink::MongoSink;
