//! Tables that are asked by key: `CREATE TABLE … WITH (connector = 'sqlite', …, key = 'id')`.
//!
//! ```text
//! rows of the stream's side ─┬─► distinct keys ─► known answers, else one question ─► the table's rows ─┐
//!                            └──────────────────────────────────────────────────────────────────────────┴─► join
//! ```
//!
//! Such a table is never read as a whole: it can stand in a join whose condition
//! says each column of its key, and nowhere else. Of a batch all keys that are
//! not known are asked for together; what was answered, also that there is no
//! row, counts for `cache_ttl` of batch time (a minute), for `cache_keys` keys at
//! most (100,000; the oldest answers go first). The join itself is DataFusion's,
//! over the batch's rows and the answers, so every kind and condition works that
//! keeps the rows of the stream.
//!
//! The answers are state ([`cache`]). Invariant: all rows of a batch see one
//! answer for a key, and all outputs see the same. A batch that was not committed
//! asks again when it runs again: nobody has seen what it was told before.
//! Declared by [`super::catalog`], cut out of statements by [`super::parts`].

mod cache;
mod plan;

use super::{provider::Scan, shape::Changes, state::feed};
use crate::{
    declare::Declare,
    plan::{BatchRun, Kernel, Lineage, Lowering, NodeExec, NodeInputs, Operator, Rows, rows_from, rows_once},
    sql::leaves,
};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::SchemaRef;
use cache::Cache;
use datafusion::{
    common::{Result as DfResult, internal_datafusion_err},
    execution::TaskContext,
    logical_expr::Expr,
    physical_expr::PhysicalExpr,
    physical_plan::ExecutionPlan,
};
use std::sync::{Arc, OnceLock};
use tidemill_core::{Blame, Duration, Error, Lookup, Options, Registry, Result};

pub(super) use plan::{check_none_left, in_join, plan};

/// How long an answer counts, and for how many keys, unless the table says otherwise.
const TTL: Duration = Duration::from_secs(60);
const MOST: usize = 100_000;

/// A table and how it is asked.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) name: String,
    of: Arc<dyn Lookup>,
    schema: SchemaRef,
    /// Places of the key's columns.
    key: Vec<usize>,
    ttl: Duration,
    /// Keys whose answers are kept.
    most: usize,
}

impl Asked {
    /// The table that these options declare; `None` when they are not of a table that is asked by key.
    ///
    /// # Errors
    /// When an option is missing or wrong, or the columns do not fit.
    pub(super) fn of(
        name: &str,
        columns: Option<&SchemaRef>,
        options: &[(String, String)],
        registry: &Registry,
        declare: &Declare,
    ) -> Result<Option<Arc<Self>>> {
        let options = Options::new(format!("table \"{name}\""), options.iter().cloned());
        let connector = options.get("connector").unwrap_or_default().to_lowercase();
        let is_program = connector == "program";
        if let Some(why) = registry.elsewhere(&connector) {
            return Err(Error::user(format!("{}: {why}", options.owner())));
        }
        if !is_program && !registry.lookups().any(|known| known == connector) {
            return Ok(None);
        }
        let owner = options.owner();
        let Some(schema) = columns else {
            return Err(Error::user(format!(
                "{owner}: a table that is asked by key needs its columns: CREATE TABLE {name} (id BIGINT, …) WITH (…)"
            )));
        };
        let key = options.require("key", "it names the columns by which the table is asked, such as 'id'")?;
        let key: Vec<String> = key.split(',').map(|name| name.trim().to_string()).filter(|k| !k.is_empty()).collect();
        let place = |column: &String| {
            schema.index_of(column).map_err(|_| {
                let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
                Error::user(format!(
                    "{owner}: option `key`: there is no column `{column}`; there are {}",
                    names.join(", ")
                ))
            })
        };
        let places = key.iter().map(place).collect::<Result<Vec<_>>>()?;
        if places.is_empty() || (1..places.len()).any(|at| places[..at].contains(&places[at])) {
            return Err(Error::user(format!("{owner}: option `key` must name one column or several, each once")));
        }
        if let Some(taken) = schema.fields().iter().find(|field| cache::OWN.contains(&field.name().as_str())) {
            return Err(Error::user(format!("{owner}: a column can't be called `{}` here", taken.name())));
        }
        let ttl = options.duration("cache_ttl", TTL)?;
        let most = options.parse("cache_keys", MOST)?;
        let of = if is_program {
            declare.declared.lock().lookups.get(name).cloned().ok_or_else(|| {
                Error::user(format!(
                    "{owner}: the program that runs this SQL gave no table of that name; call provide_lookup before"
                ))
            })?
        } else {
            registry.lookup(&options, schema, &key)?
        };
        options.finish()?;
        Ok(Some(Arc::new(Self { name: name.to_string(), of, schema: plan::nullable(schema), key: places, ttl, most })))
    }

    fn key_names(&self) -> Vec<&str> {
        self.key.iter().map(|at| self.schema.field(*at).name().as_str()).collect()
    }

    /// The same for the same table, key and columns (FNV-1a of what they are).
    fn number(&self) -> u64 {
        let columns = self.schema.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type()));
        let text = format!("{} {:?} {}", self.of.describe(), self.key, columns.collect::<Vec<_>>().join(","));
        text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    /// An error of the table, with its name in front.
    fn named(&self, error: Error) -> Error {
        let (text, blame, retry) = (format!("table `{}`", self.name), error.blame(), error.is_retryable());
        let named = match blame {
            Blame::User => Error::user(text),
            Blame::External => Error::external(text),
            Blame::Internal => Error::internal(text),
        };
        let named = named.because(error);
        if retry { named } else { named.fatal() }
    }
}

/// The table as the planner sees it.
#[derive(Debug)]
pub(super) struct LookupTable(pub(super) Arc<Asked>);

impl Scan for LookupTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.0.schema)
    }

    fn plan(
        &self,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let leaf = AnswersLeaf(Arc::clone(&self.0.schema));
        let title = format!("answers of table {}", self.0.name);
        super::tables::projected(NodeExec::plan(title, leaf, vec![], self.schema(), 1), projection)
    }
}

/// The answers to a batch's keys, as an extension of the task of the join.
#[derive(Debug)]
struct Answered(RecordBatch);

#[derive(Debug)]
struct AnswersLeaf(SchemaRef);

impl Kernel for AnswersLeaf {
    fn run(&self, _partition: usize, inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        let answered = inputs.task().session_config().get_extension::<Answered>();
        let answered = answered.ok_or_else(|| internal_datafusion_err!("a table that is asked by key was read"))?;
        Ok(rows_from(Arc::clone(&self.0), futures::stream::iter([Ok(answered.0.clone())])))
    }
}

/// A join with such a table as an operator.
#[derive(Debug)]
pub(super) struct LookupOperator {
    name: String,
    table: Arc<Asked>,
    /// The plan of the stream's side.
    input: Arc<dyn ExecutionPlan>,
    /// The join of what it is fed with the answers.
    joined: Arc<dyn ExecutionPlan>,
    /// Over the stream's side, one for each column of the key.
    keys: Vec<Arc<dyn PhysicalExpr>>,
    schema: SchemaRef,
    pub(super) gives: Changes,
    /// Views read here that give their whole result in each batch.
    whole: Vec<String>,
    cache: OnceLock<Arc<Cache>>,
}

impl LookupOperator {
    /// The nodes that it reads.
    pub(super) fn reads(&self) -> DfResult<Vec<Arc<Lineage>>> {
        leaves::leaves(std::slice::from_ref(&self.input))
    }
}

impl Operator for LookupOperator {
    fn kind(&self) -> &'static str {
        "lookup"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn lower(&self, inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        let of = |e| Error::internal(format!("planning `{}`", self.name)).because(e);
        let made = Cache::new(self.name.clone(), Arc::clone(&self.table)).map_err(of)?;
        let cache = Arc::clone(self.cache.get_or_init(|| Arc::new(made)));
        cx.states.register(Arc::clone(&cache) as _);
        let read = self.reads().map_err(of)?;
        let input = leaves::put_in(&self.input, &read, &inputs).map_err(of)?;
        let (table, keys) = (&self.table, self.keys.clone());
        let told = format!(
            "asks table `{}` ({}) by {}, once a batch; an answer counts for {:?}, for {} keys at most",
            table.name,
            table.of.describe(),
            table.key_names().join(", "),
            table.ttl,
            table.most
        );
        let kernel =
            LookupKernel { name: self.name.clone(), cache, keys, whole: self.whole.clone(), schema: self.schema() };
        Ok(cx.node(&told, kernel, vec![input, Arc::clone(&self.joined)], self.schema(), 1))
    }
}

/// Place of the join among the node's inputs.
const JOIN: usize = 1;

#[derive(Debug)]
struct LookupKernel {
    name: String,
    cache: Arc<Cache>,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    whole: Vec<String>,
    schema: SchemaRef,
}

impl LookupKernel {
    /// The batch's keys: for each column of the key one of all rows.
    fn keys(&self, rows: &[RecordBatch]) -> DfResult<Vec<ArrayRef>> {
        let of = |expr: &Arc<dyn PhysicalExpr>| {
            let parts = rows.iter().map(|rows| expr.evaluate(rows)?.into_array(rows.num_rows()));
            let parts = parts.collect::<DfResult<Vec<ArrayRef>>>()?;
            let parts: Vec<_> = parts.iter().map(AsRef::as_ref).collect();
            Ok(arrow_select::concat::concat(&parts)?)
        };
        self.keys.iter().map(of).collect()
    }
}

impl Kernel for LookupKernel {
    fn run(&self, _partition: usize, inputs: &NodeInputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        let rows = inputs.collect(0)?;
        let (plan, task) = (Arc::clone(inputs.plan(JOIN)), Arc::clone(inputs.task()));
        let this = Self {
            name: self.name.clone(),
            cache: Arc::clone(&self.cache),
            keys: self.keys.clone(),
            whole: self.whole.clone(),
            schema: Arc::clone(&self.schema),
        };
        let rows = async move {
            let rows = rows.await?;
            let has_stayed = !this.whole.is_empty() && this.whole.iter().all(|name| run.has_stayed(name));
            if rows.is_empty() {
                if has_stayed {
                    run.stays(&this.name);
                }
                return Ok(Vec::new());
            }
            let (answered, is_asked) = this.cache.rows(&this.keys(&rows)?, &run.batch).await?;
            if has_stayed && !is_asked {
                run.stays(&this.name);
            }
            let session = task.session_config().clone().with_extension(Arc::new(Answered(answered)));
            let task = TaskContext::default().with_session_config(session).with_runtime(task.runtime_env());
            feed(&plan, &Arc::new(task), rows).await
        };
        Ok(rows_once(Arc::clone(&self.schema), rows))
    }
}
