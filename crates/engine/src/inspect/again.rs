//! One batch run again, or a state's first rows, within the process that runs the program.
//!
//! ```text
//! running program ─► its text ─► a context beside it ─► files frozen after a commit ─► the batch, once ─► Rerun
//!                                                                ledger: the text of then, if another ─► compared with
//! ```
//!
//! Invariant: as [`super`] has it, and in bounds ([`Bounds::BESIDE`]): one thread,
//! some seconds, the first rows. A state that is large is not held a second
//! time. Called by the page's server, one at a time, on a thread that may block.

use super::{Bounds, Replayed, StateChange, bounds::Taken, look};
use crate::{StreamingContext, config::Config};
use arrow_array::RecordBatch;
use std::collections::BTreeSet;
use tidemill_core::{
    BatchId, Error, Inspect, Kept, LetterReport, ProgramThen, Rerun, RerunOutput, RerunState, Result, Sample,
};
use tidemill_store::Past;

/// Bytes that the states may take in memory, so that they are held a second time.
const STATES: u64 = 256 << 20;
/// Rows of a state that are shown.
const ROWS: usize = 100;

impl Inspect for StreamingContext {
    fn run_again(&self, batch: BatchId) -> Result<Rerun> {
        self.must_be_small(&format!("`tidemill replay-batch {batch}` runs it in a process of its own"))?;
        if !self.config.disk.is_shared() || self.config.data_dir.is_none() {
            return Err(Error::user(
                "a batch is run again over what a data directory keeps, and this program has none",
            ));
        }
        let begun = self.config.clock.now();
        let text = self.sql.text().ok_or_else(in_rust)?;
        let now = self.beside(&text, true)?.replay_within(batch, &Bounds::BESIDE)?;
        let (program, then) = match now.text.clone() {
            None => (ProgramThen::Unknown, None),
            Some(then) if then == text => (ProgramThen::Same, None),
            // What it gave then is what the program of then gives.
            Some(then) => {
                let ran = self.beside(&then, false).and_then(|then| then.replay_within(batch, &Bounds::BESIDE));
                (ProgramThen::Other, Some(ran))
            }
        };
        let took = self.config.clock.now().since(begun);
        let mut rerun = told(now, then.as_ref());
        rerun.program = program;
        rerun.took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        Ok(rerun)
    }

    fn state(&self, operator: &str) -> Result<Option<Sample>> {
        let Some(data) = &self.config.data_dir else { return Ok(None) };
        let (disk, root) = (&self.config.disk, data.join("programs").join(self.name()));
        let Some(past) = Past::read(&**disk, &root.join("ledger"))? else { return Ok(None) };
        let entries = past.program().operators;
        let Some(entry) = entries.iter().find(|entry| entry.name == operator) else { return Ok(None) };
        self.must_be_small(&format!("`tidemill sql -e 'SELECT * FROM state.\"{operator}\" LIMIT 100'` reads it"))?;
        let operators = self.operators();
        let like = operators.iter().find(|like| like.name() == operator);
        let state = look::rows_at(disk, &root.join("state"), entry, past.version(), like)?;
        let mut taken = Taken::default();
        state.rows.into_iter().for_each(|rows| taken.take(rows, ROWS));
        if taken.rows.is_empty() {
            // The columns are an answer, too.
            taken.rows.push(RecordBatch::new_empty(state.schema));
        }
        Ok(Some(sample(operator, taken)))
    }
}

impl StreamingContext {
    /// Whether there is room for the states a second time.
    fn must_be_small(&self, instead: &str) -> Result<()> {
        let (used, spilled) = (self.config.memory.used(), self.config.memory.spilled());
        if used <= STATES && spilled == 0 {
            return Ok(());
        }
        let more = if spilled > 0 { format!(", and {spilled} of their keys are on disk") } else { String::new() };
        Err(Error::user(format!(
            "the states take {} MiB{more}: too much to be held a second time beside the running program; {instead}",
            used >> 20
        )))
    }

    /// A context of the same settings with the program `text`, which can only be looked at.
    fn beside(&self, text: &str, is_now: bool) -> Result<Self> {
        let context = Self::of(Config { check: true, ..self.config.clone() });
        context.declare_sql(text).map_err(|error| if is_now { in_rust().because(error) } else { error })?;
        if is_now {
            let names = |context: &Self| -> Result<BTreeSet<String>> {
                Ok(context.declare.outputs()?.into_iter().map(|output| output.name).collect())
            };
            let running: BTreeSet<String> = self.started_outputs();
            if names(&context)? != running {
                return Err(in_rust());
            }
        }
        Ok(context)
    }

    /// The outputs of the program that was started.
    fn started_outputs(&self) -> BTreeSet<String> {
        let is_output = |node: &&tidemill_core::GraphNode| node.kind == tidemill_core::NodeKind::Output;
        self.board().graph().nodes.iter().filter(is_output).map(|node| node.name.clone()).collect()
    }
}

fn in_rust() -> Error {
    Error::user(
        "some of this program was declared in Rust, which the page can't declare a second time: only programs that \
         are all SQL can be run again from here; in Rust, `StreamingContext::replay_batch` does it",
    )
}

fn sample(name: &str, taken: Taken) -> Sample {
    Sample { name: name.to_string(), rows: taken.rows, total: taken.total }
}

/// Its first rows.
fn first(name: &str, rows: &[RecordBatch]) -> Sample {
    let mut taken = Taken::default();
    rows.iter().for_each(|rows| taken.take(rows.clone(), ROWS));
    sample(name, taken)
}

/// What is told of a run, beside that of the program of then where that is another one.
fn told(now: Replayed, then: Option<&Result<Replayed>>) -> Rerun {
    let mut written = now.written;
    let outputs = now.outputs.into_iter().map(|(name, rows)| {
        let total = now.given.get(&name).copied().unwrap_or_default();
        let mut output = RerunOutput { now: Sample { name: name.clone(), rows, total }, ..RerunOutput::default() };
        match (written.remove(&name), then) {
            (Some(Ok(taken)), _) => output.then = Some((Kept::Topic, sample(&name, taken))),
            (_, Some(Ok(then))) => match then.outputs.iter().find(|(known, _)| *known == name) {
                Some((_, rows)) => {
                    let total = then.given.get(&name).copied().unwrap_or_default();
                    output.then = Some((Kept::Program, Sample { name, rows: rows.clone(), total }));
                }
                None => output.why = Some("the program that ran it then had no such output".to_string()),
            },
            (Some(Err(why)), _) => output.why = Some(why),
            (None, Some(Err(error))) => {
                output.why = Some(format!("the program that ran it then can't be run again: {}", error.chain()));
            }
            (None, None) => {}
        }
        output
    });
    let outputs = outputs.collect();
    let inputs = now.inputs.into_iter().map(|(name, rows)| {
        let total = now.read.get(&name).copied().unwrap_or_default();
        Sample { name, rows, total }
    });
    Rerun {
        batch: now.batch.id,
        time: now.batch.time,
        inputs: inputs.collect(),
        operators: now.operators,
        plans: now.steps,
        outputs,
        states: now.states.into_iter().map(state).collect(),
        refused: now.refused.len() as u64,
        letters: LetterReport::first(&now.refused),
        ..Rerun::default()
    }
}

fn state(change: StateChange) -> RerunState {
    let StateChange { operator, before, after, note, differ } = change;
    RerunState {
        before: first(&operator, &before),
        after: first(&operator, &after),
        differ: differ.map(|(then, now)| (first(&operator, &then), first(&operator, &now))),
        operator,
        note,
    }
}
