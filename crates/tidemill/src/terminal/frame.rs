//! One picture of a running program, as styled lines of text.
//!
//! ```text
//! tidemill demo   running                        12:00:05
//! 2,013 records/s · delay 4.1 ms · 42,113 records · batch 21
//! page  http://127.0.0.1:4040
//!
//! hashtags  posts until 12:00:05      words  posts until 12:00:05
//! #fb       ████████████▌      14     love   ████████████▌     812
//!
//! ● tcp 127.0.0.1:40123  connected  14,032 records  2.1 MB
//! refused 0 · late 0
//! Ctrl-C stops and keeps
//! ```
//!
//! Invariant: a frame is never larger than the terminal; when room is short,
//! rows of charts go first, then inputs. A pure function of [`Facts`].

use super::{
    bars::{Chart, bar},
    lines::Stats,
    text::{bytes, clean, clock, cut, duration, fit, grouped, width},
};
use std::sync::Arc;
use tidemill_core::{InputReport, Phase, Program, Timestamp, ViewSnapshot};

/// Narrower terminals show charts below each other.
const TWO_COLUMNS: usize = 80;
/// Cells between two columns.
const GAP: usize = 3;
/// Rows of a chart at most.
const ROWS: usize = 20;
/// Inputs that have a line of their own.
const INPUTS: usize = 4;

/// How a piece of text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Strong,
    Dim,
    Bar,
    Good,
    Warn,
    Bad,
}

/// A line in pieces.
pub(crate) type Line = Vec<(String, Style)>;

/// What there is to show.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Heading: the program's name.
    pub(crate) title: String,
    /// Where the page is.
    pub(crate) page: Option<String>,
    /// Something to say once: `continues after batch 41`.
    pub(crate) note: Option<String>,
    /// The newest log line.
    pub(crate) warning: Option<String>,
    pub(crate) now: Timestamp,
    pub(crate) program: Program,
    pub(crate) stats: Stats,
    pub(crate) inputs: Vec<InputReport>,
    pub(crate) views: Vec<Arc<ViewSnapshot>>,
}

/// The picture in at most `columns` × `rows` cells.
pub(crate) fn frame(facts: &Facts, columns: usize, rows: usize) -> Vec<Line> {
    let mut head = head(facts, columns);
    head.push(vec![]);
    let mut foot = foot(facts, columns);
    let narrow = columns < TWO_COLUMNS || facts.views.len() < 2;
    let across = if narrow { 1 } else { 2 };
    let grid = facts.views.len().div_ceil(across);
    // Without room for a heading and three rows a chart, the inputs go first.
    let least = grid * 5;
    while head.len() + foot.len() + least > rows && foot.len() > 2 {
        foot.remove(0);
    }
    let room = rows.saturating_sub(head.len() + foot.len());
    let above = head.len();
    let mut lines = head;
    if facts.views.is_empty() {
        let waiting = match facts.program.phase {
            Phase::Starting => "Starting …",
            _ => "Waiting for the first results …",
        };
        lines.push(vec![(cut(waiting, columns), Style::Dim)]);
        lines.push(vec![]);
    }
    let cells = if narrow { columns } else { (columns - GAP) / 2 };
    for (i, pair) in facts.views.chunks(across).enumerate() {
        let left = (above + room).saturating_sub(lines.len());
        let each = (left / (grid - i).max(1)).saturating_sub(2).min(ROWS);
        if each == 0 {
            break;
        }
        let charts: Vec<Vec<Line>> = pair.iter().map(|view| panel(&Chart::of(view, each), cells)).collect();
        let height = charts.iter().map(Vec::len).max().unwrap_or(0);
        for row in 0..height {
            let mut line = Line::new();
            for (place, chart) in charts.iter().enumerate() {
                let part = chart.get(row).cloned().unwrap_or_default();
                let taken: usize = part.iter().map(|(text, _)| width(text)).sum();
                line.extend(part);
                if place + 1 < charts.len() {
                    line.push((" ".repeat(cells.saturating_sub(taken) + GAP), Style::Plain));
                }
            }
            lines.push(line);
        }
        lines.push(vec![]);
    }
    lines.truncate(rows.saturating_sub(foot.len()));
    lines.extend(foot);
    lines.truncate(rows);
    lines.into_iter().map(|line| clip(line, columns)).collect()
}

/// The line in at most `columns` cells.
fn clip(line: Line, columns: usize) -> Line {
    let mut left = columns;
    line.into_iter()
        .map(|(text, style)| {
            let text = cut(&text, left);
            left -= width(&text);
            (text, style)
        })
        .collect()
}

fn head(facts: &Facts, columns: usize) -> Vec<Line> {
    let (state, style) = match facts.program.phase {
        Phase::Starting => ("starting", Style::Warn),
        Phase::Running => ("running", Style::Good),
        Phase::Stopping => ("stopping: finishing the batch; Ctrl-C again quits at once", Style::Warn),
        Phase::Stopped => ("stopped", Style::Dim),
        Phase::Failed => ("failed", Style::Bad),
    };
    let time = clock(facts.now);
    let title = format!("tidemill {}", clean(&facts.title));
    let room = columns.saturating_sub(width(&time) + 1);
    let title = cut(&title, room);
    let state = cut(state, room.saturating_sub(width(&title) + 2));
    let pad = columns.saturating_sub(width(&title) + 2 + width(&state) + width(&time));
    let first = vec![
        (title, Style::Strong),
        ("  ".to_string(), Style::Plain),
        (state, style),
        (" ".repeat(pad), Style::Plain),
        (time, Style::Dim),
    ];
    let stats = &facts.stats;
    let figures = format!(
        "{} records/s · delay {} · {} records · batch {}",
        grouped(stats.rate),
        duration(stats.delay),
        grouped(facts.program.records_in),
        stats.batch.map_or_else(|| "–".to_string(), |b| grouped(b.0)),
    );
    let mut lines = vec![first, vec![(cut(&figures, columns), Style::Plain)]];
    if let Some(page) = &facts.page {
        lines.push(vec![("page  ".to_string(), Style::Dim), (cut(page, columns.saturating_sub(6)), Style::Plain)]);
    }
    if let Some(note) = &facts.note {
        lines.push(vec![(cut(note, columns), Style::Good)]);
    }
    if let Some(error) = &facts.program.error {
        lines.push(vec![(cut(&clean(error), columns), Style::Bad)]);
    }
    lines
}

fn foot(facts: &Facts, columns: usize) -> Vec<Line> {
    let mut lines: Vec<Line> = facts.inputs.iter().take(INPUTS).map(|input| input_line(input, columns)).collect();
    if facts.inputs.len() > INPUTS {
        lines.push(vec![(cut(&format!("  and {} more inputs", facts.inputs.len() - INPUTS), columns), Style::Dim)]);
    }
    if let Some(warning) = &facts.warning {
        lines.push(vec![(cut(&clean(warning), columns), Style::Warn)]);
    }
    let style = if facts.program.refused + facts.program.late > 0 { Style::Warn } else { Style::Dim };
    let counts = format!("refused {} · late {}", grouped(facts.program.refused), grouped(facts.program.late));
    lines.push(vec![(cut(&counts, columns), style)]);
    lines.push(vec![(cut("Ctrl-C stops and keeps", columns), Style::Dim)]);
    lines
}

fn input_line(input: &InputReport, columns: usize) -> Line {
    let style = match input.state.as_str() {
        state if state.starts_with("connected") || state.starts_with("listening") => Style::Good,
        state if state.starts_with("failed") => Style::Bad,
        "ended" => Style::Dim,
        _ => Style::Warn,
    };
    let what = clean(&input.describe);
    let state = if input.state.is_empty() { "starting".to_string() } else { clean(&input.state) };
    let counts = format!("{} records  {}", grouped(input.records), bytes(input.bytes));
    let room = columns.saturating_sub(2 + width(&counts) + 2);
    let what = cut(&what, room);
    // Servers repeat their address in the state; once is enough.
    let state = if what.is_empty() {
        state
    } else {
        state.replace(what.rsplit(' ').next().unwrap_or(""), "").replace(" to ", " ")
    };
    let state = cut(state.trim(), room.saturating_sub(width(&what) + 2));
    vec![
        ("● ".to_string(), style),
        (what, Style::Plain),
        ("  ".to_string(), Style::Plain),
        (state, Style::Dim),
        ("  ".to_string(), Style::Plain),
        (counts, Style::Dim),
    ]
}

/// A chart with its heading, in lines of at most `cells` cells.
fn panel(chart: &Chart, cells: usize) -> Vec<Line> {
    let name = cut(&chart.name, cells);
    let what = if chart.unit.is_empty() {
        format!("until {}", chart.when())
    } else {
        format!("{} until {}", chart.unit, chart.when())
    };
    let what = cut(&what, cells.saturating_sub(width(&name) + 2));
    let mut lines = vec![vec![(name, Style::Strong), ("  ".to_string(), Style::Plain), (what, Style::Dim)]];
    let values = chart.value_width().min(cells / 3);
    let labels = chart.label_width().clamp(1, (cells * 2 / 5).max(1));
    let bars = cells.saturating_sub(labels + values + 2);
    let max = chart.max();
    for (label, number, value) in &chart.rows {
        let Some(number) = number else {
            lines.push(vec![(cut(label, cells), Style::Plain)]);
            continue;
        };
        let drawn = fit(&bar(*number, max, bars), bars);
        let pad = " ".repeat(values.saturating_sub(width(value)));
        lines.push(vec![
            (fit(label, labels), Style::Plain),
            (" ".to_string(), Style::Plain),
            (drawn, Style::Bar),
            (format!(" {pad}{}", cut(value, values)), Style::Strong),
        ]);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    use tidemill_core::BatchId;

    fn view(name: &str, rows: usize) -> Arc<ViewSnapshot> {
        let labels = ["#fb", "#潮汐發電", "#a_very_long_tag_that_somebody_typed_without_a_pause", "🌊🌊", "мельница"];
        let tags: Vec<&str> = (0..rows).map(|i| labels[i % labels.len()]).collect();
        let counts: Vec<i64> = (0..rows).map(|i| 1000 - 90 * i64::try_from(i).unwrap()).collect();
        let columns: Vec<(&str, ArrayRef)> =
            vec![("hashtag", Arc::new(StringArray::from(tags))), ("posts", Arc::new(Int64Array::from(counts)))];
        let rows = RecordBatch::try_from_iter(columns).unwrap();
        Arc::new(ViewSnapshot { name: name.into(), batch: BatchId(7), time: Timestamp(5_000_000), rows })
    }

    fn facts() -> Facts {
        let input = |index| InputReport {
            stream: "posts".into(),
            index,
            describe: "tcp 127.0.0.1:40123".into(),
            state: "connected to 127.0.0.1:40123".into(),
            failed: None,
            records: 14_032,
            bytes: 2_100_000,
            ..InputReport::default()
        };
        Facts {
            title: "demo".into(),
            page: Some("http://127.0.0.1:4040".into()),
            program: Program { phase: Phase::Running, records_in: 42_113, ..Program::default() },
            stats: Stats { rate: 2013, delay: tidemill_core::Duration::from_micros(4100), batch: Some(BatchId(21)) },
            inputs: (0..3).map(input).collect(),
            views: vec![view("hashtags", 10), view("words", 10)],
            ..Facts::default()
        }
    }

    fn text(lines: &[Line]) -> Vec<String> {
        lines.iter().map(|line| line.iter().map(|(text, _)| text.as_str()).collect::<String>()).collect()
    }

    #[test]
    fn a_frame_fits_any_terminal() {
        let facts = facts();
        for columns in [1, 2, 10, 40, 79, 80, 81, 120, 300] {
            for rows in [1, 2, 5, 10, 24, 40] {
                let lines = text(&frame(&facts, columns, rows));
                assert!(lines.len() <= rows, "{columns}x{rows}: {} lines", lines.len());
                for line in lines {
                    assert!(width(&line) <= columns, "{columns}x{rows}: {line:?} takes {}", width(&line));
                }
            }
        }
    }

    #[test]
    fn eighty_by_twenty_four_shows_ten_rows_beside_each_other_and_all_inputs() {
        let lines = text(&frame(&facts(), 80, 24));
        assert_eq!(lines[0].trim_end(), format!("tidemill demo  running{}00:00:00", " ".repeat(50)));
        assert_eq!(lines[1], "2,013 records/s · delay 4.1 ms · 42,113 records · batch 21");
        assert!(lines[4].starts_with("hashtags  posts until 00:00:05"), "{lines:#?}");
        assert!(lines[4].contains("words  posts until 00:00:05"), "{lines:#?}");
        assert_eq!(lines.iter().filter(|l| l.contains("█")).count(), 10, "{lines:#?}");
        assert_eq!(
            lines.iter().filter(|l| l.starts_with("● tcp 127.0.0.1:40123  connected  14,032")).count(),
            3,
            "{lines:#?}"
        );
        assert_eq!(lines.last().unwrap(), "Ctrl-C stops and keeps");
    }

    #[test]
    fn a_narrow_terminal_has_one_column() {
        let lines = text(&frame(&facts(), 60, 40));
        let hashtags = lines.iter().position(|l| l.starts_with("hashtags")).unwrap();
        let words = lines.iter().position(|l| l.starts_with("words")).unwrap();
        assert_eq!(words - hashtags, 12, "{lines:#?}");
    }
}
