//! `state.<operator>`: the state of an operator as a table.
//!
//! ```sql
//! SELECT * FROM state.top ORDER BY n DESC LIMIT 10;   -- after the last committed batch
//! SELECT * FROM state."top@17";                       -- after batch 17, while that is kept
//! SELECT * FROM state."words/top";                    -- of program words, where several share a directory
//! ```
//!
//! A keyed operator has a row a key, in its own columns. An aggregate has a row
//! a group: the columns of GROUP BY, then the aggregates' values as they would
//! be given now; of a window, a row a group and pane. Where the program that
//! keeps a state is not at hand, or has other columns now, an aggregate shows
//! its partial columns as they are kept, and several rows of a group add up.
//!
//! Invariant: a table is one version of one state, whole, whatever is committed
//! meanwhile. Called by [`super::query`].

use crate::state::{StateOperator, look};
use datafusion::{catalog::TableProvider, datasource::MemTable};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{BatchId, Error, Result, nearest};
use tidemill_store::{Disk, Past};

/// The schema that states are in.
pub(super) const STATE: &str = "state";

/// A program whose state can be asked.
#[derive(Debug, Clone)]
struct Program {
    name: String,
    /// Its directory.
    root: PathBuf,
    /// Its operators, which know how to show their rows; none when it is not at hand.
    operators: Vec<Arc<dyn StateOperator>>,
}

/// The states of one or several programs.
#[derive(Clone)]
pub(crate) struct StateTables {
    disk: Arc<dyn Disk>,
    programs: Vec<Program>,
    /// The batch after which states are meant that name none; `None` is the last.
    at: Option<BatchId>,
}

impl fmt::Debug for StateTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "states of {} programs", self.programs.len())
    }
}

impl StateTables {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, programs: Vec::new(), at: None }
    }

    /// The same, as they were after a batch.
    pub(crate) fn after(mut self, at: Option<BatchId>) -> Self {
        self.at = at;
        self
    }

    /// Adds the program `name` of the data directory `data`.
    pub(crate) fn add(&mut self, data: &Path, name: &str, operators: Vec<Arc<dyn StateOperator>>) {
        let root = data.join("programs").join(name);
        self.programs.push(Program { name: name.to_string(), root, operators });
    }

    /// The table that `state.<name>` means.
    ///
    /// # Errors
    /// When there is no such operator or version, naming what there is.
    pub(super) fn table(&self, name: &str) -> Result<Arc<dyn TableProvider>> {
        let (path, version) = match name.split_once('@') {
            None => (name, None),
            Some((path, version)) => {
                let version = version.parse().map_err(|e| {
                    Error::user(format!("`state.\"{name}\"`: a batch's number stands behind the @")).because(e)
                })?;
                (path, Some(BatchId(version)))
            }
        };
        let (program, operator) = match path.split_once('/') {
            Some((program, operator)) => (Some(program), operator),
            None => (None, path),
        };
        let version = version.or(self.at);
        let mut found = Vec::new();
        let mut names = Vec::new();
        for of in self.programs.iter().filter(|of| program.is_none_or(|program| program == of.name)) {
            let Some(past) = Past::read(&*self.disk, &of.root.join("ledger"))? else { continue };
            let (version, program) = match version {
                // A change since the last batch has taken its state over already.
                None => (past.version(), past.program()),
                Some(version) if past.recent().any(|batch| batch.id == version) => (version, past.program_at(version)),
                Some(version) => {
                    names.push(format!("{operator}, but not of batch {version}: kept are {}", kept(&past)));
                    continue;
                }
            };
            let entries = program.operators;
            names.extend(entries.iter().map(|entry| entry.name.clone()));
            found.extend(entries.into_iter().filter(|entry| entry.name == operator).map(|entry| (of, entry, version)));
        }
        match (found.pop(), found.is_empty()) {
            (Some((of, entry, version)), true) => {
                let like = of.operators.iter().find(|like| like.name() == entry.name);
                let state = look::rows_at(&self.disk, &of.root.join("state"), &entry, version, like)?;
                let table = MemTable::try_new(state.schema, vec![state.rows]).map_err(super::mistakes::of_df)?;
                Ok(Arc::new(table))
            }
            (Some((last, ..)), false) => {
                let programs: Vec<String> = found
                    .iter()
                    .map(|(of, ..)| of)
                    .chain([&last])
                    .map(|of| format!("state.\"{}/{operator}\"", of.name))
                    .collect();
                Err(Error::user(format!("several programs have a state `{operator}`: say {}", programs.join(" or "))))
            }
            (None, _) => {
                let near: Vec<&str> = names.iter().map(String::as_str).collect();
                let hint = match nearest(operator, &near) {
                    Some(near) => format!("did you mean `state.\"{near}\"`?"),
                    None if names.is_empty() => "no state is kept".to_string(),
                    None => format!("there are {}", names.join(", ")),
                };
                Err(Error::user(format!("there is no state `{operator}`; {hint}")))
            }
        }
    }

    /// Names of all states as they are now, for people.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for of in &self.programs {
            let past = Past::read(&*self.disk, &of.root.join("ledger"))?;
            let entries = past.map(|past| past.program().operators).unwrap_or_default();
            let own = |name: String| if self.programs.len() > 1 { format!("{}/{name}", of.name) } else { name };
            names.extend(entries.into_iter().map(|entry| own(entry.name)));
        }
        Ok(names)
    }
}

pub(super) fn kept(past: &Past) -> String {
    match (past.recent().next(), past.recent().next_back()) {
        (Some(first), Some(last)) => format!("batches {} to {}", first.id, last.id),
        _ => "none".to_string(),
    }
}
