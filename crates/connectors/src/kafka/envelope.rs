//! Key and headers of a record as columns beside those of its value.
//!
//! | Option | Meaning |
//! |---|---|
//! | `key_column` | a column with the record's key: TEXT (default) or BYTEA, as it is declared |
//! | `headers_column` | a TEXT column with its headers as a JSON object: `{"trace":"ab12"}` |
//!
//! Where one is asked for, a record is handed on with both behind its value, and the format of the value is wrapped
//! in one that takes them off again. So a dead letter has them too, and can be run again:
//!
//! ```text
//! value │ key │ headers │ length of key, or ffff ffff for none │ length of headers │ "tmkh"
//! ```
//!
//! A key or a header that is no UTF-8 is written as `\x` and its bytes in hexadecimal digits, in a TEXT column. Of headers with
//! one name, all values are in a list.
//!
//! Invariant: the format of the value sees the value alone. Called by the reader, and by the leaf through the format.

use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions, builder::BinaryBuilder, builder::StringBuilder};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use rdkafka::message::{Headers, Message};
use serde_json::{Map, Value};
use std::{borrow::Cow, fmt::Write, sync::Arc};
use tidemill_core::{Block, Decoder, Error, Format, Refusal, Result, Span};

/// Ends a record that has something behind its value.
const MARK: &[u8] = b"tmkh";
/// The length of a key that is not there.
const NONE: u32 = u32::MAX;

/// What of a record is handed on beside its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Beside {
    pub(super) key: bool,
    pub(super) headers: bool,
}

impl Beside {
    /// Puts it behind the value.
    pub(super) fn append<M: Message>(self, record: &M, bytes: &mut Vec<u8>) {
        if !self.key && !self.headers {
            return;
        }
        let key = record.key().filter(|_| self.key);
        bytes.extend_from_slice(key.unwrap_or_default());
        let key_len = key.map_or(NONE, |key| u32::try_from(key.len()).unwrap_or(NONE));
        let headers_at = bytes.len();
        if let Some(headers) = record.headers().filter(|_| self.headers) {
            let mut all = Map::new();
            for header in headers.iter() {
                let value = header.value.map_or(Value::Null, |value| Value::String(text(value).into_owned()));
                match all.get_mut(header.key) {
                    None => drop(all.insert(header.key.to_string(), value)),
                    Some(Value::Array(values)) => values.push(value),
                    Some(first) => *first = Value::Array(vec![first.take(), value]),
                }
            }
            bytes.extend_from_slice(Value::Object(all).to_string().as_bytes());
        }
        let headers_len = u32::try_from(bytes.len() - headers_at).unwrap_or(0);
        bytes.extend_from_slice(&key_len.to_le_bytes());
        bytes.extend_from_slice(&headers_len.to_le_bytes());
        bytes.extend_from_slice(MARK);
    }
}

/// Bytes as text.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(bytes.iter().fold("\\x".to_string(), |mut text, byte| {
            // Writing to a string does not fail.
            let _written = write!(text, "{byte:02x}");
            text
        })),
    }
}

/// The parts of a record: value, key, headers.
pub(super) fn parts(record: &[u8]) -> (&[u8], Option<&[u8]>, Option<&[u8]>) {
    let split = || {
        let rest = record.strip_suffix(MARK)?;
        let (rest, headers) = rest.split_last_chunk::<4>()?;
        let (rest, key) = rest.split_last_chunk::<4>()?;
        let (headers, key) = (u32::from_le_bytes(*headers) as usize, u32::from_le_bytes(*key));
        let (rest, headers) = rest.split_at_checked(rest.len().checked_sub(headers)?)?;
        let key_len = if key == NONE { 0 } else { key as usize };
        let (value, own) = rest.split_at_checked(rest.len().checked_sub(key_len)?)?;
        Some((value, (key != NONE).then_some(own), (!headers.is_empty()).then_some(headers)))
    };
    // A letter of a time when nothing was asked for beside the value.
    split().unwrap_or((record, None, None))
}

/// A format with the columns of key and headers behind its own.
#[derive(Debug)]
pub(super) struct Envelope {
    value: Arc<dyn Format>,
    /// The columns, and whether each is the key.
    columns: Vec<(Field, bool)>,
    schema: SchemaRef,
}

impl Envelope {
    /// The format that `make` makes for the declared columns, those of key and headers excepted.
    pub(super) fn over(
        (key, headers): (Option<&str>, Option<&str>),
        declared: Option<SchemaRef>,
        make: &dyn Fn(Option<SchemaRef>) -> Result<Arc<dyn Format>>,
    ) -> Result<Arc<dyn Format>> {
        let mut columns = Vec::new();
        for (name, is_key) in [(key, true), (headers, false)] {
            let Some(name) = name else { continue };
            let given = declared.as_ref().and_then(|schema| schema.field_with_name(name).ok());
            let ty = given.map_or(DataType::Utf8, |field| field.data_type().clone());
            let option = if is_key { "key_column" } else { "headers_column" };
            if declared.is_some() && given.is_none() {
                return Err(Error::user(format!("kafka: option `{option}`: declare the column `{name}` too")));
            }
            if ty != DataType::Utf8 && !(is_key && ty == DataType::Binary) {
                let takes = if is_key { "TEXT or BYTEA" } else { "TEXT" };
                return Err(Error::user(format!(
                    "kafka: option `{option}`: column `{name}` must be {takes}, not {ty}"
                )));
            }
            columns.push((Field::new(name, ty, true), is_key));
        }
        let rest = declared.map(|schema| {
            let own = |field: &&Arc<Field>| !columns.iter().any(|(column, _)| column.name() == field.name());
            Arc::new(Schema::new(schema.fields().iter().filter(own).cloned().collect::<Vec<_>>()))
        });
        let value = make(rest.filter(|rest| !rest.fields().is_empty()))?;
        let mut fields: Vec<Arc<Field>> = value.schema().fields().iter().cloned().collect();
        if let Some((column, _)) = columns.iter().find(|(c, _)| fields.iter().any(|field| field.name() == c.name())) {
            return Err(Error::user(format!(
                "kafka: the value has a column `{}` of its own: name that of key or headers otherwise",
                column.name()
            )));
        }
        fields.extend(columns.iter().map(|(column, _)| Arc::new(column.clone())));
        Ok(Arc::new(Self { value, columns, schema: Arc::new(Schema::new(fields)) }))
    }
}

impl Format for Envelope {
    fn name(&self) -> &'static str {
        self.value.name()
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn decoder(&self, projection: &[usize]) -> Box<dyn Decoder> {
        let own = self.schema.fields().len() - self.columns.len();
        let wanted: Vec<usize> = projection.iter().copied().filter(|column| *column < own).collect();
        let places = projection.iter().map(|column| {
            column.checked_sub(own).map(|at| (self.columns[at].0.data_type().clone(), self.columns[at].1))
        });
        let fields: Vec<Arc<Field>> = projection.iter().map(|c| Arc::clone(&self.schema.fields()[*c])).collect();
        Box::new(EnvelopeDecoder {
            value: self.value.decoder(&wanted),
            places: places.collect(),
            schema: Arc::new(Schema::new(fields)),
        })
    }
}

struct EnvelopeDecoder {
    value: Box<dyn Decoder>,
    /// Of each column: whether it lies beside the value, as what, and whether it is the key.
    places: Vec<Option<(DataType, bool)>>,
    schema: SchemaRef,
}

impl Decoder for EnvelopeDecoder {
    fn decode(&mut self, block: &Block, refused: &mut Vec<Refusal>) -> Result<RecordBatch> {
        let mut values = block.clone();
        for (span, record) in values.spans.iter_mut().zip(block.records()) {
            let value = u32::try_from(parts(record).0.len()).unwrap_or(u32::MAX);
            *span = Span { start: span.start, end: span.start.saturating_add(value) };
        }
        let before = refused.len();
        let rows = self.value.decode(&values, refused)?;
        let mut gone = refused[before..].iter().map(|refusal| refusal.row).peekable();
        let kept: Vec<&[u8]> =
            block.records().enumerate().filter(|(row, _)| gone.next_if_eq(row).is_none()).map(|(_, r)| r).collect();
        let mut decoded = rows.columns().iter();
        let columns = self.places.iter().map(|place| match place {
            None => decoded.next().cloned().ok_or_else(|| Error::internal("kafka: the value's format gave too little")),
            Some((ty, is_key)) => Ok(beside(&kept, ty, *is_key)),
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(kept.len()));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .map_err(|e| Error::internal("kafka: key and headers beside the value").because(e))
    }
}

fn beside(records: &[&[u8]], ty: &DataType, is_key: bool) -> ArrayRef {
    let part = |record: &&'_ [u8]| -> Option<std::ops::Range<usize>> {
        let (value, key, headers) = parts(record);
        let key_end = value.len() + key.map_or(0, <[u8]>::len);
        if is_key { key.map(|_| value.len()..key_end) } else { headers.map(|h| key_end..key_end + h.len()) }
    };
    if *ty == DataType::Binary {
        let mut column = BinaryBuilder::new();
        records.iter().for_each(|record| column.append_option(part(record).map(|at| &record[at])));
        return Arc::new(column.finish());
    }
    let mut column = StringBuilder::new();
    records.iter().for_each(|record| column.append_option(part(record).map(|at| text(&record[at]))));
    Arc::new(column.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::JsonFormat;
    use arrow_array::cast::AsArray;
    use rdkafka::message::{Header, OwnedHeaders, OwnedMessage, Timestamp};
    use tidemill_core::Options;

    fn record(value: &str, key: Option<&[u8]>, headers: &[(&str, &[u8])]) -> Vec<u8> {
        let headers = headers
            .iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: Some(*value) }));
        let key = key.map(<[u8]>::to_vec);
        let message =
            OwnedMessage::new(Some(value.into()), key, "t".into(), Timestamp::NotAvailable, 0, 0, Some(headers));
        let mut bytes = value.as_bytes().to_vec();
        Beside { key: true, headers: true }.append(&message, &mut bytes);
        bytes
    }

    fn format(declared: &[(&str, DataType)]) -> Result<Arc<dyn Format>> {
        let fields: Vec<Field> = declared.iter().map(|(name, ty)| Field::new(*name, ty.clone(), true)).collect();
        let options = Options::new("s", [("format", "json")]);
        Envelope::over((Some("k"), Some("h")), Some(Arc::new(Schema::new(fields))), &|columns| {
            Ok(Arc::new(JsonFormat::from_options(&options, columns)?))
        })
    }

    #[test]
    fn key_and_headers_stand_beside_the_value() {
        let format = format(&[("k", DataType::Utf8), ("n", DataType::Int64), ("h", DataType::Utf8)]).unwrap();
        let names: Vec<String> = format.schema().fields().iter().map(|f| f.name().clone()).collect();
        assert_eq!(names, ["n", "k", "h"]);
        let records = [
            record("{\"n\":1}", Some(b"a"), &[("x", b"1"), ("y", b"\xff"), ("x", b"2")]),
            record("broken", Some(b"b"), &[]),
            record("{\"n\":3}", None, &[]),
            record("{\"n\":4}", Some(b""), &[]),
            record("{\"n\":5}", Some(b"\xc0\x01"), &[]),
            // As it was kept before anything was asked for beside the value.
            b"{\"n\":6}".to_vec(),
        ];
        let block = Block::from_records(&records);
        for projection in [vec![0, 1, 2], vec![2, 1], vec![1], vec![]] {
            let mut refused = Vec::new();
            let rows = format.decoder(&projection).decode(&block, &mut refused).unwrap();
            assert_eq!(rows.num_rows(), 5, "{projection:?}");
            assert_eq!(refused.iter().map(|r| r.row).collect::<Vec<_>>(), [1]);
            for (place, column) in projection.iter().enumerate() {
                let texts: Vec<Option<String>> = arrow_cast::cast(rows.column(place), &DataType::Utf8)
                    .unwrap()
                    .as_string::<i32>()
                    .iter()
                    .map(|text| text.map(str::to_string))
                    .collect();
                let texts: Vec<Option<&str>> = texts.iter().map(Option::as_deref).collect();
                match column {
                    0 => assert_eq!(texts, ["1", "3", "4", "5", "6"].map(Some)),
                    1 => assert_eq!(texts, [Some("a"), None, Some(""), Some("\\xc001"), None]),
                    _ => {
                        let empty = Some("{}");
                        assert_eq!(texts, [Some("{\"x\":[\"1\",\"2\"],\"y\":\"\\\\xff\"}"), empty, empty, empty, None]);
                    }
                }
            }
        }
    }

    #[test]
    fn a_binary_key_is_given_as_it_is_and_other_types_are_refused() {
        let binary = format(&[("k", DataType::Binary), ("n", DataType::Int64), ("h", DataType::Utf8)]).unwrap();
        let block = Block::from_records([record("{\"n\":1}", Some(b"\xc0\x01"), &[])]);
        let rows = binary.decoder(&[1]).decode(&block, &mut Vec::new()).unwrap();
        assert_eq!(rows.column(0).as_binary::<i32>().value(0), b"\xc0\x01");
        let error = format(&[("k", DataType::Int64), ("h", DataType::Utf8)]).unwrap_err().to_string();
        assert!(error.contains("`k` must be TEXT or BYTEA"), "{error}");
        let error = format(&[("k", DataType::Utf8)]).unwrap_err().to_string();
        assert!(error.contains("declare the column `h` too"), "{error}");
    }

    #[test]
    fn a_tail_that_makes_no_sense_belongs_to_the_value() {
        for value in [&b""[..], b"tmkh", b"\x01\x00\x00\x00tmkh", b"\x09\x00\x00\x00\x09\x00\x00\x00tmkh"] {
            assert_eq!(parts(value), (value, None, None));
        }
        assert_eq!(record("", None, &[]).len(), "{}".len() + 12, "two lengths and the mark");
    }
}
