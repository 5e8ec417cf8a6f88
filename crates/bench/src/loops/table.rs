//! Numbers by bytes, where only distinct keys are owned.

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use std::hash::{BuildHasher, Hasher};

/// A hash table from bytes to a number; the keys lie end to end in one vector.
#[derive(Debug, Default)]
pub(super) struct ByteTable {
    slots: HashTable<Slot>,
    keys: Vec<u8>,
    hasher: FixedState,
}

#[derive(Debug)]
struct Slot {
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

#[inline]
fn hash(hasher: &FixedState, key: &[u8]) -> u64 {
    let mut hasher = hasher.build_hasher();
    hasher.write(key);
    hasher.finish()
}

impl ByteTable {
    /// The number of `key`; `first` when it is new.
    #[inline]
    pub(super) fn get(&mut self, key: &[u8], first: u64) -> &mut u64 {
        let Self { slots, keys, hasher } = self;
        let hash_of_key = hash(hasher, key);
        let entry = slots.entry(hash_of_key, |slot| slot.key(keys) == key, |slot| hash(hasher, slot.key(keys)));
        let slot = match entry {
            hashbrown::hash_table::Entry::Occupied(found) => found.into_mut(),
            hashbrown::hash_table::Entry::Vacant(free) => {
                let place = |n: usize| u32::try_from(n).expect("the distinct keys are below 4 GB");
                let (start, length) = (place(keys.len()), place(key.len()));
                keys.extend_from_slice(key);
                free.insert(Slot { start, length, value: first }).into_mut()
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
