//! Offsets that retention must not pass, by owner; the file `pins.json`.
//!
//! A pin that only moves forward is not written at once: the older one on disk
//! keeps more than is needed, never less. It is written before anything is
//! deleted on its account.
//!
//! An owner without any partition holds nothing: it has read the topic, and does
//! not any more. A program that has positions in a topic that knows nothing of it
//! has them from another one of that name.
//!
//! Invariant: what retention deletes is behind every pin on disk.

use crate::{
    disk::{self, Disk},
    fault::Named,
    small,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use tidemill_core::{Offset, Result};

#[derive(Debug)]
pub(super) struct Pins {
    path: PathBuf,
    owners: Owners,
    /// What the file says.
    stored: Owners,
}

type Owners = BTreeMap<String, BTreeMap<u32, Offset>>;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    pins: Owners,
}

impl Pins {
    pub(super) fn open(disk: &dyn Disk, topic: &Path) -> Result<Self> {
        let path = topic.join("pins.json");
        let owners = if disk.exists(&path) {
            let bytes = disk::read_file(disk, &path).named("read", &path)?;
            let stored: Stored = small::opened(&bytes, &path)?;
            stored.pins
        } else {
            BTreeMap::new()
        };
        Ok(Self { path, stored: owners.clone(), owners })
    }

    pub(super) fn set(&mut self, disk: &dyn Disk, owner: &str, positions: &BTreeMap<u32, Offset>) -> Result<()> {
        let old = self.owners.get(owner);
        if old == Some(positions) {
            return Ok(());
        }
        let forward = old.is_some_and(|old| {
            positions.keys().eq(old.keys()) && positions.iter().all(|(p, offset)| *offset >= old[p])
        });
        self.owners.insert(owner.to_owned(), positions.clone());
        if forward { Ok(()) } else { self.save(disk) }
    }

    pub(super) fn remove(&mut self, disk: &dyn Disk, owner: &str) -> Result<()> {
        if self.owners.remove(owner).is_some() {
            self.save(disk)?;
        }
        Ok(())
    }

    /// Lets go of what an owner holds, and still knows it.
    pub(super) fn release(&mut self, disk: &dyn Disk, owner: &str) -> Result<()> {
        match self.owners.get_mut(owner) {
            Some(held) if !held.is_empty() => {
                held.clear();
                self.save(disk)
            }
            _ => Ok(()),
        }
    }

    /// Whether the owner has ever held something.
    pub(super) fn knows(&self, owner: &str) -> bool {
        self.owners.contains_key(owner)
    }

    /// Writes the file if it is behind.
    pub(super) fn save(&mut self, disk: &dyn Disk) -> Result<()> {
        if self.stored == self.owners {
            return Ok(());
        }
        let stored = Stored { version: small::VERSION, pins: self.owners.clone() };
        disk::atomic_write(disk, &self.path, &small::sealed(&stored)).named("write", &self.path)?;
        self.stored = stored.pins;
        Ok(())
    }

    /// The smallest offset of a partition that is pinned on disk.
    pub(super) fn lowest(&self, partition: u32) -> Option<u64> {
        self.stored.values().filter_map(|p| p.get(&partition)).map(|o| o.0).min()
    }

    /// What is held, by owner.
    pub(super) fn all(&self) -> Owners {
        self.owners.iter().filter(|(_, held)| !held.is_empty()).map(|(o, held)| (o.clone(), held.clone())).collect()
    }
}
