//! Text for terminals: cleaned, measured in cells, and numbers for people.
//!
//! Invariant: what [`clean`] returns has no control characters and no marks
//! that reorder what stands around it; [`fit`] returns exactly the asked number
//! of cells. Called by the frame and the plain lines.

use tidemill_core::{Duration, Timestamp};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Without control characters, line breaks and direction marks.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .filter_map(|c| match c {
            '\t' | '\n' | '\r' => Some(' '),
            // Marks that change the direction of the rest of the line, and invisible tags.
            '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{feff}' => None,
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{e0000}'..='\u{e007f}' => None,
            c if c.is_control() => None,
            c => Some(c),
        })
        .collect()
}

/// Cells that the text takes.
pub(crate) fn width(text: &str) -> usize {
    text.width()
}

/// The text in exactly `cells` cells: padded, or cut with `…`.
pub(crate) fn fit(text: &str, cells: usize) -> String {
    let mut fitted = cut(text, cells);
    let taken = width(&fitted);
    fitted.extend(std::iter::repeat_n(' ', cells.saturating_sub(taken)));
    fitted
}

/// The text in at most `cells` cells, cut with `…`.
pub(crate) fn cut(text: &str, cells: usize) -> String {
    if width(text) <= cells {
        return text.to_string();
    }
    if cells == 0 {
        return String::new();
    }
    let (mut kept, mut taken) = (String::new(), 0);
    for c in text.chars() {
        let next = c.width().unwrap_or(0);
        if taken + next > cells - 1 {
            break;
        }
        kept.push(c);
        taken += next;
    }
    // A sequence of several characters may be wider together than one by one.
    while width(&kept) > cells - 1 && kept.pop().is_some() {}
    kept.push('…');
    kept
}

/// A whole number with commas: `12,345`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A span of time for people: `4 ms`, `1.2 s`, `3 min`.
pub(crate) fn duration(span: Duration) -> String {
    let micros = span.as_micros();
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..10_000 => format!("{:.1} ms", span.as_secs_f64() * 1e3),
        10_000..1_000_000 => format!("{} ms", span.as_millis()),
        1_000_000..120_000_000 => format!("{:.1} s", span.as_secs_f64()),
        _ => format!("{} min", span.as_secs() / 60),
    }
}

/// A size for people: `1.2 MB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
    let mut size = count as f64 / 1000.0;
    let mut unit = 0;
    while size >= 999.95 && unit + 1 < UNITS.len() {
        size /= 1000.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

/// The time of day in UTC: `12:00:05`.
pub(crate) fn clock(time: Timestamp) -> String {
    let seconds = time.millis().div_euclid(1000).rem_euclid(86_400);
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fit_takes_exactly_the_cells_whatever_the_script() {
        for text in ["", "abc", "潮汐發電", "ひなまつり #fb", "👩‍👩‍👧‍👦 family", "e\u{301}e\u{301}e\u{301}", "мельница"]
        {
            for cells in 0..14 {
                assert_eq!(width(&fit(text, cells)), cells, "{text} in {cells}");
            }
        }
        assert_eq!(fit("潮汐發電", 5), "潮汐…");
        assert_eq!(fit("潮汐發電", 4), "潮… ");
    }

    #[test]
    fn records_can_not_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\u{7}\u{9b}\r\nc\u{202e}d"), "a[2Jb  cd");
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(["0", "999", "1,000", "12,345,678"], [0, 999, 1000, 12_345_678].map(grouped)[..]);
        assert_eq!(
            [0, 999, 1_000, 999_949, 1_250_000, 3_000_000_000].map(bytes)[..],
            ["0 B", "999 B", "1.0 kB", "999.9 kB", "1.2 MB", "3.0 GB"]
        );
        let spans = [7, 4_200, 42_000, 1_250_000, 600_000_000].map(|us| duration(Duration::from_micros(us)));
        assert_eq!(spans[..], ["7 µs", "4.2 ms", "42 ms", "1.2 s", "10 min"]);
        assert_eq!(clock(Timestamp::from_millis(951_782_405_999)), "00:00:05");
    }
}
