//! `tidemill replay-batch`: one batch run again, to be looked at.
//!
//! Invariant: nothing is written, neither state nor output nor ledger.

use super::{
    data::DataArg,
    out::{out, outln},
    program,
    rewind::program_name,
    table::table,
};
use arrow_array::RecordBatch;
use clap::Args;
use std::path::PathBuf;
use tidemill::{
    Error, Result,
    core::BatchId,
    engine::Replayed,
    store::{Past, RealDisk, rewind::program_dir},
};

/// Cells of a column at most.
const CELL: usize = 60;

/// Run one batch again and show it: what it read, its plan, what it changed, what it gave.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill replay-batch 17 --data d                    by the program that ran it
  tidemill replay-batch 17 --program top.sql --data d  what would the mended program have done?
  tidemill rewind --data d                             which batches are kept?

The state before the batch and the records that it read are those of then. Nothing is written, \
and the program may be running.")]
pub(crate) struct ReplayBatch {
    /// The batch.
    batch: u64,

    /// Run it by this program instead of the one that ran it.
    #[arg(long, value_name = "PROGRAM.sql")]
    program: Option<PathBuf>,

    /// The program's name; needed when the directory has several.
    #[arg(long)]
    name: Option<String>,

    #[command(flatten)]
    data: DataArg,

    /// Rows shown of each table.
    #[arg(long, default_value_t = 20)]
    rows: usize,

    /// Show the plan of each output, too.
    #[arg(long)]
    plan: bool,
}

impl ReplayBatch {
    pub(crate) fn run(self) -> Result<()> {
        let name = program_name(&RealDisk, &self.data, self.name.as_deref())?;
        let text = match &self.program {
            Some(path) => program::read(path)?,
            None => {
                let root = program_dir(&RealDisk, &self.data.path, &name)?;
                let past = Past::read(&RealDisk, &root.join("ledger"))?;
                past.and_then(|past| past.program_at(BatchId(self.batch)).text).ok_or_else(|| {
                    Error::user(format!("the text of program `{name}` is not kept: say --program PROGRAM.sql"))
                })?
            }
        };
        let context = tidemill::context(&name).data_dir(&self.data.path).check_only().build();
        program::declare(&context, self.program.as_deref(), &text)?;
        let replayed = context.replay_batch(BatchId(self.batch))?;
        self.print(&name, &replayed)
    }

    fn print(&self, name: &str, replayed: &Replayed) -> Result<()> {
        outln!("program {name}, batch {} of {}", replayed.batch.id, replayed.batch.time);
        for (stream, rows) in &replayed.inputs {
            let ranges: Vec<String> =
                replayed.batch.ranges.get(stream).into_iter().flatten().map(ToString::to_string).collect();
            let what = if ranges.is_empty() { "nothing new".to_string() } else { ranges.join(" ") };
            outln!("\nread from {stream}: {what}");
            self.table(rows)?;
        }
        for letter in &replayed.refused {
            outln!(
                "refused: {} partition {} offset {}: {}",
                letter.stream,
                letter.partition,
                letter.offset,
                letter.reason
            );
        }
        if self.plan {
            for (output, plan) in &replayed.plans {
                outln!("\nplan of {output}:\n{}", plan.trim_end());
            }
        }
        for state in &replayed.states {
            outln!("\nstate.{}{}", state.operator, state.note.as_ref().map(|n| format!(" ({n})")).unwrap_or_default());
            if state.before.is_empty() && state.after.is_empty() {
                outln!("nothing changed");
                continue;
            }
            outln!("before, of the keys that changed:");
            self.table(&state.before)?;
            outln!("after:");
            self.table(&state.after)?;
        }
        for (output, rows) in &replayed.outputs {
            outln!("\noutput {output}:");
            self.table(rows)?;
        }
        for (of, at) in &replayed.watermarks {
            outln!("\nwatermark of {of}: {at}");
        }
        outln!("\nNothing was written.");
        Ok(())
    }

    fn table(&self, rows: &[RecordBatch]) -> Result<()> {
        let total: usize = rows.iter().map(RecordBatch::num_rows).sum();
        let mut left = self.rows;
        let mut shown = Vec::new();
        for rows in rows {
            let take = rows.num_rows().min(left);
            left -= take;
            shown.push(rows.slice(0, take));
        }
        out!("{}", table(&shown, CELL)?);
        if total > self.rows {
            outln!("… of {total} rows; --rows shows more");
        }
        Ok(())
    }
}
