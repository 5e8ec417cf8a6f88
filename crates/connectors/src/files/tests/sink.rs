//! The sink against the contract, on a disk that crashes.

use crate::{
    contract::{check_sink, rows, stage},
    files::{FileFormat, FilesSink},
};
use futures::{StreamExt, stream};
use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
};
use tempfile::TempDir;
use tidemill_core::{BatchId, Guarantee, Options, Result, Sink, StagedPart, Timestamp};
use tidemill_store::disk::{Disk, Fault, RealDisk, SimDisk, read_file};

/// All files that are shown, with what they hold; of Parquet the bytes as characters.
fn seen(disk: &dyn Disk, dir: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for name in disk.list(dir).unwrap_or_default().into_iter().filter(|name| !name.starts_with('.')) {
        let path = dir.join(&name);
        if name.contains('=') {
            found.extend(seen(disk, &path).into_iter().map(|(below, text)| (format!("{name}/{below}"), text)));
        } else {
            let bytes = read_file(disk, &path).unwrap();
            found.push((name, String::from_utf8(bytes).unwrap_or_else(|e| format!("{:?}", e.into_bytes()))));
        }
    }
    found
}

fn sinks(path: &Path, disk: &Arc<dyn Disk>) -> Vec<FilesSink> {
    let mut all = Vec::new();
    for format in [FileFormat::Json, FileFormat::Csv, FileFormat::Parquet] {
        all.push(FilesSink::new(path.join(format!("{format:?}")), format, Arc::clone(disk)));
        let by = FilesSink::new(path.join(format!("{format:?}-by")), format, Arc::clone(disk));
        all.push(by.partition_by("word"));
    }
    all
}

#[tokio::test]
async fn it_is_a_sink() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("deep/out");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    for number in 0..6 {
        let place = || sinks(&path, &disk).swap_remove(number);
        let at = sinks(&path, &disk)[number].place();
        check_sink(|| Arc::new(place()), || seen(&RealDisk, &at)).await;
        let text = format!("{:?}", walk(&at));
        assert!(!text.contains(".batch-"), "nothing staged is left: {text}");
        assert_eq!(walk(&at).len(), if number % 2 == 0 { 3 } else { 5 }, "{text}");
    }
}

#[tokio::test]
async fn a_file_in_place_of_its_directory_is_the_users_to_move() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("taken"), "mine").unwrap();
    let schema = rows([1]).schema();
    for path in ["taken", "taken/below"] {
        let path = dir.path().join(path);
        let sink = FilesSink::new(&path, FileFormat::Json, Arc::new(RealDisk));
        let error = sink.open(Arc::clone(&schema)).await.unwrap_err();
        assert!(!error.is_retryable(), "{error}");
        let text = error.chain();
        assert!(text.contains(&path.display().to_string()) && text.contains("Name another `path`"), "{text}");
    }
    assert_eq!(fs::read_to_string(dir.path().join("taken")).unwrap(), "mine");
}

fn walk(dir: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(walk(&path)) } else { all.push(path.display().to_string()) }
    }
    all
}

#[tokio::test]
async fn it_is_a_sink_on_a_disk_that_forgets_what_was_not_synced() {
    for seed in 0..20 {
        for number in 0..6 {
            let disk = Mutex::new(Arc::new(SimDisk::new()));
            let path = Path::new("/out");
            let place = |disk: &Arc<SimDisk>| {
                let disk: Arc<dyn Disk> = Arc::<SimDisk>::clone(disk);
                sinks(path, &disk).swap_remove(number)
            };
            let at = place(&disk.lock().unwrap()).place();
            let open = || -> Arc<dyn Sink> {
                let mut disk = disk.lock().unwrap();
                *disk = Arc::new(disk.crash(seed));
                Arc::new(place(&disk))
            };
            check_sink(open, || seen(&**disk.lock().unwrap(), &at)).await;
        }
    }
}

/// Batches until one fails: stage, the ledger's record, commit. What the ledger holds of the last one.
async fn life(sink: &dyn Sink, committed: &mut Option<(BatchId, Vec<StagedPart>)>) -> Result<()> {
    sink.open(rows([]).schema()).await?;
    if let Some((batch, parts)) = committed {
        sink.commit(*batch, parts).await?;
    }
    sink.recover(committed.as_ref().map(|(batch, _)| *batch)).await?;
    for batch in committed.as_ref().map_or(1, |(batch, _)| batch.0 + 1)..=4 {
        let mut parts = Vec::new();
        for part in 0..2 {
            let from = i64::try_from(batch * 10 + part).unwrap();
            let batches = stream::iter([Ok(rows([from])), Ok(rows([from + 2, 1]))]).boxed();
            let part = usize::try_from(part).unwrap();
            parts.extend(sink.stage(BatchId(batch), Timestamp(1), part, batches).await?);
        }
        *committed = Some((BatchId(batch), parts.clone()));
        sink.commit(BatchId(batch), &parts).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_crash_at_any_operation_neither_loses_nor_doubles_a_row() {
    for number in [0, 1, 4, 5] {
        let open = |disk: &SimDisk| {
            let disk: Arc<dyn Disk> = Arc::new(disk.clone());
            sinks(Path::new("/out"), &disk).swap_remove(number)
        };
        let undisturbed = SimDisk::new();
        let at = open(&undisturbed).place();
        life(&open(&undisturbed), &mut None).await.unwrap();
        let want = seen(&undisturbed, &at);
        assert_eq!(want.len(), if number % 2 == 0 { 8 } else { 24 });
        for op in 0..undisturbed.ops() {
            let (disk, mut committed) = (SimDisk::new(), None);
            disk.fail_at(op, Fault::Crash);
            life(&open(&disk), &mut committed).await.unwrap_err();
            let found = disk.crash(op);
            // Nothing that was not committed is seen, also before the next life has recovered.
            let last = committed.as_ref().map_or(0, |(batch, _): &(BatchId, _)| batch.0);
            let early = seen(&found, &at).into_iter().find(|(name, _)| {
                let batch = name.rsplit('/').next().unwrap()[6..18].parse::<u64>().unwrap();
                batch > last
            });
            assert_eq!(early, None, "sink {number}, operation {op}");
            life(&open(&found), &mut committed).await.unwrap();
            assert_eq!(seen(&found, &at), want, "sink {number}, operation {op}");
        }
    }
}

#[tokio::test]
async fn parquet_files_hold_the_rows_and_their_types() {
    let dir = TempDir::new().unwrap();
    let sink = FilesSink::new(dir.path(), FileFormat::Parquet, Arc::new(RealDisk));
    sink.open(rows([]).schema()).await.unwrap();
    let part = stage(&sink, 1, 0, vec![rows([1]), rows([]), rows(2..1000)]).await.unwrap();
    sink.commit(BatchId(1), &[part]).await.unwrap();
    let file = fs::File::open(dir.path().join("batch-000000000001-part-00000.parquet")).unwrap();
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let reader = reader.with_batch_size(2000).build().unwrap();
    let read: Vec<_> = reader.map(|rows| rows.unwrap()).collect();
    assert_eq!(read, [rows(1..1000)]);
}

#[tokio::test]
async fn too_many_directories_are_refused() {
    let dir = TempDir::new().unwrap();
    let sink = FilesSink::new(dir.path(), FileFormat::Json, Arc::new(RealDisk)).partition_by("n");
    sink.open(rows([]).schema()).await.unwrap();
    let staged = sink.stage(BatchId(1), Timestamp(1), 0, stream::iter([Ok(rows(0..1001))]).boxed()).await;
    let error = staged.unwrap_err().to_string();
    assert!(error.contains("more than 1000 directories"), "{error}");
}

#[tokio::test]
async fn files_hold_the_rows_of_one_batch_and_partition() {
    let dir = TempDir::new().unwrap();
    let options = |format: &str| {
        Options::new(
            "sink",
            [("path", dir.path().join(format).to_string_lossy().into_owned()), ("format", format.into())],
        )
    };
    for format in ["json", "csv"] {
        let options = options(format);
        let sink = FilesSink::from_options(&options).unwrap();
        options.finish().unwrap();
        assert_eq!(sink.guarantee(), Guarantee::ExactlyOnce);
        sink.open(rows([]).schema()).await.unwrap();
        let part = stage(&sink, 12, 3, vec![rows([1]), rows([2])]).await.unwrap();
        sink.commit(BatchId(12), &[part]).await.unwrap();
        let got = seen(&RealDisk, &dir.path().join(format));
        let text = match format {
            "json" => "{\"n\":1,\"word\":\"word-1\"}\n{\"n\":2,\"word\":\"word-2\"}\n",
            _ => "n,word\n1,word-1\n2,word-2\n",
        };
        assert_eq!(got, [(format!("batch-000000000012-part-00003.{format}"), text.to_string())]);
    }
    let text = FilesSink::from_options(&options("text")).unwrap();
    let error = text.open(rows([]).schema()).await.unwrap_err();
    assert!(error.to_string().contains("one column of TEXT, not (n Int64, word Utf8)"), "{error}");
    let words = rows([5, 6]).project(&[1]).unwrap();
    text.open(words.schema()).await.unwrap();
    let part = stage(&text, 1, 0, vec![words]).await.unwrap();
    text.commit(BatchId(1), &[part]).await.unwrap();
    let got = seen(&RealDisk, &dir.path().join("text"));
    assert_eq!(got, [("batch-000000000001-part-00000.txt".to_string(), "word-5\nword-6\n".to_string())]);
}

#[tokio::test]
async fn a_committed_part_that_is_gone_is_said() {
    let dir = TempDir::new().unwrap();
    let sink = FilesSink::new(dir.path(), FileFormat::Json, Arc::new(RealDisk));
    sink.open(rows([]).schema()).await.unwrap();
    let part = stage(&sink, 1, 0, vec![rows([1])]).await.unwrap();
    sink.recover(None).await.unwrap();
    let error = sink.commit(BatchId(1), &[part]).await.unwrap_err();
    assert!(error.to_string().contains("neither staged nor in"), "{error}");
}

#[test]
fn a_directory_is_claimed_however_it_is_written() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("there")).unwrap();
    let claim = |path: &str, by: &str| {
        let sink = FilesSink::new(dir.path().join(path), FileFormat::Json, Arc::new(RealDisk)).partition_by(by);
        sink.claim().unwrap()
    };
    assert!(claim("two", "").clashes(&claim("there/../two/", "")), "before it is there");
    assert!(!claim("two", "").clashes(&claim("two/three", "")) && !claim("two", "day").clashes(&claim("two/late", "")));
    assert!(claim("two", "day").clashes(&claim("two/day=1", "")), "a directory that its rows may name");
}

#[cfg(feature = "protobuf")]
#[tokio::test]
async fn messages_lie_behind_their_lengths() {
    let dir = TempDir::new().unwrap();
    let schema = "syntax = \"proto3\"; message Row { string word = 1; sint64 n = 300; }";
    let sink = |path: &str, more: &[(&str, &str)]| {
        let path = dir.path().join(path).display().to_string();
        let options = [("path", path.as_str()), ("format", "protobuf"), ("schema", schema), ("message", "Row")];
        let options = Options::new("sink \"out\"", options.iter().chain(more).copied());
        let sink = FilesSink::from_options(&options)?;
        options.finish()?;
        Ok::<_, tidemill_core::Error>(sink)
    };
    check_sink(|| Arc::new(sink("whole", &[]).unwrap()), || seen(&RealDisk, &dir.path().join("whole"))).await;
    let row = |n: u8| {
        format!("\u{b}\n\u{6}word-{n}\u{e0}\u{12}{}", char::from(2 * n)).chars().map(|c| c as u8).collect::<Vec<_>>()
    };
    let first = fs::read(dir.path().join("whole/batch-000000000001-part-00000.protobuf")).unwrap();
    assert_eq!(first, [row(1), row(2), row(3)].concat());
    // What names the directory is not in the message, which need not have it.
    let by = sink("by", &[("partition_by", "n")]).unwrap();
    by.open(rows([]).schema()).await.unwrap();
    let part = stage(&by, 1, 0, vec![rows([7])]).await.unwrap();
    by.commit(BatchId(1), &[part]).await.unwrap();
    let name = "n=7/batch-000000000001-part-00000.protobuf".to_string();
    assert_eq!(seen(&RealDisk, &dir.path().join("by")), [(name, "\u{8}\n\u{6}word-7".to_string())]);

    let other = sink("other", &[]).unwrap();
    let unknown = rows([1]).project(&[0]).unwrap();
    let columns = unknown.schema().fields().iter().map(|f| f.as_ref().clone().with_name("m")).collect::<Vec<_>>();
    let error = other.takes(&Arc::new(arrow_schema::Schema::new(columns))).unwrap_err().to_string();
    assert!(error.contains("the message Row has no field `m`"), "{error}");
    let none = Options::new("sink \"out\"", [("path", "x"), ("format", "protobuf")]);
    let error = FilesSink::from_options(&none).unwrap_err().to_string();
    assert!(error.contains("format `protobuf` needs a schema"), "{error}");
}
