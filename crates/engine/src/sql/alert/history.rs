//! The last changes of an alert, and its silences.
//!
//! ```sql
//! SELECT * FROM state."hot.history" ORDER BY seq;
//! ```
//!
//! Rows are numbered. A change has its own number for good; of the silences of a key the
//! last one counts, and one whose end is not after its beginning lifts the one before it.
//!
//! Invariant: there are [`CHANGES`] changes at most, and a silence for as long as it lasts;
//! what is let go needs no row, since whoever reads the rows lets it go likewise. All that
//! should be kept for longer is put into a sink. Filled by [`super::step`].

use super::rows::{self, text, time, time_type, times};
use crate::state::{StateOperator, Swept, Version};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, cast::AsArray, new_null_array, types::Int64Type};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};
use tidemill_core::{AlertChange, BatchId, Error, Result, Silence, Timestamp};

/// Changes that are kept.
const CHANGES: usize = 200;
/// Silences that are kept, a key each.
const SILENCES: usize = 1_000;

/// What `what` says of a row.
const CHANGE: &str = "change";
const SILENCE: &str = "silence";

#[derive(Debug, Default)]
pub(super) struct Past {
    last: i64,
    changes: BTreeMap<i64, AlertChange>,
    silences: BTreeMap<Option<String>, (i64, Timestamp, Silence)>,
    delta: Option<(BatchId, Vec<RecordBatch>)>,
}

impl Past {
    fn next(&mut self) -> i64 {
        self.last += 1;
        self.last
    }

    /// Whether somebody has silenced a key at `now`.
    pub(super) fn is_silenced(&self, key: &str, now: Timestamp) -> bool {
        let lasts = |of: &Option<String>| self.silences.get(of).is_some_and(|(_, _, silence)| silence.until > now);
        lasts(&None) || (!self.silences.is_empty() && lasts(&Some(key.to_string())))
    }

    /// The silences, those of all keys first.
    pub(super) fn silences(&self) -> Vec<Silence> {
        self.silences.values().map(|(_, _, silence)| silence.clone()).collect()
    }

    /// The changes, the oldest first.
    pub(super) fn changes(&self) -> Vec<AlertChange> {
        self.changes.values().cloned().collect()
    }

    fn put(&mut self, seq: i64, at: Timestamp, silence: Silence) {
        self.last = self.last.max(seq);
        if silence.until > at {
            self.silences.insert(silence.key.clone(), (seq, at, silence));
        } else {
            self.silences.remove(&silence.key);
        }
    }

    fn add(&mut self, seq: i64, change: AlertChange) {
        self.last = self.last.max(seq);
        self.changes.insert(seq, change);
        while self.changes.len() > CHANGES {
            self.changes.pop_first();
        }
    }
}

/// The history as state.
#[derive(Debug)]
pub(super) struct History {
    name: String,
    schema: SchemaRef,
    past: Mutex<Past>,
}

impl History {
    pub(super) fn new(name: String) -> Self {
        let mut fields = vec![Field::new("seq", DataType::Int64, true), Field::new("what", DataType::Utf8, true)];
        fields.extend(rows::fields());
        fields.push(Field::new("until", time_type(), true));
        Self { name, schema: Arc::new(Schema::new(fields)), past: Mutex::default() }
    }

    /// Reads the past.
    pub(super) fn with<T>(&self, read: impl FnOnce(&Past) -> T) -> T {
        read(&self.past.lock())
    }

    /// Takes what was asked of silences and gives those that end with this batch.
    pub(super) fn silence(&self, asked: Vec<Silence>, (batch, now): (BatchId, Timestamp)) -> Result<Vec<Silence>> {
        let past = &mut *self.past.lock();
        let mut ended: Vec<Silence> =
            past.silences.values().filter(|(_, _, silence)| silence.until <= now).map(|(_, _, s)| s.clone()).collect();
        let mut told = ended.clone();
        for silence in asked {
            if silence.until > now && past.silences.len() >= SILENCES && !past.silences.contains_key(&silence.key) {
                tracing::warn!(history = self.name, "there are {SILENCES} silences: lift some, or silence all keys");
                continue;
            }
            if silence.until <= now {
                ended.extend(past.silences.get(&silence.key).map(|(_, _, silence)| silence.clone()));
            }
            told.push(silence);
        }
        let mut kept = Vec::new();
        for silence in told {
            let seq = past.next();
            kept.push((seq, now, silence.clone()));
            past.put(seq, now, silence);
        }
        let rows = if kept.is_empty() { Vec::new() } else { vec![self.of_silences(&kept)?] };
        past.delta = Some((batch, rows));
        Ok(ended)
    }

    /// Takes the changes of a batch; after [`Self::silence`].
    pub(super) fn take(&self, changes: &[AlertChange], batch: BatchId) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let past = &mut *self.past.lock();
        let numbered: Vec<(i64, &AlertChange)> = changes.iter().map(|change| (past.next(), change)).collect();
        let rows = self.of_changes(&numbered)?;
        numbered.into_iter().for_each(|(seq, change)| past.add(seq, change.clone()));
        match &mut past.delta {
            Some((of, delta)) if *of == batch => delta.push(rows),
            delta => *delta = Some((batch, vec![rows])),
        }
        Ok(())
    }

    /// When a silence ends.
    pub(super) fn wakes(&self) -> Option<Timestamp> {
        self.past.lock().silences.values().map(|(_, _, silence)| silence.until).min()
    }

    fn rows_with(&self, seq: impl Iterator<Item = i64>, what: &str, others: Vec<ArrayRef>) -> Result<RecordBatch> {
        let seq: Int64Array = seq.map(Some).collect();
        let what = StringArray::from(vec![what; seq.len()]);
        let columns = [Arc::new(seq) as ArrayRef, Arc::new(what)].into_iter().chain(others).collect();
        RecordBatch::try_new(Arc::clone(&self.schema), columns)
            .map_err(|e| Error::internal(format!("the state of `{}`", self.name)).because(e))
    }

    fn of_changes(&self, changes: &[(i64, &AlertChange)]) -> Result<RecordBatch> {
        let mut columns = rows::columns(&changes.iter().map(|(_, change)| *change).collect::<Vec<_>>());
        columns.push(new_null_array(&time_type(), changes.len()));
        self.rows_with(changes.iter().map(|(seq, _)| *seq), CHANGE, columns)
    }

    fn of_silences(&self, silences: &[(i64, Timestamp, Silence)]) -> Result<RecordBatch> {
        let columns = self.schema.fields()[2..].iter().map(|field| -> ArrayRef {
            match field.name().as_str() {
                "key" => Arc::new(silences.iter().map(|(_, _, s)| s.key.as_deref()).collect::<StringArray>()),
                "message" => Arc::new(silences.iter().map(|(_, _, s)| Some(s.why.as_str())).collect::<StringArray>()),
                "at" => times(silences.iter().map(|(_, at, _)| Some(*at))),
                "until" => times(silences.iter().map(|(_, _, s)| Some(s.until))),
                _ => new_null_array(field.data_type(), silences.len()),
            }
        });
        let columns = columns.collect();
        self.rows_with(silences.iter().map(|(seq, _, _)| *seq), SILENCE, columns)
    }

    fn all_rows(&self) -> Result<Vec<RecordBatch>> {
        let past = self.past.lock();
        let mut rows = Vec::new();
        if !past.changes.is_empty() {
            rows.push(self.of_changes(&past.changes.iter().map(|(seq, change)| (*seq, change)).collect::<Vec<_>>())?);
        }
        if !past.silences.is_empty() {
            rows.push(self.of_silences(&past.silences.values().cloned().collect::<Vec<_>>())?);
        }
        Ok(rows)
    }

    fn restored(&self, past: &mut Past, rows: &RecordBatch) -> Result<()> {
        let other = || Error::user(format!("the state of `{}` has other columns", self.name));
        if rows.num_columns() != self.schema.fields().len() {
            return Err(other());
        }
        let columns = rows.columns();
        let seq = columns[0].as_primitive_opt::<Int64Type>().ok_or_else(other)?;
        let changed = &columns[2..2 + rows::fields().len()];
        let [key, _, _, _, at, _, why, _] = changed else { return Err(other()) };
        let until = columns.last().ok_or_else(other)?;
        for row in 0..rows.num_rows() {
            let number = seq.value(row);
            if text(&columns[1], row) == Some(SILENCE) {
                let (key, why) = (text(key, row).map(str::to_string), text(why, row).unwrap_or_default().to_string());
                let (at, until) = (time(at, row).ok_or_else(other)?, time(until, row).ok_or_else(other)?);
                past.put(number, at, Silence { key, until, why });
            } else {
                past.add(number, rows::change(changed, row).ok_or_else(other)?);
            }
        }
        Ok(())
    }
}

impl StateOperator for History {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "alert_history"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn restore(&self, versions: &[Version]) -> Result<()> {
        let mut past = Past::default();
        for version in versions {
            if version.whole {
                past = Past::default();
            }
            version.rows.iter().try_for_each(|rows| self.restored(&mut past, rows))?;
        }
        *self.past.lock() = past;
        Ok(())
    }

    fn delta(&self, batch: BatchId) -> Result<Vec<RecordBatch>> {
        Ok(self.past.lock().delta.take_if(|(of, _)| *of == batch).map(|(_, rows)| rows).unwrap_or_default())
    }

    fn sweeps(&self) -> bool {
        true
    }

    fn sweep(&self, _rows: usize, _begin: bool) -> Result<Swept> {
        // They are few.
        Ok(Swept { rows: self.all_rows()?, whole: true })
    }

    fn snapshot(&self) -> Result<Vec<RecordBatch>> {
        self.all_rows()
    }

    fn rows(&self) -> usize {
        let past = self.past.lock();
        past.changes.len() + past.silences.len()
    }

    fn fresh(&self) -> Option<Arc<dyn StateOperator>> {
        Some(Arc::new(Self::new(self.name.clone())))
    }
}
