//! What a typed stream may carry, and how it lies in columns.
//!
//! A [`Record`] has three forms: the owned value that user functions return, a
//! borrowed form [`Record::Ref`] that user functions receive (`&str` for text,
//! so that a million words cost no allocation), and an Arrow column.
//!
//! Invariant: `own(get(column, i))` equals what was appended as row `i`; the
//! three forms hold the same value. Chains, shuffles and state call this; the
//! derive macro implements it for structs.

mod kept;
mod list;
mod nested;
mod primitive;
pub mod support;
mod text;

pub(crate) use kept::Kept;
pub use list::List;
pub use text::Str;

use arrow_array::{Array, ArrayRef, RecordBatch, StructArray, cast::AsArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use std::{hash::Hasher, sync::Arc};
use tidemill_core::{Error, Result};

/// A value that a stream may carry.
pub trait Record: Clone + Send + Sync + 'static {
    /// The borrowed form that user functions receive.
    type Ref<'a>: Copy;
    /// A readable Arrow column of this type.
    type Column: Clone + Send + Sync + 'static;
    /// A growing Arrow column of this type.
    type Builder: Send + 'static;

    /// The Arrow type.
    fn data_type() -> DataType;

    /// Whether the column may hold nulls; only `Option` says yes.
    fn nullable() -> bool {
        false
    }

    /// Reads an Arrow array as a column of this type.
    ///
    /// # Errors
    /// When the array has another type, or nulls that this type can't hold.
    fn column(array: &ArrayRef) -> Result<Self::Column>;

    /// Row `row` of a column.
    fn get(column: &Self::Column, row: usize) -> Self::Ref<'_>;

    /// The borrowed form of an owned value.
    fn borrow(&self) -> Self::Ref<'_>;

    /// The owned form of a borrowed value.
    fn own(value: Self::Ref<'_>) -> Self;

    /// An empty growing column.
    fn builder(capacity: usize) -> Self::Builder;

    /// Appends a row.
    fn append(builder: &mut Self::Builder, value: Self::Ref<'_>);

    /// Takes the rows out as an Arrow array and leaves the builder empty.
    fn finish(builder: &mut Self::Builder) -> ArrayRef;
}

/// A record that can be a key: hashed and compared by value.
pub trait Key: Record {
    /// Feeds the value to a hasher. Equal values feed equal bytes.
    fn hash<H: Hasher>(value: Self::Ref<'_>, state: &mut H);

    /// Whether two values are equal.
    fn same(a: Self::Ref<'_>, b: Self::Ref<'_>) -> bool;
}

/// The hash of a key: seeded the same in every process, so that a key goes to
/// the same partition before and after a restart.
#[inline]
pub(crate) fn hash_key<K: Key>(key: K::Ref<'_>) -> u64 {
    use std::hash::BuildHasher;
    let mut state = foldhash::fast::FixedState::with_seed(SEED).build_hasher();
    K::hash(key, &mut state);
    state.finish()
}

const SEED: u64 = 0x7469_6465_6d69_6c6c;

/// Which of `count` partitions a hash belongs to; uses the upper bits, so that
/// hash tables inside the partition keep the lower ones.
#[inline]
pub(crate) fn partition_of(hash: u64, count: usize) -> usize {
    (((hash >> 32) * count as u64) >> 32) as usize
}

/// Name of the single column of a stream whose record is not a struct or tuple.
pub(crate) const VALUE: &str = "value";

/// The columns of a stream of `T`: a struct's or tuple's fields, else one
/// column named `value`.
pub fn schema_of<T: Record>() -> SchemaRef {
    match T::data_type() {
        DataType::Struct(fields) if !T::nullable() => Arc::new(Schema::new(fields)),
        other => Arc::new(Schema::new(vec![Field::new(VALUE, other, T::nullable())])),
    }
}

/// Reads a batch as records: tuples by place, structs as their derive says.
///
/// # Errors
/// When the batch has other columns.
pub(crate) fn read_batch<T: Record>(batch: &RecordBatch) -> Result<T::Column> {
    let array: ArrayRef = match T::data_type() {
        DataType::Struct(_) if !T::nullable() => Arc::new(StructArray::from(batch.clone())),
        _ => match batch.columns() {
            [one] => Arc::clone(one),
            many => return Err(Error::internal(format!("expected one column, found {}", many.len()))),
        },
    };
    T::column(&array)
}

/// Takes the rows of a builder out as a batch with the columns of [`schema_of`].
pub(crate) fn finish_batch<T: Record>(builder: &mut T::Builder, schema: &SchemaRef) -> Result<RecordBatch> {
    let array = T::finish(builder);
    let columns = if matches!(T::data_type(), DataType::Struct(_)) && !T::nullable() {
        array.as_struct().columns().to_vec()
    } else {
        vec![array]
    };
    RecordBatch::try_new(Arc::clone(schema), columns)
        .map_err(|e| Error::internal("rows do not fit their schema").because(e))
}

/// A batch of the given records; for tests, queues and small results.
pub fn batch_of<T: Record>(records: impl IntoIterator<Item = T>) -> Result<RecordBatch> {
    let mut builder = T::builder(16);
    for record in records {
        T::append(&mut builder, record.borrow());
    }
    finish_batch::<T>(&mut builder, &schema_of::<T>())
}

/// The owned records of a batch.
pub fn records_of<T: Record>(batch: &RecordBatch) -> Result<Vec<T>> {
    let column = read_batch::<T>(batch)?;
    Ok((0..batch.num_rows()).map(|row| T::own(T::get(&column, row))).collect())
}

/// Checks that an array has the wanted type and no nulls where none may be.
pub(crate) fn expect_type(array: &dyn Array, want: &DataType) -> Result<()> {
    if array.data_type() == want {
        return Ok(());
    }
    Err(Error::user(format!("expected a column of {want}, found {}", array.data_type())))
}

pub(crate) fn refuse_nulls(array: &dyn Array) -> Result<()> {
    if array.null_count() == 0 {
        return Ok(());
    }
    Err(Error::user(format!("{} nulls in a column of a type that can't hold them; use Option", array.null_count())))
}

#[cfg(test)]
mod tests;
