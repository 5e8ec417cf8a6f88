//! Text as records: `String`, and [`Str`] that keeps short text inline.
//!
//! Invariant: both lie in the same column and hash alike, so either may be a key.

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
                hash(value.as_bytes(), state);
            }
            #[inline]
            fn same(a: &str, b: &str) -> bool {
                same(a.as_bytes(), b.as_bytes())
            }
        }
    )*};
}

text!(String, Str);

/// The first and the last bytes of short text, overlapping: with its length,
/// all there is to 16 bytes or fewer. Words are that short, and this spares
/// them two calls through pointers a record.
#[inline]
fn ends(text: &[u8]) -> (u64, u64) {
    if let (Some(first), Some(last)) = (text.first_chunk::<8>(), text.last_chunk::<8>()) {
        (u64::from_le_bytes(*first), u64::from_le_bytes(*last))
    } else if let (Some(first), Some(last)) = (text.first_chunk::<4>(), text.last_chunk::<4>()) {
        (u32::from_le_bytes(*first).into(), u32::from_le_bytes(*last).into())
    } else {
        (text.iter().fold(0, |ends, byte| ends << 8 | u64::from(*byte)), 0)
    }
}

#[inline]
fn hash<H: Hasher>(text: &[u8], state: &mut H) {
    if text.len() <= 16 {
        let (first, last) = ends(text);
        state.write_u64(first ^ ((text.len() as u64) << 59));
        state.write_u64(last);
    } else {
        text.hash(state);
    }
}

#[inline]
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && if a.len() <= 16 { ends(a) == ends(b) } else { a == b }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::hash_key;
    use std::collections::HashSet;

    #[test]
    fn texts_of_every_length_are_told_apart() {
        // Letters that repeat make first and last bytes alike; zeros make short texts look padded.
        let mut texts: Vec<String> = Vec::new();
        for length in 0..40 {
            texts.extend(["a".repeat(length), "\0".repeat(length)]);
            for at in 0..length {
                let mut text = "a".repeat(length);
                text.replace_range(at..=at, "b");
                texts.push(text);
            }
        }
        let distinct: HashSet<&String> = texts.iter().collect();
        let hashes: HashSet<u64> = distinct.iter().map(|t| hash_key::<String>(t)).collect();
        assert_eq!(hashes.len(), distinct.len());
        for a in &texts {
            for b in &texts {
                assert_eq!(<String as Key>::same(a, b), a == b, "{a:?} {b:?}");
            }
        }
    }
}
