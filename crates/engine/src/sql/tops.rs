//! The first rows of each key as they stand: a batch costs its rows, and the keys that it changes.
//!
//! ```text
//! row ─► number of its key ─► the key's rows in order   5 > 3 > 3 > 1
//!                             4 comes: 5 > 4 > 3 > 3, and 1 is let go
//! ```
//!
//! Rows are kept in a [`Table`], each with its place among those of its key, which is what
//! the window function would number it. So the plan above needs neither to sort nor to number:
//! it is fed the rows with their numbers. Of rows that are equal in order the one that came
//! first is first.
//!
//! Invariant: rows that were put again in the order in which they were kept, those that were let go
//! among them or not, make the same state. So a delta is the batch's rows that stayed, and a snapshot the
//! rows key by key, each key's in order. Keys that have had no better row for longest may lie on disk
//! ([`rest`]). Called by [`super::state`].

mod rest;

use self::rest::Rest;
use super::{
    groups::Groups,
    rows::Relabel,
    state::Layout,
    table::Table,
    tables::{fed, kernel_of},
    turns::Turns,
};
use crate::state::disk_rows::SeenRows;
use arrow_array::{ArrayRef, RecordBatch, UInt32Array, UInt64Array};
use arrow_schema::{Field, Schema, SchemaRef};
use datafusion::{
    arrow::row::{RowConverter, SortField},
    common::{
        DataFusionError, Result as DfResult,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    physical_expr::{PhysicalExpr, PhysicalSortExpr, utils::collect_columns, window::WindowExpr},
    physical_plan::{
        ExecutionPlan,
        filter::FilterExec,
        projection::ProjectionExec,
        sorts::sort::SortExec,
        windows::{BoundedWindowAggExec, WindowAggExec},
    },
};
use std::{fmt, sync::Arc};

/// How rows that are equal are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Numbering {
    /// `row_number`: one after the other.
    Row,
    /// `rank`: alike, and the next as many further on.
    Rank,
    /// `dense_rank`: alike, and the next one on.
    Dense,
}

impl Numbering {
    /// By the function's name.
    pub(super) fn of(function: &str) -> Option<Self> {
        match function {
            "row_number" => Some(Self::Row),
            "rank" => Some(Self::Rank),
            "dense_rank" => Some(Self::Dense),
            _ => None,
        }
    }
}

/// Which rows are the first.
#[derive(Debug, Clone)]
pub(super) struct Ranking {
    numbering: Numbering,
    limit: usize,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    order: Vec<PhysicalSortExpr>,
    /// The rows with their numbers.
    numbered: SchemaRef,
    /// Whether a number that a key once had, it has for good, with one row.
    pub(super) stays: bool,
}

fn window(plan: &Arc<dyn ExecutionPlan>) -> Option<&Arc<dyn WindowExpr>> {
    let functions = match plan.downcast_ref::<WindowAggExec>() {
        Some(window) => window.window_expr(),
        None => plan.downcast_ref::<BoundedWindowAggExec>()?.window_expr(),
    };
    if let [function] = functions { Some(function) } else { None }
}

/// Whether there is nothing but an order between a plan and the rows of the state.
fn is_sorted(plan: &Arc<dyn ExecutionPlan>, last: &Arc<dyn ExecutionPlan>) -> bool {
    Arc::ptr_eq(plan, last)
        || plan.downcast_ref::<SortExec>().is_some_and(|sort| sort.fetch().is_none() && is_sorted(sort.input(), last))
}

impl Ranking {
    /// What numbers the rows in the plan above a state, and the plan that reads them numbered; `None`
    /// when other things stand between.
    pub(super) fn of(
        above: &Arc<dyn ExecutionPlan>,
        last: &Arc<dyn ExecutionPlan>,
        numbering: Numbering,
        limit: u64,
    ) -> DfResult<Option<(Self, Arc<dyn ExecutionPlan>)>> {
        let mut found = None;
        let beyond = Arc::clone(above).transform_down(|node| {
            let Some(function) = window(&node).filter(|_| is_sorted(node.children()[0], last)) else {
                return Ok(Transformed::no(node));
            };
            let (keys, order) = (function.partition_by().to_vec(), function.order_by().to_vec());
            found = Some((keys, order, node.schema()));
            Ok(Transformed::new(fed(&node.schema()), true, TreeNodeRecursion::Jump))
        })?;
        let Some((keys, order, numbered)) = found else { return Ok(None) };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let stays = numbering == Numbering::Row && is_by_number(&beyond.data, numbered.fields().len() - 1);
        Ok(Some((Self { numbering, limit, keys, order, numbered, stays }, beyond.data)))
    }
}

/// Whether a plan gives rows one by one, and leaves some out by their number alone.
fn is_by_number(plan: &Arc<dyn ExecutionPlan>, number: usize) -> bool {
    let [input] = plan.children()[..] else { return plan.children().is_empty() };
    let fits = match plan.downcast_ref::<FilterExec>() {
        // The rows below have the columns that they are fed.
        Some(filter) => {
            input.children().is_empty() && collect_columns(filter.predicate()).iter().all(|c| c.index() == number)
        }
        None => plan.is::<ProjectionExec>() || kernel_of::<Relabel>(plan).is_some(),
    };
    fits && is_by_number(input, number)
}

/// A row of a key.
struct Entry {
    order: Box<[u8]>,
    row: u32,
}

/// The rows that are kept.
pub(super) struct Tops {
    ranking: Ranking,
    keys: Groups,
    order: RowConverter,
    /// By number of the key, in order.
    first: Vec<Vec<Entry>>,
    rows: Table,
    /// By number of the row: its place among those of its key; 0 when it is none.
    places: Vec<u64>,
    free: Vec<u32>,
    /// Whether a key is among those that a batch changed.
    changed: Vec<bool>,
    /// Bytes of the orders of entries.
    orders: usize,
    /// Whose rows a snapshot is still to have, by number of the key, and what was on disk when it began.
    turns: Option<(Turns, Option<SeenRows>)>,
    rest: Rest,
}

/// Bytes of an allocation beside what it holds.
const ALLOCATION: usize = 16;

impl fmt::Debug for Tops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the first {} rows of {} keys", self.ranking.limit, self.first.len())
    }
}

impl Tops {
    pub(super) fn new(layout: &Layout, ranking: &Ranking) -> DfResult<Self> {
        let rows = &layout.kept;
        let key =
            |(at, key): (usize, &Arc<dyn PhysicalExpr>)| Ok(Field::new(format!("key{at}"), key.data_type(rows)?, true));
        let keys = ranking.keys.iter().enumerate().map(key).collect::<DfResult<Vec<_>>>()?;
        let kinds = keys.iter().map(|field| field.data_type().clone()).collect();
        let by = |by: &PhysicalSortExpr| Ok(SortField::new_with_options(by.expr.data_type(rows)?, by.options));
        let order = ranking.order.iter().map(by).collect::<DfResult<Vec<_>>>()?;
        Ok(Self {
            ranking: ranking.clone(),
            keys: Groups::new(Arc::new(Schema::new(keys)))?,
            order: RowConverter::new(order)?,
            first: Vec::new(),
            rows: Table::new(Arc::clone(rows)),
            places: Vec::new(),
            free: Vec::new(),
            changed: Vec::new(),
            orders: 0,
            turns: None,
            rest: Rest::new(kinds, rows.fields().iter().map(|field| field.data_type().clone())),
        })
    }

    /// How many rows are kept.
    pub(super) fn len(&self) -> usize {
        self.rows.len() + self.rest.rows
    }

    /// Bytes that they take.
    pub(super) fn bytes(&self) -> usize {
        let entries = self.rows.len() * (size_of::<Entry>() + ALLOCATION) + self.orders;
        let numbers = self.places.capacity() * size_of::<u64>() + self.free.capacity() * size_of::<u32>();
        let keys = self.first.capacity() * size_of::<Vec<Entry>>() + self.changed.capacity();
        let turns = self.turns.as_ref().map_or(0, |(turns, _)| turns.bytes()) + self.rest.touched.bytes();
        self.keys.bytes() + self.rows.bytes() + self.order.size() + entries + numbers + keys + turns
    }

    /// Takes the rows of a batch. The keys that they change, and those of the rows that are kept at its end.
    pub(super) fn add(&mut self, came: &[RecordBatch]) -> DfResult<(Vec<u32>, Vec<RecordBatch>)> {
        let (mut changed, mut gone, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for rows in came.iter().filter(|rows| rows.num_rows() > 0) {
            let known = self.keys.len();
            let keys = self.numbers(rows)?;
            self.fetch(known)?;
            kept.push(self.insert(rows, &keys, &mut changed, &mut gone)?);
            self.rest.touched.touch(&keys, self.first.len());
        }
        for key in &changed {
            self.changed[*key as usize] = false;
            self.number(*key as usize);
        }
        // What a later block let go is not there any more.
        let stayed =
            kept.into_iter().map(|rows| rows.into_iter().filter(|row| self.rows.has(*row)).collect::<Vec<_>>());
        let stayed: Vec<Vec<u32>> = stayed.filter(|rows| !rows.is_empty()).collect();
        let stayed = stayed.iter().map(|rows| self.rows.of(rows)).collect::<DfResult<Vec<_>>>()?;
        // Only now: in this batch a number is of one row.
        self.free.extend(gone);
        Ok((changed, stayed))
    }

    /// The numbers of the keys of rows.
    fn numbers(&mut self, rows: &RecordBatch) -> DfResult<Vec<u32>> {
        let of = |expr: &Arc<dyn PhysicalExpr>| expr.evaluate(rows)?.into_array(rows.num_rows());
        let keys = self.ranking.keys.iter().map(of).collect::<DfResult<Vec<ArrayRef>>>()?;
        if keys.is_empty() { Ok(vec![0; rows.num_rows()]) } else { self.keys.number(&keys) }
    }

    /// Puts rows of these keys. The numbers of those that are kept.
    fn insert(
        &mut self,
        rows: &RecordBatch,
        keys: &[u32],
        changed: &mut Vec<u32>,
        gone: &mut Vec<u32>,
    ) -> DfResult<Vec<u32>> {
        let of = |expr: &Arc<dyn PhysicalExpr>| expr.evaluate(rows)?.into_array(rows.num_rows());
        let order = self.ranking.order.iter().map(|by| of(&by.expr)).collect::<DfResult<Vec<ArrayRef>>>()?;
        let order = if order.is_empty() { None } else { Some(self.order.convert_columns(&order)?) };
        let known = keys.iter().max().map_or(0, |last| *last as usize + 1).max(self.first.len());
        self.first.resize_with(known, Vec::new);
        self.changed.resize(known, false);
        let (mut fresh, mut before) = (Vec::new(), Vec::new());
        let gone_before = gone.len();
        for (at, key) in (0_u32..).zip(keys) {
            let first = &mut self.first[*key as usize];
            let by = order.as_ref().map(|order| order.row(at as usize));
            let by = by.as_ref().map_or(&[][..], |row| row.as_ref());
            let end = first.partition_point(|entry| entry.order.as_ref() <= by);
            if behind(self.ranking.numbering, first, end, by) >= self.ranking.limit {
                continue;
            }
            if !std::mem::replace(&mut self.changed[*key as usize], true) {
                changed.push(*key);
                if let Some((turns, _)) = self.turns.as_mut().filter(|(turns, _)| turns.waits(*key)) {
                    turns.pass(*key);
                    before.extend(first.iter().map(|entry| entry.row));
                }
            }
            let row = match self.free.pop() {
                Some(row) => row,
                None => u32::try_from(self.places.len()).map_err(too_many)?,
            };
            if row as usize >= self.places.len() {
                self.places.push(0);
            }
            // Until it is numbered, so that one which is let go at once is known.
            self.places[row as usize] = u64::MAX;
            first.insert(end, Entry { order: by.into(), row });
            fresh.push((row, at));
            self.orders += by.len();
            self.orders -= let_go(self.ranking.numbering, self.ranking.limit, first, gone);
        }
        if let (Some((turns, _)), false) = (&mut self.turns, before.is_empty()) {
            turns.set_aside(self.rows.of(&before)?);
        }
        for row in &gone[gone_before..] {
            self.places[*row as usize] = 0;
            self.rows.remove(*row);
        }
        let fresh: Vec<(u32, u32)> = fresh.into_iter().filter(|(row, _)| self.places[*row as usize] > 0).collect();
        let places = UInt32Array::from_iter_values(fresh.iter().map(|(_, at)| *at));
        let kept: Vec<u32> = fresh.into_iter().map(|(row, _)| row).collect();
        let rows = arrow_select::take::take_record_batch(rows, &places)?;
        self.rows.put(kept.clone(), rows.with_schema(Arc::clone(self.rows.schema()))?)?;
        Ok(kept)
    }

    /// Numbers the rows of a key.
    fn number(&mut self, key: usize) {
        let first = &self.first[key];
        let mut number = 0;
        for (at, entry) in first.iter().enumerate() {
            let is_tied = at > 0 && first[at - 1].order == entry.order;
            number = match self.ranking.numbering {
                Numbering::Row => at as u64 + 1,
                Numbering::Rank | Numbering::Dense if is_tied => number,
                Numbering::Rank => at as u64 + 1,
                Numbering::Dense => number + 1,
            };
            self.places[entry.row as usize] = number;
        }
    }

    /// The rows of these keys with their numbers.
    pub(super) fn of(&self, keys: &[u32]) -> DfResult<Vec<RecordBatch>> {
        let rows = self.rows_of(keys);
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        Ok(vec![self.numbered(&rows, &self.rows.of(&rows)?)?])
    }

    /// All rows with their numbers.
    pub(super) fn all(&self) -> DfResult<Vec<RecordBatch>> {
        let numbered = |(numbers, rows): &(Vec<u32>, RecordBatch)| self.numbered(numbers, rows);
        let mut all = self.rows.all_owned()?.iter().map(numbered).collect::<DfResult<Vec<_>>>()?;
        self.each_at_rest(&mut |rows, numbers| {
            let mut columns = rows.columns().to_vec();
            columns.push(Arc::new(numbers));
            all.push(RecordBatch::try_new(Arc::clone(&self.ranking.numbered), columns)?);
            Ok(())
        })?;
        Ok(all)
    }

    /// All rows as they were kept, in that order.
    pub(super) fn kept(&self) -> DfResult<Vec<RecordBatch>> {
        let mut all = self.rows.all()?;
        self.each_at_rest(&mut |rows, _| {
            all.push(rows);
            Ok(())
        })?;
        Ok(all)
    }

    fn numbered(&self, numbers: &[u32], rows: &RecordBatch) -> DfResult<RecordBatch> {
        let mut columns = rows.columns().to_vec();
        columns.push(Arc::new(UInt64Array::from_iter_values(numbers.iter().map(|row| self.places[*row as usize]))));
        Ok(RecordBatch::try_new(Arc::clone(&self.ranking.numbered), columns)?)
    }
}

fn too_many(error: std::num::TryFromIntError) -> DataFusionError {
    crate::plan::external(tidemill_core::Error::user("the first rows of keys are over four billion").because(error))
}

/// How many are in front of a row that would stand at `end`, as it would be numbered.
fn behind(numbering: Numbering, first: &[Entry], end: usize, by: &[u8]) -> usize {
    match numbering {
        Numbering::Row => end,
        Numbering::Rank => first[..end].partition_point(|entry| entry.order.as_ref() < by),
        Numbering::Dense => {
            let front = &first[..first[..end].partition_point(|entry| entry.order.as_ref() < by)];
            orders(front)
        }
    }
}

/// How many different orders there are.
fn orders(first: &[Entry]) -> usize {
    first.len().min(1) + first.windows(2).filter(|pair| pair[0].order != pair[1].order).count()
}

/// Lets go of what is behind the first `limit`. Gives the bytes of their orders.
fn let_go(numbering: Numbering, limit: usize, first: &mut Vec<Entry>, gone: &mut Vec<u32>) -> usize {
    let mut bytes = 0;
    while let Some(last) = first.last() {
        let front = match numbering {
            Numbering::Row => first.len() - 1,
            Numbering::Rank => first.partition_point(|entry| entry.order < last.order),
            Numbering::Dense if first.len() <= limit => 0,
            Numbering::Dense => orders(first) - 1,
        };
        if front < limit {
            break;
        }
        if let Some(entry) = first.pop() {
            bytes += entry.order.len();
            gone.push(entry.row);
        }
    }
    bytes
}
