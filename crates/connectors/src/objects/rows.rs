//! Rows of Parquet objects: the columns that are asked for, of the row groups that a range touches.
//!
//! An offset is a row's place in its object. The last range of an object ends far behind its last row, at the object's
//! bytes times 65,536, so that a position says without a look at the object that all of it was read.
//!
//! Columns are found by name and cast to what is declared; one that an object has not is NULL. A value that does not
//! fit, or a NULL where none may be, is an error with the row: a column of a table is no record that could be set aside.
//!
//! Invariant: the end of the object (its footer) and the columns that are asked for of one row group are in memory, and
//! no length that the object says is trusted: [`FOOTER`] and [`GROUP`] bound them. Called by the source of objects.

use super::fetch::Object;
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow_cast::{CastOptions, can_cast_types, cast_with_options};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use parquet::{
    arrow::{
        ParquetRecordBatchStreamBuilder, ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions},
        async_reader::{AsyncFileReader, ParquetRecordBatchStream},
    },
    errors::ParquetError,
    file::metadata::{ParquetMetaData, ParquetMetaDataReader},
};
use std::{ops::Range, sync::Arc};
use tidemill_core::{Chunk, Error, Offset, Result};

/// Bytes that are read of the end of an object at first.
const TAIL: u64 = 64 << 10;
/// Bytes of an object's footer at most.
const FOOTER: u64 = 64 << 20;
/// Bytes of the columns of a row group at most.
const GROUP: u64 = 1 << 30;
/// Bytes of a chunk, as far as can be told, and its rows at least and at most.
const CHUNK: u64 = 256 << 10;
const ROWS: Range<u64> = 64..8192;

/// What an object says of itself.
#[derive(Debug, Clone)]
pub(super) struct Footer {
    pub(super) size: u64,
    meta: ArrowReaderMetadata,
}

impl Footer {
    /// Reads the end of an object of `size` bytes.
    pub(super) async fn read(object: &Object, size: u64) -> Result<Self> {
        let damaged = |why: &str| object.damaged(&format!("is no Parquet, or damaged: {why}"));
        if size < 12 {
            return Err(damaged("it is too short"));
        }
        let tail = object.bytes(size - TAIL.min(size)..size).await?;
        let end = tail.last_chunk::<8>().copied().unwrap_or_default();
        let [a, b, c, d, magic @ ..] = end;
        if &magic != b"PAR1" {
            return Err(damaged("it does not end with PAR1"));
        }
        let len = u64::from(u32::from_le_bytes([a, b, c, d]));
        if len > FOOTER || len + 12 > size {
            return Err(damaged(&format!("its end says that the footer has {len} bytes")));
        }
        let footer = if len + 8 <= tail.len() as u64 {
            let from = tail.len() - 8 - usize::try_from(len).unwrap_or_default();
            tail.slice(from..tail.len() - 8)
        } else {
            object.bytes(size - 8 - len..size - 8).await?
        };
        let broken = |error: ParquetError| damaged("its footer can't be read").because(error);
        let meta = ParquetMetaDataReader::decode_metadata(&footer).map_err(broken)?;
        for (at, group) in meta.row_groups().iter().enumerate() {
            let is_inside = |from: i64, len: i64| {
                let end =
                    u64::try_from(from).ok().zip(u64::try_from(len).ok()).and_then(|(from, len)| from.checked_add(len));
                end.is_some_and(|end| end <= size)
            };
            let columns = group.columns().iter().all(|column| {
                let from = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
                is_inside(from, column.compressed_size()) && is_inside(column.data_page_offset(), 0)
            });
            if group.num_rows() < 0 || !columns {
                return Err(damaged(&format!("row group {at} lies outside of it")));
            }
        }
        let meta = ArrowReaderMetadata::try_new(Arc::new(meta), ArrowReaderOptions::new()).map_err(broken)?;
        let footer = Self { size, meta };
        if footer.groups().last().is_some_and(|rows| *rows >= size << 16) {
            return Err(damaged("it has more rows than its bytes can be counted as"));
        }
        Ok(footer)
    }

    /// The first row of each row group, and then how many rows there are.
    pub(super) fn groups(&self) -> Vec<u64> {
        let mut all = vec![0_u64];
        for group in self.meta.metadata().row_groups() {
            let before = all.last().copied().unwrap_or_default();
            all.push(before.saturating_add(u64::try_from(group.num_rows()).unwrap_or_default()));
        }
        all
    }

    /// Its columns, as a stream that declares none has them.
    pub(super) fn columns(&self) -> SchemaRef {
        let fields = self.meta.schema().fields().iter().map(|field| {
            let ty = match field.data_type() {
                DataType::Dictionary(_, values) => values.as_ref().clone(),
                DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
                DataType::BinaryView | DataType::LargeBinary | DataType::FixedSizeBinary(_) => DataType::Binary,
                DataType::Timestamp(_, zone) => {
                    DataType::Timestamp(TimeUnit::Microsecond, zone.as_ref().map(|_| "UTC".into()))
                }
                other => other.clone(),
            };
            Field::new(field.name(), ty, true)
        });
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }
}

/// An object as the reader of Parquet wants it.
struct Bringer(Object);

impl AsyncFileReader for Bringer {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        async move { self.0.bytes(range).await.map_err(|error| ParquetError::External(Box::new(error))) }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, parquet::errors::Result<Arc<ParquetMetaData>>> {
        // The footer is there before.
        async { Err(ParquetError::General("the footer was read before".to_string())) }.boxed()
    }
}

/// Rows of a range.
pub(super) struct RowRange {
    object: Object,
    rows: ParquetRecordBatchStream<Bringer>,
    /// The columns that are handed on.
    targets: SchemaRef,
    /// The row that is next.
    at: u64,
}

impl RowRange {
    /// Rows `[start, end)` with some of the declared columns.
    pub(super) fn new(
        object: Object,
        footer: &Footer,
        targets: SchemaRef,
        start: u64,
        end: u64,
    ) -> Result<Option<Self>> {
        let groups = footer.groups();
        let end = end.min(groups.last().copied().unwrap_or_default());
        if start >= end {
            return Ok(None);
        }
        let own = footer.meta.schema();
        let mut roots = Vec::with_capacity(targets.fields().len());
        for target in targets.fields() {
            match own.column_with_name(target.name()) {
                Some((at, field)) if can_cast_types(field.data_type(), target.data_type()) => roots.push(at),
                Some((_, field)) => {
                    return Err(object.damaged(&format!(
                        "has the column `{}` as {}, which can't be read as {}",
                        target.name(),
                        field.data_type(),
                        target.data_type()
                    )));
                }
                None if target.is_nullable() => {}
                None => {
                    let names: Vec<&str> = own.fields().iter().map(|field| field.name().as_str()).collect();
                    return Err(object.damaged(&format!(
                        "has no column `{}`, which is NOT NULL; it has {}",
                        target.name(),
                        names.join(", ")
                    )));
                }
            }
        }
        let touched = (0..groups.len() - 1).filter(|at| groups[*at] < end && groups[at + 1] > start);
        let touched: Vec<usize> = touched.collect();
        let mask = ProjectionMask::roots(footer.meta.parquet_schema(), roots);
        for at in &touched {
            let columns = footer.meta.metadata().row_group(*at).columns().iter().enumerate();
            let bytes =
                columns.filter(|(leaf, _)| mask.leaf_included(*leaf)).map(|(_, c)| c.compressed_size().unsigned_abs());
            let bytes: u64 = bytes.sum();
            if bytes > GROUP {
                return Err(object.damaged(&format!(
                    "has {bytes} bytes in the columns of row group {at}, over the bound of {GROUP}: write smaller row groups"
                )));
            }
        }
        let skipped = touched.first().map_or(0, |first| start - groups[*first]);
        let each = CHUNK * groups.last().copied().unwrap_or(1) / footer.size.max(1);
        let count = |rows: u64| usize::try_from(rows).unwrap_or(usize::MAX);
        let broken = |error| failed(&object, start, error);
        let rows = ParquetRecordBatchStreamBuilder::new_with_metadata(Bringer(object.clone()), footer.meta.clone())
            .with_projection(mask)
            .with_row_groups(touched)
            .with_offset(count(skipped))
            .with_limit(count(end - start))
            .with_batch_size(count(each.clamp(ROWS.start, ROWS.end)))
            .build()
            .map_err(broken)?;
        Ok(Some(Self { object, rows, targets, at: start }))
    }

    /// The next rows.
    pub(super) async fn next(&mut self) -> Result<Option<Chunk>> {
        let Some(rows) = self.rows.next().await else { return Ok(None) };
        let rows = rows.map_err(|error| failed(&self.object, self.at, error))?;
        let columns =
            self.targets.fields().iter().map(|target| self.column(&rows, target)).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let base = Offset(self.at);
        self.at += rows.num_rows() as u64;
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.targets), columns, &options)
            .map_err(|e| Error::internal("rows of Parquet don't fit their columns").because(e))?;
        Ok(Some(Chunk::Columns { rows, base, times: Vec::new() }))
    }

    fn column(&self, rows: &RecordBatch, target: &Field) -> Result<ArrayRef> {
        let Some(own) = rows.column_by_name(target.name()) else {
            return Ok(new_null_array(target.data_type(), rows.num_rows()));
        };
        let wrong = |row: usize, why: &str| {
            let at = self.at + row as u64;
            self.object.damaged(&format!("row {at}, column `{}`: {why}", target.name()))
        };
        let is_null = |row: &usize| own.is_null(*row);
        if let Some(row) = (0..own.len()).find(is_null).filter(|_| !target.is_nullable() && own.null_count() > 0) {
            return Err(wrong(row, "it is NULL, and the column NOT NULL"));
        }
        if own.data_type() == target.data_type() {
            return Ok(Arc::clone(own));
        }
        let cast = |safe| cast_with_options(own, target.data_type(), &CastOptions { safe, ..CastOptions::default() });
        cast(false).map_err(|error| {
            // Which one it is shows the cast that makes NULL of what does not fit.
            let row =
                cast(true).ok().and_then(|cast| (0..cast.len()).find(|row| cast.is_null(*row) && own.is_valid(*row)));
            wrong(row.unwrap_or_default(), &format!("it does not fit {}", target.data_type())).because(error)
        })
    }
}

fn failed(object: &Object, row: u64, error: ParquetError) -> Error {
    match error {
        ParquetError::External(error) => match error.downcast::<Error>() {
            Ok(error) => *error,
            Err(error) => object.damaged(&format!("is damaged behind row {row}")).because(error),
        },
        error => object.damaged(&format!("is damaged behind row {row}")).because(error),
    }
}
