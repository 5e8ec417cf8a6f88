//! Rows as the bodies of requests, and what is erased as the paths of others.
//!
//! A body is the gateway's JSON of rows with their cells, in which keys, columns and values stand as Base64:
//! `{"Row":[{"key":"…","Cell":[{"column":"…","timestamp":7,"$":"…"}]}]}`.
//!
//! Invariant: a body has as many rows and bytes as it may, or a single row; each cell has the timestamp that was
//! given. Called by the sink, and for marks.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use std::fmt::Write;

/// Bytes of a path at most; the gateway takes 64 KiB with all headers.
const PATH: usize = 56 << 10;

/// Cuts rows into bodies.
#[derive(Debug)]
pub(super) struct Cutter {
    max_rows: usize,
    max_bytes: usize,
    stamp: i64,
    /// The rows of the body that is under way, with what opens it.
    begun: String,
    rows: usize,
}

impl Cutter {
    pub(super) fn new(max_rows: usize, max_bytes: usize, stamp: i64) -> Self {
        Self { max_rows, max_bytes, stamp, begun: String::new(), rows: 0 }
    }

    /// Takes a row with its cells, of column and value, and gives the body that is full.
    pub(super) fn add<'a>(
        &mut self,
        key: &[u8],
        cells: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Option<Bytes> {
        let mut row = String::from("{\"key\":\"");
        STANDARD.encode_string(key, &mut row);
        row.push_str("\",\"Cell\":[");
        for (at, (column, value)) in cells.into_iter().enumerate() {
            row.push_str(if at == 0 { "{\"column\":\"" } else { ",{\"column\":\"" });
            STANDARD.encode_string(column, &mut row);
            // Writing to a text does not fail.
            let _written = write!(row, "\",\"timestamp\":{},\"$\":\"", self.stamp);
            STANDARD.encode_string(value, &mut row);
            row.push_str("\"}");
        }
        row.push_str("]}");
        let is_full = self.rows == self.max_rows || self.rows > 0 && self.begun.len() + row.len() + 3 > self.max_bytes;
        let full = if is_full { self.finish() } else { None };
        self.begun.push_str(if self.rows == 0 { "{\"Row\":[" } else { "," });
        self.begun.push_str(&row);
        self.rows += 1;
        full
    }

    /// The last body, if one is under way.
    pub(super) fn finish(&mut self) -> Option<Bytes> {
        if std::mem::take(&mut self.rows) == 0 {
            return None;
        }
        self.begun.push_str("]}");
        Some(Bytes::from(std::mem::take(&mut self.begun)))
    }
}

/// The paths whose deletion takes columns of a row away, at a timestamp and before.
pub(super) fn erasing(table: &str, key: &[u8], columns: &[&[u8]], stamp: i64) -> Vec<String> {
    // Without a column it would be the whole row.
    let encoded = URL_SAFE_NO_PAD.encode(key);
    // Some rows would lie where the gateway has something else (`/table/regions`): the first sign in other clothes
    // leads past that, and is the same to it when it looks for the row.
    let (first, rest) = encoded.split_at(encoded.len().min(1));
    let first: String = first.bytes().map(|sign| format!("%{sign:02X}")).collect();
    let row = format!("/{table}/{first}{rest}/");
    let (mut paths, mut begun) = (Vec::new(), String::new());
    for column in columns {
        let column = URL_SAFE_NO_PAD.encode(column);
        if !begun.is_empty() && row.len() + begun.len() + column.len() > PATH {
            paths.push(format!("{row}{}/{stamp}", std::mem::take(&mut begun)));
        }
        if !begun.is_empty() {
            begun.push(',');
        }
        begun.push_str(&column);
    }
    if !begun.is_empty() {
        paths.push(format!("{row}{begun}/{stamp}"));
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_cut_by_rows_and_by_bytes() {
        let row = |key: &str| {
            format!(r#"{{"key":"{}","Cell":[{{"column":"ZDp4","timestamp":7,"$":""}}]}}"#, STANDARD.encode(key))
        };
        let body =
            |keys: &[&str]| format!(r#"{{"Row":[{}]}}"#, keys.iter().map(|k| row(k)).collect::<Vec<_>>().join(","));
        let cut = |max_rows, max_bytes| {
            let mut cutter = Cutter::new(max_rows, max_bytes, 7);
            let mut bodies = Vec::new();
            for key in ["a", "b", "c"] {
                bodies.extend(cutter.add(key.as_bytes(), [(&b"d:x"[..], &b""[..])]));
            }
            bodies.extend(cutter.finish());
            bodies.iter().map(|body| String::from_utf8(body.to_vec()).unwrap()).collect::<Vec<_>>()
        };
        let two = body(&["a", "b"]).len();
        assert_eq!(cut(9, 9999), [body(&["a", "b", "c"])]);
        assert_eq!(cut(2, 9999), [body(&["a", "b"]), body(&["c"])]);
        assert_eq!(cut(9, two), [body(&["a", "b"]), body(&["c"])]);
        // One byte less, and each goes alone; also when a row is more than may be.
        assert_eq!(cut(9, two - 1), [body(&["a"]), body(&["b"]), body(&["c"])]);
        assert_eq!(cut(9, 1).len(), 3);
        assert_eq!(Cutter::new(9, 9, 7).finish(), None);
    }

    #[test]
    fn columns_are_erased_by_paths_that_the_gateway_takes() {
        assert_eq!(erasing("t", b"a*", &[b"d:x", b"d:\xff\xfe?"], 7), ["/t/%59So/ZDp4,ZDr__j8/7"]);
        assert!(erasing("t", b"a", &[], 7).is_empty(), "never a whole row");
        let long = [b'x'; 20_000];
        let paths = erasing("t", b"a", &[&long, &long, &long], 7);
        assert_eq!(paths.len(), 2);
        assert!(paths.iter().all(|path| path.len() < 64 << 10 && path.ends_with("/7")));
    }
}
