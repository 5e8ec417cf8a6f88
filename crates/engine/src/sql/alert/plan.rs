//! How a key of an alert turns from one state to another.
//!
//! Invariant: it depends on the key's entry, whether its rows of a batch fulfil the
//! conditions, and the batch's time, and on nothing else. Called by [`super::step`].

use super::memory::Memory;
use super::{condition::Condition, parse::Alert};
use crate::sql::mistakes::of_df;
use arrow_array::{ArrayRef, RecordBatch};
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_schema::{Field, SchemaRef};
use datafusion::{
    arrow::row::{RowConverter, SortField},
    common::{DataFusionError, Result as DfResult},
};
use std::sync::Arc;
use tidemill_core::{AlertState, Duration, Result, Timestamp};

/// The bytes of a key.
pub(super) type Key = Box<[u8]>;

/// What the rows of a batch say of the keys that have none among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// They are gone: the rows are the whole result.
    Whole,
    /// They are gone when there are rows at all: those are of later windows.
    Windows,
    /// Nothing: the last row of a key holds.
    Rows,
}

/// Where a key stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Entry {
    pub(super) state: AlertState,
    pub(super) since: Timestamp,
    /// The time of its last row; of a whole result, the time since when it has none.
    pub(super) quiet: Option<Timestamp>,
    /// Of a key that is not well: what the condition looked at, and the message.
    pub(super) value: Option<f64>,
    pub(super) message: String,
    pub(super) memory: Memory,
}

/// What does not change from batch to batch.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) name: String,
    /// Places of the keys in the rows.
    places: Vec<usize>,
    /// Columns of the keys.
    pub(super) keys: Vec<Field>,
    /// `None` of an alert without keys.
    converter: Option<RowConverter>,
    pub(super) condition: Condition,
    pub(super) reading: Reading,
    hold: Duration,
    missing: Option<Duration>,
    forget: Option<Duration>,
}

impl Plan {
    pub(super) fn new(
        alert: &Alert,
        rows: &SchemaRef,
        condition: Condition,
        reading: Reading,
        forget: Option<Duration>,
    ) -> Result<Self> {
        let places = alert.keys.iter().map(|key| rows.index_of(key).map_err(|e| of_df(e.into())));
        let places = places.collect::<Result<Vec<_>>>()?;
        let keys = places.iter().map(|at| rows.field(*at));
        let keys: Vec<Field> = keys.map(|field| Field::new(field.name(), field.data_type().clone(), true)).collect();
        let sorts: Vec<_> = keys.iter().map(|field| SortField::new(field.data_type().clone())).collect();
        let converter = if sorts.is_empty() {
            None
        } else {
            Some(RowConverter::new(sorts).map_err(|e| of_df(DataFusionError::from(e)))?)
        };
        let name = alert.name.clone();
        Ok(Self { name, places, keys, converter, condition, reading, hold: alert.hold, missing: alert.missing, forget })
    }

    /// The name under which the history is kept.
    pub(super) fn history_name(&self) -> String {
        format!("{}.history", self.name)
    }

    /// The keys of rows of the view.
    pub(super) fn keys_of_rows(&self, rows: &RecordBatch) -> DfResult<Vec<Key>> {
        let columns: Vec<ArrayRef> = self.places.iter().map(|at| Arc::clone(rows.column(*at))).collect();
        self.keys_of(&columns, rows.num_rows())
    }

    /// The keys that columns hold.
    pub(super) fn keys_of(&self, columns: &[ArrayRef], rows: usize) -> DfResult<Vec<Key>> {
        match &self.converter {
            None => Ok(vec![Key::default(); rows]),
            Some(converter) => {
                let rows = converter.convert_columns(columns)?;
                Ok(rows.iter().map(|row| Key::from(row.as_ref())).collect())
            }
        }
    }

    /// Keys as columns.
    pub(super) fn columns_of<'a>(&self, keys: impl Iterator<Item = &'a Key>) -> DfResult<Vec<ArrayRef>> {
        match &self.converter {
            None => Ok(Vec::new()),
            Some(converter) => {
                let parser = converter.parser();
                Ok(converter.convert_rows(keys.map(|key| parser.parse(key)))?)
            }
        }
    }

    /// Keys as text: of one column what it holds, of several `host=a, disk=b`.
    pub(super) fn texts_of(&self, keys: &[&Key]) -> DfResult<Vec<String>> {
        let columns = self.columns_of(keys.iter().copied())?;
        let options = FormatOptions::default().with_null("NULL");
        let columns = columns.iter().map(|column| ArrayFormatter::try_new(column, &options));
        let columns = columns.collect::<std::result::Result<Vec<_>, _>>()?;
        let text = |row: usize| match columns.as_slice() {
            [only] => only.value(row).to_string(),
            columns => {
                let named = columns.iter().zip(&self.keys);
                let named = named.map(|(column, field)| format!("{}={}", field.name(), column.value(row)));
                named.collect::<Vec<_>>().join(", ")
            }
        };
        Ok((0..keys.len()).map(text).collect())
    }

    /// The text of one key.
    pub(super) fn text_of(&self, key: &Key) -> DfResult<String> {
        Ok(self.texts_of(&[key])?.pop().unwrap_or_default())
    }

    /// Whether a batch with or without rows says that the keys without one are gone.
    pub(super) fn tells_gone(&self, has_rows: bool) -> bool {
        match self.reading {
            Reading::Whole => true,
            Reading::Windows => has_rows,
            Reading::Rows => false,
        }
    }

    /// The entry of a key that was not known before.
    pub(super) fn new_entry(&self, now: Timestamp) -> Entry {
        Entry { since: now, quiet: Some(now), ..Entry::default() }
    }

    /// Turns a key by its rows, if it has some: whether WHEN holds for one of them, and CLEAR WHEN
    /// for all. Says whether the key is to be forgotten.
    pub(super) fn turn(&self, entry: &mut Entry, rows: Option<(bool, bool)>, gone: bool, now: Timestamp) -> bool {
        use AlertState::{Firing, Missing, Ok, Pending, Test};
        let mut to = entry.state;
        match rows {
            Some((on, off)) => {
                entry.quiet = (self.reading != Reading::Whole).then_some(now);
                to = match entry.state {
                    Ok | Missing | Test if on => Pending,
                    Missing | Test => Ok,
                    Pending if !on => Ok,
                    Firing if off && !on => Ok,
                    same => same,
                };
            }
            None if gone => {
                entry.quiet.get_or_insert(now);
                // Nobody knows any more that it holds; what fires may be missing soon.
                if to == Pending || (to == Firing && self.missing.is_none()) {
                    to = Ok;
                }
            }
            None => {}
        }
        if to != entry.state {
            (entry.state, entry.since) = (to, now);
        }
        if entry.state == Pending && now.since(entry.since) >= self.hold {
            entry.state = Firing;
        }
        let Some(quiet) = entry.quiet else { return false };
        let past = |span: Option<Duration>| span.is_some_and(|span| now.since(quiet) >= span);
        if entry.state != Missing && past(self.missing) {
            (entry.state, entry.since) = (Missing, quiet);
        }
        if past(self.forget) {
            (entry.state, entry.since) = (Ok, now);
            return true;
        }
        false
    }

    /// When a key turns though nothing comes.
    pub(super) fn deadline(&self, entry: &Entry) -> Option<Timestamp> {
        let quiet = |span: Option<Duration>| Some(entry.quiet?.plus(span?));
        [
            (entry.state == AlertState::Pending).then(|| entry.since.plus(self.hold)),
            quiet(self.missing).filter(|_| entry.state != AlertState::Missing),
            quiet(self.forget),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether there is something to remember of a key.
    pub(super) fn keeps(&self, entry: &Entry) -> bool {
        let is_gone = self.reading == Reading::Whole && entry.quiet.is_some();
        entry.state != AlertState::Ok || self.missing.is_some() || (!self.condition.tracked.is_empty() && !is_gone)
    }
}
