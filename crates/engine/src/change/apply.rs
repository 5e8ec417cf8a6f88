//! A changed program takes over what is kept.
//!
//! ```text
//! rows of a changed state ─► state/<name>@2/…17.snap      written aside; nobody names it yet
//! ledger: program         ─► one synced record             ← from here on the new program
//! directories that no program names any more               removed
//! ```
//!
//! Invariant: before the record the old program can be started as before, after
//! it the new one; directories of programs that the ledger may go back to stay.
//! Called by [`crate::batch::Pipeline::open`].

use super::{Action, Asked, Changes, compare, migrate};
use crate::{
    batch::{Keep, OutputPlan, StateEntry},
    state::{StateOperator, StateRegistry, Version, look},
};
use arrow_array::RecordBatch;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{BatchId, Error, Result, Timestamp};
use tidemill_store::{
    Disk, Past, StateFiles,
    ledger::{OperatorEntry, ProgramEntry},
    rewind::TopicUndo,
};

/// States that were computed anew, and the watermarks that go with them.
#[derive(Debug, Default)]
pub(crate) struct Rebuilt {
    pub(crate) states: BTreeMap<String, Vec<RecordBatch>>,
    pub(crate) watermarks: BTreeMap<String, Timestamp>,
}

impl Keep {
    /// What a start of `now` does with what is kept.
    ///
    /// # Errors
    /// When the ledger has lost commits, or `asked` names what is not there.
    pub(crate) fn compare(
        &self,
        now: &ProgramEntry,
        outputs: (&[OutputPlan], &BTreeMap<String, TopicUndo>),
        asked: &Asked,
        reach: &str,
    ) -> Result<Changes> {
        let mut past = self.ledger.lock().past();
        fill_columns(&self.disk, &self.root, &mut past)?;
        refuse_lost_commits(&self.disk, &self.root, &self.program, &past)?;
        compare(&self.program, &past, now, outputs, asked, reach)
    }

    fn state_dir(&self, entry: &OperatorEntry) -> PathBuf {
        self.root.join("state").join(entry.dir())
    }

    /// Lets the program of `now` take over, some topics of which were made `anew`: writes what migrates and what was
    /// rebuilt, then says so in the ledger, and opens the states' files.
    ///
    /// # Errors
    /// When the disk refuses; then the program before is still in force.
    pub(crate) fn apply(
        &self,
        changes: &Changes,
        (mut now, anew): (ProgramEntry, Vec<String>),
        registry: &StateRegistry,
        rebuilt: Rebuilt,
    ) -> Result<()> {
        let mut past = self.ledger.lock().past();
        fill_columns(&self.disk, &self.root, &mut past)?;
        let before = past.program();
        let mut taken: BTreeSet<String> = before.operators.iter().map(|entry| entry.dir().to_string()).collect();
        for former in past.before() {
            taken.extend(former.program.operators.iter().map(|entry| entry.dir().to_string()));
        }
        let operators = registry.all();
        for entry in &mut now.operators {
            let change =
                changes.operators.iter().find(|change| change.name == entry.name && change.action != Action::Drop);
            let (Some(change), Some(operator)) = (change, operators.iter().find(|o| o.name() == entry.name)) else {
                return Err(Error::internal(format!("nothing was said of `{}`", entry.name)));
            };
            let from = change.from.as_ref().unwrap_or(&entry.name);
            let old = before.operators.iter().find(|old| old.name == *from);
            let rows = match (change.action, old) {
                (Action::Keep, Some(old)) => {
                    entry.dir.clone_from(&old.dir);
                    continue;
                }
                (Action::Migrate, Some(old)) => self.migrated(old, operator, past.version())?,
                (Action::Rebuild, _) => rebuilt.states.get(&entry.name).cloned().unwrap_or_default(),
                (Action::New | Action::Keep | Action::Migrate | Action::Drop, _) => Vec::new(),
            };
            self.write_aside(entry, operator, past.version(), rows, &mut taken)?;
        }
        {
            let mut ledger = self.ledger.lock();
            // A batch that was planned for the program before is planned anew: nobody has seen it.
            ledger.set_program(now.clone(), rebuilt.watermarks, anew)?;
        }
        let mut states = self.states.lock();
        for operator in &operators {
            let Some(entry) = now.operators.iter().find(|entry| entry.name == operator.name()) else { continue };
            let files =
                StateFiles::open(Arc::clone(&self.disk), &self.state_dir(entry), operator.name(), operator.schema())?;
            states.insert(operator.name().to_string(), StateEntry::new(files));
        }
        drop(states);
        self.remove_unnamed(&self.ledger.lock().past())
    }

    /// The rows of an old state under the columns that the operator has now.
    fn migrated(
        &self,
        old: &OperatorEntry,
        operator: &Arc<dyn StateOperator>,
        version: BatchId,
    ) -> Result<Vec<RecordBatch>> {
        let Some((_, versions)) = look::versions(&self.disk, &self.root.join("state"), old, version)? else {
            return Ok(Vec::new());
        };
        let (neutral, columns) = (operator.neutral()?, operator.schema());
        let versions = versions
            .into_iter()
            .map(|Version { whole, again, rows }| {
                let rows = rows
                    .iter()
                    .map(|rows| migrate::rows(rows, &columns, neutral.as_ref()))
                    .collect::<Result<Vec<_>>>()?;
                Ok(Version { whole, again, rows })
            })
            .collect::<Result<Vec<_>>>()?;
        operator.restore(&versions)?;
        operator.snapshot()
    }

    /// Writes a state into a directory that no program has named.
    fn write_aside(
        &self,
        entry: &mut OperatorEntry,
        operator: &Arc<dyn StateOperator>,
        version: BatchId,
        rows: Vec<RecordBatch>,
        taken: &mut BTreeSet<String>,
    ) -> Result<()> {
        // An `@` can't stand in a name, so this is no other operator's.
        let dirs = (1..).map(|n| if n == 1 { entry.name.clone() } else { format!("{}@{n}", entry.name) });
        let dir = dirs.into_iter().find(|dir| !taken.contains(dir)).unwrap_or_else(|| entry.name.clone());
        taken.insert(dir.clone());
        entry.dir = (dir != entry.name).then_some(dir);
        let path = self.state_dir(entry);
        // What lies there was written by a change that a crash cut short, or is an operator's that was dropped long ago.
        tidemill_store::state::remove_all(&*self.disk, &path)?;
        if rows.iter().any(|rows| rows.num_rows() > 0) {
            let mut files = StateFiles::open(Arc::clone(&self.disk), &path, operator.name(), operator.schema())?;
            files.save_snapshot(version, rows.into_iter())?;
        }
        Ok(())
    }

    /// Removes the states that no program in force, now or at a kept batch, names.
    pub(crate) fn remove_unnamed(&self, past: &Past) -> Result<()> {
        let programs = past.before().iter().map(|former| &former.program);
        let now = past.program();
        let named: BTreeSet<&str> =
            programs.chain([&now]).flat_map(|program| &program.operators).map(OperatorEntry::dir).collect();
        let root = self.root.join("state");
        for dir in tidemill_store::state::operators_in(&*self.disk, &root)? {
            if !named.contains(dir.as_str()) {
                tracing::info!(state = dir, "removed a state that no program uses any more");
                tidemill_store::state::remove_all(&*self.disk, &root.join(dir))?;
            }
        }
        Ok(())
    }
}

/// A ledger of version 1 kept columns as text; the files have them whole.
pub(crate) fn fill_columns(disk: &Arc<dyn Disk>, root: &Path, past: &mut Past) -> Result<()> {
    past.fill_columns(|entry| {
        let files = StateFiles::look(Arc::clone(disk), &root.join("state").join(entry.dir()), &entry.name)?;
        Ok(files.map(|files| Arc::clone(files.columns())))
    })
}

/// A state may be one batch ahead of the ledger, whose commit a crash prevented; never more.
pub(crate) fn refuse_lost_commits(disk: &Arc<dyn Disk>, root: &Path, program: &str, past: &Past) -> Result<()> {
    let last = past.last().map_or(0, |last| last.batch.0);
    for entry in past.program().operators {
        let dir = root.join("state").join(entry.dir());
        let files = StateFiles::look(Arc::clone(disk), &dir, &entry.name)?;
        let newest = files.and_then(|files| files.newest()).unwrap_or_default();
        if newest.0 > last + 1 {
            return Err(Error::user(format!(
                "the ledger of program `{program}` ends with batch {last}, and `{}` has state of batch {newest}: commits \
                 are missing, and running those batches again could show them twice. Restore {} from a copy; or say \
                 `tidemill rewind --to {}`, which undoes what came after and lets outputs take it back",
                entry.name,
                root.join("ledger").display(),
                past.version(),
            )));
        }
    }
    Ok(())
}

/// Says what would happen, and how to let it happen.
pub(crate) fn refuse(changes: &Changes) -> Error {
    Error::user(format!(
        "program `{}` differs from the one whose state is kept (up to batch {}):\n\n{changes}\n\
         Nothing was changed. To let it happen, start it with --accept-changes (in Rust: `.accept_changes()`)",
        changes.program, changes.version
    ))
}
