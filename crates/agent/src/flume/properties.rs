//! Files of Java properties, as Flume reads them.
//!
//! Invariant: each key has its last value and that value's line; a key that was never taken is known at the end.
//! Called by the import.

use std::{cell::RefCell, collections::BTreeMap};

/// Keys and values with their lines.
#[derive(Debug, Default)]
pub(super) struct Properties {
    values: BTreeMap<String, Value>,
    taken: RefCell<Vec<String>>,
}

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) text: String,
    pub(super) line: usize,
}

impl Properties {
    pub(super) fn read(text: &str) -> Self {
        let mut properties = Self::default();
        let mut lines = text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with(['#', '!']) {
                continue;
            }
            let mut whole = line.to_owned();
            // An odd number of backslashes at the end: the next line goes on.
            while whole.chars().rev().take_while(|c| *c == '\\').count() % 2 == 1 {
                whole.pop();
                match lines.next() {
                    Some((_, more)) => whole.push_str(more.trim_start()),
                    None => break,
                }
            }
            let (key, value) = split(&whole);
            let value = Value { text: unescaped(value.trim_end()), line: number + 1 };
            properties.values.insert(unescaped(key), value);
        }
        properties
    }

    /// The value of a key, which counts as taken.
    pub(super) fn take(&self, key: &str) -> Option<Value> {
        self.taken.borrow_mut().push(key.to_owned());
        self.values.get(key).cloned()
    }

    /// The words of a list.
    pub(super) fn words(&self, key: &str) -> Vec<String> {
        self.take(key).map(|value| value.text.split_whitespace().map(str::to_owned).collect()).unwrap_or_default()
    }

    /// What follows `prefix` in the keys that begin with it, in the order of the file.
    pub(super) fn below(&self, prefix: &str) -> Vec<(String, Value)> {
        let mut found: Vec<(String, Value)> = self
            .values
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.to_owned(), value.clone())))
            .collect();
        found.sort_by_key(|(_, value)| value.line);
        found
    }

    /// Keys that begin with `prefix` and that nobody has taken, in the order of the file.
    pub(super) fn left(&self, prefix: &str) -> Vec<(String, Value)> {
        let taken = self.taken.borrow();
        self.below(prefix).into_iter().filter(|(rest, _)| !taken.contains(&format!("{prefix}{rest}"))).collect()
    }

    /// The first words of all keys.
    pub(super) fn agents(&self) -> Vec<String> {
        let mut agents: Vec<String> =
            self.values.keys().filter_map(|key| Some(key.split_once('.')?.0.to_owned())).collect();
        agents.dedup();
        agents
    }
}

/// The key and what follows it, cut at the first `=`, `:` or white space that is not escaped.
fn split(line: &str) -> (&str, &str) {
    let mut escaped = false;
    for (at, c) in line.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '=' | ':' => return (&line[..at], line[at + 1..].trim_start()),
            c if c.is_whitespace() => {
                let rest = line[at..].trim_start();
                let rest = rest.strip_prefix(['=', ':']).unwrap_or(rest);
                return (&line[..at], rest.trim_start());
            }
            _ => {}
        }
    }
    (line, "")
}

fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('t') => out.push('\t'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('f') => out.push('\u{c}'),
            Some('u') => {
                let digits: String = chars.by_ref().take(4).collect();
                out.extend(u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32));
            }
            Some(other) => out.push(other),
            None => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_read_as_java_reads_them() {
        let text = "# comment\n! also\n\na.b = c d \na.e:f\na.g h\na.i\\ j = k\\\n    l\\u0041\\\\\na.b.c=\\\na.last";
        let properties = Properties::read(text);
        let value = |key: &str| properties.take(key).map(|value| (value.text, value.line));
        assert_eq!(value("a.b"), Some(("c d".to_owned(), 4)));
        assert_eq!(value("a.e"), Some(("f".to_owned(), 5)));
        assert_eq!(value("a.g"), Some(("h".to_owned(), 6)));
        assert_eq!(value("a.i j"), Some(("klA\\".to_owned(), 7)));
        assert_eq!(value("a.b.c"), Some(("a.last".to_owned(), 9)));
        assert_eq!(properties.agents(), ["a"]);
        assert_eq!(properties.left("a.").len(), 0);
        assert_eq!(properties.words("a.b"), ["c", "d"]);
    }
}
