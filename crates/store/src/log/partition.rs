//! One partition: its writer, and the group commit that makes rows durable.
//!
//! ```text
//! append ─► frame ─► file ─► index, tail cache, end ─► waiting for a sync
//!                                                            │
//!              durable ◄─ callbacks ◄─ one sync for all that waits
//! ```
//!
//! Callbacks come in the order of the rows, one at a time, also where several
//! threads append and sync.
//!
//! Invariant: files are synced in the order in which they were filled, so that
//! what is durable is always a beginning of the partition. After a failed sync,
//! or a failed write that could not be undone, nothing is ever acked again:
//! the partition is poisoned with the first cause.
//!
//! Lock order: `writer` before `commit`, `segments`, `tail`; no disk is
//! touched under `commit`.

use super::{
    cache::Tail,
    cut,
    recover::recover,
    rows::{LogRows, RowsMeta},
    segment::{Active, Extent, Segment, SegmentHead, file_name, index_path, write_index},
};
use crate::{
    disk::{Disk, Mode, temporary},
    fault::{Named, io_error, is_full},
    frame::{Head, Kind, Sealed},
    ipc::{self, RowEncoder},
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tidemill_core::{Clock, Error, Offset, Result, Timestamp};

/// Callbacks that may wait for a sync; the next append then syncs by itself.
const MAX_WAITING: usize = 4096;

/// Called when rows are durable, or will never be; those of a partition in the
/// order of their rows. Must not block: it runs on a thread that appends or syncs.
pub type OnDurable = Box<dyn FnOnce(Result<()>) + Send>;

/// Where appended rows went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Offset of the first row.
    pub first: Offset,
    /// First offset after the last row.
    pub next: Offset,
}

/// What partitions of a topic share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) topic: String,
    pub(super) schema: SchemaRef,
    pub(super) schema_message: Vec<u8>,
    /// Bytes after which a new segment begins; changes with the retention.
    pub(super) segment_bytes: AtomicU64,
    /// Whether rows are ever synced on their own account.
    pub(super) durable: bool,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) clock: Arc<dyn Clock>,
    /// Bumped after each append.
    pub(super) wake: tokio::sync::watch::Sender<u64>,
}

#[derive(Debug)]
pub(super) struct Writer {
    encoder: RowEncoder,
    pub(super) active: Option<Active>,
    /// Segments with bytes that are not durable, in the order of their rows.
    unsynced: Vec<Active>,
    /// Frames written in this life.
    written: u64,
    /// Whether a segment's name is not durable.
    new_names: bool,
    /// Bytes of the active segment that are durable.
    pub(super) synced: u64,
    last_time: Timestamp,
    pub(super) resume: Option<String>,
    closed: bool,
}

struct Commit {
    /// Rows before this offset are durable.
    durable: u64,
    /// Frames of this life that are durable.
    frames: u64,
    syncing: bool,
    /// Whether a sync has failed: what waits will never be durable.
    failed: bool,
    /// Whether a thread is calling back.
    calling: bool,
    /// Callbacks with the number of their frame, in order; at most [`MAX_WAITING`] and a few racing appends.
    waiting: VecDeque<(u64, OnDurable)>,
}

/// One partition of a topic.
pub(super) struct Partition {
    pub(super) shared: Arc<Shared>,
    pub(super) number: u32,
    pub(super) dir: PathBuf,
    /// Offsets `[from, to)` that were found damaged at the start.
    pub(super) damage: Vec<(u64, u64)>,
    pub(super) writer: Mutex<Writer>,
    commit: Mutex<Commit>,
    synced: Condvar,
    /// In the order of their rows. Files are opened, renamed and removed under
    /// this lock, so that an index and its file always belong together.
    pub(super) segments: RwLock<Vec<Arc<Segment>>>,
    pub(super) tail: Mutex<Tail>,
    end: AtomicU64,
    /// The first cause for which nothing can be written any more.
    poison: Mutex<Option<String>>,
    /// Whether a sync is already asked for.
    pub(super) sync_queued: AtomicBool,
    /// Whether sealing is already asked for.
    pub(super) tidy_queued: AtomicBool,
    /// Held while segments are merged or deleted: one at a time.
    pub(super) tidying: Mutex<()>,
}

impl std::fmt::Debug for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Partition({}/{})", self.shared.topic, self.number)
    }
}

/// What recovery found.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) segments: Vec<Arc<Segment>>,
    /// The last segment, when rows may be appended to it.
    pub(super) active: Option<Active>,
    pub(super) end: u64,
    pub(super) last_time: Timestamp,
    pub(super) resume: Option<String>,
    /// Offsets `[from, to)` that are damaged.
    pub(super) damage: Vec<(u64, u64)>,
}

impl Partition {
    pub(super) fn new(
        shared: &Arc<Shared>,
        number: u32,
        dir: &Path,
        cache: usize,
        found: Recovered,
    ) -> Result<Arc<Self>> {
        let synced = found.active.as_ref().map_or(0, |a| a.segment.extent.read().len);
        Ok(Arc::new(Self {
            number,
            dir: dir.to_owned(),
            damage: found.damage,
            writer: Mutex::new(Writer {
                encoder: RowEncoder::new(&shared.schema)?,
                active: found.active,
                unsynced: Vec::new(),
                written: 0,
                new_names: false,
                synced,
                last_time: found.last_time,
                resume: found.resume,
                closed: false,
            }),
            commit: Mutex::new(Commit {
                durable: found.end,
                frames: 0,
                syncing: false,
                failed: false,
                calling: false,
                waiting: VecDeque::new(),
            }),
            synced: Condvar::new(),
            segments: RwLock::new(found.segments),
            tail: Mutex::new(Tail::new(cache)),
            end: AtomicU64::new(found.end),
            poison: Mutex::new(None),
            sync_queued: AtomicBool::new(false),
            tidy_queued: AtomicBool::new(false),
            tidying: Mutex::new(()),
            shared: Arc::clone(shared),
        }))
    }

    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    pub(super) fn start(&self) -> u64 {
        self.segments.read().first().map_or_else(|| self.end(), |s| s.first)
    }

    pub(super) fn durable_end(&self) -> u64 {
        if self.shared.durable { self.commit.lock().durable } else { self.end() }
    }

    pub(super) fn resume(&self) -> Option<String> {
        self.writer.lock().resume.clone()
    }

    /// `topic "clicks", partition 0`.
    pub(super) fn label(&self) -> String {
        format!("topic \"{}\", partition {}", self.shared.topic, self.number)
    }

    fn poisoned(&self) -> Result<()> {
        match &*self.poison.lock() {
            None => Ok(()),
            Some(cause) => Err(Error::external(format!(
                "{} takes no more rows until the program is started again, because: {cause}",
                self.label()
            ))
            .fatal()),
        }
    }

    fn poison(&self, cause: &Error) {
        let mut poison = self.poison.lock();
        if poison.is_none() {
            tracing::error!(topic = %self.shared.topic, partition = self.number, cause = %cause.chain(), "the log is poisoned");
            *poison = Some(cause.chain());
        }
    }

    /// Appends rows. `on_durable` is called once they are durable, at once
    /// where nothing is ever synced; not at all when this returns an error.
    /// The flag says whether a sync should be asked for, the other whether a
    /// segment was filled.
    pub(super) fn append(
        &self,
        rows: &RecordBatch,
        resume: Option<&str>,
        on_durable: Option<OnDurable>,
    ) -> Result<(Appended, Effect)> {
        let rows = ipc::conform(rows, &self.shared.schema, &format!("topic \"{}\"", self.shared.topic))?;
        let mut writer = self.writer.lock();
        if writer.closed {
            return Err(Error::external(format!("{} is closed", self.label())).fatal());
        }
        self.poisoned()?;
        let mut effect = Effect::default();
        let first = self.end();
        let next = first + rows.num_rows() as u64;
        if next > first || resume.is_some() {
            effect.filled = self.write(&mut writer, &rows, resume, first)?;
            effect.appended = true;
        }
        if let Some(on_durable) = on_durable {
            let mut commit = self.commit.lock();
            commit.waiting.push_back((writer.written, on_durable));
            drop(writer);
            effect.crowded = self.shared.durable && commit.waiting.len() >= MAX_WAITING;
            // At once where nothing is synced, or nothing was written that is not durable yet.
            self.call_back(commit);
        }
        Ok((Appended { first: Offset(first), next: Offset(next) }, effect))
    }

    /// Writes one frame; whether a segment was filled before.
    fn write(&self, writer: &mut Writer, rows: &RecordBatch, resume: Option<&str>, first: u64) -> Result<bool> {
        let time = writer.last_time.max(self.shared.clock.now());
        let count = u32::try_from(rows.num_rows()).map_err(|_| Error::user("at most 4294967295 rows at once"))?;
        let times = if count == 0 { Vec::new() } else { vec![(count, time)] };
        let meta = RowsMeta { times: times.clone(), resume: resume.map(str::to_owned) };
        let payload = writer.encoder.encode(rows)?;

        let mut head = Head { kind: Kind::Rows, first, rows: count, salt: 0, synced: 0, time: time.0 };
        let size: u64 = payload.iter().map(|b| b.len() as u64).sum();
        let full = writer.active.as_ref().is_some_and(|a| {
            let extent = a.segment.extent.read();
            extent.frames > 0 && extent.len + size > self.shared.segment_bytes.load(Ordering::Relaxed)
        });
        if full || writer.active.is_none() {
            self.roll(writer)?;
        }
        let active = writer.active.clone().expect("a roll leaves an active segment");
        head.salt = active.segment.salt;
        head.synced = writer.synced;
        let frame = Sealed::new(head, meta.encode(), payload)
            .map_err(|e| Error::user(format!("{e}: append the rows in smaller pieces")))?;

        if let Err(error) = frame.write(&*active.file) {
            let whole = active.segment.extent.read().len;
            let undone = active.file.truncate(whole);
            let full = is_full(&error);
            let error = io_error("append to", &active.segment.path, error);
            if full && undone.is_ok() {
                return Err(error);
            }
            let error = error.fatal();
            self.poison(&error);
            return Err(error);
        }

        writer.last_time = time;
        writer.written += 1;
        if let Some(resume) = resume {
            writer.resume = Some(resume.to_owned());
        }
        if writer.unsynced.last().is_none_or(|a| !Arc::ptr_eq(&a.segment, &active.segment)) {
            writer.unsynced.push(active.clone());
        }
        active.segment.extent.write().push(&head, frame.total(), time.0);
        if count > 0 {
            let bytes = usize::try_from(frame.total()).expect("a frame is below 256 MiB");
            self.tail.lock().push(LogRows { base: Offset(first), rows: rows.clone(), times }, bytes);
        }
        self.end.store(first + u64::from(count), Ordering::Release);
        Ok(full)
    }

    /// Begins a new segment at the present end.
    pub(super) fn roll(&self, writer: &mut Writer) -> Result<()> {
        let first = self.end();
        let path = self.dir.join(file_name(first));
        let head = SegmentHead {
            topic: self.shared.topic.clone(),
            partition: self.number,
            created: self.shared.clock.now(),
            merged: false,
            resume: writer.resume.clone(),
        };
        let (frame, salt) = head.seal(first, &self.shared.schema_message);
        let disk = &*self.shared.disk;
        // A segment without rows has the name of the new one, and a token that may be durable.
        let replaces = self.segments.read().last().is_some_and(|s| s.first == first);
        let at = if replaces { temporary(&path) } else { path.clone() };
        let file = disk.open(&at, Mode::Create).named("create", &at)?;
        let written = frame.write(&*file).and_then(|()| if replaces { file.sync() } else { Ok(()) });
        if let Err(error) = written {
            drop(file);
            // Best effort: an incomplete head holds no rows and is removed at the next start.
            let _ignored = disk.remove(&at);
            return Err(io_error("write", &at, error));
        }
        if replaces {
            disk.rename(&at, &path).named("rename", &at)?;
            if let Err(error) = disk.sync_dir(&self.dir).named("sync", &self.dir) {
                // The file that was written to has no name any more.
                let error = error.fatal();
                self.poison(&error);
                return Err(error);
            }
        }
        let segment = Arc::new(Segment { first, path, salt, extent: RwLock::new(Extent::new(first, frame.total())) });
        let active = Active { segment: Arc::clone(&segment), file };
        let mut segments = self.segments.write();
        segments.retain(|s| s.first != first);
        segments.push(segment);
        drop(segments);
        writer.unsynced.retain(|a| a.segment.first != first);
        writer.unsynced.push(active.clone());
        writer.active = Some(active);
        writer.new_names = true;
        // Not even of one that is durable: rows before it may not be, for which it would vouch.
        writer.synced = 0;
        Ok(())
    }

    /// Takes back all rows from `to` on; `resume` is the token from then on. Durable when this
    /// returns; once it was begun, a crash does not prevent it.
    pub(super) fn cut(&self, to: u64, resume: &str) -> Result<()> {
        let _alone = self.tidying.lock();
        // What stays must not become less durable than it was.
        self.flush()?;
        let mut writer = self.writer.lock();
        self.poisoned()?;
        if writer.closed || to > self.end() {
            return Err(Error::internal(format!("{} is closed, or ends before {to}", self.label())));
        }
        cut::begin(&self.shared, self.number, &self.dir, to, resume)?;
        let found = recover(&self.shared, self.number, &self.dir).inspect_err(|error| self.poison(error))?;
        let mut segments = self.segments.write();
        *segments = found.segments;
        self.tail.lock().clear();
        self.commit.lock().durable = found.end;
        self.end.store(found.end, Ordering::Release);
        drop(segments);
        writer.synced = found.active.as_ref().map_or(0, |a| a.segment.extent.read().len);
        (writer.active, writer.unsynced, writer.new_names) = (found.active, Vec::new(), false);
        writer.resume = found.resume;
        Ok(())
    }

    /// Makes everything before `to` durable: by one's own sync, or by waiting for another's.
    pub(super) fn sync_to(&self, to: u64) -> Result<()> {
        let mut commit = self.commit.lock();
        loop {
            if commit.durable >= to {
                return Ok(());
            }
            if !commit.syncing {
                return self.lead(commit);
            }
            self.synced.wait(&mut commit);
        }
    }

    /// Makes everything durable that was appended before the call.
    pub(super) fn flush(&self) -> Result<()> {
        let mut commit = self.commit.lock();
        while commit.syncing {
            self.synced.wait(&mut commit);
        }
        self.lead(commit)
    }

    /// Syncs for all that wait now.
    fn lead<'a>(&'a self, mut commit: MutexGuard<'a, Commit>) -> Result<()> {
        commit.syncing = true;
        drop(commit);
        let result = self.sync_files();

        let mut commit = self.commit.lock();
        commit.syncing = false;
        match &result {
            Ok((end, frames)) => {
                commit.durable = *end;
                commit.frames = *frames;
            }
            Err(_) => commit.failed = true,
        }
        self.synced.notify_all();
        self.call_back(commit);
        result.map(|_| ())
    }

    /// Calls back all whose outcome is known, in the order of their rows. One
    /// thread at a time does so, and whoever comes meanwhile leaves it to that one:
    /// two side by side would tell of later rows first.
    fn call_back<'a>(&'a self, mut commit: MutexGuard<'a, Commit>) {
        if commit.calling {
            return;
        }
        commit.calling = true;
        loop {
            let durable = if self.shared.durable { commit.frames } else { u64::MAX };
            let known = if commit.failed {
                commit.waiting.len()
            } else {
                commit.waiting.partition_point(|(frame, _)| *frame <= durable)
            };
            if known == 0 {
                commit.calling = false;
                return;
            }
            let ready: Vec<_> = commit.waiting.drain(..known).collect();
            drop(commit);
            for (frame, on_durable) in ready {
                on_durable(if frame <= durable { Ok(()) } else { self.poisoned() });
            }
            commit = self.commit.lock();
        }
    }

    /// Syncs all files with unsynced bytes, in order; gives the end and the
    /// number of frames that are durable then.
    fn sync_files(&self) -> Result<(u64, u64)> {
        let mut writer = self.writer.lock();
        self.poisoned()?;
        let (end, frames) = (self.end(), writer.written);
        let files: Vec<_> = writer.unsynced.iter().map(|a| (a.clone(), a.segment.extent.read().len)).collect();
        let new_names = std::mem::take(&mut writer.new_names);
        drop(writer);

        let synced = files.iter().try_for_each(|(a, _)| a.file.sync().named("sync", &a.segment.path)).and_then(|()| {
            if new_names { self.shared.disk.sync_dir(&self.dir).named("sync", &self.dir) } else { Ok(()) }
        });
        if let Err(error) = synced {
            let error = error.fatal();
            self.poison(&error);
            return Err(error);
        }

        let mut writer = self.writer.lock();
        let durable = |segment: &Arc<Segment>| {
            files.iter().find(|(a, _)| Arc::ptr_eq(&a.segment, segment)).map_or(0, |(_, len)| *len)
        };
        writer.unsynced.retain(|a| a.segment.extent.read().len > durable(&a.segment));
        if let Some(active) = &writer.active {
            writer.synced = writer.synced.max(durable(&active.segment));
        }
        Ok((end, frames))
    }

    /// Takes no more rows.
    pub(super) fn close(&self) {
        self.writer.lock().closed = true;
    }

    /// Makes all durable and writes the mark that says so, for the next start.
    pub(super) fn finish(&self) -> Result<()> {
        if self.is_dirty() {
            self.flush()?;
        }
        let writer = self.writer.lock();
        let Some(active) = &writer.active else { return Ok(()) };
        self.poisoned()?;
        let path = index_path(&active.segment.path);
        write_index(&*self.shared.disk, &active.segment, false, writer.resume.clone()).named("write", &path)
    }

    /// Whether rows or names wait for a sync.
    pub(super) fn is_dirty(&self) -> bool {
        let writer = self.writer.lock();
        !writer.unsynced.is_empty() || writer.new_names
    }

    /// Whether writing has failed for good.
    pub(super) fn is_poisoned(&self) -> bool {
        self.poison.lock().is_some()
    }
}

/// What an append asks of the threads behind.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Effect {
    /// Something was written.
    pub(super) appended: bool,
    /// A segment was filled and can be sealed.
    pub(super) filled: bool,
    /// Too many callbacks wait.
    pub(super) crowded: bool,
}
