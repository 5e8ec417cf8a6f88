//! What happens to segments after they were filled: sealing, merging, retention.
//!
//! ```text
//! filled ─► synced ─► small frames merged (temporary file, rename) ─► index written ─► … ─► deleted
//! ```
//!
//! Invariant: rows, offsets, times and resume tokens are the same before and
//! after a merge; a reader that has the old file open goes on with it. Segments
//! are deleted oldest first, each durably before the next, so that a crash
//! never leaves a hole. Runs on the log's tidying thread and in `apply_retention`.

use super::{
    config::Retention,
    partition::Partition,
    rows::RowsMeta,
    segment::{Extent, Segment, SegmentHead, index_path, read_index, write_index, write_mark},
};
use crate::{
    disk::{Mode, temporary},
    fault::Named,
    frame::{Frame, Head, Kind, Scanner, Sealed},
    ipc::{self, RowEncoder},
};
use arrow_array::RecordBatch;
use arrow_select::concat::concat_batches;
use parking_lot::RwLock;
use std::sync::Arc;
use tidemill_core::{Duration, Error, Result, Timestamp};

/// Merged frames get about this long.
const MERGED: usize = 1 << 20;
/// Segments whose frames are longer than this on average are left as they are.
const LARGE: u64 = 512 << 10;
/// Segments that what is kept spans at least, so that it goes in small parts.
pub(super) const SPANS: u32 = 4;

/// Seals all filled segments of a partition.
pub(super) fn seal(partition: &Partition) -> Result<()> {
    loop {
        let writer = partition.writer.lock();
        let active = writer.active.as_ref().map(|a| a.segment.first);
        drop(writer);
        let next = {
            let segments = partition.segments.read();
            // The last one stays open: the head of the one after it keeps the resume token.
            let filled = segments.len().saturating_sub(1);
            segments[..filled].iter().find(|s| Some(s.first) != active && s.extent.read().can_seal()).map(Arc::clone)
        };
        let Some(segment) = next else { return Ok(()) };
        if partition.is_dirty() {
            partition.flush()?;
        }
        let merged = match merge(partition, &segment) {
            Ok(merged) => merged,
            Err(error) if error.is_retryable() => return Err(error),
            Err(error) => {
                tracing::error!(segment = %segment.path.display(), error = %error.chain(), "a segment can't be merged");
                segment.extent.write().unsealable = true;
                continue;
            }
        };
        let segment = merged.unwrap_or(segment);
        write_index(&*partition.shared.disk, &segment, true, None).named("write", &index_path(&segment.path))?;
        segment.extent.write().sealed = true;
    }
}

/// Rewrites a segment of many small frames as one of few large ones.
fn merge(partition: &Partition, segment: &Arc<Segment>) -> Result<Option<Arc<Segment>>> {
    let extent = segment.extent.read();
    if extent.frames < 2 || extent.len / extent.frames >= LARGE {
        return Ok(None);
    }
    let end = extent.end;
    drop(extent);
    let disk = &*partition.shared.disk;
    let path = &segment.path;
    let bad = |what: &str| Error::external(format!("{} {what}", path.display())).fatal();
    let file = disk.open(path, Mode::Read).named("open", path)?;
    let mut scan = Scanner::new(&*file, 0).named("read", path)?;
    let head = scan.next().named("read", path)?.ok_or_else(|| bad("has a damaged head"))?;
    let mut head: SegmentHead =
        serde_json::from_slice(head.meta()).map_err(|e| bad("has a damaged head").because(e))?;
    head.merged = true;
    let (sealed, salt) = head.seal(segment.first, &partition.shared.schema_message);

    let tmp = temporary(path);
    let out = disk.open(&tmp, Mode::Create).named("create", &tmp)?;
    let written = (|| {
        sealed.write(&*out).named("write", &tmp)?;
        let mut group = Group::new(partition, segment.first, salt, sealed.total())?;
        while let Some(frame) = scan.next().named("read", path)? {
            if frame.head().first != group.next || frame.head().salt != segment.salt {
                return Err(bad("has frames that don't follow each other"));
            }
            group.add(&frame)?;
            if group.bytes >= MERGED
                && let Some(frame) = group.close()?
            {
                frame.write(&*out).named("write", &tmp)?;
            }
        }
        if let Some(frame) = group.close()? {
            frame.write(&*out).named("write", &tmp)?;
        }
        if group.next != end {
            return Err(bad("is damaged"));
        }
        out.sync().named("sync", &tmp)?;
        Ok(group.extent)
    })();
    let extent = match written {
        Ok(extent) => extent,
        Err(error) => {
            // Best effort: left-over temporary files are removed at the next start.
            let _ignored = disk.remove(&tmp);
            return Err(error);
        }
    };
    let merged = Arc::new(Segment { first: segment.first, path: path.clone(), salt, extent: RwLock::new(extent) });
    let mut segments = partition.segments.write();
    let Some(at) = segments.iter().position(|s| Arc::ptr_eq(s, segment)) else {
        // Retention took the segment meanwhile.
        let _ignored = disk.remove(&tmp);
        return Err(Error::external(format!("{} was deleted meanwhile", path.display())).fatal());
    };
    disk.rename(&tmp, path).named("rename", &tmp)?;
    segments[at] = Arc::clone(&merged);
    // The name needs no sync: under it are the same rows, of the one file or the other, both durable.
    Ok(Some(merged))
}

/// Frames that become one.
struct Group<'a> {
    partition: &'a Partition,
    encoder: RowEncoder,
    salt: u32,
    rows: Vec<RecordBatch>,
    bytes: usize,
    meta: RowsMeta,
    first: u64,
    next: u64,
    extent: Extent,
}

impl<'a> Group<'a> {
    fn new(partition: &'a Partition, first: u64, salt: u32, len: u64) -> Result<Self> {
        Ok(Self {
            partition,
            encoder: RowEncoder::new(&partition.shared.schema)?,
            salt,
            rows: Vec::new(),
            bytes: 0,
            meta: RowsMeta { times: Vec::new(), resume: None },
            first,
            next: first,
            extent: Extent::new(first, len),
        })
    }

    fn add(&mut self, frame: &Frame) -> Result<()> {
        let damaged = || Error::external("a frame's rows can't be decoded").fatal();
        let meta = RowsMeta::decode(frame.meta(), frame.head().rows).ok_or_else(damaged)?;
        let payload = frame.payload();
        let rows = ipc::decode_rows(&payload, &self.partition.shared.schema).map_err(|e| damaged().because(e))?;
        if rows.num_rows() != frame.head().rows as usize {
            return Err(damaged());
        }
        for (rows, time) in meta.times {
            match self.meta.times.last_mut() {
                Some((count, last)) if *last == time => *count += rows,
                _ => self.meta.times.push((rows, time)),
            }
        }
        self.meta.resume = meta.resume.or(self.meta.resume.take());
        self.bytes += payload.len();
        self.next = frame.header.end();
        self.rows.push(rows);
        Ok(())
    }

    fn close(&mut self) -> Result<Option<Sealed>> {
        if self.rows.is_empty() {
            return Ok(None);
        }
        let internal = |e: String| Error::internal(format!("frames can't be merged: {e}"));
        let rows = concat_batches(&self.partition.shared.schema, &self.rows).map_err(|e| internal(e.to_string()))?;
        let time = self.meta.times.first().map_or(0, |(_, t)| t.0);
        let last = self.meta.times.last().map_or(i64::MIN, |(_, t)| t.0);
        let head = Head {
            kind: Kind::Rows,
            first: self.first,
            rows: u32::try_from(rows.num_rows()).map_err(|e| internal(e.to_string()))?,
            salt: self.salt,
            // The file gets its name after it was synced: all of it is durable.
            synced: u64::MAX,
            time,
        };
        let sealed =
            Sealed::new(head, self.meta.encode(), self.encoder.encode(&rows)?).map_err(|e| internal(e.to_string()))?;
        self.extent.push(&head, sealed.total(), last);
        self.first = self.next;
        self.rows.clear();
        self.bytes = 0;
        self.meta = RowsMeta { times: Vec::new(), resume: None };
        Ok(Some(sealed))
    }
}

/// What retention deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retired {
    /// Segments.
    pub segments: u64,
    /// Bytes in them.
    pub bytes: u64,
}

/// Leaves a mark that the second segment is durable, before it becomes the
/// first: without one, a start would take rows before it for lost in a crash.
fn vouch(partition: &Partition) -> Result<()> {
    let Some(next) = partition.segments.read().get(1).map(Arc::clone) else { return Ok(()) };
    let disk = &*partition.shared.disk;
    let path = index_path(&next.path);
    if read_index(disk, &next.path, next.first, next.salt).is_some() {
        return Ok(());
    }
    let writer = partition.writer.lock();
    let active = writer.active.as_ref().is_some_and(|a| Arc::ptr_eq(&a.segment, &next));
    let durable = if active { writer.synced } else { next.extent.read().len };
    drop(writer);
    write_mark(disk, &next, durable).named("write", &path)
}

/// Begins a new segment when the active one is idle and its rows may go, or
/// spans more than a quarter of what is kept: only segments that are not active
/// can be deleted. Whether it did.
pub(super) fn end_spanning(
    partition: &Partition,
    now: Timestamp,
    retention: Retention,
    pin: Option<u64>,
) -> Result<bool> {
    let before = |age: Duration| now.minus(age).0;
    let mut writer = partition.writer.lock();
    let ends = writer.active.as_ref().is_some_and(|a| {
        let extent = a.segment.extent.read();
        let begun = extent.entries.first().map_or(i64::MAX, |entry| entry.time);
        let idle = pin.is_none_or(|pin| extent.end <= pin)
            && retention.max_age.is_some_and(|age| extent.last_time < before(age));
        let long = retention.max_age.is_some_and(|age| begun < before(age / SPANS));
        let large = retention.max_bytes.is_some_and(|max| extent.len > max / u64::from(SPANS));
        extent.frames > 0 && (idle || long || large)
    });
    if ends && !partition.is_poisoned() {
        partition.roll(&mut writer)?;
        return Ok(true);
    }
    Ok(false)
}

/// Deletes the segments of a partition that are too old or too many, none of
/// which holds an offset at or after `pin`.
pub(super) fn retire(partition: &Partition, now: Timestamp, retention: Retention, pin: Option<u64>) -> Result<Retired> {
    let Retention { max_age, max_bytes } = retention;
    let older_than = max_age.map(|age| now.minus(age));
    let free = |end: u64| pin.is_none_or(|pin| end <= pin);
    let old = |extent: &Extent| older_than.is_some_and(|t| extent.last_time < t.0);
    let mut retired = Retired::default();
    loop {
        let segments = partition.segments.read();
        let total: u64 = segments.iter().map(|s| s.extent.read().len).sum();
        // The last segment stays: it holds the end and the resume token.
        let Some(oldest) = segments.first().filter(|_| segments.len() > 1).map(Arc::clone) else { break };
        drop(segments);
        let (len, goes) = {
            let extent = oldest.extent.read();
            // A segment that is larger than it should be goes when enough has come after it.
            let much = max_bytes.is_some_and(|max| total > max && total - extent.len >= max - max / u64::from(SPANS));
            (extent.len, free(extent.end) && (old(&extent) || much))
        };
        if !goes {
            break;
        }
        if partition.is_dirty() {
            partition.flush()?;
        }
        vouch(partition)?;
        let disk = &*partition.shared.disk;
        let index = index_path(&oldest.path);
        if disk.exists(&index) {
            disk.remove(&index).named("remove", &index)?;
        }
        let mut segments = partition.segments.write();
        disk.remove(&oldest.path).named("remove", &oldest.path)?;
        segments.remove(0);
        drop(segments);
        disk.sync_dir(&partition.dir).named("sync", &partition.dir)?;
        retired.segments += 1;
        retired.bytes += len;
    }
    Ok(retired)
}
