//! `tidemill import`: files of other systems as ours.
//!
//! Invariant: the file goes to standard output alone, so that it can be redirected; what has no equal goes to standard
//! error, a line each, with the line that asks for it.

use super::{out, program};
use clap::{Args, Subcommand};
use std::{
    io::{self, Write},
    path::PathBuf,
};
use tidemill::{Error, Result, agent::flume};

/// Turn another system's file into one of Tidemill's.
#[derive(Debug, Args)]
pub(crate) struct ImportCommand {
    #[command(subcommand)]
    from: From,
}

/// Of which system.
#[derive(Debug, Subcommand)]
enum From {
    Flume(FlumeArgs),
}

/// An agent of Apache Flume.
///
/// Prints the agent's file; says of each line what has no equal here.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill import flume a1.conf > a1.toml       then: tidemill check a1.toml
  tidemill import flume all.conf --name a2      one of several agents in a file

What has no equal is listed with its line, and the command exits with 1 if something is lost by that.")]
struct FlumeArgs {
    /// A file of Flume's.
    #[arg(value_name = "FILE.conf")]
    path: PathBuf,

    /// Which agent of the file.
    #[arg(long)]
    name: Option<String>,
}

impl ImportCommand {
    pub(crate) fn run(self) -> Result<()> {
        let From::Flume(FlumeArgs { path, name }) = self.from;
        let text = program::read(&path)?;
        let shown = path.display();
        let imported = flume::import(&text, name.as_deref())
            .map_err(|error| Error::user(format!("{shown}: {}", error.chain())))?;
        out::write(format_args!("{}", imported.toml))?;
        let mut told = io::stderr().lock();
        for note in &imported.notes {
            let kind = if note.lost { "NO EQUAL" } else { "note" };
            // Nobody is left to be told when standard error is closed.
            let _closed = writeln!(told, "{shown}: line {}: {kind}: {}", note.line, note.text);
        }
        match imported.notes.iter().filter(|note| note.lost).count() {
            0 => Ok(()),
            lost => {
                Err(Error::user(format!("{lost} of the lines of {shown} have no equal, or not all of it; see above")))
            }
        }
    }
}
