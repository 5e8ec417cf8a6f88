//! Rows as the bytes of a file: text, JSON, CSV, Parquet, Avro, Protobuf.
//!
//! Invariant: what `finish` has given, after all that was taken before, is one
//! whole file; without rows it is nothing at all. Called by [`super::FilesSink`] and the sink `s3`.

use crate::format::avro::{container::Container, write::Writer};
#[cfg(feature = "protobuf")]
use crate::format::protobuf::{target::Target, write};
use arrow_array::{RecordBatch, cast::AsArray};
use arrow_json::writer::{LineDelimited, WriterBuilder};
use arrow_schema::{DataType, Schema};
use parquet::{arrow::ArrowWriter, basic::Compression, errors::ParquetError, file::properties::WriterProperties};
#[cfg(feature = "protobuf")]
use std::sync::Arc;
use tidemill_core::{Error, Options, Result};

/// Bytes of rows that a Parquet file gathers in memory before it writes a row group.
const ROW_GROUP: usize = 64 << 20;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// The value of the one text column, a line each.
    Text,
    /// An object a line; nulls are left out.
    Json,
    /// Fields with commas, a header first.
    Csv,
    /// Columns, compressed with Snappy.
    Parquet,
    /// Records with their schema in front, deflated.
    Avro,
}

/// The name of the records in a file of Avro.
const RECORD: &str = "Row";

impl FileFormat {
    /// All of them.
    const ALL: [Self; 5] = [Self::Text, Self::Json, Self::Csv, Self::Parquet, Self::Avro];

    /// The one that is written so in `format = '…'`.
    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// As written in `format = '…'`.
    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Csv => "csv",
            Self::Parquet => "parquet",
            Self::Avro => "avro",
        }
    }
}

/// How a sink writes its files: a format, and what it needs to know beside.
#[derive(Debug, Clone)]
pub(crate) enum Encoding {
    Of(FileFormat),
    /// Messages, each behind its length.
    #[cfg(feature = "protobuf")]
    Protobuf(Arc<Target>),
}

impl Encoding {
    /// From option `format` and those that go with it.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub(crate) fn from_options(options: &Options, default: FileFormat) -> Result<Self> {
        let name = options.get("format").unwrap_or(default.name());
        if name == "protobuf" {
            #[cfg(feature = "protobuf")]
            return Ok(Self::Protobuf(Arc::new(Target::from_options(options)?)));
            #[cfg(not(feature = "protobuf"))]
            return Err(crate::without_protobuf(options));
        }
        FileFormat::named(name).map(Self::Of).ok_or_else(|| {
            Error::user(format!(
                "{}: option `format` must be `text`, `json`, `csv`, `parquet`, `avro` or `protobuf`, not `{name}`",
                options.owner()
            ))
        })
    }

    /// As written in `format = '…'`.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Of(format) => format.name(),
            #[cfg(feature = "protobuf")]
            Self::Protobuf(_) => "protobuf",
        }
    }

    /// The end of a file's name.
    pub(crate) fn extension(&self) -> &'static str {
        if matches!(self, Self::Of(FileFormat::Text)) { "txt" } else { self.name() }
    }

    /// Whether rows of these columns can be written so.
    ///
    /// # Errors
    /// With the column, and what to change.
    pub(super) fn takes(&self, columns: &Schema) -> Result<()> {
        let is_text = |ty: &DataType| matches!(ty, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
        match self {
            Self::Of(FileFormat::Text) if !matches!(columns.fields().as_ref(), [field] if is_text(field.data_type())) =>
            {
                let columns: Vec<String> =
                    columns.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect();
                Err(Error::user(format!(
                    "files: format `text` takes one column of TEXT, not ({}); choose `json`, `csv` or `parquet`",
                    columns.join(", ")
                )))
            }
            Self::Of(FileFormat::Avro) => {
                Writer::new(RECORD, columns).map(drop).map_err(|why| Error::user(format!("files: {why}")))
            }
            Self::Of(_) => Ok(()),
            #[cfg(feature = "protobuf")]
            Self::Protobuf(target) => target.writer(columns).map(drop),
        }
    }

    /// Whether these very rows can be written so: asked before their batch is committed, by who writes them after.
    ///
    /// # Errors
    /// With a value that can't.
    #[cfg(feature = "objects")]
    pub(crate) fn prove(&self, rows: &RecordBatch) -> Result<()> {
        match self {
            Self::Of(FileFormat::Avro) => Writer::rows(rows).map(drop),
            Self::Of(_) => Ok(()),
            #[cfg(feature = "protobuf")]
            Self::Protobuf(target) => target.writer(&rows.schema())?.rows(rows)?.prove(rows.num_rows()),
        }
    }
}

/// Encodes the rows of one file.
pub(crate) struct Encoder {
    encoding: Encoding,
    bytes: Vec<u8>,
    header: bool,
    parquet: Option<ArrowWriter<Vec<u8>>>,
    avro: Option<Container>,
    #[cfg(feature = "protobuf")]
    protobuf: Option<write::Writer>,
}

impl Encoder {
    pub(crate) fn new(encoding: &Encoding) -> Self {
        Self {
            encoding: encoding.clone(),
            bytes: Vec::new(),
            header: true,
            parquet: None,
            avro: None,
            #[cfg(feature = "protobuf")]
            protobuf: None,
        }
    }

    /// Adds rows.
    pub(crate) fn encode(&mut self, rows: &RecordBatch) -> Result<()> {
        let broken = |e| Error::user("files: these columns can't be written").because(e);
        let format = match &self.encoding {
            Encoding::Of(format) => *format,
            #[cfg(feature = "protobuf")]
            Encoding::Protobuf(target) => {
                let writer = match &self.protobuf {
                    Some(writer) => writer,
                    None => self.protobuf.insert(target.writer(&rows.schema())?),
                };
                let ready = writer.rows(rows)?;
                return (0..rows.num_rows()).try_for_each(|row| ready.put_delimited(row, &mut self.bytes));
            }
        };
        match format {
            FileFormat::Json => {
                let mut writer = WriterBuilder::new().build::<_, LineDelimited>(&mut self.bytes);
                writer.write(rows).and_then(|()| writer.finish()).map_err(broken)
            }
            FileFormat::Csv => {
                let mut writer = arrow_csv::WriterBuilder::new().with_header(self.header).build(&mut self.bytes);
                self.header = false;
                writer.write(rows).map_err(broken)
            }
            FileFormat::Text => {
                let texts = arrow_cast::cast(rows.column(0), &DataType::Utf8).map_err(broken)?;
                for text in texts.as_string::<i32>() {
                    self.bytes.extend_from_slice(text.unwrap_or_default().as_bytes());
                    self.bytes.push(b'\n');
                }
                Ok(())
            }
            FileFormat::Parquet => self.columns(rows).map_err(unwritable),
            FileFormat::Avro => {
                let container = match &mut self.avro {
                    Some(container) => container,
                    none => {
                        let made = Container::new(RECORD, &rows.schema());
                        none.insert(made.map_err(|why| Error::user(format!("files: {why}")))?)
                    }
                };
                container.rows(rows, &mut self.bytes)
            }
        }
    }

    fn columns(&mut self, rows: &RecordBatch) -> Result<(), ParquetError> {
        let mut writer = match self.parquet.take() {
            Some(writer) => writer,
            None => {
                let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
                ArrowWriter::try_new(Vec::new(), rows.schema(), Some(properties))?
            }
        };
        writer.write(rows)?;
        if writer.in_progress_size() >= ROW_GROUP {
            writer.flush()?;
        }
        // The writer counts what it has written by itself: the bytes may go.
        self.bytes.append(writer.inner_mut());
        self.parquet = Some(writer);
        Ok(())
    }

    /// Bytes that wait to be taken.
    pub(crate) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Ends the file: its last bytes wait.
    pub(crate) fn finish(&mut self) -> Result<()> {
        if let Some(writer) = self.parquet.take() {
            self.bytes.append(&mut writer.into_inner().map_err(unwritable)?);
        }
        if let Some(mut container) = self.avro.take() {
            container.flush(&mut self.bytes)?;
        }
        Ok(())
    }
}

fn unwritable(error: ParquetError) -> Error {
    Error::user("files: these columns can't be written as Parquet").because(error)
}
