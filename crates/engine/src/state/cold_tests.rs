//! A state of more keys than have room in memory: it gives what one with room gives,
//! and takes no more than it may.

use super::{
    StateOperator, Version,
    alarms::Alarm,
    keyed::{Cell, KeyedState, Moment, Values, Visit},
    memory::StateMemory,
};
use crate::record::{Key, batch_of, hash_key, partition_of, records_of};
use datafusion::common::Result as DfResult;
use std::{collections::BTreeMap, fmt::Debug, sync::Arc};
use tidemill_core::{BatchId, Timestamp};

const PARTS: usize = 2;
const LIMIT: u64 = 256 << 10;

/// Sums; a negative value removes.
struct Sums;

impl<K: Key> Visit<K, i64, i64, ()> for Sums {
    fn values(&mut self, _: &K, values: &Values<'_, i64>, cell: &mut Cell<'_, i64, ()>) -> DfResult<()> {
        for value in values.iter() {
            *cell.state = (value >= 0).then(|| cell.state.unwrap_or(0) + value);
        }
        *cell.changed = true;
        Ok(())
    }

    fn alarm(&mut self, _: &K, _: Alarm, _: Timestamp, _: &mut Cell<'_, i64, ()>) -> DfResult<()> {
        Ok(())
    }
}

fn state<K: Key>(memory: Option<&Arc<StateMemory>>) -> KeyedState<K, i64> {
    KeyedState::new(("sums".into(), "sums"), PARTS, None, vec![], memory.cloned())
}

fn run<K: Key + Ord>(state: &KeyedState<K, i64>, batch: u64, pairs: &[(K, i64)]) {
    let moment = Moment { batch: BatchId(batch), time: Timestamp(0), watermark: Timestamp::MIN };
    for partition in 0..PARTS {
        let own = |key: &K| partition_of(hash_key::<K>(key.borrow()), PARTS) == partition;
        let rows = batch_of(pairs.iter().filter(|(key, _)| own(key)).cloned()).unwrap();
        state.part(partition).lock().visit::<i64>(&moment, &[rows], &mut Sums).unwrap();
    }
}

fn held<K: Key + Ord>(state: &KeyedState<K, i64>) -> BTreeMap<K, i64> {
    let rows = state.snapshot().unwrap();
    let count: usize = rows.iter().map(arrow_array::RecordBatch::num_rows).sum();
    let all: BTreeMap<K, i64> = rows.iter().flat_map(|rows| records_of::<(K, i64)>(rows).unwrap()).collect();
    assert_eq!(all.len(), count, "a key twice");
    all
}

fn check<K: Key + Ord + Debug>(key: impl Fn(u64) -> K, keys: u64) {
    let memory = Arc::new(StateMemory::of(LIMIT));
    let (mut state, mut model) = (state::<K>(Some(&memory)), BTreeMap::new());
    let (mut versions, mut sweep) = (Vec::<Version>::new(), None);
    for batch in 1..=30_u64 {
        // A tenth of the keys, some of them again and again, some removed.
        let pairs: Vec<(K, i64)> = (0..keys / 10)
            .flat_map(|i| {
                let n = (batch * 7_919 + i * (1 + batch % 3)) % keys;
                let value = if (n + batch).is_multiple_of(11) { -1 } else { 1 };
                [(key(n), value), (key(i % 50), 1)]
            })
            .collect();
        for (key, value) in &pairs {
            if *value < 0 {
                model.remove(key);
            } else {
                *model.entry(key.clone()).or_insert(0) += value;
            }
        }
        run(&state, batch, &pairs);
        let mut rows = state.delta(BatchId(batch)).unwrap();
        assert!(memory.used() <= LIMIT, "{} bytes after batch {batch}", memory.used());
        assert_eq!(state.rows(), model.len());
        let begin = sweep.is_none();
        let first = *sweep.get_or_insert(versions.len());
        let swept = state.sweep(usize::try_from(keys / 4).unwrap(), begin).unwrap();
        rows.extend(swept.rows);
        versions.push(Version { whole: false, again: None, rows });
        if swept.whole {
            versions.drain(..first);
            sweep = None;
        }
        if batch % 10 == 0 {
            assert!(memory.spilled() > keys / 4, "{} keys on disk", memory.spilled());
            assert_eq!(held(&state), model);
            state = self::state(Some(&memory));
            state.restore(&versions).unwrap();
            sweep = None;
            assert!(memory.used() <= LIMIT, "{} bytes after a restart", memory.used());
            assert_eq!(state.rows(), model.len());
            assert_eq!(held(&state), model);
        }
    }
    assert!(versions.len() < 20, "{} versions are needed", versions.len());
    drop(state);
    assert_eq!((memory.used(), memory.spilled()), (0, 0));
}

#[test]
fn more_keys_than_have_room_are_exact_and_within_the_bound() {
    check(|n| i64::try_from(n).unwrap(), 40_000);
}

#[test]
fn keys_of_any_length_are_counted() {
    check(|n| format!("{n:0>width$}", width = usize::try_from(n % 90).unwrap()), 12_000);
}

#[test]
fn a_sweep_ends_however_often_keys_go_to_disk() {
    let memory = Arc::new(StateMemory::of(64 << 20));
    let state = state::<i64>(Some(&memory));
    let keys = 1_280_i64;
    let (mut rows, mut ended) = (Vec::new(), false);
    for batch in 1..=800_u64 {
        // Half of the keys are always warm; the others go to disk.
        let warm: Vec<(i64, i64)> = (0..keys).filter(|n| batch == 1 || n % 2 == 0).map(|n| (n, 1)).collect();
        run(&state, batch, &warm);
        state.delta(BatchId(batch)).unwrap();
        for partition in 0..PARTS {
            let mut part = state.part(partition).lock();
            (0..super::bin::BINS).for_each(|bin| part.evict(bin, false).unwrap());
        }
        let swept = state.sweep(2, batch == 1).unwrap();
        rows.extend(swept.rows);
        ended |= swept.whole;
        if ended {
            break;
        }
    }
    assert!(ended, "a row of each key, and those on disk once more, need 800 batches of two at most");
    let given: std::collections::BTreeSet<i64> =
        rows.iter().flat_map(|rows| records_of::<(i64, i64)>(rows).unwrap()).map(|(key, _)| key).collect();
    assert_eq!(given.len(), usize::try_from(keys).unwrap(), "no key is left out");
}

#[test]
fn nothing_goes_to_disk_while_there_is_room() {
    let memory = Arc::new(StateMemory::of(64 << 20));
    let state = state::<i64>(Some(&memory));
    let pairs: Vec<(i64, i64)> = (0..20_000).map(|n| (n, 1)).collect();
    run(&state, 1, &pairs);
    assert_eq!(memory.spilled(), 0);
    let least = 20_000 * 32;
    assert!((least..64 << 20).contains(&memory.used()), "{} bytes", memory.used());
}
