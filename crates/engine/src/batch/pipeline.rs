//! A started program: its parts, and the loop that ticks.
//!
//! Invariant: at most one batch runs and at most one commits; the commit of a
//! batch ends before the next one's begins ([`super::committing`]).

use super::{
    Keep, RateControl, Trigger,
    clock::Tick,
    committing::Committing,
    lower::lowered,
    patience::{Patience, Tries},
    rate::Pid,
    retain::Retaining,
    run::Ran,
    told::{self, Told},
};
use crate::{
    change::{Changes, Rebuilt, describe, moved, reach, refuse, topics_undo},
    config::Config,
    declare::{Declare, Taken},
    emit::{Output, OutputKind},
    ingest::{Intakes, Watch},
    plan::{BatchRun, Going, Stages, Step, StreamInput},
    state::StateRegistry,
};
use datafusion::{
    execution::{
        TaskContext,
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    physical_plan::ExecutionPlan,
    prelude::SessionConfig,
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};
use tidemill_core::{
    Batch, BatchId, BatchReport, Board, DeadLetter, Duration, Error, Guarantee, Phase, Position, Result, Stage, Stop,
    Stretch, Timestamp, Watermark, WatermarkSpec,
};
use tidemill_store::{Past, ledger::ProgramEntry};

/// An output and its kept plan.
#[derive(Debug, Clone)]
pub(crate) struct OutputPlan {
    pub(crate) name: String,
    pub(crate) kind: OutputKind,
    pub(crate) plan: Arc<dyn ExecutionPlan>,
    /// Whether the plan has nodes that keep something from a run and must be reset.
    pub(crate) resets: bool,
    /// The operator whose rows it gives.
    pub(crate) node: String,
    /// Under what its rows are counted.
    pub(crate) step: Arc<Step>,
}

/// A started program.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) outputs: Vec<OutputPlan>,
    pub(crate) inputs: Vec<Arc<StreamInput>>,
    pub(crate) states: StateRegistry,
    pub(crate) keep: Option<Keep>,
    pub(crate) board: Arc<Board>,
    /// Whether an output can be seen before the commit: a callback, or a sink that is at-least-once.
    pub(super) early: bool,
    pub(crate) config: Config,
    session: SessionConfig,
    runtime: Arc<RuntimeEnv>,
    pub(super) progress: Mutex<Progress>,
    pub(super) intakes: Mutex<Option<Intakes>>,
    pub(super) retaining: Mutex<Retaining>,
    /// How long what fails outside is tried again.
    patience: Patience,
    /// Streams whose share of dead letters is bounded.
    watches: Mutex<BTreeMap<String, Watch>>,
    /// Streams that receivers fill.
    pub(super) received: HashSet<String>,
    pub(super) told: Mutex<Told>,
}

/// Where the program stands after the last batch that ran.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) last: Option<(BatchId, Timestamp)>,
    pub(super) positions: BTreeMap<String, Position>,
    pub(super) watermarks: BTreeMap<String, Timestamp>,
    /// What the watermarks of streams follow from.
    pub(super) streams: BTreeMap<String, Watermark>,
    /// How they follow their records; `None` before the first batch of this life.
    pub(super) followed: Option<BTreeMap<String, WatermarkSpec>>,
    pub(super) rate: Option<f64>,
    /// When inputs were asked last what they have, for the batch that comes of it.
    pub(super) looked: Option<Stretch>,
    /// When this start had recovered: ticks before it were due while nobody ran.
    pub(super) began: Timestamp,
}

/// What a program is told that gives nothing to anyone.
pub(crate) fn no_output() -> Error {
    Error::user("the program has no output: add a view, a sink, print or foreach_batch")
}

impl Pipeline {
    /// Recovers and plans a program. Called within its runtime.
    pub(crate) fn open(
        config: &Config,
        declare: &Declare,
        board: Arc<Board>,
        text: Option<String>,
    ) -> Result<Arc<Self>> {
        board.update_program(|program| {
            program.name.clone_from(&config.name);
            program.started = config.clock.now();
            program.phase = Phase::Starting;
        });
        let Taken { inputs, ingests, outputs, topic_sinks, topic_inputs } = declare.take()?;
        if outputs.is_empty() {
            return Err(no_output());
        }
        let states = StateRegistry::default();
        let declared = outputs;
        let (outputs, reads) = lowered(config, &states, declared.clone())?;
        board.publish_graph(told::graph(&inputs, (&outputs, &declared), &reads));
        let received = ingests.iter().map(|ingest| ingest.stream.clone()).collect();
        let keep = config.data_dir.as_ref().map(|path| Keep::open(path, config)).transpose()?;
        let program = describe(&states, &outputs, &declared, text)?;
        let mut undos = BTreeMap::new();
        let changes = match (&keep, &config.data_dir) {
            (Some(keep), Some(data)) => {
                let reach = reach(&*config.disk, data, &config.name, &inputs)?;
                undos = topics_undo(&*config.disk, data, &config.name, &keep.past(), &outputs)?;
                Some(keep.compare(&program, (&outputs, &undos), &config.asked, &reach)?)
            }
            _ => None,
        };
        if let Some(changes) = changes.as_ref().filter(|changes| !changes.are_free() && !config.asked.accept) {
            return Err(refuse(changes));
        }
        let mut anew = Vec::new();
        // Rows may be cut off here: who copies the directory sees all of that or nothing.
        let passing = keep.as_ref().filter(|_| !undos.is_empty()).map(Keep::pass_gate).transpose()?;
        for output in &outputs {
            let Some(sink) = topic_sinks.get(&output.name) else { continue };
            if let Some(keep) = &keep {
                sink.place(keep.place(&output.name, config.sync, sink.topic(), undos.get(sink.topic())));
            }
            if sink.make(&output.plan.schema())? {
                anew.push(sink.topic().to_string());
            }
        }
        drop(passing);
        let intakes = match &keep {
            Some(keep) => Some(Intakes::open(ingests, keep, config, &board)?),
            None => None,
        };
        if let Some(keep) = &keep {
            topic_inputs.iter().try_for_each(|input| input.open(keep))?;
            keep.forget_other_streams()?;
        }
        let this = Self::assembled(config, board, (inputs, outputs, states), keep, intakes);
        let this = Arc::new(Self { received, ..this });
        this.tell_of_sources();
        if let Some(changes) = changes {
            this.take_over(&changes, (program, anew), &declared)?;
        }
        this.progress.lock().began = config.clock.now();
        Ok(this)
    }

    /// The parts put together, as nothing has run.
    pub(crate) fn assembled(
        config: &Config,
        board: Arc<Board>,
        (inputs, outputs, states): (Vec<Arc<StreamInput>>, Vec<OutputPlan>, StateRegistry),
        keep: Option<Keep>,
        intakes: Option<Intakes>,
    ) -> Self {
        let early = outputs.iter().any(|output| match &output.kind {
            OutputKind::Call(_) => true,
            OutputKind::Sink(sink) => sink.guarantee() == Guarantee::AtLeastOnce,
            OutputKind::View { .. } | OutputKind::Kept(_) => false,
        });
        for input in &inputs {
            if let Some(keep) = &keep {
                input.replay_from(keep.replays());
            }
        }
        let watches = inputs.iter().filter_map(|input| {
            let bound = input.dead_share.get().copied().or(config.dead_share)?;
            Some((input.name.clone(), Watch::new(&input.name, bound)))
        });
        let watches = Mutex::new(watches.collect());
        Self {
            watches,
            outputs,
            early,
            inputs,
            states,
            keep,
            board,
            config: config.clone(),
            session: SessionConfig::new().with_target_partitions(config.partitions),
            runtime: Arc::default(),
            progress: Mutex::default(),
            intakes: Mutex::new(intakes),
            retaining: Mutex::default(),
            received: HashSet::new(),
            told: Mutex::default(),
            patience: Patience::default(),
        }
    }

    /// The same; what its plans sort and group takes so many bytes at most, and nothing on disk.
    pub(crate) fn within(self, bytes: usize) -> Result<Self> {
        let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
        let built = RuntimeEnvBuilder::new().with_memory_limit(bytes, 1.0).with_disk_manager_builder(disk).build_arc();
        let runtime = built.map_err(|e| Error::internal("memory for a plan").because(e))?;
        Ok(Self { runtime, ..self })
    }

    /// Lets the program, some topics of which were made `anew`, take over what is kept, and gives the states their rows.
    fn take_over(
        &self,
        changes: &Changes,
        (program, anew): (ProgramEntry, Vec<String>),
        declared: &[Output],
    ) -> Result<()> {
        let Some(keep) = &self.keep else { return Ok(()) };
        let rebuilt = if changes.rebuilt().next().is_some() {
            let reads = |output: &Output| {
                let (mut seen, mut reads) = (HashSet::new(), false);
                output.node.walk(&mut seen, &mut |node| reads |= changes.rebuilt().any(|c| c.name == node.name));
                reads
            };
            let chosen: Vec<bool> = declared.iter().map(reads).collect();
            let runtime = tokio::runtime::Handle::current();
            tokio::task::block_in_place(|| runtime.block_on(self.rebuild(keep, changes, &chosen)))?
        } else {
            Rebuilt::default()
        };
        keep.apply(changes, (program, anew), &self.states, rebuilt)?;
        keep.restore(&self.states)?;
        let past = keep.past();
        let mut progress = self.progress.lock();
        progress.last = past.last().map(|last| (last.batch, last.time));
        progress.watermarks = past.last().map(|last| last.watermarks.clone()).unwrap_or_default();
        progress.streams = past.last().map(|last| last.streams.clone()).unwrap_or_default();
        progress.positions = past.positions();
        Ok(())
    }

    pub(super) fn now(&self) -> Timestamp {
        self.config.clock.now()
    }

    pub(crate) fn previous_time(&self) -> Option<Timestamp> {
        self.progress.lock().last.map(|(_, time)| time)
    }

    /// The last batch that ran.
    pub(crate) fn last(&self) -> Option<(BatchId, Timestamp)> {
        self.progress.lock().last
    }

    pub(crate) fn watermarks(&self) -> BTreeMap<String, Timestamp> {
        self.progress.lock().watermarks.clone()
    }

    /// As if the last batch had been `last`, with what it left.
    pub(crate) fn stand_at(
        &self,
        last: Option<(BatchId, Timestamp)>,
        watermarks: BTreeMap<String, Timestamp>,
        streams: BTreeMap<String, Watermark>,
    ) {
        let mut progress = self.progress.lock();
        (progress.last, progress.watermarks, progress.streams) = (last, watermarks, streams);
    }

    /// The run of a batch, which goes on where the one before stopped.
    pub(crate) fn begin(&self, batch: &Batch) -> BatchRun {
        let progress = self.progress.lock();
        let gap = progress.last.map_or(Duration::ZERO, |(_, before)| batch.time.since(before));
        let run = BatchRun::new(batch.clone(), progress.watermarks.clone()).with_streams(progress.streams.clone(), gap);
        let run = run.timed(&self.config.clock);
        for input in &self.inputs {
            if let Some(time) = input.event_time() {
                run.follow(&input.name, time.spec, &input.name);
            }
        }
        run
    }

    /// The task context of a batch: its configuration carries the run.
    pub(crate) fn task(&self, run: &Arc<BatchRun>) -> Arc<TaskContext> {
        let session = self.session.clone().with_extension(Arc::clone(run));
        Arc::new(TaskContext::new(
            None,
            self.config.name.clone(),
            session,
            HashMap::new(),
            HashMap::new(),
            HashMap::new(),
            HashMap::new(),
            Arc::clone(&self.runtime),
        ))
    }

    /// Runs batches until told to stop, or until the trigger ends.
    pub(crate) async fn run(self: Arc<Self>, stop: Stop, kill: Stop) -> Result<()> {
        let mut committing = Committing::of(&self);
        self.patience.ends_after(&stop);
        let ended = tokio::select! {
            biased;
            () = kill.stopped() => Ok(()),
            ended = self.go_on(&stop, &mut committing) => ended,
        };
        committing.abort().await;
        let intakes = self.intakes.lock().take();
        if let Some(intakes) = intakes {
            intakes.close().await;
        }
        self.retention_ended().await;
        self.telling_ended().await;
        ended
    }

    /// Ends what the last life began, then runs batches.
    async fn go_on(self: &Arc<Self>, stop: &Stop, committing: &mut Committing) -> Result<()> {
        self.repeat_last_commit().await?;
        if let Some(intakes) = self.intakes.lock().as_ref() {
            intakes.start();
        }
        self.board.update_program(|program| program.phase = Phase::Running);
        self.batches(stop, committing).await
    }

    /// The loop: tick, plan, run, commit.
    async fn batches(self: &Arc<Self>, stop: &Stop, committing: &mut Committing) -> Result<()> {
        let mut pid = match self.config.rate {
            RateControl::Pid { min_rate } => Some(Pid::new(min_rate)),
            RateControl::Fixed(_) | RateControl::Off => None,
        };
        // A batch that was planned before a crash runs first, over the same ranges.
        let mut again = self.keep.as_ref().and_then(Keep::planned);
        let mut draining: Option<Timestamp> = None;
        loop {
            if draining.is_none() && stop.is_stopped() {
                draining = Some(self.patience.end(&*self.config.clock));
                self.board.update_program(|program| program.phase = Phase::Stopping);
                // What receivers hold is appended before the last batches, which then take it.
                let intakes = self.intakes.lock().take();
                if let Some(intakes) = intakes {
                    intakes.close().await;
                }
            }
            let repeated = again.is_some();
            let (batch, tick) = match again.take() {
                Some(batch) => {
                    // It keeps its time, and was not waiting while nobody ran.
                    let tick = Tick::now(batch.time, self.config.clock.now());
                    (batch, tick)
                }
                None => match self.next(stop, draining).await {
                    Err(error) => {
                        // What ran before stays committed.
                        committing.settle().await?;
                        return Err(error);
                    }
                    // The last commit may fill a topic that the program reads: then this is not the end.
                    Ok(next)
                        if next.as_ref().is_none_or(|(batch, _)| self.is_end(batch))
                            && !committing.is_settled()
                            && draining.is_none() =>
                    {
                        committing.settle().await?;
                        continue;
                    }
                    Ok(Some(next)) => next,
                    Ok(None) => break,
                },
            };
            if self.early {
                // What can be seen before its commit must not run beside the commit before it.
                committing.settle().await?;
            }
            let ran = self.live(&batch, (&tick, repeated), committing, &mut pid).await?;
            let last = (self.config.trigger == Trigger::Once && !tick.missed) || (self.is_end(&batch) && !repeated);
            committing.push(self, ran).await?;
            if last {
                break;
            }
        }
        committing.settle().await?;
        self.note_shown().await
    }

    /// Notes that nothing of the last batch is left to be repeated, which a start otherwise does not know.
    async fn note_shown(&self) -> Result<()> {
        let Some(keep) = &self.keep else { return Ok(()) };
        self.persist(|| async { tokio::task::block_in_place(|| keep.shown()) }).await
    }

    /// Runs a batch; when something outside fails, restores state and runs it again.
    pub(super) async fn run_until_done(
        &self,
        batch: &Batch,
        committing: &mut Committing,
        stages: &Stages,
    ) -> Result<(Arc<BatchRun>, Vec<(usize, crate::emit::Emitted)>)> {
        let mut tries = Tries::new(&self.patience, &*self.config.clock);
        let mut failed = false;
        loop {
            let going = Going::begin(&*self.config.clock, Stage::Run, None);
            let ran = self.run_batch(batch).await;
            stages.add(going.end(&ran));
            match ran {
                Ok(ran) => {
                    if failed {
                        self.board.update_program(|program| program.error = None);
                    }
                    return Ok(ran);
                }
                Err(error) if error.is_retryable() && self.keep.is_some() => {
                    tracing::warn!(batch = batch.id.0, error = error.chain(), "a batch failed and will be run again");
                    self.board.update_program(|program| program.error = Some(error.chain()));
                    self.retain_to_make_room();
                    failed = true;
                    committing.settle().await?;
                    if let Some(keep) = &self.keep {
                        // What failed the batch may fail this as well, as when no more files can be opened.
                        self.persist(|| async { keep.restore(&self.states) }).await?;
                    }
                    tries.rest(error).await?;
                }
                Err(error) => {
                    // What ran before stays committed.
                    committing.settle().await?;
                    return Err(error);
                }
            }
        }
    }

    /// Does something idempotent outside until it works; a fault that only a human can mend ends the program.
    pub(crate) async fn persist<T, F: Future<Output = Result<T>>>(&self, mut act: impl FnMut() -> F) -> Result<T> {
        let mut tries = Tries::new(&self.patience, &*self.config.clock);
        let mut failed = false;
        loop {
            match act().await {
                Err(error) if error.is_retryable() => {
                    tracing::warn!(error = error.chain(), "will try again");
                    self.board.update_program(|program| program.error = Some(error.chain()));
                    failed = true;
                    self.retain_to_make_room();
                    tries.rest(error).await?;
                }
                done => {
                    if failed && done.is_ok() {
                        self.board.update_program(|program| program.error = None);
                    }
                    return done;
                }
            }
        }
    }

    /// One batch at `time` over what the inputs have, committed before it
    /// returns; for tests, which move the time themselves.
    pub(crate) async fn step(&self, time: Timestamp) -> Result<()> {
        let id = self.progress.lock().last.map_or(BatchId(1), |(id, _)| BatchId(id.0 + 1));
        let batch = Batch { id, time, ranges: self.ranges().await? };
        if let Some(keep) = &self.keep {
            keep.plan(&batch)?;
        }
        let (run, emitted) = self.run_batch(&batch).await?;
        self.advance(&batch, &run);
        let kept = match &self.keep {
            Some(keep) => keep.gather(batch.id, &self.states)?,
            None => Vec::new(),
        };
        let report = BatchReport { batch: id, time, ..BatchReport::default() };
        self.commit(Ran { run, emitted, report, kept }).await?;
        if self.lags_are_due() {
            self.tell_of_lags().await;
        }
        self.retain_to_make_room();
        self.note_shown().await
    }

    /// Whether too much was refused to commit the batch.
    ///
    /// # Errors
    /// When it was: with the share and some of the reasons.
    pub(super) fn watch_dead(&self, run: &BatchRun, dead: &[DeadLetter]) -> Result<()> {
        let mut watches = self.watches.lock();
        watches.iter_mut().try_for_each(|(stream, watch)| watch.look(run.records_of(stream), dead))
    }

    pub(super) fn advance(&self, batch: &Batch, run: &BatchRun) {
        let mut progress = self.progress.lock();
        progress.last = Some((batch.id, batch.time));
        for name in batch.ranges.keys() {
            batch.advance(name, progress.positions.entry(name.clone()).or_default());
        }
        progress.watermarks = run.watermarks_after();
        progress.streams = run.streams_after();
        progress.followed = Some(run.followed());
    }

    /// After a crash between the commit point and the sinks' commit: repeats the latter.
    async fn repeat_last_commit(&self) -> Result<()> {
        let last = self.keep.as_ref().and_then(Keep::last);
        let past = self.keep.as_ref().map(Keep::past);
        let pending = past.as_ref().is_some_and(|past| !past.undone().is_empty());
        let moved = past.as_ref().map(|past| moved(past, &self.outputs)).unwrap_or_default();
        // What a copy has undone, the first program has shown, and still shows; and it makes its own last
        // commit whole. Only topics were copied with it.
        let is_copy = past.as_ref().is_some_and(Past::is_forked);
        let undone = past.filter(|_| !is_copy).map(|past| past.undone().to_vec()).unwrap_or_default();
        for output in &self.outputs {
            if let OutputKind::Sink(sink) = &output.kind {
                if let Some(keep) = &self.keep {
                    let (owner, aside) = keep.aside(&output.name);
                    sink.place(&owner, &aside);
                }
                self.persist(|| sink.open(output.plan.schema())).await?;
                for undone in &undone {
                    self.persist(|| sink.undo(undone.to, undone.upto)).await?;
                }
                if let Some((id, staged)) = &last
                    && (!is_copy || sink.topic().is_some())
                    && !moved.contains(&output.name)
                    && let Some(parts) = staged.get(&output.name)
                {
                    self.persist(|| sink.commit(*id, parts)).await?;
                }
                self.persist(|| sink.recover(last.as_ref().map(|(id, _)| *id))).await?;
            }
        }
        if let (Some(keep), true) = (&self.keep, pending) {
            self.persist(|| async { keep.taken_back() }).await?;
        }
        self.note_shown().await
    }
}
