//! Rows taken back from the end of a partition: those of batches that were undone.
//!
//! ```text
//! <first>.seg.cut.tmp   the segment that holds the new end, with what stays     synced
//! cut.json              from here on it will be cut, whatever crashes
//! later segments removed ─► the segment renamed to its place ─► cut.json removed
//! ```
//!
//! Invariant: whoever opens the partition finds all its rows or those before
//! the cut: what a crash left half done is ended first, by [`finish`]. Called by
//! [`super::partition`] and by recovery.

use super::{
    partition::Shared,
    rows::RowsMeta,
    segment::{SegmentHead, file_name, first_of},
};
use crate::{
    disk::{self, Disk, Mode},
    fault::Named,
    frame::{Head, Kind, Scanner, Sealed},
    ipc::{self, RowEncoder},
    small,
};
use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{Error, Result};

/// The file that says that a partition is being cut.
const MARK: &str = "cut.json";

/// What [`MARK`] holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    version: u32,
    /// First offset of the segment that will be the last.
    first: u64,
}

/// Where the new last segment waits for its name.
fn prepared(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{}.cut.tmp", file_name(first)))
}

/// Writes what stays, and says that the rest goes: from here on it will.
///
/// # Errors
/// When the rows before `to` in its segment can't be read, or the disk refuses:
/// then nothing has changed.
pub(super) fn begin(shared: &Shared, number: u32, dir: &Path, to: u64, resume: &str) -> Result<()> {
    let disk = &*shared.disk;
    let names = disk.list(dir).named("list", dir)?;
    let first = names.iter().filter_map(|name| first_of(name)).filter(|first| *first <= to).max();
    let first = first.unwrap_or(to);
    let path = dir.join(file_name(first));
    let tmp = prepared(dir, first);
    // Without a segment that holds rows before `to`, one without rows begins there.
    let source = (first < to && disk.exists(&path)).then_some(path.as_path());
    let written = write_kept(shared, (number, source), &tmp, (first, to), resume);
    if let Err(error) = written {
        // Best effort: left-over temporary files are removed at the next start.
        let _ignored = disk.remove(&tmp);
        return Err(error);
    }
    disk.sync_dir(dir).named("sync", dir)?;
    let mark = dir.join(MARK);
    disk::atomic_write(disk, &mark, &small::sealed(&Mark { version: small::VERSION, first })).named("write", &mark)
}

/// Writes a segment with the rows of `source` in `[first, to)` and the token that stands for them.
fn write_kept(
    shared: &Shared,
    (number, source): (u32, Option<&Path>),
    tmp: &Path,
    (first, to): (u64, u64),
    resume: &str,
) -> Result<()> {
    let disk = &*shared.disk;
    let out = disk.open(tmp, Mode::Create).named("create", tmp)?;
    let put = |head: Head, meta: &RowsMeta, payload: Vec<Buffer>| {
        let sealed = Sealed::new(head, meta.encode(), payload);
        let sealed = sealed.map_err(|e| Error::internal("a frame that was cut").because(e))?;
        sealed.write(&*out).named("write", tmp)?;
        Ok::<u64, Error>(sealed.total())
    };
    let begun = |head: &SegmentHead| {
        let (sealed, salt) = head.seal(first, &shared.schema_message);
        sealed.write(&*out).named("write", tmp)?;
        Ok::<_, Error>((sealed.total(), salt))
    };
    let mut encoder = RowEncoder::new(&shared.schema)?;
    let (mut at, salt) = match source {
        None => begun(&SegmentHead {
            topic: shared.topic.clone(),
            partition: number,
            created: shared.clock.now(),
            merged: false,
            resume: None,
        })?,
        Some(path) => {
            let damaged = || Error::external(format!("{} is damaged before offset {to}", path.display())).fatal();
            let file = disk.open(path, Mode::Read).named("open", path)?;
            let mut scan = Scanner::new(&*file, 0).named("read", path)?;
            let frame = scan.next().named("read", path)?.filter(|frame| frame.head().kind == Kind::Head);
            let frame = frame.ok_or_else(damaged)?;
            let was = frame.head().salt;
            let head = serde_json::from_slice(frame.meta()).map_err(|e| damaged().because(e))?;
            let (mut at, salt) = begun(&head)?;
            let mut next = first;
            while next < to {
                let frame = scan.next().named("read", path)?.ok_or_else(damaged)?;
                let old = *frame.head();
                let follows = (old.kind, old.salt, old.first) == (Kind::Rows, was, next);
                let meta = RowsMeta::decode(frame.meta(), old.rows).filter(|_| follows).ok_or_else(damaged)?;
                // The file gets its name after all of it was synced, so what is before a frame is durable.
                let head = Head { salt, synced: at, ..old };
                at += if frame.header.end() <= to {
                    put(head, &meta, vec![frame.payload()])?
                } else {
                    let rows = ipc::decode_rows(&frame.payload(), &shared.schema).map_err(|e| damaged().because(e))?;
                    let left = u32::try_from(to - next).map_err(|e| damaged().because(e))?;
                    let payload = encoder.encode(&rows.slice(0, left as usize))?;
                    put(Head { rows: left, ..head }, &meta.cut(left), payload)?
                };
                next = frame.header.end();
            }
            (at, salt)
        }
    };
    let time = shared.clock.now().0;
    let head = Head { kind: Kind::Rows, first: to, rows: 0, salt, synced: at, time };
    let meta = RowsMeta { times: Vec::new(), resume: Some(resume.to_owned()) };
    at += put(head, &meta, encoder.encode(&RecordBatch::new_empty(Arc::clone(&shared.schema)))?)?;
    debug_assert_eq!(out.len().ok(), Some(at), "frames follow each other");
    out.sync().named("sync", tmp)
}

/// Ends a cut that was begun, if one was. May be repeated.
///
/// # Errors
/// When the disk refuses; the next start tries again.
pub(super) fn finish(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let mark = dir.join(MARK);
    if !disk.exists(&mark) {
        return Ok(());
    }
    let bytes = disk::read_file(disk, &mark).named("read", &mark)?;
    let Mark { first, .. } = small::opened(&bytes, &mark)?;
    for name in disk.list(dir).named("list", dir)? {
        let stem = name.strip_suffix(".idx").map(|stem| format!("{stem}.seg"));
        let goes = match &stem {
            // What an index says of the segment is true no more.
            Some(segment) => first_of(segment).is_some_and(|at| at >= first),
            None => first_of(&name).is_some_and(|at| at > first),
        };
        if goes {
            let path = dir.join(&name);
            disk.remove(&path).named("remove", &path)?;
        }
    }
    let (tmp, path) = (prepared(dir, first), dir.join(file_name(first)));
    // Renamed already before a crash that forgot the rest.
    if disk.exists(&tmp) {
        disk.rename(&tmp, &path).named("rename", &tmp)?;
    }
    disk.sync_dir(dir).named("sync", dir)?;
    disk.remove(&mark).named("remove", &mark)?;
    disk.sync_dir(dir).named("sync", dir)
}
