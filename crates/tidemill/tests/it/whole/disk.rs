//! A simulated disk on which single steps can be left out, as a bug would leave them out.
//!
//! Invariant: without a plant it is the disk below it. Nothing of the product
//! knows of it, so that bugs can be planted without a hook in what is tested.

use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use tidemill::store::disk::{Disk, DiskFile, Mode, SimDisk};

/// A change of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Append,
    Sync,
    SyncDir,
}

/// Whether a change is left out, and said to be done.
pub(super) type Plant = fn(Act, &str) -> bool;

/// Nothing is left out.
pub(super) const NO_PLANT: Plant = |_, _| false;

/// The disk.
#[derive(Debug)]
pub(super) struct PlantedDisk {
    pub(super) disk: SimDisk,
    plant: Plant,
    /// Files and their lengths after each append.
    appends: Arc<Mutex<Vec<(PathBuf, u64)>>>,
    left_out: Arc<Mutex<u64>>,
    refuse_to_open: Arc<Mutex<Option<u64>>>,
}

impl PlantedDisk {
    pub(super) fn new(disk: SimDisk, plant: Plant) -> Self {
        Self { disk, plant, appends: Arc::default(), left_out: Arc::default(), refuse_to_open: Arc::default() }
    }

    /// The lengths that files below `dir` had after each append.
    pub(super) fn appends(&self, dir: &str) -> Vec<(PathBuf, u64)> {
        self.appends.lock().unwrap().iter().filter(|(path, _)| path.starts_with(dir)).cloned().collect()
    }

    /// Lets open number `nth` from now fail, as a process with too many open files is told.
    pub(super) fn refuse_to_open(&self, nth: u64) {
        *self.refuse_to_open.lock().unwrap() = Some(nth);
    }

    fn leaves_out(&self, act: Act, path: &Path) -> bool {
        let out = (self.plant)(act, &path.to_string_lossy());
        *self.left_out.lock().unwrap() += u64::from(out);
        out
    }

    fn again(&self) -> Self {
        Self {
            disk: self.disk.clone(),
            plant: self.plant,
            appends: Arc::clone(&self.appends),
            left_out: Arc::clone(&self.left_out),
            refuse_to_open: Arc::clone(&self.refuse_to_open),
        }
    }

    fn may_open(&self) -> io::Result<()> {
        let mut left = self.refuse_to_open.lock().unwrap();
        match &mut *left {
            Some(0) => {
                *left = None;
                // EMFILE
                Err(io::Error::from_raw_os_error(24))
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Disk for PlantedDisk {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        self.may_open()?;
        let file = self.disk.open(path, mode)?;
        Ok(Arc::new(PlantedFile { file, disk: self.again(), path: path.to_owned() }))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir_all(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn exists(&self, path: &Path) -> bool {
        self.disk.exists(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if self.leaves_out(Act::SyncDir, dir) { Ok(()) } else { self.disk.sync_dir(dir) }
    }
    fn is_shared(&self) -> bool {
        false
    }
    fn free_bytes(&self, path: &Path) -> Option<u64> {
        self.disk.free_bytes(path)
    }
}

#[derive(Debug)]
struct PlantedFile {
    file: Arc<dyn DiskFile>,
    disk: PlantedDisk,
    path: PathBuf,
}

impl DiskFile for PlantedFile {
    fn append(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        if self.disk.leaves_out(Act::Append, &self.path) {
            return Ok(());
        }
        self.file.append(parts)?;
        let len = self.file.len()?;
        self.disk.appends.lock().unwrap().push((self.path.clone(), len));
        Ok(())
    }
    fn read_at(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_at(position, into)
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }
    fn sync(&self) -> io::Result<()> {
        if self.disk.leaves_out(Act::Sync, &self.path) { Ok(()) } else { self.file.sync() }
    }
}
