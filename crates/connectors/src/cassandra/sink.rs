//! Sink `cassandra`: rows as rows of a table, upserted by its primary key, exactly once in effect.
//!
//! The options are those of `server.rs` and
//!
//! | Option | Meaning |
//! |---|---|
//! | `table` | the table; each column of the rows is one of its columns, by name |
//! | `key` | the primary key as CQL writes it: `id`, `day, id`, `(day, lang), id`; with it the table is made if it is not there |
//! | `ttl` | rows go this long after they were written: `30d` |
//! | `nulls` | `erase` (default): a null takes away what stood there; `leave`: it leaves it, and makes no tombstone |
//! | `requests` | requests under way at a time (128) |
//!
//! ```text
//! stage    rows aside                                                     seen by nobody
//! commit   INSERT … USING TIMESTAMP of the batch, a request a row         seen as they are written
//!          tidemill_batches: sink, batch_number                           the batch is whole
//! ```
//!
//! A row goes to the node that has its partition, by a prepared statement; many are under way at once. No batches of
//! CQL: over partitions they are slower than what they replace, and make no commit of it.
//!
//! **What is guaranteed.** After a commit the last row of each key is in the table, and a commit that is repeated, as
//! after a crash, changes nothing: it writes the same cells at the same write time (`mark.rs`), a batch writes each
//! key once, and what was given up as lost and reaches a node late is older than what later batches have written. Of
//! rows with `ttl` a repeated commit counts their time anew. **What is not:** a batch does not become visible at one
//! instant; who must not see a part of one reads `tidemill_batches`. Rows that a program does not give any more stay.
//!
//! Invariant: a table has one program, and one output of it. Rows stay aside until the mark says that their batch is
//! whole; nothing grows beside the table but one mark for it.

use super::{
    mark,
    server::Server,
    table::{Column, Table, quoted},
    values::Rows,
};
use crate::{
    aside::{Aside, Part},
    stamp::{BATCHES, Mark, Step, last_of_keys, signed},
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use futures::{TryStreamExt, stream, stream::BoxStream};
use scylla::{client::session::Session, errors::ExecutionError, statement::prepared::PreparedStatement};
use std::{fmt, path::Path, sync::OnceLock, time::Duration};
use tidemill_core::{BatchId, Claim, Error, Guarantee, Options, Result, Sink, StagedPart, Timestamp};
use tokio::sync::Mutex;

/// The longest that Cassandra lets a value live: 20 years.
const LONGEST: Duration = Duration::from_secs(630_720_000);
/// Requests under way at most.
const REQUESTS: usize = 2048;

/// Held while tables are made: of two statements at once that make one table, nodes could each take another.
static MAKING: Mutex<()> = Mutex::const_new(());

/// A table of a Cassandra.
pub struct CassandraSink {
    pub(super) server: Server,
    table: Table,
    /// In seconds.
    ttl: Option<u64>,
    leave_nulls: bool,
    requests: usize,
    opened: OnceLock<Opened>,
    aside: Aside,
}

struct Opened {
    columns: Vec<Column>,
    insert: PreparedStatement,
}

impl fmt::Debug for CassandraSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CassandraSink")
            .field("place", &self.server.place)
            .field("table", &self.table.name)
            .finish_non_exhaustive()
    }
}

impl CassandraSink {
    /// From a sink's options.
    ///
    /// # Errors
    /// When one is missing or wrong, or a password stands in the program.
    pub fn from_options(options: &Options) -> Result<Self> {
        let owner = options.owner();
        let (server, table) = (Server::from_options(options)?, Table::from_options(options)?);
        let ttl = match options.duration("ttl", Duration::ZERO)? {
            Duration::ZERO if options.get("ttl").is_none() => None,
            ttl if (Duration::from_secs(1)..=LONGEST).contains(&ttl) => Some(ttl.as_secs()),
            _ => return Err(Error::user(format!("{owner}: option `ttl` must be from 1s to 7300d"))),
        };
        let leave_nulls = match options.get("nulls") {
            None | Some("erase") => false,
            Some("leave") => true,
            Some(other) => {
                return Err(Error::user(format!("{owner}: option `nulls`: `{other}` is neither erase nor leave")));
            }
        };
        let requests = options.parse("requests", 128_usize)?;
        if !(1..=REQUESTS).contains(&requests) {
            return Err(Error::user(format!("{owner}: option `requests` must be from 1 to {REQUESTS}")));
        }
        Ok(Self { server, table, ttl, leave_nulls, requests, opened: OnceLock::new(), aside: Aside::default() })
    }

    fn opened(&self) -> Result<&Opened> {
        self.opened.get().ok_or_else(|| Error::internal("a Cassandra sink is used before it was opened"))
    }

    /// Makes what is not there: the table, if its key is named, and that of marks.
    async fn make(&self, session: &Session, schema: &SchemaRef) -> Result<()> {
        let keyspace = &self.server.keyspace;
        let statements = {
            let state = session.get_cluster_state();
            let Some(known) = state.get_keyspace(keyspace) else {
                return Err(Error::user(format!(
                    "cassandra: there is no keyspace `{keyspace}` at {}: make it, as it says how often rows are kept: CREATE KEYSPACE {} WITH replication = {{'class': 'NetworkTopologyStrategy', 'replication_factor': 3}}",
                    self.server.place,
                    quoted(keyspace)
                )));
            };
            let mut statements = Vec::new();
            if !known.tables.contains_key(&self.table.name) {
                let Some(key) = &self.table.key else {
                    return Err(self.table.wrong(&format!(
                        "keyspace `{keyspace}` has none of the name: make it, or name its primary key in option `key`, and it is made"
                    )));
                };
                statements.push(self.table.create(keyspace, key, schema)?);
            }
            if !known.tables.contains_key(BATCHES) {
                statements.push(mark::create(keyspace));
            }
            statements
        };
        for statement in &statements {
            let made = session.query_unpaged(statement.as_str(), ()).await;
            made.map_err(|e| self.server.failed(&format!("run `{statement}`"), e))?;
        }
        if statements.is_empty() {
            return Ok(());
        }
        let known = self.server.within("read the tables", session.refresh_metadata()).await?;
        known.map_err(|e| {
            Error::external(format!("cassandra: can't read the tables at {}", self.server.place)).because(e)
        })
    }

    async fn prepared(&self, session: &Session, columns: &[Column]) -> Result<PreparedStatement> {
        let names: Vec<String> = columns.iter().map(|column| quoted(&column.name)).collect();
        let ttl = self.ttl.map(|ttl| format!(" USING TTL {ttl}")).unwrap_or_default();
        let text = format!(
            "INSERT INTO {}.{} ({}) VALUES ({}){ttl}",
            quoted(&self.server.keyspace),
            quoted(&self.table.name),
            names.join(", "),
            vec!["?"; names.len()].join(", ")
        );
        let prepared = self.server.within(&self.writing(), session.prepare(text)).await?;
        let mut insert = prepared.map_err(|e| self.server.failed(&self.writing(), ExecutionError::from(e)))?;
        insert.set_is_idempotent(true);
        Ok(insert)
    }

    fn writing(&self) -> String {
        format!("write to table `{}`", self.table.name)
    }

    /// Writes all rows of a batch. What was written by an earlier try is written again, as it was.
    async fn write(&self, batch: BatchId, parts: &[Part], stamp: i64) -> Result<()> {
        let (opened, session) = (self.opened()?, self.server.session().await?);
        let mut insert = opened.insert.clone();
        insert.set_timestamp(Some(stamp));
        let insert = &insert;
        let keys = |rows: &RecordBatch| Rows::of(&self.table, &opened.columns, rows)?.keys();
        let last = last_of_keys(&self.aside, batch, parts, keys).await?;
        let mut place = 0;
        for part in parts {
            for rows in self.aside.read(batch, part).await? {
                let rows = Rows::of(&self.table, &opened.columns, &rows)?;
                let which: Vec<usize> = (0..rows.len()).filter(|row| last.contains(&(place + row))).collect();
                place += rows.len();
                let rows = &rows;
                let each = stream::iter(which.into_iter().map(Ok));
                each.try_for_each_concurrent(self.requests, |row| async move {
                    let values = rows.row(row, self.leave_nulls)?;
                    let done = session.execute_unpaged(insert, values).await;
                    done.map(drop).map_err(|e| self.server.failed(&self.writing(), e))
                })
                .await?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Sink for CassandraSink {
    fn describe(&self) -> String {
        format!("cassandra {} (table {}, upsert by its primary key)", self.server.place, self.table.name)
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn claim(&self) -> Option<Claim> {
        Some(Claim::new(format!("table {} of {}", self.table.name, self.server.real_place())))
    }

    fn takes(&self, schema: &SchemaRef) -> Result<()> {
        self.table.takes(schema)
    }

    fn place(&self, owner: &str, aside: &Path) {
        self.aside.place(owner, aside);
    }

    fn stays(&self) -> String {
        "its rows stay: those whose keys come again are replaced, the others are left".to_string()
    }

    async fn open(&self, schema: SchemaRef) -> Result<()> {
        self.table.takes(&schema)?;
        let session = self.server.session().await?;
        {
            let _made_by_one = MAKING.lock().await;
            self.make(session, &schema).await?;
        }
        let columns = {
            let state = session.get_cluster_state();
            let known = state.get_keyspace(&self.server.keyspace).and_then(|known| known.tables.get(&self.table.name));
            let known = known.ok_or_else(|| {
                Error::external(format!(
                    "cassandra: table `{}` was made and is not there yet at {}",
                    self.table.name, self.server.place
                ))
            })?;
            self.table.with(known, &schema)?
        };
        let insert = self.prepared(session, &columns).await?;
        // Says at the start whether marks can be read.
        mark::read(&self.server, &self.table.name).await?;
        // Opened once.
        let _set = self.opened.set(Opened { columns, insert });
        self.aside.open(schema).await
    }

    async fn stage(
        &self,
        batch: BatchId,
        time: Timestamp,
        part: usize,
        rows: BoxStream<'_, Result<RecordBatch>>,
    ) -> Result<Option<StagedPart>> {
        self.aside.stage(batch, time, part, rows).await
    }

    async fn commit(&self, batch: BatchId, parts: &[StagedPart]) -> Result<()> {
        let (parts, number) = (Part::parse(parts)?, signed(batch)?);
        let Some(time) = parts.first().map(|part| part.time) else { return Ok(()) };
        let mark = mark::read(&self.server, &self.table.name).await?;
        if let Step::Write(stamp) = mark.step(number, time, mark::UNIT) {
            if !self.aside.has(&parts)? {
                return Err(self.table.wrong(&format!(
                    "rows of committed batch {batch} are neither aside nor noted in `{BATCHES}`: was that mark, or the data directory, changed by someone else?"
                )));
            }
            self.write(batch, &parts, stamp).await?;
            mark::note(&self.server, &self.table.name, Mark::of(number, time, stamp)).await?;
        }
        self.aside.remove(&parts).await
    }

    async fn recover(&self, last_committed: Option<BatchId>) -> Result<()> {
        let mark = mark::read(&self.server, &self.table.name).await?;
        if let Some(back) = mark.set_back(&self.table.name, last_committed)? {
            mark::note(&self.server, &self.table.name, back).await?;
        }
        // The last commit was repeated, so all that is left belongs to no commit.
        self.aside.clear().await
    }
}
