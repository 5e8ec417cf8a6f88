//! A topic: what receivers append to and sources read from.
//!
//! Invariant: `end` moves only after rows are in the file and readable,
//! `durable_end` only after a sync. Called by the engine's intake, its log
//! source, the command line and the pages.

use super::{
    Work,
    config::{Retention, Sync, TopicConfig, write as write_config},
    partition::{Appended, Effect, OnDurable, Partition, Shared},
    pins::Pins,
    reader::LogReader,
    recover::recover,
    tidy::{self, Retired},
};
use crate::{
    disk::{self, Disk},
    fault::Named,
    ipc,
};
use arrow_array::RecordBatch;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tidemill_core::{Clock, Error, Offset, Result, Timestamp};

/// Bytes of newest rows that a topic keeps in memory, over all partitions.
const CACHE_BYTES: usize = 32 << 20;

/// Bytes of a segment, of which what is kept has several: a bound that one
/// segment filled would keep all or nothing.
fn segment_bytes(wanted: u64, retention: Retention) -> u64 {
    retention.max_bytes.map_or(wanted, |max| wanted.min((max / u64::from(tidy::SPANS)).max(4 << 10)))
}

/// A topic of a [`Log`](super::Log).
#[derive(Debug)]
pub struct Topic {
    config: TopicConfig,
    /// As it is now; `config` holds what the topic was opened with.
    now: Mutex<TopicConfig>,
    dir: PathBuf,
    shared: Arc<Shared>,
    partitions: Vec<Arc<Partition>>,
    pins: Mutex<Pins>,
    work: Arc<Work>,
}

impl Topic {
    /// Makes the directories and `topic.json`.
    pub(super) fn create(disk: &dyn Disk, dir: &Path, config: &TopicConfig) -> Result<()> {
        for number in 0..config.partitions {
            let path = dir.join(number.to_string());
            disk::create_dir(disk, &path).named("create", &path)?;
        }
        write_config(disk, &dir.join("topic.json"), config)
    }

    pub(super) fn open(
        disk: &Arc<dyn Disk>,
        clock: &Arc<dyn Clock>,
        work: &Arc<Work>,
        name: &str,
        dir: &Path,
    ) -> Result<Self> {
        let config = super::config::read(&**disk, &dir.join("topic.json"))?;
        let shared = Arc::new(Shared {
            topic: name.to_owned(),
            schema: Arc::clone(&config.schema),
            schema_message: ipc::schema_message(&config.schema)?,
            segment_bytes: AtomicU64::new(segment_bytes(config.segment_bytes, config.retention)),
            durable: config.sync != Sync::Never,
            disk: Arc::clone(disk),
            clock: Arc::clone(clock),
            wake: tokio::sync::watch::Sender::new(0),
        });
        let cache = CACHE_BYTES / config.partitions as usize;
        let partitions = (0..config.partitions)
            .map(|number| {
                let path = dir.join(number.to_string());
                let found = recover(&shared, number, &path)?;
                Partition::new(&shared, number, &path, cache, found)
            })
            .collect::<Result<Vec<_>>>()?;
        let pins = Mutex::new(Pins::open(&**disk, dir)?);
        let now = Mutex::new(config.clone());
        let dir = dir.to_owned();
        let topic = Self { config, now, dir, shared, partitions, pins, work: Arc::clone(work) };
        for partition in &topic.partitions {
            if partition.segments.read().len() > 1 {
                topic.work.tidy(partition);
            }
        }
        Ok(topic)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.topic
    }

    /// What it was opened with; [`Topic::retention`] and [`Topic::notices`] may have been changed since.
    pub fn config(&self) -> &TopicConfig {
        &self.config
    }

    /// What old rows are kept.
    pub fn retention(&self) -> Retention {
        self.now.lock().retention
    }

    /// Whose notices take back earlier rows of it.
    pub fn notices(&self) -> Option<String> {
        self.now.lock().notices.clone()
    }

    /// Says whose notices take back earlier rows; durable when this returns.
    ///
    /// # Errors
    /// When the disk refuses: then nothing has changed.
    pub fn set_notices(&self, of: &str) -> Result<()> {
        self.change(|config| config.notices = Some(of.to_owned())).map(drop)
    }

    /// Changes `topic.json`; whether there was something to change.
    fn change(&self, change: impl FnOnce(&mut TopicConfig)) -> Result<bool> {
        let mut now = self.now.lock();
        let mut next = now.clone();
        change(&mut next);
        let differs = *now != next;
        if differs {
            write_config(&*self.shared.disk, &self.dir.join("topic.json"), &next)?;
            *now = next;
        }
        Ok(differs)
    }

    /// Changes what old rows are kept, from the next [`Topic::apply_retention`]
    /// on; durable when this returns.
    ///
    /// # Errors
    /// When the disk refuses: then nothing has changed.
    pub fn set_retention(&self, retention: Retention) -> Result<()> {
        if self.change(|config| config.retention = retention)? {
            let bytes = segment_bytes(self.config.segment_bytes, retention);
            self.shared.segment_bytes.store(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    fn partition(&self, p: u32) -> Result<&Arc<Partition>> {
        self.partitions.get(p as usize).ok_or_else(|| {
            Error::user(format!("topic \"{}\" has {} partitions, there is no {p}", self.name(), self.partitions.len()))
        })
    }

    /// Oldest offset that is kept; 0 for a partition that doesn't exist.
    pub fn start(&self, p: u32) -> Offset {
        Offset(self.partitions.get(p as usize).map_or(0, |p| p.start()))
    }

    /// First offset after the newest row; 0 for a partition that doesn't exist.
    pub fn end(&self, p: u32) -> Offset {
        Offset(self.partitions.get(p as usize).map_or(0, |p| p.end()))
    }

    /// First offset after the newest durable row; the same as `end` under [`Sync::Never`].
    pub fn durable_end(&self, p: u32) -> Offset {
        Offset(self.partitions.get(p as usize).map_or(0, |p| p.durable_end()))
    }

    /// The last resume token stored with rows, in this life or an earlier one.
    pub fn resume(&self, p: u32) -> Option<String> {
        self.partitions.get(p as usize).and_then(|p| p.resume())
    }

    /// Offsets `[from, to)` that were found damaged when the log was opened.
    pub fn damage(&self, p: u32) -> Vec<(Offset, Offset)> {
        let of = |p: &Arc<Partition>| p.damage.iter().map(|(a, b)| (Offset(*a), Offset(*b))).collect();
        self.partitions.get(p as usize).map_or_else(Vec::new, of)
    }

    /// Bytes on disk, over all partitions.
    pub fn bytes(&self) -> u64 {
        let of = |p: &Arc<Partition>| p.segments.read().iter().map(|s| s.extent.read().len).sum::<u64>();
        self.partitions.iter().map(of).sum()
    }

    /// Appends rows, readable when this returns and durable later, as the
    /// topic's [`Sync`] says. `resume` is stored with them, atomically. No rows
    /// and a `resume` store just that.
    ///
    /// # Errors
    /// Retryable when the disk is full, naming the path: nothing was appended.
    /// Final after a failed write or sync, and when the columns don't fit.
    pub fn append(&self, p: u32, rows: &RecordBatch, resume: Option<&str>) -> Result<Appended> {
        let partition = self.partition(p)?;
        let (appended, effect) = partition.append(rows, resume, None)?;
        self.after(partition, effect);
        Ok(appended)
    }

    /// Appends rows and calls back when they are durable, or can't become so;
    /// under [`Sync::Never`] at once. The callback runs on the thread that
    /// syncs and must not block. It is dropped uncalled when this returns an
    /// error.
    ///
    /// # Errors
    /// As [`Topic::append`].
    pub fn append_with(
        &self,
        p: u32,
        rows: &RecordBatch,
        resume: Option<&str>,
        on_durable: OnDurable,
    ) -> Result<Appended> {
        let partition = self.partition(p)?;
        let (appended, effect) = partition.append(rows, resume, Some(on_durable))?;
        self.after(partition, effect);
        Ok(appended)
    }

    fn after(&self, partition: &Arc<Partition>, effect: Effect) {
        if !effect.appended {
            return;
        }
        self.shared.wake.send_modify(|n| *n += 1);
        if self.shared.durable && !partition.sync_queued.swap(true, Ordering::AcqRel) {
            self.work.sync(partition, self.config.sync);
        }
        if effect.filled {
            self.work.tidy(partition);
        }
        if effect.crowded {
            // The callbacks carry the outcome; this append only lends its thread.
            let _told_by_callbacks = partition.flush();
        }
    }

    /// Blocks until everything before `to` is durable; does nothing under [`Sync::Never`].
    ///
    /// # Errors
    /// When it can't become durable: then nothing is acked any more.
    pub fn sync_to(&self, p: u32, to: Offset) -> Result<()> {
        if !self.shared.durable {
            return Ok(());
        }
        let partition = self.partition(p)?;
        if to.0 > partition.end() {
            return Err(Error::internal(format!(
                "{} ends at {}, before the offset {to} that is to become durable",
                partition.label(),
                partition.end()
            )));
        }
        partition.sync_to(to.0)
    }

    /// Takes back all rows of a partition from `to` on, as if they had never been
    /// appended: their offsets are given again. `resume` is its token from then on.
    /// Done when this returns; a crash meanwhile leaves the partition as it was, or cut.
    ///
    /// Who has read what goes will not read what comes in its place: the caller
    /// has made sure that there is nobody.
    ///
    /// # Errors
    /// When the rows before `to` can't be read, or the disk refuses.
    pub fn cut(&self, p: u32, to: Offset, resume: &str) -> Result<()> {
        self.partition(p)?.cut(to.0, resume)
    }

    /// The rows in `[from, to)`, frame by frame; an error when some are gone,
    /// damaged or not there yet, naming the offsets.
    pub fn read(&self, p: u32, from: Offset, to: Offset) -> LogReader {
        match self.partition(p) {
            Ok(partition) => LogReader::new(partition, from, to),
            Err(error) => LogReader::refusing(&self.partitions[0], error),
        }
    }

    /// The first offset that was appended at `time` or later; the end when there is none.
    ///
    /// # Errors
    /// When the frame in question can't be read.
    pub fn read_time(&self, p: u32, time: Timestamp) -> Result<Offset> {
        let partition = self.partition(p)?;
        let (from, to) = {
            let segments = partition.segments.read();
            // No binary search: a segment without rows has no time.
            let Some(segment) = segments.iter().find(|s| s.extent.read().last_time >= time.0) else {
                return Ok(self.end(p));
            };
            let extent = segment.extent.read();
            // The last entry before `time` may hold the row, or the one after it.
            let entry = extent.entries.partition_point(|e| e.time < time.0);
            let from = extent.entries.get(entry.saturating_sub(1)).map_or(segment.first, |e| e.offset);
            (from, extent.end)
        };
        for rows in LogReader::new(partition, Offset(from), Offset(to)) {
            let rows = rows?;
            let mut offset = rows.base.0;
            for (count, at) in rows.times {
                if at >= time {
                    return Ok(Offset(offset));
                }
                offset += u64::from(count);
            }
        }
        Ok(Offset(to))
    }

    /// Counts appends to the topic: wait on it for news.
    pub fn wait_handle(&self) -> tokio::sync::watch::Receiver<u64> {
        self.shared.wake.subscribe()
    }

    /// Keeps every row at or after `positions` for `owner`, also over restarts;
    /// replaces what `owner` pinned before. Cheap when all positions move
    /// forward; written at once otherwise.
    ///
    /// # Errors
    /// When rows at or after a position are already gone, naming them.
    pub fn pin(&self, owner: &str, positions: &BTreeMap<u32, Offset>) -> Result<()> {
        let mut pins = self.pins.lock();
        for (p, offset) in positions {
            let start = self.partition(*p)?.start();
            if offset.0 < start {
                return Err(Error::external(format!(
                    "topic \"{}\", partition {p}: \"{owner}\" needs offset {offset}, the oldest that is kept is {start}: [{offset}, {start}) is gone",
                    self.name()
                ))
                .fatal());
            }
        }
        pins.set(&*self.shared.disk, owner, positions)
    }

    /// Lets go of what `owner` pinned.
    ///
    /// # Errors
    /// When that can't be written.
    pub fn unpin(&self, owner: &str) -> Result<()> {
        self.pins.lock().remove(&*self.shared.disk, owner)
    }

    /// Lets go of what `owner` pinned and remembers that it has read this topic.
    ///
    /// # Errors
    /// When that can't be written.
    pub fn release(&self, owner: &str) -> Result<()> {
        self.pins.lock().release(&*self.shared.disk, owner)
    }

    /// Whether `owner` pins something, or did until it [released](Self::release) it: not so in a topic
    /// that was made anew under the name of one that it has read.
    pub fn knows(&self, owner: &str) -> bool {
        self.pins.lock().knows(owner)
    }

    /// All pins, by owner and partition.
    pub fn pins(&self) -> BTreeMap<String, BTreeMap<u32, Offset>> {
        self.pins.lock().all()
    }

    /// Deletes segments that the topic's [`Retention`] gives up and no pin
    /// needs. A segment that spans more than a quarter of what is kept is ended
    /// first, so that small bounds hold, too. Blocks while a segment is being
    /// merged.
    ///
    /// # Errors
    /// When the disk refuses; what was deleted stays deleted.
    pub fn apply_retention(&self, now: Timestamp) -> Result<Retired> {
        let retention = self.retention();
        let mut sum = Retired::default();
        if retention.keeps_all() {
            return Ok(sum);
        }
        let mut pins = self.pins.lock();
        if let Err(error) = pins.save(&*self.shared.disk) {
            // A full disk must not stop what makes space: the pins on disk keep more, never less.
            tracing::warn!(topic = self.name(), error = %error.chain(), "pins not written; the older ones count");
        }
        for partition in &self.partitions {
            let _alone = partition.tidying.lock();
            let pin = pins.lowest(partition.number);
            match tidy::end_spanning(partition, now, retention, pin) {
                Ok(true) => self.work.tidy(partition),
                Ok(false) => {}
                Err(error) if error.is_retryable() => {
                    // A full disk again: the next look ends the segment.
                    tracing::warn!(partition = ?partition, error = %error.chain(), "no new segment");
                }
                Err(error) => return Err(error),
            }
            let retired = tidy::retire(partition, now, retention, pin)?;
            sum.segments += retired.segments;
            sum.bytes += retired.bytes;
        }
        Ok(sum)
    }

    /// Takes no more rows; makes durable what there is and writes marks for the next start.
    pub(super) fn close(&self) {
        for partition in &self.partitions {
            partition.close();
        }
        for partition in &self.partitions {
            if let Err(error) = partition.finish() {
                tracing::warn!(topic = self.name(), partition = partition.number, error = %error.chain(), "not closed cleanly");
            }
        }
        if let Err(error) = self.pins.lock().save(&*self.shared.disk) {
            tracing::warn!(topic = self.name(), error = %error.chain(), "pins not written");
        }
    }

    /// Takes no more rows, for good.
    pub(super) fn abandon(&self) {
        self.partitions.iter().for_each(|p| p.close());
    }

    #[cfg(test)]
    pub(super) fn partitions(&self) -> &[Arc<Partition>] {
        &self.partitions
    }
}
