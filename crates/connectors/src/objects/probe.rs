//! What tests see of the objects that the sink wrote: their rows.
//!
//! Invariant: they are read by the plain reader of Parquet, and not by the source. Called by tests here and above.

use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::collections::BTreeMap;

/// The rows of all Parquet objects as JSON, each with the name of its object before it.
///
/// # Panics
/// When one is damaged, or empty.
pub fn rows_of(all: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let mut lines = Vec::new();
    for (key, bytes) in all.iter().filter(|(key, _)| key.ends_with(".parquet")) {
        let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes.clone()));
        let reader = reader.and_then(ParquetRecordBatchReaderBuilder::build).expect("a Parquet object");
        let count = lines.len();
        for rows in reader {
            let mut text = Vec::new();
            let mut writer = arrow_json::LineDelimitedWriter::new(&mut text);
            writer.write(&rows.expect("rows")).and_then(|()| writer.finish()).expect("lines");
            lines.extend(String::from_utf8_lossy(&text).lines().map(|line| format!("{key} {line}")));
        }
        assert!(lines.len() > count, "{key} is no empty object");
    }
    lines
}
