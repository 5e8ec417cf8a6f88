//! Options of a connector, format or sink: the `WITH (…)` of SQL.
//!
//! Invariant: an option that nobody asked for is an error that suggests the
//! nearest known one; nothing is ignored in silence.

use crate::{Duration, Error, Result};
use std::{cell::RefCell, collections::BTreeMap, collections::BTreeSet, str::FromStr};

/// Named text values that are taken one by one.
#[derive(Debug, Clone, Default)]
pub struct Options {
    owner: String,
    values: BTreeMap<String, String>,
    asked: RefCell<BTreeSet<String>>,
}

impl Options {
    /// Options of `owner` (named in errors: `stream "posts"`). Keys are lower-cased.
    pub fn new<K: AsRef<str>, V: Into<String>>(
        owner: impl Into<String>,
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        Self {
            owner: owner.into(),
            values: pairs.into_iter().map(|(k, v)| (k.as_ref().to_lowercase(), v.into())).collect(),
            asked: RefCell::default(),
        }
    }

    /// Whose options they are.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The value, if given.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.asked.borrow_mut().insert(key.to_string());
        self.values.get(key).map(String::as_str)
    }

    /// The value, or an error that says what it is for.
    ///
    /// # Errors
    /// When it is missing.
    pub fn require(&self, key: &str, purpose: &str) -> Result<&str> {
        self.get(key).ok_or_else(|| Error::user(format!("{}: option `{key}` is missing: {purpose}", self.owner)))
    }

    /// The value parsed, or the default.
    ///
    /// # Errors
    /// When it can't be parsed.
    pub fn parse<T: FromStr>(&self, key: &str, default: T) -> Result<T> {
        match self.get(key) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| self.bad(key, text, spoken(std::any::type_name::<T>()))),
        }
    }

    /// A duration such as `250ms`, `10s`, `5m`, `1h`, `7d`.
    ///
    /// # Errors
    /// When it can't be parsed, naming the units; a number without one is refused.
    pub fn duration(&self, key: &str, default: Duration) -> Result<Duration> {
        match self.get(key) {
            None => Ok(default),
            Some(text) => parse_duration(text).ok_or_else(|| {
                self.bad(key, text, "a duration with its unit (ms, s, m, h, d), such as 250ms, 10s or 7d")
            }),
        }
    }

    /// A size in bytes such as `64KiB`, `10MB`, `1GiB`; a bare number is bytes.
    ///
    /// # Errors
    /// When it can't be parsed.
    pub fn bytes(&self, key: &str, default: u64) -> Result<u64> {
        match self.get(key) {
            None => Ok(default),
            Some(text) => parse_bytes(text).ok_or_else(|| self.bad(key, text, "a size such as 64KiB or 10MB")),
        }
    }

    /// Call when all options were taken.
    ///
    /// # Errors
    /// Names an option that nobody asked for, and the nearest known one.
    pub fn finish(&self) -> Result<()> {
        let asked = self.asked.borrow();
        let Some(unknown) = self.values.keys().find(|k| !asked.contains(*k)) else { return Ok(()) };
        let known: Vec<&str> = asked.iter().map(String::as_str).collect();
        let hint = nearest(unknown, &known)
            .map_or_else(|| format!("known are {}", known.join(", ")), |near| format!("did you mean `{near}`?"));
        Err(Error::user(format!("{}: unknown option `{unknown}`; {hint}", self.owner)))
    }

    fn bad(&self, key: &str, text: &str, want: &str) -> Error {
        Error::user(format!("{}: option `{key}` must be {want}, not `{text}`", self.owner))
    }
}

/// The known word closest to `word`, if close enough to be a slip: words of one letter are so only by their case.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let length = word.chars().count();
    let limit = length / 3 + 1;
    let near = |k: &str, distance| match length.min(k.chars().count()) {
        0 | 1 => word.to_lowercase() == k.to_lowercase(),
        _ => distance <= limit,
    };
    known.iter().map(|k| (edits(word, k), *k)).filter(|(d, k)| near(k, *d)).min().map(|(_, k)| k)
}

fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}

/// What a value of a type is called by those who write options.
fn spoken(type_name: &str) -> &str {
    match type_name {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number, perhaps negative",
        "f32" | "f64" => "a number",
        "bool" => "true or false",
        other => other,
    }
}

fn split_unit(text: &str) -> Option<(f64, String)> {
    let text = text.trim();
    let cut = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    Some((text[..cut].parse().ok()?, text[cut..].trim().to_lowercase()))
}

/// Parses `250ms`, `10s`, `5m`, `1h`, `7d`, and `0`. Any other number without a unit is none: some would take it
/// for milliseconds, some for seconds, and `keep-for 7` for days.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let seconds = match unit.as_str() {
        "us" | "µs" => number / 1e6,
        "" if number == 0.0 => 0.0,
        "ms" => number / 1e3,
        "s" | "sec" | "second" | "seconds" => number,
        "m" | "min" | "minute" | "minutes" => number * 60.0,
        "h" | "hour" | "hours" => number * 3600.0,
        "d" | "day" | "days" => number * 86_400.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(seconds).ok()
}

/// Parses `64KiB`, `10MB`, `1GiB`; a bare number is bytes.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "sizes are far below 2^53 and positive")]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let factor = match unit.as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some((number * factor) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_another_type_is_told_in_words() {
        let options = Options::new("stream \"s\"", [("rows", "many"), ("header", "yes")]);
        let error = |e: Error| e.to_string();
        assert_eq!(
            options.parse("rows", 1_u64).map_err(error).unwrap_err(),
            "stream \"s\": option `rows` must be a whole number, not `many`"
        );
        assert!(options.parse("header", true).map_err(error).unwrap_err().contains("true or false"));
    }

    #[test]
    fn an_unknown_option_is_refused_with_the_nearest_known_one() {
        let options = Options::new("stream \"posts\"", [("adress", "x"), ("format", "json")]);
        let _ = (options.get("address"), options.get("format"));
        let error = options.finish().unwrap_err().to_string();
        assert_eq!(error, "stream \"posts\": unknown option `adress`; did you mean `address`?");
    }

    #[test]
    fn one_letter_is_a_slip_for_no_other() {
        assert_eq!(nearest("q", &["n", "t", "id", "xq"]), None);
        assert_eq!(nearest("idx", &["n", "id"]), Some("id"));
        assert_eq!(nearest("ab", &["a", "x"]), None);
        assert_eq!(nearest("N", &["m", "n"]), Some("n"));
    }

    #[test]
    fn durations_and_sizes_have_units() {
        let options = Options::new("x", [("a", "10s"), ("b", "1.5m"), ("c", "64KiB"), ("d", "soon")]);
        assert_eq!(options.duration("a", Duration::ZERO).unwrap(), Duration::from_secs(10));
        assert_eq!(options.duration("b", Duration::ZERO).unwrap(), Duration::from_secs(90));
        assert_eq!(options.bytes("c", 0).unwrap(), 65_536);
        assert!(options.duration("d", Duration::ZERO).is_err());
        assert!(options.finish().is_ok());
        // What a number alone counts would be a guess; nothing is nothing in every unit.
        let bare = Options::new("x", [("age", "3600"), ("none", "0")]);
        assert_eq!(
            bare.duration("age", Duration::ZERO).unwrap_err().to_string(),
            "x: option `age` must be a duration with its unit (ms, s, m, h, d), such as 250ms, 10s or 7d, not `3600`"
        );
        assert_eq!(bare.duration("none", Duration::from_secs(1)).unwrap(), Duration::ZERO);
        for (text, span) in [("7", None), ("1.5", None), ("7 d", Some(604_800)), ("0s", Some(0))] {
            assert_eq!(parse_duration(text), span.map(Duration::from_secs), "{text}");
        }
    }
}
