//! Generated files: written once, found again by what they were made from.
//!
//! A directory holds `part-0`, `part-1` … and, written last, `_manifest.json`
//! with the parameters. Part *i* holds the *i*-th stretch of the records in
//! order, so that who reads the parts by name reads in order of event time.
//!
//! Invariant: a directory with a manifest is whole; one without is written anew.

use crate::Result;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// Changes whenever a generator's output does.
const VERSION: u32 = 1;
/// Files of a data set, so that two or four or eight threads can share them.
const PARTS: u64 = 8;
/// Bytes gathered before a write.
const BUFFER: usize = 1 << 20;

/// What a data set is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    kind: String,
    seed: u64,
    items: u64,
    parts: u64,
    /// Bytes of each part; a part of another length was touched.
    bytes: Vec<u64>,
}

/// A data set on disk.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    /// Where the parts are, and nothing else but `_manifest.json`.
    pub(crate) dir: PathBuf,
    /// The parts, in order.
    pub(crate) parts: Vec<PathBuf>,
    /// Records in all.
    pub(crate) items: u64,
    /// Bytes in all.
    pub(crate) bytes: u64,
}

impl Files {
    /// Finds the data set below `base`, or writes it with `threads` threads;
    /// `record` appends the record of an index with its `\n`.
    ///
    /// # Errors
    /// When the disk refuses; the path is named.
    pub(crate) fn find_or_write(
        base: &Path,
        kind: &str,
        seed: u64,
        items: u64,
        threads: usize,
        record: impl Fn(u64, &mut Vec<u8>) + Sync,
    ) -> Result<Self> {
        let dir = base.join(format!("{kind}-{items}-{seed}"));
        let manifest_path = dir.join("_manifest.json");
        let parts: Vec<PathBuf> = (0..PARTS).map(|i| dir.join(format!("part-{i}"))).collect();
        let mut manifest =
            Manifest { version: VERSION, kind: kind.into(), seed, items, parts: PARTS, bytes: Vec::new() };
        let written = parts.iter().map(|p| fs::metadata(p).map(|m| m.len())).collect::<std::io::Result<Vec<u64>>>();
        if let (Ok(found), Ok(bytes)) = (fs::read(&manifest_path), written) {
            let bytes_all = bytes.iter().sum();
            manifest.bytes = bytes;
            if serde_json::from_slice::<Manifest>(&found).is_ok_and(|found| found == manifest) {
                return Ok(Self { dir, parts, items, bytes: bytes_all });
            }
        }
        eprintln!("writing {items} records of {kind} to {} …", dir.display());
        fs::create_dir_all(&dir)
            .map_err(|e| format!("can't create {}: {e}; choose another with --dir", dir.display()))?;
        match fs::remove_file(&manifest_path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("can't replace {}: {e}", manifest_path.display()).into());
            }
            _ => {}
        }
        manifest.bytes = write_parts(&parts, items, threads, &record)?;
        let bytes = manifest.bytes.iter().sum();
        fs::write(&manifest_path, serde_json::to_vec_pretty(&manifest)?)?;
        Ok(Self { dir, parts, items, bytes })
    }

    /// Reads all parts once, so that who is measured first does not pay for the disk alone.
    ///
    /// # Errors
    /// When a part can't be read; it is named.
    pub(crate) fn warmed(self) -> Result<Self> {
        for path in &self.parts {
            File::open(path)
                .and_then(|mut file| std::io::copy(&mut file, &mut std::io::sink()))
                .map_err(|e| format!("can't read {}: {e}", path.display()))?;
        }
        Ok(self)
    }
}

fn write_parts(
    parts: &[PathBuf],
    items: u64,
    threads: usize,
    record: &(impl Fn(u64, &mut Vec<u8>) + Sync),
) -> Result<Vec<u64>> {
    let next = AtomicUsize::new(0);
    let mut done: Vec<(usize, u64)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| -> Result<Vec<(usize, u64)>> {
                    let mut done = Vec::new();
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(path) = parts.get(i) else { return Ok(done) };
                        let stretch = i as u64 * items / PARTS..(i as u64 + 1) * items / PARTS;
                        let bytes = write_part(path, stretch, record);
                        done.push((i, bytes.map_err(|e| format!("can't write {}: {e}", path.display()))?));
                    }
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().expect("a generator doesn't panic")).collect::<Result<Vec<_>>>()
    })?
    .concat();
    done.sort_unstable();
    Ok(done.into_iter().map(|(_, bytes)| bytes).collect())
}

fn write_part(path: &Path, stretch: Range<u64>, record: impl Fn(u64, &mut Vec<u8>)) -> std::io::Result<u64> {
    let mut file = BufWriter::with_capacity(0, File::create(path)?);
    let mut buffer = Vec::with_capacity(BUFFER + (64 << 10));
    let mut bytes = 0;
    for index in stretch {
        record(index, &mut buffer);
        if buffer.len() >= BUFFER {
            file.write_all(&buffer)?;
            bytes += buffer.len() as u64;
            buffer.clear();
        }
    }
    file.write_all(&buffer)?;
    Ok(bytes + buffer.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(i: u64, into: &mut Vec<u8>) {
        into.extend_from_slice(format!("{i}\n").as_bytes());
    }

    #[test]
    fn parts_hold_the_records_in_order_and_are_found_again() {
        let base = tempfile::tempdir().unwrap();
        let files = Files::find_or_write(base.path(), "n", 1, 1_003, 3, number).unwrap();
        assert!(files.parts.iter().all(|p| p.parent() == Some(&files.dir)));
        let text: String = files.parts.iter().map(|p| fs::read_to_string(p).unwrap()).collect();
        assert!(text.lines().map(|l| l.parse::<u64>().unwrap()).eq(0..1_003));
        assert_eq!(files.bytes, text.len() as u64);
        let again = Files::find_or_write(base.path(), "n", 1, 1_003, 1, |_, _| panic!("written twice")).unwrap();
        assert_eq!(again.bytes, files.bytes);
    }

    #[test]
    fn a_part_that_was_touched_is_written_anew() {
        let base = tempfile::tempdir().unwrap();
        let files = Files::find_or_write(base.path(), "n", 1, 100, 1, number).unwrap();
        fs::write(&files.parts[2], "1\n").unwrap();
        let again = Files::find_or_write(base.path(), "n", 1, 100, 1, number).unwrap();
        let text: String = again.parts.iter().map(|p| fs::read_to_string(p).unwrap()).collect();
        assert!(text.lines().map(|l| l.parse::<u64>().unwrap()).eq(0..100));
    }
}
