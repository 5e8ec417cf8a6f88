//! State files as others may read them, and how far back they reach.
//!
//! Invariant: [`StateFiles::look`] and what is read through it change nothing on
//! disk, so it may stand beside the owner; a file that the owner prunes
//! meanwhile is an error, never a part of a state.

use super::{FileHead, Links, Sizes, StateFiles, StateKind, file::damaged, parse_name};
use crate::{
    disk::{Disk, Mode},
    fault::Named,
    frame::{Frame, Kind, first_frame},
    ipc,
};
use arrow_schema::SchemaRef;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{BatchId, Result};

impl StateFiles {
    /// The files of operator `name` in `dir`, to be read beside their owner,
    /// under the columns that the newest of them has. `None` when there is none.
    ///
    /// # Errors
    /// When the newest file can't be read.
    pub fn look(disk: Arc<dyn Disk>, dir: &Path, name: &str) -> Result<Option<Self>> {
        if !disk.exists(dir) {
            return Ok(None);
        }
        let files: BTreeSet<_> =
            disk.list(dir).named("list", dir)?.iter().filter_map(|file| parse_name(file)).collect();
        let Some((version, kind)) = files.last().copied() else { return Ok(None) };
        let sizes = Sizes { unknown: files.clone(), ..Sizes::default() };
        let mut found = Self {
            disk,
            dir: dir.to_owned(),
            name: name.to_owned(),
            schema: Arc::new(arrow_schema::Schema::empty()),
            files,
            verified: BTreeSet::new(),
            sizes,
            heads: BTreeMap::new(),
        };
        found.schema = found.columns_of(version, kind)?;
        Ok(Some(found))
    }

    /// The columns that one file says it has.
    fn columns_of(&self, version: u64, kind: StateKind) -> Result<SchemaRef> {
        ipc::schema_from(&self.head_of(version, kind)?.payload())
    }

    fn head_of(&self, version: u64, kind: StateKind) -> Result<Frame> {
        let path = self.path(version, kind);
        let frame = first_frame(&*self.disk, &path).named("read", &path)?;
        let head = frame.map(|(frame, _)| frame).filter(|frame| frame.head().kind == Kind::Head);
        head.ok_or_else(|| damaged(&path, 0, "its head can't be read"))
    }

    /// What the head of a delta says of others.
    pub(super) fn links(&mut self, version: u64) -> Result<Links> {
        if let Some(links) = self.heads.get(&version) {
            return Ok(*links);
        }
        let frame = self.head_of(version, StateKind::Delta)?;
        let head: FileHead = serde_json::from_slice(frame.meta())
            .map_err(|e| damaged(&self.path(version, StateKind::Delta), 0, &e.to_string()))?;
        let links = Links { previous: head.previous, since: head.since };
        self.heads.insert(version, links);
        Ok(links)
    }

    /// The columns of the rows.
    pub fn columns(&self) -> &SchemaRef {
        &self.schema
    }

    /// The oldest version that the files lead to; 0 when they lead to every one.
    ///
    /// # Errors
    /// When heads of deltas that say so can't be read.
    pub fn oldest(&mut self) -> Result<BatchId> {
        match self.files.first().copied() {
            None => Ok(BatchId(0)),
            Some((version, StateKind::Snapshot)) => Ok(BatchId(version)),
            Some((version, StateKind::Delta)) if self.links(version)?.previous.is_none() => Ok(BatchId(0)),
            Some(first) => Ok(self.oldest_from(first)?.or_else(|| self.newest()).unwrap_or_default()),
        }
    }

    /// The oldest version that the files from this one on lead to, the files before it left aside.
    fn oldest_from(&mut self, first: (u64, StateKind)) -> Result<Option<BatchId>> {
        // Rounds begin one after the other, so what heads say grows from file to file: no delta before `low` has a
        // round that begins there, and each from `high` on has.
        let (mut low, mut high) = (first.0, self.newest().map_or(0, |newest| newest.0 + 1));
        while low < high {
            let middle = low.midpoint(high);
            let Some(delta) = self.first_of(StateKind::Delta, middle, high) else {
                high = middle;
                continue;
            };
            let since = self.links(delta)?.since;
            if since.is_some_and(|since| (since, StateKind::Delta) >= first) { high = middle } else { low = delta + 1 }
        }
        let delta = self.first_of(StateKind::Delta, low, u64::MAX);
        let within = first..(delta.unwrap_or(u64::MAX), StateKind::Snapshot);
        let snapshot = self.files.range(within).find(|(_, kind)| *kind == StateKind::Snapshot).map(|(v, _)| *v);
        Ok(snapshot.or(delta).map(BatchId))
    }

    /// The first file of a kind with a version in `[from, to)`.
    fn first_of(&self, kind: StateKind, from: u64, to: u64) -> Option<u64> {
        let mut files = self.files.range((from, StateKind::Delta)..(to, StateKind::Delta));
        files.find(|(_, of)| *of == kind).map(|(version, _)| *version)
    }

    /// The oldest version such that the files that it and later ones need have at
    /// most `most` bytes; when the newest alone needs more, the newest.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn oldest_within(&mut self, most: u64) -> Result<BatchId> {
        let mut left = self.bytes()?;
        if left <= most {
            return self.oldest();
        }
        let mut first = None;
        for (file, bytes) in &self.sizes.known {
            if left <= most {
                first = Some(*file);
                break;
            }
            left -= bytes;
        }
        let oldest = match first {
            Some(first) => self.oldest_from(first)?,
            None => None,
        };
        Ok(oldest.or_else(|| self.newest()).unwrap_or_default())
    }

    /// Bytes of all files. Looks at those that nobody has asked for before.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn bytes(&mut self) -> Result<u64> {
        while let Some((version, kind)) = self.sizes.unknown.first().copied() {
            let path = self.path(version, kind);
            let bytes = self.disk.open(&path, Mode::Read).and_then(|file| file.len()).named("open", &path)?;
            self.sizes.unknown.remove(&(version, kind));
            self.sizes.known.insert((version, kind), bytes);
            self.sizes.total += bytes;
        }
        Ok(self.sizes.total)
    }

    /// Paths of the files that a load of version `upto` or an earlier one may read, oldest first.
    pub fn paths_upto(&self, upto: BatchId) -> Vec<PathBuf> {
        self.files.iter().filter(|(version, _)| *version <= upto.0).map(|(v, k)| self.path(*v, *k)).collect()
    }
}

/// The directories of operators' states below `dir`.
///
/// # Errors
/// When the disk refuses.
pub fn operators_in(disk: &dyn Disk, dir: &Path) -> Result<Vec<String>> {
    if disk.exists(dir) { disk.list(dir).named("list", dir) } else { Ok(Vec::new()) }
}

/// Removes all files of a state, and its directory.
///
/// # Errors
/// When the disk refuses, or something else lies there.
pub fn remove_all(disk: &dyn Disk, dir: &Path) -> Result<()> {
    if !disk.exists(dir) {
        return Ok(());
    }
    for name in disk.list(dir).named("list", dir)? {
        let path = dir.join(&name);
        disk.remove(&path).named("remove", &path)?;
    }
    disk.remove_dir(dir).named("remove", dir)?;
    let parent = crate::disk::parent(dir);
    disk.sync_dir(parent).named("sync", parent)
}
