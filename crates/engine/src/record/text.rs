//! Text as records: `String`, and [`Str`] that keeps short text inline.

use super::{Key, Record, expect_type, refuse_nulls};
use arrow_array::{Array, ArrayRef, StringArray, builder::StringBuilder, cast::AsArray};
use arrow_schema::DataType;
use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};
use tidemill_core::Result;

/// Text of up to 24 bytes without an allocation: the type for words, tags and
/// names that a function hands on.
pub type Str = compact_str::CompactString;

macro_rules! text {
    ($($rust:ty),*) => {$(
        impl Record for $rust {
            type Ref<'a> = &'a str;
            type Column = StringArray;
            type Builder = StringBuilder;

            fn data_type() -> DataType {
                DataType::Utf8
            }
            fn column(array: &ArrayRef) -> Result<Self::Column> {
                let array = match array.data_type() {
                    DataType::Utf8View | DataType::LargeUtf8 => &arrow_cast::cast(array, &DataType::Utf8)
                        .map_err(|e| tidemill_core::Error::internal("text of over 2 GiB in one batch").because(e))?,
                    _ => array,
                };
                expect_type(array, &DataType::Utf8)?;
                refuse_nulls(array)?;
                Ok(array.as_string::<i32>().clone())
            }
            #[inline]
            fn get(column: &Self::Column, row: usize) -> &str {
                column.value(row)
            }
            #[inline]
            fn borrow(&self) -> &str {
                self.as_str()
            }
            #[inline]
            fn own(value: &str) -> Self {
                <$rust>::from(value)
            }
            fn builder(capacity: usize) -> Self::Builder {
                StringBuilder::with_capacity(capacity, capacity * 8)
            }
            #[inline]
            fn append(builder: &mut Self::Builder, value: &str) {
                builder.append_value(value);
            }
            fn finish(builder: &mut Self::Builder) -> ArrayRef {
                Arc::new(builder.finish())
            }
        }

        impl Key for $rust {
            #[inline]
            fn hash<H: Hasher>(value: &str, state: &mut H) {
                value.hash(state);
            }
            #[inline]
            fn same(a: &str, b: &str) -> bool {
                a == b
            }
        }
    )*};
}

text!(String, Str);
