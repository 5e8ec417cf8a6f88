//! Beside the input: each record's time and pane, and a first combination.
//!
//! Invariant: every record is seen by the watermark or set aside; what leaves is
//! one row for each key and pane of the partition, in which the least and the
//! greatest time stand. For count windows each record leaves alone, with its place
//! in the batch, since the order decides.

use super::Times;
use crate::{
    ops::keyed::{Combiner, Scatter, Table},
    plan::{BatchRun, FAR, Kernel, NodeInputs, Rows, external, partition_of_rows, rows_once},
    record::{Key, Record, batch_of, hash_key},
    sql::{LATE_KEPT, rows_as_json},
    stream::Chain,
};
use arrow_schema::SchemaRef;
use datafusion::common::Result as DfResult;
use futures::StreamExt;
use std::{collections::BTreeMap, fmt, marker::PhantomData, sync::Arc};
use tidemill_core::{DeadLetter, Offset, PartitionId, Timestamp, WindowKind};

/// Key, pane, least and greatest time (or place, or number), accumulator.
pub(super) type Row<K, A> = (K, i64, i64, i64, A);

/// Records of one partition of a batch at most, where their order is kept.
const PLACES: i64 = 1 << 40;

pub(super) struct Assign<K, V, A, C, F, M> {
    pub(super) name: String,
    /// The stream whose partitions the rows name; empty when they name none.
    pub(super) stream: String,
    pub(super) chain: C,
    pub(super) times: Times<F>,
    pub(super) window: WindowKind,
    pub(super) combiner: Arc<M>,
    pub(super) partitions: usize,
    pub(super) schema: SchemaRef,
    pub(super) types: PhantomData<fn() -> (K, V, A)>,
}

impl<K, V, A, C, F, M> fmt::Debug for Assign<K, V, A, C, F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("panes by event time")
    }
}

/// Records that are in no window.
struct Aside<K: Record, V: Record> {
    late: Vec<(Timestamp, PartitionId, (K, V))>,
    count: usize,
}

impl<K: Record, V: Record> Aside<K, V> {
    fn push(&mut self, time: Timestamp, partition: &PartitionId, record: <(K, V) as Record>::Ref<'_>) {
        self.count += 1;
        if (self.late.len() as u64) < LATE_KEPT {
            self.late.push((time, partition.clone(), <(K, V)>::own(record)));
        }
    }

    /// Counts them, and makes letters of those that may be kept.
    fn send(self, run: &BatchRun, name: &str, stream: &str, latest: Timestamp) -> DfResult<()> {
        let kept = run.count_late(self.count, LATE_KEPT);
        let before = run.watermark_before(name);
        let stream = if stream.is_empty() { name } else { stream };
        let mut letters = Vec::new();
        for (time, partition, record) in self.late.into_iter().take(kept) {
            let reason = if time > latest {
                format!(
                    "ahead: the record's time is {time}, and the batch was at {}; `max_ahead` says how far ahead it may be",
                    run.batch.time
                )
            } else {
                format!("late: the record's time is {time}, and the watermark of `{name}` was at {before}")
            };
            let raw = rows_as_json(&batch_of([record]).map_err(external)?).pop().unwrap_or_default();
            let (stream, batch) = (stream.to_string(), Some(run.batch.id));
            // Functions stand between the record and its place: its offset is not known.
            letters.push(DeadLetter { stream, partition, offset: Offset(0), batch, reason, raw });
        }
        run.late_letters.lock().extend(letters);
        Ok(())
    }
}

impl<K, V, A, C, F, M> Kernel for Assign<K, V, A, C, F, M>
where
    K: Key,
    V: Record,
    A: Record,
    C: Chain<Out = (K, V)>,
    F: for<'a> Fn((K::Ref<'a>, V::Ref<'a>)) -> Timestamp + Send + Sync + 'static,
    M: Combiner<V, A>,
{
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        let mut rows = inputs.open(0, partition)?;
        let (chain, times, combiner) = (self.chain.clone(), self.times.clone(), Arc::clone(&self.combiner));
        let (name, stream, window, partitions) = (self.name.clone(), self.stream.clone(), self.window, self.partitions);
        run.follow(&name, times.spec, &stream);
        let assigned = async move {
            let closed = run.watermark_before(&name).minus(times.lateness);
            let latest = Timestamp(times.spec.latest(run.batch.time).0.min(FAR));
            let mut largest = BTreeMap::<PartitionId, Timestamp>::new();
            let mut aside = Aside::<K, V> { late: Vec::new(), count: 0 };
            let mut table = Table::<(K, i64), (i64, i64, A)>::with_capacity(0);
            let mut out = Scatter::<Row<K, A>>::new(partitions, 1024);
            let mut place = i64::try_from(partition).unwrap_or(0) * PLACES;
            let mut pushed = Ok(());
            while let Some(batch) = rows.next().await {
                let batch = batch?;
                let from = partition_of_rows(&batch);
                let mut seen = Timestamp::MIN;
                chain
                    .drive(&batch, |(key, value)| {
                        if let WindowKind::Count(_) = window {
                            let (key, first) = (K::own(key), combiner.create(V::own(value)));
                            if pushed.is_ok() {
                                let row = (key.borrow(), 0, place, place, first.borrow());
                                pushed = out.push(hash_key::<K>(key.borrow()), row);
                            }
                            place += 1;
                            return;
                        }
                        let time = (times.time)((key, value));
                        if !(-FAR..=latest.0).contains(&time.0) {
                            return aside.push(time, &from, (key, value));
                        }
                        seen = seen.max(time);
                        if window.is_closed(time, closed) {
                            return aside.push(time, &from, (key, value));
                        }
                        let pane = match window {
                            WindowKind::Session(gap) => time.floor(gap).0,
                            WindowKind::Time(spec) | WindowKind::Count(spec) => spec.pane_of(time).0,
                        };
                        table.upsert(
                            (key, pane),
                            || (time.0, time.0, combiner.create(V::own(value))),
                            |(low, high, so_far)| {
                                (low.min(time.0), high.max(time.0), combiner.merge(so_far, V::own(value)))
                            },
                        );
                    })
                    .map_err(external)?;
                if seen > Timestamp::MIN {
                    largest.entry(from).and_modify(|at| *at = seen.max(*at)).or_insert(seen);
                }
            }
            pushed?;
            for (from, at) in &largest {
                run.observe(&name, from, *at);
            }
            if aside.count > 0 {
                aside.send(&run, &name, &stream, latest)?;
            }
            for ((key, pane), (low, high, value)) in table.iter() {
                out.push(hash_key::<K>(key.borrow()), (key.borrow(), *pane, *low, *high, value.borrow()))?;
            }
            out.finish()?;
            Ok(out.ready)
        };
        Ok(rows_once(Arc::clone(&self.schema), assigned))
    }
}
