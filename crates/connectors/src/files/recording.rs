//! Parquet files as a recording: each row a line of JSON, in the order in which they were written.
//!
//! A file, or all of a directory and of those below that are named
//! `column=value`, whose values become members. Files are read one after the
//! other by their names, so those of the sink `files` by their batches.
//!
//! Invariant: one row group is in memory at a time. Called by `tidemill replay`.

use super::partition;
use crate::{
    format::time::instant,
    http::proxy::decode,
    replay::{Line, Recording},
};
use arrow_array::{Array, ArrayRef, RecordBatch, cast::AsArray, types::TimestampMicrosecondType};
use arrow_json::writer::{LineDelimited, WriterBuilder};
use arrow_schema::{ArrowError, DataType, Field, Schema, TimeUnit};
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{Error, Result, Timestamp, nearest};

/// Rows that are decoded together.
const ROWS: usize = 1024;

/// A file, and the members that its directories give to its rows, as `,"day":"2026-01-31"`.
#[derive(Debug, Clone)]
struct Part {
    path: PathBuf,
    members: String,
}

/// Whether a path is a Parquet file, or a directory that has one.
pub fn is_parquet(path: &Path) -> bool {
    if path.is_dir() { parts(path).is_ok_and(|parts| !parts.is_empty()) } else { has_name(path) }
}

fn has_name(path: &Path) -> bool {
    path.extension().is_some_and(|end| end.eq_ignore_ascii_case("parquet"))
}

/// The rows of a Parquet file, or of a directory's, with their times by the column `time`.
///
/// # Errors
/// When there is no such file, one is damaged, or has no such column.
pub fn parquet_recording(path: &Path, time: Option<&str>) -> Result<Recording> {
    let all: Arc<[Part]> = parts(path)?.into();
    if all.is_empty() {
        return Err(Error::user(format!("{} has no Parquet file", path.display())));
    }
    // What is wrong with the columns of any is told at the start.
    for part in all.iter() {
        let file = open(&part.path)?;
        if let Some(time) = time {
            check(file.schema(), time).map_err(|why| Error::user(format!("{}: {why}", part.path.display())))?;
        }
    }
    let time: Option<Arc<str>> = time.map(Arc::from);
    Ok(Arc::new(move || {
        let (all, time) = (Arc::clone(&all), time.clone());
        let rows = (0..all.len()).flat_map(move |at| Rows::of(&all[at], time.clone()));
        stream::iter(rows).boxed()
    }))
}

fn check(schema: &Schema, time: &str) -> Result<(), String> {
    let Ok(field) = schema.field_with_name(time) else {
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let hint = nearest(time, &names)
            .map_or_else(|| format!("there are {}", names.join(", ")), |near| format!("did you mean `{near}`?"));
        return Err(format!("there is no column `{time}`; {hint}"));
    };
    let ty = field.data_type();
    let is_text = matches!(ty, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    if is_text || matches!(ty, DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 | DataType::Int64) {
        return Ok(());
    }
    Err(format!("column `{time}` is {ty}, and no time"))
}

/// The files, by name and then by directory: parts of a batch lie beside one another.
fn parts(path: &Path) -> Result<Vec<Part>> {
    if !path.is_dir() {
        return Ok(vec![Part { path: path.to_path_buf(), members: String::new() }]);
    }
    let mut all = Vec::new();
    walk(path, "", &mut all)?;
    all.sort_by(|a, b| (a.path.file_name(), &a.path).cmp(&(b.path.file_name(), &b.path)));
    Ok(all)
}

fn walk(dir: &Path, members: &str, all: &mut Vec<Part>) -> Result<()> {
    let failed = |e| Error::user(format!("can't list {}", dir.display())).because(e);
    for entry in fs::read_dir(dir).map_err(failed)? {
        let (path, name) = match entry {
            Ok(entry) => (entry.path(), entry.file_name().to_string_lossy().into_owned()),
            Err(error) => return Err(failed(error)),
        };
        if name.starts_with(['.', '_']) {
            continue;
        }
        if path.is_dir() {
            if let Some((column, value)) = name.split_once('=').filter(|_| partition::is_dir(&name)) {
                let text = |part: &str| serde_json::Value::from(decode(part));
                let member = format!(",{}:{}", text(column), text(value));
                let nothing = value == partition::NOTHING;
                walk(&path, &format!("{members}{}", if nothing { "" } else { &member }), all)?;
            }
        } else if has_name(&path) {
            all.push(Part { path, members: members.to_string() });
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path).map_err(|e| Error::user(format!("can't read {}", path.display())).because(e))?;
    ParquetRecordBatchReaderBuilder::try_new(file)
        .map_err(|e| Error::user(format!("{} is no Parquet file, or damaged", path.display())).because(e))
}

/// The rows of a file as lines.
struct Rows {
    path: PathBuf,
    members: String,
    time: Option<Arc<str>>,
    reader: Option<ParquetRecordBatchReader>,
    /// Why it can't be opened, until it is told.
    failed: Option<Error>,
    lines: std::vec::IntoIter<Line>,
}

impl Rows {
    fn of(part: &Part, time: Option<Arc<str>>) -> Self {
        let opened = open(&part.path).and_then(|builder| {
            let damaged = |e| Error::user(format!("{} is damaged", part.path.display())).because(e);
            builder.with_batch_size(ROWS).build().map_err(damaged)
        });
        let (reader, failed) = match opened {
            Ok(reader) => (Some(reader), None),
            Err(error) => (None, Some(error)),
        };
        let (path, members) = (part.path.clone(), part.members.clone());
        Self { path, members, time, reader, failed, lines: Vec::new().into_iter() }
    }

    fn decoded(&self, rows: &RecordBatch) -> Result<Vec<Line>> {
        let broken = |e| Error::user(format!("{}: rows can't be written as JSON", self.path.display())).because(e);
        let rows = &in_utc(rows).map_err(broken)?;
        let mut text = Vec::new();
        let mut writer = WriterBuilder::new().build::<_, LineDelimited>(&mut text);
        writer.write(rows).and_then(|()| writer.finish()).map_err(broken)?;
        let times = self.time.as_ref().and_then(|time| times_of(rows, time));
        let text = Bytes::from(text);
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).enumerate();
        Ok(lines
            .map(|(row, line)| {
                let at = times.as_ref().and_then(|times| times.get(row).copied().flatten());
                if self.members.is_empty() {
                    return Line { bytes: text.slice_ref(line), at };
                }
                let mut whole = line[..line.len() - 1].to_vec();
                let members = self.members.as_bytes();
                whole.extend_from_slice(if whole.len() == 1 { &members[1..] } else { members });
                whole.push(b'}');
                Line { bytes: Bytes::from(whole), at }
            })
            .collect())
    }
}

/// The rows with all times in UTC: names of zones are not known to what writes them.
fn in_utc(rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let utc = |column: &ArrayRef| match column.data_type() {
        DataType::Timestamp(unit, Some(_)) => {
            arrow_cast::cast(column, &DataType::Timestamp(*unit, Some(Arc::from("+00:00"))))
        }
        _ => Ok(Arc::clone(column)),
    };
    let columns = rows.columns().iter().map(utc).collect::<Result<Vec<_>, _>>()?;
    let fields = rows
        .schema()
        .fields()
        .iter()
        .zip(&columns)
        .map(|(field, column)| Field::new(field.name(), column.data_type().clone(), true))
        .collect::<Vec<_>>();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// The times of rows.
fn times_of(rows: &RecordBatch, time: &str) -> Option<Vec<Option<Timestamp>>> {
    let column = rows.column_by_name(time)?;
    Some(match column.data_type() {
        DataType::Int64 => {
            let millis = column.as_primitive::<arrow_array::types::Int64Type>();
            millis.iter().map(|millis| millis.map(Timestamp::from_millis)).collect()
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            let texts = arrow_cast::cast(column, &DataType::Utf8).ok()?;
            texts.as_string::<i32>().iter().map(|text| text.and_then(instant).map(Timestamp)).collect()
        }
        ty => {
            let zone = if let DataType::Timestamp(_, Some(_)) = ty { Some(Arc::from("+00:00")) } else { None };
            let times = arrow_cast::cast(column, &DataType::Timestamp(TimeUnit::Microsecond, zone)).ok()?;
            let times = times.as_primitive::<TimestampMicrosecondType>();
            (0..times.len()).map(|row| times.is_valid(row).then(|| Timestamp(times.value(row)))).collect()
        }
    })
}

impl Iterator for Rows {
    type Item = Result<Line>;

    fn next(&mut self) -> Option<Result<Line>> {
        loop {
            if let Some(line) = self.lines.next() {
                return Some(Ok(line));
            }
            if let Some(error) = self.failed.take() {
                return Some(Err(error));
            }
            let rows = self.reader.as_mut()?.next()?;
            let rows = rows.map_err(|e| Error::user(format!("{} is damaged", self.path.display())).because(e));
            match rows.and_then(|rows| self.decoded(&rows)) {
                Ok(lines) => self.lines = lines.into_iter(),
                Err(error) => {
                    self.reader = None;
                    return Some(Err(error));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        contract::{rows, stage},
        files::{FileFormat, FilesSink},
    };
    use arrow_array::{Int64Array, StringArray, TimestampMillisecondArray};
    use tidemill_core::{BatchId, Sink};
    use tidemill_store::RealDisk;

    async fn lines(recording: Recording) -> Vec<(String, Option<i64>)> {
        let text = |line: Line| (String::from_utf8(line.bytes.to_vec()).unwrap(), line.at.map(|at| at.0));
        recording().map(|line| text(line.unwrap())).collect().await
    }

    async fn written(sink: &FilesSink, batches: &[RecordBatch]) {
        sink.open(batches[0].schema()).await.unwrap();
        for (number, rows) in (1..).zip(batches) {
            let part = stage(sink, number, 0, vec![rows.clone()]).await.unwrap();
            sink.commit(BatchId(number), &[part]).await.unwrap();
        }
    }

    #[tokio::test]
    async fn rows_come_in_the_order_of_batches_with_what_their_directories_say() {
        let dir = tempfile::tempdir().unwrap();
        let sink = FilesSink::new(dir.path(), FileFormat::Parquet, Arc::new(RealDisk)).partition_by("lang");
        let batch = |n: i64, langs: [Option<&str>; 2]| {
            let at = TimestampMillisecondArray::from(vec![n * 1000, n * 1000 + 1]).with_timezone("UTC");
            let columns: [(&str, ArrayRef); 3] = [
                ("n", Arc::new(Int64Array::from(vec![n, n + 1]))),
                ("at", Arc::new(at)),
                ("lang", Arc::new(StringArray::from(langs.to_vec()))),
            ];
            RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
        };
        written(&sink, &[batch(1, [Some("en"), Some("a b")]), batch(3, [Some("en"), None])]).await;
        assert!(is_parquet(dir.path()) && !is_parquet(Path::new("posts.jsonl")));
        let got = lines(parquet_recording(dir.path(), Some("at")).unwrap()).await;
        let line = |n: i64, ms: i64, lang: &str| {
            let at = format!("1970-01-01T00:00:0{}.00{}Z", ms / 1000, ms % 1000);
            let at = at.replace(".000Z", "Z");
            (format!("{{\"n\":{n},\"at\":\"{at}\"{lang}}}"), Some(ms * 1000))
        };
        let en = ",\"lang\":\"en\"";
        let mut want =
            vec![line(1, 1000, en), line(2, 1001, ",\"lang\":\"a b\""), line(3, 3000, en), line(4, 3001, "")];
        // Directories of one batch come by their names.
        want[..2].sort_by_key(|(text, _)| !text.contains("a b"));
        want[2..].sort_by_key(|(text, _)| text.contains("lang"));
        assert_eq!(got, want);
    }

    #[tokio::test]
    async fn what_is_wrong_is_told_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let told = |path: &Path, time| parquet_recording(path, time).map(drop).unwrap_err().to_string();
        assert!(told(dir.path(), None).contains("has no Parquet file"));
        fs::write(dir.path().join("x.parquet"), "no").unwrap();
        assert!(told(dir.path(), None).contains("is no Parquet file, or damaged"));
        fs::remove_file(dir.path().join("x.parquet")).unwrap();
        let sink = FilesSink::new(dir.path(), FileFormat::Parquet, Arc::new(RealDisk));
        written(&sink, &[rows([1])]).await;
        assert!(told(dir.path(), Some("wrd")).contains("did you mean `word`?"));
        let later = dir.path().join("z.parquet");
        fs::write(&later, "no").unwrap();
        assert!(told(dir.path(), None).contains("z.parquet is no Parquet file, or damaged"), "it is not the first");
        fs::remove_file(later).unwrap();
        assert_eq!(
            lines(parquet_recording(dir.path(), Some("n")).unwrap()).await,
            [("{\"n\":1,\"word\":\"word-1\"}".to_string(), Some(1000))]
        );
    }

    #[tokio::test]
    async fn pages_that_are_damaged_end_the_recording_after_what_is_before_them() {
        let dir = tempfile::tempdir().unwrap();
        let sink = FilesSink::new(dir.path(), FileFormat::Parquet, Arc::new(RealDisk));
        written(&sink, &[rows([1]), rows([2]), rows([3])]).await;
        let all = parts(dir.path()).unwrap();
        let mut bytes = fs::read(&all[1].path).unwrap();
        // Behind the magic number is the first page's header.
        bytes[4..12].fill(0xff);
        fs::write(&all[1].path, bytes).unwrap();
        let mut lines = parquet_recording(dir.path(), None).unwrap()();
        assert_eq!(lines.next().await.unwrap().unwrap().bytes, "{\"n\":1,\"word\":\"word-1\"}");
        let error = lines.next().await.unwrap().unwrap_err().to_string();
        assert!(error.contains(&all[1].path.display().to_string()) && error.contains("is damaged"), "{error}");
    }
}
