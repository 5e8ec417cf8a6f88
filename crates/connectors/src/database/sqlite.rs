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
    staged::{Listed, Stale},
    table::{ANY, Kind, Mark, Opened, Step, Table, Token, commit_before, gone, quoted, set_back, signed, step},
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
    /// The rows of a commit that was cut off, if the columns were others then.
    before: Mutex<Option<Opened>>,
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
        work: impl FnOnce(&mut Connection, &Base) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T> {
        let (base, path) = (self.base()?, self.path.clone());
        let done = tokio::task::spawn_blocking(move || {
            let mut connection = base.connection.lock().unwrap_or_else(PoisonError::into_inner);
            work(&mut connection, &base).map_err(|failed| failed.told(what, &path, &base.opened.table.name))
        });
        done.await.map_err(|e| Error::internal("a SQLite sink panicked").because(e))?
    }
}

/// An error of ours, or of the database.
pub(super) enum Failed {
    Ours(Error),
    Theirs(rusqlite::Error),
    /// Theirs, with what could not be done.
    Before(String, rusqlite::Error),
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
        let (what, error) = match self {
            Self::Ours(error) => return error,
            Self::Theirs(error) => (what.to_string(), error),
            Self::Before(what, error) => (what, error),
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

/// The same as a list of a table's columns has it.
fn in_lists(kind: Kind) -> &'static str {
    match declared(kind) {
        "INTEGER" => "integer",
        "REAL" => "real",
        "BLOB" => "blob",
        _ => "text",
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

/// The columns of a table; none if there is none.
fn listed(transaction: &Transaction<'_>, table: &str) -> rusqlite::Result<Vec<Listed>> {
    let mut query = transaction.prepare("SELECT name, lower(type), \"notnull\" FROM pragma_table_info(?1)")?;
    let rows = query.query_map([table], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    rows.collect()
}

/// Makes the tables ready, and says what waits of before.
fn set_up(connection: &mut Connection, opened: &Opened) -> Result<Option<Opened>, Failed> {
    connection.busy_timeout(BUSY)?;
    // A name in quotes that is no column would be taken for a text.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let staged = &opened.staged;
    let [table, rows, marks] = opened.create(declared);
    transaction.execute_batch(&table)?;
    transaction.execute_batch(&marks)?;
    let found = listed(&transaction, &opened.table.staged())?;
    let has_rows = !found.is_empty()
        && transaction.query_row(&format!("SELECT EXISTS (SELECT 1 FROM {staged})"), [], |row| row.get(0))?;
    if let Some(mend) = Stale::of(&found, &opened.listed(in_lists), has_rows).mend(&opened.table, &rows) {
        transaction.execute_batch(&mend)?;
    }
    let before = opened.before(&listed(&transaction, &opened.table.set_aside())?);
    // A table of others that lacks a column or the key says so here.
    transaction.prepare(&opened.show("?1", false)).map(drop)?;
    transaction.commit()?;
    Ok(before)
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
    let staged = &opened.staged;
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

fn commit(connection: &mut Connection, base: &Base, batch: BatchId, tokens: &[Token]) -> Result<(), Failed> {
    let (number, table) = (signed(batch.0)?, &base.opened.table);
    let Some(first) = tokens.first() else { return Ok(()) };
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if step(mark(&transaction, table)?, number, first.time) != Step::Apply {
        return Ok(());
    }
    let has_all = |from: &Opened| -> Result<bool, Failed> {
        let query = format!("SELECT EXISTS (SELECT 1 FROM {} WHERE _tm_batch = ?1 AND _tm_part = ?2)", from.staged);
        for token in tokens {
            if !transaction.query_row(&query, params![number, signed(token.part)?], |row| row.get::<_, bool>(0))? {
                return Ok(false);
            }
        }
        Ok(true)
    };
    let before = base.before.lock().unwrap_or_else(PoisonError::into_inner);
    let (from, is_before) = match &*before {
        _ if has_all(&base.opened)? => (&base.opened, false),
        Some(before) if has_all(before)? => (before, true),
        _ => return Err(gone(table, batch).into()),
    };
    transaction.execute(&from.show("?1", false), [number]).map_err(|error| match is_before {
        true => Failed::Before(commit_before(from), error),
        false => error.into(),
    })?;
    transaction.execute(&format!("DELETE FROM {} WHERE _tm_batch <= ?1", from.staged), [number])?;
    transaction.execute(
        &format!("INSERT OR REPLACE INTO {BATCHES} (sink, batch, time) VALUES (?1, ?2, ?3)"),
        params![table.name, number, first.time.0],
    )?;
    transaction.commit()?;
    Ok(())
}

fn recover(connection: &mut Connection, base: &Base, last: Option<BatchId>) -> Result<(), Failed> {
    let table = &base.opened.table;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if let Some(last) = set_back(table, mark(&transaction, table)?, last)? {
        let back = format!("UPDATE {BATCHES} SET batch = ?2, time = ?3 WHERE sink = ?1");
        transaction.execute(&back, params![table.name, last, ANY])?;
    }
    // The last commit was repeated, so all that is left belongs to no commit.
    let aside = quoted(&table.set_aside());
    transaction.execute_batch(&format!("DELETE FROM {}; DROP TABLE IF EXISTS {aside}", base.opened.staged))?;
    transaction.commit()?;
    *base.before.lock().unwrap_or_else(PoisonError::into_inner) = None;
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
                let before = set_up(&mut connection, &opened)?;
                Ok((connection, before))
            });
            match made {
                Ok((connection, before)) => {
                    Ok(Base { opened, before: Mutex::new(before), connection: Mutex::new(connection) })
                }
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
        self.run("stage rows for", move |connection, base| stage(connection, &base.opened, batch, part, &all)).await?;
        Ok(Some(Token::staged(part, time)))
    }

    async fn commit(&self, batch: BatchId, parts: &[StagedPart]) -> Result<()> {
        let tokens = parts.iter().map(Token::parse).collect::<Result<Vec<_>>>()?;
        self.run("commit to", move |connection, base| commit(connection, base, batch, &tokens)).await
    }

    async fn recover(&self, last_committed: Option<BatchId>) -> Result<()> {
        self.run("recover", move |connection, base| recover(connection, base, last_committed)).await
    }
}
