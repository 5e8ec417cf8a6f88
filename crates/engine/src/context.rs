//! [`StreamingContext`]: where a program is declared, started and stopped.
//!
//! Declaring builds lineage and lists outputs; nothing is read. `start` opens
//! the data directory, recovers, plans, starts receivers and runs batches until
//! `stop`. A context is started once.

pub(crate) use crate::declare::{Declare, Taken, is_operator_name};
use crate::{
    batch::{Pipeline, RateControl, Trigger},
    ingest::{Ingest, Start, TopicInput, TopicSource, dead_schema, is_raw, raw_schema},
    plan::{Lineage, StreamInput},
    record::Record,
    stream::DStream,
};
use arrow_schema::SchemaRef;
use parking_lot::Mutex;
use std::{
    path::PathBuf,
    sync::{Arc, Weak},
};
use tidemill_core::{
    Board, Clock, Duration, Error, Format, Input, Options, Phase, Receiver, Registry, Result, Source, StopHandle,
};
use tidemill_store::log::Retention;

/// How a program is run.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) name: String,
    pub(crate) trigger: Trigger,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) partitions: usize,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) rate: RateControl,
    pub(crate) batch_bytes: u64,
    pub(crate) batch_records: u64,
    pub(crate) sync: tidemill_store::log::Sync,
    pub(crate) max_lag_bytes: u64,
    /// What the log keeps of streams that say nothing themselves.
    pub(crate) retention: Option<Retention>,
    pub(crate) dead_retention: Retention,
    pub(crate) disk: Arc<dyn tidemill_store::disk::Disk>,
    /// Whether the program is only looked at, never started.
    pub(crate) check: bool,
}

/// Builds a [`StreamingContext`].
#[derive(Debug)]
pub struct ContextBuilder {
    config: Config,
}

impl ContextBuilder {
    /// Batches begin each `interval`; the default is one second.
    #[must_use]
    pub fn interval(self, interval: Duration) -> Self {
        self.trigger(Trigger::Every(interval))
    }

    /// When batches begin.
    #[must_use]
    pub fn trigger(mut self, trigger: Trigger) -> Self {
        self.config.trigger = trigger;
        self
    }

    /// Where the log, the ledger and the state are kept. Without it nothing
    /// survives the process and receivers can't be used.
    #[must_use]
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.data_dir = Some(path.into());
        self
    }

    /// Partitions of keyed operators and threads of the program; the default is
    /// the number of processors.
    #[must_use]
    pub fn partitions(mut self, partitions: usize) -> Self {
        self.config.partitions = partitions.max(1);
        self
    }

    /// The clock; tests move a [`tidemill_core::ManualClock`].
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.config.clock = clock;
        self
    }

    /// Connectors, formats and sinks by name.
    #[must_use]
    pub fn registry(mut self, registry: Registry) -> Self {
        self.config.registry = Arc::new(registry);
        self
    }

    /// How the size of batches follows what the program can take.
    #[must_use]
    pub fn rate_control(mut self, rate: RateControl) -> Self {
        self.config.rate = rate;
        self
    }

    /// Bytes that a batch reads at most (64 MiB by default).
    #[must_use]
    pub fn batch_bytes(mut self, bytes: u64) -> Self {
        self.config.batch_bytes = bytes.max(1);
        self
    }

    /// Records that a batch reads at most (no bound by default).
    #[must_use]
    pub fn batch_records(mut self, records: u64) -> Self {
        self.config.batch_records = records.max(1);
        self
    }

    /// When records from receivers are made durable (each 10 ms by default).
    #[must_use]
    pub fn sync(mut self, sync: tidemill_store::log::Sync) -> Self {
        self.config.sync = sync;
        self
    }

    /// Bytes that receivers may run ahead of the batches before senders are slowed down.
    #[must_use]
    pub fn max_lag_bytes(mut self, bytes: u64) -> Self {
        self.config.max_lag_bytes = bytes.max(1);
        self
    }

    /// What the log keeps of the streams of receivers, unless a stream says
    /// otherwise ([`StreamingContext::retain`], or `retention_age` and
    /// `retention_bytes` in SQL). By default everything is kept. What no batch
    /// has committed is kept always.
    #[must_use]
    pub fn retention(mut self, retention: Retention) -> Self {
        self.config.retention = Some(retention);
        self
    }

    /// What is kept of the dead letters, in the topic `<program>.dead`: 256 MiB by default.
    #[must_use]
    pub fn dead_retention(mut self, retention: Retention) -> Self {
        self.config.dead_retention = retention;
        self
    }

    /// The disk that log, ledger and state are on; tests give one that is full, or that breaks.
    #[must_use]
    pub fn disk(mut self, disk: Arc<dyn tidemill_store::disk::Disk>) -> Self {
        self.config.disk = disk;
        self
    }

    /// The program is only declared, checked and explained: it needs no data
    /// directory, and can't be started.
    #[must_use]
    pub fn check_only(mut self) -> Self {
        self.config.check = true;
        self
    }

    /// The context, ready for declarations.
    pub fn build(mut self) -> StreamingContext {
        // Topics are the engine's own; the names are known, so that a slip in one is told.
        let registry = Arc::make_mut(&mut self.config.registry);
        registry.add_input("topic", |o| Err(Error::internal(format!("{}: topics are opened otherwise", o.owner()))));
        registry.add_sink("topic", |o| Err(Error::internal(format!("{}: topics are opened otherwise", o.owner()))));
        StreamingContext {
            declare: Declare::with(Arc::clone(&self.config.registry)),
            config: self.config,
            board: Arc::default(),
            sql: crate::sql::Sql::default(),
            log: Mutex::default(),
            running: Mutex::default(),
        }
    }
}

/// Where a program is declared, started and stopped.
#[derive(Debug)]
pub struct StreamingContext {
    pub(crate) config: Config,
    pub(crate) declare: Declare,
    board: Arc<Board>,
    pub(crate) sql: crate::sql::Sql,
    /// The log while the program runs, for queries.
    log: Mutex<Weak<tidemill_store::log::Log>>,
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
        let partitions = std::thread::available_parallelism().map_or(2, usize::from);
        ContextBuilder {
            config: Config {
                name: name.into(),
                trigger: Trigger::Every(Duration::from_secs(1)),
                data_dir: None,
                partitions,
                clock: Arc::new(crate::clock::SystemClock),
                registry: Arc::default(),
                rate: RateControl::default(),
                batch_bytes: 64 << 20,
                batch_records: u64::MAX,
                sync: tidemill_store::log::Sync::Every(Duration::from_millis(10)),
                max_lag_bytes: 256 << 20,
                retention: None,
                dead_retention: Retention { max_age: None, max_bytes: Some(256 << 20) },
                disk: Arc::new(tidemill_store::disk::RealDisk),
                check: false,
            },
        }
    }

    /// The program's name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// The log, while the program runs on one.
    pub(crate) fn log(&self) -> Option<Arc<tidemill_store::log::Log>> {
        self.log.lock().upgrade()
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
            // Writing to a string can't fail.
            let _infallible =
                write!(text, "{}: {promise}\n{}\n", output.name, displayable(output.plan.as_ref()).indent(false));
        }
        Ok(text)
    }

    /// What people watch: views, reports, inputs.
    pub fn board(&self) -> Arc<Board> {
        Arc::clone(&self.board)
    }

    /// A stream over a replayable source.
    ///
    /// # Errors
    /// When the name is taken, or a source of raw records comes without a format.
    pub fn source_stream<T: Record>(
        &self,
        name: &str,
        source: Arc<dyn Source>,
        format: Option<Arc<dyn Format>>,
    ) -> Result<DStream<T>> {
        self.declare.claim("stream", name)?;
        let node = self.declare.input(StreamInput::new(name, source, format)?);
        Ok(DStream::over(&self.declare, node))
    }

    /// A stream over receivers; their records go through the topic `name`, a
    /// partition each.
    ///
    /// # Errors
    /// When the name is taken, or the context has no data directory.
    pub fn receiver_stream<T: Record>(
        &self,
        name: &str,
        receivers: Vec<Arc<dyn Receiver>>,
        format: Arc<dyn Format>,
    ) -> Result<DStream<T>> {
        self.declare.claim("stream", name)?;
        let node = self.receive(name, receivers, format, None)?;
        Ok(DStream::over(&self.declare, node))
    }

    pub(crate) fn receive(
        &self,
        name: &str,
        receivers: Vec<Arc<dyn Receiver>>,
        format: Arc<dyn Format>,
        retention: Option<Retention>,
    ) -> Result<Arc<Lineage>> {
        if self.config.data_dir.is_none() && !self.config.check {
            return Err(Error::user(format!(
                "stream `{name}` comes from a receiver, whose records must be kept in a log: give the context a data directory"
            )));
        }
        self.declare.fills(name, raw_schema())?;
        let ingest = Ingest::new(name, receivers, retention.or(self.config.retention));
        let source = ingest.source();
        self.declare.ingest(ingest);
        Ok(self.declare.input(StreamInput::new(name, source, Some(format))?))
    }

    /// Says what the log keeps of a stream of receivers that was declared
    /// before. What no batch has committed is kept always.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tidemill_engine::{Retention, StreamingContext};
    /// # fn retain(context: &StreamingContext) -> Result<(), tidemill_core::Error> {
    /// context.retain("posts", Retention { max_age: Some(Duration::from_secs(3600)), max_bytes: Some(1 << 30) })
    /// # }
    /// ```
    ///
    /// # Errors
    /// When no stream of receivers has that name.
    pub fn retain(&self, stream: &str, retention: Retention) -> Result<()> {
        let mut declared = self.declare.declared.lock();
        if let Some(ingest) = declared.ingests.iter_mut().find(|ingest| ingest.stream == stream) {
            ingest.retention = Some(retention);
            return Ok(());
        }
        let known: Vec<&str> = declared.ingests.iter().map(|ingest| ingest.stream.as_str()).collect();
        let hint = match tidemill_core::nearest(stream, &known) {
            Some(near) => format!("did you mean `{near}`?"),
            None if known.is_empty() => "no stream of this program comes from a receiver".to_string(),
            None => format!("there are {}", known.join(", ")),
        };
        Err(Error::user(format!("the log keeps no stream `{stream}`; {hint}")))
    }

    /// Opens a stream by the options of a connector, as SQL's `CREATE STREAM` does.
    pub(crate) fn open(&self, name: &str, options: &Options, columns: Option<SchemaRef>) -> Result<Arc<Lineage>> {
        if options.get("connector") == Some("topic") {
            return self.open_topic(name, options, columns);
        }
        let registry = Arc::clone(&self.config.registry);
        let provided = self.declare.declared.lock().provided.get(name).cloned();
        let input = match (options.get("connector"), provided) {
            (Some("program"), Some(source)) => Input::Source(source),
            (Some("program"), None) => {
                return Err(Error::user(format!(
                    "stream \"{name}\": the program that runs this SQL gave no source of that name; call provide_source before"
                )));
            }
            _ => registry.input(options)?,
        };
        let needs_format = match &input {
            Input::Source(source) => matches!(source.shape(), tidemill_core::Shape::Raw),
            Input::Receivers(_) => true,
        };
        let format = if needs_format { Some(registry.format(options, columns)?) } else { None };
        let retention = Retention::from_options(options)?;
        options.finish()?;
        match (input, format) {
            (Input::Source(source), _) if retention.is_some() => Err(Error::user(format!(
                "stream \"{name}\": the log keeps nothing of it, as {} can be read again: leave out `retention_age` and `retention_bytes`",
                source.describe()
            ))),
            (Input::Source(source), format) => Ok(self.declare.input(StreamInput::new(name, source, format)?)),
            (Input::Receivers(receivers), Some(format)) => self.receive(name, receivers, format, retention),
            (Input::Receivers(_), None) => Err(Error::internal("receivers without a format")),
        }
    }

    /// A stream over a topic of the log, which is read where it lies.
    fn open_topic(&self, name: &str, options: &Options, columns: Option<SchemaRef>) -> Result<Arc<Lineage>> {
        let fail = |what: String| Err(Error::user(format!("stream \"{name}\": {what}")));
        let topic = options.require("topic", "it names the topic to read; `tidemill topic list` shows them")?;
        let start = Start::from_options(options)?;
        let decoded = options.get("format").is_some();
        let schema = self.topic_columns(topic)?;
        let (shape, format) = match (&schema, &columns) {
            (Some(schema), _) if is_raw(schema) => {
                (tidemill_core::Shape::Raw, Some(self.config.registry.format(options, columns)?))
            }
            (Some(_), _) if decoded => {
                return fail(format!("topic `{topic}` has columns of its own: leave out `format`"));
            }
            (Some(schema), _) => (tidemill_core::Shape::Columns(Arc::clone(schema)), None),
            (None, _) if decoded => (tidemill_core::Shape::Raw, Some(self.config.registry.format(options, columns)?)),
            (None, Some(columns)) => (tidemill_core::Shape::Columns(Arc::clone(columns)), None),
            (None, None) => {
                return fail(format!(
                    "there is no topic `{topic}` yet, so its columns are not known: declare them, say format = 'text' when it will hold lines, or put the INSERT that fills it before"
                ));
            }
        };
        if Retention::from_options(options)?.is_some() {
            return fail(format!(
                "what topic `{topic}` keeps is said where it is filled: leave out `retention_age` and `retention_bytes`"
            ));
        }
        options.finish()?;
        if self.config.data_dir.is_none() && !self.config.check {
            return fail("a topic lies in a data directory: give the context one".to_string());
        }
        let source = Arc::new(TopicSource::over(topic, shape, start));
        let input = TopicInput { stream: name.to_string(), topic: topic.to_string(), source: Arc::clone(&source) };
        self.declare.declared.lock().topic_inputs.push(input);
        Ok(self.declare.input(StreamInput::new(name, source, format)?))
    }

    /// Columns of a topic: of one that this program fills, else of one that is there.
    fn topic_columns(&self, topic: &str) -> Result<Option<SchemaRef>> {
        if let Some(schema) = self.declare.declared.lock().topics.get(topic) {
            return Ok(Some(Arc::clone(schema)));
        }
        if topic == format!("{}.dead", self.config.name) {
            return Ok(Some(dead_schema()));
        }
        let Some(dir) = &self.config.data_dir else { return Ok(None) };
        let stored = tidemill_store::log::stored_config(&tidemill_store::RealDisk, &dir.join("log"), topic)?;
        Ok(stored.map(|config| config.schema))
    }

    /// Gives a source that the program made to `CREATE STREAM name … WITH (connector = 'program')`.
    pub fn provide_source(&self, name: &str, source: Arc<dyn Source>) {
        self.declare.declared.lock().provided.insert(name.to_string(), source);
    }

    /// Lines of text from a TCP server, reconnecting as needed.
    ///
    /// # Errors
    /// When the context has no data directory or no `tcp` connector.
    pub fn socket_text_stream(&self, host: &str, port: u16) -> Result<DStream<String>> {
        let name = self.declare.free_name("socket");
        let options = Options::new(
            format!("stream \"{name}\""),
            [("connector", "tcp".to_string()), ("address", format!("{host}:{port}")), ("format", "text".to_string())],
        );
        Ok(DStream::over(&self.declare, self.open(&name, &options, None)?))
    }

    /// Lines of the files in a directory, each file once.
    ///
    /// # Errors
    /// When the context has no `files` connector.
    pub fn text_file_stream(&self, path: &str) -> Result<DStream<String>> {
        let name = self.declare.free_name("files");
        let options = Options::new(
            format!("stream \"{name}\""),
            [("connector", "files".to_string()), ("path", path.to_string()), ("format", "text".to_string())],
        );
        Ok(DStream::over(&self.declare, self.open(&name, &options, None)?))
    }

    /// A stream of the given batches, one each tick; ends after the last. For
    /// tests and examples: what is queued in memory does not survive the process.
    ///
    /// # Errors
    /// When a batch can't be laid out in columns.
    pub fn queue_stream<T: Record>(&self, batches: impl IntoIterator<Item = Vec<T>>) -> Result<DStream<T>> {
        let source = crate::ingest::QueueSource::of(batches)?;
        let name = self.declare.free_name("queue");
        let node = self.declare.input(StreamInput::new(name, Arc::new(source), None)?);
        Ok(DStream::over(&self.declare, node))
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
            Pipeline::open(&self.config, &self.declare, Arc::clone(&self.board))?
        };
        if let Some(keep) = &pipeline.keep {
            *self.log.lock() = Arc::downgrade(keep.log());
        }
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
