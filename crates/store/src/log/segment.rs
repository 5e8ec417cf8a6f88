//! One segment file: its name, its head frame, its index in memory.
//!
//! The index has an entry about every 64 KiB: offset, position, time. A reader
//! fetches the block between two entries with one read. When a segment is
//! sealed, or its log closed, the index is written beside it as `.idx`: a mark
//! of how far the file is known durable, and a shortcut for the next start,
//! never needed to read rows.
//!
//! Invariant: entries grow in offset, position and time. A segment is changed
//! by its partition's writer only; `len` and `end` cover whole frames.

use crate::{
    disk::{self, Disk, DiskFile},
    frame::{self, Head, Kind, Sealed},
};
use arrow_buffer::Buffer;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::Timestamp;

/// Bytes between two entries of the index, at least.
const STRIDE: u64 = 64 << 10;

/// A place in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) offset: u64,
    pub(super) position: u64,
    pub(super) time: i64,
}

/// What changes while a segment grows.
#[derive(Debug, Clone, Default)]
pub(super) struct Extent {
    /// Bytes in whole frames.
    pub(super) len: u64,
    /// First offset after its rows.
    pub(super) end: u64,
    /// Time of its newest row; the smallest of all when it has none.
    pub(super) last_time: i64,
    pub(super) entries: Vec<Entry>,
    /// Frames of rows: tells whether merging small ones pays.
    pub(super) frames: u64,
    /// Durable, indexed and merged: nothing more will happen to it.
    pub(super) sealed: bool,
    /// Damaged, so that it stays as it is.
    pub(super) unsealable: bool,
    /// Whether the last bytes could not be read: the next frame gets an entry.
    pub(super) broken: bool,
}

impl Extent {
    pub(super) fn new(first: u64, len: u64) -> Self {
        Self { len, end: first, last_time: i64::MIN, ..Self::default() }
    }

    pub(super) fn can_seal(&self) -> bool {
        !self.sealed && !self.unsealable
    }

    /// Notes a frame of rows at the present end.
    pub(super) fn push(&mut self, head: &Head, total: u64, last_time: i64) {
        if self.broken || self.entries.last().is_none_or(|e| self.len - e.position >= STRIDE) {
            self.broken = false;
            self.entries.push(Entry { offset: head.first, position: self.len, time: head.time });
        }
        self.len += total;
        self.end = head.first + u64::from(head.rows);
        self.last_time = self.last_time.max(last_time);
        self.frames += 1;
    }

    /// Notes bytes that hold no readable frame.
    pub(super) fn skip_to(&mut self, position: u64) {
        self.len = position;
        self.broken = true;
    }
}

/// One segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) first: u64,
    pub(super) path: PathBuf,
    /// Marks the frames of this very file.
    pub(super) salt: u32,
    pub(super) extent: RwLock<Extent>,
}

impl Segment {
    pub(super) fn end(&self) -> u64 {
        self.extent.read().end
    }

    /// The block `[position, end)` that holds `offset` if anything does.
    pub(super) fn block_of(&self, offset: u64) -> (u64, u64) {
        let extent = self.extent.read();
        let next = extent.entries.partition_point(|e| e.offset <= offset);
        let end = extent.entries.get(next).map_or(extent.len, |e| e.position);
        let start = match next.checked_sub(1) {
            Some(i) => extent.entries[i].position,
            None => end,
        };
        (start, end)
    }
}

/// What the head frame of a segment says, as JSON in its meta part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SegmentHead {
    pub(super) topic: String,
    pub(super) partition: u32,
    pub(super) created: Timestamp,
    /// Whether the file was rewritten with small frames merged.
    pub(super) merged: bool,
    /// The last resume token stored before this segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) resume: Option<String>,
}

impl SegmentHead {
    /// The head frame; its salt names this file.
    pub(super) fn seal(&self, first: u64, schema: &[u8]) -> (Sealed, u32) {
        let meta = serde_json::to_vec(self).expect("plain fields always become JSON");
        // The salt comes from what the file is, so that equal calls write equal bytes.
        let salt = crc32c::crc32c_append(crc32c::crc32c(&meta), &first.to_le_bytes());
        let head = Head { kind: Kind::Head, first, rows: 0, salt, synced: 0, time: self.created.0 };
        let sealed = Sealed::new(head, meta, vec![Buffer::from(schema)]).expect("names and schemas are short");
        (sealed, salt)
    }
}

pub(super) fn file_name(first: u64) -> String {
    format!("{first:020}.seg")
}

pub(super) fn first_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    if digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}

pub(super) fn index_path(segment: &Path) -> PathBuf {
    segment.with_extension("idx")
}

/// The meta part of an index file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct IndexHead {
    /// Bytes of the segment that are known durable.
    pub(super) len: u64,
    /// First offset after the rows in them.
    pub(super) end: u64,
    pub(super) last_time: i64,
    pub(super) frames: u64,
    /// Whether nothing more is appended.
    pub(super) sealed: bool,
    /// The last resume token stored in this segment or before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) resume: Option<String>,
}

/// Writes the index of a segment whose bytes are durable.
pub(super) fn write_index(disk: &dyn Disk, segment: &Segment, sealed: bool, resume: Option<String>) -> io::Result<()> {
    let extent = segment.extent.read().clone();
    let head = IndexHead {
        len: extent.len,
        end: extent.end,
        last_time: extent.last_time,
        frames: extent.frames,
        sealed,
        resume,
    };
    put_index(disk, segment, &head, &extent.entries)
}

/// Writes an index that says only that the first `len` bytes are durable.
pub(super) fn write_mark(disk: &dyn Disk, segment: &Segment, len: u64) -> io::Result<()> {
    let head = IndexHead { len, end: segment.first, last_time: i64::MIN, frames: 0, sealed: false, resume: None };
    put_index(disk, segment, &head, &[])
}

fn put_index(disk: &dyn Disk, segment: &Segment, head: &IndexHead, entries: &[Entry]) -> io::Result<()> {
    let meta = serde_json::to_vec(head).expect("plain fields always become JSON");
    let mut payload = Vec::with_capacity(entries.len() * 24);
    for entry in entries {
        payload.extend_from_slice(&entry.offset.to_le_bytes());
        payload.extend_from_slice(&entry.position.to_le_bytes());
        payload.extend_from_slice(&entry.time.to_le_bytes());
    }
    let frame = Head { kind: Kind::Index, first: segment.first, rows: 0, salt: segment.salt, synced: 0, time: 0 };
    let sealed = Sealed::new(frame, meta, vec![Buffer::from(payload)]).expect("a segment's index is short");
    disk::atomic_write(disk, &index_path(&segment.path), &sealed.bytes())
}

/// Reads the index beside a segment; `None` when there is none, or it is
/// damaged or of another file.
pub(super) fn read_index(disk: &dyn Disk, segment: &Path, first: u64, salt: u32) -> Option<(IndexHead, Vec<Entry>)> {
    let (frame, _) = frame::first_frame(disk, &index_path(segment)).ok()??;
    let head = frame.head();
    if head.kind != Kind::Index || head.first != first || head.salt != salt {
        return None;
    }
    let index: IndexHead = serde_json::from_slice(frame.meta()).ok()?;
    let payload = frame.payload();
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let entries = payload
        .chunks_exact(24)
        .map(|e| Entry { offset: word(&e[..8]), position: word(&e[8..16]), time: word(&e[16..]).cast_signed() })
        .collect();
    Some((index, entries))
}

/// A segment that is being appended to.
#[derive(Debug, Clone)]
pub(super) struct Active {
    pub(super) segment: Arc<Segment>,
    pub(super) file: Arc<dyn DiskFile>,
}
