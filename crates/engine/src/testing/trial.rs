//! [`Trial`]: a whole program under test, with crashes, restarts and clocks that step.
//!
//! A trial runs the program as it is run elsewhere, by the same loop, over a
//! simulated disk and a clock that the trial moves from one batch to the next.
//! What the program writes to its outputs is outside of it and stays when it
//! dies. The undisturbed run is what all others are compared with, batch by
//! batch; the records of a batch may come in any order.
//!
//! ```text
//! planned ── run ── staged ── committed ── sinks commit ── next batch
//!   ▲  ▲      ▲      ▲    ▲    ▲      ▲      ▲       ▲
//!   └──┴──────┴──────┴────┴────┴──────┴──────┴───────┴── the machine stops: at each, once
//! ```
//!
//! ```
//! use tidemill_engine::testing::Trial;
//!
//! let totals = Trial::new(|trial| {
//!     let words = trial.input([vec![("a".to_string(), 1)], vec![], vec![("a".to_string(), 2), ("b".to_string(), 3)]])?;
//!     let sum = |new: &[i64], sum: Option<i64>| Some(sum.unwrap_or(0) + new.iter().sum::<i64>());
//!     trial.output("totals", &words.update_state_by_key(sum).changes());
//!     Ok(())
//! });
//! totals.check("totals", [vec![("a".to_string(), 1_i64)], vec![], vec![("a".to_string(), 3), ("b".to_string(), 3)]]);
//! totals.crash_at_every_step();
//! totals.restart_at_every_batch(&[1, 2, 3]);
//! totals.step_the_clock();
//! ```

use super::{
    clock::SteppingClock,
    probe::{Probe, World, lines_of},
    steps::{SteppedDisk, Steps},
};
use crate::{
    StreamingContext,
    batch::{Keep, Pipeline},
    declare::Declare,
    emit::{Output, OutputKind},
    record::{Record, batch_of},
    stream::{Chain, DStream},
};
use std::{collections::BTreeMap, fmt, sync::Arc};
use tidemill_core::{Board, Clock, Duration, Error, Event, Registry, Result, Sink, StopHandle, Timestamp};
use tidemill_store::disk::SimDisk;
use tokio::{runtime::Runtime, sync::broadcast::Receiver, task::JoinHandle};

/// Batches are so far apart, and the first has this time.
const INTERVAL: Duration = Duration::from_secs(1);
/// Batches after which a trial gives up.
const BATCHES_MAX: u64 = 100_000;
/// How often something that fails is tried again between two batches before a trial gives up.
const TRIES_MAX: u32 = 20;

/// What a program under test is declared on.
pub struct Setup<'a> {
    context: &'a StreamingContext,
    world: &'a Arc<World>,
    steps: &'a Arc<Steps>,
}

impl fmt::Debug for Setup<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Setup of a trial")
    }
}

impl Setup<'_> {
    /// A stream of these batches, one each second. An empty one is a second in which nothing comes.
    ///
    /// # Errors
    /// When records can't be laid out in columns.
    pub fn input<T: Record>(&self, batches: impl IntoIterator<Item = Vec<T>>) -> Result<DStream<T>> {
        self.context.queue_stream(batches)
    }

    /// An output of the trial: records of the stream, exactly once.
    pub fn output<T: Record, C: Chain<Out = T>>(&self, name: &str, stream: &DStream<T, C>) {
        // The name is the trial's own: an operator may be called the same.
        let (name, node, kind) = (name.to_string(), stream.rows(), OutputKind::Sink(self.probe(name)));
        self.context.declare.output(Output { name, node, kind });
    }

    /// The context, for what else the program declares; SQL may read streams
    /// that were given to it with `to_table`. Each view becomes an output under
    /// its name: what it gives in each batch.
    pub fn context(&self) -> &StreamingContext {
        self.context
    }

    fn probe(&self, output: &str) -> Arc<Probe> {
        let output = output.to_string();
        Arc::new(Probe { output, world: Arc::clone(self.world), steps: Arc::clone(self.steps) })
    }
}

/// What an undisturbed run of a program has shown.
#[derive(Debug)]
pub struct Shown {
    world: Arc<World>,
    batches: u64,
}

impl Shown {
    /// What `output` has in each batch.
    ///
    /// # Errors
    /// When its records are of another type.
    pub fn of<T: Record>(&self, output: &str) -> Result<Vec<Vec<T>>> {
        let mut records = self.world.records(output)?;
        Ok((1..=self.batches).map(|batch| records.remove(&batch).unwrap_or_default()).collect())
    }

    /// The time of each batch.
    pub fn times(&self) -> Vec<Timestamp> {
        self.world.times().into_values().collect()
    }
}

/// A program under test: see the example of [`crate::testing`].
pub struct Trial<F> {
    declare: F,
    partitions: usize,
    state_memory: Option<u64>,
    registry: Registry,
    runtime: Runtime,
}

impl<F> fmt::Debug for Trial<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trial with {} partitions", self.partitions)
    }
}

/// What ends a life.
#[derive(Debug)]
enum Until {
    /// All input was read.
    Read,
    /// So many batches more.
    Batches(u64),
}

/// How a life ended.
enum Ended {
    Stopped { read: bool },
    Died { at: String },
}

impl<F: Fn(&Setup<'_>) -> Result<()>> Trial<F> {
    /// A trial of the program that `declare` declares; it is called once for each life of the program.
    ///
    /// # Panics
    /// When threads can't be started.
    pub fn new(declare: F) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("threads");
        Self { declare, partitions: 2, state_memory: None, registry: Registry::default(), runtime }
    }

    /// With so many bytes for keyed states in memory; with few, such as 1, all keys at rest lie on disk,
    /// as those of a large state do.
    #[must_use]
    pub fn state_memory(mut self, bytes: u64) -> Self {
        self.state_memory = Some(bytes);
        self
    }

    /// With another number of partitions than two.
    #[must_use]
    pub fn partitions(mut self, partitions: usize) -> Self {
        self.partitions = partitions;
        self
    }

    /// With connectors, formats and sinks that SQL may name.
    #[must_use]
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = registry;
        self
    }

    /// Runs the program undisturbed.
    ///
    /// # Errors
    /// When it can't be planned, or a batch fails.
    pub fn run(&self) -> Result<Shown> {
        let world = Arc::new(World::default());
        let clock = Arc::new(SteppingClock::new());
        let life = Life { disk: SimDisk::new(), steps: Steps::until(None), partitions: self.partitions };
        let mut batches = 0;
        let ended = self.live(&life, &world, &clock, &Until::Read, |last| {
            batches = last.0;
            None
        })?;
        debug_assert!(matches!(ended, Ended::Stopped { read: true }), "nothing ends this life");
        Ok(Shown { world, batches })
    }

    /// Asserts what `output` has in each batch, its records in any order.
    ///
    /// # Panics
    /// When it has something else, or the program fails.
    pub fn check<T: Record + fmt::Debug>(&self, output: &str, expected: impl IntoIterator<Item = Vec<T>>) {
        let shown = self.run().expect("the program runs");
        let lines = |records: Vec<T>| -> Vec<String> {
            let rows = batch_of(records).expect("records in columns");
            let mut lines = lines_of(&rows).expect("rows as text");
            lines.sort_unstable();
            lines
        };
        let got: Vec<_> = shown.of::<T>(output).expect("records of this type").into_iter().map(&lines).collect();
        let expected: Vec<_> = expected.into_iter().map(&lines).collect();
        assert_eq!(got, expected, "output `{output}`, batch by batch");
    }

    /// Asserts that every output is that of the undisturbed run when the machine
    /// loses power at any one step of the program: before any change of its disk,
    /// before and after each sink stages and commits. What was not synced then
    /// is lost, torn or kept, by a dice of the step's number. Half of the runs
    /// lose power a second time soon after, while they recover; and the program
    /// comes back with another number of partitions each time.
    ///
    /// # Panics
    /// When an output differs, naming the step; when the program fails.
    pub fn crash_at_every_step(&self) {
        let whole = self.lines_undisturbed();
        let mut step = 0;
        loop {
            let second = (step % 2 == 1).then_some(step / 2 % 13);
            let crashes: Vec<u64> = std::iter::once(step).chain(second).collect();
            let died = self.run_with_crashes(&crashes, &whole);
            if died.is_empty() {
                assert!(step > 0, "a program that leaves nothing behind can't be crashed");
                return;
            }
            step += 1;
        }
    }

    /// Asserts that every output is that of the undisturbed run when the program
    /// is stopped and started again after every batch, each time with the next
    /// of these numbers of partitions.
    ///
    /// # Panics
    /// When an output differs, or the program fails.
    pub fn restart_at_every_batch(&self, partitions: &[usize]) {
        let whole = self.lines_undisturbed();
        let (world, clock) = (Arc::new(World::default()), Arc::new(SteppingClock::new()));
        let disk = SimDisk::new();
        for partitions in partitions.iter().copied().cycle() {
            let life = Life { disk: disk.clone(), steps: Steps::until(None), partitions };
            let ended = self.live(&life, &world, &clock, &Until::Batches(1), |_| None);
            match ended.unwrap_or_else(|error| panic!("with {partitions} partitions: {}", error.chain())) {
                Ended::Stopped { read: true } => break,
                Ended::Stopped { read: false } => {}
                Ended::Died { at } => unreachable!("it died at {at}"),
            }
        }
        assert_same(&world, &whole, u64::MAX, "restarted after every batch");
    }

    /// Asserts that a clock which steps by an hour or a year, back or forth, after
    /// any batch leaves the program well: batches are numbered without a gap,
    /// their times grow, and all input is read. When the clock steps back, times
    /// go on at the interval and every output is that of the undisturbed run.
    ///
    /// # Panics
    /// When it is not so, or the program fails.
    pub fn step_the_clock(&self) {
        let whole = self.lines_undisturbed();
        let hour = 3_600_000_000_i64;
        let batches = self.run().expect("the program runs").batches;
        for span in [-hour, hour, -365 * 24 * hour, 365 * 24 * hour] {
            for at in 1..=batches {
                let (world, clock) = (Arc::new(World::default()), Arc::new(SteppingClock::new()));
                let life = Life { disk: SimDisk::new(), steps: Steps::until(None), partitions: self.partitions };
                let mut seen = Vec::new();
                let ended = self.live(&life, &world, &clock, &Until::Read, |last| {
                    seen.push(last);
                    (last.0 == at).then_some(span)
                });
                let named = format!("the clock stepped by {span} µs after batch {at}");
                let ended = ended.unwrap_or_else(|error| panic!("{named}: {}", error.chain()));
                assert!(matches!(ended, Ended::Stopped { read: true }), "{named}: not all input was read");
                for pair in seen.windows(2) {
                    assert!(pair[1].0 == pair[0].0 + 1 && pair[1].1 > pair[0].1, "{named}: {pair:?}");
                }
                if span < 0 {
                    assert_same(&world, &whole, batches, &named);
                }
            }
        }
    }

    fn lines_undisturbed(&self) -> Lines {
        let shown = self.run().unwrap_or_else(|error| panic!("the undisturbed run: {}", error.chain()));
        assert_eq!(shown.world.wrong(), None, "the undisturbed run");
        shown.world.lines().expect("rows as text")
    }

    /// Runs with crashes before these steps, one a life, and compares; gives where it died.
    fn run_with_crashes(&self, crashes: &[u64], whole: &Lines) -> Vec<String> {
        let (world, clock) = (Arc::new(World::default()), Arc::new(SteppingClock::new()));
        let mut disk = SimDisk::new();
        let (mut died, mut seen) = (Vec::new(), Timestamp(0));
        for (life, crash) in crashes.iter().copied().map(Some).chain([None]).enumerate() {
            let seed = crashes.iter().fold(life as u64, |seed, step| seed * 1_000 + step);
            let partitions = if life == 0 { self.partitions } else { 1 + usize::try_from(seed % 3).unwrap_or(0) };
            let alive = Life { disk: disk.clone(), steps: Steps::until(crash), partitions };
            let story = |died: &[String]| format!("crashes at steps {crashes:?}, before: {}", died.join("; then: "));
            // The first batch has the time after that at which the program begins, also when it has to begin anew.
            clock.pass(seen);
            let ended = self.live(&alive, &world, &clock, &Until::Read, |last| {
                seen = last.1;
                None
            });
            match ended {
                Ok(Ended::Stopped { .. }) => break,
                Ok(Ended::Died { at }) => died.push(at),
                Err(error) => panic!("{}: {}", story(&died), error.chain()),
            }
            disk = disk.crash(seed);
        }
        let story = format!("crashes at steps {crashes:?}, before: {}", died.join("; then: "));
        assert_same(&world, whole, u64::MAX, &story);
        died
    }

    /// One life of the program. `after` is told of each batch and may step the clock.
    fn live(
        &self,
        life: &Life,
        world: &Arc<World>,
        clock: &Arc<SteppingClock>,
        until: &Until,
        mut after: impl FnMut((u64, Timestamp)) -> Option<i64>,
    ) -> Result<Ended> {
        let mut builder = StreamingContext::builder("trial");
        if let Some(bytes) = self.state_memory {
            builder = builder.state_memory(bytes);
        }
        let context = builder
            .interval(INTERVAL)
            .partitions(life.partitions)
            .registry(self.registry.clone())
            .clock(Arc::clone(clock) as Arc<dyn Clock>)
            .disk(Arc::new(SteppedDisk { disk: life.disk.clone(), steps: Arc::clone(&life.steps) }))
            .data_dir("/trial")
            .build();
        let setup = Setup { context: &context, world, steps: &life.steps };
        (self.declare)(&setup)?;
        views_are_outputs(&context.declare, &setup);
        self.runtime.block_on(async {
            let pipeline = match Pipeline::open(&context.config, &context.declare, context.board(), None) {
                Ok(pipeline) => pipeline,
                Err(error) => return life.died().ok_or(error),
            };
            catch_up(&pipeline, clock);
            let mut running = Running::of(&pipeline, context.board());
            let ended = running.batches(&pipeline, life, clock, until, &mut after).await;
            drop(pipeline);
            let ended = match ended {
                Ok(ended) => running.stop(ended, life, clock).await,
                Err(error) => running.kill().await.and(Err(error)),
            };
            life.died().map_or(ended, Ok)
        })
    }
}

/// Where a batch was planned or committed, its time has come: a clock that was behind it would be one that stepped
/// back, for which the batch after it is due at the next multiple of the interval, and may run before all is known
/// to be read.
fn catch_up(pipeline: &Pipeline, clock: &SteppingClock) {
    let planned = pipeline.keep.as_ref().and_then(Keep::planned).map(|batch| batch.time);
    let last = pipeline.last().map(|(_, time)| time);
    if let Some(time) = planned.max(last).filter(|_| clock.is_right()) {
        clock.pass(clock.passed().max(time));
    }
}

type Lines = BTreeMap<String, BTreeMap<u64, Vec<String>>>;

/// Asserts that the world shows what the undisturbed run does, up to batch `most`.
fn assert_same(world: &World, whole: &Lines, most: u64, named: &str) {
    assert_eq!(world.wrong(), None, "{named}");
    let got = world.lines().expect("rows as text");
    for (output, batches) in whole {
        let none = BTreeMap::new();
        let got = got.get(output).unwrap_or(&none);
        for batch in batches.keys().chain(got.keys()).filter(|batch| **batch <= most) {
            assert_eq!(got.get(batch), batches.get(batch), "{named}: output `{output}`, batch {batch}");
        }
    }
}

/// Each view's rows go to an output of its name.
fn views_are_outputs(declare: &Declare, setup: &Setup<'_>) {
    declare.turn_views(|name| setup.probe(name) as Arc<dyn Sink>);
}

/// What a life of a program is made of.
struct Life {
    disk: SimDisk,
    steps: Arc<Steps>,
    partitions: usize,
}

impl Life {
    fn died(&self) -> Option<Ended> {
        self.steps.ended().map(|at| Ended::Died { at })
    }
}

/// The loop of a program, in a task of its own.
struct Running {
    task: JoinHandle<Result<()>>,
    board: Arc<Board>,
    events: Receiver<Event>,
    stop: StopHandle,
    kill: StopHandle,
}

impl Running {
    fn of(pipeline: &Arc<Pipeline>, board: Arc<Board>) -> Self {
        let (stop, stopping) = StopHandle::new();
        let (kill, killed) = StopHandle::new();
        let events = board.subscribe();
        let task = tokio::spawn(Arc::clone(pipeline).run(stopping, killed));
        Self { task, board, events, stop, kill }
    }

    /// A sleep of the program has begun. Where it waits to try again what failed, the time passes.
    ///
    /// # Errors
    /// When it has tried often enough.
    fn try_again(&self, tries: &mut u32, (life, clock): (&Life, &SteppingClock), after: u64) -> Result<()> {
        let Some(error) = self.board.program().error else { return Ok(()) };
        // What fails since the machine has stopped is not tried again, and no time passes for it: the next life would
        // begin beyond the tick that is due, and run one batch more.
        if life.died().is_some() {
            return Ok(());
        }
        *tries += 1;
        if *tries > TRIES_MAX {
            return Err(Error::user(format!(
                "after batch {after} something failed {TRIES_MAX} times, and a trial tries it no more: {error}. \
                 An error that does not pass by itself is made with `Error::user`, or marked with `.fatal()`"
            )));
        }
        clock.pass(clock.passed().max(clock.sleeps_until()));
        Ok(())
    }

    /// Moves the clock from batch to batch.
    async fn batches(
        &mut self,
        pipeline: &Arc<Pipeline>,
        life: &Life,
        clock: &SteppingClock,
        until: &Until,
        after: &mut impl FnMut((u64, Timestamp)) -> Option<i64>,
    ) -> Result<Ended> {
        let mut last = pipeline.last().map(|(id, time)| (id.0, time)).unwrap_or_default();
        let (mut ran, mut tries) = (0, 0);
        // Whether the loop has gone to sleep while the clock was right: it may be asleep still when the clock is set.
        let mut slept = false;
        loop {
            let read = pipeline.exhausted().await?;
            if read || matches!(until, Until::Batches(most) if ran >= *most) {
                return Ok(Ended::Stopped { read });
            }
            if last.0 > BATCHES_MAX {
                return Err(Error::internal("the program does not come to the end of its input"));
            }
            if clock.is_right() {
                clock.pass(clock.passed().max(last.1.plus(INTERVAL)));
            } else if std::mem::take(&mut slept) {
                clock.pass(clock.passed().plus(INTERVAL));
            }
            let report = loop {
                tokio::select! {
                    biased;
                    () = life.steps.died() => return life.died().ok_or_else(|| Error::internal("a life that ended")),
                    event = self.events.recv() => match event {
                        Ok(Event::Batch(report)) => break report,
                        Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                        Err(gone) => return Err(Error::internal("the board is gone").because(gone)),
                    },
                    // Where the clock is wrong nobody knows when the next tick is due: time passes while the loop sleeps.
                    () = clock.sleeps() => {
                        self.try_again(&mut tries, (life, clock), last.0)?;
                        if clock.is_right() {
                            slept = true;
                        } else {
                            clock.pass(clock.passed().plus(INTERVAL));
                        }
                    }
                    ended = &mut self.task => {
                        ended.map_err(|e| Error::internal("the batch loop panicked").because(e))??;
                        return Err(Error::internal("the program ended by itself"));
                    }
                }
            };
            last = (report.batch.0, report.time);
            (ran, tries) = (ran + 1, 0);
            if let Some(step) = after(last) {
                clock.step(step);
            }
        }
    }

    /// Ends a life: gracefully, if it has read all and is not dead. (A graceful stop reads what is left.)
    async fn stop(mut self, ended: Ended, life: &Life, clock: &SteppingClock) -> Result<Ended> {
        if !matches!(ended, Ended::Stopped { read: true }) {
            self.kill().await?;
            return Ok(ended);
        }
        self.stop.stop();
        let mut tries = 0;
        let last = self.board.reports().last().map_or(0, |report| report.batch.0);
        loop {
            tokio::select! {
                biased;
                () = life.steps.died() => {
                    self.kill().await?;
                    return Ok(ended);
                }
                done = &mut self.task => {
                    done.map_err(|e| Error::internal("the batch loop panicked").because(e))??;
                    return Ok(ended);
                }
                () = clock.sleeps() => if let Err(error) = self.try_again(&mut tries, (life, clock), last) {
                    return self.kill().await.and(Err(error));
                },
            }
        }
    }

    async fn kill(self) -> Result<()> {
        self.kill.stop();
        if self.task.is_finished() {
            return Ok(());
        }
        let _ended_as_it_may = self.task.await;
        Ok(())
    }
}
