//! Rows that have no place in memory, on disk until they are needed.
//!
//! An embedded store of sorted keys, of which nothing needs to survive: the
//! truth is in the state's own files, and whoever opens this begins with
//! nothing. It therefore lies in a directory of its own, is never synced, and no
//! backup copies it. Which store, and what it costs, is in
//! `docs/decisions/0012-keys-beyond-memory-lie-in-fjall.md`.
//!
//! Invariant: a key has the value that was written last. Called by the engine's
//! states when they exceed the memory that they may take.

mod blocks;

pub use self::blocks::{OverflowBlock, OverflowBlocks};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, Readable, Snapshot};
use std::{
    ops::Bound,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tidemill_core::{Error, Result};

/// Memory for blocks that were read.
const CACHE_BYTES: u64 = 64 << 20;
/// Memory of one part for rows that were written and are in no file yet.
const WRITE_BYTES: u64 = 16 << 20;
/// The least that the store's own journal takes; it is of no use here and can't be left out.
const JOURNAL_BYTES: u64 = 64 << 20;
/// Files that are held open.
const FILES: usize = 128;

/// The rows of all parts of a program that are not in memory.
pub struct Overflow {
    db: Database,
    dir: PathBuf,
    parts: AtomicU64,
}

impl std::fmt::Debug for Overflow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "overflow in {}", self.dir.display())
    }
}

impl Overflow {
    /// An empty store in `dir`; what is there is removed.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn create(dir: &Path) -> Result<Arc<Self>> {
        Self::remove(dir)?;
        let io = |what: &str, e: std::io::Error| failed(dir, what)(e);
        std::fs::create_dir_all(dir).map_err(|e| io("create", e))?;
        let db = Database::builder(dir)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES)
            .max_cached_files(Some(FILES))
            .manual_journal_persist(true)
            .worker_threads(1)
            .open()
            .map_err(failed(dir, "open"))?;
        Ok(Arc::new(Self { db, dir: dir.to_owned(), parts: AtomicU64::new(0) }))
    }

    /// Removes what a program before has left in `dir`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove(dir: &Path) -> Result<()> {
        match std::fs::remove_dir_all(dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(dir, "remove")(e)),
            _ => Ok(()),
        }
    }

    /// An empty part of its own, which goes when it is dropped.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn part(self: &Arc<Self>) -> Result<OverflowPart> {
        let name = format!("part{}", self.parts.fetch_add(1, Ordering::Relaxed));
        let options = || KeyspaceCreateOptions::default().max_memtable_size(WRITE_BYTES).manual_journal_persist(true);
        let rows = self.db.keyspace(&name, options).map_err(failed(&self.dir, "create"))?;
        Ok(OverflowPart { of: Arc::clone(self), rows })
    }

    /// Bytes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.db.disk_space().unwrap_or_default()
    }
}

impl Drop for Overflow {
    fn drop(&mut self) {
        // Best effort: the next program in this directory removes what is left.
        let _ignored = std::fs::remove_dir_all(&self.dir);
    }
}

/// Rows of one part, sorted by key.
pub struct OverflowPart {
    of: Arc<Overflow>,
    rows: Keyspace,
}

impl std::fmt::Debug for OverflowPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a part of {:?}", self.of)
    }
}

impl OverflowPart {
    /// The most bytes that a key may have; it has at least one.
    pub const KEY_BYTES: usize = u16::MAX as usize;

    /// Writes rows, which replace those of the same keys, and removes keys. Sorted keys are faster.
    ///
    /// # Errors
    /// When a key is too long, or the disk refuses.
    pub fn write<'a>(
        &self,
        rows: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        gone: impl Iterator<Item = &'a [u8]>,
    ) -> Result<()> {
        let mut batch = self.of.db.batch();
        for (key, value) in rows {
            if key.len() > Self::KEY_BYTES {
                return Err(Error::user(format!(
                    "a key of {} bytes of a state has no place in memory, and on disk one may have {}: raise the memory \
                     that states may take, or take shorter keys",
                    key.len(),
                    Self::KEY_BYTES
                )));
            }
            batch.insert(&self.rows, key, value);
        }
        // One that is too long is not there.
        gone.filter(|key| key.len() <= Self::KEY_BYTES).for_each(|key| batch.remove(&self.rows, key));
        batch.commit().map_err(failed(&self.of.dir, "write"))
    }

    /// The value of a key.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn get(&self, key: &[u8]) -> Result<Option<impl AsRef<[u8]>>> {
        self.rows.get(key).map_err(failed(&self.of.dir, "read"))
    }

    /// Hands out the rows from a key on, in order, until `each` says no.
    ///
    /// # Errors
    /// When the disk refuses, and what `each` refuses.
    pub fn scan(&self, from: Bound<&[u8]>, each: impl FnMut(&[u8], &[u8]) -> Result<bool>) -> Result<()> {
        hand_out(self.rows.range::<&[u8], _>((from, Bound::Unbounded)), &self.of.dir, each)
    }

    /// The rows as they are now, whatever is written afterwards. What was replaced meanwhile stays on disk until it
    /// is dropped.
    pub fn view(&self) -> OverflowView {
        OverflowView { seen: self.of.db.snapshot(), rows: self.rows.clone(), of: Arc::clone(&self.of) }
    }
}

/// Rows of a part as they were at one moment.
pub struct OverflowView {
    seen: Snapshot,
    rows: Keyspace,
    of: Arc<Overflow>,
}

impl std::fmt::Debug for OverflowView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "what a part of {:?} was", self.of)
    }
}

impl OverflowView {
    /// As [`OverflowPart::get`].
    ///
    /// # Errors
    /// As [`OverflowPart::get`].
    pub fn get(&self, key: &[u8]) -> Result<Option<impl AsRef<[u8]>>> {
        self.seen.get(&self.rows, key).map_err(failed(&self.of.dir, "read"))
    }

    /// As [`OverflowPart::scan`].
    ///
    /// # Errors
    /// As [`OverflowPart::scan`].
    pub fn scan(&self, from: Bound<&[u8]>, each: impl FnMut(&[u8], &[u8]) -> Result<bool>) -> Result<()> {
        hand_out(self.seen.range::<&[u8], _>(&self.rows, (from, Bound::Unbounded)), &self.of.dir, each)
    }
}

fn hand_out(rows: fjall::Iter, dir: &Path, mut each: impl FnMut(&[u8], &[u8]) -> Result<bool>) -> Result<()> {
    for row in rows {
        let (key, value) = row.into_inner().map_err(failed(dir, "read"))?;
        if !each(&key, &value)? {
            break;
        }
    }
    Ok(())
}

impl Drop for OverflowPart {
    fn drop(&mut self) {
        if let Err(error) = self.of.db.delete_keyspace(self.rows.clone()) {
            tracing::debug!(error = %error, "a part of the overflow is left until the program ends");
        }
    }
}

/// Bytes of memory that this process may take: the machine's, or its group's where that is less.
/// `None` where neither is told.
pub fn machine_memory() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|told| {
        let line = told.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    });
    let group = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok())
        .min();
    machine.into_iter().chain(group).min()
}

fn failed<E: std::error::Error + Send + Sync + 'static>(dir: &Path, what: &str) -> impl Fn(E) -> Error + use<E> {
    let text = format!("can't {what} rows of states that have no place in memory, in {}", dir.display());
    move |e| Error::external(text.clone()).because(e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_written_replaced_removed_and_scanned_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("spill.tmp");
        std::fs::create_dir_all(at.join("left")).unwrap();
        let overflow = Overflow::create(&at).unwrap();
        assert!(!at.join("left").exists(), "what a program before left is gone");
        let (one, two) = (overflow.part().unwrap(), overflow.part().unwrap());
        let keys: Vec<[u8; 2]> = (0..300_u16).map(u16::to_be_bytes).collect();
        one.write(keys.iter().map(|key| (&key[..], &b"old"[..])), std::iter::empty()).unwrap();
        one.write(keys[..100].iter().map(|key| (&key[..], &b"new"[..])), keys[50..60].iter().map(|k| &k[..])).unwrap();
        let get = |part: &OverflowPart, at: usize| part.get(&keys[at]).unwrap().map(|v| v.as_ref().to_vec());
        assert_eq!(get(&one, 7), Some(b"new".to_vec()));
        assert_eq!(get(&one, 107), Some(b"old".to_vec()));
        assert_eq!((get(&one, 55), get(&two, 7)), (None, None));
        let mut seen = Vec::new();
        one.scan(Bound::Excluded(&keys[48]), |key, value| {
            seen.push((key.to_vec(), value.to_vec()));
            Ok(seen.len() < 3)
        })
        .unwrap();
        let want: Vec<_> = [49, 60, 61].iter().map(|at| (keys[*at].to_vec(), b"new".to_vec())).collect();
        assert_eq!(seen, want);
        let view = one.view();
        one.write([(&b"\0"[..], &b"later"[..])].into_iter(), keys[..299].iter().map(|key| &key[..])).unwrap();
        let (mut now, mut then) = (0, 0);
        one.scan(Bound::Unbounded, |_, _| {
            now += 1;
            Ok(true)
        })
        .unwrap();
        view.scan(Bound::Unbounded, |_, _| {
            then += 1;
            Ok(true)
        })
        .unwrap();
        assert_eq!((now, then), (2, 290), "a view has what was there");
        let long = vec![1; OverflowPart::KEY_BYTES + 1];
        let error = one.write([(&long[..], &b""[..])].into_iter(), [&long[..]].into_iter()).unwrap_err().to_string();
        assert!(error.contains("a key of 65536 bytes"), "{error}");
        assert!(machine_memory().is_none_or(|bytes| bytes > 1 << 20));
        drop((one, two, overflow, view));
        assert!(!at.exists(), "it goes with the program");
    }
}
