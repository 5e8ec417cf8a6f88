//! `group_by_key`: all values of each key of a batch.
//!
//! No state, and no notion of late. The values come in no particular order. A
//! fold that can begin beside the input ([`DStream::reduce_by_key`],
//! [`DStream::combine_by_key`]) is cheaper: here every value crosses the
//! exchange.
//!
//! ```
//! # use tidemill_engine::testing::check_unordered;
//! check_unordered(
//!     [vec![(1, 5), (2, 6), (1, 5)], vec![]],
//!     |pairs| pairs.group_by_key(),
//!     [vec![(1, vec![5, 5]), (2, vec![6])], vec![]],
//! );
//! ```

use super::keyed::{Growing, scatter};
use crate::{
    plan::{BatchRun, Kernel, Lowering, NodeInputs, Operator, Rows, external, rows_once},
    record::{Key, Record, hash_key, read_batch, schema_of},
    stream::{Chain, DStream},
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::{common::Result as DfResult, physical_plan::ExecutionPlan};
use futures::StreamExt;
use hashbrown::{HashTable, hash_table::Entry};
use std::{fmt, marker::PhantomData, sync::Arc};
use tidemill_core::Result;

/// Keys in the order in which they first appear, with what was gathered of each.
pub(crate) struct Groups<K, G> {
    index: HashTable<usize>,
    groups: Vec<(K, G)>,
}

impl<K, G> Default for Groups<K, G> {
    fn default() -> Self {
        Self { index: HashTable::new(), groups: Vec::new() }
    }
}

impl<K: Key, G: Default> Groups<K, G> {
    pub(crate) fn len(&self) -> usize {
        self.groups.len()
    }

    /// The group of a key, empty at first.
    pub(crate) fn of(&mut self, key: K::Ref<'_>) -> &mut G {
        let groups = &mut self.groups;
        let hash = hash_key::<K>(key);
        let found =
            self.index.entry(hash, |i| K::same(groups[*i].0.borrow(), key), |i| hash_key::<K>(groups[*i].0.borrow()));
        let at = match found {
            Entry::Occupied(at) => *at.get(),
            Entry::Vacant(at) => {
                at.insert(groups.len());
                groups.push((K::own(key), G::default()));
                groups.len() - 1
            }
        };
        &mut groups[at].1
    }

    /// Takes all rows of `(K, V)`; `side` says where in a group the values go.
    pub(crate) fn take<V: Record>(&mut self, rows: &RecordBatch, side: impl Fn(&mut G) -> &mut Vec<V>) -> DfResult<()> {
        let column = read_batch::<(K, V)>(rows).map_err(external)?;
        for row in 0..rows.num_rows() {
            let (key, value) = <(K, V)>::get(&column, row);
            side(self.of(key)).push(V::own(value));
        }
        Ok(())
    }

    pub(crate) fn into_iter(self) -> std::vec::IntoIter<(K, G)> {
        self.groups.into_iter()
    }
}

struct GroupByKey<C> {
    chain: C,
}

impl<C> fmt::Debug for GroupByKey<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GroupByKey")
    }
}

impl<K: Key, V: Record, C: Chain<Out = (K, V)>> Operator for GroupByKey<C> {
    fn kind(&self) -> &'static str {
        "group_by_key"
    }

    fn schema(&self) -> SchemaRef {
        schema_of::<(K, Vec<V>)>()
    }

    fn lower(&self, mut inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        let pairs = scatter::<K, V, C>(inputs.remove(0), &self.chain, cx);
        let kernel = GroupKernel::<K, V>(PhantomData);
        Ok(cx.node("group", kernel, vec![pairs], self.schema(), cx.partitions))
    }
}

struct GroupKernel<K, V>(PhantomData<fn() -> (K, V)>);

impl<K, V> fmt::Debug for GroupKernel<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("group")
    }
}

impl<K: Key, V: Record> Kernel for GroupKernel<K, V> {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        let mut rows = inputs.open(0, partition)?;
        let schema = schema_of::<(K, Vec<V>)>();
        let out_schema = Arc::clone(&schema);
        let grouped = async move {
            let mut groups = Groups::<K, Vec<V>>::default();
            while let Some(batch) = rows.next().await {
                groups.take::<V>(&batch?, |values| values)?;
            }
            let mut out = Growing::<(K, Vec<V>)>::new(&out_schema, groups.len());
            for (key, values) in groups.into_iter() {
                out.push((key.borrow(), values.borrow()))?;
            }
            out.finish()
        };
        Ok(rows_once(schema, grouped))
    }
}

impl<K: Key, V: Record, C: Chain<Out = (K, V)>> DStream<(K, V), C> {
    /// All values of each key of each batch.
    pub fn group_by_key(&self) -> DStream<(K, Vec<V>)> {
        DStream::of(&self.declare, vec![self.base()], GroupByKey { chain: self.chain.clone() })
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::run;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn groups_are_those_of_a_map(
            batches in prop::collection::vec(prop::collection::vec(("[a-d]{0,2}", 0_i64..9), 0..20), 1..4),
            partitions in 1_usize..4,
        ) {
            let want: Vec<BTreeMap<String, Vec<i64>>> = batches
                .iter()
                .map(|batch| {
                    let mut groups: BTreeMap<String, Vec<i64>> = BTreeMap::new();
                    for (k, v) in batch {
                        groups.entry(k.clone()).or_default().push(*v);
                    }
                    groups.values_mut().for_each(|g| g.sort_unstable());
                    groups
                })
                .collect();
            let grouped = run(batches.clone(), |s| s.group_by_key(), partitions).unwrap();
            let combined = run(
                batches,
                |s| s.combine_by_key(|v| vec![v], |mut all, v| { all.push(v); all }, |mut a, b| { a.extend(b); a }),
                partitions,
            ).unwrap();
            for got in [grouped, combined] {
                for (groups, want) in got.into_iter().zip(&want) {
                    let count = groups.len();
                    let groups: BTreeMap<_, _> = groups.into_iter().map(|(k, mut v)| { v.sort_unstable(); (k, v) }).collect();
                    prop_assert_eq!(groups.len(), count, "a key stands once");
                    prop_assert_eq!(&groups, want);
                }
            }
        }
    }
}
