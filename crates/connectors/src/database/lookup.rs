//! Tables of databases that are asked by key: what both databases share.
//!
//! ```sql
//! CREATE TABLE users (id BIGINT, name TEXT) WITH (connector = 'sqlite', path = 'shop.db', table = 'users', key = 'id');
//! ```
//!
//! | Option | Meaning |
//! |---|---|
//! | `table` | the table or view to ask, `schema.table` for one that is elsewhere |
//! | `key` | columns by which it is asked, such as `id`; an index on them is wise |
//!
//! and those of the database. The declared columns are read under the declared
//! types; what does not fit is an error that names the column. Nothing is written.
//!
//! Invariant: every name in a statement is quoted, and every value is handed over
//! beside it. Called by the lookups of this folder.

use super::table::{Kind, quoted};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_cast::CastOptions;
use arrow_schema::{DataType, SchemaRef};
use std::sync::Arc;
use tidemill_core::{Error, Options, Result};

/// A table and what is read of it.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) table: String,
    pub(super) schema: SchemaRef,
    /// Names of the columns, and what they hold.
    pub(super) columns: Vec<(String, Kind)>,
    pub(super) key: Vec<(String, Kind)>,
}

/// The option `table`: a name, or one with its schema before it.
pub(super) fn table_name<'a>(options: &'a Options, purpose: &str) -> Result<&'a str> {
    let table = options.require("table", purpose)?;
    if table.is_empty() || table.split('.').count() > 2 || table.split('.').any(str::is_empty) || table.contains('\0') {
        return Err(Error::user(format!(
            "{}: option `table`: `{table}` is no table's name: take `users` or `shop.users`",
            options.owner()
        )));
    }
    Ok(table)
}

/// A table's name in a statement.
pub(super) fn named(table: &str) -> String {
    table.split('.').map(quoted).collect::<Vec<_>>().join(".")
}

impl Asked {
    /// From the option `table`, the declared columns and the names of the key's.
    pub(super) fn of(options: &Options, schema: &SchemaRef, key: &[String]) -> Result<Self> {
        let table = table_name(options, "it names the table that is asked")?;
        let owner = options.owner();
        let of = |name: &String| {
            let field = schema.field_with_name(name).map_err(|e| Error::internal("columns of a table").because(e))?;
            let kind = Kind::of(field.data_type()).ok_or_else(|| {
                Error::user(format!(
                    "{owner}: column `{name}` is {}, which no column of a database holds: take BIGINT, DOUBLE, TEXT, BOOLEAN, BYTEA, DATE or TIMESTAMP",
                    field.data_type()
                ))
            })?;
            Ok((name.clone(), kind))
        };
        let columns = schema.fields().iter().map(|field| of(field.name())).collect::<Result<_>>()?;
        let key = key.iter().map(of).collect::<Result<_>>()?;
        Ok(Self { table: table.to_string(), schema: Arc::clone(schema), columns, key })
    }

    /// The table's name in a statement.
    pub(super) fn table(&self) -> String {
        named(&self.table)
    }

    /// The key's names in a statement.
    pub(super) fn key(&self) -> String {
        self.key.iter().map(|(name, _)| quoted(name)).collect::<Vec<_>>().join(", ")
    }

    /// Rows of columns that are still as the database gave them.
    pub(super) fn rows(&self, columns: &[ArrayRef]) -> Result<RecordBatch> {
        let options = CastOptions { safe: false, ..CastOptions::default() };
        let columns =
            columns.iter().zip(&self.columns).zip(self.schema.fields()).map(|((column, (name, kind)), field)| {
                let cast = |column: &ArrayRef, ty: &DataType| {
                    arrow_cast::cast_with_options(column, ty, &options).map_err(|e| {
                        Error::user(format!("column `{name}` has a value that is no {}", field.data_type())).because(e)
                    })
                };
                // First what the database means, then what was declared.
                cast(&cast(column, &kind.arrow())?, field.data_type())
            });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let fields = self.schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
        let schema = Arc::new(arrow_schema::Schema::new(fields.collect::<Vec<_>>()));
        RecordBatch::try_new(schema, columns).map_err(|e| Error::internal("rows of a table").because(e))
    }
}
