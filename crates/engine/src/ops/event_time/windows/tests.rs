//! What a batch costs among many open windows: the keys that it looks at.

use super::*;
use crate::{ops::event_time::TimeWindow, record::batch_of};
use std::collections::BTreeMap;
use tidemill_core::{Batch, PartitionId, WatermarkSpec};

const SECOND: i64 = 1_000_000;
const KEYS: i64 = 5_000;

struct Trial {
    windows: Windows<i64, i64>,
    batch: u64,
    before: Timestamp,
}

impl Trial {
    fn new(window: WindowKind, lateness: i64) -> Self {
        let lateness = Duration::from_micros(lateness.unsigned_abs());
        let named = ("w".to_string(), "reduce_by_window");
        let sum: Join<i64> = Arc::new(|a, b| a + b);
        Self { windows: Windows::new(named, window, lateness, 1).joining(sum), batch: 0, before: Timestamp::MIN }
    }

    /// One batch of one record each for these keys, at a time, after which the watermark is there, too. Gives the
    /// windows that were given, and the keys that were looked at.
    fn batch(&mut self, keys: std::ops::Range<i64>, at: i64) -> (usize, usize) {
        self.batch += 1;
        // One that names no stream would end the program, and all windows.
        let ranges = BTreeMap::from([("s".to_string(), Vec::new())]);
        let batch = Batch { id: BatchId(self.batch), ranges, ..Batch::default() };
        let run = BatchRun::new(batch, BTreeMap::from([("w".to_string(), self.before)]));
        run.follow("w", WatermarkSpec::new(Duration::ZERO), "s");
        run.observe("w", &PartitionId::new(""), Timestamp(at));
        let pane = match self.windows.window {
            WindowKind::Time(spec) => spec.pane_of(Timestamp(at)).0,
            WindowKind::Session(_) | WindowKind::Count(_) => at,
        };
        let rows: Vec<Row<i64, i64>> = keys.map(|key| (key, pane, at, at, 1)).collect();
        let rows = if rows.is_empty() { Vec::new() } else { vec![batch_of(rows).unwrap()] };
        let looked = self.windows.parts[0].lock().looks;
        let schema = schema_of::<(TimeWindow, i64, i64)>();
        let given = self.windows.turn::<TimeWindow>(0, &run, rows, &schema).unwrap();
        self.before = self.before.max(run.watermark_now("w"));
        let given = given.iter().map(RecordBatch::num_rows).sum();
        (given, self.windows.parts[0].lock().looks - looked)
    }

    fn rows(&self) -> usize {
        self.windows.rows()
    }
}

#[test]
fn a_batch_looks_at_what_it_touches_and_at_what_ends() {
    let all = usize::try_from(KEYS).unwrap();
    let tumbling = WindowSpec::tumble(60 * SECOND).unwrap();
    for (window, ends) in [(WindowKind::Time(tumbling), 60), (WindowKind::Session(50 * SECOND), 60)] {
        for (lateness, restarts) in [(0, false), (5, false), (5, true)] {
            let mut trial = Trial::new(window, lateness * SECOND);
            assert_eq!(trial.batch(0..KEYS, 10 * SECOND), (0, all));
            for second in 11..15 {
                // The same keys or others, in windows that end later.
                assert_eq!(trial.batch(KEYS..KEYS + 3, second * SECOND), (0, 3), "{window:?}");
            }
            if restarts {
                let rows = trial.windows.snapshot().unwrap();
                trial.windows.restore(&[Version { whole: true, again: None, rows }]).unwrap();
                assert_eq!(trial.batch(0..0, 15 * SECOND).0, 0);
            }
            assert_eq!(trial.batch(0..0, ends * SECOND - 1), (0, 0), "nothing ends yet");
            let others = trial.rows() - all;
            let (given, looks) = trial.batch(0..0, ends * SECOND);
            // Those that came later are in the same tumbling window, or in a session that goes on.
            let same = matches!(window, WindowKind::Time(_));
            assert_eq!(given, all + if same { others } else { 0 });
            assert!((all..=all + others).contains(&looks), "{looks} looks at {all} keys");
            if lateness > 0 {
                assert_eq!(trial.rows(), all + others, "late records may come");
                assert_eq!(trial.batch(0..0, (ends + lateness) * SECOND - 1).1, if same { 0 } else { 3 });
                trial.batch(0..0, (ends + lateness) * SECOND);
            }
            assert_eq!(trial.rows(), if same { 0 } else { others });
            trial.batch(0..0, 1_000 * SECOND);
            assert_eq!((trial.rows(), trial.windows.parts[0].lock().keys.len()), (0, 0));
            assert_eq!(trial.windows.parts[0].lock().wakes.bytes(), 0, "no entry is left");
        }
    }
}

#[test]
fn a_key_that_is_touched_often_has_few_entries() {
    let hopping = WindowSpec::hop(60 * SECOND, SECOND).unwrap();
    for window in [WindowKind::Time(hopping), WindowKind::Session(50 * SECOND)] {
        let mut trial = Trial::new(window, 0);
        for second in 0..200 {
            let (given, looks) = trial.batch(0..4, second * SECOND);
            assert_eq!((given, looks), (if matches!(window, WindowKind::Time(_)) && second > 0 { 4 } else { 0 }, 4));
            let part = trial.windows.parts[0].lock();
            assert!(part.wakes.bytes() <= 4 * 2 * 16, "{} bytes of entries", part.wakes.bytes());
        }
    }
}
