//! `union`: the records of several streams, for example of several receivers.
//!
//! No state; each batch holds what all inputs gave in it.
//!
//! ```
//! # use tidemill_engine::testing::check_unordered;
//! check_unordered([vec![1, 2], vec![3]], |s| s.union(&s.map(|x| x * 10)), [vec![1, 2, 10, 20], vec![3, 30]]);
//! ```

use crate::{
    context::StreamingContext,
    plan::{Lineage, Lowering, Operator},
    record::{Record, schema_of},
    stream::{Chain, DStream},
};
use arrow_schema::SchemaRef;
use datafusion::physical_plan::{ExecutionPlan, union::UnionExec};
use std::sync::Arc;
use tidemill_core::{Error, Result};

#[derive(Debug)]
struct Union {
    schema: SchemaRef,
}

impl Operator for Union {
    fn kind(&self) -> &'static str {
        "union"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn lower(&self, inputs: Vec<Arc<dyn ExecutionPlan>>, _cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        UnionExec::try_new(inputs).map_err(|e| Error::internal("a union of unlike streams").because(e))
    }
}

impl<T: Record, C: Chain<Out = T>> DStream<T, C> {
    /// This stream's records and those of the other.
    pub fn union<D: Chain<Out = T>>(&self, other: &DStream<T, D>) -> DStream<T> {
        let inputs = vec![self.rows(), other.rows()];
        DStream::of(&self.declare, inputs, Union { schema: schema_of::<T>() })
    }
}

impl StreamingContext {
    /// The records of any number of streams.
    ///
    /// # Errors
    /// When there is none.
    pub fn union<T: Record>(&self, streams: &[DStream<T>]) -> Result<DStream<T>> {
        let inputs: Vec<Arc<Lineage>> = streams.iter().map(DStream::rows).collect();
        match inputs.len() {
            0 => Err(Error::user("a union needs at least one stream")),
            1 => Ok(streams[0].clone()),
            _ => Ok(DStream::of(&self.declare, inputs, Union { schema: schema_of::<T>() })),
        }
    }
}
