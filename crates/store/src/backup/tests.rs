//! Flips and cuts over a whole directory, and backups that were broken off.

use super::*;
use crate::{
    DataDir, Ledger, StateFiles,
    ledger::Committed,
    log::{Log, TopicConfig},
};
use arrow_array::{Int64Array, RecordBatch};
use std::{collections::BTreeMap, fs, sync::Arc};
use tempfile::TempDir;
use tidemill_core::{Batch, BatchId, ManualClock, Offset, OffsetRange};

const NOW: Timestamp = Timestamp(1_769_871_600_000_000);

fn rows(numbers: std::ops::Range<i64>) -> RecordBatch {
    RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from_iter_values(numbers)) as _)]).unwrap()
}

/// A directory with a log, a ledger and a state of seven batches; closed, unless `open` keeps it.
fn data(dir: &Path) {
    let owner = DataDir::open(dir).unwrap();
    let log = Log::open(owner.disk(), &dir.join("log"), Arc::new(ManualClock::default())).unwrap();
    let config = TopicConfig { segment_bytes: 4 << 10, ..TopicConfig::new(rows(0..0).schema()) };
    let topic = log.create_topic("numbers", &config).unwrap();
    log.create_topic("empty", &config).unwrap();
    let program = dir.join("programs/p");
    let mut ledger = Ledger::open(owner.disk(), &program.join("ledger")).unwrap();
    let mut state = StateFiles::open(owner.disk(), &program.join("state/sum"), "sum", rows(0..0).schema()).unwrap();
    for id in 1..=7 {
        let (from, to) = (100 * (id - 1), 100 * id);
        topic.append(0, &rows(from..to), None).unwrap();
        let at = |n: i64| Offset(n.unsigned_abs());
        topic.sync_to(0, at(to)).unwrap();
        let range = OffsetRange { partition: 0.into(), start: at(from), end: at(to) };
        let batch = BatchId(id.unsigned_abs());
        let time = Timestamp(id * 1_000_000);
        ledger.plan(&Batch { id: batch, time, ranges: [("numbers".to_string(), vec![range])].into() }).unwrap();
        state.save_delta(batch, &[rows(id..id + 1)]).unwrap();
        if id == 4 {
            state.save_snapshot(batch, [rows(0..id)].into_iter()).unwrap();
        }
        ledger.commit(Committed { batch, time, ..Committed::default() }).unwrap();
    }
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = Vec::new();
    capture::list(dir, "", &mut names, &mut Vec::new()).unwrap();
    names.into_iter().map(|name| (name.clone(), fs::read(dir.join(&name)).unwrap())).collect()
}

/// Changes a file in many ways, one after the other; each must be found, and named.
fn all_is_found(dir: &Path, name: &str, find: impl Fn() -> Verified, cuts: bool) {
    let path = dir.join(name);
    let whole = fs::read(&path).unwrap();
    // Odd, so that all bits and all places of a header come up.
    let stride = (whole.len() / 24).max(1) | 1;
    let mut broken = Vec::new();
    for at in (0..whole.len()).step_by(stride) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        broken.push((format!("bit flipped at {at}"), bytes));
        if cuts {
            broken.push((format!("cut at {at}"), whole[..at].to_vec()));
        }
    }
    for (how, bytes) in broken {
        fs::write(&path, bytes).unwrap();
        let found = find();
        let named =
            found.findings.iter().any(|f| f.path.starts_with(path.parent().unwrap()) || path.starts_with(&f.path));
        assert!(named, "{name}: {how}: {:?}", found.findings);
    }
    fs::write(&path, whole).unwrap();
}

#[test]
fn what_is_whole_is_called_so() {
    let tmp = TempDir::new().unwrap();
    let dir = tmp.path().join("data");
    data(&dir);
    let verified = verify(&dir).unwrap();
    assert_eq!(verified.findings, []);
    assert_eq!(verified.batches, [("p".to_string(), BatchId(7))].into());
    assert_eq!(verified.files, contents(&dir).len());
    assert!(fs::read_dir(&dir).unwrap().all(|e| !e.unwrap().file_name().to_string_lossy().starts_with(".capture")));
    assert!(verify(tmp.path()).unwrap_err().to_string().contains("neither a data directory nor a backup"));
}

#[test]
fn a_stream_is_looked_for_in_the_topic_that_it_reads_whatever_it_is_called() {
    let tmp = TempDir::new().unwrap();
    let dir = tmp.path().join("data");
    data(&dir);
    {
        let owner = DataDir::open(&dir).unwrap();
        let log = Log::open(owner.disk(), &dir.join("log"), Arc::new(ManualClock::default())).unwrap();
        // The stream `numbers` reads the topic `empty`, as the stream `empty` does not any more.
        let place = BTreeMap::from([(0, Offset(0))]);
        log.topic("empty").unwrap().append(0, &rows(0..600), None).unwrap();
        log.topic("empty").unwrap().pin("p/numbers", &place).unwrap();
    }
    let damage = |dir: &Path| verify(dir).unwrap().damage().map(ToString::to_string).collect::<Vec<_>>();
    let found = damage(&dir);
    assert_eq!(found.len(), 1, "{found:?}");
    let told = "log/empty/0: program `p` has read up to offset 700, and the log holds [0, 600)";
    assert!(found[0].ends_with(told), "{found:?}");
    {
        let owner = DataDir::open(&dir).unwrap();
        let log = Log::open(owner.disk(), &dir.join("log"), Arc::new(ManualClock::default())).unwrap();
        log.topic("empty").unwrap().append(0, &rows(0..100), None).unwrap();
    }
    assert_eq!(damage(&dir), [""; 0]);
    fs::remove_dir_all(dir.join("log/numbers")).unwrap();
    assert_eq!(damage(&dir), [""; 0], "the topic of its name is another's");
    {
        let owner = DataDir::open(&dir).unwrap();
        let log = Log::open(owner.disk(), &dir.join("log"), Arc::new(ManualClock::default())).unwrap();
        let config = TopicConfig::new(rows(0..0).schema());
        log.create_topic("numbers", &config).unwrap().append(0, &rows(0..3), None).unwrap();
    }
    assert_eq!(damage(&dir), [""; 0], "as one is that has come since");
}

#[test]
fn every_flip_and_every_cut_in_a_data_directory_is_found() {
    let tmp = TempDir::new().unwrap();
    let dir = tmp.path().join("data");
    data(&dir);
    let before = contents(&dir);
    for name in before.keys() {
        // A ledger that is cut between two records looks like one that was not written on yet.
        let cuts = !name.ends_with(".ledger");
        all_is_found(&dir, name, || verify(&dir).unwrap(), cuts);
    }
    assert_eq!(contents(&dir), before, "looking changed nothing");
    for name in before.keys().filter(|name| name.contains("/state/") || name.ends_with(".seg")) {
        let base = name.contains("/state/") && name.as_str() <= "programs/p/state/sum/00000000000000000004.snap";
        // Retention may have removed the first segment, and the last version need not have changed anything.
        let fine = base || name.ends_with("7.delta") || name.ends_with("/00000000000000000000.seg");
        fs::remove_file(dir.join(name)).unwrap();
        assert_eq!(verify(&dir).unwrap().damage().count() == 0, fine, "{name} is gone");
        fs::write(dir.join(name), &before[name]).unwrap();
    }
}

#[test]
fn every_flip_and_every_cut_in_a_backup_is_found() {
    let tmp = TempDir::new().unwrap();
    let (dir, copy) = (tmp.path().join("data"), tmp.path().join("copy"));
    data(&dir);
    let made = backup(&dir, &copy, NOW).unwrap();
    assert_eq!((made.files(), made.made), (contents(&dir).len(), NOW));
    assert_eq!(made.batches, [("p".to_string(), BatchId(7))].into());
    assert_eq!(verify(&copy).unwrap().findings, []);
    for name in contents(&copy).keys().map(String::as_str) {
        let find = || verify(&copy).unwrap();
        all_is_found(&copy, name, find, true);
    }
    let manifest = fs::read(copy.join("BACKUP.json")).unwrap();
    let digit = manifest.iter().position(u8::is_ascii_digit).unwrap();
    for at in [digit, manifest.len() / 2, manifest.len() - 3] {
        let mut bytes = manifest.clone();
        bytes[at] ^= 1;
        fs::write(copy.join("BACKUP.json"), bytes).unwrap();
        let found = verify(&copy).map_or_else(|_| 1, |verified| verified.damage().count());
        assert!(found > 0, "a list that was changed at byte {at}");
        assert!(restore(&copy, &tmp.path().join("not")).is_err());
    }
}

#[test]
fn a_restored_directory_is_the_one_that_was_backed_up() {
    let tmp = TempDir::new().unwrap();
    let (dir, copy, back) = (tmp.path().join("data"), tmp.path().join("copy"), tmp.path().join("a/back"));
    data(&dir);
    backup(&dir, &copy, NOW).unwrap();
    assert!(backup(&dir, &copy, NOW).unwrap_err().to_string().contains("holds `BACKUP.json` already"));
    assert!(restore(&copy, &dir).unwrap_err().to_string().contains("needs an empty directory"));
    restore(&copy, &back).unwrap();
    assert_eq!(contents(&back), contents(&dir));
    let owner = DataDir::open(&back).unwrap();
    let ledger = Ledger::open(owner.disk(), &back.join("programs/p/ledger")).unwrap();
    assert_eq!(ledger.last().unwrap().batch, BatchId(7));
}

#[test]
fn what_was_broken_off_is_refused() {
    let tmp = TempDir::new().unwrap();
    let (dir, copy, back) = (tmp.path().join("data"), tmp.path().join("copy"), tmp.path().join("back"));
    data(&dir);
    backup(&dir, &copy, NOW).unwrap();
    let segment = copy.join("log/numbers/0/00000000000000000000.seg");
    let whole = fs::read(&segment).unwrap();
    fs::write(&segment, &whole[..whole.len() - 1]).unwrap();
    let error = restore(&copy, &back).unwrap_err().to_string();
    assert!(error.contains("00000000000000000000.seg is damaged"), "{error}");
    let error = DataDir::open(&back).unwrap_err().to_string();
    assert!(error.contains("the restore into") && error.contains("was not finished"), "{error}");
    fs::remove_file(copy.join("BACKUP.json")).unwrap();
    assert!(restore(&copy, &tmp.path().join("c")).unwrap_err().to_string().contains("no whole backup"));

    // Damage in the source is found before the copy counts.
    let segment = dir.join("log/numbers/0/00000000000000000000.seg");
    let mut bytes = whole;
    bytes[200] ^= 1;
    fs::write(segment, bytes).unwrap();
    let error = backup(&dir, &tmp.path().join("d"), NOW).unwrap_err().to_string();
    assert!(error.contains("is damaged, and so is the copy"), "{error}");
    assert!(!tmp.path().join("d/BACKUP.json").exists());
}

#[test]
fn what_a_dead_process_left_is_removed() {
    let tmp = TempDir::new().unwrap();
    let dir = tmp.path().join("data");
    data(&dir);
    let left = dir.join(format!(".capture-{}-0", u32::MAX));
    fs::create_dir(&left).unwrap();
    fs::hard_link(dir.join("FORMAT"), left.join("0")).unwrap();
    assert_eq!(verify(&dir).unwrap().findings, []);
    assert!(!left.exists() && dir.join("FORMAT").exists());
}
