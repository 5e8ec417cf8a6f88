//! Where the rows of committed batches lie in the topics that the program fills.
//!
//! ```text
//! topic clean, partition 0     … others' │ 4: [20, 25) │ 5: [25, 31) │ 7: [31, 32)      end 32, 12 rows of ours
//! rewound to 4                 … others' │ 4: [20, 25) │ to be cut: 7 rows              end 25, 5 rows
//! ```
//!
//! Invariant: `end` of a partition is where the last committed batch that was
//! not undone left it, so a topic that ends before it has lost rows. Rows behind
//! it are those of undone batches, whoever else wrote there, or of a commit that
//! is still to be repeated. Called by [`super::history`].

use super::Checkpoint;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tidemill_core::{BatchId, Offset, OffsetRange, PartitionId};

/// A partition that the program fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilledPartition {
    /// Where its first row lies.
    pub begun: Offset,
    /// The offset after its last one.
    pub end: Offset,
    /// How many rows in between are its own.
    pub rows: u64,
    /// Rows from `end` on that were undone and are still to be cut off.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub undone: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's `skip_serializing_if` asks for this signature")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A topic that the program fills.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filled {
    /// The batch since which it is known where its rows lie; 0 is the beginning.
    pub since: BatchId,
    /// Its partitions that have rows of the program.
    pub partitions: BTreeMap<PartitionId, FilledPartition>,
}

/// What taking back undone batches means for a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TakesBack {
    /// None of them wrote there, or their rows are to stay.
    Nothing,
    /// These partitions are cut at their `end`.
    Cut(BTreeMap<PartitionId, FilledPartition>),
    /// Some of them were committed by a version that did not note where its rows lie.
    Unknown,
}

impl Checkpoint {
    /// Notes where a committed batch's rows lie.
    pub(super) fn fill(&mut self, batch: BatchId, written: &BTreeMap<String, Vec<OffsetRange>>) {
        if written.is_empty() {
            return;
        }
        let since = *self.history.tells_since.get_or_insert(batch);
        for (topic, ranges) in written {
            let new = || Filled { since: if since.0 == 0 { since } else { batch }, partitions: BTreeMap::new() };
            let filled = self.history.filled.entry(topic.clone()).or_insert_with(new);
            let shorter =
                |range: &OffsetRange| filled.partitions.get(&range.partition).is_some_and(|p| range.start < p.end);
            if ranges.iter().any(shorter) {
                // It was made anew, or lost rows that it was allowed to lose: what was before is known no more.
                *filled = Filled { since: batch, partitions: BTreeMap::new() };
            }
            for range in ranges {
                let new = FilledPartition { begun: range.start, end: range.start, rows: 0, undone: 0 };
                let partition = filled.partitions.entry(range.partition.clone()).or_insert(new);
                partition.end = range.end;
                partition.rows += range.len();
            }
        }
    }

    /// Goes back over the rows of a batch that is undone.
    pub(super) fn unfill(&mut self, written: &BTreeMap<String, Vec<OffsetRange>>) {
        for (topic, ranges) in written {
            let Some(filled) = self.history.filled.get_mut(topic) else { continue };
            for range in ranges.iter().rev() {
                if let Some(partition) = filled.partitions.get_mut(&range.partition) {
                    partition.end = range.start;
                    partition.rows = partition.rows.saturating_sub(range.len());
                    partition.undone += range.len();
                }
            }
        }
    }

    /// Goes back over all rows.
    pub(super) fn unfill_all(&mut self) {
        for partition in self.history.filled.values_mut().flat_map(|filled| filled.partitions.values_mut()) {
            partition.undone += partition.rows;
            (partition.end, partition.rows) = (partition.begun, 0);
        }
    }

    /// Leaves rows that were undone where they are.
    pub(super) fn keep_rows(&mut self) {
        for partition in self.history.filled.values_mut().flat_map(|filled| filled.partitions.values_mut()) {
            partition.undone = 0;
        }
    }

    /// What is to be taken back from a topic.
    pub(super) fn takes_back(&self, topic: &str) -> TakesBack {
        let cut = self.history.undone.iter().filter(|undone| !undone.keeps_topics);
        let Some(first) = cut.map(|undone| undone.to.0 + 1).min() else { return TakesBack::Nothing };
        match self.history.filled.get(topic) {
            Some(filled) if filled.since.0 <= first => {
                let undone = filled.partitions.iter().filter(|(_, partition)| partition.undone > 0);
                let cut: BTreeMap<_, _> = undone.map(|(id, partition)| (id.clone(), *partition)).collect();
                if cut.is_empty() { TakesBack::Nothing } else { TakesBack::Cut(cut) }
            }
            // It never wrote there.
            None if self.history.tells_since.is_some_and(|since| since.0 <= first) => TakesBack::Nothing,
            _ => TakesBack::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Past, SimDisk,
        ledger::{Committed, Ledger},
    };
    use std::{path::Path, sync::Arc};
    use tidemill_core::{Batch, Timestamp};

    const DIR: &str = "/data/ledger";

    /// Commits a batch that fills a topic, which holds as many rows as `topic`, with `rows` more.
    fn step(ledger: &mut Ledger, topic: &mut Vec<Option<u64>>, rows: usize) {
        let id = ledger.last().map_or(1, |last| last.batch.0 + 1);
        let (batch, time) = (BatchId(id), Timestamp(id.cast_signed()));
        ledger.plan(&Batch::end(batch, time)).unwrap();
        let start = Offset(topic.len() as u64);
        topic.extend(std::iter::repeat_n(Some(id), rows));
        let range = OffsetRange { partition: 0.into(), start, end: Offset(topic.len() as u64) };
        let written = if rows == 0 { BTreeMap::new() } else { BTreeMap::from([("t".to_owned(), vec![range])]) };
        ledger.commit(Committed { batch, time, written, ..Committed::default() }).unwrap();
    }

    /// A topic as a list of who wrote each row is the oracle.
    #[test]
    fn what_is_cut_are_the_rows_of_undone_batches_wherever_they_lie() {
        let mut seed = 11_u64;
        let mut dice = |n: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(seed >> 33).unwrap() % n
        };
        let disk = SimDisk::new();
        let open = || Ledger::open(Arc::new(disk.clone()), Path::new(DIR)).unwrap().with_rotation(3000);
        let (mut ledger, mut topic, mut live) = (open(), Vec::new(), vec![0_u64]);
        let (mut cut, mut among, mut kept) = (0, 0, 0);
        for turn in 0..600 {
            match dice(12) {
                0 => topic.push(None),
                1 => ledger = open(),
                2 if live.len() > 3 => {
                    let to = live[live.len() - 1 - dice(live.len().min(6))];
                    let keeps = dice(4) == 0;
                    ledger.rewind(BatchId(to), BatchId(0), keeps).unwrap();
                    live.retain(|id| *id <= to);
                    let undone = |row: &Option<u64>| row.is_some_and(|id| id > to);
                    let rows = topic.iter().filter(|row| undone(row)).count();
                    let back = Past::read(&disk, Path::new(DIR)).unwrap().unwrap().takes_back("t");
                    if keeps || rows == 0 {
                        assert_eq!(back, TakesBack::Nothing, "turn {turn}");
                    } else {
                        let at = topic.iter().position(undone).unwrap();
                        let TakesBack::Cut(partitions) = back else { panic!("turn {turn}: {back:?}") };
                        let found = partitions[&0.into()];
                        assert_eq!((found.end.0, found.undone), (at as u64, rows as u64), "turn {turn}");
                        if topic.len() - at == rows {
                            topic.truncate(at);
                            cut += 1;
                        } else {
                            among += 1;
                        }
                    }
                    kept += usize::from(keeps);
                    // What stays is from now on as if another had written it.
                    topic.iter_mut().filter(|row| undone(row)).for_each(|row| *row = None);
                    ledger.taken_back().unwrap();
                }
                rows => {
                    step(&mut ledger, &mut topic, rows.saturating_sub(4));
                    live.push(ledger.last().unwrap().batch.0);
                }
            }
            let past = ledger.past();
            let filled = past.filled().get("t").and_then(|filled| filled.partitions.get(&0.into()));
            let own = topic.iter().filter(|row| row.is_some()).count() as u64;
            assert_eq!(filled.map_or(0, |filled| filled.rows), own, "turn {turn}");
            if let (Some(filled), Some(last)) = (filled, topic.iter().rposition(Option::is_some)) {
                assert!(filled.end.0 > last as u64 && filled.end.0 <= topic.len() as u64, "turn {turn}: {filled:?}");
            }
            for id in 1..=ledger.last().map_or(0, |last| last.batch.0) {
                assert_eq!(past.gone().has(BatchId(id)), !live.contains(&id), "turn {turn}, batch {id}");
            }
        }
        assert!(cut > 5 && among > 5 && kept > 3, "{cut} cut, {among} with others among them, {kept} kept");
    }

    #[test]
    fn a_topic_that_is_shorter_than_it_was_is_known_from_then_on() {
        let disk = SimDisk::new();
        let mut ledger = Ledger::open(Arc::new(disk.clone()), Path::new(DIR)).unwrap();
        let mut topic = Vec::new();
        (0..3).for_each(|_| step(&mut ledger, &mut topic, 5));
        topic.clear();
        (0..2).for_each(|_| step(&mut ledger, &mut topic, 2));
        assert_eq!(ledger.past().filled()["t"].since, BatchId(4));
        let back = |to| {
            let undone = crate::ledger::Undone { to: BatchId(to), upto: BatchId(5), keeps_topics: false };
            ledger.past().rewound(undone).unwrap().takes_back("t")
        };
        assert!(matches!(back(4), TakesBack::Cut(_)) && matches!(back(3), TakesBack::Cut(_)));
        assert_eq!((back(2), back(0)), (TakesBack::Unknown, TakesBack::Unknown));
    }
}
