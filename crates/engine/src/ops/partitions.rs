//! `map_partitions` and `repartition`: what concerns partitions and not records.
//!
//! No state, and no notion of late.
//!
//! ```
//! # use tidemill_engine::testing::check_unordered;
//! // A largest and a smallest of each partition; an empty batch has neither.
//! check_unordered(
//!     [vec![3, 1, 2], vec![]],
//!     |numbers| numbers.map_partitions::<i32, _>(|records, out| {
//!         out.extend(records.clone().min());
//!         out.extend(records.max());
//!     }),
//!     [vec![1, 3], vec![]],
//! );
//! check_unordered([vec![3, 1, 2]], |numbers| numbers.repartition(2), [vec![1, 2, 3]]);
//! ```

use super::keyed::Growing;
use crate::{
    plan::{
        BatchRun, Kernel, Lowering, NodeInputs, Operator, Rows, exchange, external, mark, rows_from, rows_once,
        scattered,
    },
    record::{Record, read_batch, schema_of},
    state::panes::evenly,
    stream::{Chain, DStream, Emit},
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::{
    common::Result as DfResult,
    physical_plan::{ExecutionPlan, ExecutionPlanProperties},
};
use futures::{StreamExt, TryStreamExt};
use std::{fmt, marker::PhantomData, sync::Arc};
use tidemill_core::{Error, Result};

/// The records of one partition of a batch, borrowed.
pub struct Records<'a, T: Record> {
    /// Columns and their number of rows.
    columns: &'a [(T::Column, usize)],
    row: usize,
}

impl<T: Record> Clone for Records<'_, T> {
    fn clone(&self) -> Self {
        Self { columns: self.columns, row: self.row }
    }
}

impl<T: Record> fmt::Debug for Records<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Records({} left)", self.left())
    }
}

impl<T: Record> Records<'_, T> {
    fn left(&self) -> usize {
        self.columns.iter().map(|(_, rows)| rows).sum::<usize>() - self.row
    }
}

impl<'a, T: Record> Iterator for Records<'a, T> {
    type Item = T::Ref<'a>;

    fn next(&mut self) -> Option<T::Ref<'a>> {
        loop {
            let (column, rows) = self.columns.first()?;
            if self.row < *rows {
                self.row += 1;
                return Some(T::get(column, self.row - 1));
            }
            self.columns = &self.columns[1..];
            self.row = 0;
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left(), Some(self.left()))
    }
}

impl<T: Record> ExactSizeIterator for Records<'_, T> {}

struct MapPartitions<T, U, F> {
    f: Arc<F>,
    types: PhantomData<fn() -> (T, U)>,
}

impl<T, U, F> fmt::Debug for MapPartitions<T, U, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MapPartitions")
    }
}

impl<T, U, F> Operator for MapPartitions<T, U, F>
where
    T: Record,
    U: Record,
    F: for<'a, 'b> Fn(Records<'a, T>, &mut Emit<'b, U>) + Send + Sync + 'static,
{
    fn kind(&self) -> &'static str {
        "map_partitions"
    }

    fn schema(&self) -> SchemaRef {
        schema_of::<U>()
    }

    fn lower(&self, inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        let count = inputs[0].output_partitioning().partition_count();
        let kernel = Self { f: Arc::clone(&self.f), types: PhantomData };
        Ok(cx.node("partition", kernel, inputs, self.schema(), count))
    }
}

impl<T, U, F> Kernel for MapPartitions<T, U, F>
where
    T: Record,
    U: Record,
    F: for<'a, 'b> Fn(Records<'a, T>, &mut Emit<'b, U>) + Send + Sync + 'static,
{
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        let rows = inputs.open(0, partition)?;
        let f = Arc::clone(&self.f);
        let schema = schema_of::<U>();
        let out_schema = Arc::clone(&schema);
        let mapped = async move {
            let rows: Vec<RecordBatch> = rows.try_collect().await?;
            let columns = rows
                .iter()
                .map(|rows| Ok((read_batch::<T>(rows)?, rows.num_rows())))
                .collect::<Result<Vec<_>>>()
                .map_err(external)?;
            let mut out = Growing::<U>::new(&out_schema, rows.iter().map(RecordBatch::num_rows).sum());
            let mut failed = Ok(());
            let mut each = |record: U::Ref<'_>| {
                if failed.is_ok() {
                    failed = out.push(record);
                }
            };
            f(Records { columns: &columns, row: 0 }, &mut Emit::new(&mut each));
            failed?;
            out.finish()
        };
        Ok(rows_once(schema, mapped))
    }
}

/// Deals rows out: of each block, every partition gets an even slice. The
/// same batch is always dealt the same way, and one large block is enough for all.
#[derive(Debug)]
struct Repartition {
    schema: SchemaRef,
    partitions: usize,
}

impl Operator for Repartition {
    fn kind(&self) -> &'static str {
        "repartition"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn lower(&self, inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        let (count, schema) = (inputs[0].output_partitioning().partition_count(), scattered(&self.schema));
        let kernel = Deal { schema: Arc::clone(&schema), partitions: self.partitions };
        Ok(exchange(cx.node("deal", kernel, inputs, schema, count), self.partitions))
    }
}

#[derive(Debug)]
struct Deal {
    schema: SchemaRef,
    partitions: usize,
}

impl Kernel for Deal {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        let (schema, partitions) = (Arc::clone(&self.schema), self.partitions);
        let dealt = inputs.open(0, partition)?.flat_map(move |rows| {
            let slices = rows.and_then(|rows| {
                let slices = evenly(&rows, partitions).map_err(external)?;
                slices.iter().enumerate().map(|(to, rows)| mark(rows, to, &schema)).collect::<DfResult<Vec<_>>>()
            });
            futures::stream::iter(match slices {
                Ok(slices) => slices.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            })
        });
        Ok(rows_from(Arc::clone(&self.schema), dealt))
    }
}

impl<T: Record, C: Chain<Out = T>> DStream<T, C> {
    /// Any number of records of each partition of each batch, also of an empty
    /// one: for work that is worth doing once for many records. A partition's
    /// records are held in memory at once.
    pub fn map_partitions<U, F>(&self, f: F) -> DStream<U>
    where
        U: Record,
        F: for<'a, 'b> Fn(Records<'a, T>, &mut Emit<'b, U>) + Send + Sync + 'static,
    {
        let operator = MapPartitions { f: Arc::new(f), types: PhantomData::<fn() -> (T, U)> };
        DStream::of(&self.declare, vec![self.rows()], operator)
    }

    /// The same records evenly in `partitions` partitions: for costly steps behind an input of fewer partitions. Keyed operators
    /// have the partitions of the context whatever comes before them. Zero is
    /// an error at the start.
    pub fn repartition(&self, partitions: usize) -> DStream<T> {
        if partitions == 0 {
            self.declare.fail(Error::user("a stream can't have 0 partitions: repartition to 1 or more"));
        }
        let operator = Repartition { schema: schema_of::<T>(), partitions: partitions.max(1) };
        DStream::of(&self.declare, vec![self.rows()], operator)
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_unordered, run, run_two};

    #[test]
    fn repartitioned_streams_have_all_records_in_so_many_partitions() {
        for partitions in 1..=3 {
            let got = run(
                [(0..100).collect::<Vec<i64>>()],
                |s| {
                    s.union(&s.map(|n| n + 100))
                        .union(&s.map(|n| n + 200))
                        .repartition(2)
                        .map_partitions::<(i64, Vec<i64>), _>(|records, out| {
                            out.push((i64::try_from(records.len()).unwrap(), records.collect::<Vec<_>>()));
                        })
                },
                partitions,
            )
            .unwrap();
            assert_eq!(got[0].len(), 2, "two partitions");
            assert!(got[0].iter().all(|(count, records)| *count == 150 && records.len() == 150));
            let mut all: Vec<i64> = got[0].iter().flat_map(|(_, records)| records.clone()).collect();
            all.sort_unstable();
            assert_eq!(all, (0..300).collect::<Vec<_>>());
        }
    }

    #[test]
    fn fewer_partitions_do_not_block_an_exchange() {
        // Far more batches than an exchange holds in flight, from three partitions into one.
        let keys: Vec<(i64, i64)> = (0..900_000).map(|n| (n, n)).collect();
        let got = run([keys], |s| s.reduce_by_key(|a, _| a).repartition(1).count(), 3).unwrap();
        assert_eq!(got, vec![vec![900_000]]);
    }

    #[test]
    fn a_partition_without_records_is_visited_too() {
        check_unordered(
            [Vec::<i64>::new()],
            |s| s.repartition(1).map_partitions::<bool, _>(|records, out| out.push(records.len() == 0)),
            [vec![true]],
        );
    }

    #[test]
    fn records_of_two_streams_stay_apart() {
        let got = run_two([vec![1]], [vec![5]], |l, r| l.union(&r).map_partitions::<i32, _>(|r, out| out.extend(r)), 2);
        let mut got = got.unwrap();
        got[0].sort_unstable();
        assert_eq!(got, vec![vec![1, 5]]);
    }
}
