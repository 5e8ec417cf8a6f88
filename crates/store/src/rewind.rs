//! Going back to an earlier batch of a program.
//!
//! ```text
//! is it kept? ─► do the states reach it? ─► has the log what came after? ─► may topics be cut?
//!             ─► pins reach back ─► ledger: rewound   ← done
//! next start:  states cut back, outputs take back, batches go on with new numbers
//! ```
//!
//! Invariant: what counts is one synced record of the ledger, so a crash leaves
//! the program as it was or rewound; pins that reach back further than needed
//! only keep more until the next start. Whoever calls [`rewind`] owns the data
//! directory; all else here only reads. Called by `tidemill rewind`.

use crate::{
    disk::{self, Disk},
    fault::Named,
    ledger::{Ledger, Past, Undone},
    log,
    state::StateFiles,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{BatchId, Duration, Error, Offset, Result, Timestamp, nearest};

#[cfg(test)]
mod tests;

mod topics;

pub use topics::{TopicUndo, readers, topic_undo, topics_undo};

/// Where to go back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// The end of this batch; 0 is before the first.
    Batch(BatchId),
    /// The last batch at this time or before it.
    At(Timestamp),
    /// The last batch so long before the newest one, or before that.
    Ago(Duration),
}

/// What a rewind comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewound {
    /// The batch that the program goes back to; 0 is the beginning.
    pub to: BatchId,
    /// Its time.
    pub time: Option<Timestamp>,
    /// The last batch that is undone; `to` when none is.
    pub upto: BatchId,
    /// What is read again and the log no longer has, a line each.
    pub gaps: Vec<String>,
    /// What becomes of what its outputs wrote; empty when nothing is undone.
    pub outputs: Vec<OutputUndo>,
}

/// What becomes of what an output wrote in batches that are undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputUndo {
    /// Its name.
    pub name: String,
    /// What it writes to: `files out (json)`.
    pub what: String,
    /// What becomes of it, at the next start.
    pub becomes: String,
}

impl Goal {
    /// The batch that is meant.
    ///
    /// # Errors
    /// When it is not kept, naming what is.
    pub fn find(self, past: &Past) -> Result<BatchId> {
        let (Some(first), Some(last)) = (past.recent().next(), past.recent().next_back()) else {
            return match self {
                Self::Batch(BatchId(0)) => Ok(BatchId(0)),
                _ => Err(Error::user("the program has committed no batch: there is nothing to go back to")),
            };
        };
        let kept = format!("batches {} ({}) to {} ({}) are", first.id, first.time, last.id, last.time);
        let time = match self {
            Self::Batch(batch) if batch.0 == 0 || past.recent().any(|kept| kept.id == batch) => return Ok(batch),
            Self::Batch(batch) => {
                return Err(Error::user(format!("batch {batch} is not kept: {kept}; 0 is the beginning")));
            }
            Self::At(time) => time,
            Self::Ago(span) => last.time.minus(span),
        };
        let found = past.recent().rev().find(|batch| batch.time <= time);
        found.map(|batch| batch.id).ok_or_else(|| {
            Error::user(format!("no batch at {time} or before is kept: {kept}; --to 0 goes back to the beginning"))
        })
    }
}

/// The programs of a data directory, by name.
///
/// # Errors
/// When the disk refuses.
pub fn programs(disk: &dyn Disk, data: &Path) -> Result<Vec<String>> {
    let dir = data.join("programs");
    if disk.exists(&dir) { disk.list(&dir).named("list", &dir) } else { Ok(Vec::new()) }
}

/// The directory of a program.
///
/// # Errors
/// When there is no such program, naming those that there are.
pub fn program_dir(disk: &dyn Disk, data: &Path, name: &str) -> Result<PathBuf> {
    let all = programs(disk, data)?;
    if all.iter().any(|program| program == name) {
        return Ok(data.join("programs").join(name));
    }
    let names: Vec<&str> = all.iter().map(String::as_str).collect();
    let hint = match nearest(name, &names) {
        Some(near) => format!("did you mean `{near}`?"),
        None if names.is_empty() => "no program has run there".to_owned(),
        None => format!("there are {}", names.join(", ")),
    };
    Err(Error::user(format!("there is no program `{name}` in {}: {hint}", data.display())))
}

/// Whether the states and the log still have what going back to `to` needs.
/// Gives what the log has lost.
///
/// # Errors
/// When a state does not reach back so far, or records after `to` are gone:
/// then what is computed anew could not be right.
pub fn check(disk: &Arc<dyn Disk>, data: &Path, name: &str, past: &Past, to: BatchId) -> Result<Vec<String>> {
    let root = data.join("programs").join(name);
    if to.0 > 0 {
        for entry in past.program_at(to).operators {
            let dir = root.join("state").join(entry.dir());
            let files = StateFiles::look(Arc::clone(disk), &dir, &entry.name)?;
            let oldest = files.map_or(Ok(BatchId(0)), |mut files| files.oldest())?;
            if oldest > to {
                return Err(Error::user(format!(
                    "the state of `{}` at batch {to} is not kept any more: the oldest is that of batch {oldest}",
                    entry.name
                )));
            }
        }
    }
    let positions = past.positions_at(to);
    let mut gaps = Vec::new();
    for (topic, stream) in log::topics_of(&**disk, &data.join("log"), name)? {
        let position = positions.get(&stream).cloned().unwrap_or_default();
        for (partition, oldest) in log::oldest_offsets(&**disk, &data.join("log"), &topic)? {
            let start = match position.get(&partition.into()) {
                Some(start) => *start,
                // No batch has read anything of it, whatever was removed before: as with `start = 'latest'`.
                None if to.0 > 0 => continue,
                None => Offset::default(),
            };
            if start < oldest {
                gaps.push(format!(
                    "topic `{topic}` partition {partition}: offsets [{start}, {oldest}) were removed by retention"
                ));
            }
        }
    }
    if to.0 > 0 && !gaps.is_empty() {
        return Err(Error::user(format!(
            "what came after batch {to} can't be read again: {}; go back to a later batch",
            gaps.join("; ")
        )));
    }
    Ok(gaps)
}

/// How to go back.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// Where to.
    pub goal: Goal,
    /// The last batch that was seen outside, where the ledger has lost its end.
    pub seen: Option<BatchId>,
    /// Whether the rows of undone batches stay in topics, and what comes in their place after them.
    pub keeps_topics: bool,
}

impl From<Goal> for Way {
    /// Outputs take back what they can.
    fn from(goal: Goal) -> Self {
        Self { goal, seen: None, keeps_topics: false }
    }
}

/// What going back comes to. Only reads.
///
/// # Errors
/// As [`rewind`].
pub fn plan(disk: &Arc<dyn Disk>, data: &Path, name: &str, way: Way) -> Result<Rewound> {
    let root = program_dir(&**disk, data, name)?;
    let past = Past::read(&**disk, &root.join("ledger"))?;
    let past = past.ok_or_else(|| Error::user(format!("program `{name}` has no ledger in {}", data.display())))?;
    planned(disk, data, name, &past, way).map(|(rewound, _)| rewound)
}

/// Goes back: the next start of the program goes on from `goal`. Outputs take
/// back what they show up to the last batch, or up to `seen`, where a ledger
/// has lost its end.
///
/// # Errors
/// As [`Goal::find`] and [`check`]; when a topic would be cut behind which another
/// program stands, naming it; when the disk refuses. Then the program is as it was.
pub fn rewind(disk: &Arc<dyn Disk>, data: &Path, name: &str, way: Way) -> Result<Rewound> {
    let root = program_dir(&**disk, data, name)?;
    let mut ledger = Ledger::open(Arc::clone(disk), &root.join("ledger"))?;
    let past = ledger.past();
    let (rewound, undone) = planned(disk, data, name, &past, way)?;
    if let Some(Undone { to, upto, keeps_topics }) = undone {
        // From here on retention keeps what will be read again, also while another program runs.
        let (log, positions) = (data.join("log"), past.positions_at(to));
        for (topic, stream) in log::topics_of(&**disk, &log, name)? {
            let position = positions.get(&stream).cloned().unwrap_or_default();
            log::pin_back(&**disk, &log, &topic, &format!("{name}/{stream}"), &position)?;
        }
        ledger.rewind(to, upto, keeps_topics)?;
    }
    Ok(rewound)
}

/// What going back comes to, and the record of it; `None` when there is nothing to undo.
fn planned(disk: &Arc<dyn Disk>, data: &Path, name: &str, past: &Past, way: Way) -> Result<(Rewound, Option<Undone>)> {
    let to = way.goal.find(past)?;
    let gaps = check(disk, data, name, past, to)?;
    let time = past.recent().find(|batch| batch.id == to).map(|batch| batch.time);
    // A ledger that has lost commits: their numbers have been seen outside.
    let mut upto = past.last().map_or(to, |last| last.batch).max(way.seen.unwrap_or_default());
    for entry in past.program().operators {
        let dir = data.join("programs").join(name).join("state").join(entry.dir());
        let files = StateFiles::look(Arc::clone(disk), &dir, &entry.name)?;
        upto = upto.max(files.and_then(|files| files.newest()).unwrap_or_default());
    }
    let before = past.undone().iter().map(|undone| undone.upto).max();
    let shown = before.map_or(upto, |before| before.max(upto));
    // A program that was changed since the batch is undone, too, though it has run none.
    if upto <= to && past.version() <= to && past.program_at(to) == past.program() {
        return Ok((Rewound { to, time, upto: shown, gaps, outputs: Vec::new() }, None));
    }
    let undone = Undone { to, upto, keeps_topics: way.keeps_topics };
    let lost = upto > past.last().map_or(to, |last| last.batch);
    let outputs = outputs(&**disk, data, name, past, (undone, lost))?;
    Ok((Rewound { to, time, upto: shown, gaps, outputs }, Some(undone)))
}

/// What becomes of what the outputs wrote; of batches that the ledger has `lost`, nobody knows where their rows lie.
fn outputs(
    disk: &dyn Disk,
    data: &Path,
    name: &str,
    past: &Past,
    (undone, lost): (Undone, bool),
) -> Result<Vec<OutputUndo>> {
    let stay = "its rows stay, and what is computed anew comes after them";
    let topics = topics_undo(disk, data, name, &past.clone().rewound(undone)?)?;
    if let Some(held) = topics.iter().find(|topic| !topic.held.is_empty()) {
        return Err(Error::user(format!(
            "what the batches after {} wrote to topic `{}` can't be taken back: {held}. Go back with that program first \
             (`tidemill rewind --name PROGRAM --to …`), to a batch at which it had come no further; or say \
             --keep-topics: then {stay}",
            undone.to, held.topic
        )));
    }
    let becomes = |output: &crate::ledger::OutputEntry| match (&output.topic, &output.undoes) {
        (Some(_), _) if undone.keeps_topics => stay.to_owned(),
        (Some(topic), _) => match topics.iter().find(|undo| undo.topic == *topic) {
            Some(undo) => undo.to_string(),
            None if lost => stay.to_owned(),
            None => "none of those batches wrote there".to_owned(),
        },
        (None, Some(undoes)) => undoes.clone(),
        (None, None) => "what it wrote stays, unless `tidemill plan` says otherwise".to_owned(),
    };
    let all = past.program().outputs;
    Ok(all.iter().map(|o| OutputUndo { name: o.name.clone(), what: o.what.clone(), becomes: becomes(o) }).collect())
}

/// Creates the directories above a file that is about to be written.
pub(crate) fn make_parent(disk: &dyn Disk, path: &Path) -> Result<()> {
    let parent = disk::parent(path);
    disk::create_dir(disk, parent).named("create", parent)
}
