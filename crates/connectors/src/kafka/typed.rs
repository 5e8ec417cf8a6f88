//! Rows as records of a schema: Avro or Protobuf, framed where there is a registry.
//!
//! A schema of Avro is made of the columns, one of Protobuf is there before. Either
//! way the registry is asked when the sink is opened, and never again in a life.
//!
//! Invariant: a record for each row, in their order, all of one schema; a row that
//! makes none fails its batch with the column. Called by the encoder.

#[cfg(feature = "protobuf")]
use crate::format::protobuf::topic::Topic;
use crate::format::{
    avro::write::{Writer, name_of},
    registry::{self, Language, SchemaRegistry},
};
use arrow_array::RecordBatch;
use arrow_schema::Schema;
use std::sync::{Arc, OnceLock};
use tidemill_core::{Error, Options, Result};

/// How rows become records of a schema.
#[derive(Debug)]
pub(super) enum Typed {
    Avro(Avro),
    #[cfg(feature = "protobuf")]
    Protobuf(Topic),
}

/// How rows become records of Avro.
#[derive(Debug)]
pub(super) struct Avro {
    name: String,
    registry: Option<(Arc<SchemaRegistry>, String)>,
    /// What each record begins with, once the schema is registered.
    frame: OnceLock<Vec<u8>>,
}

impl Typed {
    /// Records of Avro, from a sink's options.
    pub(super) fn avro(options: &Options) -> Result<Self> {
        let registry = SchemaRegistry::from_options(options)?;
        let registry = registry.map(|registry| Ok((registry, registry::subject(options)?))).transpose()?;
        let name = options.get("record_name").map(str::to_string);
        let name = name.unwrap_or_else(|| name_of(options.get("topic").unwrap_or_default()));
        Ok(Self::Avro(Avro { name, registry, frame: OnceLock::new() }))
    }

    /// Messages of Protobuf, from a sink's options.
    #[cfg(feature = "protobuf")]
    pub(super) fn protobuf(options: &Options) -> Result<Self> {
        Topic::from_options(options).map(Self::Protobuf)
    }

    /// Messages of Protobuf, which this build does not write.
    #[cfg(not(feature = "protobuf"))]
    pub(super) fn protobuf(options: &Options) -> Result<Self> {
        Err(crate::without_protobuf(options))
    }

    /// For people.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Avro(_) => "avro",
            #[cfg(feature = "protobuf")]
            Self::Protobuf(_) => "protobuf",
        }
    }

    /// Whether rows of these columns become records.
    pub(super) fn check(&self, schema: &Schema) -> Result<()> {
        match self {
            Self::Avro(avro) => avro.writer(schema).map(drop),
            #[cfg(feature = "protobuf")]
            Self::Protobuf(topic) => topic.check(schema),
        }
    }

    /// Asks the registry, where there is one, and waits for it.
    pub(super) fn open(&self, schema: &Schema) -> Result<()> {
        match self {
            Self::Avro(avro) => avro.frame(schema).map(drop),
            #[cfg(feature = "protobuf")]
            Self::Protobuf(topic) => topic.open(schema).map(drop),
        }
    }

    /// Whether these very rows become records: asked before their batch is committed, where they are sent after.
    pub(super) fn prove(&self, rows: &RecordBatch) -> Result<()> {
        match self {
            Self::Avro(_) => Writer::rows(rows).map(drop),
            #[cfg(feature = "protobuf")]
            Self::Protobuf(topic) => topic.open(&rows.schema())?.0.rows(rows)?.prove(rows.num_rows()),
        }
    }

    /// The bytes of records, and where each lies.
    pub(super) fn encode(&self, rows: &RecordBatch) -> Result<(Vec<u8>, Vec<(usize, usize)>)> {
        match self {
            Self::Avro(avro) => {
                let (frame, ready) = (avro.frame(&rows.schema())?, Writer::rows(rows)?);
                records(rows.num_rows(), frame, |row, bytes| {
                    ready.put(row, bytes);
                    Ok(())
                })
            }
            #[cfg(feature = "protobuf")]
            Self::Protobuf(topic) => {
                let (writer, frame) = topic.open(&rows.schema())?;
                let ready = writer.rows(rows)?;
                records(rows.num_rows(), frame, |row, bytes| ready.put(row, bytes))
            }
        }
    }
}

fn records(
    rows: usize,
    frame: &[u8],
    put: impl Fn(usize, &mut Vec<u8>) -> Result<()>,
) -> Result<(Vec<u8>, Vec<(usize, usize)>)> {
    let (mut bytes, mut spans) = (Vec::new(), Vec::with_capacity(rows));
    for row in 0..rows {
        let from = bytes.len();
        bytes.extend_from_slice(frame);
        put(row, &mut bytes)?;
        spans.push((from, bytes.len()));
    }
    Ok((bytes, spans))
}

impl Avro {
    fn writer(&self, schema: &Schema) -> Result<Writer> {
        Writer::new(&self.name, schema).map_err(|why| Error::user(format!("kafka: format `avro`: {why}")))
    }

    /// What records of these columns, which are the same for all rows, begin with.
    fn frame(&self, schema: &Schema) -> Result<&[u8]> {
        let Some((registry, subject)) = &self.registry else { return Ok(&[]) };
        if let Some(frame) = self.frame.get() {
            return Ok(frame);
        }
        let id = registry.register(subject, Language::Avro, self.writer(schema)?.schema())?;
        let mut frame = Vec::new();
        registry::frame(id, &mut frame);
        Ok(self.frame.get_or_init(|| frame))
    }
}

#[cfg(test)]
#[cfg(feature = "protobuf")]
mod tests;
