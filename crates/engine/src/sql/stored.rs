//! Tables in files: how they are declared, and read into memory. Called by
//! [`super::catalog`] once, and by [`super::reload`] again.

use super::mistakes::of_df;
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::prelude::{CsvReadOptions, JsonReadOptions, ParquetReadOptions, SessionContext};
use std::sync::Arc;
use tidemill_core::{Duration, Error, Options, Result, nearest};

/// How a table is stored.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) format: String,
    pub(super) path: String,
    pub(super) header: bool,
    pub(super) columns: Option<SchemaRef>,
}

/// How a table is stored, and how often it is read again. `asked`: names of tables that are asked by key instead.
pub(super) fn stored(
    name: &str,
    columns: Option<SchemaRef>,
    options: &[(String, String)],
    asked: impl Iterator<Item = &'static str>,
) -> Result<(Stored, Option<Duration>)> {
    let options = Options::new(format!("table \"{name}\""), options.iter().cloned());
    let format =
        options.require("connector", "it says how the table is stored: 'csv', 'parquet' or 'json'")?.to_lowercase();
    let formats = ["csv", "parquet", "json"];
    if !formats.contains(&format.as_str()) {
        let known: Vec<&str> = formats.into_iter().chain(asked).collect();
        let hint = nearest(&format, &known)
            .map_or_else(|| format!("known are {}", known.join(", ")), |n| format!("did you mean `{n}`?"));
        return Err(Error::user(format!("table \"{name}\": a table can't be stored as `{format}`; {hint}")));
    }
    let path = options.require("path", "it says where the table's file or directory is")?.to_string();
    let header = options.parse("header", true)?;
    let reload = match options.get("reload") {
        Some(_) => Some(options.duration("reload", Duration::ZERO)?),
        None => None,
    };
    options.finish()?;
    if path.contains("://") {
        return Err(Error::user(format!(
            "table \"{name}\": `{path}` is not a local path; tables are read from local files"
        )));
    }
    // An empty listing would be an empty table: a slip in the path must not be.
    if !std::path::Path::new(&path).exists() {
        return Err(Error::user(format!("table \"{name}\": there is no file or directory `{path}`")));
    }
    Ok((Stored { name: name.to_string(), format, path, header, columns }, reload))
}

/// Reads a table into memory.
pub(super) async fn read_rows(session: &SessionContext, stored: &Stored) -> Result<(SchemaRef, Vec<RecordBatch>)> {
    let Stored { name, format, path, header, columns } = stored;
    let fail = |e| Error::user(format!("table \"{name}\": can't read {format} from `{path}`")).because(of_df(e));
    let frame = match format.as_str() {
        "csv" => {
            let mut read = CsvReadOptions::new().has_header(*header).file_extension("");
            read.schema = columns.as_deref();
            session.read_csv(path, read).await
        }
        "parquet" => {
            let read = ParquetReadOptions { file_extension: "", ..ParquetReadOptions::default() };
            session.read_parquet(path, read).await
        }
        _ => {
            let read = JsonReadOptions { file_extension: "", schema: columns.as_deref(), ..JsonReadOptions::default() };
            session.read_json(path, read).await
        }
    };
    let frame = frame.map_err(fail)?;
    let schema = Arc::clone(frame.schema().inner());
    let rows = frame.collect().await.map_err(fail)?;
    Ok((schema, rows))
}
