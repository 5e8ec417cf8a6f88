//! W1 by hand: words of files, counted.
//!
//! Reads large pieces, cuts at spaces and line ends, hashes the bytes where
//! they lie and owns only the distinct words. One table a thread, merged at
//! the end.

use super::{lines::pieces, share_files, table::ByteTable};
use crate::{Result, check::Rows, input::files::Files};

/// How often each word stands in the lines.
pub(crate) type WordCounts = Rows<String, u64>;

/// Words by thread, merged.
#[derive(Debug, Default)]
pub(crate) struct Counts(ByteTable);

impl Counts {
    /// Counts the words of a piece.
    #[inline]
    pub(super) fn piece(&mut self, piece: &str) {
        let bytes = piece.as_bytes();
        let mut start = 0;
        for end in memchr::memchr2_iter(b' ', b'\n', bytes) {
            self.word(&bytes[start..end]);
            start = end + 1;
        }
        self.word(&bytes[start..]);
    }

    #[inline]
    fn word(&mut self, word: &[u8]) {
        if !word.is_empty() {
            *self.0.get(word, 0) += 1;
        }
    }

    /// The counts of all threads in one table.
    pub(super) fn merge(threads: Vec<Self>) -> Self {
        let mut threads = threads.into_iter();
        let mut all = threads.next().unwrap_or_default();
        for other in threads {
            other.0.iter().for_each(|(word, n)| *all.0.get(word, 0) += n);
        }
        all
    }

    /// For comparison; not part of the job.
    pub(crate) fn rows(&self) -> WordCounts {
        Rows::new(self.0.iter().map(|(word, n)| (String::from_utf8_lossy(word).into_owned(), n)).collect())
    }
}

/// Counts the words of all files.
///
/// # Errors
/// When a file can't be read or is not UTF-8.
pub(crate) fn run(files: &Files, threads: usize) -> Result<Counts> {
    let counts = share_files(&files.parts, threads, Counts::default, |mine, file| {
        pieces(file, |piece| {
            mine.piece(piece);
            Ok(())
        })
    })?;
    Ok(Counts::merge(counts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::words::Words;
    use std::{collections::BTreeMap, fs};

    #[test]
    fn counts_are_those_of_the_plainest_program() {
        let base = tempfile::tempdir().unwrap();
        let words = Words::new(4);
        let files = Files::find_or_write(base.path(), "w1", 4, 5_000, 1, |i, into| words.line(i, into)).unwrap();
        let mut expected: BTreeMap<String, u64> = BTreeMap::new();
        for part in &files.parts {
            let text = fs::read_to_string(part).unwrap();
            text.split_whitespace().for_each(|word| *expected.entry(word.into()).or_default() += 1);
        }
        let expected = Rows::new(expected.into_iter().collect());
        assert_eq!(run(&files, 3).unwrap().rows().difference_from(&expected), None);
    }
}
