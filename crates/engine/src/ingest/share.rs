//! When too much is refused to go on: the share of dead letters of a stream.
//!
//! | Option of a stream | Meaning |
//! |---|---|
//! | `dead_stop_share` | stop the program when more than this share of the records is refused, such as `0.05`; without it all are kept and the program goes on |
//! | `dead_stop_over` | the last so many records that the share is of (1000) |
//!
//! Looked at before a batch is committed: a batch that goes beyond the share has
//! not happened, so after the mistake is mended the next start reads it again.
//! A start begins to count anew.
//!
//! Invariant: nothing is kept of a batch that stops the program, and nothing is
//! lost with it. Called by the commit of a batch.

use std::collections::VecDeque;
use tidemill_core::{DeadLetter, Error, Options, Result};

/// Reasons that the error shows.
const SAMPLES: usize = 3;

/// The share of records that may be refused.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeadShare {
    /// More than this part of the records, of 0 to 1, stops the program.
    pub share: f64,
    /// Of the last so many records at least.
    pub over: u64,
}

impl DeadShare {
    /// What the options of a stream say; `None` when they say nothing.
    ///
    /// # Errors
    /// When they are no numbers, or out of their range.
    pub(crate) fn from_options(options: &Options) -> Result<Option<Self>> {
        let given = options.get("dead_stop_share").is_some();
        let (share, over) = (options.parse("dead_stop_share", 1.0)?, options.parse("dead_stop_over", 1000_u64)?);
        if !(0.0..1.0).contains(&share) && given {
            return Err(Error::user(format!(
                "{}: option `dead_stop_share` must be a part of the records from 0 to below 1, such as 0.05, not `{share}`",
                options.owner()
            )));
        }
        if over == 0 || (!given && options.get("dead_stop_over").is_some()) {
            return Err(Error::user(format!(
                "{}: option `dead_stop_over` must be 1 or more, and goes with `dead_stop_share`",
                options.owner()
            )));
        }
        Ok(given.then_some(Self { share, over }))
    }
}

/// What the last records of a stream were.
#[derive(Debug)]
pub(crate) struct Watch {
    stream: String,
    bound: DeadShare,
    /// Records and refused ones of the last batches, oldest first; together a
    /// batch more than `bound.over` records at most.
    batches: VecDeque<(u64, u64)>,
    records: u64,
    refused: u64,
}

impl Watch {
    pub(crate) fn new(stream: &str, bound: DeadShare) -> Self {
        Self { stream: stream.to_string(), bound, batches: VecDeque::new(), records: 0, refused: 0 }
    }

    /// Takes a batch into account, in which the stream gave `records`.
    ///
    /// # Errors
    /// When too many were refused, with the share and some reasons.
    pub(crate) fn look(&mut self, records: u64, letters: &[DeadLetter]) -> Result<()> {
        let own = || letters.iter().filter(|letter| letter.stream == self.stream && letter.batch.is_some());
        let refused = own().count() as u64;
        if records == 0 {
            return Ok(());
        }
        self.batches.push_back((records, refused));
        self.records += records;
        self.refused += refused;
        while let Some((records, refused)) =
            self.batches.front().copied().filter(|(records, _)| self.records - records >= self.bound.over)
        {
            self.batches.pop_front();
            self.records -= records;
            self.refused -= refused;
        }
        #[expect(clippy::cast_precision_loss, reason = "a share of counts far below 2^53")]
        let share = self.refused as f64 / self.records as f64;
        if self.records < self.bound.over || share <= self.bound.share || refused == 0 {
            return Ok(());
        }
        let mut samples: Vec<String> = Vec::new();
        for letter in own() {
            let sample = format!("{} (partition {}, offset {})", letter.reason, letter.partition, letter.offset);
            if samples.len() < SAMPLES {
                samples.push(sample);
            }
        }
        Err(Error::user(format!(
            "stream `{}`: {:.1}% of the last {} records were refused, more than the {:.1}% of `dead_stop_share`: {}. Nothing of this batch was kept, and it runs again at the next start: mend the format or the columns, or raise the share",
            self.stream,
            share * 100.0,
            self.records,
            self.bound.share * 100.0,
            samples.join("; ")
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_core::{BatchId, Offset, PartitionId};

    fn letters(stream: &str, count: u64) -> Vec<DeadLetter> {
        let letter = |i| DeadLetter {
            stream: stream.into(),
            partition: PartitionId::from(0),
            offset: Offset(i),
            batch: Some(BatchId(1)),
            reason: format!("reason {i}"),
            raw: vec![],
        };
        (0..count).map(letter).collect()
    }

    #[test]
    fn the_share_is_of_the_last_records() {
        let mut watch = Watch::new("s", DeadShare { share: 0.05, over: 1000 });
        // Too few to judge.
        watch.look(100, &letters("s", 100)).unwrap();
        // Those of others are not counted, and old batches are forgotten.
        for _ in 0..20 {
            watch.look(100, &letters("other", 100)).unwrap();
        }
        watch.look(100, &letters("s", 50)).unwrap();
        let error = watch.look(100, &letters("s", 1)).unwrap_err().to_string();
        assert!(error.contains("5.1% of the last 1000 records"), "{error}");
        assert!(error.contains("reason 0 (partition 0, offset 0)"), "{error}");
    }

    #[test]
    fn a_quiet_batch_stops_nothing() {
        let mut watch = Watch::new("s", DeadShare { share: 0.0, over: 1 });
        watch.look(5, &[]).unwrap();
        watch.look(0, &[]).unwrap();
        assert!(watch.look(5, &letters("s", 1)).is_err());
    }

    #[test]
    fn options_are_checked() {
        let of = |pairs: &[(&str, &str)]| DeadShare::from_options(&Options::new("s", pairs.iter().copied()));
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&[("dead_stop_share", "0.05")]).unwrap(), Some(DeadShare { share: 0.05, over: 1000 }));
        for bad in [[("dead_stop_share", "5")], [("dead_stop_share", "-1")], [("dead_stop_over", "5")]] {
            assert!(of(&bad).is_err(), "{bad:?}");
        }
    }
}
