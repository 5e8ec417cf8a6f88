//! The parts of social text: hashtags, mentions, links, words.
//!
//! Plain functions over `&str` that give pieces of it, for typed programs; SQL's
//! functions of the same names are these. Nothing is allocated, Chinese
//! words excepted: they are cut by a dictionary that the first Chinese text
//! loads (some 80 ms), and that other text never pays for.
//!
//! ```
//! use tidemill_engine::text;
//! let post = "Try #Rust, @ferris: https://rust-lang.org/learn.";
//! assert_eq!(text::hashtags(post).collect::<Vec<_>>(), ["Rust"]);
//! assert_eq!(text::mentions(post).collect::<Vec<_>>(), ["ferris"]);
//! assert_eq!(text::urls(post).collect::<Vec<_>>(), ["https://rust-lang.org/learn"]);
//! assert_eq!(text::words("Don't stop 我爱北京").collect::<Vec<_>>(), ["Don't", "stop", "我", "爱", "北京"]);
//! ```

use jieba_rs::Jieba;
use std::sync::LazyLock;

static CHINESE: LazyLock<Jieba> = LazyLock::new(Jieba::new);

/// A letter or digit of any script, or `_`.
fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether a character before `at` glues what follows to a word.
fn glued(text: &str, at: usize) -> bool {
    text[..at].chars().next_back().is_some_and(is_word)
}

/// The hashtags of a text, without their `#`, as they are written.
///
/// A tag begins at a `#` that no letter, digit or `_` precedes, goes on for
/// letters, digits and `_` of any script, and has something else than digits in it.
pub fn hashtags(text: &str) -> impl Iterator<Item = &str> {
    memchr::memchr_iter(b'#', text.as_bytes()).filter_map(move |at| {
        let tag = &text[at + 1..];
        let tag = &tag[..tag.find(|c| !is_word(c)).unwrap_or(tag.len())];
        (tag.chars().any(|c| !c.is_numeric()) && !glued(text, at)).then_some(tag)
    })
}

/// The mentioned accounts of a text, without the `@`, as they are written.
///
/// A name has letters, digits and `_`; a `.` or `-` within belongs to it
/// (`@ana.bsky.social`), and so does a host behind a second `@`
/// (`@ana@mastodon.social`). The address `a@b.org` mentions nobody.
pub fn mentions(text: &str) -> impl Iterator<Item = &str> {
    memchr::memchr_iter(b'@', text.as_bytes()).filter_map(move |at| {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| is_word(c) || c == '@' || c == '/') {
            return None;
        }
        let name = &text[at + 1..];
        let mut end = 0;
        let mut rest = name.char_indices().peekable();
        while let Some((place, c)) = rest.next() {
            let joins =
                matches!(c, '.' | '-' | '@') && place > 0 && rest.peek().is_some_and(|(_, next)| is_word(*next));
            if !is_word(c) && !joins {
                break;
            }
            end = place + c.len_utf8();
        }
        (end > 0).then(|| &name[..end])
    })
}

/// The links of a text: from `http://` or `https://` to the next space, without
/// the punctuation that ends the sentence around them.
pub fn urls(text: &str) -> impl Iterator<Item = &str> {
    let mut from = 0;
    std::iter::from_fn(move || {
        loop {
            let at = from + memchr::memmem::find(&text.as_bytes()[from..], b"://")?;
            let scheme = ["https", "http"].into_iter().find(|scheme| {
                let start = at.checked_sub(scheme.len());
                start.and_then(|start| text.get(start..at)).is_some_and(|found| found.eq_ignore_ascii_case(scheme))
            });
            let Some(scheme) = scheme else {
                from = at + 3;
                continue;
            };
            let start = at - scheme.len();
            let rest = &text[at + 3..];
            let stop = |c: char| {
                c.is_whitespace()
                    || c.is_control()
                    || matches!(c, '<' | '>' | '"' | '“' | '”' | '「' | '」' | '，' | '。' | '、')
            };
            let body = trimmed(&rest[..rest.find(stop).unwrap_or(rest.len())]);
            from = at + 3 + body.len();
            if body.is_empty() || glued(text, start) {
                continue;
            }
            return Some(&text[start..from]);
        }
    })
}

/// Without punctuation that belongs to the sentence; a `)` stays when its `(` is within.
fn trimmed(mut url: &str) -> &str {
    while let Some(last) = url.chars().next_back() {
        let open = match last {
            ')' => Some('('),
            ']' => Some('['),
            '}' => Some('{'),
            '.' | ',' | ';' | ':' | '!' | '?' | '\'' | '…' | '*' | '！' | '？' | '；' | '：' | '）' => None,
            _ => return url,
        };
        if let Some(open) = open
            && url.matches(open).count() >= url.matches(last).count()
        {
            return url;
        }
        url = &url[..url.len() - last.len_utf8()];
    }
    url
}

/// Whether a character is written without spaces between words, and in the dictionary's script.
fn is_han(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3134f}')
}

/// The words of a text, as they are written: runs of letters, digits and `_`,
/// with an apostrophe inside (`don't`). Chinese runs are cut by the dictionary.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    Words { text, at: 0, chinese: Vec::new().into_iter() }
}

struct Words<'a> {
    text: &'a str,
    at: usize,
    /// Words of the Chinese run that is being given.
    chinese: std::vec::IntoIter<&'a str>,
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if let Some(word) = self.chinese.next() {
            return Some(word);
        }
        let rest = &self.text[self.at..];
        let start = self.at + rest.find(is_word)?;
        let run = &self.text[start..];
        let han = run.chars().next().is_some_and(is_han);
        let bytes = run.as_bytes();
        let end = run
            .char_indices()
            .find(|(at, c)| {
                if is_word(*c) {
                    return is_han(*c) != han;
                }
                // An apostrophe between two letters is of the word.
                let after = at + c.len_utf8();
                !(matches!(c, '\'' | '’') && after < bytes.len() && run[after..].starts_with(char::is_alphabetic))
            })
            .map_or(run.len(), |(at, _)| at);
        let run = &run[..end];
        self.at = start + end;
        if !han {
            return Some(run);
        }
        self.chinese = CHINESE.cut(run, true).into_iter().map(|token| token.word).collect::<Vec<_>>().into_iter();
        self.chinese.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all<'a>(words: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
        words.collect()
    }

    #[test]
    fn hashtags_are_of_any_script_and_stand_alone() {
        assert_eq!(
            all(hashtags("#a #B1 ##c x#no _#no 5#no #été #日本語タグ #пример_1!")),
            ["a", "B1", "c", "été", "日本語タグ", "пример_1"]
        );
        assert_eq!(all(hashtags("we are #1 and #2nd, # and #")), ["2nd"]);
        assert_eq!(all(hashtags("#one#two")), ["one"], "a tag glued to a word is none");
    }

    #[test]
    fn mentions_are_no_addresses() {
        assert_eq!(
            all(mentions("@a hi @b_2, a@b.org (@ana.bsky.social). @x@mastodon.social @@no @ http://h/@no")),
            ["a", "b_2", "ana.bsky.social", "x@mastodon.social"]
        );
    }

    #[test]
    fn links_end_before_the_sentence_does() {
        assert_eq!(
            all(urls(
                "See http://a.b/c?d=1&e=2. (https://en.wikipedia.org/wiki/Rust_(game)), HTTPS://X.Y! ftp://no http:// end"
            )),
            ["http://a.b/c?d=1&e=2", "https://en.wikipedia.org/wiki/Rust_(game)", "HTTPS://X.Y"]
        );
        assert_eq!(all(urls("看https://t.co/a，好")), Vec::<&str>::new(), "a letter before it");
        assert_eq!(all(urls("看 https://t.co/a，好")), ["https://t.co/a"]);
    }

    #[test]
    fn words_keep_apostrophes_and_cut_chinese() {
        assert_eq!(all(words("It's rock'n'roll, 'quoted' e-mail")), ["It's", "rock'n'roll", "quoted", "e", "mail"]);
        assert_eq!(all(words("我爱北京天安门v2")), ["我", "爱", "北京", "天安门", "v2"]);
        assert_eq!(all(words(" … ")), Vec::<&str>::new());
    }
}
