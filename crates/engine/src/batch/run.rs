//! A batch's life, top to bottom.
//!
//! ```text
//! ranges ─► ledger: planned ─► plan runs, state moves on, sinks stage
//!        ─► inputs durable ─► dead letters and state durable ─► ledger: committed   ← the commit point
//!        ─► sinks commit ─► views
//! ```
//!
//! Invariants: nothing of a batch can be seen outside before its commit point
//! (callbacks excepted, which get its number); everything after it can be
//! repeated. A crash before the commit point runs the batch again over the same
//! ranges; a crash after it repeats the sinks' idempotent commit.
//!
//! The commit of a batch overlaps the run of the next ones ([`super::committing`]),
//! since one waits for the disk and the other for the processor.

use super::{
    Keep,
    pipeline::{OutputPlan, Pipeline},
};
use crate::{
    emit::{BatchInfo, Emitted, OutputKind},
    plan::{BatchRun, Going, counted},
    sql::late_letters,
};
use arrow_array::RecordBatch;
use datafusion::{
    common::DataFusionError,
    execution::TaskContext,
    physical_plan::{ExecutionPlan, ExecutionPlanProperties, execution_plan::reset_plan_states},
};
use futures::{FutureExt, StreamExt, TryStreamExt};
use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering::Relaxed},
};
use tidemill_core::{Batch, BatchReport, Error, Result, Sink, Stage, ViewSnapshot, reason_kind};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

/// A batch that has run and waits for its commit.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) run: Arc<BatchRun>,
    pub(crate) emitted: Vec<(usize, Emitted)>,
    pub(crate) report: BatchReport,
    /// Rows of the states to be kept as this batch's version.
    pub(crate) kept: Vec<super::states::KeptState>,
}

impl Ran {
    /// Bytes that it holds until it is committed.
    pub(super) fn bytes(&self) -> usize {
        let rows = |emitted: &Emitted| match emitted {
            Emitted::Rows(rows) => rows.iter().map(RecordBatch::get_array_memory_size).sum(),
            Emitted::Staged(_) | Emitted::Nothing => 0,
        };
        let emitted: usize = self.emitted.iter().map(|(_, emitted)| rows(emitted)).sum();
        emitted + self.kept.iter().map(super::states::KeptState::bytes).sum::<usize>()
    }
}

impl Pipeline {
    /// Runs the plans over a planned batch and stages what they give.
    pub(crate) async fn run_batch(&self, batch: &Batch) -> Result<(Arc<BatchRun>, Vec<(usize, Emitted)>)> {
        let run = Arc::new(self.begin(batch));
        let task = self.task(&run);
        // All outputs but one in tasks of their own, as with partitions in `emit`. A callback may block, and a stop
        // does not wait for it: it is never that one.
        let (mut first, mut outputs) = (None, JoinSet::new());
        let parts = TaskTracker::new();
        for (index, output) in self.outputs.iter().enumerate() {
            let plan = if output.resets {
                reset_plan_states(Arc::clone(&output.plan)).map_err(of_plan)?
            } else {
                Arc::clone(&output.plan)
            };
            let (output, task, batch, run) = (output.clone(), Arc::clone(&task), batch.clone(), Arc::clone(&run));
            let parts = parts.clone();
            let clock = Arc::clone(&self.config.clock);
            let emitting = async move {
                let stage = if matches!(output.kind, OutputKind::Sink(_)) { Stage::Stage } else { Stage::Output };
                let going = Going::begin(&*clock, stage, Some(&output.name));
                let done = emit(&output, (plan, &run), task, &batch, &parts).await;
                run.stages.add(going.end(&done));
                done.map(|emitted| (index, emitted))
            };
            if first.is_none() && matches!(self.outputs[index].kind, OutputKind::View { .. }) {
                first = Some(emitting);
            } else {
                outputs.spawn(emitting);
            }
        }
        let emitted = gather(first, &mut outputs).await;
        // Nothing of this run may go on beside a restore, or beside the next batch: nor a part that
        // was told to end and still writes, when the same file is written again.
        outputs.shutdown().await;
        parts.close();
        parts.wait().await;
        let ended = run.finish().await;
        let mut emitted = emitted?;
        ended.map_err(of_plan)?;
        emitted.sort_by_key(|(index, _)| *index);
        Ok((run, emitted))
    }

    /// Makes a batch final, then visible.
    pub(crate) async fn commit(&self, ran: Ran) -> Result<()> {
        let Ran { run, emitted, mut report, kept } = ran;
        let (batch, clock) = (&run.batch, &*self.config.clock);
        let (mut staged, mut written) = (BTreeMap::new(), BTreeMap::new());
        for (index, emitted) in &emitted {
            let output = &self.outputs[*index];
            let (Emitted::Staged(parts), OutputKind::Sink(sink)) = (emitted, &output.kind) else { continue };
            staged.insert(output.name.clone(), parts.clone());
            // The commit of the batch before has ended, so this is where the topic ends.
            let ranges = sink.written(parts)?;
            if let Some(topic) = sink.topic().filter(|_| !ranges.is_empty()) {
                written.insert(topic.to_string(), ranges);
            }
        }
        let mut dead = std::mem::take(&mut *run.dead.lock());
        // Each output that reads a stream refuses the same records, of several reasons perhaps another one.
        dead.sort_by(|a, b| {
            (&a.stream, &a.partition, a.offset, &a.reason).cmp(&(&b.stream, &b.partition, b.offset, &b.reason))
        });
        dead.dedup_by(|a, b| (&a.stream, &a.partition, a.offset) == (&b.stream, &b.partition, b.offset));
        self.watch_dead(&run, &dead)?;
        report.refused = dead.len() as u64;
        let late = run.late.load(Relaxed);
        report.late = late + run.late_aside.load(Relaxed);
        dead.extend(late_letters(&run, late));
        for letter in &dead {
            *report.letters.entry(reason_kind(&letter.reason)).or_default() += 1;
        }
        self.tell_of(&mut report, &run, &dead);
        let _passing = self.keep.as_ref().map(Keep::pass_gate).transpose()?;
        if let Some(keep) = &self.keep {
            let going = Going::begin(clock, Stage::Commit, None);
            let (marks, streams) = (run.watermarks_after(), run.streams_after());
            let commit = || keep.commit(batch, &kept, (&marks, &streams), (&staged, &written), &dead, &going);
            let done = self.persist(|| going.attempt(async { commit() })).await;
            run.stages.add(going.end(&done));
            done?;
        }
        for (index, emitted) in emitted {
            let output = &self.outputs[index];
            match (emitted, &output.kind) {
                (Emitted::Staged(parts), OutputKind::Sink(sink)) => {
                    let going = Going::begin(clock, Stage::Show, Some(&output.name));
                    let done = self.persist(|| going.attempt(sink.commit(batch.id, &parts))).await;
                    run.stages.add(going.end(&done));
                    done?;
                }
                (Emitted::Rows(rows), OutputKind::View { sticky }) => {
                    if let Some(rows) = view_rows(output, &rows, *sticky)? {
                        let name = output.name.clone();
                        self.board.publish_view(ViewSnapshot { name, batch: batch.id, time: batch.time, rows });
                    }
                }
                (Emitted::Rows(rows), OutputKind::Kept(call)) => {
                    call(&BatchInfo { id: batch.id, time: batch.time }, &rows)?;
                }
                _ => {}
            }
        }
        for input in &self.inputs {
            input.source.committed(batch);
        }
        self.states.all().iter().for_each(|state| state.committed(batch.id));
        report.records_in = run.records_in.load(Relaxed);
        (report.state_bytes, report.state_spilled) = (self.config.memory.used(), self.config.memory.spilled());
        self.tell_of_records(&run);
        self.tell_stages(&mut report, &run);
        self.board.publish_batch(report);
        Ok(())
    }
}

/// What all outputs give; the first error otherwise.
async fn gather(
    first: Option<impl Future<Output = Result<(usize, Emitted)>>>,
    outputs: &mut JoinSet<Result<(usize, Emitted)>>,
) -> Result<Vec<(usize, Emitted)>> {
    let mut emitted = Vec::with_capacity(outputs.len() + 1);
    if let Some(first) = first {
        let done = AssertUnwindSafe(first).catch_unwind().await;
        emitted.push(done.map_err(|_| Error::internal("an output panicked"))??);
    }
    while let Some(done) = outputs.join_next().await {
        emitted.push(done.map_err(|e| Error::internal("an output panicked").because(e))??);
    }
    Ok(emitted)
}

/// Runs one output's plan, all partitions together, in tasks that `tracker` knows: they may outlive this for a moment.
async fn emit(
    output: &OutputPlan,
    (plan, run): (Arc<dyn ExecutionPlan>, &Arc<BatchRun>),
    task: Arc<TaskContext>,
    batch: &Batch,
    tracker: &TaskTracker,
) -> Result<Emitted> {
    let rows_of = |part, task| {
        let rows = plan.execute(part, task).map_err(of_plan)?;
        Ok::<_, Error>(counted(Some(&output.step), true, rows, run))
    };
    let partitions = plan.output_partitioning().partition_count();
    if let OutputKind::Sink(sink) = &output.kind {
        let mut parts = JoinSet::new();
        for part in 0..partitions {
            let rows = rows_of(part, Arc::clone(&task))?;
            let (sink, id, time): (Arc<dyn Sink>, _, _) = (Arc::clone(sink), batch.id, batch.time);
            parts.spawn(tracker.track_future(async move {
                let staged = sink.stage(id, time, part, rows.map_err(of_plan).boxed()).await?;
                Ok::<_, Error>(staged.map(|staged| (part, staged)))
            }));
        }
        let mut staged = Vec::new();
        while let Some(done) = parts.join_next().await {
            staged.extend(done.map_err(|e| Error::internal("a sink panicked").because(e))??);
        }
        staged.sort_by_key(|(part, _)| *part);
        return Ok(Emitted::Staged(staged.into_iter().map(|(_, staged)| staged).collect()));
    }
    // A small batch has its rows in one partition: the first runs here, and no thread is woken. A large one would
    // keep this thread so busy that a task that waits for it is not seen by another: then each has a task.
    let own = size_of(batch) < MUCH;
    let mut parts = JoinSet::new();
    for part in usize::from(own)..partitions {
        let rows = rows_of(part, Arc::clone(&task))?;
        let collecting = async move { rows.try_collect::<Vec<RecordBatch>>().await.map(|rows| (part, rows)) };
        parts.spawn(tracker.track_future(collecting));
    }
    let mut collected = Vec::with_capacity(partitions);
    if own && partitions > 0 {
        let rows = rows_of(0, task)?;
        collected.push((0, rows.try_collect::<Vec<RecordBatch>>().await.map_err(of_plan)?));
    }
    while let Some(done) = parts.join_next().await {
        collected.push(done.map_err(|e| Error::internal("a step panicked").because(e))?.map_err(of_plan)?);
    }
    collected.sort_by_key(|(part, _)| *part);
    let rows: Vec<RecordBatch> =
        collected.into_iter().flat_map(|(_, rows)| rows).filter(|r| r.num_rows() > 0).collect();
    match &output.kind {
        OutputKind::Call(call) => {
            call(&BatchInfo { id: batch.id, time: batch.time }, &rows)?;
            Ok(Emitted::Nothing)
        }
        _ => Ok(Emitted::Rows(rows)),
    }
}

/// Records or bytes, as the inputs count, that are worth the wake of a thread.
const MUCH: u64 = 16 * 1024;

/// What the batch reads, as its inputs count.
fn size_of(batch: &Batch) -> u64 {
    let ranges = batch.ranges.values().flatten();
    ranges.fold(0, |sum, range| sum.saturating_add(range.end.0.saturating_sub(range.start.0)))
}

/// A view's rows as one batch; `None` to leave what is shown.
fn view_rows(output: &OutputPlan, rows: &[RecordBatch], sticky: bool) -> Result<Option<RecordBatch>> {
    if rows.is_empty() && sticky {
        return Ok(None);
    }
    arrow_select::concat::concat_batches(&output.plan.schema(), rows)
        .map(Some)
        .map_err(|e| Error::internal(format!("rows of view `{}`", output.name)).because(e))
}

/// Finds our own error inside DataFusion's, which wraps it on the way up.
pub(crate) fn of_plan(error: DataFusionError) -> Error {
    let mut text = None;
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(cause) = next {
        if let Some(ours) = cause.downcast_ref::<Error>() {
            let same = match ours.blame() {
                tidemill_core::Blame::User => Error::user(ours.chain()),
                tidemill_core::Blame::External => Error::external(ours.chain()),
                tidemill_core::Blame::Internal => Error::internal(ours.chain()),
            };
            text = Some(if ours.is_retryable() { same } else { same.fatal() });
            break;
        }
        next = cause.source();
    }
    text.unwrap_or_else(|| {
        let what = "a query failed on a record of this batch, of which nothing was kept; mend it, such as by \
                    NULLIF(x, 0) or TRY_CAST(x AS BIGINT), and start again: the batch is run anew";
        Error::user(what).because(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::external;

    #[test]
    fn our_own_error_is_found_inside_wrappers() {
        let inner = Error::user("line 3 of posts.json is broken");
        let wrapped =
            DataFusionError::Shared(Arc::new(DataFusionError::Context("reading".into(), Box::new(external(inner)))));
        assert_eq!(of_plan(wrapped).to_string(), "line 3 of posts.json is broken");
    }
}
