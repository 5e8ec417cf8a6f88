//! Queries beside a running program, in its process or in another.
//!
//! A query sees the views as they are shown now, the static tables, the states
//! as of a batch ([`super::past`]), and the topics of the log with `_offset`,
//! `_partition` and `_timestamp`. It can only
//! SELECT, has a bounded share of memory, and writes nothing to disk.
//!
//! Invariant: a query takes no lock that a batch needs for longer than a copy of
//! references; topics are read up to where they ended when the query was planned.

use super::{
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
    prelude::{DataFrame, SQLOptions},
    sql::{parser::Statement as DfStatement, sqlparser::ast::Statement as AstStatement},
};
use futures::StreamExt;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{Error, Result, nearest};
use tidemill_store::{
    DataDir, Disk, Past, RealDisk,
    log::{Log, Topic},
};

/// Memory that one query may use.
const MEMORY: usize = 256 << 20;

/// End of the name of a topic of dead letters.
const DEAD: &str = ".dead";
/// The catalog of a session.
const CATALOG: &str = "datafusion";

/// Tables that a query may name.
type Tables = BTreeMap<String, Arc<dyn TableProvider>>;

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
        let (tables, states) = (self.queryable()?, self.states());
        let query = query.to_string();
        start(move || run(query, tables, states))?.await.map_err(gone)?
    }

    /// The program's own states, when it keeps any.
    fn states(&self) -> Option<StateTables> {
        let data = self.config.data_dir.as_ref()?;
        let mut states = StateTables::new(Arc::clone(&self.config.disk));
        states.add(data, self.name(), self.operators());
        Some(states)
    }

    fn queryable(&self) -> Result<Tables> {
        let mut tables = topic_tables(self.log().iter().flat_map(|log| log.topics()))?;
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
        Ok(Self { path: path.to_path_buf(), states })
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
        let mut tables = topic_tables(log.topics())?;
        // The dead letters of the only program need no name.
        let mut dead = tables.iter().filter(|(name, _)| name.ends_with(DEAD));
        if let (Some((_, only)), None) = (dead.next(), dead.next()) {
            let only = Arc::clone(only);
            tables.entry(DEAD[1..].to_string()).or_insert(only);
        }
        let (query, states) = (query.to_string(), Some(self.states.clone()));
        start(move || run(query, tables, states))?.await.map_err(gone)?
    }
}

fn topic_tables(topics: impl IntoIterator<Item = Arc<Topic>>) -> Result<Tables> {
    topics
        .into_iter()
        .map(|topic| {
            let name = topic.name().to_string();
            Ok((name, Arc::new(Table(TopicTable::new(topic)?)) as Arc<dyn TableProvider>))
        })
        .collect()
}

pub(super) fn rows_table(rows: &RecordBatch) -> Result<Arc<dyn TableProvider>> {
    let table = MemTable::try_new(rows.schema(), vec![vec![rows.clone()]]).map_err(of_df)?;
    Ok(Arc::new(table))
}

type Answer = tokio::sync::oneshot::Receiver<Result<Vec<RecordBatch>>>;

/// Runs a query on a thread of its own with room to recurse, for as long as someone waits for its answer.
fn start<F: Future<Output = Result<Vec<RecordBatch>>>>(query: impl FnOnce() -> F + Send + 'static) -> Result<Answer> {
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

async fn run(query: String, tables: Tables, states: Option<StateTables>) -> Result<Vec<RecordBatch>> {
    let mut mixed: BTreeSet<String> = tables
        .values()
        .flat_map(|table| table.schema().fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>())
        .filter(|name| parse::is_mixed(name))
        .collect();
    let mut statements = parse::program(&query, &mut mixed)?;
    let (Some(statement), true) = (statements.pop(), statements.is_empty()) else {
        return Err(Error::user("a query is one SELECT"));
    };
    let (at, words) = (statement.at, statement.words);
    let Kind::Query(select) = statement.kind else {
        return Err(Error::user(format!(
            "{at}: only SELECT works here: declare streams, views and sinks in a program"
        )));
    };
    super::refused::check_query(&select).map_err(|error| {
        let (at, text) = mistakes::placed(error.chain(), &words, at);
        Error::user(format!("{at}: {text}"))
    })?;
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_limit(MEMORY, 1.0)
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
        .build_arc()
        .map_err(of_df)?;
    let session = session(config(1), Some(runtime));
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
            let told = |error: Error| {
                let (at, text) = mistakes::placed(error.chain(), &words, at);
                Error::user(format!("{at}: {text}"))
            };
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
            let names: Vec<&str> = tables.keys().map(String::as_str).collect();
            let hint = match nearest(reference.table(), &names) {
                Some(near) => format!("did you mean `{near}`?"),
                None if names.is_empty() => "there is nothing to select from yet".to_string(),
                None => format!("there are {}", names.join(", ")),
            };
            let text = format!("there is no view, table or topic `{reference}`; {hint}");
            let (at, text) = mistakes::placed(text, &words, at);
            return Err(Error::user(format!("{at}: {text}")));
        }
    }
    let fail = |e| {
        let (at, text) = mistakes::placed(of_df(e).chain(), &words, at);
        Error::user(format!("{at}: {text}"))
    };
    let plan = state.statement_to_plan(statement).await.map_err(fail)?;
    let only_reads = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    only_reads.verify_plan(&plan).map_err(fail)?;
    super::shape::check_depth(&plan).map_err(fail)?;
    let frame = DataFrame::new(state, plan);
    let schema = Arc::clone(frame.schema().inner());
    let mut answer = frame.execute_stream().await.map_err(fail)?;
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(part) = answer.next().await {
        let part = part.map_err(fail)?;
        bytes += part.get_array_memory_size();
        // The plan's memory does not hold its answer.
        if bytes > MEMORY {
            let most = MEMORY >> 20;
            return Err(Error::user(format!(
                "the answer has over {most} MiB: ask for less of it, with LIMIT or WHERE"
            )));
        }
        rows.push(part);
    }
    if rows.is_empty() {
        // The columns are an answer, too.
        rows.push(RecordBatch::new_empty(schema));
    }
    Ok(rows)
}
