//! Avro's binary encoding, as far as Flume's messages need it.
//!
//! Invariant: a reader never goes beyond its bytes, and never allocates more than they have.

use super::bad;
use bytes::Bytes;
use tidemill_core::Result;

/// Writes values.
#[derive(Debug, Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    /// A number, zigzag, seven bits a byte.
    #[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "the bits are what is written")]
    pub(crate) fn long(&mut self, value: i64) {
        let mut left = ((value << 1) ^ (value >> 63)) as u64;
        while left >= 0x80 {
            self.0.push((left as u8) | 0x80);
            left >>= 7;
        }
        self.0.push(left as u8);
    }

    pub(crate) fn count(&mut self, count: usize) {
        self.long(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A length and as many bytes: a string, or bytes.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.extend_from_slice(bytes);
    }
}

/// Reads values.
#[derive(Debug)]
pub(crate) struct Reader(pub(crate) Bytes);

impl Reader {
    #[expect(clippy::cast_possible_wrap, reason = "the bits are what was written")]
    pub(crate) fn long(&mut self) -> Result<i64> {
        let mut value = 0_u64;
        for (at, byte) in self.0.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                self.0 = self.0.slice(at + 1..);
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        Err(bad("a number does not end"))
    }

    /// Raw bytes.
    pub(crate) fn fixed(&mut self, count: usize) -> Result<Bytes> {
        if count > self.0.len() {
            return Err(bad("it ends within a value"));
        }
        Ok(self.0.split_to(count))
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes> {
        let count = usize::try_from(self.long()?).map_err(|_| bad("a length below nothing"))?;
        self.fixed(count)
    }

    pub(crate) fn text(&mut self) -> Result<String> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| bad("a text is not UTF-8"))
    }

    /// The branch of a union whose first one is null.
    pub(crate) fn is_some(&mut self) -> Result<bool> {
        match self.long()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(bad("a union of two has no such branch")),
        }
    }

    /// The items of an array or map, which come in blocks.
    pub(crate) fn items(&mut self, mut item: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        loop {
            let mut count = self.long()?;
            if count == 0 {
                return Ok(());
            }
            if count < 0 {
                count = count.checked_neg().ok_or_else(|| bad("a block is too large"))?;
                // Its bytes, for those who skip it.
                self.long()?;
            }
            for _ in 0..count {
                // Items are not empty, so a block that lies about their number ends here.
                if self.0.is_empty() {
                    return Err(bad("a block ends early"));
                }
                item(self)?;
            }
        }
    }

    /// A map from texts to bytes, which nobody needs.
    pub(crate) fn skip_meta(&mut self) -> Result<()> {
        self.items(|reader| {
            reader.bytes()?;
            reader.bytes().map(drop)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_written_as_the_specification_shows() {
        for (value, bytes) in [(0, &[0_u8][..]), (-1, &[1]), (1, &[2]), (-64, &[0x7f]), (64, &[0x80, 1])] {
            let mut writer = Writer::default();
            writer.long(value);
            assert_eq!(writer.0, bytes, "{value}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn values_come_back(number: i64, bytes: Vec<u8>) {
            let mut writer = Writer::default();
            writer.long(number);
            writer.bytes(&bytes);
            let mut reader = Reader(writer.0.into());
            prop_assert_eq!(reader.long().unwrap(), number);
            prop_assert_eq!(reader.bytes().unwrap(), bytes);
            prop_assert!(reader.0.is_empty() && reader.long().is_err());
        }

        #[test]
        fn any_bytes_are_values_or_an_error(bytes: Vec<u8>) {
            let mut reader = Reader(bytes.into());
            let _any = reader.items(|reader| reader.text().map(drop));
            let _any = reader.skip_meta();
            let _any = reader.is_some();
        }
    }
}
