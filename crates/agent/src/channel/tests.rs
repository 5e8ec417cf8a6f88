//! A durable channel over a simulated disk: crashed at every step, and against a model with several sinks.

use super::{
    Taken,
    file::{FileChannel, FileConfig, Token},
};
use crate::event::Event;
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};
use tidemill_core::{Duration, ManualClock, Result, Timestamp};
use tidemill_store::{
    Log, SimDisk,
    disk::{Disk, Fault},
    log::{Retention, Sync},
};

const ROUNDS: u64 = 6;
const EACH: u64 = 3;

/// Nothing is synced but when the test says so.
fn config(capacity: u64) -> FileConfig {
    let keep = Retention { max_age: None, max_bytes: Some(16 << 10) };
    FileConfig { capacity, sync: Sync::Every(Duration::from_secs(3600)), keep }
}

fn open(disk: &SimDisk, capacity: u64) -> Result<(Log, FileChannel)> {
    let disk = Arc::new(disk.clone()) as Arc<dyn Disk>;
    let log = Log::open(Arc::clone(&disk), Path::new("/d/log"), Arc::new(ManualClock::default()))?;
    let channel = FileChannel::open(&log, disk, Path::new("/d/agents/a1"), "a1", "c1", &config(capacity))?;
    Ok((log, channel))
}

/// Large, so that segments fill up.
fn event(n: u64) -> Event {
    let mut event = Event::new(format!("{n:01500}"), Timestamp(0));
    event.headers.insert("n".to_owned(), n.to_string());
    event
}

fn number(event: &Event) -> u64 {
    assert_eq!(
        event.headers["n"].parse::<u64>().unwrap(),
        String::from_utf8_lossy(&event.body).parse::<u64>().unwrap()
    );
    event.headers["n"].parse().unwrap()
}

fn numbers(taken: &Taken) -> Vec<u64> {
    taken.events.iter().map(number).collect()
}

fn sync(log: &Log) -> Result<()> {
    let topic = log.topic("a1.c1").unwrap();
    topic.sync_to(0, topic.end(0))
}

#[derive(Default)]
struct Seen {
    acked: u64,
    /// The sink has these, and was told that they are committed.
    committed: u64,
    /// The sink has these; their commit may have happened.
    delivered: u64,
}

/// Puts numbers in order, and takes two at a time.
fn life(disk: &SimDisk, seen: &mut Seen) -> Result<()> {
    let (log, channel) = open(disk, 1000)?;
    for round in 0..ROUNDS {
        let (from, to) = (round * EACH, (round + 1) * EACH);
        let mut events: Vec<Event> = (from..to).map(event).collect();
        let token = Token { number: round + 1, resume: Some(to.to_string()) };
        assert!(channel.put(&mut events, "r1", Some(&token), Box::new(|_| ()))?);
        sync(&log)?;
        seen.acked = to;
        if let Some(taken) = channel.take(2, 1 << 20)? {
            assert_eq!(numbers(&taken).first(), Some(&seen.committed));
            seen.delivered = seen.committed + taken.events.len() as u64;
            channel.commit(&taken, "k1", Some(seen.delivered.to_string()))?;
            seen.committed = seen.delivered;
        }
        channel.tidy(Timestamp(0))?;
    }
    Ok(())
}

#[test]
fn a_crash_at_any_step_loses_nothing_and_hands_on_nothing_twice() {
    let disk = SimDisk::new();
    let mut whole = Seen::default();
    life(&disk, &mut whole).unwrap();
    let steps = disk.ops();
    assert!(steps > 60 && whole.committed > 0 && whole.acked == ROUNDS * EACH, "{steps}");
    let mut cut_short = 0;
    for step in 0..steps {
        let disk = SimDisk::new();
        disk.fail_at(step, Fault::Crash);
        let mut seen = Seen::default();
        // Threads of the log may do a step beside ours: then the crash can come behind all of them.
        cut_short += usize::from(life(&disk, &mut seen).is_err());
        for seed in 0..2 {
            let (_log, channel) = open(&disk.crash(seed), 1000).unwrap_or_else(|e| panic!("step {step}: {e:?}"));
            let mut left = Vec::new();
            while let Some(taken) = channel.take(5, 1 << 20).unwrap() {
                left.extend(numbers(&taken));
            }
            let had: u64 = channel.left_by("k1").map_or(0, |left| left.parse().unwrap());
            assert!(had == seen.committed || had == seen.delivered, "step {step}: {had}");
            let end = left.last().map_or(had, |last| last + 1);
            assert!(end >= seen.acked, "step {step}, seed {seed}: acked up to {}, there is up to {end}", seen.acked);
            assert_eq!(left, (had..end).collect::<Vec<_>>(), "step {step}: just what the sink has not had");
            // The source goes on no later than where the events end.
            let resume: u64 = channel.token("r1").map_or(0, |token| token.resume.unwrap().parse().unwrap());
            assert!(resume <= end && resume >= seen.acked, "step {step}: goes on at {resume}, events end at {end}");
        }
    }
    assert!(cut_short as u64 > steps / 2, "{cut_short} of {steps} lives were cut short");
}

#[test]
fn a_channel_that_is_full_takes_all_or_nothing() {
    let disk = SimDisk::new();
    let (log, channel) = open(&disk, 4).unwrap();
    let put = |from: u64, to: u64| {
        let mut events: Vec<Event> = (from..to).map(event).collect();
        let put = channel.put(&mut events, "r1", None, Box::new(|_| ())).unwrap();
        assert_eq!(events.is_empty(), put);
        put
    };
    assert!(put(0, 3) && !put(3, 5) && put(3, 4));
    sync(&log).unwrap();
    let taken = channel.take(2, 1 << 20).unwrap().unwrap();
    assert!(!put(4, 5), "what is in hand counts");
    channel.commit(&taken, "k1", None).unwrap();
    assert!(put(4, 6) && !put(6, 7));
    assert_eq!(channel.len(), 4);
    // A place that the topic does not reach is no empty channel.
    drop((channel, log));
    let path = Path::new("/d/agents/a1/c1.json");
    let place = disk.contents(path).unwrap();
    let other = SimDisk::new();
    drop(open(&other, 4).unwrap());
    tidemill_store::atomic_write(&other, path, &place).unwrap();
    let error = open(&other, 4).unwrap_err().to_string();
    assert!(error.contains("up to 2 were handed on") && error.contains("ends at 0"), "{error}");
}

#[test]
fn a_channel_that_is_to_be_synced_otherwise_is_refused() {
    let disk = SimDisk::new();
    drop(open(&disk, 4).unwrap());
    let disk = Arc::new(disk) as Arc<dyn Disk>;
    let log = Log::open(Arc::clone(&disk), Path::new("/d/log"), Arc::new(ManualClock::default())).unwrap();
    let other = FileConfig { sync: Sync::Always, ..config(4) };
    let opened = FileChannel::open(&log, disk, Path::new("/d/agents/a1"), "a1", "c1", &other);
    let error = opened.unwrap_err().to_string();
    assert!(error.contains("made with `sync = \"3600s\"`") && error.contains("changed to \"0s\""), "{error}");
}

#[test]
fn what_is_not_durable_is_not_handed_out() {
    let disk = SimDisk::new();
    let (log, channel) = open(&disk, 100).unwrap();
    let mut events = vec![Event::new("a", Timestamp(0))];
    let (tell, told) = std::sync::mpsc::channel();
    assert!(channel.put(&mut events, "r1", None, Box::new(move |done| tell.send(done.is_ok()).unwrap())).unwrap());
    assert!(channel.take(1, 1 << 20).unwrap().is_none() && told.try_recv().is_err(), "a crash could take it back");
    sync(&log).unwrap();
    assert!(told.try_recv().unwrap());
    assert_eq!(channel.take(1, 1 << 20).unwrap().unwrap().events[0].body, "a");
}

#[test]
fn sinks_that_commit_at_once_leave_an_empty_channel() {
    const TURNS: u64 = 3000;
    let disk = SimDisk::new();
    let (log, channel) = open(&disk, 10).unwrap();
    let both = std::sync::Barrier::new(2);
    for turn in 0..TURNS {
        let mut events = vec![Event::new("a", Timestamp(0)), Event::new("b", Timestamp(0))];
        assert!(channel.put(&mut events, "r1", None, Box::new(|_| ())).unwrap());
        sync(&log).unwrap();
        let [first, second] = [(); 2].map(|()| channel.take(1, 1 << 20).unwrap().unwrap());
        let commit = |taken: &Taken, sink| {
            both.wait();
            channel.commit(taken, sink, None).unwrap();
        };
        std::thread::scope(|threads| {
            threads.spawn(|| commit(&first, "k1"));
            commit(&second, "k2");
        });
        assert_eq!(channel.len(), 0, "turn {turn}");
        let pins = log.topic("a1.c1").unwrap().pins();
        assert_eq!(pins["agent:a1"][&0].0, 2 * (turn + 1), "retention may have all");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8),
    Take(u8),
    Commit(prop::sample::Index),
    RollBack(prop::sample::Index),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1..6_u8).prop_map(Step::Put),
        4 => (1..5_u8).prop_map(Step::Take),
        3 => any::<prop::sample::Index>().prop_map(Step::Commit),
        1 => any::<prop::sample::Index>().prop_map(Step::RollBack),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Sinks that share a channel: each event is with one of them at a time, and committed once, over restarts.
    #[test]
    fn sinks_that_share_a_channel_agree_with_a_model(steps in steps()) {
        let disk = SimDisk::new();
        let (mut log, mut channel) = open(&disk, 1000).unwrap();
        let (mut next, mut waiting, mut in_hand): (u64, BTreeSet<u64>, Vec<Taken>) = (0, BTreeSet::new(), Vec::new());
        let mut committed: BTreeMap<u64, u32> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Put(count) => {
                    let mut events: Vec<Event> = (next..next + u64::from(count)).map(event).collect();
                    prop_assert!(channel.put(&mut events, "r1", None, Box::new(|_| ())).unwrap());
                    sync(&log).unwrap();
                    waiting.extend(next..next + u64::from(count));
                    next += u64::from(count);
                }
                Step::Take(most) => {
                    let taken = channel.take(usize::from(most), 1 << 20).unwrap();
                    prop_assert_eq!(taken.is_none(), waiting.is_empty());
                    if let Some(taken) = taken {
                        let got = numbers(&taken);
                        prop_assert_eq!(got.first(), waiting.first(), "the oldest first");
                        for n in got {
                            prop_assert!(waiting.remove(&n), "{} was with nobody", n);
                        }
                        in_hand.push(taken);
                    }
                }
                Step::Commit(which) if !in_hand.is_empty() => {
                    let taken = in_hand.swap_remove(which.index(in_hand.len()));
                    channel.commit(&taken, "k1", None).unwrap();
                    for n in numbers(&taken) {
                        *committed.entry(n).or_default() += 1;
                    }
                }
                Step::RollBack(which) if !in_hand.is_empty() => {
                    let taken = in_hand.swap_remove(which.index(in_hand.len()));
                    channel.roll_back(&taken);
                    waiting.extend(numbers(&taken));
                }
                Step::Commit(_) | Step::RollBack(_) => {}
                Step::Restart => {
                    for taken in in_hand.drain(..) {
                        waiting.extend(numbers(&taken));
                    }
                    drop((channel, log));
                    (log, channel) = open(&disk, 1000).unwrap();
                }
            }
            prop_assert!(committed.values().all(|times| *times == 1));
        }
        while let Some(taken) = channel.take(100, 1 << 30).unwrap() {
            for n in numbers(&taken) {
                prop_assert!(waiting.remove(&n));
            }
        }
        prop_assert!(waiting.is_empty(), "nothing is lost");
    }
}
