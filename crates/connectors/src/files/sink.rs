//! Sink `files`: one file a batch and partition, exactly once.
//!
//! | Option | Meaning |
//! |---|---|
//! | `path` | a directory; it is made if it is not there |
//! | `format` | `text` (one text column, the default), `json` (one object a line) or `csv` (with a header) |
//!
//! ```text
//! stage   <path>/.batch-000000000007-part-00000.json   written, synced, directory synced
//! commit  <path>/batch-000000000007-part-00000.json    renamed, directory synced
//! ```
//!
//! A program that is rewound has the files of the batches that it undoes moved
//! to `.undone/<to>-<upto>/`.
//!
//! Invariant: a file in `path` without a leading dot is whole and belongs to a
//! committed batch. A commit may be repeated; a quiet batch makes no file. The
//! `files` source passes over names with a dot, so the output can be read as it
//! grows. Several sinks need several directories.
//!
//! In a `text` file, a line end within a value stays one; `json` escapes it.

use super::undo;
use arrow_array::{RecordBatch, cast::AsArray};
use arrow_json::writer::{LineDelimited, WriterBuilder};
use arrow_schema::{DataType, SchemaRef};
use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{BatchId, Error, Guarantee, Options, Result, Sink, StagedPart, Timestamp};
use tidemill_store::disk::{self, Disk, DiskFile, Mode, RealDisk};

/// Encoded bytes that are written together.
const BUFFER: usize = 256 << 10;

/// Begins the name of a staged file.
const STAGED: &str = ".";

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// The value of the one text column, a line each.
    Text,
    /// An object a line; nulls are left out.
    Json,
    /// Fields with commas, a header first.
    Csv,
}

impl FileFormat {
    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Csv => "csv",
        }
    }

    fn extension(self) -> &'static str {
        if self == Self::Text { "txt" } else { self.name() }
    }
}

/// One file a batch and partition.
#[derive(Debug)]
pub struct FilesSink {
    path: PathBuf,
    format: FileFormat,
    disk: Arc<dyn Disk>,
}

impl FilesSink {
    /// Writes to the directory `path` of `disk`.
    pub fn new(path: impl Into<PathBuf>, format: FileFormat, disk: Arc<dyn Disk>) -> Self {
        Self { path: path.into(), format, disk }
    }

    /// From a sink's options.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub fn from_options(options: &Options) -> Result<Self> {
        let format = match options.get("format").unwrap_or("text") {
            "text" => FileFormat::Text,
            "json" => FileFormat::Json,
            "csv" => FileFormat::Csv,
            other => {
                return Err(Error::user(format!(
                    "{}: option `format` must be `text`, `json` or `csv`, not `{other}`",
                    options.owner()
                )));
            }
        };
        Ok(Self::new(options.require("path", "it names the directory to write to")?, format, Arc::new(RealDisk)))
    }

    fn staged(&self, name: &str) -> PathBuf {
        self.path.join(format!("{STAGED}{name}"))
    }

    fn failed(&self, what: &str, path: &Path, error: io::Error) -> Error {
        let full = if error.kind() == io::ErrorKind::StorageFull { ": the disk is full; make room" } else { "" };
        Error::external(format!("files: can't {what} {}{full}", path.display())).because(error)
    }
}

/// Encodes rows to lines.
struct Encoder {
    format: FileFormat,
    bytes: Vec<u8>,
    header: bool,
}

impl Encoder {
    fn encode(&mut self, rows: &RecordBatch) -> Result<()> {
        let broken = |e| Error::user("files: these columns can't be written").because(e);
        match self.format {
            FileFormat::Json => {
                let mut writer = WriterBuilder::new().build::<_, LineDelimited>(&mut self.bytes);
                writer.write(rows).and_then(|()| writer.finish()).map_err(broken)
            }
            FileFormat::Csv => {
                let mut writer = arrow_csv::WriterBuilder::new().with_header(self.header).build(&mut self.bytes);
                self.header = false;
                writer.write(rows).map_err(broken)
            }
            FileFormat::Text => {
                let texts = arrow_cast::cast(rows.column(0), &DataType::Utf8).map_err(broken)?;
                for text in texts.as_string::<i32>() {
                    self.bytes.extend_from_slice(text.unwrap_or_default().as_bytes());
                    self.bytes.push(b'\n');
                }
                Ok(())
            }
        }
    }
}

/// Runs something that waits for the disk where nothing else waits for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal("files: writing panicked").because(e))
}

#[async_trait]
impl Sink for FilesSink {
    fn describe(&self) -> String {
        format!("files {} ({})", self.path.display(), self.format.name())
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    async fn open(&self, schema: SchemaRef) -> Result<()> {
        let is_text = |ty: &DataType| matches!(ty, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
        if self.format == FileFormat::Text && !matches!(schema.fields().as_ref(), [field] if is_text(field.data_type()))
        {
            let columns: Vec<String> =
                schema.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect();
            return Err(Error::user(format!(
                "files: format `text` takes one column of TEXT, not ({}); choose `json` or `csv`",
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
        let name = format!("batch-{:012}-part-{part:05}.{}", batch.0, self.format.extension());
        let path = self.staged(&name);
        let mut encoder = Encoder { format: self.format, bytes: Vec::new(), header: true };
        let mut file: Option<Arc<dyn DiskFile>> = None;
        let write = |file: &mut Option<Arc<dyn DiskFile>>, bytes: &mut Vec<u8>| {
            let opened = match file.take() {
                Some(opened) => Ok(opened),
                None => self.disk.open(&path, Mode::Create),
            };
            let opened = opened.and_then(|opened| {
                opened.append(&[IoSlice::new(bytes)])?;
                Ok(opened)
            });
            bytes.clear();
            *file = Some(opened.map_err(|e| self.failed("write", &path, e))?);
            Ok::<_, Error>(())
        };
        while let Some(rows) = rows.next().await {
            let rows = rows?;
            if rows.num_rows() > 0 {
                encoder.encode(&rows)?;
            }
            if encoder.bytes.len() >= BUFFER {
                write(&mut file, &mut encoder.bytes)?;
            }
        }
        if !encoder.bytes.is_empty() {
            write(&mut file, &mut encoder.bytes)?;
        }
        let Some(file) = file else { return Ok(None) };
        let (disk, dir) = (Arc::clone(&self.disk), self.path.clone());
        blocking(move || file.sync().and_then(|()| disk.sync_dir(&dir)))
            .await?
            .map_err(|e| self.failed("sync", &path, e))?;
        Ok(Some(StagedPart(name)))
    }

    async fn commit(&self, batch: BatchId, parts: &[StagedPart]) -> Result<()> {
        if parts.is_empty() {
            return Ok(());
        }
        for StagedPart(name) in parts {
            let (from, to) = (self.staged(name), self.path.join(name));
            if name.contains(['/', '\\']) || !name.starts_with("batch-") {
                return Err(Error::internal(format!("files: batch {batch} can't have staged a part `{name}`")));
            }
            if self.disk.exists(&from) {
                self.disk.rename(&from, &to).map_err(|e| self.failed("rename to", &to, e))?;
            } else if !self.disk.exists(&to) {
                return Err(Error::user(format!(
                    "files: part {name} of committed batch {batch} is neither staged nor in {}: was it removed or moved by someone else?",
                    self.path.display()
                )));
            }
        }
        let (disk, path) = (Arc::clone(&self.disk), self.path.clone());
        blocking(move || disk.sync_dir(&path)).await?.map_err(|e| self.failed("sync", &self.path, e))
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
        let names = self.disk.list(&self.path).map_err(|e| self.failed("list", &self.path, e))?;
        for name in names.iter().filter(|name| name.starts_with(".batch-")) {
            let path = self.path.join(name);
            self.disk.remove(&path).map_err(|e| self.failed("remove", &path, e))?;
        }
        Ok(())
    }
}
