//! Rows set aside until their batch is committed.
//!
//! ```text
//! stage(7, part 0) ─► 00000000000000000007-00000.rows      written aside, synced, renamed
//! committed        ─► read, shown by the caller, removed
//! ```
//!
//! The files are those of a state's snapshot (`docs/formats/state.md`) under
//! another name. Invariant: a file that is there is whole or known to be
//! damaged; a part is written by one at a time. Called by the engine's sink into topics.

use crate::{
    disk::{self, Disk},
    fault::Named,
    state::{FileHead, Writer, read_rows},
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{BatchId, Error, Result};

/// The staged files of one output.
#[derive(Debug)]
pub struct StagedFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    owner: String,
    schema: SchemaRef,
    /// Held by whoever writes a part.
    writing: Mutex<BTreeMap<usize, Arc<Mutex<()>>>>,
}

impl StagedFiles {
    /// The files of `owner` in `dir`, which is created if need be.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, owner: &str, schema: SchemaRef) -> Result<Self> {
        disk::create_dir(&*disk, dir).named("create", dir)?;
        Ok(Self { disk, dir: dir.to_owned(), owner: owner.to_owned(), schema, writing: Mutex::default() })
    }

    /// Sets aside the rows of a part of a batch, durably, and gives their
    /// file's name. Replaces what was set aside for the part before.
    ///
    /// # Errors
    /// When the rows don't fit the columns or the disk refuses: then nothing is set aside.
    pub fn stage(&self, batch: BatchId, part: usize, rows: impl Iterator<Item = RecordBatch>) -> Result<String> {
        // A batch that failed may still be writing when it is run again: two in one file would damage it.
        let one = Arc::clone(self.writing.lock().entry(part).or_default());
        let _one_at_a_time = one.lock();
        let name = format!("{:020}-{part:05}.rows", batch.0);
        let path = self.dir.join(&name);
        let head = FileHead::whole(&self.owner, batch.0);
        // Dropped unfinished, its file goes; what a crash leaves, `clear` removes at the next start.
        let mut writer = Writer::create(&self.disk, path, &head, &self.schema)?;
        for rows in rows {
            writer.rows(&rows)?;
        }
        writer.finish()?;
        self.disk.sync_dir(&self.dir).named("sync", &self.dir)?;
        Ok(name)
    }

    /// Whether a file is there.
    pub fn exists(&self, name: &str) -> bool {
        self.disk.exists(&self.dir.join(name))
    }

    /// The rows of a file that [`StagedFiles::stage`] named for `batch`, as they were cut.
    ///
    /// # Errors
    /// When the file is missing or damaged, naming it.
    pub fn read(&self, batch: BatchId, name: &str) -> Result<Vec<RecordBatch>> {
        if !name.ends_with(".rows") || name.contains(['/', '\\']) {
            return Err(Error::internal(format!("\"{}\" can't have staged a file \"{name}\"", self.owner)));
        }
        let path = self.dir.join(name);
        read_rows(&*self.disk, &path, &self.owner, batch.0, &self.schema)
    }

    /// Removes files. They may come back after a crash: then they are to be removed again.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
        for name in names {
            let path = self.dir.join(name);
            if self.disk.exists(&path) {
                self.disk.remove(&path).named("remove", &path)?;
            }
        }
        Ok(())
    }

    /// Removes all files.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn clear(&self) -> Result<()> {
        let names = self.disk.list(&self.dir).named("list", &self.dir)?;
        let ours = |name: &&str| name.ends_with(".rows") || name.ends_with(".tmp");
        self.remove(names.iter().map(String::as_str).filter(ours))
    }
}
