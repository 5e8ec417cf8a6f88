//! Sink `sqlite`: rows into a table of a SQLite file, exactly once.
//!
//! | Option | Meaning |
//! |---|---|
//! | `path` | the database file; it is made if it is not there |
//! | `table` | the table; it is made with the query's columns if it is not there |
//! | `key` | columns of the key, such as `day,lang`: rows replace those of their key; without it rows are added |
//!
//! The file is in WAL mode and every transaction is synced, so others can read
//! beside the program, and what was committed survives a power loss. Times with
//! a zone are written as `2026-01-31T15:00:00.000000Z`, dates as `2026-01-31`.
//!
//! Invariant: as [`super`] has it. One connection; its work waits on threads that may.

use super::{
    BATCHES,
    table::{ANY, Kind, Mark, Opened, Step, Table, Token, gone, set_back, signed, step},
};
use crate::place::real_path;
use arrow_array::{
    Array, ArrayRef, RecordBatch,
    cast::AsArray,
    types::{Float64Type, Int64Type},
};
use arrow_cast::{CastOptions, display::FormatOptions};
use arrow_schema::{DataType, SchemaRef};
use async_trait::async_trait;
use futures::stream::BoxStream;
use rusqlite::{
    Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, config::DbConfig, params,
    types::ValueRef,
};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tidemill_core::{BatchId, Claim, Error, Guarantee, Options, Result, Sink, StagedPart, Timestamp};

/// How long a statement waits for others that write.
pub(super) const BUSY: Duration = Duration::from_secs(10);

/// A table of a SQLite file.
#[derive(Debug)]
pub struct SqliteSink {
    path: PathBuf,
    table: Table,
    opened: Mutex<Option<Arc<Base>>>,
}

#[derive(Debug)]
struct Base {
    opened: Opened,
    connection: Mutex<Connection>,
}

impl SqliteSink {
    /// From a sink's options.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub fn from_options(options: &Options) -> Result<Self> {
        let path = options.require("path", "it names the database file")?;
        Ok(Self { path: path.into(), table: Table::from_options(options)?, opened: Mutex::default() })
    }

    fn base(&self) -> Result<Arc<Base>> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.clone().ok_or_else(|| Error::internal("a SQLite sink is used before it was opened"))
    }

    /// Does something with the connection where waiting is fine.
    async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&mut Connection, &Opened) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T> {
        let (base, path) = (self.base()?, self.path.clone());
        let done = tokio::task::spawn_blocking(move || {
            let mut connection = base.connection.lock().unwrap_or_else(PoisonError::into_inner);
            work(&mut connection, &base.opened).map_err(|failed| failed.told(what, &path, &base.opened.table.name))
        });
        done.await.map_err(|e| Error::internal("a SQLite sink panicked").because(e))?
    }
}

/// An error of ours, or of the database.
pub(super) enum Failed {
    Ours(Error),
    Theirs(rusqlite::Error),
}

impl From<rusqlite::Error> for Failed {
    fn from(error: rusqlite::Error) -> Self {
        Self::Theirs(error)
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

impl Failed {
    pub(super) fn told(self, what: &str, path: &Path, table: &str) -> Error {
        let error = match self {
            Self::Ours(error) => return error,
            Self::Theirs(error) => error,
        };
        let text = format!("sqlite: can't {what} table `{table}` of {}", path.display());
        match error.sqlite_error_code() {
            // What a human, or another program, ends.
            Some(
                ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::OutOfMemory,
            ) => Error::external(text).because(error),
            _ => Error::user(text).because(error),
        }
    }
}

fn declared(kind: Kind) -> &'static str {
    match kind {
        Kind::Integer | Kind::Bool => "INTEGER",
        Kind::Real => "REAL",
        Kind::Bytes => "BLOB",
        Kind::Text | Kind::Instant | Kind::LocalTime | Kind::Date => "TEXT",
    }
}

/// A column as SQLite takes it.
pub(super) fn converted(column: &ArrayRef, kind: Kind) -> Result<ArrayRef> {
    let cast = |column: &ArrayRef, ty: &DataType| {
        // Times of one width, so that they sort as text.
        let format = FormatOptions::new()
            .with_timestamp_tz_format(Some("%Y-%m-%dT%H:%M:%S%.6fZ"))
            .with_timestamp_format(Some("%Y-%m-%dT%H:%M:%S%.6f"));
        let options = CastOptions { format_options: format, ..CastOptions::default() };
        let cast = arrow_cast::cast_with_options(column, ty, &options);
        cast.map_err(|e| Error::user("sqlite: a column can't be written").because(e))
    };
    let own = cast(column, &kind.arrow())?;
    match kind {
        Kind::Instant | Kind::LocalTime | Kind::Date => cast(&own, &DataType::Utf8),
        Kind::Bool => cast(&own, &DataType::Int64),
        Kind::Integer | Kind::Real | Kind::Text | Kind::Bytes => Ok(own),
    }
}

pub(super) fn value(column: &ArrayRef, row: usize) -> ValueRef<'_> {
    if column.is_null(row) {
        return ValueRef::Null;
    }
    match column.data_type() {
        DataType::Int64 => ValueRef::Integer(column.as_primitive::<Int64Type>().value(row)),
        DataType::Float64 => ValueRef::Real(column.as_primitive::<Float64Type>().value(row)),
        DataType::Binary => ValueRef::Blob(column.as_binary::<i32>().value(row)),
        _ => ValueRef::Text(column.as_string::<i32>().value(row).as_bytes()),
    }
}

/// A value as a parameter.
pub(super) struct Bound<'a>(pub(super) ValueRef<'a>);

impl rusqlite::ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok(rusqlite::types::ToSqlOutput::Borrowed(self.0))
    }
}

fn mark(transaction: &Transaction<'_>, table: &Table) -> Result<Option<Mark>, Failed> {
    let query = format!("SELECT batch, time FROM {BATCHES} WHERE sink = ?1");
    let row = |row: &rusqlite::Row<'_>| Ok(Mark { batch: row.get(0)?, time: row.get(1)? });
    Ok(transaction.query_row(&query, [&table.name], row).optional()?)
}

fn set_up(connection: &mut Connection, opened: &Opened) -> Result<(), Failed> {
    connection.busy_timeout(BUSY)?;
    // A name in quotes that is no column would be taken for a text.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let staged = opened.table.staged();
    let [table, rows, marks] = opened.create(declared);
    transaction.execute_batch(&table)?;
    transaction.execute_batch(&marks)?;
    let columns = format!("SELECT {} FROM {staged} LIMIT 0", opened.staged_columns());
    if transaction.prepare(&columns).is_err() {
        // There is none, or the columns have changed. Rows of a commit to be repeated would have the old ones.
        transaction.execute_batch(&format!("DROP TABLE IF EXISTS {staged}; {rows}"))?;
    }
    // A table of others that lacks a column or the key says so here.
    transaction.prepare(&opened.show("?1", false)).map(drop)?;
    transaction.commit()?;
    Ok(())
}

fn stage(
    connection: &mut Connection,
    opened: &Opened,
    batch: BatchId,
    part: usize,
    rows: &[RecordBatch],
) -> Result<(), Failed> {
    let (batch, part) = (signed(batch.0)?, signed(part as u64)?);
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let staged = opened.table.staged();
    transaction
        .execute(&format!("DELETE FROM {staged} WHERE _tm_batch = ?1 AND _tm_part = ?2"), params![batch, part])?;
    let marks: Vec<String> = (1..=opened.columns.len() + 3).map(|i| format!("?{i}")).collect();
    let insert = format!("INSERT INTO {staged} ({}) VALUES ({})", opened.staged_columns(), marks.join(", "));
    let mut insert = transaction.prepare(&insert)?;
    let mut number = 0_i64;
    for rows in rows {
        let columns = opened.converted(rows, converted)?;
        for row in 0..rows.num_rows() {
            let place = [batch, part, number].map(|n| Bound(ValueRef::Integer(n)));
            let values = columns.iter().map(|column| Bound(value(column, row)));
            insert.execute(rusqlite::params_from_iter(place.into_iter().chain(values)))?;
            number += 1;
        }
    }
    drop(insert);
    transaction.commit()?;
    Ok(())
}

fn commit(connection: &mut Connection, opened: &Opened, batch: BatchId, tokens: &[Token]) -> Result<(), Failed> {
    let (number, table) = (signed(batch.0)?, &opened.table);
    let Some(first) = tokens.first() else { return Ok(()) };
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if step(mark(&transaction, table)?, number, first.time) != Step::Apply {
        return Ok(());
    }
    let staged = table.staged();
    for token in tokens {
        let query = format!("SELECT EXISTS (SELECT 1 FROM {staged} WHERE _tm_batch = ?1 AND _tm_part = ?2)");
        if !transaction.query_row(&query, params![number, signed(token.part)?], |row| row.get::<_, bool>(0))? {
            return Err(gone(table, batch).into());
        }
    }
    transaction.execute(&opened.show("?1", false), [number])?;
    transaction.execute(&format!("DELETE FROM {staged} WHERE _tm_batch <= ?1"), [number])?;
    transaction.execute(
        &format!("INSERT OR REPLACE INTO {BATCHES} (sink, batch, time) VALUES (?1, ?2, ?3)"),
        params![table.name, number, first.time.0],
    )?;
    transaction.commit()?;
    Ok(())
}

fn recover(connection: &mut Connection, opened: &Opened, last: Option<BatchId>) -> Result<(), Failed> {
    let table = &opened.table;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if let Some(last) = set_back(table, mark(&transaction, table)?, last)? {
        let back = format!("UPDATE {BATCHES} SET batch = ?2, time = ?3 WHERE sink = ?1");
        transaction.execute(&back, params![table.name, last, ANY])?;
    }
    // The last commit was repeated, so all that is left belongs to no commit.
    transaction.execute(&format!("DELETE FROM {}", table.staged()), [])?;
    transaction.commit()?;
    Ok(())
}

#[async_trait]
impl Sink for SqliteSink {
    fn describe(&self) -> String {
        format!("sqlite {} ({})", self.path.display(), self.table.how())
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn claim(&self) -> Option<Claim> {
        // SQLite does not tell upper from lower case.
        let table = self.table.name.to_lowercase();
        Some(Claim::new(format!("table {table} of {}", real_path(&self.path).display())))
    }

    fn takes(&self, schema: &SchemaRef) -> Result<()> {
        self.table.with(schema).map(drop)
    }

    fn stays(&self) -> String {
        self.table.stays()
    }

    async fn open(&self, schema: SchemaRef) -> Result<()> {
        let (path, opened) = (self.path.clone(), self.table.with(&schema)?);
        let base = tokio::task::spawn_blocking(move || {
            let made = Connection::open(&path).map_err(Failed::from).and_then(|mut connection| {
                set_up(&mut connection, &opened)?;
                Ok(connection)
            });
            match made {
                Ok(connection) => Ok(Base { opened, connection: Mutex::new(connection) }),
                Err(failed) => Err(failed.told("open", &path, &opened.table.name)),
            }
        });
        let base = base.await.map_err(|e| Error::internal("a SQLite sink panicked").because(e))??;
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(base));
        Ok(())
    }

    async fn stage(
        &self,
        batch: BatchId,
        time: Timestamp,
        part: usize,
        rows: BoxStream<'_, Result<RecordBatch>>,
    ) -> Result<Option<StagedPart>> {
        let all = super::gathered(rows).await?;
        if all.is_empty() {
            return Ok(None);
        }
        self.run("stage rows for", move |connection, opened| stage(connection, opened, batch, part, &all)).await?;
        Ok(Some(Token::staged(part, time)))
    }

    async fn commit(&self, batch: BatchId, parts: &[StagedPart]) -> Result<()> {
        let tokens = parts.iter().map(Token::parse).collect::<Result<Vec<_>>>()?;
        self.run("commit to", move |connection, opened| commit(connection, opened, batch, &tokens)).await
    }

    async fn recover(&self, last_committed: Option<BatchId>) -> Result<()> {
        self.run("recover", move |connection, opened| recover(connection, opened, last_committed)).await
    }
}
