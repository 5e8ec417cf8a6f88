//! The mark of a table's family: which batch is whole in it, and at which timestamp.
//!
//! HBase shows, of the versions of a cell, the one of the latest timestamp, whichever was written last. So each batch
//! has one: the milliseconds of its own time, or just behind the last batch's where clocks went back.
//!
//! ```text
//! batch 7, 15:00:01   mark 6 at 15:00:00   written at 15:00:01
//! again, cut off      mark 6 at 15:00:00   written at 15:00:01    the same cells: nothing changes
//! batch 8, 14:59:00   mark 7 at 15:00:01   written at 15:00:01.001
//! ```
//!
//! It is looked for by a scan: asked for a row, the gateway says that there is none where it could not look, and a
//! batch would be taken for the first one.
//!
//! Invariant: that of [`crate::stamp`], which says when. Called by the sink.

use super::{cut::Cutter, server::Server, table::Table};
use crate::stamp::Mark;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use tidemill_core::{Error, Result};

/// Of timestamps, in microseconds; HBase takes none before 1970.
pub(super) const UNIT: i64 = 1000;
/// The family of the table of marks.
pub(super) const FAMILY: &str = "b";

fn text(mark: Mark) -> String {
    format!("{} {} {}", mark.batch, mark.time, mark.stamp)
}

fn parse(text: &str) -> Option<Mark> {
    let mut numbers = text.split(' ').map(|number| number.parse().ok());
    let mark = Mark { batch: numbers.next()??, time: numbers.next()??, stamp: numbers.next()?? };
    numbers.next().is_none().then_some(mark)
}

/// The mark in what a scan from its row on gave; the error is what is wrong with it.
fn found(body: &[u8], row: &str) -> Result<Mark, String> {
    let text = |value: &Value| {
        let bytes = STANDARD.decode(value.as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    let answer: Value = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    let rows = answer["Row"].as_array().ok_or("it gave no rows")?;
    let Some(first) = rows.first().filter(|first| text(&first["key"]).as_deref() == Some(row)) else {
        return Ok(Mark::default());
    };
    let cells = first["Cell"].as_array().map(Vec::as_slice).unwrap_or_default();
    let cell = cells.iter().find(|cell| text(&cell["column"]).as_deref() == Some("b:mark"));
    let mark = cell.and_then(|cell| parse(&text(&cell["$"])?));
    mark.ok_or_else(|| format!("row `{row}` has another form"))
}

/// Reads the mark of a table; one of no batch when there is none.
///
/// # Errors
/// When HBase does not answer, or with what is no mark.
pub(super) async fn read(server: &Server, table: &Table) -> Result<Mark> {
    let row = table.mark_row();
    let what = format!("read the mark of `{}`", table.name);
    let answer = server.get(&what, &format!("/{}/*?startrow={row}&limit=1", table.marks())).await?;
    if !answer.status.is_success() {
        return Err(server.refused(&what, &answer));
    }
    found(&answer.body, &row).map_err(|why| {
        Error::external(format!("hbase: can't {what} in `{}` at {}: {why}", table.marks(), server.place))
    })
}

/// Notes which batch is whole.
///
/// # Errors
/// When HBase does not take it.
pub(super) async fn note(server: &Server, table: &Table, mark: Mark) -> Result<()> {
    // One cell, so that it is read as it was written; at its own timestamp, so that a note that comes late is not
    // taken for the newest.
    let mut cutter = Cutter::new(1, usize::MAX, mark.stamp);
    cutter.add(table.mark_row().as_bytes(), [(&b"b:mark"[..], text(mark).as_bytes())]);
    let body = cutter.finish().ok_or_else(|| Error::internal("a mark that was written"))?;
    server.post(&format!("note the batch of `{}`", table.name), &format!("/{}/row", table.marks()), body).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stamp::Step;
    use tidemill_core::Timestamp;

    #[test]
    fn a_batch_is_written_at_one_time_behind_all_others() {
        let none = Mark::default();
        assert_eq!(none.step(1, Timestamp(5_000_900), UNIT), Step::Write(5000));
        assert_eq!(none.step(1, Timestamp(-7), UNIT), Step::Write(1));
        let first = Mark::of(1, Timestamp(5_000_900), 5000);
        assert_eq!(first.step(1, Timestamp(5_000_900), UNIT), Step::Nothing);
        assert_eq!(first.step(2, Timestamp(6_000_000), UNIT), Step::Write(6000));
        // Batches of one millisecond, and clocks that go back.
        assert_eq!(first.step(2, Timestamp(5_000_901), UNIT), Step::Write(5001));
        assert_eq!(first.step(2, Timestamp(10), UNIT), Step::Write(5001));
        // The same number of another history is another batch.
        assert_eq!(first.step(1, Timestamp(4_000_000), UNIT), Step::Write(5001));
        // A program that was restored at batch 2, and then repeats it, and goes on.
        let ahead = Mark::of(7, Timestamp(9_000_000), 9000);
        assert_eq!(ahead.step(2, Timestamp(6_000_000), UNIT), Step::Nothing);
        let back = ahead.back(2);
        assert_eq!(back.step(2, Timestamp(6_000_000), UNIT), Step::Nothing);
        assert_eq!(back.step(3, Timestamp(7_000_000), UNIT), Step::Write(9002));
        assert_eq!(parse(&text(back)), Some(back));
    }

    #[test]
    fn an_answer_is_a_mark_or_none_or_an_error() {
        let body = |key: &str, column: &str, value: &str| {
            let [key, column, value] = [key, column, value].map(|text| STANDARD.encode(text));
            format!(r#"{{"Row":[{{"key":"{key}","Cell":[{{"column":"{column}","timestamp":9,"$":"{value}"}}]}}]}}"#)
        };
        let found = |body: &str| found(body.as_bytes(), "t:d");
        let mark = Mark::of(7, Timestamp(9000), 9);
        assert_eq!(found(&body("t:d", "b:mark", "7 9000 9")), Ok(mark));
        // That of another table.
        assert_eq!(found(&body("t:e", "b:mark", "7 9000 9")), Ok(Mark::default()));
        assert_eq!(found(r#"{"Row":[]}"#), Ok(Mark::default()));
        for none in ["7 9000", "7 9000 9 1", "x 9000 9", ""] {
            assert!(found(&body("t:d", "b:mark", none)).is_err(), "{none}");
        }
        for none in [&body("t:d", "b:x", "7 9000 9"), "", "{}", "<html>", "[]", r#"{"Row":{}}"#] {
            assert!(found(none).is_err(), "{none}");
        }
    }
}
