//! Sink `postgres`: rows into a table of a PostgreSQL server, exactly once.
//!
//! | Option | Meaning |
//! |---|---|
//! | `url` | the server, user and database, without a password: `postgres://app@db.example.org/shop` |
//! | `password_env` | the environment variable that holds the password |
//! | `table` | the table; it is made with the query's columns if it is not there |
//! | `key` | columns of the key, such as `day,lang`: rows replace those of their key; without it rows are added |
//!
//! TLS is required, with certificates that the web trusts, unless the server is
//! on this machine or the URL says `sslmode`. A connection that breaks is made
//! anew at the next try: the mark in the table says whether the commit that was
//! under way has happened.
//!
//! Invariant: as [`super`] has it. No password stands in a program, a log or an error.

use super::{
    BATCHES,
    table::{Kind, Mark, Opened, Step, Table, Token, gone, is_ahead, signed, step},
};
use arrow_array::{Array, ArrayRef, RecordBatch, cast::AsArray};
use arrow_schema::{DataType, SchemaRef};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{SinkExt, stream::BoxStream};
use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tidemill_core::{BatchId, Claim, Error, Guarantee, Options, Result, Sink, StagedPart, Timestamp};
use tokio::sync::{Mutex, MutexGuard};
use tokio_postgres::{
    Client, Config, Transaction,
    config::{Host, SslMode},
};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// The advisory lock under which tables are made.
const CREATING: i64 = 0x7469_6465;
/// Bytes of text that are sent together.
const PIECE: usize = 64 << 10;

/// A server, and the connection to it.
pub(super) struct Server {
    config: Config,
    /// For people, without anything secret.
    pub(super) place: String,
    client: Mutex<Option<Client>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("place", &self.place).finish_non_exhaustive()
    }
}

/// A table of a PostgreSQL server.
pub struct PostgresSink {
    server: Server,
    table: Table,
    opened: OnceLock<Opened>,
}

impl fmt::Debug for PostgresSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSink")
            .field("place", &self.server.place)
            .field("table", &self.table.name)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// From the options `url` and `password_env`.
    pub(super) fn from_options(options: &Options) -> Result<Self> {
        let url = options.require("url", "it names the server: postgres://user@host/database")?;
        let owner = options.owner();
        let mut config: Config = url.parse().map_err(|_| {
            // The error of the parser might quote what is secret.
            Error::user(format!("{owner}: option `url` must be like postgres://user@host:5432/database"))
        })?;
        if config.get_password().is_some() {
            return Err(Error::user(format!(
                "{owner}: a password must not stand in a program: leave it out of `url`, and name the environment variable that holds it in option `password_env`"
            )));
        }
        if let Some(name) = options.get("password_env") {
            let password = std::env::var(name).map_err(|_| {
                Error::user(format!("{owner}: the environment variable `{name}` of option `password_env` is not set"))
            })?;
            config.password(password);
        }
        if !url.contains("sslmode") {
            let here = |host: &Host| match host {
                Host::Tcp(name) => matches!(name.as_str(), "localhost" | "127.0.0.1" | "::1"),
                Host::Unix(_) => true,
            };
            let mode = if config.get_hosts().iter().all(here) { SslMode::Disable } else { SslMode::Require };
            config.ssl_mode(mode);
        }
        config.connect_timeout(CONNECT).application_name("tidemill");
        let hosts: Vec<String> = config
            .get_hosts()
            .iter()
            .map(|host| match host {
                Host::Tcp(name) => name.clone(),
                Host::Unix(path) => path.display().to_string(),
            })
            .collect();
        let place = format!("{}/{}", hosts.join(","), config.get_dbname().unwrap_or_default());
        Ok(Self { config, place, client: Mutex::default() })
    }

    /// The hosts with their ports and the database, named in one way.
    fn real_place(&self) -> String {
        let ports = self.config.get_ports();
        let host = |(at, host): (usize, &Host)| {
            let name = match host {
                Host::Tcp(name) if matches!(name.as_str(), "127.0.0.1" | "::1") => "localhost".to_string(),
                Host::Tcp(name) => name.to_lowercase(),
                Host::Unix(path) => path.display().to_string(),
            };
            format!("{name}:{}", ports.get(at).or(ports.first()).copied().unwrap_or(5432))
        };
        let hosts: Vec<String> = self.config.get_hosts().iter().enumerate().map(host).collect();
        // A user's own database is the default.
        let base = self.config.get_dbname().or(self.config.get_user()).unwrap_or_default();
        format!("{}/{base}", hosts.join(","))
    }

    pub(super) fn failed(&self, what: &str, table: &str, error: tokio_postgres::Error) -> Error {
        let text = format!("postgres: can't {what} table `{table}` at {}", self.place);
        // Connections, resources, operators' actions and conflicts pass; the rest is for a human.
        let passes = error
            .code()
            .is_none_or(|code| ["08", "53", "57", "40", "55", "58"].iter().any(|class| code.code().starts_with(class)));
        if passes { Error::external(text).because(error) } else { Error::user(text).because(error) }
    }

    /// The connection, made anew when it is gone.
    pub(super) async fn client(&self, table: &str) -> Result<MutexGuard<'_, Option<Client>>> {
        let mut client = self.client.lock().await;
        if client.as_ref().is_none_or(Client::is_closed) {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.into() };
            let tls = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|e| Error::internal("postgres: TLS").because(e))?
                .with_root_certificates(roots)
                .with_no_client_auth();
            let connected = self.config.connect(MakeRustlsConnect::new(tls)).await;
            let (connected, connection) = connected.map_err(|e| self.failed("connect for", table, e))?;
            // It ends with the client, or says to the client's next call that it broke.
            tokio::spawn(async move { drop(connection.await) });
            *client = Some(connected);
        }
        Ok(client)
    }
}

impl PostgresSink {
    /// From a sink's options.
    ///
    /// # Errors
    /// When one is missing or wrong, or the password stands in the URL.
    pub fn from_options(options: &Options) -> Result<Self> {
        let (server, table) = (Server::from_options(options)?, Table::from_options(options)?);
        Ok(Self { server, table, opened: OnceLock::new() })
    }

    fn opened(&self) -> Result<&Opened> {
        self.opened.get().ok_or_else(|| Error::internal("a PostgreSQL sink is used before it was opened"))
    }

    fn failed(&self, what: &str, error: tokio_postgres::Error) -> Error {
        self.server.failed(what, &self.table.name, error)
    }

    async fn client(&self) -> Result<MutexGuard<'_, Option<Client>>> {
        self.server.client(&self.table.name).await
    }
}

pub(super) fn of(client: &mut Option<Client>) -> Result<&mut Client> {
    client.as_mut().ok_or_else(|| Error::internal("postgres: no connection"))
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
        let mut client = self.client().await?;
        let client = of(&mut client)?;
        let failed = |e| self.failed("open", e);
        let [table, rows, marks] = opened.create(declared);
        // One at a time: of two that make the same table, one would fail. The lock goes with the transaction.
        let alone = format!("SELECT pg_advisory_xact_lock({CREATING})");
        client.batch_execute(&format!("{alone}; {table}; {marks}")).await.map_err(failed)?;
        let staged = self.table.staged();
        let columns = format!("SELECT {} FROM {staged} LIMIT 0", opened.staged_columns());
        if client.prepare(&columns).await.is_err() {
            // There is none, or the columns have changed. Rows of a commit to be repeated would have the old ones.
            client.batch_execute(&format!("DROP TABLE IF EXISTS {staged}; {rows}")).await.map_err(failed)?;
        }
        // A table of others that lacks a column or the key says so here.
        client.prepare(&opened.show("$1", true)).await.map(drop).map_err(failed)?;
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
        let (opened, staged) = (self.opened()?, self.table.staged());
        let (number, part_number) = (signed(batch.0)?, signed(part as u64)?);
        let failed = |e| self.failed("stage rows for", e);
        let mut client = self.client().await?;
        let transaction = of(&mut client)?.transaction().await.map_err(failed)?;
        let delete = format!("DELETE FROM {staged} WHERE _tm_batch = $1 AND _tm_part = $2");
        transaction.execute(&delete, &[&number, &part_number]).await.map_err(failed)?;
        let copy = format!("COPY {staged} ({}) FROM STDIN", opened.staged_columns());
        let copy = transaction.copy_in::<_, Bytes>(&copy).await.map_err(failed)?;
        futures::pin_mut!(copy);
        let (mut text, mut row_number) = (Vec::with_capacity(2 * PIECE), 0_u64);
        for rows in &all {
            let columns: Vec<ArrayRef> = opened
                .columns
                .iter()
                .zip(rows.columns())
                .map(|(column, values)| converted(values, column.kind))
                .collect::<Result<_>>()?;
            for row in 0..rows.num_rows() {
                text.extend_from_slice(format!("{number}\t{part_number}\t{row_number}").as_bytes());
                for column in &columns {
                    text.push(b'\t');
                    write_value(column, row, &mut text);
                }
                text.push(b'\n');
                row_number += 1;
                if text.len() >= PIECE {
                    copy.send(Bytes::from(std::mem::take(&mut text))).await.map_err(failed)?;
                }
            }
        }
        copy.send(Bytes::from(text)).await.map_err(failed)?;
        copy.finish().await.map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        Ok(Some(Token::staged(part, time)))
    }

    async fn commit(&self, batch: BatchId, parts: &[StagedPart]) -> Result<()> {
        let tokens = parts.iter().map(Token::parse).collect::<Result<Vec<_>>>()?;
        let Some(first) = tokens.first() else { return Ok(()) };
        let (opened, staged, number) = (self.opened()?, self.table.staged(), signed(batch.0)?);
        let failed = |e| self.failed("commit to", e);
        let mut client = self.client().await?;
        let transaction = of(&mut client)?.transaction().await.map_err(failed)?;
        if step(mark(&transaction, &self.table).await.map_err(failed)?, number, first.time) != Step::Apply {
            return Ok(());
        }
        for token in &tokens {
            let query = format!("SELECT EXISTS (SELECT 1 FROM {staged} WHERE _tm_batch = $1 AND _tm_part = $2)");
            let found = transaction.query_one(&query, &[&number, &signed(token.part)?]).await.map_err(failed)?;
            if !found.try_get::<_, bool>(0).map_err(failed)? {
                return Err(gone(&self.table, batch));
            }
        }
        transaction.execute(&opened.show("$1", true), &[&number]).await.map_err(failed)?;
        transaction
            .execute(&format!("DELETE FROM {staged} WHERE _tm_batch <= $1"), &[&number])
            .await
            .map_err(failed)?;
        let note = format!(
            "INSERT INTO {BATCHES} (sink, batch, time) VALUES ($1, $2, $3) ON CONFLICT (sink) DO UPDATE SET batch = excluded.batch, time = excluded.time"
        );
        transaction.execute(&note, &[&self.table.name, &number, &first.time.0]).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)
    }

    async fn recover(&self, last_committed: Option<BatchId>) -> Result<()> {
        let failed = |e| self.failed("recover", e);
        let mut client = self.client().await?;
        let transaction = of(&mut client)?.transaction().await.map_err(failed)?;
        let mark = mark(&transaction, &self.table).await.map_err(failed)?;
        if is_ahead(&self.table, mark, last_committed)? {
            let forget = format!("DELETE FROM {BATCHES} WHERE sink = $1");
            transaction.execute(&forget, &[&self.table.name]).await.map_err(failed)?;
        }
        // The last commit was repeated, so all that is left belongs to no commit.
        transaction.execute(&format!("DELETE FROM {}", self.table.staged()), &[]).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)
    }
}
