//! The rows of a side of a join, on their way to the partition that owns their key.
//!
//! Blocks are cut by the hash of the key. Each piece carries where it came from,
//! so that a partition sees its rows in one order however the threads ran.
//!
//! Invariant: rows of both sides with equal keys come to one partition. Called by
//! [`super`].

use super::side::SideState;
use crate::{
    plan::{BatchRun, Kernel, Lowering, NodeInputs, Rows, exchange, mark, rows_from, scattered},
    record::partition_of,
};
use arrow_array::{RecordBatch, UInt32Array, UInt64Array, cast::AsArray, types::UInt64Type};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::{
    common::Result as DfResult,
    physical_plan::{ExecutionPlan, ExecutionPlanProperties},
};
use futures::StreamExt;
use std::sync::Arc;

/// The column that says where a piece came from.
const FROM: &str = "_from";
/// Blocks of one partition of a batch at most.
const BLOCKS: u64 = 1 << 40;

/// The plan of a side by the partitions of its keys.
pub(super) fn scatter(
    plan: Arc<dyn ExecutionPlan>,
    side: &Arc<SideState>,
    cx: &Lowering<'_>,
) -> Arc<dyn ExecutionPlan> {
    let mut fields = vec![Arc::new(Field::new(FROM, DataType::UInt64, false))];
    fields.extend(side.plan.schema.fields().iter().cloned());
    let numbered: SchemaRef = Arc::new(Schema::new(fields));
    let schema = scattered(&numbered);
    let count = plan.output_partitioning().partition_count();
    let kernel = ScatterKernel { side: Arc::clone(side), numbered, schema: Arc::clone(&schema) };
    exchange(cx.node("scatter", kernel, vec![plan], schema, count), side.partitions())
}

/// The rows of a partition in the order in which the batch has them.
pub(super) fn in_order(mut pieces: Vec<RecordBatch>) -> DfResult<Vec<RecordBatch>> {
    pieces.retain(|rows| rows.num_rows() > 0);
    pieces.sort_by_key(|rows| rows.column(0).as_primitive::<UInt64Type>().value(0));
    let own = |rows: RecordBatch| Ok(rows.project(&(1..rows.num_columns()).collect::<Vec<_>>())?);
    pieces.into_iter().map(own).collect()
}

#[derive(Debug)]
struct ScatterKernel {
    side: Arc<SideState>,
    numbered: SchemaRef,
    schema: SchemaRef,
}

impl Kernel for ScatterKernel {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        let (side, numbered, schema) = (Arc::clone(&self.side), Arc::clone(&self.numbered), Arc::clone(&self.schema));
        let mut number = partition as u64 * BLOCKS;
        let pieces = inputs.open(0, partition)?.map(move |rows| {
            let rows = rows?;
            number += 1;
            cut(&side, &rows, number, &numbered, &schema)
        });
        let pieces = pieces.flat_map(|pieces: DfResult<Vec<RecordBatch>>| match pieces {
            Ok(pieces) => futures::stream::iter(pieces.into_iter().map(Ok).collect::<Vec<_>>()),
            Err(error) => futures::stream::iter(vec![Err(error)]),
        });
        Ok(rows_from(Arc::clone(&self.schema), pieces))
    }
}

/// A block cut by partition.
fn cut(
    side: &SideState,
    rows: &RecordBatch,
    number: u64,
    numbered: &SchemaRef,
    schema: &SchemaRef,
) -> DfResult<Vec<RecordBatch>> {
    let partitions = side.partitions();
    let count = rows.num_rows();
    if count == 0 {
        return Ok(Vec::new());
    }
    let piece = |rows: &RecordBatch, partition: usize| {
        let mut columns: Vec<arrow_array::ArrayRef> = vec![Arc::new(UInt64Array::from_value(number, rows.num_rows()))];
        columns.extend(rows.columns().iter().cloned());
        mark(&RecordBatch::try_new(Arc::clone(numbered), columns)?, partition, schema)
    };
    if partitions == 1 {
        return Ok(vec![piece(rows, 0)?]);
    }
    let mut places: Vec<Vec<u32>> = vec![Vec::new(); partitions];
    for (row, hash) in (0_u32..).zip(side.plan.hashes(rows)?.0) {
        places[partition_of(hash, partitions)].push(row);
    }
    let mut pieces = Vec::new();
    for (partition, places) in places.into_iter().enumerate() {
        match places.len() {
            0 => {}
            all if all == count => pieces.push(piece(rows, partition)?),
            _ => {
                let rows = arrow_select::take::take_record_batch(rows, &UInt32Array::from(places))?;
                pieces.push(piece(&rows, partition)?);
            }
        }
    }
    Ok(pieces)
}
