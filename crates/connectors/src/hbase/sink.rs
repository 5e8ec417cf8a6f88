//! Sink `hbase`: rows as rows of a table, upserted by their key, exactly once in effect.
//!
//! The options are those of `server.rs`, `table.rs` and
//!
//! | Option | Meaning |
//! |---|---|
//! | `nulls` | `erase` (default): a null takes away what stood there; `leave`: it leaves it |
//! | `requests` | requests under way at a time (4) |
//! | `max_rows`, `max_bytes` | of a request at most (1000, 1MB); a row that is larger goes alone |
//!
//! ```text
//! stage    rows aside                                              seen by nobody
//! commit   POST /table/rows …            cells at the batch's timestamp        seen as they are written
//!          DELETE /table/key/columns/…   of rows with nulls, at that timestamp
//!          POST /tidemill_batches/row    the batch is whole
//! ```
//!
//! A null is no cell. What stood there goes by a deletion, and the gateway takes those of one row at a time: a row
//! with nulls costs a request of its own unless `nulls` is `leave`.
//!
//! **What is guaranteed.** After a commit the last row of each key is in the table, and a commit that is repeated, as
//! after a crash, changes nothing: it writes the same cells at the same timestamp (`mark.rs`), a batch writes each
//! cell once, and what was given up as lost and comes late is older than what later batches have written. **What is
//! not:** a batch does not become visible at one instant, though each of its rows does but for its nulls; who must not
//! see a part of one reads `tidemill_batches`. Rows that a program does not give any more stay.
//!
//! Invariant: a family of a table has one program, and one output of it. Rows stay aside until the mark says that
//! their batch is whole; nothing grows beside the table but one mark for it.

use super::{
    cut::{Cutter, erasing},
    mark,
    server::Server,
    table::{Table, others},
    values::Rows,
};
use crate::{
    aside::{Aside, Part},
    stamp::{Mark, Step, last_of_keys, signed},
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use hyper::Method;
use std::{fmt, path::Path};
use tidemill_core::{BatchId, Claim, Error, Guarantee, Options, Result, Sink, StagedPart, Timestamp};

/// Requests under way at most.
const REQUESTS: usize = 64;

/// A family of a table of HBase.
pub struct HbaseSink {
    server: Server,
    table: Table,
    leave_nulls: bool,
    requests: usize,
    max_rows: usize,
    max_bytes: usize,
    aside: Aside,
}

/// A request of a commit.
enum Write {
    Put(Bytes),
    Erase(String),
}

impl fmt::Debug for HbaseSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HbaseSink")
            .field("place", &self.server.place)
            .field("table", &self.table.name)
            .finish_non_exhaustive()
    }
}

impl HbaseSink {
    /// From a sink's options.
    ///
    /// # Errors
    /// When one is missing or wrong, or a password stands in the program.
    pub fn from_options(options: &Options) -> Result<Self> {
        let owner = options.owner();
        let wrong = |key: &str, why: &str| Err(Error::user(format!("{owner}: option `{key}` {why}")));
        let (server, table) = (Server::from_options(options)?, Table::from_options(options)?);
        let leave_nulls = match options.get("nulls") {
            None | Some("erase") => false,
            Some("leave") => true,
            Some(other) => return wrong("nulls", &format!("is `{other}`, and neither erase nor leave")),
        };
        let requests = options.parse("requests", 4_usize)?;
        if !(1..=REQUESTS).contains(&requests) {
            return wrong("requests", &format!("must be from 1 to {REQUESTS}"));
        }
        let max_rows = options.parse("max_rows", 1000_usize)?;
        if max_rows == 0 {
            return wrong("max_rows", "must be at least 1");
        }
        let max_bytes = usize::try_from(options.bytes("max_bytes", 1_000_000)?).unwrap_or(usize::MAX);
        Ok(Self { server, table, leave_nulls, requests, max_rows, max_bytes, aside: Aside::default() })
    }

    fn writing(&self) -> String {
        format!("write to table `{}`", self.table.name)
    }

    /// Writes all rows of a batch. What was written by an earlier try is written again, as it was.
    async fn write(&self, batch: BatchId, parts: &[Part], stamp: i64) -> Result<()> {
        let keys = |rows: &RecordBatch| Rows::of(&self.table, rows)?.keys();
        let last = last_of_keys(&self.aside, batch, parts, keys).await?;
        let (mut key, mut place) = (Vec::new(), 0);
        for part in parts {
            for rows in self.aside.read(batch, part).await? {
                let rows = Rows::of(&self.table, &rows)?;
                let (mut cutter, mut writes) = (Cutter::new(self.max_rows, self.max_bytes, stamp), Vec::new());
                for row in 0..rows.len() {
                    if !last.contains(&(place + row)) {
                        continue;
                    }
                    key.clear();
                    rows.put_key(row, &mut key)?;
                    let (with, without) = rows.cells(row);
                    if !with.is_empty() {
                        writes.extend(cutter.add(&key, with).map(Write::Put));
                    }
                    if !self.leave_nulls {
                        writes.extend(erasing(&self.table.name, &key, &without, stamp).into_iter().map(Write::Erase));
                    }
                }
                place += rows.len();
                writes.extend(cutter.finish().map(Write::Put));
                let each = stream::iter(writes.into_iter().map(Ok));
                each.try_for_each_concurrent(self.requests, |write| self.send(write)).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, write: Write) -> Result<()> {
        match write {
            Write::Put(body) => self.server.post(&self.writing(), &format!("/{}/rows", self.table.name), body).await,
            Write::Erase(path) => {
                let answer = self.server.encoded(&self.writing(), Method::DELETE, &path).await?;
                if answer.status.is_success() { Ok(()) } else { Err(self.server.refused(&self.writing(), &answer)) }
            }
        }
    }

    /// Whether the gateway reads keys as Base64, without which it would look for other rows than those to erase.
    async fn reads_keys(&self) -> Result<()> {
        let what = format!("look at table `{}`", self.table.name);
        // No Base64: who reads it so can't, and who doesn't finds no such row.
        let answer = self.server.encoded(&what, Method::GET, &format!("/{}/%21/%21", self.table.marks())).await?;
        match answer.status.as_u16() {
            400 | 500 => Ok(()),
            200..=299 | 404 => Err(self.table.wrong(&format!(
                "the gateway at {} can't erase what a null takes away: HBase's own can from 2.6 on (HBASE-28174); else set option `nulls` to leave, or give no nulls (COALESCE)",
                self.server.place
            ))),
            _ => Err(self.server.refused(&what, &answer)),
        }
    }
}

#[async_trait]
impl Sink for HbaseSink {
    fn describe(&self) -> String {
        let Table { name, family, key, .. } = &self.table;
        format!("hbase {} (table {name}, family {family}, upsert by {})", self.server.place, key.join(", "))
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn claim(&self) -> Option<Claim> {
        let Table { name, family, .. } = &self.table;
        Some(Claim::new(format!("family {family} of table {name} of {}", self.server.real_place())))
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
        self.table.ready(&self.server).await?;
        // Says at the start whether marks can be read.
        mark::read(&self.server, &self.table).await?;
        if !self.leave_nulls && others(&self.table, &schema).any(|at| schema.field(at).is_nullable()) {
            self.reads_keys().await?;
        }
        self.aside.open(schema).await
    }

    async fn stage(
        &self,
        batch: BatchId,
        time: Timestamp,
        part: usize,
        rows: BoxStream<'_, Result<RecordBatch>>,
    ) -> Result<Option<StagedPart>> {
        // What HBase would refuse is told while the batch can still be computed anew, by a program that was mended.
        let checked = rows.map(|rows| {
            let rows = rows?;
            Rows::of(&self.table, &rows)?.check()?;
            Ok(rows)
        });
        self.aside.stage(batch, time, part, checked.boxed()).await
    }

    async fn commit(&self, batch: BatchId, parts: &[StagedPart]) -> Result<()> {
        let (parts, number) = (Part::parse(parts)?, signed(batch)?);
        let Some(time) = parts.first().map(|part| part.time) else { return Ok(()) };
        let mark = mark::read(&self.server, &self.table).await?;
        if let Step::Write(stamp) = mark.step(number, time, mark::UNIT) {
            if !self.aside.has(&parts)? {
                return Err(self.table.wrong(&format!(
                    "rows of committed batch {batch} are neither aside nor noted in `{}`: was that mark, or the data directory, changed by someone else?",
                    self.table.marks()
                )));
            }
            self.write(batch, &parts, stamp).await?;
            mark::note(&self.server, &self.table, Mark::of(number, time, stamp)).await?;
        }
        self.aside.remove(&parts).await
    }

    async fn recover(&self, last_committed: Option<BatchId>) -> Result<()> {
        let mark = mark::read(&self.server, &self.table).await?;
        if let Some(back) = mark.set_back(&self.table.name, last_committed)? {
            mark::note(&self.server, &self.table, back).await?;
        }
        // The last commit was repeated, so all that is left belongs to no commit.
        self.aside.clear().await
    }
}
