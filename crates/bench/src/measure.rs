//! Runs two sides in turn and says what they cost.
//!
//! The engine goes first in each round, so that its first run meets a process
//! in which the loop never was. The kernel's high-water mark of memory is set
//! back before each run.
//!
//! Invariant: a run counts only when its answer is exactly the first loop's.

use crate::{Result, check::Rows};
use serde::Serialize;
use std::{
    fmt::Debug,
    fs,
    time::{Duration, Instant},
};

/// What one run of one side took, and its answer in comparable form.
#[derive(Debug)]
pub(crate) struct Ran<K, V> {
    /// From start to the answer, without bringing it into comparable form.
    pub(crate) elapsed: Duration,
    /// Processor time of the whole process meanwhile, seconds; none where the kernel doesn't say.
    /// It tells a slow run from a busy machine.
    pub(crate) cpu: Option<f64>,
    /// Megabytes resident at most; none where the kernel doesn't say.
    pub(crate) peak_mb: Option<f64>,
    /// The answer.
    pub(crate) answer: Rows<K, V>,
}

/// Runs `work` under the clock, then brings its answer into comparable form.
///
/// # Errors
/// As `work`.
pub(crate) fn timed<T, K, V>(
    work: impl FnOnce() -> Result<T>,
    rows: impl FnOnce(T) -> Result<Rows<K, V>>,
) -> Result<Ran<K, V>> {
    let_go();
    let watched = forget_peak();
    let cpu_before = cpu_seconds();
    let start = Instant::now();
    let answer = work()?;
    let elapsed = start.elapsed();
    let cpu = cpu_seconds().zip(cpu_before).map(|(after, before)| after - before);
    let peak_mb = if watched { peak_mb() } else { None };
    Ok(Ran { elapsed, cpu, peak_mb, answer: rows(answer)? })
}

/// One side of a job, run anew at each call.
pub(crate) type Side<'a, K, V> = Box<dyn FnMut() -> Result<Ran<K, V>> + 'a>;

/// The last line of a job's output.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    job: &'static str,
    /// The engine's items a second over the loop's; `null` without an engine.
    ratio: Option<f64>,
    items_per_s: Option<f64>,
    loop_items_per_s: f64,
    /// The engine's peak, the median of its runs.
    rss_mb: Option<f64>,
    /// Whether every run of the engine gave the loop's answer; `null` without an engine.
    exact: Option<bool>,
}

/// Runs both sides `runs` times in turn and prints what each run took.
///
/// A wrong answer is told on stderr and makes `exact` false; the runs go on.
///
/// # Errors
/// When a side fails, or the loop doesn't repeat its own answer.
pub(crate) fn interleave<K: Ord + Debug, V: PartialEq + Debug>(
    job: &'static str,
    items: u64,
    runs: usize,
    mut by_hand: Side<'_, K, V>,
    mut engine: Option<Side<'_, K, V>>,
) -> Result<Outcome> {
    let (mut hand_times, mut engine_times, mut engine_peaks) = (Vec::new(), Vec::new(), Vec::new());
    let mut expected: Option<Rows<K, V>> = None;
    let mut exact = true;
    for run in 1..=runs {
        let ran = engine.as_mut().map(|side| side()).transpose()?;
        if let Some(ran) = &ran {
            say(job, run, "tidemill", items, ran);
            engine_times.push(ran.elapsed.as_secs_f64());
            engine_peaks.extend(ran.peak_mb);
        }
        let hand = by_hand()?;
        say(job, run, "loop", items, &hand);
        hand_times.push(hand.elapsed.as_secs_f64());
        let expected = match &expected {
            Some(expected) => {
                if let Some(difference) = hand.answer.difference_from(expected) {
                    return Err(format!("{job}: the loop doesn't repeat its answer: {difference}").into());
                }
                expected
            }
            None => expected.insert(hand.answer),
        };
        if let Some(difference) = ran.and_then(|ran| ran.answer.difference_from(expected)) {
            eprintln!("{job}: run {run}: tidemill's answer is wrong: {difference}");
            exact = false;
        }
    }
    let rate = |times: &[f64]| Some(median(times)?).map(|seconds| per_second(items, seconds));
    let loop_items_per_s = rate(&hand_times).ok_or("--runs must be at least 1")?;
    let items_per_s = rate(&engine_times);
    let outcome = Outcome {
        job,
        ratio: items_per_s.map(|rate| (rate / loop_items_per_s * 1_000.0).round() / 1_000.0),
        items_per_s,
        loop_items_per_s,
        rss_mb: median(&engine_peaks),
        exact: engine.is_some().then_some(exact),
    };
    eprintln!("{job}: loop: {}", spread(items, &hand_times));
    if !engine_times.is_empty() {
        eprintln!("{job}: tidemill: {}", spread(items, &engine_times));
    }
    Ok(outcome)
}

fn say<K: Ord + Debug, V: PartialEq + Debug>(job: &str, run: usize, side: &str, items: u64, ran: &Ran<K, V>) {
    let seconds = ran.elapsed.as_secs_f64();
    let peak = ran.peak_mb.map_or(String::new(), |mb| format!(", {mb:.0} MB at most"));
    let cpu = ran.cpu.map_or(String::new(), |cpu| format!(" ({cpu:.2} s of processor time)"));
    let (rate, rows) = (per_second(items, seconds), ran.answer.rows().len());
    eprintln!("{job}: run {run}: {side}: {seconds:.3} s{cpu}, {rate:.0} items/s{peak}, {rows} rows");
}

fn spread(items: u64, times: &[f64]) -> String {
    let rate = |seconds: f64| per_second(items, seconds) / 1e6;
    let most = rate(times.iter().copied().fold(f64::INFINITY, f64::min));
    let least = rate(times.iter().copied().fold(0.0, f64::max));
    let middle = median(times).map_or(0.0, rate);
    format!("median {middle:.2} M items/s, from {least:.2} to {most:.2} in {} runs", times.len())
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn per_second(items: u64, seconds: f64) -> f64 {
    (items as f64 / seconds).round()
}

/// The middle value, or the mean of the two in the middle; none of none.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

/// Processor time of all threads of this process so far, those that ended included.
fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // After the name, which may hold spaces, come fields 3, 4 …; user and system time are 14 and 15,
    // in hundredths of a second.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut hundredths = || fields.next()?.parse::<f64>().ok();
    Some((hundredths()? + hundredths()?) / 100.0)
}

/// Has the allocator give back what an earlier run has left: it does so some time after, when it is asked for more.
fn let_go() {
    const STEP: Duration = Duration::from_millis(10);
    let (mut before, mut steady) = (resident_mb(), 0);
    while steady < 20 {
        drop(std::hint::black_box(Vec::<u8>::with_capacity(32 << 20)));
        std::thread::sleep(STEP);
        let now = resident_mb();
        steady = if now < before.map(|mb| mb - 1.0) { 0 } else { steady + 1 };
        before = now;
    }
}

/// Sets the kernel's high-water mark back to what is resident now; false where that can't be done.
fn forget_peak() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Megabytes resident at most since [`forget_peak`].
pub(crate) fn peak_mb() -> Option<f64> {
    status_mb("VmHWM:")
}

fn resident_mb() -> Option<f64> {
    status_mb("VmRSS:")
}

fn status_mb(name: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some((kilobytes / 102.4).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(answer: u32) -> Side<'static, u32, u32> {
        Box::new(move || timed(|| Ok(answer), |answer| Ok(Rows::new(vec![(1, answer)]))))
    }

    #[test]
    fn median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn a_wrong_answer_is_not_exact_and_a_right_one_is() {
        let exact = |engine| interleave("test", 10, 2, side(7), engine).unwrap().exact;
        assert_eq!(exact(Some(side(7))), Some(true));
        assert_eq!(exact(Some(side(8))), Some(false));
        assert_eq!(exact(None), None);
    }

    #[test]
    fn a_loop_that_changes_its_mind_is_an_error() {
        let mut answers = 0..;
        let fickle: Side<'_, u32, u32> = Box::new(move || {
            let answer = answers.next();
            timed(|| Ok(answer), |answer| Ok(Rows::new(vec![(1, answer.unwrap_or(0))])))
        });
        assert!(interleave("test", 10, 2, fickle, None).is_err());
    }

    #[test]
    fn the_peak_of_an_earlier_run_is_forgotten() {
        let before = timed(|| Ok(vec![1_u8; 64 << 20]), |bytes| Ok(Rows::new(vec![(0, bytes.len())]))).unwrap();
        let after = timed(|| Ok(()), |()| Ok(Rows::new(vec![(0, 0)]))).unwrap();
        if let (Some(before), Some(after)) = (before.peak_mb, after.peak_mb) {
            assert!(before > 64.0 && after < before - 32.0, "{before} MB, then {after} MB");
        }
    }
}
