//! Bytes in large pieces that end where a line does.
//!
//! Invariant: every line comes whole and once, whatever the reads give. Called
//! by the loops that read text.

use crate::Result;
use std::io::{ErrorKind, Read};

/// Bytes read at once: large beside a call, small beside the second-level cache.
const PIECE: usize = 256 << 10;

/// Hands `each` the input in pieces of whole lines, checked to be UTF-8.
///
/// The last line needs no `\n`. A line longer than a piece makes the buffer grow.
pub(super) fn pieces(mut from: impl Read, mut each: impl FnMut(&str) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut kept = 0;
    loop {
        let read = match from.read(&mut buffer[kept..]) {
            Ok(read) => read,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.into()),
        };
        let end = kept + read;
        if read == 0 {
            return if end == 0 { Ok(()) } else { each(utf8(&buffer[..end])?) };
        }
        if let Some(last) = memchr::memrchr(b'\n', &buffer[kept..end]) {
            let cut = kept + last + 1;
            each(utf8(&buffer[..cut])?)?;
            buffer.copy_within(cut..end, 0);
            kept = end - cut;
        } else {
            kept = end;
            if kept == buffer.len() {
                buffer.resize(2 * kept, 0);
            }
        }
    }
}

fn utf8(piece: &[u8]) -> Result<&str> {
    simdutf8::basic::from_utf8(piece).map_err(|_| "a line is not UTF-8".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a few bytes at a time.
    struct Drip<'a>(&'a [u8]);

    impl Read for Drip<'_> {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            let n = self.0.len().min(into.len()).min(7);
            into[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    #[test]
    fn every_line_comes_whole_and_once() {
        let long = "x".repeat(3 * PIECE);
        let text = format!("one\nzwei é\n\n{long}\nlast 日本");
        let mut got = String::new();
        pieces(Drip(text.as_bytes()), |piece| {
            assert!(piece.ends_with('\n') || piece.ends_with("last 日本"));
            got.push_str(piece);
            Ok(())
        })
        .unwrap();
        assert_eq!(got, text);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_refused() {
        assert!(pieces(&b"fine\nnot \xFF fine\n"[..], |_| Ok(())).is_err());
    }
}
