//! The memory that a program's states may take together.
//!
//! Each part of a state tells what it takes, and is told to what it must shrink
//! when all together take too much and it has more than its share. Invariant:
//! what is counted here is what the parts hold; a part that is dropped no longer
//! counts. What is beyond the bound lies in an overflow on disk, made when it is
//! first needed. What can't go there is counted as well, and when that alone is more
//! than the bound, the program had better say so than be killed. One a program, in its
//! configuration; parts of keyed states and the aggregates of SQL call it.

use parking_lot::Mutex;
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tidemill_core::Result;
use tidemill_store::{Overflow, OverflowPart, machine_memory};

/// Names directories of programs that keep nothing.
static PROGRAMS: AtomicU64 = AtomicU64::new(0);

/// The bound, and what is taken of it.
#[derive(Debug)]
pub(crate) struct StateMemory {
    /// Bytes.
    limit: AtomicU64,
    parts: AtomicU64,
    used: AtomicU64,
    /// Bytes, among those, of what can't go to disk.
    fixed: AtomicU64,
    /// Rows that are on disk only.
    spilled: AtomicU64,
    /// Whether what can't go to disk may be more than the bound.
    lenient: bool,
    dir: Mutex<Option<PathBuf>>,
    overflow: Mutex<Option<Arc<Overflow>>>,
}

impl Default for StateMemory {
    /// Half of the machine's memory.
    fn default() -> Self {
        Self::of(machine_memory().map_or(u64::MAX, |bytes| bytes / 2))
    }
}

impl StateMemory {
    /// A bound of so many bytes.
    pub(crate) fn of(limit: u64) -> Self {
        Self {
            limit: AtomicU64::new(limit),
            parts: AtomicU64::new(0),
            used: AtomicU64::new(0),
            fixed: AtomicU64::new(0),
            spilled: AtomicU64::new(0),
            lenient: false,
            dir: Mutex::new(None),
            overflow: Mutex::new(None),
        }
    }

    /// The same bound for a look at the past: who looks need not know how much memory the program was given.
    pub(crate) fn aside(&self) -> Self {
        Self { lenient: true, ..Self::of(self.limit()) }
    }

    /// Changes the bound.
    pub(crate) fn set_limit(&self, bytes: u64) {
        self.limit.store(bytes, Relaxed);
    }

    /// The overflow is to be in `dir`, where a program before may have left one.
    pub(crate) fn set_dir(&self, dir: &Path) -> Result<()> {
        Overflow::remove(dir)?;
        *self.dir.lock() = Some(dir.to_owned());
        Ok(())
    }

    /// Bytes that states may take.
    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Relaxed)
    }

    /// Bytes that states take in memory.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// Whether states take more than they may.
    pub(crate) fn is_over(&self) -> bool {
        self.used() > self.limit()
    }

    /// Rows that are on disk only.
    pub(crate) fn spilled(&self) -> u64 {
        self.spilled.load(Relaxed)
    }

    /// A place on disk for a part.
    pub(crate) fn overflow(&self) -> Result<OverflowPart> {
        let mut overflow = self.overflow.lock();
        if let Some(overflow) = &*overflow {
            return overflow.part();
        }
        let elsewhere = || {
            let number = PROGRAMS.fetch_add(1, Relaxed);
            std::env::temp_dir().join(format!("tidemill-{}-{number}.spill.tmp", std::process::id()))
        };
        let dir = self.dir.lock().clone().unwrap_or_else(elsewhere);
        tracing::info!(dir = %dir.display(), "what has no place in memory goes to disk");
        overflow.insert(Overflow::create(&dir)?).part()
    }
}

/// What one part takes of the memory.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) memory: Arc<StateMemory>,
    bytes: u64,
    fixed: u64,
    spilled: u64,
}

impl Share {
    pub(crate) fn of(memory: &Arc<StateMemory>) -> Self {
        memory.parts.fetch_add(1, Relaxed);
        Self { memory: Arc::clone(memory), bytes: 0, fixed: 0, spilled: 0 }
    }

    /// Notes what the part takes. Gives the bytes that it must shrink to, when it must.
    pub(crate) fn note(&mut self, bytes: u64, spilled: u64) -> Option<u64> {
        let memory = &self.memory;
        memory.used.fetch_add(bytes.wrapping_sub(self.bytes), Relaxed);
        memory.spilled.fetch_add(spilled.wrapping_sub(self.spilled), Relaxed);
        (self.bytes, self.spilled) = (bytes, spilled);
        let (used, limit) = (memory.used(), memory.limit());
        let own = self.own();
        // A little less than the bound, so that the next batch finds room.
        (used > limit && bytes > own).then(|| own.max(bytes.saturating_sub(used - limit)) / 8 * 7)
    }

    /// Bytes that are this part's own, however much others take.
    pub(crate) fn own(&self) -> u64 {
        self.memory.limit() / self.memory.parts.load(Relaxed).max(1)
    }

    /// Notes what the part takes and can't give up.
    pub(crate) fn note_fixed(&mut self, bytes: u64) {
        self.note(bytes, 0);
        self.memory.fixed.fetch_add(bytes.wrapping_sub(self.fixed), Relaxed);
        self.fixed = bytes;
    }

    /// Whether all that can't be given up, some of it by this part, is more than there may be.
    pub(crate) fn fixed_is_over(&self) -> bool {
        self.fixed > 0 && !self.memory.lenient && self.memory.fixed.load(Relaxed) > self.memory.limit()
    }

    /// Bytes that the part takes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.note_fixed(0);
        self.memory.parts.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_shrinks_only_when_all_are_too_large_and_it_has_more_than_its_share() {
        let memory = Arc::new(StateMemory::of(800));
        let (mut one, mut two) = (Share::of(&memory), Share::of(&memory));
        assert_eq!(one.note(700, 0), None, "there is room, whose it may be");
        assert_eq!(two.note(50, 0), None);
        assert_eq!(two.note(200, 9), None, "the other one is too large");
        assert_eq!(one.note(700, 0), Some(525));
        assert_eq!(one.note(525, 3), None);
        assert_eq!((memory.used(), memory.spilled()), (725, 12));
        two.note_fixed(300);
        assert!(!two.fixed_is_over());
        two.note_fixed(801);
        assert!(two.fixed_is_over() && !one.fixed_is_over(), "what can go is told to go");
        assert_eq!(memory.used(), 525 + 801);
        drop(two);
        assert_eq!((memory.used(), memory.spilled()), (525, 3));
        let mut three = Share::of(&memory);
        three.note_fixed(800);
        assert!(!three.fixed_is_over());
        drop(three);
        let mut four = Share::of(&Arc::new(memory.aside()));
        four.note_fixed(801);
        assert!(!four.fixed_is_over(), "a look at the past is not refused");
        assert_eq!(one.note(801, 3), Some(700));
    }
}
