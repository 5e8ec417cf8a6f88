//! `SELECT DISTINCT` and `SELECT DISTINCT ON (…)` over a stream: the first row of each key.
//!
//! ```sql
//! SELECT DISTINCT ON (id, date_bin(INTERVAL '1' HOUR, at)) id, at, text FROM posts
//! ```
//!
//! A row is given in the batch in which its key is first seen, and never taken
//! back. Keys are kept for good, unless one of them is a time of which it is known
//! how far it has come: the column of a WATERMARK, as it is or through `date_bin`
//! or `date_trunc`. Then a key leaves when the watermark is past its time, and a
//! row that comes later still is late.
//!
//! The state has the keys' columns. A key that is kept again is the same key, so the
//! rows of a sweep need no mark. Invariant: of the rows of a batch with one key the
//! first of the first partition is given.

use super::{
    late::Late,
    leaves,
    ordered::Ordered,
    panes::place_in,
    progress::{Time, micros, time_of},
};
use crate::{
    plan::{BatchRun, Kernel, Lowering, NodeInputs, Operator, Rows, rows_once},
    state::{StateOperator, Swept, Version},
};
use arrow_array::{
    ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray, UInt32Array, cast::AsArray,
    new_null_array, types::TimestampMicrosecondType,
};
use arrow_schema::{Field, Schema, SchemaRef};
use datafusion::{
    arrow::row::{RowConverter, SortField},
    common::{DataFusionError, Result as DfResult},
    execution::SessionState,
    logical_expr::{Expr, LogicalPlan},
    physical_expr::PhysicalExpr,
    physical_plan::ExecutionPlan,
};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};
use tidemill_core::{BatchId, Error, Result, Timestamp};

/// How a key ages.
#[derive(Debug)]
struct Aging {
    /// The key that is a time.
    key: usize,
    /// The column that it is made of, in the rows below the keys, and how.
    column: usize,
    below: SchemaRef,
    expr: Arc<dyn PhysicalExpr>,
    time: Time,
}

/// What does not change from batch to batch.
#[derive(Debug)]
struct Plan {
    name: String,
    /// Columns that are compared: the first so many.
    keys: SchemaRef,
    /// Whether the keys are also what is given.
    all: bool,
    schema: SchemaRef,
    converter: RowConverter,
    aging: Option<Aging>,
}

/// DISTINCT as an operator over a plan that gives the keys first, then what is to be given.
#[derive(Debug)]
pub(super) struct DistinctOperator {
    input: Arc<dyn ExecutionPlan>,
    state: OnceLock<Arc<DistinctState>>,
    plan: Arc<Plan>,
}

impl DistinctOperator {
    /// Over the plan of `projection`, whose first `keys` columns are compared; all are when it is `None`.
    ///
    /// # Errors
    /// When a key's type can't be compared.
    pub(super) fn new(
        state: &SessionState,
        projection: &LogicalPlan,
        keys: Option<usize>,
        input: Arc<dyn ExecutionPlan>,
        schema: SchemaRef,
        name: &str,
    ) -> DfResult<Self> {
        let count = keys.unwrap_or(schema.fields().len());
        let fields: Vec<_> = projection.schema().fields()[..count]
            .iter()
            .enumerate()
            .map(|(at, field)| {
                let name = if keys.is_some() { format!("key{}", at + 1) } else { schema.field(at).name().clone() };
                Field::new(name, field.data_type().clone(), true)
            })
            .collect();
        let sorts = fields.iter().map(|field| SortField::new(field.data_type().clone())).collect();
        let converter = RowConverter::new(sorts)?;
        let aging = aging(state, projection, count, name)?;
        let keys_schema = Arc::new(Schema::new(fields));
        let plan = Plan { name: name.to_string(), keys: keys_schema, all: keys.is_none(), schema, converter, aging };
        Ok(Self { input, state: OnceLock::new(), plan: Arc::new(plan) })
    }
}

/// The key that ages, if one does.
fn aging(state: &SessionState, projection: &LogicalPlan, keys: usize, name: &str) -> DfResult<Option<Aging>> {
    for key in 0..keys {
        // As it is, or computed in the projection from one that is.
        if let Some(time) = time_of(projection, key, name)? {
            let below: SchemaRef = Arc::new(nullable(projection.schema().as_arrow()));
            let expr = Expr::Column(projection.schema().qualified_field(key).into());
            let expr = state.create_physical_expr(expr, projection.schema())?;
            return Ok(Some(Aging { key, column: key, below, expr, time }));
        }
        let LogicalPlan::Projection(plan) = projection else { continue };
        let Some(column) = monotone(&plan.expr[key]) else { continue };
        let Ok(at) = plan.input.schema().index_of_column(column) else { continue };
        let Some(time) = time_of(&plan.input, at, name)? else { continue };
        let expr = plan.expr[key].clone().unalias();
        let expr = state.create_physical_expr(expr, plan.input.schema())?;
        let below: SchemaRef = Arc::new(nullable(plan.input.schema().as_arrow()));
        return Ok(Some(Aging { key, column: at, below, expr, time }));
    }
    Ok(None)
}

/// The column that a function of time takes, when the function never goes back as time goes on.
fn monotone(expr: &Expr) -> Option<&datafusion::common::Column> {
    match expr {
        Expr::Column(column) => Some(column),
        Expr::Alias(alias) => monotone(&alias.expr),
        Expr::ScalarFunction(call) if matches!(call.name(), "date_bin" | "date_trunc") => match call.args.as_slice() {
            [Expr::Literal(..), time] | [Expr::Literal(..), time, Expr::Literal(..)] => monotone(time),
            _ => None,
        },
        _ => None,
    }
}

fn nullable(schema: &Schema) -> Schema {
    let fields = schema.fields().iter().map(|f| Field::new(f.name(), f.data_type().clone(), true));
    Schema::new(fields.collect::<Vec<_>>())
}

impl Operator for DistinctOperator {
    fn kind(&self) -> &'static str {
        "distinct"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.plan.schema)
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn lower(&self, inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        let of = |e| Error::internal(format!("planning `{}`", self.plan.name)).because(e);
        let read = leaves::leaves(std::slice::from_ref(&self.input)).map_err(of)?;
        let input = leaves::put_in(&self.input, &read, &inputs).map_err(of)?;
        let state = self.state.get_or_init(|| Arc::new(DistinctState::new(Arc::clone(&self.plan))));
        cx.states.register(Arc::clone(state) as _);
        let told = match &self.plan.aging {
            Some(aging) => {
                let key = self.plan.keys.field(aging.key).name();
                format!("first of each key; keeps keys until the watermark of {} is past `{key}`", aging.time.stream)
            }
            None => "first of each key; keeps every key for good".to_string(),
        };
        Ok(cx.node(&told, DistinctKernel(Arc::clone(state)), vec![input], self.schema(), 1))
    }
}

/// The keys of one time.
#[derive(Debug, Default)]
struct Keys {
    keys: Ordered<()>,
    /// The last round in which one came, and how many were there before.
    round: u64,
    before: usize,
}

impl Keys {
    /// How many are to be kept again in a round: others came in it, and are in its deltas.
    fn due(&self, round: u64) -> usize {
        if self.round == round { self.before } else { self.keys.len() }
    }
}

#[derive(Debug, Default)]
struct Seen {
    /// By the time after which they are forgotten; 0 when they never are.
    keys: BTreeMap<i64, Keys>,
    /// How many they are.
    count: usize,
    /// Number of the sweep that goes on, and time and number of the next key that it gives.
    round: u64,
    sweep: (i64, usize),
    delta: Option<(BatchId, Vec<RecordBatch>)>,
}

impl Seen {
    /// Forgets the keys of times before `at`.
    fn forget(&mut self, at: i64) {
        while let Some(first) = self.keys.first_entry().filter(|first| *first.key() < at) {
            self.count -= first.remove().keys.len();
        }
    }
}

#[derive(Debug)]
struct DistinctState {
    plan: Arc<Plan>,
    seen: Mutex<Seen>,
}

impl DistinctState {
    fn new(plan: Arc<Plan>) -> Self {
        Self { plan, seen: Mutex::default() }
    }

    fn key_rows(&self, rows: &RecordBatch) -> DfResult<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let columns = rows.columns()[..self.plan.keys.fields().len()].to_vec();
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.plan.keys), columns, &options)?)
    }

    /// The rows' times as they age; `None` when they never do.
    fn times(&self, keys: &RecordBatch) -> DfResult<Option<TimestampMicrosecondArray>> {
        let Some(aging) = &self.plan.aging else { return Ok(None) };
        Ok(Some(micros(keys.column(aging.key))?.as_primitive::<TimestampMicrosecondType>().clone()))
    }

    /// Places of the rows whose key was not seen before, by time and key.
    fn unseen(&self, seen: &mut Seen, keys: &RecordBatch) -> DfResult<Vec<u32>> {
        let times = self.times(keys)?;
        let rows = self.plan.converter.convert_columns(keys.columns())?;
        let mut fresh = Vec::new();
        for (at, row) in (0_u32..).zip(&rows) {
            let time = times.as_ref().map_or(0, |times| times.value(at as usize));
            let known = seen.keys.entry(time).or_default();
            let before = known.keys.len();
            if known.keys.take(row.as_ref()).1 {
                if known.round != seen.round {
                    (known.round, known.before) = (seen.round, before);
                }
                seen.count += 1;
                fresh.push(at);
            }
        }
        Ok(fresh)
    }

    /// Keys as rows.
    fn rows_of<'a>(&self, keys: impl Iterator<Item = &'a (Box<[u8]>, ())>) -> Result<RecordBatch> {
        let parser = self.plan.converter.parser();
        let columns = self.plan.converter.convert_rows(keys.map(|(key, ())| parser.parse(key)));
        let rows = columns.and_then(|columns| RecordBatch::try_new(self.schema(), columns));
        rows.map_err(|e| Error::internal(format!("the state of `{}`", self.plan.name)).because(e))
    }

    /// The aged time of a watermark: keys before it are forgotten.
    fn aged(&self, aging: &Aging, mark: Timestamp) -> DfResult<i64> {
        if mark == Timestamp::MIN {
            return Ok(i64::MIN);
        }
        let columns = aging.below.fields().iter().enumerate().map(|(at, field)| {
            if at == aging.column {
                let time = TimestampMicrosecondArray::from(vec![mark.0]);
                arrow_cast::cast(&time, field.data_type())
            } else {
                Ok(new_null_array(field.data_type(), 1))
            }
        });
        let columns = columns.collect::<std::result::Result<Vec<ArrayRef>, _>>()?;
        let row = RecordBatch::try_new(Arc::clone(&aging.below), columns)?;
        let time = micros(&aging.expr.evaluate(&row)?.into_array(1)?)?;
        Ok(time.as_primitive::<TimestampMicrosecondType>().value(0))
    }

    /// One batch: the rows whose keys are new.
    fn step(&self, came: &[RecordBatch], run: &BatchRun) -> DfResult<Vec<RecordBatch>> {
        let mut seen = self.seen.lock();
        let before = match &self.plan.aging {
            Some(aging) => self.aged(aging, run.watermark_before(&self.plan.name))?,
            None => i64::MIN,
        };
        seen.forget(before);
        let (mut out, mut delta) = (Vec::new(), Vec::new());
        for rows in came {
            let rows = self.in_time(rows, before, run)?;
            let keys = self.key_rows(&rows)?;
            let fresh = UInt32Array::from(self.unseen(&mut seen, &keys)?);
            if fresh.is_empty() {
                continue;
            }
            let given = arrow_select::take::take_record_batch(&rows, &fresh)?;
            delta.push(arrow_select::take::take_record_batch(&keys, &fresh)?);
            let columns = if self.plan.all {
                given.columns().to_vec()
            } else {
                given.columns()[self.plan.keys.fields().len()..].to_vec()
            };
            out.push(RecordBatch::try_new(Arc::clone(&self.plan.schema), columns)?);
        }
        seen.delta = Some((run.batch.id, delta));
        if let Some(aging) = &self.plan.aging {
            run.move_watermark(&self.plan.name, aging.time.now(run));
            let now = self.aged(aging, run.watermark_now(&self.plan.name))?;
            seen.forget(now);
        }
        Ok(out)
    }

    /// The rows whose keys have not been forgotten; the others are set aside.
    fn in_time(&self, rows: &RecordBatch, before: i64, run: &BatchRun) -> DfResult<RecordBatch> {
        let Some(aging) = &self.plan.aging else { return Ok(rows.clone()) };
        let times = micros(rows.column(aging.key))?;
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let latest = aging.time.latest(run).0;
        let in_time = |time: i64| (before..=latest).contains(&time);
        let keep: BooleanArray = times.iter().map(|time| Some(time.is_some_and(in_time))).collect();
        if keep.true_count() == rows.num_rows() {
            return Ok(rows.clone());
        }
        let others: BooleanArray = keep.iter().map(|keep| keep.map(|keep| !keep)).collect();
        let late = Late {
            stream: aging.time.stream.clone(),
            operator: self.plan.name.clone(),
            column: rows.schema().field(aging.key).name().clone(),
            place: place_in(rows.schema().fields()),
            is_aside: false,
        };
        let their = arrow_select::filter::filter(times, &others)?;
        let others = arrow_select::filter::filter_record_batch(rows, &others)?;
        late.set_aside(run, &others, their.as_primitive(), Timestamp(latest));
        Ok(arrow_select::filter::filter_record_batch(rows, &keep)?)
    }
}

impl StateOperator for DistinctState {
    fn name(&self) -> &str {
        &self.plan.name
    }

    fn kind(&self) -> &'static str {
        "distinct"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.plan.keys)
    }

    fn restore(&self, versions: &[Version]) -> Result<()> {
        let mut seen = Seen::default();
        for version in versions {
            if version.whole {
                (seen.keys, seen.count) = (BTreeMap::new(), 0);
            }
            for rows in &version.rows {
                let known = RecordBatch::try_new(self.schema(), rows.columns().to_vec())
                    .map_err(DataFusionError::from)
                    .and_then(|rows| self.unseen(&mut seen, &rows));
                known.map_err(|e| {
                    Error::user(format!("the state of `{}` has other columns", self.plan.name)).because(e)
                })?;
            }
        }
        *self.seen.lock() = seen;
        Ok(())
    }

    fn delta(&self, batch: BatchId) -> Result<Vec<RecordBatch>> {
        Ok(self.seen.lock().delta.take_if(|(of, _)| *of == batch).map(|(_, rows)| rows).unwrap_or_default())
    }

    fn sweeps(&self) -> bool {
        true
    }

    fn sweep(&self, rows: usize, begin: bool) -> Result<Swept> {
        let seen = &mut *self.seen.lock();
        if begin {
            (seen.round, seen.sweep) = (seen.round + 1, (i64::MIN, 0));
        }
        let (mut left, mut found, mut whole) = (rows, Vec::new(), true);
        for (time, keys) in seen.keys.range(seen.sweep.0..) {
            let from = if *time == seen.sweep.0 { seen.sweep.1 } else { 0 };
            let due = keys.due(seen.round).saturating_sub(from);
            let page = keys.keys.page(from, left.min(due));
            seen.sweep = (*time, from + page.len());
            left -= page.len();
            found.extend(page);
            whole = page.len() == due;
            if !whole {
                break;
            }
        }
        let rows = if found.is_empty() { Vec::new() } else { vec![self.rows_of(found.into_iter())?] };
        Ok(Swept { rows, whole })
    }

    fn snapshot(&self) -> Result<Vec<RecordBatch>> {
        let seen = self.seen.lock();
        if seen.count == 0 {
            return Ok(Vec::new());
        }
        Ok(vec![self.rows_of(seen.keys.values().flat_map(|keys| keys.keys.all()))?])
    }

    fn rows(&self) -> usize {
        self.seen.lock().count
    }

    fn fresh(&self) -> Option<Arc<dyn StateOperator>> {
        Some(Arc::new(Self::new(Arc::clone(&self.plan))))
    }
}

#[derive(Debug)]
struct DistinctKernel(Arc<DistinctState>);

impl Kernel for DistinctKernel {
    fn run(&self, _partition: usize, inputs: &NodeInputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        let rows = inputs.collect(0)?;
        let state = Arc::clone(&self.0);
        let rows = async move {
            let came = rows.await?;
            state.step(&came, &run)
        };
        Ok(rows_once(Arc::clone(&self.0.plan.schema), rows))
    }
}
