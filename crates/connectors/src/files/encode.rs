//! Rows as the bytes of a file: text, JSON, CSV, Parquet, Avro.
//!
//! Invariant: what `finish` has given, after all that was taken before, is one
//! whole file; without rows it is nothing at all. Called by [`super::FilesSink`] and the sink `s3`.

use crate::format::avro::container::Container;
use arrow_array::{RecordBatch, cast::AsArray};
use arrow_json::writer::{LineDelimited, WriterBuilder};
use arrow_schema::DataType;
use parquet::{arrow::ArrowWriter, basic::Compression, errors::ParquetError, file::properties::WriterProperties};
use tidemill_core::{Error, Result};

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
pub(super) const RECORD: &str = "Row";

impl FileFormat {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [Self::Text, Self::Json, Self::Csv, Self::Parquet, Self::Avro];

    /// The one that is written so in `format = '…'`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// As written in `format = '…'`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Csv => "csv",
            Self::Parquet => "parquet",
            Self::Avro => "avro",
        }
    }

    /// The end of a file's name.
    pub(crate) fn extension(self) -> &'static str {
        if self == Self::Text { "txt" } else { self.name() }
    }
}

/// Encodes the rows of one file.
pub(crate) struct Encoder {
    format: FileFormat,
    bytes: Vec<u8>,
    header: bool,
    parquet: Option<ArrowWriter<Vec<u8>>>,
    avro: Option<Container>,
}

impl Encoder {
    pub(crate) fn new(format: FileFormat) -> Self {
        Self { format, bytes: Vec::new(), header: true, parquet: None, avro: None }
    }

    /// Adds rows.
    pub(crate) fn encode(&mut self, rows: &RecordBatch) -> Result<()> {
        let broken = |e| Error::user("files: these columns can't be written").because(e);
        match self.format {
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
