//! Text: each record is one value.
//!
//! Invariant: column `value` holds the record's bytes exactly; a record that
//! is not UTF-8 is refused with the place of its first bad byte.

use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions, StringArray, builder::StringBuilder};
use arrow_buffer::{OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use std::sync::Arc;
use tidemill_core::{Block, Decoder, Error, Format, Options, Refusal, Result};

/// Lines of text as one column, `value`.
#[derive(Debug, Clone)]
pub struct TextFormat {
    schema: SchemaRef,
}

impl Default for TextFormat {
    fn default() -> Self {
        Self { schema: Arc::new(Schema::new(vec![Field::new("value", DataType::Utf8, false)])) }
    }
}

impl TextFormat {
    /// From a stream's options and declared columns.
    ///
    /// # Errors
    /// When other columns than one text column are declared.
    pub fn from_options(options: &Options, columns: Option<SchemaRef>) -> Result<Self> {
        let Some(schema) = columns else { return Ok(Self::default()) };
        match schema.fields().as_ref() {
            [field] if *field.data_type() == DataType::Utf8 => Ok(Self { schema }),
            _ => Err(Error::user(format!(
                "{}: format `text` gives one column of TEXT; declare just that, or choose format `json` or `csv`",
                options.owner()
            ))),
        }
    }
}

impl Format for TextFormat {
    fn name(&self) -> &'static str {
        "text"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn decoder(&self, projection: &[usize]) -> Box<dyn Decoder> {
        let fields: Vec<_> = projection.iter().map(|i| Arc::clone(&self.schema.fields()[*i])).collect();
        Box::new(TextDecoder { schema: Arc::new(Schema::new(fields)) })
    }
}

struct TextDecoder {
    schema: SchemaRef,
}

impl Decoder for TextDecoder {
    fn decode(&mut self, block: &Block, refused: &mut Vec<Refusal>) -> Result<RecordBatch> {
        if !self.schema.fields().is_empty()
            && let Some(values) = as_they_lie(block)
        {
            return self.batch(block.len(), &(Arc::new(values) as ArrayRef));
        }
        let before = refused.len();
        // Whatever stands between the records is checked along, which is cheaper than to go record by record.
        let whole = simdutf8::basic::from_utf8(&block.bytes).ok();
        let wanted = !self.schema.fields().is_empty();
        let bytes = if wanted { block.spans.iter().map(|s| (s.end - s.start) as usize).sum() } else { 0 };
        let mut values = StringBuilder::with_capacity(if wanted { block.len() } else { 0 }, bytes);
        for (row, span) in block.spans.iter().enumerate() {
            let (start, end) = (span.start as usize, span.end as usize);
            let text = match whole.and_then(|text| text.get(start..end)) {
                Some(text) => text,
                None => match super::json::utf8(block.record(row)) {
                    Ok(text) => text,
                    Err(fault) => {
                        refused.push(Refusal { row, reason: fault.to_string() });
                        continue;
                    }
                },
            };
            if wanted {
                values.append_value(text);
            }
        }
        let rows = block.len() - (refused.len() - before);
        self.batch(rows, &(Arc::new(values.finish()) as ArrayRef))
    }
}

impl TextDecoder {
    fn batch(&self, rows: usize, values: &ArrayRef) -> Result<RecordBatch> {
        let columns = self.schema.fields().iter().map(|_| Arc::clone(values)).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .map_err(|e| Error::internal("a column of text doesn't fit its schema").because(e))
    }
}

/// The records as a column over the block's own bytes, which the log keeps end to end; `None` where
/// there is something between two records, or one is not UTF-8.
fn as_they_lie(block: &Block) -> Option<StringArray> {
    let mut end = block.spans.first()?.start;
    let mut offsets = Vec::with_capacity(block.len() + 1);
    offsets.push(i32::try_from(end).ok()?);
    for span in &block.spans {
        if span.start != end || span.end < end {
            return None;
        }
        end = span.end;
        offsets.push(i32::try_from(end).ok()?);
    }
    StringArray::try_new(OffsetBuffer::new(ScalarBuffer::from(offsets)), block.bytes.clone(), None).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::cast::AsArray;

    #[test]
    fn lines_come_out_as_they_went_in() {
        let block = Block::from_records(["one", "", "zwei\0", "三"]);
        let mut refused = Vec::new();
        let rows = TextFormat::default().decoder(&[0]).decode(&block, &mut refused).unwrap();
        let got: Vec<&str> = rows.column(0).as_string::<i32>().iter().flatten().collect();
        assert_eq!((got, refused), (vec!["one", "", "zwei\0", "三"], vec![]));
    }

    #[test]
    fn records_that_lie_end_to_end_are_not_copied() {
        let mut block = Block::from_records(["skipped", "one", "", "zwei", "cut"]);
        block.spans.remove(0);
        let column = |block: &Block| {
            let rows = TextFormat::default().decoder(&[0]).decode(block, &mut Vec::new()).unwrap();
            rows.column(0).as_string::<i32>().clone()
        };
        let values = column(&block);
        assert_eq!(values.iter().flatten().collect::<Vec<_>>(), ["one", "", "zwei", "cut"]);
        assert_eq!(values.values().as_ptr(), block.bytes.as_ptr());
        // With a gap they are, and say the same.
        block.spans.remove(2);
        let values = column(&block);
        assert_eq!(values.iter().flatten().collect::<Vec<_>>(), ["one", "", "cut"]);
        assert_ne!(values.values().as_ptr(), block.bytes.as_ptr());
    }

    #[test]
    fn a_bad_byte_costs_only_its_own_record() {
        let block = Block::from_records([b"good".as_slice(), b"ba\xffd", b"after"]);
        for projection in [vec![0], vec![]] {
            let mut refused = Vec::new();
            let rows = TextFormat::default().decoder(&projection).decode(&block, &mut refused).unwrap();
            assert_eq!((rows.num_rows(), rows.num_columns()), (2, projection.len()));
            assert_eq!(refused, [Refusal { row: 1, reason: "byte 2: not UTF-8".into() }]);
        }
    }

    #[test]
    fn a_character_cut_by_a_record_boundary_is_refused_in_both_halves() {
        // The whole buffer is UTF-8, its records are not.
        let block = Block::from_records([b"\xe4\xb8".as_slice(), b"\x89", b"ok"]);
        let mut refused = Vec::new();
        let rows = TextFormat::default().decoder(&[0]).decode(&block, &mut refused).unwrap();
        assert_eq!((rows.num_rows(), refused.len()), (1, 2));
    }

    #[test]
    fn other_columns_than_one_text_are_refused() {
        let two =
            Arc::new(Schema::new(vec![Field::new("a", DataType::Utf8, true), Field::new("b", DataType::Utf8, true)]));
        let error = TextFormat::from_options(&Options::new("stream \"s\"", [("", ""); 0]), Some(two)).unwrap_err();
        assert!(error.to_string().contains("one column of TEXT"), "{error}");
    }
}
