//! W3 by hand: a running count by key, in memory and nowhere else.
//!
//! Each thread owns the keys of its share of the hash and keeps them in one
//! hash table. An event costs less to make than to hand over, so each thread
//! makes all of them and keeps its own: no exchange, no lock.

use super::on_threads;
use crate::{Result, check::Rows, input::events};
use foldhash::fast::FixedState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

/// How many events each key had.
pub(crate) type KeyCounts = Rows<u64, u64>;

/// The tables of all threads.
#[derive(Debug)]
pub(crate) struct Counts(Vec<HashTable<(u64, u64)>>);

impl Counts {
    /// For comparison; not part of the job.
    pub(crate) fn rows(&self) -> KeyCounts {
        Rows::new(self.0.iter().flatten().copied().collect())
    }
}

/// Counts `items` events.
///
/// # Errors
/// Never, but that a thread panics.
pub(crate) fn run(seed: u64, items: u64, threads: usize) -> Result<Counts> {
    let hasher = FixedState::default();
    let tables = on_threads(threads, |mine| {
        let mut counts = HashTable::<(u64, u64)>::new();
        for offset in 0..items {
            let key = events::key(seed, offset);
            let hash = hasher.hash_one(key);
            // The middle bits: the table itself looks at the lowest and the highest.
            if (hash >> 24) as usize % threads == mine {
                counts
                    .entry(hash, |slot| slot.0 == key, |slot| hasher.hash_one(slot.0))
                    .or_insert((key, 0))
                    .into_mut()
                    .1 += 1;
            }
        }
        Ok(counts)
    })?;
    Ok(Counts(tables))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn counts_are_those_of_the_plainest_program() {
        let mut expected: BTreeMap<u64, u64> = BTreeMap::new();
        (0..100_000).for_each(|offset| *expected.entry(events::key(9, offset)).or_default() += 1);
        let expected = Rows::new(expected.into_iter().collect());
        assert_eq!(run(9, 100_000, 3).unwrap().rows().difference_from(&expected), None);
    }
}
