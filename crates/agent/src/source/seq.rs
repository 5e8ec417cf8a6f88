//! Source `seq`: numbers that grow by one, for trials.
//!
//! Invariant: over durable channels it goes on after a restart behind the last number that all of them have. Each
//! number is a body; with a `total` it ends after so many.

use super::Origin;
use crate::{event::Event, inlet::Inlet};
use async_trait::async_trait;
use std::sync::Arc;
use tidemill_core::{Error, Result, Stop};

/// Counts.
#[derive(Debug)]
pub(crate) struct Seq {
    /// How many numbers; without end when `None`.
    pub(crate) total: Option<u64>,
    /// Numbers that are put together.
    pub(crate) batch_size: u64,
}

#[async_trait]
impl Origin for Seq {
    fn describe(&self) -> String {
        self.total.map_or_else(|| "seq".to_owned(), |total| format!("seq of {total}"))
    }

    async fn run(&self, inlet: Arc<Inlet>, stop: Stop) -> Result<()> {
        let from = inlet.resumes().unwrap_or_else(|| "0".to_owned());
        let mut next: u64 =
            from.parse().map_err(|_| Error::user(format!("seq: its token is `{from}`, not a number")))?;
        let total = self.total.unwrap_or(u64::MAX);
        while next < total && !stop.is_stopped() {
            let end = next.saturating_add(self.batch_size).min(total);
            let now = inlet.clock().now();
            let events = (next..end).map(|n| Event::new(n.to_string(), now)).collect();
            // A log that fails says so at the next put.
            drop(inlet.put(events, Some(end.to_string())).await?);
            next = end;
            // With room in all channels nothing above has waited.
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}
