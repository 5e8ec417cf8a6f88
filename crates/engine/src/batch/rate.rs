//! How much a batch may read: a PID controller on the processing rate.
//!
//! After each batch the bound moves towards the rate at which the program can
//! process records, so that batches take about their interval and delays do not
//! grow. The controller and its constants are those of Spark's
//! `PIDRateEstimator` (`spark.streaming.backpressure.pid.*`).

use tidemill_core::{Duration, Timestamp};

/// Whether and how the size of batches is bounded by their rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RateControl {
    /// Follow the processing rate, never below `min_rate` records per second.
    Pid {
        /// Records per second at least.
        min_rate: f64,
    },
    /// A fixed number of records per second.
    Fixed(f64),
    /// No bound but the batch's bytes and records.
    Off,
}

impl Default for RateControl {
    fn default() -> Self {
        Self::Pid { min_rate: 100.0 }
    }
}

/// The controller.
#[derive(Debug, Clone)]
pub struct Pid {
    proportional: f64,
    integral: f64,
    derivative: f64,
    min_rate: f64,
    last: Option<Last>,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    time: Timestamp,
    rate: f64,
    error: f64,
}

impl Pid {
    /// A controller that never goes below `min_rate` records per second.
    pub fn new(min_rate: f64) -> Self {
        Self { proportional: 1.0, integral: 0.2, derivative: 0.0, min_rate, last: None }
    }

    /// The bound in records per second after a batch of `records` that ended at
    /// `time`, took `processing` and had waited for `delay`; `interval` is
    /// that of the batches. `None` when the batch says nothing (no records, no
    /// time).
    pub fn update(
        &mut self,
        time: Timestamp,
        records: u64,
        processing: Duration,
        delay: Duration,
        interval: Duration,
    ) -> Option<f64> {
        let (processing, interval) = (processing.as_secs_f64(), interval.as_secs_f64());
        if records == 0 || processing <= 0.0 || interval <= 0.0 || self.last.is_some_and(|last| time <= last.time) {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "counts of a batch are far below 2^53")]
        let rate = records as f64 / processing;
        let Some(last) = self.last else {
            self.last = Some(Last { time, rate, error: 0.0 });
            return Some(rate.max(self.min_rate));
        };
        let elapsed = time.since(last.time).as_secs_f64();
        let error = last.rate - rate;
        // Records that pile up while a batch waits, as a rate over the interval.
        let backlog = delay.as_secs_f64() * rate / interval;
        let change = (error - last.error) / elapsed;
        let next = (last.rate - self.proportional * error - self.integral * backlog - self.derivative * change)
            .max(self.min_rate);
        self.last = Some(Last { time, rate: next, error });
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that can do `capacity` records per second under a larger load:
    /// the bound settles near the capacity and the delay stops growing.
    #[test]
    fn the_bound_settles_near_what_the_program_can_do() {
        let (capacity, interval) = (5_000.0, Duration::from_secs(1));
        let mut pid = Pid::new(100.0);
        let (mut bound, mut now, mut delay) = (20_000.0_f64, 0.0_f64, 0.0_f64);
        for batch in 0..60 {
            let records = bound;
            let processing = records / capacity;
            now += 1.0_f64.max(processing);
            delay = (delay + processing - 1.0).max(0.0);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small test values")]
            let next = pid.update(
                Timestamp((now * 1e6) as i64),
                records as u64,
                Duration::from_secs_f64(processing),
                Duration::from_secs_f64(delay),
                interval,
            );
            bound = next.unwrap_or(bound);
            assert!(bound >= 100.0, "batch {batch}: {bound}");
        }
        assert!((bound - capacity).abs() < capacity * 0.1, "bound {bound}");
        assert!(delay < 1.0, "delay {delay}");
    }

    #[test]
    fn an_empty_batch_says_nothing() {
        let mut pid = Pid::new(100.0);
        assert_eq!(pid.update(Timestamp(1), 0, Duration::from_secs(1), Duration::ZERO, Duration::from_secs(1)), None);
    }
}
