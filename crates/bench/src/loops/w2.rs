//! W2 by hand: the hashtags that trend in tweets of the last minute.
//!
//! Of each line only `created_at`, `lang` and `text` are taken ([`project`] is
//! the one place that reads JSON); a text is unescaped only when its tweet is
//! kept. Tags get a number a thread, and are counted in panes of ten seconds
//! by that number. At the end panes are merged, and a window slides over them
//! by adding the pane that enters and taking away the one that leaves.

use super::{lines::pieces, share_files, table::ByteTable};
use crate::{
    Result,
    check::Rows,
    input::{files::Files, tweets::KEYWORD},
};
use memchr::memmem::Finder;
use sonic_rs::{JsonValueTrait, PointerTree};
use std::{borrow::Cow, collections::BTreeMap};

/// A window's length, milliseconds.
pub(crate) const WINDOW_MS: i64 = 60_000;
/// From one window to the next, milliseconds; also a pane's length.
pub(crate) const SLIDE_MS: i64 = 10_000;
/// Tags kept of each window.
pub(crate) const TOP: usize = 10;

/// By window end (milliseconds since 1970): its most frequent tags, the most frequent first,
/// those of the same count by the alphabet. Windows without a tag are left out.
pub(crate) type Trends = Rows<i64, Vec<(String, u64)>>;

/// What a tweet's line is asked for, as it stands there: escapes and all.
struct Tweet<'a> {
    created_at: &'a str,
    lang: &'a str,
    text: &'a str,
}

/// Takes the three fields out of a line. Another scanner is put in here.
#[inline]
fn project<'a>(line: &'a str, fields: &PointerTree) -> Result<Tweet<'a>> {
    let broken = |e: &dyn std::fmt::Display| format!("not a tweet: {e}: {line}");
    let found = sonic_rs::get_many(line, fields).map_err(|e| broken(&e))?;
    let mut found = found.into_iter().map(|value| {
        let value = value.filter(|v| v.is_str()).ok_or_else(|| broken(&"a field is missing or no string"))?;
        let raw = match value.as_raw_cow() {
            Cow::Borrowed(raw) => raw,
            Cow::Owned(_) => return Err(broken(&"a field was copied")),
        };
        Ok(&raw[1..raw.len() - 1])
    });
    let mut next = || found.next().unwrap_or_else(|| Err(broken(&"a field is missing")));
    Ok(Tweet { created_at: next()?, text: next()?, lang: next()? })
}

fn fields() -> PointerTree {
    let mut fields = PointerTree::new();
    for field in ["created_at", "text", "lang"] {
        fields.add_path([field]);
    }
    fields
}

/// One thread's counts.
#[derive(Debug, Default)]
struct Counts {
    /// A number for each tag.
    tags: ByteTable,
    /// By pane start: how often the tag of each number was seen.
    panes: BTreeMap<i64, Vec<u64>>,
}

/// What a thread keeps from line to line.
struct Reader {
    counts: Counts,
    fields: PointerTree,
    keyword: Finder<'static>,
    plain: String,
    lower: String,
}

impl Reader {
    fn new() -> Self {
        Self {
            counts: Counts::default(),
            fields: fields(),
            keyword: Finder::new(KEYWORD),
            plain: String::new(),
            lower: String::new(),
        }
    }

    #[inline]
    fn line(&mut self, line: &str) -> Result<()> {
        let tweet = project(line, &self.fields)?;
        let escaped = memchr::memchr(b'\\', tweet.text.as_bytes()).is_some();
        if tweet.lang == "en" {
            // Kept whatever it says; without a `#` there is nothing to count. A `#` may be escaped.
            if !escaped && memchr::memchr(b'#', tweet.text.as_bytes()).is_none() {
                return Ok(());
            }
        } else if !escaped && self.keyword.find(tweet.text.as_bytes()).is_none() {
            return Ok(());
        }
        let mut plain = std::mem::take(&mut self.plain);
        let text = if escaped {
            plain.clear();
            unescape(tweet.text, &mut plain)?;
            plain.as_str()
        } else {
            tweet.text
        };
        if tweet.lang == "en" || !escaped || self.keyword.find(text.as_bytes()).is_some() {
            self.tags(text, tweet.created_at)?;
        }
        self.plain = plain;
        Ok(())
    }

    fn tags(&mut self, text: &str, created_at: &str) -> Result<()> {
        let Self { counts: Counts { tags, panes }, lower, .. } = self;
        let mut found = hashtags(text).peekable();
        if found.peek().is_none() {
            return Ok(());
        }
        let ms = millis(created_at).ok_or_else(|| format!("not a time: {created_at}"))?;
        let pane = panes.entry(ms - ms.rem_euclid(SLIDE_MS)).or_default();
        for tag in found {
            lower.clear();
            lower_case(tag, lower);
            let next = tags.len() as u64;
            let number = usize::try_from(*tags.get(lower.as_bytes(), next))?;
            if number >= pane.len() {
                pane.resize(number + 1, 0);
            }
            pane[number] += 1;
        }
        Ok(())
    }
}

/// The hashtags of a text, without their `#`.
///
/// A tag begins at a `#` that no letter, digit or `_` precedes, goes on for
/// letters, digits and `_` of any script, and has something else than digits in it.
fn hashtags(text: &str) -> impl Iterator<Item = &str> {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    memchr::memchr_iter(b'#', text.as_bytes()).filter_map(move |at| {
        let tag = &text[at + 1..];
        let tag = &tag[..tag.find(|c| !part(c)).unwrap_or(tag.len())];
        let alone = !text[..at].chars().next_back().is_some_and(part);
        (alone && tag.chars().any(|c| !c.is_numeric())).then_some(tag)
    })
}

fn lower_case(tag: &str, into: &mut String) {
    if tag.is_ascii() {
        into.push_str(tag);
        into.make_ascii_lowercase();
    } else {
        into.push_str(&tag.to_lowercase());
    }
}

/// Milliseconds since 1970 of a time written `2026-01-01T00:00:00.000Z`.
fn millis(text: &str) -> Option<i64> {
    let bytes: &[u8; 24] = text.as_bytes().try_into().ok()?;
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'.'), (23, b'Z')];
    if marks.iter().any(|(at, mark)| bytes[*at] != *mark) {
        return None;
    }
    let number = |from: usize, to: usize| {
        bytes[from..to].iter().try_fold(0_i64, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))
    };
    // Howard Hinnant's `days_from_civil`.
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let year = year - i64::from(month <= 2);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + of_year - 719_468;
    let seconds = number(11, 13)? * 3_600 + number(14, 16)? * 60 + number(17, 19)?;
    Some((days * 86_400 + seconds) * 1_000 + number(20, 23)?)
}

/// Appends what the inside of a JSON string stands for.
fn unescape(raw: &str, into: &mut String) -> Result<()> {
    let mut rest = raw;
    while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
        into.push_str(&rest[..at]);
        let mut length = 2;
        into.push(match rest.as_bytes().get(at + 1) {
            Some(b'n') => '\n',
            Some(b't') => '\t',
            Some(b'r') => '\r',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(c @ (b'"' | b'\\' | b'/')) => char::from(*c),
            Some(b'u') => {
                let unit = |from: usize| rest.get(from..from + 4).and_then(|hex| u16::from_str_radix(hex, 16).ok());
                let units = unit(at + 2).into_iter().chain(unit(at + 8).filter(|_| rest[at + 6..].starts_with("\\u")));
                let c =
                    char::decode_utf16(units).next().and_then(|c| c.ok()).ok_or("a \\u escape that is no letter")?;
                length = 6 * c.len_utf16();
                c
            }
            _ => return Err("an unknown escape".into()),
        });
        rest = &rest[at + length..];
    }
    into.push_str(rest);
    Ok(())
}

/// Every window's top tags.
fn windows(threads: Vec<Counts>) -> Result<Trends> {
    let mut tags = ByteTable::default();
    let mut panes: BTreeMap<i64, Vec<u64>> = BTreeMap::new();
    for counts in threads {
        let mut numbers = vec![0; counts.tags.len()];
        for (tag, number) in counts.tags.iter() {
            let next = tags.len() as u64;
            numbers[usize::try_from(number)?] = usize::try_from(*tags.get(tag, next))?;
        }
        for (start, theirs) in counts.panes {
            let pane = panes.entry(start).or_default();
            pane.resize(tags.len(), 0);
            theirs.into_iter().zip(&numbers).for_each(|(n, number)| pane[*number] += n);
        }
    }
    let mut names = vec![""; tags.len()];
    for (tag, number) in tags.iter() {
        names[usize::try_from(number)?] = std::str::from_utf8(tag)?;
    }
    let mut window = vec![0_u64; tags.len()];
    let mut trends = Vec::new();
    let (Some((first, _)), Some((last, _))) = (panes.first_key_value(), panes.last_key_value()) else {
        return Ok(Rows::new(trends));
    };
    let mut end = first + SLIDE_MS;
    while end <= last + WINDOW_MS {
        if let Some(enters) = panes.get(&(end - SLIDE_MS)) {
            window.iter_mut().zip(enters).for_each(|(sum, n)| *sum += n);
        }
        if let Some(leaves) = panes.get(&(end - SLIDE_MS - WINDOW_MS)) {
            window.iter_mut().zip(leaves).for_each(|(sum, n)| *sum -= n);
        }
        let top = top(&window, &names);
        if !top.is_empty() {
            trends.push((end, top));
        }
        end += SLIDE_MS;
    }
    Ok(Rows::new(trends))
}

fn top(window: &[u64], names: &[&str]) -> Vec<(String, u64)> {
    let mut seen: Vec<(u64, &str)> =
        window.iter().copied().zip(names.iter().copied()).filter(|(n, _)| *n > 0).collect();
    let order = |a: &(u64, &str), b: &(u64, &str)| b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1));
    if seen.len() > TOP {
        seen.select_nth_unstable_by(TOP - 1, order);
        seen.truncate(TOP);
    }
    seen.sort_unstable_by(order);
    seen.into_iter().map(|(n, tag)| (tag.to_string(), n)).collect()
}

/// The trends of all files.
///
/// # Errors
/// When a file can't be read, or a line is not a tweet.
pub(crate) fn run(files: &Files, threads: usize) -> Result<Trends> {
    let readers = share_files(&files.parts, threads, Reader::new, |mine, file| {
        pieces(file, |piece| {
            let mut start = 0;
            for end in memchr::memchr_iter(b'\n', piece.as_bytes()) {
                mine.line(&piece[start..end])?;
                start = end + 1;
            }
            if start < piece.len() { mine.line(&piece[start..]) } else { Ok(()) }
        })
    })?;
    windows(readers.into_iter().map(|reader| reader.counts).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::tweets::Tweets;
    use serde_json::Value;
    use std::fs;

    #[test]
    fn trends_are_those_of_the_plainest_program() {
        let base = tempfile::tempdir().unwrap();
        let tweets = Tweets::new(6);
        // Far apart in time, so that a few thousand tweets fill some windows and leave others empty.
        let files = Files::find_or_write(base.path(), "w2", 6, 6_000, 1, |i, into| tweets.tweet(i * 90, into)).unwrap();
        let mut by_window: BTreeMap<i64, BTreeMap<String, u64>> = BTreeMap::new();
        for part in &files.parts {
            for line in fs::read_to_string(part).unwrap().lines() {
                let tweet: Value = serde_json::from_str(line).unwrap();
                let text = tweet["text"].as_str().unwrap();
                if tweet["lang"] != "en" && !text.contains(KEYWORD) {
                    continue;
                }
                let ms: i64 = tweet["timestamp_ms"].as_str().unwrap().parse().unwrap();
                for tag in tweet["entities"]["hashtags"].as_array().unwrap() {
                    let tag = tag["text"].as_str().unwrap().to_lowercase();
                    for end in (0..6).map(|k| ms - ms % SLIDE_MS + SLIDE_MS * (k + 1)) {
                        *by_window.entry(end).or_default().entry(tag.clone()).or_default() += 1;
                    }
                }
            }
        }
        let top = |tags: BTreeMap<String, u64>| {
            let mut tags: Vec<_> = tags.into_iter().collect();
            tags.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
            tags.truncate(TOP);
            tags
        };
        let expected: Vec<_> = by_window.into_iter().map(|(end, tags)| (end, top(tags))).collect();
        assert!(expected.len() > 20);
        assert_eq!(run(&files, 3).unwrap().difference_from(&Rows::new(expected)), None);
    }

    #[test]
    fn hashtags_stand_alone_and_are_more_than_digits() {
        let text = "#One (#zwei) a#b C#5 #1 ##drei #東京2026… &#39; #_ # #École";
        let tags: Vec<&str> = hashtags(text).collect();
        assert_eq!(tags, ["One", "zwei", "drei", "東京2026", "_", "École"]);
    }

    #[test]
    fn escapes_are_read_as_json_has_them() {
        for text in ["plain", "é\u{1F600}\n\"\\/\t", "日本\u{8}\u{c}\r"] {
            let json = serde_json::to_string(text).unwrap();
            let ascii: String = text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
            for raw in [&json[1..json.len() - 1], &ascii] {
                let mut plain = String::new();
                unescape(raw, &mut plain).unwrap();
                assert_eq!(plain, text);
            }
        }
        for raw in [r"\ud83d", r"\ud83dx", r"\udc00", r"\x", r"\u12", r"end\"] {
            assert!(unescape(raw, &mut String::new()).is_err(), "{raw}");
        }
    }

    #[test]
    fn times_read_as_the_calendar_has_them() {
        assert_eq!(millis("1970-01-01T00:00:00.001Z"), Some(1));
        assert_eq!(millis("2026-01-01T00:00:00.000Z"), Some(1_767_225_600_000));
        assert_eq!(millis("2000-02-29T00:00:00.000Z"), Some(951_782_400_000));
        assert_eq!(millis("2000-02-29 00:00:00.000Z"), None);
    }
}
