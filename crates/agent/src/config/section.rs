//! Tables of the file, read key by key; what is wrong is collected with its place.
//!
//! Invariant: a key that nobody asked for is a problem that names the nearest known one; every problem has a line and
//! a column. Called by the reader of the agent's file.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};
use tidemill_core::{Duration, Options, nearest, parse_bytes, parse_duration};
use toml_span::{
    Span, Value,
    value::{Table, ValueInner},
};

/// What is wrong with a file, by place.
#[derive(Debug, Default)]
pub(crate) struct Problems(RefCell<Vec<(usize, String)>>);

impl Problems {
    pub(crate) fn add(&self, span: Span, what: impl Into<String>) {
        self.0.borrow_mut().push((span.start, what.into()));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// `line 3, column 7: …`, in the order of the file.
    pub(crate) fn lines(self, text: &str) -> Vec<String> {
        let mut all = self.0.into_inner();
        all.sort();
        all.dedup();
        all.into_iter().map(|(at, what)| format!("{}: {what}", place(text, at))).collect()
    }
}

/// `line 3, column 7`; columns count characters.
pub(crate) fn place(text: &str, at: usize) -> String {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!("line {line}, column {column}")
}

/// A table that is taken key by key.
pub(crate) struct Section<'a> {
    /// For people: `source "r1"`.
    pub(crate) owner: String,
    table: &'a Table<'a>,
    pub(crate) span: Span,
    problems: &'a Problems,
    asked: RefCell<BTreeSet<String>>,
}

/// A text and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Spot {
    pub(crate) text: String,
    pub(crate) span: Span,
}

impl<'a> Section<'a> {
    /// The value as a table; a problem when it is none.
    pub(crate) fn of(
        owner: impl Into<String>,
        value: &'a Value<'a>,
        span: Span,
        problems: &'a Problems,
    ) -> Option<Self> {
        let owner = owner.into();
        match value.as_table() {
            Some(table) => Some(Self { owner, table, span, problems, asked: RefCell::default() }),
            None => {
                problems.add(value.span, format!("{owner}: a table is wanted here, not {}", kind(value)));
                None
            }
        }
    }

    /// A problem of the table itself.
    pub(crate) fn problem(&self, what: impl AsRef<str>) {
        self.problems.add(self.span, format!("{}: {}", self.owner, what.as_ref()));
    }

    /// A problem at a place.
    pub(crate) fn problem_at(&self, span: Span, what: impl AsRef<str>) {
        self.problems.add(span, format!("{}: {}", self.owner, what.as_ref()));
    }

    fn value(&self, key: &str) -> Option<&'a Value<'a>> {
        self.asked.borrow_mut().insert(key.to_owned());
        self.table.get(key)
    }

    /// Whether a key is there; that does not count as asking for it.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether a list is there and names nothing.
    pub(crate) fn is_empty(&self, key: &str) -> bool {
        self.table.get(key).and_then(Value::as_array).is_some_and(|values| values.is_empty())
    }

    fn wrong(&self, key: &str, value: &Value<'_>, want: &str) {
        self.problem_at(value.span, format!("`{key}` must be {want}, not {}", kind(value)));
    }

    /// A text; a number or a flag is taken as it is written.
    pub(crate) fn spot(&self, key: &str) -> Option<Spot> {
        let value = self.value(key)?;
        match scalar(value) {
            Some(text) => Some(Spot { text, span: value.span }),
            None => {
                self.wrong(key, value, "a text");
                None
            }
        }
    }

    /// A text.
    pub(crate) fn text(&self, key: &str) -> Option<String> {
        self.spot(key).map(|spot| spot.text)
    }

    /// A text that must be there.
    pub(crate) fn required(&self, key: &str, purpose: &str) -> Option<Spot> {
        if !self.has(key) {
            self.asked.borrow_mut().insert(key.to_owned());
            self.problem(format!("`{key}` is missing: {purpose}"));
            return None;
        }
        self.spot(key)
    }

    fn parsed<T>(&self, key: &str, default: T, want: &str, parse: impl Fn(&str) -> Option<T>) -> T {
        let Some(spot) = self.spot(key) else { return default };
        parse(&spot.text).unwrap_or_else(|| {
            self.problem_at(spot.span, format!("`{key}` must be {want}, not `{}`", spot.text));
            default
        })
    }

    /// A whole number of one at least.
    pub(crate) fn count(&self, key: &str, default: u64) -> u64 {
        self.parsed(key, default, "a whole number of 1 or more", |text| {
            u64::from_str(&text.replace('_', "")).ok().filter(|count| *count > 0)
        })
    }

    /// The same where there need not be one.
    pub(crate) fn some_count(&self, key: &str) -> Option<u64> {
        self.has(key).then(|| self.count(key, 1)).or_else(|| {
            self.asked.borrow_mut().insert(key.to_owned());
            None
        })
    }

    /// `true` or `false`.
    pub(crate) fn flag(&self, key: &str, default: bool) -> bool {
        self.parsed(key, default, "true or false", |text| text.parse().ok())
    }

    /// A duration such as `10s`.
    pub(crate) fn duration(&self, key: &str, default: Duration) -> Duration {
        let want = "a duration with its unit (ms, s, m, h, d), such as 250ms or 10s";
        self.parsed(key, default, want, parse_duration)
    }

    /// A size such as `64MiB`.
    pub(crate) fn bytes(&self, key: &str, default: u64) -> u64 {
        self.parsed(key, default, "a size such as 64KiB or 10MB", parse_bytes)
    }

    /// One of a few words.
    pub(crate) fn choice<'c>(&self, key: &str, known: &[&'c str], default: &'c str) -> &'c str {
        let Some(spot) = self.spot(key) else { return default };
        if let Some(word) = known.iter().find(|word| **word == spot.text) {
            return word;
        }
        self.problem_at(spot.span, format!("there is no {key} `{}`; {}", spot.text, hint(&spot.text, known)));
        default
    }

    /// Texts: an array, or one text.
    pub(crate) fn list(&self, key: &str) -> Vec<Spot> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let of = |value: &Value<'_>| {
            let text = scalar(value);
            if text.is_none() {
                self.wrong(key, value, "a text");
            }
            text.map(|text| Spot { text, span: value.span })
        };
        match value.as_array() {
            Some(values) => values.iter().filter_map(of).collect(),
            None => of(value).into_iter().collect(),
        }
    }

    /// A table within.
    pub(crate) fn section(&self, key: &str) -> Option<Section<'a>> {
        let value = self.value(key)?;
        Section::of(format!("{}, `{key}`", self.owner), value, value.span, self.problems)
    }

    /// The tables of an array of tables.
    pub(crate) fn sections(&self, key: &str) -> Vec<Section<'a>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(values) = value.as_array() else {
            self.wrong(key, value, "an array of tables, each beginning with `[[…]]`");
            return Vec::new();
        };
        let of = |(number, value): (usize, &'a Value<'a>)| {
            Section::of(format!("{}, `{key}` {}", self.owner, number + 1), value, value.span, self.problems)
        };
        values.iter().enumerate().filter_map(of).collect()
    }

    /// All keys with tables behind them: name, place of the name, table.
    pub(crate) fn named(&self, what: &str) -> Vec<(Spot, Section<'a>)> {
        let mut all: Vec<(Spot, Section<'a>)> = Vec::new();
        for (key, value) in self.table {
            self.asked.borrow_mut().insert(key.name.to_string());
            let spot = Spot { text: key.name.to_string(), span: key.span };
            let owner = format!("{what} \"{}\"", key.name);
            all.extend(Section::of(owner, value, key.span, self.problems).map(|section| (spot, section)));
        }
        all.sort_by_key(|(spot, _)| spot.span.start);
        all
    }

    /// All keys with their lists of texts.
    pub(crate) fn lists(&self) -> BTreeMap<String, Vec<Spot>> {
        self.table.keys().map(|key| (key.name.to_string(), self.list(&key.name))).collect()
    }

    /// All that nobody has asked for, as options for a part of the registry, and `more`.
    pub(crate) fn options(&self, more: &[(&str, &str)]) -> Options {
        let mut pairs: Vec<(String, String)> = more.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let keys: Vec<&str> = self.table.keys().map(|key| key.name.as_ref()).collect();
        for key in keys {
            if !self.asked.borrow().contains(key) {
                pairs.extend(self.text(key).map(|text| (key.to_owned(), text)));
            }
        }
        Options::new(self.owner.clone(), pairs)
    }

    /// An error of the registry, at the key that it names.
    pub(crate) fn refused(&self, error: &tidemill_core::Error) {
        let text = error.chain();
        // A key that is missing may be there under a name that is nearly its own.
        if let Some((_, missing)) = text.split_once("option `").filter(|_| text.contains("` is missing"))
            && let Some((missing, _)) = missing.split_once('`')
        {
            let mut strange = self.table.keys().filter(|key| key.name != missing);
            if let Some(key) = strange.find(|key| nearest(&key.name, &[missing]).is_some()) {
                self.problem_at(key.span, format!("unknown key `{}`; did you mean `{missing}`?", key.name));
                return;
            }
        }
        let key = text.split('`').skip(1).step_by(2).find_map(|word| self.table.get_key_value(word));
        let span = key.map_or(self.span, |(key, _)| key.span);
        let own = format!("{}: ", self.owner);
        self.problem_at(span, text.strip_prefix(&own).unwrap_or(&text).replace("option `", "key `"));
    }

    /// Call when all keys were taken: the others are problems.
    pub(crate) fn finish(&self) {
        let asked = self.asked.borrow();
        let known: Vec<&str> = asked.iter().map(String::as_str).collect();
        for key in self.table.keys().filter(|key| !asked.contains(key.name.as_ref())) {
            self.problem_at(key.span, format!("unknown key `{}`; {}", key.name, hint(&key.name, &known)));
        }
    }
}

/// `did you mean …?`, or all that there is.
pub(crate) fn hint(word: &str, known: &[&str]) -> String {
    nearest(word, known)
        .map_or_else(|| format!("known are {}", known.join(", ")), |near| format!("did you mean `{near}`?"))
}

fn scalar(value: &Value<'_>) -> Option<String> {
    match value.as_ref() {
        ValueInner::String(text) => Some(text.to_string()),
        ValueInner::Integer(number) => Some(number.to_string()),
        ValueInner::Float(number) => Some(number.to_string()),
        ValueInner::Boolean(flag) => Some(flag.to_string()),
        ValueInner::Array(_) | ValueInner::Table(_) => None,
    }
}

fn kind(value: &Value<'_>) -> &'static str {
    match value.as_ref() {
        ValueInner::String(_) => "a text",
        ValueInner::Integer(_) | ValueInner::Float(_) => "a number",
        ValueInner::Boolean(_) => "true or false",
        ValueInner::Array(_) => "an array",
        ValueInner::Table(_) => "a table",
    }
}
