//! Tables that are read again: `CREATE TABLE … WITH (…, reload = '60s')`.
//!
//! A batch sees one version of the table. Before a batch that begins at least
//! `reload` after the last look, the file or directory is looked at, and read
//! again if its time or size has changed; `reload = '0s'` looks before each batch.
//! What can't be read (a file half written) leaves the version as it is, and is
//! tried again at the next look.
//!
//! The rows are the operator's state: a version is kept with the batch that read
//! it, so a batch that is run again, or a restart, finds the table as the batch
//! before it left it, and only looks when its own time says so.
//!
//! Invariant: the time that decides is the batch's, not the clock's.

use super::{
    provider::Scan,
    stored::{Stored, read_rows},
};
use crate::{
    plan::{BatchRun, Kernel, Lowering, NodeInputs, Operator, Rows, rows_from},
    state::{StateOperator, Swept, Version},
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::{
    common::Result as DfResult, datasource::memory::MemorySourceConfig, logical_expr::Expr,
    physical_plan::ExecutionPlan, prelude::SessionContext,
};
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{BatchId, Duration, Error, Result, Timestamp};

/// What tells a version from another without reading it: of each file its path, time and size.
type Mark = Vec<(PathBuf, Option<std::time::SystemTime>, u64)>;

fn mark(path: &Path) -> std::io::Result<Mark> {
    let own = path.metadata()?;
    if !own.is_dir() {
        return Ok(vec![(path.to_path_buf(), own.modified().ok(), own.len())]);
    }
    let mut files = Vec::new();
    for entry in path.read_dir()? {
        let entry = entry?;
        let data = entry.metadata()?;
        if data.is_file() {
            files.push((entry.path(), data.modified().ok(), data.len()));
        }
    }
    files.sort();
    Ok(files)
}

#[derive(Debug)]
struct Current {
    rows: Vec<RecordBatch>,
    /// `None` until it was looked at in this life of the program.
    mark: Option<Mark>,
    looked: Option<Timestamp>,
    delta: Option<(BatchId, Vec<RecordBatch>)>,
    /// Whether the version is in the state's files.
    kept: bool,
}

/// The table and its rows.
pub(super) struct Reloaded {
    stored: Stored,
    every: Duration,
    schema: SchemaRef,
    session: SessionContext,
    current: Mutex<Current>,
}

impl std::fmt::Debug for Reloaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "table {} of {}", self.stored.name, self.stored.path)
    }
}

impl Reloaded {
    /// A table whose first version has been read.
    pub(super) fn new(
        stored: Stored,
        every: Duration,
        schema: SchemaRef,
        rows: Vec<RecordBatch>,
        session: SessionContext,
    ) -> Self {
        let mark = mark(Path::new(&stored.path)).ok();
        let current = Mutex::new(Current { rows, mark, looked: None, delta: None, kept: false });
        Self { stored, every, schema, session, current }
    }

    /// The rows for a batch.
    async fn rows_for(&self, run: &BatchRun) -> Vec<RecordBatch> {
        let (due, before) = {
            let mut current = self.current.lock();
            if current.kept && current.looked.is_none() {
                // A version that was restored is as old as the batch that goes on with it.
                current.looked = Some(run.batch.time);
            }
            let due = current.looked.is_none_or(|looked| run.batch.time.since(looked) >= self.every);
            (due, current.mark.clone())
        };
        if due {
            let now = mark(Path::new(&self.stored.path)).ok();
            let changed = now.is_some() && now != before;
            let read = if changed { Some(read_rows(&self.session, &self.stored).await) } else { None };
            let mut current = self.current.lock();
            current.looked = Some(run.batch.time);
            match read {
                Some(Ok((schema, rows))) if same(&schema, &self.schema) => {
                    tracing::info!(table = self.stored.name, batch = run.batch.id.0, "read again");
                    (current.rows, current.mark, current.kept) = (rows, now, false);
                }
                Some(Ok((schema, _))) => {
                    let table = &self.stored.name;
                    tracing::warn!(table, columns = %schema, "the table has other columns now, and stays as it was");
                }
                Some(Err(error)) => {
                    let (table, error) = (&self.stored.name, error.chain());
                    tracing::warn!(table, error, "the table can't be read again, and stays as it was");
                }
                None => {}
            }
        }
        let mut current = self.current.lock();
        if current.kept {
            run.stays(&self.stored.name);
        } else {
            current.kept = true;
            let rows = current.rows.clone();
            current.delta = Some((run.batch.id, rows));
        }
        current.rows.clone()
    }
}

fn same(a: &SchemaRef, b: &SchemaRef) -> bool {
    let kinds = |schema: &SchemaRef| {
        schema.fields().iter().map(|f| (f.name().clone(), f.data_type().clone())).collect::<Vec<_>>()
    };
    kinds(a) == kinds(b)
}

impl StateOperator for Reloaded {
    fn name(&self) -> &str {
        &self.stored.name
    }

    fn kind(&self) -> &'static str {
        "table"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn restore(&self, versions: &[Version]) -> Result<()> {
        let Some(last) = versions.iter().rfind(|version| !version.rows.is_empty()) else { return Ok(()) };
        let rows = last.rows.iter().map(|rows| RecordBatch::try_new(self.schema(), rows.columns().to_vec()));
        let rows = rows.collect::<std::result::Result<Vec<_>, _>>().map_err(|e| {
            Error::user(format!("the state of table `{}` has other columns", self.stored.name)).because(e)
        })?;
        let mut current = self.current.lock();
        // Which file it came from is not known any more: the next look reads what is there then.
        *current = Current { rows, mark: None, looked: None, delta: None, kept: true };
        Ok(())
    }

    fn delta(&self, batch: BatchId) -> Result<Vec<RecordBatch>> {
        Ok(self.current.lock().delta.take_if(|(of, _)| *of == batch).map(|(_, rows)| rows).unwrap_or_default())
    }

    fn sweeps(&self) -> bool {
        true
    }

    /// Each version is the whole table: there is nothing to keep again.
    fn sweep(&self, _rows: usize, _begin: bool) -> Result<Swept> {
        Ok(Swept { rows: Vec::new(), whole: true })
    }

    fn snapshot(&self) -> Result<Vec<RecordBatch>> {
        Ok(self.current.lock().rows.clone())
    }

    fn rows(&self) -> usize {
        self.current.lock().rows.iter().map(RecordBatch::num_rows).sum()
    }
}

/// The table as an operator.
#[derive(Debug)]
pub(super) struct TableOperator(pub(super) Arc<Reloaded>);

impl Operator for TableOperator {
    fn kind(&self) -> &'static str {
        "table"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.0.schema)
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn lower(&self, _inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        cx.states.register(Arc::clone(&self.0) as _);
        let told = format!("table `{}`, looked at each {:?}", self.0.stored.path, self.0.every);
        Ok(cx.node(&told, TableKernel(Arc::clone(&self.0)), vec![], self.schema(), 1))
    }
}

#[derive(Debug)]
struct TableKernel(Arc<Reloaded>);

impl Kernel for TableKernel {
    fn run(&self, _partition: usize, _inputs: &NodeInputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        let table = Arc::clone(&self.0);
        let schema = Arc::clone(&self.0.schema);
        let rows = async move { futures::stream::iter(table.rows_for(&run).await.into_iter().map(Ok)) };
        Ok(rows_from(schema, rows.into_stream().flatten()))
    }
}

/// The table as it is now, for queries beside the program.
#[derive(Debug)]
pub(super) struct Shown(pub(super) Arc<Reloaded>);

impl Scan for Shown {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.0.schema)
    }

    fn plan(
        &self,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let rows = self.0.current.lock().rows.clone();
        Ok(MemorySourceConfig::try_new_exec(&[rows], Arc::clone(&self.0.schema), projection.cloned())?)
    }
}
