//! Joins of two streams.
//!
//! ```sql
//! SELECT … FROM auctions a JOIN bids b
//!   ON a.id = b.auction AND b.at BETWEEN a.at AND a.at + INTERVAL '10' MINUTE
//! ```
//!
//! Both sides are kept, each row until the watermark of the other side says that
//! no partner can come; an outer join gives a row that had none with NULLs then.
//! Rows go to the partition that owns their key, and partitions work side by side:
//!
//! ```text
//! left  ─ scatter ═ exchange ─┬─► partition 0: kept rows of both sides ─► joined rows
//! right ─ scatter ═ exchange ─┴─► partition 1: …
//! ```
//!
//! [`plan`] finds in the condition how long that is, [`store`] keeps rows, [`side`]
//! is a side's state, [`step`] runs a batch. Made by [`super::parts`], which cuts a
//! statement where it joins streams. [`scatter`] is the way to the partitions.

mod plan;
mod scatter;
mod side;
mod step;
mod store;

use crate::{
    plan::{BatchRun, Kernel, Lowering, NodeInputs, Operator, Rows, rows_once},
    sql::{leaves, progress::Time},
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::{common::Result as DfResult, physical_plan::ExecutionPlan};
use futures::TryStreamExt;
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};
use step::{Condition, Join};
use tidemill_core::{Error, Result};

pub(super) use plan::plan;

/// A join of two streams as an operator.
#[derive(Debug)]
pub(super) struct JoinOperator {
    name: String,
    inputs: [Arc<dyn ExecutionPlan>; 2],
    /// Taken when it is lowered.
    parts: Mutex<Option<([side::SidePlan; 2], Condition)>>,
    join: OnceLock<Arc<Join>>,
    schema: SchemaRef,
    /// How long rows are kept, for `plan`.
    told: String,
    /// What is known of the times of its columns.
    pub(super) times: Vec<Option<Time>>,
}

/// The name under which it is kept how far joined rows have come by the time of a side.
fn given(name: &str, side: usize) -> String {
    format!("{name}.{}.given", ["left", "right"][side])
}

impl Operator for JoinOperator {
    fn kind(&self) -> &'static str {
        "join"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn lower(&self, inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        let of = |e| Error::internal(format!("planning `{}`", self.name)).because(e);
        let read = leaves::leaves(&self.inputs).map_err(of)?;
        if let Some((sides, condition)) = self.parts.lock().take() {
            let [left, right] = sides;
            let sides = [
                Arc::new(side::SideState::new(format!("{}.left", self.name), left, cx.partitions)),
                Arc::new(side::SideState::new(format!("{}.right", self.name), right, cx.partitions)),
            ];
            let join = Join { name: self.name.clone(), sides, condition, schema: Arc::clone(&self.schema) };
            // Only the first who lowers takes the parts.
            let _first = self.join.set(Arc::new(join));
        }
        let join = self.join.get().ok_or_else(|| Error::internal("a join without its sides"))?;
        for side in &join.sides {
            cx.states.register(Arc::clone(side) as _);
        }
        let partitions = join.sides[0].partitions();
        let plans = self
            .inputs
            .iter()
            .zip(&join.sides)
            .map(|(plan, side)| Ok(scatter::scatter(leaves::put_in(plan, &read, &inputs).map_err(of)?, side, cx)))
            .collect::<Result<Vec<_>>>()?;
        Ok(cx.node(&self.told, JoinKernel(Arc::clone(join)), plans, self.schema(), partitions))
    }
}

#[derive(Debug)]
struct JoinKernel(Arc<Join>);

impl Kernel for JoinKernel {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        let [left, right] = [inputs.open(0, partition)?, inputs.open(1, partition)?];
        let join = Arc::clone(&self.0);
        let rows = async move {
            // Both exchanges at once: the writers of one may wait for readers of the other. When they have ended, all
            // rows of both sides have moved the watermarks.
            let (left, right): (Vec<RecordBatch>, Vec<RecordBatch>) =
                futures::try_join!(left.try_collect(), right.try_collect())?;
            join.step(partition, [scatter::in_order(left)?, scatter::in_order(right)?], &run)
        };
        Ok(rows_once(Arc::clone(&self.0.schema), rows))
    }
}
