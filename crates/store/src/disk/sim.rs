//! A disk in memory that loses what was not synced.
//!
//! Each file keeps its durable bytes and the writes since; each directory its
//! durable names and the changes since. [`SimDisk::crash`] makes the disk that
//! a machine would find after power came back: of every unsynced write a
//! beginning, all or nothing survives, independently of the others, and the
//! same for names. A failed sync forgets the writes for good, as Linux does:
//! a later sync that succeeds says nothing about them.
//!
//! Invariant: what was synced, under a name that was synced, survives. Called
//! by tests, here and in the rooms above.

use super::{Disk, DiskFile, Mode, dice::Dice, parent};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{self, IoSlice},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// What goes wrong at a chosen operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An input/output error; a write may have written a beginning.
    Eio,
    /// No space left; a write has written a beginning.
    Enospc,
    /// The machine stops: this and every later operation fails.
    Crash,
    /// A sync that says it is done and was left out. Nothing that works does so: it is a bug that is planted,
    /// to see that it is found. Other operations do as ever.
    Forgotten,
}

/// The machine has stopped: unlike other faults of a disk this one stays, so nothing is tried again.
#[derive(Debug, thiserror::Error)]
#[error("the simulated machine has crashed")]
pub(crate) struct Crashed;

/// A sync that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forgotten {
    /// The file or directory.
    pub path: PathBuf,
    /// The names of a directory that would have become durable, with `-` before those that go.
    pub names: Vec<String>,
    /// Whether there was nothing to make durable.
    pub idle: bool,
}

#[derive(Debug, Clone)]
enum Change {
    Write { at: u64, bytes: Vec<u8> },
    Truncate(u64),
}

#[derive(Debug, Clone, Default)]
struct Inode {
    /// What readers see.
    now: Vec<u8>,
    /// What a crash can't take.
    durable: Vec<u8>,
    pending: Vec<Change>,
    /// The first of them that would be durable, had no sync been left out.
    doomed: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    File(usize),
    Dir(usize),
}

/// One atomic step of a directory: a rename is two entries at once.
type Step = Vec<(OsString, Option<Node>)>;

#[derive(Debug, Clone, Default)]
struct Dir {
    now: BTreeMap<OsString, Node>,
    durable: BTreeMap<OsString, Node>,
    pending: Vec<Step>,
    /// As of a file.
    doomed: usize,
}

#[derive(Debug, Default)]
struct Inner {
    files: Vec<Inode>,
    /// Number 0 is the root.
    dirs: Vec<Dir>,
    ops: u64,
    faults: BTreeMap<u64, Fault>,
    dead: bool,
    forgotten: Vec<Forgotten>,
    /// Bytes that may still be written; `None` is no limit.
    space: Option<u64>,
}

/// A disk in memory. Clones share it.
#[derive(Debug, Clone)]
pub struct SimDisk(Arc<Mutex<Inner>>);

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Inner { dirs: vec![Dir::default()], ..Inner::default() })))
    }

    /// Changing operations so far: writes, cuts, syncs, and changes of names.
    pub fn ops(&self) -> u64 {
        self.0.lock().ops
    }

    /// Lets the operation with number `op`, counted from 0 over the disk's life, fail.
    pub fn fail_at(&self, op: u64, fault: Fault) {
        self.0.lock().faults.insert(op, fault);
    }

    /// Forgets faults that have not happened.
    pub fn clear_faults(&self) {
        self.0.lock().faults.clear();
    }

    /// Whether a [`Fault::Crash`] has happened.
    pub fn is_dead(&self) -> bool {
        self.0.lock().dead
    }

    /// The syncs that a [`Fault::Forgotten`] has left out.
    pub fn forgotten(&self) -> Vec<Forgotten> {
        self.0.lock().forgotten.clone()
    }

    /// Bytes that may still be written; `None` lifts the limit.
    pub fn set_space(&self, bytes: Option<u64>) {
        self.0.lock().space = bytes;
    }

    /// The disk that is found after the machine lost power now. This one is
    /// dead afterwards. The same seed gives the same disk.
    #[must_use]
    pub fn crash(&self, seed: u64) -> SimDisk {
        let mut inner = self.0.lock();
        inner.dead = true;
        let mut dice = Dice(seed ^ 0x9e37_79b9_7f4a_7c15);
        let files = inner.files.iter().map(|f| f.after_crash(&mut dice)).collect();
        let dirs = inner.dirs.iter().map(|d| d.after_crash(&mut dice)).collect();
        SimDisk(Arc::new(Mutex::new(Inner { files, dirs, ..Inner::default() })))
    }

    /// As [`SimDisk::crash`], but the dice are loaded: what a sync that was left out should have
    /// made durable is lost; all else that is not durable is kept if `others`, and lost if not.
    #[must_use]
    pub fn crash_at_worst(&self, others: bool) -> SimDisk {
        let mut inner = self.0.lock();
        inner.dead = true;
        let files = inner.files.iter().map(|f| f.at_worst(others)).collect();
        let dirs = inner.dirs.iter().map(|d| d.at_worst(others)).collect();
        SimDisk(Arc::new(Mutex::new(Inner { files, dirs, ..Inner::default() })))
    }

    /// Bytes of a file as readers see them.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let inner = self.0.lock();
        match inner.find(path) {
            Some(Node::File(id)) => Some(inner.files[id].now.clone()),
            _ => None,
        }
    }

    /// Replaces the bytes of a file, durably: damage done by a tester.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn set_contents(&self, path: &Path, bytes: Vec<u8>) {
        let mut inner = self.0.lock();
        let Some(Node::File(id)) = inner.find(path) else { panic!("no file {}", path.display()) };
        inner.files[id] = Inode::found(bytes);
    }

    /// An independent copy, as found now without any loss: a process died, the machine did not.
    #[must_use]
    pub fn fork(&self) -> SimDisk {
        let inner = self.0.lock();
        let (files, dirs) = (inner.files.clone(), inner.dirs.clone());
        SimDisk(Arc::new(Mutex::new(Inner { files, dirs, ..Inner::default() })))
    }
}

impl Inode {
    fn apply(bytes: &mut Vec<u8>, change: &Change) {
        match change {
            Change::Write { at, bytes: new } => {
                let at = usize::try_from(*at).expect("simulated files fit in memory");
                // A write past the end leaves zeros, as a file with a hole reads.
                if bytes.len() < at + new.len() {
                    bytes.resize(at + new.len(), 0);
                }
                bytes[at..at + new.len()].copy_from_slice(new);
            }
            Change::Truncate(len) => bytes.resize(usize::try_from(*len).expect("fits in memory"), 0),
        }
    }

    fn after_crash(&self, dice: &mut Dice) -> Inode {
        let mut bytes = self.durable.clone();
        for change in &self.pending {
            match (dice.below(4), change) {
                (0, _) => {}
                (1, Change::Write { at, bytes: new }) if !new.is_empty() => {
                    let torn = new[..dice.below(new.len())].to_vec();
                    Self::apply(&mut bytes, &Change::Write { at: *at, bytes: torn });
                    // Half of the time the length has reached the disk and the rest of the data has not.
                    if dice.below(2) == 0 {
                        let end = usize::try_from(*at).expect("fits in memory") + new.len();
                        bytes.resize(bytes.len().max(end), 0);
                    }
                }
                _ => Self::apply(&mut bytes, change),
            }
        }
        Self::found(bytes)
    }

    fn at_worst(&self, others: bool) -> Inode {
        let mut bytes = self.durable.clone();
        let kept = if others { &self.pending[self.doomed..] } else { &[] };
        kept.iter().for_each(|change| Self::apply(&mut bytes, change));
        Self::found(bytes)
    }

    fn found(bytes: Vec<u8>) -> Self {
        Self { now: bytes.clone(), durable: bytes, pending: Vec::new(), doomed: 0 }
    }
}

impl Dir {
    fn step(&mut self, step: Step) {
        Self::apply(&mut self.now, &step);
        self.pending.push(step);
    }

    fn apply(names: &mut BTreeMap<OsString, Node>, step: &Step) {
        for (name, node) in step {
            match node {
                Some(node) => names.insert(name.clone(), *node),
                None => names.remove(name),
            };
        }
    }

    fn after_crash(&self, dice: &mut Dice) -> Dir {
        let mut names = self.durable.clone();
        for step in &self.pending {
            if dice.below(2) == 0 {
                Self::apply(&mut names, step);
            }
        }
        Self::found(names)
    }

    /// The names that wait for a sync.
    fn changes(&self) -> Vec<String> {
        let mut all = BTreeMap::new();
        for (name, node) in self.pending.iter().flatten() {
            all.insert(name.to_string_lossy(), if node.is_some() { "" } else { "-" });
        }
        all.iter().map(|(name, sign)| format!("{sign}{name}")).collect()
    }

    fn at_worst(&self, others: bool) -> Dir {
        let mut names = self.durable.clone();
        let kept = if others { &self.pending[self.doomed..] } else { &[] };
        kept.iter().for_each(|step| Self::apply(&mut names, step));
        Self::found(names)
    }

    fn found(names: BTreeMap<OsString, Node>) -> Self {
        Self { now: names.clone(), durable: names, pending: Vec::new(), doomed: 0 }
    }
}

fn names(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|c| match c {
        Component::Normal(name) => Some(name.to_owned()),
        _ => None,
    })
}

fn name_of(path: &Path) -> io::Result<OsString> {
    path.file_name().map(OsString::from).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Inner {
    fn find(&self, path: &Path) -> Option<Node> {
        let mut at = Node::Dir(0);
        for name in names(path) {
            let Node::Dir(dir) = at else { return None };
            at = *self.dirs[dir].now.get(&name)?;
        }
        Some(at)
    }

    fn dir(&self, path: &Path) -> io::Result<usize> {
        match self.find(path) {
            Some(Node::Dir(id)) => Ok(id),
            Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(not_found()),
        }
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(io::Error::other(Crashed)) } else { Ok(()) }
    }

    /// Counts a changing operation and says what goes wrong with it.
    fn count(&mut self) -> io::Result<Option<Fault>> {
        Ok(self.count_sync()?.filter(|fault| *fault != Fault::Forgotten))
    }

    /// As [`Inner::count`], for a sync.
    fn count_sync(&mut self) -> io::Result<Option<Fault>> {
        self.alive()?;
        let op = self.ops;
        self.ops += 1;
        let fault = self.faults.remove(&op);
        if fault == Some(Fault::Crash) {
            self.dead = true;
        }
        Ok(fault)
    }

    /// Counts an operation that happens whole or not at all.
    fn step(&mut self) -> io::Result<()> {
        match self.count()? {
            None => Ok(()),
            Some(fault) => Err(fault.error()),
        }
    }
}

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Fault::Eio => io::Error::other("simulated input/output error"),
            Fault::Enospc => io::ErrorKind::StorageFull.into(),
            Fault::Crash => io::Error::other(Crashed),
            Fault::Forgotten => io::Error::other("a sync that was left out says nothing"),
        }
    }
}

impl Disk for SimDisk {
    fn is_shared(&self) -> bool {
        false
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.0.lock();
        inner.alive()?;
        let found = inner.find(path);
        let id = match (found, mode) {
            (Some(Node::Dir(_)), _) => return Err(io::ErrorKind::IsADirectory.into()),
            (Some(Node::File(id)), Mode::Create) => {
                inner.step()?;
                let file = &mut inner.files[id];
                file.now.clear();
                file.pending.push(Change::Truncate(0));
                id
            }
            (Some(Node::File(id)), Mode::Read | Mode::Append) => id,
            (None, Mode::Create) => {
                let (dir, name) = (inner.dir(parent(path))?, name_of(path)?);
                inner.step()?;
                inner.files.push(Inode::default());
                let id = inner.files.len() - 1;
                inner.dirs[dir].step(vec![(name, Some(Node::File(id)))]);
                id
            }
            (None, Mode::Read | Mode::Append) => return Err(not_found()),
        };
        Ok(Arc::new(SimFile { disk: self.clone(), path: path.to_owned(), id, writable: mode != Mode::Read }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.0.lock();
        let mut at = 0;
        for name in names(path) {
            at = match inner.dirs[at].now.get(&name) {
                Some(Node::Dir(id)) => *id,
                Some(Node::File(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
                None => {
                    inner.step()?;
                    inner.dirs.push(Dir::default());
                    let id = inner.dirs.len() - 1;
                    inner.dirs[at].step(vec![(name, Some(Node::Dir(id)))]);
                    id
                }
            };
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let inner = self.0.lock();
        inner.alive()?;
        let id = inner.dir(dir)?;
        Ok(inner.dirs[id].now.keys().filter_map(|n| n.to_str().map(str::to_owned)).collect())
    }

    fn exists(&self, path: &Path) -> bool {
        self.0.lock().find(path).is_some()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.0.lock();
        inner.alive()?;
        let node = inner.find(from).ok_or_else(not_found)?;
        let (dir, target) = (inner.dir(parent(from))?, inner.dir(parent(to))?);
        if dir != target {
            return Err(io::Error::other("the simulated disk renames within a directory only"));
        }
        inner.step()?;
        inner.dirs[dir].step(vec![(name_of(from)?, None), (name_of(to)?, Some(node))]);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.0.lock();
        inner.alive()?;
        match inner.find(path) {
            Some(Node::File(_)) => {}
            Some(Node::Dir(_)) => return Err(io::ErrorKind::IsADirectory.into()),
            None => return Err(not_found()),
        }
        let dir = inner.dir(parent(path))?;
        inner.step()?;
        inner.dirs[dir].step(vec![(name_of(path)?, None)]);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.0.lock();
        inner.alive()?;
        let id = inner.dir(path)?;
        if !inner.dirs[id].now.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let dir = inner.dir(parent(path))?;
        inner.step()?;
        inner.dirs[dir].step(vec![(name_of(path)?, None)]);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut inner = self.0.lock();
        let fault = inner.count_sync()?;
        let id = inner.dir(dir)?;
        if fault == Some(Fault::Forgotten) {
            let forgotten = Forgotten {
                path: dir.to_owned(),
                names: inner.dirs[id].changes(),
                idle: inner.dirs[id].pending.is_empty(),
            };
            inner.forgotten.push(forgotten);
            let dir = &mut inner.dirs[id];
            dir.doomed = dir.pending.len();
            return Ok(());
        }
        let dir = &mut inner.dirs[id];
        match fault {
            None => {
                dir.pending.clear();
                dir.doomed = 0;
                dir.durable = dir.now.clone();
                Ok(())
            }
            Some(fault) => Err(fault.error()),
        }
    }

    fn free_bytes(&self, _path: &Path) -> Option<u64> {
        self.0.lock().space
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    /// Under which it was opened.
    path: PathBuf,
    id: usize,
    writable: bool,
}

impl DiskFile for SimFile {
    fn append(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let mut inner = self.disk.0.lock();
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut bytes: Vec<u8> = parts.iter().flat_map(|p| p.iter().copied()).collect();
        let mut fault = inner.count()?;
        if let Some(space) = inner.space {
            let left = usize::try_from(space).unwrap_or(usize::MAX);
            if left < bytes.len() && fault.is_none() {
                bytes.truncate(left);
                fault = Some(Fault::Enospc);
            } else if fault.is_some() {
                bytes.truncate((bytes.len() / 2).min(left));
            }
            inner.space = Some(space - bytes.len() as u64);
        } else if fault.is_some() {
            bytes.truncate(bytes.len() / 2);
        }
        let file = &mut inner.files[self.id];
        let change = Change::Write { at: file.now.len() as u64, bytes };
        Inode::apply(&mut file.now, &change);
        file.pending.push(change);
        fault.map_or(Ok(()), |fault| Err(fault.error()))
    }

    fn read_at(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        let inner = self.disk.0.lock();
        inner.alive()?;
        let bytes = &inner.files[self.id].now;
        let eof = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let at = usize::try_from(position).map_err(|_| eof())?;
        let end = at.checked_add(into.len()).ok_or_else(eof)?;
        into.copy_from_slice(bytes.get(at..end).ok_or_else(eof)?);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let inner = self.disk.0.lock();
        inner.alive()?;
        Ok(inner.files[self.id].now.len() as u64)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut inner = self.disk.0.lock();
        inner.step()?;
        let file = &mut inner.files[self.id];
        let before = file.now.len() as u64;
        let change = Change::Truncate(len);
        Inode::apply(&mut file.now, &change);
        file.pending.push(change);
        if let Some(space) = inner.space {
            inner.space = Some(space + before.saturating_sub(len));
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.0.lock();
        let fault = inner.count_sync()?;
        if fault == Some(Fault::Forgotten) {
            let idle = inner.files[self.id].pending.is_empty();
            inner.forgotten.push(Forgotten { path: self.path.clone(), names: Vec::new(), idle });
            let file = &mut inner.files[self.id];
            file.doomed = file.pending.len();
            return Ok(());
        }
        let file = &mut inner.files[self.id];
        match fault {
            None => {
                file.doomed = 0;
                for change in std::mem::take(&mut file.pending) {
                    Inode::apply(&mut file.durable, &change);
                }
                Ok(())
            }
            Some(Fault::Crash) => Err(Fault::Crash.error()),
            Some(fault) => {
                // The pages count as clean from here on, though they never reached the disk.
                file.pending.clear();
                file.doomed = 0;
                Err(fault.error())
            }
        }
    }
}
