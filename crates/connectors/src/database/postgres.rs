//! Sink `postgres`: rows into a table of a PostgreSQL server, exactly once.
//!
//! | Option | Meaning |
//! |---|---|
//! | `url` | the server, user and database, without a password: `postgres://app@db.example.org/shop` |
//! | `password_env` | the environment variable that holds the password |
//! | `table` | the table; it is made with the query's columns if it is not there |
//! | `key` | columns of the key, such as `day,lang`: rows replace those of their key; without it rows are added |
//!
//! The connection is that of [`super::postgres_server`]. One that breaks, or on which
//! no answer comes, is made anew at the next try: the mark in the table says whether the
//! commit that was under way has happened. A commit locks the mark first, which is there
//! from the first start on, so it waits for one before it that is still under way.
//!
//! No text of PostgreSQL holds U+0000: it is written as U+FFFD.
//!
//! Invariant: as [`super`] has it.

use super::{
    BATCHES,
    postgres_server::{ANSWER, Server, WORK, of, settled},
    staged::{Listed, Stale},
    table::{ANY, Kind, Mark, Opened, Step, Table, Token, commit_before, gone, quoted, set_back, signed, step},
};
use arrow_array::{Array, ArrayRef, RecordBatch, cast::AsArray};
use arrow_schema::{DataType, SchemaRef};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{SinkExt, stream::BoxStream};
use std::{
    fmt,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};
use tidemill_core::{BatchId, Claim, Error, Guarantee, Options, Result, Sink, StagedPart, Timestamp};
use tokio_postgres::{Client, Transaction};

/// The advisory lock under which tables are made.
const CREATING: i64 = 0x7469_6465;
/// Bytes of text that are sent together.
const PIECE: usize = 64 << 10;
/// In place of U+0000, which no text of PostgreSQL holds.
const FOR_NUL: &str = "\u{FFFD}";

/// A table of a PostgreSQL server.
pub struct PostgresSink {
    server: Server,
    table: Table,
    opened: OnceLock<Opened>,
    /// The rows of a commit that was cut off, if the columns were others then.
    before: Mutex<Option<Opened>>,
}

impl fmt::Debug for PostgresSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSink")
            .field("place", &self.server.place)
            .field("table", &self.table.name)
            .finish_non_exhaustive()
    }
}

impl PostgresSink {
    /// From a sink's options.
    ///
    /// # Errors
    /// When one is missing or wrong, or the password stands in the URL.
    pub fn from_options(options: &Options) -> Result<Self> {
        let (server, table) = (Server::from_options(options)?, Table::from_options(options)?);
        Ok(Self { server, table, opened: OnceLock::new(), before: Mutex::default() })
    }

    fn opened(&self) -> Result<&Opened> {
        self.opened.get().ok_or_else(|| Error::internal("a PostgreSQL sink is used before it was opened"))
    }

    fn set_before(&self, before: Option<Opened>) {
        *self.before.lock().unwrap_or_else(PoisonError::into_inner) = before;
    }

    fn failed(&self, what: &str, error: tokio_postgres::Error) -> Error {
        self.server.failed(what, &self.table.name, error)
    }

    /// An answer of the server, which must come in time.
    async fn answer<T>(
        &self,
        what: &str,
        most: Duration,
        act: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T> {
        self.server.within((what, &self.table.name), most, act).await?.map_err(|e| self.failed(what, e))
    }

    /// The columns of a table; none if there is none.
    async fn listed(&self, transaction: &Transaction<'_>, table: &str) -> Result<Vec<Listed>> {
        const WHAT: &str = "open";
        const QUERY: &str = "SELECT attname::text, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute \
            WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum";
        let rows = self.answer(WHAT, ANSWER, transaction.query(QUERY, &[&quoted(table)])).await?;
        let columns = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)));
        columns.collect::<Result<_, _>>().map_err(|e| self.failed(WHAT, e))
    }

    /// Makes the tables ready, all of it or nothing, and says what waits of before.
    async fn open_with(&self, client: &mut Client, opened: &Opened) -> Result<Option<Opened>> {
        const WHAT: &str = "open";
        let [table, rows, marks] = opened.create(declared);
        let transaction = self.answer(WHAT, ANSWER, client.transaction()).await?;
        // One at a time: of two that make the same table, one would fail. The lock goes with the transaction.
        let made = format!("SELECT pg_advisory_xact_lock({CREATING}); {table}; {marks}");
        self.answer(WHAT, ANSWER, transaction.batch_execute(&made)).await?;
        let found = self.listed(&transaction, &self.table.staged()).await?;
        let has_rows = !found.is_empty() && {
            let query = format!("SELECT EXISTS (SELECT 1 FROM {})", opened.staged);
            let answer = self.answer(WHAT, ANSWER, transaction.query_one(&query, &[])).await?;
            answer.try_get(0).map_err(|e| self.failed(WHAT, e))?
        };
        if let Some(mend) = Stale::of(&found, &opened.listed(in_lists), has_rows).mend(&self.table, &rows) {
            self.answer(WHAT, WORK, transaction.batch_execute(&mend)).await?;
        }
        let before = opened.before(&self.listed(&transaction, &self.table.set_aside()).await?);
        // A table of others that lacks a column or the key says so here; then what was staged is still there.
        self.answer(WHAT, ANSWER, transaction.prepare(&opened.show("$1", true))).await.map(drop)?;
        // A commit locks this row. Were there none yet, the first might be applied beside its own repetition.
        let first =
            format!("INSERT INTO {BATCHES} (sink, batch, time) VALUES ($1, 0, 0) ON CONFLICT (sink) DO NOTHING");
        self.answer(WHAT, ANSWER, transaction.execute(&first, &[&self.table.name])).await?;
        self.answer(WHAT, WORK, transaction.commit()).await?;
        Ok(before)
    }

    /// Writes the rows of a part where nobody sees them.
    async fn stage_with(&self, client: &mut Client, batch: i64, part: i64, all: &[RecordBatch]) -> Result<()> {
        const WHAT: &str = "stage rows for";
        let opened = self.opened()?;
        let staged = &opened.staged;
        let transaction = self.answer(WHAT, ANSWER, client.transaction()).await?;
        let delete = format!("DELETE FROM {staged} WHERE _tm_batch = $1 AND _tm_part = $2");
        self.answer(WHAT, WORK, transaction.execute(&delete, &[&batch, &part])).await?;
        let copy = format!("COPY {staged} ({}) FROM STDIN", opened.staged_columns());
        let copy = self.answer(WHAT, ANSWER, transaction.copy_in::<_, Bytes>(&copy)).await?;
        futures::pin_mut!(copy);
        let (mut text, mut row_number) = (Vec::with_capacity(2 * PIECE), 0_u64);
        for rows in all {
            let columns = opened.converted(rows, converted)?;
            for row in 0..rows.num_rows() {
                text.extend_from_slice(format!("{batch}\t{part}\t{row_number}").as_bytes());
                for column in &columns {
                    text.push(b'\t');
                    write_value(column, row, &mut text);
                }
                text.push(b'\n');
                row_number += 1;
                if text.len() >= PIECE {
                    self.answer(WHAT, ANSWER, copy.send(Bytes::from(std::mem::take(&mut text)))).await?;
                }
            }
        }
        self.answer(WHAT, ANSWER, copy.send(Bytes::from(text))).await?;
        self.answer(WHAT, WORK, copy.finish()).await?;
        self.answer(WHAT, WORK, transaction.commit()).await
    }

    /// Whether all parts of a batch lie there.
    async fn has_all(
        &self,
        transaction: &Transaction<'_>,
        from: &Opened,
        batch: i64,
        tokens: &[Token],
    ) -> Result<bool> {
        const WHAT: &str = "commit to";
        let query = format!("SELECT EXISTS (SELECT 1 FROM {} WHERE _tm_batch = $1 AND _tm_part = $2)", from.staged);
        for token in tokens {
            let part = signed(token.part)?;
            let found = self.answer(WHAT, ANSWER, transaction.query_one(&query, &[&batch, &part])).await?;
            if !found.try_get::<_, bool>(0).map_err(|e| self.failed(WHAT, e))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Moves the rows of a batch into the table, unless they are there.
    async fn commit_with(&self, client: &mut Client, batch: BatchId, time: Timestamp, tokens: &[Token]) -> Result<()> {
        const WHAT: &str = "commit to";
        let (opened, number) = (self.opened()?, signed(batch.0)?);
        let before = self.before.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let transaction = self.answer(WHAT, ANSWER, client.transaction()).await?;
        if step(self.answer(WHAT, ANSWER, mark(&transaction, &self.table)).await?, number, time) != Step::Apply {
            return Ok(());
        }
        let (what, from) = if self.has_all(&transaction, opened, number, tokens).await? {
            (WHAT.to_string(), opened)
        } else {
            match &before {
                Some(before) if self.has_all(&transaction, before, number, tokens).await? => {
                    (commit_before(before), before)
                }
                _ => return Err(gone(&self.table, batch)),
            }
        };
        self.answer(&what, WORK, transaction.execute(&from.show("$1", true), &[&number])).await?;
        let shown = format!("DELETE FROM {} WHERE _tm_batch <= $1", from.staged);
        self.answer(WHAT, WORK, transaction.execute(&shown, &[&number])).await?;
        let note = format!(
            "INSERT INTO {BATCHES} (sink, batch, time) VALUES ($1, $2, $3) ON CONFLICT (sink) DO UPDATE SET batch = excluded.batch, time = excluded.time"
        );
        self.answer(WHAT, ANSWER, transaction.execute(&note, &[&self.table.name, &number, &time.0])).await?;
        self.answer(WHAT, WORK, transaction.commit()).await
    }

    /// Removes what no commit will ask for.
    async fn recover_with(&self, client: &mut Client, last_committed: Option<BatchId>) -> Result<()> {
        const WHAT: &str = "recover";
        let transaction = self.answer(WHAT, ANSWER, client.transaction()).await?;
        let mark = self.answer(WHAT, ANSWER, mark(&transaction, &self.table)).await?;
        if let Some(last) = set_back(&self.table, mark, last_committed)? {
            let back = format!("UPDATE {BATCHES} SET batch = $2, time = $3 WHERE sink = $1");
            self.answer(WHAT, ANSWER, transaction.execute(&back, &[&self.table.name, &last, &ANY])).await?;
        }
        // The last commit was repeated, so all that is left belongs to no commit.
        let left =
            format!("DELETE FROM {}; DROP TABLE IF EXISTS {}", self.opened()?.staged, quoted(&self.table.set_aside()));
        self.answer(WHAT, WORK, transaction.batch_execute(&left)).await?;
        self.answer(WHAT, WORK, transaction.commit()).await?;
        self.set_before(None);
        Ok(())
    }
}

fn declared(kind: Kind) -> &'static str {
    match kind {
        Kind::Integer => "BIGINT",
        Kind::Real => "DOUBLE PRECISION",
        Kind::Text => "TEXT",
        Kind::Bytes => "BYTEA",
        Kind::Bool => "BOOLEAN",
        Kind::Instant => "TIMESTAMPTZ",
        Kind::LocalTime => "TIMESTAMP",
        Kind::Date => "DATE",
    }
}

/// The same as `format_type` has it.
fn in_lists(kind: Kind) -> &'static str {
    match kind {
        Kind::Integer => "bigint",
        Kind::Real => "double precision",
        Kind::Text => "text",
        Kind::Bytes => "bytea",
        Kind::Bool => "boolean",
        Kind::Instant => "timestamp with time zone",
        Kind::LocalTime => "timestamp without time zone",
        Kind::Date => "date",
    }
}

/// A column as text, or as bytes.
pub(super) fn converted(column: &ArrayRef, kind: Kind) -> Result<ArrayRef> {
    let cast = |column: &ArrayRef, ty: &DataType| {
        arrow_cast::cast(column, ty).map_err(|e| Error::user("postgres: a column can't be written").because(e))
    };
    let own = cast(column, &kind.arrow())?;
    if kind == Kind::Bytes { Ok(own) } else { cast(&own, &DataType::Utf8) }
}

/// A value in the text form of COPY.
fn write_value(column: &ArrayRef, row: usize, out: &mut Vec<u8>) {
    if column.is_null(row) {
        return out.extend_from_slice(b"\\N");
    }
    if let Some(bytes) = column.as_binary_opt::<i32>() {
        out.extend_from_slice(b"\\\\x");
        for byte in bytes.value(row) {
            out.extend_from_slice(format!("{byte:02x}").as_bytes());
        }
        return;
    }
    for byte in column.as_string::<i32>().value(row).bytes() {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0 => out.extend_from_slice(FOR_NUL.as_bytes()),
            other => out.push(other),
        }
    }
}

/// The mark of a table, held until the transaction ends.
async fn mark(transaction: &Transaction<'_>, table: &Table) -> Result<Option<Mark>, tokio_postgres::Error> {
    let query = format!("SELECT batch, time FROM {BATCHES} WHERE sink = $1 FOR UPDATE");
    let row = transaction.query_opt(&query, &[&table.name]).await?;
    row.map(|row| Ok(Mark { batch: row.try_get(0)?, time: row.try_get(1)? })).transpose()
}

#[async_trait]
impl Sink for PostgresSink {
    fn describe(&self) -> String {
        format!("postgres {} ({})", self.server.place, self.table.how())
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn claim(&self) -> Option<Claim> {
        Some(Claim::new(format!("table {} of {}", self.table.name, self.server.real_place())))
    }

    fn takes(&self, schema: &SchemaRef) -> Result<()> {
        self.table.with(schema).map(drop)
    }

    fn stays(&self) -> String {
        self.table.stays()
    }

    async fn open(&self, schema: SchemaRef) -> Result<()> {
        let opened = self.table.with(&schema)?;
        let mut held = self.server.client(&self.table.name).await?;
        let done = self.open_with(of(&mut held)?, &opened).await;
        self.set_before(settled(&mut held, done)?);
        // Opened once.
        let _set = self.opened.set(opened);
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
        let mut held = self.server.client(&self.table.name).await?;
        let done = self.stage_with(of(&mut held)?, signed(batch.0)?, signed(part as u64)?, &all).await;
        settled(&mut held, done)?;
        Ok(Some(Token::staged(part, time)))
    }

    async fn commit(&self, batch: BatchId, parts: &[StagedPart]) -> Result<()> {
        let tokens = parts.iter().map(Token::parse).collect::<Result<Vec<_>>>()?;
        let Some(first) = tokens.first() else { return Ok(()) };
        let mut held = self.server.client(&self.table.name).await?;
        let done = self.commit_with(of(&mut held)?, batch, first.time, &tokens).await;
        settled(&mut held, done)
    }

    async fn recover(&self, last_committed: Option<BatchId>) -> Result<()> {
        let mut held = self.server.client(&self.table.name).await?;
        let done = self.recover_with(of(&mut held)?, last_committed).await;
        settled(&mut held, done)
    }
}
