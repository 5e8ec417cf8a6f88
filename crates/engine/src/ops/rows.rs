//! From a chain to rows: where a typed stream becomes columns.
//!
//! Wide operators swallow the chain before them; outputs, `union`, `cache` and
//! tables need its rows. No state.

use crate::{
    plan::{BatchRun, Kernel, Lineage, Lowering, NodeInputs, Operator, Rows, external, rows_from},
    record::{Record, finish_batch, schema_of},
    stream::{Chain, DStream},
};
use arrow_schema::SchemaRef;
use datafusion::{
    common::Result as DfResult,
    physical_plan::{ExecutionPlan, ExecutionPlanProperties},
};
use futures::StreamExt;
use std::{any::TypeId, fmt, sync::Arc};
use tidemill_core::Result;

struct MakeRows<C> {
    chain: C,
}

impl<C> fmt::Debug for MakeRows<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MakeRows")
    }
}

impl<C: Chain> Operator for MakeRows<C> {
    fn kind(&self) -> &'static str {
        "rows"
    }

    fn schema(&self) -> SchemaRef {
        schema_of::<C::Out>()
    }

    fn lower(&self, inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        let count = inputs[0].output_partitioning().partition_count();
        Ok(cx.node("chain", RowsKernel { chain: self.chain.clone() }, inputs, self.schema(), count))
    }
}

struct RowsKernel<C> {
    chain: C,
}

impl<C> fmt::Debug for RowsKernel<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("chain")
    }
}

impl<C: Chain> Kernel for RowsKernel<C> {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        let rows = inputs.open(0, partition)?;
        let chain = self.chain.clone();
        let schema = schema_of::<C::Out>();
        let out_schema = Arc::clone(&schema);
        let mut builder = C::Out::builder(0);
        let made = rows.map(move |batch| {
            chain.drive(&batch?, |record| C::Out::append(&mut builder, record)).map_err(external)?;
            finish_batch::<C::Out>(&mut builder, &out_schema).map_err(external)
        });
        Ok(rows_from(schema, made))
    }
}

impl<T: Record, C: Chain<Out = T>> DStream<T, C> {
    /// The node whose rows are this stream's records.
    pub(crate) fn rows(&self) -> Arc<Lineage> {
        // A chain without steps reads rows that are its records already.
        if TypeId::of::<C>() == TypeId::of::<crate::stream::Read<T>>() {
            return self.base();
        }
        self.declare.unnamed().node(vec![self.base()], MakeRows { chain: self.chain.clone() })
    }

    /// The same stream under its plain type, for functions and structs that name it.
    pub fn erase(&self) -> DStream<T> {
        let erased = DStream::over(&self.declare, self.rows());
        DStream { declare: self.declare.clone(), ..erased }
    }
}

/// A node over the same rows with other column names; the node itself when `columns` is empty.
pub(crate) fn renamed(declare: &crate::declare::Declare, node: Arc<Lineage>, columns: &[&str]) -> Arc<Lineage> {
    if columns.is_empty() {
        return node;
    }
    let fields = node.schema().fields().clone();
    if fields.len() != columns.len() {
        declare.fail(tidemill_core::Error::user(format!(
            "{} columns were named and the stream has {}: {}",
            columns.len(),
            fields.len(),
            fields.iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ")
        )));
        return node;
    }
    let fields: Vec<_> = fields.iter().zip(columns).map(|(f, name)| f.as_ref().clone().with_name(*name)).collect();
    declare.unnamed().node(vec![node], Renamed { schema: Arc::new(arrow_schema::Schema::new(fields)) })
}

/// The same rows under other column names.
#[derive(Debug)]
struct Renamed {
    schema: SchemaRef,
}

impl Operator for Renamed {
    fn kind(&self) -> &'static str {
        "columns"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn lower(&self, inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        let count = inputs[0].output_partitioning().partition_count();
        Ok(cx.node("columns", RenamedKernel(Arc::clone(&self.schema)), inputs, self.schema(), count))
    }
}

#[derive(Debug)]
struct RenamedKernel(SchemaRef);

impl Kernel for RenamedKernel {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        let schema = Arc::clone(&self.0);
        let rows = inputs.open(0, partition)?;
        let renamed =
            rows.map(move |rows| Ok(arrow_array::RecordBatch::try_new(Arc::clone(&schema), rows?.columns().to_vec())?));
        Ok(rows_from(Arc::clone(&self.0), renamed))
    }
}
