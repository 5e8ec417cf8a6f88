//! `tidemill check`: is this program, or this agent, right?
//!
//! Invariant: nothing is started or written. A program is connected to nothing; the addresses and directories of an
//! agent are looked at and let go.

use super::{agent, out::outln, program::ProgramArgs};
use clap::Args;
use tidemill::Result;

/// Check a SQL program, or an agent's file, without starting it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill check top.sql
  tidemill check a1.toml      an agent: its file, and whether what it needs is there

Prints `ok`, or the first error of each statement with its line and column, and exits with 1. \
What follows from an error before it is not told again.")]
pub(crate) struct Check {
    #[command(flatten)]
    program: ProgramArgs,
}

impl Check {
    pub(crate) fn run(self) -> Result<()> {
        if agent::is_agent(&self.program.path) {
            return agent::check(&self.program.path);
        }
        // Planning finds what declaring can't.
        self.program.checked()?.check()?;
        outln!("ok");
        Ok(())
    }
}
