//! What tests see of an HBase: its cells, through the same gateway.
//!
//! Invariant: each call has a connection of its own. Called by tests here and above.

use super::mark::FAMILY;
use crate::http::{Link, Request, proxy::Proxy};
use crate::stamp::BATCHES;
use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::{HeaderMap, Method, header};
use serde_json::{Value, json};

/// A cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// The row.
    pub key: Vec<u8>,
    /// `family:name`.
    pub column: String,
    /// When.
    pub timestamp: i64,
    /// What.
    pub value: Vec<u8>,
}

/// The gateway that tests talk to: `TIDEMILL_HBASE`, such as `http://127.0.0.1:19080`. `None`, and said, when there is
/// none.
///
/// # Panics
/// When there is none and `TIDEMILL_SERVICES=required`.
pub fn server() -> Option<String> {
    let server = std::env::var("TIDEMILL_HBASE").ok();
    if server.is_none() {
        let required = std::env::var("TIDEMILL_SERVICES").is_ok_and(|services| services == "required");
        assert!(!required, "TIDEMILL_HBASE is not set, and TIDEMILL_SERVICES=required");
        eprintln!("skipped: TIDEMILL_HBASE is not set; ci/services up starts a server");
    }
    server
}

async fn ask(method: Method, url: &str, body: Value) -> (u16, Vec<u8>) {
    let json = header::HeaderValue::from_static("application/json");
    let headers = HeaderMap::from_iter([(header::ACCEPT, json.clone()), (header::CONTENT_TYPE, json)]);
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = Request::from_parts(method, url.parse().expect("an address"), headers, body.into());
    let link = Link { proxy: Proxy::Direct, ..Link::default() };
    let mut answer = link.send(&request.expect("a request")).await.expect("an answer");
    (answer.status.as_u16(), answer.whole(64 << 20).await.expect("a whole answer"))
}

/// Makes a table, or takes the families that it has not.
///
/// # Panics
/// When it can't be made.
pub async fn make(server: &str, table: &str, families: &[&str]) {
    let families: Vec<Value> = families.iter().map(|family| json!({ "name": family })).collect();
    let body = json!({ "name": table, "ColumnSchema": families });
    let (status, said) = ask(Method::PUT, &format!("{server}/{table}/schema"), body).await;
    assert!(matches!(status, 200 | 201), "{status}: {}", String::from_utf8_lossy(&said));
}

/// Removes a table, if it is there.
pub async fn forget(server: &str, table: &str) {
    ask(Method::DELETE, &format!("{server}/{table}/schema"), Value::Null).await;
}

/// Writes a cell, or takes a column away when there is no value.
///
/// # Panics
/// When that fails.
pub async fn put(server: &str, table: &str, key: &str, column: &str, timestamp: i64, value: Option<&str>) {
    let [row, name] = [key, column].map(|text| STANDARD.encode(text));
    let (status, said) = match value.map(|value| STANDARD.encode(value)) {
        Some(value) => {
            let cell = json!({ "column": name, "timestamp": timestamp, "$": value });
            let body = json!({ "Row": [{ "key": row, "Cell": [cell] }] });
            ask(Method::POST, &format!("{server}/{table}/row"), body).await
        }
        None => ask(Method::DELETE, &format!("{server}/{table}/{key}/{column}/{timestamp}"), Value::Null).await,
    };
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&said));
}

/// All cells of a table as readers see them, by key and column; none when it is not there.
///
/// # Panics
/// When the server can't be reached, or says what is no JSON.
pub async fn cells(server: &str, table: &str) -> Vec<Cell> {
    let (status, said) = ask(Method::GET, &format!("{server}/{table}/*"), Value::Null).await;
    if status != 200 {
        return Vec::new();
    }
    let answer: Value = serde_json::from_slice(&said).expect("JSON");
    let bytes = |value: &Value| STANDARD.decode(value.as_str().expect("a text")).expect("Base64");
    let mut cells = Vec::new();
    for row in answer["Row"].as_array().expect("rows") {
        cells.extend(row["Cell"].as_array().expect("cells").iter().map(|cell| Cell {
            key: bytes(&row["key"]),
            column: String::from_utf8(bytes(&cell["column"])).expect("a name"),
            timestamp: cell["timestamp"].as_i64().expect("a number"),
            value: bytes(&cell["$"]),
        }));
    }
    cells
}

/// The same as text: `key column=value@timestamp`.
///
/// # Panics
/// As [`cells`].
pub async fn lines(server: &str, table: &str) -> Vec<String> {
    let line = |cell: Cell| {
        let [key, value] = [&cell.key, &cell.value].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        format!("{key} {}={value}@{}", cell.column, cell.timestamp)
    };
    cells(server, table).await.into_iter().map(line).collect()
}

/// The batch that is whole in a family, by its mark; 0 is none.
///
/// # Panics
/// As [`cells`].
pub async fn batch(server: &str, table: &str, family: &str) -> u64 {
    let row = format!("{table}:{family}").into_bytes();
    let marks = cells(server, BATCHES).await;
    let mark = marks.into_iter().find(|cell| cell.key == row && cell.column == format!("{FAMILY}:mark"));
    let text = mark.map(|mark| String::from_utf8(mark.value).expect("a text")).unwrap_or_default();
    text.split(' ').next().and_then(|batch| batch.parse().ok()).unwrap_or_default()
}
