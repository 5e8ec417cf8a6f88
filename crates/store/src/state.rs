//! The versioned rows of one operator, as files.
//!
//! ```text
//! 3.snap ─► 4.delta ─► 5.delta ─► 6.delta        load(5) = [3.snap, 4.delta, 5.delta]
//! 4.delta ─► 5.delta ─► 6.delta (since 4)        load(6) = [4.delta, 5.delta, 6.delta]
//! ```
//!
//! A delta is what one batch changed, a snapshot everything. Where a later row
//! of a key replaces an earlier one, a delta may also repeat rows that did not
//! change: in turn, so that after one round the deltas since its begin hold
//! everything, which their heads then say, and no snapshot is needed. Where rows
//! add up, those kept again are told from the others, and read only in a chain that
//! begins with their round. Each file is written aside, synced and renamed, names the
//! version before it, and ends with a foot, so that a file that is there is whole or
//! known to be damaged, and a missing one is noticed. The files, byte by byte, are
//! in `docs/formats/state.md`.
//!
//! Invariant: `load` gives the whole state of a version or an error, never a
//! part of it. Called by the engine's state stores, which decide when a
//! snapshot is due.

use crate::{
    disk::{self, Disk},
    fault::Named,
    ipc,
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{BatchId, Error, Result};

mod file;
mod look;
mod narrow;
mod unfinished;
pub(crate) use file::{FileHead, Writer, read_rows};
use file::{Mark, Part, Word};
pub use look::{operators_in, remove_all};
pub use unfinished::Unfinished;
#[cfg(test)]
mod tests;

/// What a file of state holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateKind {
    /// What one version changed.
    Delta,
    /// All rows of a version.
    Snapshot,
}

/// One version that [`StateFiles::load`] found: its number, what it is, its rows.
pub type StateVersion = (BatchId, StateKind, Vec<RecordBatch>);

/// The files of one operator's state.
#[derive(Debug)]
pub struct StateFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    name: String,
    schema: SchemaRef,
    files: BTreeSet<(u64, StateKind)>,
    /// Snapshots that were read or written whole in this life.
    verified: BTreeSet<u64>,
    sizes: Sizes,
    /// What the heads of deltas say, as far as somebody asked.
    heads: BTreeMap<u64, Links>,
}

/// Bytes of files, as far as somebody asked.
#[derive(Debug, Default)]
struct Sizes {
    known: BTreeMap<(u64, StateKind), u64>,
    /// Of those that are known.
    total: u64,
    unknown: BTreeSet<(u64, StateKind)>,
}

impl Sizes {
    fn forget(&mut self, file: (u64, StateKind)) {
        self.unknown.remove(&file);
        self.total -= self.known.remove(&file).unwrap_or_default();
    }

    fn add(&mut self, file: (u64, StateKind)) {
        self.forget(file);
        self.unknown.insert(file);
    }
}

/// How a delta hangs together with other files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Links {
    previous: Option<u64>,
    since: Option<u64>,
}

/// How rows that are kept again, and told from others, go with those that came before them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Again {
    /// Each row that was there before the round comes once in it, and not otherwise.
    Once,
    /// In place of all rows that came before and have the same values in these columns.
    InPlaceOf(Vec<usize>),
}

/// Rows to be kept again, told from others.
#[derive(Debug)]
pub struct KeptAgain<'a> {
    /// The version with which their round began.
    pub round: BatchId,
    /// How they go with others.
    pub again: &'a Again,
    /// The rows.
    pub rows: &'a [RecordBatch],
}

/// What [`StateFiles::load_each`] hands out, in this order.
#[derive(Debug)]
pub enum Piece {
    /// Forget what came: a snapshot turned out to be damaged, an older one follows.
    Reset,
    /// A version begins. A snapshot replaces what came before it.
    Version(BatchId, StateKind),
    /// The rows of the version that follow are kept again.
    Again(Again),
    /// Rows of it.
    Rows(RecordBatch),
}

impl StateFiles {
    /// Opens the state of operator `name` in `dir`, which is created if need be.
    ///
    /// # Errors
    /// When the columns can't be stored, or the disk refuses.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, name: &str, schema: SchemaRef) -> Result<Self> {
        ipc::check_schema(&schema)?;
        disk::create_dir(&*disk, dir).named("create", dir)?;
        let mut files = BTreeSet::new();
        for file in disk.list(dir).named("list", dir)? {
            if file.ends_with(".tmp") {
                let path = dir.join(&file);
                disk.remove(&path).named("remove", &path)?;
            } else if let Some(found) = parse_name(&file) {
                files.insert(found);
            }
        }
        let sizes = Sizes { unknown: files.clone(), ..Sizes::default() };
        Ok(Self {
            disk,
            dir: dir.to_owned(),
            name: name.to_owned(),
            schema,
            files,
            verified: BTreeSet::new(),
            sizes,
            heads: BTreeMap::new(),
        })
    }

    /// Saves what `version` changed; durable when this returns. Replaces an
    /// earlier try of the same version.
    ///
    /// # Errors
    /// When the columns don't fit, a later version is there, or the disk
    /// refuses: then the version is not saved.
    pub fn save_delta(&mut self, version: BatchId, rows: &[RecordBatch]) -> Result<()> {
        self.save_rolled(version, rows, None)
    }

    /// As [`StateFiles::save_delta`], of an operator whose later rows replace
    /// earlier ones: the deltas from `since` on, up to this one, hold all rows.
    ///
    /// # Errors
    /// As [`StateFiles::save_delta`].
    pub fn save_rolled(&mut self, version: BatchId, rows: &[RecordBatch], since: Option<BatchId>) -> Result<()> {
        self.save_rows(version, rows, None, since)
    }

    /// As [`StateFiles::save_rolled`], of an operator whose rows add up: `kept` are the rows that are
    /// kept again beside those that the version changed. They are read only by who begins with the
    /// version with which their round began.
    ///
    /// # Errors
    /// As [`StateFiles::save_delta`].
    pub fn save_again(
        &mut self,
        version: BatchId,
        rows: &[RecordBatch],
        kept: &KeptAgain<'_>,
        since: Option<BatchId>,
    ) -> Result<()> {
        self.save_rows(version, rows, Some(kept), since)
    }

    fn save_rows(
        &mut self,
        version: BatchId,
        rows: &[RecordBatch],
        kept: Option<&KeptAgain<'_>>,
        since: Option<BatchId>,
    ) -> Result<()> {
        self.refuse_older(version)?;
        let from = rows.iter().map(|rows| rows.num_rows() as u64).sum();
        let mark = kept.map(|kept| Mark {
            from,
            round: kept.round.0,
            keys: match kept.again {
                Again::Once => None,
                Again::InPlaceOf(columns) => Some(columns.clone()),
            },
        });
        let mut writer = self.create(version, StateKind::Delta, since, mark)?;
        for rows in rows.iter().chain(kept.map_or(&[][..], |kept| kept.rows)) {
            writer.rows(rows)?;
        }
        self.finish(version, StateKind::Delta, writer)?;
        let links = Links { previous: self.before(version.0), since: since.map(|since| since.0) };
        self.heads.insert(version.0, links);
        Ok(())
    }

    /// Saves all rows of `version`; durable when this returns.
    ///
    /// # Errors
    /// As [`StateFiles::save_delta`].
    pub fn save_snapshot(&mut self, version: BatchId, rows: impl Iterator<Item = RecordBatch>) -> Result<()> {
        self.refuse_older(version)?;
        let mut writer = self.create(version, StateKind::Snapshot, None, None)?;
        for rows in rows {
            writer.rows(&rows)?;
        }
        self.finish(version, StateKind::Snapshot, writer)
    }

    fn refuse_older(&self, version: BatchId) -> Result<()> {
        match self.files.last() {
            Some((newest, _)) if *newest > version.0 => Err(Error::internal(format!(
                "operator \"{}\": version {version} is saved while version {newest} is there: truncate first",
                self.name
            ))),
            _ => Ok(()),
        }
    }

    /// The version before this one that has a file.
    fn before(&self, version: u64) -> Option<u64> {
        self.files.iter().rev().map(|(v, _)| *v).find(|v| *v < version)
    }

    fn create(&self, version: BatchId, kind: StateKind, since: Option<BatchId>, again: Option<Mark>) -> Result<Writer> {
        let head = FileHead {
            operator: self.name.clone(),
            kind: match (kind, &again) {
                (StateKind::Snapshot, _) => Word::Snapshot,
                (StateKind::Delta, None) => Word::Delta,
                (StateKind::Delta, Some(_)) => Word::Rolled,
            },
            version: version.0,
            previous: self.before(version.0),
            since: since.map(|since| since.0),
            again,
        };
        Writer::create(&self.disk, self.path(version.0, kind), &head, &self.schema)
    }

    fn finish(&mut self, version: BatchId, kind: StateKind, writer: Writer) -> Result<()> {
        writer.finish()?;
        self.files.insert((version.0, kind));
        self.sizes.add((version.0, kind));
        self.disk.sync_dir(&self.dir).named("sync", &self.dir)?;
        if kind == StateKind::Snapshot {
            self.verified.insert(version.0);
        }
        Ok(())
    }

    /// The state of version `upto`: a snapshot, or nothing, and the deltas after
    /// it, in order. Later versions are ignored. Empty when nothing was ever saved.
    ///
    /// # Errors
    /// When no whole chain of files leads to the version, naming what is
    /// damaged or missing; when the columns are not those of `open`.
    pub fn load(&mut self, upto: BatchId) -> Result<Vec<StateVersion>> {
        let mut versions: Vec<StateVersion> = Vec::new();
        self.load_each(upto, &mut |piece| {
            match piece {
                Piece::Reset => versions.clear(),
                Piece::Version(version, kind) => versions.push((version, kind, Vec::new())),
                Piece::Rows(rows) => versions.iter_mut().last().into_iter().for_each(|v| v.2.push(rows.clone())),
                Piece::Again(_) => {}
            }
            Ok(())
        })?;
        Ok(versions)
    }

    /// As [`StateFiles::load`], piece by piece: no more than a frame of a file is held.
    ///
    /// # Errors
    /// As [`StateFiles::load`], and what `each` refuses.
    pub fn load_each(&mut self, upto: BatchId, each: &mut dyn FnMut(Piece) -> Result<()>) -> Result<()> {
        let snapshots = self.versions(StateKind::Snapshot, upto.0);
        let deltas = self.versions(StateKind::Delta, upto.0);
        let (mut damaged, mut base) = (None, None);
        for version in snapshots.iter().rev() {
            // Deltas that hold everything since then come before an older snapshot.
            if deltas.last() > Some(version) && self.rolled(&deltas)?.is_some_and(|since| since > *version) {
                break;
            }
            // What `each` refuses is no damage.
            let mut refused = false;
            each(Piece::Version(BatchId(*version), StateKind::Snapshot))?;
            let read = self.read(*version, StateKind::Snapshot, &mut |part| match part {
                Part::Head(_) => Ok(()),
                Part::Rows(rows) | Part::Again(rows) => each(Piece::Rows(rows)).inspect_err(|_| refused = true),
            });
            match read {
                Ok(()) => {
                    self.verified.insert(*version);
                    base = Some(*version);
                    break;
                }
                Err(error) if refused || error.blame() == tidemill_core::Blame::User => return Err(error),
                Err(error) => {
                    tracing::error!(operator = %self.name, version, error = %error.chain(), "a snapshot is damaged; an older one is tried");
                    damaged.get_or_insert(error);
                    each(Piece::Reset)?;
                }
            }
        }
        let newer = |at: Option<u64>| deltas.iter().copied().filter(move |v| at.is_none_or(|at| *v > at));
        let rolled = if newer(base).next().is_some() { self.rolled(&deltas)? } else { None };
        let mut at = base;
        // Without an older snapshot, the round that holds everything begins the chain.
        let begin = rolled.filter(|since| base.is_none_or(|base| *since > base));
        if let Some(begin) = begin.filter(|begin| !deltas.contains(begin)) {
            return Err(self.broken(base, Some(begin), upto.0, damaged));
        }
        for version in newer(base).filter(|v| begin.is_none_or(|begin| *v >= begin)) {
            let (first, expected, mut gap) = (begin == Some(version), at, None);
            // Rows of other rounds came before, or are in the versions of this chain.
            let mut of_round = None;
            let read = self.read(version, StateKind::Delta, &mut |part| match part {
                Part::Head(head) if !first && head.previous != expected => {
                    gap = Some(head.previous);
                    Err(Error::internal("a gap"))
                }
                Part::Head(head) => {
                    let mark = head.again.as_ref().filter(|mark| Some(mark.round) == begin);
                    of_round = mark.map(|mark| (mark.again(), false));
                    each(Piece::Version(BatchId(version), StateKind::Delta))
                }
                Part::Rows(rows) => each(Piece::Rows(rows)),
                Part::Again(rows) => {
                    let Some((again, is_told)) = &mut of_round else { return Ok(()) };
                    if !std::mem::replace(is_told, true) {
                        each(Piece::Again(again.clone()))?;
                    }
                    each(Piece::Rows(rows))
                }
            });
            if let Some(previous) = gap {
                return Err(self.broken(at, previous, version, damaged));
            }
            read?;
            at = Some(version);
        }
        if let Some(error) = damaged {
            // The damaged snapshot must not be the only one to know its version.
            let newest = snapshots.last().copied();
            if at < newest {
                return Err(self.broken(at, newest, upto.0, Some(error)));
            }
        }
        Ok(())
    }

    /// The version since which the newest of these deltas says that deltas hold everything.
    fn rolled(&mut self, deltas: &[u64]) -> Result<Option<u64>> {
        match deltas.last() {
            Some(newest) => Ok(self.links(*newest)?.since),
            None => Ok(None),
        }
    }

    /// The version since which deltas up to version `upto` hold everything; `None` when they never have.
    ///
    /// # Errors
    /// When the newest delta can't be read.
    pub fn since(&mut self, upto: BatchId) -> Result<Option<BatchId>> {
        let deltas = self.versions(StateKind::Delta, upto.0);
        // A snapshot of the same version says all by itself.
        if self.versions(StateKind::Snapshot, upto.0).last() >= deltas.last() {
            return Ok(None);
        }
        Ok(self.rolled(&deltas)?.map(BatchId))
    }

    fn broken(&self, at: Option<u64>, needed: Option<u64>, version: u64, cause: Option<Error>) -> Error {
        let name = |v: Option<u64>| v.map_or_else(|| "the beginning".to_owned(), |v| format!("version {v}"));
        let error = Error::external(format!(
            "operator \"{}\": the state of version {version} can't be restored from {}: it builds on {}, the files lead up to {} only; restore them from a copy, or rebuild the operator",
            self.name,
            self.dir.display(),
            name(needed),
            name(at)
        ))
        .fatal();
        match cause {
            Some(cause) => error.because(cause),
            None => error,
        }
    }

    /// Removes what a restore at `keep_from` or later doesn't need: all before
    /// the newest whole snapshot up to there, or before the round of deltas that
    /// holds everything by then.
    ///
    /// # Errors
    /// When the disk refuses; what is left can still be loaded.
    pub fn prune(&mut self, keep_from: BatchId) -> Result<()> {
        let upto = (keep_from.0, StateKind::Snapshot);
        let newest = self.files.range(..=upto).rev().find(|(_, kind)| *kind == StateKind::Delta).map(|(v, _)| *v);
        // A damaged head is told when it is needed; here it keeps what is before it.
        let since = newest.and_then(|newest| self.links(newest).unwrap_or(Links { previous: None, since: None }).since);
        // An older snapshot is of no use: with many files that are kept, only those of the last round are looked at.
        let from = since.map_or((0, StateKind::Delta), |since| (since, StateKind::Delta));
        let mut before = upto;
        while let Some((base, _)) =
            self.files.range(from.min(before)..=before).rev().find(|(_, kind)| *kind == StateKind::Snapshot).copied()
        {
            before = (base, StateKind::Delta);
            let useless: Vec<_> = self.files.range(..(base, StateKind::Snapshot)).copied().collect();
            if useless.is_empty() {
                return Ok(());
            }
            if !self.verified.contains(&base) {
                if let Err(error) = self.read(base, StateKind::Snapshot, &mut |_| Ok(())) {
                    tracing::error!(operator = %self.name, version = base, error = %error.chain(), "a snapshot is damaged; what is before it is kept");
                    continue;
                }
                self.verified.insert(base);
            }
            return self.remove(&useless);
        }
        let begin = since.map(|since| (since, StateKind::Delta));
        if let Some(begin) = begin.filter(|begin| *begin <= upto && self.files.contains(begin)) {
            let useless: Vec<_> = self.files.range(..begin).copied().collect();
            return self.remove(&useless);
        }
        Ok(())
    }

    /// Removes the versions after `upto`, which were never committed.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn truncate_after(&mut self, upto: BatchId) -> Result<()> {
        let later: Vec<_> = self.files.iter().copied().filter(|(v, _)| *v > upto.0).collect();
        self.remove(&later)
    }

    /// The newest version that is saved.
    pub fn newest(&self) -> Option<BatchId> {
        self.files.last().map(|(v, _)| BatchId(*v))
    }

    /// All files: their version and kind, in order.
    pub fn files(&self) -> impl Iterator<Item = (BatchId, StateKind)> + '_ {
        self.files.iter().map(|(v, k)| (BatchId(*v), *k))
    }

    fn remove(&mut self, files: &[(u64, StateKind)]) -> Result<()> {
        for (version, kind) in files {
            let path = self.path(*version, *kind);
            self.disk.remove(&path).named("remove", &path)?;
            self.files.remove(&(*version, *kind));
            self.sizes.forget((*version, *kind));
            match kind {
                StateKind::Delta => drop(self.heads.remove(version)),
                StateKind::Snapshot => drop(self.verified.remove(version)),
            }
        }
        if files.is_empty() { Ok(()) } else { self.disk.sync_dir(&self.dir).named("sync", &self.dir) }
    }

    fn versions(&self, kind: StateKind, upto: u64) -> Vec<u64> {
        self.files.iter().filter(|(v, k)| *k == kind && *v <= upto).map(|(v, _)| *v).collect()
    }

    fn path(&self, version: u64, kind: StateKind) -> PathBuf {
        let extension = match kind {
            StateKind::Delta => "delta",
            StateKind::Snapshot => "snap",
        };
        self.dir.join(format!("{version:020}.{extension}"))
    }

    fn read(&self, version: u64, kind: StateKind, each: &mut dyn FnMut(Part<'_>) -> Result<()>) -> Result<()> {
        file::read_each(&*self.disk, (&self.path(version, kind), &self.name), (version, kind), &self.schema, each)
    }

    /// The rows of all versions together, for reports: versions and files by kind.
    pub fn counts(&self) -> BTreeMap<StateKind, usize> {
        let mut counts = BTreeMap::new();
        for (_, kind) in &self.files {
            *counts.entry(*kind).or_default() += 1;
        }
        counts
    }
}

fn parse_name(name: &str) -> Option<(u64, StateKind)> {
    let (digits, extension) = name.split_once('.')?;
    let kind = match extension {
        "delta" => StateKind::Delta,
        "snap" => StateKind::Snapshot,
        _ => return None,
    };
    if digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit()) {
        Some((digits.parse().ok()?, kind))
    } else {
        None
    }
}
