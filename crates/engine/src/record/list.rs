//! `Vec<T>` as a record, borrowed as a [`List`].
//!
//! Invariant: a list in a column and an owned one read the same through [`List`].

use super::{Key, Record, expect_type, refuse_nulls};
use arrow_array::{Array, ArrayRef, ListArray, cast::AsArray};
use arrow_buffer::{OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field};
use std::{hash::Hasher, sync::Arc};
use tidemill_core::Result;

/// A borrowed list: rows of a column, or a slice.
pub enum List<'a, T: Record> {
    /// Rows `[start, end)` of a column.
    Rows(&'a T::Column, usize, usize),
    /// Owned items.
    Items(&'a [T]),
}

impl<T: Record> Clone for List<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Record> Copy for List<'_, T> {}

impl<T: Record> std::fmt::Debug for List<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "List of {} items", self.len())
    }
}

impl<'a, T: Record> List<'a, T> {
    /// Number of items.
    pub fn len(&self) -> usize {
        match self {
            Self::Rows(_, start, end) => end - start,
            Self::Items(items) => items.len(),
        }
    }

    /// Whether there are no items.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Item `at`, if there is one.
    pub fn get(&self, at: usize) -> Option<T::Ref<'a>> {
        (at < self.len()).then(|| match *self {
            Self::Rows(column, start, _) => T::get(column, start + at),
            Self::Items(items) => items[at].borrow(),
        })
    }

    /// All items in order.
    pub fn iter(&self) -> impl Iterator<Item = T::Ref<'a>> + use<'a, T> {
        let list = *self;
        (0..list.len()).filter_map(move |at| list.get(at))
    }
}

/// A column of lists: the items of all rows and where each row ends.
#[derive(Debug, Clone)]
pub struct ListColumn<C> {
    items: C,
    offsets: OffsetBuffer<i32>,
}

/// A growing column of lists.
#[derive(Debug)]
pub struct ListBuilder<B> {
    items: B,
    offsets: Vec<i32>,
}

impl<T: Record> Record for Vec<T> {
    type Ref<'a> = List<'a, T>;
    type Column = ListColumn<T::Column>;
    type Builder = ListBuilder<T::Builder>;

    fn data_type() -> DataType {
        DataType::List(Arc::new(Field::new("item", T::data_type(), T::nullable())))
    }
    fn column(array: &ArrayRef) -> Result<Self::Column> {
        if !matches!(array.data_type(), DataType::List(_)) {
            expect_type(array, &Self::data_type())?;
        }
        refuse_nulls(array)?;
        let list = array.as_list::<i32>();
        Ok(ListColumn { items: T::column(list.values())?, offsets: list.offsets().clone() })
    }
    fn get(column: &Self::Column, row: usize) -> List<'_, T> {
        let at = |i: usize| usize::try_from(column.offsets[i]).unwrap_or(0);
        List::Rows(&column.items, at(row), at(row + 1))
    }
    fn borrow(&self) -> List<'_, T> {
        List::Items(self)
    }
    fn own(value: List<'_, T>) -> Self {
        match value {
            List::Items(items) => items.to_vec(),
            rows @ List::Rows(..) => rows.iter().map(T::own).collect(),
        }
    }
    fn builder(capacity: usize) -> Self::Builder {
        ListBuilder { items: T::builder(capacity), offsets: vec![0] }
    }
    fn append(builder: &mut Self::Builder, value: List<'_, T>) {
        for item in value.iter() {
            T::append(&mut builder.items, item);
        }
        let last = builder.offsets.last().copied().unwrap_or(0);
        // Batches are bounded far below 2^31 items; an overflow would be a bug and stops here.
        let grown = i32::try_from(value.len())
            .ok()
            .and_then(|n| last.checked_add(n))
            .expect("under 2^31 list items in a batch");
        builder.offsets.push(grown);
    }
    fn finish(builder: &mut Self::Builder) -> ArrayRef {
        let items = T::finish(&mut builder.items);
        let offsets = OffsetBuffer::new(ScalarBuffer::from(std::mem::replace(&mut builder.offsets, vec![0])));
        let DataType::List(field) = Self::data_type() else { unreachable!("a list's type is a list") };
        Arc::new(ListArray::new(field, offsets, items, None))
    }
}

impl<T: Key> Key for Vec<T> {
    fn hash<H: Hasher>(value: List<'_, T>, state: &mut H) {
        state.write_usize(value.len());
        value.iter().for_each(|item| T::hash(item, state));
    }
    fn same(a: List<'_, T>, b: List<'_, T>) -> bool {
        a.len() == b.len() && a.iter().zip(b.iter()).all(|(x, y)| T::same(x, y))
    }
}
