//! A directory as it was at one moment, which nobody can change.
//!
//! For those who look at a data directory that another process writes to: the
//! log opened on it recovers, cuts torn ends and writes marks as ever, and all
//! of that happens in memory only.
//!
//! ```text
//! indexes and small files ─► held in memory      taken first: what they say is durable is there below
//! segments, newest first  ─► path and length     taken after: an older one is never shorter than a newer one implies
//! ```
//!
//! Invariant: nothing below is ever written, cut, renamed or removed, and a
//! file shows no byte that came after it was frozen. Called by those who read
//! beside a running program.

use super::{Disk, DiskFile, Mode, RealDisk, read_file};
use crate::{Gate, fault::Named};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tidemill_core::Result;

/// Files that are kept open, the newest first: they can be read when they were
/// replaced or removed meanwhile. Others are opened when they are read.
const OPEN: usize = 256;

/// A directory of the real disk as it was when this was made.
#[derive(Debug)]
pub struct FrozenDisk {
    nodes: RwLock<Nodes>,
}

#[derive(Debug, Default)]
struct Nodes {
    files: BTreeMap<PathBuf, Node>,
    dirs: BTreeSet<PathBuf>,
}

#[derive(Debug, Clone)]
enum Node {
    /// A file below, of which the first bytes are seen.
    Below {
        path: PathBuf,
        len: Arc<AtomicU64>,
        open: Option<Arc<dyn DiskFile>>,
    },
    Memory(Arc<Mutex<Vec<u8>>>),
}

impl FrozenDisk {
    /// As [`FrozenDisk::new`], of a data directory between two commits: log, ledger
    /// and states are of one and the same batch, whoever runs on it. The next
    /// commit waits meanwhile.
    ///
    /// # Errors
    /// When a directory or file can't be read.
    pub fn at_a_commit(data: &Path) -> Result<Self> {
        let gate = Gate::of(data)?;
        let _closed = gate.pass()?;
        Self::new(data).named("read", data)
    }

    /// Freezes what is in and below `root`.
    ///
    /// # Errors
    /// When a directory or file can't be read.
    pub fn new(root: &Path) -> io::Result<Self> {
        let mut nodes = Nodes::default();
        let mut names = Vec::new();
        walk(root, &mut nodes.dirs, &mut names)?;
        let (large, small): (Vec<PathBuf>, Vec<PathBuf>) = names.into_iter().partition(|path| is_large(path));
        for path in small {
            if let Some(bytes) = there(read_file(&RealDisk, &path))? {
                nodes.files.insert(path, Node::Memory(Arc::new(Mutex::new(bytes))));
            }
        }
        for (number, path) in large.into_iter().rev().enumerate() {
            let Some(file) = there(RealDisk.open(&path, Mode::Read))? else { continue };
            let len = Arc::new(AtomicU64::new(file.len()?));
            let open = (number < OPEN).then_some(file);
            nodes.files.insert(path.clone(), Node::Below { path, len, open });
        }
        Ok(Self { nodes: RwLock::new(nodes) })
    }
}

/// Files that grow, or are too large to hold.
fn is_large(path: &Path) -> bool {
    path.extension().is_none_or(|extension| extension != "idx" && extension != "json")
}

fn walk(dir: &Path, dirs: &mut BTreeSet<PathBuf>, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let Some(names) = there(RealDisk.list(dir))? else { return Ok(()) };
    dirs.insert(dir.to_owned());
    for name in names {
        let path = dir.join(name);
        if RealDisk.is_dir(&path) {
            walk(&path, dirs, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// What is gone by now was not there.
fn there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for FrozenDisk {
    /// What is done to it nobody else sees, so nobody has to be kept out.
    fn is_shared(&self) -> bool {
        false
    }

    fn is_frozen(&self) -> bool {
        true
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        if mode == Mode::Create {
            let bytes = Arc::default();
            self.nodes.write().files.insert(path.to_owned(), Node::Memory(Arc::clone(&bytes)));
            return Ok(Arc::new(InMemory(bytes)));
        }
        let node = self.nodes.read().files.get(path).cloned().ok_or_else(missing)?;
        match node {
            Node::Memory(bytes) => Ok(Arc::new(InMemory(bytes))),
            Node::Below { path, len, open } => {
                let file = match open {
                    Some(file) => file,
                    None => RealDisk.open(&path, Mode::Read)?,
                };
                Ok(Arc::new(Prefix { file, len }))
            }
        }
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut nodes = self.nodes.write();
        nodes.dirs.extend(path.ancestors().map(Path::to_path_buf));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let nodes = self.nodes.read();
        if !nodes.dirs.contains(dir) {
            return Err(missing());
        }
        let within = |path: &&PathBuf| path.parent() == Some(dir);
        let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let dirs = nodes.dirs.iter().filter(within).filter_map(name);
        let mut names: Vec<String> = nodes.files.keys().filter(within).filter_map(name).chain(dirs).collect();
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> bool {
        let nodes = self.nodes.read();
        nodes.files.contains_key(path) || nodes.dirs.contains(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut nodes = self.nodes.write();
        let node = nodes.files.remove(from).ok_or_else(missing)?;
        nodes.files.insert(to.to_owned(), node);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.nodes.write().files.remove(path).map(drop).ok_or_else(missing)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        if self.nodes.write().dirs.remove(path) { Ok(()) } else { Err(missing()) }
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }
}

/// The first bytes of a file below.
#[derive(Debug)]
struct Prefix {
    file: Arc<dyn DiskFile>,
    len: Arc<AtomicU64>,
}

impl DiskFile for Prefix {
    fn append(&self, _parts: &[IoSlice<'_>]) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "it is only looked at"))
    }

    fn read_at(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        if position + into.len() as u64 > self.len.load(Ordering::Acquire) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_at(position, into)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len.load(Ordering::Acquire))
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.len.fetch_min(len, Ordering::AcqRel);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct InMemory(Arc<Mutex<Vec<u8>>>);

impl DiskFile for InMemory {
    fn append(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let mut bytes = self.0.lock();
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        Ok(())
    }

    fn read_at(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.lock();
        let from = usize::try_from(position).map_err(io::Error::other)?;
        let part = bytes.get(from..from + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(part);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().len() as u64)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.lock().truncate(usize::try_from(len).map_err(io::Error::other)?);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Log, TopicConfig};
    use arrow_array::{Int64Array, RecordBatch};
    use tidemill_core::{ManualClock, Offset};

    fn rows(numbers: std::ops::Range<i64>) -> RecordBatch {
        RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from_iter_values(numbers)) as _)]).unwrap()
    }

    fn bytes_below(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let (mut dirs, mut files) = (BTreeSet::new(), Vec::new());
        walk(dir, &mut dirs, &mut files).unwrap();
        files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
    }

    fn look(dir: &Path) -> Log {
        Log::look(dir, Arc::new(ManualClock::default())).unwrap()
    }

    #[test]
    fn a_log_that_is_written_can_be_looked_at_and_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("log");
        let log = Log::open(Arc::new(RealDisk), &root, Arc::new(ManualClock::default())).unwrap();
        let config = TopicConfig { segment_bytes: 4 << 10, ..TopicConfig::new(rows(0..0).schema()) };
        let topic = log.create_topic("t", &config).unwrap();
        for i in 0..100 {
            topic.append(0, &rows(i * 50..(i + 1) * 50), None).unwrap();
        }
        let looked = look(&root);
        let seen = looked.topic("t").unwrap();
        assert_eq!((seen.start(0), seen.end(0)), (Offset(0), Offset(5000)));
        topic.append(0, &rows(5000..5050), None).unwrap();
        assert_eq!(seen.end(0), Offset(5000), "it stays as it was");
        let got: usize = seen.read(0, Offset(0), Offset(5000)).map(|rows| rows.unwrap().rows.num_rows()).sum();
        assert_eq!(got, 5000);
        assert_eq!(look(&root).topic("t").unwrap().end(0), Offset(5050), "a new look sees more");
        drop((topic, log));

        // A torn end is passed over and stays on the disk.
        let last = bytes_below(&root).into_keys().filter(|p| p.extension().is_some_and(|e| e == "seg")).max().unwrap();
        let torn = std::fs::read(&last).unwrap();
        std::fs::write(&last, [&torn[..], &[7; 100]].concat()).unwrap();
        let before = bytes_below(dir.path());
        {
            let looked = look(&root);
            assert_eq!(looked.topic("t").unwrap().end(0), Offset(5050));
        }
        assert_eq!(bytes_below(dir.path()), before, "not a byte has changed");
    }
}
