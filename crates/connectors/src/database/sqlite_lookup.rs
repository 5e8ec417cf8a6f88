//! Table `sqlite`: rows of a SQLite file by their key.
//!
//! | Option | Meaning |
//! |---|---|
//! | `path` | the database file, which is opened for reading only |
//!
//! and those of [`super::lookup`]. Times are read as the sink `sqlite` writes them.
//! Keys are asked for in one transaction, so that all answers are of one moment.
//!
//! Invariant: a file that is not there or busy is waited for; a table without the
//! declared columns, or with values of other types, is the user's to mend.

use super::{
    lookup::Asked,
    sqlite::{BUSY, Bound, Failed, converted, value},
    table::{Kind, quoted},
};
use arrow_array::{
    Array, ArrayRef, RecordBatch,
    builder::{BinaryBuilder, Float64Builder, Int64Builder, StringBuilder},
};
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use rusqlite::{Connection, OpenFlags, config::DbConfig, types::ValueRef};
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};
use tidemill_core::{Error, Lookup, Options, Result};

/// Keys in one statement.
const KEYS: usize = 500;

/// A table of a SQLite file.
#[derive(Debug)]
pub struct SqliteLookup(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    asked: Asked,
    /// Opened by the first question.
    connection: Mutex<Option<Connection>>,
}

impl SqliteLookup {
    /// From a table's options, its columns and the names of the key's.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub fn from_options(options: &Options, columns: &SchemaRef, key: &[String]) -> Result<Self> {
        let path = options.require("path", "it names the database file")?.into();
        Ok(Self(Arc::new(Inner { path, asked: Asked::of(options, columns, key)?, connection: Mutex::default() })))
    }
}

#[async_trait]
impl Lookup for SqliteLookup {
    fn describe(&self) -> String {
        format!("sqlite {}, table {}", self.0.path.display(), self.0.asked.table)
    }

    async fn rows(&self, keys: &RecordBatch) -> Result<Vec<RecordBatch>> {
        let (inner, keys) = (Arc::clone(&self.0), keys.clone());
        let done = tokio::task::spawn_blocking(move || {
            let mut connection = inner.connection.lock().unwrap_or_else(PoisonError::into_inner);
            let rows = ask(&inner, &mut connection, &keys);
            if rows.is_err() {
                // The file may have been put in place of another one.
                *connection = None;
            }
            rows.map_err(|failed| failed.told("ask", &inner.path, &inner.asked.table))
        });
        done.await.map_err(|e| Error::internal("a SQLite table panicked").because(e))?
    }
}

/// The rows of these keys.
fn ask(inner: &Inner, held: &mut Option<Connection>, keys: &RecordBatch) -> Result<Vec<RecordBatch>, Failed> {
    let asked = &inner.asked;
    let connection = match held {
        Some(connection) => connection,
        None => {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(&inner.path, flags)?;
            connection.busy_timeout(BUSY)?;
            // A name in quotes that is no column would be taken for a text.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
            held.insert(connection)
        }
    };
    let transaction = connection.transaction()?;
    let columns = keys.columns().iter().zip(&asked.key).map(|(column, (_, kind))| converted(column, *kind));
    let columns = columns.collect::<Result<Vec<ArrayRef>>>()?;
    let mut growing: Vec<Growing> = asked.columns.iter().map(|(_, kind)| Growing::new(*kind)).collect();
    for from in (0..keys.num_rows()).step_by(KEYS) {
        let count = KEYS.min(keys.num_rows() - from);
        let mut statement = transaction.prepare(&statement(asked, count))?;
        let values = (from..from + count).flat_map(|row| columns.iter().map(move |column| Bound(value(column, row))));
        let mut rows = statement.query(rusqlite::params_from_iter(values))?;
        while let Some(row) = rows.next()? {
            for (at, (growing, (name, _))) in growing.iter_mut().zip(&asked.columns).enumerate() {
                growing.push(name, row.get_ref(at)?)?;
            }
        }
    }
    transaction.commit()?;
    Ok(vec![asked.rows(&growing.into_iter().map(Growing::finish).collect::<Vec<_>>())?])
}

/// The statement for so many keys.
fn statement(asked: &Asked, keys: usize) -> String {
    let columns: Vec<String> = asked.columns.iter().map(|(name, _)| quoted(name)).collect();
    let one = vec!["?"; asked.key.len()].join(", ");
    let (names, one) =
        if asked.key.len() == 1 { (asked.key(), one) } else { (format!("({})", asked.key()), format!("({one})")) };
    let many = vec![one; keys].join(", ");
    let many = if asked.key.len() == 1 { many } else { format!("VALUES {many}") };
    format!("SELECT {} FROM {} WHERE {names} IN ({many})", columns.join(", "), asked.table())
}

/// A column that grows, as SQLite stores what it holds.
enum Growing {
    Integer(Int64Builder),
    Real(Float64Builder),
    Text(StringBuilder),
    Bytes(BinaryBuilder),
}

impl Growing {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Integer | Kind::Bool => Self::Integer(Int64Builder::new()),
            Kind::Real => Self::Real(Float64Builder::new()),
            Kind::Bytes => Self::Bytes(BinaryBuilder::new()),
            Kind::Text | Kind::Instant | Kind::LocalTime | Kind::Date => Self::Text(StringBuilder::new()),
        }
    }

    fn push(&mut self, name: &str, value: ValueRef<'_>) -> Result<()> {
        match (self, value) {
            (Self::Integer(column), ValueRef::Null) => column.append_null(),
            (Self::Real(column), ValueRef::Null) => column.append_null(),
            (Self::Text(column), ValueRef::Null) => column.append_null(),
            (Self::Bytes(column), ValueRef::Null) => column.append_null(),
            (Self::Integer(column), ValueRef::Integer(n)) => column.append_value(n),
            (Self::Real(column), ValueRef::Real(x)) => column.append_value(x),
            #[expect(clippy::cast_precision_loss, reason = "SQLite stores 2.0 in a column without a type as 2")]
            (Self::Real(column), ValueRef::Integer(n)) => column.append_value(n as f64),
            (Self::Text(column), ValueRef::Text(text)) => column.append_value(String::from_utf8_lossy(text)),
            (Self::Bytes(column), ValueRef::Blob(bytes) | ValueRef::Text(bytes)) => column.append_value(bytes),
            (_, value) => {
                return Err(Error::user(format!(
                    "column `{name}` has a value of type {}, which does not fit the type in CREATE TABLE",
                    value.data_type()
                )));
            }
        }
        Ok(())
    }

    fn finish(self) -> ArrayRef {
        match self {
            Self::Integer(mut column) => Arc::new(column.finish()) as Arc<dyn Array>,
            Self::Real(mut column) => Arc::new(column.finish()),
            Self::Text(mut column) => Arc::new(column.finish()),
            Self::Bytes(mut column) => Arc::new(column.finish()),
        }
    }
}
