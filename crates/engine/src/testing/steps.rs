//! The steps of a program's life at which it may be stopped dead, counted.
//!
//! Whatever the program leaves outside of its memory passes here: each change
//! of its disk, and each call of its sinks before and after it takes effect.
//! Invariant: after the step at which a life ends nothing of it takes effect
//! any more, so that what comes back finds what a machine would find after its
//! power went. Used by [`super::trial`].

use parking_lot::Mutex;
use std::{
    io::{self, IoSlice},
    path::Path,
    sync::Arc,
};
use tidemill_store::disk::{Disk, DiskFile, Mode, SimDisk};
use tokio::sync::Notify;

#[derive(Debug, Default)]
struct Counted {
    passed: u64,
    /// The step before which the life ends.
    end: Option<u64>,
    /// What was to be done at the step that ended it.
    ended: Option<String>,
}

/// The steps of one life of a program.
#[derive(Debug, Default)]
pub(super) struct Steps {
    counted: Mutex<Counted>,
    died: Notify,
}

impl Steps {
    /// A life that ends before step `end`, counted from 0; without one, never.
    pub(super) fn until(end: Option<u64>) -> Arc<Self> {
        Arc::new(Self { counted: Mutex::new(Counted { end, ..Counted::default() }), died: Notify::new() })
    }

    /// One step. Whether it may be done.
    pub(super) fn pass(&self, what: impl FnOnce() -> String) -> bool {
        let mut counted = self.counted.lock();
        if counted.ended.is_some() {
            return false;
        }
        if counted.end == Some(counted.passed) {
            counted.ended = Some(what());
            drop(counted);
            self.died.notify_one();
            return false;
        }
        counted.passed += 1;
        true
    }

    /// What was to be done at the step that ended this life, if it has ended.
    pub(super) fn ended(&self) -> Option<String> {
        self.counted.lock().ended.clone()
    }

    /// Completes when this life has ended.
    pub(super) async fn died(&self) {
        self.died.notified().await;
    }
}

fn dead() -> io::Error {
    io::Error::other("the machine has stopped")
}

/// A disk whose changes are steps.
#[derive(Debug)]
pub(super) struct SteppedDisk {
    pub(super) disk: SimDisk,
    pub(super) steps: Arc<Steps>,
}

impl SteppedDisk {
    fn step(&self, what: &str, path: &Path) -> io::Result<()> {
        if self.steps.pass(|| format!("{what} {}", path.display())) { Ok(()) } else { Err(dead()) }
    }

    fn alive(&self) -> io::Result<()> {
        if self.steps.ended().is_none() { Ok(()) } else { Err(dead()) }
    }
}

impl Disk for SteppedDisk {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        match mode {
            Mode::Create => self.step("create", path)?,
            Mode::Read | Mode::Append => self.alive()?,
        }
        let file = self.disk.open(path, mode)?;
        let disk = Self { disk: self.disk.clone(), steps: Arc::clone(&self.steps) };
        Ok(Arc::new(SteppedFile { file, disk, path: path.to_owned() }))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.step("create", path)?;
        self.disk.create_dir_all(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.alive()?;
        self.disk.list(dir)
    }
    fn exists(&self, path: &Path) -> bool {
        self.disk.exists(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step("rename to", to)?;
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step("remove", path)?;
        self.disk.remove(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.step("remove", path)?;
        self.disk.remove_dir(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.step("sync", dir)?;
        self.disk.sync_dir(dir)
    }
    fn is_shared(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct SteppedFile {
    file: Arc<dyn DiskFile>,
    disk: SteppedDisk,
    path: std::path::PathBuf,
}

impl DiskFile for SteppedFile {
    fn append(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.disk.step("append to", &self.path)?;
        self.file.append(parts)
    }
    fn read_at(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        self.disk.alive()?;
        self.file.read_at(position, into)
    }
    fn len(&self) -> io::Result<u64> {
        self.disk.alive()?;
        self.file.len()
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.disk.step("cut", &self.path)?;
        self.file.truncate(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.disk.step("sync", &self.path)?;
        self.file.sync()
    }
}
