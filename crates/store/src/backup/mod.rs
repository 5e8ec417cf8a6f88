//! A data directory copied, checked and put back, also while a program runs on it.
//!
//! ```text
//! gate closed ─► every file gets a second name ─► gate open ─► copied, checked ─► BACKUP.json ─► second names removed
//!      └── milliseconds: a commit waits ──┘          └── as long as it takes, beside the program ──┘
//! ```
//!
//! While the [`crate::Gate`] is closed no batch commits, so log, ledger and
//! states are those of one batch. Files only grow, or are replaced whole, so
//! the second name and the length at that moment hold what they held.
//!
//! - [`backup`] copies a directory into an empty one;
//! - [`verify`] reads every byte of a data directory or of a backup, and says
//!   where damage is;
//! - [`restore`] makes a data directory of a backup.
//!
//! Invariant: a backup without `BACKUP.json` is not whole and is refused; a
//! directory that is being restored can't be opened. The source is never
//! changed but for the second names, in a directory of their own.

mod capture;
mod manifest;
mod verify;

#[cfg(test)]
mod tests;

pub use manifest::Backup;
pub use verify::{Finding, Verified, verify};

use crate::{
    dir::UNFINISHED,
    disk::{self, Disk, DiskFile, Mode, RealDisk},
    fault::Named,
};
use capture::Capture;
use manifest::Entry;
pub(crate) use manifest::MANIFEST;
use std::{
    collections::BTreeSet,
    io::IoSlice,
    path::{Path, PathBuf},
};
use tidemill_core::{Error, Result, Timestamp};

/// Bytes that are copied together.
const PIECE: usize = 1 << 20;

/// Copies the data directory `from` into the directory `to`, which must be
/// empty or missing, and checks the copy. A program may run on `from`; its
/// next commit waits until all files have a second name.
///
/// # Errors
/// When `to` holds something, `from` is damaged (then `to` is left without
/// `BACKUP.json`), or the disk refuses.
pub fn backup(from: &Path, to: &Path, now: Timestamp) -> Result<Backup> {
    crate::DataDir::check(from)?;
    must_be_empty(to, "the backup")?;
    disk::create_dir(&RealDisk, to).named("create", to)?;
    let capture = Capture::of(from)?;
    let mut made = Backup::new(now);
    for file in capture.files() {
        let (len, crc) = copy(&file.path, &to.join(&file.name), file.len)?;
        made.files.push(Entry { name: file.name.clone(), len, crc });
    }
    made.empty = capture.empty().to_vec();
    finish(to, &made)?;
    drop(capture);
    let verified = verify::directory(to)?;
    if let Some(first) = verified.damage().next() {
        return Err(Error::external(format!(
            "{} is damaged, and so is the copy in {}: {first}; `tidemill verify` lists all of it",
            from.display(),
            to.display()
        ))
        .fatal());
    }
    made.batches = verified.batches;
    made.write(to)?;
    Ok(made)
}

/// Makes the data directory `to`, which must be empty or missing, of the backup `from`.
///
/// # Errors
/// When `to` holds something, `from` is no whole backup or is damaged, or the
/// disk refuses: then `to` can't be opened.
pub fn restore(from: &Path, to: &Path) -> Result<Backup> {
    let made = Backup::read(from)?;
    must_be_empty(to, "the restored data")?;
    disk::create_dir(&RealDisk, to).named("create", to)?;
    let unfinished = to.join(UNFINISHED);
    disk::atomic_write(&RealDisk, &unfinished, b"").named("write", &unfinished)?;
    for entry in &made.files {
        let (source, target) = (from.join(&entry.name), to.join(&entry.name));
        let (len, crc) = copy(&source, &target, entry.len)?;
        if (len, crc) != (entry.len, entry.crc) {
            return Err(Error::external(format!(
                "{} is damaged: its bytes are not those that were backed up; `tidemill verify {}` lists all damage",
                source.display(),
                from.display()
            ))
            .fatal());
        }
    }
    finish(to, &made)?;
    RealDisk.remove(&unfinished).named("remove", &unfinished)?;
    RealDisk.sync_dir(to).named("sync", to)?;
    Ok(made)
}

fn must_be_empty(dir: &Path, what: &str) -> Result<()> {
    if !RealDisk.exists(dir) {
        return Ok(());
    }
    let names = RealDisk.list(dir).named("list", dir)?;
    match names.first() {
        None => Ok(()),
        Some(name) => Err(Error::user(format!(
            "{} holds `{name}` already: {what} needs an empty directory, or one that is not there yet",
            dir.display()
        ))),
    }
}

/// Copies the first `len` bytes, durably; how many there were, and their checksum.
fn copy(from: &Path, to: &Path, len: u64) -> Result<(u64, u32)> {
    disk::create_dir(&RealDisk, disk::parent(to)).named("create", disk::parent(to))?;
    let source = RealDisk.open(from, Mode::Read).named("open", from)?;
    let target = RealDisk.open(to, Mode::Create).named("create", to)?;
    let len = len.min(source.len().named("read", from)?);
    let mut crc = 0;
    pieces(&*source, len, |piece| {
        crc = crc32c::crc32c_append(crc, piece);
        target.append(&[IoSlice::new(piece)])
    })
    .named("copy", from)?;
    target.sync().named("sync", to)?;
    Ok((len, crc))
}

/// Hands out the first `len` bytes, piece by piece.
fn pieces(file: &dyn DiskFile, len: u64, mut take: impl FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()> {
    let (mut at, mut piece) = (0, vec![0; PIECE]);
    while at < len {
        let size = usize::try_from(len - at).map_or(PIECE, |left| left.min(PIECE));
        file.read_at(at, &mut piece[..size])?;
        take(&piece[..size])?;
        at += size as u64;
    }
    Ok(())
}

/// Makes the directories without files, and the names of all others durable.
fn finish(root: &Path, made: &Backup) -> Result<()> {
    for name in &made.empty {
        let dir = root.join(name);
        disk::create_dir(&RealDisk, &dir).named("create", &dir)?;
    }
    let dirs: BTreeSet<PathBuf> =
        made.files.iter().map(|file| disk::parent(&root.join(&file.name)).to_owned()).collect();
    for dir in &dirs {
        RealDisk.sync_dir(dir).named("sync", dir)?;
    }
    RealDisk.sync_dir(root).named("sync", root)
}
