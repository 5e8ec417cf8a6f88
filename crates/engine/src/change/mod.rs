//! A changed program over kept state: what is kept, migrated, rebuilt, dropped.
//!
//! ```text
//! ledger: operators, columns, queries ─┐
//!                                      ├─ compare ─► Changes ─► asked for? ─► apply: written aside, one record, done
//! program of now ──────────────────────┘                └─ else refused, with this plan and what to type
//! ```
//!
//! Invariant: state is never dropped, mixed with another query's, or read under
//! other columns in silence. Until the ledger's record of the new program is
//! durable the old program can be started as if nothing had been tried.
//!
//! [`compare`] decides and reads nothing but names and columns; [`migrate`]
//! turns rows; [`apply`] makes it durable; [`rebuild`] computes a state anew
//! from the log. Parallelism, interval, the set of inputs and the order of
//! operators are no change.

mod apply;
mod compare;
mod migrate;
mod outputs;
mod rebuild;
#[cfg(test)]
mod tests;

pub(crate) use apply::{Rebuilt, fill_columns, refuse, refuse_lost_commits};
pub(crate) use compare::{compare, describe, reach};
pub(crate) use migrate::{rows as migrated_rows, steps as migration};
pub(crate) use outputs::topics_undo;

use std::fmt;
use tidemill_core::BatchId;

/// What becomes of an operator's state when the program changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It goes on with its state.
    Keep,
    /// It had none: it begins empty.
    New,
    /// Its rows are taken over under the new columns.
    Migrate,
    /// It is computed anew from what the inputs still have.
    Rebuild,
    /// Nothing of the program takes it any more.
    Drop,
}

impl Action {
    /// As the plan shows it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::New => "new",
            Self::Migrate => "migrate",
            Self::Rebuild => "rebuild",
            Self::Drop => "drop",
        }
    }
}

/// What becomes of one operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorChange {
    /// Its name.
    pub name: String,
    /// What it is: `aggregate`.
    pub kind: String,
    /// What becomes of its state.
    pub action: Action,
    /// The name under which its state was kept, when that is another.
    pub from: Option<String>,
    /// Why, and what follows from it; empty when there is nothing to say.
    pub why: String,
    /// Whether it happens without being asked for.
    pub free: bool,
}

/// What becomes of an output that writes outside of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputChange {
    /// Its name.
    pub name: String,
    /// What it writes to.
    pub what: String,
    /// What happens to what it wrote.
    pub why: String,
    /// Whether it happens without being asked for.
    pub free: bool,
}

/// What a start of the program would do with what is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// The program's name.
    pub program: String,
    /// The last batch whose state is there; 0 when there is none.
    pub version: BatchId,
    /// The number of the next batch.
    pub next: BatchId,
    /// Its stateful operators, then those that are dropped.
    pub operators: Vec<OperatorChange>,
    /// Its outputs, where something happens to what they wrote.
    pub outputs: Vec<OutputChange>,
}

impl Changes {
    /// Whether a start needs no consent.
    pub fn are_free(&self) -> bool {
        self.operators.iter().all(|change| change.free) && self.outputs.iter().all(|change| change.free)
    }

    /// Whether any operator is to be rebuilt.
    pub(crate) fn rebuilt(&self) -> impl Iterator<Item = &OperatorChange> {
        self.operators.iter().filter(|change| change.action == Action::Rebuild)
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![["operator", "kind", "state", "why"].map(str::to_string)];
        for change in &self.operators {
            let action = change.action.word().to_string();
            rows.push([change.name.clone(), change.kind.clone(), action, change.why.clone()]);
        }
        let mut tables = Vec::new();
        if rows.len() > 1 {
            tables.push(rows);
        }
        if !self.outputs.is_empty() {
            let mut rows = vec![["output", "writes to", "", "what it wrote"].map(str::to_string)];
            rows.extend(self.outputs.iter().map(|o| [o.name.clone(), o.what.clone(), String::new(), o.why.clone()]));
            tables.push(rows);
        }
        for (at, rows) in tables.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            table(f, rows)?;
        }
        Ok(())
    }
}

/// Rows under headings; the last column may have lines, which stay under its heading.
fn table(f: &mut fmt::Formatter<'_>, rows: &[[String; 4]]) -> fmt::Result {
    let used: Vec<usize> = (0..4).filter(|c| rows.iter().any(|row| !row[*c].is_empty())).collect();
    let width = |c: usize| rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0);
    let (last, first) = used.split_last().unwrap_or((&0, &[]));
    let indent: usize = first.iter().map(|c| width(*c) + 2).sum();
    for (at, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for c in first {
            line.push_str(&format!("{:<width$}  ", row[*c], width = width(*c)));
        }
        line.push_str(&row[*last].replace('\n', &format!("\n{}", " ".repeat(indent))));
        writeln!(f, "{}", line.trim_end())?;
        if at == 0 {
            let mut rule: Vec<String> = first.iter().map(|c| "─".repeat(width(*c))).collect();
            rule.push(
                "─".repeat(
                    rows.iter().flat_map(|row| row[*last].lines()).map(|l| l.chars().count()).max().unwrap_or(0),
                ),
            );
            writeln!(f, "{}", rule.join("  "))?;
        }
    }
    Ok(())
}

/// What a start is asked to do with a changed program.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    /// Whether changes that need consent have it.
    pub(crate) accept: bool,
    /// Operators to be computed anew.
    pub(crate) rebuild: Vec<String>,
    /// Operators that had another name: the old one, the new one.
    pub(crate) rename: Vec<(String, String)>,
}
