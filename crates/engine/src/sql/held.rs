//! The groups of an aggregate without a window, with their states and results as they stand.
//!
//! ```text
//! partial rows of the batch ─► their groups' states ─► their groups' results
//!                               (states of others lie where they lay)
//! ```
//!
//! A batch costs the groups that it changes: their states are merged with what
//! came, and their results computed anew. The whole result is put together of the
//! results that are there, only for who wants it whole: where only changed groups are given, their
//! results are not held. Counts of DISTINCT values
//! number the pairs of group and value, so that a value is looked up once when it
//! comes and never again; where there is no memory for that, they are lists as others' states.
//!
//! Invariant: what it gives of a group is what `Final` gives of the group's rows.
//! It is made of the state's rows after a start. Without such counts its states are all
//! that is kept; with them the rows are kept beside it, which have the values in lists.
//! Where they are all that is kept, groups that have had no news for longest may lie on disk
//! ([`rest`]), and a snapshot is given in turn ([`aside`]). Called by [`super::state`].

mod aside;
mod rest;

use self::{aside::Aside, rest::Rest};
use super::{groups::Groups, state::Layout, table::Table, times::Emit};
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, UInt32Array, cast::AsArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::{
    common::{Result as DfResult, internal_err},
    logical_expr::{EmitTo, GroupsAccumulator},
    physical_expr::{GroupsAccumulatorAdapter, aggregate::AggregateFunctionExpr},
};
use std::{fmt, sync::Arc};

/// What is kept of an aggregate.
enum Kept {
    /// Its states, in the table from this column on.
    States(usize),
    /// The pairs of group and value.
    Pairs(Pairs),
}

/// Distinct values of groups.
struct Pairs {
    seen: Groups,
    counts: Vec<i64>,
}

/// An aggregate, and where its states are in partial rows.
struct Aggregate {
    function: Arc<AggregateFunctionExpr>,
    first: usize,
    width: usize,
    kept: Kept,
}

/// What the groups give.
enum Results {
    /// All of them, where the whole result is given.
    All(Table),
    /// Those that the last batch changed, as it changed them, where no others are asked for.
    Changed(RecordBatch),
}

/// What is held.
pub(super) struct Held {
    keys: usize,
    groups: Groups,
    aggregates: Vec<Aggregate>,
    states: Table,
    results: Results,
    /// Where a group is among those of a batch; all [`NOWHERE`] between two.
    places: Vec<u32>,
    /// The columns of the state, and of the results.
    kept: SchemaRef,
    shown: SchemaRef,
    rest: Rest,
    aside: Option<Aside>,
}

const NOWHERE: u32 = u32::MAX;

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} groups", self.len())
    }
}

impl Held {
    /// For rows of this layout, when they have groups.
    pub(super) fn of(layout: &Layout) -> DfResult<Option<Self>> {
        Self::new(layout, true)
    }

    /// The same, with the lists of distinct values as the states that they are: each is read and written whole when
    /// its group changes, and can lie on disk.
    pub(super) fn without_pairs(layout: &Layout) -> DfResult<Option<Self>> {
        Self::new(layout, false)
    }

    fn new(layout: &Layout, by_pairs: bool) -> DfResult<Option<Self>> {
        if layout.keys == 0 || layout.window.is_some() || layout.aggregates.is_empty() {
            return Ok(None);
        }
        let columns = |from: usize, to: usize| layout.kept.fields()[from..to].to_vec();
        let (mut aggregates, mut fields, mut first) = (Vec::new(), Vec::new(), layout.keys);
        for function in &layout.aggregates {
            let width = function.state_fields()?.len();
            let kept = match layout.kept.field(first).data_type() {
                DataType::List(value)
                    if by_pairs && function.is_distinct() && is_plain(function, value.data_type()) =>
                {
                    let group = Field::new("group", DataType::UInt32, false);
                    let value = Field::new("value", value.data_type().clone(), true);
                    Kept::Pairs(Pairs {
                        seen: Groups::new(Arc::new(Schema::new(vec![group, value])))?,
                        counts: Vec::new(),
                    })
                }
                _ => {
                    let at = fields.len();
                    fields.extend(columns(first, first + width));
                    Kept::States(at)
                }
            };
            aggregates.push(Aggregate { function: Arc::clone(function), first, width, kept });
            first += width;
        }
        let can_rest = aggregates.iter().all(|aggregate| matches!(aggregate.kept, Kept::States(_)));
        Ok(Some(Self {
            keys: layout.keys,
            groups: Groups::new(Arc::new(Schema::new(columns(0, layout.keys))))?,
            aggregates,
            states: Table::new(Arc::new(Schema::new(fields))),
            results: match layout.timing.emit {
                Emit::Update => Results::Changed(RecordBatch::new_empty(layout.show.schema())),
                Emit::Append | Emit::Complete => Results::All(Table::new(layout.show.schema())),
            },
            shown: layout.show.schema(),
            places: Vec::new(),
            rest: Rest::new(can_rest.then_some(&layout.kept)),
            kept: Arc::clone(&layout.kept),
            aside: None,
        }))
    }

    /// Takes partial rows. The groups that they are of.
    pub(super) fn add(&mut self, came: &[RecordBatch]) -> DfResult<Vec<u32>> {
        if came.iter().all(|rows| rows.num_rows() == 0) {
            return Ok(Vec::new());
        }
        let known = self.groups.len();
        let numbers = |rows: &RecordBatch| self.groups.number(&rows.columns()[..self.keys]);
        let numbers = came.iter().map(numbers).collect::<DfResult<Vec<_>>>()?;
        self.fetch(known)?;
        self.places.resize(self.groups.len(), NOWHERE);
        let mut touched: Vec<u32> = Vec::new();
        let mut place = |group: u32, touched: &mut Vec<u32>| {
            let place = &mut self.places[group as usize];
            if *place == NOWHERE {
                *place = u32::try_from(touched.len()).unwrap_or(NOWHERE);
                touched.push(group);
            }
            *place as usize
        };
        // Groups count from their first block on: an accumulator takes every group below the total for seen.
        // So those that have a state come first, with it.
        for group in numbers.iter().flatten().filter(|group| self.states.has(**group)) {
            place(*group, &mut touched);
        }
        let old = touched.len();
        let mut blocks = Vec::with_capacity(came.len());
        for numbers in &numbers {
            let of_block: Vec<usize> = numbers.iter().map(|group| place(*group, &mut touched)).collect();
            blocks.push((of_block, touched.len()));
        }
        for group in &touched {
            self.places[*group as usize] = NOWHERE;
        }
        // When all count distinct values, there are no states.
        let none = self.states.schema().fields().is_empty();
        let before = if none {
            RecordBatch::new_empty(Arc::clone(self.states.schema()))
        } else {
            self.states.of(&touched[..old])?
        };
        self.set_aside(&touched[..old], &before)?;
        self.rest.touched.touch(&touched, self.groups.len());
        let all: Vec<usize> = (0..touched.len()).collect();
        let mut states = Vec::new();
        let mut results = self.groups.of(&touched)?;
        for aggregate in &mut self.aggregates {
            let of = |rows: &RecordBatch| rows.columns()[aggregate.first..aggregate.first + aggregate.width].to_vec();
            let at = match &mut aggregate.kept {
                Kept::Pairs(pairs) => {
                    for (rows, numbers) in came.iter().zip(&numbers) {
                        pairs.add(numbers, rows.column(aggregate.first))?;
                    }
                    results.push(pairs.of(&touched));
                    continue;
                }
                Kept::States(at) => *at,
            };
            let mut sums = accumulator(&aggregate.function)?;
            if old > 0 {
                sums.merge_batch(&before.columns()[at..at + aggregate.width], &all[..old], old)?;
            }
            for (rows, (of_block, total)) in came.iter().zip(&blocks) {
                sums.merge_batch(&of(rows), of_block, *total)?;
            }
            let merged = sums.state(EmitTo::All)?;
            results.push(evaluated(&aggregate.function, &merged, touched.len())?);
            states.extend(merged);
        }
        if !none {
            self.states.put(touched.clone(), RecordBatch::try_new(Arc::clone(self.states.schema()), states)?)?;
        }
        let given = RecordBatch::try_new(Arc::clone(&self.shown), results)?;
        match &mut self.results {
            Results::All(results) => results.put(touched.clone(), given)?,
            Results::Changed(last) => *last = given,
        }
        Ok(touched)
    }

    /// Whether it has all that there is to keep, so that the rows which came need not be.
    pub(super) fn is_all(&self) -> bool {
        self.aggregates.iter().all(|aggregate| matches!(aggregate.kept, Kept::States(_)))
    }

    /// How many groups there are.
    pub(super) fn len(&self) -> usize {
        self.groups.len() + self.at_rest()
    }

    /// The rows of the state, one a group, when it has all of it.
    pub(super) fn kept(&self) -> DfResult<Vec<RecordBatch>> {
        let rows = |(groups, states): (Vec<u32>, RecordBatch)| self.rows(&groups, &states);
        let mut all = self.states.all_owned()?.into_iter().map(rows).collect::<DfResult<Vec<_>>>()?;
        self.each_at_rest(&mut |rows| {
            all.push(rows);
            Ok(())
        })?;
        Ok(all)
    }

    /// Rows of the state of these groups and their states.
    fn rows(&self, groups: &[u32], states: &RecordBatch) -> DfResult<RecordBatch> {
        let mut columns = self.groups.of(groups)?;
        columns.extend(states.columns().iter().cloned());
        Ok(RecordBatch::try_new(Arc::clone(&self.kept), columns)?)
    }

    /// The results of these groups, as `Final` gives them: those that the last batch changed, in the order in which
    /// [`Self::add`] gave them.
    pub(super) fn results(&self, groups: &[u32]) -> DfResult<RecordBatch> {
        match &self.results {
            Results::All(results) => results.of(groups),
            Results::Changed(last) if last.num_rows() == groups.len() => Ok(last.clone()),
            Results::Changed(_) => internal_err!("the results of groups that the last batch did not change"),
        }
    }

    /// The results of all groups.
    pub(super) fn all(&self) -> DfResult<Vec<RecordBatch>> {
        let Results::All(results) = &self.results else {
            return internal_err!("the results of all groups where those that change are given");
        };
        let mut all = results.all()?;
        self.each_at_rest(&mut |rows| {
            let mut columns = rows.columns()[..self.keys].to_vec();
            for aggregate in &self.aggregates {
                let states = &rows.columns()[aggregate.first..aggregate.first + aggregate.width];
                columns.push(evaluated(&aggregate.function, states, rows.num_rows())?);
            }
            all.push(RecordBatch::try_new(Arc::clone(&self.shown), columns)?);
            Ok(())
        })?;
        Ok(all)
    }

    /// Bytes that it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        let pairs = self.aggregates.iter().map(|aggregate| match &aggregate.kept {
            Kept::Pairs(pairs) => pairs.seen.bytes() + pairs.counts.capacity() * size_of::<i64>(),
            Kept::States(_) => 0,
        });
        let aside = self.aside.as_ref().map_or(0, |aside| aside.turns.bytes());
        let places = self.places.capacity() * size_of::<u32>();
        let results = match &self.results {
            Results::All(results) => results.bytes(),
            Results::Changed(_) => 0,
        };
        let tables = self.groups.bytes() + self.states.bytes() + results;
        tables + places + pairs.sum::<usize>() + self.rest.touched.bytes() + aside
    }
}

/// What an aggregate gives of the states of so many groups, one of each.
fn evaluated(function: &Arc<AggregateFunctionExpr>, states: &[ArrayRef], groups: usize) -> DfResult<ArrayRef> {
    let all: Vec<usize> = (0..groups).collect();
    let mut last = accumulator(function)?;
    last.merge_batch(states, &all, groups)?;
    last.evaluate(EmitTo::All)
}

/// Whether an aggregate counts the distinct values of a list of such, and equal ones are the same bits.
fn is_plain(function: &AggregateFunctionExpr, value: &DataType) -> bool {
    let is_same = value.is_integer()
        || matches!(value, DataType::Utf8 | DataType::Boolean | DataType::Date32 | DataType::Timestamp(..));
    function.fun().name() == "count" && is_same
}

fn accumulator(function: &Arc<AggregateFunctionExpr>) -> DfResult<Box<dyn GroupsAccumulator>> {
    if function.groups_accumulator_supported() {
        return function.create_groups_accumulator();
    }
    let function = Arc::clone(function);
    Ok(Box::new(GroupsAccumulatorAdapter::new(move || function.create_accumulator())))
}

impl Pairs {
    /// Takes the values of groups: a list of each row.
    fn add(&mut self, groups: &[u32], lists: &ArrayRef) -> DfResult<()> {
        let lists = lists.as_list::<i32>();
        if lists.null_count() == lists.len() {
            return Ok(());
        }
        let owners = groups.iter().zip(lists.value_offsets().windows(2)).enumerate();
        let owners = owners.flat_map(|(row, (group, offsets))| {
            let values = if lists.is_null(row) { 0 } else { offsets[1] - offsets[0] };
            std::iter::repeat_n(*group, usize::try_from(values).unwrap_or_default())
        });
        let mut owners: Vec<u32> = owners.collect();
        let mut values = arrow_select::concat::concat(
            &lists.iter().flatten().collect::<Vec<_>>().iter().map(AsRef::as_ref).collect::<Vec<&dyn Array>>(),
        )?;
        if values.null_count() > 0 {
            let valid = arrow_array::BooleanArray::from_iter((0..values.len()).map(|at| Some(values.is_valid(at))));
            values = arrow_select::filter::filter(&values, &valid)?;
            owners = owners
                .into_iter()
                .zip(valid.iter())
                .filter(|(_, valid)| *valid == Some(true))
                .map(|(o, _)| o)
                .collect();
        }
        let before = self.seen.len();
        let pairs = self.seen.number(&[Arc::new(UInt32Array::from(owners.clone())) as ArrayRef, values])?;
        // New ones have the numbers that follow, in the order of their rows.
        let mut next = before;
        for (owner, pair) in owners.iter().zip(pairs) {
            if pair as usize == next {
                next += 1;
                let owner = *owner as usize;
                if self.counts.len() <= owner {
                    self.counts.resize(owner + 1, 0);
                }
                self.counts[owner] += 1;
            }
        }
        Ok(())
    }

    fn of(&self, groups: &[u32]) -> ArrayRef {
        let count = |group: &u32| self.counts.get(*group as usize).copied().unwrap_or_default();
        Arc::new(Int64Array::from_iter_values(groups.iter().map(count)))
    }
}
