//! Instants as people and services write them.
//!
//! [`instant`] reads RFC 3339 (`2026-05-25T14:23:28.778Z`, with a space for the
//! `T`, without a zone for UTC) and the older form that X uses
//! (`Wed Oct 10 20:19:24 +0000 2018`). [`Unit`] says what a bare number counts.
//! Used by the JSON and CSV decoders.
//!
//! Invariant: an instant that doesn't exist (`2026-02-30`) is `None`, never
//! another instant. Fractions finer than a microsecond are cut off.

use tidemill_core::{Error, Options, Result};

/// What a number in a timestamp column counts, from 1970 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unit {
    /// Nothing: timestamps are text.
    #[default]
    Iso,
    /// Seconds, possibly with a fraction.
    Seconds,
    /// Milliseconds.
    Millis,
    /// Microseconds.
    Micros,
}

impl Unit {
    /// From option `timestamp`: `iso` (the default), `s`, `ms` or `us`.
    ///
    /// # Errors
    /// When it is none of these.
    pub fn from_options(options: &Options) -> Result<Self> {
        Ok(match options.get("timestamp") {
            None | Some("iso") => Self::Iso,
            Some("s") => Self::Seconds,
            Some("ms") => Self::Millis,
            Some("us") => Self::Micros,
            Some(other) => {
                let owner = options.owner();
                return Err(Error::user(format!(
                    "{owner}: option `timestamp` must be `iso`, `s`, `ms` or `us`, not `{other}`"
                )));
            }
        })
    }

    /// Microseconds since 1970 for a number's text; `None` when it is out of
    /// range, or when numbers were not announced.
    pub fn micros(self, number: &str) -> Option<i64> {
        let factor = match self {
            Self::Iso => return None,
            Self::Seconds => 1_000_000,
            Self::Millis => 1000,
            Self::Micros => 1,
        };
        if let Ok(whole) = number.parse::<i64>() {
            return whole.checked_mul(factor);
        }
        #[expect(clippy::cast_precision_loss, reason = "the factor is at most a million")]
        let micros = (number.parse::<f64>().ok()? * factor as f64).floor();
        #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
        (micros.abs() < 9.2e18).then_some(micros as i64)
    }
}

/// Microseconds since 1970-01-01T00:00:00Z of an RFC 3339 or X timestamp.
///
/// ```
/// use tidemill_connectors::format::time::instant;
/// assert_eq!(instant("1970-01-01T00:00:01.5Z"), Some(1_500_000));
/// assert_eq!(instant("1970-01-01T09:00:00+09:00"), Some(0));
/// assert_eq!(instant("Wed Oct 10 20:19:24 +0000 2018"), Some(1_539_202_764_000_000));
/// assert_eq!(instant("soon"), None);
/// ```
pub fn instant(text: &str) -> Option<i64> {
    let bytes = text.trim_ascii().as_bytes();
    if bytes.first()?.is_ascii_digit() { rfc3339(bytes) } else { x_form(bytes) }
}

fn rfc3339(b: &[u8]) -> Option<i64> {
    let day = days(number(b, 0..4)?, number(b, 5..7)?, number(b, 8..10)?)?;
    if b[4] != b'-' || b[7] != b'-' {
        return None;
    }
    if b.len() == 10 {
        return Some(day * 86_400_000_000);
    }
    if !matches!(b.get(10)?, b'T' | b't' | b' ') {
        return None;
    }
    let seconds = clock(b, 11)?;
    let mut at = 19;
    let mut micros = 0;
    if b.get(at) == Some(&b'.') {
        at += 1;
        let start = at;
        let mut unit = 100_000;
        while let Some(digit @ b'0'..=b'9') = b.get(at) {
            micros += i64::from(digit - b'0') * unit;
            unit /= 10;
            at += 1;
        }
        if at == start {
            return None;
        }
    }
    let shift = zone(&b[at..])?;
    (day * 86_400 + seconds - shift).checked_mul(1_000_000)?.checked_add(micros)
}

/// `Wed Oct 10 20:19:24 +0000 2018`.
fn x_form(b: &[u8]) -> Option<i64> {
    const MONTHS: &[u8] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
    if b.len() != 30 || [3, 7, 10, 19, 25].iter().any(|at| b[*at] != b' ') {
        return None;
    }
    let month = MONTHS.chunks(3).position(|m| *m == b[4..7])? + 1;
    let day = days(number(b, 26..30)?, i64::try_from(month).ok()?, number(b, 8..10)?)?;
    let seconds = clock(b, 11)?;
    let shift = zone(&b[20..25])?;
    Some((day * 86_400 + seconds - shift) * 1_000_000)
}

/// Seconds of `20:19:24` at byte `at`; a leap second counts as the next one.
fn clock(b: &[u8], at: usize) -> Option<i64> {
    let (h, m, s) = (number(b, at..at + 2)?, number(b, at + 3..at + 5)?, number(b, at + 6..at + 8)?);
    let fits = h < 24 && m < 60 && s <= 60 && b[at + 2] == b':' && b[at + 5] == b':';
    fits.then_some(h * 3600 + m * 60 + s)
}

/// Seconds east of UTC of ``, `Z`, `+09:00` or `+0900`.
fn zone(b: &[u8]) -> Option<i64> {
    let sign = match b.first() {
        None => return Some(0),
        Some(b'Z' | b'z') if b.len() == 1 => return Some(0),
        Some(b'+') => 1,
        Some(b'-') => -1,
        Some(_) => return None,
    };
    let minutes_at = match (b.len(), b.get(3)) {
        (6, Some(b':')) => 4,
        (5, _) => 3,
        _ => return None,
    };
    let (h, m) = (number(b, 1..3)?, number(b, minutes_at..minutes_at + 2)?);
    (h < 24 && m < 60).then_some(sign * (h * 3600 + m * 60))
}

fn number(b: &[u8], at: std::ops::Range<usize>) -> Option<i64> {
    b.get(at)?.iter().try_fold(0, |n, d| d.is_ascii_digit().then(|| n * 10 + i64::from(d - b'0')))
}

/// Days since 1970-01-01: Howard Hinnant's `days_from_civil`.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last = match month {
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i64::from(leap),
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=last).contains(&day) {
        return None;
    }
    let y = year - i64::from(month <= 2);
    let era = y.div_euclid(400);
    let yoe = y - era * 400;
    let doy = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    Some(era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_core::Timestamp;

    #[test]
    fn every_printed_instant_reads_back() {
        for day in (-800_000_i64..800_000).step_by(97) {
            let at = day * 86_400_000_000 + (day * 7_919).rem_euclid(86_400_000) * 1000;
            let text = Timestamp(at).to_string();
            // Years before 0 or after 9999 print with another width.
            if text.len() == 24 && !text.starts_with('-') {
                assert_eq!(instant(&text), Some(at), "{text}");
            }
        }
    }

    #[test]
    fn what_does_not_exist_is_no_instant() {
        for text in [
            "",
            "2026",
            "2026-02-30",
            "2026-13-01T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00+9",
            "2026-01-01X00:00:00Z",
            "Wed Okt 10 20:19:24 +0000 2018",
            "２０２６-01-01",
            "2026-01-01T00:00:00Zjunk",
            "Wed Oct 10 20:19:24 0000 2018 ",
        ] {
            assert_eq!(instant(text), None, "{text}");
        }
    }

    #[test]
    fn numbers_count_what_was_declared() {
        assert_eq!(Unit::Seconds.micros("1.5"), Some(1_500_000));
        assert_eq!(Unit::Millis.micros("1779719009132"), Some(1_779_719_009_132_000));
        assert_eq!(Unit::Micros.micros("-7"), Some(-7));
        assert_eq!(Unit::Iso.micros("7"), None);
        assert_eq!(Unit::Seconds.micros("9223372036854775807"), None);
        assert_eq!(Unit::Seconds.micros("1e300"), None);
    }
}
