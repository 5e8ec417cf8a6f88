//! One side of a join: how its rows are made ready, and its state.
//!
//! The state's rows are the side's columns; where a row without a partner is
//! given with NULLs there are two more in front, `_id` and `_matched`, and a
//! row that got its first partner is written again under its number. Rows without
//! numbers can't be told apart, so those that are kept again are marked, and each
//! that was there before its round is given once in it. Rows whose time is over
//! leave by the watermark alone, which the ledger keeps: a restored state lets them
//! go again, and gives none of them twice.

use super::store::{Incoming, Store};
use crate::{
    record::partition_of,
    sql::progress::{Time, micros},
    state::{StateOperator, Swept, Version},
};
use arrow_array::{
    Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, UInt64Array,
    cast::AsArray,
    types::{TimestampMicrosecondType, UInt64Type},
};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::{
    common::{
        Result as DfResult,
        hash_utils::{RandomState, create_hashes},
    },
    physical_expr::PhysicalExpr,
};
use parking_lot::{Mutex, MutexGuard};
use std::{collections::HashMap, sync::Arc};
use tidemill_core::{BatchId, Error, Result};
use tidemill_store::state::Again;

/// How rows of a side are read.
#[derive(Debug)]
pub(super) struct SidePlan {
    pub(super) schema: SchemaRef,
    pub(super) keys: Vec<Arc<dyn PhysicalExpr>>,
    /// The last time at which the other side's row may come; `None`: any time.
    pub(super) until: Option<Arc<dyn PhysicalExpr>>,
    /// The column by which the side's rows are late, when the other side waits for it: its place.
    pub(super) time: Option<(usize, Time)>,
    /// Places of the columns of offset and partition, where the rows have them.
    pub(super) place: Vec<usize>,
    /// Whether a row without a partner is given with NULLs.
    pub(super) preserved: bool,
    /// How far joined rows have come by a time of this side, where that is known.
    pub(super) given: Option<Given>,
}

/// A time of a side's rows in what the join gives: a row that is to come is either new, and not before the side's own
/// watermark, or kept, and then waits until the other side's watermark is past its time plus `wait`.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) own: Time,
    /// Microseconds.
    pub(super) wait: i64,
}

impl SidePlan {
    /// The hash of each row's key, and its columns.
    pub(super) fn hashes(&self, rows: &RecordBatch) -> DfResult<(Vec<u64>, Vec<ArrayRef>)> {
        let count = rows.num_rows();
        let keys =
            self.keys.iter().map(|key| key.evaluate(rows)?.into_array(count)).collect::<DfResult<Vec<ArrayRef>>>()?;
        let mut hashes = vec![0; count];
        create_hashes(&keys, &RandomState::with_seed(0), &mut hashes)?;
        Ok((hashes, keys))
    }

    /// Rows with what the join asks of them, and their numbers if it asks for those.
    pub(super) fn prepare(&self, rows: RecordBatch, ids: impl Iterator<Item = u64>) -> DfResult<Incoming> {
        let count = rows.num_rows();
        let (hashes, keys) = self.hashes(&rows)?;
        let mut keyed = vec![true; count];
        for nulls in keys.iter().filter_map(|key| key.logical_nulls()) {
            keyed.iter_mut().zip(nulls.iter()).for_each(|(keyed, valid)| *keyed &= valid);
        }
        let until = match &self.until {
            None => vec![i64::MAX; count],
            Some(until) => {
                let until = micros(&until.evaluate(&rows)?.into_array(count)?)?;
                let until = until.as_primitive::<TimestampMicrosecondType>();
                // What has no time has no partner to wait for.
                until.iter().map(|until| until.unwrap_or(i64::MIN)).collect()
            }
        };
        let (matched, ids) =
            if self.preserved { (vec![false; count], ids.take(count).collect()) } else { (vec![], vec![]) };
        Ok(Incoming { rows, hashes, keyed, until, matched, ids })
    }
}

/// What a side has in memory.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) store: Store,
    /// The number of the next row, of those that this partition gives.
    pub(super) next: u64,
    /// What a batch changed, and how many of the kept rows it brought: the last ones.
    pub(super) delta: Option<(BatchId, Vec<RecordBatch>, usize)>,
    /// The same number once the delta was taken: a sweep that begins now has no need of them.
    new: usize,
}

impl Kept {
    fn empty(schema: &SchemaRef) -> Self {
        Self { store: Store::new(Arc::clone(schema)), next: 0, delta: None, new: 0 }
    }
}

/// The state of one side, by partition of the key.
#[derive(Debug)]
pub(super) struct SideState {
    name: String,
    pub(super) plan: Arc<SidePlan>,
    schema: SchemaRef,
    kept: Vec<Mutex<Kept>>,
}

impl SideState {
    pub(super) fn new(name: String, plan: SidePlan, partitions: usize) -> Self {
        let mut fields = Vec::new();
        if plan.preserved {
            fields.push(Arc::new(Field::new("_id", DataType::UInt64, false)));
            fields.push(Arc::new(Field::new("_matched", DataType::Boolean, false)));
        }
        fields.extend(plan.schema.fields().iter().cloned());
        Self::of(name, Arc::new(plan), Arc::new(Schema::new(fields)), partitions.max(1))
    }

    fn of(name: String, plan: Arc<SidePlan>, schema: SchemaRef, partitions: usize) -> Self {
        let kept = (0..partitions).map(|_| Mutex::new(Kept::empty(&plan.schema))).collect();
        Self { name, plan, schema, kept }
    }

    /// How many partitions there are.
    pub(super) fn partitions(&self) -> usize {
        self.kept.len()
    }

    /// What partition `partition` has.
    pub(super) fn kept(&self, partition: usize) -> MutexGuard<'_, Kept> {
        self.kept[partition].lock()
    }

    /// Numbers of the rows that come to a partition, when `next` have: those of other partitions are others.
    pub(super) fn ids(&self, partition: usize, next: u64) -> impl Iterator<Item = u64> + use<> {
        let count = self.kept.len() as u64;
        (next..).map(move |number| number * count + partition as u64)
    }

    /// Rows as they are on disk.
    pub(super) fn stored(&self, rows: &Incoming) -> DfResult<RecordBatch> {
        let mut columns: Vec<ArrayRef> = Vec::new();
        if self.plan.preserved {
            columns.push(Arc::new(UInt64Array::from(rows.ids.clone())));
            columns.push(Arc::new(BooleanArray::from(rows.matched.clone())));
        }
        columns.extend(rows.rows.columns().iter().cloned());
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }

    fn read(&self, versions: &[Version]) -> DfResult<Vec<Kept>> {
        let mut kept: Vec<Kept> = (0..self.partitions()).map(|_| Kept::empty(&self.plan.schema)).collect();
        let since = versions.iter().rposition(|version| version.whole).unwrap_or(0);
        let stored: Vec<&RecordBatch> =
            versions[since..].iter().flat_map(|v| &v.rows).filter(|rows| rows.num_rows() > 0).collect();
        // The last that was written of a row holds.
        let mut matched: HashMap<u64, bool> = HashMap::new();
        if self.plan.preserved {
            for rows in &stored {
                let ids = rows.column(0).as_primitive::<UInt64Type>();
                matched
                    .extend(ids.values().iter().zip(rows.column(1).as_boolean()).map(|(id, m)| (*id, m == Some(true))));
            }
        }
        let next = matched.keys().max().map_or(0, |last| last / self.partitions() as u64 + 1);
        kept.iter_mut().for_each(|kept| kept.next = next);
        for rows in stored {
            let own = usize::from(self.plan.preserved) * 2;
            let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
            let columns = rows.columns()[own..].to_vec();
            let columns = RecordBatch::try_new_with_options(Arc::clone(&self.plan.schema), columns, &options)?;
            let mut incoming = self.plan.prepare(columns, 0..)?;
            if self.plan.preserved {
                incoming.ids = rows.column(0).as_primitive::<UInt64Type>().values().to_vec();
                let firsts: Vec<Option<bool>> = incoming.ids.iter().map(|id| matched.remove(id)).collect();
                incoming.matched = firsts.iter().map(|first| first.unwrap_or(false)).collect();
                let places: Vec<u32> =
                    (0_u32..).zip(&firsts).filter(|(_, first)| first.is_some()).map(|(at, _)| at).collect();
                incoming = incoming.take(&places)?;
            }
            let mut places: Vec<Vec<u32>> = vec![Vec::new(); kept.len()];
            for (row, hash) in (0_u32..).zip(&incoming.hashes) {
                places[partition_of(*hash, kept.len())].push(row);
            }
            for (kept, places) in kept.iter_mut().zip(places) {
                kept.store.insert(incoming.take(&places)?);
            }
        }
        kept.iter_mut().try_for_each(|kept| kept.store.tidy())?;
        Ok(kept)
    }
}

impl StateOperator for SideState {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "join"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn restore(&self, versions: &[Version]) -> Result<()> {
        let kept = self
            .read(versions)
            .map_err(|e| Error::user(format!("the state of `{}` has other columns", self.name)).because(e))?;
        for (old, kept) in self.kept.iter().zip(kept) {
            *old.lock() = kept;
        }
        Ok(())
    }

    fn delta(&self, batch: BatchId) -> Result<Vec<RecordBatch>> {
        let mut out = Vec::new();
        for kept in &self.kept {
            let mut kept = kept.lock();
            let delta = kept.delta.take_if(|(of, ..)| *of == batch).map(|(_, rows, new)| (rows, new));
            let (rows, new) = delta.unwrap_or_default();
            kept.new = new;
            out.extend(rows);
        }
        Ok(out)
    }

    fn sweeps(&self) -> bool {
        true
    }

    fn marks(&self) -> Option<Again> {
        Some(Again::Once)
    }

    fn sweep(&self, rows: usize, begin: bool) -> Result<Swept> {
        let (mut left, mut out, mut whole) = (rows, Vec::new(), true);
        for kept in &self.kept {
            let kept = &mut *kept.lock();
            if begin {
                kept.store.begin_sweep(kept.new);
            }
            let (places, all) = kept.store.sweep(left);
            (left, whole) = (left - places.len(), whole && all);
            if !places.is_empty() {
                let rows = kept.store.rows_at(&places).and_then(|rows| self.stored(&rows));
                out.push(rows.map_err(|e| Error::internal(format!("the state of `{}`", self.name)).because(e))?);
            }
        }
        Ok(Swept { rows: out, whole })
    }

    fn snapshot(&self) -> Result<Vec<RecordBatch>> {
        let all = |kept: &Mutex<Kept>| kept.lock().store.all()?.map(|rows| self.stored(&rows)).transpose();
        let rows: DfResult<Vec<Option<RecordBatch>>> = self.kept.iter().map(all).collect();
        rows.map(|rows| rows.into_iter().flatten().collect())
            .map_err(|e| Error::internal(format!("the state of `{}`", self.name)).because(e))
    }

    fn rows(&self) -> usize {
        self.kept.iter().map(|kept| kept.lock().store.live()).sum()
    }

    fn fresh(&self) -> Option<Arc<dyn StateOperator>> {
        Some(Arc::new(Self::of(self.name.clone(), Arc::clone(&self.plan), Arc::clone(&self.schema), 1)))
    }
}
