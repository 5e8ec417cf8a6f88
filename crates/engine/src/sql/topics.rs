//! Topics of the log as tables.
//!
//! The columns of a topic are as they are stored, followed by `_offset`,
//! `_partition` and `_timestamp`; raw records, of a receiver and of dead
//! letters, are shown as text, with a sign in place of bytes that are none. What
//! notices took back is left out ([`Standing`]). Comparisons with the three are
//! used to read only the offsets in question: the log is never read from its
//! beginning to find its end.

use super::{mistakes::of_df, provider::Scan};
use crate::{
    Standing,
    ingest::{dead_schema, is_raw, replayed_schema},
    plan::{META, external},
};
use arrow_array::{
    ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array, UInt64Array, cast::AsArray,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow_select::filter::filter_record_batch;
use datafusion::{
    common::{Result as DfResult, exec_datafusion_err},
    execution::TaskContext,
    logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown},
    physical_plan::{
        ExecutionPlan, SendableRecordBatchStream,
        stream::RecordBatchStreamAdapter,
        streaming::{PartitionStream, StreamingTableExec},
    },
    scalar::ScalarValue,
};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};
use tidemill_core::{Offset, Registry, Result, Timestamp};
use tidemill_store::log::{LogReader, LogRows, Topic};

/// A topic as a table.
#[derive(Debug)]
pub(super) struct TopicTable {
    topic: Arc<Topic>,
    schema: SchemaRef,
    /// The column of raw records, if it has one.
    raw: Option<usize>,
    /// Where partitions end for this table, of those that go on behind it.
    ends: BTreeMap<u32, Offset>,
    /// Knows who reads the topic's notices.
    registry: Arc<Registry>,
}

impl TopicTable {
    pub(super) fn new(topic: Arc<Topic>, registry: Arc<Registry>) -> Result<Self> {
        let own = Arc::clone(&topic.config().schema);
        let letters = own == dead_schema() || own == replayed_schema();
        let raw = if is_raw(&own) { Some(0) } else { own.index_of("raw").ok().filter(|_| letters) };
        let mut fields: Vec<_> = own.fields().iter().cloned().collect();
        if let Some(raw) = raw {
            fields[raw] = Arc::new(Field::new(own.field(raw).name(), DataType::Utf8, true));
        }
        fields.push(Arc::new(Field::new(META[0], DataType::UInt64, false)));
        fields.push(Arc::new(Field::new(META[1], DataType::UInt32, false)));
        let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        fields.push(Arc::new(Field::new(META[2], time, false)));
        Ok(Self { topic, schema: Arc::new(Schema::new(fields)), raw, ends: BTreeMap::new(), registry })
    }

    /// The same, without what lies from these offsets on.
    pub(super) fn until(mut self, ends: BTreeMap<u32, Offset>) -> Self {
        self.ends = ends;
        self
    }

    /// The offsets of each partition that may hold what the filters ask for.
    pub(super) fn ranges(&self, filters: &[Expr]) -> Result<Vec<(u32, Offset, Offset)>> {
        let mut ranges = Vec::new();
        for partition in 0..self.topic.config().partitions {
            let (mut from, mut to) = (self.topic.start(partition), self.topic.end(partition));
            to = self.ends.get(&partition).map_or(to, |end| to.min(*end));
            for bound in filters.iter().filter_map(bound) {
                match bound {
                    Bound::Offset(Operator::Eq, at) => (from, to) = (from.max(at), to.min(next(at))),
                    Bound::Offset(Operator::Gt, at) => from = from.max(next(at)),
                    Bound::Offset(Operator::GtEq, at) => from = from.max(at),
                    Bound::Offset(Operator::Lt, at) => to = to.min(at),
                    Bound::Offset(Operator::LtEq, at) => to = to.min(next(at)),
                    Bound::Partition(at) if at != u64::from(partition) => to = from,
                    Bound::Time(op, at) => {
                        // Times never fall within a partition.
                        let after = Timestamp(at.0.saturating_add(1));
                        if matches!(op, Operator::Eq | Operator::GtEq | Operator::Gt) {
                            from =
                                from.max(self.topic.read_time(partition, if op == Operator::Gt { after } else { at })?);
                        }
                        if matches!(op, Operator::Eq | Operator::LtEq | Operator::Lt) {
                            to = to.min(self.topic.read_time(partition, if op == Operator::Lt { at } else { after })?);
                        }
                    }
                    Bound::Offset(..) | Bound::Partition(_) => {}
                }
            }
            if from < to {
                ranges.push((partition, from, to));
            }
        }
        Ok(ranges)
    }
}

fn next(offset: Offset) -> Offset {
    Offset(offset.0.saturating_add(1))
}

/// A comparison that names a place.
enum Bound {
    Offset(Operator, Offset),
    Partition(u64),
    Time(Operator, Timestamp),
}

fn bound(filter: &Expr) -> Option<Bound> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = filter else { return None };
    let (column, op, value) = match (left.as_ref(), right.as_ref()) {
        (Expr::Column(column), Expr::Literal(value, _)) => (column, *op, value),
        (Expr::Literal(value, _), Expr::Column(column)) => (column, op.swap()?, value),
        _ => return None,
    };
    if !matches!(op, Operator::Eq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq) {
        return None;
    }
    match (column.name.as_str(), value) {
        ("_offset", ScalarValue::UInt64(Some(at))) => Some(Bound::Offset(op, Offset(*at))),
        ("_partition", ScalarValue::UInt32(Some(at))) if op == Operator::Eq => Some(Bound::Partition(u64::from(*at))),
        ("_timestamp", ScalarValue::TimestampMicrosecond(Some(at), _)) => Some(Bound::Time(op, Timestamp(*at))),
        _ => None,
    }
}

impl Scan for TopicTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn heeds(&self, filter: &Expr) -> TableProviderFilterPushDown {
        match bound(filter) {
            Some(_) => TableProviderFilterPushDown::Inexact,
            None => TableProviderFilterPushDown::Unsupported,
        }
    }

    fn plan(
        &self,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let mut ranges = self.ranges(filters).map_err(external)?;
        // Notices are honoured that came after what is wanted, also where that ends in the past.
        let standing = Standing::of(&self.topic, &self.registry, &ranges).map_err(external)?;
        let standing = standing.map(|standing| Arc::new(Mutex::new(standing)));
        if ranges.is_empty() {
            // A plan has a partition, also one without rows.
            let at = self.topic.start(0);
            ranges.push((0, at, at));
        }
        let part = |(partition, from, to)| {
            let (topic, schema) = (Arc::clone(&self.topic), Arc::clone(&self.schema));
            Arc::new(Part { topic, schema, raw: self.raw, partition, from, to, standing: standing.clone() }) as _
        };
        let parts: Vec<Arc<dyn PartitionStream>> = ranges.into_iter().map(part).collect();
        let exec = StreamingTableExec::try_new(Arc::clone(&self.schema), parts, projection, None, false, limit)?;
        Ok(Arc::new(exec))
    }
}

/// Offsets `[from, to)` of one partition.
#[derive(Debug, Clone)]
struct Part {
    topic: Arc<Topic>,
    schema: SchemaRef,
    raw: Option<usize>,
    partition: u32,
    from: Offset,
    to: Offset,
    /// What all parts leave out; the first that need it read its notices.
    standing: Option<Arc<Mutex<Standing>>>,
}

impl Part {
    /// The next rows of `reader`; none of them while notices are read, so that whoever waits can give up.
    fn next(&self, reader: &mut LogReader) -> Result<Option<RecordBatch>> {
        let mut standing = self.standing.as_ref().map(|standing| standing.lock());
        if let Some(standing) = &mut standing
            && standing.read_on()?
        {
            return Ok(Some(RecordBatch::new_empty(Arc::clone(&self.schema))));
        }
        let Some(rows) = reader.next().transpose()? else { return Ok(None) };
        let stand = standing.and_then(|standing| standing.standing(self.partition, &rows));
        let rows = self.rows(&rows).map_err(of_df)?;
        match stand {
            Some(stand) => filter_record_batch(&rows, &stand).map(Some).map_err(|e| of_df(e.into())),
            None => Ok(Some(rows)),
        }
    }

    fn rows(&self, rows: &LogRows) -> DfResult<RecordBatch> {
        let count = rows.rows.num_rows();
        let mut columns = rows.rows.columns().to_vec();
        if let Some(raw) = self.raw {
            let values = columns[raw]
                .as_binary_opt::<i32>()
                .ok_or_else(|| exec_datafusion_err!("raw records of another type"))?;
            let text = values.iter().map(|value| value.map(String::from_utf8_lossy)).collect::<StringArray>();
            columns[raw] = Arc::new(text) as ArrayRef;
        }
        columns.push(Arc::new(UInt64Array::from_iter_values((0..count as u64).map(|row| rows.base.0 + row))));
        columns.push(Arc::new(UInt32Array::from_value(self.partition, count)));
        let times = rows.times.iter().flat_map(|(rows, time)| std::iter::repeat_n(time.0, *rows as usize));
        columns.push(Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")));
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}

impl PartitionStream for Part {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _task: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut reader = self.topic.read(self.partition, self.from, self.to);
        let part = self.clone();
        let rows = std::iter::from_fn(move || part.next(&mut reader).map_err(external).transpose());
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), futures::stream::iter(rows)))
    }
}
