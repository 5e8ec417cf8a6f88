//! The log: topics of partitions of rows, read by offset.
//!
//! ```text
//! <root>/<topic>/topic.json  pins.json
//!               /<partition>/<first offset, 20 digits>.seg   frames of rows
//!                                                     .idx   index and mark, rebuildable
//! ```
//!
//! It is write-ahead log, history and table at once. The files, byte by byte,
//! are in `docs/formats/log.md`.
//!
//! Invariant: a row that was acked is read back once, under the same offset,
//! whatever crashed since; damage is an error that names its offsets. All calls
//! block: use threads or `spawn_blocking` where that matters.
//!
//! When not to use it: for state that is overwritten (see [`crate::state`]).

mod cache;
mod config;
mod cut;
mod partition;
mod pins;
mod reader;
mod recover;
mod rows;
mod segment;
#[cfg(test)]
mod tests;
mod tidy;
mod topic;

pub use config::{Retention, Sync, TopicConfig, check_name, check_program_name};
pub use partition::{Appended, OnDurable};
pub use reader::LogReader;
pub use rows::LogRows;
pub use tidy::Retired;
pub use topic::Topic;

use crate::{
    disk::{self, Disk, FrozenDisk},
    fault::Named,
};
use parking_lot::{Condvar, Mutex, RwLock};
use partition::Partition;
use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::Instant,
};
use tidemill_core::{Clock, Error, Offset, Position, Result, Timestamp};

/// All topics under one directory.
///
/// Dropping it takes no more rows, makes durable what there is, and marks the
/// files as closed; a process that dies instead loses nothing that was acked.
#[derive(Debug)]
pub struct Log {
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    root: PathBuf,
    topics: RwLock<BTreeMap<String, Arc<Topic>>>,
    work: Arc<Work>,
    threads: Vec<JoinHandle<()>>,
}

impl Log {
    /// Opens the log under `root`, which is created if need be. The caller
    /// owns the directory: see [`crate::DataDir`].
    ///
    /// # Errors
    /// When a topic's files can't be read. Damaged rows are no error here, but
    /// to those who read them.
    pub fn open(disk: Arc<dyn Disk>, root: &Path, clock: Arc<dyn Clock>) -> Result<Self> {
        let mut log = Self::quiet(disk, root, clock)?;
        let spawn = |name: &str, run: fn(&Work)| {
            let work = Arc::clone(&log.work);
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || run(&work))
                .map_err(|e| Error::external("can't start a thread for the log").because(e))
        };
        let threads = vec![spawn("tidemill-sync", Work::run_syncs)?, spawn("tidemill-tidy", Work::run_tidying)?];
        log.threads = threads;
        Ok(log)
    }

    /// Opens the log without its threads; what they would do waits.
    fn quiet(disk: Arc<dyn Disk>, root: &Path, clock: Arc<dyn Clock>) -> Result<Self> {
        disk::create_dir(&*disk, root).named("create", root)?;
        let work = Arc::new(Work::default());
        let mut topics = BTreeMap::new();
        for name in disk.list(root).named("list", root)? {
            let dir = root.join(&name);
            if name.starts_with(DELETED) {
                recover::remove_all(&*disk, &dir)?;
            } else if disk.exists(&dir.join("topic.json")) {
                let topic = Topic::open(&disk, &clock, &work, &name, &dir)?;
                topics.insert(name, Arc::new(topic));
            }
        }
        Ok(Self { disk, clock, root: root.to_owned(), topics: RwLock::new(topics), work, threads: Vec::new() })
    }

    /// The log under `root` as it is now, beside whoever owns it: it stays so,
    /// and nothing that is done to it reaches the disk.
    ///
    /// # Errors
    /// When a topic's files can't be read.
    pub fn look(root: &Path, clock: Arc<dyn Clock>) -> Result<Self> {
        let disk = FrozenDisk::new(root).named("read", root)?;
        Self::quiet(Arc::new(disk), root, clock)
    }

    /// Makes a topic; durable when this returns.
    ///
    /// # Errors
    /// When the name or the configuration is not fine, the topic exists, or
    /// rows of a lost topic lie in its place.
    pub fn create_topic(&self, name: &str, config: &TopicConfig) -> Result<Arc<Topic>> {
        config::check_name(name)?;
        config.check()?;
        let mut topics = self.topics.write();
        if topics.contains_key(name) {
            return Err(Error::user(format!("topic \"{name}\" exists already")));
        }
        let dir = self.root.join(name);
        let orphaned = self
            .disk
            .list(&dir)
            .is_ok_and(|parts| parts.iter().any(|part| recover::holds_rows(&*self.disk, &dir.join(part))));
        if orphaned {
            return Err(Error::user(format!(
                "{} holds rows but no topic.json: restore that file, or move the directory away",
                dir.display()
            )));
        }
        Topic::create(&*self.disk, &dir, config)?;
        let topic = Arc::new(Topic::open(&self.disk, &self.clock, &self.work, name, &dir)?);
        topics.insert(name.to_owned(), Arc::clone(&topic));
        Ok(topic)
    }

    /// The topic of that name.
    pub fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.topics.read().get(name).map(Arc::clone)
    }

    /// All topics, by name.
    pub fn topics(&self) -> Vec<Arc<Topic>> {
        self.topics.read().values().map(Arc::clone).collect()
    }

    /// Deletes a topic and its rows, whoever still needs them: ask [`Topic::pins`] before. Handles to it take
    /// no more rows.
    ///
    /// # Errors
    /// When there is none of that name, or the disk refuses.
    pub fn delete_topic(&self, name: &str) -> Result<()> {
        let mut topics = self.topics.write();
        let topic = topics.get(name).ok_or_else(|| Error::user(format!("there is no topic \"{name}\"")))?;
        topic.abandon();
        let dir = self.root.join(name);
        let grave = self.root.join(format!("{DELETED}{name}"));
        if self.disk.exists(&grave) {
            recover::remove_all(&*self.disk, &grave)?;
        }
        // The rename is the deletion; what follows is clearing up, repeated at the next start.
        self.disk.rename(&dir, &grave).named("rename", &dir)?;
        self.disk.sync_dir(&self.root).named("sync", &self.root)?;
        topics.remove(name);
        recover::remove_all(&*self.disk, &grave)
    }
}

/// What the topic `name` of the log under `root` was made with, read beside
/// whoever owns the log; `None` when there is no such topic.
///
/// # Errors
/// When its file can't be read.
pub fn stored_config(disk: &dyn Disk, root: &Path, name: &str) -> Result<Option<TopicConfig>> {
    config::check_name(name)?;
    let path = root.join(name).join("topic.json");
    if disk.exists(&path) { config::read(disk, &path).map(Some) } else { Ok(None) }
}

/// The topics that a program has read, each with the name of the stream that
/// reads it, beside whoever owns the log.
///
/// # Errors
/// When the disk refuses.
pub fn topics_of(disk: &dyn Disk, root: &Path, program: &str) -> Result<Vec<(String, String)>> {
    let own = format!("{program}/");
    let mut found = Vec::new();
    let names = if disk.exists(root) { disk.list(root).named("list", root)? } else { Vec::new() };
    for topic in names.into_iter().filter(|name| !name.starts_with('.')) {
        let pins = pins::Pins::open(disk, &root.join(&topic))?;
        let streams = pins.all().into_keys().filter_map(|owner| owner.strip_prefix(&own).map(str::to_owned));
        found.extend(streams.map(|stream| (topic.clone(), stream)));
    }
    Ok(found)
}

/// Who needs what of a topic, beside whoever owns the log: owner → partition → offset.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn pins_of(disk: &dyn Disk, root: &Path, topic: &str) -> Result<BTreeMap<String, BTreeMap<u32, Offset>>> {
    pins::Pins::open(disk, &root.join(topic)).map(|pins| pins.all())
}

/// Whether any topic knows `owner`, beside whoever owns the log.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn is_known(disk: &dyn Disk, root: &Path, owner: &str) -> Result<bool> {
    let names = if disk.exists(root) { disk.list(root).named("list", root)? } else { Vec::new() };
    for topic in names.into_iter().filter(|name| !name.starts_with('.')) {
        if pins::Pins::open(disk, &root.join(topic))?.knows(owner) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Lets the pin of `owner` on a topic reach back to `positions`, where it is ahead of
/// them: partitions that they don't name to the oldest offset that is kept. The caller owns the log.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn pin_back(disk: &dyn Disk, root: &Path, topic: &str, owner: &str, positions: &Position) -> Result<()> {
    let mut pins = pins::Pins::open(disk, &root.join(topic))?;
    let Some(mut pinned) = pins.all().remove(owner) else { return Ok(()) };
    let oldest = oldest_offsets(disk, root, topic)?;
    for (partition, at) in &mut pinned {
        let back = positions.get(&(*partition).into()).or_else(|| oldest.get(partition)).copied();
        *at = (*at).min(back.unwrap_or_default());
    }
    pins.set(disk, owner, &pinned)
}

/// Writes the pins of `program`, among those in the topic `from`, as those of the topic's copy `to`.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn copy_pins(disk: &dyn Disk, from: &Path, to: &Path, program: &str) -> Result<()> {
    let own = format!("{program}/");
    let mut copy = pins::Pins::open(disk, to)?;
    for (owner, positions) in pins::Pins::open(disk, from)?.all() {
        if owner.starts_with(&own) {
            copy.set(disk, &owner, &positions)?;
        }
    }
    Ok(())
}

/// The oldest offset that each partition of a topic has, beside whoever owns the log.
///
/// # Errors
/// When the disk refuses.
pub fn oldest_offsets(disk: &dyn Disk, root: &Path, topic: &str) -> Result<BTreeMap<u32, Offset>> {
    let dir = root.join(topic);
    let mut oldest = BTreeMap::new();
    for partition in partitions_in(disk, &dir)? {
        let path = dir.join(&partition);
        let names = disk.list(&path).named("list", &path)?;
        let first = names.iter().filter_map(|name| name.strip_suffix(".seg")?.parse().ok()).min();
        if let (Ok(partition), Some(first)) = (partition.parse(), first) {
            oldest.insert(partition, Offset(first));
        }
    }
    Ok(oldest)
}

/// The oldest offset that each partition of a topic has, and about when it was appended.
///
/// # Errors
/// When the disk refuses.
pub fn oldest_records(disk: &dyn Disk, root: &Path, topic: &str) -> Result<BTreeMap<u32, (Offset, Timestamp)>> {
    let mut oldest = BTreeMap::new();
    for (partition, offset) in oldest_offsets(disk, root, topic)? {
        let path = root.join(topic).join(partition.to_string()).join(format!("{:020}.seg", offset.0));
        let head = crate::frame::first_frame(disk, &path).named("read", &path)?;
        let time = head.map_or(Timestamp(0), |(frame, _)| Timestamp(frame.head().time));
        oldest.insert(partition, (offset, time));
    }
    Ok(oldest)
}

/// The directories of a topic's partitions.
pub(crate) fn partitions_in(disk: &dyn Disk, dir: &Path) -> Result<Vec<String>> {
    let names = disk.list(dir).named("list", dir)?;
    Ok(names.into_iter().filter(|name| name.parse::<u32>().is_ok()).collect())
}

/// Prefix of a topic's directory that is being deleted; no topic's name begins with a dot.
const DELETED: &str = ".deleted-";

impl Drop for Log {
    fn drop(&mut self) {
        self.work.stop();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so itself.
            let _panicked = thread.join();
        }
        for topic in self.topics.read().values() {
            topic.close();
        }
    }
}

/// What the threads behind the log have to do.
///
/// Both queues hold a partition at most once, so they are bounded by their number.
#[derive(Debug, Default)]
struct Work {
    queues: Mutex<Queues>,
    syncs_wake: Condvar,
    tidy_wake: Condvar,
}

#[derive(Debug, Default)]
struct Queues {
    /// Syncs by the time at which they are due; the number keeps equal times apart.
    syncs: BTreeMap<(Instant, u64), Arc<Partition>>,
    number: u64,
    tidy: VecDeque<Arc<Partition>>,
    stop: bool,
}

impl Work {
    /// Asks for a sync of a partition, as soon as its topic wants it.
    fn sync(&self, partition: &Arc<Partition>, policy: Sync) {
        let now = Instant::now();
        let due = match policy {
            Sync::Every(span) => now.checked_add(span).unwrap_or(now),
            Sync::Always | Sync::Never => now,
        };
        let mut queues = self.queues.lock();
        queues.number += 1;
        let key = (due, queues.number);
        queues.syncs.insert(key, Arc::clone(partition));
        self.syncs_wake.notify_one();
    }

    /// Asks for the filled segments of a partition to be sealed.
    fn tidy(&self, partition: &Arc<Partition>) {
        if !partition.tidy_queued.swap(true, Ordering::AcqRel) {
            self.queues.lock().tidy.push_back(Arc::clone(partition));
            self.tidy_wake.notify_one();
        }
    }

    fn stop(&self) {
        self.queues.lock().stop = true;
        self.syncs_wake.notify_all();
        self.tidy_wake.notify_all();
    }

    fn run_syncs(&self) {
        let mut queues = self.queues.lock();
        while !queues.stop {
            let Some((&key, _)) = queues.syncs.first_key_value() else {
                self.syncs_wake.wait(&mut queues);
                continue;
            };
            if key.0 > Instant::now() {
                self.syncs_wake.wait_until(&mut queues, key.0);
                continue;
            }
            let partition = queues.syncs.remove(&key).expect("the key was just seen");
            drop(queues);
            // Cleared before the sync: an append during it asks again.
            partition.sync_queued.store(false, Ordering::Release);
            // An error has poisoned the partition, was logged, and is told to all who wait.
            let _told_by_callbacks = partition.flush();
            queues = self.queues.lock();
        }
    }

    fn run_tidying(&self) {
        loop {
            let mut queues = self.queues.lock();
            let partition = loop {
                if queues.stop {
                    return;
                }
                match queues.tidy.pop_front() {
                    Some(partition) => break partition,
                    None => self.tidy_wake.wait(&mut queues),
                }
            };
            drop(queues);
            tidy_one(&partition);
        }
    }
}

/// Seals a partition's filled segments; what can't be done now is tried when the next one is filled.
fn tidy_one(partition: &Partition) {
    partition.tidy_queued.store(false, Ordering::Release);
    let _alone = partition.tidying.lock();
    if let Err(error) = tidy::seal(partition) {
        tracing::warn!(partition = ?partition, error = %error.chain(), "segments could not be sealed");
    }
}
