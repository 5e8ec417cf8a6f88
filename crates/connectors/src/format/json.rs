//! JSON: each record is one object.
//!
//! [`JsonFormat`] knows the columns and where in a record each is found; its
//! decoder lets [`scan`] check the whole record and converts only the values of
//! the columns that the plan asks for.
//!
//! Invariant: a record is refused as a whole, with the field or byte, what was
//! expected and what was found; no part of it stays in a column.
//!
//! | Column | Takes |
//! |---|---|
//! | text | a string; an object or array as its plain text |
//! | integers | a number without fraction or exponent, in range |
//! | floats | a number |
//! | boolean | `true`, `false` |
//! | timestamp | a string as [`super::time::instant`] reads it, or a number with option `timestamp` |
//! | list | an array of what its items take |
//! | struct | an object, member by member |
//!
//! A missing member and `null` are null, or refused where the column is NOT
//! NULL. Column `a.b` is member `b` of member `a`; option `path.<column>` says
//! otherwise.
//!
//! **Why a scanner of our own.** Three columns of tweet-like records of 1.4 KB
//! with 47 members, the whole record checked, one thread of a shared AMD EPYC,
//! default `x86-64` target, the best of 40 interleaved runs:
//!
//! | | GB/s |
//! |---|---|
//! | [`scan`] | 1.53 |
//! | the decoder, Arrow columns and all | 1.35 |
//! | `serde_json` to a struct of three borrowed fields | 0.71 |
//! | `sonic-rs` `to_object_iter` (without AVX2 at compile time) | 0.62 |
//! | `simd-json` tape (AVX2 found at run time) | 0.57 |
//! | `sonic-rs` to the same struct | 0.46 |
//!
//! Projecting is the gain: the others parse what nobody asked for, or can't
//! both skip and check. `cargo bench -p tidemill-connectors` measures ours.

mod infer;
mod scan;
#[cfg(test)]
mod tests;

pub(crate) use scan::utf8;
pub use scan::{Fault, MAX_DEPTH, MAX_NUMBER, Paths, Raw, items, scan, scan_bytes, unescape};

use super::{
    column::{Column, Values, projected},
    time::{self, Unit},
};
use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::{SchemaRef, TimeUnit};
use std::sync::Arc;
use tidemill_core::{Block, Decoder, Error, Format, Options, Refusal, Result};

/// JSON objects with declared or sampled columns.
#[derive(Debug, Clone)]
pub struct JsonFormat {
    schema: SchemaRef,
    paths: Vec<Vec<String>>,
    number: Unit,
}

impl JsonFormat {
    /// Columns of these names and types; a name with dots is a path.
    ///
    /// # Errors
    /// When a column's type can't be decoded to.
    pub fn new(schema: SchemaRef) -> Result<Self> {
        for field in schema.fields() {
            Column::new(field, Unit::Iso)?;
        }
        let paths = schema.fields().iter().map(|f| split(f.name())).collect();
        Ok(Self { schema, paths, number: Unit::Iso })
    }

    /// Columns as they are in sample records, each of which may be anything:
    /// what is no object is passed over. Members are columns in the order of
    /// their first appearance; a member of several types is text.
    ///
    /// # Errors
    /// When no sample is an object with a member.
    pub fn infer(sample: &[&[u8]]) -> Result<Self> {
        let schema = infer::schema(sample)?;
        // A sampled name is a key, dots and all.
        let paths = schema.fields().iter().map(|f| vec![f.name().clone()]).collect();
        Ok(Self { schema, paths, number: Unit::Iso })
    }

    /// From a stream's options and declared columns. Without columns, they are
    /// sampled from the file that option `sample` names, or from the first file
    /// of a `files` stream.
    ///
    /// # Errors
    /// When an option is wrong, a column can't be decoded to, or there is nothing to sample.
    pub fn from_options(options: &Options, columns: Option<SchemaRef>) -> Result<Self> {
        let mut format = match columns {
            Some(schema) => Self::new(schema)?,
            None => {
                let sample = crate::files::sample(options)?;
                let lines: Vec<&[u8]> = sample.split(|b| *b == b'\n').filter(|l| !l.trim_ascii().is_empty()).collect();
                Self::infer(&lines)?
            }
        };
        format.number = Unit::from_options(options)?;
        for (field, path) in format.schema.fields().iter().zip(&mut format.paths) {
            if let Some(given) = options.get(&format!("path.{}", field.name().to_lowercase())) {
                *path = split(given);
            }
        }
        Ok(format)
    }

    /// What numbers in timestamp columns count.
    #[must_use]
    pub fn with_numbers(mut self, number: Unit) -> Self {
        self.number = number;
        self
    }
}

fn split(path: &str) -> Vec<String> {
    path.split('.').map(str::to_string).collect()
}

impl Format for JsonFormat {
    fn name(&self) -> &'static str {
        "json"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn decoder(&self, projection: &[usize]) -> Box<dyn Decoder> {
        let (schema, columns) = projected(&self.schema, projection, self.number);
        Box::new(JsonDecoder { columns, schema, paths: Paths::new(projection.iter().map(|i| &self.paths[*i])) })
    }
}

struct JsonDecoder {
    schema: SchemaRef,
    paths: Paths,
    columns: Vec<Column>,
}

impl Decoder for JsonDecoder {
    fn decode(&mut self, block: &Block, refused: &mut Vec<Refusal>) -> Result<RecordBatch> {
        let mut rows = 0;
        let whole = simdutf8::basic::from_utf8(&block.bytes).ok();
        let mut found = vec![Raw::Null; self.columns.len()];
        for (row, span) in block.spans.iter().enumerate() {
            let record = whole.and_then(|text| text.get(span.start as usize..span.end as usize));
            let record = record.map_or_else(|| utf8(block.record(row)), Ok);
            found.fill(Raw::Null);
            let done = record
                .and_then(|record| scan(record, &self.paths, |i, raw| found[i] = raw))
                .map_err(|fault| fault.to_string())
                .and_then(|()| self.columns.iter_mut().zip(&found).try_for_each(|(column, raw)| push(column, *raw)));
            match done {
                Ok(()) => rows += 1,
                Err(reason) => {
                    self.columns.iter_mut().for_each(|column| column.truncate(rows));
                    refused.push(Refusal { row, reason });
                }
            }
        }
        let columns = self.columns.iter_mut().map(Column::finish).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .map_err(|e| Error::internal("decoded columns don't fit their schema").because(e))
    }
}

/// Appends a value, or says why it is refused; then the column may hold a part of it.
fn push(column: &mut Column, raw: Raw<'_>) -> Result<(), String> {
    if raw == Raw::Null {
        return column.null();
    }
    match (&mut column.values, raw) {
        (Values::Text { text, ends, .. }, Raw::Text { text: value, escaped }) => {
            if escaped {
                unescape(value, text).map_err(|fault| format!("field \"{}\": {}", column.field.name(), fault.what))?;
            } else {
                text.push_str(value);
            }
            ends.push(text.len());
        }
        (Values::Text { text, ends, .. }, Raw::Array(value) | Raw::Object(value)) => {
            text.push_str(value);
            ends.push(text.len());
        }
        (Values::Text { text, ends, any: true }, Raw::Number(value)) => {
            text.push_str(value);
            ends.push(text.len());
        }
        (Values::Text { text, ends, any: true }, Raw::Bool(value)) => {
            text.push_str(if value { "true" } else { "false" });
            ends.push(text.len());
        }
        (Values::Int { values, min, max }, Raw::Number(number)) => match number.parse::<i64>() {
            Ok(value) if (*min..=*max).contains(&value) => values.push(value),
            _ => {
                let want = if number.contains(['.', 'e', 'E']) {
                    "an integer".to_string()
                } else {
                    format!("an integer between {min} and {max}")
                };
                return Err(wrong(column, &want, raw));
            }
        },
        (Values::Float(values), Raw::Number(number)) => match number.parse::<f64>() {
            Ok(value) if value.is_finite() => values.push(value),
            _ => return Err(wrong(column, "a number in the range of a DOUBLE", raw)),
        },
        (Values::Bool(values), Raw::Bool(value)) => values.push(value),
        (Values::Time { micros, unit, number }, Raw::Text { .. } | Raw::Number(_)) => {
            let at = match raw {
                Raw::Text { text, .. } => time::instant(text),
                Raw::Number(text) => number.micros(text),
                _ => None,
            };
            match at.filter(|at| *unit != TimeUnit::Nanosecond || at.checked_mul(1000).is_some()) {
                Some(at) => micros.push(at),
                None if *number == Unit::Iso && matches!(raw, Raw::Number(_)) => {
                    return Err(wrong(column, "a timestamp as text (or set option `timestamp` to s, ms or us)", raw));
                }
                None => return Err(wrong(column, "a timestamp", raw)),
            }
        }
        (Values::List { ends, item }, Raw::Array(array)) => {
            items::<Reason>(array, |raw| push(item, raw).map_err(Reason))
                .map_err(|Reason(reason)| format!("field \"{}\": {reason}", column.field.name()))?;
            ends.push(item.len());
        }
        (Values::Struct { children, paths }, Raw::Object(object)) => {
            let mut found = vec![Raw::Null; children.len()];
            scan(object, paths, |i, raw| found[i] = raw)
                .map_err(|fault| fault.to_string())
                .and_then(|()| children.iter_mut().zip(found).try_for_each(|(child, raw)| push(child, raw)))
                .map_err(|reason| format!("field \"{}\": {reason}", column.field.name()))?;
        }
        (values, raw) => {
            let want = match values {
                Values::Text { .. } => "a string",
                Values::Int { .. } => "an integer",
                Values::Float(_) => "a number",
                Values::Bool(_) => "true or false",
                Values::Time { .. } => "a timestamp",
                Values::List { .. } => "an array",
                Values::Struct { .. } => "an object",
                // `JsonFormat::new` has refused these.
                _ => "another type of column",
            };
            return Err(wrong(column, want, raw));
        }
    }
    column.valid();
    Ok(())
}

struct Reason(String);

impl From<Fault> for Reason {
    fn from(fault: Fault) -> Self {
        Self(fault.to_string())
    }
}

fn wrong(column: &Column, want: &str, found: Raw<'_>) -> String {
    let shown = |text: &str| match text.char_indices().nth(40) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_string(),
    };
    let found = match found {
        Raw::Null => "null".to_string(),
        Raw::Bool(value) => value.to_string(),
        Raw::Text { text, .. } => format!("\"{}\"", shown(text)),
        Raw::Number(text) => shown(text),
        Raw::Array(_) => "an array".to_string(),
        Raw::Object(_) => "an object".to_string(),
    };
    format!("field \"{}\": expected {want}, found {found}", column.field.name())
}
