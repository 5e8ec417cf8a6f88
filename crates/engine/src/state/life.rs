//! What a key keeps besides its state: when it was last seen, its timers.
//!
//! Three kinds, chosen by type, so that a state without time pays nothing:
//! `()`, [`Aged`] (states with a timeout or a time to live), and [`Timers`].
//! Each says which columns it adds to the rows on disk:
//!
//! ```text
//! ()        _1 key  _2 state
//! Aged      _1 key  _2 state  touched
//! Timers    _1 key  _2 state  touched  batch_timers  event_timers
//! ```
//!
//! `touched` is the time of the batch that last counted as news, not the
//! deadline: a program that comes back with another timeout means it for all
//! keys. It is null for a key that no batch has touched since it got a timeout.
//!
//! Invariant: what `row` wrote, `read` gives back. Called by `keyed.rs`.

use super::alarms::{Alarm, Micros};
use crate::record::{Kept, Key, Record};
use tidemill_core::Timestamp;

/// What an alarm that comes up means for its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ring {
    /// It is time, and this happens once.
    Fire,
    /// Not before this time.
    Again(Micros),
    /// Nothing: the key has moved on.
    Stale,
}

/// What a key keeps besides its state.
pub(crate) trait Life<K: Key, S: Record>: Default + Send + Sync + 'static {
    /// Whether there are alarms at all.
    const TIMED: bool;
    /// Names of the columns after those of key and state.
    const COLUMNS: &'static [&'static str];
    /// A row on disk.
    type Row: Record;

    fn row<'a>(&'a self, key: K::Ref<'a>, state: Option<S::Ref<'a>>) -> <Self::Row as Record>::Ref<'a>;

    fn read(row: <Self::Row as Record>::Ref<'_>) -> (K::Ref<'_>, Option<S::Ref<'_>>, Self);

    /// Notes news at `now`; gives the time of an alarm to add.
    fn touch(&mut self, now: Micros, span: Option<Micros>) -> Option<Micros> {
        let _no_time = (now, span);
        None
    }

    /// Whether it was touched; without time, always.
    fn is_touched(&self) -> bool {
        true
    }

    /// The state is gone: its end needs no alarm.
    fn end(&mut self) {}

    /// Whether `alarm` was set for `at`.
    fn is_set(&self, alarm: Alarm, at: Micros) -> bool {
        let _none_is = (alarm, at);
        false
    }

    /// The alarm set for `at` has come up, in a look at all until `until`.
    fn ring(&mut self, alarm: Alarm, at: Micros, until: Micros, span: Option<Micros>) -> Ring {
        let _none_is_set = (alarm, at, until, span);
        Ring::Stale
    }

    /// Alarms to add when the row has come back from disk.
    fn alarms(&mut self, span: Option<Micros>) -> Vec<(Alarm, Micros)> {
        let _none = span;
        Vec::new()
    }

    /// Whether nothing is lost when a key without a state goes.
    fn is_bare(&self) -> bool {
        true
    }

    /// What a key on disk has to remember beside its row: the alarm that is set for it.
    fn hint(&self) -> Micros {
        NEVER
    }

    /// Takes what [`Life::hint`] gave.
    fn take_hint(&mut self, hint: Micros) {
        let _nothing_to_remember = hint;
    }
}

impl<K: Key, S: Record> Life<K, S> for () {
    const TIMED: bool = false;
    const COLUMNS: &'static [&'static str] = &[];
    type Row = (K, Kept<S>);

    #[inline]
    fn row<'a>(&'a self, key: K::Ref<'a>, state: Option<S::Ref<'a>>) -> (K::Ref<'a>, Option<S::Ref<'a>>) {
        (key, state)
    }
    #[inline]
    fn read<'a>((key, state): (K::Ref<'a>, Option<S::Ref<'a>>)) -> (K::Ref<'a>, Option<S::Ref<'a>>, Self) {
        (key, state, ())
    }
}

/// No such time: nothing was touched, or no alarm is set.
const NEVER: Micros = Micros::MAX;

/// When a key was last touched.
#[derive(Debug, Clone)]
pub(crate) struct Aged {
    touched: Micros,
    /// The time of the one entry among the alarms, at or before the end.
    set: Micros,
}

impl Default for Aged {
    fn default() -> Self {
        Self { touched: NEVER, set: NEVER }
    }
}

impl Aged {
    fn of(touched: Option<Timestamp>) -> Self {
        Self { touched: touched.map_or(NEVER, |at| at.0), set: NEVER }
    }

    fn touched(&self) -> Option<Timestamp> {
        (self.touched != NEVER).then_some(Timestamp(self.touched))
    }

    fn end_of(&self, span: Option<Micros>) -> Option<Micros> {
        span.filter(|_| self.touched != NEVER).map(|span| self.touched.saturating_add(span))
    }

    fn touch(&mut self, now: Micros, span: Option<Micros>) -> Option<Micros> {
        self.touched = now;
        if self.set != NEVER {
            return None;
        }
        let end = self.end_of(span)?;
        self.set = end;
        Some(end)
    }

    fn ring(&mut self, at: Micros, until: Micros, span: Option<Micros>) -> Ring {
        if self.set != at {
            return Ring::Stale;
        }
        self.set = NEVER;
        match self.end_of(span) {
            None => Ring::Stale,
            Some(end) if end > until => {
                self.set = end;
                Ring::Again(end)
            }
            Some(_) => Ring::Fire,
        }
    }

    fn alarm(&mut self, span: Option<Micros>) -> Option<(Alarm, Micros)> {
        let end = self.end_of(span)?;
        self.set = end;
        Some((Alarm::Idle, end))
    }
}

impl<K: Key, S: Record> Life<K, S> for Aged {
    const TIMED: bool = true;
    const COLUMNS: &'static [&'static str] = &["touched"];
    type Row = (K, Kept<S>, Option<Timestamp>);

    #[inline]
    fn row<'a>(
        &'a self,
        key: K::Ref<'a>,
        state: Option<S::Ref<'a>>,
    ) -> (K::Ref<'a>, Option<S::Ref<'a>>, Option<Timestamp>) {
        (key, state, self.touched())
    }
    fn read<'a>(
        (key, state, touched): (K::Ref<'a>, Option<S::Ref<'a>>, Option<Timestamp>),
    ) -> (K::Ref<'a>, Option<S::Ref<'a>>, Self) {
        (key, state, Self::of(touched))
    }
    #[inline]
    fn touch(&mut self, now: Micros, span: Option<Micros>) -> Option<Micros> {
        Self::touch(self, now, span)
    }
    fn is_touched(&self) -> bool {
        self.touched != NEVER
    }
    fn end(&mut self) {
        self.touched = NEVER;
    }
    fn is_set(&self, alarm: Alarm, at: Micros) -> bool {
        alarm == Alarm::Idle && self.set == at
    }
    fn ring(&mut self, _alarm: Alarm, at: Micros, until: Micros, span: Option<Micros>) -> Ring {
        Self::ring(self, at, until, span)
    }
    fn alarms(&mut self, span: Option<Micros>) -> Vec<(Alarm, Micros)> {
        self.alarm(span).into_iter().collect()
    }
    fn hint(&self) -> Micros {
        self.set
    }
    fn take_hint(&mut self, hint: Micros) {
        self.set = hint;
    }
}

/// When a key was last touched, and its timers in order of time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Timers {
    aged: Aged,
    batch: Vec<Timestamp>,
    event: Vec<Timestamp>,
}

impl Timers {
    fn of(&mut self, alarm: Alarm) -> &mut Vec<Timestamp> {
        if alarm == Alarm::Event { &mut self.event } else { &mut self.batch }
    }

    /// Sets a timer; whether it was not set before.
    pub(crate) fn set(&mut self, alarm: Alarm, at: Timestamp) -> bool {
        let timers = self.of(alarm);
        match timers.binary_search(&at) {
            Ok(_) => false,
            Err(place) => {
                timers.insert(place, at);
                true
            }
        }
    }

    /// Takes all timers back; whether one was set.
    pub(crate) fn clear(&mut self) -> bool {
        let had = !(self.batch.is_empty() && self.event.is_empty());
        self.batch.clear();
        self.event.clear();
        had
    }

    /// Takes a timer back; whether it was set.
    pub(crate) fn unset(&mut self, alarm: Alarm, at: Timestamp) -> bool {
        let timers = self.of(alarm);
        timers.binary_search(&at).map(|place| timers.remove(place)).is_ok()
    }
}

impl<K: Key, S: Record> Life<K, S> for Timers {
    const TIMED: bool = true;
    const COLUMNS: &'static [&'static str] = &["touched", "batch_timers", "event_timers"];
    type Row = (K, Kept<S>, Option<Timestamp>, Vec<Timestamp>, Vec<Timestamp>);

    fn row<'a>(&'a self, key: K::Ref<'a>, state: Option<S::Ref<'a>>) -> <Self::Row as Record>::Ref<'a> {
        (key, state, self.aged.touched(), self.batch.borrow(), self.event.borrow())
    }
    fn read(row: <Self::Row as Record>::Ref<'_>) -> (K::Ref<'_>, Option<S::Ref<'_>>, Self) {
        let (key, state, touched, batch, event) = row;
        let timers = Self { aged: Aged::of(touched), batch: Record::own(batch), event: Record::own(event) };
        (key, state, timers)
    }
    fn touch(&mut self, now: Micros, span: Option<Micros>) -> Option<Micros> {
        self.aged.touch(now, span)
    }
    fn is_touched(&self) -> bool {
        self.aged.touched != NEVER
    }
    fn end(&mut self) {
        self.aged.touched = NEVER;
    }
    fn is_set(&self, alarm: Alarm, at: Micros) -> bool {
        match alarm {
            Alarm::Idle => self.aged.set == at,
            Alarm::Batch => self.batch.binary_search(&Timestamp(at)).is_ok(),
            Alarm::Event => self.event.binary_search(&Timestamp(at)).is_ok(),
        }
    }
    fn ring(&mut self, alarm: Alarm, at: Micros, until: Micros, span: Option<Micros>) -> Ring {
        match alarm {
            Alarm::Idle => self.aged.ring(at, until, span),
            Alarm::Batch | Alarm::Event if self.unset(alarm, Timestamp(at)) => Ring::Fire,
            Alarm::Batch | Alarm::Event => Ring::Stale,
        }
    }
    fn alarms(&mut self, span: Option<Micros>) -> Vec<(Alarm, Micros)> {
        let timers = |alarm: Alarm, at: &[Timestamp]| at.iter().map(|at| (alarm, at.0)).collect::<Vec<_>>();
        let (batch, event) = (timers(Alarm::Batch, &self.batch), timers(Alarm::Event, &self.event));
        self.aged.alarm(span).into_iter().chain(batch).chain(event).collect()
    }
    fn is_bare(&self) -> bool {
        self.batch.is_empty() && self.event.is_empty()
    }
    fn hint(&self) -> Micros {
        self.aged.set
    }
    fn take_hint(&mut self, hint: Micros) {
        self.aged.set = hint;
    }
}
