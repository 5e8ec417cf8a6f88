//! Answers of a table that is asked by key, as state.
//!
//! ```text
//! blocks, one a question:   12:00:01  │ 12:00:07      │ 12:00:31     ─► each goes when it is too old,
//!   rows, by key            a a b (c) │ d d d         │ e (f)           or the oldest when there are too many
//! ```
//!
//! A key without rows is an answer too, `(c)` above. What a batch learned is its
//! delta; so after a restart the same answers are known, and a batch that was
//! committed can be run again for people with the answers that it had
//! ([`StateOperator::recall`]).
//!
//! Columns on disk: the key, `_table` (a number that says which table with which
//! columns was asked: answers of another one are forgotten), `_asked` (the time of
//! the batch), `_found` (whether there was a row), then the other columns.
//!
//! Invariant: how old an answer is is measured by the times of batches, and what
//! leaves depends on nothing else than those and the order of questions. So the
//! state after a batch follows from the answers alone.

use super::Asked;
use crate::{
    plan::external,
    sql::number::Keys,
    state::{StateOperator, Version},
};
use arrow_array::{
    Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray, UInt64Array,
    cast::AsArray, new_null_array, types::TimestampMicrosecondType, types::UInt64Type,
};
use arrow_cast::CastOptions;
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow_select::{concat::concat_batches, interleave::interleave_record_batch};
use datafusion::common::Result as DfResult;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
};
use tidemill_core::{Batch, BatchId, Error, Result, Timestamp};

/// Columns of ours.
pub(super) const OWN: [&str; 3] = ["_table", "_asked", "_found"];

type Key = Box<[u8]>;

/// The rows of one key: those of a block from one place on.
#[derive(Debug, Clone, Copy)]
struct Place {
    block: u64,
    from: usize,
    count: usize,
}

/// The answers of one question, the rows of a key together.
#[derive(Debug)]
struct Block {
    at: Timestamp,
    rows: RecordBatch,
}

#[derive(Debug, Default)]
struct Known {
    blocks: VecDeque<Block>,
    /// Number of the first block.
    first: u64,
    places: HashMap<Key, Place>,
}

#[derive(Debug, Default)]
struct Inner {
    known: Known,
    /// What a batch that is run again for people had asked.
    recalled: Option<Known>,
    delta: Option<(BatchId, Vec<RecordBatch>)>,
}

/// The answers that are known.
#[derive(Debug)]
pub(super) struct Answers {
    name: String,
    pub(super) table: Arc<Asked>,
    /// Columns on disk, and for each of them the table's.
    schema: SchemaRef,
    from: Vec<Option<usize>>,
    keys: Keys,
}

/// [`Answers`] with what they are.
#[derive(Debug)]
pub(super) struct Cache {
    answers: Answers,
    inner: Mutex<Inner>,
}

impl Known {
    /// Takes the rows of a question, which are in order of their keys.
    fn push(&mut self, of: &Answers, at: Timestamp, rows: RecordBatch) -> DfResult<()> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let block = self.first + self.blocks.len() as u64;
        let mut last: Option<(Key, Place)> = None;
        of.keys.each(&of.keys_of(&rows), rows.num_rows(), |row, key| match &mut last {
            Some((of, place)) if **of == *key => place.count += 1,
            _ => {
                let place = Place { block, from: row, count: 1 };
                self.places.extend(last.replace((key.into(), place)));
            }
        })?;
        self.places.extend(last);
        self.blocks.push_back(Block { at, rows });
        Ok(())
    }

    fn pop(&mut self, of: &Answers) -> DfResult<()> {
        let Some(block) = self.blocks.pop_front() else { return Ok(()) };
        let number = self.first;
        self.first += 1;
        of.keys.each(&of.keys_of(&block.rows), block.rows.num_rows(), |_, key| {
            if self.places.get(key).is_some_and(|place| place.block == number) {
                self.places.remove(key);
            }
        })
    }

    /// Lets go of what is too old for a batch at `now`, and of the oldest while there is too much.
    fn tidy(&mut self, of: &Answers, now: Timestamp) -> DfResult<()> {
        let is_old = |block: &Block| block.at < now && now.since(block.at) >= of.table.ttl;
        while self.blocks.front().is_some_and(is_old) || self.places.len() > of.table.most {
            self.pop(of)?;
        }
        Ok(())
    }

    /// The rows of these keys as they are on disk, in the keys' order.
    fn rows<'a>(&self, keys: impl Iterator<Item = &'a Key>) -> DfResult<Option<RecordBatch>> {
        let mut numbers: BTreeMap<u64, usize> = BTreeMap::new();
        let mut blocks: Vec<&RecordBatch> = Vec::new();
        let mut places = Vec::new();
        for place in keys.filter_map(|key| self.places.get(key)) {
            let at = *numbers.entry(place.block).or_insert_with(|| {
                blocks.push(&self.blocks[usize::try_from(place.block - self.first).unwrap_or(usize::MAX)].rows);
                blocks.len() - 1
            });
            places.extend((place.from..place.from + place.count).map(|row| (at, row)));
        }
        if places.is_empty() { Ok(None) } else { Ok(Some(interleave_record_batch(&blocks, &places)?)) }
    }

    /// Rows as they were kept: a block for each question.
    fn restore(&mut self, of: &Answers, rows: &RecordBatch) -> DfResult<()> {
        let same = rows.column(of.table.key.len()).as_primitive::<UInt64Type>();
        let asked = rows.column(of.table.key.len() + 1).as_primitive::<TimestampMicrosecondType>();
        let mut from = 0;
        for to in 1..=rows.num_rows() {
            let ends =
                to == rows.num_rows() || (asked.value(to), same.value(to)) != (asked.value(from), same.value(from));
            if ends {
                // What was asked of another table, or for other columns, is nothing that is known.
                if same.value(from) == of.table.number() {
                    self.push(of, Timestamp(asked.value(from)), rows.slice(from, to - from))?;
                }
                from = to;
            }
        }
        Ok(())
    }
}

impl Answers {
    fn new(name: String, table: Arc<Asked>) -> DfResult<Self> {
        let of = |at: usize| (Arc::clone(&table.schema.fields()[at]), Some(at));
        let own = [DataType::UInt64, DataType::Timestamp(TimeUnit::Microsecond, None), DataType::Boolean];
        let own = OWN.iter().zip(own).map(|(name, kind)| (Arc::new(Field::new(*name, kind, false)), None));
        let others = (0..table.schema.fields().len()).filter(|at| !table.key.contains(at)).map(of);
        let (fields, from): (Vec<_>, Vec<_>) = table.key.iter().copied().map(of).chain(own).chain(others).unzip();
        let keys = Keys::new(table.key.iter().map(|at| table.schema.field(*at).data_type()))?;
        Ok(Self { name, schema: Arc::new(Schema::new(fields)), from, keys, table })
    }

    /// The key columns of rows as they are on disk.
    fn keys_of(&self, rows: &RecordBatch) -> Vec<ArrayRef> {
        rows.columns()[..self.table.key.len()].to_vec()
    }

    /// The distinct keys of a batch, without those that have a NULL or can't be in the table.
    fn wanted(&self, keys: &[ArrayRef]) -> DfResult<Vec<Key>> {
        let options = CastOptions { safe: true, ..CastOptions::default() };
        let kinds = self.table.key.iter().map(|at| self.table.schema.field(*at).data_type());
        let columns = keys.iter().zip(kinds).map(|(key, kind)| arrow_cast::cast_with_options(key, kind, &options));
        let columns = columns.collect::<std::result::Result<Vec<_>, _>>()?;
        let (mut seen, mut wanted) = (HashSet::new(), Vec::new());
        let count = columns.first().map_or(0, |column| column.len());
        self.keys.each(&columns, count, |row, key| {
            if columns.iter().all(|column| column.is_valid(row)) && !seen.contains(key) {
                seen.insert(Key::from(key));
                wanted.push(Key::from(key));
            }
        })?;
        Ok(wanted)
    }

    /// Asks for keys, and gives the answers in the keys' order.
    async fn ask(&self, keys: &[Key], batch: &Batch) -> DfResult<RecordBatch> {
        let table = &self.table;
        let columns = self.keys.columns(keys.iter().map(|key| &**key))?;
        let fields: Vec<_> = table.key.iter().map(|at| Arc::clone(&table.schema.fields()[*at])).collect();
        let asked = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?;
        let answered = table.of.rows(&asked).await.map_err(|e| external(table.named(e)))?;
        let found = answered.iter().find(|rows| {
            let kinds = |schema: &SchemaRef| schema.fields().iter().map(|f| f.data_type().clone()).collect::<Vec<_>>();
            kinds(&rows.schema()) != kinds(&table.schema)
        });
        if let Some(rows) = found {
            let text = format!("table `{}`: it answered with columns {}", table.name, rows.schema());
            return Err(external(Error::internal(text)));
        }
        let answered: Vec<RecordBatch> = answered
            .into_iter()
            .map(|rows| RecordBatch::try_new(Arc::clone(&table.schema), rows.columns().to_vec()))
            .collect::<std::result::Result<_, _>>()?;
        let answered = concat_batches(&table.schema, &answered)?;
        let (found, missing) = (self.stored(&answered, batch, true)?, self.missing(&asked, batch)?);
        let mut of: HashMap<&[u8], Vec<usize>> = keys.iter().map(|key| (&**key, Vec::new())).collect();
        self.keys.each(&self.keys_of(&found), found.num_rows(), |row, key| {
            // A key that nobody asked for: a table may compare in its own way.
            if let Some(rows) = of.get_mut(key) {
                rows.push(row);
            }
        })?;
        let mut places = Vec::new();
        for (at, key) in keys.iter().enumerate() {
            match of.get(&**key) {
                Some(rows) if !rows.is_empty() => places.extend(rows.iter().map(|row| (0, *row))),
                _ => places.push((1, at)),
            }
        }
        Ok(interleave_record_batch(&[&found, &missing], &places)?)
    }

    /// The table's rows as they are kept.
    fn stored(&self, rows: &RecordBatch, batch: &Batch, is_found: bool) -> DfResult<RecordBatch> {
        let count = rows.num_rows();
        let mut own = self.own(count, batch, is_found).into_iter();
        let columns = self.from.iter().map(|from| match from {
            Some(at) => Arc::clone(rows.column(*at)),
            None => own.next().expect("as many columns of ours as the schema has"),
        });
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns.collect(), &options)?)
    }

    /// Rows that say that keys have none.
    fn missing(&self, keys: &RecordBatch, batch: &Batch) -> DfResult<RecordBatch> {
        let count = keys.num_rows();
        let mut columns = keys.columns().to_vec();
        columns.extend(self.own(count, batch, false));
        columns.extend(self.schema.fields()[columns.len()..].iter().map(|f| new_null_array(f.data_type(), count)));
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }

    fn own(&self, count: usize, batch: &Batch, is_found: bool) -> [ArrayRef; 3] {
        [
            Arc::new(UInt64Array::from_value(self.table.number(), count)),
            Arc::new(TimestampMicrosecondArray::from_value(batch.time.0, count)),
            Arc::new(BooleanArray::from(vec![is_found; count])),
        ]
    }

    /// The table's rows among those that are kept.
    fn shown(&self, kept: &RecordBatch) -> DfResult<RecordBatch> {
        let found = kept.column(self.table.key.len() + 2).as_boolean();
        let kept = arrow_select::filter::filter_record_batch(kept, found)?;
        let mut columns: Vec<(usize, ArrayRef)> = self
            .from
            .iter()
            .zip(kept.columns())
            .filter_map(|(at, column)| Some(((*at)?, Arc::clone(column))))
            .collect();
        columns.sort_by_key(|(at, _)| *at);
        let columns = columns.into_iter().map(|(_, column)| column).collect();
        Ok(RecordBatch::try_new(Arc::clone(&self.table.schema), columns)?)
    }
}

impl Cache {
    pub(super) fn new(name: String, table: Arc<Asked>) -> DfResult<Self> {
        Ok(Self { answers: Answers::new(name, table)?, inner: Mutex::default() })
    }

    /// The table's rows of these keys, a column of the batch's for each of the key; and whether the table was asked.
    pub(super) async fn rows(&self, keys: &[ArrayRef], batch: &Batch) -> DfResult<(RecordBatch, bool)> {
        let of = &self.answers;
        let wanted = of.wanted(keys)?;
        let (mut unknown, recalled) = {
            let inner = &mut *self.inner.lock();
            inner.known.tidy(of, batch.time)?;
            let unknown: Vec<Key> =
                wanted.iter().filter(|key| !inner.known.places.contains_key(*key)).cloned().collect();
            (unknown, inner.recalled.take())
        };
        unknown.sort_unstable();
        let mut learned = Vec::new();
        if let Some(recalled) = recalled {
            learned.extend(recalled.rows(unknown.iter())?);
            unknown.retain(|key| !recalled.places.contains_key(key));
        }
        if !unknown.is_empty() {
            learned.push(of.ask(&unknown, batch).await?);
        }
        let is_asked = !learned.is_empty();
        let inner = &mut *self.inner.lock();
        for rows in &learned {
            inner.known.push(of, batch.time, rows.clone())?;
        }
        inner.delta = Some((batch.id, learned));
        let rows = match inner.known.rows(wanted.iter())? {
            Some(rows) => of.shown(&rows)?,
            None => RecordBatch::new_empty(Arc::clone(&of.table.schema)),
        };
        Ok((rows, is_asked))
    }

    fn read(&self, versions: &[Version]) -> DfResult<Known> {
        let mut known = Known::default();
        let from = versions.iter().rposition(|version| version.whole).unwrap_or(0);
        for rows in versions[from..].iter().flat_map(|version| &version.rows) {
            let rows = RecordBatch::try_new(Arc::clone(&self.answers.schema), rows.columns().to_vec())?;
            known.restore(&self.answers, &rows)?;
        }
        Ok(known)
    }

    fn taken(&self, versions: &[Version]) -> Result<Known> {
        let name = &self.answers.name;
        self.read(versions).map_err(|e| Error::user(format!("the state of `{name}` has other columns")).because(e))
    }
}

impl StateOperator for Cache {
    fn name(&self) -> &str {
        &self.answers.name
    }

    fn kind(&self) -> &'static str {
        "lookup"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.answers.schema)
    }

    fn keys(&self) -> usize {
        self.answers.table.key.len()
    }

    fn restore(&self, versions: &[Version]) -> Result<()> {
        *self.inner.lock() = Inner { known: self.taken(versions)?, recalled: None, delta: None };
        Ok(())
    }

    fn recalls(&self) -> bool {
        true
    }

    fn recall(&self, batch: &Batch, after: &[Version]) -> Result<()> {
        let mut known = self.taken(after)?;
        // Only what the batch itself has learned.
        let of = |e| Error::internal(format!("the state of `{}`", self.answers.name)).because(e);
        while known.blocks.front().is_some_and(|block| block.at < batch.time) {
            known.pop(&self.answers).map_err(of)?;
        }
        self.inner.lock().recalled = Some(known);
        Ok(())
    }

    fn delta(&self, batch: BatchId) -> Result<Vec<RecordBatch>> {
        Ok(self.inner.lock().delta.take_if(|(of, _)| *of == batch).map(|(_, rows)| rows).unwrap_or_default())
    }

    fn snapshot(&self) -> Result<Vec<RecordBatch>> {
        let inner = self.inner.lock();
        let rows: Vec<&RecordBatch> = inner.known.blocks.iter().map(|block| &block.rows).collect();
        let rows = concat_batches(&self.answers.schema, rows);
        rows.map(|rows| vec![rows]).map_err(|e| Error::internal("rows of a state").because(e))
    }

    fn rows(&self) -> usize {
        self.inner.lock().known.blocks.iter().map(|block| block.rows.num_rows()).sum()
    }

    fn fresh(&self) -> Option<Arc<dyn StateOperator>> {
        Self::new(self.answers.name.clone(), Arc::clone(&self.answers.table)).ok().map(|cache| Arc::new(cache) as _)
    }
}
