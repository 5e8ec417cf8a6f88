//! [`StreamingContext`]: where a program is declared, started and stopped.
//!
//! Declaring builds lineage and lists outputs; nothing is read. `start` opens
//! the data directory, recovers, plans, starts receivers and runs batches until
//! `stop`. A context is started once.

use crate::{
    batch::{Pipeline, RateControl, Trigger},
    emit::Output,
    ingest::Ingest,
    plan::{Lineage, Operator, SourceExec, StreamInput},
    record::Record,
    stream::DStream,
};
use arrow_schema::SchemaRef;
use datafusion::physical_plan::ExecutionPlan;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::{Arc, Weak},
};
use tidemill_core::{
    Board, Clock, Duration, Error, Format, Input, Options, Phase, Receiver, Registry, Result, Sink, Source, StopHandle,
};

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
    pub fn build(self) -> StreamingContext {
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

/// What has been declared; shared by the context and all its streams.
#[derive(Clone)]
pub(crate) struct Declare {
    declared: Arc<Mutex<Declared>>,
    registry: Arc<Registry>,
    /// The name that the user gave for the next operator.
    next: Option<Arc<str>>,
}

#[derive(Default)]
struct Declared {
    nodes: usize,
    kinds: BTreeMap<String, usize>,
    names: BTreeSet<String>,
    inputs: Vec<Arc<StreamInput>>,
    ingests: Vec<Ingest>,
    outputs: Vec<Output>,
    tables: BTreeMap<String, Arc<Lineage>>,
    /// Sources that the program made itself, for streams declared in SQL.
    provided: BTreeMap<String, Arc<dyn Source>>,
    errors: Vec<Error>,
}

impl fmt::Debug for Declare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} nodes declared", self.declared.lock().nodes)
    }
}

impl Declare {
    pub(crate) fn with(registry: Arc<Registry>) -> Self {
        Self { declared: Arc::default(), registry, next: None }
    }

    /// The same declarations; the next operator is called `name`.
    pub(crate) fn naming(&self, name: &str) -> Self {
        if !is_operator_name(name) {
            self.fail(Error::user(format!(
                "`{name}` can't name an operator: take 1 to 100 of A-Z a-z 0-9 . _ - and do not begin with a dot"
            )));
            return self.unnamed();
        }
        Self { next: Some(Arc::from(name)), ..self.clone() }
    }

    /// The same declarations, without a name for the next operator.
    pub(crate) fn unnamed(&self) -> Self {
        Self { next: None, ..self.clone() }
    }

    /// The name that the user gave for the next operator, else one after its kind.
    pub(crate) fn name(&self, kind: &str) -> String {
        match &self.next {
            None => self.free_name(kind),
            Some(name) => {
                if let Err(error) = self.claim("operator", name) {
                    self.fail(error);
                }
                name.to_string()
            }
        }
    }

    /// The sink that the options describe.
    pub(crate) fn sink(&self, options: &Options) -> Result<Arc<dyn Sink>> {
        let sink = self.registry.sink(options)?;
        options.finish()?;
        Ok(sink)
    }

    /// A new node under the user's name, or named after its kind and its place among its like.
    pub(crate) fn node(&self, inputs: Vec<Arc<Lineage>>, operator: impl Operator + 'static) -> Arc<Lineage> {
        let name = self.name(operator.kind());
        self.named_node(name, inputs, operator)
    }

    /// A new node under a name that the caller made unique.
    pub(crate) fn named_node(
        &self,
        name: String,
        inputs: Vec<Arc<Lineage>>,
        operator: impl Operator + 'static,
    ) -> Arc<Lineage> {
        let mut declared = self.declared.lock();
        declared.nodes += 1;
        Arc::new(Lineage { id: declared.nodes, name, inputs, operator: Box::new(operator) })
    }

    /// `kind`, or `kind-2` and so on when it is taken.
    pub(crate) fn free_name(&self, kind: &str) -> String {
        let mut declared = self.declared.lock();
        loop {
            let count = declared.kinds.entry(kind.to_string()).or_default();
            *count += 1;
            let name = if *count == 1 { kind.to_string() } else { format!("{kind}-{count}") };
            if declared.names.insert(name.clone()) {
                return name;
            }
        }
    }

    /// Takes a name that the user gave.
    ///
    /// # Errors
    /// When it is taken.
    pub(crate) fn claim(&self, what: &str, name: &str) -> Result<()> {
        if self.declared.lock().names.insert(name.to_string()) {
            return Ok(());
        }
        Err(Error::user(format!("{what} `{name}`: the name is taken; choose another")))
    }

    /// The node that reads an input stream's own columns.
    pub(crate) fn input(&self, input: StreamInput) -> Arc<Lineage> {
        let input = Arc::new(input);
        self.declared.lock().inputs.push(Arc::clone(&input));
        let columns = input.own_columns();
        self.named_node(input.name.clone(), vec![], ReadStream { input, columns })
    }

    pub(crate) fn ingest(&self, ingest: Ingest) {
        self.declared.lock().ingests.push(ingest);
    }

    pub(crate) fn output(&self, output: Output) {
        self.declared.lock().outputs.push(output);
    }

    pub(crate) fn table(&self, name: &str, node: Arc<Lineage>) {
        self.declared.lock().tables.insert(name.to_string(), node);
    }

    pub(crate) fn tables(&self) -> BTreeMap<String, Arc<Lineage>> {
        self.declared.lock().tables.clone()
    }

    /// Keeps an error of a method that can't return one, for `start`.
    pub(crate) fn fail(&self, error: Error) {
        self.declared.lock().errors.push(error);
    }

    pub(crate) fn inputs(&self) -> Vec<Arc<StreamInput>> {
        self.declared.lock().inputs.clone()
    }

    /// The outputs so far, left where they are.
    ///
    /// # Errors
    /// The last error of a method that could not return it.
    fn outputs(&self) -> Result<Vec<Output>> {
        let mut declared = self.declared.lock();
        match declared.errors.pop() {
            Some(error) => Err(error),
            None => Ok(declared.outputs.clone()),
        }
    }

    /// Everything, for the pipeline. Leaves the declarations empty.
    pub(crate) fn take(&self) -> Result<(Vec<Arc<StreamInput>>, Vec<Ingest>, Vec<Output>)> {
        let mut declared = self.declared.lock();
        if let Some(error) = declared.errors.pop() {
            return Err(error);
        }
        Ok((declared.inputs.clone(), std::mem::take(&mut declared.ingests), std::mem::take(&mut declared.outputs)))
    }
}

/// Names are directories of state files and stand in checkpoints.
pub(crate) fn is_operator_name(name: &str) -> bool {
    (1..=100).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Reads columns of an input stream.
#[derive(Debug)]
struct ReadStream {
    input: Arc<StreamInput>,
    columns: Vec<usize>,
}

impl Operator for ReadStream {
    fn kind(&self) -> &'static str {
        "stream"
    }

    fn schema(&self) -> SchemaRef {
        Arc::new(self.input.schema.project(&self.columns).expect("own columns are within the schema"))
    }

    fn lower(
        &self,
        _inputs: Vec<Arc<dyn ExecutionPlan>>,
        cx: &mut crate::plan::Lowering<'_>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        SourceExec::plan(Arc::clone(&self.input), self.columns.clone(), cx.partitions)
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

    /// For each output its name, what it promises, and its physical plan as
    /// indented text. Nothing is started; what was declared stays declared.
    ///
    /// # Errors
    /// When a declaration failed, or an operator can't be planned.
    pub fn explain(&self) -> Result<String> {
        use datafusion::physical_plan::displayable;
        use std::fmt::Write as _;
        let outputs = self.declare.outputs()?;
        let states = crate::state::StateRegistry::default();
        let mut text = String::new();
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
        let node = self.receive(name, receivers, format)?;
        Ok(DStream::over(&self.declare, node))
    }

    pub(crate) fn receive(
        &self,
        name: &str,
        receivers: Vec<Arc<dyn Receiver>>,
        format: Arc<dyn Format>,
    ) -> Result<Arc<Lineage>> {
        if self.config.data_dir.is_none() && !self.config.check {
            return Err(Error::user(format!(
                "stream `{name}` comes from a receiver, whose records must be kept in a log: give the context a data directory"
            )));
        }
        let ingest = Ingest::new(name, receivers);
        let source = ingest.source();
        self.declare.ingest(ingest);
        Ok(self.declare.input(StreamInput::new(name, source, Some(format))?))
    }

    /// Opens a stream by the options of a connector, as SQL's `CREATE STREAM` does.
    pub(crate) fn open(&self, name: &str, options: &Options, columns: Option<SchemaRef>) -> Result<Arc<Lineage>> {
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
        options.finish()?;
        match (input, format) {
            (Input::Source(source), format) => Ok(self.declare.input(StreamInput::new(name, source, format)?)),
            (Input::Receivers(receivers), Some(format)) => self.receive(name, receivers, format),
            (Input::Receivers(_), None) => Err(Error::internal("receivers without a format")),
        }
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
