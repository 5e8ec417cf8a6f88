//! The state of an operator as a batch left it, read from its files.
//!
//! ```text
//! ledger: program and version at batch 17 ─► state/<dir>/ … 16.snap 17.delta ─► rows as people read them
//! ```
//!
//! Invariant: nothing is written, so this may stand beside the program that
//! owns the files. A version is given whole or not at all. Called by queries
//! over `state.<operator>`, by the replay of a batch, and when a program changes.

use super::{StateOperator, Version, collected};
use arrow_array::{BooleanArray, RecordBatch};
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_schema::{Schema, SchemaRef};
use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
};
use tidemill_core::{BatchId, Error, Result};
use tidemill_store::{Disk, StateFiles, ledger::OperatorEntry, state::Again};

/// How often files that were pruned meanwhile are looked for again.
const TRIES: usize = 3;

/// The rows of a state and their columns.
#[derive(Debug, Clone)]
pub(crate) struct LookedAt {
    pub(crate) schema: SchemaRef,
    pub(crate) rows: Vec<RecordBatch>,
}

/// The versions that lead to `version` of an operator whose state is below
/// `states`, under the columns that they were written with. `None` when nothing
/// was ever kept.
pub(crate) fn versions(
    disk: &Arc<dyn Disk>,
    states: &Path,
    entry: &OperatorEntry,
    version: BatchId,
) -> Result<Option<(SchemaRef, Vec<Version>)>> {
    let mut tried = 0;
    loop {
        tried += 1;
        let dir = states.join(entry.dir());
        let Some(mut files) = StateFiles::look(Arc::clone(disk), &dir, &entry.name)? else { return Ok(None) };
        let found = files.oldest().and_then(|oldest| {
            if oldest > version {
                return Err(Error::user(format!(
                    "the state of `{}` at batch {version} is kept no more: the oldest version is {oldest}",
                    entry.name
                )));
            }
            collected(&mut |each| files.load_each(version, each))
        });
        match found {
            Ok(found) => return Ok(Some((Arc::clone(files.columns()), found))),
            // The owner may have pruned files between the look and the load.
            Err(error) if tried == TRIES => return Err(error),
            Err(_) => {}
        }
    }
}

/// The state of `entry` at `version` as people read it: by the operator `like`
/// when it has the same columns, else the rows as they were kept.
pub(crate) fn rows_at(
    disk: &Arc<dyn Disk>,
    states: &Path,
    entry: &OperatorEntry,
    version: BatchId,
    like: Option<&Arc<dyn StateOperator>>,
) -> Result<LookedAt> {
    let found = if version.0 == 0 { None } else { versions(disk, states, entry, version)? };
    let columns = match &found {
        Some((columns, _)) => Some(Arc::clone(columns)),
        None => entry.columns()?,
    };
    let versions = found.map(|(_, versions)| versions).unwrap_or_default();
    let same = |like: &&Arc<dyn StateOperator>| {
        columns.as_ref().is_none_or(|columns| {
            tidemill_store::ledger::fingerprint(columns) == tidemill_store::ledger::fingerprint(&like.schema())
        })
    };
    if let Some(fresh) = like.filter(same).and_then(|like| like.fresh()) {
        fresh.restore(&versions)?;
        let rows = fresh.shown()?;
        let schema = rows.first().map_or_else(|| fresh.schema(), RecordBatch::schema);
        return Ok(LookedAt { schema, rows });
    }
    let schema = columns.ok_or_else(|| Error::user(format!("nothing is known of the state of `{}`", entry.name)))?;
    Ok(LookedAt { rows: folded(&versions, entry)?, schema })
}

/// By how many of its columns, the first ones, a state's rows take each other's place;
/// `None` where they add up.
fn replaced_by(entry: &OperatorEntry, schema: &Schema) -> Option<usize> {
    let count = schema.fields().len();
    let is_named = |at: usize, name: &str| schema.fields().get(at).is_some_and(|field| field.name() == name);
    match entry.kind.as_str() {
        kind if kind.contains("state") || kind == "with_timers" => Some(entry.keys.unwrap_or(1)),
        "alert" | "alert_history" => Some(entry.keys.unwrap_or(1)),
        "distinct" => Some(count),
        // Rows that wait for a partner have numbers.
        "join" if is_named(0, "_id") => Some(1),
        // Numbers of rows by key.
        "count_window" if is_named(count.wrapping_sub(1), "_rows") => Some(count - 1),
        _ => None,
    }
}

/// The rows that count, without the operator: of a keyed state the newest of
/// each key, unless it was removed; of an aggregate all, which add up.
fn folded(versions: &[Version], entry: &OperatorEntry) -> Result<Vec<RecordBatch>> {
    let from = versions.iter().rposition(|version| version.whole).unwrap_or(0);
    let batches: Vec<&RecordBatch> = versions[from..].iter().flat_map(|version| &version.rows).collect();
    let schema = batches.first().map(|rows| rows.schema());
    let Some(keys) = schema.and_then(|schema| replaced_by(entry, &schema)) else {
        return added_up(&versions[from..]);
    };
    let mut newest: HashMap<String, (usize, usize)> = HashMap::new();
    for (at, rows) in batches.iter().enumerate() {
        for (row, key) in keys_of(rows, keys)?.into_iter().enumerate() {
            newest.insert(key, (at, row));
        }
    }
    let mut out = Vec::new();
    for (at, rows) in batches.iter().enumerate() {
        let others = &rows.columns()[keys.min(rows.num_columns())..];
        let removed = |row: usize| !others.is_empty() && others.iter().all(|column| column.is_null(row));
        let names = keys_of(rows, keys)?;
        let keep =
            names.iter().enumerate().map(|(row, key)| Some(newest.get(key) == Some(&(at, row)) && !removed(row)));
        let keep = keep.collect::<arrow_array::BooleanArray>();
        let rows = arrow_select::filter::filter_record_batch(rows, &keep).map_err(broken)?;
        if rows.num_rows() > 0 {
            out.push(rows);
        }
    }
    Ok(out)
}

/// Rows that add up, without those whose place others have taken.
fn added_up(versions: &[Version]) -> Result<Vec<RecordBatch>> {
    let mut out = Vec::new();
    // Keys that have been seen in rows kept again; from the newest version on.
    let mut replaced: HashSet<String> = HashSet::new();
    let columns = versions.iter().find_map(|version| match &version.again {
        Some(Again::InPlaceOf(columns)) => Some(columns),
        Some(Again::Once) | None => None,
    });
    for version in versions.iter().rev() {
        let mut own = Vec::new();
        for rows in &version.rows {
            let Some(columns) = columns else {
                out.push(rows.clone());
                continue;
            };
            let names = keys_of(&rows.project(columns).map_err(broken)?, usize::MAX)?;
            let keep: BooleanArray = names.iter().map(|name| Some(!replaced.contains(name))).collect();
            out.push(arrow_select::filter::filter_record_batch(rows, &keep).map_err(broken)?);
            if version.again.is_some() {
                own.extend(names);
            }
        }
        replaced.extend(own);
    }
    out.retain(|rows| rows.num_rows() > 0);
    out.reverse();
    Ok(out)
}

fn broken(error: arrow_schema::ArrowError) -> Error {
    Error::internal("rows of a state").because(error)
}

/// The key of each row as text: equal for equal keys.
pub(crate) fn keys_of(rows: &RecordBatch, keys: usize) -> Result<Vec<String>> {
    let options = FormatOptions::default().with_null("\u{0}");
    let columns = rows.columns()[..keys.min(rows.num_columns())]
        .iter()
        .map(|column| ArrayFormatter::try_new(column, &options))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| Error::internal("keys of a state").because(e))?;
    Ok((0..rows.num_rows())
        .map(|row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join("\u{1}"))
        .collect())
}
