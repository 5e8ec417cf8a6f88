//! What tests see of a Cassandra: the rows of a query as text, with `|` between.
//!
//! Invariant: each call has a session of its own. Called by tests here and above.

use scylla::{
    client::{session::Session, session_builder::SessionBuilder},
    value::{CqlValue, Row},
};

/// The role that the server of the tests has.
pub const USER: &str = "cassandra";
/// The variable with its password.
pub const PASSWORD: &str = "TIDEMILL_CASSANDRA_PASSWORD";

/// The server that tests talk to: `TIDEMILL_CASSANDRA`, such as `127.0.0.1:19042`. `None`, and said, when there is
/// none.
///
/// # Panics
/// When there is none and `TIDEMILL_SERVICES=required`.
pub fn server() -> Option<String> {
    let server = std::env::var("TIDEMILL_CASSANDRA").ok();
    if server.is_none() {
        let required = std::env::var("TIDEMILL_SERVICES").is_ok_and(|services| services == "required");
        assert!(!required, "TIDEMILL_CASSANDRA is not set, and TIDEMILL_SERVICES=required");
        eprintln!("skipped: TIDEMILL_CASSANDRA is not set; ci/services up starts a server");
    }
    server
}

async fn session(server: &str) -> Session {
    let password = std::env::var(PASSWORD).expect("a password");
    SessionBuilder::new().known_node(server).user(USER, password).build().await.expect("a session")
}

/// Runs statements, one after another.
///
/// # Panics
/// When one fails.
pub async fn run(server: &str, statements: &[&str]) {
    let session = session(server).await;
    for statement in statements {
        session.query_unpaged(*statement, ()).await.unwrap_or_else(|e| panic!("{statement}: {e}"));
    }
}

/// The rows of a query, sorted; none when it fails, as of a table that is not there.
///
/// # Panics
/// When the server can't be reached.
pub async fn rows(server: &str, query: &str) -> Vec<String> {
    let Ok(answer) = session(server).await.query_unpaged(query, ()).await else { return Vec::new() };
    let answer = answer.into_rows_result().expect("rows");
    let line = |row: Row| row.columns.iter().map(text).collect::<Vec<_>>().join("|");
    let mut rows: Vec<String> = answer.rows::<Row>().expect("rows").map(|row| line(row.expect("a row"))).collect();
    rows.sort();
    rows
}

/// A value for people.
fn text(value: &Option<CqlValue>) -> String {
    match value {
        None => "null".to_string(),
        Some(CqlValue::Text(text) | CqlValue::Ascii(text)) => text.clone(),
        Some(value) => value.to_string(),
    }
}
