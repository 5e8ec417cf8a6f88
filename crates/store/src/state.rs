//! The versioned rows of one operator, as files.
//!
//! ```text
//! 3.snap ─► 4.delta ─► 5.delta ─► 6.delta        load(5) = [3.snap, 4.delta, 5.delta]
//! ```
//!
//! A delta is what one batch changed, a snapshot everything. Each file is
//! written aside, synced and renamed, names the version before it, and ends
//! with a foot, so that a file that is there is whole or known to be damaged,
//! and a missing one is noticed. The files, byte by byte, are in
//! `docs/formats/state.md`.
//!
//! Invariant: `load` gives the whole state of a version or an error, never a
//! part of it. Called by the engine's state stores, which decide when a
//! snapshot is due.

use crate::{
    disk::{self, Disk, DiskFile, Mode, temporary},
    fault::Named,
    frame::{Head, Kind, Scanner, Sealed},
    ipc::{self, RowEncoder},
};
use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_schema::SchemaRef;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{BatchId, Error, Result};

mod look;
pub use look::{operators_in, remove_all};
#[cfg(test)]
mod tests;

/// Rows are cut into frames of about this size.
const FRAME_BYTES: u64 = 64 << 20;

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

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct FileHead {
    operator: String,
    kind: StateKind,
    version: u64,
    /// The version saved before this one; absent for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous: Option<u64>,
}

impl FileHead {
    /// Of all rows of a version that builds on none.
    pub(crate) fn whole(operator: &str, version: u64) -> Self {
        Self { operator: operator.to_owned(), kind: StateKind::Snapshot, version, previous: None }
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct FileFoot {
    frames: u64,
    rows: u64,
}

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
    /// Bytes of files, as far as somebody asked.
    bytes: BTreeMap<(u64, StateKind), u64>,
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
        Ok(Self {
            disk,
            dir: dir.to_owned(),
            name: name.to_owned(),
            schema,
            files,
            verified: BTreeSet::new(),
            bytes: BTreeMap::new(),
        })
    }

    /// Saves what `version` changed; durable when this returns. Replaces an
    /// earlier try of the same version.
    ///
    /// # Errors
    /// When the columns don't fit, a later version is there, or the disk
    /// refuses: then the version is not saved.
    pub fn save_delta(&mut self, version: BatchId, rows: &[RecordBatch]) -> Result<()> {
        self.save(version, StateKind::Delta, rows.iter().cloned())
    }

    /// Saves all rows of `version`; durable when this returns.
    ///
    /// # Errors
    /// As [`StateFiles::save_delta`].
    pub fn save_snapshot(&mut self, version: BatchId, rows: impl Iterator<Item = RecordBatch>) -> Result<()> {
        self.save(version, StateKind::Snapshot, rows)
    }

    fn save(&mut self, version: BatchId, kind: StateKind, rows: impl Iterator<Item = RecordBatch>) -> Result<()> {
        let version = version.0;
        if let Some((newest, _)) = self.files.last().filter(|(newest, _)| *newest > version) {
            return Err(Error::internal(format!(
                "operator \"{}\": version {version} is saved while version {newest} is there: truncate first",
                self.name
            )));
        }
        let previous = self.files.iter().rev().map(|(v, _)| *v).find(|v| *v < version);
        let head = FileHead { operator: self.name.clone(), kind, version, previous };
        let path = self.path(version, kind);
        let tmp = temporary(&path);
        let file = self.disk.open(&tmp, Mode::Create).named("create", &tmp)?;
        let written = write_file(&*file, &tmp, &head, &self.schema, &self.name, rows)
            .and_then(|()| file.sync().named("sync", &tmp))
            .and_then(|()| self.disk.rename(&tmp, &path).named("rename", &tmp));
        if let Err(error) = written {
            // Best effort: temporary files are removed at the next start.
            let _ignored = self.disk.remove(&tmp);
            return Err(error);
        }
        self.files.insert((version, kind));
        self.disk.sync_dir(&self.dir).named("sync", &self.dir)?;
        if kind == StateKind::Snapshot {
            self.verified.insert(version);
        }
        Ok(())
    }

    /// The state of version `upto`: a snapshot and the deltas after it, in
    /// order. Later versions are ignored. Empty when nothing was ever saved.
    ///
    /// # Errors
    /// When no whole chain of files leads to the version, naming what is
    /// damaged or missing; when the columns are not those of `open`.
    pub fn load(&mut self, upto: BatchId) -> Result<Vec<StateVersion>> {
        let snapshots = self.versions(StateKind::Snapshot, upto.0);
        let mut damaged = None;
        let mut base = None;
        for version in snapshots.iter().rev() {
            match self.read(*version, StateKind::Snapshot) {
                Ok((_, rows)) => {
                    self.verified.insert(*version);
                    base = Some((*version, rows));
                    break;
                }
                Err(error) if error.blame() == tidemill_core::Blame::User => return Err(error),
                Err(error) => {
                    tracing::error!(operator = %self.name, version, error = %error.chain(), "a snapshot is damaged; an older one is tried");
                    damaged.get_or_insert(error);
                }
            }
        }
        let mut at = base.as_ref().map(|(version, _)| *version);
        let mut chain: Vec<StateVersion> =
            base.into_iter().map(|(v, rows)| (BatchId(v), StateKind::Snapshot, rows)).collect();
        for version in self.versions(StateKind::Delta, upto.0) {
            if at.is_some_and(|at| version <= at) {
                continue;
            }
            let (head, rows) = self.read(version, StateKind::Delta)?;
            if head.previous != at {
                return Err(self.broken(at, head.previous, version, damaged));
            }
            at = Some(version);
            chain.push((BatchId(version), StateKind::Delta, rows));
        }
        if let Some(error) = damaged {
            // The damaged snapshot must not be the only one to know its version.
            let newest = snapshots.last().copied();
            if at < newest {
                return Err(self.broken(at, newest, upto.0, Some(error)));
            }
        }
        Ok(chain)
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
    /// the newest whole snapshot up to there.
    ///
    /// # Errors
    /// When the disk refuses; what is left can still be loaded.
    pub fn prune(&mut self, keep_from: BatchId) -> Result<()> {
        for base in self.versions(StateKind::Snapshot, keep_from.0).into_iter().rev() {
            let useless: Vec<_> = self.files.iter().copied().filter(|f| *f < (base, StateKind::Snapshot)).collect();
            if useless.is_empty() {
                return Ok(());
            }
            if !self.verified.contains(&base) {
                if let Err(error) = self.read(base, StateKind::Snapshot) {
                    tracing::error!(operator = %self.name, version = base, error = %error.chain(), "a snapshot is damaged; what is before it is kept");
                    continue;
                }
                self.verified.insert(base);
            }
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
            self.bytes.remove(&(*version, *kind));
            self.verified.remove(version);
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

    fn read(&self, version: u64, kind: StateKind) -> Result<(FileHead, Vec<RecordBatch>)> {
        read_rows(&*self.disk, &self.path(version, kind), &self.name, version, kind, &self.schema)
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

/// The rows of one whole file, of `version` of `name`.
pub(crate) fn read_rows(
    disk: &dyn Disk,
    path: &Path,
    name: &str,
    version: u64,
    kind: StateKind,
    columns: &SchemaRef,
) -> Result<(FileHead, Vec<RecordBatch>)> {
    let bad =
        |at: u64, why: &str| Error::external(format!("{} is damaged at byte {at} ({why})", path.display())).fatal();
    let file = disk.open(path, Mode::Read).named("open", path)?;
    let mut scan = Scanner::new(&*file, 0).named("read", path)?;
    let frame = scan.next().named("read", path)?.filter(|f| f.head().kind == Kind::Head);
    let frame = frame.ok_or_else(|| bad(0, "its head can't be read"))?;
    let head: FileHead = serde_json::from_slice(frame.meta()).map_err(|e| bad(0, &e.to_string()))?;
    if head.version != version || head.kind != kind {
        return Err(bad(0, "it holds another version"));
    }
    if head.operator != name {
        return Err(Error::user(format!(
            "{} belongs to the operator \"{}\", not to \"{}\"",
            path.display(),
            head.operator,
            name
        )));
    }
    let schema = ipc::schema_from(&frame.payload())?;
    let (salt, mut found) = (frame.head().salt, FileFoot { frames: 0, rows: 0 });
    let mut rows = Vec::new();
    loop {
        let at = scan.at;
        let frame = scan.next().named("read", path)?.filter(|f| f.head().salt == salt);
        let frame = frame.ok_or_else(|| bad(at, "a frame can't be read"))?;
        if frame.head().kind == Kind::Foot {
            let foot: FileFoot = serde_json::from_slice(frame.meta()).map_err(|e| bad(at, &e.to_string()))?;
            if foot != found || scan.at != scan.len {
                return Err(bad(at, "its foot doesn't fit"));
            }
            return Ok((head, rows));
        }
        let batch = ipc::decode_rows(&frame.payload(), &schema).map_err(|e| bad(at, &e.to_string()))?;
        if frame.head().first != found.rows || frame.head().rows as usize != batch.num_rows() {
            return Err(bad(at, "its rows don't follow each other"));
        }
        found = FileFoot { frames: found.frames + 1, rows: found.rows + batch.num_rows() as u64 };
        rows.push(ipc::conform(&batch, columns, &format!("operator \"{name}\""))?);
    }
}

pub(crate) fn write_file(
    file: &dyn DiskFile,
    path: &Path,
    head: &FileHead,
    schema: &SchemaRef,
    operator: &str,
    rows: impl Iterator<Item = RecordBatch>,
) -> Result<()> {
    let json = |value: serde_json::Result<Vec<u8>>| value.expect("plain fields always become JSON");
    let meta = json(serde_json::to_vec(head));
    let salt = crc32c::crc32c(&meta);
    let mut out = Writer { file, path, salt, encoder: RowEncoder::new(schema)?, foot: FileFoot { frames: 0, rows: 0 } };
    let schema_message = Buffer::from(ipc::schema_message(schema)?);
    out.frame(Kind::Head, 0, meta, vec![schema_message])?;
    for batch in rows {
        out.rows(&ipc::conform(&batch, schema, &format!("operator \"{operator}\""))?)?;
    }
    let foot = json(serde_json::to_vec(&out.foot));
    out.frame(Kind::Foot, 0, foot, Vec::new())
}

struct Writer<'a> {
    file: &'a dyn DiskFile,
    path: &'a Path,
    salt: u32,
    encoder: RowEncoder,
    foot: FileFoot,
}

impl Writer<'_> {
    fn rows(&mut self, batch: &RecordBatch) -> Result<()> {
        let (n, payload) = (batch.num_rows(), self.encoder.encode(batch)?);
        let bytes: u64 = payload.iter().map(|b| b.len() as u64).sum();
        let count = u32::try_from(n);
        if n > 1 && (bytes > FRAME_BYTES || count.is_err()) {
            self.rows(&batch.slice(0, n / 2))?;
            return self.rows(&batch.slice(n / 2, n - n / 2));
        }
        self.frame(Kind::Rows, count.unwrap_or(u32::MAX), Vec::new(), payload)?;
        self.foot = FileFoot { frames: self.foot.frames + 1, rows: self.foot.rows + n as u64 };
        Ok(())
    }

    fn frame(&mut self, kind: Kind, rows: u32, meta: Vec<u8>, payload: Vec<Buffer>) -> Result<()> {
        let head = Head { kind, first: self.foot.rows, rows, salt: self.salt, synced: 0, time: 0 };
        let frame = Sealed::new(head, meta, payload)
            .map_err(|e| Error::user(format!("a row of state is too large for {}: {e}", self.path.display())))?;
        frame.write(self.file).named("write", self.path)
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
