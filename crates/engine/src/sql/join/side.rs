//! One side of a join: how its rows are made ready, and its state.
//!
//! The state's rows are the side's columns; where a row without a partner is
//! given with NULLs there are two more in front, `_id` and `_matched`, and a
//! row that got its first partner is written again under its number. Rows whose
//! time is over leave by the watermark alone, which the ledger keeps: a restored
//! state lets them go again, and gives none of them twice.

use super::store::{Incoming, Store};
use crate::{
    sql::progress::{Time, micros},
    state::{StateOperator, Version},
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
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};
use tidemill_core::{BatchId, Error, Result};

/// How rows of a side are read.
#[derive(Debug)]
pub(super) struct SidePlan {
    pub(super) schema: SchemaRef,
    pub(super) keys: Vec<Arc<dyn PhysicalExpr>>,
    /// The last time at which the other side's row may come; `None`: any time.
    pub(super) until: Option<Arc<dyn PhysicalExpr>>,
    /// The column by which the side's rows are late, when the other side waits for it: its place.
    pub(super) time: Option<(usize, Time)>,
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
    /// Rows with what the join asks of them. `first` is the number of the first.
    pub(super) fn prepare(&self, rows: RecordBatch, first: u64) -> DfResult<Incoming> {
        let count = rows.num_rows();
        let keys =
            self.keys.iter().map(|key| key.evaluate(&rows)?.into_array(count)).collect::<DfResult<Vec<ArrayRef>>>()?;
        let mut hashes = vec![0; count];
        create_hashes(&keys, &RandomState::with_seed(0), &mut hashes)?;
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
        let (matched, ids) = if self.preserved {
            (vec![false; count], (first..first + count as u64).collect())
        } else {
            (vec![], vec![])
        };
        Ok(Incoming { rows, hashes, keyed, until, matched, ids })
    }
}

/// What a side has in memory.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) store: Store,
    /// The number of the next row.
    pub(super) next: u64,
    pub(super) delta: Option<(BatchId, Vec<RecordBatch>)>,
}

/// The state of one side.
#[derive(Debug)]
pub(super) struct SideState {
    name: String,
    pub(super) plan: SidePlan,
    schema: SchemaRef,
    pub(super) kept: Mutex<Kept>,
}

impl SideState {
    pub(super) fn new(name: String, plan: SidePlan) -> Self {
        let mut fields = Vec::new();
        if plan.preserved {
            fields.push(Arc::new(Field::new("_id", DataType::UInt64, false)));
            fields.push(Arc::new(Field::new("_matched", DataType::Boolean, false)));
        }
        fields.extend(plan.schema.fields().iter().cloned());
        let kept = Mutex::new(Kept { store: Store::new(Arc::clone(&plan.schema)), next: 0, delta: None });
        Self { name, plan, schema: Arc::new(Schema::new(fields)), kept }
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

    fn read(&self, versions: &[Version]) -> DfResult<Kept> {
        let mut kept = Kept { store: Store::new(Arc::clone(&self.plan.schema)), next: 0, delta: None };
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
        kept.next = matched.keys().max().map_or(0, |last| last + 1);
        for rows in stored {
            let own = usize::from(self.plan.preserved) * 2;
            let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
            let columns = rows.columns()[own..].to_vec();
            let columns = RecordBatch::try_new_with_options(Arc::clone(&self.plan.schema), columns, &options)?;
            let mut incoming = self.plan.prepare(columns, 0)?;
            if self.plan.preserved {
                incoming.ids = rows.column(0).as_primitive::<UInt64Type>().values().to_vec();
                let firsts: Vec<Option<bool>> = incoming.ids.iter().map(|id| matched.remove(id)).collect();
                incoming.matched = firsts.iter().map(|first| first.unwrap_or(false)).collect();
                let places: Vec<u32> =
                    (0_u32..).zip(&firsts).filter(|(_, first)| first.is_some()).map(|(at, _)| at).collect();
                incoming = incoming.take(&places)?;
            }
            kept.store.insert(incoming);
        }
        kept.store.tidy()?;
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
        *self.kept.lock() = kept;
        Ok(())
    }

    fn delta(&self, batch: BatchId) -> Result<Vec<RecordBatch>> {
        Ok(self.kept.lock().delta.take_if(|(of, _)| *of == batch).map(|(_, rows)| rows).unwrap_or_default())
    }

    fn snapshot(&self) -> Result<Vec<RecordBatch>> {
        let rows = self.kept.lock().store.all().and_then(|rows| rows.map(|rows| self.stored(&rows)).transpose());
        rows.map(|rows| rows.into_iter().collect())
            .map_err(|e| Error::internal(format!("the state of `{}`", self.name)).because(e))
    }

    fn rows(&self) -> usize {
        self.kept.lock().store.live()
    }
}
