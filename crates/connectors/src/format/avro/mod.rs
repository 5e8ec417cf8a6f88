//! Avro: each record is one datum of a schema.
//!
//! | Option | Meaning |
//! |---|---|
//! | `schema_file`, `schema` | the schema, in a file (`x.avsc`) or as it is |
//! | `writer_schema_file`, `writer_schema` | the schema that records were written with, where it is another |
//! | `registry`, `subject`, … | a schema registry, whose frame each record then has: see `format/registry` |
//! | `timestamp` | what a plain `long` in a TIMESTAMP column counts: `s`, `ms`, `us` |
//!
//! ```text
//! schema.rs     JSON ─► types
//! columns.rs    types ─► the columns of a stream that declares none
//! resolve.rs    the writer's types + columns ─► a tree of steps, once for a schema
//! decode.rs     bytes, along the steps ─► columns               wire.rs reads, text.rs writes what is TEXT
//! file.rs       files ─► blocks ─► records, each with its file's schema named in front
//! write.rs      columns ─► bytes, and the schema that they have  container.rs: as a file
//! ```
//!
//! **Why a decoder of our own.** One bad record must not take its neighbours along,
//! values that nobody asked for are passed over without being made, and a value goes
//! from the bytes into its column. The crates for Avro give a tree of values a record,
//! or a batch that fails as a whole.
//!
//! Invariant: a record is refused as a whole, with the field and the reason, and the
//! next one is read. What can't be asked for now (a registry that is away) is an error
//! that is tried again, and no refusal.

mod columns;
pub(crate) mod container;
mod decode;
mod defaults;
pub(crate) mod file;
mod resolve;
mod schema;
#[cfg(test)]
mod tests;
mod text;
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
use arrow_schema::{FieldRef, SchemaRef};
use resolve::{Plan, Root};
use schema::Schema;
use std::{fmt, sync::Arc};
use tidemill_core::{Block, Decoder, Error, Format, Options, Refusal, Result};

/// Avro, with declared columns or those of its schema.
#[derive(Clone)]
pub struct AvroFormat(Arc<Inner>);

struct Inner {
    columns: SchemaRef,
    /// The schema that records are read as.
    reader: Option<Arc<Schema>>,
    number: Unit,
    /// Plans by the columns.
    plans: Plans<Arc<Schema>, Vec<usize>, Plan>,
}

impl fmt::Debug for AvroFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AvroFormat").field("columns", &self.0.columns).finish_non_exhaustive()
    }
}

/// The text of an option, or of the file that `<option>_file` names.
pub(super) fn text_or_file(options: &Options, name: &str) -> Result<Option<String>> {
    let file = format!("{name}_file");
    match (options.get(name), options.get(&file)) {
        (Some(_), Some(_)) => Err(Error::user(format!("{}: give `{name}` or `{file}`, not both", options.owner()))),
        (Some(text), None) => Ok(Some(text.to_string())),
        (None, Some(path)) => {
            let wrong = |why: String| Error::user(format!("{}: option `{file}`: {why}", options.owner()));
            let bytes = crate::files::small(path).map_err(wrong)?;
            String::from_utf8(bytes).map(Some).map_err(|_| wrong(format!("{path} is no text")))
        }
        (None, None) => Ok(None),
    }
}

fn given(options: &Options, name: &str) -> Result<Option<Arc<Schema>>> {
    let Some(text) = text_or_file(options, name)? else { return Ok(None) };
    let schema = Schema::parse(&text, &[]);
    let schema = schema.map_err(|why| Error::user(format!("{}: option `{name}`: {why}", options.owner())))?;
    Ok(Some(Arc::new(schema)))
}

fn parse(registered: &registry::Registered) -> Result<Arc<Schema>, String> {
    let registered = registered.of(Language::Avro)?;
    let references: Vec<String> = registered.references.iter().map(|(_, text)| text.clone()).collect();
    Schema::parse(&registered.text, &references).map(Arc::new)
}

impl AvroFormat {
    /// From a stream's options and declared columns; without these, the columns are those of the schema that records
    /// are read as.
    ///
    /// # Errors
    /// When an option or the schema is wrong, a column can't be filled from it, or the registry is asked and does not
    /// answer.
    pub fn from_options(options: &Options, declared: Option<SchemaRef>) -> Result<Self> {
        let owner = options.owner();
        refuse_lines(options, "Avro")?;
        let registry = SchemaRegistry::from_options(options)?;
        let (mut reader, written) = (given(options, "schema")?, given(options, "writer_schema")?);
        let subject = options.get("subject").is_some();
        let writer = match (registry, written) {
            (Some(_), Some(_)) => {
                return Err(Error::user(format!(
                    "{owner}: the schema that records were written with is the registry's: leave out `writer_schema`"
                )));
            }
            (Some(registry), None) => {
                // Named beside declared columns, the subject's schema gives the defaults of missing fields.
                if reader.is_none() && (declared.is_none() || subject) {
                    let subject = registry::subject(options)?;
                    let newest = registry.newest(&subject)?;
                    let wrong = |why| Error::user(format!("{owner}: the newest schema of `{subject}`: {why}"));
                    reader = Some(parse(&newest).map_err(wrong)?);
                }
                Writer::Registry(registry)
            }
            (None, _) if subject => {
                return Err(Error::user(format!("{owner}: option `subject` goes with `registry`")));
            }
            (None, Some(written)) => Writer::One(written),
            (None, None) => Writer::One(reader.clone().ok_or_else(|| {
                Error::user(format!(
                    "{owner}: format `avro` needs a schema: schema_file = 'x.avsc', schema = '{{…}}', or registry = 'http://…'"
                ))
            })?),
        };
        Self::new(reader, writer, declared, Unit::from_options(options)?)
            .map_err(|why| Error::user(format!("{owner}: {why}")))
    }

    fn new(
        reader: Option<Arc<Schema>>,
        writer: Writer<Arc<Schema>>,
        declared: Option<SchemaRef>,
        number: Unit,
    ) -> Result<Self, String> {
        let columns = match (declared, &reader, &writer) {
            (Some(declared), ..) => declared,
            (None, Some(schema), _) | (None, None, Writer::One(schema)) => columns::columns(schema),
            (None, None, Writer::Registry(_) | Writer::Known(_)) => return Err("declare the columns".to_string()),
        };
        for field in columns.fields() {
            Column::typed(field, number).map_err(|e| e.to_string())?;
        }
        let sides: Vec<&Arc<Schema>> = match &writer {
            Writer::One(written) => reader.iter().chain([written]).collect(),
            Writer::Registry(_) | Writer::Known(_) => reader.iter().collect(),
        };
        let targets: Vec<FieldRef> = columns.fields().iter().cloned().collect();
        for writer in sides {
            // Both sides must be readable as a whole; what the reader has beside its defaults must be there.
            let plan = resolve::plan(writer, reader.as_ref(), &targets, number)?;
            if reader.as_ref().is_none_or(|reader| Arc::ptr_eq(reader, writer)) {
                found(&plan, &targets)?;
            }
        }
        Ok(Self(Arc::new(Inner { columns, reader, number, plans: Plans::new(writer) })))
    }
}

/// Whether a schema has all columns.
fn found(plan: &Plan, targets: &[FieldRef]) -> Result<(), String> {
    let (Root::Record(step) | Root::Nullable { record: step, .. }) = &plan.root else { return Ok(()) };
    let Some((at, _)) = step.absent.first() else { return Ok(()) };
    let names: Vec<&str> = step.fields.iter().map(|field| field.name.as_str()).collect();
    Err(no_field("the schema", targets[*at].name(), &names))
}

impl Inner {
    fn plan(&self, id: u64, projection: &[usize]) -> Result<Planned<Plan>> {
        self.plans.plan(id, projection.to_vec(), parse, |schema| {
            let targets: Vec<FieldRef> = projection.iter().map(|at| Arc::clone(&self.columns.fields()[*at])).collect();
            resolve::plan(schema, self.reader.as_ref(), &targets, self.number)
        })
    }
}

impl Format for AvroFormat {
    fn name(&self) -> &'static str {
        "avro"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.0.columns)
    }

    fn decoder(&self, projection: &[usize]) -> Box<dyn Decoder> {
        let (schema, columns) = projected(&self.0.columns, projection, self.0.number);
        Box::new(AvroDecoder {
            format: Arc::clone(&self.0),
            projection: projection.to_vec(),
            schema,
            columns,
            last: None,
        })
    }
}

struct AvroDecoder {
    format: Arc<Inner>,
    projection: Vec<usize>,
    schema: SchemaRef,
    columns: Vec<Column>,
    /// The plan of the record before.
    last: Option<(u64, Planned<Plan>)>,
}

impl AvroDecoder {
    fn record(&mut self, record: &[u8]) -> Result<Result<(), String>> {
        let (id, value) = match &self.format.plans.writer {
            Writer::One(_) => (0, record),
            Writer::Registry(_) => match registry::unframe(record) {
                Ok((id, value)) => (u64::from(id), value),
                Err(why) => return Ok(Err(why.to_string())),
            },
            Writer::Known(_) => match file::unframe(record) {
                Ok(framed) => framed,
                Err(why) => return Ok(Err(why.to_string())),
            },
        };
        if self.last.as_ref().is_none_or(|(last, _)| *last != id) {
            self.last = Some((id, self.format.plan(id, &self.projection)?));
        }
        Ok(match &self.last {
            Some((_, Ok(plan))) => decode::record(plan, value, &mut self.columns),
            Some((_, Err(why))) => Err(why.clone()),
            None => Err("no plan".to_string()),
        })
    }
}

impl Decoder for AvroDecoder {
    fn decode(&mut self, block: &Block, refused: &mut Vec<Refusal>) -> Result<RecordBatch> {
        rows(block, refused, &Arc::clone(&self.schema), self, Self::record, |decoder| &mut decoder.columns)
    }
}
