//! A program as it was after a batch, in a data directory of its own.
//!
//! The first directory may belong to a program that runs: only its ledger is
//! read, and files that are never changed once they have their name are linked;
//! the newest segment of a partition, which grows, is copied, and its torn end
//! cut off by whoever opens the copy.
//!
//! ```text
//! gate closed: ledger read ─► staged rows linked ─► log linked ─► gate open: states of the batch linked
//!              ─► complete? ─► ledger written   ← done
//! ```
//!
//! Invariant: nothing of the first directory changes. While the [`crate::Gate`]
//! is closed no batch commits, so the log has what the ledger names, and of
//! dead letters and of topics that the program fills nothing beyond. Without its
//! ledger, which comes last, the copy is no program. Only its own pins are
//! copied: the programs of the others are not there.

use crate::{
    Gate,
    disk::{self, Disk, Mode},
    fault::Named,
    ledger::Past,
    log,
    rewind::{Goal, Rewound, check, make_parent, program_dir},
    state::StateFiles,
};
use std::{
    collections::BTreeSet,
    io::{self, IoSlice},
    path::Path,
    sync::Arc,
};
use tidemill_core::{Error, Result};

#[cfg(test)]
mod tests;

/// Bytes that are copied at once.
const PIECE: usize = 1 << 20;
/// How often files that were removed meanwhile are looked for again.
const TRIES: usize = 3;

/// Copies program `name` of `from`, as it was after the batch that `goal` names
/// (the last one by default), into the empty directory `into`, which the caller owns.
///
/// # Errors
/// As [`crate::rewind::rewind`]; when `into` has a log or programs already; when a disk refuses.
pub fn fork(disk: &Arc<dyn Disk>, from: &Path, name: &str, goal: Option<Goal>, into: &Path) -> Result<Rewound> {
    for taken in ["log", "programs"] {
        if disk.exists(&into.join(taken)) {
            return Err(Error::user(format!(
                "{} has data already: name a directory that is not there",
                into.display()
            )));
        }
    }
    let root = program_dir(&**disk, from, name)?;
    let mut tried = 0;
    loop {
        tried += 1;
        match once(disk, from, &root, name, goal, into) {
            // The program prunes and removes beside us: look at what it has now.
            Err(error) if tried < TRIES && is_gone(&error) => {
                tracing::debug!(error = error.chain(), "a file was removed while it was to be copied");
            }
            done => return done,
        }
    }
}

fn is_gone(error: &Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = next {
        if cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::NotFound) {
            return true;
        }
        next = cause.source();
    }
    false
}

fn once(
    disk: &Arc<dyn Disk>,
    from: &Path,
    root: &Path,
    name: &str,
    goal: Option<Goal>,
    into: &Path,
) -> Result<Rewound> {
    let gate = disk.is_shared().then(|| Gate::of(from)).transpose()?;
    let closed = gate.as_ref().map(Gate::pass).transpose()?;
    let past = Past::read(&**disk, &root.join("ledger"))?
        .ok_or_else(|| Error::user(format!("program `{name}` has no ledger in {}", from.display())))?;
    let own = into.join("programs").join(name);
    copy_staged(&**disk, &root.join("staged"), &own.join("staged"))?;
    copy_log(&**disk, &from.join("log"), &into.join("log"), name)?;
    drop(closed);
    let to = goal.map_or_else(|| Ok(past.version()), |goal| goal.find(&past))?;
    let programs = past.before().iter().map(|former| &former.program).cloned().chain([past.program()]);
    let dirs: BTreeSet<(String, String)> =
        programs.flat_map(|program| program.operators).map(|o| (o.dir().to_owned(), o.name)).collect();
    for (dir, operator) in dirs {
        let Some(files) = StateFiles::look(Arc::clone(disk), &root.join("state").join(&dir), &operator)? else {
            continue;
        };
        for path in files.paths_upto(to) {
            take(&**disk, &path, &own.join("state").join(&dir).join(file_name(&path)))?;
        }
    }
    let gaps = check(disk, into, name, &past, to)?;
    let time = past.recent().find(|batch| batch.id == to).map(|batch| batch.time);
    let upto = past.last().map_or(to, |last| last.batch);
    past.fork(to)?.write(Arc::clone(disk), &own.join("ledger"))?;
    Ok(Rewound { to, time, upto: upto.max(to), gaps, outputs: Vec::new() })
}

/// What outputs into topics have staged: a commit that a crash cut short is repeated in the copy.
fn copy_staged(disk: &dyn Disk, from: &Path, into: &Path) -> Result<()> {
    if !disk.exists(from) {
        return Ok(());
    }
    for output in disk.list(from).named("list", from)? {
        let (dir, copy) = (from.join(&output), into.join(&output));
        for name in disk.list(&dir).named("list", &dir)?.iter().filter(|name| name.ends_with(".rows")) {
            take(disk, &dir.join(name), &copy.join(name))?;
        }
    }
    Ok(())
}

fn copy_log(disk: &dyn Disk, from: &Path, into: &Path, name: &str) -> Result<()> {
    if !disk.exists(from) {
        return Ok(());
    }
    for topic in disk.list(from).named("list", from)? {
        let (dir, copy) = (from.join(&topic), into.join(&topic));
        if topic.starts_with('.') || !disk.exists(&dir.join("topic.json")) {
            continue;
        }
        take_copy(disk, &dir.join("topic.json"), &copy.join("topic.json"))?;
        log::copy_pins(disk, &dir, &copy, name)?;
        for partition in log::partitions_in(disk, &dir)? {
            let (dir, copy) = (dir.join(&partition), copy.join(&partition));
            let names = disk.list(&dir).named("list", &dir)?;
            // A partition without a row has its directory all the same.
            disk::create_dir(disk, &copy).named("create", &copy)?;
            // The index first: a segment that has grown since is longer than it says, never shorter.
            for name in names.iter().filter(|name| name.ends_with(".idx")) {
                take_copy(disk, &dir.join(name), &copy.join(name))?;
            }
            let segments: Vec<&String> = names.iter().filter(|name| name.ends_with(".seg")).collect();
            for (at, name) in segments.iter().enumerate() {
                let (path, copied) = (dir.join(name), copy.join(name));
                // Only the newest grows, and only the newest may have an end to be cut off.
                if at + 1 < segments.len() { take(disk, &path, &copied)? } else { take_copy(disk, &path, &copied)? }
            }
        }
    }
    Ok(())
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Links a file that never changes, or copies it where that can't be.
fn take(disk: &dyn Disk, from: &Path, to: &Path) -> Result<()> {
    make_parent(disk, to)?;
    if disk.exists(to) {
        return Ok(());
    }
    match disk.link(from, to) {
        Ok(()) => {
            let parent = disk::parent(to);
            disk.sync_dir(parent).named("sync", parent)
        }
        Err(_) => take_copy(disk, from, to),
    }
}

/// Copies a file as long as it is now.
fn take_copy(disk: &dyn Disk, from: &Path, to: &Path) -> Result<()> {
    make_parent(disk, to)?;
    let source = disk.open(from, Mode::Read).named("open", from)?;
    let copied = (|| {
        let copy = disk.open(to, Mode::Create)?;
        let (mut at, end) = (0, source.len()?);
        while at < end {
            let len = usize::try_from(end - at).map_or(PIECE, |left| left.min(PIECE));
            let mut bytes = vec![0; len];
            source.read_at(at, &mut bytes)?;
            copy.append(&[IoSlice::new(&bytes)])?;
            at += len as u64;
        }
        copy.sync()?;
        disk.sync_dir(disk::parent(to))
    })();
    copied.named("copy to", to)
}
