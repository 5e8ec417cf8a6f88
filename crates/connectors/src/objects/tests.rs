//! The source against its contract over a store in memory: lines, Avro and Parquet, and objects that come, change and go.

use super::{
    fetch::{PIECE, Version},
    listing::PAGE,
    *,
};
use crate::{
    contract::{Records, check_source, read, read_all},
    format::avro::file::tests::container,
};
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use futures::StreamExt;
use object_store::{ObjectStoreExt, PutPayload, memory::InMemory, path::Path as Key};
use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};
use std::{sync::Arc, time::Duration};
use tidemill_core::{
    Budget, Chunk, ManualClock, Offset, OffsetRange, Options, PartitionId, Position, Result, Shape, Source,
};

const ALL: Budget = Budget { records: u64::MAX, bytes: u64::MAX, parallelism: 1 };

async fn put(store: &InMemory, name: &str, bytes: impl Into<Bytes>) {
    store.put(&Key::from(format!("in/{name}")), PutPayload::from(bytes.into())).await.unwrap();
}

fn made(store: &Arc<InMemory>, more: &[(&str, &str)]) -> Result<ObjectsSource> {
    let place = Place {
        store: Arc::clone(store) as _,
        kind: "memory",
        root: "memory://test".to_string(),
        prefix: "in".to_string(),
        is_sorted: true,
        endpoint: None,
        tree: None,
        fix: |_, _| None,
    };
    let usual = [("refresh", "0s")];
    let usual = usual.iter().filter(|(key, _)| !more.iter().any(|(other, _)| other == key));
    let options = Options::new("stream \"s\"", usual.chain(more).copied());
    let source = ObjectsSource::from_options(&options, place, None)?;
    options.finish().map(|()| source)
}

fn source(store: &Arc<InMemory>, more: &[(&str, &str)]) -> ObjectsSource {
    made(store, more).unwrap()
}

/// What is new, as texts, and the position behind it.
async fn next(source: &ObjectsSource, position: &mut Position) -> Vec<String> {
    let mut texts = Vec::new();
    for range in source.plan(position, ALL).await.unwrap() {
        texts.extend(read(source, &range).await.into_iter().map(|(_, r)| String::from_utf8(r).unwrap()));
        position.insert(range.partition, range.end);
    }
    texts
}

fn of<'a>(all: &'a std::collections::BTreeMap<PartitionId, Records>, name: &str) -> &'a Records {
    let begin = format!("{name}@");
    all.iter().find(|(id, _)| id.0.starts_with(&begin)).unwrap().1
}

#[tokio::test]
async fn lines_are_a_source() {
    let store = Arc::new(InMemory::new());
    let large: String = (0..120_000).map(|i| format!("line {i} {}\n", "x".repeat(i % 50))).collect();
    assert!(large.len() as u64 > PIECE);
    put(&store, "a.log", large.clone()).await;
    put(&store, "b/c.log", "one\r\ntwo\n\nlast").await;
    put(&store, "empty", "").await;
    put(&store, "long", format!("{}\nshort\n{}\n", "y".repeat(400 << 10), "z".repeat(300 << 10))).await;
    for (name, text) in [("_SUCCESS", "x"), ("b/.part", "x"), ("d.tmp", "x"), ("_undone/e", "x")] {
        put(&store, name, text).await;
    }
    let all = check_source(&source(&store, &[("max_line", "300KiB")]), 7).await;
    assert_eq!(all.len(), 3, "{:?}", all.keys());
    let lines: Vec<&[u8]> = of(&all, "a.log").iter().map(|(_, r)| r.as_slice()).collect();
    assert_eq!(lines, large.lines().map(str::as_bytes).collect::<Vec<_>>());
    let c: Vec<(u64, &[u8])> = of(&all, "b/c.log").iter().map(|(o, r)| (*o, r.as_slice())).collect();
    assert_eq!(c, [(0, b"one".as_slice()), (5, b"two"), (9, b""), (10, b"last")]);
    let long: Vec<usize> = of(&all, "long").iter().map(|(_, r)| r.len()).collect();
    assert_eq!(long[1..], [5, 300 << 10]);
    assert!(of(&all, "long")[0].1.starts_with(b"a line over the bound of 307200 bytes"));
}

#[tokio::test]
async fn a_large_object_is_cut_into_like_ranges() {
    let store = Arc::new(InMemory::new());
    put(&store, "big", vec![b'\n'; 8 << 20]).await;
    put(&store, "small", "x\n").await;
    let ranges = source(&store, &[]).plan(&Position::new(), Budget { parallelism: 4, ..ALL }).await.unwrap();
    let sizes: Vec<u64> = ranges.iter().map(OffsetRange::len).collect();
    assert_eq!((sizes.len(), sizes[4]), (5, 2), "{sizes:?}");
    assert!(sizes[..4].iter().all(|size| size.abs_diff(2 << 20) < 10), "{sizes:?}");
    let few = source(&store, &[]).plan(&Position::new(), Budget { bytes: 1000, ..ALL }).await.unwrap();
    assert_eq!(few.iter().map(OffsetRange::len).sum::<u64>(), 1000);
}

const SCHEMA: &str =
    r#"{"type":"record","name":"R","fields":[{"name":"n","type":"long"},{"name":"word","type":"string"}]}"#;

/// Blocks of files of Avro with numbers in them, some records a block.
fn numbers(codec: &str, from: u8, blocks: u8) -> Vec<u8> {
    let record = |n: u8| [&[n * 2, 8][..], format!("w{n:03}").as_bytes()].concat();
    let blocks = (0..blocks).map(|block| (0..4).map(|i| record(from + block * 4 + i)).collect::<Vec<_>>());
    container(SCHEMA, codec, &blocks.collect::<Vec<_>>())
}

#[tokio::test]
async fn files_of_avro_are_a_source_and_are_decoded() {
    let store = Arc::new(InMemory::new());
    for (name, codec, from) in [("a", "null", 0), ("b", "deflate", 12), ("c", "snappy", 24), ("d", "zstandard", 36)] {
        put(&store, &format!("{name}.avro"), numbers(codec, from, 3)).await;
    }
    let source = source(&store, &[("format", "avro")]);
    let format = source.format(None, &|_| panic!("the options' own format is for lines")).unwrap();
    assert_eq!(format.schema().fields().len(), 2);
    let all = check_source(&source, 5).await;
    assert_eq!(all.values().map(Vec::len).collect::<Vec<_>>(), [12; 4]);
    let places: Vec<u64> = of(&all, "a.avro").iter().map(|(at, _)| at & 0xffff).collect();
    assert_eq!(places, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3], "records are counted within their block");
    let mut got = Vec::new();
    for range in source.plan(&Position::new(), ALL).await.unwrap() {
        let mut chunks = source.read(&range);
        let mut decoder = format.decoder(&[0]);
        while let Some(chunk) = chunks.next().await {
            let Chunk::Raw(block) = chunk.unwrap() else { panic!("records") };
            let mut refused = Vec::new();
            let rows = decoder.decode(&block, &mut refused).unwrap();
            assert!(refused.is_empty(), "{refused:?}");
            let column = rows.column(0).as_any().downcast_ref::<Int64Array>().unwrap();
            got.extend(column.values().iter().copied());
        }
    }
    assert_eq!(got, (0..48).collect::<Vec<i64>>());
}

fn table(rows: std::ops::Range<i64>) -> RecordBatch {
    let words = rows.clone().map(|n| (n % 3 > 0).then(|| format!("w{n}")));
    let columns: [(&str, ArrayRef); 2] =
        [("n", Arc::new(Int64Array::from_iter_values(rows))), ("word", Arc::new(StringArray::from_iter(words)))];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
}

/// Parquet with row groups of so many rows.
fn parquet(rows: &RecordBatch, group: usize) -> Vec<u8> {
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(group)).build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, rows.schema(), Some(properties)).unwrap();
    writer.write(rows).unwrap();
    writer.close().unwrap();
    bytes
}

fn columns(fields: &[(&str, DataType, bool)]) -> SchemaRef {
    Arc::new(Schema::new(
        fields.iter().map(|(name, ty, null)| Field::new(*name, ty.clone(), *null)).collect::<Vec<_>>(),
    ))
}

#[tokio::test]
async fn parquet_is_a_source_of_columns() {
    let store = Arc::new(InMemory::new());
    put(&store, "a.parquet", parquet(&table(0..250), 100)).await;
    put(&store, "b.parquet", parquet(&table(250..260), 100)).await;
    put(&store, "none.parquet", parquet(&table(0..0), 100)).await;
    let plain = source(&store, &[("format", "parquet")]);
    plain.declare(None).unwrap();
    let Shape::Columns(schema) = plain.shape() else { panic!("columns") };
    assert_eq!(schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>(), ["n", "word"]);
    let all = check_source(&plain, 3).await;
    let places: Vec<u64> = of(&all, "a.parquet").iter().map(|(at, _)| *at).collect();
    assert_eq!(places, (0..250).collect::<Vec<_>>(), "an offset is a row");
    assert_eq!(of(&all, "b.parquet").len(), 10);
    // Row groups are read side by side.
    let ranges = plain.plan(&Position::new(), Budget { parallelism: 3, ..ALL }).await.unwrap();
    let starts: Vec<u64> = ranges.iter().filter(|r| r.partition.0.starts_with("a.")).map(|r| r.start.0).collect();
    assert_eq!(starts, [0, 100, 200]);
    // Of fewer records a plan has fewer rows.
    let few = plain.plan(&Position::new(), Budget { records: 30, ..ALL }).await.unwrap();
    assert_eq!(few.iter().map(OffsetRange::len).sum::<u64>(), 30);

    // Declared otherwise: another type, and a column that is not there.
    let declared = source(&store, &[("format", "parquet")]);
    let wanted = [("later", DataType::Utf8, true), ("n", DataType::Int16, false)];
    declared.declare(Some(&columns(&wanted))).unwrap();
    let mut chunks = declared.read(&few[0]);
    let Some(Ok(Chunk::Columns { rows, base, .. })) = chunks.next().await else { panic!("rows") };
    assert_eq!((base, rows.num_rows(), rows.column(0).null_count()), (Offset(0), 30, 30));
    assert_eq!(rows.column(1).data_type(), &DataType::Int16);
    for (wanted, told) in [
        (("word", DataType::Utf8, false), "row 0, column `word`: it is NULL"),
        (("word", DataType::Int64, true), "row 1, column `word`: it does not fit Int64"),
        (("later", DataType::Utf8, false), "has no column `later`, which is NOT NULL; it has n, word"),
        (("word", DataType::Struct(vec![Field::new("x", DataType::Int64, true)].into()), true), "can't be read as"),
    ] {
        let other = source(&store, &[("format", "parquet")]);
        other.declare(Some(&columns(&[wanted]))).unwrap();
        let error = other.read(&few[0]).next().await.unwrap().unwrap_err();
        assert!(error.to_string().contains(told) && error.to_string().contains("in/a.parquet"), "{error}");
        assert!(!error.is_retryable());
    }
}

#[tokio::test]
async fn what_is_no_parquet_or_avro_is_told() {
    let cut = |mut bytes: Vec<u8>, at: usize| {
        let at = bytes.len() - at;
        bytes[at] = 0xff;
        bytes
    };
    let good = parquet(&table(0..250), 100);
    for (bytes, told) in [
        (b"no".to_vec(), "it is too short"),
        (b"neither this nor that".to_vec(), "does not end with PAR1"),
        (cut(good.clone(), 6), "says that the footer has"),
        (cut(cut(good.clone(), 100), 101), "a.parquet is no Parquet, or damaged"),
    ] {
        let store = Arc::new(InMemory::new());
        put(&store, "a.parquet", bytes).await;
        let source = source(&store, &[("format", "parquet")]);
        let told_so = source.plan(&Position::new(), ALL).await.unwrap_err();
        assert!(told_so.to_string().contains(told) && !told_so.is_retryable(), "{told_so}");
    }
    let store = Arc::new(InMemory::new());
    put(&store, "a", "text").await;
    let source = source(&store, &[("format", "avro")]);
    let ranges = source.plan(&Position::new(), ALL).await.unwrap();
    let error = source.read(&ranges[0]).next().await.unwrap().unwrap_err().to_string();
    assert!(error.contains("memory://test/in/a is no file of Avro"), "{error}");
}

#[tokio::test]
async fn a_life_may_end_anywhere_and_each_line_comes_once() {
    let store = Arc::new(InMemory::new());
    let text: String = (0..300).map(|i| format!("first {i}\n")).collect();
    put(&store, "a", text.clone()).await;
    let (mut position, mut got, mut lives) = (Position::new(), Vec::new(), 0);
    loop {
        // Each life makes one plan, reads it once for nothing, and the next one reads it again.
        lives += 1;
        let planned = source(&store, &[]).plan(&position, Budget { bytes: 300, parallelism: 2, ..ALL }).await.unwrap();
        if planned.is_empty() {
            break;
        }
        for range in &planned {
            let mut chunks = source(&store, &[]).read(range);
            let _cut_off = chunks.next().await;
        }
        if lives == 2 {
            // While the program stands still one comes with an older name, and one with a newer.
            put(&store, "0", "old name\n").await;
            put(&store, "b", "new name\n").await;
        }
        for range in planned {
            let again = source(&store, &[]);
            got.extend(read(&again, &range).await.into_iter().map(|(_, r)| String::from_utf8(r).unwrap()));
            position.insert(range.partition, range.end);
        }
    }
    assert!(lives > 5);
    let mut want: Vec<String> = text.lines().chain(["old name", "new name"]).map(str::to_string).collect();
    want.sort();
    got.sort();
    assert_eq!(got, want);
    assert!(source(&store, &[]).is_exhausted(&position).await.unwrap());
}

#[tokio::test]
async fn an_object_that_changes_is_told_also_after_a_restart() {
    let store = Arc::new(InMemory::new());
    put(&store, "a", "1\n2\n3\n").await;
    put(&store, "b", "4\n").await;
    let first = source(&store, &[]);
    let mut position = Position::new();
    let planned = first.plan(&position, Budget { bytes: 2, ..ALL }).await.unwrap();
    assert_eq!(planned.len(), 1);
    position.insert(planned[0].partition.clone(), planned[0].end);
    // Between the plan and the read, and with the same length.
    put(&store, "a", "7\n8\n9\n").await;
    for life in [&first, &source(&store, &[])] {
        let error = life.read(&planned[0]).next().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("memory://test/in/a was replaced"), "{error}");
        assert!(!error.is_retryable());
        let error = life.plan(&position, ALL).await.unwrap_err();
        assert!(
            error.to_string().contains("in/a was replaced by other content after it had been read up to 2"),
            "{error}"
        );
    }
    // What nothing was read of may change.
    let version = Version::parse(&planned[0].partition).unwrap();
    assert_eq!(version.name, "a");
    assert_eq!(next(&source(&store, &[]), &mut Position::new()).await, ["7", "8", "9", "4"]);
}

#[tokio::test]
async fn an_object_that_goes_before_it_was_read_is_told() {
    let store = Arc::new(InMemory::new());
    for (name, text) in [("a", "1\n"), ("b", "2\n3\n"), ("c", "4\n")] {
        put(&store, name, text).await;
    }
    let source = source(&store, &[]);
    let mut position = Position::new();
    let planned = source.plan(&position, ALL).await.unwrap();
    // All of it was read: it may go.
    position.insert(planned[0].partition.clone(), planned[0].end);
    store.delete(&Key::from("in/a")).await.unwrap();
    assert_eq!(source.plan(&position, ALL).await.unwrap().len(), 2);
    position.insert(planned[1].partition.clone(), Offset(2));
    store.delete(&Key::from("in/b")).await.unwrap();
    let error = source.plan(&position, ALL).await.unwrap_err();
    assert!(error.to_string().contains("in/b is gone, and what is behind 2 of it was not read yet"), "{error}");
    let error = source.read(&planned[1]).next().await.unwrap().unwrap_err();
    assert!(error.to_string().contains("in/b is gone; its bytes [0, 4) were to be read"), "{error}");
    assert!(!error.is_retryable());
    store.delete(&Key::from("in/c")).await.unwrap();
    put(&store, "b", "2\n3\n").await;
    let error = source.plan(&position, ALL).await.unwrap_err();
    assert!(error.to_string().contains("in/b was replaced") || error.to_string().contains("in/c is gone"), "{error}");
}

#[tokio::test]
async fn new_names_are_found_soon_and_older_ones_by_the_sweep() {
    let store = Arc::new(InMemory::new());
    for n in 0..=PAGE {
        put(&store, &format!("m{n:05}"), "x\n").await;
    }
    let clock = Arc::new(ManualClock::default());
    let options = [("refresh", "5s"), ("sweep", "1m")];
    let source = source(&store, &options).clock(Arc::clone(&clock) as _);
    let mut position = Position::new();
    assert_eq!(next(&source, &mut position).await.len(), PAGE + 1);
    put(&store, "a", "older\n").await;
    put(&store, "z", "newer\n").await;
    assert_eq!(next(&source, &mut position).await, [""; 0], "nothing is asked before it is time to");
    clock.advance(Duration::from_secs(5));
    assert_eq!(next(&source, &mut position).await, ["newer"]);
    clock.advance(Duration::from_secs(54));
    assert_eq!(next(&source, &mut position).await, [""; 0]);
    clock.advance(Duration::from_secs(6));
    assert_eq!(next(&source, &mut position).await, ["older"]);
    assert_eq!(source.lag(&position).await.unwrap(), 0);
}

#[tokio::test]
async fn names_up_to_one_are_passed_over_and_drain_ends() {
    let store = Arc::new(InMemory::new());
    for day in ["2026-04-30", "2026-05-01", "2026-05-02"] {
        put(&store, &format!("{day}/x"), format!("{day}\n")).await;
    }
    let source = source(&store, &[("after", "2026-05-01")]);
    let all = read_all(&source).await;
    assert_eq!(all.len(), 2, "what lies in the folder is behind its name: {:?}", all.keys());
    let mut position = Position::new();
    assert!(!source.is_exhausted(&position).await.unwrap());
    assert_eq!(next(&source, &mut position).await, ["2026-05-01", "2026-05-02"]);
    assert!(source.is_exhausted(&position).await.unwrap());
    put(&store, "2026-05-03/x", "one more").await;
    assert!(!source.is_exhausted(&position).await.unwrap());
}

#[test]
fn wrong_options_are_named() {
    let store = Arc::new(InMemory::new());
    for (key, value) in [("header", "si"), ("max_line", "long"), ("refresh", "often"), ("format", "protobuf")] {
        let error = made(&store, &[(key, value)]).unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}`")) || error.contains("Protobuf"), "{error}");
    }
    let error = made(&store, &[("format", "avro"), ("registry", "http://localhost:1")]).unwrap_err().to_string();
    assert!(error.contains("leave out `registry`"), "{error}");
    assert!(source(&store, &[("format", "parquet")]).declare(None).unwrap_err().to_string().contains("no object yet"));
}
