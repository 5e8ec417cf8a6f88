//! Deltas that repeat rows in turn, and snapshots that are written in pieces.

use super::*;
use crate::state::Unfinished;

/// Writes versions as the engine does: beside each delta some other rows, and
/// what the deltas since hold everything.
#[derive(Default)]
struct Roller {
    /// Keys that the round has still to give.
    left: Vec<String>,
    sweep: Option<u64>,
    since: Option<u64>,
}

impl Roller {
    fn save(&mut self, state: &mut StateFiles, version: u64, delta: &Map, now: &Map, pace: usize) -> Result<bool> {
        if self.sweep.is_none() {
            (self.sweep, self.left) = (Some(version), now.keys().rev().cloned().collect());
        }
        let swept = self.left.split_off(self.left.len().saturating_sub(pace));
        let swept: Map = swept.into_iter().filter_map(|key| now.get(&key).map(|n| (key, *n))).collect();
        let ended = self.left.is_empty();
        if ended {
            self.since = self.sweep.take();
        }
        state.save_rolled(BatchId(version), &[rows(delta), rows(&swept)], self.since.map(BatchId))?;
        Ok(ended)
    }
}

fn life(disk: &SimDisk, told: &mut u64, pruned: &mut u64) -> Result<()> {
    let mut state = open(disk)?;
    state.truncate_after(BatchId(*told))?;
    let since = state.since(BatchId(*told))?.map(|since| since.0);
    let mut roller = Roller { since, ..Roller::default() };
    for v in *told + 1..=20 {
        let ended = roller.save(&mut state, v, &delta(v), &whole(v), 5)?;
        *told = v;
        if ended && v > 3 {
            *pruned = v - 2;
            state.prune(BatchId(v - 2))?;
        }
    }
    Ok(())
}

#[test]
fn a_crash_at_every_operation_keeps_every_saved_version() {
    let undisturbed = SimDisk::new();
    let (mut told, mut pruned) = (0, 0);
    life(&undisturbed, &mut told, &mut pruned).unwrap();
    check(&undisturbed, told, pruned, "undisturbed");
    let mut state = open(&undisturbed).unwrap();
    let files = state.files().count();
    assert!(pruned > 9 && files < 16, "{files} files after pruning to {pruned}");
    let oldest = state.oldest().unwrap();
    assert!(oldest.0 <= pruned && oldest.0 > 1, "{oldest}");
    for v in oldest.0..=told {
        assert_eq!(fold(&state.load(BatchId(v)).unwrap()), whole(v));
    }
    assert!(state.load(BatchId(oldest.0 - 1)).is_err());
    crash_at_every_operation(life, |op| vec![op]);
}

#[test]
fn each_sync_of_a_round_is_needed() {
    let syncs = each_sync_is_needed(
        life,
        "names that only go: what comes back is before the round, and the next version's sync takes it again",
    );
    assert!(syncs > 40, "{syncs}");
}

#[test]
fn a_file_that_a_round_needs_is_missed() {
    let disk = SimDisk::new();
    life(&disk, &mut 0, &mut 0).unwrap();
    let versions: Vec<u64> = open(&disk).unwrap().files().map(|(v, _)| v.0).collect();
    let since = open(&disk).unwrap().since(BatchId(20)).unwrap().unwrap().0;
    for version in versions {
        let after = disk.fork();
        after.remove(&Path::new(DIR).join(format!("{version:020}.delta"))).unwrap();
        let mut state = open(&after).unwrap();
        let loaded = state.load(BatchId(20));
        if version < since {
            assert_eq!(fold(&loaded.unwrap()), whole(20));
        } else if version == 20 {
            assert_eq!(fold(&loaded.unwrap()), whole(19), "nothing says that there was another");
        } else {
            let error = loaded.unwrap_err().to_string();
            assert!(error.contains(&format!("version {version}")), "{error}");
        }
    }
}

#[test]
fn versions_within_so_many_bytes_can_be_loaded_when_the_others_are_gone() {
    let disk = SimDisk::new();
    let mut state = open(&disk).unwrap();
    let mut roller = Roller::default();
    for v in 1..=40 {
        roller.save(&mut state, v, &delta(v), &whole(v), 9).unwrap();
    }
    let mut before = None;
    for bytes in [u64::MAX, 30_000, 20_000, 15_000, 10_000, 1] {
        let oldest = state.oldest_within(bytes).unwrap();
        assert!(before.is_none_or(|before| oldest >= before), "less bytes, fewer versions");
        state.prune(oldest).unwrap();
        for v in oldest.0.max(1)..=40 {
            assert_eq!(fold(&state.load(BatchId(v)).unwrap()), whole(v), "version {v} within {bytes}");
        }
        before = Some(oldest);
    }
    assert!(state.files().count() < 25, "{:?}", state.counts());
}

#[test]
fn the_oldest_version_within_a_bound_is_that_which_the_newest_files_lead_to() {
    let disk = SimDisk::new();
    let mut state = open(&disk).unwrap();
    let mut roller = Roller::default();
    for v in 1..=40 {
        roller.save(&mut state, v, &delta(v), &whole(v), 9).unwrap();
        if v % 13 == 0 {
            state.save_snapshot(BatchId(v), [rows(&whole(v))].into_iter()).unwrap();
        }
    }
    let all: Vec<(BatchId, StateKind)> = state.files().collect();
    let path = |(version, kind): &(BatchId, StateKind)| {
        let extension = if *kind == StateKind::Delta { "delta" } else { "snap" };
        Path::new(DIR).join(format!("{:020}.{extension}", version.0))
    };
    let sizes: Vec<u64> = all.iter().map(|file| disk.contents(&path(file)).unwrap().len() as u64).collect();
    assert_eq!(state.bytes().unwrap(), sizes.iter().sum::<u64>());
    for kept in 1..all.len() {
        let bytes: u64 = sizes[all.len() - kept..].iter().sum();
        // What can be loaded when only these files are there.
        let left = disk.fork();
        all[..all.len() - kept].iter().for_each(|file| left.remove(&path(file)).unwrap());
        let mut only = open(&left).unwrap();
        let loads = (1..=40).find(|v| only.load(BatchId(*v)).is_ok_and(|rows| !rows.is_empty()));
        let want = loads.unwrap_or(40);
        assert_eq!(state.oldest_within(bytes).unwrap(), BatchId(want), "the last {kept} files");
        assert_eq!(state.oldest_within(bytes + 1).unwrap(), BatchId(want), "the last {kept} files and a little");
        let mut pruned = open(&disk.fork()).unwrap();
        pruned.prune(BatchId(want)).unwrap();
        for v in want..=40 {
            assert_eq!(fold(&pruned.load(BatchId(v)).unwrap()), whole(v), "version {v} of the last {kept} files");
        }
    }
}

/// Rows that add up: a version brings three of its own, and keeps some again that were there before its round.
#[derive(Default)]
struct Adder {
    left: Vec<u64>,
    round: Option<u64>,
    since: Option<u64>,
}

fn brought(version: u64) -> Map {
    (0..3).map(|n| (format!("{version:03}.{n}"), n)).collect()
}

fn keys_of(version: &StateVersion) -> impl Iterator<Item = String> + '_ {
    version.2.iter().flat_map(|rows| rows.column(0).as_string::<i32>().iter().map(|key| key.unwrap().to_owned()))
}

impl Adder {
    /// Saves a version; gives whether its round has ended.
    fn save(&mut self, state: &mut StateFiles, version: u64, pace: usize) -> Result<bool> {
        if self.round.is_none() {
            self.left = (1..version).rev().collect();
        }
        let round = *self.round.get_or_insert(version);
        let again = self.left.split_off(self.left.len().saturating_sub(pace));
        let again: Vec<RecordBatch> = again.into_iter().map(|version| rows(&brought(version))).collect();
        if self.left.is_empty() {
            self.since = self.round.take();
        }
        let own = [rows(&brought(version))];
        let kept = KeptAgain { round: BatchId(round), again: &Again::InPlaceOf(vec![1]), rows: &again };
        state.save_again(BatchId(version), &own, &kept, self.since.map(BatchId))?;
        Ok(self.round.is_none())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Restarts, each of which breaks a round off, older files that go, and a snapshot in between.
    #[test]
    fn rows_that_add_up_come_back_once(
        steps in prop::collection::vec((prop::bool::weighted(0.15), 1..5_usize, 0..4_u64, prop::bool::weighted(0.05)), 1..50)
    ) {
        let disk = SimDisk::new();
        let (mut state, mut adder, mut oldest) = (open(&disk).unwrap(), Adder::default(), 1);
        for (version, (restart, pace, back, snapshot)) in (1..).zip(steps) {
            if restart {
                state = open(&disk).unwrap();
                let since = state.since(BatchId(version - 1)).unwrap().map(|since| since.0);
                adder = Adder { since, ..Adder::default() };
            }
            let ended = adder.save(&mut state, version, pace).unwrap();
            if snapshot {
                let all: Vec<RecordBatch> = (1..=version).map(|version| rows(&brought(version))).collect();
                state.save_snapshot(BatchId(version), all.into_iter()).unwrap();
            }
            if ended {
                oldest = oldest.max(version.saturating_sub(back));
                state.prune(BatchId(oldest)).unwrap();
            }
            for version in [oldest, oldest.midpoint(version), version] {
                let found = state.load(BatchId(version)).unwrap();
                let mut keys: Vec<String> = found.iter().flat_map(keys_of).collect();
                keys.sort();
                let expected: Vec<String> = (1..=version).flat_map(|version| brought(version).into_keys()).collect();
                prop_assert_eq!(keys, expected, "version {}", version);
            }
        }
    }
}

#[test]
fn rows_that_are_kept_again_are_told_from_others() {
    let disk = SimDisk::new();
    let (mut state, mut adder) = (open(&disk).unwrap(), Adder::default());
    // The second round begins with version 2 and ends with it; the third goes on.
    (1..4).for_each(|version| assert_eq!(adder.save(&mut state, version, 1).unwrap(), version < 3));
    let mut told = Vec::new();
    state
        .load_each(BatchId(3), &mut |piece| {
            told.push(match piece {
                Piece::Version(version, _) => version.0.to_string(),
                Piece::Again(again) => {
                    assert_eq!(again, Again::InPlaceOf(vec![1]));
                    "again".to_owned()
                }
                Piece::Rows(rows) => rows.column(0).as_string::<i32>().value(0).to_owned(),
                Piece::Reset => "reset".to_owned(),
            });
            Ok(())
        })
        .unwrap();
    assert_eq!(told, ["2", "002.0", "again", "001.0", "3", "003.0"]);
}

/// A snapshot in pieces, with deltas saved and crashes in between.
fn pieces(disk: &SimDisk, told: &mut u64) -> Result<()> {
    let mut state = open(disk)?;
    state.truncate_after(BatchId(*told))?;
    let mut unfinished: Option<Unfinished> = None;
    for v in *told + 1..=12 {
        state.save_delta(BatchId(v), &[rows(&delta(v))])?;
        *told = v;
        if unfinished.is_none() {
            let all: Vec<RecordBatch> = whole(v).into_iter().map(|row| rows(&Map::from([row]))).collect();
            unfinished = Some(state.begin_snapshot(BatchId(v), &all)?);
        }
        if let Some(snapshot) = unfinished.take() {
            unfinished = state.go_on(snapshot, 900)?;
            if unfinished.is_none() {
                state.prune(BatchId(v))?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_snapshot_in_pieces_is_whole_or_not_there() {
    let undisturbed = SimDisk::new();
    pieces(&undisturbed, &mut 0).unwrap();
    let kinds: Vec<_> = open(&undisturbed).unwrap().files().collect();
    let snapshot = kinds.first().copied().unwrap();
    assert!(snapshot.1 == StateKind::Snapshot && snapshot.0.0 > 1, "{kinds:?}");
    check(&undisturbed, 12, snapshot.0.0, "undisturbed");
    for op in 0..undisturbed.ops() {
        for fault in [Fault::Crash, Fault::Eio] {
            let disk = SimDisk::new();
            disk.fail_at(op, fault);
            let mut told = 0;
            let _ended = pieces(&disk, &mut told);
            let after = disk.crash(op);
            check(&after.fork(), told, told, &format!("{fault:?} at {op}"));
            pieces(&after, &mut told).unwrap();
            check(&after, told, told, &format!("{fault:?} at {op}, again"));
        }
    }
}
