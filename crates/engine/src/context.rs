//! [`StreamingContext`]: where a program is declared, started and stopped.
//!
//! Declaring builds lineage and lists outputs; nothing is read. `start` opens
//! the data directory, recovers, plans, starts receivers and runs batches until
//! `stop`. A context is started once.

use crate::{
    batch::Pipeline,
    config::{Config, ContextBuilder},
    declare::Declare,
    ingest::Ingest,
    state::StateOperator,
};
use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use tidemill_core::{Board, Duration, Error, Phase, Result, StopHandle};

/// Where a program is declared, started and stopped.
#[derive(Debug)]
pub struct StreamingContext {
    pub(crate) config: Config,
    pub(crate) declare: Declare,
    board: Arc<Board>,
    pub(crate) sql: crate::sql::Sql,
    /// The log while the program runs, for queries.
    log: Mutex<Weak<tidemill_store::log::Log>>,
    /// The operators of the program that was started, for queries over their state.
    operators: Mutex<Vec<Arc<dyn StateOperator>>>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    runtime: tokio::runtime::Runtime,
    stop: StopHandle,
    kill: StopHandle,
    done: std::sync::mpsc::Receiver<Result<()>>,
}

impl StreamingContext {
    /// Begins a context for the program `name` (of `[A-Za-z0-9._-]`); its
    /// topics and files carry the name.
    pub fn builder(name: impl Into<String>) -> ContextBuilder {
        ContextBuilder::new(name.into())
    }

    pub(crate) fn of(config: Config) -> Self {
        Self {
            declare: Declare::with(Arc::clone(&config.registry)),
            config,
            board: Arc::default(),
            sql: crate::sql::Sql::default(),
            log: Mutex::default(),
            operators: Mutex::default(),
            running: Mutex::default(),
        }
    }

    /// The program's name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Its data directory, if it was given one.
    pub fn data_dir(&self) -> Option<&std::path::Path> {
        self.config.data_dir.as_deref()
    }

    /// The log, while the program runs on one.
    pub(crate) fn log(&self) -> Option<Arc<tidemill_store::log::Log>> {
        self.log.lock().upgrade()
    }

    /// Lets queries ask the log and the states of the program.
    pub(crate) fn started(&self, pipeline: &Pipeline) {
        *self.operators.lock() = pipeline.states.all();
        if let Some(keep) = &pipeline.keep {
            *self.log.lock() = Arc::downgrade(keep.log());
        }
    }

    /// The operators with state of the program that was started.
    pub(crate) fn operators(&self) -> Vec<Arc<dyn StateOperator>> {
        self.operators.lock().clone()
    }

    /// Those of the program that is declared.
    pub(crate) fn state_operators(&self) -> Result<Vec<Arc<dyn StateOperator>>> {
        let states = crate::state::StateRegistry::default();
        crate::batch::lower(&self.config, &states, self.declare.outputs()?)?;
        Ok(states.all())
    }

    /// Whether the program can be started, as far as that is known without opening or starting anything.
    ///
    /// # Errors
    /// When there is no output, a declaration failed, or an operator can't be planned.
    pub fn check(&self) -> Result<()> {
        let outputs = self.declare.outputs()?;
        if outputs.is_empty() {
            return Err(crate::batch::no_output());
        }
        crate::batch::lower(&self.config, &crate::state::StateRegistry::default(), outputs).map(drop)
    }

    /// Each input and what it reads; then for each output its name, what it
    /// promises, and its physical plan as indented text. Nothing is started; what was declared stays declared.
    ///
    /// # Errors
    /// When a declaration failed, or an operator can't be planned.
    pub fn explain(&self) -> Result<String> {
        use datafusion::physical_plan::displayable;
        use std::fmt::Write as _;
        let outputs = self.declare.outputs()?;
        let means: std::collections::BTreeMap<String, &'static str> =
            outputs.iter().map(|output| (output.name.clone(), output.node.operator.gives())).collect();
        let states = crate::state::StateRegistry::default();
        let mut text = String::new();
        for input in self.declare.inputs() {
            let declared = self.declare.declared.lock();
            let ingest = declared.ingests.iter().find(|ingest| ingest.stream == input.name);
            let what = ingest.map_or_else(|| input.source.describe(), Ingest::describe);
            // Writing to a string can't fail.
            let _infallible = writeln!(text, "{}: reads {what}", input.name);
        }
        if !text.is_empty() {
            text.push('\n');
        }
        for output in crate::batch::lower(&self.config, &states, outputs)? {
            let promise = match &output.kind {
                crate::emit::OutputKind::Sink(sink) => match sink.guarantee() {
                    tidemill_core::Guarantee::ExactlyOnce => format!("exactly once into {}", sink.describe()),
                    tidemill_core::Guarantee::AtLeastOnce => format!("at least once into {}", sink.describe()),
                },
                crate::emit::OutputKind::View { .. } | crate::emit::OutputKind::Kept(_) => {
                    "a view, shown after the commit".to_string()
                }
                crate::emit::OutputKind::Call(_) => "a callback, at least once".to_string(),
            };
            let gives = means.get(&output.name).copied().filter(|gives| !gives.is_empty());
            let gives = gives.map_or(String::new(), |gives| format!("; gives {gives}"));
            // Writing to a string can't fail.
            let _infallible = write!(
                text,
                "{}: {promise}{gives}\n{}\n",
                output.name,
                displayable(output.plan.as_ref()).indent(false)
            );
        }
        Ok(text)
    }

    /// What people watch: views, reports, inputs.
    pub fn board(&self) -> Arc<Board> {
        Arc::clone(&self.board)
    }

    /// Starts the program.
    ///
    /// # Errors
    /// When there is no output, the data directory is in use or damaged, or an
    /// operator can't be planned.
    pub fn start(&self) -> Result<()> {
        let mut running = self.running.lock();
        if running.is_some() {
            return Err(Error::user("the context was started already; a context is started once"));
        }
        if self.config.check {
            return Err(Error::user("the context was built to check a program, not to run it"));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(self.config.partitions.max(2))
            .thread_name("tidemill")
            .enable_all()
            .build()
            .map_err(|e| Error::external("can't start threads").because(e))?;
        let (stop, stopping) = StopHandle::new();
        let (kill, killed) = StopHandle::new();
        let (tell, done) = std::sync::mpsc::channel();
        let pipeline = {
            let _in_runtime = runtime.enter();
            Pipeline::open(&self.config, &self.declare, Arc::clone(&self.board), self.sql.text())?
        };
        self.started(&pipeline);
        let board = Arc::clone(&self.board);
        runtime.spawn(async move {
            let task = tokio::spawn(pipeline.run(stopping, killed));
            let ended = task.await.unwrap_or_else(|e| Err(Error::internal("the batch loop panicked").because(e)));
            board.update_program(|program| match &ended {
                Ok(()) => program.phase = Phase::Stopped,
                Err(error) => {
                    program.phase = Phase::Failed;
                    program.error = Some(error.chain());
                }
            });
            // The context may be gone.
            let _gone = tell.send(ended);
        });
        *running = Some(Running { runtime, stop, kill, done });
        Ok(())
    }

    /// Blocks until the program ends.
    ///
    /// # Errors
    /// The error that ended it.
    pub fn await_termination(&self) -> Result<()> {
        self.take_running()?.finish()
    }

    /// Blocks until the program ends or `timeout` has passed; `None` when it still runs.
    ///
    /// # Errors
    /// The error that ended it.
    pub fn await_for(&self, timeout: Duration) -> Result<Option<()>> {
        let mut running = self.running.lock();
        let Some(now) = running.as_ref() else { return Err(Error::user("the context is not running")) };
        match now.done.recv_timeout(timeout) {
            Ok(ended) => {
                if let Some(now) = running.take() {
                    now.runtime.shutdown_background();
                }
                ended.map(Some)
            }
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => Ok(None),
            Err(gone) => Err(Error::internal("the batch loop is gone").because(gone)),
        }
    }

    /// Asks the program to stop after what it has received, without waiting.
    pub fn request_stop(&self) {
        if let Some(running) = &*self.running.lock() {
            running.stop.stop();
        }
    }

    /// Stops: `gracefully` finishes what was received and checkpoints, so that
    /// nothing is replayed at the next start; else at once, which is as safe as a crash.
    ///
    /// # Errors
    /// The error that ended the program.
    pub fn stop(&self, gracefully: bool) -> Result<()> {
        let running = self.take_running()?;
        running.stop.stop();
        if !gracefully {
            running.kill.stop();
        }
        running.finish()
    }

    fn take_running(&self) -> Result<Running> {
        self.running.lock().take().ok_or_else(|| Error::user("the context is not running: call start first"))
    }
}

impl Running {
    fn finish(self) -> Result<()> {
        let ended = self.done.recv().unwrap_or_else(|e| Err(Error::internal("the batch loop is gone").because(e)));
        self.runtime.shutdown_background();
        ended
    }
}

impl Drop for StreamingContext {
    fn drop(&mut self) {
        if let Some(running) = self.running.lock().take() {
            running.kill.stop();
            running.runtime.shutdown_background();
        }
    }
}
