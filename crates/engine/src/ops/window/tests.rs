//! Windows beside a model that looks back over all batches, undisturbed and
//! restarted after each batch.

use crate::{
    DStream, Record, StreamingContext, Trigger,
    testing::{check_restarts, check_unordered, run},
};
use proptest::prelude::*;
use std::{collections::BTreeMap, time::Duration};

const SECOND: Duration = Duration::from_secs(1);

/// The records of each due window; batch *i* (from 0) has the time *i* + 1.
fn windows<T: Clone>(batches: &[Vec<T>], size: usize, slide: usize) -> Vec<Option<Vec<T>>> {
    (1..=batches.len())
        .map(|time| (time % slide == 0).then(|| batches[time.saturating_sub(size)..time].concat()))
        .collect()
}

fn sums(records: &[(u8, i64)]) -> Vec<(u8, i64)> {
    let mut sums = BTreeMap::new();
    for (key, value) in records {
        *sums.entry(*key).or_insert(0) += value;
    }
    sums.into_iter().collect()
}

fn sorted<T: Ord>(batches: Vec<Vec<T>>) -> Vec<Vec<T>> {
    batches
        .into_iter()
        .map(|mut batch| {
            batch.sort();
            batch
        })
        .collect()
}

fn spans(size: usize, slide: usize) -> (Duration, Duration) {
    let of = |n| SECOND * u32::try_from(n).unwrap();
    (of(size), of(slide))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn windows_are_those_of_a_look_back(
        batches in prop::collection::vec(prop::collection::vec((0_u8..4, -3_i64..4), 0..6), 1..8),
        size in 1_usize..5,
        slide in 1_usize..5,
        partitions in 1_usize..4,
    ) {
        let slide = slide.min(size);
        let (long, step) = spans(size, slide);
        let want = windows(&batches, size, slide);
        let each = |of: fn(&[(u8, i64)]) -> Vec<(u8, i64)>| {
            want.iter().map(|w| w.as_deref().map(of).unwrap_or_default()).collect::<Vec<_>>()
        };

        let rows = run(batches.clone(), |s| s.window(long, step), partitions).unwrap();
        prop_assert_eq!(sorted(rows), sorted(each(<[_]>::to_vec)));

        let plain = run(batches.clone(), |s| s.reduce_by_key_and_window(|a, b| a + b, long, step), partitions).unwrap();
        prop_assert_eq!(sorted(plain), each(sums));

        let inverse = run(
            batches.clone(),
            |s| s.reduce_by_key_and_window_inv(|a, b| a + b, |a, b| a - b, long, step, |_, sum| sum != 0),
            partitions,
        ).unwrap();
        let not_zero = |w: &[(u8, i64)]| sums(w).into_iter().filter(|(_, sum)| *sum != 0).collect();
        prop_assert_eq!(sorted(inverse), each(not_zero));

        let counts = run(batches.clone(), |s| s.count_by_window(long, step), partitions).unwrap();
        let want_counts: Vec<Vec<i64>> =
            want.iter().map(|w| w.iter().map(|w| i64::try_from(w.len()).unwrap()).collect()).collect();
        prop_assert_eq!(counts, want_counts);

        let values = run(batches.clone(), |s| s.keys().count_by_value_and_window(long, step), partitions).unwrap();
        let ones = |w: &[(u8, i64)]| sums(&w.iter().map(|(key, _)| (*key, 1)).collect::<Vec<_>>());
        prop_assert_eq!(sorted(values), each(ones));

        let most = run(batches, |s| s.values().reduce_by_window(i64::max, long, step), partitions).unwrap();
        let want_most: Vec<Vec<i64>> =
            want.iter().map(|w| w.iter().flatten().map(|(_, v)| *v).max().into_iter().collect()).collect();
        prop_assert_eq!(most, want_most);
    }
}

fn batches() -> Vec<Vec<(String, i64)>> {
    let of = |text: &str| text.split_whitespace().zip(1..).map(|(word, n)| (word.to_string(), n)).collect();
    vec![of("a b a c"), of(""), of("b d"), of("a e f g"), of(""), of("a b")]
}

fn restarts<U: Record + Ord + std::fmt::Debug>(program: impl Fn(DStream<(String, i64)>) -> DStream<U>) {
    for partitions in [(1, 3), (3, 2)] {
        check_restarts(&batches(), &program, partitions);
    }
}

#[test]
fn a_restarted_window_is_full() {
    restarts(|s| s.window(3 * SECOND, SECOND));
}

#[test]
fn a_restarted_fold_is_full() {
    restarts(|s| s.reduce_by_key_and_window(|a, b| a + b, 3 * SECOND, 2 * SECOND));
}

#[test]
fn a_restarted_fold_with_an_inverse_is_full() {
    restarts(|s| s.reduce_by_key_and_window_inv(|a, b| a + b, |a, b| a - b, 3 * SECOND, SECOND, |_, _| true));
}

#[test]
fn restarted_windows_over_all_records_are_full() {
    restarts(|s| s.values().reduce_by_window(|a, b| a + b, 4 * SECOND, SECOND));
    restarts(|s| s.count_by_window(4 * SECOND, SECOND));
}

#[test]
fn restarted_counts_of_values_are_full() {
    restarts(|s| s.keys().count_by_value_and_window(3 * SECOND, SECOND));
}

#[test]
fn a_key_whose_values_cancel_out_stays_until_its_panes_expire() {
    check_unordered(
        [vec![(1, 5_i64)], vec![(1, -5)], vec![], vec![]],
        |s| s.reduce_by_key_and_window_inv(|a, b| a + b, |a, b| a - b, 2 * SECOND, SECOND, |_, _| true),
        [vec![(1, 5)], vec![(1, 0)], vec![(1, -5)], vec![]],
    );
}

#[test]
fn sizes_beside_the_interval_are_refused_with_their_numbers() {
    let context = StreamingContext::builder("test").trigger(Trigger::Every(2 * SECOND)).build();
    let stream = context.queue_stream([vec![1_i64]]).unwrap();
    stream.with_name("sums").reduce_by_window(|a, b| a + b, 5 * SECOND, 2 * SECOND).foreach_batch(|_, _| Ok(()));
    let error = context.start().unwrap_err().to_string();
    assert!(error.contains("`sums`") && error.contains("5s") && error.contains("2s"), "{error}");

    let context = StreamingContext::builder("test").trigger(Trigger::Every(SECOND)).build();
    let stream = context.queue_stream([vec![1_i64]]).unwrap();
    stream.window(SECOND, 2 * SECOND).foreach_batch(|_, _| Ok(()));
    let error = context.start().unwrap_err().to_string();
    assert!(error.contains("`window`") && error.contains("slide"), "{error}");
}
