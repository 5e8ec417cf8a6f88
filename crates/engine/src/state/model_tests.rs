//! Keyed state against a model that looks at every key in every batch.
//!
//! The model has no index of what is due: that of the state must find the same keys.

use super::{
    StateOperator, Version,
    alarms::{Alarm, Micros},
    keyed::{Cell, KeyedState, Moment, Values, Visit},
    life::{Aged, Timers},
    memory::StateMemory,
};
use crate::record::{batch_of, hash_key, partition_of};
use datafusion::common::Result as DfResult;
use proptest::prelude::*;
use std::{collections::BTreeMap, sync::Arc};
use tidemill_core::{BatchId, Timestamp};

/// A batch: how long after the one before, its pairs, and whether the program is restarted before it.
type Given = (Micros, Vec<(i64, i64)>, Option<usize>);

fn batches() -> impl Strategy<Value = Vec<Given>> {
    let pairs = prop::collection::vec((0..8_i64, -3..10_i64), 0..6);
    let restart = prop::option::weighted(0.3, 1..4_usize);
    prop::collection::vec((1..5_i64, pairs, restart), 1..25)
}

fn of_partition(pairs: &[(i64, i64)], partition: usize, count: usize) -> Vec<(i64, i64)> {
    let own = |key: i64| partition_of(hash_key::<i64>(key), count) == partition;
    pairs.iter().copied().filter(|(key, _)| own(*key)).collect()
}

/// Versions on disk, and the state that is made of them anew.
#[derive(Default)]
struct Kept {
    versions: Vec<Version>,
    /// Whether rows are kept again in turn; else now and then all.
    sweeps: bool,
    /// Of the versions, the first of the sweep that goes on.
    sweep: Option<usize>,
}

impl Kept {
    /// Takes what a batch changed, and some of the other rows; or each seventh time all.
    fn take(&mut self, state: &dyn StateOperator, batch: BatchId) {
        let mut rows = state.delta(batch).unwrap();
        if self.sweeps && !rows.is_empty() {
            let begin = self.sweep.is_none();
            let first = *self.sweep.get_or_insert(self.versions.len());
            let swept = state.sweep(2, begin).unwrap();
            rows.extend(swept.rows);
            if swept.whole {
                // What was before is needed no more.
                self.versions.drain(..first);
                self.sweep = None;
            }
        }
        if !rows.is_empty() {
            self.versions.push(Version { whole: false, again: None, rows });
        }
        if !self.sweeps && batch.0.is_multiple_of(7) {
            self.versions.push(Version { whole: true, again: None, rows: state.snapshot().unwrap() });
        }
    }

    fn restore(&mut self, state: &dyn StateOperator) {
        self.sweep = None;
        state.restore(&self.versions).unwrap();
    }
}

/// So little memory that all keys are on disk after each batch.
fn no_memory() -> Option<Arc<StateMemory>> {
    Some(Arc::new(StateMemory::of(1)))
}

/// Sums; a negative value removes. Tells keys that end.
struct Sums(Vec<(i64, i64)>);

impl Visit<i64, i64, i64, Aged> for Sums {
    fn values(&mut self, _: &i64, values: &Values<'_, i64>, cell: &mut Cell<'_, i64, Aged>) -> DfResult<()> {
        for value in values.iter() {
            *cell.state = (value >= 0).then(|| cell.state.unwrap_or(0) + value);
            *cell.changed = true;
        }
        if cell.state.is_some() {
            cell.touch::<i64>();
        }
        Ok(())
    }

    fn alarm(&mut self, key: &i64, _: Alarm, _: Timestamp, cell: &mut Cell<'_, i64, Aged>) -> DfResult<()> {
        self.0.push((*key, cell.state.unwrap_or(i64::MIN)));
        Ok(())
    }
}

const SPAN: Micros = 6;

/// The same by a look at all keys.
#[derive(Default)]
struct SumsModel(BTreeMap<i64, (i64, Micros)>);

impl SumsModel {
    fn batch(&mut self, time: Micros, pairs: &[(i64, i64)]) -> Vec<(i64, i64)> {
        let mut ended = Vec::new();
        let mut end = |keys: &mut BTreeMap<i64, (i64, Micros)>, until: Micros| {
            keys.retain(|key, (sum, touched)| {
                let stays = *touched + SPAN > until;
                if !stays {
                    ended.push((*key, *sum));
                }
                stays
            });
        };
        end(&mut self.0, time - 1);
        for (key, value) in pairs {
            if *value < 0 {
                self.0.remove(key);
            } else {
                let entry = self.0.entry(*key).or_insert((0, time));
                *entry = (entry.0 + value, time);
            }
        }
        end(&mut self.0, time);
        ended.sort_unstable();
        ended
    }
}

/// A value sets a timer so long after the batch; a negative one takes that timer back. Tells timers that ring.
struct Clocks(Vec<(i64, Micros)>, Micros);

impl Visit<i64, i64, (), Timers> for Clocks {
    fn values(&mut self, _: &i64, values: &Values<'_, i64>, cell: &mut Cell<'_, (), Timers>) -> DfResult<()> {
        for value in values.iter() {
            let at = self.1 + value.abs();
            if value < 0 {
                *cell.changed |= cell.life.unset(Alarm::Batch, Timestamp(at));
            } else if cell.life.set(Alarm::Batch, Timestamp(at)) {
                cell.add_alarm(Alarm::Batch, at);
                *cell.changed = true;
            }
        }
        Ok(())
    }

    fn alarm(&mut self, key: &i64, _: Alarm, at: Timestamp, _: &mut Cell<'_, (), Timers>) -> DfResult<()> {
        self.0.push((*key, at.0));
        Ok(())
    }
}

fn check_ends(batches: Vec<Given>, sweeps: bool, memory: &Option<Arc<StateMemory>>) -> Result<(), TestCaseError> {
    let of =
        |count: usize| KeyedState::<i64, i64, Aged>::new(("s".into(), "s"), count, Some(SPAN), vec![], memory.clone());
    let (mut count, mut time) = (2, 0);
    let (mut state, mut model, mut kept) = (of(count), SumsModel::default(), Kept { sweeps, ..Kept::default() });
    for (number, (gap, pairs, restart)) in (1_u64..).zip(batches) {
        if let Some(partitions) = restart {
            count = partitions;
            state = of(count);
            kept.restore(&state);
        }
        time += gap;
        let moment = Moment { batch: BatchId(number), time: Timestamp(time), watermark: Timestamp::MIN };
        let mut sums = Sums(vec![]);
        for partition in 0..count {
            let rows = batch_of(of_partition(&pairs, partition, count)).unwrap();
            state.part(partition).lock().visit::<i64>(&moment, &[rows], &mut sums).unwrap();
        }
        kept.take(&state, moment.batch);
        sums.0.sort_unstable();
        prop_assert_eq!(sums.0, model.batch(time, &pairs), "at {}", time);
        prop_assert_eq!(state.rows(), model.0.len());
    }
    Ok(())
}

fn check_timers(batches: Vec<Given>, sweeps: bool, memory: &Option<Arc<StateMemory>>) -> Result<(), TestCaseError> {
    let of = |count: usize| KeyedState::<i64, (), Timers>::new(("s".into(), "s"), count, None, vec![], memory.clone());
    let (mut count, mut time) = (2, 0);
    let (mut state, mut kept) = (of(count), Kept { sweeps, ..Kept::default() });
    let mut model = std::collections::BTreeSet::new();
    for (number, (gap, pairs, restart)) in (1_u64..).zip(batches) {
        if let Some(partitions) = restart {
            count = partitions;
            state = of(count);
            kept.restore(&state);
        }
        time += gap;
        let moment = Moment { batch: BatchId(number), time: Timestamp(time), watermark: Timestamp::MIN };
        let mut clocks = Clocks(vec![], time);
        for partition in 0..count {
            let rows = batch_of(of_partition(&pairs, partition, count)).unwrap();
            state.part(partition).lock().visit::<i64>(&moment, &[rows], &mut clocks).unwrap();
        }
        kept.take(&state, moment.batch);
        let mut rung: Vec<_> = model.iter().copied().filter(|(_, at)| *at < time).collect();
        model.retain(|(_, at)| *at >= time);
        for (key, value) in &pairs {
            let timer = (*key, time + value.abs());
            if *value < 0 {
                model.remove(&timer)
            } else {
                model.insert(timer)
            };
        }
        rung.extend(model.iter().copied().filter(|(_, at)| *at <= time));
        model.retain(|(_, at)| *at > time);
        clocks.0.sort_unstable();
        rung.sort_unstable();
        prop_assert_eq!(clocks.0, rung, "at {}", time);
        let keys: std::collections::BTreeSet<i64> = model.iter().map(|(key, _)| *key).collect();
        prop_assert_eq!(state.rows(), keys.len());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: u32::try_from(crate::tries::tries(2_000)).unwrap(), ..ProptestConfig::default() })]

    #[test]
    fn keys_end_as_in_a_look_at_all_of_them(batches in batches(), sweeps: bool) {
        check_ends(batches, sweeps, &None)?;
    }

    #[test]
    fn timers_ring_as_in_a_look_at_all_of_them(batches in batches(), sweeps: bool) {
        check_timers(batches, sweeps, &None)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn keys_on_disk_end_as_those_in_memory(batches in batches(), sweeps: bool) {
        check_ends(batches, sweeps, &no_memory())?;
    }

    #[test]
    fn timers_of_keys_on_disk_ring_as_those_in_memory(batches in batches(), sweeps: bool) {
        check_timers(batches, sweeps, &no_memory())?;
    }
}
