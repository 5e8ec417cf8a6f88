//! Rows to panes: the node between a stream and the aggregate of its windows.
//!
//! The rows get two columns more, `window_start` and `window_end`. Between this
//! node and the aggregate they hold what the aggregate's state needs to know:
//!
//! | Window | `window_start` | `window_end` |
//! |---|---|---|
//! | `TUMBLE`, `HOP` | the start of the row's pane | the same |
//! | `SESSION` | the time, rounded down to the gap | the time |
//! | `COUNT_WINDOW` | the first number of the row's pane | the row's number |
//!
//! A row has one pane and `size / pane` windows; two rows of a key in one pane of
//! a session are of one session. The state turns panes into windows when they
//! close, and nothing in between may look at them: [`super::shape`] sees to that.
//!
//! Invariant: every row is seen by the watermark before anything filters it: by
//! that of the stream, at the leaf, or, where none was declared, here. A row all
//! of whose windows have closed is late: not aggregated, but counted and set aside
//! ([`super::late`]). So is a row without a time, and one dated too far ahead.
//! Lateness is judged by the watermark before the batch, so that it does not
//! depend on the order in which partitions run.

use super::{
    late::Late,
    number::{NumberKernel, Numbers},
    times::{StreamTime, ViewOptions},
    window::{END, PANE, START},
};
use crate::{
    plan::{BatchRun, FAR, Kernel, META, NodeExec, NodeInputs, Rows, largest_time, rows_from},
    state::StateOperator,
};
use arrow_array::{
    Array, ArrayRef, BooleanArray, RecordBatch, TimestampMicrosecondArray, cast::AsArray,
    types::TimestampMicrosecondType,
};
use arrow_schema::{DataType, Field, FieldRef, Fields, Schema, SchemaRef, TimeUnit};
use datafusion::{
    common::{Column, DFSchema, DFSchemaRef, Result as DfResult, TableReference, plan_err},
    logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore},
    physical_plan::{ExecutionPlan, ExecutionPlanProperties},
};
use futures::StreamExt;
use std::{
    cmp::Ordering,
    collections::HashMap,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};
use tidemill_core::{Duration, PartitionId, Timestamp, WatermarkSpec, WindowKind};

/// Key of the metadata by which a key column of a window is known on its way to the aggregate.
pub(super) const KEY: &str = "tidemill.key";

/// Which of the two window columns a field is, if it is one.
pub(super) fn pane_column(field: &Field) -> Option<&str> {
    field.metadata().get(PANE).map(String::as_str)
}

/// Assigns rows to panes.
#[derive(Debug, Clone)]
pub(super) struct WindowNode {
    pub(super) input: LogicalPlan,
    /// The column of the rows' time; count windows have none.
    pub(super) time: Option<Column>,
    pub(super) kind: WindowKind,
    /// Columns by which records are told apart, where the function names them.
    pub(super) keys: Vec<Column>,
    /// The streams' columns that the time comes from.
    pub(super) times: Vec<StreamTime>,
    /// Columns of a row's offset and partition, where they are known.
    place: Vec<Column>,
    schema: DFSchemaRef,
}

impl WindowNode {
    pub(super) fn new(
        input: LogicalPlan,
        time: Option<Column>,
        kind: WindowKind,
        keys: Vec<Column>,
        times: Vec<StreamTime>,
    ) -> DfResult<Self> {
        let schema = input.schema();
        let pane_kind = match &time {
            None => DataType::Int64,
            Some(time) => match schema.qualified_field_from_column(time)?.1.data_type() {
                DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
                other => {
                    return plan_err!(
                        "a window needs a TIMESTAMP column, and `{}` is {other}: declare it as TIMESTAMP in CREATE STREAM",
                        time.name
                    );
                }
            },
        };
        if let Some(taken) = schema.fields().iter().find(|f| f.name() == START || f.name() == END) {
            return plan_err!(
                "the table has a column `{}` already: it can't be windowed again; rename the column in a view first",
                taken.name()
            );
        }
        let of_input = time.as_ref().or(keys.first());
        let relation = match of_input {
            Some(column) => schema.qualified_field_from_column(column)?.0.cloned(),
            None => schema.iter().next().and_then(|(relation, _)| relation.cloned()),
        };
        let is_key = |at: usize| keys.iter().any(|key| schema.index_of_column(key).is_ok_and(|found| found == at));
        let mut fields: Vec<(Option<TableReference>, FieldRef)> = schema
            .iter()
            .enumerate()
            .map(|(at, (relation, field))| (relation.cloned(), marked(field, is_key(at))))
            .collect();
        fields.extend(pane_fields(&pane_kind).map(|field| (relation.clone(), field)));
        let place = META[..2]
            .iter()
            .filter_map(|name| schema.qualified_field_with_unqualified_name(name).ok().map(Column::from))
            .collect();
        let schema = Arc::new(DFSchema::new_with_metadata(fields, schema.metadata().clone())?);
        Ok(Self { input, time, kind, keys, times, place, schema })
    }

    /// How late rows are told.
    pub(super) fn judge(&self, options: &ViewOptions) -> Judge {
        Judge {
            kind: self.kind,
            spec: self.times.iter().map(|time| time.spec).max_by_key(|spec| spec.max_ahead.unwrap_or(Duration::MAX)),
            lateness: options.lateness.unwrap_or_else(|| self.lateness()),
        }
    }

    /// How long the streams allow windows to take late rows.
    pub(super) fn lateness(&self) -> Duration {
        self.times.iter().map(|time| time.lateness).max().unwrap_or_default()
    }

    /// The node over the plan of its input, and the state that it keeps itself.
    pub(super) fn plan(
        &self,
        name: &str,
        input: Arc<dyn ExecutionPlan>,
        options: &ViewOptions,
    ) -> DfResult<(Arc<dyn ExecutionPlan>, Option<Arc<dyn StateOperator>>)> {
        let below = self.input.schema();
        let places =
            |columns: &[Column]| columns.iter().map(|c| below.index_of_column(c)).collect::<DfResult<Vec<_>>>();
        let keys = places(&self.keys)?;
        let time = self.time.as_ref().map(|time| below.index_of_column(time)).transpose()?;
        let kind = match time.map(|time| input.schema().field(time).data_type().clone()) {
            None => DataType::Int64,
            Some(DataType::Timestamp(_, zone)) => DataType::Timestamp(TimeUnit::Microsecond, zone),
            Some(_) => return plan_err!("a window needs a TIMESTAMP column"),
        };
        let own = input.schema();
        let fields: Vec<_> = own
            .fields()
            .iter()
            .enumerate()
            .map(|(at, field)| marked(field, keys.contains(&at)))
            .chain(pane_fields(&kind))
            .collect();
        let schema = Arc::new(Schema::new_with_metadata(fields, own.metadata().clone()));
        let (Some(time), Some(column)) = (time, &self.time) else {
            let WindowKind::Count(spec) = self.kind else { return plan_err!("a window without a time") };
            let numbers = Arc::new(Numbers::new(format!("{name}.rows"), &own, keys)?);
            let kernel = NumberKernel::new(Arc::clone(&numbers), spec, Arc::clone(&schema));
            let title = format!("{name}: numbers of rows, in panes of {}", spec.pane());
            return Ok((NodeExec::plan(title, kernel, vec![input], schema, 1), Some(numbers)));
        };
        let partitions = input.output_partitioning().partition_count();
        let title = match self.kind {
            WindowKind::Session(gap) => format!("{name}: sessions with gaps of {gap} µs by {}", column.name),
            WindowKind::Time(spec) | WindowKind::Count(spec) => {
                format!("{name}: panes of {} µs by {}", spec.pane(), column.name)
            }
        };
        let late = Late {
            stream: stream_of(&self.input).unwrap_or_else(|| name.to_string()),
            operator: name.to_string(),
            column: column.name.clone(),
            place: places(&self.place)?,
            is_aside: options.late.is_some(),
        };
        let kernel = PaneKernel {
            late,
            time,
            kind,
            judge: self.judge(options),
            observes: self.times.is_empty(),
            schema: Arc::clone(&schema),
        };
        Ok((NodeExec::plan(title, kernel, vec![input], schema, partitions), None))
    }
}

/// The one stream or table that a plan reads, if it is one.
pub(super) fn stream_of(plan: &LogicalPlan) -> Option<String> {
    match plan {
        LogicalPlan::TableScan(scan) => Some(scan.table_name.table().to_string()),
        other => match other.inputs().as_slice() {
            [input] => stream_of(input),
            _ => None,
        },
    }
}

fn marked(field: &FieldRef, is_key: bool) -> FieldRef {
    if !is_key {
        return Arc::clone(field);
    }
    let mut metadata = field.metadata().clone();
    metadata.insert(KEY.to_string(), String::new());
    Arc::new(field.as_ref().clone().with_metadata(metadata))
}

fn pane_fields(kind: &DataType) -> impl Iterator<Item = FieldRef> + use<> {
    let kind = kind.clone();
    [(START, "start"), (END, "end")].into_iter().map(move |(name, role)| {
        let metadata = HashMap::from([(PANE.to_string(), role.to_string())]);
        Arc::new(Field::new(name, kind.clone(), false).with_metadata(metadata))
    })
}

impl PartialEq for WindowNode {
    fn eq(&self, other: &Self) -> bool {
        (&self.input, &self.time, self.kind, &self.keys, &self.times)
            == (&other.input, &other.time, other.kind, &other.keys, &other.times)
    }
}

impl Eq for WindowNode {}

impl Hash for WindowNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.input, &self.time, self.kind, &self.keys, &self.times).hash(state);
    }
}

impl PartialOrd for WindowNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

impl UserDefinedLogicalNodeCore for WindowNode {
    fn name(&self) -> &'static str {
        "Window"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        self.time.iter().chain(&self.keys).chain(&self.place).cloned().map(Expr::Column).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Window: {:?}", self.kind)?;
        self.time.iter().try_for_each(|time| write!(f, " by {time}"))
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> DfResult<Self> {
        let Some(input) = inputs.into_iter().next() else { return plan_err!("a window has one input") };
        let columns = exprs.into_iter().map(|expr| match expr {
            Expr::Column(column) => Ok(column),
            other => plan_err!("a window's time and keys must be plain columns, not {other}"),
        });
        let mut columns = columns.collect::<DfResult<Vec<_>>>()?.into_iter();
        let time = self.time.is_some().then(|| columns.next()).flatten();
        let keys = columns.by_ref().take(self.keys.len()).collect();
        Self::new(input, time, self.kind, keys, self.times.clone())
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        // Time, keys and place are added by the caller: they are its expressions.
        let count = self.input.schema().fields().len();
        Some(vec![output_columns.iter().copied().filter(|c| *c < count).collect()])
    }
}

/// How rows are told that are in no open window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judge {
    kind: WindowKind,
    /// The watermark that bounds how far ahead a row may be dated.
    spec: Option<WatermarkSpec>,
    pub(super) lateness: Duration,
}

/// What to do with the rows of a block, by their times.
pub(super) struct Judged {
    /// Rows with an open window; `None` when all have one.
    pub(super) in_time: Option<BooleanArray>,
    /// The latest time that a row may have.
    pub(super) latest: Timestamp,
}

impl Judge {
    /// Judges rows when the watermark was at `before` the batch.
    pub(super) fn judge(&self, times: &TimestampMicrosecondArray, before: Timestamp, batch: Timestamp) -> Judged {
        let closed = before.minus(self.lateness);
        let latest = Timestamp(self.spec.map_or(FAR, |spec| spec.latest(batch).0.min(FAR)));
        let in_time = |time: i64| (-FAR..=latest.0).contains(&time) && !self.kind.is_closed(Timestamp(time), closed);
        // What holds of the least and of the greatest holds of those between.
        let (mut least, mut greatest) = (i64::MAX, i64::MIN);
        for time in times.values() {
            (least, greatest) = (least.min(*time), greatest.max(*time));
        }
        let all = times.is_empty() || (times.null_count() == 0 && in_time(least) && in_time(greatest));
        let mask = || times.iter().map(|time| Some(time.is_some_and(in_time))).collect();
        Judged { in_time: (!all).then(mask), latest }
    }
}

/// A block's times in microseconds.
pub(super) fn times_of(rows: &RecordBatch, time: usize, kind: &DataType) -> DfResult<TimestampMicrosecondArray> {
    let column = rows.column(time);
    let times = if column.data_type() == kind { Arc::clone(column) } else { arrow_cast::cast(column, kind)? };
    Ok(times.as_primitive::<TimestampMicrosecondType>().clone())
}

/// Rows and their times.
pub(super) type Timed = (RecordBatch, TimestampMicrosecondArray);

/// The rows that a mask keeps, and the others.
pub(super) fn parted(
    rows: &RecordBatch,
    times: &TimestampMicrosecondArray,
    mask: &BooleanArray,
) -> DfResult<[Timed; 2]> {
    let of = |mask: &BooleanArray| {
        let rows = arrow_select::filter::filter_record_batch(rows, mask)?;
        let times = arrow_select::filter::filter(times, mask)?;
        Ok::<Timed, datafusion::common::DataFusionError>((rows, times.as_primitive().clone()))
    };
    Ok([of(mask)?, of(&mask.iter().map(|keep| keep.map(|keep| !keep)).collect())?])
}

#[derive(Debug)]
struct PaneKernel {
    /// Whose rows may be late; its watermark is kept under the operator.
    late: Late,
    time: usize,
    kind: DataType,
    judge: Judge,
    /// Whether the watermark follows the rows that come here: no stream declared one.
    observes: bool,
    schema: SchemaRef,
}

impl Kernel for PaneKernel {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        let rows = inputs.open(0, partition)?;
        let (time, kind, schema) = (self.time, self.kind.clone(), Arc::clone(&self.schema));
        let (late, judge, observes) = (self.late.clone(), self.judge, self.observes);
        let assigned = rows.map(move |rows| {
            let rows = rows?;
            let times = times_of(&rows, time, &kind)?;
            let before = run.watermark_before(&late.operator);
            let judged = judge.judge(&times, before, run.batch.time);
            if observes {
                let column: ArrayRef = Arc::new(times.clone());
                if let Some(largest) = largest_time(&column, judged.latest).map_err(crate::plan::external)? {
                    run.move_watermark(&late.operator, largest);
                }
            }
            let (rows, times) = match &judged.in_time {
                None => (rows, times),
                Some(mask) => {
                    let [in_time, others] = parted(&rows, &times, mask)?;
                    late.set_aside(&run, &others.0, &others.1, judged.latest);
                    in_time
                }
            };
            let [start, end] = pane_columns(judge.kind, &times, &kind);
            let mut columns = rows.columns().to_vec();
            columns.extend([start, end]);
            Ok(RecordBatch::try_new(Arc::clone(&schema), columns)?)
        });
        Ok(rows_from(Arc::clone(&self.schema), assigned))
    }
}

/// The two columns of rows with these times.
fn pane_columns(window: WindowKind, times: &TimestampMicrosecondArray, kind: &DataType) -> [ArrayRef; 2] {
    let width = match window {
        WindowKind::Time(spec) | WindowKind::Count(spec) => spec.pane(),
        WindowKind::Session(gap) => gap,
    };
    let mut last = i64::MAX;
    let panes: Vec<i64> = times
        .values()
        .iter()
        .map(|time| {
            // Times that follow each other are mostly of one pane: no division then.
            if *time < last || *time - last >= width {
                last = Timestamp(*time).floor(width).0;
            }
            last
        })
        .collect();
    let panes: ArrayRef = Arc::new(TimestampMicrosecondArray::from(panes).with_data_type(kind.clone()));
    match window {
        WindowKind::Session(_) => [panes, Arc::new(times.clone())],
        WindowKind::Time(_) | WindowKind::Count(_) => [Arc::clone(&panes), panes],
    }
}

/// Places of the columns of offset and partition, when both are there.
pub(super) fn place_in(fields: &Fields) -> Vec<usize> {
    let place: Vec<usize> = META[..2].iter().filter_map(|name| fields.find(name).map(|(at, _)| at)).collect();
    if place.len() == 2 { place } else { Vec::new() }
}

/// Where a row lay, by the columns of its offset and partition.
pub(super) fn place_of(rows: &RecordBatch, place: &[usize], row: usize) -> Option<(PartitionId, u64)> {
    let [offset, partition] = place else { return None };
    let offset = rows.column(*offset).as_primitive_opt::<arrow_array::types::UInt64Type>()?.value(row);
    let partition = rows.column(*partition).as_string_opt::<i32>()?.value(row);
    Some((PartitionId::new(partition), offset))
}
