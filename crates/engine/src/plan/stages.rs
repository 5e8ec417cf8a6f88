//! What went on in a batch's life, and when.
//!
//! Invariant: nothing here decides anything, and it is bounded however often
//! something is tried: tries are counted, the last error of them is kept, and it
//! is cut short. Filled by `batch::life` and `batch::run`, told with the batch.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use tidemill_core::{Clock, Error, Result, Stage, StageReport, Stretch, Timestamp};

/// Characters of an error that are kept.
const ERROR: usize = 1000;

/// The stages of a batch so far.
#[derive(Debug, Default)]
pub(crate) struct Stages(Mutex<Vec<StageReport>>);

impl Stages {
    /// Adds what has ended. What fails again and again is one stage.
    pub(crate) fn add(&self, ended: impl IntoIterator<Item = StageReport>) {
        let mut all = self.0.lock();
        for new in ended {
            match all.last_mut() {
                Some(last) if last.failed && new.failed && (last.stage, &last.of) == (new.stage, &new.of) => {
                    (last.at, last.error) = (last.at.with(new.at), new.error);
                    last.tries = last.tries.saturating_add(new.tries);
                }
                _ => all.push(new),
            }
        }
    }

    /// Adds something that went well, from then to then.
    pub(crate) fn went(&self, stage: Stage, at: Stretch) {
        self.add([StageReport { stage, of: None, at, tries: 1, error: None, failed: false }]);
    }

    /// What was added.
    pub(crate) fn told(&self) -> Vec<StageReport> {
        self.0.lock().clone()
    }
}

/// The words of an error, cut short.
pub(crate) fn words_of(error: &Error) -> String {
    error.chain().chars().take(ERROR).collect()
}

/// A stage that goes on.
#[derive(Debug)]
pub(crate) struct Going<'a> {
    clock: &'a dyn Clock,
    stage: Stage,
    of: Option<&'a str>,
    begun: Timestamp,
    tries: AtomicU32,
    /// Of the last try that failed.
    error: Mutex<Option<String>>,
    /// Since when the part goes on that is under way, and those before it.
    parts: Mutex<(Timestamp, Vec<StageReport>)>,
}

impl<'a> Going<'a> {
    /// From now on.
    pub(crate) fn begin(clock: &'a dyn Clock, stage: Stage, of: Option<&'a str>) -> Self {
        let begun = clock.now();
        let parts = Mutex::new((begun, Vec::new()));
        Self { clock, stage, of, begun, tries: AtomicU32::new(0), error: Mutex::default(), parts }
    }

    /// Tries once; the parts of a try before this one are forgotten.
    pub(crate) async fn attempt<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.tries.fetch_add(1, Relaxed);
        *self.parts.lock() = (self.clock.now(), Vec::new());
        let done = work.await;
        if let Err(error) = &done {
            *self.error.lock() = Some(words_of(error));
        }
        done
    }

    /// A part of it ends here; the next one begins.
    pub(crate) fn part(&self, stage: Stage) {
        let mut parts = self.parts.lock();
        let at = Stretch { begun: parts.0, ended: self.clock.now() };
        parts.0 = at.ended;
        parts.1.push(StageReport { stage, of: None, at, tries: 1, error: None, failed: false });
    }

    /// It has ended; with its parts after it.
    pub(crate) fn end<T>(self, done: &Result<T>) -> impl IntoIterator<Item = StageReport> + use<T> {
        let error = done.as_ref().err().map(words_of).or_else(|| self.error.lock().take());
        let whole = StageReport {
            stage: self.stage,
            of: self.of.map(str::to_string),
            at: Stretch { begun: self.begun, ended: self.clock.now() },
            tries: self.tries.load(Relaxed).max(1),
            error,
            failed: done.is_err(),
        };
        [whole].into_iter().chain(self.parts.into_inner().1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use tidemill_core::{Duration, ManualClock};

    #[test]
    fn a_stage_is_told_with_its_tries_its_parts_and_the_last_error() {
        let clock = ManualClock::at(Timestamp(10));
        let going = Going::begin(&clock, Stage::Commit, None);
        let work = |fails: bool| {
            clock.advance(Duration::from_micros(5));
            going.part(Stage::Inputs);
            clock.advance(Duration::from_micros(2));
            if fails { Err(Error::external("x".repeat(5000))) } else { Ok(()) }
        };
        assert!(block_on(going.attempt(async { work(true) })).is_err());
        let done = block_on(going.attempt(async { work(false) }));
        let stages = Stages::default();
        stages.add(going.end(&done));
        let told = stages.told();
        assert_eq!(told.len(), 2, "parts of a try that failed are not told: {told:?}");
        let at = |begun, ended| Stretch { begun: Timestamp(begun), ended: Timestamp(ended) };
        assert_eq!((told[0].stage, told[0].at, told[0].tries, told[0].failed), (Stage::Commit, at(10, 24), 2, false));
        assert_eq!(told[0].error.as_ref().map(String::len), Some(ERROR));
        assert_eq!((told[1].stage, told[1].at), (Stage::Inputs, at(17, 22)));
    }

    #[test]
    fn what_fails_again_and_again_is_one_stage() {
        let clock = ManualClock::at(Timestamp(0));
        let stages = Stages::default();
        for n in 0..50 {
            let going = Going::begin(&clock, Stage::Run, None);
            clock.advance(Duration::from_micros(1));
            stages.add(going.end::<()>(&Err(Error::external(format!("no {n}")))));
        }
        stages.add(Going::begin(&clock, Stage::Run, None).end(&Ok(())));
        let told = stages.told();
        assert_eq!(told.len(), 2);
        assert_eq!((told[0].tries, told[0].error.as_deref(), told[0].failed), (50, Some("no 49"), true));
        assert_eq!(told[0].at, Stretch { begun: Timestamp(0), ended: Timestamp(50) });
        assert_eq!((told[1].tries, &told[1].error, told[1].failed), (1, &None, false));
    }
}
