//! Numbers by bytes, where only distinct keys are owned.
//!
//! Invariant: a key is in the table once. Called by the loops that count.

use foldhash::fast::FixedState;
use hashbrown::{HashTable, hash_table::Entry};
use std::hash::{BuildHasher, Hasher};

/// A hash table from bytes to a number; the keys lie end to end in one vector.
#[derive(Debug, Default)]
pub(super) struct ByteTable {
    slots: HashTable<Slot>,
    keys: Vec<u8>,
    hasher: FixedState,
}

/// A key and its number. A key of 16 bytes or fewer is compared without a look at `keys`.
#[derive(Debug)]
struct Slot {
    ends: (u64, u64),
    start: u32,
    length: u32,
    value: u64,
}

impl Slot {
    #[inline]
    fn key<'a>(&self, keys: &'a [u8]) -> &'a [u8] {
        &keys[self.start as usize..][..self.length as usize]
    }
}

/// The first and the last bytes of a key, overlapping: with its length, all there is to a key of 16 bytes or fewer.
#[inline]
fn ends(key: &[u8]) -> (u64, u64) {
    if let (Some(first), Some(last)) = (key.first_chunk::<8>(), key.last_chunk::<8>()) {
        (u64::from_le_bytes(*first), u64::from_le_bytes(*last))
    } else if let (Some(first), Some(last)) = (key.first_chunk::<4>(), key.last_chunk::<4>()) {
        (u32::from_le_bytes(*first).into(), u32::from_le_bytes(*last).into())
    } else {
        (key.iter().fold(0, |ends, byte| ends << 8 | u64::from(*byte)), 0)
    }
}

#[inline]
fn hash(hasher: &FixedState, key: &[u8], ends: (u64, u64)) -> u64 {
    let mut hasher = hasher.build_hasher();
    if key.len() > 16 {
        hasher.write(key);
    } else {
        hasher.write_u64(ends.0);
        hasher.write_u64(ends.1);
    }
    hasher.finish()
}

impl ByteTable {
    /// The number of `key`; `first` when it is new.
    #[inline]
    pub(super) fn get(&mut self, key: &[u8], first: u64) -> &mut u64 {
        let Self { slots, keys, hasher } = self;
        let ends = ends(key);
        let same = |slot: &Slot| {
            slot.ends == ends && slot.length as usize == key.len() && (key.len() <= 16 || slot.key(keys) == key)
        };
        let entry = slots.entry(hash(hasher, key, ends), same, |slot| hash(hasher, slot.key(keys), slot.ends));
        let slot = match entry {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(free) => {
                let place = |n: usize| u32::try_from(n).expect("the distinct keys are below 4 GB");
                let (start, length) = (place(keys.len()), place(key.len()));
                keys.extend_from_slice(key);
                free.insert(Slot { ends, start, length, value: first }).into_mut()
            }
        };
        &mut slot.value
    }

    /// Distinct keys.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Keys and numbers, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.slots.iter().map(|slot| (slot.key(&self.keys), slot.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn keys_of_every_length_are_told_apart() {
        // Letters that repeat make first and last bytes alike; zeros make short keys look padded.
        let mut keys: Vec<Vec<u8>> = Vec::new();
        for length in 0..40 {
            keys.extend([vec![b'a'; length], vec![0; length]]);
            for at in 0..length {
                let mut key = vec![b'a'; length];
                key[at] = b'b';
                keys.push(key);
            }
        }
        let mut table = ByteTable::default();
        let mut expected: BTreeMap<&[u8], u64> = BTreeMap::new();
        for (i, key) in keys.iter().cycle().take(3 * keys.len()).enumerate() {
            *table.get(key, 0) += i as u64;
            *expected.entry(key).or_default() += i as u64;
        }
        assert_eq!(table.len(), expected.len());
        assert_eq!(table.iter().collect::<BTreeMap<_, _>>(), expected);
    }
}
