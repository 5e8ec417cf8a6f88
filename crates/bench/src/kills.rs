//! `kill -9` at random moments of W3 into the file sink.
//!
//! A child process runs the program; this one kills it again and again and
//! starts it anew on the same directory, until it has read all events. The
//! oracle is arithmetic: the generator gives batch *b* the events
//! `[b · n, (b + 1) · n)`, so the keys that each batch's files must hold, and
//! the count of each, follow from the seed. One row lost, doubled or of a state
//! that went back shows.

use crate::{Result, input::events, jobs};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Events of a batch.
pub(crate) const BATCH: u64 = 20_000;
/// Distinct keys.
pub(crate) const KEYS: u64 = 50_000;
/// A child that is not killed must end within this.
const PATIENCE: Duration = Duration::from_secs(120);

/// The last line of the job's output.
#[derive(Debug, Serialize)]
pub(crate) struct Killed {
    job: &'static str,
    seed: u64,
    kills: u32,
    /// Kills that hit a program that had begun to write batches.
    kills_midway: u32,
    batches: u64,
    lost: u64,
    duplicated: u64,
    wrong: u64,
    exact: bool,
}

/// Kills the program `kills` times while it reads `items` events, then checks its files.
///
/// # Errors
/// When the child can't be run, or ends with an error of its own.
pub(crate) fn kills(seed: u64, items: u64, kills: u32) -> Result<Killed> {
    let base = tempfile::tempdir()?;
    let out = base.path().join("out");
    let mut random = seed;
    let (mut done, mut midway) = (0, 0);
    let most = 4 * begin(seed, items, base.path(), &out)?;
    for kill in 0..kills {
        let mut child = spawn(seed, items, base.path())?;
        random = events::mix(random.wrapping_add(u64::from(kill)));
        // From before the directory is open to many batches later.
        let pause = Duration::from_micros(random % u64::try_from(most.as_micros())?);
        let before = count(&out);
        if wait(&mut child, pause)?.is_some() {
            // It read everything; later kills have nothing to hit.
            break;
        }
        child.kill()?;
        child.wait()?;
        done += 1;
        midway += u32::from(count(&out) > before);
    }
    eprintln!("kills: seed {seed}: {done} kills, {midway} of them after new batches; letting it end");
    let mut child = spawn(seed, items, base.path())?;
    let ended = wait(&mut child, PATIENCE)?.ok_or("the program did not end in time")?;
    if !ended.success() {
        let mut said = String::new();
        if let Some(stderr) = &mut child.stderr {
            stderr.read_to_string(&mut said)?;
        }
        return Err(format!("the program failed after a kill: {said}").into());
    }
    check(seed, items, &out, done, midway)
}

/// What the child runs: [`jobs::killed_program`] to its end.
///
/// # Errors
/// As the engine.
pub(crate) fn child(seed: u64, items: u64, base: &Path, threads: usize) -> Result<()> {
    jobs::killed_program(seed, items, base, threads)
}

/// How long a program takes to its first output; it is killed there. A build
/// for tests takes a second to what one for speed does in a tenth of it.
fn begin(seed: u64, items: u64, base: &Path, out: &Path) -> Result<Duration> {
    let begun = Instant::now();
    let mut child = spawn(seed, items, base)?;
    while count(out) == 0 {
        if wait(&mut child, Duration::from_millis(1))?.is_some() || begun.elapsed() > PATIENCE {
            return Err("the program ended, or hung, before its first batch".into());
        }
    }
    let took = begun.elapsed();
    child.kill()?;
    child.wait()?;
    Ok(took)
}

fn spawn(seed: u64, items: u64, base: &Path) -> Result<Child> {
    Ok(Command::new(std::env::current_exe()?)
        .args(["kills-child", "--seed", &seed.to_string(), "--items", &items.to_string(), "--dir"])
        .arg(base)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?)
}

/// Waits for the child's end, at most `patience`.
fn wait(child: &mut Child, patience: Duration) -> Result<Option<std::process::ExitStatus>> {
    let until = Instant::now() + patience;
    loop {
        if let Some(ended) = child.try_wait()? {
            return Ok(Some(ended));
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        thread::sleep(left.min(Duration::from_millis(1)));
    }
}

fn count(out: &Path) -> usize {
    fs::read_dir(out).map_or(0, |files| files.flatten().filter(|f| visible(&f.file_name().to_string_lossy())).count())
}

fn visible(name: &str) -> bool {
    name.starts_with("batch-")
}

/// Compares every batch's files with what they must hold.
fn check(seed: u64, items: u64, out: &Path, kills: u32, kills_midway: u32) -> Result<Killed> {
    let mut files: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    for entry in fs::read_dir(out)? {
        let path = entry?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if visible(&name) {
            let batch: u64 = name.split('-').nth(1).ok_or("a file without a batch number")?.parse()?;
            files.entry(batch).or_default().push(path);
        }
    }
    let mut result = Killed {
        job: "kills",
        seed,
        kills,
        kills_midway,
        batches: items.div_ceil(BATCH),
        lost: 0,
        duplicated: 0,
        wrong: 0,
        exact: false,
    };
    let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
    for batch in 1..=result.batches {
        let mut expected: BTreeMap<u64, u64> = BTreeMap::new();
        for offset in (batch - 1) * BATCH..(batch * BATCH).min(items) {
            let key = events::mix(seed ^ offset) % KEYS;
            let count = counts.entry(key).or_default();
            *count += 1;
            expected.insert(key, *count);
        }
        let mut got = read(&files.remove(&batch).unwrap_or_default())?;
        for (key, count) in expected {
            match got.remove(&key).as_deref() {
                None => result.lost += 1,
                Some([one]) if *one == count => {}
                Some([_]) => result.wrong += 1,
                Some(_) => result.duplicated += 1,
            }
        }
        result.wrong += got.len() as u64;
    }
    // Files of batches that were never to be.
    result.wrong += files.len() as u64;
    result.exact = result.lost + result.duplicated + result.wrong == 0;
    Ok(result)
}

/// The rows of a batch: the counts that stand for each key.
fn read(files: &[PathBuf]) -> Result<BTreeMap<u64, Vec<u64>>> {
    let mut rows: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for path in files {
        for line in BufReader::new(fs::File::open(path)?).lines() {
            let row: serde_json::Value = serde_json::from_str(&line?)?;
            let number =
                |field: &str| row[field].as_u64().ok_or_else(|| format!("{}: no number `{field}`", path.display()));
            rows.entry(number("_1")?).or_default().push(number("_2")?);
        }
    }
    Ok(rows)
}
