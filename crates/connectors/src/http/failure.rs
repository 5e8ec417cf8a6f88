//! Why a connection ended, and how long to wait before the next.
//!
//! X documents three kinds of waits, which no other network contradicts, so all
//! take them: after a fault of the network 250 ms, and 250 ms more each time, to
//! 16 s; after an HTTP error 5 s, doubling to 320 s; when there were too many
//! requests (429, and 420 of version 1.1) 60 s, doubling, or as long as the
//! server says.
//!
//! Invariant: a wait never ends before the time that the server named. Waits
//! are not shortened at random, as they are least times.

use std::{fmt, time::Duration};
use tidemill_core::{Error, Timestamp};

/// Why a connection, or a round of asking, ended.
#[derive(Debug)]
pub enum Failure {
    /// The network broke, the server hung up or fell silent.
    Network(String),
    /// The server answered with an error.
    Http(String),
    /// There were too many requests; with the time from which on there may be more, if the server says.
    Limited(String, Option<Timestamp>),
    /// The server does not know these credentials, or forbids what was asked.
    Denied(String),
    /// A human has to act, or the log has failed.
    Fatal(Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(why) | Self::Http(why) | Self::Limited(why, _) | Self::Denied(why) => f.write_str(why),
            Self::Fatal(error) => f.write_str(&error.chain()),
        }
    }
}

impl Failure {
    /// Of a server that is asked by a client of its own: what passes is tried again.
    #[cfg(any(feature = "mongodb", feature = "postgres"))]
    pub(crate) fn of(error: Error) -> Self {
        if error.is_retryable() { Self::Network(error.chain()) } else { Self::Fatal(error) }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

/// How long to wait.
#[derive(Debug, Clone)]
pub struct Waits {
    network: u32,
    http: u32,
    limited: u32,
    denied: u32,
}

/// Refusals of credentials that worked before, after which a human has to act.
const DENIALS: u32 = 6;

impl Default for Waits {
    fn default() -> Self {
        Self::new()
    }
}

impl Waits {
    /// Without any failure so far.
    pub fn new() -> Self {
        Self { network: 0, http: 0, limited: 0, denied: 0 }
    }

    /// Posts came: the next failure is a first one.
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    /// How long to wait after one more failure at `now`. `worked` says whether anything has been received with these
    /// credentials.
    ///
    /// # Errors
    /// When no wait mends it.
    pub fn after(&mut self, failure: Failure, now: Timestamp, worked: bool) -> Result<Duration, Error> {
        let count = |n: &mut u32| {
            *n = n.saturating_add(1);
            *n - 1
        };
        let doubled = |first: u64, most: u64, n: u32| Duration::from_secs((first << n.min(16)).min(most));
        match failure {
            Failure::Fatal(error) => Err(error),
            Failure::Network(_) => Ok(Duration::from_millis(250 * (1 + u64::from(count(&mut self.network))).min(64))),
            Failure::Http(_) => Ok(doubled(5, 320, count(&mut self.http))),
            Failure::Limited(_, until) => {
                let least = doubled(60, 15 * 60, count(&mut self.limited));
                // An hour and a half is beyond every documented window: what says more is no time to wait for.
                let named = until.map(|until| until.since(now)).filter(|wait| *wait <= Duration::from_secs(5400));
                Ok(named.map_or(least, |named| if named.is_zero() { least } else { named + Duration::from_secs(1) }))
            }
            Failure::Denied(why) => {
                let n = count(&mut self.denied);
                if worked && n < DENIALS { Ok(doubled(5, 320, n)) } else { Err(Error::user(why)) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);

    fn waits(kind: fn() -> Failure, times: usize) -> Vec<f64> {
        let mut waits = Waits::new();
        (0..times).map(|_| waits.after(kind(), NOW, true).unwrap().as_secs_f64()).collect()
    }

    #[test]
    fn waits_are_those_that_are_documented() {
        let network = waits(|| Failure::Network(String::new()), 70);
        assert_eq!((network[0], network[1], network[62], network[63], network[69]), (0.25, 0.5, 15.75, 16.0, 16.0));
        assert_eq!(waits(|| Failure::Http(String::new()), 8), [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 320.0]);
        let limited = waits(|| Failure::Limited(String::new(), None), 6);
        assert_eq!(limited, [60.0, 120.0, 240.0, 480.0, 900.0, 900.0]);
    }

    #[test]
    fn the_servers_own_time_counts() {
        let until = |seconds| Failure::Limited(String::new(), Some(NOW.plus(Duration::from_secs(seconds))));
        let mut waits = Waits::new();
        assert_eq!(waits.after(until(17), NOW, true).unwrap(), Duration::from_secs(18));
        // A time that is past, or absurd, is none.
        let past = Failure::Limited(String::new(), Some(NOW.minus(Duration::from_secs(3))));
        assert_eq!(waits.after(past, NOW, true).unwrap(), Duration::from_secs(120));
        assert_eq!(waits.after(until(1_000_000), NOW, true).unwrap(), Duration::from_secs(240));
    }

    #[test]
    fn wrong_credentials_end_it_at_once_and_those_that_worked_after_a_while() {
        let denied = || Failure::Denied("401".to_string());
        assert!(Waits::new().after(denied(), NOW, false).is_err());
        let mut waits = Waits::new();
        let tries = (0..20).take_while(|_| waits.after(denied(), NOW, true).is_ok()).count();
        assert_eq!(tries, DENIALS as usize);
        waits.reset();
        assert!(waits.after(denied(), NOW, true).is_ok());
    }
}
