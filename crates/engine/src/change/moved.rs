//! Outputs that write elsewhere than the last program's under their name did.
//!
//! Invariant: what an output wrote stays where it is, and nobody looks for it in
//! the new place; that is shown, and needs consent. Nothing of it is left half done:
//! an output whose last batch is perhaps not whole does not move, but for one that
//! sends at least once: what it kept aside goes to the new place. Another format in the same
//! place is no move: what was staged there is still made whole. Reads what the
//! ledger knows and writes nothing. Called by [`super::compare()`], and by the
//! start, before it repeats the last commit.

use super::OutputChange;
use crate::{batch::OutputPlan, emit::OutputKind};
use tidemill_core::{Error, Guarantee, Result, Sink};
use tidemill_store::{
    Past,
    ledger::{OutputEntry, ProgramEntry},
};

/// Where an output writes to, without how: `files out` of `files out (json)`.
fn place(what: &str) -> &str {
    what.strip_suffix(')').and_then(|text| text.rsplit_once(" (")).map_or(what, |(place, _)| place)
}

/// What `output` was in `before`, when it wrote elsewhere.
fn elsewhere<'a>(before: &'a ProgramEntry, output: &OutputPlan) -> Option<&'a OutputEntry> {
    let OutputKind::Sink(sink) = &output.kind else { return None };
    let old = before.outputs.iter().find(|old| old.name == output.name)?;
    (place(&old.what) != place(&sink.describe())).then_some(old)
}

/// What it is that writes: `webhook` of `webhook example.org (array)`.
fn kind(what: &str) -> &str {
    what.split(' ').next().unwrap_or(what)
}

/// Whether what an output kept aside for the last batch goes to its new place: one that sends at least once is moved
/// since its server has moved, and has nothing in the old place that would be made whole there.
fn sends_on(old: &OutputEntry, sink: &dyn Sink) -> bool {
    sink.guarantee() == Guarantee::AtLeastOnce && kind(&old.what) == kind(&sink.describe())
}

/// The outputs that have moved since the last committed batch: what that one staged is not theirs.
pub(crate) fn moved(past: &Past, outputs: &[OutputPlan]) -> Vec<String> {
    let Some(last) = past.last() else { return Vec::new() };
    let before = past.program_at(last.batch);
    let has_moved = |output: &&OutputPlan| {
        let OutputKind::Sink(sink) = &output.kind else { return false };
        elsewhere(&before, output).is_some_and(|old| past.is_shown() || !sends_on(old, &**sink))
    };
    outputs.iter().filter(has_moved).map(|output| output.name.clone()).collect()
}

/// What is to be said of outputs that the program moves. A copy of another program must move them.
///
/// # Errors
/// When the last batch of one is perhaps not whole in the place that it is to leave.
pub(super) fn moved_outputs(past: &Past, outputs: &[OutputPlan]) -> Result<Vec<OutputChange>> {
    let (Some(last), false) = (past.last(), past.is_forked()) else { return Ok(Vec::new()) };
    let (before, mut changes) = (past.program(), Vec::new());
    for output in outputs {
        let (Some(old), OutputKind::Sink(sink)) = (elsewhere(&before, output), &output.kind) else { continue };
        let once = sink.guarantee() == Guarantee::ExactlyOnce;
        let sends_on = sends_on(old, &**sink);
        if !sends_on && last.staged.get(&output.name).is_some_and(|parts| !parts.is_empty()) && !past.is_shown() {
            return Err(Error::user(format!(
                "output `{}` is to write to {} from now on, and the program ended, such as by a crash, before it was known \
                 that batch {} is whole in {}: start the program once more as it was, until that batch is, and then let the \
                 output move",
                output.name,
                sink.describe(),
                last.batch,
                old.what
            )));
        }
        let why = format!("wrote to {} so far: what it wrote stays there, and is not written again", old.what);
        changes.push(OutputChange { name: output.name.clone(), what: sink.describe(), why, free: !once });
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::RecordBatch;
    use futures::stream::BoxStream;
    use tidemill_core::{BatchId, StagedPart, Timestamp};

    #[derive(Debug)]
    struct Sends(&'static str, Guarantee);

    #[async_trait::async_trait]
    impl Sink for Sends {
        fn describe(&self) -> String {
            self.0.to_string()
        }
        fn guarantee(&self) -> Guarantee {
            self.1
        }
        async fn stage(
            &self,
            _batch: BatchId,
            _time: Timestamp,
            _part: usize,
            _rows: BoxStream<'_, Result<RecordBatch>>,
        ) -> Result<Option<StagedPart>> {
            Ok(None)
        }
        async fn commit(&self, _batch: BatchId, _parts: &[StagedPart]) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_kept_aside_goes_on_to_the_new_place_of_the_same_kind_that_sends_at_least_once() {
        use Guarantee::{AtLeastOnce, ExactlyOnce};
        for (before, now, guarantee, goes) in [
            ("webhook a.example (array)", "webhook b.example (array)", AtLeastOnce, true),
            ("webhook a.example (array)", "webhook at the address in variable HOOK (row)", AtLeastOnce, true),
            ("files out (json)", "files elsewhere (json)", ExactlyOnce, false),
            ("files out (json)", "webhook a.example (array)", AtLeastOnce, false),
        ] {
            let old = OutputEntry { name: "out".to_string(), what: before.to_string(), topic: None, undoes: None };
            assert_eq!(sends_on(&old, &Sends(now, guarantee)), goes, "{before} to {now}");
        }
    }

    #[test]
    fn a_place_is_what_stands_before_how() {
        for (what, at) in [
            ("files out (json)", "files out"),
            ("files out (2) (csv, partitioned)", "files out (2)"),
            ("topic loud", "topic loud"),
            ("console", "console"),
        ] {
            assert_eq!(place(what), at);
        }
    }
}
