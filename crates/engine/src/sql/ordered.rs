//! Keys as bytes, in the order in which they first came.
//!
//! ```text
//! entries: key 0, key 1, key 2, …          index: hash ─► number of the entry
//! ```
//!
//! Invariant: an entry keeps its number, and nothing is ever removed. So a sweep
//! that has given the entries before a number has given each of them, whatever came
//! meanwhile, and taking one more key never makes it begin again. Called by
//! [`super::distinct`] and [`super::number`].

use hashbrown::{HashTable, hash_table::Entry};
use std::hash::{BuildHasher, Hasher};

/// Keys, each with a value.
#[derive(Debug, Default)]
pub(super) struct Ordered<V> {
    entries: Vec<(Box<[u8]>, V)>,
    index: HashTable<u32>,
}

fn hash_of(key: &[u8]) -> u64 {
    let mut state = foldhash::fast::FixedState::default().build_hasher();
    state.write(key);
    state.finish()
}

impl<V: Default> Ordered<V> {
    /// The number of a key, and whether it is new.
    ///
    /// # Panics
    /// With more than four billion keys, whose bytes alone take more than most memories have.
    pub(super) fn take(&mut self, key: &[u8]) -> (usize, bool) {
        let Self { entries, index } = self;
        let found =
            index.entry(hash_of(key), |at| *entries[*at as usize].0 == *key, |at| hash_of(&entries[*at as usize].0));
        match found {
            Entry::Occupied(at) => (*at.get() as usize, false),
            Entry::Vacant(place) => {
                let at = u32::try_from(entries.len()).expect("a state holds under four billion keys in memory");
                place.insert(at);
                entries.push((key.into(), V::default()));
                (at as usize, true)
            }
        }
    }

    /// The value of the key with this number, if there is one.
    pub(super) fn value_mut(&mut self, at: usize) -> Option<&mut V> {
        self.entries.get_mut(at).map(|(_, value)| value)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Up to `limit` keys with their values, from this number on.
    pub(super) fn page(&self, from: usize, limit: usize) -> &[(Box<[u8]>, V)] {
        let from = from.min(self.len());
        &self.entries[from..self.len().min(from.saturating_add(limit))]
    }

    /// All keys with their values.
    pub(super) fn all(&self) -> &[(Box<[u8]>, V)] {
        &self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_keeps_its_number_while_others_come() {
        let mut keys = Ordered::<i64>::default();
        for round in 0..3 {
            for key in 0..1_000_usize {
                let (at, is_new) = keys.take(format!("key {key}").as_bytes());
                assert_eq!((at, is_new), (key, round == 0));
                *keys.value_mut(at).unwrap() += 1;
            }
        }
        assert_eq!(keys.len(), 1_000);
        assert!(keys.all().iter().all(|(_, count)| *count == 3));
        assert_eq!(*keys.page(998, 5)[1].0, *b"key 999");
        assert_eq!((keys.page(998, 5).len(), keys.page(2_000, 5).len(), keys.page(3, 2).len()), (2, 0, 2));
        assert!(keys.value_mut(1_000).is_none());
    }
}
