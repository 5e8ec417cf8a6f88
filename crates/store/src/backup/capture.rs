//! All files of a data directory at one moment, under second names.
//!
//! The names are in `<data>/.capture-<pid>-<number>`, which goes with the capture; what
//! a dead process left there goes with the next one. Indexes of segments come
//! first and segments newest first, for the reason that [`crate::FrozenDisk`]
//! gives: receivers go on appending while the gate is closed.
//!
//! Invariant: a file that is replaced or removed afterwards stays under its
//! second name, and one that grows is read up to the length of that moment.

use crate::{
    Gate,
    disk::{self, Disk, Mode, RealDisk},
    fault::Named,
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};
use tidemill_core::Result;

/// Begins the name of the directory of second names.
const PREFIX: &str = ".capture-";
/// Captures of this process.
static CAPTURES: AtomicU64 = AtomicU64::new(0);
/// Files of a data directory that belong to the process that owns it, or to a person.
const OWN: [&str; 5] = ["LOCK", "GATE", "BACKUP.json", "RESTORING", "sql-history"];

/// A file of a capture.
#[derive(Debug)]
pub(super) struct Captured {
    /// Its path below the data directory, with `/`.
    pub(super) name: String,
    /// Where its bytes are.
    pub(super) path: PathBuf,
    pub(super) len: u64,
}

/// All files of a data directory at one moment.
#[derive(Debug)]
pub(super) struct Capture {
    names: PathBuf,
    files: Vec<Captured>,
    /// Directories without files, below the data directory.
    empty: Vec<String>,
}

impl Capture {
    /// Closes the gate of the directory, gives every file a second name, and opens it.
    pub(super) fn of(dir: &Path) -> Result<Self> {
        clear(dir)?;
        let number = CAPTURES.fetch_add(1, Ordering::Relaxed);
        let names = dir.join(format!("{PREFIX}{}-{number}", std::process::id()));
        disk::create_dir(&RealDisk, &names).named("create", &names)?;
        let mut capture = Self { names, files: Vec::new(), empty: Vec::new() };
        let gate = Gate::of(dir)?;
        let closed = gate.pass()?;
        let mut found = Vec::new();
        list(dir, "", &mut found, &mut capture.empty)?;
        let indexes = found.iter().filter(|name| name.ends_with(".idx"));
        let others = found.iter().rev().filter(|name| !name.ends_with(".idx"));
        for name in indexes.chain(others) {
            capture.take(dir, name)?;
        }
        drop(closed);
        capture.files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(capture)
    }

    fn take(&mut self, dir: &Path, name: &str) -> Result<()> {
        let from = dir.join(name);
        let path = self.names.join(self.files.len().to_string());
        match RealDisk.link(&from, &path) {
            Ok(()) => {}
            // Given up by the retention, or merged, since it was listed.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e).named("give a second name to", &from),
        }
        let len = RealDisk.open(&path, Mode::Read).and_then(|file| file.len()).named("read", &from)?;
        self.files.push(Captured { name: name.to_owned(), path, len });
        Ok(())
    }

    pub(super) fn files(&self) -> &[Captured] {
        &self.files
    }

    /// Directories without files: a partition of a topic that has no rows yet is one.
    pub(super) fn empty(&self) -> &[String] {
        &self.empty
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.names) {
            tracing::warn!(path = %self.names.display(), %error, "second names of files are left; the next backup removes them");
        }
    }
}

/// Removes what dead processes left.
fn clear(dir: &Path) -> Result<()> {
    for name in RealDisk.list(dir).named("list", dir)? {
        let Some(pid) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) else { continue };
        let alive = pid.parse::<u32>().is_ok_and(|pid| RealDisk.exists(&Path::new("/proc").join(pid.to_string())));
        if !alive {
            let path = dir.join(&name);
            remove(&path).named("remove", &path)?;
        }
    }
    Ok(())
}

fn remove(dir: &Path) -> io::Result<()> {
    for name in RealDisk.list(dir)? {
        RealDisk.remove(&dir.join(name))?;
    }
    RealDisk.remove_dir(dir)
}

/// Names of all files that count, below `dir/within`, and of directories without any.
pub(super) fn list(dir: &Path, within: &str, found: &mut Vec<String>, empty: &mut Vec<String>) -> Result<()> {
    let at = dir.join(within);
    let before = found.len() + empty.len();
    for name in RealDisk.list(&at).named("list", &at)? {
        let path = at.join(&name);
        let below = if within.is_empty() { name.clone() } else { format!("{within}/{name}") };
        let own = within.is_empty() && (OWN.contains(&name.as_str()) || name.starts_with(PREFIX));
        if own || name.ends_with(".tmp") || name.starts_with(".deleted-") {
            continue;
        }
        if RealDisk.is_dir(&path) {
            list(dir, &below, found, empty)?;
        } else {
            found.push(below);
        }
    }
    if found.len() + empty.len() == before && !within.is_empty() {
        empty.push(within.to_owned());
    }
    Ok(())
}
