//! A running program in plain lines, for pipes and logs.
//!
//! ```text
//! 12:00:05 hashtags: #fb 14, #tcot 13, #sporcle 12 | 2,013 records/s, delay 4.1 ms
//! ```
//!
//! Invariant: one line is one `\n`, whatever the records hold.

use super::{
    bars::Chart,
    text::{clock, duration, grouped},
};
use tidemill_core::{BatchId, BatchReport, Duration, Timestamp};

/// Seconds of batches that the rate is a mean of.
const RATE_OVER: Duration = Duration::from_secs(5);

/// Rate and delay of the last batches.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Stats {
    /// Records per second over the last seconds.
    pub(crate) rate: u64,
    /// From the last batch's time to its commit.
    pub(crate) delay: Duration,
    /// The last batch.
    pub(crate) batch: Option<BatchId>,
}

/// From a batch's time to its commit.
pub(crate) fn delay(report: &BatchReport) -> Duration {
    Duration::from_micros(report.scheduling_delay_us + report.processing_us)
}

impl Stats {
    /// Of reports, the oldest first; `started` is when this run began.
    pub(crate) fn of<'a>(reports: impl DoubleEndedIterator<Item = &'a BatchReport>, started: Timestamp) -> Self {
        let (mut newest, mut records, mut since) = (None, 0, Duration::ZERO);
        for report in reports.rev() {
            let (_, until) = *newest.get_or_insert((report, report.time));
            // Batches that were due before this start tell of the pause, not of the rate.
            since = until.since(report.time.max(started));
            if since >= RATE_OVER {
                break;
            }
            records += report.records_in;
        }
        let Some((last, until)) = newest else { return Self::default() };
        // The oldest batch counts from the one before it, the first from the start.
        let span = since.clamp(Duration::ZERO, RATE_OVER).max(until.since(started).min(RATE_OVER)).as_secs_f64();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rate for people"
        )]
        let rate = if span > 0.0 { (records as f64 / span).round() as u64 } else { 0 };
        Self { rate, delay: delay(last), batch: Some(last.batch) }
    }
}

/// The line of a view.
pub(crate) fn view_line(chart: &Chart, stats: &Stats) -> String {
    let rows: Vec<String> =
        chart.rows.iter().map(|(label, _, value)| format!("{label} {value}").trim().to_string()).collect();
    let rows = if rows.is_empty() { "nothing".to_string() } else { rows.join(", ") };
    format!(
        "{} {}: {rows} | {} records/s, delay {}",
        chart.when(),
        chart.name,
        grouped(stats.rate),
        duration(stats.delay)
    )
}

/// The line of a program without views.
pub(crate) fn status_line(now: Timestamp, stats: &Stats, refused: u64) -> String {
    format!(
        "{} batch {} | {} records/s, delay {}, refused {}",
        clock(now),
        stats.batch.unwrap_or_default(),
        grouped(stats.rate),
        duration(stats.delay),
        grouped(refused)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(batch: u64, seconds: i64, records_in: u64) -> BatchReport {
        BatchReport {
            batch: BatchId(batch),
            time: Timestamp(seconds * 1_000_000),
            records_in,
            scheduling_delay_us: 1_000,
            processing_us: 3_100,
            ..BatchReport::default()
        }
    }

    #[test]
    fn the_rate_is_a_mean_over_seconds() {
        let reports: Vec<_> = (1..=20).map(|i| report(u64::try_from(i).unwrap(), i, 2000)).collect();
        let stats = Stats::of(reports.iter(), Timestamp(0));
        assert_eq!(stats, Stats { rate: 2000, delay: Duration::from_micros(4100), batch: Some(BatchId(20)) });
    }

    #[test]
    fn the_first_batch_counts_from_the_start() {
        let reports = [report(1, 10, 1000)];
        assert_eq!(Stats::of(reports.iter(), Timestamp(9_500_000)).rate, 2000);
        assert_eq!(Stats::of([].iter(), Timestamp(0)), Stats::default());
    }

    #[test]
    fn a_view_is_one_line() {
        let chart = Chart {
            name: "top".into(),
            unit: "posts".into(),
            until: Timestamp(5_000_000),
            rows: vec![("#a".into(), Some(3.0), "3".into()), ("#b".into(), Some(2.0), "2".into())],
        };
        let stats = Stats { rate: 2013, delay: Duration::from_micros(4100), batch: None };
        assert_eq!(view_line(&chart, &stats), "00:00:05 top: #a 3, #b 2 | 2,013 records/s, delay 4.1 ms");
    }
}
