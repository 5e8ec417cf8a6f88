//! What the ledger knows of a topic that the program fills, compared with what is there.
//!
//! Invariant: a topic is cut only where all that goes was written by batches that
//! were undone. Nothing is appended to a topic that has lost rows of committed
//! batches. Called when a sink into a topic is opened, before anyone reads the topic.

use super::{Mark, tokens};
use std::collections::BTreeMap;
use tidemill_core::{BatchId, Error, Offset, OffsetRange, Position, Result, Timestamp};
use tidemill_store::log::{Sync, Topic};

/// What the ledger knows of a topic.
#[derive(Debug, Clone, Default)]
pub struct TopicPast {
    /// Where committed batches left each partition.
    pub filled: Position,
    /// Where the rows of the last commit lie, which may have to be repeated.
    pub last_commit: Vec<OffsetRange>,
    /// Where partitions are to be cut, and how many rows the undone batches wrote from there on.
    pub cuts: BTreeMap<u32, (Offset, u64)>,
    /// Whether the data directory is a copy: what lies behind a cut is nobody's.
    pub is_copy: bool,
    /// The last number of a batch that is used, and the time that goes with it.
    pub upto: (BatchId, Timestamp),
}

impl TopicPast {
    pub(super) fn knows_rows(&self) -> bool {
        !self.filled.is_empty()
    }

    /// Whether all is there but what the last commit, which is still to be repeated, brings.
    pub(super) fn reaches_last_commit(&self, topic: &Topic) -> Result<()> {
        let mut ends = self.filled.clone();
        for range in &self.last_commit {
            // A topic that was made anew since has nothing of it.
            ends.entry(range.partition.clone()).and_modify(|end| *end = range.start);
        }
        reaches(topic, &ends)
    }

    /// Whether all is there.
    pub(super) fn reaches_end(&self, topic: &Topic) -> Result<()> {
        reaches(topic, &self.filled)
    }

    /// Takes back the rows of batches that were undone. May be repeated.
    pub(super) fn cut(&self, topic: &Topic, owner: &str) -> Result<()> {
        for (partition, (at, rows)) in &self.cuts {
            let there = topic.end(*partition).0.saturating_sub(at.0);
            if there > *rows && !self.is_copy {
                return Err(Error::user(format!(
                    "topic `{}` has {there} rows from offset {at} of partition {partition} on, and the batches that were \
                     undone wrote {rows} of them: nothing was cut off. Go back once more with `tidemill rewind --keep-topics`, \
                     and they stay; what is computed anew comes after them",
                    topic.name()
                )));
            }
            if there == 0 {
                continue;
            }
            let mut tokens = tokens(topic, *partition)?;
            let (batch, time) = self.upto;
            // A commit that is repeated has nothing to append: all its rows lie before the cut.
            tokens.insert(owner.to_string(), Mark { batch, time, frames: usize::MAX });
            let token = serde_json::to_string(&tokens).map_err(|e| Error::internal("a topic's token").because(e))?;
            tracing::info!(
                topic = topic.name(),
                partition,
                at = at.0,
                rows = there,
                "rows that were undone are cut off"
            );
            topic.cut(*partition, *at, &token)?;
        }
        Ok(())
    }
}

/// Refuses a topic that ends before rows that were committed.
fn reaches(topic: &Topic, ends: &Position) -> Result<()> {
    for (id, filled) in ends {
        let Ok(partition) = id.0.parse() else { continue };
        let end = topic.end(partition);
        if end >= *filled {
            continue;
        }
        if topic.config().sync == Sync::Never {
            tracing::warn!(
                topic = topic.name(),
                partition,
                from = end.0,
                to = filled.0,
                "rows of committed batches are not in the topic: the machine stopped before they were durable"
            );
            continue;
        }
        return Err(Error::user(format!(
            "topic `{}` partition {partition} ends at offset {end}, and committed batches have filled it up to {filled}: \
             [{end}, {filled}) is gone. Restore the data directory from a backup; or go back with `tidemill rewind` to a \
             batch that had filled it no further, and what is gone is computed anew",
            topic.name()
        ))
        .fatal());
    }
    Ok(())
}
