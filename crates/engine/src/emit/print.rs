//! `print`: the block that the field prints for each batch.
//!
//! ```text
//! -------------------------------------------
//! Time: 1779719009000 ms
//! -------------------------------------------
//! (to,2)
//! (be,2)
//! ...
//! ```

use super::{BatchInfo, OutputKind};
use crate::{
    record::{Record, records_of},
    stream::{Chain, DStream},
};
use arrow_array::RecordBatch;
use std::{fmt::Debug, fmt::Write as _, io::Write as _, sync::Arc};
use tidemill_core::{Error, Result};

const LINE: &str = "-------------------------------------------";

/// The block of one batch: at most `limit` records, then `...`.
pub(crate) fn block<T: Record + Debug>(info: &BatchInfo, rows: &[RecordBatch], limit: usize) -> Result<String> {
    let mut text = format!("{LINE}\nTime: {} ms\n{LINE}\n", info.time.millis());
    let mut left = limit;
    for rows in rows {
        let shown = rows.num_rows().min(left);
        for record in records_of::<T>(&rows.slice(0, shown))? {
            // Writing to a string can't fail.
            let _infallible = writeln!(text, "{record:?}");
        }
        left -= shown;
        if shown < rows.num_rows() {
            text.push_str("...\n");
            break;
        }
    }
    text.push('\n');
    Ok(text)
}

impl<T: Record + Debug, C: Chain<Out = T>> DStream<T, C> {
    /// Prints the first ten records of each batch to standard output.
    pub fn print(&self) {
        self.print_first(10);
    }

    /// Prints the first `limit` records of each batch to standard output.
    pub fn print_first(&self, limit: usize) {
        let name = self.declare.name("print");
        let call = move |info: &BatchInfo, rows: &[RecordBatch]| {
            let text = block::<T>(info, rows, limit)?;
            std::io::stdout().lock().write_all(text.as_bytes()).map_err(|e| Error::external("can't print").because(e))
        };
        self.output(name, OutputKind::Call(Arc::new(call)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::batch_of;
    use tidemill_core::{BatchId, Timestamp};

    #[test]
    fn a_block_has_dashes_time_and_the_first_rows() {
        let rows = [
            batch_of([("a".to_string(), 1_i64), ("b".into(), 2)]).unwrap(),
            batch_of([("c".to_string(), 3_i64)]).unwrap(),
        ];
        let info = BatchInfo { id: BatchId(1), time: Timestamp::from_millis(2000) };
        let text = block::<(String, i64)>(&info, &rows, 2).unwrap();
        assert_eq!(text, format!("{LINE}\nTime: 2000 ms\n{LINE}\n(\"a\", 1)\n(\"b\", 2)\n...\n\n"));
    }
}
