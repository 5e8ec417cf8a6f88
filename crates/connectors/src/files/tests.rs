//! The source against the contract, and files that change.

use super::*;
use crate::contract::{check_source, read, read_all};
use std::{
    fs,
    io::Write,
    path::Path,
    time::{Duration, SystemTime},
};
use tempfile::TempDir;
use tidemill_core::{Budget, Offset, OffsetRange, PartitionId, Position, Source};

const ALL: Budget = Budget { records: u64::MAX, bytes: u64::MAX, parallelism: 1 };

fn dir(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn source(path: &Path) -> FilesSource {
    FilesSource::new(&path.to_string_lossy()).unwrap().complete(Complete::Always)
}

fn append(path: &Path, text: &str) {
    fs::OpenOptions::new().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

/// All records of a source, without their places.
async fn texts(source: &dyn Source) -> Vec<String> {
    let all = read_all(source).await;
    all.into_values().flatten().map(|(_, r)| String::from_utf8(r).unwrap()).collect()
}

async fn next(source: &dyn Source, position: &mut Position) -> Vec<String> {
    let mut texts = Vec::new();
    for range in source.plan(position, ALL).await.unwrap() {
        texts.extend(read(source, &range).await.into_iter().map(|(_, r)| String::from_utf8(r).unwrap()));
        position.insert(range.partition, range.end);
    }
    texts
}

#[tokio::test]
async fn it_is_a_source() {
    // Small lines, lines larger than a piece, an end without a newline, an empty file, carriage returns.
    let mut large = String::new();
    for i in 0..40_000 {
        large.push_str(&format!("line {i} {}\n", "x".repeat(i % 50)));
    }
    let long = format!("{}\nshort\n{}\n", "y".repeat(400 << 10), "z".repeat(300 << 10));
    let dir = dir(&[("a.log", &large), ("b.log", "one\r\ntwo\n\nlast"), ("c.log", ""), ("d.log", &long)]);
    let all = check_source(&source(dir.path()), 3).await;
    let of = |name: &str| &all[&PartitionId::new(name)];
    let lines: Vec<&[u8]> = of("a.log").iter().map(|(_, r)| r.as_slice()).collect();
    assert_eq!(lines, large.lines().map(str::as_bytes).collect::<Vec<_>>());
    let b: Vec<(u64, &[u8])> = of("b.log").iter().map(|(o, r)| (*o, r.as_slice())).collect();
    assert_eq!(b, [(0, b"one".as_slice()), (5, b"two"), (9, b""), (10, b"last")]);
    assert_eq!(of("d.log").iter().map(|(_, r)| r.len()).collect::<Vec<_>>(), [400 << 10, 5, 300 << 10]);
    assert!(!all.contains_key(&PartitionId::new("c.log")));
}

#[tokio::test]
async fn a_large_file_is_cut_into_like_ranges_that_touch() {
    let text: String = (0..100_000).map(|i| format!("record number {i}\n")).collect();
    let dir = dir(&[("big", &text)]);
    let source = source(dir.path());
    let ranges = source.plan(&Position::new(), Budget { parallelism: 4, ..ALL }).await.unwrap();
    assert_eq!(ranges.len(), 4);
    assert!(ranges.windows(2).all(|w| w[0].end == w[1].start) && ranges[3].end.0 == text.len() as u64);
    let share = text.len() as u64 / 4;
    assert!(ranges.iter().all(|r| r.len().abs_diff(share) < 100), "{ranges:?}");
}

#[tokio::test]
async fn budgets_bound_a_plan() {
    let text: String = (0..10_000).map(|i| format!("record {i:05}\n")).collect();
    let dir = dir(&[("a", &text), ("b", &text)]);
    let source = source(dir.path());
    let by_bytes = source.plan(&Position::new(), Budget { bytes: 1000, ..ALL }).await.unwrap();
    assert_eq!(by_bytes.iter().map(OffsetRange::len).sum::<u64>(), 1001);
    let by_records = source.plan(&Position::new(), Budget { records: 100, ..ALL }).await.unwrap();
    assert_eq!(by_records.iter().map(OffsetRange::len).sum::<u64>(), 1300);
    let across = source.plan(&Position::new(), Budget { bytes: 140_000, ..ALL }).await.unwrap();
    assert_eq!(across.len(), 2);
    assert_eq!((across[0].len(), across[1].len()), (130_000, 10_010));
}

#[tokio::test]
async fn what_is_being_prepared_is_passed_over_and_globs_choose() {
    let dir = dir(&[
        ("a.json", "1\n"),
        (".hidden", "x\n"),
        ("_SUCCESS", "x\n"),
        ("b.tmp", "x\n"),
        ("c.txt", "2\n"),
        ("sub/d.json", "3\n"),
        ("sub/deep/e.json", "4\n"),
    ]);
    assert_eq!(texts(&source(dir.path())).await, ["1", "2"]);
    let glob = |pattern: &str| source(&dir.path().join(pattern));
    assert_eq!(texts(&glob("*.json")).await, ["1"]);
    assert_eq!(texts(&glob("*/*.json")).await, ["3"]);
    assert_eq!(texts(&glob("**/*.json")).await, ["1", "3", "4"]);
    assert_eq!(texts(&glob("c.txt")).await, ["2"]);
    assert!(FilesSource::new(&dir.path().join("nothing").to_string_lossy()).is_err());
}

#[tokio::test]
async fn files_that_come_and_grow_are_read_once() {
    let dir = dir(&[("a", "1\n2\nhal")]);
    let source = source(dir.path()).complete(Complete::Never);
    let mut position = Position::new();
    assert_eq!(next(&source, &mut position).await, ["1", "2"]);
    assert_eq!(next(&source, &mut position).await, [""; 0]);
    assert!(source.is_exhausted(&position).await.unwrap());
    append(&dir.path().join("a"), "f\n");
    fs::write(dir.path().join("b"), "new\n").unwrap();
    assert!(!source.is_exhausted(&position).await.unwrap());
    assert_eq!(next(&source, &mut position).await, ["half", "new"]);
    assert_eq!(next(&source, &mut position).await, [""; 0]);
}

#[tokio::test]
async fn a_last_line_without_its_end_is_taken_when_its_file_has_settled() {
    let dir = dir(&[("a", "1\nlast")]);
    let path = dir.path().join("a");
    let source = FilesSource::new(&dir.path().to_string_lossy()).unwrap();
    let mut position = Position::new();
    assert_eq!(next(&source, &mut position).await, ["1"]);
    assert!(!source.is_exhausted(&position).await.unwrap());
    let long_ago = SystemTime::now() - Duration::from_secs(60);
    fs::File::options().append(true).open(&path).unwrap().set_modified(long_ago).unwrap();
    assert_eq!(next(&source, &mut position).await, ["last"]);
    assert!(source.is_exhausted(&position).await.unwrap());
    // Its end comes after all, and more: no empty record between.
    append(&path, "\r\nmore\n");
    assert_eq!(next(&source, &mut position).await, ["more"]);
}

#[tokio::test]
async fn what_is_gone_is_an_error_with_the_gap() {
    let dir = dir(&[("a", "1\n2\n3\n"), ("b", "1\n")]);
    let a = dir.path().join("a");
    let source = source(dir.path());
    let mut position = Position::new();
    next(&source, &mut position).await;
    fs::write(&a, "1\n").unwrap();
    let error = source.plan(&position, ALL).await.unwrap_err();
    assert!(error.to_string().contains("[2, 6) are gone"), "{error}");
    // The same when a range is read again.
    let range = OffsetRange { partition: PartitionId::new("a"), start: Offset(0), end: Offset(6) };
    let mut chunks = source.read(&range);
    let error = futures::StreamExt::next(&mut chunks).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("[2, 6)"), "{error}");
    // Replaced by another file of the same length.
    fs::write(dir.path().join("other.tmp"), "4\n5\n6\n").unwrap();
    fs::rename(dir.path().join("other.tmp"), &a).unwrap();
    let error = source.plan(&position, ALL).await.unwrap_err();
    assert!(error.to_string().contains("replaced"), "{error}");
}

#[tokio::test]
async fn a_file_that_vanishes_before_it_was_read_is_an_error() {
    let dir = dir(&[("a", "1\n2\n"), ("b", "3\n")]);
    let source = source(dir.path());
    let ranges = source.plan(&Position::new(), Budget { bytes: 2, ..ALL }).await.unwrap();
    assert_eq!(ranges.len(), 1);
    let position = Position::from([(ranges[0].partition.clone(), ranges[0].end)]);
    fs::remove_file(dir.path().join("a")).unwrap();
    let error = source.plan(&position, ALL).await.unwrap_err();
    assert!(error.to_string().contains("[2, 4) were not read"), "{error}");
}

#[tokio::test]
async fn a_file_that_was_read_may_go() {
    let dir = dir(&[("a", "1\n"), ("b", "2\n")]);
    let source = source(dir.path());
    let mut position = Position::new();
    assert_eq!(next(&source, &mut position).await, ["1", "2"]);
    fs::remove_file(dir.path().join("a")).unwrap();
    fs::write(dir.path().join("c"), "3\n").unwrap();
    assert_eq!(next(&source, &mut position).await, ["3"]);
}

#[tokio::test]
async fn a_line_over_the_bound_is_refused_and_the_rest_is_read() {
    // One longer than a piece, one within a piece, one at the very end.
    let text = format!("a\n{}\nb\n{}\nc\n{}", "x".repeat(1 << 20), "y".repeat(2000), "z".repeat(3000));
    let dir = dir(&[("a", &text)]);
    let source = source(dir.path()).max_line(1000);
    let all = read_all(&source).await;
    let records = &all[&PartitionId::new("a")];
    let texts: Vec<String> = records.iter().map(|(_, r)| String::from_utf8(r.clone()).unwrap()).collect();
    let reason = |len: usize| format!("a line of {len} bytes, over the bound of 1000 (option `max_line`)");
    assert_eq!(texts, ["a".to_string(), reason(1 << 20), "b".into(), reason(2000), "c".into(), reason(3000)]);
}

#[tokio::test]
async fn latest_begins_at_the_end_of_what_is_there() {
    let dir = dir(&[("a", "old\n")]);
    let options = Options::new("s", [("path", dir.path().to_string_lossy()), ("start", "latest".into())]);
    let source = FilesSource::from_options(&options).unwrap().complete(Complete::Always);
    let mut position = Position::new();
    assert_eq!(next(&source, &mut position).await, [""; 0]);
    append(&dir.path().join("a"), "new\n");
    fs::write(dir.path().join("b"), "all\n").unwrap();
    assert_eq!(next(&source, &mut position).await, ["new", "all"]);
}

#[tokio::test]
async fn a_header_is_no_record_and_names_sampled_columns() {
    let dir = dir(&[("a.csv", "id,word\n1,x\n"), ("b.csv", "id,word\n2,y\n")]);
    let path = dir.path().to_string_lossy();
    let options = Options::new("s", [("connector", "files"), ("path", &*path), ("header", "true"), ("format", "csv")]);
    let registry = crate::registry();
    let tidemill_core::Input::Source(source) = registry.input(&options).unwrap() else { panic!("a source") };
    let format = registry.format(&options, None).unwrap();
    options.finish().unwrap();
    assert_eq!(format.schema().field(0).data_type(), &arrow_schema::DataType::Int64);
    let long_ago = SystemTime::now() - Duration::from_secs(60);
    fs::File::options().append(true).open(dir.path().join("a.csv")).unwrap().set_modified(long_ago).unwrap();
    assert_eq!(texts(&*source).await, ["1,x", "2,y"]);
}

#[test]
fn wrong_options_are_named() {
    for (key, value) in [("start", "middle"), ("complete", "maybe"), ("header", "si"), ("max_line", "long")] {
        let error = FilesSource::from_options(&Options::new("s", [("path", "."), (key, value)])).unwrap_err();
        assert!(error.to_string().contains(&format!("`{key}`")), "{error}");
    }
}

#[tokio::test]
async fn files_of_avro_are_a_source_with_the_columns_of_their_schema() {
    let schema = r#"{"type":"record","name":"R","fields":[{"name":"n","type":"int"}]}"#;
    let file = |from: u8, codec: &str| {
        let block = |block: u8| (0..5).map(|i| vec![2 * (from + block * 5 + i)]).collect::<Vec<_>>();
        crate::format::avro::file::tests::container(schema, codec, &(0..4).map(block).collect::<Vec<_>>())
    };
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.avro"), file(0, "null")).unwrap();
    fs::write(dir.path().join("b.avro"), file(20, "zstandard")).unwrap();
    let path = dir.path().to_string_lossy();
    let options =
        Options::new("s", [("connector", "files"), ("path", &*path), ("format", "avro"), ("complete", "true")]);
    let registry = crate::registry();
    let tidemill_core::Input::Source(source) = registry.input(&options).unwrap() else { panic!("a source") };
    let format = source.format(None, &|columns| registry.format(&options, columns)).unwrap();
    options.finish().unwrap();
    assert_eq!(format.schema().field(0).data_type(), &arrow_schema::DataType::Int32);
    let all = check_source(&*source, 9).await;
    let numbers =
        |name: &str| all[&PartitionId::new(name)].iter().map(|(_, record)| record[10] / 2).collect::<Vec<_>>();
    assert_eq!((numbers("a.avro"), numbers("b.avro")), ((0..20).collect(), (20..40).collect()));
    // What was read is not taken for another file; one that is no file of Avro is told.
    fs::write(dir.path().join("a.avro"), &file(0, "null")[..60]).unwrap();
    let whole = Position::from([(PartitionId::new("a.avro"), Offset(100 << 16))]);
    let error = source.plan(&whole, ALL).await.unwrap_err().to_string();
    assert!(error.contains("[60, 100) are gone"), "{error}");
    fs::write(dir.path().join("c.avro"), "text\n").unwrap();
    let range = OffsetRange { partition: PartitionId::new("c.avro"), start: Offset(0), end: Offset(5 << 16) };
    let error = futures::StreamExt::next(&mut source.read(&range)).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("c.avro is no file of Avro"), "{error}");
    let never = Options::new("s", [("path", &*path), ("format", "avro"), ("complete", "false")]);
    assert!(FilesSource::from_options(&never).unwrap_err().to_string().contains("`complete`"));
}

mod sink;
