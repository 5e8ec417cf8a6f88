//! Parts for tests that fill topics themselves: a receiver that receives
//! nothing, lines of text as a format, and lines as rows of a topic.

use super::port::rows_of;
use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use std::sync::Arc;
use tidemill_core::{Block, Decoder, Format, Input, Intake, Receiver, Refusal, Registry, Result, Stop};

/// Connector `idle` and format `text`.
pub(crate) fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.add_input("idle", |_| Ok(Input::Receivers(vec![Arc::new(Idle)])));
    registry.add_format("text", |_, _| Ok(Arc::new(Lines { mended: false })));
    registry
}

/// The same with a format that takes the line `refuse`, too.
pub(crate) fn mended_registry() -> Registry {
    let mut registry = registry();
    registry.add_format("text", |_, _| Ok(Arc::new(Lines { mended: true })));
    registry
}

/// The parts themselves.
pub(crate) fn idle() -> (Arc<dyn Receiver>, Arc<dyn Format>) {
    (Arc::new(Idle), Arc::new(Lines { mended: false }))
}

/// Rows of a receiver's topic.
pub(crate) fn lines<S: AsRef<str>>(lines: impl IntoIterator<Item = S>) -> RecordBatch {
    let lines: Vec<String> = lines.into_iter().map(|line| line.as_ref().to_string()).collect();
    rows_of(&Block::from_records(&lines)).expect("lines are rows")
}

/// Receives nothing.
#[derive(Debug)]
struct Idle;

#[async_trait]
impl Receiver for Idle {
    fn describe(&self) -> String {
        "idle".to_string()
    }

    async fn run(&self, _intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        stop.stopped().await;
        Ok(())
    }
}

/// One column of text, `value`; a line `refuse` is refused.
#[derive(Debug, Clone)]
struct Lines {
    mended: bool,
}

impl Format for Lines {
    fn name(&self) -> &'static str {
        "text"
    }

    fn schema(&self) -> SchemaRef {
        Arc::new(Schema::new(vec![Field::new("value", DataType::Utf8, false)]))
    }

    fn decoder(&self, projection: &[usize]) -> Box<dyn Decoder> {
        Box::new(LinesDecoder { columns: projection.len(), lines: self.clone() })
    }
}

struct LinesDecoder {
    columns: usize,
    lines: Lines,
}

impl Decoder for LinesDecoder {
    fn decode(&mut self, block: &Block, refused: &mut Vec<Refusal>) -> Result<RecordBatch> {
        let mut kept = Vec::new();
        for (row, record) in block.records().enumerate() {
            match std::str::from_utf8(record) {
                Ok("refuse") if !self.lines.mended => refused.push(Refusal { row, reason: "no text".to_string() }),
                Err(_) => refused.push(Refusal { row, reason: "no text".to_string() }),
                Ok(text) => kept.push(text),
            }
        }
        let count = kept.len();
        let column: ArrayRef = Arc::new(StringArray::from(kept));
        let schema = self.lines.schema().project(&(0..self.columns).collect::<Vec<_>>()).expect("one column at most");
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let columns = std::iter::repeat_n(column, self.columns).collect();
        Ok(RecordBatch::try_new_with_options(Arc::new(schema), columns, &options).expect("the columns fit"))
    }
}
