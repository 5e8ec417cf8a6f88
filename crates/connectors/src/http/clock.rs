//! The wall clock of collectors.
//!
//! Requests are signed with it, servers' `Date` headers are compared to it, and
//! waits are counted by it. Invariant: collectors ask the [`Clock`] that they
//! were given, which in a test is one that the test moves; only this one asks
//! the operating system.

use futures::future::BoxFuture;
use std::time::{SystemTime, UNIX_EPOCH};
use tidemill_core::{Clock, Timestamp};

/// Wall-clock time.
#[derive(Debug, Clone, Copy, Default)]
pub struct WallClock;

impl Clock for WallClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    fn sleep_until(&self, deadline: Timestamp) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(deadline.since(self.now())))
    }
}
