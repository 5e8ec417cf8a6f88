//! Versions are saved, pruned, damaged and loaded; a map is the oracle.

use super::*;
use crate::{
    SimDisk,
    disk::{Fault, Forgotten, canary},
    tests::tries::{first_seed, tries},
};
use arrow_array::{Int64Array, StringArray, cast::AsArray, types::Int64Type};
use arrow_schema::{DataType, Field, Schema};
use proptest::prelude::*;

mod rolled;

const DIR: &str = "/data/state/count";

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("key", DataType::Utf8, false), Field::new("n", DataType::Int64, true)]))
}

fn open(disk: &SimDisk) -> Result<StateFiles> {
    StateFiles::open(Arc::new(disk.clone()), Path::new(DIR), "count", schema())
}

type Map = BTreeMap<String, i64>;

fn rows(map: &Map) -> RecordBatch {
    let keys = StringArray::from_iter_values(map.keys());
    let values = Int64Array::from_iter_values(map.values().copied());
    RecordBatch::try_new(schema(), vec![Arc::new(keys), Arc::new(values)]).unwrap()
}

fn fold(versions: &[StateVersion]) -> Map {
    let mut map = Map::new();
    for (i, (_, kind, batches)) in versions.iter().enumerate() {
        assert_eq!(*kind == StateKind::Snapshot, i == 0 && *kind == StateKind::Snapshot);
        for batch in batches {
            let (keys, values) = (batch.column(0).as_string::<i32>(), batch.column(1).as_primitive::<Int64Type>());
            map.extend(keys.iter().zip(values).map(|(k, v)| (k.unwrap().to_owned(), v.unwrap())));
        }
    }
    map
}

/// What version `v` changes.
fn delta(v: u64) -> Map {
    [(format!("k{}", v % 5), v), (format!("only{v}"), 1), ("all".to_owned(), v)]
        .into_iter()
        .map(|(k, v)| (k, v.cast_signed()))
        .collect()
}

/// The whole state of version `v`.
fn whole(v: u64) -> Map {
    (1..=v).flat_map(delta).collect()
}

fn life(disk: &SimDisk, told: &mut u64, pruned: &mut u64) -> Result<()> {
    let mut state = open(disk)?;
    state.truncate_after(BatchId(*told))?;
    for v in *told + 1..=14 {
        state.save_delta(BatchId(v), &[rows(&delta(v))])?;
        // The batch is committed, whatever becomes of a snapshot after it.
        *told = v;
        if v % 4 == 0 {
            let half = whole(v).into_iter().partition::<Map, _>(|(k, _)| k.starts_with('k'));
            state.save_snapshot(BatchId(v), [rows(&half.0), rows(&half.1)].into_iter())?;
            // At once: from here on the version has nothing else to stand on.
            *pruned = v;
            state.prune(BatchId(v))?;
        }
    }
    Ok(())
}

fn check(disk: &SimDisk, told: u64, pruned: u64, what: &str) {
    let mut state = open(disk).unwrap_or_else(|e| panic!("{what}: {}", e.chain()));
    for v in pruned.max(1)..=told {
        let found = state.load(BatchId(v)).unwrap_or_else(|e| panic!("{what}: version {v}: {}", e.chain()));
        assert_eq!(fold(&found), whole(v), "{what}: version {v}");
    }
}

#[test]
fn every_kept_version_is_found_again() {
    let disk = SimDisk::new();
    let (mut told, mut pruned) = (0, 0);
    life(&disk, &mut told, &mut pruned).unwrap();
    assert_eq!((told, pruned), (14, 12));
    check(&disk, told, pruned, "undisturbed");
    let mut state = open(&disk).unwrap();
    assert_eq!(state.newest(), Some(BatchId(14)));
    // The snapshot of 12 is the oldest that is needed.
    assert_eq!(state.files().next(), Some((BatchId(12), StateKind::Snapshot)));
    state.truncate_after(BatchId(13)).unwrap();
    assert_eq!(state.newest(), Some(BatchId(13)));
    assert!(state.load(BatchId(99)).is_ok_and(|s| fold(&s) == whole(13)));
    assert!(state.save_delta(BatchId(5), &[]).is_err());
    assert!(open(&SimDisk::new()).unwrap().load(BatchId(3)).unwrap().is_empty());
}

/// A life over a disk: what it was told that is kept, and what it has let go.
type Life = fn(&SimDisk, &mut u64, &mut u64) -> Result<()>;

/// Crashes a life at every operation, with each of the seeds, and lets it go on.
fn crash_at_every_operation(life: Life, seeds: impl Fn(u64) -> Vec<u64>) {
    let undisturbed = SimDisk::new();
    life(&undisturbed, &mut 0, &mut 0).unwrap();
    for op in 0..undisturbed.ops() {
        for seed in seeds(op) {
            let disk = SimDisk::new();
            disk.fail_at(op, Fault::Crash);
            let (mut told, mut pruned) = (0, 0);
            assert!(life(&disk, &mut told, &mut pruned).is_err() || disk.is_dead());
            let after = disk.crash(seed);
            let what = format!("crash at {op}, seed {seed}");
            check(&after.fork(), told, pruned, &what);
            life(&after, &mut told, &mut pruned).unwrap();
            check(&after, told, pruned, &what);
        }
    }
}

/// Leaves out each sync of a life; but for names that only go, that is noticed. How many there were.
fn each_sync_is_needed(life: Life, why_names_may_stay: &'static str) -> u64 {
    let life = |disk: &SimDisk| {
        let (mut told, mut pruned) = (0, 0);
        let _stopped = life(disk, &mut told, &mut pruned);
        (told, pruned)
    };
    let check = |disk: &SimDisk, (told, pruned)| check(disk, told, pruned, "a sync was left out");
    let goes = |sync: &Forgotten| !sync.names.is_empty() && sync.names.iter().all(|name| name.starts_with('-'));
    canary::each_sync_is_needed(life, check, &[(why_names_may_stay, goes as fn(&Forgotten) -> bool)])
}

#[test]
fn a_crash_at_every_operation_keeps_every_saved_version() {
    crash_at_every_operation(life, |op| (0..tries(2)).map(|s| first_seed() + op + s).collect());
}

/// A test of the tests: a sync that is left out is noticed.
#[test]
fn a_forgotten_sync_is_found() {
    let syncs = each_sync_is_needed(
        life,
        "names that only go: what comes back is below a snapshot, and the next version's sync takes it again",
    );
    assert!(syncs > 30, "{syncs}");
}

#[test]
fn an_error_at_every_operation_is_told() {
    let undisturbed = SimDisk::new();
    life(&undisturbed, &mut 0, &mut 0).unwrap();
    for op in 0..undisturbed.ops() {
        for fault in [Fault::Eio, Fault::Enospc] {
            let disk = SimDisk::new();
            disk.fail_at(op, fault);
            let (mut told, mut pruned) = (0, 0);
            let ended = life(&disk, &mut told, &mut pruned);
            check(&disk.crash(op), told, pruned, &format!("{fault:?} at {op}: {ended:?}"));
        }
    }
}

#[test]
fn a_file_cut_or_flipped_at_every_byte_is_refused() {
    let disk = SimDisk::new();
    let mut state = open(&disk).unwrap();
    state.save_delta(BatchId(1), &[rows(&delta(1))]).unwrap();
    state.save_delta(BatchId(2), &[rows(&delta(2))]).unwrap();
    let path = Path::new(DIR).join("00000000000000000002.delta");
    let bytes = disk.contents(&path).unwrap();
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        for damaged in [flipped, bytes[..at].to_vec()] {
            disk.set_contents(&path, damaged);
            let mut state = open(&disk).unwrap();
            let error = state.load(BatchId(2)).unwrap_err();
            assert!(error.to_string().contains("00000000000000000002.delta"), "byte {at}: {error}");
            assert_eq!(fold(&state.load(BatchId(1)).unwrap()), whole(1));
        }
    }
}

#[test]
fn a_damaged_snapshot_is_replaced_by_an_older_one_only_if_nothing_is_missing() {
    let disk = SimDisk::new();
    let mut state = open(&disk).unwrap();
    for v in 1..=6 {
        // Version 6 has a snapshot and no delta.
        if v < 6 {
            state.save_delta(BatchId(v), &[rows(&delta(v))]).unwrap();
        }
        if v % 2 == 0 {
            state.save_snapshot(BatchId(v), [rows(&whole(v))].into_iter()).unwrap();
        }
    }
    let damage = |disk: &SimDisk, v: u64| {
        let path = Path::new(DIR).join(format!("{v:020}.snap"));
        let mut bytes = disk.contents(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        disk.set_contents(&path, bytes);
    };
    damage(&disk, 4);
    let mut state = open(&disk).unwrap();
    let found = state.load(BatchId(5)).unwrap();
    assert_eq!(found.iter().map(|f| f.0.0).collect::<Vec<_>>(), [2, 3, 4, 5]);
    assert_eq!(fold(&found), whole(5));
    // Pruning doesn't lean on a damaged snapshot.
    state.prune(BatchId(5)).unwrap();
    assert_eq!(fold(&state.load(BatchId(5)).unwrap()), whole(5));
    damage(&disk, 6);
    let error = open(&disk).unwrap().load(BatchId(6)).unwrap_err();
    assert!(error.chain().contains("00000000000000000006.snap"), "{}", error.chain());
    // A missing delta is noticed.
    disk.remove(&Path::new(DIR).join(format!("{:020}.delta", 4))).unwrap();
    let error = open(&disk).unwrap().load(BatchId(5)).unwrap_err();
    assert!(error.to_string().contains("builds on version 4"), "{error}");
}

#[test]
fn other_columns_and_other_operators_are_refused() {
    let disk = SimDisk::new();
    open(&disk).unwrap().save_delta(BatchId(1), &[rows(&delta(1))]).unwrap();
    let other = Arc::new(Schema::new(vec![Field::new("key", DataType::Utf8, false)]));
    let disk_ref: Arc<dyn Disk> = Arc::new(disk.clone());
    let mut state = StateFiles::open(Arc::clone(&disk_ref), Path::new(DIR), "count", other).unwrap();
    assert!(state.load(BatchId(1)).unwrap_err().to_string().contains("has 1 columns"));
    let mut state = StateFiles::open(disk_ref, Path::new(DIR), "sum", schema()).unwrap();
    assert!(state.load(BatchId(1)).unwrap_err().to_string().contains("belongs to the operator \"count\""));
}

#[derive(Debug, Clone)]
enum Step {
    Delta(Map),
    Snapshot,
    Both(Map),
    Truncate(u64),
    Prune(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let map = prop::collection::btree_map("[a-d]{1,2}", 0..9i64, 0..5);
    prop_oneof![
        4 => map.clone().prop_map(Step::Delta),
        1 => Just(Step::Snapshot),
        2 => map.prop_map(Step::Both),
        1 => (0..4u64).prop_map(Step::Truncate),
        2 => (0..6u64).prop_map(Step::Prune),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: u32::try_from(tries(64)).unwrap(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn loads_what_a_map_holds(steps in prop::collection::vec(step(), 1..40)) {
        let disk = SimDisk::new();
        let mut state = open(&disk).unwrap();
        // The state of each version since the last prune.
        let mut model: BTreeMap<u64, Map> = BTreeMap::from([(0, Map::new())]);
        let mut kept = 0;
        for step in steps {
            let (&newest, now) = model.last_key_value().unwrap();
            let version = newest + 1;
            match step {
                Step::Delta(changes) => {
                    state.save_delta(BatchId(version), &[rows(&changes)]).unwrap();
                    let next = now.clone().into_iter().chain(changes).collect();
                    model.insert(version, next);
                }
                Step::Snapshot => {
                    let now = now.clone();
                    state.save_snapshot(BatchId(version), [rows(&now)].into_iter()).unwrap();
                    model.insert(version, now);
                }
                Step::Both(changes) => {
                    let next: Map = now.clone().into_iter().chain(changes.clone()).collect();
                    state.save_delta(BatchId(version), &[rows(&changes)]).unwrap();
                    state.save_snapshot(BatchId(version), [rows(&next)].into_iter()).unwrap();
                    model.insert(version, next);
                }
                Step::Truncate(back) => {
                    let upto = newest.saturating_sub(back).max(kept);
                    state.truncate_after(BatchId(upto)).unwrap();
                    model.retain(|v, _| *v <= upto);
                }
                Step::Prune(back) => {
                    kept = newest.saturating_sub(back).max(kept);
                    state.prune(BatchId(kept)).unwrap();
                }
                Step::Reopen => state = open(&disk).unwrap(),
            }
            for (version, map) in model.range(kept..) {
                prop_assert_eq!(&fold(&state.load(BatchId(*version)).unwrap()), map);
            }
        }
    }
}
