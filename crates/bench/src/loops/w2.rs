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
    input::{
        files::Files,
        tweets::{KEYWORD, PER_SECOND, START_MS},
    },
};
use memchr::memmem::Finder;
use std::collections::BTreeMap;
use tidemill_connectors::format::json::{self, Paths};

/// A window's length, milliseconds.
pub(crate) const WINDOW_MS: i64 = 60_000;
/// From one window to the next, milliseconds; also a pane's length.
pub(crate) const SLIDE_MS: i64 = 10_000;
/// Tags kept of each window.
pub(crate) const TOP: usize = 10;

/// By window end (milliseconds since 1970): its most frequent tags, the most frequent first,
/// those of the same count by the alphabet. Windows without a tag are left out.
pub(crate) type Trends = Rows<i64, Vec<(String, u64)>>;

/// The windows that a watermark one second behind has closed when all `items` tweets are read:
/// a stream's last minute has no end to wait for. Jitter is half a second, so two seconds are safe.
pub(crate) fn closed(trends: Trends, items: u64) -> Trends {
    let last = i64::try_from(START_MS + items * 1_000 / PER_SECOND).unwrap_or(i64::MAX);
    trends.keep(|end| *end <= last - 2_000)
}

/// A string of a line, as it stands there.
#[derive(Clone, Copy)]
struct Raw<'a> {
    text: &'a str,
    escaped: bool,
}

/// What a tweet's line is asked for.
struct Tweet<'a> {
    created_at: Raw<'a>,
    lang: Raw<'a>,
    text: Raw<'a>,
}

/// The fields that [`project`] takes, by their place.
const FIELDS: [&str; 3] = ["created_at", "lang", "text"];

/// Takes the three fields out of a line, and checks all of it. Another scanner is put in here.
#[inline]
fn project<'a>(line: &'a str, fields: &Paths) -> Result<Tweet<'a>> {
    let mut found = [None; FIELDS.len()];
    json::scan(line, fields, |field, value| {
        found[field] = match value {
            json::Raw::Text { text, escaped } => Some(Raw { text, escaped }),
            _ => None,
        };
    })
    .map_err(|e| format!("not a tweet: {e}: {line}"))?;
    let [Some(created_at), Some(lang), Some(text)] = found else {
        return Err(format!("not a tweet: a field is missing or no string: {line}").into());
    };
    Ok(Tweet { created_at, lang, text })
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
    fields: Paths,
    keyword: Finder<'static>,
    plain: String,
    lower: String,
}

impl Reader {
    fn new() -> Self {
        Self {
            counts: Counts::default(),
            fields: Paths::keys(FIELDS),
            keyword: Finder::new(KEYWORD),
            plain: String::new(),
            lower: String::new(),
        }
    }

    #[inline]
    fn line(&mut self, line: &str) -> Result<()> {
        let Tweet { created_at, lang, text } = project(line, &self.fields)?;
        let english = equals(lang, "en")?;
        // Where nothing is escaped, a text is turned away as it stands: other than English without
        // the keyword, English without a `#` to count.
        if !text.escaped {
            let wanted = if english {
                memchr::memchr(b'#', text.text.as_bytes()).is_some()
            } else {
                self.keyword.find(text.text.as_bytes()).is_some()
            };
            return if wanted { self.tags(text.text, created_at) } else { Ok(()) };
        }
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        json::unescape(text.text, &mut plain)?;
        if english || self.keyword.find(plain.as_bytes()).is_some() {
            self.tags(&plain, created_at)?;
        }
        self.plain = plain;
        Ok(())
    }

    fn tags(&mut self, text: &str, created_at: Raw<'_>) -> Result<()> {
        let Self { counts: Counts { tags, panes }, lower, .. } = self;
        let mut found = hashtags(text).peekable();
        if found.peek().is_none() {
            return Ok(());
        }
        let ms = millis(created_at.text).ok_or_else(|| format!("not a time: {}", created_at.text))?;
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

/// Whether a string is `to`, however it is written.
#[inline]
fn equals(raw: Raw<'_>, to: &str) -> Result<bool> {
    if !raw.escaped {
        return Ok(raw.text == to);
    }
    let mut plain = String::new();
    json::unescape(raw.text, &mut plain)?;
    Ok(plain == to)
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
    fn a_line_means_the_same_however_it_is_escaped() {
        let mut reader = Reader::new();
        let at = r#""created_at":"2026-01-01T00:00:01.000Z""#;
        for line in [
            r##""lang":"en","text":"one #Tag""##,
            r##""lang":"\u0065n","text":"one \u0023Tag""##,
            r##""text":"\u0074sunami #tag","user":{"lang":"en"},"lang":"ja""##,
            r##""text":"tsunami #TAG","lang":"ja""##,
            r##""text":"no #tag","user":{"lang":"en","text":"tsunami"},"lang":"ja""##,
            r##""text":"no \n#tag","lang":"ja""##,
        ] {
            reader.line(&format!("{{{at},{}}}", line.replace(r"\\", r"\"))).unwrap();
        }
        let trends = windows(vec![reader.counts]).unwrap();
        assert_eq!(trends.rows()[0].1, [("tag".to_string(), 4)]);
        assert_eq!(trends.rows().len(), 6);
    }

    #[test]
    fn a_line_that_is_no_tweet_is_an_error() {
        for line in [
            "",
            "{}",
            "[1]",
            r#"{"created_at":"x","lang":"en","text":7}"#,
            r##"{"created_at":"x","lang":"en","text":"#a"}"##,
        ] {
            assert!(Reader::new().line(line).is_err(), "{line}");
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
