//! The inputs of a program: sources, receivers, topics, and the field's short forms.
//!
//! Invariant: an input is known under one name, and nothing of it is read
//! before the program starts. Called by programs and by `CREATE STREAM`.

use crate::{
    context::StreamingContext,
    ingest::{DeadShare, Ingest, Start, TopicInput, TopicSource, dead_schema, is_raw, raw_schema, replayed_schema},
    plan::{Lineage, StreamInput},
    record::Record,
    stream::DStream,
};
use arrow_schema::SchemaRef;
use std::sync::Arc;
use tidemill_core::{Error, Format, Input, Lookup, Options, Receiver, Result, Source};
use tidemill_store::log::Retention;

impl StreamingContext {
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
        for claim in receivers.iter().filter_map(|receiver| receiver.claim()) {
            if let Some(other) = self.declare.take_alone(&claim, &format!("stream `{name}`")) {
                return Err(Error::user(format!(
                    "stream `{name}` would read {claim}, as {other} does, and only one of the two can have it, or each record comes to \
                     one of them at random: read it in one stream, and let views take of it what they need"
                )));
            }
        }
        self.declare.fills(name, raw_schema())?;
        let ingest = Ingest::new(name, receivers, retention.or(self.config.retention));
        let source = ingest.source();
        source.decoded_by(&*format);
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
        if let Input::Source(source) = &input {
            source.declare(columns.as_ref())?;
        }
        let format = match &input {
            Input::Source(source) if matches!(source.shape(), tidemill_core::Shape::Columns(_)) => None,
            Input::Source(source) => Some(source.format(columns, &|columns| registry.format(options, columns))?),
            Input::Receivers(_) => Some(registry.format(options, columns)?),
        };
        let retention = Retention::from_options(options)?;
        let dead_share = DeadShare::from_options(options)?;
        options.finish()?;
        let opened = match (input, format) {
            (Input::Source(source), _) if retention.is_some() => Err(Error::user(format!(
                "stream \"{name}\": the log keeps nothing of it, as {} can be read again: leave out `retention_age` and `retention_bytes`",
                source.describe()
            ))),
            (Input::Source(source), format) => Ok(self.declare.input(StreamInput::new(name, source, format)?)),
            (Input::Receivers(receivers), Some(format)) => self.receive(name, receivers, format, retention),
            (Input::Receivers(_), None) => Err(Error::internal("receivers without a format")),
        };
        if opened.is_ok() {
            self.bound_dead(dead_share);
        }
        opened
    }

    /// Bounds the dead letters of the stream that was opened last.
    fn bound_dead(&self, share: Option<DeadShare>) {
        if let (Some(share), Some(input)) = (share, self.declare.inputs().last()) {
            // A stream is opened once.
            let _set = input.dead_share.set(share);
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
        let dead_share = DeadShare::from_options(options)?;
        options.finish()?;
        if self.config.data_dir.is_none() && !self.config.check {
            return fail("a topic lies in a data directory: give the context one".to_string());
        }
        let source = Arc::new(TopicSource::over(topic, shape, start));
        if let Some(format) = &format {
            source.decoded_by(&**format);
        }
        let input = TopicInput { stream: name.to_string(), topic: topic.to_string(), source: Arc::clone(&source) };
        self.declare.declared.lock().topic_inputs.push(input);
        let node = self.declare.input(StreamInput::new(name, source, format)?);
        self.bound_dead(dead_share);
        Ok(node)
    }

    /// Columns of a topic: of one that this program fills, else of one that is there.
    fn topic_columns(&self, topic: &str) -> Result<Option<SchemaRef>> {
        if let Some(schema) = self.declare.declared.lock().topics.get(topic) {
            return Ok(Some(Arc::clone(schema)));
        }
        if topic == format!("{}.dead", self.config.name) {
            return Ok(Some(dead_schema()));
        }
        if topic == format!("{}.replayed", self.config.name) {
            return Ok(Some(replayed_schema()));
        }
        let Some(dir) = &self.config.data_dir else { return Ok(None) };
        let stored = tidemill_store::log::stored_config(&tidemill_store::RealDisk, &dir.join("log"), topic)?;
        Ok(stored.map(|config| config.schema))
    }

    /// Gives a source that the program made to `CREATE STREAM name … WITH (connector = 'program')`.
    pub fn provide_source(&self, name: &str, source: Arc<dyn Source>) {
        self.declare.declared.lock().provided.insert(name.to_string(), source);
    }

    /// Gives a table that the program made to `CREATE TABLE name (…) WITH (connector = 'program', key = …)`.
    pub fn provide_lookup(&self, name: &str, table: Arc<dyn Lookup>) {
        self.declare.declared.lock().lookups.insert(name.to_string(), table);
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
}
