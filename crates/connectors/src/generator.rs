//! Connector `generator`: rows made up by their offset, for trials and benches.
//!
//! Columns: `offset` and `key` and `value`, all BIGINT. The key is
//! `splitmix64(seed ^ offset) % keys`, the value another mix of the same.
//!
//! | Option | Meaning |
//! |---|---|
//! | `rows` | rows in all; without it they never end |
//! | `rows_per_plan` | rows of a batch at most |
//! | `keys` | different keys (1,000,000) |
//! | `seed` | 0 by default |
//! | `partitions` | 1 by default; partition `p` of `n` has the offsets `p, p + n, p + 2n, …` of the whole |
//!
//! Invariant: a row depends on seed, partition and offset only, so any range
//! can be read again, in any life.

use crate::backoff::splitmix64;
use arrow_array::{ArrayRef, Int64Array, RecordBatch, RecordBatchOptions};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use futures::{StreamExt, stream};
use std::sync::Arc;
use tidemill_core::{
    Budget, Chunk, ChunkStream, Error, Offset, OffsetRange, Options, PartitionId, Position, Result, Shape, Source,
};

/// Rows of a chunk: with three columns of eight bytes they stay in the cache.
const CHUNK: u64 = 8192;

/// Rows made up by their offset.
#[derive(Debug, Clone)]
pub struct Generator {
    rows: Option<u64>,
    rows_per_plan: u64,
    keys: u64,
    seed: u64,
    partitions: u64,
    schema: SchemaRef,
}

impl Generator {
    /// `rows` rows, or rows without end.
    pub fn new(rows: Option<u64>) -> Self {
        let column = |name| Field::new(name, DataType::Int64, false);
        let schema = Arc::new(Schema::new(vec![column("offset"), column("key"), column("value")]));
        Self { rows, rows_per_plan: u64::MAX, keys: 1_000_000, seed: 0, partitions: 1, schema }
    }

    /// From a stream's options.
    ///
    /// # Errors
    /// When one is wrong.
    pub fn from_options(options: &Options) -> Result<Self> {
        let rows = options.get("rows").is_some().then(|| options.parse("rows", 0)).transpose()?;
        let mut generator = Self::new(rows);
        generator.rows_per_plan = options.parse("rows_per_plan", u64::MAX)?;
        generator.keys = options.parse("keys", generator.keys)?;
        generator.seed = options.parse("seed", 0)?;
        generator.partitions = options.parse("partitions", 1)?;
        if [generator.rows_per_plan, generator.keys, generator.partitions].contains(&0)
            || generator.partitions > 4096
            || i64::try_from(generator.keys).is_err()
        {
            return Err(Error::user(format!(
                "{}: options `rows_per_plan`, `keys` and `partitions` (at most 4096) must be positive",
                options.owner()
            )));
        }
        Ok(generator)
    }

    /// The key of the row with this number over all partitions.
    pub fn key(&self, number: u64) -> i64 {
        i64::try_from(splitmix64(self.seed ^ number) % self.keys).unwrap_or(i64::MAX)
    }

    fn partition(&self, number: u64) -> PartitionId {
        PartitionId::new(number.to_string())
    }

    /// Offsets that partition `p` has.
    fn len(&self, p: u64) -> u64 {
        self.rows.map_or(u64::MAX, |rows| (rows / self.partitions) + u64::from(p < rows % self.partitions))
    }

    /// Offsets `[start, end)` of partition `p`: the columns at `projection`.
    fn make(&self, p: u64, start: u64, end: u64, projection: &[usize]) -> Result<RecordBatch> {
        let numbers = (start..end).map(|offset| offset.wrapping_mul(self.partitions).wrapping_add(p));
        let columns = projection.iter().map(|column| match column {
            0 => column_of(numbers.clone().map(u64::cast_signed)),
            1 => column_of(numbers.clone().map(|n| self.key(n))),
            _ => column_of(numbers.clone().map(|n| (splitmix64(!(self.seed ^ n)) >> 40).cast_signed())),
        });
        let rows = usize::try_from(end - start).unwrap_or(usize::MAX);
        self.schema
            .project(projection)
            .and_then(|schema| {
                let options = RecordBatchOptions::new().with_row_count(Some(rows));
                RecordBatch::try_new_with_options(Arc::new(schema), columns.collect(), &options)
            })
            .map_err(|e| Error::internal("generated columns fit their schema").because(e))
    }
}

fn column_of(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

#[async_trait]
impl Source for Generator {
    fn describe(&self) -> String {
        self.rows.map_or_else(|| "generator".to_string(), |rows| format!("generator of {rows} rows"))
    }

    fn shape(&self) -> Shape {
        Shape::Columns(Arc::clone(&self.schema))
    }

    async fn plan(&self, position: &Position, budget: Budget) -> Result<Vec<OffsetRange>> {
        // Without a bound, a batch still has to end.
        let bound = budget.records.min(self.rows_per_plan).min(budget.bytes / 24).clamp(1, 1 << 24);
        let mut left = bound;
        let mut ranges = Vec::new();
        for p in 0..self.partitions {
            let partition = self.partition(p);
            let start = position.get(&partition).map_or(0, |at| at.0);
            let share = left.div_ceil(self.partitions - p);
            let end = start.saturating_add(share).min(self.len(p)).max(start);
            left -= end - start;
            let pieces = (budget.parallelism as u64 / self.partitions).min((end - start) / CHUNK).max(1);
            let cut = |piece: u64| Offset(start + (end - start) * piece / pieces);
            for piece in (0..pieces).filter(|piece| cut(*piece) < cut(piece + 1)) {
                ranges.push(OffsetRange { partition: partition.clone(), start: cut(piece), end: cut(piece + 1) });
            }
        }
        Ok(ranges)
    }

    fn read(&self, range: &OffsetRange) -> ChunkStream {
        self.read_columns(range, &[0, 1, 2])
    }

    fn read_columns(&self, range: &OffsetRange, projection: &[usize]) -> ChunkStream {
        let (generator, end, projection) = (self.clone(), range.end.0, projection.to_vec());
        let p = range.partition.0.parse::<u64>().ok().filter(|p| *p < self.partitions);
        let Some(p) = p else {
            let gone =
                format!("generator: there is no partition {}; was option `partitions` lowered?", range.partition);
            return stream::iter([Err(Error::user(gone))]).boxed();
        };
        let starts = (range.start.0..end).step_by(usize::try_from(CHUNK).unwrap_or(usize::MAX));
        let chunk = move |start: u64| {
            let rows = generator.make(p, start, end.min(start + CHUNK), &projection)?;
            Ok(Chunk::Columns { rows, base: Offset(start), times: Vec::new() })
        };
        stream::iter(starts.map(chunk)).boxed()
    }

    fn is_endless(&self) -> bool {
        self.rows.is_none()
    }

    async fn is_exhausted(&self, position: &Position) -> Result<bool> {
        Ok(self.rows.is_some() && self.lag(position).await? == 0)
    }

    async fn lag(&self, position: &Position) -> Result<u64> {
        if self.rows.is_none() {
            return Ok(0);
        }
        let behind = |p| self.len(p).saturating_sub(position.get(&self.partition(p)).map_or(0, |at| at.0));
        Ok((0..self.partitions).map(behind).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{cast::AsArray, types::Int64Type};

    fn generator(options: &[(&str, &str)]) -> Generator {
        Generator::from_options(&Options::new("s", options.iter().copied())).unwrap()
    }

    #[tokio::test]
    async fn it_is_a_source() {
        for partitions in ["1", "3"] {
            let source = generator(&[("rows", "20000"), ("keys", "7"), ("partitions", partitions)]);
            let all = crate::contract::check_source(&source, 1).await;
            assert_eq!(all.values().map(Vec::len).sum::<usize>(), 20_000);
        }
    }

    #[tokio::test]
    async fn partitions_share_the_rows_of_one() {
        let mut numbers = Vec::new();
        let source = generator(&[("rows", "1000"), ("partitions", "3"), ("seed", "5")]);
        for (p, n) in [(0, 334), (1, 333), (2, 333)] {
            let rows = source.make(p, 0, source.len(p), &[0, 1, 2]).unwrap();
            assert_eq!(rows.num_rows(), n);
            let keys = rows.column(1).as_primitive::<Int64Type>().values().to_vec();
            let offsets = rows.column(0).as_primitive::<Int64Type>().values().to_vec();
            numbers.extend(offsets.into_iter().zip(keys));
        }
        numbers.sort_unstable();
        let one = generator(&[("rows", "1000"), ("seed", "5")]);
        let want: Vec<(i64, i64)> = (0..1000_i64).map(|n| (n, one.key(n.cast_unsigned()))).collect();
        assert_eq!(numbers, want);
    }

    #[tokio::test]
    async fn without_rows_it_never_ends_and_each_plan_is_bounded() {
        let source = generator(&[("rows_per_plan", "100")]);
        let budget = Budget { records: u64::MAX, bytes: u64::MAX, parallelism: 4 };
        let ranges = source.plan(&Position::new(), budget).await.unwrap();
        assert_eq!(ranges.iter().map(OffsetRange::len).sum::<u64>(), 100);
        assert!(!source.is_exhausted(&Position::new()).await.unwrap());
        let generator = generator(&[]);
        assert!(generator.plan(&Position::new(), budget).await.unwrap()[0].len() <= 1 << 24);
        assert!(Generator::from_options(&Options::new("s", [("keys", "0")])).is_err());
    }
}
