//! Outputs that write elsewhere than the last program's under their name did.
//!
//! Invariant: what an output wrote stays where it is, and nobody looks for it in
//! the new place; that is shown, and needs consent. Another format in the same
//! place is no move: what was staged there is still made whole. Reads what the
//! ledger knows and writes nothing. Called by [`super::compare()`], and by the
//! start, before it repeats the last commit.

use super::OutputChange;
use crate::{batch::OutputPlan, emit::OutputKind};
use tidemill_core::Guarantee;
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

/// The outputs that have moved since the last committed batch: what that one staged is not theirs.
pub(crate) fn moved(past: &Past, outputs: &[OutputPlan]) -> Vec<String> {
    let Some(last) = past.last() else { return Vec::new() };
    let before = past.program_at(last.batch);
    outputs.iter().filter(|output| elsewhere(&before, output).is_some()).map(|output| output.name.clone()).collect()
}

/// What is to be said of outputs that the program moves. A copy of another program must move them.
pub(super) fn moved_outputs(past: &Past, outputs: &[OutputPlan]) -> Vec<OutputChange> {
    let (Some(last), false) = (past.last(), past.is_forked()) else { return Vec::new() };
    let before = past.program();
    let change = |output: &OutputPlan| {
        let (old, OutputKind::Sink(sink)) = (elsewhere(&before, output)?, &output.kind) else { return None };
        let mut why = format!("wrote to {} so far: what it wrote stays there, and is not written again", old.what);
        let once = sink.guarantee() == Guarantee::ExactlyOnce;
        if once {
            why.push_str(&format!(
                "\nafter a crash, start it once more as it was: batch {} may not be whole there yet",
                last.batch
            ));
        }
        Some(OutputChange { name: output.name.clone(), what: sink.describe(), why, free: !once })
    };
    outputs.iter().filter_map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::place;

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
