//! The operating system's file system.
//!
//! Invariant: directories are made with mode 0700 and files with 0600. An
//! interrupted call is repeated; every other error goes up as it is.

use super::{Disk, DiskFile, Mode};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, IoSlice, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

/// The operating system's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl RealDisk {
    /// Whether a directory is there.
    pub(crate) fn is_dir(&self, path: &Path) -> bool {
        path.is_dir()
    }

    /// Gives a file a second name, under which it stays when the first is gone.
    pub(crate) fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }
}

impl Disk for RealDisk {
    fn age(&self, path: &Path) -> Option<Duration> {
        fs::metadata(path).ok()?.modified().ok()?.elapsed().ok()
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).mode(0o600);
        match mode {
            Mode::Read => {}
            Mode::Append => {
                options.append(true);
            }
            // Append and truncate exclude each other in std, so an old file is cut after it was opened.
            Mode::Create => {
                options.append(true).create(true);
            }
        }
        let file = options.open(path)?;
        if mode == Mode::Create && file.metadata()?.len() > 0 {
            file.set_len(0)?;
        }
        Ok(Arc::new(RealFile(file)))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn append(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let mut parts = parts.to_vec();
        let mut left: &mut [IoSlice<'_>] = &mut parts;
        // Skips leading empty parts, which would look like a write of nothing.
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match (&self.0).write_vectored(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => IoSlice::advance_slices(&mut left, n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn read_at(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(into, position)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
