//! Which batches were planned, and which are committed.
//!
//! ```text
//! plan(7) ──────────────► commit(7) ──────────► plan(8) …
//! written, not synced      written and synced: the batch has happened
//! ```
//!
//! A plan that is lost is harmless: nothing of the batch was visible, and it
//! is planned anew. A file that has grown is replaced by one that begins with
//! all that counts. The files, byte by byte, are in `docs/formats/ledger.md`.
//!
//! Invariant: ids follow each other without a gap; the position of a stream is
//! the end of its last committed range. After a failed sync nothing is
//! committed any more. Called by the engine's batch loop.

use crate::{
    disk::{self, Disk, DiskFile, Mode, temporary},
    fault::{Named, io_error, is_full},
    frame::{Frame, Head, Kind, Scanner, Sealed},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{
    Batch, BatchId, Error, OffsetRange, Position, Result, StagedPart, StreamName, Timestamp, Watermark,
};

mod filled;
mod history;
mod look;
#[cfg(test)]
mod tests;

pub use filled::{Filled, FilledPartition, TakesBack};
pub use history::{FormerProgram, OutputEntry, ProgramEntry, Undone, fingerprint};
use history::{History, SetProgram};
pub use look::{Gone, Past};

/// Committed batches that are kept at most; fewer when [`Ledger::forget_before`] is called.
const KEPT: usize = 100_000;
/// Bytes after which a new file begins.
const ROTATE_BYTES: u64 = 4 << 20;

/// The commit of a batch.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Committed {
    /// The batch.
    pub batch: BatchId,
    /// Its time.
    pub time: Timestamp,
    /// Watermarks after it, by operator.
    pub watermarks: BTreeMap<String, Timestamp>,
    /// Of each stream with event time, what its watermark follows from. Older ledgers have none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub streams: BTreeMap<StreamName, Watermark>,
    /// What its sinks staged, by sink: repeated to them after a crash.
    pub staged: BTreeMap<String, Vec<StagedPart>>,
    /// Where its rows lie in topics of the program's own log, by topic: its sinks' commit puts them there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub written: BTreeMap<String, Vec<OffsetRange>>,
    /// Whatever else the engine wants to find again; small.
    pub meta: BTreeMap<String, serde_json::Value>,
}

/// An operator of the program that wrote the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OperatorEntry {
    /// Its stable name.
    pub name: String,
    /// What it is: `reduce_by_key`.
    pub kind: String,
    /// Of the columns of its state; equal for equal columns.
    pub fingerprint: String,
    /// The columns, as a schema message in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// How many of the columns, the first ones, are the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<usize>,
    /// What it computes, where that is known: equal for equal queries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<String>,
    /// Directory of its state when it is not its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    Checkpoint(Box<Checkpoint>),
    Operators(Vec<OperatorEntry>),
    Planned(Batch),
    Committed(Committed),
    Program(SetProgram),
    Rewound(Undone),
    TakenBack,
    Shown(BatchId),
}

/// All that counts; the first record of a file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Checkpoint {
    operators: Vec<OperatorEntry>,
    positions: BTreeMap<StreamName, Position>,
    last: Option<Committed>,
    planned: Option<Batch>,
    /// The last committed batches, oldest first; at most [`KEPT`].
    recent: VecDeque<Batch>,
    #[serde(flatten)]
    history: History,
}

impl Checkpoint {
    fn apply(&mut self, record: Record) -> Result<(), String> {
        match record {
            Record::Checkpoint(_) => return Err("a checkpoint in the middle".to_owned()),
            Record::Operators(operators) => self.operators = operators,
            Record::Planned(batch) => {
                self.may_plan(&batch)?;
                self.planned = Some(batch);
            }
            Record::Committed(committed) => {
                self.may_commit(&committed)?;
                let batch = self.planned.take().expect("just checked");
                for stream in batch.ranges.keys() {
                    batch.advance(stream, self.positions.entry(stream.clone()).or_default());
                }
                self.fill(committed.batch, &committed.written);
                self.recent.push_back(batch);
                self.history.commits.push_back(committed.clone());
                if self.recent.len() > KEPT {
                    let first = self.recent[1].id;
                    self.forget_before(first);
                }
                self.last = Some(committed);
            }
            Record::Program(set) => self.set_program(set),
            Record::Rewound(undone) => self.rewind(undone)?,
            Record::TakenBack => self.taken_back(),
            Record::Shown(batch) => self.set_shown(batch)?,
        }
        Ok(())
    }

    fn may_plan(&self, batch: &Batch) -> Result<(), String> {
        match &self.last {
            Some(last) if batch.id.0 != last.batch.0 + 1 => {
                Err(format!("batch {} is planned, {} was committed last", batch.id, last.batch))
            }
            Some(last) if batch.time <= last.time => {
                Err(format!("batch {} is planned for {}, not after the last one's {}", batch.id, batch.time, last.time))
            }
            _ => Ok(()),
        }
    }

    fn may_commit(&self, committed: &Committed) -> Result<(), String> {
        match &self.planned {
            Some(planned) if planned.id == committed.batch => Ok(()),
            Some(planned) => Err(format!("batch {} is committed, {} is planned", committed.batch, planned.id)),
            None => Err(format!("batch {} is committed, none is planned", committed.batch)),
        }
    }
}

/// The ledger of one program.
#[derive(Debug)]
pub struct Ledger {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    number: u64,
    salt: u32,
    /// Bytes in whole records, and of them those that are durable.
    len: u64,
    synced: u64,
    /// Bytes of the checkpoint that the file begins with.
    base: u64,
    rotate_bytes: u64,
    now: Checkpoint,
    poison: Option<String>,
}

impl Ledger {
    /// Opens the ledger in `dir`, which is created if need be.
    ///
    /// # Errors
    /// When it is damaged other than at its end, naming the place: restore it
    /// from a copy; going on without would lose or repeat batches.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self> {
        disk::create_dir(&*disk, dir).named("create", dir)?;
        let mut numbers = Vec::new();
        for name in disk.list(dir).named("list", dir)? {
            let path = dir.join(&name);
            if name.ends_with(".tmp") {
                disk.remove(&path).named("remove", &path)?;
            } else if let Some(number) = number_of(&name) {
                numbers.push(number);
            }
        }
        let Some(number) = numbers.pop() else {
            let history = History { tells_since: Some(BatchId(0)), ..History::default() };
            return Self::begin(disk, dir, 0, Checkpoint { history, ..Checkpoint::default() });
        };
        // A file gets its name when it is whole; those before it are left from a rotation.
        for old in numbers {
            let path = dir.join(file_name(old));
            disk.remove(&path).named("remove", &path)?;
        }
        Self::recover(disk, dir, number)
    }

    /// Writes a new file that begins with `now`.
    fn begin(disk: Arc<dyn Disk>, dir: &Path, number: u64, now: Checkpoint) -> Result<Self> {
        let path = dir.join(file_name(number));
        let record = Record::Checkpoint(Box::new(now));
        let json = to_json(&record)?;
        let salt = crc32c::crc32c_append(crc32c::crc32c(&json), &number.to_le_bytes());
        let frame = seal(json, number, salt, 0, Kind::Head)?;
        let tmp = temporary(&path);
        let file = disk.open(&tmp, Mode::Create).named("create", &tmp)?;
        let written = frame.write(&*file).and_then(|()| file.sync()).and_then(|()| disk.rename(&tmp, &path));
        if let Err(error) = written {
            // Best effort: temporary files are removed at the next start.
            let _ignored = disk.remove(&tmp);
            return Err(io_error("write", &path, error));
        }
        disk.sync_dir(dir).named("sync", dir)?;
        let Record::Checkpoint(now) = record else { unreachable!("made above") };
        let len = frame.total();
        Ok(Self {
            disk,
            dir: dir.to_owned(),
            path,
            file,
            number,
            salt,
            len,
            synced: len,
            base: len,
            rotate_bytes: ROTATE_BYTES,
            now: *now,
            poison: None,
        })
    }

    fn recover(disk: Arc<dyn Disk>, dir: &Path, number: u64) -> Result<Self> {
        let path = dir.join(file_name(number));
        let bad = |at: u64, why: &str| {
            Error::external(format!(
                "the ledger {} is damaged at byte {at} ({why}): restore it from a copy; without it batches would be lost or run twice",
                path.display()
            ))
            .fatal()
        };
        let file = disk.open(&path, Mode::Append).named("open", &path)?;
        let mut scan = Scanner::new(&*file, 0).named("read", &path)?;
        let frame =
            scan.next().named("read", &path)?.filter(|f| f.head().kind == Kind::Head && f.head().first == number);
        let frame = frame.ok_or_else(|| bad(0, "its checkpoint can't be read"))?;
        let salt = frame.head().salt;
        let base = scan.at;
        let Ok(Record::Checkpoint(now)) = serde_json::from_slice(frame.meta()) else {
            return Err(bad(0, "its checkpoint can't be understood"));
        };
        let mut now = now.of_any_version();
        loop {
            let at = scan.at;
            let ours = |f: &Frame| f.head().kind == Kind::Ledger && f.head().salt == salt;
            if let Some(frame) = scan.next().named("read", &path)?.filter(ours) {
                let record = serde_json::from_slice(frame.meta()).map_err(|e| bad(at, &e.to_string()))?;
                now.apply(record).map_err(|why| bad(at, &why))?;
                continue;
            }
            scan.at = at;
            // Whatever follows a torn record was as little durable as it, unless it says otherwise.
            while let Some(later) = scan.resync(|h| h.kind == Kind::Ledger && h.salt == salt).named("read", &path)? {
                if later.head.synced > at {
                    return Err(bad(at, "later records are whole"));
                }
            }
            if at < scan.len {
                let bytes = scan.len - at;
                if disk.is_frozen() {
                    tracing::debug!(path = %path.display(), bytes, "the torn end of the ledger is not looked at");
                } else {
                    tracing::warn!(path = %path.display(), bytes, "the torn end of the ledger was cut off");
                }
                file.truncate(at).named("cut", &path)?;
            }
            // What a dead process wrote may still be in memory only.
            file.sync().named("sync", &path)?;
            disk.sync_dir(dir).named("sync", dir)?;
            return Ok(Self {
                dir: dir.to_owned(),
                file: Arc::clone(&file),
                number,
                salt,
                len: at,
                synced: at,
                base,
                rotate_bytes: ROTATE_BYTES,
                now,
                poison: None,
                disk,
                path,
            });
        }
    }

    /// The batch that is planned and not committed: to be run (again) with these ranges.
    pub fn planned(&self) -> Option<&Batch> {
        self.now.planned.as_ref()
    }

    /// The last committed batch.
    pub fn last(&self) -> Option<&Committed> {
        self.now.last.as_ref()
    }

    /// How far each stream was read by committed batches.
    pub fn positions(&self) -> &BTreeMap<StreamName, Position> {
        &self.now.positions
    }

    /// The ranges of a committed batch, if it is kept.
    pub fn ranges(&self, batch: BatchId) -> Option<&BTreeMap<StreamName, Vec<OffsetRange>>> {
        self.now.recent.iter().rev().find(|b| b.id == batch).map(|b| &b.ranges)
    }

    /// The committed batches that are kept, oldest first, without those that were undone.
    pub fn recent(&self) -> impl Iterator<Item = &Batch> {
        self.now.recent.iter()
    }

    /// The operators that were set last.
    pub fn operators(&self) -> &[OperatorEntry] {
        &self.now.operators
    }

    /// Notes the operators of the program that runs from now on; durable when this returns.
    ///
    /// # Errors
    /// As [`Ledger::commit`].
    pub fn set_operators(&mut self, operators: Vec<OperatorEntry>) -> Result<()> {
        if self.now.operators == operators {
            return Ok(());
        }
        let record = Record::Operators(operators);
        self.write(&record, 0)?;
        self.sync()?;
        self.now.apply(record).map_err(Error::internal)
    }

    /// All that is known of the past.
    pub fn past(&self) -> Past {
        Past(self.now.clone())
    }

    /// The version of the states: that of the newest batch which was not undone; 0 is none.
    pub fn version(&self) -> BatchId {
        self.now.version()
    }

    /// The program in force.
    pub fn program(&self) -> ProgramEntry {
        self.now.program()
    }

    /// Sets the program that runs from now on, and watermarks that its operators
    /// begin with; durable when this returns, and then nothing of the program
    /// before counts any more, but for going back to it. Topics that were made
    /// `anew` hold nothing of what batches before have written.
    ///
    /// # Errors
    /// As [`Ledger::commit`].
    pub fn set_program(
        &mut self,
        program: ProgramEntry,
        watermarks: BTreeMap<String, Timestamp>,
        anew: Vec<String>,
    ) -> Result<()> {
        if watermarks.is_empty() && anew.is_empty() && self.now.program() == program {
            return Ok(());
        }
        self.now_durably(Record::Program(SetProgram { program, watermarks, anew }))
    }

    /// Goes back to batch `to` (0 is the beginning): positions, watermarks and
    /// program are those of then, the batches after it, up to `upto` if that is
    /// more, are undone, and their numbers are not used again. What they wrote to
    /// topics is to be cut off, or stays. Durable when this returns.
    ///
    /// # Errors
    /// When `to` is not kept, naming what is; otherwise as [`Ledger::commit`].
    pub fn rewind(&mut self, to: BatchId, upto: BatchId, keeps_topics: bool) -> Result<()> {
        if let Some(why) = self.now.may_rewind(to) {
            return Err(Error::user(why));
        }
        self.now_durably(Record::Rewound(Undone { to, upto, keeps_topics }))
    }

    /// What was undone and is to be taken back by outputs, in order.
    pub fn undone(&self) -> &[Undone] {
        &self.now.history.undone
    }

    /// Notes that all outputs took back what was undone.
    ///
    /// # Errors
    /// As [`Ledger::commit`].
    pub fn taken_back(&mut self) -> Result<()> {
        if self.now.history.undone.is_empty() { Ok(()) } else { self.now_durably(Record::TakenBack) }
    }

    /// Notes that all outputs have made the last batch whole: nothing of it is to be repeated. Does nothing when that is
    /// known, or they staged nothing.
    ///
    /// # Errors
    /// As [`Ledger::commit`].
    pub fn shown(&mut self) -> Result<()> {
        match &self.now.last {
            Some(last) if !self.now.is_shown() => {
                let batch = last.batch;
                self.now_durably(Record::Shown(batch))
            }
            _ => Ok(()),
        }
    }

    /// Forgets batches before `from`; the newest is always kept. Reaches the disk with the next file.
    pub fn forget_before(&mut self, from: BatchId) {
        self.now.forget_before(from);
    }

    fn now_durably(&mut self, record: Record) -> Result<()> {
        self.write(&record, 0)?;
        self.sync()?;
        self.now.apply(record).map_err(Error::internal)
    }

    /// Notes what the next batch reads; not yet durable. Replaces a plan that
    /// was not committed.
    ///
    /// # Errors
    /// When the id or the time doesn't follow the last committed batch's;
    /// otherwise as [`Ledger::commit`].
    pub fn plan(&mut self, batch: &Batch) -> Result<()> {
        self.now.may_plan(batch).map_err(Error::internal)?;
        let record = Record::Planned(batch.clone());
        self.write(&record, batch.id.0)?;
        self.now.apply(record).map_err(Error::internal)
    }

    /// Makes the last plan durable; needed only by those who show something of
    /// a batch before its commit.
    ///
    /// # Errors
    /// As [`Ledger::commit`].
    pub fn sync_plan(&mut self) -> Result<()> {
        self.usable()?;
        self.sync()
    }

    /// Commits the planned batch: it has happened when this returns.
    ///
    /// # Errors
    /// Retryable when the disk is full: nothing was written. Final after a
    /// failed sync: whether the batch has happened shows at the next start.
    pub fn commit(&mut self, committed: Committed) -> Result<()> {
        self.now.may_commit(&committed).map_err(Error::internal)?;
        let id = committed.batch.0;
        let record = Record::Committed(committed);
        self.write(&record, id)?;
        self.sync()?;
        self.now.apply(record).map_err(Error::internal)?;
        // A checkpoint grows with what is kept: it is written again when as much has come after it.
        if self.len >= self.rotate_bytes + 2 * self.base
            && let Err(error) = self.rotate()
        {
            // The batch is committed all the same; the next commit tries again.
            tracing::warn!(path = %self.path.display(), error = %error.chain(), "the ledger could not be rotated");
        }
        Ok(())
    }

    fn usable(&self) -> Result<()> {
        match &self.poison {
            None => Ok(()),
            Some(cause) => Err(Error::external(format!(
                "the ledger {} takes nothing more until the program is started again, because: {cause}",
                self.path.display()
            ))
            .fatal()),
        }
    }

    fn poison(&mut self, error: Error) -> Error {
        let error = error.fatal();
        self.poison.get_or_insert_with(|| error.chain());
        error
    }

    fn write(&mut self, record: &Record, id: u64) -> Result<()> {
        self.usable()?;
        let frame = seal(to_json(record)?, id, self.salt, self.synced, Kind::Ledger)?;
        if let Err(error) = frame.write(&*self.file) {
            let undone = self.file.truncate(self.len);
            let full = is_full(&error);
            let error = io_error("append to", &self.path, error);
            return Err(if full && undone.is_ok() { error } else { self.poison(error) });
        }
        self.len += frame.total();
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        if let Err(error) = self.file.sync() {
            return Err(self.poison(io_error("sync", &self.path, error)));
        }
        self.synced = self.len;
        Ok(())
    }

    /// Goes on in a new file that begins with all that counts.
    fn rotate(&mut self) -> Result<()> {
        let number = self.number + 1;
        let new = dir_file(&self.dir, number);
        let mut next = match Self::begin(Arc::clone(&self.disk), &self.dir, number, self.now.clone()) {
            Ok(next) => next,
            Err(error) => {
                if self.disk.exists(&new) {
                    // It has its name, perhaps not durably: neither file can be trusted to be the last.
                    return Err(self.poison(error));
                }
                return Err(error);
            }
        };
        next.rotate_bytes = self.rotate_bytes;
        let old = std::mem::replace(self, next);
        old.disk.remove(&old.path).named("remove", &old.path)
    }

    /// Lets files grow to `bytes` before a new one begins; 4 MiB unless set.
    #[must_use]
    pub fn with_rotation(mut self, bytes: u64) -> Self {
        self.rotate_bytes = bytes;
        self
    }
}

fn to_json(record: &Record) -> Result<Vec<u8>> {
    serde_json::to_vec(record).map_err(|e| Error::internal("a record of the ledger can't be written").because(e))
}

fn seal(json: Vec<u8>, id: u64, salt: u32, synced: u64, kind: Kind) -> Result<Sealed> {
    let head = Head { kind, first: id, rows: 0, salt, synced, time: 0 };
    Sealed::new(head, json, Vec::new()).map_err(|e| Error::internal("a record of the ledger is too long").because(e))
}

fn file_name(number: u64) -> String {
    format!("{number:020}.ledger")
}

fn dir_file(dir: &Path, number: u64) -> PathBuf {
    dir.join(file_name(number))
}

fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".ledger")?;
    if digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}
