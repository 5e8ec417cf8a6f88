//! From the schema that a record was written with to the columns that are asked for.
//!
//! It is done once for a schema and a set of columns; the result is a tree of
//! [`Step`]s that the decoder walks along the bytes. Resolution is that of the
//! specification: fields by name or alias, promoted numbers, symbols and missing
//! fields by the reader's defaults. It is more lenient in one place: what is too
//! large for a column is refused record by record, not as a whole schema.
//!
//! Invariant: a tree reads exactly the bytes that the writer's schema says,
//! whatever columns it fills. Called by the format.

use super::{
    columns, defaults,
    schema::{Id, Logical, RecordField, Schema, Type},
};
use crate::format::time::Unit;
use arrow_schema::{DataType, Field, FieldRef, TimeUnit};
use std::sync::Arc;

/// How one value is read.
#[derive(Debug)]
pub(super) enum Step {
    /// No bytes; null.
    Null,
    Bool,
    /// A number into any column of numbers.
    Int,
    Long,
    Float,
    Double,
    /// A number that counts so many nanoseconds, into a time.
    Time(i64),
    /// Text into TEXT, checked.
    Text,
    /// Text that is a time.
    Instant,
    Bytes,
    Fixed(usize),
    Uuid,
    /// The text of each symbol, or why it is refused.
    Enum(Vec<Result<String, String>>),
    /// A decimal of this scale; of a fixed with its size.
    Decimal {
        fixed: Option<usize>,
        scale: usize,
    },
    List(Box<Step>),
    Map(Box<Step>),
    Record(RecordStep),
    Union(Vec<Step>),
    /// Any value as text.
    Json(Id),
    Refuse(String),
}

/// How a record is read.
#[derive(Debug)]
pub(super) struct RecordStep {
    /// The writer's fields in their order.
    pub(super) fields: Vec<FieldStep>,
    /// Columns that the writer does not have, and what they hold instead.
    pub(super) absent: Vec<(usize, Option<Instead>)>,
}

/// A field of the writer.
#[derive(Debug)]
pub(super) struct FieldStep {
    pub(super) name: String,
    pub(super) ty: Id,
    /// Into which column.
    pub(super) into: Option<(usize, Step)>,
}

/// A reader's default, as bytes of the reader's schema.
#[derive(Debug)]
pub(super) struct Instead {
    pub(super) schema: Arc<Schema>,
    pub(super) bytes: Vec<u8>,
    pub(super) step: Step,
}

/// How records of a schema are read.
#[derive(Debug)]
pub(super) enum Root {
    Record(RecordStep),
    /// A schema that is no record, into the one column; `None` where it is not asked for.
    Value(Id, Option<Step>),
    /// A record that may be null, which none is taken as.
    Nullable {
        null: usize,
        record: RecordStep,
    },
}

/// A way from a writer's schema to columns.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) schema: Arc<Schema>,
    pub(super) root: Root,
}

/// What both sides are.
struct Sides<'a> {
    writer: &'a Schema,
    reader: Option<&'a Arc<Schema>>,
    number: Unit,
}

/// The plan for some columns.
///
/// # Errors
/// When a column can't be filled from what the writer has.
pub(super) fn plan(
    writer: &Arc<Schema>,
    reader: Option<&Arc<Schema>>,
    targets: &[FieldRef],
    number: Unit,
) -> Result<Plan, String> {
    let sides = Sides { writer, reader, number };
    let root = writer.root();
    let record = columns::record_of(writer, root);
    let reads = reader.map(|reader| columns::record_of(reader, reader.root()));
    let root = match (&writer.get(root).ty, &writer.get(record).ty) {
        (_, Type::Record { fields, .. }) if !fields.is_empty() => {
            let step = sides.record(fields, reads, targets)?;
            match &writer.get(root).ty {
                Type::Union(branches) => Root::Nullable { null: usize::from(branches[0] == record), record: step },
                _ => Root::Record(step),
            }
        }
        _ => match targets {
            [] => Root::Value(root, None),
            [target] => Root::Value(root, Some(sides.step(root, reader.map(|reader| reader.root()), target)?)),
            _ => return Err(format!("its schema is {}, no record, which is one column", writer.name(root))),
        },
    };
    Ok(Plan { schema: Arc::clone(writer), root })
}

impl Sides<'_> {
    fn record(&self, fields: &[RecordField], reads: Option<Id>, targets: &[FieldRef]) -> Result<RecordStep, String> {
        let reader = self.reader.zip(reads).and_then(|(reader, id)| match &reader.get(id).ty {
            Type::Record { fields, .. } => Some((reader, fields)),
            _ => None,
        });
        let mut steps: Vec<FieldStep> =
            fields.iter().map(|field| FieldStep { name: field.name.clone(), ty: field.ty, into: None }).collect();
        let mut absent = Vec::new();
        for (at, target) in targets.iter().enumerate() {
            let wanted = reader.and_then(|(_, fields)| fields.iter().find(|field| field.name == *target.name()));
            let is = |name: &str| fields.iter().position(|field| field.name == *name);
            let aliases = wanted.map_or(&[][..], |wanted| &wanted.aliases[..]);
            let found = is(target.name()).or_else(|| aliases.iter().find_map(|alias| is(alias)));
            match found.filter(|found| steps[*found].into.is_none()) {
                Some(found) => {
                    let step = self.step(fields[found].ty, wanted.map(|wanted| wanted.ty), target)?;
                    steps[found].into = Some((at, step));
                }
                None => absent.push((at, self.instead(wanted, target)?)),
            }
        }
        Ok(RecordStep { fields: steps, absent })
    }

    fn instead(&self, wanted: Option<&RecordField>, target: &FieldRef) -> Result<Option<Instead>, String> {
        let Some((reader, field, default)) =
            self.reader.zip(wanted).and_then(|(reader, field)| Some((reader, field, field.default.as_ref()?)))
        else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        defaults::encode(reader, field.ty, default, &mut bytes)
            .map_err(|why| format!("field \"{}\": its default {default}: {why}", target.name()))?;
        let sides = Sides { writer: reader, reader: Some(reader), number: self.number };
        let step = sides.step(field.ty, Some(field.ty), target)?;
        Ok(Some(Instead { schema: Arc::clone(reader), bytes, step }))
    }

    fn step(&self, from: Id, reads: Option<Id>, target: &FieldRef) -> Result<Step, String> {
        let typed = self.writer.get(from);
        // What the reader says of the value itself.
        let reads = self.reader.zip(reads).map(|(reader, id)| reader.nullable(id).unwrap_or(id));
        let mismatch = || {
            let name = self.writer.name(from);
            format!("field \"{}\": the schema has {name}, which is no {}", target.name(), target.data_type())
        };
        Ok(match (&typed.ty, typed.logical, target.data_type()) {
            (Type::Null, ..) => Step::Null,
            (Type::Union(branches), ..) => self.union(branches, reads, target)?,
            (Type::Boolean, _, DataType::Boolean) => Step::Bool,
            (Type::Int, Some(Logical::Date), DataType::Date32) => Step::Int,
            (Type::Int, Some(Logical::Date), DataType::Timestamp(..)) => Step::Time(86_400_000_000_000),
            (Type::Int, Some(Logical::TimeMillis), DataType::Time64(TimeUnit::Microsecond)) => Step::Time(1_000_000),
            (Type::Long, Some(Logical::TimeMicros), DataType::Time64(TimeUnit::Microsecond)) => Step::Time(1000),
            (Type::Long, Some(Logical::Timestamp { nanos, .. }), DataType::Timestamp(..)) => Step::Time(nanos),
            (Type::Int | Type::Long, None, DataType::Timestamp(..)) => match self.number {
                Unit::Iso => {
                    return Err(format!(
                        "field \"{}\": the schema has a plain {}, not a timestamp: set option `timestamp` to s, ms or us to say what it counts",
                        target.name(),
                        self.writer.name(from)
                    ));
                }
                Unit::Seconds => Step::Time(1_000_000_000),
                Unit::Millis => Step::Time(1_000_000),
                Unit::Micros => Step::Time(1000),
            },
            (Type::Int | Type::Long, _, to) if is_number(to) => {
                if matches!(typed.ty, Type::Int) {
                    Step::Int
                } else {
                    Step::Long
                }
            }
            (Type::Float, _, DataType::Float32 | DataType::Float64) => Step::Float,
            (Type::Double, _, DataType::Float32 | DataType::Float64) => Step::Double,
            (Type::Bytes, Some(Logical::Decimal { scale, .. }), DataType::Decimal128(..) | DataType::Float64) => {
                Step::Decimal { fixed: None, scale }
            }
            (Type::Fixed(size), Some(Logical::Decimal { scale, .. }), DataType::Decimal128(..) | DataType::Float64) => {
                Step::Decimal { fixed: Some(*size), scale }
            }
            (Type::Bytes, Some(Logical::Decimal { .. }), to) if is_text(to) => Step::Json(from),
            (Type::String | Type::Bytes, _, to) if is_text(to) => Step::Text,
            (Type::String, _, DataType::Timestamp(..)) => Step::Instant,
            (Type::String | Type::Bytes, _, to) if is_bytes(to) => Step::Bytes,
            (Type::Fixed(size), _, to) if is_bytes(to) => Step::Fixed(*size),
            (Type::Fixed(_), Some(Logical::Uuid), to) if is_text(to) => Step::Uuid,
            (Type::Enum { symbols, .. }, _, to) if is_text(to) => Step::Enum(self.symbols(symbols, reads, target)),
            (Type::Array(item), _, DataType::List(to)) => {
                let reads = self.within(reads, |ty| if let Type::Array(item) = ty { Some(*item) } else { None });
                Step::List(Box::new(self.step(*item, reads, to)?))
            }
            (Type::Map(value), _, DataType::Map(entries, _)) => {
                let reads = self.within(reads, |ty| if let Type::Map(value) = ty { Some(*value) } else { None });
                let value_of = |entries: &Field| match entries.data_type() {
                    DataType::Struct(parts) if parts.len() == 2 && is_text(parts[0].data_type()) => {
                        Some(Arc::clone(&parts[1]))
                    }
                    _ => None,
                };
                let to = value_of(entries).ok_or_else(mismatch)?;
                Step::Map(Box::new(self.step(*value, reads, &to)?))
            }
            (Type::Record { fields, .. }, _, DataType::Struct(parts)) => {
                let step = self.record(fields, reads, parts);
                Step::Record(step.map_err(|why| format!("field \"{}\": {why}", target.name()))?)
            }
            (_, _, to) if is_text(to) => Step::Json(from),
            _ => return Err(mismatch()),
        })
    }

    fn within(&self, reads: Option<Id>, part: impl Fn(&Type) -> Option<Id>) -> Option<Id> {
        part(&self.reader?.get(reads?).ty)
    }

    fn union(&self, branches: &[Id], reads: Option<Id>, target: &FieldRef) -> Result<Step, String> {
        let mut steps = Vec::with_capacity(branches.len());
        let (mut fits, mut first) = (false, None);
        for branch in branches {
            match self.step(*branch, reads, target) {
                Ok(step) => {
                    fits |= !matches!(step, Step::Null);
                    steps.push(step);
                }
                Err(why) => {
                    first.get_or_insert_with(|| why.clone());
                    steps.push(Step::Refuse(why));
                }
            }
        }
        match first {
            Some(why) if !fits => Err(why),
            _ => Ok(Step::Union(steps)),
        }
    }

    fn symbols(&self, symbols: &[String], reads: Option<Id>, target: &FieldRef) -> Vec<Result<String, String>> {
        let known = self.reader.zip(reads).and_then(|(reader, id)| match &reader.get(id).ty {
            Type::Enum { symbols, default } => Some((symbols, default.and_then(|at| symbols.get(at)))),
            _ => None,
        });
        let taken = |symbol: &String| match known {
            Some((known, default)) if !known.contains(symbol) => default.cloned().ok_or_else(|| {
                format!("field \"{}\": the reader's schema has no symbol `{symbol}` and no default", target.name())
            }),
            _ => Ok(symbol.clone()),
        };
        symbols.iter().map(taken).collect()
    }
}

fn is_text(ty: &DataType) -> bool {
    matches!(ty, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn is_bytes(ty: &DataType) -> bool {
    matches!(ty, DataType::Binary | DataType::LargeBinary)
}

fn is_number(ty: &DataType) -> bool {
    ty.is_integer() || matches!(ty, DataType::Float32 | DataType::Float64 | DataType::Decimal128(..))
}
