//! Protobuf: each record is one message.
//!
//! | Option | Meaning |
//! |---|---|
//! | `descriptor` | a file with the descriptors, as `protoc --descriptor_set_out=x.desc --include_imports` writes it |
//! | `schema_file`, `schema` | instead: a file `x.proto`, whose imports lie beside it, or its text |
//! | `message` | the message: `shop.Order` |
//! | `registry`, `subject`, … | a schema registry, whose frame each record then has: see `format/registry` |
//! | `timestamp` | what a plain number in a TIMESTAMP column counts: `s`, `ms`, `us` |
//!
//! ```text
//! schema.rs    descriptors or text ─► the message
//! plan.rs      the message + columns ─► slots, once for a schema       the columns of a stream that declares none
//! decode.rs    bytes, along the slots ─► columns                       wire.rs reads
//!
//! target.rs    a sink's options ─► the message          topic.rs also from a registry, with the frame
//! write.rs     the message + columns ─► members, once
//! put.rs       columns, along the members ─► bytes
//!
//! framed       0 │ id, 4 bytes │ indexes of the message in its file, zigzag numbers behind their count │ message
//! ```
//!
//! Invariant: a record is refused as a whole, with the field and the reason, and the
//! next one is read. Fields that the schema does not know are passed over, as Protobuf
//! asks. What can't be asked for now is an error that is tried again.

mod decode;
mod plan;
mod put;
mod schema;
pub(crate) mod target;
#[cfg(test)]
mod tests;
#[cfg(feature = "kafka")]
pub(crate) mod topic;
mod wire;
pub(crate) mod write;

use super::{
    column::{Column, projected},
    plans::{Planned, Plans, Writer},
    registry::{self, Language, SchemaRegistry},
    time::Unit,
    typed::{no_field, refuse_lines, rows},
};
use arrow_array::RecordBatch;
use arrow_schema::{FieldRef, Schema, SchemaRef};
use decode::Found;
use plan::{MessagePlan, Shape};
use prost_reflect::MessageDescriptor;
use std::{fmt, sync::Arc};
use tidemill_core::{Block, Decoder, Error, Format, Options, Refusal, Result};
use wire::{Cursor, zigzag};

/// How deep messages may lie in their file.
const INDEXES: i64 = 32;

/// Protobuf, with declared columns or those of its message.
#[derive(Clone)]
pub struct ProtobufFormat(Arc<Inner>);

struct Inner {
    columns: SchemaRef,
    /// The message's full name, where it is known.
    message: Option<String>,
    number: Unit,
    /// Plans by the bytes that name the message, and the columns.
    plans: Plans<MessageDescriptor, (Vec<u8>, Vec<usize>), MessagePlan>,
}

impl fmt::Debug for ProtobufFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { columns, message, .. } = &*self.0;
        f.debug_struct("ProtobufFormat").field("columns", columns).field("message", message).finish_non_exhaustive()
    }
}

impl ProtobufFormat {
    /// From a stream's options and declared columns; without these, the columns are the fields of the message.
    ///
    /// # Errors
    /// When an option or the schema is wrong, a column can't be filled from it, or the registry is asked and does not
    /// answer.
    pub fn from_options(options: &Options, declared: Option<SchemaRef>) -> Result<Self> {
        let owner = options.owner();
        refuse_lines(options, "Protobuf")?;
        let wrong = |why: String| Error::user(format!("{owner}: {why}"));
        let registry = SchemaRegistry::from_options(options)?;
        let name = options.get("message");
        let given = schema::from_options(options)?;
        let subject = options.get("subject").is_some();
        let (writer, known) = match (registry, given) {
            (Some(_), Some(_)) => {
                return Err(wrong(
                    "the schema is the registry's: leave out `descriptor` and `schema_file`".to_string(),
                ));
            }
            (Some(registry), None) if declared.is_none() || subject => {
                let subject = registry::subject(options)?;
                let newest = registry.newest(&subject)?;
                let found = newest.of(Language::Protobuf).and_then(|newest| {
                    let file = schema::registered(newest)?;
                    match name {
                        Some(name) => schema::find(file.parent_pool(), name),
                        None => file.messages().next().ok_or_else(|| "it has no message".to_string()),
                    }
                });
                let found = found.map_err(|why| wrong(format!("the newest schema of `{subject}`: {why}")))?;
                (Writer::Registry(registry), Some(found))
            }
            (Some(registry), None) => (Writer::Registry(registry), None),
            (None, _) if subject => return Err(wrong("option `subject` goes with `registry`".to_string())),
            (None, Some(given)) => {
                let name = options.require("message", "it names the message that a record is: shop.Order")?;
                let message =
                    schema::find(&given.pool, name).map_err(|why| wrong(format!("option `message`: {why}")))?;
                (Writer::One(message.clone()), Some(message))
            }
            (None, None) => {
                return Err(wrong(
                    "format `protobuf` needs a schema: descriptor = 'x.desc', schema_file = 'x.proto', or registry = 'http://…'"
                        .to_string(),
                ));
            }
        };
        let columns = match (declared, &known) {
            (Some(declared), _) => declared,
            (None, Some(message)) => Arc::new(Schema::new(plan::columns(message))),
            (None, None) => return Err(wrong("declare the columns".to_string())),
        };
        let number = Unit::from_options(options)?;
        for field in columns.fields() {
            Column::typed(field, number)?;
        }
        if columns.fields().is_empty() {
            return Err(wrong("the message has no fields".to_string()));
        }
        if let Some(message) = &known {
            let targets: Vec<FieldRef> = columns.fields().iter().cloned().collect();
            let plan = MessagePlan::new(message, &targets).map_err(wrong)?;
            let missing = plan.slots.iter().position(|slot| matches!(slot.shape, Shape::Never));
            if let Some(at) = missing {
                let fields: Vec<_> = message.fields().collect();
                let names: Vec<&str> = fields.iter().map(|field| field.name()).collect();
                let owner = format!("the message {}", message.full_name());
                return Err(wrong(no_field(&owner, columns.field(at).name(), &names)));
            }
        }
        let message = known.map(|message| message.full_name().to_string()).or_else(|| name.map(str::to_string));
        Ok(Self(Arc::new(Inner { columns, message, number, plans: Plans::new(writer) })))
    }
}

impl Inner {
    fn plan(&self, id: u64, place: &[u8], projection: &[usize]) -> Result<Planned<MessagePlan>> {
        let named = |found: &registry::Registered| {
            let file = schema::registered(found.of(Language::Protobuf)?)?;
            let message = schema::at(&file, &indexes(place)?)?;
            match &self.message {
                Some(wanted) if wanted != message.full_name() => {
                    Err(format!("a message {}, not {wanted}", message.full_name()))
                }
                _ => Ok(message),
            }
        };
        self.plans.plan(id, (place.to_vec(), projection.to_vec()), named, |message| {
            let targets: Vec<FieldRef> = projection.iter().map(|at| Arc::clone(&self.columns.fields()[*at])).collect();
            MessagePlan::new(message, &targets)
        })
    }
}

/// Where the indexes end that stand in front of a framed message.
fn end_of_indexes(value: &[u8]) -> Result<usize, String> {
    let mut cursor = Cursor { record: value, at: 0, end: value.len() };
    let count = zigzag(cursor.varint()?);
    if !(0..=INDEXES).contains(&count) {
        return Err(format!("a message at {count} places in its file"));
    }
    for _ in 0..count {
        cursor.varint()?;
    }
    Ok(cursor.at)
}

/// The indexes themselves; none stands for the first message.
fn indexes(place: &[u8]) -> Result<Vec<usize>, String> {
    let mut cursor = Cursor { record: place, at: 0, end: place.len() };
    let count = zigzag(cursor.varint()?);
    if count == 0 {
        return Ok(vec![0]);
    }
    let one = |_| usize::try_from(zigzag(cursor.varint()?)).map_err(|_| "an index below zero".to_string());
    (0..count).map(one).collect()
}

impl Format for ProtobufFormat {
    fn name(&self) -> &'static str {
        "protobuf"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.0.columns)
    }

    fn decoder(&self, projection: &[usize]) -> Box<dyn Decoder> {
        let (schema, columns) = projected(&self.0.columns, projection, self.0.number);
        Box::new(ProtobufDecoder {
            format: Arc::clone(&self.0),
            projection: projection.to_vec(),
            schema,
            columns,
            found: Found::default(),
            last: None,
        })
    }
}

struct ProtobufDecoder {
    format: Arc<Inner>,
    projection: Vec<usize>,
    schema: SchemaRef,
    columns: Vec<Column>,
    found: Found,
    /// The plan of the record before, and what named its message.
    last: Option<(u64, Vec<u8>, Planned<MessagePlan>)>,
}

impl ProtobufDecoder {
    fn record(&mut self, record: &[u8]) -> Result<Result<(), String>> {
        let (id, place, from) = match &self.format.plans.writer {
            // No number stands in front of what is not framed.
            Writer::One(_) | Writer::Known(_) => (0, &[][..], 0),
            Writer::Registry(_) => {
                let (id, value) = match registry::unframe(record) {
                    Ok(framed) => framed,
                    Err(why) => return Ok(Err(why.to_string())),
                };
                match end_of_indexes(value) {
                    Ok(end) => (u64::from(id), &value[..end], record.len() - value.len() + end),
                    Err(why) => return Ok(Err(format!("what names the message: {why}"))),
                }
            }
        };
        if self.last.as_ref().is_none_or(|(last, at, _)| *last != id || at != place) {
            self.last = Some((id, place.to_vec(), self.format.plan(id, place, &self.projection)?));
        }
        Ok(match &self.last {
            Some((_, _, Ok(plan))) => decode::record(plan, record, from, &mut self.found, &mut self.columns),
            Some((_, _, Err(why))) => Err(why.clone()),
            None => Err("no plan".to_string()),
        })
    }
}

impl Decoder for ProtobufDecoder {
    fn decode(&mut self, block: &Block, refused: &mut Vec<Refusal>) -> Result<RecordBatch> {
        rows(block, refused, &Arc::clone(&self.schema), self, Self::record, |decoder| &mut decoder.columns)
    }
}
