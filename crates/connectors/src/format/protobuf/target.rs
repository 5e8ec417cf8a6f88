//! The message that a sink's rows become.
//!
//! No schema is made of the columns: the numbers of fields are a promise to those
//! who read, which the order of a SELECT must not break.
//!
//! Invariant: columns that make no message of the schema are told before a row is
//! written. Called by the sinks of files, and by [`super::topic`].

use super::{schema, write::Writer};
use crate::format::time::Unit;
use arrow_schema::Schema;
use prost_reflect::MessageDescriptor;
use tidemill_core::{Error, Options, Result};

/// The message that rows become.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    owner: String,
    pub(super) message: MessageDescriptor,
    number: Unit,
}

impl Target {
    /// From a sink's options.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub(crate) fn from_options(options: &Options) -> Result<Self> {
        let given = schema::from_options(options)?.ok_or_else(|| {
            Error::user(format!(
                "{}: format `protobuf` needs a schema: descriptor = 'x.desc' or schema_file = 'x.proto', and message = 'shop.Order'",
                options.owner()
            ))
        })?;
        Self::given(options, &given)
    }

    /// Of a schema that options have given.
    pub(super) fn given(options: &Options, given: &schema::Given) -> Result<Self> {
        let name = options.require("message", "it names the message that a row becomes: shop.Order")?;
        let message = schema::find(&given.pool, name);
        let message = message.map_err(|why| Error::user(format!("{}: option `message`: {why}", options.owner())))?;
        Ok(Self::new(options.owner(), message, Unit::from_options(options)?))
    }

    /// A message, whatever found it.
    pub(super) fn new(owner: &str, message: MessageDescriptor, number: Unit) -> Self {
        Self { owner: owner.to_string(), message, number }
    }

    /// What writes rows of these columns.
    ///
    /// # Errors
    /// With the column, and what to change.
    pub(crate) fn writer(&self, columns: &Schema) -> Result<Writer> {
        let writer = Writer::new(&self.message, columns, self.number);
        writer.map_err(|why| Error::user(format!("{}: format `protobuf`: {why}", self.owner)))
    }
}
