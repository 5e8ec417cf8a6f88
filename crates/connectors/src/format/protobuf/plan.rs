//! From the fields of a message to columns.
//!
//! | Protobuf | Column |
//! |---|---|
//! | `bool`, `float`, `double` | BOOLEAN, REAL, DOUBLE |
//! | `int32`, `sint32`, `sfixed32`; `int64` and its like | INT; BIGINT |
//! | `uint32`, `fixed32`; `uint64`, `fixed64` | INT UNSIGNED; BIGINT UNSIGNED |
//! | `string`, an enum | TEXT; of a number that the enum has not, the number |
//! | `bytes` | BYTEA |
//! | `google.protobuf.Timestamp`, `Duration` | TIMESTAMP; BIGINT, in microseconds |
//! | `google.protobuf.Int64Value` and its like | the column of its value, nullable |
//! | a message, `repeated`, `map<…>` | a struct, a list, a map whose keys are TEXT |
//! | a message within itself, `google.protobuf.Struct`, `Value`, `Any` | TEXT: as JSON |
//!
//! A field that can be told from an unset one (`optional`, of a `oneof`, a message)
//! is null when it is unset; another has its default, as Protobuf says.
//!
//! Invariant: a plan has a slot for each column, and only for these; fields that
//! nobody asked for are passed over. Called by the format.

use crate::format::{
    column::nullable,
    typed::{map_of, utc},
};
use arrow_schema::{DataType, Field, FieldRef};
use prost_reflect::{Cardinality, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use std::{collections::HashMap, sync::Arc};

/// How a message is read.
#[derive(Debug)]
pub(super) struct MessagePlan {
    /// By the field's number, ascending.
    entries: Vec<(u32, Entry)>,
    /// One for each column.
    pub(super) slots: Vec<Slot>,
}

/// What happens when a field is met.
#[derive(Debug)]
pub(super) struct Entry {
    /// Where it goes; none for a field that only unsets others.
    pub(super) slot: Option<usize>,
    /// Slots of the other fields of its `oneof`.
    pub(super) clears: Vec<usize>,
}

/// A column's field.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) shape: Shape,
    pub(super) absent: Absent,
}

/// How often it is there.
#[derive(Debug)]
pub(super) enum Shape {
    One(Of),
    List(Of),
    /// Slots 0 and 1 are key and value.
    Map(Box<MessagePlan>),
    /// The message has no such field.
    Never,
}

/// What a field that is not there gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absent {
    Null,
    Default,
    Refused,
}

/// What a value is.
#[derive(Debug)]
pub(super) enum Of {
    Bool,
    Float,
    Double,
    /// Two's complement, of 64 bits on the wire.
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Text,
    Bytes,
    Enum(HashMap<i32, String>),
    /// The key of a map's entry, a number or a boolean, as text: as JSON writes it.
    Key(Box<Of>),
    Message(Box<MessagePlan>),
    /// The one field of a message, in the message's column.
    Wrapper(Box<MessagePlan>),
    Timestamp,
    Duration,
    Json(MessageDescriptor),
}

impl Of {
    /// Whether many of them may lie in one field's bytes.
    pub(super) fn packs(&self) -> bool {
        !matches!(
            self,
            Self::Text
                | Self::Bytes
                | Self::Message(_)
                | Self::Wrapper(_)
                | Self::Timestamp
                | Self::Duration
                | Self::Json(_)
        )
    }
}

impl MessagePlan {
    /// What to do with a field.
    pub(super) fn entry(&self, number: u32) -> Option<&Entry> {
        let at = self.entries.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        Some(&self.entries[at].1)
    }

    /// The plan for columns of a message.
    ///
    /// # Errors
    /// When a column can't be filled from its field.
    pub(super) fn new(message: &MessageDescriptor, targets: &[FieldRef]) -> Result<Self, String> {
        let mut slots = Vec::with_capacity(targets.len());
        let mut place: HashMap<u32, usize> = HashMap::new();
        for (at, target) in targets.iter().enumerate() {
            let found =
                message.fields().find(|field| field.name() == target.name() || field.json_name() == target.name());
            slots.push(match found {
                Some(field) => {
                    place.insert(field.number(), at);
                    slot(&field, target)?
                }
                None => Slot { shape: Shape::Never, absent: Absent::Null },
            });
        }
        let entry = |field: FieldDescriptor| {
            let number = field.number();
            let siblings = field.containing_oneof();
            let siblings = siblings.iter().flat_map(|oneof| oneof.fields()).filter(|other| other.number() != number);
            let clears: Vec<usize> = siblings.filter_map(|other| place.get(&other.number()).copied()).collect();
            let slot = place.get(&number).copied();
            (slot.is_some() || !clears.is_empty()).then_some((number, Entry { slot, clears }))
        };
        let mut entries: Vec<(u32, Entry)> = message.fields().filter_map(entry).collect();
        entries.sort_by_key(|(number, _)| *number);
        Ok(Self { entries, slots })
    }
}

fn slot(field: &FieldDescriptor, target: &FieldRef) -> Result<Slot, String> {
    let mismatch = || format!("field \"{}\": {} is no {}", target.name(), kind_name(field), target.data_type());
    if field.is_group() {
        return Err(format!("field \"{}\": groups are not read", target.name()));
    }
    if field.is_map() {
        let (Kind::Message(entry), DataType::Map(entries, _)) = (field.kind(), target.data_type()) else {
            return Err(mismatch());
        };
        let DataType::Struct(parts) = entries.data_type() else { return Err(mismatch()) };
        let [_, value] = parts.as_ref() else { return Err(mismatch()) };
        let key = match entry.map_entry_key_field().kind() {
            Kind::String => Of::Text,
            Kind::Bool => Of::Key(Box::new(Of::Bool)),
            number => {
                let number = of(&number, &Arc::new(Field::new("key", DataType::Int64, false)));
                Of::Key(Box::new(number.ok_or_else(mismatch)??))
            }
        };
        if !matches!(parts[0].data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) {
            return Err(mismatch());
        }
        let key = Slot { shape: Shape::One(key), absent: Absent::Default };
        let value = slot(&entry.map_entry_value_field(), value)?;
        // What an entry leaves out has its default, a message too.
        let slots = [key, value].map(|slot| Slot { absent: Absent::Default, ..slot }).into();
        let entries = [(1, 0), (2, 1)].map(|(number, slot)| (number, Entry { slot: Some(slot), clears: Vec::new() }));
        let plan = MessagePlan { entries: entries.into(), slots };
        return Ok(Slot { shape: Shape::Map(Box::new(plan)), absent: Absent::Default });
    }
    if field.is_list() {
        let DataType::List(item) = target.data_type() else { return Err(mismatch()) };
        let of = of(&field.kind(), item).ok_or_else(mismatch)??;
        return Ok(Slot { shape: Shape::List(of), absent: Absent::Default });
    }
    let of = of(&field.kind(), target).ok_or_else(mismatch)??;
    let absent = match field.cardinality() {
        Cardinality::Required => Absent::Refused,
        _ if field.supports_presence() => Absent::Null,
        _ => Absent::Default,
    };
    Ok(Slot { shape: Shape::One(of), absent })
}

pub(super) fn kind_name(field: &FieldDescriptor) -> String {
    let many = if field.is_list() { "repeated " } else { "" };
    format!("{many}{:?}", field.kind())
}

/// How a value goes into a column; `None` when it can't.
fn of(kind: &Kind, target: &FieldRef) -> Option<Result<Of, String>> {
    let to = target.data_type();
    let is_text = matches!(to, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let is_bytes = matches!(to, DataType::Binary | DataType::LargeBinary);
    let is_float = matches!(to, DataType::Float32 | DataType::Float64);
    let is_number = to.is_integer() || is_float || matches!(to, DataType::Decimal128(..));
    let is_time = matches!(to, DataType::Timestamp(..));
    let number = |of: Of| (is_number || is_time).then_some(Ok(of));
    match kind {
        Kind::Bool => (*to == DataType::Boolean).then_some(Ok(Of::Bool)),
        Kind::Float => is_float.then_some(Ok(Of::Float)),
        Kind::Double => is_float.then_some(Ok(Of::Double)),
        Kind::Int32 => number(Of::Int32),
        Kind::Int64 => number(Of::Int64),
        Kind::Uint32 => number(Of::Uint32),
        Kind::Uint64 => number(Of::Uint64),
        Kind::Sint32 => number(Of::Sint32),
        Kind::Sint64 => number(Of::Sint64),
        Kind::Fixed32 => number(Of::Fixed32),
        Kind::Fixed64 => number(Of::Fixed64),
        Kind::Sfixed32 => number(Of::Sfixed32),
        Kind::Sfixed64 => number(Of::Sfixed64),
        Kind::String => (is_text || is_bytes || is_time).then_some(Ok(if is_bytes { Of::Bytes } else { Of::Text })),
        Kind::Bytes => is_bytes.then_some(Ok(Of::Bytes)),
        Kind::Enum(of) if is_text => Some(Ok(Of::Enum(names(of)))),
        Kind::Enum(_) => to.is_integer().then_some(Ok(Of::Int32)),
        Kind::Message(message) => match (message.full_name(), to) {
            ("google.protobuf.Timestamp", DataType::Timestamp(..)) => Some(Ok(Of::Timestamp)),
            ("google.protobuf.Duration", DataType::Int64) => Some(Ok(Of::Duration)),
            (name, to) if is_wrapper(name) && !matches!(to, DataType::Struct(_)) => {
                let value = Arc::new(Field::new("value", to.clone(), true));
                Some(MessagePlan::new(message, &[value]).map(|plan| Of::Wrapper(Box::new(plan))))
            }
            (_, DataType::Struct(parts)) => {
                let plan = MessagePlan::new(message, parts);
                let plan = plan.map_err(|why| format!("field \"{}\": {why}", target.name()));
                Some(plan.map(|plan| Of::Message(Box::new(plan))))
            }
            _ => is_text.then(|| Ok(Of::Json(message.clone()))),
        },
    }
}

fn names(of: &EnumDescriptor) -> HashMap<i32, String> {
    let mut names = HashMap::new();
    for value in of.values() {
        // Of several names for a number, the first is its own.
        names.entry(value.number()).or_insert_with(|| value.name().to_string());
    }
    names
}

pub(super) fn is_wrapper(name: &str) -> bool {
    let short = name.strip_prefix("google.protobuf.").and_then(|name| name.strip_suffix("Value"));
    matches!(short, Some("Double" | "Float" | "Int64" | "UInt64" | "Int32" | "UInt32" | "Bool" | "String" | "Bytes"))
}

/// The columns of a message.
pub(super) fn columns(message: &MessageDescriptor) -> Vec<FieldRef> {
    fields(message, &mut vec![message.full_name().to_string()])
}

fn fields(message: &MessageDescriptor, within: &mut Vec<String>) -> Vec<FieldRef> {
    let own = message.fields().filter(|field| !field.is_group());
    own.map(|field| Arc::new(nullable(field.name(), column(&field, within)))).collect()
}

fn column(field: &FieldDescriptor, within: &mut Vec<String>) -> DataType {
    match field.kind() {
        Kind::Message(entry) if field.is_map() => {
            map_of(DataType::Utf8, value_type(&entry.map_entry_value_field().kind(), within), true)
        }
        kind if field.is_list() => DataType::List(Arc::new(Field::new("item", value_type(&kind, within), true))),
        kind => value_type(&kind, within),
    }
}

fn value_type(kind: &Kind, within: &mut Vec<String>) -> DataType {
    match kind {
        Kind::Bool => DataType::Boolean,
        Kind::Float => DataType::Float32,
        Kind::Double => DataType::Float64,
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => DataType::Int32,
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => DataType::Int64,
        Kind::Uint32 | Kind::Fixed32 => DataType::UInt32,
        Kind::Uint64 | Kind::Fixed64 => DataType::UInt64,
        Kind::String | Kind::Enum(_) => DataType::Utf8,
        Kind::Bytes => DataType::Binary,
        Kind::Message(message) => match message.full_name() {
            "google.protobuf.Timestamp" => utc(),
            "google.protobuf.Duration" => DataType::Int64,
            "google.protobuf.Struct"
            | "google.protobuf.Value"
            | "google.protobuf.ListValue"
            | "google.protobuf.Any"
            | "google.protobuf.FieldMask" => DataType::Utf8,
            name if is_wrapper(name) => {
                let value = message.fields().next().map(|value| value_type(&value.kind(), within));
                value.unwrap_or(DataType::Utf8)
            }
            name if within.iter().any(|outer| outer == name) || message.fields().len() == 0 => DataType::Utf8,
            name => {
                within.push(name.to_string());
                let parts = fields(message, within);
                within.pop();
                DataType::Struct(parts.into())
            }
        },
    }
}
