//! Connector `files`: a file, a directory or a glob, read by byte offsets.
//!
//! A partition is a file, named by its path below the directory; an offset is a
//! byte. A batch takes what came since the one before, up to a line's end; a
//! large file is cut at line ends so that it is read in parallel.
//!
//! Invariant: each byte of a file belongs to one planned range. A file that
//! became shorter than what was read of it, that was replaced, or that vanished
//! before it was read is an error with the exact gap, never a silent restart.
//!
//! **The last line.** A line without its end may still be being written. Option
//! `complete = 'auto'` (the default) takes it as a record when the file has not
//! been changed for two seconds; `true` takes it at once (for files that appear
//! by renaming), `false` never.
//!
//! | Option | Meaning |
//! |---|---|
//! | `path` | file, directory or glob (`logs/**/*.json`); names with a leading `.` or `_` and `*.tmp` are passed over |
//! | `start` | `earliest` (default), or `latest`: files that are there already begin at their end |
//! | `complete` | `auto`, `true`, `false`: see above |
//! | `max_line` | bytes of a line at most (1 MiB); a longer one is refused |
//! | `header` | `true`: a file's first line is no record |
//! | `format` | `avro`: files of Avro (object containers), each with its schema in it; else lines |
//!
//! **Avro.** `schema` or `schema_file` says as what records are read; without it, and without declared columns, the columns
//! are those of the first file. A file is taken when it has rested for two seconds, or with `complete = 'true'` at once.
//!
//! The position names every file ever read, so a directory that gets millions
//! of small files should be emptied into another from time to time.

use super::{
    blocks::{self, BlockReader},
    listing::Listing,
    reader::RangeReader,
};
use crate::{
    format::avro::file::{Containers, SHIFT},
    lines,
};
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use futures::{StreamExt, stream};
use memchr::{memchr, memchr_iter, memrchr};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tidemill_core::{
    Budget, ChunkStream, Error, Format, Offset, OffsetRange, Options, PartitionId, Position, Result, Shape, Source,
};

/// Without a change for this long, a file's last line is taken without its end.
const SETTLED: Duration = Duration::from_secs(2);
/// A file is not cut into smaller ranges than this.
const MIN_RANGE: u64 = 64 << 10;
/// Bytes looked at together in search of a line's end.
const STEP: u64 = 16 << 10;
/// Bytes of a record of Avro, as a guess.
const RECORD: u64 = 64;
/// Files looked at again in one plan, in turn, when there are more of them.
const LOOKS: usize = 4096;

/// When a last line without its end is a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Complete {
    /// When its file has not been changed for two seconds.
    #[default]
    Auto,
    /// At once.
    Always,
    /// Never.
    Never,
}

/// A file, the files of a directory, or those of a glob.
#[derive(Debug)]
pub struct FilesSource {
    path: String,
    latest: bool,
    complete: Complete,
    max_line: usize,
    header: bool,
    /// Where the files are of Avro.
    containers: Option<Arc<Containers>>,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    listing: Listing,
    files: BTreeMap<PartitionId, Known>,
    /// Whether `files` was filled once.
    begun: bool,
    /// Where the next round of looks begins.
    turn: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    len: u64,
    settled: bool,
    /// Where a position that doesn't name it begins.
    first: u64,
    inode: u64,
    /// End of the last whole line, for a length.
    whole: Option<(u64, u64)>,
}

impl FilesSource {
    /// All of `path`, from the beginning.
    ///
    /// # Errors
    /// When `path` is not there, or not a pattern.
    pub fn new(path: &str) -> Result<Self> {
        let listing = Listing::new(path)?;
        let seen = Mutex::new(Seen { listing, files: BTreeMap::new(), begun: false, turn: 0 });
        let (complete, max_line) = (Complete::default(), lines::MAX_LINE);
        Ok(Self { path: path.to_string(), latest: false, complete, max_line, header: false, containers: None, seen })
    }

    /// From a stream's options.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub fn from_options(options: &Options) -> Result<Self> {
        let owner = options.owner();
        let mut source = Self::new(options.require("path", "it names a file, a directory or a glob")?)?;
        source.latest = match options.get("start").unwrap_or("earliest") {
            "earliest" => false,
            "latest" => true,
            other => {
                return Err(Error::user(format!(
                    "{owner}: option `start` must be `earliest` or `latest`, not `{other}`"
                )));
            }
        };
        source.complete = match options.get("complete").unwrap_or("auto") {
            "auto" => Complete::Auto,
            "true" => Complete::Always,
            "false" => Complete::Never,
            other => {
                return Err(Error::user(format!(
                    "{owner}: option `complete` must be `auto`, `true` or `false`, not `{other}`"
                )));
            }
        };
        source.max_line = lines::max_line(options)?;
        source.header = options.parse("header", false)?;
        source.containers = Containers::from_options(options)?.map(Arc::new);
        if source.containers.is_some() && source.complete == Complete::Never {
            return Err(Error::user(format!(
                "{owner}: option `complete`: files of Avro are taken as a whole: `auto`, when one has rested, or `true`, at once"
            )));
        }
        Ok(source)
    }

    /// When a last line without its end is a record.
    #[must_use]
    pub fn complete(mut self, complete: Complete) -> Self {
        self.complete = complete;
        self
    }

    /// Bytes of a line at most.
    #[must_use]
    pub fn max_line(mut self, bytes: usize) -> Self {
        self.max_line = bytes;
        self
    }

    /// Up to which byte a file was read.
    fn read_to(&self, position: &Position, id: &PartitionId, known: &Known) -> u64 {
        position.get(id).map_or(known.first, |at| at.0 >> self.shift())
    }

    /// Bits that an offset is above a byte.
    fn shift(&self) -> u32 {
        if self.containers.is_some() { SHIFT } else { 0 }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // What it holds is looked up anew on each use, so a panic elsewhere leaves nothing half done.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the files and checks them against `position`.
    fn look(&self, seen: &mut Seen, position: &Position) -> Result<()> {
        let Seen { listing, files, begun, turn } = seen;
        let root = listing.root.clone();
        let names = listing.names()?;
        let all = names.len() <= LOOKS || !*begun;
        let in_turn = |i: usize| all || (i + names.len() - *turn % names.len()) % names.len() < LOOKS;
        let mut gone: Vec<PartitionId> =
            if names.len() == files.len() && !all { Vec::new() } else { files.keys().cloned().collect() };
        for (i, name) in names.iter().enumerate() {
            let id = PartitionId::new(name.to_string_lossy());
            if let Ok(at) = gone.binary_search(&id) {
                gone.remove(at);
            }
            if files.contains_key(&id) && !in_turn(i) {
                continue;
            }
            let path = root.join(name);
            let meta = match fs::metadata(&path) {
                Ok(meta) => meta,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    self.gone(files, position, &id)?;
                    continue;
                }
                Err(e) => return Err(Error::external(format!("files: can't look at {}", path.display())).because(e)),
            };
            let len = meta.len();
            let first = if self.latest && !*begun { len } else { 0 };
            let known = files.get(&id).copied();
            let settled = self.complete == Complete::Auto
                && meta.modified().ok().and_then(|at| at.elapsed().ok()).is_some_and(|age| age >= SETTLED);
            let mut now = Known { len, settled, first, inode: inode(&meta), whole: None };
            if let Some(known) = known {
                (now.first, now.whole) = (known.first, known.whole);
            }
            let read = self.read_to(position, &id, &now);
            if len < read {
                return Err(Error::user(format!(
                    "files: {} has {len} bytes now, but bytes up to {read} were read: [{len}, {read}) are gone; it was truncated or rewritten. Put it back, or give the new content another name",
                    path.display()
                )));
            }
            if read > 0 && known.is_some_and(|known| known.inode != now.inode) {
                return Err(Error::user(format!(
                    "files: {} was replaced by another file after its bytes [0, {read}) had been read; give the new content another name",
                    path.display()
                )));
            }
            files.insert(id, now);
        }
        for id in gone {
            self.gone(files, position, &id)?;
        }
        *begun = true;
        *turn = turn.wrapping_add(LOOKS);
        Ok(())
    }

    fn gone(&self, files: &mut BTreeMap<PartitionId, Known>, position: &Position, id: &PartitionId) -> Result<()> {
        let Some(known) = files.remove(id) else { return Ok(()) };
        let read = self.read_to(position, id, &known);
        if read < known.len && self.complete != Complete::Never {
            files.insert(id.clone(), known);
            return Err(Error::user(format!(
                "files: {id} below {} is gone; its bytes [{read}, {}) were not read yet. Put it back, or rewind past it",
                self.path, known.len
            )));
        }
        Ok(())
    }

    /// Where a file's records end, as far as they are whole.
    fn whole(&self, file: &mut File, known: &mut Known, from: u64) -> Result<u64> {
        if self.complete == Complete::Always || known.settled {
            return Ok(known.len);
        }
        if self.containers.is_some() {
            return Ok(from);
        }
        match known.whole {
            Some((len, end)) if len == known.len => Ok(end.max(from)),
            _ => {
                let end = last_line_end(file, from, known.len).map_err(|e| self.failed(e))?;
                known.whole = Some((known.len, end));
                Ok(end)
            }
        }
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::external(format!("files: can't read {}", self.path)).because(error)
    }

    fn plan_now(&self, position: &Position, budget: Budget) -> Result<Vec<OffsetRange>> {
        let mut seen = self.seen();
        self.look(&mut seen, position)?;
        let Seen { listing, files, .. } = &mut *seen;
        let mut left = budget.bytes;
        let mut line = None;
        let mut parts: Vec<(PartitionId, File, u64, u64)> = Vec::new();
        for (id, known) in files.iter_mut() {
            let start = self.read_to(position, id, known);
            if start >= known.len || known.whole == Some((known.len, start)) && !known.settled {
                continue;
            }
            if left == 0 {
                break;
            }
            let path = listing.root.join(&*id.0);
            let mut file = match File::open(&path) {
                Ok(file) => file,
                Err(e) => return Err(Error::external(format!("files: can't open {}", path.display())).because(e)),
            };
            let whole = self.whole(&mut file, known, start)?;
            if whole <= start {
                continue;
            }
            if self.containers.is_some() {
                left = left.min(budget.records.saturating_mul(RECORD));
                let end = whole.min(start.saturating_add(left.max(1)));
                left = left.saturating_sub(end - start);
                parts.push((id.clone(), file, start, end));
                continue;
            }
            if line.is_none() && budget.records < left {
                let per_line = line_bytes(&mut file, start, whole).map_err(|e| self.failed(e))?;
                left = left.min(budget.records.saturating_mul(per_line));
                line = Some(per_line);
            }
            let end = if whole - start <= left {
                whole
            } else {
                line_end(&mut file, start + left.max(1), whole).map_err(|e| self.failed(e))?
            };
            left = left.saturating_sub(end - start);
            parts.push((id.clone(), file, start, end));
        }
        self.split(parts, budget.parallelism)
    }

    /// Cuts large parts at line ends, so that there are about `parallelism` of like size.
    fn split(&self, parts: Vec<(PartitionId, File, u64, u64)>, parallelism: usize) -> Result<Vec<OffsetRange>> {
        let total: u64 = parts.iter().map(|(_, _, start, end)| end - start).sum();
        let mut ranges = Vec::with_capacity(parts.len().max(parallelism));
        for (partition, mut file, start, end) in parts {
            let size = end - start;
            let share = u128::from(size) * parallelism as u128 + u128::from(total / 2);
            let pieces = u64::try_from(share / u128::from(total.max(1))).unwrap_or(1).min(size / MIN_RANGE).max(1);
            let mut from = start;
            for piece in 1..=pieces {
                let aim = start + u64::try_from(u128::from(size) * u128::from(piece) / u128::from(pieces)).unwrap_or(0);
                let to = if piece == pieces {
                    end
                } else if aim <= from {
                    continue;
                } else if self.containers.is_some() {
                    aim
                } else {
                    line_end(&mut file, aim, end).map_err(|e| self.failed(e))?
                };
                if to > from {
                    let (start, end) = (Offset(from << self.shift()), Offset(to << self.shift()));
                    ranges.push(OffsetRange { partition: partition.clone(), start, end });
                }
                from = to;
            }
        }
        Ok(ranges)
    }
}

#[async_trait]
impl Source for FilesSource {
    fn describe(&self) -> String {
        format!("files {}", self.path)
    }

    fn shape(&self) -> Shape {
        Shape::Raw
    }

    fn format(
        &self,
        columns: Option<SchemaRef>,
        make: &dyn Fn(Option<SchemaRef>) -> Result<Arc<dyn Format>>,
    ) -> Result<Arc<dyn Format>> {
        let Some(containers) = &self.containers else { return make(columns) };
        containers.format(columns, || {
            let first = Listing::new(&self.path)?.files()?.next().ok_or_else(|| {
                let path = &self.path;
                Error::user(format!("files: `{path}` has no file yet to take the columns from; declare the columns"))
            })?;
            let failed = |e| Error::user(format!("files: can't take the columns from {}", first.display())).because(e);
            blocks::header(&first, &mut File::open(&first).map_err(failed)?)
        })
    }

    async fn plan(&self, position: &Position, budget: Budget) -> Result<Vec<OffsetRange>> {
        self.plan_now(position, budget)
    }

    fn read(&self, range: &OffsetRange) -> ChunkStream {
        let path = self.seen().listing.root.join(&*range.partition.0);
        if let Some(containers) = &self.containers {
            return stream::iter(BlockReader::new(path, range, Arc::clone(containers))).boxed();
        }
        stream::iter(RangeReader::new(path, range.start.0, range.end.0, self.max_line, self.header)).boxed()
    }

    fn partitions_are_parallel(&self) -> bool {
        false
    }

    async fn is_exhausted(&self, position: &Position) -> Result<bool> {
        let mut seen = self.seen();
        self.look(&mut seen, position)?;
        let Seen { listing, files, .. } = &mut *seen;
        for (id, known) in files.iter_mut() {
            let start = self.read_to(position, id, known);
            if start < known.len {
                if self.complete != Complete::Never {
                    return Ok(false);
                }
                let mut file = File::open(listing.root.join(&*id.0)).map_err(|e| self.failed(e))?;
                if self.whole(&mut file, known, start)? > start {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    async fn lag(&self, position: &Position) -> Result<u64> {
        let mut seen = self.seen();
        self.look(&mut seen, position)?;
        let behind = |(id, known): (&PartitionId, &Known)| known.len - self.read_to(position, id, known);
        Ok(seen.files.iter().map(behind).sum())
    }
}

#[cfg(unix)]
fn inode(meta: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(meta)
}

#[cfg(not(unix))]
fn inode(_: &fs::Metadata) -> u64 {
    0
}

/// The first line end at or after `aim`, or `end`; `aim` itself when it is just behind one.
fn line_end(file: &mut File, aim: u64, end: u64) -> io::Result<u64> {
    let mut at = aim.saturating_sub(1);
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(at))?;
    while at < end {
        bytes.clear();
        let read = file.by_ref().take(STEP.min(end - at)).read_to_end(&mut bytes)?;
        if let Some(newline) = memchr(b'\n', &bytes) {
            return Ok(at + newline as u64 + 1);
        }
        if read == 0 {
            break;
        }
        at += read as u64;
    }
    Ok(end)
}

/// The last line end in `[from, end)`, or `from`.
fn last_line_end(file: &mut File, from: u64, end: u64) -> io::Result<u64> {
    let mut to = end;
    let mut bytes = Vec::new();
    while to > from {
        let start = to.saturating_sub(STEP).max(from);
        bytes.clear();
        file.seek(SeekFrom::Start(start))?;
        file.by_ref().take(to - start).read_to_end(&mut bytes)?;
        if let Some(newline) = memrchr(b'\n', &bytes) {
            return Ok(start + newline as u64 + 1);
        }
        to = start;
    }
    Ok(from)
}

/// Bytes of a line, by a look at the first ones.
fn line_bytes(file: &mut File, from: u64, end: u64) -> io::Result<u64> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    file.by_ref().take((end - from).min(STEP * 4)).read_to_end(&mut bytes)?;
    let lines = memchr_iter(b'\n', &bytes).count().max(1);
    Ok((bytes.len() / lines).max(1) as u64)
}
