//! The simulated disk loses what it may and keeps what it must.

use super::*;
use std::collections::BTreeSet;

fn write(disk: &dyn Disk, path: &str, bytes: &[u8], sync: bool) -> Arc<dyn DiskFile> {
    let path = Path::new(path);
    let file = disk.open(path, if disk.exists(path) { Mode::Append } else { Mode::Create }).unwrap();
    file.append(&[IoSlice::new(bytes)]).unwrap();
    if sync {
        file.sync().unwrap();
    }
    file
}

#[test]
fn both_disks_do_the_same() {
    let tmp = tempfile::tempdir().unwrap();
    let sim = SimDisk::new();
    for (disk, root) in [(&RealDisk as &dyn Disk, tmp.path()), (&sim, Path::new("/"))] {
        let dir = root.join("a/b");
        create_dir(disk, &dir).unwrap();
        create_dir(disk, &dir).unwrap();
        let path = dir.join("f");
        let file = disk.open(&path, Mode::Create).unwrap();
        file.append(&[IoSlice::new(b""), IoSlice::new(b"one"), IoSlice::new(b""), IoSlice::new(b"two")]).unwrap();
        let mut three = [0; 3];
        file.read_at(2, &mut three).unwrap();
        assert_eq!(&three, b"etw");
        assert_eq!(file.read_at(4, &mut three).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        file.truncate(4).unwrap();
        file.append(&[IoSlice::new(b"!")]).unwrap();
        file.sync().unwrap();
        assert_eq!(read_file(disk, &path).unwrap(), b"onet!");
        assert_eq!(file.len().unwrap(), 5);
        assert!(disk.open(&path, Mode::Read).unwrap().append(&[IoSlice::new(b"x")]).is_err());
        assert_eq!(disk.open(&dir.join("no"), Mode::Append).unwrap_err().kind(), io::ErrorKind::NotFound);

        atomic_write(disk, &path, b"new").unwrap();
        // An open file stays what it was.
        assert_eq!(file.len().unwrap(), 5);
        assert_eq!(read_file(disk, &path).unwrap(), b"new");
        assert_eq!(disk.list(&dir).unwrap(), ["f"]);
        assert!(disk.list(&path).is_err() && disk.remove_dir(&dir).is_err() && disk.remove(&dir).is_err());
        assert_eq!(disk.open(&path, Mode::Create).unwrap().len().unwrap(), 0);
        disk.remove(&path).unwrap();
        assert!(!disk.exists(&path) && disk.remove(&path).is_err());
        disk.remove_dir(&dir).unwrap();
        disk.sync_dir(root).unwrap();
    }
}

#[test]
fn a_directory_that_is_made_at_the_second_try_survives() {
    let path = Path::new("/a/b/c");
    let whole = SimDisk::new();
    create_dir(&whole, path).unwrap();
    for op in 0..whole.ops() {
        let disk = SimDisk::new();
        disk.fail_at(op, Fault::Eio);
        create_dir(&disk, path).unwrap_err();
        create_dir(&disk, path).unwrap();
        assert!(disk.crash_at_worst(false).exists(path), "an error at operation {op}");
    }
}

#[test]
fn what_is_synced_survives_and_the_rest_meets_every_fate() {
    let mut fates = BTreeSet::new();
    for seed in 0..300 {
        let disk = SimDisk::new();
        write(&disk, "/f", b"safe", true);
        disk.sync_dir(Path::new("/")).unwrap();
        write(&disk, "/f", b"1111", false);
        write(&disk, "/f", b"2222", false);
        let after = disk.crash(seed);
        assert!(disk.open(Path::new("/f"), Mode::Read).is_err(), "the old machine is gone");
        let bytes = after.contents(Path::new("/f")).unwrap();
        assert!(bytes.starts_with(b"safe") && bytes.len() <= 12);
        assert_eq!(disk.crash(seed).contents(Path::new("/f")).unwrap(), bytes, "a seed gives one fate");
        fates.insert(bytes);
    }
    let has = |bytes: &[u8]| fates.contains(bytes);
    assert!(has(b"safe") && has(b"safe11112222") && has(b"safe1111") && has(b"safe\0\0\0\x002222"));
    assert!(has(b"safe11112") && has(b"safe11\0\0"), "{fates:?}");
}

#[test]
fn names_need_their_directory_synced() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..100 {
        let disk = SimDisk::new();
        write(&disk, "/old", b"old", true);
        disk.sync_dir(Path::new("/")).unwrap();
        write(&disk, "/old.tmp", b"new", true);
        disk.rename(Path::new("/old.tmp"), Path::new("/old")).unwrap();
        match disk.crash(seed).contents(Path::new("/old")).as_deref() {
            Some(b"old") => lost += 1,
            Some(b"new") => kept += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(lost > 10 && kept > 10);
}

#[test]
fn an_atomic_write_is_old_or_new_wherever_it_crashes() {
    let ops = {
        let disk = SimDisk::new();
        atomic_write(&disk, Path::new("/f"), b"old").unwrap();
        let before = disk.ops();
        atomic_write(&disk, Path::new("/f"), b"newer").unwrap();
        before..disk.ops()
    };
    assert_eq!(ops.end - ops.start, 5);
    for op in ops {
        for seed in 0..50 {
            let disk = SimDisk::new();
            atomic_write(&disk, Path::new("/f"), b"old").unwrap();
            disk.fail_at(op, Fault::Crash);
            let done = atomic_write(&disk, Path::new("/f"), b"newer").is_ok();
            let bytes = disk.crash(seed).contents(Path::new("/f")).unwrap();
            assert!(bytes == b"newer" || (bytes == b"old" && !done), "{bytes:?}");
        }
    }
}

#[test]
fn a_failed_sync_loses_the_writes_for_good() {
    let disk = SimDisk::new();
    let file = write(&disk, "/f", b"one", true);
    disk.sync_dir(Path::new("/")).unwrap();
    file.append(&[IoSlice::new(b"two")]).unwrap();
    disk.fail_at(disk.ops(), Fault::Eio);
    assert!(file.sync().is_err());
    file.sync().unwrap();
    assert_eq!(disk.contents(Path::new("/f")).unwrap(), b"onetwo");
    assert_eq!(disk.crash(0).contents(Path::new("/f")).unwrap(), b"one");
}

#[test]
fn space_runs_out_and_comes_back() {
    let disk = SimDisk::new();
    disk.set_space(Some(5));
    let file = disk.open(Path::new("/f"), Mode::Create).unwrap();
    assert_eq!(file.append(&[IoSlice::new(b"1234567")]).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(disk.contents(Path::new("/f")).unwrap(), b"12345");
    file.truncate(0).unwrap();
    assert_eq!(disk.free_bytes(Path::new("/")), Some(5));
    file.append(&[IoSlice::new(b"12345")]).unwrap();
}
