//! A channel in memory.
//!
//! Invariant: at most `capacity` events and about `bytes` of them are held, those that a sink has taken and not
//! committed among them; what is rolled back comes first again, in its order. All of it goes with the process.

use super::Taken;
use crate::event::Event;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};

/// Events in memory.
#[derive(Debug)]
pub(crate) struct Memory {
    /// Events at most.
    pub(crate) capacity: u64,
    /// Bytes at most; one put of more is let in alone.
    pub(crate) bytes: u64,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    waiting: VecDeque<Event>,
    bytes: u64,
    /// What sinks have taken, by the number of the take.
    taken: BTreeMap<u64, Vec<Event>>,
    in_hand: u64,
    takes: u64,
}

impl Memory {
    pub(crate) fn new(capacity: u64, bytes: u64) -> Self {
        Self { capacity, bytes, held: Mutex::default() }
    }

    /// Takes all of the events in, or none; whether it did.
    pub(crate) fn put(&self, events: &mut Vec<Event>) -> bool {
        let size: u64 = events.iter().map(Event::size).sum();
        let mut held = self.held.lock();
        let count = held.waiting.len() as u64 + held.in_hand;
        if count > 0 && (count + events.len() as u64 > self.capacity || held.bytes + size > self.bytes) {
            return false;
        }
        held.bytes += size;
        held.waiting.extend(events.drain(..));
        true
    }

    /// The oldest events that nobody has; `None` when there are none.
    pub(crate) fn take(&self, most: usize) -> Option<Taken> {
        let mut held = self.held.lock();
        let count = held.waiting.len().min(most);
        if count == 0 {
            return None;
        }
        let events: Vec<Event> = held.waiting.drain(..count).collect();
        held.takes += 1;
        let number = held.takes;
        held.in_hand += events.len() as u64;
        held.taken.insert(number, events.clone());
        Some(Taken { from: number, to: number, events })
    }

    /// A sink has what it took.
    pub(crate) fn commit(&self, taken: &Taken) {
        let mut held = self.held.lock();
        if let Some(events) = held.taken.remove(&taken.from) {
            held.in_hand -= events.len() as u64;
            held.bytes -= events.iter().map(Event::size).sum::<u64>();
        }
    }

    /// A sink gives back what it took.
    pub(crate) fn roll_back(&self, taken: &Taken) {
        let mut held = self.held.lock();
        for event in held.taken.remove(&taken.from).into_iter().flatten().rev() {
            held.in_hand -= 1;
            held.waiting.push_front(event);
        }
    }

    /// Events that are not committed.
    pub(crate) fn len(&self) -> u64 {
        let held = self.held.lock();
        held.waiting.len() as u64 + held.in_hand
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_core::Timestamp;

    fn events(names: &[&str]) -> Vec<Event> {
        names.iter().map(|name| Event::new((*name).to_owned(), Timestamp(0))).collect()
    }

    fn bodies(taken: &Taken) -> Vec<&[u8]> {
        taken.events.iter().map(|event| &event.body[..]).collect()
    }

    #[test]
    fn what_is_rolled_back_comes_first_again_and_counts_as_held() {
        let memory = Memory::new(4, 1 << 20);
        assert!(memory.put(&mut events(&["a", "b", "c"])));
        let first = memory.take(2).unwrap();
        assert_eq!(bodies(&first), [b"a", b"b"]);
        let mut more = events(&["d", "e"]);
        assert!(!memory.put(&mut more), "two in hand, one waiting");
        assert_eq!(more.len(), 2, "nothing of it was taken in");
        assert!(memory.put(&mut events(&["d"])));
        memory.roll_back(&first);
        let again = memory.take(10).unwrap();
        assert_eq!(bodies(&again), [b"a", b"b", b"c", b"d"]);
        assert!(memory.take(1).is_none());
        memory.commit(&again);
        assert_eq!(memory.len(), 0);
        assert_eq!(memory.held.lock().bytes, 0);
    }

    #[test]
    fn a_put_beyond_the_bound_is_let_in_alone() {
        let memory = Memory::new(2, 1 << 20);
        assert!(memory.put(&mut events(&["a", "b", "c"])));
        assert!(!memory.put(&mut events(&["d"])));
        memory.commit(&memory.take(3).unwrap());
        assert!(memory.put(&mut events(&["d"])));
        let small = Memory::new(100, 100);
        assert!(small.put(&mut events(&["a"])));
        assert!(!small.put(&mut events(&["b"])), "bytes count, too");
    }
}
