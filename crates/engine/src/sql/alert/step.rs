//! One batch of an alert.
//!
//! ```text
//! rows ─► what is tracked of each ─► conditions ─► keys turn ─► changes: rows, history, report
//! keys without rows: those that are gone, or due ──────┘
//! ```
//!
//! Invariant: keys turn in the order of their bytes, so that a batch that runs again gives
//! the same rows in the same order.

use super::{
    condition::Looked,
    keys::{Alerting, Keys},
    plan::{Entry, Key},
    rows,
};
use crate::plan::{BatchRun, external};
use arrow_array::{Array, Float64Array, RecordBatch, cast::AsArray, types::Float64Type};
use datafusion::common::Result as DfResult;
use std::collections::{BTreeMap, BTreeSet};
use tidemill_core::{AlertAsk, AlertChange, AlertNow, AlertReport, AlertState, Silence, Timestamp};

/// Keys that a report lists.
const LISTED: usize = 1_000;

/// What the rows of a key say.
#[derive(Debug, Clone, Copy)]
struct Said {
    /// WHEN holds for one.
    on: bool,
    /// CLEAR WHEN holds for all.
    off: bool,
    /// The row to tell of: the first for which WHEN holds, or the last.
    row: (usize, usize),
}

/// Keys as they were before the batch.
type Before = BTreeMap<Key, Option<Entry>>;

impl Alerting {
    /// Takes the rows of the view in a batch and gives the changes.
    pub(super) fn step(&self, came: &[RecordBatch], run: &BatchRun) -> DfResult<Vec<RecordBatch>> {
        let (plan, now) = (&self.plan, run.batch.time);
        let (tests, ended) = self.asked(run)?;
        let keys = &mut *self.keys.lock();
        let (mut before, mut said, mut looked) = (Before::new(), BTreeMap::<Key, Said>::new(), Vec::new());
        for of_rows in came {
            let names = plan.keys_of_rows(of_rows)?;
            let tracked = self.track(keys, &mut before, of_rows, &names, now)?;
            let found = plan.condition.look(of_rows, tracked)?;
            for (row, key) in names.into_iter().enumerate() {
                let (on, off, row) = (found.on.value(row), found.off.value(row), (looked.len(), row));
                match said.get_mut(&key) {
                    None => drop(said.insert(key, Said { on, off, row })),
                    Some(before) => {
                        if !before.on {
                            before.row = row;
                        }
                        (before.on, before.off) = (before.on || on, before.off && off);
                    }
                }
            }
            looked.push(found);
        }
        let gone = plan.tells_gone(!said.is_empty());
        let all = gone || keys.next.is_some_and(|next| next <= now);
        let mut turning: BTreeSet<Key> = said.keys().cloned().collect();
        if plan.keys.is_empty() {
            turning.insert(Key::default());
        }
        if all {
            turning.extend(keys.entries.keys().cloned());
            keys.next = None;
        }
        let (mut changes, mut delta, mut news) = (tests, Vec::new(), false);
        for key in turning {
            let known = keys.entries.remove(&key);
            let old = before.remove(&key).unwrap_or_else(|| known.clone());
            let entry = known.unwrap_or_else(|| plan.new_entry(now));
            let (new, change) = self.turn(&key, entry, said.get(&key), (looked.as_slice(), gone), now)?;
            changes.extend(change);
            if let Some(at) = new.as_ref().and_then(|entry| plan.deadline(entry)) {
                keys.next = Some(keys.next.map_or(at, |next| next.min(at)));
            }
            if new != old {
                let is_on = |entry: &Option<Entry>| entry.as_ref().is_some_and(|e| e.state != AlertState::Ok);
                news |= is_on(&new) || is_on(&old);
                delta.push((key.clone(), new.clone()));
            }
            if let Some(entry) = new {
                keys.entries.insert(key, entry);
            }
        }
        self.heard_again(keys, &ended, &mut changes, now)?;
        let kept = self.rows_of(delta.iter().map(|(key, entry)| (key, entry.as_ref())))?;
        keys.delta = Some((run.batch.id, kept));
        self.history.take(&changes, run.batch.id).map_err(external)?;
        if news || !changes.is_empty() || !ended.is_empty() || !keys.is_told {
            self.tell(self.report_of(keys, run)?);
            keys.is_told = true;
        }
        rows::rows(&plan.name, &self.report.severity, &changes)
    }

    /// Takes what was asked for: rows to test with, and the silences that end.
    fn asked(&self, run: &BatchRun) -> DfResult<(Vec<AlertChange>, Vec<Silence>)> {
        let (batch, now) = (run.batch.id, run.batch.time);
        let (mut tests, mut silences) = (Vec::new(), Vec::new());
        let asks = self.take_asks(batch);
        let is_asked = !asks.is_empty();
        for ask in asks {
            match ask {
                AlertAsk::Silence(silence) => silences.push(silence),
                AlertAsk::Test => tests.push(AlertChange {
                    key: String::new(),
                    state: AlertState::Test,
                    was: AlertState::Test,
                    since: now,
                    at: now,
                    value: None,
                    message: format!("a test of the alert {}", self.plan.name),
                    silenced: false,
                }),
            }
        }
        let ended = self.history.silence(silences, (batch, now)).map_err(external)?;
        if is_asked {
            self.keys.lock().is_told = false;
        }
        Ok((tests, ended))
    }

    /// What is tracked of each row, in order; keys remember it.
    fn track(
        &self,
        keys: &mut Keys,
        before: &mut Before,
        rows: &RecordBatch,
        names: &[Key],
        now: Timestamp,
    ) -> DfResult<Vec<Float64Array>> {
        let tracked = &self.plan.condition.tracked;
        if tracked.is_empty() {
            return Ok(Vec::new());
        }
        let of = |call: &super::memory::Tracked| -> DfResult<Float64Array> {
            Ok(call.of.evaluate(rows)?.into_array(rows.num_rows())?.as_primitive::<Float64Type>().clone())
        };
        let of = tracked.iter().map(of).collect::<DfResult<Vec<_>>>()?;
        let mut found: Vec<Vec<Option<f64>>> = vec![Vec::with_capacity(names.len()); tracked.len()];
        for (row, key) in names.iter().enumerate() {
            if !before.contains_key(key) {
                before.insert(key.clone(), keys.entries.get(key).cloned());
            }
            let entry = keys.entries.entry(key.clone()).or_insert_with(|| self.plan.new_entry(now));
            let values: Vec<Option<f64>> = of.iter().map(|of| of.is_valid(row).then(|| of.value(row))).collect();
            for (into, value) in found.iter_mut().zip(entry.memory.take(tracked, &values, now)) {
                into.push(value);
            }
        }
        Ok(found.into_iter().map(Float64Array::from).collect())
    }

    /// Turns a key. Gives its entry from now on, and the change if there is one.
    fn turn(
        &self,
        key: &Key,
        mut entry: Entry,
        said: Option<&Said>,
        (looked, gone): (&[Looked], bool),
        now: Timestamp,
    ) -> DfResult<(Option<Entry>, Option<AlertChange>)> {
        let plan = &self.plan;
        let was = entry.state;
        let forgotten = plan.turn(&mut entry, said.map(|said| (said.on, said.off)), gone, now);
        let is_well = was == AlertState::Ok && entry.state == AlertState::Ok;
        let mut change = None;
        if !is_well {
            let text =
                if entry.state != was || plan.condition.names_key() { plan.text_of(key)? } else { String::new() };
            if let Some(said) = said {
                let (part, row) = said.row;
                entry.value = looked[part].value.as_ref().filter(|v| v.is_valid(row)).map(|v| v.value(row));
                entry.message = plan.condition.message(&looked[part], row, &text)?;
            }
            if entry.state != was {
                if entry.state == AlertState::Missing || forgotten {
                    let of = if text.is_empty() { String::new() } else { format!("{text}: ") };
                    let quiet = entry.quiet.unwrap_or(now);
                    let forgotten = if forgotten { "; forgotten" } else { "" };
                    entry.message = format!("{of}no row since {quiet}{forgotten}");
                    entry.value = None;
                }
                change = Some(AlertChange {
                    silenced: self.history.with(|past| past.is_silenced(&text, now)),
                    key: text,
                    state: entry.state,
                    was,
                    since: entry.since,
                    at: now,
                    value: entry.value,
                    message: entry.message.clone(),
                });
            }
        }
        if entry.state == AlertState::Ok {
            entry.value = None;
            entry.message.clear();
        }
        Ok(((!forgotten && plan.keeps(&entry)).then_some(entry), change))
    }

    /// Tells of the keys that are not well and whose silence has ended.
    fn heard_again(
        &self,
        keys: &Keys,
        ended: &[Silence],
        changes: &mut Vec<AlertChange>,
        now: Timestamp,
    ) -> DfResult<()> {
        if ended.is_empty() {
            return Ok(());
        }
        for (key, entry) in keys.entries.iter().filter(|(_, entry)| entry.state.is_on()) {
            let text = self.plan.text_of(key)?;
            let is_of = |silence: &Silence| silence.key.as_ref().is_none_or(|key| *key == text);
            let is_silenced = self.history.with(|past| past.is_silenced(&text, now));
            if is_silenced || !ended.iter().any(is_of) || changes.iter().any(|change| change.key == text) {
                continue;
            }
            changes.push(AlertChange {
                key: text,
                state: entry.state,
                was: entry.state,
                since: entry.since,
                at: now,
                value: entry.value,
                message: entry.message.clone(),
                silenced: false,
            });
        }
        Ok(())
    }

    /// How the alert stands.
    fn report_of(&self, keys: &Keys, run: &BatchRun) -> DfResult<AlertReport> {
        let now = run.batch.time;
        let on = || keys.entries.iter().filter(|(_, entry)| entry.state != AlertState::Ok);
        let count = |state: AlertState| on().filter(|(_, entry)| entry.state == state).count();
        // What fires is listed before what may.
        let mut listed: Vec<(&Key, &Entry)> = on().filter(|(_, entry)| entry.state.is_on()).take(LISTED).collect();
        let left = LISTED - listed.len();
        listed.extend(on().filter(|(_, entry)| !entry.state.is_on()).take(left));
        let texts = self.plan.texts_of(&listed.iter().map(|(key, _)| *key).collect::<Vec<_>>())?;
        Ok(self.history.with(|past| AlertReport {
            batch: run.batch.id,
            time: now,
            pending: count(AlertState::Pending),
            firing: count(AlertState::Firing),
            missing: count(AlertState::Missing),
            now: listed
                .into_iter()
                .zip(texts)
                .map(|((_, entry), key)| AlertNow {
                    silenced: past.is_silenced(&key, now),
                    key,
                    state: entry.state,
                    since: entry.since,
                    value: entry.value,
                    message: entry.message.clone(),
                })
                .collect(),
            silences: past.silences(),
            changes: past.changes(),
            ..self.report.clone()
        }))
    }
}
