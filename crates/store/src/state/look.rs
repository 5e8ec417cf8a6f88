//! State files as others may read them, and how far back they reach.
//!
//! Invariant: [`StateFiles::look`] and what is read through it change nothing on
//! disk, so it may stand beside the owner; a file that the owner prunes
//! meanwhile is an error, never a part of a state.

use super::{StateFiles, StateKind, parse_name};
use crate::{
    disk::{Disk, Mode},
    fault::Named,
    frame::{Kind, first_frame},
    ipc,
};
use arrow_schema::SchemaRef;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{BatchId, Error, Result};

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
        let mut found = Self {
            disk,
            dir: dir.to_owned(),
            name: name.to_owned(),
            schema: Arc::new(arrow_schema::Schema::empty()),
            files,
            verified: BTreeSet::new(),
            bytes: BTreeMap::new(),
        };
        found.schema = found.columns_of(version, kind)?;
        Ok(Some(found))
    }

    /// The columns that one file says it has.
    fn columns_of(&self, version: u64, kind: StateKind) -> Result<SchemaRef> {
        let path = self.path(version, kind);
        let frame = first_frame(&*self.disk, &path).named("read", &path)?;
        let head = frame.map(|(frame, _)| frame).filter(|frame| frame.head().kind == Kind::Head);
        let head = head.ok_or_else(|| {
            Error::external(format!("{} is damaged at byte 0 (its head can't be read)", path.display())).fatal()
        })?;
        ipc::schema_from(&head.payload())
    }

    /// The columns of the rows.
    pub fn columns(&self) -> &SchemaRef {
        &self.schema
    }

    /// The oldest version that the files lead to; 0 when they lead to every one.
    pub fn oldest(&self) -> BatchId {
        match self.files.first() {
            Some((version, StateKind::Snapshot)) => BatchId(*version),
            Some((_, StateKind::Delta)) | None => BatchId(0),
        }
    }

    /// The oldest version such that the files from its snapshot on have at most
    /// `most` bytes; the newest snapshot's when even those have more.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn oldest_within(&mut self, most: u64) -> Result<BatchId> {
        let mut sum = 0_u64;
        let mut oldest = None;
        for (version, kind) in self.files.clone().into_iter().rev() {
            sum = sum.saturating_add(self.bytes_of(version, kind)?);
            if sum > most && oldest.is_some() {
                return Ok(BatchId(oldest.unwrap_or(0)));
            }
            if kind == StateKind::Snapshot {
                oldest = Some(version);
            }
        }
        Ok(self.oldest())
    }

    fn bytes_of(&mut self, version: u64, kind: StateKind) -> Result<u64> {
        if let Some(bytes) = self.bytes.get(&(version, kind)) {
            return Ok(*bytes);
        }
        let path = self.path(version, kind);
        let bytes = self.disk.open(&path, Mode::Read).and_then(|file| file.len()).named("open", &path)?;
        self.bytes.insert((version, kind), bytes);
        Ok(bytes)
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
