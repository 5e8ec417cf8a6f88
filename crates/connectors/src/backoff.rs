//! Waiting longer after each failure.
//!
//! Invariant: the wait doubles from `first` to `most`, each time shortened by
//! up to a half at random, so that many clients of a server that came back
//! don't come all at once; the randomness is seeded, so tests repeat.

use std::time::Duration;

/// Grows with each failure, until something succeeds.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
    random: u64,
}

impl Backoff {
    /// Waits from 100 ms to 10 s.
    pub fn new(seed: u64) -> Self {
        Self::between(Duration::from_millis(100), Duration::from_secs(10), seed)
    }

    /// Waits between `first` and `most`.
    pub fn between(first: Duration, most: Duration, seed: u64) -> Self {
        Self { first, most, failures: 0, random: seed }
    }

    /// How long to wait after one more failure.
    pub fn next_wait(&mut self) -> Duration {
        let full = self.first.saturating_mul(1 << self.failures.min(20)).min(self.most);
        self.failures += 1;
        self.random = self.random.wrapping_add(1);
        let part = u32::try_from(splitmix64(self.random) >> 32).unwrap_or(0);
        full - full.mul_f64(0.5 * f64::from(part) / f64::from(u32::MAX))
    }

    /// Something succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A number well mixed from another: Steele, Lea and Flood, "Fast splittable
/// pseudorandom number generators" (2014).
pub(crate) fn splitmix64(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_the_most_and_start_over_after_a_success() {
        let mut backoff = Backoff::between(Duration::from_millis(100), Duration::from_secs(1), 7);
        for full in [100, 200, 400, 800, 1000, 1000] {
            let wait = backoff.next_wait();
            assert!(
                wait <= Duration::from_millis(full) && wait >= Duration::from_millis(full / 2),
                "{wait:?} of {full}"
            );
        }
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(100));
    }

    #[test]
    fn seeds_differ_and_repeat() {
        let waits = |seed| (0..5).map(|_| 0).scan(Backoff::new(seed), |b, _| Some(b.next_wait())).collect::<Vec<_>>();
        assert_eq!(waits(1), waits(1));
        assert_ne!(waits(1), waits(2));
    }
}
