//! Every byte of a data directory or a backup read and checked.
//!
//! | File | Checked |
//! |---|---|
//! | segments, ledger, state and staged files | the checksum of every frame, that frames follow each other, heads and feet |
//! | indexes | their checksum, that they belong to their segment and do not say more than it holds |
//! | `topic.json`, `pins.json`, `FORMAT` | their checksum; those of older formats, which have none: that they can be read |
//! | together | positions of the ledger lie within the log, also of topics that programs fill; states lead up to the last batch |
//! | a backup | besides, the checksum and length of every file that `BACKUP.json` names |
//!
//! Invariant: nothing is changed. What can't be read at the end of a file that
//! is being written may never have been durable: it is a *torn end*, which the
//! next start cuts off, and no damage.

use super::{
    capture::{self, Capture},
    manifest::{Backup, MANIFEST},
    pieces,
};
use crate::{
    DataDir, Gate,
    disk::{self, Disk, FrozenDisk, Mode, RealDisk},
    fault::Named,
    frame::{Frame, Kind, Scanner},
    ledger::{Ledger, Past},
    log::{Log, Sync, Topic},
    small,
};
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{BatchId, Error, ManualClock, Position, Result};

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file or directory.
    pub path: PathBuf,
    /// Where in it, in bytes.
    pub at: Option<u64>,
    /// What is wrong, and what follows from it.
    pub what: String,
    /// Whether something that was kept is lost; otherwise the next start mends it.
    pub damage: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(at) = self.at {
            write!(f, " at byte {at}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// What reading everything found.
#[derive(Debug, Default)]
pub struct Verified {
    /// Files read.
    pub files: usize,
    /// Bytes read.
    pub bytes: u64,
    /// The last committed batch of each program.
    pub batches: BTreeMap<String, BatchId>,
    /// All that is wrong, by path.
    pub findings: Vec<Finding>,
}

impl Verified {
    /// Findings by which something is lost.
    pub fn damage(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.damage)
    }

    fn found(&mut self, path: &Path, at: Option<u64>, damage: bool, what: impl Into<String>) {
        self.findings.push(Finding { path: path.to_owned(), at, what: what.into(), damage });
    }
}

/// Reads all of a data directory, or of a backup. A program may run on it.
///
/// # Errors
/// When it is neither, or can't be read at all. Damage is no error, but a finding.
pub fn verify(dir: &Path) -> Result<Verified> {
    if Backup::is_in(dir) {
        return verify_backup(dir);
    }
    let check = DataDir::check(dir);
    if let Err(error) = &check
        && !dir.join("log").is_dir()
    {
        return Err(
            Error::user(format!("{} is neither a data directory nor a backup", dir.display())).because(error.chain())
        );
    }
    let capture = Capture::of(dir)?;
    let files = capture.files().iter().map(|file| File { name: &file.name, path: &file.path, len: file.len });
    let mut verified = check_files(dir, &files.collect::<Vec<_>>());
    if let Err(error) = check {
        verified.found(&dir.join("FORMAT"), None, true, error.chain());
    }
    drop(capture);
    let gate = Gate::of(dir)?;
    let closed = gate.pass()?;
    check_together(dir, &mut verified);
    drop(closed);
    Ok(verified.sorted())
}

/// As [`verify`], of a directory that nobody else touches.
pub(super) fn directory(dir: &Path) -> Result<Verified> {
    let mut names = Vec::new();
    capture::list(dir, "", &mut names, &mut Vec::new())?;
    let paths: Vec<PathBuf> = names.iter().map(|name| dir.join(name)).collect();
    let mut files = Vec::new();
    for (name, path) in names.iter().zip(&paths) {
        let len = RealDisk.open(path, Mode::Read).and_then(|file| file.len()).named("read", path)?;
        files.push(File { name, path, len });
    }
    let mut verified = check_files(dir, &files);
    check_together(dir, &mut verified);
    Ok(verified.sorted())
}

fn verify_backup(dir: &Path) -> Result<Verified> {
    let backup = match Backup::read(dir) {
        Ok(backup) => backup,
        Err(error) if error.blame() == tidemill_core::Blame::User => return Err(error),
        Err(error) => {
            let mut verified = directory(dir)?;
            verified.found(&dir.join(MANIFEST), None, true, error.chain());
            return Ok(verified);
        }
    };
    let mut verified = directory(dir)?;
    for entry in &backup.files {
        let path = dir.join(&entry.name);
        let mut crc = 0;
        let read = RealDisk.open(&path, Mode::Read).and_then(|file| {
            let len = file.len()?;
            pieces(&*file, len, |piece| {
                crc = crc32c::crc32c_append(crc, piece);
                Ok(())
            })?;
            Ok(len)
        });
        match read {
            Ok(len) if (len, crc) == (entry.len, entry.crc) => {}
            Ok(_) => verified.found(&path, None, true, "its bytes are not those that were backed up"),
            Err(e) => verified.found(&path, None, true, format!("can't be read: {e}")),
        }
    }
    Ok(verified.sorted())
}

impl Verified {
    fn sorted(mut self) -> Self {
        self.findings.sort_by(|a, b| (&a.path, a.at).cmp(&(&b.path, b.at)));
        self.findings.dedup();
        self
    }
}

/// A file: its name below the directory, and where its bytes are.
struct File<'a> {
    name: &'a str,
    path: &'a Path,
    len: u64,
}

fn check_files(dir: &Path, files: &[File<'_>]) -> Verified {
    let mut verified = Verified::default();
    let by_name: BTreeMap<&str, &File<'_>> = files.iter().map(|file| (file.name, file)).collect();
    for file in files {
        verified.files += 1;
        verified.bytes += file.len;
        let shown = dir.join(file.name);
        let checked = match Path::new(file.name).extension().and_then(|extension| extension.to_str()) {
            Some("seg") => {
                segment(file, by_name.get(&*file.name.replace(".seg", ".idx")).copied(), &shown, &mut verified)
            }
            Some("idx") => {
                index(file, by_name.get(&*file.name.replace(".idx", ".seg")).copied(), &shown, &mut verified)
            }
            Some("ledger") => frames(file, Kind::Ledger, true, &shown, &mut verified).map(drop),
            Some("delta" | "snap" | "rows") => state(file, &shown, &mut verified),
            Some("json") => json(file, &shown, &mut verified),
            _ => Ok(()),
        };
        if let Err(error) = checked {
            verified.found(&shown, None, true, error.chain());
        }
    }
    verified
}

/// Where the readable frames of a file end, and the last of them.
struct Walked {
    at: u64,
    last: Option<Frame>,
    first: Option<Frame>,
}

/// Reads a head and the frames of `kind` after it. What can't be read is
/// damage, unless `grows` and nothing whole follows.
fn frames(file: &File<'_>, kind: Kind, grows: bool, shown: &Path, verified: &mut Verified) -> Result<Walked> {
    let opened = RealDisk.open(file.path, Mode::Read).named("open", shown)?;
    let mut scan = Scanner::new(&*opened, 0).named("read", shown)?;
    scan.len = scan.len.min(file.len);
    let first = scan.next().named("read", shown)?.filter(|frame| frame.head().kind == Kind::Head);
    let Some(first) = first else {
        verified.found(shown, Some(0), true, "its head can't be read");
        return Ok(Walked { at: 0, last: None, first: None });
    };
    let salt = first.head().salt;
    let mut walked = Walked { at: scan.at, last: None, first: Some(first) };
    loop {
        let at = scan.at;
        let ours =
            |frame: &Frame| frame.head().salt == salt && matches!(frame.head().kind, k if k == kind || k == Kind::Foot);
        if let Some(frame) = scan.next().named("read", shown)?.filter(ours) {
            walked.at = scan.at;
            walked.last = Some(frame);
            continue;
        }
        if at == scan.len {
            return Ok(walked);
        }
        scan.at = at;
        let next = scan.resync(|head| head.salt == salt).named("read", shown)?;
        match next {
            Some(next) => {
                let offsets = match &walked.last {
                    Some(last) => format!(", offsets [{}, {})", last.header.end(), next.head.first),
                    None => String::new(),
                };
                let what = format!(
                    "{} bytes can't be read{}",
                    scan.at - at,
                    if kind == Kind::Rows { offsets } else { String::new() }
                );
                verified.found(shown, Some(at), true, what);
            }
            None if grows => {
                let what = format!("a torn end of {} bytes, which the next start cuts off", scan.len - at);
                verified.found(shown, Some(at), false, what);
                return Ok(walked);
            }
            None => {
                verified.found(shown, Some(at), true, format!("the last {} bytes can't be read", scan.len - at));
                return Ok(walked);
            }
        }
    }
}

fn segment(file: &File<'_>, index: Option<&File<'_>>, shown: &Path, verified: &mut Verified) -> Result<()> {
    let before = verified.findings.len();
    let walked = frames(file, Kind::Rows, true, shown, verified)?;
    // What the index calls durable is no torn end.
    let marked = index.and_then(|index| marked(index, &walked));
    if let Some(len) = marked.filter(|len| *len > walked.at) {
        verified.findings.truncate(before + verified.findings[before..].iter().filter(|f| f.damage).count());
        verified.found(
            shown,
            Some(walked.at),
            true,
            format!("{} bytes that were durable can't be read", len - walked.at),
        );
    }
    let named = Path::new(file.name).file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
    if walked.first.as_ref().is_some_and(|head| Some(head.head().first) != named) {
        verified.found(shown, Some(0), true, "it begins with another offset than its name says");
    }
    Ok(())
}

/// Bytes of a segment that its index calls durable.
fn marked(index: &File<'_>, segment: &Walked) -> Option<u64> {
    let bytes = disk::read_file(&RealDisk, index.path).ok()?;
    let frame = Frame::parse(&bytes.into())?;
    let salt = segment.first.as_ref()?.head().salt;
    let head: serde_json::Value = serde_json::from_slice(frame.meta()).ok()?;
    (frame.head().salt == salt).then(|| head["len"].as_u64())?
}

fn index(file: &File<'_>, segment: Option<&File<'_>>, shown: &Path, verified: &mut Verified) -> Result<()> {
    let bytes = disk::read_file(&RealDisk, file.path).named("read", shown)?;
    let len = bytes.len() as u64;
    let frame =
        Frame::parse(&bytes.into()).filter(|frame| frame.head().kind == Kind::Index && frame.header.total() == len);
    let mended = "; the next start makes it anew, and reads the segment instead";
    if frame.is_none() {
        verified.found(shown, Some(0), false, format!("its checksum is wrong{mended}"));
    } else if segment.is_none() {
        verified.found(shown, None, false, "its segment is not there; the next start removes it");
    }
    Ok(())
}

fn state(file: &File<'_>, shown: &Path, verified: &mut Verified) -> Result<()> {
    let walked = frames(file, Kind::Rows, false, shown, verified)?;
    let whole = walked.last.is_some_and(|last| last.head().kind == Kind::Foot);
    if walked.at == file.len && !whole {
        verified.found(shown, Some(walked.at), true, "its end is missing");
    }
    Ok(())
}

fn json(file: &File<'_>, shown: &Path, verified: &mut Verified) -> Result<()> {
    let bytes = disk::read_file(&RealDisk, file.path).named("read", shown)?;
    if let Err(error) = small::opened::<serde_json::Value>(&bytes, shown) {
        verified.found(shown, None, true, error.chain());
    }
    Ok(())
}

/// What the files say of each other, seen by the code that would open them.
fn check_together(dir: &Path, verified: &mut Verified) {
    if let Err(error) = together(dir, verified) {
        verified.found(dir, None, true, error.chain());
    }
}

fn together(dir: &Path, verified: &mut Verified) -> Result<()> {
    let log = Log::look(&dir.join("log"), Arc::new(ManualClock::default()))?;
    for topic in log.topics() {
        for partition in 0..topic.config().partitions {
            for (from, to) in topic.damage(partition) {
                let path = dir.join("log").join(topic.name()).join(partition.to_string());
                verified.found(&path, None, true, format!("offsets [{from}, {to}) are lost"));
            }
        }
    }
    let programs = dir.join("programs");
    if !RealDisk.is_dir(&programs) {
        return Ok(());
    }
    for program in RealDisk.list(&programs).named("list", &programs)? {
        let ledger = programs.join(&program).join("ledger");
        if !RealDisk.is_dir(&ledger) {
            continue;
        }
        let frozen = FrozenDisk::new(&ledger).named("read", &ledger)?;
        let opened = match Ledger::open(Arc::new(frozen), &ledger) {
            Ok(opened) => opened,
            Err(error) => {
                verified.found(&ledger, None, true, error.chain());
                continue;
            }
        };
        if let Some(last) = opened.last() {
            verified.batches.insert(program.clone(), last.batch);
        }
        for (stream, position) in opened.positions() {
            for topic in read_by(&log, &program, stream) {
                within(&topic, &program, position, dir, verified);
            }
        }
        outputs(&log, &program, &opened.past(), dir, verified)?;
        let states = programs.join(&program).join("state");
        if RealDisk.is_dir(&states) {
            for operator in RealDisk.list(&states).named("list", &states)? {
                chain(&states.join(&operator), opened.last().map_or(0, |last| last.batch.0), verified)?;
            }
        }
    }
    Ok(())
}

/// The topics that a stream of a program reads: those in which it holds its place. One that no topic knows
/// of had its place in the topic of its name; one that was taken out of the program reads none.
fn read_by(log: &Log, program: &str, stream: &str) -> Vec<Arc<Topic>> {
    let owner = format!("{program}/{stream}");
    let mut topics = log.topics();
    if topics.iter().any(|topic| topic.knows(&owner)) {
        topics.retain(|topic| topic.pins().contains_key(&owner));
    } else {
        topics.retain(|topic| topic.name() == stream);
    }
    topics
}

/// Whether the log of a topic has what a program is to read next, and all that it has read before is not behind the end.
fn within(topic: &Topic, program: &str, position: &Position, dir: &Path, verified: &mut Verified) {
    for (partition, at) in position {
        let Ok(number) = partition.0.parse::<u32>() else { continue };
        let (start, end) = (topic.start(number), topic.end(number));
        if (*at < start || *at > end) && number < topic.config().partitions {
            let path = dir.join("log").join(topic.name()).join(partition.0.as_ref());
            let what = format!("program `{program}` has read up to offset {at}, and the log holds [{start}, {end})");
            // Something behind what was read is lost, or what is to be read next was removed.
            verified.found(&path, None, true, what);
        }
    }
}

/// Whether the topics that a program fills have the rows of its committed batches. Those of the last
/// batch may still come while they are staged.
fn outputs(log: &Log, program: &str, past: &Past, dir: &Path, verified: &mut Verified) -> Result<()> {
    let staged = dir.join("programs").join(program).join("staged");
    let mut is_staged = false;
    if RealDisk.is_dir(&staged) {
        for output in RealDisk.list(&staged).named("list", &staged)? {
            let path = staged.join(output);
            is_staged |= RealDisk.is_dir(&path) && !RealDisk.list(&path).named("list", &path)?.is_empty();
        }
    }
    let last = past.last().filter(|_| is_staged).map(|last| last.written.clone()).unwrap_or_default();
    for (name, filled) in past.filled() {
        // One that was deleted is made anew, and one that is never synced may lose what the machine forgot.
        let Some(topic) = log.topic(name).filter(|topic| topic.config().sync != Sync::Never) else { continue };
        for (id, filled) in &filled.partitions {
            let Ok(number) = id.0.parse::<u32>() else { continue };
            let pending = last.get(name).into_iter().flatten().find(|range| range.partition == *id);
            let (end, needed) = (topic.end(number), pending.map_or(filled.end, |range| range.start));
            if end < needed {
                let path = dir.join("log").join(name).join(id.0.as_ref());
                let what = format!("program `{program}` has filled it up to offset {needed}, and it ends at {end}");
                verified.found(&path, None, true, what);
            }
        }
    }
    Ok(())
}

/// Whether the files of a state lead up to its newest version at or below `upto`.
fn chain(dir: &Path, upto: u64, verified: &mut Verified) -> Result<()> {
    if !RealDisk.is_dir(dir) {
        return Ok(());
    }
    let (mut base, mut deltas) = (None, BTreeMap::new());
    for name in RealDisk.list(dir).named("list", dir)? {
        let Some((stem, extension)) = name.rsplit_once('.') else { continue };
        let Ok(version) = stem.parse::<u64>() else { continue };
        if version > upto {
            // That of the batch that is about to be committed may be there.
            if version > upto + 1 {
                let what = format!("it is of batch {version}, and the ledger ends at batch {upto}: its end is lost");
                verified.found(&dir.join(&name), None, true, what);
            }
            continue;
        }
        match extension {
            "snap" => base = base.max(Some(version)),
            "delta" => drop(deltas.insert(version, dir.join(&name))),
            _ => {}
        }
    }
    let head = |path: &Path| -> Option<serde_json::Value> {
        let (frame, _) = crate::frame::first_frame(&RealDisk, path).ok()??;
        serde_json::from_slice(frame.meta()).ok()
    };
    // Deltas since some version may hold everything, as the newest says.
    let since = deltas.last_key_value().and_then(|(_, path)| head(path)?["since"].as_u64());
    let begin = since.filter(|since| base.is_none_or(|base| *since > base));
    if let (Some(begin), Some((_, newest))) =
        (begin.filter(|begin| !deltas.contains_key(begin)), deltas.last_key_value())
    {
        verified.found(newest, None, true, format!("it builds on version {begin}, which is not there"));
    }
    let mut at = base;
    for (version, path) in deltas {
        if base.is_some_and(|base| version <= base) || begin.is_some_and(|begin| version < begin) {
            continue;
        }
        let Some(head) = head(&path) else { continue };
        let previous = head["previous"].as_u64();
        if previous != at && begin != Some(version) {
            let missing = previous.map_or_else(|| "its beginning".to_owned(), |v| format!("version {v}"));
            verified.found(&path, None, true, format!("it builds on {missing}, which is not there"));
        }
        at = Some(version);
    }
    Ok(())
}
