//! Waiting longer after each failure, and numbers that are mixed well.
//!
//! Invariant: seeded, so that tests repeat. Called by sink groups.

use tidemill_core::{Duration, Timestamp};

/// The first wait after a failure.
const FIRST: Duration = Duration::from_millis(500);

/// How long something that failed is left alone.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    most: Duration,
    failures: u32,
    /// Not before this.
    pub(crate) until: Timestamp,
}

impl Backoff {
    pub(crate) fn new(most: Duration) -> Self {
        Self { most, failures: 0, until: Timestamp::MIN }
    }

    /// It failed once more.
    pub(crate) fn failed(&mut self, now: Timestamp) {
        let wait = FIRST.saturating_mul(1 << self.failures.min(16)).min(self.most);
        self.failures += 1;
        self.until = now.plus(wait);
    }

    /// It works.
    pub(crate) fn works(&mut self) {
        self.failures = 0;
        self.until = Timestamp::MIN;
    }

    /// Whether it may be tried.
    pub(crate) fn is_over(&self, now: Timestamp) -> bool {
        now >= self.until
    }
}

/// A number well mixed from another: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
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
    fn waits_double_up_to_the_most_and_begin_anew() {
        let mut backoff = Backoff::new(Duration::from_secs(3));
        let mut now = Timestamp(0);
        for wait in [500, 1000, 2000, 3000, 3000] {
            assert!(backoff.is_over(now));
            backoff.failed(now);
            assert_eq!(backoff.until.since(now), Duration::from_millis(wait));
            assert!(!backoff.is_over(now));
            now = backoff.until;
        }
        backoff.works();
        backoff.failed(now);
        assert_eq!(backoff.until.since(now), Duration::from_millis(500));
    }
}
