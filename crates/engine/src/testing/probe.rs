//! Where a program under test puts its results, outside of its lives.
//!
//! Invariant: what a batch has shown never changes; a batch that shows
//! something else when it is committed again is noted as wrong. Used by
//! [`super::trial`].

use super::steps::Steps;
use crate::record::{Record, records_of};
use arrow_array::RecordBatch;
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use async_trait::async_trait;
use futures::{TryStreamExt, stream::BoxStream};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};
use tidemill_core::{BatchId, Error, Guarantee, Result, Sink, StagedPart, Timestamp};

type Staged = BTreeMap<(String, u64, String), Vec<RecordBatch>>;

/// What is outside of a program and stays when it dies.
#[derive(Debug, Default)]
pub(super) struct World {
    staged: Mutex<Staged>,
    shown: Mutex<BTreeMap<String, BTreeMap<u64, Vec<RecordBatch>>>>,
    /// The time of each batch that staged something.
    times: Mutex<BTreeMap<u64, Timestamp>>,
    wrong: Mutex<Option<String>>,
}

impl World {
    /// Rows as text, in order of the text; by output and batch. Batches without rows are left out.
    pub(super) fn lines(&self) -> Result<BTreeMap<String, BTreeMap<u64, Vec<String>>>> {
        let shown = self.shown.lock();
        let mut all = BTreeMap::new();
        for (output, batches) in &*shown {
            let of: &mut BTreeMap<u64, Vec<String>> = all.entry(output.clone()).or_default();
            for (batch, rows) in batches {
                let mut lines = Vec::new();
                for rows in rows {
                    lines.extend(lines_of(rows)?);
                }
                lines.sort_unstable();
                if !lines.is_empty() {
                    of.insert(*batch, lines);
                }
            }
        }
        Ok(all)
    }

    pub(super) fn records<T: Record>(&self, output: &str) -> Result<BTreeMap<u64, Vec<T>>> {
        let shown = self.shown.lock();
        let Some(batches) = shown.get(output) else { return Ok(BTreeMap::new()) };
        batches
            .iter()
            .map(|(batch, rows)| {
                let records = rows.iter().map(records_of::<T>).collect::<Result<Vec<_>>>()?;
                Ok((*batch, records.into_iter().flatten().collect()))
            })
            .collect()
    }

    pub(super) fn times(&self) -> BTreeMap<u64, Timestamp> {
        self.times.lock().clone()
    }

    /// What went wrong in the handling of sinks, if anything did.
    pub(super) fn wrong(&self) -> Option<String> {
        self.wrong.lock().clone()
    }

    fn note(&self, wrong: String) {
        self.wrong.lock().get_or_insert(wrong);
    }
}

/// Each row as a line of text.
pub(super) fn lines_of(rows: &RecordBatch) -> Result<Vec<String>> {
    let options = FormatOptions::default().with_null("null");
    let failed = |e| Error::internal("rows as text").because(e);
    let columns = rows
        .columns()
        .iter()
        .map(|column| ArrayFormatter::try_new(column, &options))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    (0..rows.num_rows())
        .map(|row| {
            let cells = columns.iter().map(|c| c.value(row).try_to_string()).collect::<Result<Vec<_>, _>>();
            Ok(cells.map_err(failed)?.join(" | "))
        })
        .collect()
}

/// A sink into the world, for one life of a program.
#[derive(Debug)]
pub(super) struct Probe {
    pub(super) output: String,
    pub(super) world: Arc<World>,
    pub(super) steps: Arc<Steps>,
}

impl Probe {
    fn step(&self, what: &str, batch: BatchId) -> Result<()> {
        if self.steps.pass(|| format!("{what} batch {batch} of output `{}`", self.output)) {
            return Ok(());
        }
        Err(Error::external("the machine has stopped"))
    }
}

#[async_trait]
impl Sink for Probe {
    fn describe(&self) -> String {
        format!("the output `{}` of a trial", self.output)
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    async fn stage(
        &self,
        batch: BatchId,
        time: Timestamp,
        part: usize,
        rows: BoxStream<'_, Result<RecordBatch>>,
    ) -> Result<Option<StagedPart>> {
        let rows: Vec<RecordBatch> = rows.try_collect().await?;
        self.step("stage", batch)?;
        let name = part.to_string();
        self.world.staged.lock().insert((self.output.clone(), batch.0, name.clone()), rows);
        let before = self.world.times.lock().insert(batch.0, time);
        if before.is_some_and(|before| before != time) {
            self.world.note(format!("batch {batch} had the time {before:?} and ran again with {time}"));
        }
        self.step("after staging", batch)?;
        Ok(Some(StagedPart(name)))
    }

    async fn commit(&self, batch: BatchId, parts: &[StagedPart]) -> Result<()> {
        self.step("commit", batch)?;
        let staged = self.world.staged.lock();
        let mut rows = Vec::new();
        for part in parts {
            match staged.get(&(self.output.clone(), batch.0, part.0.clone())) {
                Some(part) => rows.extend(part.iter().cloned()),
                None => {
                    self.world.note(format!("`{}`: part {} of batch {batch} was never staged", self.output, part.0));
                }
            }
        }
        drop(staged);
        let before = self.world.shown.lock().entry(self.output.clone()).or_default().insert(batch.0, rows.clone());
        if before.is_some_and(|before| before != rows) {
            self.world.note(format!("`{}`: batch {batch} was shown twice, with other rows", self.output));
        }
        self.step("after the commit of", batch)
    }

    async fn recover(&self, last_committed: Option<BatchId>) -> Result<()> {
        let last = last_committed.map_or(0, |batch| batch.0);
        let shown = self.world.shown.lock();
        let newest = shown.get(&self.output).and_then(|batches| batches.keys().next_back().copied()).unwrap_or(0);
        drop(shown);
        if newest > last {
            self.world.note(format!("`{}`: batch {newest} was shown and not committed", self.output));
        }
        self.world.staged.lock().retain(|(output, batch, _), _| *output != self.output || *batch <= last);
        Ok(())
    }
}
