//! The table: what the cluster says of it, and whether the rows' columns fit.
//!
//! | Column of the table | Columns of rows that it takes |
//! |---|---|
//! | `tinyint`, `smallint`, `int`, `bigint` | whole numbers of a type that it holds whole |
//! | `varint`; `decimal` | all whole numbers; those and decimals |
//! | `float`; `double` | numbers of 32 bits; all of floating point, and whole ones of up to 32 bits |
//! | `text`, `ascii`; `uuid`, `timeuuid`, `inet` | text; text that can be read so |
//! | `blob`, `boolean`, `date`, `time` | bytes, booleans, dates, times of day |
//! | `timestamp` | times, as milliseconds rounded down; those without a zone as UTC |
//! | `set`, `map`, `vector`, frozen `list` | lists, maps |
//! | a type of the keyspace's own | structs, member by member by name |
//!
//! No other list than a frozen one: its elements lie under ids that the server makes anew at each write, so a write
//! that is repeated would have them twice. No counter, which counts a repeated write twice; and no static column,
//! which many rows of a batch would set at one time.
//!
//! Invariant: what is accepted here is written without loss; all else is refused before the first row, with the
//! column and both types. Called by the sink.

use super::server::is_name;
use arrow_schema::{DataType, Field, Fields, Schema, TimeUnit};
use scylla::{
    cluster::metadata::{CollectionType, ColumnKind, ColumnType, NativeType, Table as Known},
    frame::response::result::UserDefinedType,
};
use std::sync::Arc;
use tidemill_core::{Error, Options, Result};

/// A primary key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    partition: Vec<String>,
    clustering: Vec<String>,
}

/// The table, as the options name it.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) name: String,
    /// What the table is made with if it is not there.
    pub(super) key: Option<Key>,
}

/// A column of the rows, and what it is in the table.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    /// The type that values are brought to first.
    pub(super) arrow: DataType,
    pub(super) ty: ColumnType<'static>,
    pub(super) in_key: bool,
    /// Whether it is all of the partition key: then an empty text is none.
    pub(super) is_partition: bool,
}

impl Key {
    /// As CQL writes it: `id`, `day, id`, `(day, lang), id`.
    fn parse(text: &str) -> Option<Self> {
        let list = |text: &str| -> Option<Vec<String>> {
            let names = text.split(',').map(|name| Some(name.trim().to_string()).filter(|name| !name.is_empty()));
            names.collect()
        };
        let text = text.trim();
        let key = if let Some(rest) = text.strip_prefix('(') {
            let (partition, rest) = rest.split_once(')')?;
            let clustering = match rest.trim() {
                "" => Vec::new(),
                rest => list(rest.strip_prefix(',')?)?,
            };
            Self { partition: list(partition)?, clustering }
        } else {
            let mut names = list(text)?;
            let clustering = names.split_off(1);
            Self { partition: names, clustering }
        };
        let all: Vec<&String> = key.columns().collect();
        let twice = all.iter().enumerate().any(|(at, name)| all[..at].contains(name));
        (!twice && all.iter().all(|name| !name.contains(['(', ')', '\0']))).then_some(key)
    }

    pub(super) fn columns(&self) -> impl Iterator<Item = &String> {
        self.partition.iter().chain(&self.clustering)
    }

    fn cql(&self, name: impl Fn(&str) -> String) -> String {
        let list = |names: &[String]| names.iter().map(|n| name(n)).collect::<Vec<_>>().join(", ");
        let partition =
            if self.partition.len() == 1 { name(&self.partition[0]) } else { format!("({})", list(&self.partition)) };
        if self.clustering.is_empty() { partition } else { format!("{partition}, {}", list(&self.clustering)) }
    }
}

/// A name in a statement.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Table {
    /// From the options `table` and `key`.
    pub(super) fn from_options(options: &Options) -> Result<Self> {
        let owner = options.owner();
        let name = options.require("table", "it names the table to write to")?;
        if !is_name(name) || name.to_lowercase().starts_with("tidemill_") {
            return Err(Error::user(format!(
                "{owner}: option `table`: `{name}` can't be a table's name here: take up to 48 of A-Z a-z 0-9 _, not beginning with tidemill_"
            )));
        }
        let key = match options.get("key") {
            None => None,
            Some(text) => Some(Key::parse(text).ok_or_else(|| {
                Error::user(format!(
                    "{owner}: option `key`: `{text}` can't be read: write the primary key as CQL does, such as 'id', 'day, id' or '(day, lang), id'"
                ))
            })?),
        };
        Ok(Self { name: name.to_string(), key })
    }

    /// An error about the table.
    pub(super) fn wrong(&self, why: &str) -> Error {
        Error::user(format!("cassandra: table `{}`: {why}", self.name))
    }

    /// What can be said of columns without the cluster.
    pub(super) fn takes(&self, schema: &Schema) -> Result<()> {
        for field in schema.fields() {
            if !is_known(field.data_type()) {
                return Err(self.wrong(&format!(
                    "column `{}` is {}, which no column there holds: CAST it to BIGINT, DOUBLE, TEXT or TIMESTAMP",
                    field.name(),
                    field.data_type()
                )));
            }
            if field.name().is_empty() || field.name().contains('\0') {
                return Err(self.wrong(&format!("a column can't be called `{}` there", field.name())));
            }
        }
        let missing = self.key.iter().flat_map(Key::columns).find(|key| schema.field_with_name(key).is_err());
        match missing {
            Some(key) => {
                Err(self.wrong(&format!("option `key`: the rows have no column `{key}`; there are {}", names(schema))))
            }
            None => Ok(()),
        }
    }

    /// The statement that makes the table for rows of these columns.
    pub(super) fn create(&self, keyspace: &str, key: &Key, schema: &Schema) -> Result<String> {
        let mut columns = Vec::new();
        for field in schema.fields() {
            let ty = declared(field.data_type()).ok_or_else(|| {
                self.wrong(&format!(
                    "it can't be made: column `{}` is {}, for which the keyspace needs a type of its own: make type and table by hand",
                    field.name(),
                    field.data_type()
                ))
            })?;
            columns.push(format!("{} {ty}", quoted(field.name())));
        }
        Ok(format!(
            "CREATE TABLE IF NOT EXISTS {}.{} ({}, PRIMARY KEY ({}))",
            quoted(keyspace),
            quoted(&self.name),
            columns.join(", "),
            key.cql(quoted)
        ))
    }

    /// The columns of rows in the table.
    ///
    /// # Errors
    /// With the first that does not fit.
    pub(super) fn with(&self, known: &Known, schema: &Schema) -> Result<Vec<Column>> {
        let there = Key { partition: known.partition_key.clone(), clustering: known.clustering_key.clone() };
        if self.key.as_ref().is_some_and(|key| *key != there) {
            return Err(self.wrong(&format!(
                "its primary key is ({}): say so in option `key`, or leave that out",
                there.cql(str::to_string)
            )));
        }
        if let Some(missing) = there.columns().find(|key| schema.field_with_name(key).is_err()) {
            return Err(self.wrong(&format!(
                "its primary key is ({}), and the rows have no column `{missing}`; there are {}",
                there.cql(str::to_string),
                names(schema)
            )));
        }
        schema.fields().iter().map(|field| self.column(known, &there, field)).collect()
    }

    fn column(&self, known: &Known, key: &Key, field: &Field) -> Result<Column> {
        let name = field.name();
        let Some(column) = known.columns.get(name) else {
            let mut names: Vec<&str> = known.columns.keys().map(String::as_str).collect();
            names.sort_unstable();
            let add = declared(field.data_type())
                .map(|ty| format!("add it (ALTER TABLE {} ADD {} {ty}), ", quoted(&self.name), quoted(name)))
                .unwrap_or_default();
            return Err(self.wrong(&format!(
                "it has no column `{name}`; there are {}: {add}leave it out, or name it otherwise with AS",
                names.join(", ")
            )));
        };
        let ty = &column.typ;
        let refused = match (ty, &column.kind) {
            (_, ColumnKind::Static) => Some("static, which many rows of a batch would set at one time"),
            (ColumnType::Native(NativeType::Counter), _) => Some("a counter, which counts a repeated write twice"),
            (ColumnType::Collection { frozen: false, typ: CollectionType::List(_) }, _) => Some(
                "a list that is not frozen, whose elements a repeated write would add once more: make it a set or a frozen list",
            ),
            _ => None,
        };
        if let Some(why) = refused {
            return Err(self.wrong(&format!("its column `{name}` is {why}")));
        }
        let Some(arrow) = fitting(field.data_type(), ty) else {
            let hint = cast_to(ty).map(|to| format!(": CAST it to {to}")).unwrap_or_default();
            return Err(self.wrong(&format!(
                "column `{name}` is {}, and the table's is {}, which does not hold all of that{hint}",
                field.data_type(),
                cql(ty)
            )));
        };
        let in_key = key.columns().any(|key| key == name);
        let is_partition = key.partition == [name.as_str()];
        Ok(Column { name: name.clone(), arrow, ty: ty.clone(), in_key, is_partition })
    }
}

fn names(schema: &Schema) -> String {
    schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ")
}

/// Whether some column of a table holds values of a type.
fn is_known(ty: &DataType) -> bool {
    match ty {
        DataType::Null => true,
        DataType::Struct(fields) => fields.iter().all(|field| is_known(field.data_type())),
        ty => match (item_of(ty), entries_of(ty)) {
            (Some(item), _) => is_known(item),
            (_, Some((key, value))) => is_known(key) && is_known(value),
            _ => declared(ty).is_some(),
        },
    }
}

fn item_of(ty: &DataType) -> Option<&DataType> {
    match ty {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => Some(item.data_type()),
        _ => None,
    }
}

fn entries_of(ty: &DataType) -> Option<(&DataType, &DataType)> {
    match ty {
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(pair) if pair.len() == 2 => Some((pair[0].data_type(), pair[1].data_type())),
            _ => None,
        },
        _ => None,
    }
}

/// The column that is made for a type.
fn declared(ty: &DataType) -> Option<String> {
    let plain = match ty {
        DataType::Int8 => "tinyint",
        DataType::Int16 | DataType::UInt8 => "smallint",
        DataType::Int32 | DataType::UInt16 => "int",
        DataType::Int64 | DataType::UInt32 => "bigint",
        DataType::UInt64 => "varint",
        DataType::Float16 | DataType::Float32 => "float",
        DataType::Float64 => "double",
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) => "decimal",
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text",
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => "blob",
        DataType::Boolean => "boolean",
        DataType::Timestamp(..) => "timestamp",
        DataType::Date32 | DataType::Date64 => "date",
        DataType::Time32(_) | DataType::Time64(_) => "time",
        DataType::Dictionary(_, values) => return declared(values),
        ty => {
            return match (item_of(ty), entries_of(ty)) {
                (Some(item), _) => Some(format!("frozen<list<{}>>", declared(item)?)),
                (_, Some((key, value))) => Some(format!("frozen<map<{}, {}>>", declared(key)?, declared(value)?)),
                _ => None,
            };
        }
    };
    Some(plain.to_string())
}

/// The type to bring values to, of which a column of the table holds each; `None` when it does not.
fn fitting(from: &DataType, to: &ColumnType<'_>) -> Option<DataType> {
    if let DataType::Dictionary(_, values) = from {
        return fitting(values, to);
    }
    if *from == DataType::Null {
        return Some(DataType::Null);
    }
    let field = |name: &str, ty| Arc::new(Field::new(name, ty, true));
    match to {
        ColumnType::Native(native) => fitting_native(from, native),
        ColumnType::Vector { typ, .. } => Some(DataType::List(field("item", fitting(item_of(from)?, typ)?))),
        ColumnType::Collection { typ: CollectionType::List(item) | CollectionType::Set(item), .. } => {
            Some(DataType::List(field("item", fitting(item_of(from)?, item)?)))
        }
        ColumnType::Collection { typ: CollectionType::Map(key, value), .. } => {
            let (from_key, from_value) = entries_of(from)?;
            let key = Arc::new(Field::new("key", fitting(from_key, key)?, false));
            let pair = Fields::from(vec![key, field("value", fitting(from_value, value)?)]);
            Some(DataType::Map(Arc::new(Field::new("entries", DataType::Struct(pair), false)), false))
        }
        ColumnType::UserDefinedType { definition, .. } => fitting_struct(from, definition),
        _ => None,
    }
}

fn fitting_struct(from: &DataType, to: &UserDefinedType<'_>) -> Option<DataType> {
    let DataType::Struct(fields) = from else { return None };
    let member = |from: &Arc<Field>| {
        let (_, to) = to.field_types.iter().find(|(name, _)| name == from.name())?;
        Some(Arc::new(Field::new(from.name(), fitting(from.data_type(), to)?, true)))
    };
    Some(DataType::Struct(fields.iter().map(member).collect::<Option<Vec<_>>>()?.into()))
}

fn fitting_native(from: &DataType, to: &NativeType) -> Option<DataType> {
    use DataType::{Float16, Float32, Float64, Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64};
    let text = matches!(from, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let to = match to {
        NativeType::TinyInt if *from == Int8 => Int8,
        NativeType::SmallInt if matches!(from, Int8 | Int16 | UInt8) => Int16,
        NativeType::Int if matches!(from, Int8 | Int16 | Int32 | UInt8 | UInt16) => Int32,
        NativeType::BigInt if from.is_integer() && *from != UInt64 => Int64,
        NativeType::Varint if *from == UInt64 => UInt64,
        NativeType::Varint if from.is_integer() => Int64,
        NativeType::Decimal => match from {
            DataType::Decimal32(p, s) | DataType::Decimal64(p, s) | DataType::Decimal128(p, s) => {
                DataType::Decimal128(*p, *s)
            }
            from if from.is_integer() => DataType::Decimal128(20, 0),
            _ => return None,
        },
        NativeType::Float if matches!(from, Float16 | Float32) => Float32,
        NativeType::Double if from.is_floating() => Float64,
        NativeType::Double if matches!(from, Int8 | Int16 | Int32 | UInt8 | UInt16 | UInt32) => Float64,
        NativeType::Text | NativeType::Ascii | NativeType::Uuid | NativeType::Timeuuid | NativeType::Inet if text => {
            DataType::Utf8
        }
        NativeType::Blob => match from {
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
                DataType::Binary
            }
            _ => return None,
        },
        NativeType::Boolean if *from == DataType::Boolean => DataType::Boolean,
        NativeType::Timestamp => match from {
            // What has a zone is an instant already; what has none is left as it is.
            DataType::Timestamp(_, zone) => {
                DataType::Timestamp(TimeUnit::Microsecond, zone.as_ref().map(|_| Arc::from("+00:00")))
            }
            _ => return None,
        },
        NativeType::Date if matches!(from, DataType::Date32 | DataType::Date64) => DataType::Date32,
        NativeType::Time if matches!(from, DataType::Time32(_) | DataType::Time64(_)) => {
            DataType::Time64(TimeUnit::Nanosecond)
        }
        _ => return None,
    };
    Some(to)
}

/// The type of SQL whose values a column holds, where there is one.
fn cast_to(ty: &ColumnType<'_>) -> Option<&'static str> {
    let ColumnType::Native(ty) = ty else { return None };
    Some(match ty {
        NativeType::TinyInt => "TINYINT",
        NativeType::SmallInt => "SMALLINT",
        NativeType::Int => "INT",
        NativeType::BigInt | NativeType::Varint => "BIGINT",
        NativeType::Float => "REAL",
        NativeType::Double => "DOUBLE",
        NativeType::Decimal => "DECIMAL",
        NativeType::Text | NativeType::Ascii | NativeType::Uuid | NativeType::Timeuuid | NativeType::Inet => "TEXT",
        NativeType::Blob => "BYTEA",
        NativeType::Boolean => "BOOLEAN",
        NativeType::Timestamp => "TIMESTAMP",
        NativeType::Date => "DATE",
        NativeType::Time => "TIME",
        _ => return None,
    })
}

/// A type as CQL writes it.
pub(super) fn cql(ty: &ColumnType<'_>) -> String {
    match ty {
        ColumnType::Native(native) => format!("{native:?}").to_lowercase(),
        ColumnType::Vector { typ, dimensions } => format!("vector<{}, {dimensions}>", cql(typ)),
        ColumnType::Collection { frozen, typ } => {
            let plain = match typ {
                CollectionType::List(item) => format!("list<{}>", cql(item)),
                CollectionType::Set(item) => format!("set<{}>", cql(item)),
                CollectionType::Map(key, value) => format!("map<{}, {}>", cql(key), cql(value)),
                _ => "a collection".to_string(),
            };
            if *frozen { format!("frozen<{plain}>") } else { plain }
        }
        ColumnType::UserDefinedType { definition, .. } => definition.name.to_string(),
        ColumnType::Tuple(items) => format!("tuple<{}>", items.iter().map(cql).collect::<Vec<_>>().join(", ")),
        _ => "another type".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_key_is_read_as_cql_writes_it() {
        let key = |text: &str| Key::parse(text).map(|key| key.cql(str::to_string));
        assert_eq!(key(" id ").unwrap(), "id");
        assert_eq!(key("(id)").unwrap(), "id");
        assert_eq!(key("day, id").unwrap(), "day, id");
        assert_eq!(key("(day,lang) , id, n").unwrap(), "(day, lang), id, n");
        assert_eq!(Key::parse("day,id").unwrap().partition, ["day"]);
        for wrong in ["", "a,,b", "(a", "(a) b", "()", "a, a", "(a,b),a", "a,(b)", "((a)),b"] {
            assert_eq!(key(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_column_takes_what_it_holds_whole() {
        let native = |from: &DataType, to| fitting(from, &ColumnType::Native(to));
        use DataType::{Float32, Float64, Int8, Int32, Int64, UInt32, UInt64, Utf8View};
        for (from, to, fits) in [
            (Int64, NativeType::BigInt, true),
            (Int64, NativeType::Int, false),
            (UInt32, NativeType::Int, false),
            (UInt32, NativeType::BigInt, true),
            (UInt64, NativeType::BigInt, false),
            (UInt64, NativeType::Varint, true),
            (Int8, NativeType::SmallInt, true),
            (Int64, NativeType::Double, false),
            (Int32, NativeType::Double, true),
            (Float64, NativeType::Float, false),
            (Float32, NativeType::Double, true),
            (Utf8View, NativeType::Uuid, true),
            (Utf8View, NativeType::Blob, false),
            (Int64, NativeType::Text, false),
            (Int64, NativeType::Counter, false),
            (DataType::Date32, NativeType::Timestamp, false),
            (DataType::Null, NativeType::Timestamp, true),
        ] {
            assert_eq!(native(&from, to.clone()).is_some(), fits, "{from} to {to:?}");
        }
    }
}
