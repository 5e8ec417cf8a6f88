//! The one door to durable files, so that a crash can be simulated.
//!
//! [`Disk`] is what a file system promises and no more: bytes are safe after
//! [`DiskFile::sync`], names after [`Disk::sync_dir`]. [`RealDisk`] is the
//! operating system; [`SimDisk`] keeps what is synced apart from what is not
//! and can lose the rest.
//!
//! Invariant: files are only ever appended to, cut at the end, or replaced
//! whole by [`atomic_write`]; nothing is overwritten in place. Everything in
//! this crate goes through this module.

#[cfg(test)]
pub(crate) mod canary;
mod dice;
mod frozen;
mod real;
mod sim;
#[cfg(test)]
mod tests;

pub use frozen::FrozenDisk;
pub use real::RealDisk;
pub(crate) use sim::Crashed;
pub use sim::{Fault, Forgotten, SimDisk};

use std::{
    fmt,
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How to open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and appending.
    Append,
    /// A new, empty file for reading and appending; an existing one is emptied.
    Create,
}

/// A file system.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Opens a file.
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>>;

    /// Creates a directory and those above it; fine if they exist. Not durable
    /// before the parents are synced: see [`create_dir`].
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Names in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Whether a file or directory is there.
    fn exists(&self, path: &Path) -> bool;

    /// Renames a file over another, atomically. Durable after `sync_dir` of its directory.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file a second name; durable after `sync_dir` of its directory.
    /// Where that can't be done, the file is to be copied.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let _ = (from, to);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Whether other processes can reach it: a data directory on it then has to be locked.
    fn is_shared(&self) -> bool {
        true
    }

    /// Whether what is done to it stays in memory: it shows files that are only looked at.
    fn is_frozen(&self) -> bool {
        false
    }

    /// Bytes left on the disk; `None` where that isn't known.
    fn free_bytes(&self, path: &Path) -> Option<u64> {
        let _ = path;
        None
    }

    /// How long ago a file was changed; `None` where that isn't known.
    fn age(&self, path: &Path) -> Option<Duration> {
        let _ = path;
        None
    }
}

/// An open file.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Writes all parts, one after the other, at the end. On an error a
    /// beginning of them may have been written.
    fn append(&self, parts: &[IoSlice<'_>]) -> io::Result<()>;

    /// Fills `into` from the bytes at `position`; `UnexpectedEof` when the file is shorter.
    fn read_at(&self, position: u64, into: &mut [u8]) -> io::Result<()>;

    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts the file to `len` bytes.
    fn truncate(&self, len: u64) -> io::Result<()>;

    /// Makes all bytes and the length durable.
    fn sync(&self) -> io::Result<()>;
}

/// Replaces the file at `path`: a reader, also after a crash, sees the old
/// bytes or the new ones. Writes `<path>.tmp`, syncs it, renames it, syncs the
/// directory.
pub fn atomic_write(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let tmp = temporary(path);
    let written = (|| {
        let file = disk.open(&tmp, Mode::Create)?;
        file.append(&[IoSlice::new(bytes)])?;
        file.sync()?;
        disk.rename(&tmp, path)
    })();
    if let Err(error) = written {
        // Best effort: a left-over temporary file is ignored and replaced by the next write.
        let _ignored = disk.remove(&tmp);
        return Err(error);
    }
    disk.sync_dir(parent(path))
}

/// Creates a directory whose name survives a crash.
pub fn create_dir(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    let mut missing = Vec::new();
    let mut at = path;
    while !disk.exists(at) {
        missing.push(at.to_owned());
        at = parent(at);
    }
    let made =
        disk.create_dir_all(path).and_then(|()| missing.iter().rev().try_for_each(|dir| disk.sync_dir(parent(dir))));
    if made.is_err() {
        // Whoever tries again must not find one there and take its name for durable. One that is in use by now stays.
        for dir in &missing {
            let _stays = disk.remove_dir(dir);
        }
    }
    made
}

/// The whole of a file.
pub fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, Mode::Read)?;
    let len = usize::try_from(file.len()?).map_err(|_| io::Error::other("file exceeds the address space"))?;
    let mut bytes = vec![0; len];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// The name under which a file is written before it is renamed to `path`.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}
