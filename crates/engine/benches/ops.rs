//! Whole programs in memory: word count beside a loop written by hand, and a
//! large keyed state.
//!
//! `cargo bench -p tidemill-engine --bench ops`
//!
//! Timed by hand: criterion among this crate's dependencies would change the
//! features of shared crates, and the engine's tests would compile DataFusion a
//! second time.

use std::{
    collections::HashMap,
    hint::black_box,
    time::{Duration, Instant},
};
use tidemill_engine::{Str, StreamingContext, Trigger};

const WORDS: u64 = 1_000_000;
const LINE: u64 = 10;
const KEYS: u64 = 1_000_000;
const EVENTS: u64 = 500_000;

/// Numbers that look random and are the same in each run.
fn scatter(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

/// Lines of ten words out of twenty thousand.
fn lines() -> Vec<String> {
    (0..WORDS / LINE)
        .map(|line| {
            let words = (0..LINE).map(|word| format!("w{}", scatter(line * LINE + word) % 20_000));
            words.collect::<Vec<_>>().join(" ")
        })
        .collect()
}

/// Runs the declared program until its input ends.
fn finish(context: &StreamingContext) {
    context.start().expect("the program starts");
    context.await_termination().expect("the program ends");
}

fn context() -> StreamingContext {
    StreamingContext::builder("bench").trigger(Trigger::Drain).build()
}

/// Prints the best and the middle of nine times.
fn measure<T>(name: &str, elements: u64, prepare: impl Fn() -> T, run: impl Fn(T)) {
    let mut times: Vec<Duration> = (0..9)
        .map(|_| {
            let prepared = prepare();
            let begun = Instant::now();
            run(prepared);
            begun.elapsed()
        })
        .collect();
    times.sort();
    #[expect(clippy::cast_precision_loss, reason = "a count for people")]
    let rate = elements as f64 / times[0].as_secs_f64() / 1e6;
    println!("{name:<36} best {:>10.2?}  middle {:>10.2?}  {rate:>8.1} M/s", times[0], times[4]);
}

fn word_count() {
    let lines = lines();
    let declared = || {
        let context = context();
        let stream = context.queue_stream([lines.clone()]).expect("a queue");
        stream
            .flat_map::<Str, _>(|line, out| out.extend(line.split(' ')))
            .map(|word| (Str::from(word), 1_i64))
            .reduce_by_key(|a, b| a + b)
            .count()
            .foreach_batch(|_, rows| {
                black_box(rows);
                Ok(())
            });
        context
    };
    measure("1M words: stream", WORDS, declared, |context| finish(&context));
    measure(
        "1M words: loop by hand",
        WORDS,
        || (),
        |()| {
            let mut counts: HashMap<&str, i64, foldhash::fast::FixedState> = HashMap::default();
            for word in lines.iter().flat_map(|line| line.split(' ')) {
                *counts.entry(word).or_default() += 1;
            }
            black_box(counts.len());
        },
    );
}

/// A million keys in a first batch, then half a million events in a second:
/// the second's cost is the difference.
fn update_state() {
    let all: Vec<(u64, i64)> = (0..KEYS).map(|key| (key, 1)).collect();
    let events: Vec<(u64, i64)> = (0..EVENTS).map(|n| (scatter(n) % KEYS, 1)).collect();
    for (name, count, batches) in [
        ("state: 1M new keys", KEYS, vec![all.clone()]),
        ("state: 1M new keys, then 500k events", KEYS + EVENTS, vec![all, events]),
    ] {
        let declared = || {
            let context = context();
            let stream = context.queue_stream(batches.clone()).expect("a queue");
            stream
                .update_state_by_key(|new, sum: Option<i64>| Some(sum.unwrap_or(0) + new.iter().sum::<i64>()))
                .changes()
                .count()
                .foreach_batch(|_, rows| {
                    black_box(rows);
                    Ok(())
                });
            context
        };
        measure(name, count, declared, |context| finish(&context));
    }
}

fn main() {
    word_count();
    update_state();
}
