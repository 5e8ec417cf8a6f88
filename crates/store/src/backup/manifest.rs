//! `BACKUP.json`: what a backup holds.
//!
//! ```json
//! {"version": 1, "made": 1769871600000000, "batches": {"top": 412},
//!  "files": [{"name": "FORMAT", "len": 18, "crc": 1234567}],
//!  "empty": ["log/top.dead/0"], "crc": 7654321}
//! ```
//!
//! `crc` of a file is the CRC-32C of its bytes; that of the whole is the CRC-32C
//! of the other fields as they stand, without spaces.
//!
//! Invariant: written last, so a backup that has it is whole.

use crate::{
    disk::{self, RealDisk},
    fault::Named,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path};
use tidemill_core::{BatchId, Error, Result, Timestamp};

/// Name of the file.
pub(crate) const MANIFEST: &str = "BACKUP.json";
const VERSION: u32 = 1;

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    version: u32,
    /// When it was made.
    pub made: Timestamp,
    /// The last committed batch of each program.
    pub batches: BTreeMap<String, BatchId>,
    pub(super) files: Vec<Entry>,
    /// Directories without files.
    pub(super) empty: Vec<String>,
}

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// Its path below the directory, with `/`.
    pub(super) name: String,
    pub(super) len: u64,
    pub(super) crc: u32,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    backup: serde_json::Value,
    crc: u32,
}

impl Backup {
    pub(super) fn new(made: Timestamp) -> Self {
        Self { version: VERSION, made, batches: BTreeMap::new(), files: Vec::new(), empty: Vec::new() }
    }

    /// Number of files.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len).sum()
    }

    /// Whether a directory is a backup, whole or not.
    pub(super) fn is_in(dir: &Path) -> bool {
        disk::Disk::exists(&RealDisk, &dir.join(MANIFEST))
    }

    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(MANIFEST);
        let backup = serde_json::to_value(self).expect("plain fields always become JSON");
        let crc = crc32c::crc32c(backup.to_string().as_bytes());
        let text = serde_json::to_string_pretty(&Stored { backup, crc }).expect("plain fields always become JSON");
        disk::atomic_write(&RealDisk, &path, text.as_bytes()).named("write", &path)
    }

    /// What the backup in `dir` holds.
    ///
    /// # Errors
    /// When it is none, is not whole, or its list is damaged.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        if !Self::is_in(dir) {
            return Err(Error::user(format!(
                "{} is no whole backup: it has no {MANIFEST}, which is written last",
                dir.display()
            )));
        }
        let damaged = |why: String| Error::external(format!("{} is damaged: {why}", path.display())).fatal();
        let bytes = disk::read_file(&RealDisk, &path).named("read", &path)?;
        let mut value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        let crc = value.as_object_mut().and_then(|fields| fields.remove("crc"));
        if crc.and_then(|crc| crc.as_u64()) != Some(u64::from(crc32c::crc32c(value.to_string().as_bytes()))) {
            return Err(damaged("its checksum is wrong".to_string()));
        }
        let version = value["version"].as_u64().unwrap_or_default();
        if version > u64::from(VERSION) {
            return Err(Error::user(format!(
                "{} has format version {version}, this build reads version {VERSION}: use a newer Tidemill",
                path.display()
            )));
        }
        let backup: Self = serde_json::from_value(value).map_err(|e| damaged(e.to_string()))?;
        let outside = |name: &str| name.split('/').any(|part| part.is_empty() || part == "." || part == "..");
        let mut names = backup.files.iter().map(|entry| &entry.name).chain(&backup.empty);
        if let Some(name) = names.find(|name| outside(name)) {
            return Err(Error::user(format!("{} names a file outside of the backup: {name}", path.display())));
        }
        Ok(backup)
    }
}
