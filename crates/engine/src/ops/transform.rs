//! `transform`, `transform_with`: any function on the whole batch of a stream.
//!
//! The way out where no operator fits: sorting a batch, looking at all of it,
//! calling a library. All records of the batch are held in memory and pass one
//! thread. No state, and no notion of late.
//!
//! ```
//! # use tidemill_engine::testing::check;
//! check(
//!     [vec![3, 1, 2], vec![]],
//!     |numbers| numbers.transform(|_batch, mut all| {
//!         all.sort();
//!         all
//!     }),
//!     [vec![1, 2, 3], vec![]],
//! );
//! ```

use super::keyed::Growing;
use crate::{
    emit::BatchInfo,
    plan::{BatchRun, Kernel, Lowering, NodeInputs, Operator, Rows, external, rows_once},
    record::{Record, records_of, schema_of},
    stream::{Chain, DStream},
};
use arrow_schema::SchemaRef;
use datafusion::{
    common::{DataFusionError, Result as DfResult},
    physical_plan::ExecutionPlan,
};
use futures::TryStreamExt;
use std::{fmt, marker::PhantomData, sync::Arc};
use tidemill_core::Result;
use tokio::task::JoinSet;

struct Transform<T, W, U, F> {
    f: Arc<F>,
    types: PhantomData<fn() -> (T, W, U)>,
}

impl<T, W, U, F> fmt::Debug for Transform<T, W, U, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transform")
    }
}

impl<T, W, U, F> Operator for Transform<T, W, U, F>
where
    T: Record,
    W: Record,
    U: Record,
    F: Fn(&BatchInfo, Vec<T>, Vec<W>) -> Vec<U> + Send + Sync + 'static,
{
    fn kind(&self) -> &'static str {
        "transform"
    }

    fn schema(&self) -> SchemaRef {
        schema_of::<U>()
    }

    fn lower(&self, inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        let kernel = Self { f: Arc::clone(&self.f), types: PhantomData };
        Ok(cx.node("transform", kernel, inputs, self.schema(), 1))
    }
}

impl<T, W, U, F> Kernel for Transform<T, W, U, F>
where
    T: Record,
    W: Record,
    U: Record,
    F: Fn(&BatchInfo, Vec<T>, Vec<W>) -> Vec<U> + Send + Sync + 'static,
{
    fn run(&self, _partition: usize, inputs: &NodeInputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        let left = gather::<T>(inputs, 0)?;
        let right = if inputs.count() > 1 { Some(gather::<W>(inputs, 1)?) } else { None };
        let f = Arc::clone(&self.f);
        let schema = schema_of::<U>();
        let out_schema = Arc::clone(&schema);
        let made = async move {
            let right = async {
                match right {
                    Some(right) => right.await,
                    None => Ok(Vec::new()),
                }
            };
            let (left, right) = futures::try_join!(left, right)?;
            let made = f(&BatchInfo { id: run.batch.id, time: run.batch.time }, left, right);
            let mut out = Growing::<U>::new(&out_schema, made.len());
            made.iter().try_for_each(|record| out.push(record.borrow()))?;
            out.finish()
        };
        Ok(rows_once(schema, made))
    }
}

/// All records of an input, partition after partition, read at the same time.
fn gather<T: Record>(
    inputs: &NodeInputs<'_>,
    input: usize,
) -> DfResult<impl Future<Output = DfResult<Vec<T>>> + Send + use<T>> {
    let parts = (0..inputs.partitions(input)).map(|p| inputs.open(input, p)).collect::<DfResult<Vec<_>>>()?;
    Ok(async move {
        let mut reading = JoinSet::new();
        let count = parts.len();
        for (part, rows) in parts.into_iter().enumerate() {
            reading.spawn(async move {
                let rows: Vec<_> = rows.try_collect().await?;
                let records = rows.iter().map(records_of::<T>).collect::<Result<Vec<_>>>().map_err(external)?;
                Ok::<_, DataFusionError>((part, records))
            });
        }
        let mut all: Vec<Vec<Vec<T>>> = (0..count).map(|_| Vec::new()).collect();
        while let Some(read) = reading.join_next().await {
            let (part, records) = read.map_err(|e| DataFusionError::ExecutionJoin(Box::new(e)))??;
            all[part] = records;
        }
        Ok(all.into_iter().flatten().flatten().collect())
    })
}

impl<T: Record, C: Chain<Out = T>> DStream<T, C> {
    /// The records that `f` makes of all records of a batch; also called for an
    /// empty one. Given the same batch again, it must give the same records.
    pub fn transform<U: Record>(&self, f: impl Fn(&BatchInfo, Vec<T>) -> Vec<U> + Send + Sync + 'static) -> DStream<U> {
        let f = move |info: &BatchInfo, records: Vec<T>, _: Vec<()>| f(info, records);
        let operator = Transform { f: Arc::new(f), types: PhantomData::<fn() -> (T, (), U)> };
        DStream::of(&self.declare, vec![self.rows()], operator)
    }

    /// As [`DStream::transform`], over the batches of two streams at the same time.
    pub fn transform_with<W: Record, U: Record, D: Chain<Out = W>>(
        &self,
        other: &DStream<W, D>,
        f: impl Fn(&BatchInfo, Vec<T>, Vec<W>) -> Vec<U> + Send + Sync + 'static,
    ) -> DStream<U> {
        let operator = Transform { f: Arc::new(f), types: PhantomData::<fn() -> (T, W, U)> };
        DStream::of(&self.declare, vec![self.rows(), other.rows()], operator)
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{run, run_two};

    #[test]
    fn a_transform_sees_the_whole_batch_of_every_partition() {
        for partitions in 1..=3 {
            let pairs: Vec<(i64, i64)> = (0..50).map(|n| (n, 2 * n)).collect();
            let got = run(
                [pairs.clone(), vec![]],
                |s| {
                    s.reduce_by_key(|a, _| a).transform(|info, mut all| {
                        all.sort_unstable();
                        all.insert(0, (i64::try_from(info.id.0).unwrap(), info.time.millis()));
                        all
                    })
                },
                partitions,
            )
            .unwrap();
            assert_eq!(got[0][0], (1, 1000));
            assert_eq!(got[0][1..], pairs);
            assert_eq!(got[1], vec![(2, 2000)]);
        }
    }

    #[test]
    fn two_streams_are_transformed_side_by_side() {
        let got = run_two(
            [vec![1_i64, 2], vec![3]],
            [vec!["a".to_string()], vec![]],
            |numbers, words| {
                numbers.transform_with(&words, |_, numbers, words| {
                    vec![format!("{}{}", words.concat(), numbers.iter().sum::<i64>())]
                })
            },
            2,
        );
        assert_eq!(got.unwrap(), vec![vec!["a3".to_string()], vec!["3".to_string()]]);
    }
}
