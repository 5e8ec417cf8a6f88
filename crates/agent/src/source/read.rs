//! A replayable source of the registry (files, topics of Kafka) as an agent's.
//!
//! Invariant: its position travels as the token of its events, in one put, so each record comes once without a crash,
//! also when the source fails and is begun anew, and over durable channels none is lost by one. Records are taken raw; a source of columns is refused when the agent is read.

use super::Origin;
use crate::{event::events_of, inlet::Inlet};
use async_trait::async_trait;
use futures::StreamExt;
use std::sync::Arc;
use tidemill_core::{Budget, Chunk, Duration, Error, Position, Result, Source, Stop};

/// Pause before a look for more, where the source can't say when.
const IDLE: Duration = Duration::from_millis(200);
/// What is read at once.
const BUDGET: Budget = Budget { records: 10_000, bytes: 8 << 20, parallelism: 1 };

/// A replayable source.
pub(crate) struct Read(pub(crate) Arc<dyn Source>);

#[async_trait]
impl Origin for Read {
    fn describe(&self) -> String {
        self.0.describe()
    }

    async fn run(&self, inlet: Arc<Inlet>, stop: Stop) -> Result<()> {
        let mut position: Position = match inlet.resumes() {
            Some(token) => serde_json::from_str(&token)
                .map_err(|e| Error::user(format!("the source's token `{token}` is no position")).because(e))?,
            None => Position::new(),
        };
        while !stop.is_stopped() {
            let ranges = self.0.plan(&position, BUDGET).await?;
            // All of a plan is put at once: a part of it has no place of its own to go on from.
            let (mut read, mut events, mut refused) = (false, Vec::new(), Vec::new());
            for range in ranges {
                let mut chunks = self.0.read(&range);
                while let Some(chunk) = chunks.next().await {
                    match chunk? {
                        Chunk::Raw(block) => events.extend(events_of(block, inlet.clock().now())),
                        Chunk::Refused { reason, .. } => refused.push(reason),
                        Chunk::Columns { .. } => {
                            return Err(Error::user(format!(
                                "{} gives columns, an agent takes raw records",
                                self.describe()
                            )));
                        }
                    }
                }
                read |= !range.is_empty();
                position.insert(range.partition, range.end);
            }
            if read {
                let token = serde_json::to_string(&position).map_err(|e| Error::internal("a position").because(e))?;
                drop(inlet.put(events, Some(token)).await?);
                refused.iter().for_each(|reason| inlet.refused(reason));
                continue;
            }
            if self.0.is_exhausted(&position).await? {
                return Ok(());
            }
            tokio::select! {
                () = stop.stopped() => {}
                () = async {
                    if self.0.can_wait() {
                        self.0.wait(&position).await;
                    } else {
                        inlet.clock().sleep_until(inlet.clock().now().plus(IDLE)).await;
                    }
                } => {}
            }
        }
        Ok(())
    }
}
