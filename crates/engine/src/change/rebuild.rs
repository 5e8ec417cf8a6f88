//! A state computed anew: what the inputs still have, through the plan of now.
//!
//! ```text
//! oldest record that is kept … first batch that is kept … last committed batch
//!        └ pieces of the size of a batch ┘└ the batches as they were cut ┘
//! ```
//!
//! All operators run, since one may read another; of the outputs only those that
//! read a rebuilt operator, and nothing of them is staged, shown or called.
//! Afterwards the rebuilt states are taken and the others come back from their
//! files. A record that is a dead letter stays out until that is run again
//! ([`PastLetters`]); one that the columns of now refuse, and batches took, is left
//! out and told as a letter. Invariant: nothing is written here but such letters.
//! Called at a start, before batches.

use super::{Changes, Rebuilt};
use crate::{
    batch::{Keep, Pipeline, of_plan},
    ingest::{LeftOut, PastLetters, REPLAYED, Reads},
    plan::{BatchRun, StreamInput},
};
use std::{collections::BTreeMap, sync::Arc};
use tidemill_core::{Batch, BatchId, Budget, Offset, OffsetRange, PartitionId, Position, Result, Timestamp};

/// Records of a piece of the time before the first kept batch.
const PIECE: u64 = 1 << 20;
/// And bytes.
const PIECE_BYTES: u64 = 64 << 20;

impl Pipeline {
    /// Computes the states that `changes` rebuilds; `outputs` are those that read them.
    pub(crate) async fn rebuild(&self, keep: &Keep, changes: &Changes, outputs: &[bool]) -> Result<Rebuilt> {
        for operator in self.states.all() {
            operator.restore(&[])?;
        }
        let batches = self.past_batches(keep).await?;
        tracing::info!(batches = batches.len(), "states are computed anew from what the inputs have kept");
        self.stand_at(None, BTreeMap::new(), BTreeMap::new());
        let mut watermarks = BTreeMap::new();
        let (dead, memory) = (keep.dead(), &self.config.memory);
        let letters = PastLetters::of(&dead, keep.replays(), &keep.past(), changes.version, memory)?;
        let mut left_out = LeftOut::default();
        for (batch, reads) in batches {
            let mut run = self.begin(&batch);
            run.again = Some(letters.seen(reads, &batch)?);
            let run = Arc::new(run);
            self.run_aside(&run, outputs).await?;
            left_out.add(std::mem::take(&mut *run.dead.lock()));
            for operator in self.states.all() {
                operator.delta(run.batch.id)?;
            }
            watermarks = run.watermarks_after();
            self.stand_at(Some((batch.id, batch.time)), watermarks.clone(), run.streams_after());
        }
        left_out.keep(&dead, &letters)?;
        self.tell(&left_out);
        let mut rebuilt = Rebuilt::default();
        for change in changes.rebuilt() {
            let Some(operator) = self.states.all().into_iter().find(|o| o.name() == change.name) else { continue };
            rebuilt.states.insert(change.name.clone(), operator.snapshot()?);
            if let Some(at) = watermarks.get(&change.name) {
                rebuilt.watermarks.insert(change.name.clone(), *at);
            }
        }
        Ok(rebuilt)
    }

    /// Says what a rebuild left out.
    fn tell(&self, left_out: &LeftOut) {
        let records: u64 = left_out.counts.values().sum();
        if records == 0 {
            return;
        }
        let kinds: Vec<String> = left_out.counts.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        tracing::warn!(
            records,
            reasons = kinds.join(", "),
            "a rebuild left out records that the columns of now refuse; `tidemill dead list` shows them"
        );
        self.board.update_program(|program| {
            program.refused += records;
            for (kind, count) in &left_out.counts {
                *program.letters.entry(kind).or_default() += count;
            }
        });
    }

    /// All that was read, as batches numbered from 1.
    async fn past_batches(&self, keep: &Keep) -> Result<Vec<(Batch, Reads)>> {
        let past = keep.past();
        let kept: Vec<Batch> = past.recent().cloned().collect();
        let first = kept.first().map_or(BatchId(1), |batch| batch.id);
        let before = BatchId(first.0.saturating_sub(1));
        // A ledger that reaches back to the first batch knows all; else what came before it is cut anew.
        let mut batches = Vec::new();
        if first.0 > 1 {
            let end = past.positions_at(before);
            let pieces = self.pieces(keep, &end).await?;
            batches.extend(pieces.into_iter().map(|batch| (batch, Reads::Sources(before))));
            batches.extend(self.replay_pieces(&end).into_iter().map(|batch| (batch, Reads::Letters(before))));
        }
        let count = i64::try_from(batches.len()).unwrap_or(i64::MAX);
        let began = kept.first().map_or(Timestamp(0), |batch| batch.time);
        for (at, (batch, _)) in (0..).zip(&mut batches) {
            batch.time = Timestamp(began.0 - count + at);
        }
        for mut batch in kept {
            for (stream, ranges) in &mut batch.ranges {
                let oldest = keep.oldest(stream);
                for range in ranges.iter_mut() {
                    let start = oldest.get(&range.partition).copied().unwrap_or_default();
                    range.start = range.start.max(start).min(range.end.max(range.start));
                }
                ranges.retain(|range| range.start < range.end);
            }
            let reads = Reads::Batch(batch.id);
            batches.push((batch, reads));
        }
        for (id, (batch, _)) in (1..).zip(&mut batches) {
            batch.id = BatchId(id);
        }
        Ok(batches)
    }

    /// The letters that were run again before `end`, in pieces.
    fn replay_pieces(&self, end: &BTreeMap<String, Position>) -> Vec<Batch> {
        let mut batches = Vec::new();
        for input in &self.inputs {
            let upto = end.get(&input.name).and_then(|position| position.get(&PartitionId::new(REPLAYED)));
            let (upto, mut at) = (upto.copied().unwrap_or_default(), None);
            while let Some(mut range) = input.replays(at).filter(|range| range.start < upto) {
                range.end = range.end.min(upto);
                at = Some(range.end);
                batches.push(Batch { ranges: [(input.name.clone(), vec![range])].into(), ..Batch::default() });
            }
        }
        batches
    }

    /// What the inputs have before `end`, in pieces.
    async fn pieces(&self, keep: &Keep, end: &BTreeMap<String, Position>) -> Result<Vec<Batch>> {
        let mut positions: BTreeMap<String, Position> =
            self.inputs.iter().map(|input| (input.name.clone(), keep.oldest(&input.name))).collect();
        let mut batches = Vec::new();
        loop {
            let mut batch = Batch::default();
            for input in &self.inputs {
                let position = positions.entry(input.name.clone()).or_default();
                let end = end.get(&input.name).cloned().unwrap_or_default();
                batch.ranges.insert(input.name.clone(), self.piece(input, position, &end).await?);
            }
            if batch.is_empty() {
                return Ok(batches);
            }
            for (stream, position) in &mut positions {
                batch.advance(stream, position);
            }
            batches.push(batch);
        }
    }

    async fn piece(&self, input: &StreamInput, position: &Position, end: &Position) -> Result<Vec<OffsetRange>> {
        let budget = Budget { records: PIECE, bytes: PIECE_BYTES, parallelism: self.outputs.len().max(2) };
        let ranges = input.source.plan(position, budget).await?;
        let cut = |mut range: OffsetRange| {
            let end = end.get(&range.partition).copied().unwrap_or(Offset(0));
            range.end = range.end.min(end);
            (range.start < range.end).then_some(range)
        };
        Ok(ranges.into_iter().filter_map(cut).collect())
    }

    /// Runs the plans of the chosen outputs and lets go of what they give.
    pub(crate) async fn run_aside(&self, run: &Arc<BatchRun>, outputs: &[bool]) -> Result<()> {
        use datafusion::physical_plan::{ExecutionPlanProperties, execution_plan::reset_plan_states};
        use futures::StreamExt;
        let task = self.task(run);
        let mut parts = tokio::task::JoinSet::new();
        for (output, _) in self.outputs.iter().zip(outputs).filter(|(_, chosen)| **chosen) {
            let plan = if output.resets {
                reset_plan_states(Arc::clone(&output.plan)).map_err(of_plan)?
            } else {
                Arc::clone(&output.plan)
            };
            for part in 0..plan.output_partitioning().partition_count() {
                let mut rows = plan.execute(part, Arc::clone(&task)).map_err(of_plan)?;
                parts.spawn(async move {
                    while let Some(rows) = rows.next().await {
                        rows?;
                    }
                    Ok(())
                });
            }
        }
        let mut ended = Ok(());
        while let Some(part) = parts.join_next().await {
            let part = part.map_err(|e| tidemill_core::Error::internal("a step panicked").because(e))?;
            ended = ended.and(part.map_err(of_plan));
        }
        let finished = run.finish().await.map_err(of_plan);
        ended.and(finished)
    }
}
