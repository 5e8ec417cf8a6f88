//! Rows to bytes and back, in Arrow's IPC form.
//!
//! A frame's payload is one encapsulated record batch message; the schema is
//! kept once, beside the frames. Encoding hands out the columns' own buffers,
//! decoding gives columns that share the memory of the frame: neither copies.
//!
//! Invariant: no length inside a message is believed before it was compared
//! with what is there, so that bad bytes give an error and not a panic.

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_ipc::{
    MetadataVersion, convert,
    reader::RecordBatchDecoder,
    root_as_message,
    writer::{IpcWriteOptions, StreamEncoder},
};
use arrow_schema::{ArrowError, DataType, Schema, SchemaRef};
use std::{collections::HashMap, sync::Arc};
use tidemill_core::{Error, Result};

/// Buffers inside a message begin at multiples of this: enough for every column type.
const ALIGNMENT: usize = 16;
const CONTINUATION: [u8; 4] = [0xff; 4];

fn encoder(schema: &Schema) -> Result<StreamEncoder, ArrowError> {
    let options = IpcWriteOptions::try_new(ALIGNMENT, false, MetadataVersion::V5)?;
    StreamEncoder::try_new_with_options(schema, options)
}

/// Refuses columns that can't be stored.
///
/// # Errors
/// Names the column.
pub(crate) fn check_schema(schema: &Schema) -> Result<()> {
    for field in schema.flattened_fields() {
        if matches!(field.data_type(), DataType::Dictionary(..)) {
            return Err(Error::user(format!(
                "column \"{}\" is dictionary-encoded, which can't be stored: cast it to its value type",
                field.name()
            )));
        }
    }
    Ok(())
}

/// The schema as one encapsulated IPC message.
pub(crate) fn schema_message(schema: &Schema) -> Result<Vec<u8>> {
    let parts = encoder(schema).and_then(StreamEncoder::finish).map_err(|e| encode_error(&e))?;
    let mut bytes: Vec<u8> = parts.iter().flat_map(|b| b.iter().copied()).collect();
    // The stream's end mark: four bytes of ones, four of zeros.
    bytes.truncate(bytes.len().saturating_sub(8));
    Ok(bytes)
}

/// Reads what [`schema_message`] wrote.
pub(crate) fn schema_from(bytes: &[u8]) -> Result<SchemaRef> {
    let (message, _) = split(bytes).ok_or_else(|| Error::external("a stored schema is incomplete").fatal())?;
    // A `topic.json` of version 1 has no checksum, and Arrow panics where a field of a message is missing.
    let schema = std::panic::catch_unwind(|| convert::try_schema_from_flatbuffer_bytes(message))
        .map_err(|_| Error::external("a stored schema is damaged").fatal())?
        .map_err(|e| Error::external("a stored schema can't be read").because(e).fatal())?;
    Ok(Arc::new(schema))
}

/// Encodes rows of one schema.
pub(crate) struct RowEncoder(StreamEncoder);

impl std::fmt::Debug for RowEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RowEncoder")
    }
}

impl RowEncoder {
    pub(crate) fn new(schema: &SchemaRef) -> Result<Self> {
        check_schema(schema)?;
        let mut encoder = encoder(schema).map_err(|e| encode_error(&e))?;
        // The first message carries the schema in front, so an empty one goes first.
        let empty = RecordBatch::new_empty(Arc::clone(schema));
        encoder.encode(&empty).map_err(|e| encode_error(&e))?;
        Ok(Self(encoder))
    }

    /// The message in pieces, columns uncopied.
    pub(crate) fn encode(&mut self, rows: &RecordBatch) -> Result<Vec<Buffer>> {
        self.0.encode(rows).map_err(|e| encode_error(&e))
    }
}

fn encode_error(error: &ArrowError) -> Error {
    Error::internal(format!("can't encode rows: {error}"))
}

/// The flatbuffer of an encapsulated message, and where its body begins.
fn split(bytes: &[u8]) -> Option<(&[u8], usize)> {
    if bytes.get(..4)? != CONTINUATION {
        return None;
    }
    let len = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
    let end = usize::try_from(len).ok()?.checked_add(8)?;
    Some((bytes.get(8..end)?, end))
}

/// Rows from one message; the columns share its memory.
///
/// # Errors
/// When the bytes are not such a message of this schema.
pub(crate) fn decode_rows(payload: &Buffer, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let bad = |what: &str| ArrowError::IpcError(what.to_owned());
    let (message, body_at) = split(payload).ok_or_else(|| bad("the message is incomplete"))?;
    let message = root_as_message(message).map_err(|e| bad(&e.to_string()))?;
    let batch = message.header_as_record_batch().ok_or_else(|| bad("the message holds no rows"))?;
    let body = payload.slice(body_at);
    for buffer in batch.buffers().into_iter().flatten() {
        let end = usize::try_from(buffer.offset())
            .ok()
            .zip(usize::try_from(buffer.length()).ok())
            .and_then(|(at, len)| at.checked_add(len));
        // The writer aligns every buffer.
        if end.is_none_or(|end| end > body.len()) || buffer.offset() % ALIGNMENT as i64 != 0 {
            return Err(bad("a column lies outside its message"));
        }
    }
    for node in batch.nodes().into_iter().flatten() {
        let (len, nulls) = (node.length(), node.null_count());
        if !(0..=i64::from(u32::MAX)).contains(&len) || !(0..=len).contains(&nulls) {
            return Err(bad("a column has an impossible length"));
        }
    }
    if !(0..=i64::from(u32::MAX)).contains(&batch.length()) {
        return Err(bad("the rows have an impossible number"));
    }
    let version = message.version();
    // Arrow asserts some relations of lengths that only forged bytes violate: checksums keep chance away.
    let decode = || {
        RecordBatchDecoder::try_new(&body, batch, Arc::clone(schema), &HashMap::new(), &version)?.read_record_batch()
    };
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(decode))
        .unwrap_or_else(|_| Err(bad("the columns are inconsistent")))
}

/// The same rows under the schema given, if its columns are those.
///
/// # Errors
/// Names the first column that differs.
pub(crate) fn conform(rows: &RecordBatch, schema: &SchemaRef, whose: &str) -> Result<RecordBatch> {
    if Arc::ptr_eq(rows.schema_ref(), schema) {
        return Ok(rows.clone());
    }
    let (given, wanted) = (rows.schema_ref().fields(), schema.fields());
    if given.len() != wanted.len() {
        return Err(Error::user(format!("{whose} has {} columns, the rows have {}", wanted.len(), given.len())));
    }
    for (given, wanted) in given.iter().zip(wanted) {
        if given.name() != wanted.name() || given.data_type() != wanted.data_type() {
            return Err(Error::user(format!(
                "{whose} has the column \"{}\" {}, the rows have \"{}\" {} there",
                wanted.name(),
                wanted.data_type(),
                given.name(),
                given.data_type()
            )));
        }
    }
    RecordBatch::try_new_with_options(
        Arc::clone(schema),
        rows.columns().to_vec(),
        &arrow_array::RecordBatchOptions::new().with_row_count(Some(rows.num_rows())),
    )
    .map_err(|e| Error::user(format!("the rows don't fit {whose}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{ArrayRef, Int64Array, StringArray, StringViewArray, builder::*};
    use arrow_schema::Field;
    use proptest::prelude::*;

    fn sample() -> RecordBatch {
        let mut lists = ListBuilder::new(StringBuilder::new());
        lists.append_value([Some("a"), None]);
        lists.append_null();
        lists.append_value([Some("bcd")]);
        let columns: [(&str, ArrayRef); 4] = [
            ("n", Arc::new(Int64Array::from(vec![Some(1), None, Some(3)]))),
            ("text", Arc::new(StringArray::from(vec!["one", "two", "\u{1f30a}"]))),
            ("view", Arc::new(StringViewArray::from(vec!["short", "longer than twelve bytes", ""]))),
            ("tags", Arc::new(lists.finish())),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(n, c)| (n, c, true))).unwrap()
    }

    fn message(rows: &RecordBatch) -> Vec<u8> {
        let parts = RowEncoder::new(&rows.schema()).unwrap().encode(rows).unwrap();
        parts.iter().flat_map(|b| b.iter().copied()).collect()
    }

    #[test]
    fn rows_and_schemas_come_back() {
        let rows = sample();
        assert_eq!(schema_from(&schema_message(&rows.schema()).unwrap()).unwrap(), rows.schema());
        for part in [rows.clone(), rows.slice(1, 2), rows.slice(2, 0)] {
            let bytes = message(&part);
            assert_eq!(bytes.len() % ALIGNMENT, 0);
            assert_eq!(decode_rows(&Buffer::from(bytes), &rows.schema()).unwrap(), part);
        }
    }

    #[test]
    fn dictionaries_are_refused_by_name() {
        let dictionary = DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8));
        let inner = Field::new("inner", dictionary, true);
        let schema = Schema::new(vec![Field::new("outer", DataType::Struct(vec![inner].into()), true)]);
        assert!(check_schema(&schema).unwrap_err().to_string().contains("\"inner\""));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn bad_bytes_are_an_error_or_rows_but_no_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let rows = sample();
            let mut bytes = message(&rows);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            if let Ok(found) = decode_rows(&Buffer::from(bytes), &rows.schema()) {
                prop_assert_eq!(found.schema(), rows.schema());
            }
        }
    }
}
