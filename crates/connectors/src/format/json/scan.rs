//! A projecting JSON scanner: checks a whole record, hands out only what was asked for.
//!
//! [`scan`] walks a record once. Every byte is checked against the grammar of
//! RFC 8259, but only the values at the compiled [`Paths`] are reported, as
//! slices of the record; nothing is allocated and nothing is converted.
//! Strings are passed sixteen bytes at a time. [`super::JsonFormat`] calls it for
//! each record; a hand-written loop can call it just the same.
//!
//! Invariant: a record that is not one whole, well-formed object is a
//! [`Fault`], whatever was reported before the fault was met. Nesting is
//! bounded, so that no input overflows the stack. A repeated key counts as its
//! last appearance.
//!
//! What is left to the one who decodes: a lone surrogate such as `"\ud83d"` is
//! grammatical and is refused only where the string is decoded.

use std::fmt;
use wide::u8x16;

/// Objects and arrays inside one another at most; as `serde_json` has it.
pub const MAX_DEPTH: usize = 127;
/// Bytes of a number at most.
pub const MAX_NUMBER: usize = 1024;

/// Why a record is not a JSON object, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Byte of the record.
    pub at: usize,
    /// What is wrong there.
    pub what: &'static str,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}: {}", self.at, self.what)
    }
}

impl std::error::Error for Fault {}

/// A value as it stands in the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Raw<'a> {
    /// `null`, or not there.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// The number's text, grammatical and at most [`MAX_NUMBER`] bytes.
    Number(&'a str),
    /// What stands between the quotes; with escapes in it when `escaped`.
    Text {
        /// Between the quotes.
        text: &'a str,
        /// Whether a backslash is in it.
        escaped: bool,
    },
    /// From `[` to `]`.
    Array(&'a str),
    /// From `{` to `}`.
    Object(&'a str),
}

/// What to look for: paths of keys, compiled into a tree.
#[derive(Debug, Clone)]
pub struct Paths {
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, Default)]
struct Node {
    /// Bit `min(length, 63)` of each child's key: most keys are turned away by it.
    lengths: u64,
    children: Vec<(Box<[u8]>, usize)>,
    /// What to report for the value here.
    leaves: Vec<usize>,
    /// What can be reported here and below.
    below: Vec<usize>,
}

impl Paths {
    /// Compiles paths; path `i` is reported as `i`.
    ///
    /// ```
    /// use tidemill_connectors::format::json::{Paths, Raw, scan};
    /// let paths = Paths::new([["lang"].as_slice(), ["user", "name"].as_slice()]);
    /// let mut found = Vec::new();
    /// scan(r#"{"id": 7, "user": {"name": "Ada"}, "lang": "en"}"#, &paths, |i, raw| found.push((i, raw)))?;
    /// assert!(found.contains(&(1, Raw::Text { text: "Ada", escaped: false })));
    /// # Ok::<(), tidemill_connectors::format::json::Fault>(())
    /// ```
    pub fn new<P, K>(paths: impl IntoIterator<Item = P>) -> Self
    where
        P: AsRef<[K]>,
        K: AsRef<str>,
    {
        let mut nodes = vec![Node::default()];
        for (i, path) in paths.into_iter().enumerate() {
            let mut at = 0;
            for key in path.as_ref() {
                nodes[at].below.push(i);
                let key = key.as_ref().as_bytes();
                let known = nodes[at].children.iter().find(|(k, _)| **k == *key).map(|(_, child)| *child);
                at = known.unwrap_or_else(|| {
                    let child = nodes.len();
                    nodes[at].children.push((key.into(), child));
                    nodes[at].lengths |= length_bit(key.len());
                    nodes.push(Node::default());
                    child
                });
            }
            nodes[at].leaves.push(i);
            nodes[at].below.push(i);
        }
        Self { nodes }
    }

    /// Paths of one key each.
    pub fn keys<K: AsRef<str>>(keys: impl IntoIterator<Item = K>) -> Self {
        Self::new(keys.into_iter().map(|key| [key]))
    }
}

fn length_bit(length: usize) -> u64 {
    1 << length.min(63)
}

/// The byte order mark.
pub(super) const MARK: char = '\u{feff}';

/// Checks a record and reports the values at `paths`.
///
/// # Errors
/// Where and why the record is not one well-formed JSON object.
pub fn scan<'a>(record: &'a str, paths: &Paths, mut found: impl FnMut(usize, Raw<'a>)) -> Result<(), Fault> {
    // A byte order mark, which editors and exports put before the first record, is no part of it.
    let at = if record.starts_with(MARK) { MARK.len_utf8() } else { 0 };
    let mut walk = Walk { text: record, bytes: record.as_bytes(), at };
    walk.space();
    if walk.peek() != Some(b'{') {
        let what = if walk.at == walk.bytes.len() { "the record is empty" } else { "expected an object" };
        return Err(Fault { at: walk.at, what });
    }
    walk.object(paths, 0, 1, &mut found)?;
    walk.space();
    if walk.at < walk.bytes.len() {
        return Err(walk.fault("bytes after the object"));
    }
    Ok(())
}

/// [`scan`] for bytes that nobody has checked to be UTF-8.
///
/// # Errors
/// As [`scan`], and where the record is not UTF-8.
pub fn scan_bytes<'a>(record: &'a [u8], paths: &Paths, found: impl FnMut(usize, Raw<'a>)) -> Result<(), Fault> {
    scan(utf8(record)?, paths, found)
}

pub(crate) fn utf8(record: &[u8]) -> Result<&str, Fault> {
    simdutf8::compat::from_utf8(record).map_err(|e| Fault { at: e.valid_up_to(), what: "not UTF-8" })
}

/// Reports each item of an array that [`scan`] reported.
///
/// # Errors
/// When `array` is not a well-formed array.
pub fn items<'a, E: From<Fault>>(array: &'a str, mut item: impl FnMut(Raw<'a>) -> Result<(), E>) -> Result<(), E> {
    let mut walk = Walk { text: array, bytes: array.as_bytes(), at: 0 };
    if walk.peek() != Some(b'[') {
        return Err(walk.fault("expected an array").into());
    }
    walk.at += 1;
    walk.space();
    if walk.peek() == Some(b']') {
        return Ok(());
    }
    loop {
        walk.space();
        item(walk.value(1)?)?;
        walk.space();
        match walk.peek() {
            Some(b',') => walk.at += 1,
            Some(b']') => return Ok(()),
            _ => return Err(walk.fault("expected a comma or `]`").into()),
        }
    }
}

/// Appends the string that `text`, the inside of a JSON string, stands for.
///
/// # Errors
/// At a lone surrogate, or an escape that [`scan`] would not have let pass.
pub fn unescape(text: &str, into: &mut String) -> Result<(), Fault> {
    let bytes = text.as_bytes();
    let mut from = 0;
    while let Some(step) = memchr::memchr(b'\\', &bytes[from..]) {
        let at = from + step;
        into.push_str(&text[from..at]);
        let fault = |what| Fault { at, what };
        let (plain, length) = match bytes.get(at + 1).copied() {
            Some(b'n') => ('\n', 2),
            Some(b't') => ('\t', 2),
            Some(b'r') => ('\r', 2),
            Some(b'b') => ('\u{8}', 2),
            Some(b'f') => ('\u{c}', 2),
            Some(c @ (b'"' | b'\\' | b'/')) => (char::from(c), 2),
            Some(b'u') => {
                let unit = hex(bytes, at + 2).ok_or(fault("expected four hex digits"))?;
                match unit {
                    0xD800..=0xDBFF => {
                        let low = (bytes.get(at + 6..at + 8) == Some(b"\\u")).then(|| hex(bytes, at + 8)).flatten();
                        let low = low.filter(|l| (0xDC00..=0xDFFF).contains(l)).ok_or(fault("a lone surrogate"))?;
                        let code = 0x1_0000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
                        (char::from_u32(code).ok_or(fault("a lone surrogate"))?, 12)
                    }
                    _ => (char::from_u32(unit).ok_or(fault("a lone surrogate"))?, 6),
                }
            }
            _ => return Err(fault("an unknown escape")),
        };
        into.push(plain);
        from = at + length;
    }
    into.push_str(&text[from..]);
    Ok(())
}

fn hex(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.iter().try_fold(0, |unit, b| Some(unit << 4 | char::from(*b).to_digit(16)?))
}

struct Walk<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    #[inline(always)]
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn fault(&self, what: &'static str) -> Fault {
        Fault { at: self.at, what: if self.at >= self.bytes.len() { "the record ends too early" } else { what } }
    }

    #[inline(always)]
    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// Slices by places that are next to ASCII bytes, so always whole characters.
    #[inline(always)]
    fn slice(&self, start: usize, end: usize) -> &'a str {
        &self.text[start..end]
    }

    /// Past the quote that ends the string whose inside begins here; whether it has escapes.
    #[inline(always)]
    fn string(&mut self) -> Result<bool, Fault> {
        let mut escaped = false;
        loop {
            // Sixteen bytes at a time up to a quote, a backslash or a control character.
            while let Some(chunk) = self.bytes.get(self.at..self.at + 16) {
                let chunk: [u8; 16] = chunk.try_into().expect("sixteen bytes");
                let bytes = u8x16::new(chunk);
                let control = bytes.min(u8x16::splat(0x1F)).simd_eq(bytes);
                let stops = bytes.simd_eq(u8x16::splat(b'"')) | bytes.simd_eq(u8x16::splat(b'\\')) | control;
                let stops = stops.to_bitmask();
                if stops != 0 {
                    let first = stops.trailing_zeros() as usize;
                    self.at += first;
                    if chunk[first % 16] == b'"' {
                        self.at += 1;
                        return Ok(escaped);
                    }
                    break;
                }
                self.at += 16;
            }
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(escaped);
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                Some(0..0x20) => return Err(self.fault("a control character in a string")),
                Some(_) => self.at += 1,
                None => return Err(self.fault("")),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Fault> {
        match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 2,
            Some(b'u') => {
                hex(self.bytes, self.at + 2).ok_or_else(|| self.fault("expected four hex digits after `\\u`"))?;
                self.at += 6;
            }
            _ => return Err(self.fault("an unknown escape in a string")),
        }
        Ok(())
    }

    #[inline(always)]
    fn digits(&mut self) -> Result<(), Fault> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start { Err(self.fault("expected a digit")) } else { Ok(()) }
    }

    #[inline(always)]
    fn number(&mut self) -> Result<Raw<'a>, Fault> {
        let start = self.at;
        self.pass_number()?;
        Ok(Raw::Number(self.slice(start, self.at)))
    }

    #[inline(always)]
    fn pass_number(&mut self) -> Result<(), Fault> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
            if let Some(b'0'..=b'9') = self.peek() {
                return Err(self.fault("a number with a leading zero"));
            }
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        if self.at - start > MAX_NUMBER {
            return Err(Fault { at: start, what: "a number of more than 1024 bytes" });
        }
        Ok(())
    }

    #[inline(always)]
    fn word(&mut self, word: &'static str, raw: Raw<'a>) -> Result<Raw<'a>, Fault> {
        if self.bytes[self.at..].starts_with(word.as_bytes()) {
            self.at += word.len();
            Ok(raw)
        } else {
            Err(self.fault("expected a value"))
        }
    }

    /// The value that begins here, inside `depth` objects and arrays.
    #[inline(always)]
    fn value(&mut self, depth: usize) -> Result<Raw<'a>, Fault> {
        let start = self.at;
        match self.peek() {
            Some(b'"') => {
                self.at += 1;
                let escaped = self.string()?;
                Ok(Raw::Text { text: self.slice(start + 1, self.at - 1), escaped })
            }
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Raw::Bool(true)),
            Some(b'f') => self.word("false", Raw::Bool(false)),
            Some(b'n') => self.word("null", Raw::Null),
            Some(b'{') => {
                self.skip_object(depth + 1)?;
                Ok(Raw::Object(self.slice(start, self.at)))
            }
            Some(b'[') => {
                self.skip_array(depth + 1)?;
                Ok(Raw::Array(self.slice(start, self.at)))
            }
            _ => Err(self.fault("expected a value")),
        }
    }

    /// Past the value that begins here, inside `depth` objects and arrays.
    #[inline(always)]
    fn skip(&mut self, depth: usize) -> Result<(), Fault> {
        match self.peek() {
            Some(b'"') => {
                self.at += 1;
                self.string()?;
                Ok(())
            }
            Some(b'-' | b'0'..=b'9') => self.pass_number(),
            Some(b't') => self.word("true", Raw::Null).map(drop),
            Some(b'f') => self.word("false", Raw::Null).map(drop),
            Some(b'n') => self.word("null", Raw::Null).map(drop),
            Some(b'{') => self.skip_object(depth + 1),
            Some(b'[') => self.skip_array(depth + 1),
            _ => Err(self.fault("expected a value")),
        }
    }

    /// Past the colon after a key whose quote is here; the key's inside and whether it has escapes.
    #[inline(always)]
    fn key(&mut self) -> Result<(&'a [u8], bool), Fault> {
        if self.peek() != Some(b'"') {
            return Err(self.fault("expected a key in quotes"));
        }
        let start = self.at + 1;
        self.at = start;
        let escaped = self.string()?;
        let key = &self.bytes[start..self.at - 1];
        self.space();
        if self.peek() != Some(b':') {
            return Err(self.fault("expected a colon"));
        }
        self.at += 1;
        self.space();
        Ok((key, escaped))
    }

    /// Whether another member or item follows; past the comma or the end.
    #[inline(always)]
    fn more(&mut self, end: u8, what: &'static str) -> Result<bool, Fault> {
        self.space();
        let next = self.peek();
        let more = next == Some(b',');
        if !more && next != Some(end) {
            return Err(self.fault(what));
        }
        self.at += 1;
        if more {
            self.space();
        }
        Ok(more)
    }

    #[inline(always)]
    fn open(&mut self, depth: usize, end: u8) -> Result<bool, Fault> {
        if depth > MAX_DEPTH {
            return Err(self.fault("nested deeper than 127 levels"));
        }
        self.at += 1;
        self.space();
        let empty = self.peek() == Some(end);
        self.at += usize::from(empty);
        Ok(!empty)
    }

    fn skip_object(&mut self, depth: usize) -> Result<(), Fault> {
        let mut more = self.open(depth, b'}')?;
        while more {
            self.key()?;
            self.skip(depth)?;
            more = self.more(b'}', "expected a comma or `}`")?;
        }
        Ok(())
    }

    fn skip_array(&mut self, depth: usize) -> Result<(), Fault> {
        let mut more = self.open(depth, b']')?;
        while more {
            self.skip(depth)?;
            more = self.more(b']', "expected a comma or `]`")?;
        }
        Ok(())
    }

    fn object(
        &mut self,
        paths: &Paths,
        node: usize,
        depth: usize,
        found: &mut impl FnMut(usize, Raw<'a>),
    ) -> Result<(), Fault> {
        let here = &paths.nodes[node];
        let mut more = self.open(depth, b'}')?;
        while more {
            let (key, escaped) = self.key()?;
            let child = if escaped {
                let mut plain = String::new();
                // A key that stands for no text can't be one that is looked for.
                std::str::from_utf8(key)
                    .ok()
                    .and_then(|key| unescape(key, &mut plain).ok())
                    .and_then(|()| here.child(plain.as_bytes()))
            } else {
                here.child(key)
            };
            match child {
                None => self.skip(depth)?,
                Some(child) => self.wanted(paths, child, depth, found)?,
            }
            more = self.more(b'}', "expected a comma or `}`")?;
        }
        Ok(())
    }

    fn wanted(
        &mut self,
        paths: &Paths,
        child: usize,
        depth: usize,
        found: &mut impl FnMut(usize, Raw<'a>),
    ) -> Result<(), Fault> {
        let node = &paths.nodes[child];
        if node.children.is_empty() {
            let raw = self.value(depth)?;
            node.leaves.iter().for_each(|leaf| found(*leaf, raw));
            return Ok(());
        }
        // The key may have come before, with members that are void now.
        node.below.iter().for_each(|leaf| found(*leaf, Raw::Null));
        let start = self.at;
        let raw = if self.peek() == Some(b'{') {
            self.object(paths, child, depth + 1, found)?;
            Raw::Object(self.slice(start, self.at))
        } else {
            self.value(depth)?
        };
        node.leaves.iter().for_each(|leaf| found(*leaf, raw));
        Ok(())
    }
}

impl Node {
    #[inline(always)]
    fn child(&self, key: &[u8]) -> Option<usize> {
        if self.lengths & length_bit(key.len()) == 0 {
            return None;
        }
        self.children.iter().find(|(k, _)| **k == *key).map(|(_, child)| *child)
    }
}
