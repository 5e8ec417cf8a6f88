//! Rows as the bodies of requests.
//!
//! Invariant: how rows are cut depends on the rows alone, not on how they come,
//! so a batch that is sent again has the same bodies. Called by the sink.

use arrow_array::RecordBatch;
use arrow_json::writer::{LineDelimited, WriterBuilder};
use bytes::Bytes;
use tidemill_core::{Error, Result};

/// A body, and how many rows it has.
pub(super) type Cut = (Bytes, usize);

/// What a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    /// An array of objects.
    Array,
    /// An object.
    Row,
}

impl Body {
    /// As written in `body = '…'`.
    pub(super) fn name(self) -> &'static str {
        if self == Self::Array { "array" } else { "row" }
    }
}

/// Cuts rows into bodies.
#[derive(Debug)]
pub(super) struct Cutter {
    body: Body,
    max_rows: usize,
    max_bytes: usize,
    /// The rows of the body that is under way, with its opening bracket.
    begun: Vec<u8>,
    rows: usize,
}

impl Cutter {
    pub(super) fn new(body: Body, max_rows: usize, max_bytes: usize) -> Self {
        Self { body, max_rows, max_bytes, begun: Vec::new(), rows: 0 }
    }

    /// Takes rows, and gives the bodies that are full.
    pub(super) fn add(&mut self, rows: &RecordBatch) -> Result<Vec<Cut>> {
        let broken = |e| Error::user("webhook: these columns can't be written as JSON").because(e);
        let mut lines = Vec::new();
        let mut writer = WriterBuilder::new().build::<_, LineDelimited>(&mut lines);
        writer.write(rows).and_then(|()| writer.finish()).map_err(broken)?;
        let mut full = Vec::new();
        // JSON has no line end but those between rows.
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            if self.body == Body::Row {
                full.push((Bytes::copy_from_slice(line), 1));
                continue;
            }
            if self.rows == self.max_rows || self.rows > 0 && self.begun.len() + line.len() + 2 > self.max_bytes {
                full.extend(self.finish());
            }
            self.begun.push(if self.rows == 0 { b'[' } else { b',' });
            self.begun.extend_from_slice(line);
            self.rows += 1;
        }
        Ok(full)
    }

    /// The last body, if one is under way.
    pub(super) fn finish(&mut self) -> Option<Cut> {
        let rows = std::mem::take(&mut self.rows);
        if rows == 0 {
            return None;
        }
        self.begun.push(b']');
        Some((Bytes::from(std::mem::take(&mut self.begun)), rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::rows;

    fn cut(body: Body, max_rows: usize, max_bytes: usize, batches: &[RecordBatch]) -> Vec<String> {
        let mut cutter = Cutter::new(body, max_rows, max_bytes);
        let mut bodies: Vec<Cut> = batches.iter().flat_map(|rows| cutter.add(rows).unwrap()).collect();
        bodies.extend(cutter.finish());
        assert!(bodies.iter().all(|(body, rows)| body.windows(4).filter(|at| at == b"\"n\":").count() == *rows));
        bodies.iter().map(|(body, _)| String::from_utf8(body.to_vec()).unwrap()).collect()
    }

    #[test]
    fn rows_are_cut_the_same_however_they_come() {
        let row = |n| format!("{{\"n\":{n},\"word\":\"word-{n}\"}}");
        let array = |numbers: &[i64]| format!("[{}]", numbers.iter().map(|n| row(*n)).collect::<Vec<_>>().join(","));
        let ways = [vec![rows(1..=5)], vec![rows([1]), rows([]), rows([2, 3, 4]), rows([5])]];
        for way in &ways {
            assert_eq!(cut(Body::Array, 2, 1000, way), [array(&[1, 2]), array(&[3, 4]), array(&[5])]);
            // Two rows with their brackets and comma are so long: one byte less, and each goes alone.
            let two = array(&[1, 2]).len();
            assert_eq!(cut(Body::Array, 9, two, way), [array(&[1, 2]), array(&[3, 4]), array(&[5])]);
            assert_eq!(cut(Body::Array, 9, two - 1, way).len(), 5);
            assert_eq!(cut(Body::Array, 9, 1, way).len(), 5);
            assert_eq!(cut(Body::Row, 9, 1000, way), (1..=5).map(row).collect::<Vec<_>>());
        }
        assert!(cut(Body::Array, 2, 10, &[rows([])]).is_empty());
    }
}
