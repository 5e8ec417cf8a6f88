//! Rows as a mail: headers and a text, as RFC 5322 and 2045 have them.
//!
//! Invariant: whatever stands in a row, it stays in the subject's one line or in the
//! body, which is base64: no row makes a header, ends the mail, or breaks a line's bound.

use arrow_array::{Array, RecordBatch};
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_schema::SchemaRef;
use base64::{Engine, prelude::BASE64_STANDARD};
use std::time::{Duration, UNIX_EPOCH};
use tidemill_core::{Error, Result, Timestamp, nearest};

/// Signs of a subject at most.
const SUBJECT: usize = 200;
/// Signs of a value in the text at most; the rest of it is cut.
const VALUE: usize = 4000;
/// Bytes of a line of base64.
const LINE: usize = 76;
/// Bytes of an encoded word before it is encoded, so that its line is under 76 signs behind the header's name.
const WORD: usize = 39;
/// What is said of an alert's rows.
const OF_ALERTS: &str = "{alert} {key}: {state}";

/// An address of a mailbox, such as `ops@example.org`.
///
/// # Errors
/// Says why it is none, as the end of a sentence.
pub(super) fn address(text: &str) -> std::result::Result<String, &'static str> {
    let text = text.trim();
    let Some((name, host)) = text.rsplit_once('@') else { return Err("has no @") };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c);
    let is_host = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    if name.is_empty() || host.is_empty() || text.len() > 254 {
        return Err("is no address such as ops@example.org");
    }
    if name.chars().all(is_plain) && host.chars().all(is_host) {
        Ok(text.to_string())
    } else {
        Err("has signs that no address has here")
    }
}

/// What stands in a mail's subject.
#[derive(Debug, Clone)]
pub(super) struct Subject(Option<Vec<Piece>>);

#[derive(Debug, Clone)]
enum Piece {
    Text(String),
    Column(String),
}

impl Subject {
    /// From its option: `{column}` stands for a column of the mail's first row.
    pub(super) fn new(text: Option<&str>) -> std::result::Result<Self, String> {
        text.map(pieces).transpose().map(Self)
    }

    /// Whether its columns are there.
    pub(super) fn check(&self, schema: &SchemaRef) -> Result<()> {
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        for piece in self.0.iter().flatten() {
            let Piece::Column(name) = piece else { continue };
            if !names.contains(&name.as_str()) {
                let hint = nearest(name, &names).map_or_else(
                    || format!("there are {}", names.join(", ")),
                    |near| format!("did you mean {{{near}}}?"),
                );
                return Err(Error::user(format!("mail: option `subject`: there is no column {{{name}}}; {hint}")));
            }
        }
        Ok(())
    }

    fn of(&self, rows: &RecordBatch) -> Result<String> {
        let schema = rows.schema();
        let usual;
        let pieces = match &self.0 {
            Some(pieces) => pieces,
            None if ["alert", "key", "state"].iter().all(|name| schema.index_of(name).is_ok()) => {
                usual = pieces(OF_ALERTS).map_err(Error::internal)?;
                &usual
            }
            None => return Ok(format!("{} rows", rows.num_rows())),
        };
        let mut text = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Column(name) => {
                    let column = rows.column_by_name(name).map(|column| value(column.as_ref(), 0)).transpose()?;
                    text.push_str(&column.flatten().unwrap_or_default());
                }
            }
        }
        if rows.num_rows() > 1 {
            text.push_str(&format!(" (and {} more)", rows.num_rows() - 1));
        }
        Ok(text)
    }
}

fn pieces(text: &str) -> std::result::Result<Vec<Piece>, String> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    while let Some((before, after)) = rest.split_once('{') {
        let Some((name, after)) = after.split_once('}') else {
            return Err(format!("has a {{ without its }}: `{text}`"));
        };
        pieces.extend([Piece::Text(before.to_string()), Piece::Column(name.to_string())]);
        rest = after;
    }
    pieces.push(Piece::Text(rest.to_string()));
    Ok(pieces)
}

/// A value as text; `None` when there is none.
fn value(column: &dyn Array, row: usize) -> Result<Option<String>> {
    if column.is_null(row) {
        return Ok(None);
    }
    let broken = |e| Error::user("mail: a column can't be written as text: CAST it in the query").because(e);
    let text = ArrayFormatter::try_new(column, &FormatOptions::default()).map_err(broken)?.value(row).to_string();
    Ok(Some(text.chars().take(VALUE).collect()))
}

/// One mail.
pub(super) struct Letter<'a> {
    pub(super) from: &'a str,
    pub(super) to: &'a [String],
    /// Who writes and which rows: the same for the same mail.
    pub(super) id: &'a str,
    pub(super) time: Timestamp,
    pub(super) rows: &'a RecordBatch,
}

impl Letter<'_> {
    /// The mail as it is sent, each line with its end.
    ///
    /// # Errors
    /// When a column can't be written.
    pub(super) fn text(&self, subject: &Subject) -> Result<String> {
        let host = self.from.rsplit('@').next().unwrap_or_default();
        let id: String =
            self.id.chars().map(|c| if c.is_ascii_alphanumeric() || "+-_/".contains(c) { c } else { '-' }).collect();
        let since = Duration::from_micros(u64::try_from(self.time.0).unwrap_or_default());
        let mut text = format!(
            "From: <{}>\r\nTo: {}\r\nSubject: {}\r\nDate: {}\r\nMessage-ID: <{id}@{host}>\r\n\
             Auto-Submitted: auto-generated\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Transfer-Encoding: base64\r\n\r\n",
            self.from,
            self.to.iter().map(|to| format!("<{to}>")).collect::<Vec<_>>().join(",\r\n "),
            encoded(&subject.of(self.rows)?),
            httpdate::fmt_http_date(UNIX_EPOCH + since),
        );
        let body = BASE64_STANDARD.encode(self.body()?);
        for line in body.as_bytes().chunks(LINE) {
            // Base64 is ASCII.
            text.extend(line.iter().map(|byte| char::from(*byte)));
            text.push_str("\r\n");
        }
        Ok(text)
    }

    fn body(&self) -> Result<String> {
        let schema = self.rows.schema();
        let mut text = String::new();
        for row in 0..self.rows.num_rows() {
            if row > 0 {
                text.push_str("\r\n");
            }
            for (field, column) in schema.fields().iter().zip(self.rows.columns()) {
                if let Some(value) = value(column.as_ref(), row)? {
                    text.push_str(&format!("{}: {value}\r\n", field.name()));
                }
            }
        }
        Ok(text)
    }
}

/// A subject in one line: as it is when it is plain, else in encoded words (RFC 2047).
fn encoded(subject: &str) -> String {
    let subject: String = subject.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SUBJECT).collect();
    if subject.is_ascii() && !subject.contains("=?") {
        return subject;
    }
    let (mut words, mut word) = (Vec::new(), String::new());
    for c in subject.chars() {
        if word.len() + c.len_utf8() > WORD {
            words.push(std::mem::take(&mut word));
        }
        word.push(c);
    }
    words.push(word);
    let words = words.iter().map(|word| format!("=?utf-8?B?{}?=", BASE64_STANDARD.encode(word)));
    words.collect::<Vec<_>>().join("\r\n ")
}
