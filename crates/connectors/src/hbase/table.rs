//! The table, its family and the columns of the row key, as options name them and as they are.
//!
//! | Option | Meaning |
//! |---|---|
//! | `table` | the table: `scores`, or `game:scores` with its namespace |
//! | `family` | the family of its columns; each column of the rows that is not of the key becomes `family:name` |
//! | `key` | the columns of the row key: `id`, or `day, id` |
//! | `separator` | what stands between several columns of the key: a sign of ASCII (`\|`); before one within a value, and before a `\`, stands a `\` |
//! | `values` | `text` (default), or `bytes`: numbers, times and booleans as HBase's own `Bytes` writes them |
//! | `create` | `true`: a table that is not there is made, with this family |
//!
//! Invariant: what does not fit is refused before the first row is written, with the mend; a table that is there is
//! never changed. Called by the sink.

use super::{
    mark::FAMILY,
    server::Server,
    values::{Way, way},
};
use crate::stamp::BATCHES;
use arrow_schema::{Schema, SchemaRef};
use bytes::Bytes;
use serde_json::{Value, json};
use tidemill_core::{Error, Options, Result};
use tokio::sync::Mutex;

/// Bytes of a column's name at most.
const COLUMN: usize = 1024;

/// Held while tables are made: what is made twice is changed by the second.
static MAKING: Mutex<()> = Mutex::const_new(());

/// How values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    Bytes,
}

/// A family of a table.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) family: String,
    pub(super) key: Vec<String>,
    pub(super) separator: u8,
    pub(super) form: Form,
    create: bool,
}

/// A name of a family, or of a table or namespace: what HBase takes, and a path too.
fn is_name(name: &str) -> bool {
    let is_sign = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    (1..=200).contains(&name.len()) && name.bytes().all(is_sign) && !name.starts_with(['.', '-'])
}

impl Table {
    /// From the options of the table above.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub(super) fn from_options(options: &Options) -> Result<Self> {
        let owner = options.owner();
        let wrong = |key: &str, why: &str| Err(Error::user(format!("{owner}: option `{key}`: {why}")));
        let name = options.require("table", "it names the table to write to, with its namespace if it has one")?;
        let (space, own) = name.split_once(':').map_or((None, name), |(space, own)| (Some(space), own));
        if !is_name(own) || space.is_some_and(|space| !is_name(space)) || own == BATCHES {
            return wrong(
                "table",
                &format!("`{name}` can't be a table's name here: take A-Z a-z 0-9 _ - . and not {BATCHES}"),
            );
        }
        let family = options.require("family", "it names the family for the columns: family = 'd'")?;
        if !is_name(family) {
            return wrong("family", &format!("`{family}` can't be a family's name here: take A-Z a-z 0-9 _ - ."));
        }
        let text = options.require("key", "it names the columns of the row key: key = 'id', key = 'day, id'")?;
        let key: Vec<String> = text.split(',').map(|part| part.trim().to_string()).collect();
        let twice = (1..key.len()).any(|at| key[..at].contains(&key[at]));
        if twice || key.iter().any(String::is_empty) {
            return wrong("key", &format!("`{text}` can't be read: name each column once, with commas between"));
        }
        let separator = match options.get("separator").map(str::as_bytes) {
            None => b'|',
            Some(_) if key.len() == 1 => {
                return wrong("separator", "there is one column in `key`, and nothing to part");
            }
            Some([sign]) if sign.is_ascii() && !sign.is_ascii_alphanumeric() && *sign != b'\\' => *sign,
            Some(_) => return wrong("separator", "take one sign of ASCII that is no letter, no digit and no `\\`"),
        };
        let form = match options.get("values") {
            None | Some("text") => Form::Text,
            Some("bytes") => Form::Bytes,
            Some(other) => return wrong("values", &format!("`{other}` is neither text nor bytes")),
        };
        let create = options.parse("create", false)?;
        Ok(Self { name: name.to_string(), family: family.to_string(), key, separator, form, create })
    }

    /// The table of marks, in the same namespace.
    pub(super) fn marks(&self) -> String {
        match self.name.split_once(':') {
            Some((space, _)) => format!("{space}:{BATCHES}"),
            None => BATCHES.to_string(),
        }
    }

    /// The row of the family's mark: its name as HBase's shell would say it.
    pub(super) fn mark_row(&self) -> String {
        format!("{}:{}", self.name, self.family)
    }

    pub(super) fn wrong(&self, what: &str) -> Error {
        Error::user(format!("hbase table `{}`: {what}", self.name))
    }

    /// Whether rows of these columns can be written.
    ///
    /// # Errors
    /// With the column that can't, and what to change.
    pub(super) fn takes(&self, schema: &Schema) -> Result<()> {
        if let Some(missing) = self.key.iter().find(|key| schema.field_with_name(key).is_err()) {
            return Err(
                self.wrong(&format!("option `key`: the rows have no column `{missing}`; there are {}", names(schema)))
            );
        }
        for field in schema.fields() {
            let (name, ty) = (field.name(), field.data_type());
            let in_key = self.key.contains(name);
            if name.is_empty() || name.len() > COLUMN {
                return Err(self.wrong(&format!("a column can't be called `{name:.40}` there: name it with AS")));
            }
            match way(ty, if in_key { Form::Text } else { self.form }) {
                None => {
                    return Err(self.wrong(&format!(
                        "column `{name}` is {ty}, which is not written: leave it out, or CAST it to TEXT or BIGINT"
                    )));
                }
                Some(Way::Json) if in_key => {
                    return Err(
                        self.wrong(&format!("column `{name}` of the key is {ty}: take columns of plain values"))
                    );
                }
                Some(_) => {}
            }
        }
        if schema.fields().len() == self.key.len() {
            return Err(self.wrong(
                "all columns are of the key, and a row there is its other columns: give one more, or leave one out of `key`",
            ));
        }
        Ok(())
    }

    /// Makes what is not there, where that was asked for, and looks at what is.
    ///
    /// # Errors
    /// With what is missing, and the mend.
    pub(super) async fn ready(&self, server: &Server) -> Result<()> {
        let _made_by_one = MAKING.lock().await;
        match families(server, &self.name).await? {
            None if self.create => make(server, &self.name, &self.family).await?,
            None => {
                return Err(self.wrong(&format!(
                    "there is none of the name at {}: make it in HBase's shell (create '{}', '{}'), or set option `create` to true",
                    server.place, self.name, self.family
                )));
            }
            Some(there) if !there.contains(&self.family) => {
                return Err(self.wrong(&format!(
                    "it has no family `{}`; there are {}: name one of them in option `family`, or add it (alter '{}', '{}')",
                    self.family,
                    there.join(", "),
                    self.name,
                    self.family
                )));
            }
            Some(_) => {}
        }
        let marks = self.marks();
        match families(server, &marks).await? {
            None => make(server, &marks, FAMILY).await,
            Some(there) if there.iter().any(|family| family == FAMILY) => Ok(()),
            Some(_) => Err(self.wrong(&format!(
                "table `{marks}`, which is to know what is written, has no family `{FAMILY}`: is it another's? Drop it, and it is made anew"
            ))),
        }
    }
}

/// The columns that are not of the key.
pub(super) fn others<'a>(table: &'a Table, schema: &'a SchemaRef) -> impl Iterator<Item = usize> + 'a {
    (0..schema.fields().len()).filter(|at| !table.key.contains(schema.field(*at).name()))
}

fn names(schema: &Schema) -> String {
    schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ")
}

/// The families of a table; `None` when there is no such table.
async fn families(server: &Server, table: &str) -> Result<Option<Vec<String>>> {
    let what = format!("look at table `{table}`");
    let answer = server.get(&what, &format!("/{table}/schema")).await?;
    if answer.status.as_u16() == 404 && String::from_utf8_lossy(&answer.body).contains("TableNotFoundException") {
        return Ok(None);
    }
    let described: Option<Value> = serde_json::from_slice(&answer.body).ok();
    let columns = described.as_ref().and_then(|it| it["ColumnSchema"].as_array());
    let name = |column: &Value| column["name"].as_str().map(str::to_string);
    match columns {
        Some(columns) if answer.status.is_success() => Ok(Some(columns.iter().filter_map(name).collect())),
        _ => Err(server.refused(&what, &answer)),
    }
}

/// Makes a table. Not by `PUT`, which would take the other families from one that somebody has made meanwhile.
async fn make(server: &Server, table: &str, family: &str) -> Result<()> {
    let body = json!({ "name": table, "ColumnSchema": [{ "name": family }] });
    server.post(&format!("make table `{table}`"), &format!("/{table}/schema"), Bytes::from(body.to_string())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_lie_beside_their_table() {
        let table = |name: &str| {
            Table::from_options(&Options::new("s", [("table", name), ("family", "d"), ("key", " a ,b")])).unwrap()
        };
        assert_eq!(table("game:scores").marks(), "game:tidemill_batches");
        assert_eq!(table("game:scores").mark_row(), "game:scores:d");
        assert_eq!((table("scores").marks().as_str(), table("scores").key), (BATCHES, vec!["a".into(), "b".into()]));
    }
}
