//! A view's rows as JSON, made once for all viewers.
//!
//! ```text
//! {"name":"top","batch":7,"time":1000000,"total":2,"cut":0,
//!  "columns":[{"name":"word","type":"text"},{"name":"n","type":"number"}],
//!  "rows":[["sea",12],["tide",9]]}
//! ```
//!
//! `total` counts the view's rows, of which the first [`ROWS`] or [`BYTES`]
//! are here; `cut` counts cells cut to [`CELL`] characters, which end in `…`.
//! Types are `text`, `number`, `bool`, `time` and `other`. A number that
//! JavaScript would round or can't write (beyond 2^53, decimals, NaN) is a
//! string; times are ISO 8601.
//!
//! Invariant: a rendering is bounded in size, and is valid JSON in one line
//! for whatever text the view holds. Called by the API, by the live feed, and for tables of a batch that is run again.

use arrow_array::{Array, RecordBatch, cast::AsArray, types as t};
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_schema::{DataType, Schema};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{Arc, Weak},
};
use tidemill_core::{Board, ViewSnapshot};

/// Rows of a view that are shown.
const ROWS: usize = 1000;
/// Rows of a table that is shown beside others, and bytes after which none is begun.
const SHOWN: usize = 50;
const SHOWN_BYTES: usize = 64 << 10;
/// Bytes of a rendering after which no further row is begun.
const BYTES: usize = 1 << 20;
/// Characters of a cell that are shown.
const CELL: usize = 1024;
/// The largest integer up to which every integer is a double.
const SAFE: u64 = (1 << 53) - 1;

const PREFIX: &[u8] = b"event: view\ndata: ";
const SUFFIX: &[u8] = b"\n\n";

/// One rendering, framed for the live feed. Cloning shares it.
#[derive(Debug, Clone)]
pub(crate) struct View(Bytes);

impl View {
    /// Renders a snapshot.
    pub(crate) fn of(snapshot: &ViewSnapshot) -> Self {
        let mut out = String::with_capacity(4096);
        out.push_str("event: view\ndata: ");
        render(&mut out, snapshot);
        out.push_str("\n\n");
        Self(out.into())
    }

    /// As an event of the live feed.
    pub(crate) fn event(&self) -> Bytes {
        self.0.clone()
    }

    /// As JSON alone.
    pub(crate) fn json(&self) -> Bytes {
        self.0.slice(PREFIX.len()..self.0.len() - SUFFIX.len())
    }
}

/// The newest rendering of each view. As large as the board: one entry a view.
#[derive(Debug, Default)]
pub(crate) struct Rendered(Mutex<HashMap<String, (Weak<ViewSnapshot>, View)>>);

impl Rendered {
    /// The view as it is on the board now.
    pub(crate) fn view(&self, board: &Board, name: &str) -> Option<View> {
        let snapshot = board.view(name)?;
        let mut rendered = self.0.lock();
        if let Some((of, view)) = rendered.get(name)
            && std::ptr::eq(of.as_ptr(), Arc::as_ptr(&snapshot))
        {
            return Some(view.clone());
        }
        // Rendered under the lock, so that many viewers don't do the same work at once.
        let view = View::of(&snapshot);
        rendered.insert(name.to_string(), (Arc::downgrade(&snapshot), view.clone()));
        Some(view)
    }
}

/// The first of some rows as a table of their own: `{"name", "total", "columns", "rows", "cut"}`. `keep` says
/// which rows are meant, by their place among all; `None` means all of them.
pub(crate) fn table(name: &str, batches: &[RecordBatch], keep: Option<&[bool]>, total: u64) -> serde_json::Value {
    let mut out = String::from("{\"name\":");
    string(&mut out, name);
    put(&mut out, format_args!(",\"total\":{total},"));
    match batches.first() {
        Some(rows) => columns(&mut out, rows.schema_ref()),
        None => out.push_str("\"columns\":[]"),
    }
    out.push_str(",\"rows\":[");
    let (mut shown, mut cut, mut at) = (0, 0, 0);
    for rows in batches {
        let meant = |row: usize| keep.is_none_or(|keep| keep.get(at + row) == Some(&true));
        for row in (0..rows.num_rows()).filter(|row| meant(*row)) {
            if shown == SHOWN || out.len() > SHOWN_BYTES {
                break;
            }
            comma(&mut out, shown);
            cut += cells(&mut out, &rows.slice(row, 1), 1, usize::MAX).1;
            shown += 1;
        }
        at += rows.num_rows();
    }
    put(&mut out, format_args!("],\"cut\":{cut}}}"));
    serde_json::from_str(&out).expect("what is written here is JSON")
}

/// Each row as one text: equal for equal rows.
pub(crate) fn texts(batches: &[RecordBatch]) -> Vec<String> {
    let options = FormatOptions::new().with_display_error(true).with_null("\u{0}");
    let mut all = Vec::new();
    for rows in batches {
        let formatters: Vec<_> =
            rows.columns().iter().filter_map(|column| ArrayFormatter::try_new(column, &options).ok()).collect();
        all.extend((0..rows.num_rows()).map(|row| {
            let cells = formatters.iter().map(|formatter| formatter.value(row).to_string());
            cells.collect::<Vec<_>>().join("\u{1}")
        }));
    }
    all
}

fn render(out: &mut String, snapshot: &ViewSnapshot) {
    let rows = &snapshot.rows;
    out.push_str("{\"name\":");
    string(out, &snapshot.name);
    put(out, format_args!(",\"batch\":{},\"time\":{},\"total\":{},", snapshot.batch, snapshot.time.0, rows.num_rows()));
    columns(out, rows.schema_ref());
    out.push_str(",\"rows\":[");
    let (_, cut) = cells(out, rows, ROWS, BYTES);
    put(out, format_args!("],\"cut\":{cut}}}"));
}

/// Writes `"columns":…,"rows":…,"cut":…,"more":…` of an answer, and begins no row beyond `bytes`.
pub(crate) fn answer(out: &mut String, answer: &tidemill_core::Answer, bytes: usize) {
    let (mut shown, mut cut, all) = (0, 0, answer.rows.iter().map(RecordBatch::num_rows).sum::<usize>());
    columns(out, &answer.schema);
    out.push_str(",\"rows\":[");
    for rows in answer.rows.iter().filter(|rows| rows.num_rows() > 0) {
        if shown > 0 {
            if out.len() > bytes {
                break;
            }
            out.push(',');
        }
        let (own, cells) = cells(out, rows, usize::MAX, bytes);
        shown += own;
        cut += cells;
        if own < rows.num_rows() {
            break;
        }
    }
    put(out, format_args!("],\"cut\":{cut},\"more\":{}", answer.more || shown < all));
}

fn columns(out: &mut String, schema: &Schema) {
    out.push_str("\"columns\":[");
    for (i, field) in schema.fields().iter().enumerate() {
        comma(out, i);
        out.push_str("{\"name\":");
        string(out, field.name());
        put(out, format_args!(",\"type\":\"{}\"}}", kind(field.data_type())));
    }
    out.push(']');
}

/// Writes the first rows, up to either bound, and counts them and the cells that were cut. The first is always there.
fn cells(out: &mut String, rows: &RecordBatch, most: usize, bytes: usize) -> (usize, usize) {
    let options = FormatOptions::new().with_display_error(true);
    // A type that can't be shown shows an empty column of its name in its place.
    let formatters: Vec<_> =
        rows.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).ok()).collect();
    let mut cut = 0;
    for row in 0..rows.num_rows().min(most) {
        if out.len() > bytes && row > 0 {
            return (row, cut);
        }
        comma(out, row);
        out.push('[');
        for (i, (column, formatter)) in rows.columns().iter().zip(&formatters).enumerate() {
            comma(out, i);
            cell(out, column, formatter.as_ref(), row, &mut cut);
        }
        out.push(']');
    }
    (rows.num_rows().min(most), cut)
}

fn cell(out: &mut String, column: &dyn Array, formatter: Option<&ArrayFormatter<'_>>, row: usize, cut: &mut usize) {
    if column.is_null(row) {
        return out.push_str("null");
    }
    macro_rules! integer {
        ($type:ty) => {{
            let value = column.as_primitive::<$type>().value(row);
            let safe = i128::from(value).unsigned_abs() <= u128::from(SAFE);
            if safe { put(out, format_args!("{value}")) } else { put(out, format_args!("\"{value}\"")) }
        }};
    }
    match column.data_type() {
        DataType::Boolean => put(out, format_args!("{}", column.as_boolean().value(row))),
        DataType::Int8 => integer!(t::Int8Type),
        DataType::Int16 => integer!(t::Int16Type),
        DataType::Int32 => integer!(t::Int32Type),
        DataType::Int64 => integer!(t::Int64Type),
        DataType::UInt8 => integer!(t::UInt8Type),
        DataType::UInt16 => integer!(t::UInt16Type),
        DataType::UInt32 => integer!(t::UInt32Type),
        DataType::UInt64 => integer!(t::UInt64Type),
        DataType::Float32 => float(out, column.as_primitive::<t::Float32Type>().value(row)),
        DataType::Float64 => float(out, column.as_primitive::<t::Float64Type>().value(row)),
        DataType::Utf8 => text(out, column.as_string::<i32>().value(row), cut),
        DataType::LargeUtf8 => text(out, column.as_string::<i64>().value(row), cut),
        DataType::Utf8View => text(out, column.as_string_view().value(row), cut),
        _ => match formatter {
            Some(formatter) => text(out, &formatter.value(row).to_string(), cut),
            None => text(out, &format!("({} can't be shown)", column.data_type()), cut),
        },
    }
}

fn kind(of: &DataType) -> &'static str {
    match of {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text",
        DataType::Boolean => "bool",
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => "time",
        DataType::Dictionary(_, value) => kind(value),
        of if of.is_numeric() => "number",
        _ => "other",
    }
}

/// A finite number as such, another as text. `Display` is the shortest form that reads back.
fn float(out: &mut String, value: impl Into<f64> + std::fmt::Display) {
    let shown = value.to_string();
    if value.into().is_finite() { out.push_str(&shown) } else { string(out, &shown) }
}

fn text(out: &mut String, text: &str, cut: &mut usize) {
    match text.char_indices().nth(CELL) {
        Some((end, _)) => {
            *cut += 1;
            string(out, &format!("{}…", &text[..end]));
        }
        None => string(out, text),
    }
}

fn string(out: &mut String, text: &str) {
    out.push_str(&serde_json::to_string(text).expect("any text is JSON"));
}

fn comma(out: &mut String, index: usize) {
    if index > 0 {
        out.push(',');
    }
}

fn put(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("a String takes any text");
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{
        ArrayRef, BooleanArray, Decimal128Array, DictionaryArray, Float32Array, Float64Array, Int64Array, ListArray,
        StringArray, StringViewArray, TimestampMicrosecondArray, UInt64Array,
    };
    use serde_json::{Value, json};
    use tidemill_core::{BatchId, Timestamp};

    fn view(columns: Vec<(&str, ArrayRef)>) -> ViewSnapshot {
        let rows = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
        ViewSnapshot { name: "v".to_string(), batch: BatchId(3), time: Timestamp(5), rows }
    }

    fn parsed(view: &ViewSnapshot) -> Value {
        let view = View::of(view);
        assert_eq!(view.event().iter().filter(|b| **b == b'\n').count(), 3, "one line of data");
        serde_json::from_slice(&view.json()).unwrap()
    }

    #[test]
    fn each_type_is_shown_without_loss() {
        let list = ListArray::from_iter_primitive::<t::Int32Type, _, _>([Some(vec![Some(1), None])]);
        let dictionary: DictionaryArray<t::Int8Type> = vec!["d"].into_iter().collect();
        let decimal = Decimal128Array::from(vec![12345]).with_precision_and_scale(7, 2).unwrap();
        let got = parsed(&view(vec![
            ("i", Arc::new(Int64Array::from(vec![-5]))),
            ("big", Arc::new(Int64Array::from(vec![i64::MIN]))),
            ("safe", Arc::new(UInt64Array::from(vec![SAFE]))),
            ("unsafe", Arc::new(UInt64Array::from(vec![SAFE + 1]))),
            ("f", Arc::new(Float64Array::from(vec![1e300]))),
            ("f4", Arc::new(Float32Array::from(vec![0.1]))),
            ("nan", Arc::new(Float64Array::from(vec![f64::NAN]))),
            ("b", Arc::new(BooleanArray::from(vec![true]))),
            ("t", Arc::new(TimestampMicrosecondArray::from(vec![1_500_000]))),
            ("dec", Arc::new(decimal)),
            ("list", Arc::new(list)),
            ("dict", Arc::new(dictionary)),
            ("sv", Arc::new(StringViewArray::from(vec!["a longer text than twelve"]))),
            ("null", Arc::new(Int64Array::from(vec![None]))),
        ]));
        assert_eq!(
            got["rows"][0],
            json!([
                -5,
                "-9223372036854775808",
                9_007_199_254_740_991_u64,
                "9007199254740992",
                1e300,
                0.1,
                "NaN",
                true,
                "1970-01-01T00:00:01.500",
                "123.45",
                "[1, ]",
                "d",
                "a longer text than twelve",
                null
            ])
        );
        let kinds: Vec<_> = got["columns"].as_array().unwrap().iter().map(|c| c["type"].as_str().unwrap()).collect();
        assert_eq!(
            kinds,
            [
                "number", "number", "number", "number", "number", "number", "number", "bool", "time", "number",
                "other", "text", "text", "number"
            ]
        );
    }

    #[test]
    fn hostile_text_comes_back_as_it_was() {
        let texts = [
            "\"",
            "\\",
            "\n\r\u{0}\u{7f}\u{2028}\u{2029}",
            "</script>",
            "event: x\ndata: y\n\n",
            "日本語👩‍👩‍👧 עברית \u{202e}",
        ];
        let mut snapshot = view(vec![(texts[4], Arc::new(StringArray::from(texts.to_vec())))]);
        snapshot.name = texts[2].to_string();
        let got = parsed(&snapshot);
        assert_eq!(got["name"], texts[2]);
        assert_eq!(got["columns"][0]["name"], texts[4]);
        assert_eq!(got["rows"], json!(texts.map(|t| [t])));
    }

    #[test]
    fn rows_cells_and_bytes_are_bounded_and_say_so() {
        let many = parsed(&view(vec![("n", Arc::new(Int64Array::from_iter_values(0..2000)))]));
        assert_eq!((many["total"].as_u64(), many["rows"].as_array().unwrap().len()), (Some(2000), 1000));

        let long = "字".repeat(CELL + 1);
        let wide = parsed(&view(vec![("s", Arc::new(StringArray::from(vec![long.as_str(); 1000])))]));
        let shown = wide["rows"].as_array().unwrap();
        assert!(shown.len() < 400 && wide["total"] == 1000);
        assert_eq!(wide["cut"], shown.len());
        assert_eq!(shown[0][0], format!("{}…", "字".repeat(CELL)));
    }

    #[test]
    fn a_rendering_is_shared_until_the_view_changes() {
        let (board, rendered) = (Board::default(), Rendered::default());
        assert!(rendered.view(&board, "v").is_none());
        board.publish_view(view(vec![("n", Arc::new(Int64Array::from(vec![1])))]));
        let first = rendered.view(&board, "v").unwrap().event();
        assert_eq!(rendered.view(&board, "v").unwrap().event().as_ptr(), first.as_ptr());
        board.publish_view(view(vec![("n", Arc::new(Int64Array::from(vec![2])))]));
        assert_ne!(rendered.view(&board, "v").unwrap().event(), first);
    }
}
