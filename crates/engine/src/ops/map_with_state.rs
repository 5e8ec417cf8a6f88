//! `map_with_state`: a function on each record that sees its key's state.
//!
//! State: one row a key, `(key, state, touched)`, under the operator's name. The
//! function is called for each record, the records of a key in their order, and
//! updates or removes the state through its [`State`]. What it returns is the
//! stream [`MapWithState::mapped`]; all states after each batch are
//! [`MapWithState::snapshots`].
//!
//! With a [`MapWithState::timeout`] a key whose records stay away is visited a
//! last time, without a value, and goes:
//!
//! ```text
//! timeout 3 s          batch   1   2   3   4   5   6
//! records of the key           x   x                       deadline 2 + 3 = 5
//! calls                        x   x           timing out, then gone
//! ```
//!
//! A record that comes by the deadline keeps the state. The first batch at or
//! after it ends the state, and one after it does so *before* it looks at its
//! own records: so sessions end the same whether quiet batches were run or the
//! program was away for a day. A batch pays for the keys that it touches and
//! those that end, not for all. Time is batch time, so nothing is late.
//!
//! ```
//! # use tidemill_core::Timestamp;
//! # use tidemill_engine::{testing::check, State};
//! # use std::time::Duration;
//! // Clicks of each visit; batches are a second apart.
//! check(
//!     [vec![("ada".to_string(), 1)], vec![("ada".to_string(), 1)], vec![], vec![]],
//!     |clicks| {
//!         let visits = clicks.map_with_state(|_time, who, click: Option<i32>, visit: &mut State<i32>| {
//!             if visit.is_timing_out() {
//!                 return visit.get().map(|clicks| format!("{who}: {clicks}"));
//!             }
//!             visit.update(visit.get().unwrap_or(&0) + click?);
//!             None
//!         });
//!         visits.timeout(Duration::from_secs(2)).mapped()
//!     },
//!     [vec![], vec![], vec![], vec!["ada: 2".to_string()]],
//! );
//! ```

use super::{
    keyed::Growing,
    stateful::{End, Stateful, StatefulNode, Step},
};
use crate::{
    plan::external,
    record::{Key, Record, schema_of},
    state::{
        alarms::Alarm,
        keyed::{Cell, Values, Visit},
        life::Aged,
    },
    stream::{Chain, DStream},
};
use arrow_schema::SchemaRef;
use datafusion::common::Result as DfResult;
use std::{fmt, marker::PhantomData, sync::Arc};
use tidemill_core::{Duration, Error, Timestamp};

/// The state of a key, in the hands of the function that runs for it.
#[derive(Debug)]
pub struct State<S> {
    value: Option<S>,
    timing_out: bool,
    changed: bool,
    /// An update of a state that is timing out, which would be lost.
    misused: bool,
}

impl<S> State<S> {
    pub(super) fn of(value: Option<S>, timing_out: bool) -> Self {
        Self { value, timing_out, changed: false, misused: false }
    }

    /// The state, whether it was changed, and whether that is an error.
    pub(super) fn into_parts(self) -> (Option<S>, bool, bool) {
        (self.value, self.changed, self.misused)
    }

    /// Whether the key has a state.
    pub fn exists(&self) -> bool {
        self.value.is_some()
    }

    /// The state, if the key has one.
    pub fn get(&self) -> Option<&S> {
        self.value.as_ref()
    }

    /// Sets the state. When it is timing out this is an error that ends the program: the state is about to go.
    pub fn update(&mut self, value: S) {
        self.misused |= self.timing_out;
        self.changed = true;
        self.value = Some(value);
    }

    /// The state to be changed in its place, if the key has one; as [`State::update`].
    pub fn get_mut(&mut self) -> Option<&mut S> {
        if self.value.is_some() {
            self.misused |= self.timing_out;
            self.changed = true;
        }
        self.value.as_mut()
    }

    /// Forgets the key. Nothing is called for it, and no timeout, until it has another record.
    pub fn remove(&mut self) {
        self.changed |= self.value.is_some();
        self.value = None;
    }

    /// Whether this is the last call before the state goes: no record has come for the timeout.
    pub fn is_timing_out(&self) -> bool {
        self.timing_out
    }
}

/// Calls the function for each record, and for each state that times out.
struct Mapper<'a, F, U: Record> {
    name: &'a str,
    time: Timestamp,
    map: &'a F,
    end: Option<End>,
    out: Growing<U>,
}

impl<F, U: Record> Mapper<'_, F, U> {
    fn call<K, V, S>(&mut self, key: &K, value: Option<V::Ref<'_>>, cell: &mut Cell<'_, S, Aged>) -> DfResult<bool>
    where
        K: Key,
        V: Record,
        S: Record,
        F: for<'a, 'b> Fn(Timestamp, K::Ref<'a>, Option<V::Ref<'b>>, &mut State<S>) -> Option<U>,
    {
        let mut state = State::of(cell.state.take(), value.is_none());
        let mapped = (self.map)(self.time, key.borrow(), value, &mut state);
        let (value, changed, misused) = state.into_parts();
        *cell.state = value;
        *cell.changed |= changed;
        if misused {
            let name = self.name;
            return Err(external(Error::user(format!(
                "`{name}`: the function of map_with_state updated a state that is timing out, which goes after the call: look at `is_timing_out` first"
            ))));
        }
        if let Some(mapped) = mapped {
            self.out.push(mapped.borrow())?;
        }
        Ok(changed)
    }
}

impl<K, V, S, U, F> Visit<K, V, S, Aged> for Mapper<'_, F, U>
where
    K: Key,
    V: Record,
    S: Record,
    U: Record,
    F: for<'a, 'b> Fn(Timestamp, K::Ref<'a>, Option<V::Ref<'b>>, &mut State<S>) -> Option<U>,
{
    fn values(&mut self, key: &K, values: &Values<'_, V>, cell: &mut Cell<'_, S, Aged>) -> DfResult<()> {
        let mut updated = false;
        for value in values.iter() {
            updated |= self.call::<K, V, S>(key, Some(value), cell)?;
        }
        let news = match self.end {
            Some(End::Timeout(_)) => true,
            Some(End::Ttl(_)) | None => updated,
        };
        if news && cell.state.is_some() {
            cell.touch::<K>();
        }
        Ok(())
    }

    fn alarm(&mut self, key: &K, _: Alarm, _: Timestamp, cell: &mut Cell<'_, S, Aged>) -> DfResult<()> {
        if matches!(self.end, Some(End::Timeout(_))) {
            self.call::<K, V, S>(key, None, cell)?;
        }
        Ok(())
    }
}

/// What `map_with_state` gives: the mapped records, and the states.
pub struct MapWithState<K: Key, S: Record, U: Record> {
    stateful: Stateful<K, S>,
    mapped: PhantomData<fn() -> U>,
}

impl<K: Key, S: Record, U: Record> fmt::Debug for MapWithState<K, S, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MapWithState of {:?}", self.stateful)
    }
}

impl<K: Key, S: Record, U: Record> MapWithState<K, S, U> {
    /// What the function returned, the records of a key in their order.
    pub fn mapped(&self) -> DStream<U> {
        DStream::over(&self.stateful.declare, self.stateful.node())
    }

    /// All keys and states after each batch. Costs what the state costs, each batch.
    pub fn snapshots(&self) -> DStream<(K, S)> {
        self.stateful.snapshots()
    }

    /// Ends a state whose key had no record for `idle`, by batch time: the
    /// function is called once more, without a value and with
    /// [`State::is_timing_out`], and the key is forgotten. Said before a stream is taken.
    #[must_use]
    pub fn timeout(mut self, idle: Duration) -> Self {
        self.stateful.end(End::Timeout(idle));
        self
    }

    /// Forgets a state that was not updated for `span`, by batch time, without
    /// a call; instead of a timeout. Said before a stream is taken.
    #[must_use]
    pub fn ttl(mut self, span: Duration) -> Self {
        self.stateful.end(End::Ttl(span));
        self
    }

    /// Begins with these keys and states when nothing was ever kept under the
    /// operator's name; their timeout counts from the first batch. Said before a stream is taken.
    #[must_use]
    pub fn initial_state(mut self, first: impl IntoIterator<Item = (K, S)>) -> Self {
        self.stateful.begin(first);
        self
    }

    /// As [`MapWithState::initial_state`], with what `first` has in the operator's first batch: the snapshots
    /// of another state, for one.
    #[must_use]
    pub fn initial_state_from<C: Chain<Out = (K, S)>>(mut self, first: &DStream<(K, S), C>) -> Self {
        self.stateful.begin_from(first);
        self
    }
}

impl<K: Key, V: Record, C: Chain<Out = (K, V)>> DStream<(K, V), C> {
    /// Calls `f` for each record with the batch's time, the key, the value and
    /// the key's state; what it returns, if anything, is the mapped record. The
    /// value is missing only in the last call of a state that times out.
    pub fn map_with_state<S, U, F>(&self, f: F) -> MapWithState<K, S, U>
    where
        S: Record,
        U: Record,
        F: for<'a, 'b> Fn(Timestamp, K::Ref<'a>, Option<V::Ref<'b>>, &mut State<S>) -> Option<U>
            + Send
            + Sync
            + 'static,
    {
        const KIND: &str = "map_with_state";
        let (chain, f) = (self.chain.clone(), Arc::new(f));
        let stateful = Stateful::new(&self.declare, KIND, move |declare, name, keeping, planned| {
            let (f, end, out) = (Arc::clone(&f), keeping.end, schema_of::<U>());
            let step = step::<K, V, S, U, F>(name.clone(), f, end, Arc::clone(&out));
            let (place, keep) = ((declare, name), (keeping, planned));
            StatefulNode::<C, K, V, S, Aged>::declare(place, (KIND, &chain), out, step, None, keep)
        });
        MapWithState { stateful, mapped: PhantomData }
    }
}

fn step<K, V, S, U, F>(name: String, map: Arc<F>, end: Option<End>, out: SchemaRef) -> Step<K, S, Aged>
where
    K: Key,
    V: Record,
    S: Record,
    U: Record,
    F: for<'a, 'b> Fn(Timestamp, K::Ref<'a>, Option<V::Ref<'b>>, &mut State<S>) -> Option<U> + Send + Sync + 'static,
{
    Arc::new(move |part, moment, rows| {
        let out = Growing::<U>::new(&out, rows.iter().map(arrow_array::RecordBatch::num_rows).sum());
        let mut mapper = Mapper { name: &name, time: moment.time, map: &*map, end, out };
        part.visit::<V>(moment, rows, &mut mapper)?;
        mapper.out.finish()
    })
}

#[cfg(test)]
mod tests {
    use super::State;
    use crate::{
        stream::DStream,
        testing::{check_restarts, check_unordered, run},
    };
    use tidemill_core::{Duration, Timestamp};

    type Visit = (String, i64);

    /// Batches of words, each with the number of its place.
    fn batches(of: &[&str]) -> Vec<Vec<Visit>> {
        let batch = |text: &&str| text.split_whitespace().zip(1..).map(|(word, n)| (word.to_string(), n)).collect();
        of.iter().map(batch).collect()
    }

    /// Sums by key: each record gives the sum so far; `0` removes; a timeout gives the sum below zero.
    fn sums(_: Timestamp, key: &str, value: Option<i64>, state: &mut State<i64>) -> Option<Visit> {
        let sum = state.get().copied().unwrap_or(0);
        match value {
            None => {
                assert!(state.is_timing_out() && state.exists());
                return Some((key.to_string(), -sum));
            }
            Some(0) => state.remove(),
            Some(value) => state.update(sum + value),
        }
        Some((key.to_string(), state.get().copied().unwrap_or(0)))
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn rows(of: &[(&str, i64)]) -> Vec<Visit> {
        of.iter().map(|(key, n)| ((*key).to_string(), *n)).collect()
    }

    #[test]
    fn each_record_sees_the_state_that_the_one_before_left() {
        let input = vec![rows(&[("a", 1), ("b", 5), ("a", 2)]), rows(&[("a", 0), ("a", 4), ("b", 0)])];
        check_unordered(
            input.clone(),
            |s| s.map_with_state(sums).mapped(),
            [rows(&[("a", 1), ("a", 3), ("b", 5)]), rows(&[("a", 0), ("a", 4), ("b", 0)])],
        );
        check_unordered(
            input,
            |s| s.map_with_state(sums).snapshots(),
            [rows(&[("a", 3), ("b", 5)]), rows(&[("a", 4)])],
        );
    }

    #[test]
    fn a_state_times_out_once_at_its_deadline() {
        // `a` has its last record in batch 2, `b` is kept by one in the very batch of its deadline.
        let input = batches(&["a b", "a", "b", "", "", "b", ""]);
        check_unordered(
            input.clone(),
            |s| s.map_with_state(sums).timeout(seconds(2)).mapped(),
            [
                rows(&[("a", 1), ("b", 2)]),
                rows(&[("a", 2)]),
                rows(&[("b", 3)]),
                rows(&[("a", -2)]),
                rows(&[("b", -3)]),
                rows(&[("b", 1)]),
                vec![],
            ],
        );
        check_unordered(
            input,
            |s| s.map_with_state(sums).timeout(seconds(2)).snapshots(),
            [
                rows(&[("a", 1), ("b", 2)]),
                rows(&[("a", 2), ("b", 2)]),
                rows(&[("a", 2), ("b", 3)]),
                rows(&[("b", 3)]),
                vec![],
                rows(&[("b", 1)]),
                rows(&[("b", 1)]),
            ],
        );
    }

    #[test]
    fn with_a_time_to_live_a_state_goes_in_silence() {
        check_unordered(
            batches(&["a b", "a", "", ""]),
            |s| s.map_with_state(sums).ttl(seconds(2)).mapped(),
            [rows(&[("a", 1), ("b", 2)]), rows(&[("a", 2)]), vec![], vec![]],
        );
        check_unordered(
            batches(&["a b", "a", "", ""]),
            |s| s.map_with_state(sums).ttl(seconds(2)).snapshots(),
            [rows(&[("a", 1), ("b", 2)]), rows(&[("a", 2), ("b", 2)]), rows(&[("a", 2)]), vec![]],
        );
    }

    #[test]
    fn a_first_state_counts_from_the_first_batch() {
        for from_stream in [false, true] {
            check_unordered(
                batches(&["a", "a", "", "c"]),
                |s| {
                    let mapped = s.map_with_state(sums).timeout(seconds(2));
                    let mapped = if from_stream {
                        // In the first batch this stream has the states, later it has others, which count for nothing.
                        let first =
                            s.transform(|info, _| rows(&[("a", 10), ("b", 20 * i64::try_from(info.id.0).unwrap())]));
                        mapped.initial_state_from(&first)
                    } else {
                        mapped.initial_state(rows(&[("b", 1), ("a", 10), ("b", 20)]))
                    };
                    mapped.mapped()
                },
                [rows(&[("a", 11)]), rows(&[("a", 12)]), rows(&[("b", -20)]), rows(&[("a", -12), ("c", 1)])],
            );
        }
    }

    fn programs() -> [fn(DStream<Visit>) -> DStream<Visit>; 6] {
        [
            |s| s.map_with_state(sums).mapped(),
            |s| s.map_with_state(sums).timeout(seconds(2)).mapped(),
            |s| s.map_with_state(sums).timeout(seconds(2)).snapshots(),
            |s| s.map_with_state(sums).ttl(seconds(1)).snapshots(),
            |s| s.map_with_state(sums).timeout(seconds(3)).initial_state(rows(&[("a", 7), ("x", 9)])).mapped(),
            |s| {
                let first = s.map_values(|n| n * 100).reduce_by_key(|a, b| a + b);
                s.map_with_state(sums).timeout(seconds(2)).initial_state_from(&first).mapped()
            },
        ]
    }

    #[test]
    fn a_restart_goes_on_with_states_and_deadlines() {
        let input = batches(&["a b c", "", "a d", "", "b a", "", "", "c", ""]);
        for program in programs() {
            for partitions in [(1, 3), (3, 2)] {
                check_restarts(&input, program, partitions);
            }
        }
    }

    #[test]
    fn an_update_of_a_state_that_times_out_is_refused() {
        let error = run(
            batches(&["a", "", ""]),
            |s| {
                let forever = |_: Timestamp, _: &str, _: Option<i64>, state: &mut State<i64>| {
                    state.update(1);
                    None::<i64>
                };
                s.map_with_state(forever).timeout(seconds(1)).mapped()
            },
            2,
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains("`map_with_state`") && error.contains("is_timing_out"), "{error}");
    }

    #[test]
    fn a_state_ends_in_one_way() {
        let fails =
            |program: fn(DStream<Visit>) -> DStream<Visit>| run(batches(&["a"]), program, 1).unwrap_err().to_string();
        let twice = fails(|s| s.map_with_state(sums).timeout(seconds(1)).ttl(seconds(2)).mapped());
        assert!(twice.contains("one timeout or one time to live"), "{twice}");
        let nothing = fails(|s| s.map_with_state(sums).timeout(seconds(0)).mapped());
        assert!(nothing.contains("longer than nothing"), "{nothing}");
        let late = fails(|s| {
            let mapped = s.map_with_state(sums);
            mapped.mapped().print();
            mapped.timeout(seconds(1)).mapped()
        });
        assert!(late.contains("before a stream of it is taken"), "{late}");
    }
}
