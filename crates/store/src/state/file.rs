//! One file of state: written frame by frame, read frame by frame.
//!
//! Invariant: a file that has its name was finished and synced before; one that
//! is read to its foot is whole. Called by [`super::StateFiles`] and by the rows
//! that outputs set aside.

use super::{Again, StateKind, narrow};
use crate::{
    disk::{Disk, DiskFile, Mode, temporary},
    fault::Named,
    frame::{Head, Kind, Scanner, Sealed},
    ipc::{self, RowEncoder},
};
use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_schema::SchemaRef;
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{Error, Result};

/// Rows are cut into frames of about this size.
const FRAME_BYTES: u64 = 64 << 20;

/// What a head calls its file. A program that does not know the word refuses the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    Delta,
    Snapshot,
    /// A delta in which rows that are kept again are told from what the batch changed.
    Rolled,
}

impl Word {
    fn kind(self) -> StateKind {
        match self {
            Self::Delta | Self::Rolled => StateKind::Delta,
            Self::Snapshot => StateKind::Snapshot,
        }
    }
}

/// Which rows of a delta are kept again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// Those from this one on, counted from 0.
    pub(super) from: u64,
    /// The version with which their round began.
    pub(super) round: u64,
    /// Of [`Again::InPlaceOf`] the columns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) keys: Option<Vec<usize>>,
}

impl Mark {
    pub(super) fn again(&self) -> Again {
        self.keys.clone().map_or(Again::Once, Again::InPlaceOf)
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct FileHead {
    pub(super) operator: String,
    pub(super) kind: Word,
    pub(super) version: u64,
    /// The version saved before this one; absent for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) previous: Option<u64>,
    /// Of a delta: the deltas from this version on, up to this file, hold all rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) since: Option<u64>,
    /// Of a [`Word::Rolled`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) again: Option<Mark>,
}

impl FileHead {
    /// Of all rows of a version that builds on none.
    pub(crate) fn whole(operator: &str, version: u64) -> Self {
        let kind = Word::Snapshot;
        Self { operator: operator.to_owned(), kind, version, previous: None, since: None, again: None }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct FileFoot {
    frames: u64,
    rows: u64,
}

/// The rows of one whole file, of `version` of `name`.
pub(crate) fn read_rows(
    disk: &dyn Disk,
    path: &Path,
    name: &str,
    version: u64,
    columns: &SchemaRef,
) -> Result<Vec<RecordBatch>> {
    let mut rows = Vec::new();
    read_each(disk, (path, name), (version, StateKind::Snapshot), columns, &mut |part| {
        if let Part::Rows(batch) = part {
            rows.push(batch);
        }
        Ok(())
    })?;
    Ok(rows)
}

/// A part of a file.
pub(super) enum Part<'a> {
    Head(&'a FileHead),
    Rows(RecordBatch),
    /// Rows that are kept again, where a head tells them from others.
    Again(RecordBatch),
}

/// Hands out the head of a file of the operator `name`, then its rows, frame by frame.
pub(super) fn read_each(
    disk: &dyn Disk,
    (path, name): (&Path, &str),
    (version, kind): (u64, StateKind),
    columns: &SchemaRef,
    each: &mut dyn FnMut(Part<'_>) -> Result<()>,
) -> Result<()> {
    let bad = |at: u64, why: &str| damaged(path, at, why);
    let file = disk.open(path, Mode::Read).named("open", path)?;
    let mut scan = Scanner::new(&*file, 0).named("read", path)?;
    let frame = scan.next().named("read", path)?.filter(|f| f.head().kind == Kind::Head);
    let frame = frame.ok_or_else(|| bad(0, "its head can't be read"))?;
    let told: FileHead = serde_json::from_slice(frame.meta()).map_err(|e| bad(0, &e.to_string()))?;
    if told.version != version || told.kind.kind() != kind {
        return Err(bad(0, "it holds another version"));
    }
    if told.operator != name {
        return Err(Error::user(format!(
            "{} belongs to the operator \"{}\", not to \"{}\"",
            path.display(),
            told.operator,
            name
        )));
    }
    let schema = ipc::schema_from(&frame.payload())?;
    each(Part::Head(&told))?;
    let (salt, mut found) = (frame.head().salt, FileFoot { frames: 0, rows: 0 });
    loop {
        let at = scan.at;
        let frame = scan.next().named("read", path)?.filter(|f| f.head().salt == salt);
        let frame = frame.ok_or_else(|| bad(at, "a frame can't be read"))?;
        if frame.head().kind == Kind::Foot {
            let foot: FileFoot = serde_json::from_slice(frame.meta()).map_err(|e| bad(at, &e.to_string()))?;
            if foot != found || scan.at != scan.len {
                return Err(bad(at, "its foot doesn't fit"));
            }
            return Ok(());
        }
        let of_frame =
            narrow::columns(&schema, frame.meta()).ok_or_else(|| bad(at, "its columns have no such widths"))?;
        let batch = ipc::decode_rows(&frame.payload(), &of_frame).map_err(|e| bad(at, &e.to_string()))?;
        let batch = if frame.meta().is_empty() { batch } else { narrow::widen(&batch, &schema)? };
        if frame.head().first != found.rows || frame.head().rows as usize != batch.num_rows() {
            return Err(bad(at, "its rows don't follow each other"));
        }
        let is_again = told.again.as_ref().is_some_and(|again| found.rows >= again.from);
        found = FileFoot { frames: found.frames + 1, rows: found.rows + batch.num_rows() as u64 };
        let batch = ipc::conform(&batch, columns, &format!("operator \"{name}\""))?;
        each(if is_again { Part::Again(batch) } else { Part::Rows(batch) })?;
    }
}

/// What is wrong with a file.
pub(super) fn damaged(path: &Path, at: u64, why: &str) -> Error {
    Error::external(format!("{} is damaged at byte {at} ({why})", path.display())).fatal()
}

/// A file that is being written, under a name of its own until it is finished.
/// Dropped before that, it is removed.
#[derive(Debug)]
pub(crate) struct Writer {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    tmp: PathBuf,
    file: Arc<dyn DiskFile>,
    schema: SchemaRef,
    operator: String,
    salt: u32,
    encoder: RowEncoder,
    /// The same of narrowed rows, for the widths that came last.
    narrower: Option<(Vec<u8>, RowEncoder)>,
    foot: FileFoot,
    finished: bool,
}

impl Writer {
    /// Begins the file at `path`.
    pub(crate) fn create(disk: &Arc<dyn Disk>, path: PathBuf, head: &FileHead, schema: &SchemaRef) -> Result<Self> {
        let meta = json(serde_json::to_vec(head));
        let tmp = temporary(&path);
        let mut writer = Self {
            disk: Arc::clone(disk),
            file: disk.open(&tmp, Mode::Create).named("create", &tmp)?,
            path,
            tmp,
            schema: Arc::clone(schema),
            operator: head.operator.clone(),
            salt: crc32c::crc32c(&meta),
            encoder: RowEncoder::new(schema)?,
            narrower: None,
            foot: FileFoot { frames: 0, rows: 0 },
            finished: false,
        };
        let schema_message = Buffer::from(ipc::schema_message(schema)?);
        writer.frame(Kind::Head, 0, meta, vec![schema_message])?;
        Ok(writer)
    }

    /// Appends rows.
    pub(crate) fn rows(&mut self, batch: &RecordBatch) -> Result<()> {
        let batch = ipc::conform(batch, &self.schema, &format!("operator \"{}\"", self.operator))?;
        self.cut(&batch)
    }

    fn cut(&mut self, batch: &RecordBatch) -> Result<()> {
        let (n, (widths, payload)) = (batch.num_rows(), self.encode(batch)?);
        let bytes: u64 = payload.iter().map(|b| b.len() as u64).sum();
        let count = u32::try_from(n);
        if n > 1 && (bytes > FRAME_BYTES || count.is_err()) {
            self.cut(&batch.slice(0, n / 2))?;
            return self.cut(&batch.slice(n / 2, n - n / 2));
        }
        self.frame(Kind::Rows, count.unwrap_or(u32::MAX), widths, payload)?;
        self.foot = FileFoot { frames: self.foot.frames + 1, rows: self.foot.rows + n as u64 };
        Ok(())
    }

    /// The rows' message, and the widths of its columns where they are narrowed.
    fn encode(&mut self, batch: &RecordBatch) -> Result<(Vec<u8>, Vec<Buffer>)> {
        let Some((widths, rows)) = narrow::narrow(batch) else {
            return Ok((Vec::new(), self.encoder.encode(batch)?));
        };
        let kept = self.narrower.take_if(|(of, _)| *of == widths);
        let (_, mut encoder) = match kept {
            Some(kept) => kept,
            None => (Vec::new(), RowEncoder::new(rows.schema_ref())?),
        };
        let payload = encoder.encode(&rows)?;
        self.narrower = Some((widths.clone(), encoder));
        Ok((widths, payload))
    }

    fn frame(&mut self, kind: Kind, rows: u32, meta: Vec<u8>, payload: Vec<Buffer>) -> Result<()> {
        let head = Head { kind, first: self.foot.rows, rows, salt: self.salt, synced: 0, time: 0 };
        let frame = Sealed::new(head, meta, payload)
            .map_err(|e| Error::user(format!("a row of state is too large for {}: {e}", self.path.display())))?;
        frame.write(&*self.file).named("write", &self.tmp)
    }

    /// Bytes written so far.
    pub(crate) fn len(&self) -> Result<u64> {
        self.file.len().named("measure", &self.tmp)
    }

    /// Makes what was written durable, so that the end has less to wait for.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync().named("sync", &self.tmp)
    }

    /// Ends the file, syncs it and gives it its name, which is durable when the directory is synced.
    pub(crate) fn finish(mut self) -> Result<()> {
        let foot = json(serde_json::to_vec(&self.foot));
        self.frame(Kind::Foot, 0, foot, Vec::new())?;
        self.sync()?;
        self.disk.rename(&self.tmp, &self.path).named("rename", &self.tmp)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            // Best effort: temporary files are removed at the next start.
            let _ignored = self.disk.remove(&self.tmp);
        }
    }
}

fn json(value: serde_json::Result<Vec<u8>>) -> Vec<u8> {
    value.expect("plain fields always become JSON")
}
