//! What a partition holds after a start: which segments, how far, what is lost.
//!
//! Sealed segments with a good index are taken as they are; the others, the
//! last one as a rule, are read through. A frame that can't be read is
//!
//! - **damage**, when it is known to have been durable: a later frame, the
//!   index, or a later segment says so. It stays, readers get an error with the
//!   exact offsets, new rows go to a new segment behind it;
//! - **torn** otherwise: the machine stopped before it was durable, so nobody
//!   was told that it is. The file is cut there. Should whole frames follow the
//!   torn one, they are kept beside the segment under `.torn`.
//!
//! Invariant: after recovery everything that a reader can see is durable, and
//! nothing that was durable is cut. Called once for a partition, at open.

use super::{
    partition::{Recovered, Shared},
    rows::RowsMeta,
    segment::{Active, Entry, Extent, IndexHead, Segment, SegmentHead, file_name, first_of, index_path, read_index},
};
use crate::{
    disk::{self, Disk, DiskFile, Mode, atomic_write},
    fault::Named,
    frame::{Kind, Scanner, read_block},
};
use parking_lot::RwLock;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{Error, Result, Timestamp};

/// A place where no frame can be read.
#[derive(Debug, Clone, Copy)]
struct Gap {
    position: u64,
    from: u64,
    to: u64,
}

/// What reading through a segment found.
#[derive(Debug)]
struct Scan {
    /// Where the first frame of rows was looked for.
    start: u64,
    extent: Extent,
    gaps: Vec<Gap>,
    /// Bytes that some frame says were durable when it was written.
    durable: u64,
    resume: Option<String>,
}

#[derive(Debug)]
struct Found {
    first: u64,
    path: PathBuf,
    salt: u32,
    head: Option<SegmentHead>,
    len: u64,
    index: Option<(IndexHead, Vec<Entry>)>,
    /// Missing for a sealed segment.
    scan: Option<Scan>,
}

impl Found {
    /// Whether anything in the file was ever durable: then all before it was, too.
    fn was_synced(&self) -> bool {
        self.index.is_some() || self.scan.as_ref().is_none_or(|s| s.durable > 0)
    }
}

pub(super) fn recover(shared: &Shared, number: u32, dir: &Path) -> Result<Recovered> {
    let disk = &*shared.disk;
    super::cut::finish(disk, dir)?;
    let mut found = Vec::new();
    for name in disk.list(dir).named("list", dir)? {
        let path = dir.join(&name);
        if name.ends_with(".tmp") {
            disk.remove(&path).named("remove", &path)?;
        } else if let Some(first) = first_of(&name) {
            found.push(look(disk, first, path)?);
        }
    }
    for name in disk.list(dir).named("list", dir)? {
        if name.strip_suffix(".idx").is_some_and(|stem| !disk.exists(&dir.join(format!("{stem}.seg")))) {
            let path = dir.join(&name);
            disk.remove(&path).named("remove", &path)?;
        }
    }
    Recovery { shared, disk, number, dir, kept: Vec::new(), end: 0, damage: Vec::new(), resume: None, active: None }
        .run(found)
}

/// Reads the head, the index, and, unless it is sealed, all of a segment.
fn look(disk: &dyn Disk, first: u64, path: PathBuf) -> Result<Found> {
    let file = disk.open(&path, Mode::Read).named("open", &path)?;
    let mut scan = Scanner::new(&*file, 0).named("read", &path)?;
    let frame = scan.next().named("read", &path)?.filter(|f| f.head().kind == Kind::Head && f.head().first == first);
    let head: Option<SegmentHead> = frame.as_ref().and_then(|f| serde_json::from_slice(f.meta()).ok());
    let salt = match &frame {
        Some(frame) => frame.head().salt,
        None => {
            // The frames behind a damaged head still know which file they belong to.
            scan.at = 0;
            let rows = scan.resync(|h| h.kind == Kind::Rows && h.first >= first).named("read", &path)?;
            rows.map_or(0, |h| h.head.salt)
        }
    };
    let (len, at) = (scan.len, scan.at);
    let index = read_index(disk, &path, first, salt);
    let sealed = frame.is_some() && index.as_ref().is_some_and(|(i, _)| i.sealed && i.len == len);
    let scan = if sealed { None } else { Some(read_through(&*file, &path, first, salt, at, len)?) };
    Ok(Found { first, path, salt, head, len, index, scan })
}

/// Reads the frames in `[at, until)`.
fn read_through(file: &dyn DiskFile, path: &Path, first: u64, salt: u32, at: u64, until: u64) -> Result<Scan> {
    let mut scan = Scanner::new(file, at).named("read", path)?;
    scan.len = scan.len.min(until);
    let mut out = Scan { start: at, extent: Extent::new(first, at), gaps: Vec::new(), durable: 0, resume: None };
    loop {
        let (position, expect) = (scan.at, out.extent.end);
        let frame = scan.next().named("read", path)?;
        let frame = frame.filter(|f| f.head().kind == Kind::Rows && f.head().salt == salt && f.head().first == expect);
        let meta = frame.as_ref().and_then(|f| RowsMeta::decode(f.meta(), f.head().rows));
        if let (Some(frame), Some(meta)) = (frame, meta) {
            let last = meta.times.last().map_or(i64::MIN, |(_, t)| t.0);
            out.extent.push(frame.head(), frame.header.total(), last);
            out.durable = out.durable.max(frame.head().synced);
            out.resume = meta.resume.or(out.resume);
            continue;
        }
        scan.at = position;
        let next = scan.resync(|h| h.kind == Kind::Rows && h.salt == salt && h.first >= expect).named("read", path)?;
        let Some(next) = next else { return Ok(out) };
        out.gaps.push(Gap { position, from: expect, to: next.head.first });
        out.extent.skip_to(scan.at);
        out.extent.end = next.head.first;
    }
}

struct Recovery<'a> {
    shared: &'a Shared,
    disk: &'a dyn Disk,
    number: u32,
    dir: &'a Path,
    kept: Vec<Arc<Segment>>,
    end: u64,
    damage: Vec<(u64, u64)>,
    resume: Option<String>,
    active: Option<Active>,
}

impl Recovery<'_> {
    fn run(mut self, found: Vec<Found>) -> Result<Recovered> {
        // Segments are synced in order: one that was ever synced vouches for all before it.
        let vouched: Vec<bool> = (0..found.len()).map(|i| found[i + 1..].iter().any(Found::was_synced)).collect();
        let mut changed = false;
        let mut found = found.into_iter().zip(vouched).peekable();
        while let Some((segment, vouched)) = found.next() {
            let first = segment.first;
            let (durable, follows) = (vouched || segment.was_synced(), first == self.end);
            if !durable && (!follows || segment.head.is_none()) {
                // Rows before it, or its own head, were lost before anything here was durable.
                self.set_aside(&segment)?;
                for (later, _) in found.by_ref() {
                    self.set_aside(&later)?;
                }
                changed = true;
                break;
            }
            if first < self.end {
                return Err(Error::external(format!(
                    "{} begins inside the segment before it, which ends at {}: move one of them away",
                    segment.path.display(),
                    self.end
                ))
                .fatal());
            }
            if !follows && !self.kept.is_empty() {
                self.lose(self.end, first);
                self.stretch(first);
            }
            changed |= segment.scan.is_some();
            self.keep(segment, vouched, found.peek().is_none())?;
        }
        if changed {
            self.disk.sync_dir(self.dir).named("sync", self.dir)?;
        }
        let last_time = self.kept.iter().map(|s| s.extent.read().last_time).max().unwrap_or(i64::MIN);
        Ok(Recovered {
            segments: self.kept,
            active: self.active,
            end: self.end,
            last_time: Timestamp(last_time),
            resume: self.resume,
            damage: self.damage,
        })
    }

    /// Takes a segment over, cut where it is torn.
    fn keep(&mut self, found: Found, vouched: bool, is_last: bool) -> Result<()> {
        self.end = found.first;
        let Found { first, path, salt, head, len, index, scan } = found;
        let Some(mut scan) = scan else {
            let (index, entries) = index.expect("a segment that is not scanned is sealed");
            let IndexHead { len, end, last_time, frames, resume, .. } = index;
            self.pass(head, resume);
            let extent = Extent { len, end, last_time, entries, frames, sealed: true, ..Extent::default() };
            self.end = end;
            self.kept.push(Arc::new(Segment { first, path, salt, extent: RwLock::new(extent) }));
            return Ok(());
        };
        let mark = index.as_ref().map(|(i, _)| i);
        let durable = if vouched { u64::MAX } else { scan.durable.max(mark.map_or(0, |m| m.len)) };
        let mut cut = false;
        if let Some(gap) = scan.gaps.iter().find(|g| g.position >= durable).copied() {
            cut = true;
            // Frames behind the torn one were as little durable as it.
            self.keep_torn(&path, gap.position, len)?;
            let file = self.disk.open(&path, Mode::Read).named("open", &path)?;
            scan = read_through(&*file, &path, first, salt, scan.start, gap.position)?;
        }
        self.pass(head.clone(), scan.resume.take());
        for gap in &scan.gaps {
            self.lose(gap.from, gap.to);
        }
        let mut extendable = is_last && head.is_some() && scan.gaps.is_empty();
        if let Some(mark) = mark.filter(|m| m.end > scan.extent.end) {
            self.resume = mark.resume.clone().or_else(|| self.resume.take());
            // The end is missing or unreadable, and was durable.
            self.lose(scan.extent.end, mark.end);
            scan.extent.end = mark.end;
            extendable = false;
        } else if scan.extent.len < len && !vouched {
            tracing::warn!(
                path = %path.display(),
                bytes = len - scan.extent.len,
                "the torn end of a segment was cut off; it had not been durable"
            );
            let file = self.disk.open(&path, Mode::Append).named("open", &path)?;
            file.truncate(scan.extent.len).named("cut", &path)?;
            cut = true;
        } else if scan.extent.len < len {
            extendable = false;
        }
        let file = self.disk.open(&path, Mode::Append).named("open", &path)?;
        if cut || mark.is_none_or(|m| m.len != scan.extent.len) {
            // Rows that a dead process wrote may still be in memory only. And what was cut off must
            // not come back once rows behind it are durable, and vouch for it.
            file.sync().named("sync", &path)?;
        }
        self.end = scan.extent.end;
        let segment = Arc::new(Segment { first, path, salt, extent: RwLock::new(scan.extent) });
        if extendable {
            self.active = Some(Active { segment: Arc::clone(&segment), file });
        }
        self.kept.push(segment);
        Ok(())
    }

    /// Moves the resume token on past a segment: the last in it, else the one it began with.
    fn pass(&mut self, head: Option<SegmentHead>, last: Option<String>) {
        self.resume = last.or_else(|| head.and_then(|h| h.resume)).or_else(|| self.resume.take());
    }

    /// Notes offsets whose rows were durable and can't be read.
    fn lose(&mut self, from: u64, to: u64) {
        if from < to {
            tracing::error!(
                topic = %self.shared.topic, partition = self.number, from, to,
                "the log is damaged: these offsets can't be read"
            );
            self.damage.push((from, to));
        }
    }

    /// Lets the last segment answer for offsets up to `end`.
    fn stretch(&mut self, end: u64) {
        if let Some(last) = self.kept.last() {
            last.extent.write().end = end;
        }
        self.end = end;
        self.active = None;
    }

    /// Copies the bytes from a torn frame on beside the segment.
    fn keep_torn(&self, path: &Path, position: u64, len: u64) -> Result<()> {
        let name = format!("{}.{position}.torn", path.file_name().unwrap_or_default().to_string_lossy());
        let beside = self.dir.join(name);
        let file = self.disk.open(path, Mode::Append).named("open", path)?;
        let bytes = read_block(&*file, position, len - position).named("read", path)?;
        atomic_write(self.disk, &beside, &bytes).named("write", &beside)?;
        file.truncate(position).named("cut", path)?;
        tracing::warn!(
            path = %path.display(), kept = %beside.display(), bytes = len - position,
            "rows that were not durable were cut off behind a torn one"
        );
        Ok(())
    }

    /// Takes a segment out of the log that follows torn rows.
    fn set_aside(&self, found: &Found) -> Result<()> {
        let path = &found.path;
        if found.scan.as_ref().is_some_and(|s| s.extent.frames > 0) {
            let aside = self.dir.join(format!("{}.torn", file_name(found.first)));
            tracing::warn!(path = %path.display(), kept = %aside.display(), "a segment behind torn rows was set aside");
            self.disk.rename(path, &aside).named("rename", path)?;
        } else {
            self.disk.remove(path).named("remove", path)?;
        }
        let index = index_path(path);
        if self.disk.exists(&index) {
            self.disk.remove(&index).named("remove", &index)?;
        }
        Ok(())
    }
}

/// Whether a partition's directory holds rows: for a topic that lost its `topic.json`.
pub(super) fn holds_rows(disk: &dyn Disk, dir: &Path) -> bool {
    disk.list(dir).is_ok_and(|names| names.iter().any(|n| first_of(n).is_some()))
}

/// Removes a directory of ours and all in it.
pub(super) fn remove_all(disk: &dyn Disk, dir: &Path) -> Result<()> {
    for name in disk.list(dir).named("list", dir)? {
        let path = dir.join(name);
        if disk.list(&path).is_ok() {
            remove_all(disk, &path)?;
        } else {
            disk.remove(&path).named("remove", &path)?;
        }
    }
    disk.remove_dir(dir).named("remove", dir)?;
    disk.sync_dir(disk::parent(dir)).named("sync", dir)
}
