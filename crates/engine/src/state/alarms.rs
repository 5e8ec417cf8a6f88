//! Which keys of a table need a look, by the time at which they do.
//!
//! ```text
//! deadline ─► hashes of the keys           idle: batch time     a state's timeout or time to live
//!                                          batch: batch time    a timer
//!                                          event: watermark     a timer
//! ```
//!
//! Invariant: each alarm of a key has at least one entry at or before its time.
//! An entry is a hint: whoever takes it out asks the key. So a key whose
//! deadline moves on with each record has one entry, which is moved when it
//! comes up, and a batch pays for the keys that it touches and for those that
//! come up, not for all. Held by each table of `keyed.rs`.

use std::collections::BTreeMap;

/// What an alarm goes by, and what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Alarm {
    /// The state's own end, by batch time.
    Idle,
    /// A timer, by batch time.
    Batch,
    /// A timer, by the watermark.
    Event,
}

/// Microseconds since the epoch.
pub(crate) type Micros = i64;

/// Hashes of keys by time, for each kind of alarm.
#[derive(Debug, Default)]
pub(crate) struct Alarms([BTreeMap<Micros, Vec<u64>>; 3], usize);

impl Alarms {
    pub(crate) fn add(&mut self, alarm: Alarm, at: Micros, hash: u64) {
        self.0[alarm as usize].entry(at).or_default().push(hash);
        self.1 += 1;
    }

    /// Takes out what is due: by batch time in order of time, then by the watermark
    /// in order of time. Equal times in order of hash, which a restart repeats.
    pub(crate) fn due(&mut self, batch: Micros, event: Micros) -> Vec<(Micros, Alarm, u64)> {
        let mut due = Vec::new();
        for (alarm, until) in [(Alarm::Idle, batch), (Alarm::Batch, batch), (Alarm::Event, event)] {
            let entries = &mut self.0[alarm as usize];
            while let Some(entry) = entries.first_entry()
                && *entry.key() <= until
            {
                let (at, hashes) = entry.remove_entry();
                due.extend(hashes.into_iter().map(|hash| (at, alarm, hash)));
            }
        }
        self.1 -= due.len();
        due.sort_unstable_by_key(|(at, alarm, hash)| (*alarm == Alarm::Event, *at, *alarm, *hash));
        due
    }

    /// The hashes that [`Alarms::due`] would give.
    pub(crate) fn hashes_due(&self, batch: Micros, event: Micros) -> impl Iterator<Item = u64> + '_ {
        [(Alarm::Idle, batch), (Alarm::Batch, batch), (Alarm::Event, event)]
            .into_iter()
            .flat_map(|(alarm, until)| self.0[alarm as usize].range(..=until).flat_map(|(_, hashes)| hashes).copied())
    }

    /// About the bytes that the entries take.
    pub(crate) fn bytes(&self) -> usize {
        self.1 * 2 * size_of::<u64>()
    }

    /// Whether [`Alarms::due`] would give anything.
    pub(crate) fn is_due(&self, batch: Micros, event: Micros) -> bool {
        self.first_batch().is_some_and(|at| at <= batch) || self.first_event().is_some_and(|at| at <= event)
    }

    /// The first entry by batch time.
    pub(crate) fn first_batch(&self) -> Option<Micros> {
        let first = |alarm: Alarm| self.0[alarm as usize].keys().next().copied();
        [first(Alarm::Idle), first(Alarm::Batch)].into_iter().flatten().min()
    }

    /// The first entry by the watermark.
    pub(crate) fn first_event(&self) -> Option<Micros> {
        self.0[Alarm::Event as usize].keys().next().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_comes_once_and_in_order() {
        let mut alarms = Alarms::default();
        for (alarm, at, hash) in
            [(Alarm::Idle, 5, 1), (Alarm::Batch, 3, 2), (Alarm::Event, 1, 3), (Alarm::Idle, 5, 0), (Alarm::Idle, 9, 4)]
        {
            alarms.add(alarm, at, hash);
        }
        assert_eq!((alarms.first_batch(), alarms.first_event()), (Some(3), Some(1)));
        assert!(!alarms.is_due(2, 0) && alarms.is_due(2, 1) && alarms.is_due(3, 0));
        let mut hashes: Vec<u64> = alarms.hashes_due(5, 7).collect();
        hashes.sort_unstable();
        assert_eq!(hashes, [0, 1, 2, 3]);
        assert_eq!(
            alarms.due(5, 7),
            [(3, Alarm::Batch, 2), (5, Alarm::Idle, 0), (5, Alarm::Idle, 1), (1, Alarm::Event, 3)]
        );
        assert_eq!(alarms.due(8, 7), []);
        assert!(alarms.bytes() > 0);
        assert_eq!(alarms.due(9, 7), [(9, Alarm::Idle, 4)]);
        assert_eq!(alarms.bytes(), 0);
    }
}
