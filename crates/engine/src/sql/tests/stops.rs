//! A query that was stopped reads and computes nothing more: counted, and not timed.
//!
//! "Within a second" is then a matter of how long one step takes, which is some
//! thousand rows. The query is stopped from within, at a step of its own, so
//! that there is no race between who stops and who computes.

use crate::sql::{
    session::{config, session},
    stoppable::planned,
};
use arrow_array::{BooleanArray, Int64Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::{
    catalog::streaming::StreamingTable,
    execution::{SendableRecordBatchStream, TaskContext, runtime_env::RuntimeEnvBuilder},
    logical_expr::{ColumnarValue, Volatility, create_udf},
    physical_plan::{collect, stream::RecordBatchStreamAdapter, streaming::PartitionStream},
    prelude::SessionContext,
};
use futures::stream;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tidemill_core::Progress;

/// The step at which a query is stopped.
const STOP: u64 = 5;

/// Counts the steps of a query, and stops it at [`STOP`].
#[derive(Debug, Default, Clone)]
struct Steps {
    done: Arc<AtomicU64>,
    progress: Arc<Progress>,
}

impl Steps {
    fn step(&self) -> u64 {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        if done == STOP {
            self.progress.stop();
        }
        done
    }
}

/// Rows without an end.
#[derive(Debug)]
struct Endless {
    schema: SchemaRef,
    steps: Steps,
}

impl PartitionStream for Endless {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _task: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (schema, steps) = (Arc::clone(&self.schema), self.steps.clone());
        let rows = stream::repeat_with(move || {
            let first = i64::try_from(steps.step()).unwrap() * 100;
            let numbers = Int64Array::from_iter_values(first..first + 100);
            Ok(RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(numbers)])?)
        });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows))
    }
}

/// What came of a query, how many steps it did, and what memory it holds when it has ended.
fn stopped(sql: &str) -> (String, u64, usize) {
    let runtime = RuntimeEnvBuilder::new().with_memory_limit(64 << 20, 1.0).build_arc().unwrap();
    let session: SessionContext = session(config(1), Some(Arc::clone(&runtime)));
    let steps = Steps::default();
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
    let endless = Arc::new(Endless { schema: Arc::clone(&schema), steps: steps.clone() });
    let table = StreamingTable::try_new(schema, vec![endless]).unwrap();
    session.register_table("endless", Arc::new(table)).unwrap();
    let counted = steps.clone();
    let never = move |args: &[ColumnarValue]| {
        counted.step();
        let rows = args.iter().map(|arg| if let ColumnarValue::Array(rows) = arg { rows.len() } else { 1 }).max();
        Ok(ColumnarValue::Array(Arc::new(BooleanArray::from(vec![false; rows.unwrap_or(1)]))))
    };
    let types = vec![DataType::Int64];
    session.register_udf(create_udf("never", types, DataType::Boolean, Volatility::Volatile, Arc::new(never)));
    let threads = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let error = threads.block_on(async {
        let state = session.state();
        let plan = state.create_logical_plan(sql).await.unwrap();
        let plan = planned(&state, &plan, &steps.progress).await.unwrap();
        collect(plan, session.task_ctx()).await.unwrap_err().to_string()
    });
    drop(threads);
    (error, steps.done.load(Ordering::Relaxed), runtime.memory_pool.reserved())
}

#[test]
fn a_query_that_was_stopped_reads_nothing_more() {
    for sql in [
        "SELECT n FROM endless WHERE n < 0",
        "SELECT n + 1 FROM endless",
        "SELECT count(*), sum(n) FROM endless",
        "SELECT n % 7, sum(n) FROM endless GROUP BY n % 7",
        "SELECT DISTINCT n FROM endless",
        "SELECT n FROM endless ORDER BY n DESC LIMIT 3",
        "SELECT n FROM endless ORDER BY n DESC",
        "SELECT row_number() OVER (ORDER BY n DESC) FROM endless",
        "SELECT a.n FROM endless a JOIN (VALUES (1), (2)) b(n) ON a.n = b.n",
        "SELECT b.n FROM (VALUES (1), (2)) b(n) WHERE b.n NOT IN (SELECT n FROM endless)",
        "SELECT max(k) FROM (SELECT n AS k FROM endless WHERE n > 10) WHERE k < 0",
    ] {
        let (error, steps, held) = stopped(sql);
        assert!(error.contains("the query was stopped"), "{sql}: {error}");
        assert_eq!((steps, held), (STOP, 0), "{sql}");
    }
}

#[test]
fn a_join_that_was_stopped_compares_nothing_more() {
    // All that is read is read at once, and what takes hours is between two reads.
    let many = "(SELECT unnest(range(1, 20000)) AS n)";
    for join in ["JOIN", "LEFT JOIN", "FULL JOIN"] {
        let (error, steps, held) =
            stopped(&format!("SELECT count(*) FROM {many} a {join} {many} b ON never(a.n + b.n)"));
        assert!(error.contains("the query was stopped"), "{join}: {error}");
        assert_eq!((steps, held), (STOP, 0), "{join}");
    }
}
