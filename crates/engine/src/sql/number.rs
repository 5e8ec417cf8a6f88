//! Numbers of rows by key, for `COUNT_WINDOW`.
//!
//! The rows of a batch are numbered in the order of its ranges, those of a range
//! in their own order, so a batch that runs again gives the same numbers. All
//! rows go through one partition: the order is the point.
//!
//! State, under `<view>.rows`: for each key how many rows it has had; the last row of
//! a key counts.
//!
//! Invariant: the numbers of a key follow each other from 0 without a gap.
//! Made by [`super::panes`]; the windows are in [`super::keyed`].

use super::ordered::Ordered;
use crate::{
    plan::{BatchRun, Kernel, NodeInputs, Rows, external, rows_once},
    state::{StateOperator, Swept, Version},
};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, cast::AsArray, types::Int64Type};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::{
    arrow::row::{RowConverter, SortField},
    common::Result as DfResult,
};
use futures::TryStreamExt;
use parking_lot::Mutex;
use std::{fmt, sync::Arc};
use tidemill_core::{BatchId, Error, Result, Timestamp, WindowSpec};

/// Column of the state that says how many.
const COUNT: &str = "_rows";

/// Keys as bytes.
pub(super) struct Keys(Option<RowConverter>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

impl Keys {
    /// For columns of these types; without any, all rows have one key.
    pub(super) fn new<'a>(kinds: impl IntoIterator<Item = &'a DataType>) -> DfResult<Self> {
        let fields: Vec<_> = kinds.into_iter().map(|kind| SortField::new(kind.clone())).collect();
        Ok(Self(if fields.is_empty() { None } else { Some(RowConverter::new(fields)?) }))
    }

    /// Calls `each` with every row's number and key.
    pub(super) fn each(&self, columns: &[ArrayRef], count: usize, mut each: impl FnMut(usize, &[u8])) -> DfResult<()> {
        match &self.0 {
            None => (0..count).for_each(|row| each(row, &[])),
            Some(converter) => {
                let rows = converter.convert_columns(columns)?;
                (0..count).for_each(|row| each(row, rows.row(row).as_ref()));
            }
        }
        Ok(())
    }

    /// The columns of keys.
    pub(super) fn columns<'a>(&self, keys: impl IntoIterator<Item = &'a [u8]>) -> DfResult<Vec<ArrayRef>> {
        let Some(converter) = &self.0 else { return Ok(Vec::new()) };
        let parser = converter.parser();
        Ok(converter.convert_rows(keys.into_iter().map(|key| parser.parse(key)))?)
    }
}

#[derive(Debug, Default)]
struct Inner {
    counts: Ordered<i64>,
    /// The next key that the sweep gives, and the first that it need not: that came later.
    sweep: (usize, usize),
    delta: Option<(BatchId, Vec<RecordBatch>)>,
}

/// How many rows each key has had.
#[derive(Debug)]
pub(super) struct Numbers {
    name: String,
    schema: SchemaRef,
    places: Vec<usize>,
    keys: Keys,
    inner: Mutex<Inner>,
}

impl Numbers {
    /// Of rows with this schema, whose keys are at `places`.
    pub(super) fn new(name: String, rows: &SchemaRef, places: Vec<usize>) -> DfResult<Self> {
        let of_keys = places.iter().map(|place| rows.field(*place));
        let mut fields: Vec<Field> =
            of_keys.map(|f| Field::new(f.name(), f.data_type().clone(), f.is_nullable())).collect();
        let keys = Keys::new(fields.iter().map(Field::data_type))?;
        fields.push(Field::new(COUNT, DataType::Int64, false));
        Ok(Self { name, schema: Arc::new(Schema::new(fields)), places, keys, inner: Mutex::default() })
    }

    fn keys_of(&self, rows: &RecordBatch) -> Vec<ArrayRef> {
        self.places.iter().map(|place| Arc::clone(rows.column(*place))).collect()
    }

    /// Numbers the rows of a batch, in order.
    fn number(&self, batch: BatchId, blocks: &[RecordBatch]) -> DfResult<Vec<Int64Array>> {
        let inner = &mut *self.inner.lock();
        let mut changed: Vec<usize> = Vec::new();
        let mut out = Vec::with_capacity(blocks.len());
        for rows in blocks {
            let mut numbers = Vec::with_capacity(rows.num_rows());
            self.keys.each(&self.keys_of(rows), rows.num_rows(), |_, key| {
                let (at, _) = inner.counts.take(key);
                changed.push(at);
                if let Some(count) = inner.counts.value_mut(at) {
                    numbers.push(*count);
                    *count += 1;
                }
            })?;
            out.push(Int64Array::from(numbers));
        }
        changed.sort_unstable();
        changed.dedup();
        let delta = self.rows_of(changed.into_iter().flat_map(|at| inner.counts.page(at, 1)))?;
        inner.delta = Some((batch, delta));
        Ok(out)
    }

    fn rows_of<'a>(&self, counts: impl Iterator<Item = &'a (Box<[u8]>, i64)>) -> DfResult<Vec<RecordBatch>> {
        let counts: Vec<_> = counts.collect();
        if counts.is_empty() {
            return Ok(Vec::new());
        }
        let mut columns = self.keys.columns(counts.iter().map(|(key, _)| key.as_ref()))?;
        columns.push(Arc::new(Int64Array::from_iter_values(counts.iter().map(|(_, count)| *count))));
        Ok(vec![RecordBatch::try_new(Arc::clone(&self.schema), columns)?])
    }
}

impl StateOperator for Numbers {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "count_window"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn restore(&self, versions: &[Version]) -> Result<()> {
        let broken = |e| Error::user(format!("the state of `{}` has other columns", self.name)).because(e);
        let mut inner = Inner::default();
        for version in versions {
            if version.whole {
                inner.counts = Ordered::default();
            }
            for rows in &version.rows {
                let count = rows.num_columns().saturating_sub(1);
                let counts = rows.columns().get(count).and_then(|column| column.as_primitive_opt::<Int64Type>());
                let counts =
                    counts.ok_or_else(|| Error::user(format!("the state of `{}` has no counts", self.name)))?;
                self.keys
                    .each(&rows.columns()[..count], rows.num_rows(), |row, key| {
                        let (at, _) = inner.counts.take(key);
                        inner.counts.value_mut(at).into_iter().for_each(|count| *count = counts.value(row));
                    })
                    .map_err(broken)?;
            }
        }
        *self.inner.lock() = inner;
        Ok(())
    }

    fn delta(&self, batch: BatchId) -> Result<Vec<RecordBatch>> {
        Ok(self.inner.lock().delta.take_if(|(of, _)| *of == batch).map(|(_, rows)| rows).unwrap_or_default())
    }

    fn sweeps(&self) -> bool {
        true
    }

    fn sweep(&self, rows: usize, begin: bool) -> Result<Swept> {
        let inner = &mut *self.inner.lock();
        if begin {
            inner.sweep = (0, inner.counts.len());
        }
        let (from, end) = inner.sweep;
        let page = inner.counts.page(from, rows.min(end - from));
        inner.sweep.0 += page.len();
        let rows = self.rows_of(page.iter()).map_err(|e| Error::internal("numbers of rows").because(e))?;
        Ok(Swept { rows, whole: inner.sweep.0 == end })
    }

    fn snapshot(&self) -> Result<Vec<RecordBatch>> {
        let inner = self.inner.lock();
        self.rows_of(inner.counts.all().iter()).map_err(|e| Error::internal("numbers of rows").because(e))
    }

    fn rows(&self) -> usize {
        self.inner.lock().counts.len()
    }

    fn fresh(&self) -> Option<Arc<dyn StateOperator>> {
        let keys = Keys::new(self.schema.fields()[..self.places.len()].iter().map(|field| field.data_type())).ok()?;
        let (name, schema) = (self.name.clone(), Arc::clone(&self.schema));
        Some(Arc::new(Self { name, schema, places: self.places.clone(), keys, inner: Mutex::default() }))
    }
}

/// Gives rows their numbers.
#[derive(Debug)]
pub(super) struct NumberKernel {
    numbers: Arc<Numbers>,
    spec: WindowSpec,
    schema: SchemaRef,
}

impl NumberKernel {
    pub(super) fn new(numbers: Arc<Numbers>, spec: WindowSpec, schema: SchemaRef) -> Self {
        Self { numbers, spec, schema }
    }
}

impl Kernel for NumberKernel {
    fn run(&self, _partition: usize, inputs: &NodeInputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        let parts = (0..inputs.partitions(0)).map(|part| inputs.open(0, part)).collect::<DfResult<Vec<_>>>()?;
        let (numbers, spec, schema) = (Arc::clone(&self.numbers), self.spec, Arc::clone(&self.schema));
        let numbered = async move {
            let mut blocks = Vec::new();
            for part in parts {
                blocks.extend(part.try_collect::<Vec<_>>().await?);
            }
            let all = numbers.number(run.batch.id, &blocks)?;
            blocks
                .iter()
                .zip(all)
                .map(|(rows, numbers)| {
                    let panes =
                        Int64Array::from_iter_values(numbers.values().iter().map(|n| spec.pane_of(Timestamp(*n)).0));
                    let mut columns = rows.columns().to_vec();
                    columns.extend([Arc::new(panes) as ArrayRef, Arc::new(numbers)]);
                    RecordBatch::try_new(Arc::clone(&schema), columns)
                        .map_err(|e| external(Error::internal("numbered rows").because(e)))
                })
                .collect::<DfResult<Vec<_>>>()
        };
        Ok(rows_once(Arc::clone(&self.schema), numbered))
    }
}
