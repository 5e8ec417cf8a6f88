//! What a rewind means for the topics that the program fills, and who else has to do with them.
//!
//! ```text
//! ledger: rows of undone batches ─► nobody has read or written behind them? ─► cut at the next start
//!                                 └► else refused, naming who: go back with them, or let the rows stay
//! ```
//!
//! Invariant: only reads. A topic is cut only where all that goes was written by
//! the undone batches and was read by no committed batch of another program:
//! offsets are given again, and whoever stood behind them would miss what comes
//! in their place. Called before a rewind, by `tidemill plan`, and by a start.

use super::programs;
use crate::{
    disk::Disk,
    ledger::{Past, TakesBack},
    log,
};
use std::{collections::BTreeMap, fmt, path::Path};
use tidemill_core::{Offset, Result};

/// What is to become of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicUndo {
    /// The topic.
    pub topic: String,
    /// By partition: where it is cut, and how many rows go.
    pub cuts: BTreeMap<u32, (Offset, u64)>,
    /// Why it can't be cut, a reason each; empty when it can.
    pub held: Vec<String>,
}

impl fmt::Display for TopicUndo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.held.is_empty() {
            return f.write_str(&self.held.join("; "));
        }
        let rows: u64 = self.cuts.values().map(|(_, rows)| rows).sum();
        let cut = |(partition, (at, _)): (&u32, &(Offset, u64))| format!("offset {at} of partition {partition}");
        let cuts: Vec<String> = self.cuts.iter().map(cut).collect();
        write!(f, "{rows} {} cut off, at {}", if rows == 1 { "row is" } else { "rows are" }, cuts.join(" and "))
    }
}

/// What is to be taken back from `topic`, as the ledger `past` of program `name`
/// has it; `None` when nothing is.
///
/// # Errors
/// When the disk refuses, or another program's ledger is damaged.
pub fn topic_undo(disk: &dyn Disk, data: &Path, name: &str, past: &Past, topic: &str) -> Result<Option<TopicUndo>> {
    let mut undo = TopicUndo { topic: topic.to_owned(), cuts: BTreeMap::new(), held: Vec::new() };
    match past.takes_back(topic) {
        TakesBack::Nothing => return Ok(None),
        TakesBack::Unknown => undo.held.push(
            "some of those batches were committed by a version that did not note where their rows lie".to_owned(),
        ),
        TakesBack::Cut(partitions) => {
            for (partition, filled) in partitions {
                if let Ok(partition) = partition.0.parse() {
                    undo.cuts.insert(partition, (filled.end, filled.undone));
                }
            }
            // A copy has no other programs.
            if !past.is_forked() {
                undo.held = others(disk, data, name, &undo)?;
            }
        }
    }
    Ok(Some(undo))
}

/// The same of all topics that the program has filled.
///
/// # Errors
/// As [`topic_undo`].
pub fn topics_undo(disk: &dyn Disk, data: &Path, name: &str, past: &Past) -> Result<Vec<TopicUndo>> {
    let all = past.filled().keys().map(|topic| topic_undo(disk, data, name, past, topic));
    all.filter_map(Result::transpose).collect()
}

/// Who has a place in a topic, as program and stream: those that hold one, and programs that have read a stream of
/// the topic's name, of which no topic knows anything. A ledger knows streams by their own names alone, so a stream
/// of another name is known by its hold, which it has from its first start until it is taken out of its program.
///
/// # Errors
/// When the disk refuses, or a program's ledger is damaged.
pub fn readers(disk: &dyn Disk, data: &Path, topic: &str) -> Result<Vec<(String, String)>> {
    let root = data.join("log");
    let mut readers: Vec<(String, String)> = Vec::new();
    for owner in log::pins_of(disk, &root, topic)?.into_keys() {
        let (program, stream) = owner.split_once('/').unwrap_or((&owner, ""));
        readers.push((program.to_owned(), stream.to_owned()));
    }
    for program in programs(disk, data)? {
        let Some(past) = Past::read(disk, &data.join("programs").join(&program).join("ledger"))? else { continue };
        let has_read = |position: &tidemill_core::Position| {
            position.iter().any(|(partition, at)| partition.0.parse::<u32>().is_ok() && at.0 > 0)
        };
        if past.positions().get(topic).is_some_and(has_read)
            && !log::is_known(disk, &root, &format!("{program}/{topic}"))?
        {
            readers.push((program, topic.to_owned()));
        }
    }
    readers.sort();
    Ok(readers)
}

/// Other programs that stand behind a cut.
fn others(disk: &dyn Disk, data: &Path, name: &str, undo: &TopicUndo) -> Result<Vec<String>> {
    let pins = log::pins_of(disk, &data.join("log"), &undo.topic)?;
    let mut held = Vec::new();
    for other in programs(disk, data)?.iter().filter(|other| *other != name) {
        let past = Past::read(disk, &data.join("programs").join(other).join("ledger"))?;
        let Some(past) = past else { continue };
        let positions = past.positions();
        for (owner, pinned) in &pins {
            let Some(stream) = owner.strip_prefix(&format!("{other}/")) else { continue };
            for (partition, (at, _)) in &undo.cuts {
                // A pin lags behind, and is ahead of a program that was rewound and not started.
                let read = positions.get(stream).and_then(|p| p.get(&(*partition).into())).copied();
                if let Some(read) = read.filter(|read| pinned.contains_key(partition) && read > at) {
                    held.push(format!(
                        "program `{other}` has read partition {partition} up to offset {read}, as stream `{stream}`"
                    ));
                }
            }
        }
        for (partition, (at, _)) in &undo.cuts {
            let filled = past.filled().get(&undo.topic).and_then(|filled| filled.partitions.get(&(*partition).into()));
            if let Some(filled) = filled.filter(|filled| filled.rows > 0 && filled.end > *at) {
                held.push(format!(
                    "program `{other}` has written to partition {partition} up to offset {}",
                    filled.end
                ));
            }
        }
    }
    Ok(held)
}
