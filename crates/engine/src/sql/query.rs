//! Queries beside a running program, in its process or in another.
//!
//! A query sees the views as they are shown now, the static tables, the states
//! as of a batch ([`super::past`]), and the topics of the log with `_offset`,
//! `_partition` and `_timestamp`, without what notices took back. It can only
//! SELECT, has a bounded share of memory, and writes nothing to disk.
//!
//! Invariant: a query takes no lock that a batch needs for longer than a copy of
//! references; topics are read up to where they ended when the query was planned.

use super::{
    answers::Moment,
    functions,
    mistakes::{self, of_df},
    parse::{self, Kind},
    past::{STATE, StateTables},
    provider::Table,
    session::{config, session},
    topics::TopicTable,
};
use crate::StreamingContext;
use arrow_array::RecordBatch;
use datafusion::{
    catalog::{MemorySchemaProvider, TableProvider},
    common::TableReference,
    datasource::MemTable,
    execution::{
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        runtime_env::RuntimeEnvBuilder,
    },
    physical_plan::execute_stream,
    prelude::{SQLOptions, SessionContext, col, lit},
    sql::{parser::Statement as DfStatement, sqlparser::ast::Statement as AstStatement},
};
use futures::StreamExt;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{Answer, Error, Progress, Question, Registry, Result, nearest};
use tidemill_store::{
    DataDir, Disk, Past, RealDisk,
    log::{Log, Topic},
};

/// Memory that one query may use.
pub(super) const MEMORY: usize = 256 << 20;

/// End of the name of a topic of dead letters.
pub(super) const DEAD: &str = ".dead";
/// The catalog of a session.
const CATALOG: &str = "datafusion";

/// Tables that a query may name.
pub(super) type Tables = BTreeMap<String, Arc<dyn TableProvider>>;

/// A question, and what it is asked over.
pub(super) struct Asked {
    pub(super) question: Question,
    pub(super) tables: Tables,
    pub(super) states: Option<StateTables>,
    /// The past that is meant; `None` is now.
    pub(super) moment: Option<Moment>,
    pub(super) progress: Arc<Progress>,
}

impl Asked {
    /// All rows of a query over what is there now.
    fn now(query: &str, tables: Tables, states: Option<StateTables>) -> Self {
        let question = Question { sql: query.to_string(), rows: usize::MAX, ..Question::default() };
        Self { question, tables, states, moment: None, progress: Arc::default() }
    }

    /// Answers on a thread of its own. Dropping what this gives ends it.
    pub(super) async fn answer(self) -> Result<Answer> {
        let _stops = Stops(Arc::clone(&self.progress));
        start(move || run(self))?.await.map_err(gone)?
    }

    /// All rows; one batch without rows where there are none: the columns are an answer, too.
    async fn all(self) -> Result<Vec<RecordBatch>> {
        let Answer { schema, rows, .. } = self.answer().await?;
        Ok(if rows.is_empty() { vec![RecordBatch::new_empty(schema)] } else { rows })
    }
}

/// Stops a computation for which nobody waits any more.
struct Stops(Arc<Progress>);

impl Drop for Stops {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl StreamingContext {
    /// Rows of a SELECT over the views as they are shown now, the static tables,
    /// the topics of the log, and the states: `state.top` after the last committed
    /// batch, `state."top@17"` after batch 17 while that is kept.
    ///
    /// # Errors
    /// When it is no SELECT, names what is not there, or needs more than its share of memory.
    pub fn sql(&self, query: &str) -> Result<Vec<RecordBatch>> {
        futures::executor::block_on(self.sql_async(query))
    }

    /// As [`StreamingContext::sql`], without blocking the caller's thread. Dropping the answer ends the query.
    ///
    /// # Errors
    /// As [`StreamingContext::sql`].
    pub async fn sql_async(&self, query: &str) -> Result<Vec<RecordBatch>> {
        Asked::now(query, self.queryable(None)?, self.states()).all().await
    }

    /// The program's own states, when it keeps any.
    pub(super) fn states(&self) -> Option<StateTables> {
        let data = self.config.data_dir.as_ref()?;
        let mut states = StateTables::new(Arc::clone(&self.config.disk));
        states.add(data, self.name(), self.operators());
        Some(states)
    }

    pub(super) fn queryable(&self, then: Option<&Moment>) -> Result<Tables> {
        let topics = self.log().iter().flat_map(|log| log.topics()).collect();
        let mut tables = topic_tables(topics, &self.config.registry, then)?;
        if let Some(own) = tables.get(&format!("{}{DEAD}", self.name())).cloned() {
            tables.entry(DEAD[1..].to_string()).or_insert(own);
        }
        tables.extend(self.sql.tables());
        let board = self.board();
        for view in board.view_names().iter().filter_map(|name| board.view(name)) {
            tables.insert(view.name.clone(), rows_table(&view.rows)?);
        }
        Ok(tables)
    }
}

/// The query engine over a data directory, whether a program runs on it or not.
#[derive(Debug)]
pub struct Shell {
    path: PathBuf,
    states: StateTables,
    registry: Arc<Registry>,
}

impl Shell {
    /// Looks at a data directory, which is left as it is.
    ///
    /// # Errors
    /// When it is not there, or a newer Tidemill wrote it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir() {
            return Err(Error::user(format!("there is no data directory `{}`", path.display())));
        }
        DataDir::check(path)?;
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let mut states = StateTables::new(Arc::clone(&disk));
        for name in tidemill_store::rewind::programs(&*disk, path)? {
            states.add(path, &name, Vec::new());
        }
        Ok(Self { path: path.to_path_buf(), states, registry: Arc::default() })
    }

    /// With connectors and formats. Whose topics have notices of what was deleted are read with those that know them.
    #[must_use]
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = Arc::new(registry);
        self
    }

    /// As [`Shell::open`], and shows the states of SQL programs as they would:
    /// `declare` makes, of a program's name and text, a context that is only to
    /// be looked at. A program that it can't make shows its rows as they are kept.
    ///
    /// # Errors
    /// As [`Shell::open`].
    pub fn open_with(path: impl AsRef<Path>, declare: impl Fn(&str, &str) -> Result<StreamingContext>) -> Result<Self> {
        let path = path.as_ref();
        let mut shell = Self::open(path)?;
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        shell.states = StateTables::new(Arc::clone(&disk));
        for name in tidemill_store::rewind::programs(&*disk, path)? {
            let past = Past::read(&*disk, &path.join("programs").join(&name).join("ledger"))?;
            let text = past.and_then(|past| past.program().text);
            let operators = text.map(|text| declare(&name, &text).and_then(|context| context.state_operators()));
            let operators = operators.transpose().unwrap_or_else(|error| {
                tracing::debug!(program = name, error = error.chain(), "its states are shown as they are kept");
                None
            });
            shell.states.add(path, &name, operators.unwrap_or_default());
        }
        Ok(shell)
    }

    /// The states, as `state.<name>` names them.
    ///
    /// # Errors
    /// When a ledger can't be read.
    pub fn states(&self) -> Result<Vec<String>> {
        self.states.names()
    }

    /// The log as it is now.
    fn log(&self) -> Result<Log> {
        Log::look(&self.path.join("log"), Arc::new(crate::SystemClock))
    }

    /// The topics as they are now, by name.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn topics(&self) -> Result<Vec<Arc<Topic>>> {
        Ok(self.log()?.topics())
    }

    /// Rows of a SELECT over the topics as they are now.
    ///
    /// # Errors
    /// As [`StreamingContext::sql`].
    pub fn query(&self, query: &str) -> Result<Vec<RecordBatch>> {
        futures::executor::block_on(self.query_async(query))
    }

    /// As [`Shell::query`], without blocking the caller's thread. Dropping the answer ends the query.
    ///
    /// # Errors
    /// As [`StreamingContext::sql`].
    pub async fn query_async(&self, query: &str) -> Result<Vec<RecordBatch>> {
        let log = self.log()?;
        let mut tables = topic_tables(log.topics(), &self.registry, None)?;
        // The dead letters of the only program need no name.
        let mut dead = tables.iter().filter(|(name, _)| name.ends_with(DEAD));
        if let (Some((_, only)), None) = (dead.next(), dead.next()) {
            let only = Arc::clone(only);
            tables.entry(DEAD[1..].to_string()).or_insert(only);
        }
        Asked::now(query, tables, Some(self.states.clone())).all().await
    }
}

fn topic_tables(topics: Vec<Arc<Topic>>, registry: &Arc<Registry>, then: Option<&Moment>) -> Result<Tables> {
    topics
        .into_iter()
        .map(|topic| {
            let name = topic.name().to_string();
            let ends = then.and_then(|then| then.ends.get(&name)).cloned().unwrap_or_default();
            let table = TopicTable::new(topic, Arc::clone(registry))?.until(ends);
            Ok((name, Arc::new(Table(table)) as Arc<dyn TableProvider>))
        })
        .collect()
}

pub(super) fn rows_table(rows: &RecordBatch) -> Result<Arc<dyn TableProvider>> {
    let table = MemTable::try_new(rows.schema(), vec![vec![rows.clone()]]).map_err(of_df)?;
    Ok(Arc::new(table))
}

type Coming = tokio::sync::oneshot::Receiver<Result<Answer>>;

/// Runs a query on a thread of its own with room to recurse, for as long as someone waits for its answer.
fn start<F: Future<Output = Result<Answer>>>(query: impl FnOnce() -> F + Send + 'static) -> Result<Coming> {
    let (mut tell, answer) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("tidemill-query".into())
        .spawn(move || {
            let rows = super::session::with_room(|| async {
                tokio::select! {
                    biased;
                    () = tell.closed() => Err(Error::user("nobody waits for the query")),
                    rows = query() => rows,
                }
            });
            // Nobody may be there to hear it.
            let _unheard = tell.send(rows);
        })
        .map_err(|e| Error::external("can't start a thread for the query").because(e))?;
    Ok(answer)
}

fn gone(error: tokio::sync::oneshot::error::RecvError) -> Error {
    Error::internal("a query ended without an answer").because(error)
}

async fn run(asked: Asked) -> Result<Answer> {
    let Asked { question, tables, states, moment, progress } = asked;
    let mut mixed: BTreeSet<String> = tables
        .values()
        .flat_map(|table| table.schema().fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>())
        .filter(|name| parse::is_mixed(name))
        .collect();
    let mut statements = parse::question(&question.sql, &mut mixed, &question.parameters)?;
    let (Some(statement), true) = (statements.pop(), statements.is_empty()) else {
        return Err(Error::user("a query is one SELECT"));
    };
    let (at, words) = (statement.at, statement.words);
    let Kind::Query(select) = statement.kind else {
        return Err(Error::user(format!(
            "{at}: only SELECT works here: declare streams, views and sinks in a program"
        )));
    };
    let told = |error: Error| {
        let (at, text) = mistakes::placed(error.chain(), &words, at);
        Error::user(format!("{at}: {text}"))
    };
    super::refused::check_query(&select).map_err(told)?;
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_limit(MEMORY, 1.0)
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
        .build_arc()
        .map_err(of_df)?;
    let session = session(config(1), Some(runtime));
    functions::keep_allowed(&session);
    let tables = match &moment {
        Some(then) => letters_until(then, tables, &session)?,
        None => tables,
    };
    for (name, table) in &tables {
        session.register_table(TableReference::bare(name.as_str()), Arc::clone(table)).map_err(of_df)?;
        if let Some((before, after)) = name.rsplit_once('.') {
            // So that `demo.dead` needs no quotes.
            let catalog = session.catalog(CATALOG).ok_or_else(|| Error::internal("a session without a catalog"))?;
            if catalog.schema(before).is_none() {
                catalog.register_schema(before, Arc::new(MemorySchemaProvider::new())).map_err(of_df)?;
            }
            session.register_table(TableReference::partial(before, after), Arc::clone(table)).map_err(of_df)?;
        }
    }
    let state = session.state();
    let statement = DfStatement::Statement(Box::new(AstStatement::Query(select)));
    for reference in state.resolve_table_references(&statement).map_err(of_df)? {
        if reference.schema() == Some(STATE) {
            let Some(states) = &states else {
                return Err(told(Error::user("a program without a data directory keeps no state that could be asked")));
            };
            let catalog =
                session.catalog("datafusion").ok_or_else(|| Error::internal("a session without a catalog"))?;
            if catalog.schema(STATE).is_none() {
                catalog.register_schema(STATE, Arc::new(MemorySchemaProvider::new())).map_err(of_df)?;
            }
            if !session.table_exist(reference.clone()).map_err(of_df)? {
                session
                    .register_table(reference.clone(), states.table(reference.table()).map_err(told)?)
                    .map_err(of_df)?;
            }
            continue;
        }
        if !session.table_exist(reference.clone()).map_err(of_df)? {
            let forgotten = moment.as_ref().filter(|then| then.forgotten.contains(reference.table()));
            if let Some(then) = forgotten {
                let text = format!("what `{reference}` showed after batch {} is no longer remembered", then.batch);
                return Err(told(Error::user(text)));
            }
            let names: Vec<&str> = tables.keys().map(String::as_str).collect();
            let hint = match nearest(reference.table(), &names) {
                Some(near) => format!("did you mean `{near}`?"),
                None if names.is_empty() => "there is nothing to select from yet".to_string(),
                None => format!("there are {}", names.join(", ")),
            };
            return Err(told(Error::user(format!("there is no view, table or topic `{reference}`; {hint}"))));
        }
    }
    let fail = |e| told(of_df(e));
    let plan = state.statement_to_plan(statement).await.map_err(fail)?;
    let only_reads = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    only_reads.verify_plan(&plan).map_err(fail)?;
    super::shape::check_depth(&plan).map_err(fail)?;
    let schema = Arc::clone(plan.schema().inner());
    let plan = super::stoppable::planned(&state, &plan, &progress).await.map_err(told)?;
    let mut coming = execute_stream(plan, session.task_ctx()).map_err(fail)?;
    let (mut rows, mut count, mut bytes, mut more) = (Vec::new(), 0, 0, false);
    while let Some(part) = coming.next().await {
        let part = part.map_err(fail)?;
        let room = question.rows - count;
        if part.num_rows() > room {
            more = true;
        }
        let part = part.slice(0, part.num_rows().min(room));
        count += part.num_rows();
        bytes += part.get_array_memory_size();
        // The plan's memory does not hold its answer.
        if bytes > MEMORY {
            let most = MEMORY >> 20;
            return Err(Error::user(format!(
                "the answer has over {most} MiB: ask for less of it, with LIMIT or WHERE"
            )));
        }
        rows.push(part);
        if more {
            break;
        }
    }
    Ok(Answer { schema, rows, more })
}

/// The tables, with the program's own dead letters as they were then.
fn letters_until(then: &Moment, mut tables: Tables, session: &SessionContext) -> Result<Tables> {
    for name in [&then.letters, &DEAD[1..].to_string()] {
        let Some(table) = tables.get(name).filter(|table| table.schema().index_of("batch").is_ok()) else { continue };
        // Those of receivers belong to no batch.
        let alone = col("batch").is_null().and(col(crate::plan::META[2]).lt_eq(lit(then.time())));
        let until = session.read_table(Arc::clone(table)).map_err(of_df)?;
        let until = until.filter(col("batch").lt_eq(lit(then.batch.0)).or(alone)).map_err(of_df)?;
        tables.insert(name.clone(), until.into_view());
    }
    Ok(tables)
}
