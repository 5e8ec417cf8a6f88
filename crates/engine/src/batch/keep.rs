//! What of a program is durable: log, ledger, state files.
//!
//! Invariant: the order of syncs in [`Keep::commit`] is the exactly-once
//! argument. The records read must survive before anything computed from them
//! does; states and dead letters before the ledger says *committed*; and
//! nothing is visible outside before that.

use crate::{
    config::Config,
    emit::TopicPlace,
    ingest::{DeadLetters, Replays, dead_schema},
    state::{StateRegistry, Version},
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use parking_lot::Mutex;
use std::{collections::BTreeMap, path::Path, sync::Arc};
use tidemill_core::{Batch, BatchId, DeadLetter, Error, Position, Result, StagedPart, Timestamp, Watermark};
use tidemill_store::{
    DataDir, Gate, Passing,
    disk::Disk,
    ledger::{Committed, Ledger, OperatorEntry},
    log::{Log, Retention, Sync, Topic, TopicConfig},
    state::{StateFiles, StateKind},
};

/// Deltas may hold this many times the rows of the state before a snapshot is taken.
const SNAPSHOT_FACTOR: usize = 3;
/// And at least this many rows.
const SNAPSHOT_ROWS: usize = 1_000_000;
/// Deltas of a small state before a snapshot is taken all the same: each is a
/// file, and a start opens all of them.
const SNAPSHOT_DELTAS: usize = 64;
/// Of a larger state, one delta more for so many rows: a snapshot then costs each
/// batch no more than so many rows.
const ROWS_A_DELTA: usize = 2_000;

/// Rows of one state, to be kept as a batch's version.
#[derive(Debug)]
pub(crate) struct KeptState {
    name: String,
    delta: Vec<RecordBatch>,
    /// All rows, when a snapshot is due.
    whole: Option<Vec<RecordBatch>>,
}

/// What recovery found.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    pub(crate) last: Option<(BatchId, Timestamp)>,
    pub(crate) positions: BTreeMap<String, Position>,
    pub(crate) watermarks: BTreeMap<String, Timestamp>,
    pub(crate) streams: BTreeMap<String, Watermark>,
}

#[derive(Debug)]
struct StateEntry {
    files: StateFiles,
    /// Rows of deltas since the last snapshot.
    since: usize,
    /// Number of those deltas.
    deltas: usize,
}

/// The durable side of a program; one owner a directory.
#[derive(Debug)]
pub(crate) struct Keep {
    log: Arc<Log>,
    ledger: Mutex<Ledger>,
    /// The next batch, planned while the one before commits.
    ahead: Mutex<Option<Batch>>,
    states: Mutex<BTreeMap<String, StateEntry>>,
    topics: Mutex<BTreeMap<String, Arc<Topic>>>,
    dead: Arc<DeadLetters>,
    replays: Arc<Replays>,
    /// Where the directory can be copied by another process meanwhile.
    gate: Option<Gate>,
    disk: Arc<dyn Disk>,
    root: std::path::PathBuf,
    program: String,
    sync: Sync,
    /// Held for its lock, where there can be another owner; dropped last.
    _dir: Option<DataDir>,
}

impl Keep {
    /// Takes ownership of the directory and recovers its log and ledger.
    pub(crate) fn open(path: &Path, config: &Config) -> Result<Self> {
        let disk = Arc::clone(&config.disk);
        let dir = disk.is_shared().then(|| DataDir::open(path)).transpose()?;
        let log = Arc::new(Log::open(Arc::clone(&disk), &path.join("log"), Arc::clone(&config.clock))?);
        let root = path.join("programs").join(&config.name);
        let ledger = Ledger::open(Arc::clone(&disk), &root.join("ledger"))?;
        let bound = Some(config.dead_retention);
        let dead = open_topic(&log, &format!("{}.dead", config.name), dead_schema(), 1, Sync::Always, bound)?;
        let replays = Arc::new(Replays::open(&log, &dead, &disk, &config.name, &root)?);
        Ok(Self {
            log,
            ledger: Mutex::new(ledger),
            ahead: Mutex::default(),
            states: Mutex::default(),
            topics: Mutex::default(),
            dead: Arc::new(DeadLetters::new(dead)),
            replays,
            gate: dir.is_some().then(|| Gate::of(path)).transpose()?,
            disk,
            root,
            program: config.name.clone(),
            sync: config.sync,
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

    /// Where an output into a topic finds its log.
    pub(crate) fn place(&self, output: &str, sync: Sync) -> TopicPlace {
        TopicPlace {
            log: Arc::clone(&self.log),
            disk: Arc::clone(&self.disk),
            staged: self.root.join("staged").join(output),
            owner: format!("{}/{output}", self.program),
            sync,
        }
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
    pub(crate) fn reads(&self, stream: &str, topic: &Arc<Topic>) -> Result<()> {
        self.topics.lock().insert(stream.to_string(), Arc::clone(topic));
        self.pin(stream, topic)
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
                    topic.unpin(&owner)?;
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

    /// Reads where the program stopped and gives the states their rows.
    pub(crate) fn recover(&self, registry: &StateRegistry) -> Result<Recovered> {
        let recovered = {
            let mut ledger = self.ledger.lock();
            let operators = registry
                .all()
                .iter()
                .map(|o| OperatorEntry {
                    name: o.name().to_string(),
                    kind: o.kind().to_string(),
                    fingerprint: fingerprint(&o.schema()),
                })
                .collect::<Vec<_>>();
            refuse_strangers(&self.program, &ledger, &operators)?;
            ledger.set_operators(operators)?;
            Recovered {
                last: ledger.last().map(|last| (last.batch, last.time)),
                positions: ledger.positions().clone(),
                watermarks: ledger.last().map(|last| last.watermarks.clone()).unwrap_or_default(),
                streams: ledger.last().map(|last| last.streams.clone()).unwrap_or_default(),
            }
        };
        for operator in registry.all() {
            // A directory each: versions are numbered alike in all of them.
            let dir = self.root.join("state").join(operator.name());
            let files = StateFiles::open(Arc::clone(&self.disk), &dir, operator.name(), operator.schema())?;
            self.states.lock().insert(operator.name().to_string(), StateEntry { files, since: 0, deltas: 0 });
        }
        self.restore(registry)?;
        Ok(recovered)
    }

    /// Sets all states back to the last committed batch.
    pub(crate) fn restore(&self, registry: &StateRegistry) -> Result<()> {
        let last = self.ledger.lock().last().map(|last| last.batch);
        let mut states = self.states.lock();
        for operator in registry.all() {
            let entry = states.get_mut(operator.name()).ok_or_else(|| Error::internal("a state without files"))?;
            let versions: Vec<Version> = match last {
                Some(last) => {
                    entry.files.truncate_after(last)?;
                    entry
                        .files
                        .load(last)?
                        .into_iter()
                        .map(|(_, kind, rows)| Version { whole: kind == StateKind::Snapshot, rows })
                        .collect()
                }
                None => {
                    entry.files.truncate_after(BatchId(0))?;
                    Vec::new()
                }
            };
            entry.since = versions.iter().filter(|v| !v.whole).flat_map(|v| &v.rows).map(RecordBatch::num_rows).sum();
            entry.deltas = versions.iter().filter(|v| !v.whole).count();
            operator.restore(&versions)?;
        }
        Ok(())
    }

    /// Records a batch before it runs. While the batch before still commits,
    /// the record waits for that commit: until its own commit nothing of a batch
    /// can be seen, so a plan that is lost with a crash is harmless.
    pub(crate) fn plan(&self, batch: &Batch) -> Result<()> {
        let mut ledger = self.ledger.lock();
        if ledger.planned().is_some_and(|planned| planned.id.0 + 1 == batch.id.0) {
            *self.ahead.lock() = Some(batch.clone());
            return Ok(());
        }
        ledger.plan(batch)
    }

    /// As [`Keep::plan`], and durable: for outputs that may be seen before the
    /// commit, which must find the same records when the batch runs again.
    pub(crate) fn plan_durably(&self, batch: &Batch) -> Result<()> {
        let mut ledger = self.ledger.lock();
        ledger.plan(batch)?;
        tokio::task::block_in_place(|| ledger.sync_plan())
    }

    /// The batch that was planned and not committed before a crash.
    pub(crate) fn planned(&self) -> Option<Batch> {
        self.ledger.lock().planned().cloned()
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
            let delta = operator.delta(batch)?;
            let rows: usize = delta.iter().map(RecordBatch::num_rows).sum();
            let entry = states.get_mut(operator.name()).ok_or_else(|| Error::internal("a state without files"))?;
            entry.since += rows;
            entry.deltas += usize::from(!delta.is_empty());
            let due = entry.since > (operator.rows() * SNAPSHOT_FACTOR).max(SNAPSHOT_ROWS)
                || entry.deltas >= SNAPSHOT_DELTAS + operator.rows() / ROWS_A_DELTA;
            let whole = if due {
                (entry.since, entry.deltas) = (0, 0);
                Some(operator.snapshot()?)
            } else {
                None
            };
            kept.push(KeptState { name: operator.name().to_string(), delta, whole });
        }
        Ok(kept)
    }

    /// Makes a batch durable, ending with the ledger's record. May be repeated.
    pub(crate) fn commit(
        &self,
        batch: &Batch,
        kept: &[KeptState],
        (watermarks, streams): (&BTreeMap<String, Timestamp>, &BTreeMap<String, Watermark>),
        staged: &BTreeMap<String, Vec<StagedPart>>,
        dead: &[DeadLetter],
    ) -> Result<()> {
        tokio::task::block_in_place(|| {
            self.sync_inputs(batch)?;
            let waiting = self.dead.waiting();
            if !(dead.is_empty() && waiting.is_empty()) {
                // Letters are durable under the batch's number before its commit, so the same number
                // must mean the same records when the batch runs again.
                self.ledger.lock().sync_plan()?;
                self.dead.commit(batch.id, dead, &waiting)?;
            }
            let mut states = self.states.lock();
            for state in kept {
                let entry = states.get_mut(&state.name).ok_or_else(|| Error::internal("a state without files"))?;
                if !state.delta.is_empty() {
                    entry.files.save_delta(batch.id, &state.delta)?;
                }
                if let Some(rows) = &state.whole {
                    entry.files.save_snapshot(batch.id, rows.iter().cloned())?;
                }
            }
            drop(states);
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
                        ..Committed::default()
                    })?;
                }
                let mut ahead = self.ahead.lock();
                if let Some(next) = &*ahead {
                    ledger.plan(next)?;
                    *ahead = None;
                }
            }
            // After the commit point: older versions are needed no more.
            let mut states = self.states.lock();
            for state in kept.iter().filter(|state| state.whole.is_some()) {
                if let Some(entry) = states.get_mut(&state.name) {
                    entry.files.prune(batch.id)?;
                }
            }
            Ok(())
        })
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

/// Columns as text: what a state file must have to be taken over.
fn fingerprint(schema: &SchemaRef) -> String {
    schema
        .fields()
        .iter()
        .map(|f| format!("{}:{}{}", f.name(), f.data_type(), if f.is_nullable() { "?" } else { "" }))
        .collect::<Vec<_>>()
        .join(",")
}

/// A state that this program does not know, or of other types, is never dropped in silence.
fn refuse_strangers(program: &str, ledger: &Ledger, now: &[OperatorEntry]) -> Result<()> {
    for before in ledger.operators() {
        match now.iter().find(|o| o.name == before.name) {
            None => {
                let names: Vec<&str> = now.iter().map(|o| o.name.as_str()).collect();
                let hint = tidemill_core::nearest(&before.name, &names)
                    .map_or(String::new(), |n| format!("; was it renamed to `{n}`?"));
                return Err(Error::user(format!(
                    "program `{program}` kept state under `{}` ({}), and no operator has that name now{hint} Keep the name, or start in a new data directory",
                    before.name, before.kind
                )));
            }
            Some(same) if same.fingerprint != before.fingerprint => {
                return Err(Error::user(format!(
                    "the state of `{}` in program `{program}` has the columns {} and would now have {}: start in a new data directory, or give the operator another name",
                    before.name, before.fingerprint, same.fingerprint
                )));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::testing::{run, run_kept};
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
            (0..1003_i64).map(|batch| vec![(format!("k{}", batch % 7), batch), ("all".to_string(), 1)]).collect();
        let dir = tempfile::tempdir().unwrap();
        run_kept(dir.path(), &input, program, 2, 0..1000).unwrap();
        let (all, most) = state_files(dir.path());
        assert!(most <= 2 * super::SNAPSHOT_DELTAS && all >= 1, "{most} files of a state after 1000 batches");
        let mut got = run_kept(dir.path(), &input, program, 1, 1000..1003).unwrap();
        let mut want = run(input, program, 1).unwrap().split_off(1000);
        got.iter_mut().chain(&mut want).for_each(|batch| batch.sort());
        assert_eq!(got, want);
    }
}
