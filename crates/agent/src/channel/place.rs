//! What sinks have had of a channel, durably: the file `<data>/agents/<agent>/<channel>.json`.
//!
//! ```json
//! { "version": 2, "low": 1200, "done": [[1300, 1400]], "sinks": { "k1": "…" }, "crc": "1a2b3c4d" }
//! ```
//!
//! `low`: every event before it was committed by a sink. `done`: what was committed behind it, where several sinks share
//! the channel. `sinks`: what each sink left with its last commit; see [`crate::sink::Outlet`]. Described in
//! `docs/formats/agent.md`.
//!
//! Invariant: the file is replaced whole, so what a sink left and what it has had are always of one commit. Called by
//! the channels.

use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{Error, Result};
use tidemill_store::{
    atomic_write,
    disk::{self, Disk},
    io_error, small,
};

/// What sinks have had of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Place {
    version: u32,
    /// Every event before this offset was committed.
    pub(crate) low: u64,
    /// Ranges behind `low` that were committed, by their start; they neither touch nor overlap.
    pub(crate) done: BTreeMap<u64, u64>,
    /// What each sink left with its last commit.
    pub(crate) sinks: BTreeMap<String, String>,
}

impl Default for Place {
    fn default() -> Self {
        Self { version: small::VERSION, low: 0, done: BTreeMap::new(), sinks: BTreeMap::new() }
    }
}

impl Place {
    /// Notes that `[from, to)` was committed.
    pub(crate) fn add(&mut self, from: u64, to: u64) {
        self.done.insert(from, to);
        while let Some(end) = self.done.remove(&self.low) {
            self.low = end;
        }
        // Ranges that touch become one, so that the file stays small whatever order they come in.
        let mut merged: BTreeMap<u64, u64> = BTreeMap::new();
        for (&start, &end) in &self.done {
            match merged.last_entry() {
                Some(mut last) if *last.get() == start => drop(last.insert(end)),
                _ => drop(merged.insert(start, end)),
            }
        }
        self.done = merged;
    }

    /// The part of `[at, end)` up to the next range that was committed, beginning at the first offset that was not.
    pub(crate) fn open_part(&self, mut at: u64, end: u64) -> Option<(u64, u64)> {
        while let Some((_, &past)) = self.done.range(..=at).next_back().filter(|(_, past)| **past > at) {
            at = past;
        }
        let end = self.done.range(at..).next().map_or(end, |(&start, _)| start.min(end));
        (at < end).then_some((at, end))
    }
}

/// The file of a [`Place`].
#[derive(Debug)]
pub(crate) struct PlaceFile {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

impl PlaceFile {
    /// The file of a channel in `dir`, and what it says.
    ///
    /// # Errors
    /// When it can't be read.
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: &Path, channel: &str) -> Result<(Self, Place)> {
        disk::create_dir(&*disk, dir).map_err(|e| io_error("create", dir, e))?;
        let path = dir.join(format!("{channel}.json"));
        let place = if disk.exists(&path) {
            let bytes = disk::read_file(&*disk, &path).map_err(|e| io_error("read", &path, e))?;
            small::opened(&bytes, &path)?
        } else {
            Place::default()
        };
        Ok((Self { disk, path }, place))
    }

    /// Durable when this returns.
    ///
    /// # Errors
    /// When the disk refuses: then the file says what it said before, or this.
    pub(crate) fn write(&self, place: &Place) -> Result<()> {
        atomic_write(&*self.disk, &self.path, &small::sealed(place)).map_err(|e| io_error("write", &self.path, e))
    }

    /// The error of a place that the channel's topic does not reach.
    pub(crate) fn beyond(&self, place: &Place, end: u64) -> Error {
        Error::user(format!(
            "{} says that events up to {} were handed on, and the channel's topic ends at {end}: events are missing. \
             Restore the data directory as a whole, or remove that file to hand on again all that is there",
            self.path.display(),
            place.done.values().next_back().copied().unwrap_or(place.low)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use tidemill_store::SimDisk;

    #[test]
    fn a_place_comes_back_and_damage_is_told() {
        let disk = Arc::new(SimDisk::new());
        let open = || PlaceFile::open(Arc::clone(&disk) as Arc<dyn Disk>, Path::new("/agents/a"), "c1");
        let (file, mut place) = open().unwrap();
        assert_eq!(place, Place::default());
        place.add(0, 5);
        place.add(9, 12);
        place.sinks.insert("k1".to_owned(), "token".to_owned());
        file.write(&place).unwrap();
        assert_eq!(open().unwrap().1, place);
        let path = Path::new("/agents/a/c1.json");
        let mut bytes = disk.contents(path).unwrap();
        bytes[30] ^= 1;
        disk.set_contents(path, bytes);
        assert!(open().unwrap_err().to_string().contains("c1.json is damaged"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_place_knows_what_is_left(order in Just((0..40_u64).collect::<Vec<_>>()).prop_shuffle(), count in 0..40_usize) {
            let (mut place, mut model) = (Place::default(), BTreeSet::new());
            for n in &order[..count] {
                place.add(n * 3, n * 3 + 3);
                model.extend(n * 3..n * 3 + 3);
            }
            let (mut at, mut left) = (0, Vec::new());
            while let Some((from, to)) = place.open_part(at.max(place.low), 120) {
                left.extend(from..to);
                at = to;
            }
            let want: Vec<u64> = (0..120).filter(|n| !model.contains(n)).collect();
            prop_assert_eq!(left, want);
            prop_assert!(place.done.iter().zip(place.done.iter().skip(1)).all(|(a, b)| a.1 < b.0));
        }
    }
}
