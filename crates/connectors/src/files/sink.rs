//! Sink `files`: one file a batch and partition, exactly once.
//!
//! | Option | Meaning |
//! |---|---|
//! | `path` | a directory; it is made if it is not there |
//! | `format` | `text` (one text column, the default), `json` (one object a line), `csv` (with a header) or `parquet` |
//! | `partition_by` | columns whose values name directories, such as `day,lang`: `day=2026-01-31/lang=en/…` |
//!
//! ```text
//! stage   <path>/.batch-000000000007-part-00000.json   written, synced, directory synced
//! commit  <path>/batch-000000000007-part-00000.json    renamed, directory synced
//!
//! partitioned
//! stage   <path>/.batch-000000000007-part-00000-00003.json
//! commit  <path>/day=2026-01-31/lang=en/batch-000000000007-part-00000.json
//! ```
//!
//! Invariant: a file in `path` without a leading dot is whole and belongs to a
//! committed batch. A commit may be repeated; a quiet batch makes no file. The
//! `files` source passes over names with a dot, so the output can be read as it
//! grows. Several sinks need several directories.
//!
//! A part of a batch makes a file in each directory that it has rows for, at most
//! 1000; no list of files is kept anywhere. In a `text` file, a line end within a value stays one; `json` escapes it.

use super::{
    encode::{Encoder, FileFormat},
    partition::{self, PartitionBy},
};
use arrow_array::RecordBatch;
use arrow_schema::{DataType, Schema, SchemaRef};
use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{BatchId, Error, Guarantee, Options, Result, Sink, StagedPart, Timestamp};
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
    format: FileFormat,
    by: Option<PartitionBy>,
    disk: Arc<dyn Disk>,
}

impl FilesSink {
    /// Writes to the directory `path` of `disk`.
    pub fn new(path: impl Into<PathBuf>, format: FileFormat, disk: Arc<dyn Disk>) -> Self {
        Self { path: path.into(), format, by: None, disk }
    }

    /// Deals rows out to directories by the values of columns, such as `day,lang`.
    #[must_use]
    pub fn partition_by(mut self, columns: &str) -> Self {
        self.by = PartitionBy::parse(columns);
        self
    }

    /// From a sink's options.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub fn from_options(options: &Options) -> Result<Self> {
        let name = options.get("format").unwrap_or("text");
        let Some(format) = FileFormat::ALL.into_iter().find(|format| format.name() == name) else {
            return Err(Error::user(format!(
                "{}: option `format` must be `text`, `json`, `csv` or `parquet`, not `{name}`",
                options.owner()
            )));
        };
        let path = options.require("path", "it names the directory to write to")?;
        let by = options.get("partition_by").unwrap_or_default();
        Ok(Self::new(path, format, Arc::new(RealDisk)).partition_by(by))
    }

    fn staged(&self, name: &str) -> PathBuf {
        self.path.join(format!("{STAGED}{name}"))
    }

    fn failed(&self, what: &str, path: &Path, error: io::Error) -> Error {
        let full = if error.kind() == io::ErrorKind::StorageFull { ": the disk is full; make room" } else { "" };
        Error::external(format!("files: can't {what} {}{full}", path.display())).because(error)
    }
}

/// A file that is being staged.
struct Staging {
    /// Its name without the sign of staged files.
    name: String,
    encoder: Encoder,
    file: Option<Arc<dyn DiskFile>>,
}

impl Staging {
    fn write(&mut self, sink: &FilesSink) -> Result<()> {
        let path = sink.staged(&self.name);
        let opened = match self.file.take() {
            Some(opened) => Ok(opened),
            None => sink.disk.open(&path, Mode::Create),
        };
        let bytes = self.encoder.bytes();
        let opened = opened.and_then(|opened| {
            opened.append(&[IoSlice::new(bytes)])?;
            Ok(opened)
        });
        bytes.clear();
        self.file = Some(opened.map_err(|e| sink.failed("write", &path, e))?);
        Ok(())
    }
}

/// A staged file and where it goes: its name, its directory below the sink's, its name there.
struct Move<'a> {
    name: &'a str,
    dir: &'a str,
    to: String,
}

impl<'a> Move<'a> {
    /// A token has a line for each file: its name, and, partitioned, its directory after a tab.
    fn parse(line: &'a str) -> Option<Self> {
        let (name, dir) = line.split_once('\t').unwrap_or((line, ""));
        let to = if dir.is_empty() {
            name.to_string()
        } else {
            // `batch-…-part-…-00003.json` loses its last number.
            let (stem, extension) = name.rsplit_once('.')?;
            let (stem, _) = stem.rsplit_once('-')?;
            format!("{stem}.{extension}")
        };
        let fine = name.starts_with("batch-") && !name.contains(['/', '\\']);
        (fine && (dir.is_empty() || partition::is_dir(dir))).then_some(Self { name, dir, to })
    }
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

    async fn open(&self, schema: SchemaRef) -> Result<()> {
        let mut written = Schema::clone(&schema);
        if let Some(by) = &self.by {
            by.check(&schema)?;
            written = schema.project(&by.rest(&schema)).map_err(|e| Error::internal("files: columns").because(e))?;
        }
        let is_text = |ty: &DataType| matches!(ty, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
        if self.format == FileFormat::Text
            && !matches!(written.fields().as_ref(), [field] if is_text(field.data_type()))
        {
            let columns: Vec<String> =
                written.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect();
            return Err(Error::user(format!(
                "files: format `text` takes one column of TEXT, not ({}); choose `json`, `csv` or `parquet`",
                columns.join(", ")
            )));
        }
        let (disk, path) = (Arc::clone(&self.disk), self.path.clone());
        blocking(move || disk::create_dir(&*disk, &path)).await?.map_err(|e| self.failed("make", &self.path, e))
    }

    async fn stage(
        &self,
        batch: BatchId,
        _time: Timestamp,
        part: usize,
        mut rows: BoxStream<'_, Result<RecordBatch>>,
    ) -> Result<Option<StagedPart>> {
        let stem = format!("batch-{:012}-part-{part:05}", batch.0);
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
                let number = files.len();
                if number >= FILES && !files.contains_key(&dir) {
                    return Err(Error::user(format!(
                        "files: batch {batch} has rows for more than {FILES} directories of {}: take columns with fewer values in option `partition_by`",
                        self.path.display()
                    )));
                }
                let name = || match &self.by {
                    Some(_) => format!("{stem}-{number:05}.{}", self.format.extension()),
                    None => format!("{stem}.{}", self.format.extension()),
                };
                let staging = files.entry(dir).or_insert_with(|| Staging {
                    name: name(),
                    encoder: Encoder::new(self.format),
                    file: None,
                });
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
        for staging in files.values_mut() {
            staging.encoder.finish()?;
            if !staging.encoder.bytes().is_empty() {
                staging.write(self)?;
            }
            opened.extend(staging.file.take());
        }
        let (disk, dir) = (Arc::clone(&self.disk), self.path.clone());
        blocking(move || opened.iter().try_for_each(|file| file.sync()).and_then(|()| disk.sync_dir(&dir)))
            .await?
            .map_err(|e| self.failed("sync", &self.staged(&stem), e))?;
        let line = |(dir, staging): (&String, &Staging)| match dir.as_str() {
            "" => staging.name.clone(),
            dir => format!("{}\t{dir}", staging.name),
        };
        Ok(Some(StagedPart(files.iter().map(line).collect::<Vec<_>>().join("\n"))))
    }

    async fn commit(&self, batch: BatchId, parts: &[StagedPart]) -> Result<()> {
        if parts.is_empty() {
            return Ok(());
        }
        let mut changed = BTreeSet::from([self.path.clone()]);
        for line in parts.iter().flat_map(|StagedPart(token)| token.lines()) {
            let Some(Move { name, dir, to }) = Move::parse(line) else {
                return Err(Error::internal(format!("files: batch {batch} can't have staged a part `{line}`")));
            };
            let dir = if dir.is_empty() { self.path.clone() } else { self.path.join(dir) };
            let (from, to) = (self.staged(name), dir.join(to));
            if self.disk.exists(&from) {
                if changed.insert(dir.clone()) {
                    disk::create_dir(&*self.disk, &dir).map_err(|e| self.failed("make", &dir, e))?;
                }
                self.disk.rename(&from, &to).map_err(|e| self.failed("rename to", &to, e))?;
            } else if self.disk.exists(&to) {
                // Renamed by an earlier try, perhaps not durably.
                changed.insert(dir);
            } else {
                return Err(Error::user(format!(
                    "files: part {name} of committed batch {batch} is neither staged nor in {}: was it removed or moved by someone else?",
                    dir.display()
                )));
            }
        }
        let disk = Arc::clone(&self.disk);
        // Where a name comes to, before where it goes from.
        blocking(move || changed.iter().rev().try_for_each(|dir| disk.sync_dir(dir)))
            .await?
            .map_err(|e| self.failed("sync", &self.path, e))
    }

    async fn recover(&self, _last_committed: Option<BatchId>) -> Result<()> {
        // What was committed has been renamed, so all that is left here was not.
        let names = self.disk.list(&self.path).map_err(|e| self.failed("list", &self.path, e))?;
        for name in names.iter().filter(|name| name.starts_with(".batch-")) {
            let path = self.path.join(name);
            self.disk.remove(&path).map_err(|e| self.failed("remove", &path, e))?;
        }
        Ok(())
    }
}
