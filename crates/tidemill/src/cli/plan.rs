//! `tidemill plan`: what a program will do.
//!
//! Invariant: nothing is started, connected to or written.

use super::program::ProgramArgs;
use clap::Args;
use tidemill::Result;

/// Show what a SQL program will do: its outputs, what each promises, and the plan of each.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill plan top.sql")]
pub(crate) struct Plan {
    #[command(flatten)]
    program: ProgramArgs,
}

impl Plan {
    pub(crate) fn run(self) -> Result<()> {
        let context = self.program.checked()?;
        println!("program {}", context.name());
        println!();
        print!("{}", context.explain()?);
        Ok(())
    }
}
