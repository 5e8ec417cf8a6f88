//! The table of staged rows as it is in the database, and what becomes of one with other columns.
//!
//! A program that ended between the commit of a batch and the sink's may come back with other columns. The rows
//! of that commit, which is repeated, lie in a table of the old ones. It is set aside under another name, the commit
//! takes the rows from there, and `recover` removes it.
//!
//! Invariant: staged rows leave the database only once `recover` has been told what was committed, or as part
//! of their commit. Called by the sinks of this folder as they open.

use super::table::{Column, Kind, Opened, Table, quoted};

/// A column as a database lists it: its name, its type in lower case, whether it must be filled.
pub(super) type Listed = (String, String, bool);

/// Columns that tell where a row was staged.
pub(super) const PLACE: [&str; 3] = ["_tm_batch", "_tm_part", "_tm_row"];

impl Table {
    /// The name of the table of staged rows.
    pub(super) fn staged(&self) -> String {
        format!("tidemill_staged_{}", self.name)
    }

    /// The name of the table of rows that were staged with other columns.
    pub(super) fn set_aside(&self) -> String {
        format!("tidemill_before_{}", self.name)
    }
}

impl Opened {
    /// The table of staged rows as it should be listed; `listed` gives a type's name in a list.
    pub(super) fn listed(&self, listed: impl Fn(Kind) -> &'static str) -> Vec<Listed> {
        let place = PLACE.iter().map(|name| ((*name).to_string(), listed(Kind::Integer).to_string(), true));
        let columns = self.columns.iter().map(|c| (c.name.clone(), listed(c.kind).to_string(), !c.nullable));
        place.chain(columns).collect()
    }

    /// The same table, its rows taken from those that were set aside, with the columns of then.
    pub(super) fn before(&self, found: &[Listed]) -> Option<Self> {
        let columns: Vec<Column> = found
            .iter()
            .filter(|(name, ..)| !PLACE.contains(&name.as_str()))
            // What it is does not matter: the rows go from table to table within the database.
            .map(|(name, ..)| Column { name: name.clone(), kind: Kind::Text, nullable: true })
            .collect();
        let staged = quoted(&self.table.set_aside());
        (!columns.is_empty()).then(|| Self { table: self.table.clone(), columns, staged })
    }
}

/// What `open` does about the table of staged rows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stale {
    /// It is as it should be.
    No,
    /// There is none, or an empty one with other columns.
    Anew,
    /// It has rows, and other columns.
    SetAside,
}

impl Stale {
    /// By how the table is listed, and how it should be.
    pub(super) fn of(found: &[Listed], wanted: &[Listed], has_rows: bool) -> Self {
        match found == wanted {
            true => Self::No,
            false if has_rows => Self::SetAside,
            false => Self::Anew,
        }
    }

    /// The statements for that; `create` makes the table of staged rows.
    pub(super) fn mend(&self, table: &Table, create: &str) -> Option<String> {
        let (staged, aside) = (quoted(&table.staged()), quoted(&table.set_aside()));
        match self {
            Self::No => None,
            // What was set aside at an earlier start may wait for its commit still.
            Self::Anew => Some(format!("DROP TABLE IF EXISTS {staged}; {create}")),
            // Rows were staged since, so nothing waits in one that was set aside before.
            Self::SetAside => {
                Some(format!("DROP TABLE IF EXISTS {aside}; ALTER TABLE {staged} RENAME TO {aside}; {create}"))
            }
        }
    }
}
