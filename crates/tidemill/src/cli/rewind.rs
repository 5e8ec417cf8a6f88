//! `tidemill rewind`: back to an earlier batch, in place or in a copy.
//!
//! Invariant: a rewind is one record of the ledger, and says before what becomes of
//! each output; the next `run` does it. A fork changes nothing of the first
//! directory, whose program may be running.

use super::data::DataArg;
use arrow_array::{Array, StringArray, TimestampMicrosecondArray, cast::AsArray, types::TimestampMicrosecondType};
use arrow_schema::{DataType, TimeUnit};
use clap::Args;
use std::{path::PathBuf, sync::Arc};
use tidemill::{
    Error, Result,
    core::{BatchId, Timestamp, parse_duration},
    store::{
        DataDir, Disk, Past, RealDisk, fork,
        rewind::{self, Goal, Way},
    },
};

/// Go back to an earlier batch: the next run goes on from there, with the program as it is then.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill rewind --data d                         which batches are kept?
  tidemill rewind --to 17 --data d                 to the end of batch 17
  tidemill rewind --to 2026-05-01T09:00:00Z        to the last batch at that time or before it (UTC)
  tidemill rewind --to 20m                         to the last batch 20 minutes before the newest
  tidemill rewind --to 0                           to the beginning: everything is computed anew
  tidemill rewind --to 17 --dry-run                what would become of what the outputs wrote?
  tidemill rewind --to 17 --fork try --data d      a copy in the directory try, gone back to 17

A bug of the morning is mended in the afternoon:
  1. stop the program, and mend it
  2. tidemill plan top.sql                         what becomes of its state?
  3. tidemill rewind --to 9h                       back to before the bug had its say
  4. tidemill run top.sql                          runs the morning again, right

Positions, state and watermarks are those of the batch. What the batches after it have written is \
taken back when the program starts: files are moved aside, topics cut; --dry-run and `tidemill plan` \
say it for each output. Their numbers are not used again. A topic that another program has read \
further is not cut: go back with that program first, or let the rows stay with --keep-topics.

A fork may be made while the program runs; give its program other places to write to.")]
pub(crate) struct Rewind {
    #[command(flatten)]
    data: DataArg,

    /// The program; needed when the directory has several.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Where to go back to: a batch's number, a time (UTC), or how long before the newest batch.
    #[arg(long, value_name = "BATCH|TIME", value_parser = goal)]
    to: Option<Goal>,

    /// Leave this directory as it is, and make a copy in another that is gone back.
    #[arg(long, value_name = "DIR")]
    fork: Option<PathBuf>,

    /// Only say what would happen.
    #[arg(long, requires = "to", conflicts_with = "fork")]
    dry_run: bool,

    /// Leave the rows of undone batches in topics; what is computed anew comes after them.
    #[arg(long, requires = "to", conflicts_with = "fork")]
    keep_topics: bool,

    /// The last batch that was seen outside, where the ledger has lost its end.
    #[arg(long, value_name = "BATCH", requires = "to", conflicts_with = "fork")]
    upto: Option<u64>,
}

/// A batch, a time, or a span before the newest batch.
fn goal(text: &str) -> Result<Goal, String> {
    if let Ok(batch) = text.parse() {
        return Ok(Goal::Batch(BatchId(batch)));
    }
    if let Some(span) = parse_duration(text) {
        return Ok(Goal::Ago(span));
    }
    let kind = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let options = arrow_cast::CastOptions { safe: true, ..arrow_cast::CastOptions::default() };
    let times = arrow_cast::cast_with_options(&StringArray::from(vec![text]), &kind, &options).ok();
    let time = times.as_ref().map(|times| times.as_primitive::<TimestampMicrosecondType>());
    match time.filter(|time: &&TimestampMicrosecondArray| time.is_valid(0)) {
        Some(time) => Ok(Goal::At(Timestamp(time.value(0)))),
        None => Err("write a batch's number, a time such as 2026-05-01T09:00:00Z, or a span such as 20m".to_string()),
    }
}

/// The program that is meant.
pub(crate) fn program_name(disk: &dyn Disk, data: &DataArg, name: Option<&str>) -> Result<String> {
    if let Some(name) = name {
        rewind::program_dir(disk, &data.path, name)?;
        return Ok(name.to_string());
    }
    let mut all = rewind::programs(disk, &data.path)?;
    match (all.pop(), all.is_empty()) {
        (Some(one), true) => Ok(one),
        (None, _) => Err(Error::user(format!(
            "no program has run in {}: name its data directory with --data DIR",
            data.path.display()
        ))),
        (Some(last), false) => Err(Error::user(format!(
            "{} has the programs {}, {last}: say which with --name",
            data.path.display(),
            all.join(", ")
        ))),
    }
}

impl Rewind {
    pub(crate) fn run(self) -> Result<()> {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let name = program_name(&*disk, &self.data, self.name.as_deref())?;
        let path = &self.data.path;
        if let Some(into) = &self.fork {
            let owned = DataDir::open(into)?;
            let made = fork::fork(&disk, path, &name, self.to, into)?;
            drop(owned);
            println!(
                "Program {name} of {} is copied to {}, as after {}.",
                path.display(),
                into.display(),
                after(&made)
            );
            gaps(&made);
            println!("Next: tidemill run {name}.sql --data {}", into.display());
            return Ok(());
        }
        let Some(goal) = self.to else { return self.list(&*disk, &name) };
        let way = Way { goal, seen: self.upto.map(BatchId), keeps_topics: self.keep_topics };
        if self.dry_run {
            let would = rewind::plan(&disk, path, &name, way)?;
            if would.outputs.is_empty() && would.upto <= would.to {
                println!("Program {name} stands after {} already: nothing would be undone.", after(&would));
                return Ok(());
            }
            println!("Program {name} would go back to {}; {} be undone.", after(&would), undone(&would, "would"));
            outputs(&would);
            gaps(&would);
            println!("Nothing was changed; without --dry-run it is done.");
            return Ok(());
        }
        let owned = DataDir::open(path)?;
        let done = rewind::rewind(&disk, path, &name, way)?;
        drop(owned);
        if done.upto <= done.to {
            println!("Program {name} stands after {} already: nothing is undone.", after(&done));
            return Ok(());
        }
        let is = if done.upto.0 == done.to.0 + 1 { "is" } else { "are" };
        println!("Program {name} is back to {}; {} undone.", after(&done), undone(&done, is));
        outputs(&done);
        gaps(&done);
        println!(
            "Next: `tidemill plan {name}.sql` shows what the next run does, `tidemill run {name}.sql` goes on with batch {}.",
            done.upto.0 + 1
        );
        Ok(())
    }

    /// Which batches are kept.
    fn list(&self, disk: &dyn Disk, name: &str) -> Result<()> {
        let root = rewind::program_dir(disk, &self.data.path, name)?;
        let past = Past::read(disk, &root.join("ledger"))?;
        let recent = past.as_ref().map(|past| past.recent().collect::<Vec<_>>()).unwrap_or_default();
        match (recent.first(), recent.last()) {
            (Some(first), Some(last)) => {
                println!(
                    "Program {name} has {} batches that are kept, {} ({}) to {} ({}).",
                    recent.len(),
                    first.id,
                    first.time,
                    last.id,
                    last.time
                );
                println!("Go back with --to BATCH or --to TIME; 0 is the beginning.");
            }
            _ => println!("Program {name} has committed no batch."),
        }
        Ok(())
    }
}

fn after(done: &rewind::Rewound) -> String {
    match (done.to.0, done.time) {
        (0, _) => "the beginning".to_string(),
        (batch, Some(time)) => format!("batch {batch} ({time})"),
        (batch, None) => format!("batch {batch}"),
    }
}

/// `batches 18 to 40 are`.
fn undone(done: &rewind::Rewound, verb: &str) -> String {
    if done.upto.0 == done.to.0 + 1 {
        format!("batch {} {verb}", done.upto)
    } else {
        format!("batches {} to {} {verb}", done.to.0 + 1, done.upto)
    }
}

/// What becomes of what the outputs wrote.
fn outputs(done: &rewind::Rewound) {
    if done.outputs.is_empty() {
        return;
    }
    println!("What they wrote, when the program starts:");
    for output in &done.outputs {
        println!("  {} ({}): {}", output.name, output.what, output.becomes);
    }
}

/// What the log has lost of what will be read again.
fn gaps(done: &rewind::Rewound) {
    for gap in &done.gaps {
        println!("Not everything can be read again: {gap}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill::Duration;

    #[test]
    fn a_goal_is_a_batch_a_time_or_a_span() {
        assert_eq!(goal("17"), Ok(Goal::Batch(BatchId(17))));
        assert_eq!(goal("20m"), Ok(Goal::Ago(Duration::from_secs(1200))));
        let at = Ok(Goal::At(Timestamp(1_777_626_000_000_000)));
        for text in ["2026-05-01T09:00:00Z", "2026-05-01T09:00:00", "2026-05-01 09:00:00", "2026-05-01T11:00:00+02:00"]
        {
            assert_eq!(goal(text), at, "{text}");
        }
        for wrong in ["yesterday", "", "-3", "2026-13-01T00:00:00Z"] {
            assert!(goal(wrong).is_err(), "{wrong}");
        }
    }
}
