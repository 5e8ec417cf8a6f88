//! Numbers, booleans and instants as records.
//!
//! Their borrowed form is a copy. Invariant: instants are microseconds in UTC.

use super::{Key, Record, expect_type, refuse_nulls};
use arrow_array::{
    Array, ArrayRef, BooleanArray, PrimitiveArray,
    builder::{BooleanBuilder, PrimitiveBuilder},
    cast::AsArray,
    types,
};
use arrow_schema::{DataType, TimeUnit};
use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};
use tidemill_core::{Result, Timestamp};

macro_rules! primitive {
    ($($rust:ty => $arrow:ty, $data_type:expr;)*) => {$(
        impl Record for $rust {
            type Ref<'a> = $rust;
            type Column = PrimitiveArray<$arrow>;
            type Builder = PrimitiveBuilder<$arrow>;

            fn data_type() -> DataType {
                $data_type
            }
            fn column(array: &ArrayRef) -> Result<Self::Column> {
                expect_type(array, &Self::data_type())?;
                refuse_nulls(array)?;
                Ok(array.as_primitive::<$arrow>().clone())
            }
            #[inline]
            fn get(column: &Self::Column, row: usize) -> $rust {
                column.values()[row]
            }
            #[inline]
            fn borrow(&self) -> $rust {
                *self
            }
            #[inline]
            fn own(value: $rust) -> Self {
                value
            }
            fn builder(capacity: usize) -> Self::Builder {
                PrimitiveBuilder::with_capacity(capacity)
            }
            #[inline]
            fn append(builder: &mut Self::Builder, value: $rust) {
                builder.append_value(value);
            }
            fn finish(builder: &mut Self::Builder) -> ArrayRef {
                Arc::new(builder.finish())
            }
        }
    )*};
}

primitive! {
    i8 => types::Int8Type, DataType::Int8;
    i16 => types::Int16Type, DataType::Int16;
    i32 => types::Int32Type, DataType::Int32;
    i64 => types::Int64Type, DataType::Int64;
    u8 => types::UInt8Type, DataType::UInt8;
    u16 => types::UInt16Type, DataType::UInt16;
    u32 => types::UInt32Type, DataType::UInt32;
    u64 => types::UInt64Type, DataType::UInt64;
    f32 => types::Float32Type, DataType::Float32;
    f64 => types::Float64Type, DataType::Float64;
}

macro_rules! key {
    ($($rust:ty),*) => {$(
        impl Key for $rust {
            #[inline]
            fn hash<H: Hasher>(value: $rust, state: &mut H) {
                Hash::hash(&value, state);
            }
            #[inline]
            fn same(a: $rust, b: $rust) -> bool {
                a == b
            }
        }
    )*};
}

key!(i8, i16, i32, i64, u8, u16, u32, u64, bool, Timestamp);

impl Record for bool {
    type Ref<'a> = bool;
    type Column = BooleanArray;
    type Builder = BooleanBuilder;

    fn data_type() -> DataType {
        DataType::Boolean
    }
    fn column(array: &ArrayRef) -> Result<Self::Column> {
        expect_type(array, &DataType::Boolean)?;
        refuse_nulls(array)?;
        Ok(array.as_boolean().clone())
    }
    #[inline]
    fn get(column: &Self::Column, row: usize) -> bool {
        column.value(row)
    }
    #[inline]
    fn borrow(&self) -> bool {
        *self
    }
    #[inline]
    fn own(value: bool) -> Self {
        value
    }
    fn builder(capacity: usize) -> Self::Builder {
        BooleanBuilder::with_capacity(capacity)
    }
    #[inline]
    fn append(builder: &mut Self::Builder, value: bool) {
        builder.append_value(value);
    }
    fn finish(builder: &mut Self::Builder) -> ArrayRef {
        Arc::new(builder.finish())
    }
}

/// Instants are microseconds in UTC.
impl Record for Timestamp {
    type Ref<'a> = Timestamp;
    type Column = PrimitiveArray<types::TimestampMicrosecondType>;
    type Builder = PrimitiveBuilder<types::TimestampMicrosecondType>;

    fn data_type() -> DataType {
        DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
    }
    fn column(array: &ArrayRef) -> Result<Self::Column> {
        // The zone is for display; microseconds since the epoch are the same in each.
        if !matches!(array.data_type(), DataType::Timestamp(TimeUnit::Microsecond, _)) {
            expect_type(array, &Self::data_type())?;
        }
        refuse_nulls(array)?;
        Ok(array.as_primitive::<types::TimestampMicrosecondType>().clone())
    }
    #[inline]
    fn get(column: &Self::Column, row: usize) -> Timestamp {
        Timestamp(column.values()[row])
    }
    #[inline]
    fn borrow(&self) -> Timestamp {
        *self
    }
    #[inline]
    fn own(value: Timestamp) -> Self {
        value
    }
    fn builder(capacity: usize) -> Self::Builder {
        PrimitiveBuilder::with_capacity(capacity).with_timezone("UTC")
    }
    #[inline]
    fn append(builder: &mut Self::Builder, value: Timestamp) {
        builder.append_value(value.0);
    }
    fn finish(builder: &mut Self::Builder) -> ArrayRef {
        Arc::new(builder.finish())
    }
}
