//! What a program has declared so far: nodes, inputs, outputs, topics.
//!
//! Shared by the context and all its streams, which only add to it; the
//! pipeline takes all of it at the start. Invariant: names of operators are
//! unique, and a topic is filled by one part of the program only.

use crate::{
    emit::{Output, OutputKind, TopicSink, plain},
    ingest::{Ingest, TopicInput},
    plan::{Lineage, Operator, SourceExec, StreamInput},
};
use arrow_schema::SchemaRef;
use datafusion::physical_plan::ExecutionPlan;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};
use tidemill_core::{Claim, Error, Lookup, Options, Registry, Result, Sink, Source};

/// What has been declared; shared by the context and all its streams.
#[derive(Clone)]
pub(crate) struct Declare {
    pub(crate) declared: Arc<Mutex<Declared>>,
    registry: Arc<Registry>,
    /// The name that the user gave for the next operator.
    next: Option<Arc<str>>,
}

#[derive(Default)]
pub(crate) struct Declared {
    nodes: usize,
    kinds: BTreeMap<String, usize>,
    names: BTreeSet<String>,
    inputs: Vec<Arc<StreamInput>>,
    pub(crate) ingests: Vec<Ingest>,
    outputs: Vec<Output>,
    /// Sinks into topics, by output.
    topic_sinks: BTreeMap<String, Arc<TopicSink>>,
    pub(crate) topic_inputs: Vec<TopicInput>,
    /// Columns of the topics that this program fills.
    pub(crate) topics: BTreeMap<String, SchemaRef>,
    tables: BTreeMap<String, Arc<Lineage>>,
    /// What only one part of the program can have, and who has it.
    claims: Vec<(Claim, String)>,
    /// Sources that the program made itself, for streams declared in SQL.
    pub(crate) provided: BTreeMap<String, Arc<dyn Source>>,
    /// Tables that the program made itself, to be asked by key.
    pub(crate) lookups: BTreeMap<String, Arc<dyn Lookup>>,
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

    /// Takes what `owner` must have for itself; gives who has it already.
    pub(crate) fn take_alone(&self, claim: &Claim, owner: &str) -> Option<String> {
        let mut declared = self.declared.lock();
        if let Some((_, other)) = declared.claims.iter().find(|(taken, _)| taken.clashes(claim)) {
            return Some(other.clone());
        }
        declared.claims.push((claim.clone(), owner.to_string()));
        None
    }

    /// Takes what a sink writes to.
    ///
    /// # Errors
    /// When another sink of the program writes there.
    pub(crate) fn take_target(&self, sink: &dyn Sink, owner: &str) -> Result<()> {
        let Some(claim) = sink.claim() else { return Ok(()) };
        match self.take_alone(&claim, owner) {
            None => Ok(()),
            Some(other) => Err(Error::user(format!(
                "{owner} would write to {claim}, as {other} does, and rows of one would take the place of the other's: \
                 give each a place of its own, or put both queries into one output with UNION ALL"
            ))),
        }
    }

    /// The topic as a sink that the options describe.
    pub(crate) fn topic_sink(&self, options: &Options) -> Result<Arc<TopicSink>> {
        let sink = TopicSink::from_options(options)?;
        let _connector = options.get("connector");
        options.finish()?;
        Ok(Arc::new(sink))
    }

    /// An output into a topic that nothing else of the program fills.
    pub(crate) fn topic_output(&self, name: String, node: Arc<Lineage>, sink: &Arc<TopicSink>) -> Result<()> {
        self.fills(sink.topic(), plain(&node.schema()))?;
        let mut declared = self.declared.lock();
        declared.topic_sinks.insert(name.clone(), Arc::clone(sink));
        declared.outputs.push(Output { name, node, kind: OutputKind::Sink(Arc::clone(sink) as Arc<dyn Sink>) });
        Ok(())
    }

    /// Notes that the program fills a topic.
    pub(crate) fn fills(&self, topic: &str, schema: SchemaRef) -> Result<()> {
        if self.declared.lock().topics.insert(topic.to_string(), schema).is_some() {
            return Err(Error::user(format!(
                "topic `{topic}` is filled by another stream or output of this program: name another topic"
            )));
        }
        Ok(())
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
    pub(crate) fn outputs(&self) -> Result<Vec<Output>> {
        let mut declared = self.declared.lock();
        match declared.errors.pop() {
            Some(error) => Err(error),
            None => Ok(declared.outputs.clone()),
        }
    }

    /// Gives each view a sink of its name instead, so that a test sees what every batch gave.
    pub(crate) fn turn_views(&self, sink: impl Fn(&str) -> Arc<dyn Sink>) {
        for output in &mut self.declared.lock().outputs {
            if matches!(output.kind, OutputKind::View { .. }) {
                output.kind = OutputKind::Sink(sink(&output.name));
            }
        }
    }

    /// Everything, for the pipeline. Leaves the declarations empty.
    pub(crate) fn take(&self) -> Result<Taken> {
        let mut declared = self.declared.lock();
        if let Some(error) = declared.errors.pop() {
            return Err(error);
        }
        Ok(Taken {
            inputs: declared.inputs.clone(),
            ingests: std::mem::take(&mut declared.ingests),
            outputs: std::mem::take(&mut declared.outputs),
            topic_sinks: std::mem::take(&mut declared.topic_sinks),
            topic_inputs: std::mem::take(&mut declared.topic_inputs),
        })
    }
}

/// All that was declared, for the pipeline.
pub(crate) struct Taken {
    pub(crate) inputs: Vec<Arc<StreamInput>>,
    pub(crate) ingests: Vec<Ingest>,
    pub(crate) outputs: Vec<Output>,
    /// By output.
    pub(crate) topic_sinks: BTreeMap<String, Arc<TopicSink>>,
    pub(crate) topic_inputs: Vec<TopicInput>,
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
