//! Only what a query asks for is decoded.

use crate::sql::tables::StreamTable;
use crate::{StreamingContext, plan::StreamInput};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, RecordBatchOptions};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use std::sync::Arc;
use tidemill_core::{
    Block, Budget, Chunk, ChunkStream, Decoder, Error, Format, Offset, OffsetRange, PartitionId, Position, Refusal,
    Registry, Result, Shape, Source,
};

static ASKED: Mutex<Vec<Vec<usize>>> = Mutex::new(Vec::new());

#[derive(Debug)]
struct Recording(SchemaRef);

impl Format for Recording {
    fn name(&self) -> &'static str {
        "recording"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.0)
    }

    fn decoder(&self, projection: &[usize]) -> Box<dyn Decoder> {
        ASKED.lock().push(projection.to_vec());
        Box::new(Ones(Arc::new(self.0.project(projection).unwrap())))
    }
}

struct Ones(SchemaRef);

impl Decoder for Ones {
    fn decode(&mut self, block: &Block, _refused: &mut Vec<Refusal>) -> Result<RecordBatch> {
        let columns = self.0.fields().iter().map(|_| Arc::new(Int64Array::from(vec![1; block.len()])) as ArrayRef);
        let options = RecordBatchOptions::new().with_row_count(Some(block.len()));
        RecordBatch::try_new_with_options(Arc::clone(&self.0), columns.collect(), &options)
            .map_err(|e| Error::internal("ones").because(e))
    }
}

#[derive(Debug)]
struct OneBlock;

#[async_trait]
impl Source for OneBlock {
    fn describe(&self) -> String {
        "one block".into()
    }

    fn shape(&self) -> Shape {
        Shape::Raw
    }

    async fn plan(&self, position: &Position, _budget: Budget) -> Result<Vec<OffsetRange>> {
        let range = OffsetRange { partition: PartitionId::from(0), start: Offset(0), end: Offset(2) };
        Ok(if position.is_empty() { vec![range] } else { vec![] })
    }

    fn read(&self, _range: &OffsetRange) -> ChunkStream {
        stream::iter([Ok(Chunk::Raw(Block::from_records(["x", "y"])))]).boxed()
    }
}

#[test]
fn only_the_asked_columns_are_decoded() {
    let mut registry = Registry::default();
    registry.add_format("recording", |_, columns| Ok(Arc::new(Recording(columns.unwrap()))));
    let context = StreamingContext::builder("test").partitions(1).registry(registry).build();
    let mut program = crate::testing::SqlProgram::over(context);
    program.context().provide_source("s", Arc::new(OneBlock));
    program
        .start(
            "CREATE STREAM s (a BIGINT, b BIGINT, c BIGINT, d BIGINT) WITH (connector = 'program', format = 'recording');
             CREATE VIEW sums AS SELECT sum(d) AS d FROM (SELECT b, d, a + b AS e FROM s) WHERE b > 0",
        )
        .unwrap();
    program.step().unwrap();
    assert_eq!(*ASKED.lock(), [vec![1, 3]]);
    assert_eq!(super::sorted(&[program.view("sums").unwrap()]), ["|2|"]);
}

#[test]
fn a_stream_shows_its_own_columns_when_asked() {
    let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)]));
    let input = Arc::new(StreamInput::new("s", Arc::new(OneBlock), Some(Arc::new(Recording(schema)))).unwrap());
    let names = |shows: &dyn Fn(&str) -> bool| {
        let table = StreamTable::new(Arc::clone(&input), 1, shows);
        let schema = crate::sql::provider::Scan::schema(&table);
        schema.fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&|_| false), ["a"]);
    assert_eq!(names(&|name| name == "_timestamp"), ["a", "_timestamp"]);
}
