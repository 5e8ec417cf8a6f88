//! CSV: each record is one line of fields.
//!
//! | Option | Meaning |
//! |---|---|
//! | `delimiter` | one character (`,`); `\t` or `tab` for a tab |
//! | `header` | `true`: files begin with a line of names; columns may then be sampled |
//! | `timestamp` | what numbers in timestamp columns count: `iso` (none), `s`, `ms`, `us` |
//!
//! An empty field is the empty string in a text column and null elsewhere.
//!
//! Invariant: a record is one line, so a quoted field can't hold a line end. A
//! record with too few or too many fields is refused, and so is one whose quote
//! is not closed.

use super::{
    column::{Column, Values, nullable, projected},
    time::{self, Unit},
};
use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::{DataType, Schema, SchemaRef, TimeUnit};
use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use std::sync::Arc;
use tidemill_core::{Block, Decoder, Error, Format, Options, Refusal, Result};

/// Fields separated by a delimiter.
#[derive(Debug, Clone)]
pub struct CsvFormat {
    schema: SchemaRef,
    delimiter: u8,
    header: bool,
    number: Unit,
}

impl CsvFormat {
    /// Columns in the order of the fields, separated by commas.
    ///
    /// # Errors
    /// When a column's type can't be decoded to.
    pub fn new(schema: SchemaRef) -> Result<Self> {
        for field in schema.fields() {
            let column = Column::new(field, Unit::Iso)?;
            if matches!(column.values, Values::List { .. } | Values::Struct { .. }) {
                return Err(Error::user(format!("column \"{}\": a CSV field is no list or struct", field.name())));
            }
        }
        Ok(Self { schema, delimiter: b',', header: false, number: Unit::Iso })
    }

    /// From a stream's options and declared columns. Without columns, they are
    /// named by the header of the sampled file.
    ///
    /// # Errors
    /// When an option is wrong, a column can't be decoded to, or there is no header to take names from.
    pub fn from_options(options: &Options, columns: Option<SchemaRef>) -> Result<Self> {
        let owner = options.owner();
        let header = options.parse("header", false)?;
        let delimiter = match options.get("delimiter").unwrap_or(",") {
            "\\t" | "tab" => b'\t',
            one if one.len() == 1 && !matches!(one.as_bytes(), [b'"' | b'\n' | b'\r']) => one.as_bytes()[0],
            other => {
                return Err(Error::user(format!(
                    "{owner}: option `delimiter` must be one ASCII character other than a quote, not `{other}`"
                )));
            }
        };
        let schema = match columns {
            Some(schema) => schema,
            None if header => infer(&crate::files::sample(options)?, delimiter)?,
            None => return Err(Error::user(format!("{owner}: declare the columns, or set `header = 'true'`"))),
        };
        let mut format = Self::new(schema)?;
        (format.delimiter, format.header, format.number) = (delimiter, header, Unit::from_options(options)?);
        Ok(format)
    }
}

impl Format for CsvFormat {
    fn name(&self) -> &'static str {
        "csv"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn decoder(&self, projection: &[usize]) -> Box<dyn Decoder> {
        let (schema, columns) = projected(&self.schema, projection, self.number);
        Box::new(CsvDecoder {
            names: self.header.then(|| self.schema.fields().iter().map(|f| f.name().clone()).collect()),
            width: self.schema.fields().len(),
            projection: projection.to_vec(),
            schema,
            columns,
            fields: Fields::new(self.delimiter),
        })
    }
}

/// Cuts one line into fields.
struct Fields {
    reader: Reader,
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Fields {
    fn new(delimiter: u8) -> Self {
        Self { reader: ReaderBuilder::new().delimiter(delimiter).build(), bytes: vec![0; 1024], ends: vec![0; 16] }
    }

    /// Number of fields; their text is in `bytes` up to `ends`.
    fn cut(&mut self, line: &[u8]) -> Result<usize, String> {
        self.reader.reset();
        if line.is_empty() {
            // The parser passes over empty lines; to us it is one empty field.
            self.ends[0] = 0;
            return Ok(1);
        }
        let (mut at, mut out, mut fields) = (0, 0, 0);
        // An end of line is fed behind the line, so that a line that ends inside quotes is told apart.
        let mut input = line;
        let mut ended = false;
        loop {
            let (result, read, wrote, ends) =
                self.reader.read_record(&input[at..], &mut self.bytes[out..], &mut self.ends[fields..]);
            (at, out, fields) = (at + read, out + wrote, fields + ends);
            match result {
                ReadRecordResult::OutputFull => self.bytes.resize(self.bytes.len() * 2, 0),
                ReadRecordResult::OutputEndsFull => self.ends.resize(self.ends.len() * 2, 0),
                ReadRecordResult::Record => return Ok(fields),
                ReadRecordResult::InputEmpty if !ended => {
                    (ended, at, input) = (true, 0, b"\n");
                }
                ReadRecordResult::InputEmpty => return Err("a quoted field is not closed".to_string()),
                ReadRecordResult::End => return Err("the record ends too early".to_string()),
            }
        }
    }

    fn field(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.bytes[start..self.ends[i]]
    }
}

struct CsvDecoder {
    names: Option<Vec<String>>,
    width: usize,
    projection: Vec<usize>,
    schema: SchemaRef,
    columns: Vec<Column>,
    fields: Fields,
}

impl CsvDecoder {
    fn row(&mut self, record: &[u8]) -> Result<(), String> {
        let text = super::json::utf8(record).map_err(|fault| fault.to_string())?;
        let found = self.fields.cut(text.as_bytes())?;
        if found != self.width {
            return Err(format!("expected {} fields, found {found}", self.width));
        }
        if let Some(names) = &self.names
            && names.iter().enumerate().all(|(i, name)| self.fields.field(i) == name.as_bytes())
        {
            return Err("a header line, no record".to_string());
        }
        for (column, i) in self.columns.iter_mut().zip(&self.projection) {
            // Fields of a UTF-8 line are UTF-8: they are cut at ASCII bytes.
            let field = super::json::utf8(self.fields.field(*i)).map_err(|fault| fault.to_string())?;
            push(column, field)?;
        }
        Ok(())
    }
}

impl Decoder for CsvDecoder {
    fn decode(&mut self, block: &Block, refused: &mut Vec<Refusal>) -> Result<RecordBatch> {
        let mut rows = 0;
        for (row, record) in block.records().enumerate() {
            match self.row(record) {
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

fn push(column: &mut Column, field: &str) -> Result<(), String> {
    let Values::Text { text, ends, .. } = &mut column.values else { return push_parsed(column, field) };
    text.push_str(field);
    ends.push(text.len());
    column.valid();
    Ok(())
}

fn push_parsed(column: &mut Column, field: &str) -> Result<(), String> {
    let trimmed = field.trim();
    if trimmed.is_empty() {
        return column.null();
    }
    let want = match &mut column.values {
        Values::Int { values, min, max } => match trimmed.parse::<i64>().ok().filter(|v| (*min..=*max).contains(v)) {
            Some(value) => {
                values.push(value);
                None
            }
            None => Some("an integer in range"),
        },
        Values::Float(values) => match trimmed.parse::<f64>() {
            Ok(value) => {
                values.push(value);
                None
            }
            Err(_) => Some("a number"),
        },
        Values::Bool(values) => match trimmed {
            "true" | "TRUE" | "True" | "1" => {
                values.push(true);
                None
            }
            "false" | "FALSE" | "False" | "0" => {
                values.push(false);
                None
            }
            _ => Some("true or false"),
        },
        Values::Time { micros, unit, number } => {
            let at = if *number == Unit::Iso { time::instant(trimmed) } else { number.micros(trimmed) };
            match at.filter(|at| *unit != TimeUnit::Nanosecond || at.checked_mul(1000).is_some()) {
                Some(at) => {
                    micros.push(at);
                    None
                }
                None => Some("a timestamp"),
            }
        }
        _ => Some("a plain value"),
    };
    if let Some(want) = want {
        let shown: String = field.chars().take(40).collect();
        return Err(format!("field \"{}\": expected {want}, found \"{shown}\"", column.field.name()));
    }
    column.valid();
    Ok(())
}

/// Names from the first line; types that fit all lines of the sample.
fn infer(sample: &[u8], delimiter: u8) -> Result<SchemaRef> {
    let mut fields = Fields::new(delimiter);
    let mut lines = sample.split(|b| *b == b'\n').map(|l| l.strip_suffix(b"\r").unwrap_or(l)).filter(|l| !l.is_empty());
    let header = lines.next().ok_or_else(|| Error::user("format `csv`: the sampled file has no header line"))?;
    let width = fields.cut(header).map_err(|why| Error::user(format!("format `csv`: the header line: {why}")))?;
    let names: Vec<String> = (0..width).map(|i| String::from_utf8_lossy(fields.field(i)).trim().to_string()).collect();
    // Bit 0: integers, 1: numbers, 2: timestamps, 3: booleans.
    let mut fits = vec![0b1111_u8; width];
    let mut filled = vec![false; width];
    for line in lines {
        if fields.cut(line) != Ok(width) {
            continue;
        }
        for i in 0..width {
            let Ok(text) = super::json::utf8(fields.field(i)) else { continue };
            let text = text.trim();
            if text.is_empty() {
                continue;
            }
            filled[i] = true;
            let is = [
                text.parse::<i64>().is_ok(),
                text.parse::<f64>().is_ok(),
                text.len() > 4 && time::instant(text).is_some(),
                matches!(text, "true" | "false" | "TRUE" | "FALSE" | "True" | "False"),
            ];
            fits[i] &= is.iter().enumerate().fold(0, |bits, (bit, is)| bits | u8::from(*is) << bit);
        }
    }
    let ty = |i: usize| match fits[i] {
        _ if !filled[i] => DataType::Utf8,
        bits if bits & 1 != 0 => DataType::Int64,
        bits if bits & 2 != 0 => DataType::Float64,
        bits if bits & 4 != 0 => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        bits if bits & 8 != 0 => DataType::Boolean,
        _ => DataType::Utf8,
    };
    Ok(Arc::new(Schema::new(names.iter().enumerate().map(|(i, name)| nullable(name, ty(i))).collect::<Vec<_>>())))
}

#[cfg(test)]
mod tests;
