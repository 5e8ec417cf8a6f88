//! Sink `files`: one file a batch and partition, exactly once.
//!
//! | Option | Meaning |
//! |---|---|
//! | `path` | a directory; it is made if it is not there |
//! | `format` | `text` (one text column, the default), `json` (one object a line), `csv` (with a header), `parquet`, `avro` (with its schema in front, deflated) or `protobuf` (messages, each behind its length) |
//! | `descriptor`, `schema_file`, `schema`, `message`, `timestamp` | of Protobuf: the message that a row becomes, as of the sink `kafka` |
//! | `partition_by` | columns whose values name directories, such as `day,lang`: `day=2026-01-31/lang=en/…` |
//!
//! ```text
//! stage   <path>/.batch-000000000007-part-00000.json   written, synced, directory synced
//! commit  <path>/batch-000000000007-part-00000.json    renamed, directory synced
//!
//! partitioned
//! stage   <path>/day=2026-01-31/lang=en/.batch-000000000007-part-00000.json
//! commit  <path>/day=2026-01-31/lang=en/batch-000000000007-part-00000.json
//! ```
//!
//! A program that is rewound has the files of the batches that it undoes moved
//! to `.undone/<to>-<upto>/`.
//!
//! Invariant: a file in `path` without a leading dot is whole and belongs to a
//! committed batch. A commit may be repeated; a quiet batch makes no file. The
//! `files` source passes over names with a dot, so the output can be read as it
//! grows. Several sinks need several directories, and a program with two in one is
//! refused.
//!
//! A part of a batch makes a file in each directory that it has rows for, at most
//! 1000; no list of files is kept anywhere. In a `text` file, a line end within a value stays one; `json` escapes it.

use super::{
    encode::{Encoder, Encoding, FileFormat},
    partition::{self, PartitionBy},
    undo,
};
use crate::place::real_path;
use arrow_array::RecordBatch;
use arrow_schema::{Schema, SchemaRef};
use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{BatchId, Claim, Error, Guarantee, Options, Result, Sink, StagedPart, Timestamp};
use tidemill_store::disk::{self, Disk, DiskFile, Mode, RealDisk};

/// Encoded bytes that are written together.
const BUFFER: usize = 256 << 10;
/// Files that a part of a batch makes at most.
const FILES: usize = 1000;

/// Begins the name of a staged file.
const STAGED: &str = ".";

/// One file a batch and partition.
#[derive(Debug)]
pub struct FilesSink {
    path: PathBuf,
    format: Encoding,
    by: Option<PartitionBy>,
    disk: Arc<dyn Disk>,
}

impl FilesSink {
    /// Writes to the directory `path` of `disk`.
    pub fn new(path: impl Into<PathBuf>, format: FileFormat, disk: Arc<dyn Disk>) -> Self {
        Self { path: path.into(), format: Encoding::Of(format), by: None, disk }
    }

    /// Deals rows out to directories by the values of columns, such as `day,lang`.
    #[must_use]
    pub fn partition_by(mut self, columns: &str) -> Self {
        self.by = PartitionBy::parse(columns);
        self
    }

    /// The directory that it writes to.
    #[cfg(test)]
    pub(super) fn place(&self) -> PathBuf {
        self.path.clone()
    }

    /// From a sink's options.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub fn from_options(options: &Options) -> Result<Self> {
        let format = Encoding::from_options(options, FileFormat::Text)?;
        let path = options.require("path", "it names the directory to write to")?;
        let by = options.get("partition_by").unwrap_or_default();
        Ok(Self { format, ..Self::new(path, FileFormat::Text, Arc::new(RealDisk)).partition_by(by) })
    }

    /// The directory of files, by its place below the sink's.
    fn dir(&self, below: &str) -> PathBuf {
        if below.is_empty() { self.path.clone() } else { self.path.join(below) }
    }

    /// Removes what is staged in a directory and those below.
    fn clear(&self, dir: &Path) -> Result<()> {
        for name in self.disk.list(dir).map_err(|e| self.failed("list", dir, e))? {
            let path = dir.join(&name);
            if name.starts_with(".batch-") {
                self.disk.remove(&path).map_err(|e| self.failed("remove", &path, e))?;
            } else if self.by.is_some() && partition::is_dir(&name) && self.disk.list(&path).is_ok() {
                self.clear(&path)?;
            }
        }
        Ok(())
    }

    fn failed(&self, what: &str, path: &Path, error: io::Error) -> Error {
        let full = if error.kind() == io::ErrorKind::StorageFull { ": the disk is full; make room" } else { "" };
        Error::external(format!("files: can't {what} {}{full}", path.display())).because(error)
    }
}

/// A file that is being staged.
struct Staging {
    /// Where it is staged.
    path: PathBuf,
    encoder: Encoder,
    file: Option<Arc<dyn DiskFile>>,
}

impl Staging {
    fn write(&mut self, sink: &FilesSink) -> Result<()> {
        let path = &self.path;
        let opened = match self.file.take() {
            Some(opened) => Ok(opened),
            None => sink.disk.open(path, Mode::Create),
        };
        let bytes = self.encoder.bytes();
        let opened = opened.and_then(|opened| {
            opened.append(&[IoSlice::new(bytes)])?;
            Ok(opened)
        });
        bytes.clear();
        self.file = Some(opened.map_err(|e| sink.failed("write", path, e))?);
        Ok(())
    }
}

/// A token has a line for each file: its name, and, partitioned, its directory after a tab.
fn parse(line: &str) -> Option<(&str, &str)> {
    let (name, dir) = line.split_once('\t').unwrap_or((line, ""));
    let fine = name.starts_with("batch-") && !name.contains(['/', '\\']);
    (fine && (dir.is_empty() || partition::is_dir(dir))).then_some((name, dir))
}

/// Whether rows of these columns can be written so.
///
/// # Errors
/// With the column, and what to change.
pub(crate) fn takes(format: &Encoding, by: Option<&PartitionBy>, schema: &SchemaRef) -> Result<()> {
    let mut written = Schema::clone(schema);
    if let Some(by) = by {
        by.check(schema)?;
        written = schema.project(&by.rest(schema)).map_err(|e| Error::internal("files: columns").because(e))?;
    }
    format.takes(&written)
}

/// Runs something that waits for the disk where nothing else waits for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal("files: writing panicked").because(e))
}

#[async_trait]
impl Sink for FilesSink {
    fn describe(&self) -> String {
        let by = if self.by.is_some() { ", partitioned" } else { "" };
        format!("files {} ({}{by})", self.path.display(), self.format.name())
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn claim(&self) -> Option<Claim> {
        let claim = Claim::new(format!("directory {}", real_path(&self.path).display()));
        Some(if self.by.is_some() { claim.with_dealt_out() } else { claim })
    }

    fn takes(&self, schema: &SchemaRef) -> Result<()> {
        takes(&self.format, self.by.as_ref(), schema)
    }

    async fn open(&self, schema: SchemaRef) -> Result<()> {
        self.takes(&schema)?;
        let (disk, path) = (Arc::clone(&self.disk), self.path.clone());
        blocking(move || disk::create_dir(&*disk, &path)).await?.map_err(|e| match e.kind() {
            // No try will find it otherwise while somebody's file is there.
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => Error::user(format!(
                "files: can't make the directory {}: it, or one above it, is a file. Name another `path`, or move that file away",
                self.path.display()
            ))
            .because(e),
            _ => self.failed("make", &self.path, e),
        })
    }

    async fn stage(
        &self,
        batch: BatchId,
        _time: Timestamp,
        part: usize,
        mut rows: BoxStream<'_, Result<RecordBatch>>,
    ) -> Result<Option<StagedPart>> {
        let name = format!("batch-{:012}-part-{part:05}.{}", batch.0, self.format.extension());
        let mut files: BTreeMap<String, Staging> = BTreeMap::new();
        while let Some(rows) = rows.next().await {
            let rows = rows?;
            if rows.num_rows() == 0 {
                continue;
            }
            let dealt = match &self.by {
                Some(by) => by.split(&rows)?,
                None => [(String::new(), rows)].into(),
            };
            for (dir, rows) in dealt {
                if !files.contains_key(&dir) {
                    if files.len() == FILES {
                        return Err(Error::user(format!(
                            "files: batch {batch} has rows for more than {FILES} directories of {}: take columns with fewer values in option `partition_by`",
                            self.path.display()
                        )));
                    }
                    let at = self.dir(&dir);
                    disk::create_dir(&*self.disk, &at).map_err(|e| self.failed("make", &at, e))?;
                    let path = at.join(format!("{STAGED}{name}"));
                    let staging = Staging { path, encoder: Encoder::new(&self.format), file: None };
                    files.insert(dir.clone(), staging);
                }
                let Some(staging) = files.get_mut(&dir) else { continue };
                staging.encoder.encode(&rows)?;
                if staging.encoder.bytes().len() >= BUFFER {
                    staging.write(self)?;
                }
            }
        }
        if files.is_empty() {
            return Ok(None);
        }
        let mut opened = Vec::with_capacity(files.len());
        for (dir, staging) in &mut files {
            staging.encoder.finish()?;
            if !staging.encoder.bytes().is_empty() {
                staging.write(self)?;
            }
            opened.extend(staging.file.take().map(|file| (file, self.dir(dir))));
        }
        let disk = Arc::clone(&self.disk);
        let sync = move || opened.iter().try_for_each(|(file, dir)| file.sync().and_then(|()| disk.sync_dir(dir)));
        blocking(sync).await?.map_err(|e| self.failed("sync", &self.path, e))?;
        let line = |dir: &String| if dir.is_empty() { name.clone() } else { format!("{name}\t{dir}") };
        Ok(Some(StagedPart(files.keys().map(line).collect::<Vec<_>>().join("\n"))))
    }

    async fn commit(&self, batch: BatchId, parts: &[StagedPart]) -> Result<()> {
        if parts.is_empty() {
            return Ok(());
        }
        let mut changed = BTreeSet::new();
        for line in parts.iter().flat_map(|StagedPart(token)| token.lines()) {
            let Some((name, dir)) = parse(line) else {
                return Err(Error::internal(format!("files: batch {batch} can't have staged a part `{line}`")));
            };
            let dir = self.dir(dir);
            let (from, to) = (dir.join(format!("{STAGED}{name}")), dir.join(name));
            if self.disk.exists(&from) {
                self.disk.rename(&from, &to).map_err(|e| self.failed("rename to", &to, e))?;
            } else if !self.disk.exists(&to) {
                return Err(Error::user(format!(
                    "files: part {name} of committed batch {batch} is neither staged nor in {}: was it removed or moved by someone else?",
                    dir.display()
                )));
            }
            // Also where an earlier try has renamed it, perhaps not durably.
            changed.insert(dir);
        }
        let disk = Arc::clone(&self.disk);
        blocking(move || changed.iter().try_for_each(|dir| disk.sync_dir(dir)))
            .await?
            .map_err(|e| self.failed("sync", &self.path, e))
    }

    fn undoes(&self) -> Option<String> {
        Some(format!("its files are moved aside, to {}", self.path.join(undo::ASIDE).display()))
    }

    async fn undo(&self, to: BatchId, upto: BatchId) -> Result<()> {
        let (disk, path) = (Arc::clone(&self.disk), self.path.clone());
        blocking(move || undo::move_aside(&*disk, &path, to, upto)).await?
    }

    async fn recover(&self, last_committed: Option<BatchId>) -> Result<()> {
        undo::refuse_unknown(&*self.disk, &self.path, last_committed)?;
        // What was committed has been renamed, so all that is left here was not.
        self.clear(&self.path)
    }
}
