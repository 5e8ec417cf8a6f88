//! Bytes of a message, field by field.
//!
//! Invariant: nothing is read behind the end of a message, and what it says of
//! lengths is compared with what is left. Called by the decoder.

/// Why a message can't be read.
pub(super) type Fault = &'static str;

/// How deep groups that nobody knows may lie in each other.
const DEPTH: usize = 64;
const ENDS: Fault = "the message ends too early";

/// The bytes of one value, or where they lie in the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Raw {
    /// Nothing was found.
    None,
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    /// From, to.
    Bytes(usize, usize),
}

/// A place in a record.
pub(super) struct Cursor<'a> {
    pub(super) record: &'a [u8],
    pub(super) at: usize,
    pub(super) end: usize,
}

impl Cursor<'_> {
    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.end
    }

    fn take(&mut self, count: usize) -> Result<&[u8], Fault> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.end).ok_or(ENDS)?;
        let taken = self.record.get(self.at..end).ok_or(ENDS)?;
        self.at = end;
        Ok(taken)
    }

    /// A number of variable length.
    pub(super) fn varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0;
        for place in 0..10 {
            let byte = self.take(1)?[0];
            if place == 9 && byte > 1 {
                return Err("a number of more than 64 bits");
            }
            value |= u64::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number of more than 64 bits")
    }

    pub(super) fn fixed64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| ENDS)?))
    }

    pub(super) fn fixed32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().map_err(|_| ENDS)?))
    }

    /// The next field's number and value; none for a group, which is passed over.
    pub(super) fn field(&mut self) -> Result<(u32, Raw), Fault> {
        let (number, kind) = self.key()?;
        let raw = match kind {
            3 => {
                self.group(number, DEPTH)?;
                Raw::None
            }
            kind => self.value(kind)?,
        };
        Ok((number, raw))
    }

    fn key(&mut self) -> Result<(u32, u8), Fault> {
        let key = u32::try_from(self.varint()?).map_err(|_| "a field's number is too large")?;
        if key >> 3 == 0 {
            return Err("a field has the number 0");
        }
        Ok((key >> 3, u8::try_from(key & 7).unwrap_or(7)))
    }

    fn value(&mut self, kind: u8) -> Result<Raw, Fault> {
        Ok(match kind {
            0 => Raw::Varint(self.varint()?),
            1 => Raw::Fixed64(self.fixed64()?),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| ENDS)?;
                let from = self.at;
                self.take(length)?;
                Raw::Bytes(from, self.at)
            }
            5 => Raw::Fixed32(self.fixed32()?),
            4 => return Err("a group ends that did not begin"),
            _ => return Err("a field of a kind that does not exist"),
        })
    }

    fn group(&mut self, number: u32, depth: usize) -> Result<(), Fault> {
        let below = depth.checked_sub(1).ok_or("groups lie too deep in each other")?;
        loop {
            match self.key()? {
                (ended, 4) if ended == number => return Ok(()),
                (_, 4) => return Err("a group ends that did not begin"),
                (inner, 3) => self.group(inner, below)?,
                (_, kind) => drop(self.value(kind)?),
            }
        }
    }
}

/// A number that was written zigzag.
pub(super) fn zigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(record: &[u8]) -> Result<(u32, Raw), Fault> {
        Cursor { record, at: 0, end: record.len() }.field()
    }

    #[test]
    fn fields_of_all_kinds_are_read() {
        assert_eq!(field(&[0x08, 0x96, 0x01]), Ok((1, Raw::Varint(150))));
        assert_eq!(field(&[0x11, 1, 0, 0, 0, 0, 0, 0, 0]), Ok((2, Raw::Fixed64(1))));
        assert_eq!(field(&[0x1a, 2, b'h', b'i']), Ok((3, Raw::Bytes(2, 4))));
        assert_eq!(field(&[0x25, 1, 0, 0, 0]), Ok((4, Raw::Fixed32(1))));
        // A group with a field and a group within.
        assert_eq!(field(&[0x0b, 0x10, 1, 0x1b, 0x1c, 0x0c]), Ok((1, Raw::None)));
        assert_eq!([zigzag(0), zigzag(1), zigzag(2), zigzag(u64::MAX)], [0, -1, 1, i64::MIN]);
    }

    #[test]
    fn what_is_no_field_is_told() {
        assert_eq!(field(&[0x1a, 3, b'h']), Err(ENDS));
        assert_eq!(field(&[0x00]), Err("a field has the number 0"));
        assert_eq!(field(&[0x0c]), Err("a group ends that did not begin"));
        assert_eq!(field(&[0x0f]), Err("a field of a kind that does not exist"));
        assert_eq!(field(&[0x0b].repeat(100)), Err("groups lie too deep in each other"));
    }
}
