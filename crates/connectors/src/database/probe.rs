//! What tests see of a database: the rows of a query as text, with `|` between.
//!
//! Invariant: it only reads, on a connection of its own. Called by tests here
//! and above.

/// Rows of a query on a SQLite file; none when file or table is not there.
///
/// # Panics
/// When a row can't be read.
#[cfg(feature = "sqlite")]
pub fn sqlite(path: &std::path::Path, query: &str) -> Vec<String> {
    use rusqlite::types::ValueRef;
    let Ok(connection) = rusqlite::Connection::open(path) else { return Vec::new() };
    connection.busy_timeout(std::time::Duration::from_secs(10)).expect("a timeout is set");
    let Ok(mut statement) = connection.prepare(query) else { return Vec::new() };
    let count = statement.column_count();
    let row = |row: &rusqlite::Row<'_>| {
        let cell = |i| {
            Ok(match row.get_ref(i)? {
                ValueRef::Null => "null".to_string(),
                ValueRef::Integer(n) => n.to_string(),
                ValueRef::Real(x) => x.to_string(),
                ValueRef::Text(bytes) | ValueRef::Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            })
        };
        (0..count).map(cell).collect::<rusqlite::Result<Vec<_>>>().map(|cells| cells.join("|"))
    };
    let rows = statement.query_map([], row).expect("a query without parameters");
    rows.map(|row| row.expect("a row")).collect()
}

/// Rows of the last of several statements on a PostgreSQL server without TLS;
/// none when it fails.
///
/// # Panics
/// When the server can't be reached.
#[cfg(feature = "postgres")]
pub async fn postgres(url: &str, query: &str) -> Vec<String> {
    use tokio_postgres::SimpleQueryMessage;
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.expect("a server");
    let running = tokio::spawn(connection);
    let messages = client.simple_query(query).await.unwrap_or_default();
    let text = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|i| row.get(i).unwrap_or("null")).collect::<Vec<_>>().join("|"))
        }
        _ => None,
    };
    let rows = messages.iter().filter_map(text).collect();
    drop(client);
    // The connection ends with its client; how does not matter any more.
    let _ended = running.await;
    rows
}
