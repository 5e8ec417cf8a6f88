//! Bytes of a record, read one value after another.
//!
//! Invariant: nothing is read behind the end, and no number that a record says
//! makes anything wait or grow beyond the record: a length is compared with what
//! is left, and items that take no bytes are counted. Called by the decoder.

use super::schema::{Id, Schema, Type};

/// How deep values may lie in each other.
pub(super) const DEPTH: usize = 64;
/// Items of arrays that take no bytes (of type null, or of a record without fields) in one record.
const EMPTY: usize = 1 << 16;

/// Why a value can't be read.
pub(super) type Fault = &'static str;

/// The bytes are not enough.
pub(super) const ENDS: Fault = "the record ends too early";

/// What is left of a record.
pub(super) struct Input<'a> {
    rest: &'a [u8],
    empty: usize,
    /// Whether text that is passed over may be none.
    loose: bool,
}

impl<'a> Input<'a> {
    pub(super) fn new(record: &'a [u8]) -> Self {
        Self { rest: record, empty: EMPTY, loose: false }
    }

    /// To find where records end that are looked at later, one by one.
    pub(super) fn loose(records: &'a [u8]) -> Self {
        Self { loose: true, ..Self::new(records) }
    }

    /// Bytes that are left.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// So many bytes.
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(ENDS)?;
        self.rest = rest;
        Ok(taken)
    }

    /// A number of variable length, zigzag.
    pub(super) fn long(&mut self) -> Result<i64, Fault> {
        let mut bits = 0_u64;
        for (place, byte) in self.rest.iter().enumerate().take(10) {
            // The tenth byte has one bit left.
            if place == 9 && *byte > 1 {
                return Err("a number of more than 64 bits");
            }
            bits |= u64::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[place + 1..];
                return Ok((bits >> 1).cast_signed() ^ -((bits & 1).cast_signed()));
            }
        }
        Err(if self.rest.len() < 10 { ENDS } else { "a number of more than 64 bits" })
    }

    /// A number of the type int.
    pub(super) fn int(&mut self) -> Result<i32, Fault> {
        i32::try_from(self.long()?).map_err(|_| "a number of more than 32 bits, where an int is expected")
    }

    pub(super) fn boolean(&mut self) -> Result<bool, Fault> {
        match self.take(1)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err("a boolean is neither 0 nor 1"),
        }
    }

    pub(super) fn float(&mut self) -> Result<f32, Fault> {
        Ok(f32::from_le_bytes(self.take(4)?.try_into().map_err(|_| ENDS)?))
    }

    pub(super) fn double(&mut self) -> Result<f64, Fault> {
        Ok(f64::from_le_bytes(self.take(8)?.try_into().map_err(|_| ENDS)?))
    }

    /// Bytes behind their length.
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Fault> {
        let length = usize::try_from(self.long()?).map_err(|_| "a length below zero")?;
        self.take(length)
    }

    /// The place of a symbol or a branch, of so many.
    pub(super) fn index(&mut self, of: usize) -> Result<usize, Fault> {
        let index = usize::try_from(self.long()?).ok().filter(|index| *index < of);
        index.ok_or("a symbol or branch that the schema does not have")
    }

    /// Each item of an array or a map; a block may say how many bytes it has.
    pub(super) fn items<E: From<Fault>>(&mut self, mut item: impl FnMut(&mut Self) -> Result<(), E>) -> Result<(), E> {
        loop {
            let mut count = self.long()?;
            if count == 0 {
                return Ok(());
            }
            if count < 0 {
                count = count.checked_neg().ok_or("a count below zero")?;
                self.long()?;
            }
            for _ in 0..count {
                let before = self.left();
                item(self)?;
                if self.left() == before {
                    self.empty = self.empty.checked_sub(1).ok_or("too many items without a byte")?;
                }
            }
        }
    }

    /// Passes over a text.
    fn text(&mut self, fault: Fault) -> Result<(), Fault> {
        let text = self.bytes()?;
        if self.loose { Ok(()) } else { simdutf8::basic::from_utf8(text).map(drop).map_err(|_| fault) }
    }

    /// Passes over a value.
    pub(super) fn skip(&mut self, schema: &Schema, id: Id, depth: usize) -> Result<(), Fault> {
        let below = depth.checked_sub(1).ok_or("values lie too deep in each other")?;
        match &schema.get(id).ty {
            Type::Null => Ok(()),
            Type::Boolean => self.boolean().map(drop),
            Type::Int => self.int().map(drop),
            Type::Long => self.long().map(drop),
            Type::Float => self.take(4).map(drop),
            Type::Double => self.take(8).map(drop),
            Type::Bytes => self.bytes().map(drop),
            Type::String => self.text("a string that is no UTF-8"),
            Type::Fixed(size) => self.take(*size).map(drop),
            Type::Enum { symbols, .. } => self.index(symbols.len()).map(drop),
            Type::Array(item) => self.items(|input| input.skip(schema, *item, below)),
            Type::Map(value) => self.items(|input| {
                input.text("a key that is no UTF-8")?;
                input.skip(schema, *value, below)
            }),
            Type::Union(branches) => {
                let branch = self.index(branches.len())?;
                self.skip(schema, branches[branch], below)
            }
            Type::Record { fields, .. } => fields.iter().try_for_each(|field| self.skip(schema, field.ty, below)),
        }
    }
}

/// Appends a number of variable length, zigzag.
pub(super) fn put_long(value: i64, bytes: &mut Vec<u8>) {
    let mut bits = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while bits >= 0x80 {
        bytes.push(u8::try_from(bits & 0x7f).unwrap_or(0) | 0x80);
        bits >>= 7;
    }
    bytes.push(u8::try_from(bits).unwrap_or(0));
}

/// Appends bytes behind their length.
pub(super) fn put_bytes(value: &[u8], bytes: &mut Vec<u8>) {
    put_long(i64::try_from(value.len()).unwrap_or(i64::MAX), bytes);
    bytes.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_as_they_were() {
        for value in [0, 1, -1, 63, -64, 64, i64::from(i32::MAX), i64::MIN, i64::MAX, 1 << 62] {
            let mut bytes = Vec::new();
            put_long(value, &mut bytes);
            let mut input = Input::new(&bytes);
            assert_eq!((input.long(), input.left()), (Ok(value), 0), "{value}");
            assert!(Input::new(&bytes[..bytes.len() - 1]).long().is_err(), "{value} cut");
        }
        assert!(Input::new(&[0xff; 10]).long().unwrap_err().contains("64 bits"));
        assert!(Input::new(&[0xff; 5]).long().unwrap_err().contains("too early"));
    }

    #[test]
    fn counts_that_a_record_can_not_hold_end_soon() {
        let nulls = Schema::parse(r#"{"type":"array","items":"null"}"#, &[]).unwrap();
        let mut bytes = Vec::new();
        put_long(i64::MAX, &mut bytes);
        let fault = Input::new(&bytes).skip(&nulls, nulls.root(), DEPTH).unwrap_err();
        assert_eq!(fault, "too many items without a byte");
        let deep = Schema::parse(r#"{"type":"record","name":"R","fields":[{"name":"r","type":["null","R"]}]}"#, &[]);
        let deep = deep.unwrap();
        let fault = Input::new(&[2; 1000]).skip(&deep, deep.root(), DEPTH).unwrap_err();
        assert_eq!(fault, "values lie too deep in each other");
    }
}
