//! A batch from its plan to the rows that wait for their commit, with what went on meanwhile.
//!
//! Invariant: a batch that ends the program is told with its error, once. Called
//! by the loop in [`super::pipeline`], and by [`super::committing`] when a commit fails.

use super::{clock::Tick, committing::Committing, pipeline::Pipeline, rate::Pid, run::Ran};
use crate::{
    batch::Trigger,
    plan::{Going, Stages, words_of},
};
use std::sync::{Arc, atomic::Ordering};
use tidemill_core::{Batch, BatchDetail, BatchReport, Duration, Error, Result, Stage};

impl Pipeline {
    /// Notes a batch, unless that is `repeated`, and runs it.
    pub(super) async fn live(
        &self,
        batch: &Batch,
        (tick, repeated): (&Tick, bool),
        committing: &mut Committing,
        pid: &mut Option<Pid>,
    ) -> Result<Ran> {
        let stages = Stages::default();
        if let Some(looked) = self.progress.lock().looked.take().filter(|_| !repeated) {
            stages.went(Stage::Ranges, looked);
        }
        let ran = self.noted_and_run(batch, (tick, repeated), (committing, pid), &stages).await;
        if let Err(error) = &ran {
            self.tell_failed(batch, &stages, error);
        }
        ran
    }

    async fn noted_and_run(
        &self,
        batch: &Batch,
        (tick, repeated): (&Tick, bool),
        (committing, pid): (&mut Committing, &mut Option<Pid>),
        stages: &Stages,
    ) -> Result<Ran> {
        let clock = &*self.config.clock;
        if let (Some(keep), false) = (&self.keep, repeated) {
            let going = Going::begin(clock, Stage::Plan, None);
            let noted = self.persist(|| {
                going.attempt(async { if self.early { keep.plan_durably(batch) } else { keep.plan(batch) } })
            });
            let noted = noted.await;
            stages.add(going.end(&noted));
            noted?;
        }
        let begun = clock.now();
        let (run, emitted) = self.run_until_done(batch, committing, stages).await?;
        let ended = clock.now();
        self.advance(batch, &run);
        let report = BatchReport {
            batch: batch.id,
            time: batch.time,
            scheduling_delay_us: micros(begun.since(tick.due)),
            processing_us: micros(ended.since(begun)),
            queued: tick.queued,
            rate_limit: self.progress.lock().rate,
            rows_out: emitted.iter().map(|(_, e)| e.rows()).sum(),
            ..BatchReport::default()
        };
        if let (Some(pid), Trigger::Every(interval)) = (pid, self.config.trigger) {
            let records = run.records_in.load(Ordering::Relaxed);
            let bound = pid.update(ended, records, ended.since(begun), begun.since(tick.due), interval);
            if let Some(bound) = bound {
                self.progress.lock().rate = Some(bound);
            }
        }
        // States are read between two batches: the commit overlaps the next one, which moves them on.
        let kept = match &self.keep {
            Some(keep) => {
                let going = Going::begin(clock, Stage::Gather, None);
                let kept = keep.gather(batch.id, &self.states);
                stages.add(going.end(&kept));
                kept?
            }
            None => Vec::new(),
        };
        run.stages.add(stages.told());
        Ok(Ran { run, emitted, report, kept })
    }

    /// Tells of a batch that ends the program.
    pub(super) fn tell_failed(&self, batch: &Batch, stages: &Stages, error: &Error) {
        let mut detail = BatchDetail { stages: stages.told(), error: Some(words_of(error)), ..BatchDetail::default() };
        for (stream, ranges) in &batch.ranges {
            detail.take_ranges(stream, ranges);
        }
        let (batch, time) = (batch.id, batch.time);
        self.board.publish_failed(BatchReport { batch, time, detail: Arc::new(detail), ..BatchReport::default() });
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
