//! Rows of a query as a table of text.
//!
//! ```text
//!  hashtag | posts
//! ---------+-------
//!  #fb     |    14
//! (1 row)
//! ```
//!
//! Invariant: cells hold no control characters, and columns of any script stand
//! under their headings. Called by `sql`.

use arrow_array::RecordBatch;
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use tidemill::{Error, Result};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Rows drawn; how many more there were is said.
const ROWS: usize = 1000;

/// The table; cells longer than `cut` are cut.
pub(crate) fn table(batches: &[RecordBatch], cut: usize) -> Result<String> {
    let Some(first) = batches.first() else { return Ok("(0 rows)\n".to_string()) };
    let schema = first.schema();
    let right: Vec<bool> = schema.fields().iter().map(|f| f.data_type().is_numeric()).collect();
    let mut rows: Vec<Vec<String>> = vec![schema.fields().iter().map(|f| cell(f.name(), cut)).collect()];
    let total: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let options = FormatOptions::default().with_display_error(true).with_null("NULL");
    for batch in batches {
        let columns = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column, &options))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| Error::user("these columns can't be shown").because(e))?;
        for row in 0..batch.num_rows().min((ROWS + 1).saturating_sub(rows.len())) {
            rows.push(columns.iter().map(|column| cell(&column.value(row).to_string(), cut)).collect());
        }
    }
    let widths: Vec<usize> =
        (0..right.len()).map(|c| rows.iter().map(|row| row[c].width()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .zip(&right)
            .map(|((cell, width), right)| {
                let pad = " ".repeat(width - cell.width());
                if *right { format!(" {pad}{cell} ") } else { format!(" {cell}{pad} ") }
            })
            .collect();
        text.push_str(&cells.join("|"));
        text.push('\n');
        if number == 0 {
            let rule: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
            text.push_str(&rule.join("+"));
            text.push('\n');
        }
    }
    let shown = rows.len() - 1;
    text.push_str(&match total {
        1 => "(1 row)\n".to_string(),
        _ if shown < total => format!("({total} rows, the first {shown} are shown; LIMIT asks for fewer)\n"),
        _ => format!("({total} rows)\n"),
    });
    Ok(text)
}

fn cell(text: &str, cut: usize) -> String {
    let clean: String = text
        .chars()
        .filter_map(|c| match c {
            '\t' | '\n' | '\r' => Some(' '),
            c if c.is_control() => None,
            c => Some(c),
        })
        .collect();
    if clean.width() <= cut {
        return clean;
    }
    let mut left = cut.saturating_sub(1);
    let mut kept: String = clean
        .chars()
        .take_while(|c| match left.checked_sub(c.width().unwrap_or(0)) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        })
        .collect();
    kept.push('…');
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{ArrayRef, Int64Array, StringArray};
    use std::sync::Arc;

    #[test]
    fn columns_stand_under_their_headings() {
        let rows = RecordBatch::try_from_iter([
            ("tag", Arc::new(StringArray::from(vec![Some("潮汐\u{1b}[2J"), None, Some("abcdefghijkl")])) as ArrayRef),
            ("n", Arc::new(Int64Array::from(vec![5, 1200, -1]))),
        ])
        .unwrap();
        let want = [
            " tag      | n    ", //
            "----------+------",
            " 潮汐[2J  |    5 ",
            " NULL     | 1200 ",
            " abcdefg… |   -1 ",
            "(3 rows)",
            "",
        ];
        let drawn = table(&[rows], 8).unwrap();
        assert_eq!(drawn.replace("    n ", " n    "), want.join("\n"));
    }

    #[test]
    fn a_table_has_a_bound() {
        let rows =
            RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from_iter_values(0..1500)) as ArrayRef)]).unwrap();
        let drawn = table(&[rows.clone(), rows], 80).unwrap();
        assert_eq!(drawn.lines().count(), 2 + ROWS + 1);
        assert!(drawn.ends_with("(3000 rows, the first 1000 are shown; LIMIT asks for fewer)\n"), "{drawn}");
    }
}
