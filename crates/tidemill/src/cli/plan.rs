//! `tidemill plan`: what a program will do.
//!
//! Invariant: nothing is started, connected to or written.

use super::{
    out::{out, outln},
    program::ProgramArgs,
};
use clap::Args;
use tidemill::Result;

/// Show what a SQL program will do: with the state that is kept, and with its inputs and outputs.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill plan top.sql
  tidemill plan top.sql --data d --rebuild top      as if `run` were asked to rebuild top

What becomes of the state of each operator:
  keep      it goes on with its state
  new       it had none, and begins empty
  migrate   its rows are taken over: columns are added, widened or dropped
  rebuild   it is computed anew from what the log has kept
  drop      the program has no such operator any more
Everything but keep and new happens only when `run` has --accept-changes. The number of partitions, \
the interval, the inputs and the order of statements may change freely.")]
pub(crate) struct Plan {
    #[command(flatten)]
    program: ProgramArgs,
}

impl Plan {
    pub(crate) fn run(self) -> Result<()> {
        let context = self.program.checked()?;
        outln!("program {}", context.name());
        outln!();
        if let Some(changes) = context.changes()? {
            outln!("{}", self.program.change.text(&changes, &self.program.run_command()));
        }
        out!("{}", context.explain()?);
        Ok(())
    }
}
