//! What of a program is durable: log, ledger, state files.
//!
//! Invariant: the order of syncs in [`Keep::commit`] is the exactly-once
//! argument. The records read must survive before anything computed from them
//! does; states and dead letters before the ledger says *committed*; and
//! nothing is visible outside before that.

use super::states::{KeptState, StateEntry, StateKeep};
use crate::{
    config::{Config, Versions},
    emit::{TopicPast, TopicPlace},
    ingest::{DeadLetters, Replays, dead_schema},
    plan::Going,
    state::StateRegistry,
};
use arrow_schema::SchemaRef;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::Arc,
};
use tidemill_core::{
    Batch, BatchId, DeadLetter, Error, Offset, OffsetRange, Position, Result, Stage, StagedPart, Timestamp, Watermark,
};
use tidemill_store::{
    DataDir, Gate, Passing, Past,
    disk::Disk,
    ledger::{Committed, Filled, Ledger},
    log::{Log, Retention, Sync, Topic, TopicConfig, check_program_name},
    rewind::TopicUndo,
};

/// The durable side of a program; one owner a directory.
#[derive(Debug)]
pub(crate) struct Keep {
    log: Arc<Log>,
    pub(crate) ledger: Mutex<Ledger>,
    /// Batches that were planned before the commits before them.
    ahead: Mutex<Ahead>,
    pub(crate) states: Mutex<BTreeMap<String, StateEntry>>,
    topics: Mutex<BTreeMap<String, Arc<Topic>>>,
    dead: Arc<DeadLetters>,
    replays: Arc<Replays>,
    /// Where the directory can be copied by another process meanwhile.
    gate: Option<Gate>,
    pub(crate) disk: Arc<dyn Disk>,
    /// The program's own directory.
    pub(crate) root: std::path::PathBuf,
    pub(crate) program: String,
    sync: Sync,
    versions: Versions,
    /// Held for its lock, where there can be another owner; dropped last.
    _dir: Option<DataDir>,
}

/// Plans that wait for the ledger, which takes one when the batch before is committed.
#[derive(Debug, Default)]
struct Ahead {
    /// The batch that the ledger has planned and not committed.
    planned: Option<BatchId>,
    /// Those after it. As many as batches may wait for their commit ([`super::committing`]).
    waiting: VecDeque<Batch>,
}

impl Keep {
    /// Takes ownership of the directory and recovers its log and ledger.
    pub(crate) fn open(path: &Path, config: &Config) -> Result<Self> {
        check_program_name(&config.name)?;
        let disk = Arc::clone(&config.disk);
        let dir = disk.is_shared().then(|| DataDir::open(path)).transpose()?;
        let log = Arc::new(Log::open(Arc::clone(&disk), &path.join("log"), Arc::clone(&config.clock))?);
        let root = path.join("programs").join(&config.name);
        let ledger = Ledger::open(Arc::clone(&disk), &root.join("ledger"))?;
        let bound = Some(config.dead_retention);
        if dir.is_some() {
            config.memory.set_dir(&root.join("spill.tmp"))?;
        }
        let dead = open_topic(&log, &format!("{}.dead", config.name), dead_schema(), 1, Sync::Always, bound)?;
        let replays = Replays::open(&log, &dead, &disk, &config.name, &root)?.without(ledger.past().gone());
        let replays = Arc::new(replays);
        let last = ledger.last().map_or(BatchId(0), |last| last.batch);
        let dead = Arc::new(DeadLetters::open(dead, &replays, last)?);
        let ahead = Ahead { planned: ledger.planned().map(|planned| planned.id), waiting: VecDeque::new() };
        Ok(Self {
            log,
            ledger: Mutex::new(ledger),
            ahead: Mutex::new(ahead),
            states: Mutex::default(),
            topics: Mutex::default(),
            dead,
            replays,
            gate: dir.is_some().then(|| Gate::of(path)).transpose()?,
            disk,
            root,
            program: config.name.clone(),
            sync: config.sync,
            versions: config.versions,
            _dir: dir,
        })
    }

    /// The embedded log.
    pub(crate) fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// The program's dead letters.
    pub(crate) fn dead(&self) -> Arc<DeadLetters> {
        Arc::clone(&self.dead)
    }

    /// The dead letters that are run again.
    pub(crate) fn replays(&self) -> &Arc<Replays> {
        &self.replays
    }

    /// Passed by each commit, from its first durable step to the last sink: who
    /// copies the directory closes it, and finds one batch whole and none begun.
    pub(crate) fn pass_gate(&self) -> Result<Option<Passing<'_>>> {
        let Some(gate) = &self.gate else { return Ok(None) };
        match gate.try_pass()? {
            Some(passing) => Ok(Some(passing)),
            None => tokio::task::block_in_place(|| gate.pass()).map(Some),
        }
    }

    /// Where an output into `topic` finds its log, and what is to be taken back there.
    pub(crate) fn place(&self, output: &str, sync: Sync, topic: &str, undo: Option<&TopicUndo>) -> TopicPlace {
        let past = self.past();
        let last = past.last();
        let ends = |filled: &Filled| filled.partitions.iter().map(|(id, part)| (id.clone(), part.end)).collect();
        let past = TopicPast {
            filled: past.filled().get(topic).map(ends).unwrap_or_default(),
            last_commit: last.and_then(|last| last.written.get(topic).cloned()).unwrap_or_default(),
            cuts: undo.filter(|undo| undo.held.is_empty()).map(|undo| undo.cuts.clone()).unwrap_or_default(),
            is_copy: past.is_forked(),
            upto: last.map(|last| (last.batch, last.time)).unwrap_or_default(),
        };
        let (owner, staged) = self.aside(output);
        TopicPlace { log: Arc::clone(&self.log), disk: Arc::clone(&self.disk), staged, owner, sync, past }
    }

    /// Who writes an output, and the directory of what it stages on this machine.
    pub(crate) fn aside(&self, output: &str) -> (String, std::path::PathBuf) {
        (format!("{}/{output}", self.program), self.root.join("staged").join(output))
    }

    /// Opens or creates a topic whose records batches will read as the stream
    /// of the same name. A topic that is there keeps what it keeps, unless
    /// `retention` says otherwise.
    pub(crate) fn topic(
        &self,
        name: &str,
        schema: SchemaRef,
        partitions: u32,
        sync: Sync,
        retention: Option<Retention>,
    ) -> Result<Arc<Topic>> {
        let topic = open_topic(&self.log, name, schema, partitions, sync, retention)?;
        self.reads(name, &topic)?;
        Ok(topic)
    }

    /// Notes that the stream reads the topic, which from now on keeps what no batch has committed.
    ///
    /// # Errors
    /// When the topic is another one than committed batches have read, of the same name or by the same stream, or
    /// ends before what they have read, since it lost its end: its next records would be taken for read.
    pub(crate) fn reads(&self, stream: &str, topic: &Arc<Topic>) -> Result<()> {
        let position = self.position(stream);
        self.must_be_the_one_read(stream, topic, &position)?;
        for p in 0..topic.config().partitions {
            let (end, read) = (topic.end(p), position.get(&p.into()).copied().unwrap_or_default());
            if read > end {
                return Err(Error::user(format!(
                    "topic `{}` partition {p} ends at offset {end}, and committed batches of stream `{stream}` have read it up to {read}: \
                     [{end}, {read}) is gone. Restore the data directory from a backup, or go back with `tidemill rewind` to a batch that had \
                     read no further",
                    topic.name()
                ))
                .fatal());
            }
        }
        self.topics.lock().insert(stream.to_string(), Arc::clone(topic));
        self.pin(stream, topic)
    }

    /// A topic knows all streams with a position in it: each holds it before its first batch.
    fn must_be_the_one_read(&self, stream: &str, topic: &Topic, position: &Position) -> Result<()> {
        if topic.knows(&format!("{}/{stream}", self.program)) {
            return Ok(());
        }
        // However much of the topic is gone, and whichever partitions it has: what it holds are other records.
        let mut read = position.iter().filter(|(partition, _)| partition.0.parse::<u32>().is_ok());
        if let Some((p, read)) = read.find(|(_, read)| read.0 > 0) {
            let start = p.0.parse().map_or(Offset(0), |p| topic.start(p));
            let gone =
                if start > *read { format!(", and so is [{read}, {start}), which is gone") } else { String::new() };
            return Err(Error::user(format!(
                "topic `{}` is not the one that stream `{stream}` has read up to offset {read} of partition {p}: it was made anew, \
                 or the stream read another one, and the records before {read} would be passed over{gone}. Give the stream \
                 another name to read this topic from its beginning, compute everything anew after `tidemill rewind --to 0`, \
                 or restore the data directory from a backup",
                topic.name()
            ))
            .fatal());
        }
        Ok(())
    }

    fn pin(&self, stream: &str, topic: &Topic) -> Result<()> {
        let position = self.position(stream);
        let at = |p: u32| position.get(&p.into()).copied().unwrap_or_else(|| topic.start(p));
        let positions = (0..topic.config().partitions).map(|p| (p, at(p))).collect();
        topic.pin(&format!("{}/{stream}", self.program), &positions)
    }

    /// Lets go of what streams held that this program no longer has.
    pub(crate) fn forget_other_streams(&self) -> Result<()> {
        let own = format!("{}/", self.program);
        let topics = self.topics.lock().clone();
        for topic in self.log.topics() {
            for owner in topic.pins().into_keys() {
                let Some(stream) = owner.strip_prefix(&own) else { continue };
                if topics.get(stream).is_none_or(|read| read.name() != topic.name()) {
                    tracing::info!(topic = topic.name(), stream, "the program no longer reads this topic");
                    topic.release(&owner)?;
                }
            }
        }
        Ok(())
    }

    /// Pins what the program may still read and removes what the topics' retention gives up.
    ///
    /// # Errors
    /// The first fault; the other topics are looked at all the same.
    pub(crate) fn retain(&self, now: Timestamp) -> Result<()> {
        let topics = self.topics.lock().clone();
        for (stream, topic) in &topics {
            self.pin(stream, topic)?;
        }
        let mut first = Ok(());
        for topic in self.log.topics() {
            match topic.apply_retention(now) {
                Ok(gone) if gone.segments > 0 => {
                    tracing::info!(
                        topic = topic.name(),
                        segments = gone.segments,
                        bytes = gone.bytes,
                        "old records removed"
                    );
                }
                Ok(_) => {}
                Err(error) => {
                    let name = topic.name();
                    let error =
                        Error::external(format!("old records of topic `{name}` can't be removed")).because(error);
                    first = first.and(Err(error));
                }
            }
        }
        first
    }

    /// Where committed batches have read a stream to.
    pub(crate) fn position(&self, stream: &str) -> Position {
        self.ledger.lock().positions().get(stream).cloned().unwrap_or_default()
    }

    /// All that the ledger knows.
    pub(crate) fn past(&self) -> Past {
        self.ledger.lock().past()
    }

    /// The oldest offsets that the log still has of a stream; none of a stream that the log does not keep.
    pub(crate) fn oldest(&self, stream: &str) -> Position {
        let topics = self.topics.lock();
        let Some(topic) = topics.get(stream) else { return Position::new() };
        (0..topic.config().partitions).map(|p| (p.into(), topic.start(p))).collect()
    }

    /// Notes that all outputs took back what a rewind undid.
    pub(crate) fn taken_back(&self) -> Result<()> {
        self.ledger.lock().taken_back()
    }

    /// Notes that all outputs have made the last batch whole.
    pub(crate) fn shown(&self) -> Result<()> {
        self.ledger.lock().shown()
    }

    /// Sets all states back to the last committed batch.
    pub(crate) fn restore(&self, registry: &StateRegistry) -> Result<()> {
        // After a rewind not the last batch, but the one that the program went back to.
        let version = self.ledger.lock().version();
        let mut states = self.states.lock();
        for operator in registry.all() {
            let entry = states.get_mut(operator.name()).ok_or_else(|| Error::internal("a state without files"))?;
            entry.restore(version, &*operator)?;
        }
        Ok(())
    }

    /// Records a batch before it runs. While batches before it wait for their commits,
    /// the record waits as well: until its own commit nothing of a batch
    /// can be seen, so a plan that is lost with a crash is harmless.
    pub(crate) fn plan(&self, batch: &Batch) -> Result<()> {
        {
            // The ledger itself is busy for as long as a commit takes the disk.
            let mut ahead = self.ahead.lock();
            if ahead.planned.is_some_and(|planned| planned < batch.id) {
                ahead.waiting.push_back(batch.clone());
                return Ok(());
            }
            ahead.planned = Some(batch.id);
        }
        self.ledger.lock().plan(batch)
    }

    /// Records the batch after the one that was committed, if it is there already.
    fn plan_next(&self, ledger: &mut Ledger) -> Result<()> {
        if ledger.planned().is_some() {
            // A commit is repeated, and this was done.
            return Ok(());
        }
        let next = {
            let mut ahead = self.ahead.lock();
            ahead.planned = ahead.waiting.front().map(|next| next.id);
            ahead.waiting.front().cloned()
        };
        if let Some(next) = next {
            ledger.plan(&next)?;
            self.ahead.lock().waiting.pop_front();
        }
        Ok(())
    }

    /// As [`Keep::plan`], and durable: for outputs that may be seen before the
    /// commit, which must find the same records when the batch runs again. So, where
    /// the log is to lose nothing with the power, the records are durable first.
    pub(crate) fn plan_durably(&self, batch: &Batch) -> Result<()> {
        tokio::task::block_in_place(|| {
            if matches!(self.sync, Sync::Always) {
                self.sync_inputs(batch)?;
            }
            self.plan(batch)?;
            self.ledger.lock().sync_plan()
        })
    }

    /// The batch that was planned and not committed before a crash. Power that goes may
    /// take records and leave the plan that named them: nobody has seen anything of such a
    /// batch, and another is planned in its place.
    pub(crate) fn planned(&self) -> Option<Batch> {
        let planned = self.ledger.lock().planned().cloned()?;
        let topics = self.topics.lock();
        let is_gone = |(stream, ranges): (&String, &Vec<OffsetRange>)| {
            let Some(topic) = topics.get(stream) else { return false };
            let there = |p: &u32| *p < topic.config().partitions;
            let end = |range: &OffsetRange| range.partition.0.parse().ok().filter(there).map(|p| topic.end(p));
            ranges.iter().any(|range| end(range).is_some_and(|end| end < range.end))
        };
        if !planned.ranges.iter().any(is_gone) {
            return Some(planned);
        }
        tracing::info!(batch = planned.id.0, "records of a planned batch were lost with the power: it is planned anew");
        None
    }

    /// The last committed batch and what its sinks staged.
    pub(crate) fn last(&self) -> Option<(BatchId, BTreeMap<String, Vec<StagedPart>>)> {
        self.ledger.lock().last().map(|last| (last.batch, last.staged.clone()))
    }

    /// Takes what a batch changed in the states. Called between two batches.
    pub(crate) fn gather(&self, batch: BatchId, registry: &StateRegistry) -> Result<Vec<KeptState>> {
        let mut states = self.states.lock();
        let mut kept = Vec::new();
        for operator in registry.all() {
            let entry = states.get_mut(operator.name()).ok_or_else(|| Error::internal("a state without files"))?;
            kept.push(entry.gather(batch, &*operator)?);
        }
        Ok(kept)
    }

    /// Makes a batch durable, ending with the ledger's record. May be repeated.
    pub(crate) fn commit(
        &self,
        batch: &Batch,
        kept: &[KeptState],
        (watermarks, streams): (&BTreeMap<String, Timestamp>, &BTreeMap<String, Watermark>),
        (staged, written): (&BTreeMap<String, Vec<StagedPart>>, &BTreeMap<String, Vec<OffsetRange>>),
        dead: &[DeadLetter],
        going: &Going<'_>,
    ) -> Result<()> {
        tokio::task::block_in_place(|| {
            self.sync_inputs(batch)?;
            going.part(Stage::Inputs);
            if !dead.is_empty() || self.dead.is_unsettled() {
                // Letters are durable under the batch's number before its commit: with the plan, the batch that
                // runs again after a crash mostly has them, too.
                self.ledger.lock().sync_plan()?;
                self.dead.commit(batch.id, dead, &self.replays)?;
                going.part(Stage::Letters);
            }
            for state in kept {
                self.state_keep(state)?.save(batch.id, state)?;
            }
            going.part(Stage::Checkpoint);
            {
                let mut ledger = self.ledger.lock();
                // Committed already when a later step failed and all are repeated.
                if ledger.last().is_none_or(|last| last.batch != batch.id) {
                    ledger.commit(Committed {
                        batch: batch.id,
                        time: batch.time,
                        watermarks: watermarks.clone(),
                        streams: streams.clone(),
                        staged: staged.clone(),
                        written: written.clone(),
                        ..Committed::default()
                    })?;
                }
                // In this order: a letter that comes between them is settled by this batch and the next.
                self.dead.settled();
                self.replays.settled();
                self.plan_next(&mut ledger)?;
            }
            going.part(Stage::Ledger);
            // After the commit point: versions that nobody may go back to are needed no more.
            let oldest = self.forget()?;
            for state in kept {
                self.state_keep(state)?.tidy(batch.id, state, oldest, self.versions.bytes)?;
            }
            Ok(())
        })
    }

    /// Where a state is kept. The next batches' rows are taken while this one's are written.
    fn state_keep(&self, state: &KeptState) -> Result<StateKeep> {
        let states = self.states.lock();
        let entry = states.get(&state.name).ok_or_else(|| Error::internal("a state without files"))?;
        Ok(entry.keep())
    }

    /// Forgets batches beyond what is to be kept, and gives the oldest that is.
    fn forget(&self) -> Result<BatchId> {
        let mut ledger = self.ledger.lock();
        let Some(last) = ledger.last().map(|last| (last.batch, last.time)) else { return Ok(BatchId(0)) };
        let by_count = BatchId((last.0.0 + 1).saturating_sub(self.versions.batches.max(1)));
        let by_age = self.versions.age.and_then(|age| {
            let from = last.1.minus(age);
            ledger.recent().find(|batch| batch.time >= from).map(|batch| batch.id)
        });
        let oldest = by_age.map_or(by_count, |by_age| by_age.max(by_count));
        ledger.forget_before(oldest);
        Ok(oldest)
    }

    /// The records that a batch read must survive before its results do.
    fn sync_inputs(&self, batch: &Batch) -> Result<()> {
        if matches!(self.sync, Sync::Never) {
            return Ok(());
        }
        let topics = self.topics.lock().clone();
        for (stream, ranges) in &batch.ranges {
            let Some(topic) = topics.get(stream) else { continue };
            for range in ranges {
                if let Ok(partition) = range.partition.0.parse() {
                    topic.sync_to(partition, range.end)?;
                }
            }
        }
        Ok(())
    }
}

fn open_topic(
    log: &Log,
    name: &str,
    schema: SchemaRef,
    partitions: u32,
    sync: Sync,
    retention: Option<Retention>,
) -> Result<Arc<Topic>> {
    if let Some(topic) = log.topic(name) {
        let config = topic.config();
        if config.schema != schema {
            return Err(Error::user(format!("topic `{name}` exists with other columns: {}", config.schema)));
        }
        if config.partitions < partitions {
            return Err(Error::user(format!(
                "topic `{name}` has {} partitions and {partitions} receivers need one each: take a new stream name or as many receivers as before",
                config.partitions
            )));
        }
        if let Some(retention) = retention {
            topic.set_retention(retention)?;
        }
        return Ok(topic);
    }
    let retention = retention.unwrap_or_default();
    log.create_topic(name, &TopicConfig { partitions, sync, retention, ..TopicConfig::new(schema) })
}

#[cfg(test)]
mod tests {
    use crate::{
        StreamingContext, Versions,
        testing::{run, run_built},
    };
    use std::path::Path;

    /// Files of all states, and of the one that has most.
    fn state_files(dir: &Path) -> (usize, usize) {
        let states = std::fs::read_dir(dir.join("programs/test/state")).unwrap();
        let counts = states.map(|state| std::fs::read_dir(state.unwrap().path()).unwrap().count());
        counts.fold((0, 0), |(sum, most), count| (sum + count, most.max(count)))
    }

    #[test]
    fn a_small_state_leaves_few_files_and_comes_back_whole() {
        let update = |new: &[i64], total: Option<i64>| Some(total.unwrap_or(0) + new.iter().sum::<i64>());
        let program = |s: crate::DStream<(String, i64)>| s.update_state_by_key(update).snapshot();
        let input: Vec<Vec<(String, i64)>> =
            (0..403_i64).map(|batch| vec![(format!("k{}", batch % 7), batch), ("all".to_string(), 1)]).collect();
        let whole = run(input.clone(), program, 1).unwrap();
        let versions = |batches, bytes| Versions { batches, age: None, bytes };
        for (kept, most_files) in
            [(versions(1, u64::MAX), 128), (versions(50, u64::MAX), 200), (versions(1000, 1), 128)]
        {
            let dir = tempfile::tempdir().unwrap();
            let built = |partitions| {
                StreamingContext::builder("test").partitions(partitions).data_dir(dir.path()).keep_versions(kept)
            };
            run_built(built(2), &input, program, 0..400).unwrap();
            let (all, most) = state_files(dir.path());
            assert!(most <= most_files && all >= 1, "{most} files of a state after 400 batches, {kept:?}");
            let mut got = run_built(built(1), &input, program, 400..403).unwrap();
            let mut want = whole[400..].to_vec();
            got.iter_mut().chain(&mut want).for_each(|batch| batch.sort());
            assert_eq!(got, want);
        }
    }

    #[test]
    fn a_state_without_memory_is_the_same_and_leaves_nothing_beside_its_files() {
        let update = |new: &[i64], total: Option<i64>| {
            Some(total.unwrap_or(0) + new.iter().sum::<i64>()).filter(|total| total % 7 != 0)
        };
        let program = |s: crate::DStream<(String, i64)>| {
            s.update_state_by_key(update).ttl(tidemill_core::Duration::from_secs(3)).snapshot()
        };
        let input: Vec<Vec<(String, i64)>> = (0..90_i64)
            .map(|batch| (0..batch % 5).map(|i| (format!("k{}", (batch + i) % 23), batch)).collect())
            .collect();
        let whole = run(input.clone(), program, 1).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut got = Vec::new();
        for (partitions, batches) in [(2, 0..40), (1, 40..41), (3, 41..90)] {
            let built = StreamingContext::builder("test").partitions(partitions).data_dir(dir.path()).state_memory(1);
            got.extend(run_built(built, &input, program, batches).unwrap());
            assert!(!dir.path().join("programs/test/spill.tmp").exists());
        }
        let mut want = whole;
        got.iter_mut().chain(&mut want).for_each(|batch| batch.sort());
        assert_eq!(got, want);
    }
}
