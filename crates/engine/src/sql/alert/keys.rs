//! The keys of an alert as state: kept with each batch, and given back after a restart.
//!
//! A row has the key's columns and where it stands; one with nothing but the key says that
//! it was let go. A later row of a key takes the place of an earlier one.
//!
//! Invariant: a key that is well, and of which nothing is to be remembered, has no row.
//! Filled by [`super::step`].

use super::{
    history::History,
    memory::Memory,
    plan::{Entry, Key, Plan},
    rows::{number, text, time, time_type, times},
};
use crate::state::{StateOperator, Swept, Version};
use arrow_array::{
    Array, ArrayRef, Float64Array, ListArray, RecordBatch, StringArray, cast::AsArray, new_empty_array,
    types::Float64Type,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::common::Result as DfResult;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
};
use tidemill_core::{AlertAsk, AlertReport, AlertState, BatchId, Board, Error, Result, Timestamp};

/// Columns of the state behind the keys.
pub(super) const COLUMNS: [&str; 6] = ["state", "since", "quiet", "value", "message", "memory"];

/// The keys now.
#[derive(Debug, Default)]
pub(super) struct Keys {
    pub(super) entries: BTreeMap<Key, Entry>,
    /// No key turns by itself before this.
    pub(super) next: Option<Timestamp>,
    /// The key that a sweep gave last.
    swept: Option<Key>,
    pub(super) delta: Option<(BatchId, RecordBatch)>,
    /// Whether the board has heard of these keys.
    pub(super) is_told: bool,
}

/// What was asked for, and the batch that has taken it.
#[derive(Debug, Default)]
struct Asks(VecDeque<(BatchId, Vec<AlertAsk>)>, Vec<AlertAsk>);

/// The state of an alert.
#[derive(Debug)]
pub(super) struct Alerting {
    pub(super) plan: Arc<Plan>,
    pub(super) keys: Mutex<Keys>,
    pub(super) history: Arc<History>,
    /// What does not change of a report.
    pub(super) report: AlertReport,
    board: Arc<Board>,
    asks: Mutex<Asks>,
    /// Reports of batches that are not committed.
    reports: Mutex<VecDeque<AlertReport>>,
    schema: SchemaRef,
}

impl Alerting {
    pub(super) fn new(plan: Arc<Plan>, board: &Arc<Board>, report: &AlertReport) -> Self {
        let own = [
            Field::new("state", DataType::Utf8, true),
            Field::new("since", time_type(), true),
            Field::new("quiet", time_type(), true),
            Field::new("value", DataType::Float64, true),
            Field::new("message", DataType::Utf8, true),
            Field::new("memory", DataType::new_list(DataType::Float64, true), true),
        ];
        let schema = Arc::new(Schema::new(plan.keys.iter().cloned().chain(own).collect::<Vec<_>>()));
        let history = Arc::new(History::new(plan.history_name()));
        let (board, report) = (Arc::clone(board), report.clone());
        let (keys, asks, reports) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { plan, keys, history, report, board, asks, reports, schema }
    }

    /// What was asked for since the batch before.
    pub(super) fn take_asks(&self, batch: BatchId) -> Vec<AlertAsk> {
        let Asks(taken, waiting) = &mut *self.asks.lock();
        waiting.extend(self.board.take_alert_asks(&self.plan.name));
        let asks = std::mem::take(waiting);
        if !asks.is_empty() {
            taken.push_back((batch, asks.clone()));
        }
        asks
    }

    /// Tells the board when the batch is committed.
    pub(super) fn tell(&self, report: AlertReport) {
        self.reports.lock().push_back(report);
    }

    /// Keys as rows; those without an entry are gone.
    pub(super) fn rows_of<'a>(
        &self,
        keys: impl Iterator<Item = (&'a Key, Option<&'a Entry>)> + Clone,
    ) -> DfResult<RecordBatch> {
        let entries = || keys.clone().map(|(_, entry)| entry);
        let tracked = &self.plan.condition.tracked;
        let memory =
            entries().map(|entry| entry.map(|e| e.memory.kept(tracked).into_iter().map(Some).collect::<Vec<_>>()));
        let own: [ArrayRef; 6] = [
            Arc::new(entries().map(|entry| entry.map(|e| e.state.name())).collect::<StringArray>()),
            times(entries().map(|entry| entry.map(|e| e.since))),
            times(entries().map(|entry| entry.and_then(|e| e.quiet))),
            Arc::new(entries().map(|entry| entry.and_then(|e| e.value)).collect::<Float64Array>()),
            Arc::new(entries().map(|entry| entry.map(|e| e.message.as_str())).collect::<StringArray>()),
            Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>(memory)),
        ];
        let columns = self.plan.columns_of(keys.map(|(key, _)| key))?.into_iter().chain(own);
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns.collect())?)
    }

    fn all_rows(&self) -> Result<Vec<RecordBatch>> {
        let keys = self.keys.lock();
        if keys.entries.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.rows_of(keys.entries.iter().map(|(key, entry)| (key, Some(entry))));
        Ok(vec![rows.map_err(|e| self.broken(e))?])
    }

    fn broken(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::internal(format!("the state of `{}`", self.plan.name)).because(error)
    }

    /// Takes rows as [`Self::rows_of`] made them.
    fn take(&self, entries: &mut BTreeMap<Key, Entry>, rows: &RecordBatch) -> Result<()> {
        let other = || Error::user(format!("the state of `{}` has other columns", self.plan.name));
        let count = self.plan.keys.len();
        let rows =
            RecordBatch::try_new(Arc::clone(&self.schema), rows.columns().to_vec()).map_err(|e| other().because(e))?;
        let (of_keys, own) = rows.columns().split_at(count);
        let [state, since, quiet, value, message, memory] = own else { return Err(other()) };
        let memory = memory.as_list_opt::<i32>().ok_or_else(other)?;
        let keys = self.plan.keys_of(of_keys, rows.num_rows()).map_err(|e| self.broken(e))?;
        for (row, key) in keys.into_iter().enumerate() {
            let Some(state) = text(state, row) else {
                entries.remove(&key);
                continue;
            };
            let kept = if memory.is_valid(row) { memory.value(row) } else { new_empty_array(&DataType::Float64) };
            let kept = kept.as_primitive_opt::<Float64Type>().ok_or_else(other)?.values().to_vec();
            let entry = Entry {
                state: AlertState::of(state).ok_or_else(other)?,
                since: time(since, row).unwrap_or_default(),
                quiet: time(quiet, row),
                value: number(value, row),
                message: text(message, row).unwrap_or_default().to_string(),
                memory: Memory::restored(&kept, &self.plan.condition.tracked),
            };
            entries.insert(key, entry);
        }
        Ok(())
    }
}

impl StateOperator for Alerting {
    fn name(&self) -> &str {
        &self.plan.name
    }

    fn kind(&self) -> &'static str {
        "alert"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn restore(&self, versions: &[Version]) -> Result<()> {
        let mut entries = BTreeMap::new();
        for version in versions {
            if version.whole {
                entries.clear();
            }
            version.rows.iter().try_for_each(|rows| self.take(&mut entries, rows))?;
        }
        let next = entries.values().filter_map(|entry| self.plan.deadline(entry)).min();
        *self.keys.lock() = Keys { entries, next, ..Keys::default() };
        self.reports.lock().clear();
        // Batches that were not committed have taken it in vain.
        let Asks(taken, waiting) = &mut *self.asks.lock();
        let again: Vec<AlertAsk> = taken.drain(..).flat_map(|(_, asks)| asks).chain(waiting.drain(..)).collect();
        *waiting = again;
        Ok(())
    }

    fn delta(&self, batch: BatchId) -> Result<Vec<RecordBatch>> {
        let delta = self.keys.lock().delta.take_if(|(of, _)| *of == batch);
        Ok(delta.map(|(_, rows)| rows).filter(|rows| rows.num_rows() > 0).into_iter().collect())
    }

    fn sweeps(&self) -> bool {
        true
    }

    fn sweep(&self, rows: usize, begin: bool) -> Result<Swept> {
        let keys = &mut *self.keys.lock();
        if begin {
            keys.swept = None;
        }
        let from = keys.swept.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let found: Vec<(&Key, Option<&Entry>)> = keys
            .entries
            .range::<Key, _>((from, Bound::Unbounded))
            .map(|(key, entry)| (key, Some(entry)))
            .take(rows.max(1))
            .collect();
        let whole = found.len() < rows.max(1);
        let given = if found.is_empty() {
            Vec::new()
        } else {
            vec![self.rows_of(found.iter().copied()).map_err(|e| self.broken(e))?]
        };
        if let Some(last) = found.last().map(|(key, _)| (*key).clone()) {
            keys.swept = Some(last);
        }
        Ok(Swept { rows: given, whole })
    }

    fn snapshot(&self) -> Result<Vec<RecordBatch>> {
        self.all_rows()
    }

    fn rows(&self) -> usize {
        self.keys.lock().entries.len()
    }

    fn keys(&self) -> usize {
        self.plan.keys.len()
    }

    fn fresh(&self) -> Option<Arc<dyn StateOperator>> {
        Some(Arc::new(Self::new(Arc::clone(&self.plan), &Arc::new(Board::default()), &self.report)))
    }

    fn wakes(&self, last: Timestamp) -> Option<Timestamp> {
        let asked = self.board.is_alert_asked(&self.plan.name) || !self.asks.lock().1.is_empty();
        let turns = [self.keys.lock().next, self.history.wakes(), asked.then_some(last)];
        turns.into_iter().flatten().min()
    }

    fn committed(&self, batch: BatchId) {
        self.asks.lock().0.retain(|(of, _)| *of > batch);
        let mut reports = self.reports.lock();
        let mut newest = None;
        while reports.front().is_some_and(|report| report.batch <= batch) {
            newest = reports.pop_front();
        }
        if let Some(report) = newest {
            self.board.publish_alert(report);
        }
    }
}
