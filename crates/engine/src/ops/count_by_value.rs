//! `count_by_value`: how often each value stands in a batch.
//!
//! As `map(|v| (v, 1)).reduce_by_key(+)`, without a copy of the value: it is
//! owned once a distinct value and not once a record. No state, and no notion
//! of late.
//!
//! ```
//! # use tidemill_engine::testing::check_unordered;
//! check_unordered([vec![3_i64, 1, 3], vec![]], |s| s.count_by_value(), [vec![(1, 1), (3, 2)], vec![]]);
//! ```

use super::keyed::Folding;
use crate::{
    record::{Key, Record},
    stream::{Chain, DStream, chain::Input},
};
use arrow_array::RecordBatch;
use tidemill_core::Result;

/// A chain whose records each come with a one.
#[derive(Debug, Clone)]
struct WithOne<C>(C);

impl<C: Chain> Chain for WithOne<C> {
    type Out = (C::Out, i64);

    #[inline]
    fn drive<E>(&self, rows: &RecordBatch, mut each: E) -> Result<()>
    where
        E: FnMut((<C::Out as Record>::Ref<'_>, i64)),
    {
        self.0.drive(rows, |value| each((value, 1)))
    }

    fn input(&self) -> &Input {
        self.0.input()
    }
}

impl<T: Key, C: Chain<Out = T>> DStream<T, C> {
    /// Each record as a key with a one.
    pub(super) fn with_one(&self) -> DStream<(T, i64), impl Chain<Out = (T, i64)> + use<T, C>> {
        self.with(WithOne(self.chain.clone()))
    }

    /// How often each value stands in each batch.
    pub fn count_by_value(&self) -> DStream<(T, i64)> {
        self.with_one().combine("count_by_value", Folding(|a: i64, b: i64| a + b))
    }
}
