//! W3's events: an offset's key is arithmetic, so that no side waits for a disk.

use super::random::splitmix64;

/// Distinct keys.
pub(crate) const KEYS: u64 = 1_000_000;

/// The key of the event at `offset`.
#[inline]
pub(crate) const fn key(seed: u64, offset: u64) -> u64 {
    splitmix64(seed ^ offset) % KEYS
}

/// Mixes a number well; the generator's own function.
#[inline]
pub(crate) const fn mix(number: u64) -> u64 {
    splitmix64(number)
}
