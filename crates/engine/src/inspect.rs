//! Looking at a program beside its batches: what a start would change, and one
//! batch run again.
//!
//! ```text
//! batch 17:  ranges from the ledger ─► state of batch 16 ─► plans of now ─► rows, state after    nothing is written
//! ```
//!
//! Invariant: neither ledger nor state nor output changes, and the program may be
//! running: [`StreamingContext::changes`] only reads, [`StreamingContext::replay_batch`]
//! works on the data directory as it was after one commit, frozen in memory.
//! [`again`] does the same within the process that runs the program, in bounds.

mod again;
mod bounds;
mod gaps;
mod steps;

use crate::{
    StreamingContext,
    batch::{Keep, Pipeline, of_plan},
    change::{self, Changes, fill_columns, migrated_rows, migration, refuse_lost_commits},
    config::Config,
    emit::OutputKind,
    ingest::Intakes,
    plan::{BatchRun, SourceExec, counted},
    state::{
        StateOperator, StateRegistry, Version,
        look::{self, keys_of},
    },
};
use arrow_array::{BooleanArray, RecordBatch};
use bounds::{Bounds, Taken};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tidemill_core::{Batch, BatchId, DeadLetter, Error, OperatorReport, PlanReport, Result, Timestamp};
use tidemill_store::{FrozenDisk, Past, ledger::ProgramEntry};

/// A batch that was run again, to be looked at.
#[derive(Debug, Clone)]
pub struct Replayed {
    /// Its number, time and ranges.
    pub batch: Batch,
    /// The rows that it read, by stream, with offset, partition and arrival.
    pub inputs: Vec<(String, Vec<RecordBatch>)>,
    /// The plan of each output.
    pub plans: Vec<(String, String)>,
    /// What it changed in each state.
    pub states: Vec<StateChange>,
    /// The rows of each output.
    pub outputs: Vec<(String, Vec<RecordBatch>)>,
    /// Records that it refused.
    pub refused: Vec<DeadLetter>,
    /// Watermarks after it, by stream or operator.
    pub watermarks: BTreeMap<String, Timestamp>,
    /// What its operators gave and took this time.
    pub operators: Vec<OperatorReport>,
    /// Records of each stream, of which the first are in `inputs`.
    pub(crate) read: BTreeMap<String, u64>,
    /// Rows of each output, of which the first are in `outputs`.
    pub(crate) given: BTreeMap<String, u64>,
    /// The plan of each output, with what its steps gave and took.
    pub(crate) steps: Vec<PlanReport>,
    /// The rows of outputs into topics as they were written then, or why they are not known.
    pub(crate) written: BTreeMap<String, std::result::Result<Taken, String>>,
    /// The text of the program that ran it then.
    pub(crate) text: Option<String>,
}

/// The rows of a state that a batch changed.
#[derive(Debug, Clone)]
pub struct StateChange {
    /// The operator.
    pub operator: String,
    /// Its rows before, of the keys that changed.
    pub before: Vec<RecordBatch>,
    /// And after.
    pub after: Vec<RecordBatch>,
    /// What is to be known about them, such as columns that could not be taken over.
    pub note: Option<String>,
    /// Rows after the batch as they were kept then, and as they are now, of the keys that differ.
    pub(crate) differ: Option<(Vec<RecordBatch>, Vec<RecordBatch>)>,
}

impl StreamingContext {
    /// What a start of the program as it is declared would do with the state
    /// that is kept; `None` when none is. Nothing is written, and the program
    /// may be running.
    ///
    /// # Errors
    /// When the program can't be planned, or what is kept can't be read.
    pub fn changes(&self) -> Result<Option<Changes>> {
        let outputs = self.declare.outputs()?;
        let states = StateRegistry::default();
        let plans = crate::batch::lower(&self.config, &states, outputs.clone())?;
        let (Some(past), Some(data)) = (past_of(&self.config)?, &self.config.data_dir) else { return Ok(None) };
        let root = data.join("programs").join(&self.config.name);
        refuse_lost_commits(&self.config.disk, &root, &self.config.name, &past)?;
        let now = change::describe(&states, &plans, &outputs, self.sql.text())?;
        let reach = change::reach(&*self.config.disk, data, &self.config.name, &self.declare.inputs())?;
        let undos = change::topics_undo(&*self.config.disk, data, &self.config.name, &past, &plans)?;
        change::compare(&self.config.name, &past, &now, (&plans, &undos), &self.config.asked, &reach).map(Some)
    }

    /// Runs a batch that the program has committed once more, by the program
    /// as it is declared here, over the same records and the state before it.
    /// Writes nothing and shows nothing; the program may be running. The context
    /// can't be started afterwards.
    ///
    /// # Errors
    /// When the batch or the state before it is not kept any more, or the records
    /// are gone.
    pub fn replay_batch(&self, batch: BatchId) -> Result<Replayed> {
        self.replay_within(batch, &Bounds::NONE)
    }

    fn replay_within(&self, batch: BatchId, bounds: &Bounds) -> Result<Replayed> {
        let mut config = self.config.clone();
        config.memory = Arc::new(config.memory.aside());
        if let Some(data) = config.data_dir.as_ref().filter(|data| config.disk.is_shared() && data.is_dir()) {
            config.disk = Arc::new(FrozenDisk::at_a_commit(data)?);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(bounds.threads)
            .thread_name("tidemill-again")
            .enable_all()
            .build()
            .map_err(|e| Error::external("can't start threads").because(e))?;
        let replayed = runtime.block_on(bounds.in_time(Pipeline::replay(self, &config, batch, bounds)));
        runtime.shutdown_background();
        replayed
    }
}

impl Pipeline {
    async fn replay(context: &StreamingContext, config: &Config, id: BatchId, bounds: &Bounds) -> Result<Replayed> {
        let past = past_of(config)?
            .ok_or_else(|| Error::user(format!("program `{}` has committed no batch there", context.name())))?;
        let Some(batch) = past.recent().find(|kept| kept.id == id).cloned() else {
            let kept = match (past.recent().next(), past.recent().next_back()) {
                (Some(first), Some(last)) => format!("batches {} to {} are", first.id, last.id),
                _ => "none is".to_string(),
            };
            return Err(Error::user(format!("batch {id} is not kept: {kept}")));
        };
        let before = past.recent().rev().find(|kept| kept.id < id).map_or(BatchId(0), |kept| kept.id);
        if before.0 == 0 && id.0 > 1 && past.recent().next().is_some_and(|first| first.id == id) {
            return Err(Error::user(format!("what was before batch {id} is not kept any more: take a later one")));
        }
        let mut this = Self::aside(context, config, &past)?;
        if let (Some(keep), Some(data)) = (&this.keep, &config.data_dir) {
            gaps::refuse(keep, data, &config.name, &batch)?;
        }
        if let Some(bytes) = bounds.memory {
            this = this.within(bytes)?;
        }
        // A commit of a version that kept none of the past has no watermarks: event time begins anew.
        let commit = past.commit(before).cloned().unwrap_or_default();
        let last = past.recent().find(|kept| kept.id == before).map(|kept| (before, kept.time));
        this.stand_at(last, commit.watermarks, commit.streams);
        let Some(keep) = &this.keep else { return Err(Error::internal("a replay without a directory")) };
        let program = past.program_at(id);
        let mut notes = BTreeMap::new();
        for operator in this.states.all() {
            notes.insert(operator.name().to_string(), restore(keep, &program, &operator, before)?);
            if operator.recalls() {
                recall(keep, &program, &operator, &batch)?;
            }
        }
        let shown = |operator: &Arc<dyn StateOperator>| {
            let fits = operator.rows() <= bounds.state_rows;
            fits.then(|| operator.shown()).transpose()
        };
        let states_before = this.states.all().iter().map(shown).collect::<Result<Vec<_>>>()?;
        let (mut inputs, mut read) = (Vec::new(), BTreeMap::new());
        for (name, taken) in this.rows_of(&batch, bounds).await? {
            read.insert(name.clone(), taken.total);
            inputs.push((name, taken.rows));
        }
        let run = Arc::new(this.begin(&batch));
        let (mut outputs, mut given) = (Vec::new(), BTreeMap::new());
        for (name, taken) in this.collect_aside(&run, bounds).await? {
            given.insert(name.clone(), taken.total);
            outputs.push((name, taken.rows));
        }
        let (operators, _) = this.work_of(&run);
        let mut states = Vec::new();
        for (operator, before) in this.states.all().into_iter().zip(states_before) {
            let note = notes.remove(operator.name()).flatten();
            let name = operator.name().to_string();
            let (Some(before), Some(after)) = (before, shown(&operator)?) else {
                let note =
                    Some(format!("its {} rows are too many to find out what the batch changed", operator.rows()));
                states.push(StateChange { operator: name, before: vec![], after: vec![], note, differ: None });
                continue;
            };
            let differ = if bounds.compares { kept_then(keep, &program, &operator, id, &after)? } else { None };
            let (before, after) = changed(before, after, operator.keys())?;
            states.push(StateChange { operator: name, before, after, note, differ });
        }
        let plans = this
            .outputs
            .iter()
            .map(|o| {
                let plan = datafusion::physical_plan::displayable(o.plan.as_ref()).indent(false).to_string();
                (o.name.clone(), plan)
            })
            .collect();
        let steps = this.outputs.iter().map(|o| steps::of(&o.name, o.plan.as_ref(), &operators)).collect();
        let mut refused = std::mem::take(&mut *run.dead.lock());
        refused.sort_by(|a, b| (&a.stream, &a.partition, a.offset).cmp(&(&b.stream, &b.partition, b.offset)));
        refused.dedup_by(|a, b| (&a.stream, &a.partition, a.offset) == (&b.stream, &b.partition, b.offset));
        let watermarks = run.watermarks_after();
        let written = if bounds.compares { this.written(keep, &past, id, bounds.rows) } else { BTreeMap::new() };
        let text = program.text;
        Ok(Replayed {
            batch,
            inputs,
            plans,
            states,
            outputs,
            refused,
            watermarks,
            operators,
            read,
            given,
            steps,
            written,
            text,
        })
    }

    /// The program with its inputs open, and nothing started or taken over.
    fn aside(context: &StreamingContext, config: &Config, past: &Past) -> Result<Self> {
        let mut taken = context.declare.take()?;
        let states = StateRegistry::default();
        let outputs = crate::batch::lower(config, &states, taken.outputs)?;
        let data = config
            .data_dir
            .as_ref()
            .ok_or_else(|| Error::user("a batch that was kept lies in a data directory: give the context one"))?;
        let keep = Keep::open(data, config)?;
        let known: BTreeSet<&String> = past.recent().flat_map(|batch| batch.ranges.keys()).collect();
        for ingest in &mut taken.ingests {
            // Nothing is made or set on the way.
            ingest.retention = None;
            if keep.log().topic(&ingest.stream).is_none() {
                let names = known.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
                return Err(Error::user(format!(
                    "stream `{}` has no records in the log; the program has read {names}",
                    ingest.stream
                )));
            }
        }
        let board = context.board();
        let intakes = Intakes::open(taken.ingests, &keep, config, &board)?;
        taken.topic_inputs.iter().try_for_each(|input| input.open(&keep))?;
        Ok(Self::assembled(config, board, (taken.inputs, outputs, states), Some(keep), Some(intakes)))
    }

    /// The rows that the batch reads, by stream.
    async fn rows_of(&self, batch: &Batch, bounds: &Bounds) -> Result<Vec<(String, Taken)>> {
        let mut all = Vec::new();
        for input in &self.inputs {
            let run = Arc::new(self.begin(batch));
            let columns = (0..input.schema.fields().len()).collect();
            let plan = SourceExec::plan(Arc::clone(input), columns, 1)?;
            let rows = plan.execute(0, self.task(&run)).map_err(of_plan)?;
            all.push((input.name.clone(), Taken::of(rows, bounds.inputs).await.map_err(of_plan)?));
        }
        Ok(all)
    }

    /// Runs the plans of all outputs and gives their rows.
    async fn collect_aside(&self, run: &Arc<BatchRun>, bounds: &Bounds) -> Result<Vec<(String, Taken)>> {
        use datafusion::physical_plan::ExecutionPlanProperties;
        let (task, most) = (self.task(run), bounds.rows);
        let mut parts = tokio::task::JoinSet::new();
        for (at, output) in self.outputs.iter().enumerate() {
            for part in 0..output.plan.output_partitioning().partition_count() {
                let rows = output.plan.execute(part, Arc::clone(&task)).map_err(of_plan)?;
                let rows = counted(Some(&output.step), true, rows, run);
                parts.spawn(async move { Taken::of(rows, most).await.map(|taken| (at, part, taken)) });
            }
        }
        let mut collected = Vec::new();
        while let Some(part) = parts.join_next().await {
            let part = part.map_err(|e| Error::internal("a step panicked").because(e))?;
            collected.push(part.map_err(of_plan)?);
        }
        run.finish().await.map_err(of_plan)?;
        collected.sort_by_key(|(at, part, _)| (*at, *part));
        let mut all: Vec<_> = self.outputs.iter().map(|output| (output.name.clone(), Taken::default())).collect();
        for (at, _, taken) in collected {
            all[at].1.add(taken, most);
        }
        Ok(all)
    }

    /// What the batch put into topics, by output.
    fn written(
        &self,
        keep: &Keep,
        past: &Past,
        id: BatchId,
        most: usize,
    ) -> BTreeMap<String, std::result::Result<Taken, String>> {
        let read = |topic: &str| {
            let since = past.filled().get(topic).map_or(BatchId(0), |filled| filled.since);
            let commit = past.commit(id).filter(|_| since < id);
            let commit = commit.ok_or("the ledger does not know where in the topic its rows lie")?;
            let mut taken = Taken::default();
            let Some(ranges) = commit.written.get(topic) else { return Ok(taken) };
            let topic = keep.log().topic(topic).ok_or("the topic is gone")?;
            for range in ranges {
                let partition = range.partition.0.parse().map_err(|_| "the topic has other partitions now")?;
                for rows in topic.read(partition, range.start, range.end) {
                    taken.take(rows.map_err(|e| format!("its rows can't be read any more: {}", e.chain()))?.rows, most);
                }
            }
            Ok::<_, String>(taken)
        };
        let sinks = self.outputs.iter().filter_map(|output| match &output.kind {
            OutputKind::Sink(sink) => Some((output.name.clone(), sink.topic()?)),
            OutputKind::View { .. } | OutputKind::Call(_) | OutputKind::Kept(_) => None,
        });
        sinks.map(|(output, topic)| (output, read(topic))).collect()
    }
}

/// What the ledger of a program keeps.
fn past_of(config: &Config) -> Result<Option<Past>> {
    let Some(data) = &config.data_dir else { return Ok(None) };
    let root = data.join("programs").join(&config.name);
    let Some(mut past) = Past::read(&*config.disk, &root.join("ledger"))? else { return Ok(None) };
    fill_columns(&config.disk, &root, &mut past)?;
    Ok(Some(past))
}

/// Gives an operator the state that it had after `version`, under its columns of now.
fn restore(
    keep: &Keep,
    program: &ProgramEntry,
    operator: &Arc<dyn StateOperator>,
    version: BatchId,
) -> Result<Option<String>> {
    operator.restore(&[])?;
    if version.0 == 0 {
        return Ok(None);
    }
    let Some(entry) = program.operators.iter().find(|entry| entry.name == operator.name()) else {
        return Ok(Some("it had no state then, and begins empty".to_string()));
    };
    let Some((from, versions)) = look::versions(&keep.disk, &keep.root.join("state"), entry, version)? else {
        return Ok(None);
    };
    let (to, keys) = (operator.schema(), operator.keys());
    match migration(&from, entry.keys.unwrap_or(keys), &to, keys) {
        Err(why) => Ok(Some(format!("its state can't be taken over ({why}), and it begins empty"))),
        Ok(steps) => {
            let neutral = operator.neutral()?;
            let taken = |version: Version| {
                let rows = version.rows.iter().map(|rows| migrated_rows(rows, &to, neutral.as_ref()));
                Ok(Version { rows: rows.collect::<Result<_>>()?, ..version })
            };
            operator.restore(&versions.into_iter().map(taken).collect::<Result<Vec<_>>>()?)?;
            Ok((!steps.is_empty()).then(|| steps.join("; ")))
        }
    }
}

/// Gives an operator what it was told from outside in `batch`, as far as that is known under its columns of now.
fn recall(keep: &Keep, program: &ProgramEntry, operator: &Arc<dyn StateOperator>, batch: &Batch) -> Result<()> {
    let Some(entry) = program.operators.iter().find(|entry| entry.name == operator.name()) else { return Ok(()) };
    match look::versions(&keep.disk, &keep.root.join("state"), entry, batch.id)? {
        Some((from, versions)) if from.fields() == operator.schema().fields() => operator.recall(batch, &versions),
        _ => Ok(()),
    }
}

/// Rows after `batch` as they were kept then, and of those `after` it now, of the keys that differ;
/// `None` where the two can't be compared.
fn kept_then(
    keep: &Keep,
    program: &ProgramEntry,
    operator: &Arc<dyn StateOperator>,
    batch: BatchId,
    after: &[RecordBatch],
) -> Result<Option<(Vec<RecordBatch>, Vec<RecordBatch>)>> {
    let Some(entry) = program.operators.iter().find(|entry| entry.name == operator.name()) else { return Ok(None) };
    // A version that was given up meanwhile can't be compared, which is no fault of the run.
    let Ok(Some((from, versions))) = look::versions(&keep.disk, &keep.root.join("state"), entry, batch) else {
        return Ok(None);
    };
    let Some(fresh) = operator.fresh().filter(|_| from.fields() == operator.schema().fields()) else { return Ok(None) };
    fresh.restore(&versions)?;
    changed(fresh.shown()?, after.to_vec(), operator.keys()).map(Some)
}

/// The rows of the keys whose rows differ.
fn changed(
    before: Vec<RecordBatch>,
    after: Vec<RecordBatch>,
    keys: usize,
) -> Result<(Vec<RecordBatch>, Vec<RecordBatch>)> {
    let by_key = |batches: &[RecordBatch]| -> Result<BTreeMap<String, Vec<String>>> {
        let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for rows in batches {
            for (key, row) in keys_of(rows, keys)?.into_iter().zip(keys_of(rows, usize::MAX)?) {
                all.entry(key).or_default().push(row);
            }
        }
        all.values_mut().for_each(|rows| rows.sort());
        Ok(all)
    };
    let (old, new) = (by_key(&before)?, by_key(&after)?);
    let differ = |key: &String| old.get(key) != new.get(key);
    let only = |batches: Vec<RecordBatch>| -> Result<Vec<RecordBatch>> {
        let mut kept = Vec::new();
        for rows in batches {
            let keep: BooleanArray = keys_of(&rows, keys)?.iter().map(|key| Some(differ(key))).collect();
            let rows = arrow_select::filter::filter_record_batch(&rows, &keep)
                .map_err(|e| Error::internal("rows of a state").because(e))?;
            if rows.num_rows() > 0 {
                kept.push(rows);
            }
        }
        Ok(kept)
    };
    Ok((only(before)?, only(after)?))
}
