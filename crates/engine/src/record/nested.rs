//! Tuples, options and the unit as records.
//!
//! Invariant: a tuple is a struct column that is never null itself; only an
//! option's column holds nulls.

use super::{Key, Record, expect_type, refuse_nulls};
use arrow_array::{Array, ArrayRef, StructArray, cast::AsArray, new_empty_array};
use arrow_buffer::NullBuffer;
use arrow_schema::{DataType, Field, Fields};
use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};
use tidemill_core::Result;

macro_rules! tuple {
    ($(($($name:ident $index:tt $label:literal),+);)*) => {$(
        impl<$($name: Record),+> Record for ($($name,)+) {
            type Ref<'a> = ($($name::Ref<'a>,)+);
            type Column = ($($name::Column,)+);
            type Builder = ($($name::Builder,)+);

            fn data_type() -> DataType {
                DataType::Struct(Fields::from(vec![$(Field::new($label, $name::data_type(), $name::nullable())),+]))
            }
            fn column(array: &ArrayRef) -> Result<Self::Column> {
                let want = [$($label),+].len();
                match array.data_type() {
                    DataType::Struct(fields) if fields.len() == want => {}
                    _ => expect_type(array, &Self::data_type())?,
                }
                refuse_nulls(array)?;
                let fields = array.as_struct();
                Ok(($($name::column(fields.column($index))?,)+))
            }
            #[inline]
            fn get(column: &Self::Column, row: usize) -> Self::Ref<'_> {
                ($($name::get(&column.$index, row),)+)
            }
            #[inline]
            fn borrow(&self) -> Self::Ref<'_> {
                ($(self.$index.borrow(),)+)
            }
            #[inline]
            fn own(value: Self::Ref<'_>) -> Self {
                ($($name::own(value.$index),)+)
            }
            fn builder(capacity: usize) -> Self::Builder {
                ($($name::builder(capacity),)+)
            }
            #[inline]
            fn append(builder: &mut Self::Builder, value: Self::Ref<'_>) {
                $($name::append(&mut builder.$index, value.$index);)+
            }
            fn finish(builder: &mut Self::Builder) -> ArrayRef {
                let DataType::Struct(fields) = Self::data_type() else { unreachable!("a tuple's type is a struct") };
                Arc::new(StructArray::new(fields, vec![$($name::finish(&mut builder.$index)),+], None))
            }
        }

        impl<$($name: Key),+> Key for ($($name,)+) {
            #[inline]
            fn hash<Z: Hasher>(value: Self::Ref<'_>, state: &mut Z) {
                $($name::hash(value.$index, state);)+
            }
            #[inline]
            fn same(a: Self::Ref<'_>, b: Self::Ref<'_>) -> bool {
                $($name::same(a.$index, b.$index))&&+
            }
        }
    )*};
}

tuple! {
    (A 0 "_1");
    (A 0 "_1", B 1 "_2");
    (A 0 "_1", B 1 "_2", C 2 "_3");
    (A 0 "_1", B 1 "_2", C 2 "_3", D 3 "_4");
    (A 0 "_1", B 1 "_2", C 2 "_3", D 3 "_4", E 4 "_5");
    (A 0 "_1", B 1 "_2", C 2 "_3", D 3 "_4", E 4 "_5", F 5 "_6");
}

/// A column that may hold nulls.
#[derive(Debug, Clone)]
pub struct OptionColumn<C> {
    /// The values present, one after another.
    values: C,
    /// Row to place among the values; `None` for a null.
    places: Arc<Vec<Option<u32>>>,
}

/// A growing column that may hold nulls.
#[derive(Debug)]
pub struct OptionBuilder<B> {
    values: B,
    places: Vec<Option<u32>>,
    present: u32,
}

impl<T: Record> Record for Option<T> {
    type Ref<'a> = Option<T::Ref<'a>>;
    type Column = OptionColumn<T::Column>;
    type Builder = OptionBuilder<T::Builder>;

    fn data_type() -> DataType {
        T::data_type()
    }
    fn nullable() -> bool {
        true
    }
    fn column(array: &ArrayRef) -> Result<Self::Column> {
        let (mut places, mut present) = (Vec::with_capacity(array.len()), 0_u32);
        let mut rows = Vec::new();
        for row in 0..array.len() {
            if array.is_valid(row) {
                places.push(Some(present));
                present += 1;
                rows.push(row as u64);
            } else {
                places.push(None);
            }
        }
        let dense = if rows.len() == array.len() {
            Arc::clone(array)
        } else {
            arrow_select::take::take(array, &arrow_array::UInt64Array::from(rows), None)
                .map_err(|e| tidemill_core::Error::internal("rows of an optional column").because(e))?
        };
        Ok(OptionColumn { values: T::column(&dense)?, places: Arc::new(places) })
    }
    fn get(column: &Self::Column, row: usize) -> Option<T::Ref<'_>> {
        column.places[row].map(|at| T::get(&column.values, at as usize))
    }
    fn borrow(&self) -> Option<T::Ref<'_>> {
        self.as_ref().map(Record::borrow)
    }
    fn own(value: Option<T::Ref<'_>>) -> Self {
        value.map(T::own)
    }
    fn builder(capacity: usize) -> Self::Builder {
        OptionBuilder { values: T::builder(capacity), places: Vec::with_capacity(capacity), present: 0 }
    }
    fn append(builder: &mut Self::Builder, value: Option<T::Ref<'_>>) {
        builder.places.push(value.map(|value| {
            T::append(&mut builder.values, value);
            builder.present += 1;
            builder.present - 1
        }));
    }
    fn finish(builder: &mut Self::Builder) -> ArrayRef {
        let dense = T::finish(&mut builder.values);
        let places = std::mem::take(&mut builder.places);
        builder.present = 0;
        if places.iter().all(Option::is_some) {
            return if places.is_empty() { new_empty_array(&Self::data_type()) } else { dense };
        }
        let indices = arrow_array::UInt32Array::from(places);
        debug_assert!(indices.nulls().is_some_and(|n: &NullBuffer| n.null_count() > 0));
        arrow_select::take::take(&dense, &indices, None).expect("places are within the values")
    }
}

impl<T: Key> Key for Option<T> {
    fn hash<H: Hasher>(value: Option<T::Ref<'_>>, state: &mut H) {
        value.is_some().hash(state);
        if let Some(value) = value {
            T::hash(value, state);
        }
    }
    fn same(a: Option<T::Ref<'_>>, b: Option<T::Ref<'_>>) -> bool {
        match (a, b) {
            (Some(a), Some(b)) => T::same(a, b),
            (None, None) => true,
            _ => false,
        }
    }
}

/// The unit is a column of `false`: it costs a bit a row and lets every plan carry rows without values.
impl Record for () {
    type Ref<'a> = ();
    type Column = arrow_array::BooleanArray;
    type Builder = arrow_array::builder::BooleanBuilder;

    fn data_type() -> DataType {
        DataType::Boolean
    }
    fn column(array: &ArrayRef) -> Result<Self::Column> {
        expect_type(array, &DataType::Boolean)?;
        Ok(array.as_boolean().clone())
    }
    fn get(_column: &Self::Column, _row: usize) {}
    fn borrow(&self) {}
    fn own(_value: ()) {}
    fn builder(capacity: usize) -> Self::Builder {
        arrow_array::builder::BooleanBuilder::with_capacity(capacity)
    }
    fn append(builder: &mut Self::Builder, _value: ()) {
        builder.append_value(false);
    }
    fn finish(builder: &mut Self::Builder) -> ArrayRef {
        Arc::new(builder.finish())
    }
}
