//! Format `syslog`: messages as columns.
//!
//! | Column | |
//! |---|---|
//! | `priority` | facility times eight plus severity: `priority % 8 <= 3` is an error, or worse |
//! | `facility` | the part of the system: `kern`, `auth`, `local3` … |
//! | `severity` | `emerg`, `alert`, `crit`, `err`, `warning`, `notice`, `info`, `debug` |
//! | `timestamp` | when, by the sender's clock |
//! | `host`, `app`, `procid`, `msgid` | who; NULL where a message does not say |
//! | `structured_data` | as JSON: `{"origin":{"ip":"192.0.2.1"}}`; a name that came several times has a list; NULL where there is none |
//! | `message` | the text |
//!
//! | Option | Meaning |
//! |---|---|
//! | `zone` | of times that say none, as those of RFC 3164: `+02:00`; `Z` unless said |
//!
//! Invariant: a record gives one row or is refused with its byte; a declared
//! column is one of these. Called by the engine's leaf.

use super::parse::{Element, Message, parse};
use crate::format::{json::utf8, time::instant};
use arrow_array::{ArrayRef, Int16Array, RecordBatch, RecordBatchOptions, StringArray, TimestampMicrosecondArray};
use arrow_cast::cast;
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use serde_json::{Map, Value};
use std::sync::Arc;
use tidemill_core::{Block, Decoder, Error, Format, Options, Refusal, Result, Timestamp, nearest};

/// Format `syslog`.
#[derive(Debug, Clone)]
pub struct SyslogFormat {
    schema: SchemaRef,
    zone: Arc<str>,
}

fn columns() -> Schema {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    Schema::new(vec![
        Field::new("priority", DataType::Int16, false),
        Field::new("facility", DataType::Utf8, false),
        Field::new("severity", DataType::Utf8, false),
        Field::new("timestamp", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        text("host"),
        text("app"),
        text("procid"),
        text("msgid"),
        text("structured_data"),
        Field::new("message", DataType::Utf8, false),
    ])
}

impl Default for SyslogFormat {
    fn default() -> Self {
        Self { schema: Arc::new(columns()), zone: "Z".into() }
    }
}

impl SyslogFormat {
    /// From a stream's options and declared columns, which may be some of a message's, in any order.
    ///
    /// # Errors
    /// When an option is wrong, or a column is none of a message's or of another type.
    pub fn from_options(options: &Options, declared: Option<SchemaRef>) -> Result<Self> {
        let owner = options.owner();
        let mut format = Self::default();
        if let Some(zone) = options.get("zone") {
            if instant(&format!("2026-01-01T00:00:00{zone}")).is_none() || zone.is_empty() {
                return Err(Error::user(format!(
                    "{owner}: option `zone` must be an offset from UTC such as +02:00, or Z, not `{zone}`"
                )));
            }
            format.zone = zone.into();
        }
        if let Some(declared) = declared {
            check(owner, &declared)?;
            format.schema = declared;
        }
        Ok(format)
    }
}

/// Refuses columns that no message has.
fn check(owner: &str, declared: &Schema) -> Result<()> {
    let ours = columns();
    for field in declared.fields() {
        let Ok(known) = ours.field_with_name(field.name()) else {
            let names: Vec<&str> = ours.fields().iter().map(|f| f.name().as_str()).collect();
            let hint = nearest(field.name(), &names)
                .map_or_else(|| format!("it has {}", names.join(", ")), |near| format!("did you mean `{near}`?"));
            return Err(Error::user(format!("{owner}: a syslog message has no column `{}`; {hint}", field.name())));
        };
        let fits = match (known.data_type(), field.data_type()) {
            (DataType::Utf8, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) => true,
            (DataType::Int16, DataType::Int16 | DataType::Int32 | DataType::Int64) => true,
            (DataType::Timestamp(..), DataType::Timestamp(unit, _)) => *unit != TimeUnit::Nanosecond,
            _ => false,
        };
        if !fits {
            return Err(Error::user(format!(
                "{owner}: column `{}` of a syslog message is {}, which does not fit into {}; leave the columns out to have all of them",
                field.name(),
                known.data_type(),
                field.data_type()
            )));
        }
    }
    Ok(())
}

impl Format for SyslogFormat {
    fn name(&self) -> &'static str {
        "syslog"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn decoder(&self, projection: &[usize]) -> Box<dyn Decoder> {
        let fields: Vec<_> = projection.iter().map(|i| Arc::clone(&self.schema.fields()[*i])).collect();
        Box::new(SyslogDecoder { schema: Arc::new(Schema::new(fields)), zone: Arc::clone(&self.zone) })
    }
}

struct SyslogDecoder {
    schema: SchemaRef,
    zone: Arc<str>,
}

impl Decoder for SyslogDecoder {
    fn decode(&mut self, block: &Block, refused: &mut Vec<Refusal>) -> Result<RecordBatch> {
        let mut messages = Vec::with_capacity(block.len());
        let mut arrivals = block.times.iter().flat_map(|(rows, at)| std::iter::repeat_n(*at, *rows as usize));
        for (row, record) in block.records().enumerate() {
            let arrival: Option<Timestamp> = arrivals.next();
            let read = utf8(record)
                .map_err(|fault| fault.to_string())
                .and_then(|text| parse(text, arrival, &self.zone))
                .and_then(|message| self.whole(message));
            match read {
                Ok(message) => messages.push(message),
                Err(reason) => refused.push(Refusal { row, reason }),
            }
        }
        let arrays = self.schema.fields().iter().map(|field| column(field, &messages)).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(messages.len()));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options)
            .map_err(|e| Error::internal("columns of messages don't fit their schema").because(e))
    }
}

impl SyslogDecoder {
    /// The message, unless it lacks what is declared NOT NULL.
    fn whole<'a>(&self, message: Message<'a>) -> Result<Message<'a>, String> {
        let missing = |name: &str| match name {
            "timestamp" => message.at.is_none(),
            "host" => message.host.is_none(),
            "app" => message.app.is_none(),
            "procid" => message.procid.is_none(),
            "msgid" => message.msgid.is_none(),
            "structured_data" => message.data.is_empty(),
            _ => false,
        };
        match self.schema.fields().iter().find(|f| !f.is_nullable() && missing(f.name())) {
            Some(field) => Err(format!("field \"{}\": missing, and declared NOT NULL", field.name())),
            None => Ok(message),
        }
    }
}

fn column(field: &Field, messages: &[Message<'_>]) -> Result<ArrayRef> {
    fn texts<'a>(values: impl Iterator<Item = Option<&'a str>>) -> ArrayRef {
        Arc::new(values.collect::<StringArray>())
    }
    let array: ArrayRef = match field.name().as_str() {
        "priority" => Arc::new(Int16Array::from_iter_values(messages.iter().map(|m| i16::from(m.priority)))),
        "facility" => texts(messages.iter().map(|m| Some(m.facility()))),
        "severity" => texts(messages.iter().map(|m| Some(m.severity()))),
        "timestamp" => {
            let times = messages.iter().map(|m| m.at).collect::<TimestampMicrosecondArray>();
            Arc::new(times.with_timezone("UTC"))
        }
        "host" => texts(messages.iter().map(|m| m.host)),
        "app" => texts(messages.iter().map(|m| m.app)),
        "procid" => texts(messages.iter().map(|m| m.procid)),
        "msgid" => texts(messages.iter().map(|m| m.msgid)),
        "structured_data" => Arc::new(messages.iter().map(|m| json(&m.data)).collect::<StringArray>()),
        "message" => texts(messages.iter().map(|m| Some(m.text))),
        other => return Err(Error::internal(format!("a message has no column `{other}`"))),
    };
    if array.data_type() == field.data_type() {
        return Ok(array);
    }
    cast(&array, field.data_type()).map_err(|e| Error::internal("a message's column can't be cast").because(e))
}

/// Structured data as a JSON object of objects; what comes several times is a list.
fn json(data: &[Element<'_>]) -> Option<String> {
    if data.is_empty() {
        return None;
    }
    let mut all = Map::new();
    for element in data {
        let mut params = Map::new();
        for (name, value) in &element.params {
            add(&mut params, name, Value::String(value.clone()));
        }
        add(&mut all, element.id, Value::Object(params));
    }
    Some(Value::Object(all).to_string())
}

fn add(to: &mut Map<String, Value>, name: &str, value: Value) {
    match to.get_mut(name) {
        None => drop(to.insert(name.to_string(), value)),
        Some(Value::Array(list)) => list.push(value),
        Some(one) => *one = Value::Array(vec![one.take(), value]),
    }
}
