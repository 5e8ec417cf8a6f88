//! Table `postgres`: rows of a table of a PostgreSQL server by their key.
//!
//! The options are `url` and `password_env`, as the sink `postgres` has them, and
//! those of [`super::lookup`]. One statement asks for all keys, as arrays of text
//! that the server casts to the types of its columns, so that their index serves.
//! A question without an answer for half a minute is given up and asked again. A key
//! with U+0000 is not asked for: no text of PostgreSQL holds it, so it has no rows.
//!
//! Invariant: a connection that broke is made anew by the next question.

use super::{
    lookup::Asked,
    postgres::converted,
    postgres_server::{Server, of, settled},
    table::{Kind, quoted},
};
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, cast::AsArray,
};
use arrow_cast::cast;
use arrow_schema::{DataType, SchemaRef, TimeUnit};
use async_trait::async_trait;
use std::{sync::Arc, time::Duration};
use tidemill_core::{Error, Lookup, Options, Result};
use tokio::sync::OnceCell;
use tokio_postgres::{Client, Row, types::ToSql};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(30);

/// A table of a PostgreSQL server.
#[derive(Debug)]
pub struct PostgresLookup {
    server: Server,
    asked: Asked,
    /// The statement, once the types of the key's columns are known.
    statement: OnceCell<String>,
}

impl PostgresLookup {
    /// From a table's options, its columns and the names of the key's.
    ///
    /// # Errors
    /// When one is missing or wrong, or the password stands in the URL.
    pub fn from_options(options: &Options, columns: &SchemaRef, key: &[String]) -> Result<Self> {
        let (server, asked) = (Server::from_options(options)?, Asked::of(options, columns, key)?);
        if let Some((name, _)) = asked.key.iter().find(|(_, kind)| *kind == Kind::Bytes) {
            let text = format!("{}: option `key`: `{name}` holds bytes, which can't be asked for", options.owner());
            return Err(Error::user(text));
        }
        Ok(Self { server, asked, statement: OnceCell::new() })
    }

    /// The statement that asks; the types are those that the server's columns have.
    async fn statement(&self, client: &Client) -> Result<String, tokio_postgres::Error> {
        let (table, key) = (self.asked.table(), self.asked.key());
        let like = client.prepare(&format!("SELECT {key} FROM {table} LIMIT 0")).await?;
        let numbers = 1..=self.asked.key.len();
        let names: Vec<String> = numbers.clone().map(|n| format!("k{n}")).collect();
        let arrays: Vec<String> = numbers.map(|n| format!("${n}::text[]")).collect();
        let cast =
            |(name, column): (&String, &tokio_postgres::Column)| format!("{name}::{}", quoted(column.type_().name()));
        let keys: Vec<String> = names.iter().zip(like.columns()).map(cast).collect();
        let columns: Vec<String> = self.asked.columns.iter().map(|(name, kind)| read(&quoted(name), *kind)).collect();
        Ok(format!(
            "SELECT {} FROM {table} WHERE ({key}) IN (SELECT {} FROM unnest({}) AS k ({}))",
            columns.join(", "),
            keys.join(", "),
            arrays.join(", "),
            names.join(", ")
        ))
    }

    async fn ask(&self, client: &Client, keys: &[ArrayRef]) -> Result<Vec<Row>, tokio_postgres::Error> {
        let statement = self.statement.get_or_try_init(|| self.statement(client)).await?;
        let mut is_asked = vec![true; keys.first().map_or(0, |key| key.len())];
        for key in keys {
            for (is_asked, text) in is_asked.iter_mut().zip(key.as_string::<i32>()) {
                *is_asked &= !text.is_some_and(|text| text.contains('\0'));
            }
        }
        let keys: Vec<Vec<Option<&str>>> = keys
            .iter()
            .map(|key| {
                let texts = key.as_string::<i32>().iter().zip(&is_asked);
                texts.filter_map(|(text, is_asked)| is_asked.then_some(text)).collect()
            })
            .collect();
        let keys: Vec<&(dyn ToSql + Sync)> = keys.iter().map(|key| key as _).collect();
        client.query(statement.as_str(), &keys).await
    }
}

/// A column in a form that is read without knowing the server's types.
fn read(name: &str, kind: Kind) -> String {
    match kind {
        Kind::Integer => format!("{name}::int8"),
        Kind::Real => format!("{name}::float8"),
        Kind::Text => format!("{name}::text"),
        Kind::Bytes => format!("{name}::bytea"),
        Kind::Bool => format!("{name}::bool"),
        Kind::Instant => format!("(extract(epoch FROM {name}::timestamptz) * 1000000)::int8"),
        Kind::LocalTime => format!("(extract(epoch FROM {name}::timestamp) * 1000000)::int8"),
        Kind::Date => format!("({name}::date - DATE '1970-01-01')::int8"),
    }
}

/// Column `at` of rows.
fn column(rows: &[Row], at: usize, kind: Kind) -> Result<ArrayRef, tokio_postgres::Error> {
    macro_rules! all {
        ($array:ty, $value:ty) => {
            Arc::new(<$array>::from(
                rows.iter().map(|row| row.try_get::<_, Option<$value>>(at)).collect::<Result<Vec<_>, _>>()?,
            ))
        };
    }
    Ok(match kind {
        Kind::Integer | Kind::Instant | Kind::LocalTime | Kind::Date => all!(Int64Array, i64),
        Kind::Real => all!(Float64Array, f64),
        Kind::Text => all!(StringArray, &str),
        Kind::Bytes => all!(BinaryArray, &[u8]),
        Kind::Bool => all!(BooleanArray, bool),
    })
}

#[async_trait]
impl Lookup for PostgresLookup {
    fn describe(&self) -> String {
        format!("postgres {}, table {}", self.server.place, self.asked.table)
    }

    async fn rows(&self, keys: &RecordBatch) -> Result<Vec<RecordBatch>> {
        let keys = keys.columns().iter().zip(&self.asked.key).map(|(key, (_, kind))| converted(key, *kind));
        let keys = keys.collect::<Result<Vec<ArrayRef>>>()?;
        let table = &self.asked.table;
        let mut held = self.server.client(table).await?;
        let answer = self.server.within(("ask", table), ANSWER, self.ask(of(&mut held)?, &keys)).await;
        let answer = answer.and_then(|answer| answer.map_err(|e| self.server.failed("ask", table, e)));
        let rows = settled(&mut held, answer)?;
        drop(held);
        let columns = self.asked.columns.iter().enumerate().map(|(at, (_, kind))| {
            let column = column(&rows, at, *kind).map_err(|e| self.server.failed("read", table, e))?;
            let days = DataType::Int32;
            let times = DataType::Timestamp(TimeUnit::Microsecond, None);
            let of =
                |column: &ArrayRef, ty| cast(column, ty).map_err(|e| Error::internal("times of a table").because(e));
            match kind {
                Kind::Date => of(&column, &days),
                Kind::LocalTime => of(&column, &times),
                Kind::Instant => of(&column, &kind.arrow()),
                _ => Ok(column),
            }
        });
        Ok(vec![self.asked.rows(&columns.collect::<Result<Vec<_>>>()?)?])
    }
}
