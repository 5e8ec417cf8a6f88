//! `cache`: computed once a batch for all who read it.
//!
//! Without it, a stream that two outputs read is computed for each, which for
//! short chains is cheaper than keeping its rows. The rows of a batch are kept
//! in memory until its last reader has had them. No state, and no notion of
//! late.
//!
//! ```
//! # use tidemill_engine::testing::check_unordered;
//! check_unordered(
//!     [vec![1, 2]],
//!     |numbers| {
//!         let costly = numbers.map(|n| n * n).cache();
//!         costly.union(&costly.map(|n: i32| -n))
//!     },
//!     [vec![-4, -1, 1, 4]],
//! );
//! ```

use crate::{
    plan::{Lowering, Operator},
    record::{Record, schema_of},
    stream::{Chain, DStream},
};
use arrow_schema::SchemaRef;
use datafusion::physical_plan::ExecutionPlan;
use std::sync::Arc;
use tidemill_core::Result;

#[derive(Debug)]
struct Cache {
    schema: SchemaRef,
}

impl Operator for Cache {
    fn kind(&self) -> &'static str {
        "cache"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn lower(&self, mut inputs: Vec<Arc<dyn ExecutionPlan>>, _cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(inputs.remove(0))
    }
}

impl<T: Record, C: Chain<Out = T>> DStream<T, C> {
    /// The same stream, computed once a batch for all its readers.
    pub fn cache(&self) -> DStream<T> {
        DStream::of(&self.declare, vec![self.rows()], Cache { schema: schema_of::<T>() })
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::run;
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    };

    #[test]
    fn a_cached_stream_is_computed_once_a_batch() {
        for (cached, calls) in [(true, 3), (false, 6)] {
            let count = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&count);
            let got = run(
                [vec![1, 2], vec![3]],
                move |s| {
                    let costly = s.map(move |n| {
                        counted.fetch_add(1, Relaxed);
                        n
                    });
                    let costly = if cached { costly.cache() } else { costly.erase() };
                    costly.union(&costly.map(|n| n * 10))
                },
                2,
            )
            .unwrap();
            assert_eq!(got.iter().map(|batch| batch.iter().sum::<i32>()).collect::<Vec<_>>(), vec![33, 33]);
            assert_eq!(count.load(Relaxed), calls, "cached: {cached}");
        }
    }
}
