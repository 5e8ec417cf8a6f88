//! Every operator that keeps state, through crashes at every step of its
//! program, restarts after every batch with one, two and three partitions, and
//! a clock that steps. A new stateful operator adds its line here.

use super::{Keyed, State, Timer};
use crate::{
    stream::DStream,
    testing::{Trial, check_survives},
};
use tidemill_core::{Duration, Timestamp};

type Pair = (String, i64);

/// Words with the numbers of their places; the same words come again, and some stay away.
fn input() -> Vec<Vec<Pair>> {
    ["a b a c", "", "b d", "", "a"]
        .iter()
        .map(|text| text.split_whitespace().zip(1..).map(|(word, n)| (word.to_string(), n)).collect())
        .collect()
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Totals; a key whose total passes six is forgotten and begins anew.
fn total(new: &[i64], total: Option<i64>) -> Option<i64> {
    Some(total.unwrap_or(0) + new.iter().sum::<i64>()).filter(|total| *total <= 6)
}

/// A visit: its records, told when it times out.
fn visit(time: Timestamp, key: &str, value: Option<i64>, visit: &mut State<Vec<Option<i64>>>) -> Option<String> {
    let Some(value) = value else {
        return Some(format!("{key} left at {}: {:?}", time.millis(), visit.get()));
    };
    let mut seen = visit.get().cloned().unwrap_or_default();
    seen.push((value > 1).then_some(value));
    if seen.len() > 3 {
        visit.remove();
    } else {
        visit.update(seen);
    }
    None
}

fn survives<U: crate::Record>(program: impl Fn(DStream<Pair>) -> DStream<U>) {
    check_survives(&input(), program);
}

#[test]
fn update_state_by_key_survives() {
    survives(|s| s.update_state_by_key(total).changes());
    survives(|s| s.update_state_by_key(total).snapshot());
}

#[test]
fn a_state_with_an_end_and_a_beginning_survives() {
    survives(|s| {
        let first = [("a".to_string(), 2), ("z".to_string(), 3)];
        s.update_state_by_key(total).ttl(seconds(2)).initial_state(first).snapshot()
    });
}

#[test]
fn a_state_that_begins_from_another_survives() {
    survives(|s| {
        let first = s.map_values(|n| -n).reduce_by_key(|a, b| a + b);
        s.update_state_by_key(total).initial_state_from(&first).snapshot()
    });
}

#[test]
fn map_with_state_survives() {
    survives(|s| s.map_with_state(visit).timeout(seconds(2)).mapped());
    survives(|s| s.map_with_state(visit).ttl(seconds(1)).snapshots());
}

#[test]
fn with_timers_survives() {
    // A key tells its sum two seconds after its first record, by its own time and by that of its values.
    fn on_record(key: &mut Keyed<'_, String, i64, String>, value: i64) {
        let sum = key.state().get().copied().unwrap_or(0) + value;
        key.state().update(sum);
        key.set_timer(Timer::Batch(key.batch_time().plus(seconds(2))));
        key.set_timer(Timer::Event(Timestamp(value)));
    }
    fn on_timer(key: &mut Keyed<'_, String, i64, String>, timer: Timer) {
        let told = format!("{}: {:?} {timer:?}", key.key(), key.state().get());
        if matches!(timer, Timer::Batch(_)) {
            key.state().remove();
        }
        key.emit(told);
    }
    survives(|s| {
        let timed =
            s.with_timers(on_record, on_timer).event_time(Duration::from_micros(1), |value: i64| Timestamp(value));
        timed.emitted()
    });
}

#[test]
fn windows_survive() {
    survives(|s| s.window(seconds(3), seconds(2)));
    survives(|s| s.reduce_by_key_and_window(|a, b| a + b, seconds(3), seconds(1)));
}

#[test]
fn windows_that_are_taken_back_survive() {
    survives(|s| s.reduce_by_key_and_window_inv(|a, b| a + b, |a, b| a - b, seconds(3), seconds(1), |_, _| true));
    survives(|s| s.map(|(word, _)| word.to_string()).count_by_value_and_window(seconds(2), seconds(1)));
}

#[test]
fn views_in_sql_survive() {
    let trial = Trial::new(|trial| {
        trial.input(input())?.to_table("words", &["word", "n"]);
        trial.context().declare_sql(
            "CREATE VIEW totals AS SELECT word, count(*) AS times, sum(n) AS n, avg(n) AS mean FROM words GROUP BY word",
        )?;
        Ok(())
    });
    trial.crash_at_every_step();
    trial.restart_at_every_batch(&[1, 2, 3]);
    trial.step_the_clock();
}

#[test]
#[should_panic(expected = "output `out`, batch")]
fn a_program_that_remembers_outside_of_its_state_is_found_out() {
    use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
    static SEEN: AtomicI64 = AtomicI64::new(0);
    survives(|s| s.map(|(_, n)| n + SEEN.fetch_add(1, Relaxed)).erase());
}
