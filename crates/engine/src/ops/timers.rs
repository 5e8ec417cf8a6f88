//! `with_timers`: functions on a key that may call themselves back later.
//!
//! One function runs for each record, another for each timer that the first, or
//! itself, has set. Both see the key's own [`Keyed`]: its state, the times, and
//! where to emit. A timer goes by batch time or by the watermark.
//!
//! State: one row a key, `(key, state, touched, batch_timers, event_timers)`,
//! under the operator's name; so timers survive a restart with the state. A key
//! without a state and without timers is gone.
//!
//! A timer rings once, in the first batch that reaches its time: by batch time
//! before that batch's records if the time is before the batch's own, and after
//! them if it is the same; by the watermark after the records, which move it. A
//! timer that a record's function sets for a time already reached rings in the
//! same batch; one that a timer's function sets, at the latest in the next: so
//! a batch always ends. Setting a timer twice is setting it once. No record is
//! refused as late: compare with [`Keyed::watermark`]. When the input of a
//! program with `Trigger::Drain` ends, all event-time timers ring.
//!
//! ```
//! # use tidemill_engine::{testing::check, Keyed, Timer};
//! # use std::time::Duration;
//! // An order that is not paid within two seconds; batches are a second apart.
//! check(
//!     [vec![(7, "placed".to_string()), (8, "placed".to_string())], vec![(8, "paid".to_string())], vec![]],
//!     |orders| orders.with_timers(
//!         |order: &mut Keyed<'_, i32, (), i32>, event: &str| match event {
//!             "paid" => order.clear_timers(),
//!             _ => order.set_timer(Timer::Batch(order.batch_time().plus(Duration::from_secs(2)))),
//!         },
//!         |order, _timer| order.emit(order.key()),
//!     ).emitted(),
//!     [vec![], vec![], vec![7]],
//! );
//! ```

use super::{
    keyed::{Growing, ValueTime},
    map_with_state::State,
    stateful::{End, Stateful, StatefulNode, Step},
};
use crate::{
    record::{Key, Record, schema_of},
    state::{
        alarms::Alarm,
        keyed::{Cell, Values, Visit},
        life::Timers,
    },
    stream::{Chain, DStream},
};
use arrow_schema::SchemaRef;
use datafusion::common::Result as DfResult;
use parking_lot::Mutex;
use std::{fmt, marker::PhantomData, sync::Arc};
use tidemill_core::{Duration, Error, Timestamp, WatermarkSpec};

/// When to be called back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// In the first batch whose time is this or later.
    Batch(Timestamp),
    /// In the first batch after which the watermark is this or later; needs [`WithTimers::event_time`].
    Event(Timestamp),
}

impl Timer {
    fn parts(self) -> (Alarm, Timestamp) {
        match self {
            Self::Batch(at) => (Alarm::Batch, at),
            Self::Event(at) => (Alarm::Event, at),
        }
    }
}

/// What the functions of [`DStream::with_timers`] see of a key.
pub struct Keyed<'a, K: Key, S: Record, U: Record> {
    key: &'a K,
    batch_time: Timestamp,
    watermark: Timestamp,
    state: State<S>,
    timers: &'a mut Timers,
    /// Timers set by this call.
    set: Vec<(Alarm, Timestamp)>,
    /// Whether a timer was set or taken back.
    moved: bool,
    out: &'a mut Growing<U>,
    emitted: DfResult<()>,
}

impl<K: Key, S: Record, U: Record> fmt::Debug for Keyed<'_, K, S, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyed at {}, {:?}", self.batch_time, self.timers)
    }
}

impl<'a, K: Key, S: Record, U: Record> Keyed<'a, K, S, U> {
    /// The key.
    pub fn key(&self) -> K::Ref<'a> {
        self.key.borrow()
    }

    /// The time of the batch.
    pub fn batch_time(&self) -> Timestamp {
        self.batch_time
    }

    /// Event time that is believed complete after this batch's records; [`Timestamp::MIN`] without
    /// [`WithTimers::event_time`], and the end of time at the end of an exhausted input.
    pub fn watermark(&self) -> Timestamp {
        self.watermark
    }

    /// The key's state.
    pub fn state(&mut self) -> &mut State<S> {
        &mut self.state
    }

    /// Emits a record.
    pub fn emit(&mut self, record: impl Into<U>) {
        let record: U = record.into();
        if self.emitted.is_ok() {
            self.emitted = self.out.push(record.borrow());
        }
    }

    /// Asks to be called back; once however often it is asked for.
    pub fn set_timer(&mut self, timer: Timer) {
        let (alarm, at) = timer.parts();
        if self.timers.set(alarm, at) {
            self.set.push((alarm, at));
            self.moved = true;
        }
    }

    /// Takes a timer back; whether it was set.
    pub fn clear_timer(&mut self, timer: Timer) -> bool {
        let (alarm, at) = timer.parts();
        let was_set = self.timers.unset(alarm, at);
        self.moved |= was_set;
        was_set
    }

    /// Takes all timers of the key back.
    pub fn clear_timers(&mut self) {
        self.moved |= self.timers.clear();
    }
}

/// Runs both functions.
struct Caller<'a, F, G, U: Record> {
    batch_time: Timestamp,
    watermark: Timestamp,
    on_record: &'a F,
    on_timer: &'a G,
    out: Growing<U>,
}

impl<F, G, U: Record> Caller<'_, F, G, U> {
    /// One call; whether the state was changed.
    fn call<K: Key, S: Record>(
        &mut self,
        key: &K,
        cell: &mut Cell<'_, S, Timers>,
        call: impl FnOnce(&mut Keyed<'_, K, S, U>),
    ) -> DfResult<()> {
        let mut keyed = Keyed::<K, S, U> {
            key,
            batch_time: self.batch_time,
            watermark: self.watermark,
            state: State::of(cell.state.take(), false),
            timers: &mut *cell.life,
            set: Vec::new(),
            moved: false,
            out: &mut self.out,
            emitted: Ok(()),
        };
        call(&mut keyed);
        let Keyed { state, set, moved, emitted, .. } = keyed;
        let (state, updated, _) = state.into_parts();
        *cell.state = state;
        *cell.changed |= updated || moved;
        for (alarm, at) in set {
            cell.add_alarm(alarm, at.0);
        }
        if updated && cell.state.is_some() {
            cell.touch::<K>();
        }
        emitted
    }
}

impl<K, V, S, U, F, G> Visit<K, V, S, Timers> for Caller<'_, F, G, U>
where
    K: Key,
    V: Record,
    S: Record,
    U: Record,
    F: for<'a, 'b> Fn(&mut Keyed<'a, K, S, U>, V::Ref<'b>),
    G: for<'a> Fn(&mut Keyed<'a, K, S, U>, Timer),
{
    fn values(&mut self, key: &K, values: &Values<'_, V>, cell: &mut Cell<'_, S, Timers>) -> DfResult<()> {
        let on_record = self.on_record;
        values.iter().try_for_each(|value| self.call::<K, S>(key, cell, |keyed| on_record(keyed, value)))
    }

    fn alarm(&mut self, key: &K, alarm: Alarm, at: Timestamp, cell: &mut Cell<'_, S, Timers>) -> DfResult<()> {
        let timer = match alarm {
            // The end of the time to live: the state goes, its timers stay.
            Alarm::Idle => return Ok(()),
            Alarm::Batch => Timer::Batch(at),
            Alarm::Event => Timer::Event(at),
        };
        let on_timer = self.on_timer;
        self.call::<K, S>(key, cell, |keyed| on_timer(keyed, timer))
    }
}

/// Where values have their event time, once it is said.
type SaidTime<V> = Arc<Mutex<Option<ValueTime<V>>>>;

/// What `with_timers` gives: the emitted records, and the states.
pub struct WithTimers<K: Key, V: Record, S: Record, U: Record> {
    stateful: Stateful<K, S>,
    event_time: SaidTime<V>,
    emitted: PhantomData<fn() -> U>,
}

impl<K: Key, V: Record, S: Record, U: Record> fmt::Debug for WithTimers<K, V, S, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WithTimers of {:?}", self.stateful)
    }
}

impl<K: Key, V: Record, S: Record, U: Record> WithTimers<K, V, S, U> {
    /// What the functions emitted.
    pub fn emitted(&self) -> DStream<U> {
        DStream::over(&self.stateful.declare, self.stateful.node())
    }

    /// All keys that have a state, with it, after each batch. Costs what the state costs, each batch.
    pub fn snapshots(&self) -> DStream<(K, S)> {
        self.stateful.snapshots()
    }

    /// Says where values have their event time: the watermark trails the largest by `delay`, as that of
    /// [`DStream::with_event_time`] does: that of the slowest partition which is not idle. Said before a stream is taken.
    #[must_use]
    pub fn event_time(
        self,
        delay: Duration,
        of: impl for<'a> Fn(V::Ref<'a>) -> Timestamp + Send + Sync + 'static,
    ) -> Self {
        *self.event_time.lock() = Some(ValueTime { of: Arc::new(of), spec: WatermarkSpec::new(delay) });
        self
    }

    /// A partition of the source that brings nothing for so long, by the time of batches, holds the watermark back no
    /// more; `None`: it always does. A minute unless it is said. After [`WithTimers::event_time`].
    #[must_use]
    pub fn idle_after(self, span: Option<Duration>) -> Self {
        self.with_spec(|spec| spec.idle_after = span)
    }

    /// A record dated so much later than its batch moves the watermark no more; `None`: any does. A day unless it is
    /// said. After [`WithTimers::event_time`].
    #[must_use]
    pub fn max_ahead(self, span: Option<Duration>) -> Self {
        self.with_spec(|spec| spec.max_ahead = span)
    }

    fn with_spec(self, change: impl FnOnce(&mut WatermarkSpec)) -> Self {
        match &mut *self.event_time.lock() {
            Some(time) => change(&mut time.spec),
            None => self.stateful.declare.fail(Error::user(
                "`with_timers`: `idle_after` and `max_ahead` are about event time: say event_time first",
            )),
        }
        self
    }

    /// Forgets a state that was not updated for `span`, by batch time. Timers stay. Said before a stream is taken.
    #[must_use]
    pub fn ttl(mut self, span: Duration) -> Self {
        self.stateful.end(End::Ttl(span));
        self
    }

    /// Begins with these keys and states when nothing was ever kept under the
    /// operator's name. Said before a stream is taken.
    #[must_use]
    pub fn initial_state(mut self, first: impl IntoIterator<Item = (K, S)>) -> Self {
        self.stateful.begin(first);
        self
    }

    /// As [`WithTimers::initial_state`], with what `first` has in the operator's first batch.
    #[must_use]
    pub fn initial_state_from<C: Chain<Out = (K, S)>>(mut self, first: &DStream<(K, S), C>) -> Self {
        self.stateful.begin_from(first);
        self
    }
}

impl<K: Key, V: Record, C: Chain<Out = (K, V)>> DStream<(K, V), C> {
    /// Calls `on_record` for each record, the records of a key in their order,
    /// and `on_timer` for each timer that rings.
    pub fn with_timers<S, U, F, G>(&self, on_record: F, on_timer: G) -> WithTimers<K, V, S, U>
    where
        S: Record,
        U: Record,
        F: for<'a, 'b> Fn(&mut Keyed<'a, K, S, U>, V::Ref<'b>) + Send + Sync + 'static,
        G: for<'a> Fn(&mut Keyed<'a, K, S, U>, Timer) + Send + Sync + 'static,
    {
        const KIND: &str = "with_timers";
        let (chain, calls) = (self.chain.clone(), (Arc::new(on_record), Arc::new(on_timer)));
        let event_time = SaidTime::<V>::default();
        let said = Arc::clone(&event_time);
        let stateful = Stateful::new(&self.declare, KIND, move |declare, name, keeping, planned| {
            let out = schema_of::<U>();
            let (on_record, on_timer) = (Arc::clone(&calls.0), Arc::clone(&calls.1));
            let step = step::<K, V, S, U, F, G>(on_record, on_timer, Arc::clone(&out));
            let (place, keep, time) = ((declare, name), (keeping, planned), said.lock().clone());
            StatefulNode::<C, K, V, S, Timers>::declare(place, (KIND, &chain), out, step, time, keep)
        });
        WithTimers { stateful, event_time, emitted: PhantomData }
    }
}

fn step<K, V, S, U, F, G>(on_record: Arc<F>, on_timer: Arc<G>, out: SchemaRef) -> Step<K, S, Timers>
where
    K: Key,
    V: Record,
    S: Record,
    U: Record,
    F: for<'a, 'b> Fn(&mut Keyed<'a, K, S, U>, V::Ref<'b>) + Send + Sync + 'static,
    G: for<'a> Fn(&mut Keyed<'a, K, S, U>, Timer) + Send + Sync + 'static,
{
    Arc::new(move |part, moment, rows| {
        let mut caller = Caller {
            batch_time: moment.time,
            watermark: moment.watermark,
            on_record: &*on_record,
            on_timer: &*on_timer,
            out: Growing::<U>::new(&out, 0),
        };
        part.visit::<V>(moment, rows, &mut caller)?;
        caller.out.finish()
    })
}

#[cfg(test)]
mod tests {
    use super::{Keyed, Timer};
    use crate::testing::{check_restarts, check_unordered};
    use tidemill_core::{Duration, Timestamp};

    type Row = (i64, i64);

    fn at(second: i64) -> Timestamp {
        Timestamp(second * 1_000_000)
    }

    /// A value sets a timer for its second and counts; a timer tells its second, the batch's, and the count.
    fn alarms(event: bool) -> impl Fn(&mut Keyed<'_, i64, i64, String>, i64) + Send + Sync + 'static {
        move |key, second| {
            let count = key.state().get().copied().unwrap_or(0) + 1;
            key.state().update(count);
            key.set_timer(if event { Timer::Event(at(second)) } else { Timer::Batch(at(second)) });
        }
    }

    fn tell(key: &mut Keyed<'_, i64, i64, String>, timer: Timer) {
        let (Timer::Batch(time) | Timer::Event(time)) = timer;
        let count = key.state().get().copied().unwrap_or(0);
        let told = format!(
            "{} rings for {} at {}, count {count}",
            key.key(),
            time.0 / 1_000_000,
            key.batch_time().0 / 1_000_000
        );
        key.emit(told);
    }

    fn input() -> Vec<Vec<Row>> {
        // (key, second): batch i is at second i.
        vec![vec![(1, 3), (2, 3), (1, 3)], vec![], vec![(1, 9)], vec![(3, 2), (3, 5)], vec![], vec![]]
    }

    #[test]
    fn timers_by_batch_time_ring_once_with_the_state() {
        let told = |of: &[&str]| of.iter().map(ToString::to_string).collect::<Vec<_>>();
        check_unordered(
            input(),
            |s| s.with_timers(alarms(false), tell).emitted(),
            [
                vec![],
                vec![],
                // At the very time of the batch: after its records.
                told(&["1 rings for 3 at 3, count 3", "2 rings for 3 at 3, count 1"]),
                // A time that has passed: in the same batch.
                told(&["3 rings for 2 at 4, count 2"]),
                told(&["3 rings for 5 at 5, count 2"]),
                vec![],
            ],
        );
    }

    #[test]
    fn timers_by_event_time_ring_when_the_watermark_reaches_them() {
        // Values are both the event time and the timer; the watermark trails by two seconds.
        let told = |of: &[&str]| of.iter().map(ToString::to_string).collect::<Vec<_>>();
        let delay = Duration::from_secs(2);
        check_unordered(
            vec![vec![(1_i64, 10_i64), (2, 11)], vec![(1, 12)], vec![(2, 20), (1, 13)], vec![]],
            move |s| s.with_timers(alarms(true), tell).event_time(delay, at).emitted(),
            [
                vec![],
                told(&["1 rings for 10 at 2, count 2"]),
                told(&["1 rings for 12 at 3, count 3", "1 rings for 13 at 3, count 3", "2 rings for 11 at 3, count 2"]),
                vec![],
            ],
        );
    }

    #[test]
    fn a_timer_may_set_the_next_and_a_batch_still_ends() {
        // A metronome of each second, which starts as soon as its key comes and is far behind at first.
        let tick = |key: &mut Keyed<'_, i64, i64, i64>, timer: Timer| {
            let Timer::Batch(time) = timer else { panic!("no watermark here") };
            key.emit(time.0 / 1_000_000);
            key.set_timer(Timer::Batch(time.plus(Duration::from_secs(1))));
        };
        let start = |key: &mut Keyed<'_, i64, i64, i64>, from: i64| key.set_timer(Timer::Batch(at(from)));
        let got = crate::testing::run(
            vec![vec![], vec![], vec![], vec![(1_i64, 1_i64)], vec![], vec![], vec![]],
            |s| s.with_timers(start, tick).emitted(),
            2,
        )
        .unwrap();
        let all: Vec<i64> = got.iter().flatten().copied().collect();
        assert_eq!(all, (1..=i64::try_from(all.len()).unwrap()).collect::<Vec<_>>(), "each once and in order: {got:?}");
        assert!(all.len() >= 4, "{got:?}");
    }

    #[test]
    fn a_timer_that_was_taken_back_does_not_ring() {
        let on_record = |key: &mut Keyed<'_, i64, i64, i64>, second: i64| {
            if second < 0 {
                let had = key.clear_timer(Timer::Batch(at(-second)));
                key.emit(i64::from(had));
            } else {
                key.set_timer(Timer::Batch(at(second)));
            }
        };
        let on_timer = |key: &mut Keyed<'_, i64, i64, i64>, _| key.emit(100 + key.key());
        check_unordered(
            vec![vec![(1_i64, 4_i64), (2, 3)], vec![(1, -4), (1, -5)], vec![], vec![], vec![(1, 5), (1, -5), (1, 5)]],
            |s| s.with_timers(on_record, on_timer).emitted(),
            [vec![], vec![0, 1], vec![102], vec![], vec![1, 101]],
        );
    }

    #[test]
    fn a_restart_goes_on_with_timers_and_states() {
        let delay = Duration::from_secs(1);
        for partitions in [(1, 3), (3, 2)] {
            check_restarts(&input(), |s| s.with_timers(alarms(false), tell).emitted(), partitions);
            check_restarts(&input(), |s| s.with_timers(alarms(true), tell).event_time(delay, at).emitted(), partitions);
            check_restarts(
                &input(),
                |s| s.with_timers(alarms(false), tell).ttl(Duration::from_secs(2)).snapshots(),
                partitions,
            );
        }
    }
}
