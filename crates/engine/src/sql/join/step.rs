//! One batch of a join of two streams.
//!
//! ```text
//! new of a × kept of b ─┐
//! a takes its new rows  ├─► pairs ─► condition ─► rows
//! new of b × all of a  ─┘
//! the watermarks of both say which rows wait no longer; those without a partner ─► rows with NULLs
//! ```
//!
//! Invariant: each pair meets once, in the batch of the later one; what leaves is
//! decided by the watermarks after the batch, once all of it was seen. A row of the
//! larger side that no later row can meet is never taken in.

use super::{
    side::{Kept, SideState},
    store::{At, Incoming, Store},
};
use crate::{
    plan::{BatchRun, FAR, external},
    sql::{late::Late, progress::micros},
};
use arrow_array::{
    Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array, cast::AsArray, new_null_array,
    types::TimestampMicrosecondType,
};
use arrow_schema::SchemaRef;
use datafusion::{common::Result as DfResult, physical_expr::PhysicalExpr};
use std::sync::Arc;
use tidemill_core::{Error, Timestamp};

/// Pairs that are looked at together.
const PAIRS: usize = 16 * 1024;

/// What a pair must fulfil, over the columns at `columns` of both sides' one after the other.
#[derive(Debug)]
pub(super) struct Condition {
    pub(super) columns: Vec<usize>,
    pub(super) schema: SchemaRef,
    pub(super) expr: Arc<dyn PhysicalExpr>,
}

/// The two states and what joins them.
#[derive(Debug)]
pub(super) struct Join {
    pub(super) name: String,
    pub(super) sides: [Arc<SideState>; 2],
    pub(super) condition: Condition,
    /// Columns of the left side, then of the right.
    pub(super) schema: SchemaRef,
}

/// Pairs whose condition is still to be looked at.
#[derive(Default)]
struct Pairs {
    kept: Vec<At>,
    new: Vec<u32>,
}

impl Join {
    /// The name under which the watermark of a side is kept.
    pub(super) fn mark(&self, side: usize) -> String {
        format!("{}.{}", self.name, ["left", "right"][side])
    }

    /// Takes the new rows of both sides that belong to a partition, and gives the joined ones.
    pub(super) fn step(
        &self,
        partition: usize,
        new: [Vec<RecordBatch>; 2],
        run: &BatchRun,
    ) -> DfResult<Vec<RecordBatch>> {
        let mut left = self.sides[0].kept(partition);
        let mut right = self.sides[1].kept(partition);
        let before: [Timestamp; 2] = std::array::from_fn(|side| run.watermark_before(&self.mark(side)));
        let mut out = Vec::new();
        let [of_left, of_right] = new;
        let incoming = [
            self.ready((0, partition), of_left, before, &mut left, run)?,
            self.ready((1, partition), of_right, before, &mut right, run)?,
        ];
        let now = self.watermarks([&left.store, &right.store], [&incoming[0], &incoming[1]], run);
        for side in [0, 1] {
            let Some(of) = &self.sides[side].plan.given else { continue };
            let at = of.own.now(run).min(Timestamp(now[1 - side].0.saturating_sub(of.wait)));
            if at.0 > -FAR {
                run.move_watermark(&super::given(&self.name, side), at);
            }
        }
        // The smaller side is taken in whole, so that the larger one can meet it.
        let first = usize::from(incoming[0].len() > incoming[1].len());
        let stores = [&mut left.store, &mut right.store];
        let [mut a, mut b] = incoming;
        if first == 1 {
            std::mem::swap(&mut a, &mut b);
        }
        let mut met: [Vec<At>; 2] = [Vec::new(), Vec::new()];
        met[1 - first] = self.meet(first, &mut a, stores[1 - first], &mut out)?;
        let chunk = stores[first].insert(a);
        let again = self.meet(1 - first, &mut b, stores[first], &mut out)?;
        // Of the rows taken in just now the delta tells anyway.
        met[first] = again.into_iter().filter(|(at, _)| Some(*at) != chunk).collect();
        let waits: Vec<u32> =
            (0_u32..).zip(&b.until).filter(|(_, until)| **until >= now[first].0).map(|(at, _)| at).collect();
        let alone: Vec<u32> = (0_u32..)
            .zip(b.matched.iter().zip(&b.until))
            .filter(|(_, (matched, until))| !**matched && **until < now[first].0)
            .map(|(at, _)| at)
            .collect();
        if !alone.is_empty() {
            out.push(self.with_nulls(1 - first, &b.take(&alone)?)?);
        }
        let mut deltas: [Vec<RecordBatch>; 2] = [Vec::new(), Vec::new()];
        let mut brought = [0; 2];
        if let Some(chunk) = chunk {
            let staying = stores[first].staying(chunk, now[1 - first].0);
            brought[first] = staying.len();
            met[first].extend(staying);
        }
        for side in [0, 1] {
            if !met[side].is_empty() {
                let rows = stores[side].rows_at(&met[side])?;
                deltas[side].push(self.sides[side].stored(&rows)?);
            }
        }
        brought[1 - first] = waits.len();
        if !waits.is_empty() {
            let rows = if waits.len() == b.len() { b } else { b.take(&waits)? };
            deltas[1 - first].push(self.sides[1 - first].stored(&rows)?);
            stores[1 - first].insert(rows);
        }
        for side in [0, 1] {
            let alone = stores[side].expire(now[1 - side].0);
            if !alone.is_empty() {
                out.push(self.with_nulls(side, &stores[side].rows_at(&alone)?)?);
            }
            stores[side].tidy()?;
        }
        let [of_left, of_right] = deltas;
        left.delta = Some((run.batch.id, of_left, brought[0]));
        right.delta = Some((run.batch.id, of_right, brought[1]));
        Ok(out)
    }

    /// The new rows of a side that are in time, ready to be joined.
    fn ready(
        &self,
        (side, partition): (usize, usize),
        new: Vec<RecordBatch>,
        before: [Timestamp; 2],
        kept: &mut Kept,
        run: &BatchRun,
    ) -> DfResult<Incoming> {
        // Rows that came back with a restored state and had gone before it was kept.
        kept.store.expire(before[1 - side].0);
        let plan = &self.sides[side].plan;
        let rows = match <[RecordBatch; 1]>::try_from(new) {
            Ok([rows]) => rows,
            Err(rows) => arrow_select::concat::concat_batches(&plan.schema, &rows)?,
        };
        let rows = self.in_time(side, rows, before[side], run)?;
        let rows = plan.prepare(rows, self.sides[side].ids(partition, kept.next))?;
        kept.next += rows.len() as u64;
        Ok(rows)
    }

    /// The watermarks of both sides after this batch.
    fn watermarks(&self, stores: [&Store; 2], new: [&Incoming; 2], run: &BatchRun) -> [Timestamp; 2] {
        std::array::from_fn(|side| {
            let mark = self.mark(side);
            if let Some((_, time)) = &self.sides[side].plan.time {
                run.move_watermark(&mark, time.now(run));
                let waiting = &self.sides[1 - side].plan;
                if run.batch.is_end() && waiting.until.is_some() {
                    // Nothing more comes: no row waits any longer.
                    let last = stores[1 - side].last().max(new[1 - side].until.iter().copied().max());
                    if let Some(last) = last {
                        run.move_watermark(&mark, Timestamp(last.saturating_add(1)));
                    }
                }
            }
            run.watermark_now(&mark)
        })
    }

    /// The rows that are not late; the others are set aside.
    fn in_time(&self, side: usize, rows: RecordBatch, before: Timestamp, run: &BatchRun) -> DfResult<RecordBatch> {
        let Some((column, time)) = &self.sides[side].plan.time else { return Ok(rows) };
        if rows.num_rows() == 0 {
            return Ok(rows);
        }
        let latest = time.latest(run);
        let times = micros(rows.column(*column))?;
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let keep: BooleanArray =
            times.iter().map(|time| Some(time.is_none_or(|time| (before.0..=latest.0).contains(&time)))).collect();
        if keep.true_count() == rows.num_rows() {
            return Ok(rows);
        }
        let others = arrow_select::filter::filter_record_batch(&rows, &arrow_not(&keep))?;
        let their = arrow_select::filter::filter(times, &arrow_not(&keep))?;
        let late = Late {
            stream: time.stream.clone(),
            operator: self.mark(side),
            column: rows.schema().field(*column).name().clone(),
            place: self.sides[side].plan.place.clone(),
            is_aside: false,
        };
        late.set_aside(run, &others, their.as_primitive(), latest);
        Ok(arrow_select::filter::filter_record_batch(&rows, &keep)?)
    }

    /// Joins the new rows of `side` with the kept ones of the other; gives the kept ones that met their first partner.
    fn meet(&self, side: usize, new: &mut Incoming, kept: &mut Store, out: &mut Vec<RecordBatch>) -> DfResult<Vec<At>> {
        let (mut met, mut pairs) = (Vec::new(), Pairs::default());
        if kept.live() == 0 {
            return Ok(met);
        }
        for row in 0..new.len() {
            if new.keyed[row] {
                kept.find(new.hashes[row], |at| {
                    pairs.kept.push(at);
                    pairs.new.push(u32::try_from(row).unwrap_or(u32::MAX));
                });
            }
            if pairs.new.len() >= PAIRS {
                self.flush(side, new, kept, &mut pairs, &mut met, out)?;
            }
        }
        self.flush(side, new, kept, &mut pairs, &mut met, out)?;
        Ok(met)
    }

    /// Gives the pairs that fulfil the condition.
    fn flush(
        &self,
        side: usize,
        new: &mut Incoming,
        kept: &mut Store,
        pairs: &mut Pairs,
        met: &mut Vec<At>,
        out: &mut Vec<RecordBatch>,
    ) -> DfResult<()> {
        let Pairs { kept: mut places, new: mut rows } = std::mem::take(pairs);
        if places.is_empty() {
            return Ok(());
        }
        let width = self.sides[0].plan.schema.fields().len();
        let column = |at: usize, places: &[At], rows: &UInt32Array| -> DfResult<ArrayRef> {
            let (of, at) = if at < width { (0, at) } else { (1, at - width) };
            if of == side {
                Ok(arrow_select::take::take(new.rows.column(at), rows, None)?)
            } else {
                kept.gather(at, places)
            }
        };
        let new_rows = UInt32Array::from(rows.clone());
        let columns =
            self.condition.columns.iter().map(|at| column(*at, &places, &new_rows)).collect::<DfResult<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(places.len()));
        let looked = RecordBatch::try_new_with_options(Arc::clone(&self.condition.schema), columns, &options)?;
        let holds = self.condition.expr.evaluate(&looked)?.into_array(places.len())?;
        let holds =
            holds.as_boolean_opt().ok_or_else(|| external(Error::internal("a join's condition is no condition")))?;
        let mut at = 0;
        let mut holding = || {
            at += 1;
            holds.is_valid(at - 1) && holds.value(at - 1)
        };
        let flags: Vec<bool> = (0..places.len()).map(|_| holding()).collect();
        let mut flag = flags.iter();
        places.retain(|_| *flag.next().unwrap_or(&false));
        let mut flag = flags.iter();
        rows.retain(|_| *flag.next().unwrap_or(&false));
        if places.is_empty() {
            return Ok(());
        }
        let new_rows = UInt32Array::from(rows.clone());
        let columns =
            (0..self.schema.fields().len()).map(|at| column(at, &places, &new_rows)).collect::<DfResult<Vec<_>>>()?;
        out.push(RecordBatch::try_new(Arc::clone(&self.schema), columns)?);
        if !new.matched.is_empty() {
            rows.iter().for_each(|row| new.matched[*row as usize] = true);
        }
        met.extend(places.into_iter().filter(|at| kept.mark(*at)));
        Ok(())
    }

    /// Rows of one side, with NULLs for the other.
    fn with_nulls(&self, side: usize, rows: &Incoming) -> DfResult<RecordBatch> {
        let width = self.sides[0].plan.schema.fields().len();
        let columns = self.schema.fields().iter().enumerate().map(|(at, field)| match (at < width, side) {
            (true, 0) => Arc::clone(rows.rows.column(at)),
            (false, 1) => Arc::clone(rows.rows.column(at - width)),
            _ => new_null_array(field.data_type(), rows.len()),
        });
        let columns = columns.collect();
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}

fn arrow_not(mask: &BooleanArray) -> BooleanArray {
    mask.iter().map(|value| value.map(|value| !value)).collect()
}
