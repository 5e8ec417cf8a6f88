//! Windows by event time against a model that keeps every record.

use crate::{
    DStream, Record, StreamingContext, Trigger, Versions, batch_of,
    stream::Chain,
    testing::{check_restarts, collect, parts, run, run_built},
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
};
use tidemill_core::{Duration, Timestamp, WindowKind, WindowSpec};

type Pair = (String, (i64, i64));
/// Start and end of a window, key, and the sum of its values.
type Given = ((i64, i64), String, i64);

const SECOND: Duration = Duration::from_secs(1);

fn at(pair: (&str, (i64, i64))) -> Timestamp {
    Timestamp(pair.1.0 * 1_000_000)
}

/// Sessions of times with their places, as (first, last, places).
fn sessions(times: &[(i64, usize)], gap: i64) -> Vec<(i64, i64, Vec<usize>)> {
    let mut times = times.to_vec();
    times.sort_unstable();
    let mut out: Vec<(i64, i64, Vec<usize>)> = Vec::new();
    for (time, place) in times {
        match out.last_mut() {
            Some((_, last, places)) if time < *last + gap => {
                *last = time;
                places.push(place);
            }
            _ => out.push((time, time, vec![place])),
        }
    }
    out
}

/// What the windows must give, in seconds: every record is kept, and every window looked at in each batch.
fn model(kind: WindowKind, batches: &[Vec<Pair>], bound: i64, lateness: i64) -> Vec<Vec<Given>> {
    let (mut now, mut all, mut out) = (i64::MIN / 2, Vec::<(usize, Pair)>::new(), Vec::new());
    for (batch, pairs) in batches.iter().enumerate() {
        let before = now;
        let taken = |pair: &&Pair| match kind {
            WindowKind::Time(spec) => {
                pair.1.0.div_euclid(spec.slide()) * spec.slide() + spec.size() > before - lateness
            }
            WindowKind::Session(_) => pair.1.0 >= before - lateness,
            WindowKind::Count(_) => true,
        };
        all.extend(pairs.iter().filter(taken).map(|pair| (batch, pair.clone())));
        now = now.max(pairs.iter().map(|pair| pair.1.0 - bound).max().unwrap_or(now));
        let mut by_key = BTreeMap::<&str, Vec<(usize, (i64, i64))>>::new();
        for (batch, (key, value)) in &all {
            by_key.entry(key).or_default().push((*batch, *value));
        }
        let mut given = Vec::new();
        for (key, records) in by_key {
            let mut give = |start: i64, end: i64, places: &[usize]| {
                let sum = places.iter().map(|place| records[*place].1.1).sum();
                given.push(((start, end), key.to_string(), sum));
            };
            let is_given = |end: i64, places: &[usize]| {
                let touched = places.iter().any(|place| records[*place].0 == batch);
                end <= now && (end > before || (touched && end > before - lateness))
            };
            match kind {
                WindowKind::Time(spec) => {
                    let starts: BTreeSet<i64> = records
                        .iter()
                        .flat_map(|(_, (time, _))| {
                            spec.windows_of(Timestamp(*time)).map(|w| w.start.0).collect::<Vec<_>>()
                        })
                        .collect();
                    for start in starts {
                        let inside = |(_, (_, (time, _))): &(usize, &(usize, (i64, i64)))| {
                            (start..start + spec.size()).contains(time)
                        };
                        let places: Vec<usize> = records.iter().enumerate().filter(inside).map(|(at, _)| at).collect();
                        if is_given(start + spec.size(), &places) {
                            give(start, start + spec.size(), &places);
                        }
                    }
                }
                WindowKind::Session(gap) => {
                    let times: Vec<_> = records.iter().enumerate().map(|(at, (_, (time, _)))| (*time, at)).collect();
                    for (first, last, places) in sessions(&times, gap) {
                        let touched = places.iter().any(|place| records[*place].0 == batch);
                        if last + gap <= now && (last + gap > before || touched) {
                            give(first, last + gap, &places);
                        }
                    }
                }
                WindowKind::Count(spec) => {
                    let had = records.iter().filter(|(of, _)| *of < batch).count() as i64;
                    for start in (0..records.len() as i64).step_by(usize::try_from(spec.slide()).unwrap()) {
                        let end = start + spec.size();
                        if end > had && end <= records.len() as i64 {
                            let places: Vec<usize> = (start..end).map(|at| usize::try_from(at).unwrap()).collect();
                            give(start, end, &places);
                        }
                    }
                }
            }
        }
        given.sort();
        out.push(given);
    }
    out
}

fn in_seconds(batches: Vec<Vec<((Timestamp, Timestamp), String, (i64, i64))>>) -> Vec<Vec<Given>> {
    let of = |((start, end), key, (_, sum)): ((Timestamp, Timestamp), String, (i64, i64))| {
        ((start.0 / 1_000_000, end.0 / 1_000_000), key, sum)
    };
    batches
        .into_iter()
        .map(|batch| {
            let mut batch: Vec<Given> = batch.into_iter().map(of).collect();
            batch.sort();
            batch
        })
        .collect()
}

fn add(a: (i64, i64), b: (i64, i64)) -> (i64, i64) {
    (0, a.1 + b.1)
}

/// Batches of (key, (second, value)), whose times run forward with some disorder.
fn batches() -> impl Strategy<Value = Vec<Vec<Pair>>> {
    let pair = ("[ab]", (0_i64..12, 1_i64..9));
    prop::collection::vec((prop::collection::vec(pair, 0..8), 0_i64..8), 1..7).prop_map(|batches| {
        let mut now = 0;
        let moved = batches.into_iter().map(|(mut batch, pause)| {
            batch.iter_mut().for_each(|pair| pair.1.0 += now);
            now += pause;
            batch
        });
        moved.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn windows_by_time_are_those_of_the_model(
        batches in batches(),
        (size, slide) in prop::sample::select(vec![(5_u32, 5_u32), (6, 2), (7, 3)]),
        (bound, lateness) in prop::sample::select(vec![(0_u32, 0_u32), (4, 0), (2, 5)]),
        partitions in 1_usize..4,
    ) {
        let spec = WindowSpec::hop(size.into(), slide.into()).unwrap();
        let got = run(batches.clone(), |s| {
            s.with_event_time(at, bound * SECOND).allowed_lateness(lateness * SECOND).hop(size * SECOND, slide * SECOND).reduce_by_key(add)
        }, partitions).unwrap();
        // A fold of one record keeps its time, which the model does not look at.
        prop_assert_eq!(in_seconds(got), model(WindowKind::Time(spec), &batches, bound.into(), lateness.into()));
    }

    #[test]
    fn sessions_are_those_of_the_model(
        batches in batches(),
        gap in 1_u32..5,
        (bound, lateness) in prop::sample::select(vec![(0_u32, 0_u32), (4, 0), (2, 5)]),
        partitions in 1_usize..4,
    ) {
        let got = run(batches.clone(), |s| {
            s.with_event_time(at, bound * SECOND).allowed_lateness(lateness * SECOND).session(gap * SECOND).reduce_by_key(add)
        }, partitions).unwrap();
        prop_assert_eq!(in_seconds(got), model(WindowKind::Session(gap.into()), &batches, bound.into(), lateness.into()));
    }

    #[test]
    fn count_windows_are_those_of_the_model(
        batches in batches(),
        (size, slide) in prop::sample::select(vec![(1_u32, 1_u32), (3, 3), (4, 2), (5, 3)]),
    ) {
        let got = run(batches.clone(), |s| {
            s.with_event_time(at, SECOND).count(size, slide).combine_by_key(|(_, n)| n, |sum, (_, n)| sum + n, |a, b| a + b)
        }, 1).unwrap();
        let sorted = |mut batch: Vec<Given>| { batch.sort(); batch };
        let got: Vec<Vec<Given>> = got.into_iter().map(sorted).collect();
        prop_assert_eq!(got, model(WindowKind::count(size.into(), slide.into()).unwrap(), &batches, 0, 0));
    }
}

fn some_batches() -> Vec<Vec<Pair>> {
    let of = |key: &str, second, n| (key.to_string(), (second, n));
    vec![
        vec![of("a", 1, 1), of("b", 2, 2), of("a", 3, 4)],
        vec![of("a", 9, 1), of("c", 4, 1)],
        vec![],
        vec![of("b", 11, 5), of("a", 6, 7), of("a", 21, 1), of("c", 22, 3)],
        vec![of("a", 23, 2), of("b", 24, 2), of("a", 10, 9)],
        vec![of("a", 60, 1)],
    ]
}

#[test]
fn a_restart_in_between_changes_nothing() {
    for partitions in [(1, 3), (3, 2)] {
        check_restarts(
            &some_batches(),
            |s| s.with_event_time(at, 3 * SECOND).hop(6 * SECOND, 2 * SECOND).reduce_by_key(add),
            partitions,
        );
        check_restarts(
            &some_batches(),
            |s| s.with_event_time(at, SECOND).allowed_lateness(12 * SECOND).session(4 * SECOND).reduce_by_key(add),
            partitions,
        );
        check_restarts(&some_batches(), |s| s.with_event_time(at, SECOND).count(3, 2).reduce_by_key(add), partitions);
    }
}

/// Many batches of few records, started anew every now and then over no more files than a start needs.
fn check_rolled<U, C>(name: &str, program: impl Fn(DStream<Pair>) -> DStream<U, C>)
where
    U: Record + Ord + Debug,
    C: Chain<Out = U>,
{
    let pair = |batch: i64, n: i64| {
        let key = ["a", "b", "c", "d", "e"][usize::try_from((batch * 7 + n * 3) % 5).unwrap()];
        (key.to_string(), (batch + (batch * n) % 4, batch * 10 + n))
    };
    let input: Vec<Vec<Pair>> = (0..70).map(|batch| (0..batch % 4).map(|n| pair(batch, n)).collect()).collect();
    let sorted = |mut batches: Vec<Vec<U>>| {
        batches.iter_mut().for_each(|batch| batch.sort());
        batches
    };
    let whole = sorted(run(input.clone(), &program, 2).unwrap());
    assert!(whole.iter().flatten().count() > 20, "{name}");
    let (dir, mut got) = (tempfile::tempdir().unwrap(), Vec::new());
    for (partitions, steps) in [(2, 0..13), (1, 13..14), (3, 14..40), (2, 40..66), (1, 66..70)] {
        let context = StreamingContext::builder("test").partitions(partitions).data_dir(dir.path());
        let context = context.keep_versions(Versions { batches: 1, age: None, bytes: u64::MAX });
        got.extend(run_built(context, &input, &program, steps).unwrap());
    }
    assert_eq!(sorted(got), whole, "{name}");
    for state in std::fs::read_dir(dir.path().join("programs/test/state")).unwrap() {
        let files = std::fs::read_dir(state.unwrap().path()).unwrap();
        let mut files: Vec<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        assert!(files.iter().all(|file| file.ends_with(".delta")), "{name}: {files:?}");
        assert!(files[0].as_str() > "00000000000000000010" && files.len() < 50, "{name}: {files:?}");
    }
}

#[test]
fn restarts_over_rolled_files_change_nothing() {
    check_rolled("hops", |s| s.with_event_time(at, 3 * SECOND).hop(6 * SECOND, 2 * SECOND).reduce_by_key(add));
    check_rolled("sessions", |s| {
        s.with_event_time(at, SECOND).allowed_lateness(4 * SECOND).session(4 * SECOND).reduce_by_key(add)
    });
    check_rolled("counts", |s| s.with_event_time(at, SECOND).count(3, 2).reduce_by_key(add));
}

#[test]
fn the_slowest_partition_holds_the_windows_until_it_is_idle() {
    let of = |second: i64, n: i64| batch_of([("k".to_string(), (second, n))]).unwrap();
    let entries = vec![
        vec![of(1, 1), of(2, 1)],
        vec![of(12, 1), of(3, 1)],
        vec![of(13, 1)],
        vec![of(14, 1)],
        vec![of(15, 1)],
        vec![of(26, 1), of(16, 1)],
    ];
    let given = |idle: Option<Duration>| {
        let context = StreamingContext::builder("test").trigger(Trigger::Drain).partitions(2).build();
        let pairs = context.source_stream::<Pair>("pairs", parts(entries.clone()), None).unwrap();
        let windows = pairs
            .filter(|(key, _)| !key.is_empty())
            .with_event_time(at, Duration::ZERO)
            .idle_after(idle)
            .tumble(10 * SECOND)
            .reduce_by_key(add);
        let given = in_seconds(collect(&context, &windows, 0..6).unwrap());
        given.into_iter().map(|batch| batch.into_iter().map(|(window, _, sum)| (window.1, sum)).collect()).collect()
    };
    let none = Vec::<(i64, i64)>::new;
    let held: Vec<Vec<(i64, i64)>> = given(None);
    assert_eq!(held, [none(), none(), none(), none(), none(), vec![(10, 3)]]);
    let let_go: Vec<Vec<(i64, i64)>> = given(Some(3 * SECOND));
    assert_eq!(let_go, [none(), none(), none(), none(), vec![(10, 3)], none()]);
}

#[test]
fn timers_wait_for_the_slowest_partition_until_it_is_idle() {
    let of = |second: i64, n: i64| batch_of([("k".to_string(), (second, n))]).unwrap();
    // The second partition begins behind the first and brings nothing more; a record dated years ahead moves nothing.
    let entries =
        vec![vec![of(20, 1), of(2, 1)], vec![of(21, 1)], vec![of(400_000_000, 1)], vec![of(22, 1)], vec![of(23, 1)]];
    let rung = |idle: Option<Duration>| {
        let context = StreamingContext::builder("test").trigger(Trigger::Drain).partitions(2).build();
        let pairs = context.source_stream::<Pair>("pairs", parts(entries.clone()), None).unwrap();
        let timers = pairs
            .with_timers(
                |key: &mut crate::Keyed<'_, String, (), i64>, (second, _): (i64, i64)| {
                    key.set_timer(crate::Timer::Event(Timestamp(second * 1_000_000)));
                },
                |key, timer| {
                    if let crate::Timer::Event(at) = timer {
                        key.emit(at.0 / 1_000_000);
                    }
                },
            )
            .event_time(Duration::ZERO, |(second, _)| Timestamp(second * 1_000_000))
            .idle_after(idle);
        collect(&context, &timers.emitted(), 0..5).unwrap()
    };
    assert_eq!(rung(None), [vec![2], vec![], vec![], vec![], vec![]]);
    // Batches are a second apart.
    assert_eq!(rung(Some(3 * SECOND)), [vec![2], vec![], vec![], vec![20, 21, 22], vec![23]]);
}

#[test]
fn late_records_and_those_dated_ahead_are_dead_letters() {
    let far = 10 * 365 * 86_400;
    let mut batches = some_batches();
    batches[0].push(("far".to_string(), (far, 1)));
    batches.push(vec![("late".to_string(), (2, 1))]);
    let dir = tempfile::tempdir().unwrap();
    let windows = |s: crate::DStream<Pair>| s.with_event_time(at, SECOND).tumble(10 * SECOND).reduce_by_key(add);
    let got = crate::testing::run_kept(dir.path(), &batches, windows, 2, 0..batches.len()).unwrap();
    assert_eq!(in_seconds(got).concat().iter().filter(|given| given.1 == "far").count(), 0);
    let log = crate::Shell::open(dir.path()).unwrap();
    let letters = log.query("SELECT reason, \"partition\", raw FROM \"test.dead\" ORDER BY \"offset\"").unwrap();
    let text = arrow_cast::pretty::pretty_format_batches(&letters).unwrap().to_string();
    assert!(text.contains("ahead: the record's time is 1979-12-30T00:00:00.000Z, and the batch was at"), "{text}");
    assert!(text.contains("late: the record's time is 1970-01-01T00:00:02.000Z, and the watermark of"), "{text}");
}
