//! Going back to an earlier batch of a program.
//!
//! ```text
//! is it kept? ─► do the states reach it? ─► has the log what came after? ─► ledger: rewound   ← done
//! next start:  states cut back, outputs take back, batches go on with new numbers
//! ```
//!
//! Invariant: all that is changed here is one synced record of the ledger, so a
//! crash leaves the program as it was or rewound. Whoever calls owns the data
//! directory; [`Goal::find`] and [`check`] only read. Called by `tidemill rewind`.

use crate::{
    disk::{self, Disk},
    fault::Named,
    ledger::{Ledger, Past},
    log,
    state::StateFiles,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{BatchId, Duration, Error, Result, Timestamp, nearest};

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
            let start = position.get(&partition.into()).copied().unwrap_or_default();
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

/// Goes back: the next start of the program goes on from `goal`. Outputs take
/// back what they show up to the last batch, or up to `seen`, where a ledger
/// has lost its end.
///
/// # Errors
/// As [`Goal::find`] and [`check`], or when the disk refuses; then nothing was changed.
pub fn rewind(disk: &Arc<dyn Disk>, data: &Path, name: &str, goal: Goal, seen: Option<BatchId>) -> Result<Rewound> {
    let root = program_dir(&**disk, data, name)?;
    let mut ledger = Ledger::open(Arc::clone(disk), &root.join("ledger"))?;
    let past = ledger.past();
    let to = goal.find(&past)?;
    let gaps = check(disk, data, name, &past, to)?;
    let time = past.recent().find(|batch| batch.id == to).map(|batch| batch.time);
    // A ledger that has lost commits: their numbers have been seen outside.
    let mut upto = past.last().map_or(to, |last| last.batch).max(seen.unwrap_or_default());
    for entry in past.program().operators {
        let dir = root.join("state").join(entry.dir());
        let files = StateFiles::look(Arc::clone(disk), &dir, &entry.name)?;
        upto = upto.max(files.and_then(|files| files.newest()).unwrap_or_default());
    }
    let undone = past.undone().iter().map(|undone| undone.upto).max();
    // A program that was changed since the batch is undone, too, though it has run none.
    if upto > to || past.version() > to || past.program_at(to) != past.program() {
        ledger.rewind(to, upto)?;
    }
    Ok(Rewound { to, time, upto: undone.map_or(upto, |undone| undone.max(upto)), gaps })
}

/// Creates the directories above a file that is about to be written.
pub(crate) fn make_parent(disk: &dyn Disk, path: &Path) -> Result<()> {
    let parent = disk::parent(path);
    disk::create_dir(disk, parent).named("create", parent)
}
