//! The operating system's clock, the one place where the engine asks for it.

use futures::future::BoxFuture;
use std::time::{SystemTime, UNIX_EPOCH};
use tidemill_core::{Clock, Timestamp};

/// Wall-clock time.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX)),
            Err(before) => Timestamp(-i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX)),
        }
    }

    fn sleep_until(&self, deadline: Timestamp) -> BoxFuture<'_, ()> {
        let span = deadline.since(self.now());
        Box::pin(tokio::time::sleep(span))
    }
}
