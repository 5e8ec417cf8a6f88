//! The one place where parts meet: a context, its page, its view in the
//! terminal, and signals.
//!
//! ```text
//! page bound ─► context started ─► shown slide by slide ─► Ctrl-C, time or end
//!                                                              └─► last batch, checkpoint ─► Ended
//! ```
//!
//! Invariant: the page's address is taken before anything else happens, so a
//! busy port changes nothing on disk; and a run that ends by itself, by time or
//! by a signal has finished and checkpointed its last batch.
//!
//! ```
//! use tidemill::{assemble::{Assembly, Show}, prelude::*};
//!
//! let context = tidemill::context("sums").trigger(Trigger::Drain).build();
//! context.queue_stream([vec![1_i64, 2], vec![3]])?.reduce(|a, b| a + b).view("sum", &["sum"]);
//! let ended = Assembly::new(context).show(Show::Nothing).run()?;
//! assert_eq!(ended.records, 3);
//! # Ok::<(), tidemill::Error>(())
//! ```

use crate::terminal::{self, Chart, Facts, Screen, Stats, frame, may_colour, status_line, view_line};
use arrow_array::RecordBatch;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
};
use tidemill_connectors::otlp::Traces;
use tidemill_core::{
    Answers, BatchId, Board, Clock, Duration, Error, Event, Inspect, Phase, Result, StopHandle, Timestamp, ViewSnapshot,
};
use tidemill_engine::{StreamingContext, SystemClock};
use tidemill_web::{Access, Server};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    sync::broadcast::error::{RecvError, TryRecvError},
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until},
};

/// Delays kept for the percentiles of [`Ended`]; beyond it the oldest are forgotten.
const DELAYS: usize = 1 << 16;
/// Rows of a view in a plain line.
const LINE_ROWS: usize = 10;
/// A plain program without news says that it is alive this often.
const ALIVE: Duration = Duration::from_secs(5);
/// The screen is drawn again this often when no batch ends.
const REDRAW: Duration = Duration::from_secs(1);
/// How a shell sees a process that Ctrl-C has ended.
const INTERRUPTED: i32 = 130;

/// How a running program is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Show {
    /// A screen when standard output is a terminal, else lines.
    #[default]
    Auto,
    /// A plain line for each view and slide.
    Lines,
    /// Nothing.
    Nothing,
}

/// Finds on the board why a run should end.
type Check = Box<dyn Fn(&Board) -> Option<Error> + Send>;

/// A context and what stands around it while it runs.
pub struct Assembly {
    /// Shared with the page, which looks at it beside its batches, and whose notebook asks it.
    context: Arc<StreamingContext>,
    page: Option<SocketAddr>,
    access: Access,
    notebooks: Option<PathBuf>,
    show: Show,
    run_for: Option<Duration>,
    failing: Option<Check>,
    traces: Option<Traces>,
}

/// How a run ended.
#[derive(Debug, Clone, Default)]
pub struct Ended {
    /// The first batch that this run committed.
    pub first: Option<BatchId>,
    /// The last one.
    pub last: Option<BatchId>,
    /// Batches committed by this run.
    pub batches: u64,
    /// Records read by this run.
    pub records: u64,
    /// Records refused by this run.
    pub refused: u64,
    /// Late records of this run.
    pub late: u64,
    /// Median from a batch's time to its commit, over the last 65,536 batches.
    pub delay_p50: Duration,
    /// The same for 99 of 100 batches.
    pub delay_p99: Duration,
    /// Whether a signal ended it.
    pub interrupted: bool,
}

impl fmt::Debug for Assembly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assembly").field("context", &self.context).field("page", &self.page).finish_non_exhaustive()
    }
}

impl Assembly {
    /// A context that is declared and not started.
    pub fn new(context: StreamingContext) -> Self {
        let notebooks = context.data_dir().map(|data| data.join("notebooks"));
        Self {
            context: Arc::new(context),
            page: None,
            access: Access::default(),
            notebooks,
            show: Show::Auto,
            run_for: None,
            failing: None,
            traces: None,
        }
    }

    /// Keeps the page's notebooks in this folder, as where the program's file lies; else they are in the data
    /// directory, where there is one.
    #[must_use]
    pub fn notebooks(mut self, folder: impl Into<PathBuf>) -> Self {
        self.notebooks = Some(folder.into());
        self
    }

    /// Serves the live page at an address, of loopback unless [`Assembly::access`] is
    /// enough for others; port 0 takes any free port.
    #[must_use]
    pub fn page(mut self, address: Option<SocketAddr>) -> Self {
        self.page = address;
        self
    }

    /// Who may reach the page, and ask it; unless it is said, all who reach this
    /// machine's loopback.
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// How the program is shown.
    #[must_use]
    pub fn show(mut self, show: Show) -> Self {
        self.show = show;
        self
    }

    /// Stops after this time, counted from the start; `None` runs on.
    #[must_use]
    pub fn run_for(mut self, span: Option<Duration>) -> Self {
        self.run_for = span;
        self
    }

    /// Looks at the board now and then, and ends the run with the error that `check` finds.
    #[must_use]
    pub fn fail_when(mut self, check: impl Fn(&Board) -> Option<Error> + Send + 'static) -> Self {
        self.failing = Some(Box::new(check));
        self
    }

    /// Exports a trace of each batch, beside the program; its end waits a second at most for the last of them.
    #[must_use]
    pub fn traces(mut self, traces: Option<Traces>) -> Self {
        self.traces = traces;
        self
    }

    /// Starts the program and blocks until it has ended.
    ///
    /// # Errors
    /// When the page's port is busy, the program can't be started, or a fault
    /// ended it.
    pub fn run(mut self) -> Result<Ended> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("tidemill-page")
            .enable_all()
            .build()
            .map_err(|e| Error::external("can't start threads").because(e))?;
        let board = self.context.board();
        let access = std::mem::take(&mut self.access);
        let page = self.page.map(|address| runtime.block_on(self.server(address, access))).transpose()?;
        let url = page.as_ref().map(Server::url);
        let mut signals = {
            let _in_runtime = runtime.enter();
            Signals::new()?
        };
        let events = board.subscribe();
        let exporting = self.traces.take().map(|traces| {
            let _in_runtime = runtime.enter();
            traces.program(self.context.name()).follow(Arc::clone(&board))
        });
        self.context.start()?;
        let (stop_page, stopping) = StopHandle::new();
        let serving = page.map(|server| runtime.spawn(server.run(stopping)));
        let mut watch = Watch::new(&self, Arc::clone(&board), url)?;
        let watched = runtime.block_on(watch.run(&self, events, &mut signals));
        // The program has ended, or nobody can see it any more.
        let ended = match &watched {
            Ok(()) => self.context.await_termination(),
            Err(_) => self.context.stop(true),
        };
        watch.count();
        if watched.is_ok() {
            watch.say_views()?;
        }
        let summary = watch.ended();
        drop(watch);
        if let Some(exporting) = exporting {
            runtime.block_on(exporting.end());
        }
        finish_page(runtime, &stop_page, serving);
        // What ended the watch says more than what came of it.
        watched.and(ended)?;
        Ok(summary)
    }

    /// The page, with what its notebook asks and where that is kept.
    async fn server(&self, address: SocketAddr, access: Access) -> Result<Server> {
        let server = Server::bind_for(address, self.context.board(), access).await?;
        let server = server.inspect(Arc::clone(&self.context) as Arc<dyn Inspect>);
        let server = server.answers(Arc::clone(&self.context) as Arc<dyn Answers>);
        Ok(match &self.notebooks {
            Some(folder) => server.shelf(Arc::new(crate::notebooks::Folder::new(folder))),
            None => server,
        })
    }
}

fn finish_page(runtime: Runtime, stop: &StopHandle, serving: Option<tokio::task::JoinHandle<Result<()>>>) {
    stop.stop();
    if let Some(serving) = serving
        && let Err(error) = runtime.block_on(serving)
    {
        tracing::warn!(%error, "the page's server panicked");
    }
    runtime.shutdown_background();
}

/// Signals that end a run, and the one that says that the terminal has another size.
#[derive(Debug)]
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    resize: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|e| Error::external("can't listen for signals").because(e));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
            resize: listen(SignalKind::window_change())?,
        })
    }

    /// Completes at a signal that asks to end.
    async fn end(interrupt: &mut Signal, terminate: &mut Signal, hang_up: &mut Signal) {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    }
}

/// What is shown, and what was seen.
#[derive(Debug)]
struct Watch {
    board: Arc<Board>,
    clock: SystemClock,
    screen: Option<Screen>,
    lines: bool,
    title: String,
    page: Option<String>,
    note: Option<String>,
    seen: Ended,
    delays: VecDeque<u64>,
    /// Views that came and whose batch has not been reported yet; one a name.
    pending: BTreeMap<String, Arc<ViewSnapshot>>,
    /// Rows that were printed last, by view: what has not changed is not printed again.
    printed: HashMap<String, RecordBatch>,
    last_line: Timestamp,
    started: Timestamp,
}

impl Watch {
    fn new(assembly: &Assembly, board: Arc<Board>, page: Option<String>) -> Result<Self> {
        let terminal = io::stdout().is_terminal();
        let screen = assembly.show == Show::Auto && terminal && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
        let lines = assembly.show != Show::Nothing && !screen;
        let screen = if screen {
            Some(
                Screen::open(may_colour(terminal))
                    .map_err(|e| Error::external("can't draw on the terminal").because(e))?,
            )
        } else {
            None
        };
        let clock = SystemClock;
        let now = clock.now();
        let watch = Self {
            board,
            clock,
            screen,
            lines,
            title: assembly.context.name().to_string(),
            page,
            note: None,
            seen: Ended::default(),
            delays: VecDeque::new(),
            pending: BTreeMap::new(),
            printed: HashMap::new(),
            last_line: now,
            started: now,
        };
        if let (true, Some(page)) = (watch.lines, &watch.page) {
            say(&format!("page: {page}"))?;
        }
        Ok(watch)
    }

    /// Shows the program until it has ended.
    async fn run(
        &mut self,
        assembly: &Assembly,
        mut events: tokio::sync::broadcast::Receiver<Event>,
        signals: &mut Signals,
    ) -> Result<()> {
        let until = assembly.run_for.map(|span| Instant::now() + span);
        let mut stopping = false;
        let mut redraw = ticks(REDRAW);
        loop {
            let Signals { interrupt, terminate, hang_up, resize } = signals;
            tokio::select! {
                event = events.recv() => match event {
                    Ok(event) => self.take(event)?,
                    // Missed events are on the board.
                    Err(RecvError::Lagged(_)) => self.draw()?,
                    Err(RecvError::Closed) => return Ok(()),
                },
                () = Signals::end(interrupt, terminate, hang_up) => {
                    if stopping {
                        drop(self.screen.take());
                        terminal::restore();
                        eprintln!("quit at once: the last batch will run again at the next start");
                        std::process::exit(INTERRUPTED);
                    }
                    stopping = true;
                    self.seen.interrupted = true;
                    if self.lines {
                        say("stopping: finishing the batch; again quits at once")?;
                    }
                    assembly.context.request_stop();
                }
                _ = resize.recv() => {
                    if let Some(screen) = &mut self.screen {
                        screen.clear().map_err(gone)?;
                    }
                    self.draw()?;
                }
                () = sleep_until(until.unwrap_or_else(far)), if until.is_some() && !stopping => {
                    stopping = true;
                    assembly.context.request_stop();
                }
                _ = redraw.tick() => {
                    if let Some(error) = assembly.failing.as_ref().and_then(|check| check(&self.board)) {
                        return Err(error);
                    }
                    self.draw()?;
                }
            }
            if matches!(self.board.program().phase, Phase::Stopped | Phase::Failed) {
                // What came before the end may not have been looked at.
                loop {
                    match events.try_recv() {
                        Ok(event) => self.take(event)?,
                        Err(TryRecvError::Lagged(_)) => {}
                        Err(TryRecvError::Empty | TryRecvError::Closed) => return Ok(()),
                    }
                }
            }
        }
    }

    fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::View(view) => {
                self.pending.insert(view.name.clone(), view);
            }
            Event::Batch(_) => {
                self.count();
                self.say_views()?;
                self.draw()?;
                self.alive()?;
            }
            Event::Phase(_) | Event::Failed(_) => self.draw()?,
            // Drawn when it is time to.
            Event::Idle => {}
        }
        Ok(())
    }

    /// Takes in the reports that are new.
    fn count(&mut self) {
        for report in self.board.reports() {
            if self.seen.last.is_some_and(|last| report.batch <= last) {
                continue;
            }
            if self.seen.first.is_none() {
                self.seen.first = Some(report.batch);
                self.begin(report.batch);
            }
            self.seen.last = Some(report.batch);
            // A batch that was due before this start waited for the start, not for the program.
            if report.time < self.started {
                continue;
            }
            if self.delays.len() == DELAYS {
                self.delays.pop_front();
            }
            self.delays.push_back(report.scheduling_delay_us + report.processing_us);
        }
    }

    /// Says once where the run continues.
    fn begin(&mut self, first: BatchId) {
        if first.0 > 1 {
            let note = format!("continues after batch {}, with its state and positions", first.0 - 1);
            if self.lines {
                // Whether standard output is closed is seen by the next line.
                let _closed = say(&note);
            }
            self.note = Some(note);
        }
    }

    fn stats(&self) -> Stats {
        let reports = self.board.reports();
        Stats::of(reports.iter().map(|report| &**report), self.started)
    }

    /// Prints the views that have changed.
    fn say_views(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        if !self.lines {
            return Ok(());
        }
        for (name, view) in pending {
            if self.printed.get(&name) == Some(&view.rows) {
                continue;
            }
            self.printed.insert(name, view.rows.clone());
            self.last_line = self.clock.now();
            say(&view_line(&Chart::of(&view, LINE_ROWS), &self.stats()))?;
        }
        Ok(())
    }

    /// A program without news says that it is alive.
    fn alive(&mut self) -> Result<()> {
        let now = self.clock.now();
        if !self.lines || now.since(self.last_line) < ALIVE {
            return Ok(());
        }
        self.last_line = now;
        say(&status_line(now, &self.stats(), self.board.program().refused))
    }

    fn draw(&mut self) -> Result<()> {
        if self.screen.is_none() {
            return Ok(());
        }
        let facts = Facts {
            title: self.title.clone(),
            page: self.page.clone(),
            note: self.note.clone(),
            warning: crate::logging::newest(),
            now: self.clock.now(),
            program: self.board.program(),
            stats: self.stats(),
            inputs: self.board.inputs(),
            views: self.board.view_names().iter().filter_map(|name| self.board.view(name)).collect(),
        };
        let (columns, rows) = Screen::size();
        if let Some(screen) = &mut self.screen {
            screen.draw(&frame(&facts, columns, rows)).map_err(gone)?;
        }
        Ok(())
    }

    fn ended(&self) -> Ended {
        let program = self.board.program();
        let mut delays: Vec<u64> = self.delays.iter().copied().collect();
        delays.sort_unstable();
        let at = |percent: usize| {
            let place = (delays.len() * percent / 100).min(delays.len().saturating_sub(1));
            Duration::from_micros(delays.get(place).copied().unwrap_or(0))
        };
        Ended {
            batches: program.batches,
            records: program.records_in,
            refused: program.refused,
            late: program.late,
            delay_p50: at(50),
            delay_p99: at(99),
            ..self.seen.clone()
        }
    }
}

fn ticks(span: Duration) -> Interval {
    let mut ticks = interval(span);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

/// Some instant that is never waited for.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(86_400)
}

/// Prints a line.
fn say(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(gone)
}

fn gone(error: io::Error) -> Error {
    Error::external("standard output is closed, so the program was stopped; what it read is kept")
        .because(error)
        .fatal()
}
