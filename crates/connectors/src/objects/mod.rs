//! Objects of a store as input, those below a prefix, each read once by offsets; and as output, each batch once.
//!
//! ```text
//! place.rs     a store, and how it is spoken of                 also the sink's
//! fetch.rs     ranges of one version of an object ─► bytes
//! listing.rs   which objects are new                            pages, from where the last one ended
//! source.rs    new objects within a budget ─► ranges
//! reader.rs    a range ─► records or rows
//! lines.rs     bytes of a range ─► lines                        blocks of Avro: format/avro/file.rs
//! rows.rs      row groups of Parquet ─► columns
//! sink.rs      rows of a batch ─► objects, at its commit
//! ```
//!
//! Invariant: an object is what it was when it was listed, or an error that names it.
//! Called by the connectors of stores; they say where the objects are.

#[cfg(test)]
pub(crate) mod checks;
mod fetch;
mod lines;
mod listing;
mod place;
#[doc(hidden)]
pub mod probe;
mod reader;
mod rows;
mod sink;
mod source;
#[cfg(test)]
mod tests;

pub(crate) use place::{Place, pattern};
#[cfg(feature = "hdfs")]
pub(crate) use place::{Tree, half};
pub use sink::ObjectsSink;
pub use source::ObjectsSource;
