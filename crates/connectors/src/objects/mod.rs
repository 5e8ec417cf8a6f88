//! Objects of a store as input: those below a prefix, each read once by offsets.
//!
//! ```text
//! place.rs     a store, and how it is spoken of                 also the sink's
//! fetch.rs     ranges of one version of an object ─► bytes
//! listing.rs   which objects are new                            pages, from where the last one ended
//! source.rs    new objects within a budget ─► ranges
//! reader.rs    a range ─► records or rows
//! lines.rs     bytes of a range ─► lines                        blocks of Avro: format/avro/file.rs
//! rows.rs      row groups of Parquet ─► columns
//! ```
//!
//! Invariant: an object is what it was when it was listed, or an error that names it.
//! Called by the connectors of stores; they say where the objects are.

mod fetch;
mod lines;
mod listing;
mod place;
mod reader;
mod rows;
mod source;
#[cfg(test)]
mod tests;

pub(crate) use place::Place;
pub use source::ObjectsSource;
