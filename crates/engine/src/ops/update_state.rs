//! `update_state_by_key`: one state a key, carried from batch to batch.
//!
//! State: one row a key under the operator's name. The function is called for
//! each key that has new values in the batch; returning `None` removes the key.
//! (Spark calls it for every key of the state in every batch. Calling it only
//! for keys with news gives the same totals and costs what the batch costs, not
//! what the state costs.) Time plays no part, so nothing is late.
//!
//! ```
//! # use tidemill_engine::{testing::check_unordered, Str};
//! check_unordered(
//!     [vec!["a".to_string(), "b".into(), "a".into()], vec!["a".to_string()]],
//!     |words| words
//!         .map(|w| (Str::from(w), 1_i64))
//!         .update_state_by_key(|new, total: Option<i64>| Some(total.unwrap_or(0) + new.iter().sum::<i64>()))
//!         .changes(),
//!     [vec![(Str::from("a"), 2), (Str::from("b"), 1)], vec![(Str::from("a"), 3)]],
//! );
//! ```

use super::stateful::{End, Stateful, StatefulNode};
use crate::{
    record::{Key, Record, schema_of},
    state::{
        alarms::Alarm,
        keyed::{Cell, Values, Visit, present},
        life::{Aged, Life},
    },
    stream::{Chain, DStream},
};
use datafusion::common::Result as DfResult;
use std::{fmt, sync::Arc};
use tidemill_core::{Duration, Timestamp};

/// Calls the function for each key with values; a key whose time to live has passed goes in silence.
struct Update<'a, F, V> {
    time: Timestamp,
    update: &'a F,
    /// Emptied and used again for each key.
    values: Vec<V>,
}

impl<K, V, S, L, F> Visit<K, V, S, L> for Update<'_, F, V>
where
    K: Key,
    V: Record,
    S: Record,
    L: Life<K, S>,
    F: Fn(Timestamp, K::Ref<'_>, &[V], Option<S>) -> Option<S>,
{
    #[inline]
    fn values(&mut self, key: &K, values: &Values<'_, V>, cell: &mut Cell<'_, S, L>) -> DfResult<()> {
        self.values.clear();
        self.values.extend(values.iter().map(V::own));
        *cell.state = (self.update)(self.time, key.borrow(), &self.values, cell.state.take());
        *cell.changed = true;
        if cell.state.is_some() {
            cell.touch::<K>();
        }
        Ok(())
    }

    fn alarm(&mut self, _: &K, _: Alarm, _: Timestamp, cell: &mut Cell<'_, S, L>) -> DfResult<()> {
        *cell.state = None;
        Ok(())
    }
}

/// The state of a keyed operator as streams.
pub struct StateStream<K: Key, S: Record>(Stateful<K, S>);

impl<K: Key, S: Record> fmt::Debug for StateStream<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StateStream of {:?}", self.0)
    }
}

impl<K: Key, S: Record> StateStream<K, S> {
    /// The keys that the batch changed, with their new states. A key that was forgotten is not among them.
    pub fn changes(&self) -> DStream<(K, S)> {
        DStream::over(&self.0.declare, self.0.node())
    }

    /// All keys and states after each batch. Costs what the state costs, each batch.
    pub fn snapshot(&self) -> DStream<(K, S)> {
        self.0.snapshots()
    }

    /// Forgets a key in the first batch that is `span` or more after the last
    /// one in which it had values, unless it has values in that very batch.
    /// The row of a key then carries the time of that batch, so the state has a
    /// column more. Said before a stream is taken.
    ///
    /// ```
    /// # use tidemill_engine::testing::check_unordered;
    /// # use std::time::Duration;
    /// // Batches are a second apart.
    /// check_unordered(
    ///     [vec![("a".to_string(), 1)], vec![("b".to_string(), 1)], vec![], vec![("a".to_string(), 1)]],
    ///     |pairs| {
    ///         let totals = pairs.update_state_by_key(|new, sum: Option<i32>| Some(sum.unwrap_or(0) + new.len() as i32));
    ///         totals.ttl(Duration::from_secs(2)).snapshot()
    ///     },
    ///     [vec![("a".to_string(), 1)], vec![("a".to_string(), 1), ("b".to_string(), 1)], vec![("b".to_string(), 1)], vec![("a".to_string(), 1)]],
    /// );
    /// ```
    #[must_use]
    pub fn ttl(mut self, span: Duration) -> Self {
        self.0.end(End::Ttl(span));
        self
    }

    /// Begins with these keys and states when nothing was ever kept under the
    /// operator's name; after that they are not looked at again. Of equal keys
    /// the last counts. Said before a stream is taken.
    ///
    /// ```
    /// # use tidemill_engine::testing::check;
    /// check(
    ///     [vec![(7, 1), (7, 2)]],
    ///     |pairs| {
    ///         let sum = |new: &[i64], sum: Option<i64>| Some(sum.unwrap_or(0) + new.iter().sum::<i64>());
    ///         pairs.update_state_by_key(sum).initial_state([(7, 100)]).changes()
    ///     },
    ///     [vec![(7, 103)]],
    /// );
    /// ```
    #[must_use]
    pub fn initial_state(mut self, first: impl IntoIterator<Item = (K, S)>) -> Self {
        self.0.begin(first);
        self
    }

    /// As [`StateStream::initial_state`], with what `first` has in the operator's first batch: the snapshot of
    /// another state, for one.
    #[must_use]
    pub fn initial_state_from<C: Chain<Out = (K, S)>>(mut self, first: &DStream<(K, S), C>) -> Self {
        self.0.begin_from(first);
        self
    }
}

impl<K: Key, V: Record, C: Chain<Out = (K, V)>> DStream<(K, V), C> {
    /// Carries a state for each key: `f` gets the batch's new values of the key
    /// and its state, and returns the next state, or `None` to forget the key.
    pub fn update_state_by_key<S: Record>(
        &self,
        f: impl Fn(&[V], Option<S>) -> Option<S> + Send + Sync + 'static,
    ) -> StateStream<K, S> {
        self.update_states(move |_time, _key: K::Ref<'_>, new: &[V], state| f(new, state))
    }

    /// As [`DStream::update_state_by_key`]; `f` also sees the batch's time and the key.
    ///
    /// ```
    /// # use tidemill_core::Timestamp;
    /// # use tidemill_engine::testing::check;
    /// // Since when a door is open: a door that closes is forgotten.
    /// check(
    ///     [vec![(1, true)], vec![(1, true)], vec![(1, false)]],
    ///     |doors| {
    ///         let since = |time: Timestamp, _door, moves: &[bool], since: Option<i64>| {
    ///             moves.last()?.then(|| since.unwrap_or(time.millis() / 1000))
    ///         };
    ///         doors.update_state_by_key_at(since).changes()
    ///     },
    ///     [vec![(1, 1)], vec![(1, 1)], vec![]],
    /// );
    /// ```
    pub fn update_state_by_key_at<S, F>(&self, f: F) -> StateStream<K, S>
    where
        S: Record,
        F: for<'a> Fn(Timestamp, K::Ref<'a>, &[V], Option<S>) -> Option<S> + Send + Sync + 'static,
    {
        self.update_states(f)
    }

    fn update_states<S, F>(&self, f: F) -> StateStream<K, S>
    where
        S: Record,
        F: for<'a> Fn(Timestamp, K::Ref<'a>, &[V], Option<S>) -> Option<S> + Send + Sync + 'static,
    {
        const KIND: &str = "update_state_by_key";
        let (chain, f) = (self.chain.clone(), Arc::new(f));
        StateStream(Stateful::new(&self.declare, KIND, move |declare, name, keeping, planned| {
            let (place, read, keep) = ((declare, name), (KIND, &chain), (keeping, planned));
            let out = schema_of::<(K, S)>();
            // A state without an end keeps no times.
            if keeping.end.is_some() {
                StatefulNode::<C, K, V, S, Aged>::declare(place, read, out, step_of(&f), None, keep)
            } else {
                StatefulNode::<C, K, V, S, ()>::declare(place, read, out, step_of(&f), None, keep)
            }
        }))
    }
}

fn step_of<K, V, S, L, F>(update: &Arc<F>) -> super::stateful::Step<K, S, L>
where
    K: Key,
    V: Record,
    S: Record,
    L: Life<K, S>,
    F: for<'a> Fn(Timestamp, K::Ref<'a>, &[V], Option<S>) -> Option<S> + Send + Sync + 'static,
{
    let update = Arc::clone(update);
    Arc::new(move |part, moment, rows| {
        let mut visitor = Update::<F, V> { time: moment.time, update: &*update, values: Vec::new() };
        let changed = part.visit::<V>(moment, rows, &mut visitor)?;
        Ok(vec![present::<K, S>(&changed)?])
    })
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_restarts, check_unordered, run_kept};
    use tidemill_core::Timestamp;

    fn batches() -> Vec<Vec<(String, i64)>> {
        let of = |text: &str| text.split_whitespace().zip(1..).map(|(word, n)| (word.to_string(), n)).collect();
        vec![of("a b a c"), of(""), of("b d"), of("a e f b g"), of("a b")]
    }

    /// Totals; a key whose total passes ten is forgotten and begins anew.
    fn update(new: &[i64], total: Option<i64>) -> Option<i64> {
        let total = total.unwrap_or(0) + new.iter().sum::<i64>();
        (total <= 10).then_some(total)
    }

    #[test]
    fn a_restarted_state_goes_on_where_it_was() {
        for partitions in [(1, 3), (3, 2)] {
            check_restarts(&batches(), |s| s.update_state_by_key(update).changes(), partitions);
            check_restarts(&batches(), |s| s.update_state_by_key(update).snapshot(), partitions);
        }
    }

    #[test]
    fn a_restart_goes_on_with_ends_and_first_states() {
        let ttl = std::time::Duration::from_secs(2);
        for partitions in [(1, 3), (3, 2)] {
            check_restarts(&batches(), |s| s.update_state_by_key(update).ttl(ttl).changes(), partitions);
            check_restarts(&batches(), |s| s.update_state_by_key(update).ttl(ttl).snapshot(), partitions);
            let first = || [("a".to_string(), 5), ("z".to_string(), 6)];
            check_restarts(&batches(), |s| s.update_state_by_key(update).initial_state(first()).snapshot(), partitions);
            check_restarts(
                &batches(),
                |s| s.update_state_by_key(update).ttl(ttl).initial_state(first()).snapshot(),
                partitions,
            );
            check_restarts(
                &batches(),
                |s| {
                    let first = s.filter(|(key, _)| key == "e").update_state_by_key(update).initial_state(first());
                    s.update_state_by_key(update).initial_state_from(&first.snapshot()).snapshot()
                },
                partitions,
            );
        }
    }

    #[test]
    fn a_time_aware_function_sees_key_and_time_and_may_drop_the_key() {
        // Drops a key in odd seconds, and else notes the second.
        let program = |s: crate::DStream<(String, i64)>| {
            let noted = |time: Timestamp, key: &str, new: &[i64], _: Option<String>| {
                let second = time.millis() / 1000;
                (second % 2 == 0).then(|| format!("{key} {second} {}", new.len()))
            };
            s.update_state_by_key_at(noted).snapshot()
        };
        let noted = |of: &[&str]| of.iter().map(|s| (s[..1].to_string(), (*s).to_string())).collect::<Vec<_>>();
        let of = |text: &str| text.split_whitespace().map(|w| (w.to_string(), 1)).collect::<Vec<_>>();
        check_unordered(
            [of("a"), of("a b b"), of("b"), of("c")],
            program,
            [vec![], noted(&["a 2 1", "b 2 2"]), noted(&["a 2 1"]), noted(&["a 2 1", "c 4 1"])],
        );
        check_restarts(&batches(), program, (2, 3));
    }

    #[test]
    fn a_state_may_be_of_any_record() {
        type Nested = (Option<i64>, Vec<(String, Option<Vec<i64>>)>, bool);
        fn nested(new: &[i64], before: Option<Nested>) -> Option<Nested> {
            let (_, mut all, odd) = before.unwrap_or_default();
            let last = new.last().copied();
            all.push((format!("{new:?}"), (new.len() > 1).then(|| new.to_vec())));
            Some((last.filter(|n| *n > 1), all, !odd))
        }
        fn list(new: &[i64], before: Option<Vec<i64>>) -> Option<Vec<i64>> {
            let mut all = before.unwrap_or_default();
            all.extend(new);
            (all.len() < 4).then_some(all)
        }
        /// A state that is `None` is a state.
        fn option(new: &[i64], before: Option<Option<i64>>) -> Option<Option<i64>> {
            match before {
                None => Some(None),
                Some(None) => Some(Some(new.len() as i64)),
                Some(Some(_)) => None,
            }
        }
        for partitions in [(1, 3), (3, 2)] {
            check_restarts(&batches(), |s| s.update_state_by_key(nested).snapshot(), partitions);
            check_restarts(&batches(), |s| s.update_state_by_key(list).snapshot(), partitions);
            check_restarts(&batches(), |s| s.update_state_by_key(option).snapshot(), partitions);
            let ttl = std::time::Duration::from_secs(2);
            check_restarts(&batches(), |s| s.update_state_by_key(option).ttl(ttl).snapshot(), partitions);
        }
        let of = |n: i64| vec![(1_i64, n)];
        check_unordered(
            [of(1), of(2), of(3), of(4)],
            |s| s.update_state_by_key(option).snapshot(),
            [vec![(1, None)], vec![(1, Some(1))], vec![], vec![(1, None)]],
        );
    }

    #[test]
    fn two_states_of_a_program_are_kept_apart() {
        check_restarts(
            &batches(),
            |s| {
                let sums = s.with_name("sums").update_state_by_key(update);
                let counts = s.map_values(|_| 1).with_name("counts").update_state_by_key(update);
                sums.snapshot().join(&counts.snapshot())
            },
            (2, 3),
        );
    }

    #[test]
    fn a_state_whose_name_is_gone_is_not_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let named = |name: &'static str| {
            run_kept(dir.path(), &batches(), |s| s.with_name(name).update_state_by_key(update).changes(), 2, 0..1)
        };
        named("totals").unwrap();
        let error = named("total").unwrap_err().to_string();
        assert!(error.contains("drop") && error.contains("--rename totals=total"), "{error}");
    }
}
