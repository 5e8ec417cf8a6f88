//! A view's rows as labels with a number, and the bars for them.
//!
//! Invariant: a chart keeps the view's order and drops nothing but older windows
//! of the same batch and the bounds of windows, which its heading tells. A view without a number column is a
//! table, not a chart. Called by the frame and the plain lines.

use super::text::{clean, clock, width};
use arrow_array::{Array, RecordBatch, TimestampMicrosecondArray, cast::AsArray, types::Float64Type};
use arrow_cast::{
    cast,
    display::{ArrayFormatter, FormatOptions},
};
use arrow_schema::{DataType, TimeUnit};
use tidemill_core::{Timestamp, ViewSnapshot};

/// Columns that say which window a row belongs to.
const WINDOW: [&str; 2] = ["window_start", "window_end"];
/// Columns that every stream has, which are no figures.
const META: [&str; 2] = ["_offset", "_partition"];

/// Rows of a view, ready to draw.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chart {
    /// The view.
    pub(crate) name: String,
    /// What the numbers count: the name of their column.
    pub(crate) unit: String,
    /// When the rows' window ended, or the batch's time.
    pub(crate) until: Timestamp,
    /// Label, number for the bar (`None`: no bars in this view), number as text.
    pub(crate) rows: Vec<(String, Option<f64>, String)>,
}

impl Chart {
    /// The first `limit` rows of a view.
    pub(crate) fn of(view: &ViewSnapshot, limit: usize) -> Self {
        let rows = newest_window(&view.rows);
        let rows = rows.slice(0, rows.num_rows().min(limit));
        let schema = rows.schema();
        let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        let value =
            schema.fields().iter().rposition(|f| f.data_type().is_numeric() && !META.contains(&f.name().as_str()));
        let labels: Vec<usize> =
            (0..names.len()).filter(|i| Some(*i) != value && !WINDOW.contains(&names[*i])).collect();
        let shown = Self::texts(&rows);
        let numbers = value.and_then(|v| cast(rows.column(v), &DataType::Float64).ok());
        let charted = (0..rows.num_rows())
            .map(|row| {
                let label: Vec<&str> = labels.iter().map(|c| shown[*c][row].as_str()).collect();
                let number = numbers.as_ref().map(|n| {
                    let n = n.as_primitive::<Float64Type>();
                    if n.is_null(row) { 0.0 } else { n.value(row) }
                });
                (label.join(" · "), number, value.map_or_else(String::new, |v| shown[v][row].clone()))
            })
            .collect();
        let unit = value.map_or_else(String::new, |v| clean(names[v]));
        Self { name: clean(&view.name), unit, until: window_end(&rows).unwrap_or(view.time), rows: charted }
    }

    fn texts(rows: &RecordBatch) -> Vec<Vec<String>> {
        let options = FormatOptions::default().with_null("");
        rows.columns()
            .iter()
            .map(|column| match ArrayFormatter::try_new(column, &options) {
                Ok(formatter) => (0..column.len())
                    .map(|row| formatter.value(row).try_to_string().map_or_else(|_| "?".to_string(), |t| clean(&t)))
                    .collect(),
                Err(_) => vec!["?".to_string(); column.len()],
            })
            .collect()
    }

    /// Cells that its widest label takes.
    pub(crate) fn label_width(&self) -> usize {
        self.rows.iter().map(|(label, ..)| width(label)).max().unwrap_or(0)
    }

    /// Cells that its widest number takes.
    pub(crate) fn value_width(&self) -> usize {
        self.rows.iter().map(|(.., text)| width(text)).max().unwrap_or(0)
    }

    /// Its largest number.
    pub(crate) fn max(&self) -> f64 {
        self.rows.iter().filter_map(|(_, number, _)| *number).fold(0.0, f64::max)
    }

    /// When its rows are from: `12:00:05`.
    pub(crate) fn when(&self) -> String {
        clock(self.until)
    }
}

/// Ends of the rows' windows, if they have any.
fn window_ends(rows: &RecordBatch) -> Option<Vec<i64>> {
    let column = rows.column_by_name(WINDOW[1])?;
    let micros = cast(column, &DataType::Timestamp(TimeUnit::Microsecond, None)).ok()?;
    let micros = micros.as_any().downcast_ref::<TimestampMicrosecondArray>()?;
    Some((0..micros.len()).map(|row| if micros.is_valid(row) { micros.value(row) } else { i64::MIN }).collect())
}

fn window_end(rows: &RecordBatch) -> Option<Timestamp> {
    window_ends(rows)?.into_iter().max().map(Timestamp)
}

/// The rows of the newest window: a batch after a pause may close many, the oldest first.
fn newest_window(rows: &RecordBatch) -> RecordBatch {
    let Some(ends) = window_ends(rows) else { return rows.clone() };
    let Some(newest) = ends.iter().max() else { return rows.clone() };
    let first = ends.iter().rposition(|end| end != newest).map_or(0, |before| before + 1);
    // In another order than by window, all rows are shown.
    if ends[..first].contains(newest) { rows.clone() } else { rows.slice(first, ends.len() - first) }
}

/// A bar of at most `cells` cells for `value` of `max`, in eighths of a cell.
pub(crate) fn bar(value: f64, max: f64, cells: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    if value.is_nan() || value <= 0.0 || max <= 0.0 {
        return String::new();
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "few cells"
    )]
    let eighths = ((value / max).min(1.0) * (cells * 8) as f64).round() as usize;
    // What there is can be seen, however little.
    let eighths = eighths.max(usize::from(cells > 0));
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{ArrayRef, Int64Array, StringArray};
    use std::sync::Arc;
    use tidemill_core::BatchId;

    fn view(columns: Vec<(&str, ArrayRef)>) -> ViewSnapshot {
        let rows = RecordBatch::try_from_iter(columns).unwrap();
        ViewSnapshot { name: "top".into(), batch: BatchId(1), time: Timestamp(1), rows }
    }

    #[test]
    fn bars_grow_by_eighths() {
        assert_eq!(bar(16.0, 16.0, 2), "██");
        assert_eq!(bar(9.0, 16.0, 2), "█▏");
        assert_eq!(bar(1e-9, 16.0, 2), "▏");
        assert_eq!(bar(0.0, 16.0, 2), "");
        assert_eq!(bar(f64::NAN, 16.0, 2), "");
        assert_eq!(bar(f64::INFINITY, 16.0, 2), "██");
    }

    #[test]
    fn the_last_number_is_the_bar_and_windows_are_the_heading() {
        let chart = Chart::of(
            &view(vec![
                ("window_end", Arc::new(TimestampMicrosecondArray::from(vec![5_000_000, 7_000_000, 7_000_000]))),
                ("tag", Arc::new(StringArray::from(vec!["#old", "#a\u{1b}", "#b"]))),
                ("lang", Arc::new(StringArray::from(vec![Some("de"), Some("en"), None]))),
                ("posts", Arc::new(Int64Array::from(vec![9, 3, 2]))),
            ]),
            10,
        );
        assert_eq!(chart.until, Timestamp(7_000_000));
        assert_eq!(chart.unit, "posts");
        assert_eq!(chart.rows[0], ("#a · en".into(), Some(3.0), "3".into()));
        assert_eq!(chart.rows[1..], [("#b · ".to_string(), Some(2.0), "2".to_string())]);
    }

    #[test]
    fn a_lone_number_is_a_bar_without_label() {
        let chart = Chart::of(&view(vec![("count", Arc::new(Int64Array::from(vec![3])))]), 10);
        assert_eq!(chart.rows, [(String::new(), Some(3.0), "3".to_string())]);
        let end = Arc::new(TimestampMicrosecondArray::from(vec![5_000_000]));
        let chart = Chart::of(&view(vec![("window_end", end), ("count", Arc::new(Int64Array::from(vec![3])))]), 10);
        assert_eq!(chart.rows, [(String::new(), Some(3.0), "3".to_string())], "also in a window");
    }

    #[test]
    fn text_alone_is_a_table() {
        let chart = Chart::of(&view(vec![("word", Arc::new(StringArray::from(vec!["ebb"])))]), 10);
        assert_eq!(chart.rows, [("ebb".to_string(), None, String::new())]);
    }
}
