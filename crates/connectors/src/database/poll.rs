//! Stream `postgres`: rows of a table or of a query, as they are added to a PostgreSQL server.
//!
//! | Option | Meaning |
//! |---|---|
//! | `url`, `password_env` | as the sink `postgres` has them |
//! | `table`, or `query` | the table whose rows are read, or a `SELECT` that gives them |
//! | `cursor` | columns that grow with each new row and no two rows share, such as `id` or `changed_at,id` |
//! | `start` | `earliest` (all rows that are there), or `latest`; `earliest` unless said |
//! | `every` | how often it is looked for new rows (1s) |
//! | `wait_for_writers` | how long rows wait for open transactions, which may still add rows before them (1m) |
//! | `max_line` | bytes of a row at most; a longer one is a dead letter (1MB) |
//!
//! The record is the row as a JSON object, as `row_to_json` makes it.
//!
//! **Nothing lost, nothing twice.** A row with a smaller cursor may be seen later than one with a larger: its
//! transaction drew the number first and ended last. So rows are read in rounds, up to the newest that is seen,
//! and that only when all transactions that were open then have ended:
//!
//! ```text
//! look    newest cursor c, and the next number of a transaction, x     one statement, one snapshot
//! wait    until every transaction before x has ended                   no row at or before c comes any more
//! read    rows after the last one read, up to c, in order
//! ```
//!
//! That holds for numbers that a column's default draws, without a cache, and for the time at which a transaction
//! began. Rows whose cursor is NULL are never read, and what changes behind the cursor, or goes, is not seen.
//!
//! Invariant: the token is the cursor of the last row of its block.

use super::{
    lookup::{named, table_name},
    postgres_server::{ANSWER, Server, WORK, of},
    table::quoted,
};
use crate::{
    http::{Link, failure::Failure},
    lines::{self, HEAD},
    social::{
        collect::{BLOCK, Collector, Ended, Out, run},
        common::list,
    },
};
use async_trait::async_trait;
use futures::StreamExt;
use std::{pin::pin, sync::Arc, time::Duration};
use tidemill_core::{Error, Input, Intake, Options, Receiver, Result, Stop, Timestamp};
use tokio_postgres::{Client, Row, types::ToSql};

/// Rows of a question at most, so that none is open for long on the server.
const PAGE: usize = 10_000;

/// Rows of a table or query, as they are added.
#[derive(Debug, Clone)]
pub struct PostgresRows {
    server: Arc<Server>,
    /// For people.
    name: String,
    /// What stands behind FROM, up to its name there, which is `t`.
    from: String,
    cursor: Vec<String>,
    latest: bool,
    every: Duration,
    patience: Duration,
    max_line: usize,
    page: usize,
    link: Link,
}

impl PostgresRows {
    /// From a stream's options.
    ///
    /// # Errors
    /// When one is missing or wrong, or the password stands in the URL.
    pub fn input(options: &Options) -> Result<Input> {
        Ok(Input::Receivers(vec![Arc::new(Self::from_options(options)?)]))
    }

    fn from_options(options: &Options) -> Result<Self> {
        let owner = options.owner();
        let server = Arc::new(Server::from_options(options)?);
        let (name, from) = match (options.get("table"), options.get("query")) {
            (Some(_), None) => {
                let table = table_name(options, "it names the table that is read")?;
                (table.to_string(), format!("{} AS t", named(table)))
            }
            (None, Some(query)) => {
                let query = query.trim().trim_end_matches(';');
                // A comment at its end must not swallow what comes behind it.
                ("(query)".to_string(), format!("({query}\n) AS t"))
            }
            _ => {
                let text = "give `table`, or `query` with a SELECT: one of the two says what is read";
                return Err(Error::user(format!("{owner}: {text}")));
            }
        };
        let cursor = list(options.require("cursor", "it names the columns by which new rows are told, such as `id`")?);
        if cursor.is_empty() || cursor.iter().any(|column| column.contains('\0')) {
            return Err(Error::user(format!("{owner}: option `cursor` names columns, such as `changed_at,id`")));
        }
        let latest = match options.get("start").unwrap_or("earliest") {
            "earliest" => false,
            "latest" => true,
            other => {
                let text = format!("{owner}: option `start` must be `earliest` or `latest`, not `{other}`");
                return Err(Error::user(text));
            }
        };
        Ok(Self {
            server,
            name,
            from,
            cursor,
            latest,
            every: options.duration("every", Duration::from_secs(1))?.max(Duration::from_millis(10)),
            patience: options.duration("wait_for_writers", Duration::from_secs(60))?,
            max_line: lines::max_line(options)?,
            page: PAGE,
            link: Link::default(),
        })
    }

    /// The statements, once the types of the cursor's columns are known: values come back as the texts that they left as.
    async fn statements(&self, client: &Client) -> Result<Statements> {
        let columns: Vec<String> = self.cursor.iter().map(|name| format!("t.{}", quoted(name))).collect();
        let (all, from) = (columns.join(", "), &self.from);
        let look = format!("SELECT {all} FROM {from} LIMIT 0");
        let like = self.answer("read", ANSWER, client.prepare(&look)).await?;
        let row = |first: usize| {
            let value = |(at, column): (usize, &tokio_postgres::Column)| {
                format!("${}::text::{}", first + at, quoted(column.type_().name()))
            };
            format!("ROW({})", like.columns().iter().enumerate().map(value).collect::<Vec<_>>().join(", "))
        };
        let texts = columns.iter().map(|column| format!("{column}::text")).collect::<Vec<_>>().join(", ");
        let there = columns.iter().map(|column| format!("{column} IS NOT NULL")).collect::<Vec<_>>().join(" AND ");
        let back = columns.iter().map(|column| format!("{column} DESC")).collect::<Vec<_>>().join(", ");
        let count = columns.len();
        let read = |from_where: String| {
            let (most, page) = (self.max_line, self.page + 1);
            format!(
                "SELECT CASE WHEN octet_length(r.j) <= {most} THEN r.j ELSE left(r.j, {HEAD}) END, \
                 octet_length(r.j), {texts} FROM {from}, LATERAL (SELECT row_to_json(t)::text AS j) AS r \
                 WHERE {there} AND {from_where} ORDER BY {all} LIMIT {page}"
            )
        };
        Ok(Statements {
            newest: format!(
                "SELECT pg_snapshot_xmax(pg_current_snapshot())::text, {texts} FROM {from} WHERE {there} \
                 ORDER BY {back} LIMIT 1"
            ),
            first: read(format!("ROW({all}) <= {}", row(1))),
            next: read(format!("ROW({all}) <= {} AND ROW({all}) > {}", row(1), row(1 + count))),
        })
    }

    async fn answer<T>(
        &self,
        what: &str,
        most: Duration,
        act: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T> {
        let answer = self.server.within((what, &self.name), most, act).await?;
        answer.map_err(|e| self.server.failed(what, &self.name, e))
    }

    /// Where a row stands: the texts from column `first` on.
    fn place(&self, row: &Row, first: usize) -> Result<Vec<String>> {
        let text = |at| row.try_get::<_, String>(first + at).map_err(|e| self.server.failed("read", &self.name, e));
        (0..self.cursor.len()).map(text).collect()
    }
}

/// What is asked.
struct Statements {
    /// The newest row, and the number that the next transaction gets.
    newest: String,
    /// Rows up to the newest, from the first on, and after the last one read.
    first: String,
    next: String,
}

/// Whether all transactions before a number have ended.
const ENDED: &str = "SELECT pg_snapshot_xmin(pg_current_snapshot()) >= $1::text::xid8";

/// A row up to which is read when the transactions that were open when it was seen have ended.
struct Newest {
    place: Vec<String>,
    transaction: String,
    seen: Timestamp,
    told: bool,
}

struct Session {
    rows: PostgresRows,
    statements: Option<Statements>,
    /// The cursor of the last row that was read, and of the last one that was handed on.
    place: Option<Vec<String>>,
    handed: Option<Vec<String>>,
    newest: Option<Newest>,
    /// Whether what is there is passed over.
    passes: bool,
}

impl Session {
    fn again(&self, out: &Out) -> Ended {
        Ended::Again(out.clock().now().plus(self.rows.every))
    }

    fn connected(&self, out: &Out) {
        out.report(&format!("connected to {}", self.rows.server.place));
    }

    /// After a connection that is gone.
    fn begin_anew(&mut self) {
        // The next connection is a first one: it says that it is there, and finds the columns as they are then.
        self.statements = None;
        // What was not handed on is read again.
        self.place.clone_from(&self.handed);
    }

    /// Looks, waits or reads.
    async fn round(&mut self, client: &Client, out: &Out) -> Result<Ended, Failure> {
        if self.statements.is_none() {
            self.statements = Some(self.rows.statements(client).await.map_err(Failure::of)?);
            self.connected(out);
        }
        if self.newest.is_none() {
            self.look(client, out).await.map_err(Failure::of)?;
        }
        if !self.may_read(client, out).await.map_err(Failure::of)? {
            return Ok(self.again(out));
        }
        if self.passes {
            self.place = self.newest.take().map(|newest| newest.place);
            self.handed.clone_from(&self.place);
            self.passes = false;
            return Ok(self.again(out));
        }
        while self.read(client, out).await? {}
        if self.newest.take().is_some_and(|newest| newest.told) {
            // It waits no more.
            self.connected(out);
        }
        Ok(self.again(out))
    }

    /// Finds the newest row, if there is one that was not read.
    async fn look(&mut self, client: &Client, out: &Out) -> Result<()> {
        let rows = &self.rows;
        let statement = self.statements.as_ref().map_or("", |statements| &statements.newest);
        let Some(row) = rows.answer("read", WORK, client.query_opt(statement, &[])).await? else {
            // Of nothing there is nothing to pass over.
            self.passes = false;
            return Ok(());
        };
        let place = rows.place(&row, 1)?;
        if self.place.as_ref() != Some(&place) {
            let transaction = row.try_get(0).map_err(|e| rows.server.failed("read", &rows.name, e))?;
            self.newest = Some(Newest { place, transaction, seen: out.clock().now(), told: false });
        }
        Ok(())
    }

    /// Whether there is something to read, before which nothing comes any more.
    async fn may_read(&mut self, client: &Client, out: &Out) -> Result<bool> {
        let rows = &self.rows;
        let Some(newest) = &mut self.newest else { return Ok(false) };
        let values: [&(dyn ToSql + Sync); 1] = [&newest.transaction];
        let asked = client.query_one(ENDED, &values);
        let row = rows.answer("read", ANSWER, asked).await?;
        if row.try_get(0).map_err(|e| rows.server.failed("read", &rows.name, e))? {
            return Ok(true);
        }
        if out.clock().now().since(newest.seen) >= rows.patience {
            out.report(&format!(
                "goes on though a transaction is open for {} s: rows that it adds before those that are read now are \
                 not seen (option `wait_for_writers`)",
                rows.patience.as_secs()
            ));
            return Ok(true);
        }
        if !newest.told {
            out.report("new rows wait for a transaction that is open and may add some before them");
            newest.told = true;
        }
        Ok(false)
    }

    /// Reads rows up to the newest, at most a page. Whether there are more.
    async fn read(&mut self, client: &Client, out: &Out) -> Result<bool, Failure> {
        let rows = &self.rows;
        let (Some(statements), Some(newest)) = (&self.statements, &self.newest) else { return Ok(false) };
        let mut values = newest.place.clone();
        let statement = match &self.place {
            None => &statements.first,
            Some(place) => {
                values.extend_from_slice(place);
                &statements.next
            }
        };
        let asked = client.query_raw(statement.as_str(), values);
        let mut answer = pin!(rows.answer("read", WORK, asked).await.map_err(Failure::of)?);
        let (mut records, mut bytes, mut count) = (Vec::new(), 0, 0);
        loop {
            let next = async { answer.next().await.transpose() };
            let row = rows.answer("read", WORK, next).await.map_err(Failure::of)?;
            let place = row.as_ref().map(|row| rows.place(row, 2)).transpose()?;
            if place.is_some() && place == self.place {
                return Err(Failure::Fatal(Error::user(format!(
                    "postgres: two rows of `{}` have the same cursor ({}): name another column in option `cursor` that \
                     tells them apart, such as the primary key",
                    rows.name,
                    place.unwrap_or_default().join(", ")
                ))));
            }
            let ends = place.is_none() || count == rows.page;
            if ends || bytes >= BLOCK {
                let token = self.place.as_ref().map(serde_json::to_string).transpose();
                let token = token.map_err(|e| Error::internal("a cursor as text").because(e))?;
                out.put(&records, token.unwrap_or_default()).await?;
                self.handed.clone_from(&self.place);
                (records, bytes) = (Vec::new(), 0);
            }
            if ends {
                return Ok(place.is_some());
            }
            let Some(row) = row else { return Ok(false) };
            let failed = |e| Failure::of(rows.server.failed("read", &rows.name, e));
            let (text, length): (String, i32) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if length > rows.max_line {
                let why = format!("a row of {length} bytes, over the bound of {} (option `max_line`)", rows.max_line);
                out.refuse(why, text.as_bytes()).await?;
            } else {
                bytes += text.len();
                records.push(text.into_bytes());
            }
            self.place = place;
            count += 1;
        }
    }
}

#[async_trait]
impl Collector for Session {
    async fn session(&mut self, out: &Out) -> Result<Ended, Failure> {
        let server = Arc::clone(&self.rows.server);
        if server.let_go_if_closed().await {
            self.begin_anew();
            let place = &server.place;
            return Err(Failure::Network(format!("postgres: the connection to {place} ended between two questions")));
        }
        // A server that is silent is left as well: its handshakes and first answers may take a minute and more.
        let Some(held) = out.unless_stopped(server.client(&self.rows.name)).await else { return Ok(Ended::Stopped) };
        let mut held = held.map_err(Failure::of)?;
        let client = of(&mut held)?;
        let Some(done) = out.unless_stopped(self.round(client, out)).await else { return Ok(Ended::Stopped) };
        if done.is_err() {
            // It may be half open, and what is under way on it must not answer the next question.
            *held = None;
            self.begin_anew();
        }
        done
    }
}

#[async_trait]
impl Receiver for PostgresRows {
    fn describe(&self) -> String {
        format!("postgres {}, rows of {}", self.server.place, self.name)
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        let place = intake.resume().map(|token| serde_json::from_str::<Vec<String>>(&token).unwrap_or_default());
        if place.as_ref().is_some_and(|place| place.len() != self.cursor.len()) {
            return Err(Error::user(
                "postgres: the stream was read by another cursor before: give it the old one back, or another name, \
                 under which it begins as `start` says",
            ));
        }
        let passes = self.latest && place.is_none();
        let handed = place.clone();
        let session = Session { rows: self.clone(), statements: None, place, handed, newest: None, passes };
        run(session, &self.link, None, intake, stop).await
    }
}

#[cfg(test)]
#[path = "poll_fault_tests.rs"]
mod fault_tests;
#[cfg(test)]
#[path = "poll_tests.rs"]
mod tests;
