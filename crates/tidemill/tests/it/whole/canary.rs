//! Tests of the tests: bugs that are planted must be found.
//!
//! Each is what a slip in the product would do: a sync that is left out, an ack
//! that comes too early, a batch that is shown before its commit. None needs a
//! hook in the product: they are planted in the disk below it, in the sink and
//! in the receivers beside it.

use super::{
    Bug,
    disk::{Act, NO_PLANT, Plant, PlantedDisk},
    fault, mix, operations, survive,
};
use crate::tries::{first_seed, landed};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use futures::stream::BoxStream;
use tidemill::{
    BatchId, Result, Timestamp,
    connectors::files::FilesSink,
    core::{Guarantee, Sink, StagedPart},
    store::disk::{Fault, SimDisk},
};

/// Seeds after which a bug counts as not found.
const SEEDS: u64 = 120;

/// A sink with a bug.
#[derive(Debug)]
pub(super) struct WrongSink {
    pub(super) files: FilesSink,
    pub(super) bug: Bug,
}

#[async_trait]
impl Sink for WrongSink {
    fn describe(&self) -> String {
        self.files.describe()
    }
    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }
    async fn open(&self, schema: SchemaRef) -> Result<()> {
        self.files.open(schema).await
    }
    async fn stage(
        &self,
        batch: BatchId,
        time: Timestamp,
        part: usize,
        rows: BoxStream<'_, Result<RecordBatch>>,
    ) -> Result<Option<StagedPart>> {
        let staged = self.files.stage(batch, time, part, rows).await?;
        if self.bug == Bug::ShowBeforeCommit {
            self.files.commit(batch, staged.as_slice()).await?;
        }
        Ok(staged)
    }
    async fn commit(&self, batch: BatchId, parts: &[StagedPart]) -> Result<()> {
        if self.bug == Bug::ForgetToShow && batch.0 % 3 == 0 {
            return Ok(());
        }
        self.files.commit(batch, parts).await
    }
    async fn recover(&self, last: Option<BatchId>) -> Result<()> {
        self.files.recover(last).await
    }
}

/// The first seed whose crashes show the bug, with what is seen.
fn found(plant: Plant, bug: Bug, most: u64) -> Result<(u64, String)> {
    for seed in first_seed()..first_seed() + SEEDS {
        let at = [mix(seed) % most, mix(seed ^ 1) % most];
        let crash = |life: usize| move |disk: &PlantedDisk| disk.disk.fail_at(at[life], Fault::Crash);
        let (first, second) = (crash(0), crash(1));
        let after = |disk: &SimDisk, life| disk.crash(seed * 10 + life);
        if let Err(wrong) = survive(SimDisk::new(), &[&first, &second], after, plant, bug) {
            return Ok((seed, wrong));
        }
    }
    Err(fault(format!("not found by {SEEDS} seeds")))
}

/// Whether it is a segment of the topic.
fn in_log(path: &str, topic: &str) -> bool {
    path.strip_prefix("/d/log/").is_some_and(|path| path.starts_with(topic) && path.ends_with(".seg"))
}

#[test]
fn planted_bugs_are_found() {
    let most = operations();
    let bugs: [(&str, Plant, Bug); 13] = [
        ("an ack before the append", NO_PLANT, Bug::AckBeforeAppend),
        ("a batch shown before its commit", NO_PLANT, Bug::ShowBeforeCommit),
        ("a staged batch that is never shown", NO_PLANT, Bug::ForgetToShow),
        ("an ack before the sync", |act, path| act == Act::Sync && in_log(path, "sent/"), Bug::None),
        ("a ledger that is not synced", |act, path| act == Act::Sync && path.contains(".ledger"), Bug::None),
        ("a commit before its state", |act, path| act == Act::Sync && path.contains("/state/"), Bug::None),
        ("a state that is not written", |act, path| act == Act::Append && path.contains("/state/"), Bug::None),
        ("a commit before its dead letters", |act, path| act == Act::Sync && in_log(path, "whole.dead/"), Bug::None),
        ("a lost dead letter", |act, path| act == Act::Append && in_log(path, "whole.dead/"), Bug::None),
        ("a commit before its staged files", |act, path| act == Act::Sync && path.starts_with("/out"), Bug::None),
        (
            "staged files under names that are not kept",
            |act, path| act == Act::SyncDir && path.starts_with("/out"),
            Bug::None,
        ),
        (
            "a log under names that are not kept",
            |act, path| act == Act::SyncDir && path.starts_with("/d/log"),
            Bug::None,
        ),
        ("a topic of results that is not synced", |act, path| act == Act::Sync && in_log(path, "totals/"), Bug::None),
    ];
    let mut missed = Vec::new();
    for (name, plant, bug) in bugs {
        match found(plant, bug, most) {
            Ok((seed, seen)) => {
                landed(format_args!("{name}: found at seed {seed}: {}", seen.lines().next().unwrap_or("")))
            }
            Err(_) => missed.push(name),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
