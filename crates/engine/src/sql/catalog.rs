//! What a program's statements have named so far, and how each is declared.
//!
//! Held by the context, so that a program may be declared in several pieces.
//! Invariant: names are one room (a view can't be called like a stream), and a
//! statement that fails declares nothing.

use super::{
    checks::{check_columns, check_time, claim_parts, real_name, unique_names},
    lookup::{Asked, LookupTable},
    lower::{self, Planned, Shape},
    mistakes::{self, of_df},
    parse::{self, Kind, Statement},
    parts::Planning,
    provider::Table,
    reload::{Reloaded, Shown, TableOperator},
    session::{config, session, with_room},
    shape::Changes,
    side::LateNode,
    stored::{read_rows, stored},
    tables::{NodeTable, StreamTable},
    times::{Emit, StreamTime, ViewOptions},
    window::{Tables, Watermarks, WindowPlanner},
};
use crate::{
    StreamingContext,
    declare::is_operator_name,
    emit::{Output, OutputKind, TopicSink},
    plan::{StreamInput, TimeColumn},
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::{
    catalog::{TableProvider, view::ViewTable},
    datasource::MemTable,
    execution::SessionState,
    logical_expr::LogicalPlan,
    prelude::SessionContext,
    sql::{
        parser::Statement as DfStatement,
        sqlparser::ast::{Query, SetExpr, Statement as AstStatement},
    },
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};
use tidemill_core::{Blame, Error, Options, Result, Sink, nearest};

/// The catalog of a context.
#[derive(Default)]
pub(crate) struct Sql {
    catalog: Mutex<Option<Catalog>>,
    /// What was declared, piece by piece.
    texts: Mutex<Vec<String>>,
}

impl fmt::Debug for Sql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.catalog.lock().as_ref().map_or(0, |c| c.known.len());
        write!(f, "{names} names in SQL")
    }
}

impl Sql {
    /// All that was declared as text; `None` when nothing was.
    pub(crate) fn text(&self) -> Option<String> {
        let texts = self.texts.lock();
        (!texts.is_empty()).then(|| texts.join(";\n"))
    }

    /// The static tables, and the views without rows, for queries beside the program.
    pub(super) fn tables(&self) -> BTreeMap<String, Arc<dyn TableProvider>> {
        self.catalog.lock().as_ref().map(|catalog| catalog.queryable.clone()).unwrap_or_default()
    }
}

pub(super) struct Catalog {
    session: SessionContext,
    streams: BTreeMap<String, Arc<StreamInput>>,
    watermarks: Watermarks,
    pub(super) tables: Tables,
    /// Static tables, and views as they are before their first rows.
    pub(super) queryable: BTreeMap<String, Arc<dyn TableProvider>>,
    /// All names and what they are, for errors.
    known: BTreeMap<String, &'static str>,
    sinks: BTreeMap<String, SinkEntry>,
    /// Views without state, which are put into what reads them: their text.
    definitions: BTreeMap<String, String>,
    /// Views whose rows are those of windows that closed.
    pub(super) windowed: BTreeSet<String>,
    /// Column names with upper-case letters.
    mixed: BTreeSet<String>,
    pub(super) partitions: usize,
}

struct SinkEntry {
    sink: SinkKind,
    used: bool,
}

#[derive(Clone)]
enum SinkKind {
    Other(Arc<dyn Sink>),
    Topic(Arc<TopicSink>),
}

impl StreamingContext {
    /// Declares the streams, tables, views and sinks of a SQL program.
    ///
    /// A query without an aggregate gives the rows of each batch; with GROUP BY,
    /// the whole result so far; grouped by a window of `TUMBLE` or `HOP`, each
    /// window once, when the watermark passes its end. ORDER BY and LIMIT work
    /// within the batch, the result or the window. Rows all of whose windows have
    /// closed are counted as late. Nothing is read yet, static tables excepted.
    ///
    /// ```
    /// use tidemill_engine::{StreamingContext, Trigger};
    ///
    /// let context = StreamingContext::builder("tags").trigger(Trigger::Drain).build();
    /// let posts = context.queue_stream([vec!["#Rust is #fast".to_string()], vec!["more #rust".to_string()]])?;
    /// posts.to_table("posts", &["text"]);
    /// context.declare_sql(
    ///     "CREATE VIEW tags AS
    ///        SELECT lower(tag) AS tag, count(*) AS n
    ///        FROM (SELECT unnest(hashtags(text)) AS tag FROM posts)
    ///        GROUP BY lower(tag) ORDER BY n DESC LIMIT 1",
    /// )?;
    /// context.start()?;
    /// context.await_termination()?;
    /// let top = context.sql("SELECT tag FROM tags WHERE n = 2")?;
    /// assert_eq!(top[0].num_rows(), 1);
    /// # Ok::<(), tidemill_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// With the line, the column and what to write instead.
    pub fn declare_sql(&self, program: &str) -> Result<()> {
        with_room(|| async {
            let mut held = self.sql.catalog.lock().take();
            let catalog = held.get_or_insert_with(|| Catalog::new(self.config.partitions));
            let done = catalog.declare(self, program).await;
            *self.sql.catalog.lock() = held;
            if done.is_ok() {
                self.sql.texts.lock().push(program.trim().trim_end_matches(';').to_string());
            }
            done
        })
    }
}

impl Catalog {
    fn new(partitions: usize) -> Self {
        let watermarks = Watermarks::default();
        let session = session(config(partitions), None);
        let tables = Tables::default();
        let planner = Arc::new(WindowPlanner { watermarks: Arc::clone(&watermarks), tables: Arc::clone(&tables) });
        session.register_relation_planner(planner).expect("a session takes relation planners");
        Self {
            session,
            streams: BTreeMap::new(),
            watermarks,
            tables,
            queryable: BTreeMap::new(),
            known: BTreeMap::new(),
            sinks: BTreeMap::new(),
            definitions: BTreeMap::new(),
            windowed: BTreeSet::new(),
            mixed: BTreeSet::new(),
            partitions,
        }
    }

    /// Declares all that can be; of what can't, all errors are told but those that follow from another.
    async fn declare(&mut self, context: &StreamingContext, program: &str) -> Result<()> {
        let mut errors = Vec::new();
        let mut broken = BTreeSet::new();
        for statement in parse::statements(program, &mut self.mixed)? {
            let statement = match statement {
                Ok(statement) => statement,
                Err(parse::Broken { error, name }) => {
                    errors.push(error);
                    broken.extend(name);
                    continue;
                }
            };
            let (at, what, name) = (statement.at, statement.kind.title(), statement.kind.name());
            let words = statement.words.clone();
            if words.iter().any(|word| broken.contains(&word.text)) {
                broken.extend(name);
            } else if let Err(e) = self.statement(context, statement).await {
                let (at, text) = mistakes::placed(e.chain(), &words, at);
                errors.push(of_blame(e.blame(), format!("{at}: {what}: {text}")));
                broken.extend(name);
            }
        }
        let Some(first) = errors.first() else { return Ok(()) };
        if errors.len() == 1 {
            return Err(errors.remove(0));
        }
        let all: Vec<String> = errors.iter().map(Error::chain).collect();
        Err(of_blame(first.blame(), all.join("\n")))
    }

    async fn statement(&mut self, context: &StreamingContext, statement: Statement) -> Result<()> {
        let Statement { kind, meta, .. } = statement;
        match kind {
            Kind::Stream { name, columns, watermark, options } => {
                self.take_name(context, "stream", &name)?;
                let options = Options::new(format!("stream \"{name}\""), options);
                let time = StreamTime::of(&name, watermark, &options)?;
                context.open(&name, &options, columns.clone())?;
                let input = context.declare.inputs().into_iter().rfind(|input| input.name == name);
                let input = input.ok_or_else(|| Error::internal("a stream was opened and is not there"))?;
                if let Some(columns) = columns {
                    check_columns(&columns, &input)?;
                }
                if let Some(mut time) = time {
                    time.column = real_name(&input.schema, &time.column)?;
                    check_time(&input.schema, &time.column)?;
                    if let Ok(column) = input.schema.index_of(&time.column) {
                        input.set_event_time(TimeColumn { column, spec: time.spec });
                    }
                    self.watermarks.lock().insert(name.clone(), time);
                }
                self.mixed
                    .extend(input.schema.fields().iter().map(|f| f.name().clone()).filter(|n| parse::is_mixed(n)));
                self.streams.insert(name, input);
                Ok(())
            }
            Kind::Table { name, columns, options } => {
                self.take_name(context, "table", &name)?;
                let table = self.table(context, &name, columns, &options).await?;
                self.mixed
                    .extend(table.schema().fields().iter().map(|f| f.name().clone()).filter(|n| parse::is_mixed(n)));
                self.register(&name, table)
            }
            Kind::Sink { name, options } => {
                self.take_name(context, "sink", &name)?;
                let options = Options::new(format!("sink \"{name}\""), options);
                let sink = match options.get("connector") {
                    Some("topic") => SinkKind::Topic(context.declare.topic_sink(&options)?),
                    _ => SinkKind::Other(context.declare.sink(&options)?),
                };
                if let SinkKind::Other(sink) = &sink {
                    context.declare.take_target(sink.as_ref(), &format!("sink `{name}`"))?;
                }
                self.sinks.insert(name, SinkEntry { sink, used: false });
                Ok(())
            }
            Kind::View { name, query, options } => {
                let options = ViewOptions::of(&Options::new(format!("view \"{name}\""), options))?;
                self.view(context, name, query, &meta, &options).await
            }
            Kind::Insert { target, query } => self.insert(context, &target, query, &meta).await,
            Kind::Alert(alert) => self.alert(context, *alert, &meta).await,
            Kind::Query(_) => Err(Error::user(
                "a query alone shows nothing in a program: write CREATE VIEW name AS SELECT …, or INSERT INTO sink SELECT …",
            )),
        }
    }

    /// A table, read once, as a node that is read again, or asked by key.
    async fn table(
        &mut self,
        context: &StreamingContext,
        name: &str,
        columns: Option<SchemaRef>,
        options: &[(String, String)],
    ) -> Result<Arc<dyn TableProvider>> {
        let (registry, declare) = (&context.config.registry, &context.declare);
        if let Some(asked) = Asked::of(name, columns.as_ref(), options, registry, declare)? {
            return Ok(Arc::new(Table(LookupTable(asked))));
        }
        let (stored, reload) = stored(name, columns, options, registry.lookups())?;
        let (schema, rows) = read_rows(&self.session, &stored).await?;
        let Some(every) = reload else {
            let table: Arc<dyn TableProvider> = Arc::new(MemTable::try_new(schema, vec![rows]).map_err(of_df)?);
            self.queryable.insert(name.to_string(), Arc::clone(&table));
            return Ok(table);
        };
        let table = Arc::new(Reloaded::new(stored, every, schema, rows, self.session.clone()));
        self.queryable.insert(name.to_string(), Arc::new(Table(Shown(Arc::clone(&table)))));
        let node = context.declare.named_node(name.to_string(), vec![], TableOperator(table));
        let gives = Changes::Nothing;
        Ok(Arc::new(Table(NodeTable { node, gives, partitions: self.partitions, times: Vec::new() })))
    }

    pub(super) fn take_name(&mut self, context: &StreamingContext, what: &'static str, name: &str) -> Result<()> {
        if !is_operator_name(name) {
            return Err(Error::user(format!(
                "`{name}` can't name a {what}: take 1 to 100 of A-Z a-z 0-9 . _ - and do not begin with a dot"
            )));
        }
        if let Some(taken) = self.known.get(name) {
            return Err(Error::user(format!("{what} `{name}`: there is a {taken} of that name; choose another")));
        }
        context.declare.claim(what, name)?;
        self.known.insert(name.to_string(), what);
        Ok(())
    }

    pub(super) fn register(&self, name: &str, table: Arc<dyn TableProvider>) -> Result<()> {
        let bare = datafusion::common::TableReference::bare(name);
        self.session.deregister_table(bare.clone()).map_err(of_df)?;
        self.tables.lock().insert(name.to_string(), Arc::clone(&table));
        self.session.register_table(bare, table).map_err(of_df)?;
        Ok(())
    }

    /// The planner's state with all tables, in which streams show those of their own columns that are named.
    pub(super) fn state(&mut self, context: &StreamingContext, meta: &BTreeSet<String>) -> Result<SessionState> {
        for (name, input) in &self.streams {
            let table = StreamTable::new(Arc::clone(input), self.partitions, |column| meta.contains(column));
            self.register(name, Arc::new(Table(table)))?;
        }
        for (name, node) in context.declare.tables() {
            if !self.known.contains_key(&name) {
                self.mixed
                    .extend(node.schema().fields().iter().map(|f| f.name().clone()).filter(|n| parse::is_mixed(n)));
                let (gives, times) = (Changes::New, Vec::new());
                let table = NodeTable { node, gives, partitions: self.partitions, times };
                self.register(&name, Arc::new(Table(table)))?;
                self.known.insert(name, "table");
            }
        }
        Ok(self.session.state())
    }

    /// The logical plan of a query.
    pub(super) async fn logical(&self, state: &SessionState, query: Box<Query>) -> Result<LogicalPlan> {
        super::refused::check_program(&query, state)?;
        let statement = DfStatement::Statement(Box::new(AstStatement::Query(query)));
        let references = state.resolve_table_references(&statement).map_err(of_df)?;
        for reference in references {
            let name = reference.table();
            let is_window = super::window::is_function(name);
            if is_window || self.session.table_exist(reference.clone()).map_err(of_df)? {
                continue;
            }
            return Err(self.no_table(name));
        }
        state.statement_to_plan(statement).await.map_err(|e| {
            let error = of_df(e);
            match error.to_string().split_once("table 'datafusion.public.").and_then(|(_, rest)| rest.split_once('\''))
            {
                Some((name, _)) => self.no_table(name),
                None => error,
            }
        })
    }

    pub(super) fn no_table(&self, name: &str) -> Error {
        if let Some("sink") = self.known.get(name).copied() {
            return Error::user(format!("`{name}` is a sink: rows go into it with INSERT INTO and are not read back"));
        }
        let names: Vec<&str> =
            self.known.iter().filter(|(_, what)| **what != "sink").map(|(name, _)| name.as_str()).collect();
        let hint = match nearest(name, &names) {
            Some(near) => format!("; did you mean `{near}`?"),
            None if names.is_empty() => "; nothing was created yet".to_string(),
            None => format!("; there are {}", names.join(", ")),
        };
        Error::user(format!("there is no stream, table or view `{name}`{hint}"))
    }

    /// What of a query decides which rows an aggregate has seen: what it reads, and of that
    /// what it groups; with the views that are put into it. The aggregates themselves are
    /// columns of the state, and what comes after them may change freely.
    fn definition(&self, state: &SessionState, query: &Query) -> Result<String> {
        let statement = DfStatement::Statement(Box::new(AstStatement::Query(Box::new(query.clone()))));
        let mut text = match query.body.as_ref() {
            SetExpr::Select(select) => {
                let from: Vec<String> = select.from.iter().map(ToString::to_string).collect();
                let filter = select.selection.as_ref().map(|filter| format!(" WHERE {filter}")).unwrap_or_default();
                let with = query.with.as_ref().map(|with| format!("{with} ")).unwrap_or_default();
                format!("{with}FROM {}{filter} {}", from.join(", "), select.group_by)
            }
            other => other.to_string(),
        };
        for reference in state.resolve_table_references(&statement).map_err(of_df)? {
            if let Some(of) = self.definitions.get(reference.table()) {
                text.push_str(&format!("\n{}: {of}", reference.table()));
            }
        }
        Ok(text)
    }

    async fn view(
        &mut self,
        context: &StreamingContext,
        name: String,
        query: Box<Query>,
        meta: &BTreeSet<String>,
        options: &ViewOptions,
    ) -> Result<()> {
        let state = self.state(context, meta)?;
        let definition = self.definition(&state, &query)?;
        // Put into another query, all of it counts.
        let text = format!("{query}\n{definition}");
        let of_windows = self.reads_windows(&state, &query)?;
        let parts = of_parts(&query, &definition);
        let logical = self.logical(&state, query).await?;
        let mut planned = self.plan(context, &state, logical.clone(), (&name, &parts), true, options).await?;
        if planned.kind == Shape::Windowed || (planned.kind == Shape::Stateless && of_windows) {
            self.windowed.insert(name.clone());
        }
        if planned.kind == Shape::Stateless {
            self.definitions.insert(name.clone(), text);
        }
        planned.select.definition = Some(definition);
        let late = match &options.late {
            Some(late) => {
                let logical = LateNode::plan_of(&logical, &name, options).map_err(of_df)?;
                let none = ViewOptions::default();
                let planned = self.plan(context, &state, logical.clone(), (late, &parts), true, &none).await?;
                Some((late.clone(), planned, logical))
            }
            None => None,
        };
        self.show(context, name, planned, logical, options)?;
        match late {
            Some((name, planned, logical)) => self.show(context, name, planned, logical, &ViewOptions::default()),
            None => Ok(()),
        }
    }

    /// Plans a statement under its name; its text is what defines its parts.
    async fn plan(
        &self,
        context: &StreamingContext,
        state: &SessionState,
        logical: LogicalPlan,
        (name, text): (&str, &str),
        view: bool,
        options: &ViewOptions,
    ) -> Result<Planned> {
        let (declare, partitions) = (&context.declare, self.partitions);
        let planning = Planning { state, declare, partitions, name, text, parts: Mutex::default() };
        lower::plan(&planning, logical, view, options).await.map_err(of_df)
    }

    /// Declares a view that was planned.
    fn show(
        &mut self,
        context: &StreamingContext,
        name: String,
        planned: Planned,
        logical: LogicalPlan,
        options: &ViewOptions,
    ) -> Result<()> {
        let Planned { select, inputs, kind, times, parts } = planned;
        claim_parts(context, &parts)?;
        unique_names(&crate::plan::Operator::schema(&select))?;
        self.take_name(context, "view", &name)?;
        let node = context.declare.named_node(name.clone(), inputs, select);
        self.mixed.extend(node.schema().fields().iter().map(|f| f.name().clone()).filter(|n| parse::is_mixed(n)));
        // A view with state is run once and read by all; one without is put into what reads it.
        let table: Arc<dyn TableProvider> = if kind == Shape::Stateless && parts.is_empty() {
            Arc::new(ViewTable::new(logical, None))
        } else {
            let gives = kind.changes();
            Arc::new(Table(NodeTable { node: Arc::clone(&node), gives, partitions: self.partitions, times }))
        };
        self.register(&name, table)?;
        self.queryable.insert(name.clone(), super::query::rows_table(&RecordBatch::new_empty(node.schema()))?);
        // A whole result that became empty is shown empty; the others show their last rows.
        let sticky = kind != Shape::Whole && options.emit != Emit::Complete;
        context.declare.output(Output { name, node, kind: OutputKind::View { sticky } });
        Ok(())
    }

    async fn insert(
        &mut self,
        context: &StreamingContext,
        target: &str,
        query: Box<Query>,
        meta: &BTreeSet<String>,
    ) -> Result<()> {
        let Some(entry) = self.sinks.get(target) else {
            let names: Vec<&str> = self.sinks.keys().map(String::as_str).collect();
            let hint = match (self.known.get(target), nearest(target, &names)) {
                (Some(what), _) => format!("`{target}` is a {what}, and rows go into sinks only"),
                (None, Some(near)) => format!("there is no sink `{target}`; did you mean `{near}`?"),
                (None, None) => format!("there is no sink `{target}`; CREATE SINK {target} WITH (connector = …) first"),
            };
            return Err(Error::user(hint));
        };
        if entry.used {
            return Err(Error::user(format!(
                "sink `{target}` has an INSERT already: put both into one with UNION ALL, or create a second sink"
            )));
        }
        let sink = entry.sink.clone();
        let name = format!("insert-{target}");
        let state = self.state(context, meta)?;
        let definition = self.definition(&state, &query)?;
        let parts = of_parts(&query, &definition);
        let logical = self.logical(&state, query).await?;
        let planned = self.plan(context, &state, logical, (&name, &parts), false, &ViewOptions::default()).await?;
        let Planned { mut select, inputs, parts, .. } = planned;
        claim_parts(context, &parts)?;
        select.definition = Some(definition);
        let schema = crate::plan::Operator::schema(&select);
        unique_names(&schema)?;
        match (&sink, &context.config.data_dir) {
            (SinkKind::Other(sink), _) => sink.takes(&schema)?,
            (SinkKind::Topic(sink), Some(data)) => sink.takes_in(&schema, &*context.config.disk, data)?,
            (SinkKind::Topic(_), None) => {}
        }
        context.declare.claim("output", &name)?;
        let node = context.declare.named_node(name.clone(), inputs, select);
        match sink {
            SinkKind::Topic(sink) => context.declare.topic_output(name, node, &sink)?,
            SinkKind::Other(sink) => context.declare.output(Output { name, node, kind: OutputKind::Sink(sink) }),
        }
        if let Some(entry) = self.sinks.get_mut(target) {
            entry.used = true;
        }
        Ok(())
    }
}

/// What defines the parts of a query: all of it but the order and number of the rows that it gives.
fn of_parts(query: &Query, definition: &str) -> String {
    let mut unordered = query.clone();
    unordered.order_by = None;
    unordered.limit_clause = None;
    format!("{unordered}\n{definition}")
}

fn of_blame(blame: Blame, text: String) -> Error {
    match blame {
        Blame::User => Error::user(text),
        Blame::External => Error::external(text),
        Blame::Internal => Error::internal(text),
    }
}

impl Kind {
    /// What the statement declares, by name.
    fn name(&self) -> Option<String> {
        match self {
            Self::Stream { name, .. }
            | Self::Table { name, .. }
            | Self::Sink { name, .. }
            | Self::View { name, .. } => Some(name.clone()),
            Self::Alert(alert) => Some(alert.name.clone()),
            Self::Insert { .. } | Self::Query(_) => None,
        }
    }

    fn title(&self) -> String {
        match self {
            Self::Stream { name, .. } => format!("CREATE STREAM {name}"),
            Self::Table { name, .. } => format!("CREATE TABLE {name}"),
            Self::Sink { name, .. } => format!("CREATE SINK {name}"),
            Self::View { name, .. } => format!("CREATE VIEW {name}"),
            Self::Insert { target, .. } => format!("INSERT INTO {target}"),
            Self::Alert(alert) => format!("CREATE ALERT {}", alert.name),
            Self::Query(_) => "SELECT".to_string(),
        }
    }
}
