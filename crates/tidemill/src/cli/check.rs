//! `tidemill check`: is this program right?
//!
//! Invariant: nothing is started, connected to or written.

use super::{out::outln, program::ProgramArgs};
use clap::Args;
use tidemill::Result;

/// Check a SQL program without starting it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill check top.sql

Prints `ok`, or the first error of each statement with its line and column, and exits with 1. \
What follows from an error before it is not told again.")]
pub(crate) struct Check {
    #[command(flatten)]
    program: ProgramArgs,
}

impl Check {
    pub(crate) fn run(self) -> Result<()> {
        // Planning finds what declaring can't.
        self.program.checked()?.check()?;
        outln!("ok");
        Ok(())
    }
}
