//! Bytes that nobody wrote, made from those that somebody did. Shared by the tests of several crates.

/// Changed bytes, drawn from a seed.
pub(crate) struct Mutations(u64);

impl Mutations {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed ^ 0x5851_f42d_4c95_7f2d)
    }

    /// The next draw (splitmix64).
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 below 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % (n as u64).max(1)).unwrap_or(0)
    }

    /// One of these with one to eight changes.
    pub(crate) fn of(&mut self, originals: &[&[u8]]) -> Vec<u8> {
        let mut bytes = originals[self.below(originals.len())].to_vec();
        for _ in 0..=self.below(8) {
            self.change(&mut bytes, originals);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, originals: &[&[u8]]) {
        const TELLING: &[&[u8]] = &[
            b"\0",
            b"\xff",
            b"\x7f",
            b"\x80",
            b"\"",
            b"\\",
            b"{",
            b"[",
            b"}",
            b"]",
            b",",
            b":",
            b"\n",
            b"\r\n",
            b"-",
            b"0",
            b"9999999999999999999999",
            b"1e999",
            b"\xc3\x28",
            b"\xf0\x9f\x8c\x8a",
            b"\\u0000",
            b"\\ud800",
            b"null",
            b"\0\0\0\0",
            b"\xff\xff\xff\xff",
            b"\xff\xff\xff\x7f",
            b"--",
            b"/*",
            b"'",
            b";",
            b"(",
            b")",
            b" ",
            b"((((((((((((((((",
        ];
        let at = self.below(bytes.len() + 1);
        let end = at + self.below(bytes.len() + 1 - at).min(1 + self.below(40));
        match self.below(8) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            2 if at < bytes.len() => bytes[at] = u8::try_from(self.below(256)).unwrap_or(0),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let piece = bytes[at..end].to_vec();
                let to = self.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            5 => bytes.truncate(at),
            6 => {
                let other = originals[self.below(originals.len())];
                let from = self.below(other.len() + 1);
                let upto = from + self.below(other.len() + 1 - from);
                bytes.splice(at..end, other[from..upto].iter().copied());
            }
            _ => {
                let telling = TELLING[self.below(TELLING.len())];
                let to = if self.below(2) == 0 { at } else { end };
                bytes.splice(at..to, telling.iter().copied());
            }
        }
    }
}
