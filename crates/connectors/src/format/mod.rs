//! Formats: from raw records to columns.
//!
//! [`TextFormat`] gives each line as it is, [`JsonFormat`] and [`CsvFormat`]
//! decode just the columns that the plan asks for, and so do [`AvroFormat`] and
//! `ProtobufFormat`, by schemas that a file or a schema registry has. The engine's
//! leaf calls their decoders; `register` in the crate's root names them.
//!
//! Invariant: a record that can't be decoded is refused with the field or byte
//! and the reason, and the one after it is decoded.

pub mod avro;
pub(crate) mod column;
pub mod csv;
mod framed;
pub mod json;
mod plans;
#[cfg(feature = "protobuf")]
pub mod protobuf;
pub(crate) mod registry;
pub mod text;
pub mod time;
mod typed;

pub use avro::AvroFormat;
pub use csv::CsvFormat;
pub(crate) use framed::json_from_options;
pub use json::JsonFormat;
#[cfg(feature = "protobuf")]
pub use protobuf::ProtobufFormat;
pub use text::TextFormat;
