//! Faults: power that goes, processes that die, disks that err, files that are damaged or lost.

use super::{
    Bug, DATA, EACH, Ended, World, check,
    disk::{NO_PLANT, PlantedDisk},
    live, mix, operations, survive,
};
use crate::tries::{first_seed, landed, tries};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill::store::disk::{Disk, Fault, SimDisk};

/// Seeds of this run, and what to draw from each.
fn seeds(everyday: u64) -> impl Iterator<Item = u64> {
    let first = first_seed();
    first..first + tries(everyday)
}

#[test]
fn power_that_goes_at_any_operation_loses_and_doubles_nothing() {
    let most = operations();
    let mut cut = 0;
    for seed in seeds(12) {
        // Twice: the second time perhaps while the first is being recovered from.
        let at = [mix(seed) % most, mix(seed ^ 1) % (most / 2)];
        let crash = |life: usize| move |disk: &PlantedDisk| disk.disk.fail_at(at[life], Fault::Crash);
        let (first, second) = (crash(0), crash(1));
        let after = |disk: &SimDisk, life| {
            // Every third time only the process dies: what was written is there.
            if seed % 3 == 2 { disk.fork() } else { disk.crash(seed * 10 + life) }
        };
        let survived = survive(SimDisk::new(), &[&first, &second], after, NO_PLANT, Bug::None);
        cut += survived.unwrap_or_else(|wrong| panic!("seed {seed}, crashes at operations {at:?}: {wrong}"));
    }
    landed(format_args!("{cut} crashes in {} lives, of {most} operations each", 2 * tries(12)));
    assert!(cut >= tries(12), "{cut} crashes landed");
}

#[test]
fn an_error_at_any_operation_is_followed_by_no_false_ack() {
    let most = operations();
    let mut ended = 0;
    for seed in seeds(12) {
        let fault = if seed.is_multiple_of(2) { Fault::Eio } else { Fault::Enospc };
        let at = mix(seed ^ 77) % most;
        let err = |disk: &PlantedDisk| disk.disk.fail_at(at, fault);
        let after =
            |disk: &SimDisk, life| if seed.is_multiple_of(3) { disk.fork() } else { disk.crash(seed * 10 + life) };
        let survived = survive(SimDisk::new(), &[&err], after, NO_PLANT, Bug::None);
        ended += survived.unwrap_or_else(|wrong| panic!("seed {seed}, {fault:?} at operation {at}: {wrong}"));
    }
    landed(format_args!("{} errors; {ended} of them ended the program, which came back", tries(12)));
}

#[test]
fn too_many_open_files_end_no_process_and_lose_nothing() {
    let mut ended = 0;
    for seed in seeds(12) {
        let nth = mix(seed ^ 5) % 60;
        let refuse = |disk: &PlantedDisk| disk.refuse_to_open(nth);
        let survived = survive(SimDisk::new(), &[&refuse], |disk, _| disk.crash(seed), NO_PLANT, Bug::None);
        ended += survived.unwrap_or_else(|wrong| panic!("seed {seed}, the open number {nth} fails: {wrong}"));
    }
    landed(format_args!("{} opens refused; {ended} of them ended the program, which came back", tries(12)));
}

/// A life to its end, its disk, and how long the files below `dir` were after each append.
fn lived(dir: &str) -> (SimDisk, Arc<World>, Vec<(PathBuf, u64)>) {
    let (disk, world) = (SimDisk::new(), Arc::new(World::default()));
    let planted = Arc::new(PlantedDisk::new(disk.clone(), NO_PLANT));
    assert!(matches!(live(&planted, &world, Bug::None), Ended::Itself(Ok(()))));
    (disk.fork(), world, planted.appends(dir))
}

#[test]
fn commits_that_were_deleted_are_refused_or_made_again_without_a_double() {
    let (whole, world, mut appends) = lived("/d/programs/whole/ledger");
    // A file is begun under another name before it has its own.
    appends.iter_mut().for_each(|(path, _)| path.set_file_name("00000000000000000000.ledger"));
    assert!(appends.len() > 12, "{appends:?}");
    let (mut refused, mut made_again) = (0, 0);
    for (path, len) in appends.iter().rev().skip(1).take(11) {
        let disk = whole.fork();
        let bytes = disk.contents(path).unwrap();
        disk.set_contents(path, bytes[..usize::try_from(*len).unwrap()].to_vec());
        let planted = Arc::new(PlantedDisk::new(disk.clone(), NO_PLANT));
        match live(&planted, &world, Bug::None) {
            Ended::Itself(Ok(())) => {
                check(&disk, &world, true).unwrap_or_else(|wrong| panic!("the ledger ends at byte {len}: {wrong}"));
                made_again += 1;
            }
            Ended::Itself(Err(error)) => {
                let told = error.chain();
                assert!(told.contains("commit") && told.contains("ledger"), "it does not say why: {told}");
                // Whoever refuses has changed nothing.
                check(&disk, &world, true).unwrap_or_else(|wrong| panic!("refused, and still: {wrong}"));
                refused += 1;
            }
            Ended::Dead => unreachable!("no fault was asked for"),
        }
    }
    landed(format_args!("11 ledgers that end early: {refused} refused, {made_again} made again"));
    assert!(refused > 0, "nothing was lost that anyone had seen");
}

/// The end of an output topic is vouched for by the ledger: wherever it is cut from outside, a start tells, also
/// when no index says how long the segment was, as after a process that died.
#[test]
fn an_output_topic_that_is_cut_anywhere_is_refused_with_the_gap() {
    let (whole, world, appends) = lived("/d/log/totals");
    let segments: Vec<_> = appends.iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "seg")).collect();
    assert!(segments.len() > 3, "{segments:?}");
    for (path, len) in &segments {
        let bytes = whole.contents(path).unwrap();
        // Right after each append, in the middle of the next one, and before the last byte of all.
        for at in [*len, len + 30, u64::MAX] {
            let at = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len() - 1);
            let disk = whole.fork();
            disk.set_contents(path, bytes[..at].to_vec());
            let index = path.with_extension("idx");
            if disk.exists(&index) {
                disk.remove(&index).unwrap();
            }
            let planted = Arc::new(PlantedDisk::new(disk.clone(), NO_PLANT));
            match live(&planted, &world, Bug::None) {
                Ended::Itself(Err(error)) => {
                    let told = error.chain();
                    // Of the last batch it is known, too, that its rows are staged no more.
                    let says = told.contains("is gone") || told.contains("is neither staged nor in topic");
                    assert!(told.contains("topic `totals`") && says, "cut at {at}: {told}");
                }
                ended => panic!("cut at {at} of {}: {ended:?}", bytes.len()),
            }
        }
    }
}

/// Every file below a directory.
fn files(disk: &SimDisk, dir: &Path, into: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for name in disk.list(dir).unwrap_or_default() {
        let path = dir.join(name);
        match disk.contents(&path) {
            Some(bytes) => {
                into.insert(path, bytes);
            }
            None => files(disk, &path, into),
        }
    }
}

/// Starts the program on damaged files: it goes on with nothing doubled or changed, or refuses naming a file.
fn start_on(disk: &SimDisk, world: &Arc<World>, what: &str) -> bool {
    let planted = Arc::new(PlantedDisk::new(disk.clone(), NO_PLANT));
    match live(&planted, world, Bug::None) {
        Ended::Itself(Ok(())) => {
            // Its log may be shorter by what no mark vouches for, so what was acked may be missing: nothing else may.
            let held = match check(disk, world, false) {
                Ok(held) => held,
                // Damage in the middle of a log is told to whoever reads there, with its offsets.
                Err(told) if told.contains("are damaged, in /d/log/") => return false,
                Err(wrong) => panic!("{what}: {wrong}"),
            };
            let kept: usize = held.rows.iter().map(std::collections::BTreeSet::len).sum();
            assert!(kept > 0, "{what}: an empty start");
            true
        }
        Ended::Itself(Err(error)) => {
            let told = error.chain();
            assert!(!told.contains("panicked"), "{what}: {told}");
            assert!(
                told.contains("/d/") || told.contains("/out") || told.contains("topic"),
                "no place: {what}: {told}"
            );
            false
        }
        Ended::Dead => unreachable!("no fault was asked for"),
    }
}

#[test]
fn a_data_directory_with_a_damaged_file_is_refused_or_right() {
    let (whole, world, _) = lived(DATA);
    let mut all = BTreeMap::new();
    files(&whole, Path::new(DATA), &mut all);
    all.retain(|_, bytes| !bytes.is_empty());
    let paths: Vec<&PathBuf> = all.keys().collect();
    let (mut refused, mut went_on) = (0, 0);
    for seed in seeds(24) {
        let path = paths[usize::try_from(mix(seed)).unwrap_or(usize::MAX) % paths.len()];
        let bytes = &all[path];
        let at = usize::try_from(mix(seed ^ 9)).unwrap_or(0) % bytes.len();
        let disk = whole.fork();
        let what = if seed.is_multiple_of(2) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (mix(seed ^ 3) % 8);
            disk.set_contents(path, flipped);
            format!("seed {seed}: a bit of byte {at} of {} flipped", path.display())
        } else {
            disk.set_contents(path, bytes[..at].to_vec());
            format!("seed {seed}: {} cut at byte {at} of {}", path.display(), bytes.len())
        };
        if start_on(&disk, &world, &what) { went_on += 1 } else { refused += 1 }
    }
    landed(format_args!("{} files of {} damaged: {refused} refused, {went_on} went on", tries(24), paths.len()));
}

#[test]
fn a_lost_file_of_the_newest_version_is_refused_or_right() {
    let (whole, world, _) = lived(DATA);
    let mut all = BTreeMap::new();
    files(&whole, Path::new(DATA), &mut all);
    let (mut refused, mut went_on) = (0, 0);
    for path in all.keys().filter(|path| path.starts_with("/d/programs")) {
        let disk = whole.fork();
        disk.remove(path).unwrap();
        if start_on(&disk, &world, &format!("without {}", path.display())) { went_on += 1 } else { refused += 1 }
    }
    landed(format_args!("{} files removed: {refused} refused, {went_on} went on", refused + went_on));
    assert!(refused > 0 && EACH > 0, "no file is needed?");
}
