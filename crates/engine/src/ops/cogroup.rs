//! `cogroup`, `join`, `left_join`, `right_join`, `full_join`: two keyed streams
//! side by side, within a batch.
//!
//! ```text
//! left  ─ scatter ─┬─► partition: (key, lefts, rights) of all keys ─► what the join makes of each
//! right ─ scatter ─┘
//! ```
//!
//! A batch of one stream meets the batch of the same time of the other; for
//! longer memories, join windows. No state, and no notion of late. The values
//! of a key come in no particular order.
//!
//! ```
//! # use tidemill_engine::testing::check_unordered;
//! check_unordered(
//!     [vec![(1, 10), (2, 20)], vec![(2, 21)]],
//!     |s| s.left_join(&s.filter(|(_, v)| v == 20).map_values(|v| v + 1)),
//!     [vec![(1, (10, None)), (2, (20, Some(21)))], vec![(2, (21, None))]],
//! );
//! ```

use super::{
    group::Groups,
    keyed::{Growing, scatter},
};
use crate::{
    plan::{BatchRun, Kernel, Lowering, NodeInputs, Operator, Rows, rows_from},
    record::{Key, List, Record, schema_of},
    stream::{Chain, DStream},
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::{common::Result as DfResult, physical_plan::ExecutionPlan};
use futures::{StreamExt, TryStreamExt, stream};
use std::{fmt, marker::PhantomData, sync::Arc};
use tidemill_core::Result;

/// What a join makes of the two sides of a key.
trait Join<K: Key, V: Record, W: Record>: Copy + Send + Sync + 'static {
    type Out: Record;

    fn kind(self) -> &'static str;

    /// Calls `each` with each record; stops at the first error.
    fn emit<E>(self, key: &K, left: &[V], right: &[W], each: E) -> DfResult<()>
    where
        E: FnMut(<Self::Out as Record>::Ref<'_>) -> DfResult<()>;
}

macro_rules! join {
    ($($name:ident, $kind:literal, $out:ty, |$key:ident, $left:ident, $right:ident, $each:ident| $emit:block)*) => {$(
        #[derive(Clone, Copy)]
        struct $name;

        impl<K: Key, V: Record, W: Record> Join<K, V, W> for $name {
            type Out = (K, $out);

            fn kind(self) -> &'static str {
                $kind
            }
            fn emit<E>(self, $key: &K, $left: &[V], $right: &[W], mut $each: E) -> DfResult<()>
            where
                E: FnMut(<Self::Out as Record>::Ref<'_>) -> DfResult<()>,
            {
                $emit
            }
        }
    )*};
}

join! {
    Both, "cogroup", (Vec<V>, Vec<W>), |key, left, right, each| {
        each((key.borrow(), (List::Items(left), List::Items(right))))
    }
    Inner, "join", (V, W), |key, left, right, each| {
        left.iter().try_for_each(|v| right.iter().try_for_each(|w| each((key.borrow(), (v.borrow(), w.borrow())))))
    }
    Left, "left_join", (V, Option<W>), |key, left, right, each| {
        left.iter().try_for_each(|v| or_none(right).try_for_each(|w| each((key.borrow(), (v.borrow(), w)))))
    }
    Right, "right_join", (Option<V>, W), |key, left, right, each| {
        or_none(left).try_for_each(|v| right.iter().try_for_each(|w| each((key.borrow(), (v, w.borrow())))))
    }
    Full, "full_join", (Option<V>, Option<W>), |key, left, right, each| {
        or_none(left).try_for_each(|v| or_none(right).try_for_each(|w| each((key.borrow(), (v, w)))))
    }
}

/// The items, or one `None` when there is no item.
fn or_none<T: Record>(items: &[T]) -> impl Iterator<Item = Option<T::Ref<'_>>> {
    let none = items.is_empty().then_some(None);
    items.iter().map(|item| Some(item.borrow())).chain(none)
}

struct Cogroup<C, D, J, W> {
    left: C,
    right: D,
    join: J,
    other: PhantomData<fn() -> W>,
}

impl<C, D, J, W> fmt::Debug for Cogroup<C, D, J, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cogroup")
    }
}

impl<K, V, W, C, D, J> Operator for Cogroup<C, D, J, W>
where
    K: Key,
    V: Record,
    W: Record,
    C: Chain<Out = (K, V)>,
    D: Chain<Out = (K, W)>,
    J: Join<K, V, W>,
{
    fn kind(&self) -> &'static str {
        self.join.kind()
    }

    fn schema(&self) -> SchemaRef {
        schema_of::<J::Out>()
    }

    fn lower(&self, inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        let left = scatter::<K, V, C>(Arc::clone(&inputs[0]), &self.left, cx);
        let right = scatter::<K, W, D>(Arc::clone(&inputs[1]), &self.right, cx);
        let kernel = CogroupKernel::<K, V, W, J> { join: self.join, types: PhantomData };
        Ok(cx.node("join", kernel, vec![left, right], self.schema(), cx.partitions))
    }
}

struct CogroupKernel<K, V, W, J> {
    join: J,
    types: PhantomData<fn() -> (K, V, W)>,
}

impl<K, V, W, J> fmt::Debug for CogroupKernel<K, V, W, J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("join")
    }
}

impl<K: Key, V: Record, W: Record, J: Join<K, V, W>> Kernel for CogroupKernel<K, V, W, J> {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        let (left, right) = (inputs.open(0, partition)?, inputs.open(1, partition)?);
        let join = self.join;
        let schema = schema_of::<J::Out>();
        let out_schema = Arc::clone(&schema);
        let joined = async move {
            // Both at once: neither side may wait for the other to be read.
            let (left, right) =
                futures::try_join!(left.try_collect::<Vec<RecordBatch>>(), right.try_collect::<Vec<RecordBatch>>())?;
            let mut groups = Groups::<K, (Vec<V>, Vec<W>)>::default();
            for rows in &left {
                groups.take::<V>(rows, |sides| &mut sides.0)?;
            }
            for rows in &right {
                groups.take::<W>(rows, |sides| &mut sides.1)?;
            }
            let out = Growing::<J::Out>::new(&out_schema, groups.len());
            Ok((groups.into_iter(), out))
        };
        // A key's pairs are made when they are read: a join may have far more rows than its inputs.
        let rows = stream::once(joined).flat_map(move |joined| match joined {
            Ok((groups, out)) => pairs(join, groups, out).left_stream(),
            Err(error) => stream::iter([Err(error)]).right_stream(),
        });
        Ok(rows_from(schema, rows))
    }
}

/// The records of one group after another, in batches.
fn pairs<K: Key, V: Record, W: Record, J: Join<K, V, W>>(
    join: J,
    groups: impl Iterator<Item = (K, (Vec<V>, Vec<W>))> + Send,
    out: Growing<J::Out>,
) -> impl futures::Stream<Item = DfResult<RecordBatch>> + Send {
    let batches = stream::unfold((groups, out, false), move |(mut groups, mut out, done)| async move {
        if done {
            return None;
        }
        loop {
            let (last, step) = match groups.next() {
                Some((key, (left, right))) => (false, join.emit(&key, &left, &right, |record| out.push(record))),
                None => (true, out.flush()),
            };
            let ready: Vec<DfResult<RecordBatch>> = match step {
                Ok(()) => out.ready.drain(..).map(Ok).collect(),
                Err(error) => return Some((stream::iter(vec![Err(error)]), (groups, out, true))),
            };
            if last || !ready.is_empty() {
                return Some((stream::iter(ready), (groups, out, last)));
            }
        }
    });
    batches.flatten()
}

impl<K: Key, V: Record, C: Chain<Out = (K, V)>> DStream<(K, V), C> {
    fn beside<W, D, J>(&self, other: &DStream<(K, W), D>, join: J) -> DStream<J::Out>
    where
        W: Record,
        D: Chain<Out = (K, W)>,
        J: Join<K, V, W>,
    {
        let operator =
            Cogroup { left: self.chain.clone(), right: other.chain.clone(), join, other: PhantomData::<fn() -> W> };
        DStream::of(&self.declare, vec![self.base(), other.base()], operator)
    }

    /// All values of each key of either stream's batch: those of this stream,
    /// then those of the other.
    pub fn cogroup<W: Record, D: Chain<Out = (K, W)>>(
        &self,
        other: &DStream<(K, W), D>,
    ) -> DStream<(K, (Vec<V>, Vec<W>))> {
        self.beside(other, Both)
    }

    /// Each pair of values that have a key in common within a batch.
    pub fn join<W: Record, D: Chain<Out = (K, W)>>(&self, other: &DStream<(K, W), D>) -> DStream<(K, (V, W))> {
        self.beside(other, Inner)
    }

    /// As [`DStream::join`], and this stream's values without a partner.
    pub fn left_join<W: Record, D: Chain<Out = (K, W)>>(
        &self,
        other: &DStream<(K, W), D>,
    ) -> DStream<(K, (V, Option<W>))> {
        self.beside(other, Left)
    }

    /// As [`DStream::join`], and the other stream's values without a partner.
    pub fn right_join<W: Record, D: Chain<Out = (K, W)>>(
        &self,
        other: &DStream<(K, W), D>,
    ) -> DStream<(K, (Option<V>, W))> {
        self.beside(other, Right)
    }

    /// As [`DStream::join`], and the values of both streams without a partner.
    pub fn full_join<W: Record, D: Chain<Out = (K, W)>>(
        &self,
        other: &DStream<(K, W), D>,
    ) -> DStream<(K, (Option<V>, Option<W>))> {
        self.beside(other, Full)
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::run_two;
    use proptest::prelude::*;

    type Side = Vec<Vec<(u8, i64)>>;

    fn sides() -> impl Strategy<Value = (Side, Side)> {
        let pairs = || prop::collection::vec((0_u8..4, 0_i64..5), 0..8);
        prop::collection::vec((pairs(), pairs()), 1..3).prop_map(|batches| batches.into_iter().unzip())
    }

    /// All pairs of a batch by two loops, `None` for a side without a partner.
    fn model(left: &[(u8, i64)], right: &[(u8, i64)]) -> Vec<(u8, (Option<i64>, Option<i64>))> {
        let mut out = Vec::new();
        for (k, v) in left {
            out.extend(right.iter().filter(|(l, _)| l == k).map(|(_, w)| (*k, (Some(*v), Some(*w)))));
            if right.iter().all(|(l, _)| l != k) {
                out.push((*k, (Some(*v), None)));
            }
        }
        out.extend(right.iter().filter(|(k, _)| left.iter().all(|(l, _)| l != k)).map(|(k, w)| (*k, (None, Some(*w)))));
        out.sort_unstable();
        out
    }

    fn sorted<T: Ord>(mut items: Vec<T>) -> Vec<T> {
        items.sort();
        items
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn joins_are_those_of_two_loops((left, right) in sides(), partitions in 1_usize..4) {
            let both = |l: &Side, r: &Side| l.iter().zip(r).map(|(l, r)| model(l, r)).collect::<Vec<_>>();
            let want = both(&left, &right);
            let full = run_two(left.clone(), right.clone(), |l, r| l.full_join(&r), partitions).unwrap();
            prop_assert_eq!(full.into_iter().map(sorted).collect::<Vec<_>>(), want.clone());
            let inner = run_two(left.clone(), right.clone(), |l, r| l.join(&r), partitions).unwrap();
            let left_join = run_two(left.clone(), right.clone(), |l, r| l.left_join(&r), partitions).unwrap();
            let right_join = run_two(left.clone(), right.clone(), |l, r| l.right_join(&r), partitions).unwrap();
            for (batch, want) in want.iter().enumerate() {
                let wanted = |keep: fn(&(u8, (Option<i64>, Option<i64>))) -> bool| want.iter().copied().filter(keep).collect::<Vec<_>>();
                let got = inner[batch].iter().map(|(k, (v, w))| (*k, (Some(*v), Some(*w)))).collect();
                prop_assert_eq!(sorted(got), wanted(|(_, (v, w))| v.is_some() && w.is_some()));
                let got = left_join[batch].iter().map(|(k, (v, w))| (*k, (Some(*v), *w))).collect();
                prop_assert_eq!(sorted(got), wanted(|(_, (v, _))| v.is_some()));
                let got = right_join[batch].iter().map(|(k, (v, w))| (*k, (*v, Some(*w)))).collect();
                prop_assert_eq!(sorted(got), wanted(|(_, (_, w))| w.is_some()));
            }
        }

        #[test]
        fn cogroup_holds_every_value_once((left, right) in sides(), partitions in 1_usize..4) {
            let got = run_two(left.clone(), right.clone(), |l, r| l.cogroup(&r), partitions).unwrap();
            for (batch, groups) in got.into_iter().enumerate() {
                let keys: std::collections::BTreeSet<u8> = groups.iter().map(|(k, _)| *k).collect();
                prop_assert_eq!(keys.len(), groups.len());
                let flat = |side: fn(&(Vec<i64>, Vec<i64>)) -> &Vec<i64>| {
                    sorted(groups.iter().flat_map(|(k, g)| side(g).iter().map(|v| (*k, *v))).collect::<Vec<_>>())
                };
                prop_assert_eq!(flat(|g| &g.0), sorted(left[batch].clone()));
                prop_assert_eq!(flat(|g| &g.1), sorted(right[batch].clone()));
            }
        }
    }

    #[test]
    fn a_large_product_comes_in_batches_and_whole() {
        let side: Vec<(u8, i64)> = (0..200).map(|n| (1, n)).collect();
        let got = run_two([side.clone()], [side], |l, r| l.join(&r), 2).unwrap();
        assert_eq!(got[0].len(), 40_000);
        assert_eq!(
            got[0].iter().map(|(_, (v, w))| v * 200 + w).collect::<std::collections::BTreeSet<_>>().len(),
            40_000
        );
    }
}
