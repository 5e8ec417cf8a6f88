//! Formats: from raw records to columns.
//!
//! [`TextFormat`] gives each line as it is, [`JsonFormat`] and [`CsvFormat`]
//! decode just the columns that the plan asks for. The engine's leaf calls
//! their decoders; `register` in the crate's root names them.
//!
//! Invariant: a record that can't be decoded is refused with the field or byte
//! and the reason, and the one after it is decoded.

pub(crate) mod column;
pub mod csv;
pub mod json;
pub mod text;
pub mod time;

pub use csv::CsvFormat;
pub use json::JsonFormat;
pub use text::TextFormat;
