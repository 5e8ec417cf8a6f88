//! What the ledger remembers of the past: commits, programs, what was taken back.
//!
//! ```text
//! program a        program b                       program b again
//! 1 ─► 2 ─► … ─► 17 ─► 18 ─► … ─► 40      rewound to 17:  1 ─► … ─► 17 ─► 41 ─► …
//! ```
//!
//! A batch number is never used twice: after a rewind from 40 to 17 the next
//! batch is 41, so whoever has seen batch 18 can't take another for it.
//!
//! Invariant: `commits` and `recent` of the checkpoint name the same batches,
//! as far as commits are known, and none that was undone. A program in `before`
//! was in force for the batches up to its `until` and after that of the one
//! before it. Called by [`super::Ledger`] alone.

use super::{Checkpoint, Committed, Filled, OperatorEntry};
use crate::ipc;
use arrow_schema::SchemaRef;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use tidemill_core::{BatchId, Error, Result, StreamName, Timestamp};

#[cfg(test)]
mod tests;

/// An output of the program that wrote the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputEntry {
    /// Its name.
    pub name: String,
    /// What it writes to, for people and to be compared: `files out (json)`.
    pub what: String,
    /// The topic of the program's own log that it fills, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// What it does about batches that were undone, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undoes: Option<String>,
}

/// A program, as the ledger keeps it: what state it has, and where it writes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProgramEntry {
    /// Its stateful operators.
    pub operators: Vec<OperatorEntry>,
    /// Its outputs that write outside of the program.
    #[serde(default)]
    pub outputs: Vec<OutputEntry>,
    /// Its text, when it was declared as SQL alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// A program that was in force before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerProgram {
    /// The last batch that was committed under it.
    pub until: BatchId,
    /// What it was.
    pub program: ProgramEntry,
}

/// Batches that were undone, and whose output is still to be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undone {
    /// The batch that the program went back to; 0 is the beginning.
    pub to: BatchId,
    /// The last batch that was undone.
    pub upto: BatchId,
    /// Whether the rows that they wrote to topics are to stay.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps_topics: bool,
}

/// Sets a program, as a record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SetProgram {
    pub(super) program: ProgramEntry,
    /// Watermarks that its operators have from now on, where they changed.
    #[serde(default)]
    pub(super) watermarks: BTreeMap<String, Timestamp>,
    /// Topics that were made anew: nothing of what was in them is vouched for any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) anew: Vec<String>,
}

/// The part of a checkpoint that is about the past.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct History {
    /// Commits of the batches in `recent`, oldest first; those of a ledger that kept none are missing.
    #[serde(default)]
    pub(super) commits: VecDeque<Committed>,
    #[serde(default)]
    pub(super) outputs: Vec<OutputEntry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<String>,
    /// Programs that were in force, the oldest first.
    #[serde(default)]
    pub(super) before: Vec<FormerProgram>,
    #[serde(default)]
    pub(super) undone: Vec<Undone>,
    /// Whether this is a copy of another directory's, and was not started yet.
    #[serde(default)]
    pub(super) forked: bool,
    /// The topics that the program fills.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) filled: BTreeMap<String, Filled>,
    /// The first batch that says where its rows lie in topics; 0 in a ledger that began so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) tells_since: Option<BatchId>,
    /// All batches that were ever undone: after the first of each pair, up to the second.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) gone: Vec<(BatchId, BatchId)>,
    /// The last batch, when outputs are known to have made it whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) shown: Option<BatchId>,
}

impl Checkpoint {
    /// As read: version 1 kept one commit only.
    pub(super) fn of_any_version(mut self) -> Self {
        let newest = self.recent.back().map(|batch| batch.id);
        if let (true, Some(last)) = (self.history.commits.is_empty(), &self.last)
            && newest == Some(last.batch)
        {
            self.history.commits.push_back(last.clone());
        }
        self
    }

    /// The program in force.
    pub(super) fn program(&self) -> ProgramEntry {
        ProgramEntry {
            operators: self.operators.clone(),
            outputs: self.history.outputs.clone(),
            text: self.history.text.clone(),
        }
    }

    fn put(&mut self, program: ProgramEntry) {
        self.operators = program.operators;
        self.history.outputs = program.outputs;
        self.history.text = program.text;
    }

    pub(super) fn set_program(&mut self, set: SetProgram) {
        if let Some(last) = &self.last {
            let until = last.batch;
            // Two changes without a batch between them: the first was never in force.
            if self.history.before.last().is_none_or(|former| former.until < until) {
                self.history.before.push(FormerProgram { until, program: self.program() });
            }
        }
        self.put(set.program);
        for topic in &set.anew {
            // From here on its rows are known again, of no batch before.
            let since = BatchId(self.last.as_ref().map_or(0, |last| last.batch.0 + 1));
            self.history.filled.insert(topic.clone(), Filled { since, ..Filled::default() });
        }
        if let Some(last) = &mut self.last {
            last.watermarks.extend(set.watermarks.clone());
            if let Some(kept) = self.history.commits.back_mut().filter(|kept| kept.batch == last.batch) {
                kept.watermarks.extend(set.watermarks);
            }
        }
    }

    /// The program that was in force when `batch` was committed.
    pub(super) fn program_at(&self, batch: BatchId) -> ProgramEntry {
        let former = self.history.before.iter().find(|former| former.until >= batch);
        former.map_or_else(|| self.program(), |former| former.program.clone())
    }

    /// Why the program can't go back to `to`; `None` when it can.
    pub(super) fn may_rewind(&self, to: BatchId) -> Option<String> {
        if to.0 == 0 {
            return None;
        }
        if !self.recent.iter().any(|batch| batch.id == to) {
            let kept = match (self.recent.front(), self.recent.back()) {
                (Some(first), Some(last)) => format!("batches {} to {} are", first.id, last.id),
                _ => "no batch is".to_owned(),
            };
            return Some(format!("batch {to} is not kept: {kept}"));
        }
        if !self.history.commits.iter().any(|commit| commit.batch == to) {
            return Some(format!("batch {to} was committed by a version that kept no watermarks of the past"));
        }
        None
    }

    /// Goes back to batch `to`; batches up to `upto` are undone.
    pub(super) fn rewind(&mut self, undone: Undone) -> Result<(), String> {
        if let Some(why) = self.may_rewind(undone.to) {
            return Err(why);
        }
        let Undone { to, upto, keeps_topics } = undone;
        // Without a commit that is left, only the numbers are known to be used.
        let last = self.last.get_or_insert_with(Committed::default);
        let of = self.history.commits.iter().find(|c| c.batch == to);
        let (watermarks, streams) = of.map(|c| (c.watermarks.clone(), c.streams.clone())).unwrap_or_default();
        *last = Committed { batch: upto.max(last.batch), time: last.time, watermarks, streams, ..Committed::default() };
        if to.0 == 0 {
            self.positions.clear();
            self.put(ProgramEntry::default());
            self.history.before.clear();
            self.unfill_all();
        } else {
            while let Some(batch) = self.recent.pop_back_if(|batch| batch.id > to) {
                for (stream, ranges) in &batch.ranges {
                    let position = self.positions.entry(stream.clone()).or_default();
                    for range in ranges.iter().rev() {
                        position.insert(range.partition.clone(), range.start);
                    }
                }
            }
            let undone = self.history.commits.iter().rev().take_while(|commit| commit.batch > to);
            let written: Vec<_> = undone.map(|commit| commit.written.clone()).collect();
            written.iter().for_each(|written| self.unfill(written));
            let program = self.program_at(to);
            self.put(program);
            self.history.before.retain(|former| former.until < to);
        }
        if keeps_topics {
            // Also those that an earlier rewind was to cut off: from now on they are as good as another's.
            self.keep_rows();
        }
        self.recent.retain(|batch| batch.id <= to);
        self.history.commits.retain(|commit| commit.batch <= to);
        self.planned = None;
        let upto = upto.max(self.last.as_ref().map_or(upto, |l| l.batch));
        for filled in self.history.filled.values_mut().filter(|filled| filled.since.0 > to.0 + 1) {
            // Of some of those batches it is not known where their rows lie: begun again with the next.
            *filled = Filled { since: BatchId(upto.0 + 1), ..Filled::default() };
        }
        self.history.undone.push(Undone { to, upto, keeps_topics });
        // Those that it covers go into it: `to` was not undone, so none reaches over it.
        self.history.gone.retain(|(gone, _)| *gone < to);
        if upto > to {
            self.history.gone.push((to, upto));
        }
        Ok(())
    }

    /// Forgets batches before `from`, and programs that none of the others was run by.
    pub(super) fn forget_before(&mut self, from: BatchId) {
        while self.recent.len() > 1 && self.recent.front().is_some_and(|batch| batch.id < from) {
            self.recent.pop_front();
        }
        let first = self.recent.front().map_or(from, |batch| batch.id);
        while self.history.commits.front().is_some_and(|commit| commit.batch < first) {
            self.history.commits.pop_front();
        }
        self.history.before.retain(|former| former.until >= first);
    }

    /// Outputs took back what was undone.
    pub(super) fn taken_back(&mut self) {
        self.history.undone.clear();
        self.history.forked = false;
        self.keep_rows();
    }

    /// Outputs have made the last batch whole.
    pub(super) fn set_shown(&mut self, batch: BatchId) -> Result<(), String> {
        if self.last.as_ref().is_none_or(|last| last.batch != batch) {
            return Err(format!("batch {batch} is said to be whole, and is not the last one"));
        }
        self.history.shown = Some(batch);
        Ok(())
    }

    /// Whether nothing of the last batch has to be repeated to outputs.
    pub(super) fn is_shown(&self) -> bool {
        self.last.as_ref().is_none_or(|last| last.staged.is_empty() || self.history.shown == Some(last.batch))
    }

    /// The version of the states: that of the newest batch which was not undone; 0 is none.
    pub(super) fn version(&self) -> BatchId {
        self.recent.back().map_or(BatchId(0), |batch| batch.id)
    }

    /// How far each stream had been read when `batch` was committed, if it is kept.
    pub(super) fn positions_at(&self, batch: BatchId) -> BTreeMap<StreamName, tidemill_core::Position> {
        let mut positions = self.positions.clone();
        for later in self.recent.iter().rev().take_while(|later| later.id > batch) {
            for (stream, ranges) in &later.ranges {
                let position = positions.entry(stream.clone()).or_default();
                for range in ranges.iter().rev() {
                    position.insert(range.partition.clone(), range.start);
                }
            }
        }
        positions
    }
}

impl OperatorEntry {
    /// An operator with its columns, the first `keys` of which are the key.
    ///
    /// # Errors
    /// When the columns can't be stored.
    pub fn new(name: &str, kind: &str, columns: &SchemaRef, keys: usize) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            kind: kind.to_owned(),
            fingerprint: fingerprint(columns),
            schema: Some(to_hex(&ipc::schema_message(columns)?)),
            keys: Some(keys),
            ..Self::default()
        })
    }

    /// The columns of its state; `None` in a ledger that kept only their fingerprint.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn columns(&self) -> Result<Option<SchemaRef>> {
        let Some(schema) = &self.schema else { return Ok(None) };
        let bytes = from_hex(schema)
            .ok_or_else(|| Error::external(format!("the kept columns of `{}` are damaged", self.name)).fatal())?;
        ipc::schema_from(&bytes).map(Some)
    }

    /// The directory of its state, among those of its program.
    pub fn dir(&self) -> &str {
        self.dir.as_deref().unwrap_or(&self.name)
    }
}

/// Columns as text: what a state file must have to be taken over as it is.
pub fn fingerprint(columns: &SchemaRef) -> String {
    let column = |f: &arrow_schema::FieldRef| {
        format!("{}:{}{}", f.name(), f.data_type(), if f.is_nullable() { "?" } else { "" })
    };
    columns.fields().iter().map(column).collect::<Vec<_>>().join(",")
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(text.get(i..i + 2)?, 16).ok()).collect()
}
