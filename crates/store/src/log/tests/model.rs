//! Any order of calls, beside a model that is a vector.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use tidemill_core::{Clock, Duration};

#[derive(Debug, Clone)]
enum Step {
    Append { rows: i64, width: usize, resume: bool },
    Sync,
    Tidy,
    Retain,
    Pin(u64),
    Unpin,
    Forget,
    Pass(u64),
    Close,
    Kill,
    PowerLoss(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..9i64, 0..300usize, any::<bool>()).prop_map(|(rows, width, resume)| Step::Append { rows, width, resume }),
        2 => Just(Step::Sync),
        1 => Just(Step::Tidy),
        1 => Just(Step::Retain),
        1 => (0..100u64).prop_map(Step::Pin),
        1 => Just(Step::Unpin),
        1 => Just(Step::Forget),
        2 => (0..20u64).prop_map(Step::Pass),
        1 => Just(Step::Close),
        1 => Just(Step::Kill),
        1 => any::<u64>().prop_map(Step::PowerLoss),
    ]
}

#[derive(Debug, Default)]
struct Model {
    /// Time of each row; the row's number is its place.
    times: Vec<i64>,
    /// The token after each append that had one, with the end there.
    tokens: Vec<(usize, String)>,
    durable: usize,
    pin: Option<u64>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: u32::try_from(crate::tests::tries::tries(96)).unwrap(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_log_is_a_vector(steps in prop::collection::vec(step(), 1..50)) {
        let index = |n: u64| usize::try_from(n).unwrap();
        let clock = clock();
        let open = |disk: &SimDisk| {
            Log::quiet(Arc::new(disk.clone()), Path::new("/l"), Arc::clone(&clock) as Arc<dyn Clock>).unwrap()
        };
        let mut disk = SimDisk::new();
        let mut log = open(&disk);
        let mut config = config(Sync::Always);
        config.retention.max_age = Some(Duration::from_secs(60));
        let mut topic = log.create_topic("t", &config).unwrap();
        let mut model = Model::default();
        let mut tokens = 0;
        for step in steps {
            let end = model.times.len();
            match step {
                Step::Append { rows: count, width, resume } => {
                    let token = resume.then(|| { tokens += 1; format!("token {tokens}") });
                    let at = topic.append(0, &rows(i64::try_from(end).unwrap(), count, width), token.as_deref()).unwrap();
                    let next = end + usize::try_from(count).unwrap();
                    prop_assert_eq!((at.first.0, at.next.0), (end as u64, next as u64));
                    model.times.resize(next, clock.now().0);
                    model.tokens.extend(token.map(|token| (next, token)));
                }
                Step::Sync => {
                    topic.partitions()[0].flush().unwrap();
                    model.durable = end;
                }
                Step::Tidy => { tidy(&topic); model.durable = index(topic.durable_end(0).0); }
                Step::Retain => {
                    topic.apply_retention(clock.now()).unwrap();
                    model.durable = index(topic.durable_end(0).0);
                }
                Step::Pin(percent) => {
                    let (start, end) = (topic.start(0).0, end as u64);
                    let offset = start + (end - start) * percent / 100;
                    topic.pin("p", &BTreeMap::from([(0, Offset(offset))])).unwrap();
                    model.pin = Some(offset);
                }
                Step::Unpin => { topic.unpin("p").unwrap(); model.pin = None; }
                Step::Forget => forget_cache(&topic),
                Step::Pass(secs) => clock.advance(Duration::from_secs(secs)),
                Step::Close => {
                    drop((topic, log));
                    log = open(&disk);
                    topic = log.topic("t").unwrap();
                    model.durable = end;
                }
                Step::Kill => {
                    disk = disk.fork();
                    log = open(&disk);
                    topic = log.topic("t").unwrap();
                    model.durable = end;
                }
                Step::PowerLoss(seed) => {
                    disk = disk.crash(seed);
                    log = open(&disk);
                    topic = log.topic("t").unwrap();
                    let found = index(topic.end(0).0);
                    prop_assert!(found >= model.durable && found <= end);
                    model.times.truncate(found);
                    model.durable = found;
                    // A token without rows may be lost with its frame: then the one before counts.
                    let resume = topic.resume(0);
                    while model.tokens.last().is_some_and(|(at, token)| *at > found || (*at == found && resume.as_ref() != Some(token))) {
                        model.tokens.pop();
                    }
                    // A forward pin may fall back to the one on disk, which keeps more.
                    let pin = topic.pins().get("p").map(|p| p[&0].0);
                    prop_assert!(pin.is_some() == model.pin.is_some() && pin <= model.pin);
                    model.pin = pin;
                }
            }
            let (start, end) = (topic.start(0).0, topic.end(0).0);
            prop_assert_eq!(index(end), model.times.len());
            prop_assert_eq!(topic.resume(0), model.tokens.last().map(|(_, token)| token.clone()));
            prop_assert!(model.pin.is_none_or(|pin| start <= pin));
            prop_assert_eq!(read(&topic, start, end).unwrap(), (start.cast_signed()..end.cast_signed()).collect::<Vec<_>>());
            let times: Vec<i64> = topic
                .read(0, Offset(start), Offset(end))
                .flat_map(|run| run.unwrap().times)
                .flat_map(|(rows, time)| std::iter::repeat_n(time.0, rows as usize))
                .collect();
            prop_assert_eq!(&times[..], &model.times[index(start)..]);
            let middle = Timestamp(times.get(times.len() / 2).copied().unwrap_or(0));
            let expected = start + times.iter().filter(|t| **t < middle.0).count() as u64;
            prop_assert_eq!(topic.read_time(0, middle).unwrap().0, expected);
        }
    }
}
