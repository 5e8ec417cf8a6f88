//! What both databases share: the table, its columns, the SQL, the marks.
//!
//! Invariant: every name in a statement is quoted, and every value is handed
//! over beside it. Called by the sinks of this folder.

use super::{BATCHES, staged::PLACE};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Schema, TimeUnit};
use tidemill_core::{BatchId, Error, Options, Result, StagedPart, Timestamp};

/// What a column holds, as far as a database is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Integer,
    Real,
    Text,
    Bytes,
    Bool,
    /// With its zone, in microseconds.
    Instant,
    /// Without a zone.
    LocalTime,
    Date,
}

impl Kind {
    pub(super) fn of(ty: &DataType) -> Option<Self> {
        Some(match ty {
            DataType::UInt64 => return None,
            ty if ty.is_integer() => Self::Integer,
            ty if ty.is_floating() => Self::Real,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Self::Text,
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Self::Bytes,
            DataType::Boolean => Self::Bool,
            DataType::Timestamp(_, Some(_)) => Self::Instant,
            DataType::Timestamp(_, None) => Self::LocalTime,
            DataType::Date32 | DataType::Date64 => Self::Date,
            _ => return None,
        })
    }

    /// The Arrow type that values are brought to.
    pub(super) fn arrow(self) -> DataType {
        match self {
            Self::Integer => DataType::Int64,
            Self::Real => DataType::Float64,
            Self::Text => DataType::Utf8,
            Self::Bytes => DataType::Binary,
            Self::Bool => DataType::Boolean,
            Self::Instant => DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
            Self::LocalTime => DataType::Timestamp(TimeUnit::Microsecond, None),
            Self::Date => DataType::Date32,
        }
    }
}

/// A column of the table.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) nullable: bool,
}

/// The table and its key, as the options name them.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) key: Vec<String>,
}

/// The table with the columns of the rows to come.
#[derive(Debug, Clone)]
pub(super) struct Opened {
    pub(super) table: Table,
    pub(super) columns: Vec<Column>,
    /// The table of staged rows, as it stands in a statement.
    pub(super) staged: String,
}

impl Table {
    /// From the options `table` and `key`.
    pub(super) fn from_options(options: &Options) -> Result<Self> {
        let name = options.require("table", "it names the table to write to; it is made if it is not there")?;
        let fine = (1..=40).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && !name.to_lowercase().starts_with("tidemill_");
        if !fine {
            return Err(Error::user(format!(
                "{}: option `table`: `{name}` can't be a table's name here: take 1 to 40 of A-Z a-z 0-9 _, not beginning with tidemill_",
                options.owner()
            )));
        }
        let key = options.get("key").unwrap_or_default().split(',').map(str::trim).filter(|k| !k.is_empty());
        Ok(Self { name: name.to_string(), key: key.map(str::to_string).collect() })
    }

    /// For people: how rows go in.
    pub(super) fn how(&self) -> String {
        if self.key.is_empty() {
            format!("table {}, added to", self.name)
        } else {
            format!("table {}, upsert by {}", self.name, self.key.join(", "))
        }
    }

    /// What becomes of its rows when the program is rewound.
    pub(super) fn stays(&self) -> String {
        if self.key.is_empty() {
            "its rows stay, and what is computed anew is added to them: before the start, delete those rows, or name \
             another table and go back to 0"
                .to_string()
        } else {
            "its rows stay: those whose keys come again are replaced, the others are left".to_string()
        }
    }

    /// With columns of rows.
    pub(super) fn with(&self, schema: &Schema) -> Result<Opened> {
        let mut columns = Vec::new();
        for field in schema.fields() {
            let name = field.name();
            let Some(kind) = Kind::of(field.data_type()) else {
                return Err(Error::user(format!(
                    "table `{}`: column `{name}` is {}, which no column of a database holds: CAST it to BIGINT, DOUBLE, TEXT or TIMESTAMP",
                    self.name,
                    field.data_type()
                )));
            };
            if name.is_empty() || name.contains('\0') || name.starts_with("_tm_") {
                return Err(Error::user(format!("table `{}`: a column can't be called `{name}` there", self.name)));
            }
            let nullable = field.is_nullable() && !self.key.contains(name);
            columns.push(Column { name: name.clone(), kind, nullable });
        }
        if let Some(missing) = self.key.iter().find(|key| columns.iter().all(|column| column.name != **key)) {
            let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
            return Err(Error::user(format!(
                "table `{}`: option `key`: the rows have no column `{missing}`; there are {}",
                self.name,
                names.join(", ")
            )));
        }
        Ok(Opened { table: self.clone(), columns, staged: quoted(&self.staged()) })
    }
}

impl Opened {
    /// The columns of rows as the database takes them, each by `convert`.
    pub(super) fn converted(
        &self,
        rows: &RecordBatch,
        convert: impl Fn(&ArrayRef, Kind) -> Result<ArrayRef>,
    ) -> Result<Vec<ArrayRef>> {
        self.columns.iter().zip(rows.columns()).map(|(column, values)| convert(values, column.kind)).collect()
    }

    fn names(&self) -> String {
        self.columns.iter().map(|column| quoted(&column.name)).collect::<Vec<_>>().join(", ")
    }

    fn declared(&self, ty: impl Fn(Kind) -> &'static str) -> String {
        let column =
            |c: &Column| format!("{} {}{}", quoted(&c.name), ty(c.kind), if c.nullable { "" } else { " NOT NULL" });
        self.columns.iter().map(column).collect::<Vec<_>>().join(", ")
    }

    fn keys(&self) -> String {
        self.table.key.iter().map(|key| quoted(key)).collect::<Vec<_>>().join(", ")
    }

    /// Statements that make what is not there: the table, that of staged rows, that of marks.
    pub(super) fn create(&self, ty: impl Fn(Kind) -> &'static str) -> [String; 3] {
        let key = if self.table.key.is_empty() { String::new() } else { format!(", PRIMARY KEY ({})", self.keys()) };
        [
            format!("CREATE TABLE IF NOT EXISTS {} ({}{key})", quoted(&self.table.name), self.declared(&ty)),
            format!(
                "CREATE TABLE {} ({}, {})",
                self.staged,
                PLACE.map(|name| format!("{name} {} NOT NULL", ty(Kind::Integer))).join(", "),
                self.declared(&ty)
            ),
            format!(
                "CREATE TABLE IF NOT EXISTS {BATCHES} (sink VARCHAR(60) PRIMARY KEY, batch BIGINT NOT NULL, time BIGINT NOT NULL)"
            ),
        ]
    }

    /// Names of the columns of staged rows, in their order.
    pub(super) fn staged_columns(&self) -> String {
        format!("{}, {}", PLACE.join(", "), self.names())
    }

    /// The end of an upsert; nothing without a key.
    fn conflict(&self) -> String {
        if self.table.key.is_empty() {
            return String::new();
        }
        let others: Vec<String> = self
            .columns
            .iter()
            .filter(|column| !self.table.key.contains(&column.name))
            .map(|column| format!("{0} = excluded.{0}", quoted(&column.name)))
            .collect();
        let then = if others.is_empty() { "NOTHING".to_string() } else { format!("UPDATE SET {}", others.join(", ")) };
        format!(" ON CONFLICT ({}) DO {then}", self.keys())
    }

    /// The statement that moves the rows of batch `bind`; of several rows of a
    /// key the last is taken where `distinct`, or all in their order.
    pub(super) fn show(&self, bind: &str, distinct: bool) -> String {
        let (table, staged, names) = (quoted(&self.table.name), &self.staged, self.names());
        let rows = if distinct && !self.table.key.is_empty() {
            format!(
                "SELECT DISTINCT ON ({0}) {names} FROM {staged} WHERE _tm_batch = {bind} ORDER BY {0}, _tm_part DESC, _tm_row DESC",
                self.keys()
            )
        } else {
            format!("SELECT {names} FROM {staged} WHERE _tm_batch = {bind} ORDER BY _tm_part, _tm_row")
        };
        format!("INSERT INTO {table} ({names}) {rows}{}", self.conflict())
    }
}

/// A name in a statement.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A number as databases count.
pub(super) fn signed(number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| Error::internal("a batch's number exceeds what a database counts"))
}

/// What `stage` leaves: the part and the batch's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) part: u64,
    pub(super) time: Timestamp,
}

impl Token {
    pub(super) fn staged(part: usize, time: Timestamp) -> StagedPart {
        StagedPart(format!("{part} {}", time.0))
    }

    pub(super) fn parse(StagedPart(token): &StagedPart) -> Result<Self> {
        let read = token
            .split_once(' ')
            .and_then(|(part, time)| Some(Self { part: part.parse().ok()?, time: Timestamp(time.parse().ok()?) }));
        read.ok_or_else(|| Error::internal(format!("`{token}` is no staged part of a table")))
    }
}

/// The last batch in a table. Batch 0 is none: there is only the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) batch: i64,
    /// The batch's time, or [`ANY`].
    pub(super) time: i64,
}

/// The time of a mark that was set back: what it says is in the table, whatever its time was.
pub(super) const ANY: i64 = i64::MIN;

/// What a commit has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The batch is in the table.
    Done,
    /// The table is ahead: `recover` decides.
    Ahead,
    Apply,
}

/// Compares a batch with what the table has.
pub(super) fn step(mark: Option<Mark>, batch: i64, time: Timestamp) -> Step {
    match mark.filter(|mark| mark.batch > 0) {
        Some(mark) if mark.batch == batch && (mark.time == time.0 || mark.time == ANY) => Step::Done,
        Some(mark) if mark.batch > batch => Step::Ahead,
        _ => Step::Apply,
    }
}

/// The batch that the mark must be set back to, at any time, when a program starts after `last`. The mark must not
/// just go: the next start repeats the last commit, whose rows are not staged any more.
///
/// # Errors
/// When the table is ahead of the program and can't be written again.
pub(super) fn set_back(table: &Table, mark: Option<Mark>, last: Option<BatchId>) -> Result<Option<i64>> {
    let Some(mark) = mark else { return Ok(None) };
    let last_batch = last.map_or(Ok(0), |last| signed(last.0))?;
    if mark.batch <= last_batch {
        return Ok(None);
    }
    let stands = match last {
        Some(last) => format!("the program is at batch {last}: were its data restored from a backup?"),
        None => "the program has committed none: are its data new?".to_string(),
    };
    if table.key.is_empty() {
        return Err(Error::user(format!(
            "table `{0}` has rows up to batch {1}, and {stands} Its rows would be added a second time. Remove what those batches added, or keep it, and say so with: UPDATE {BATCHES} SET batch = {last_batch}, time = {ANY} WHERE sink = '{0}'",
            table.name, mark.batch
        )));
    }
    tracing::warn!(
        table = table.name,
        batch = mark.batch,
        "the table is ahead: {stands} Rows are written again by their key"
    );
    Ok(Some(last_batch))
}

/// What a commit of rows that were set aside does to its table, for an error.
pub(super) fn commit_before(from: &Opened) -> String {
    let names: Vec<&str> = from.columns.iter().map(|column| column.name.as_str()).collect();
    format!(
        "commit rows of before, whose columns were {} (the table must have these until they are in), to",
        names.join(", ")
    )
}

/// The error of a commit whose rows are gone.
pub(super) fn gone(table: &Table, batch: BatchId) -> Error {
    Error::user(format!(
        "rows of committed batch {batch} are neither staged nor in table `{}`: were they removed by someone else?",
        table.name
    ))
}
