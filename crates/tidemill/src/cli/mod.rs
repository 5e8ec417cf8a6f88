//! The commands, one file each, and the arguments that several share.
//!
//! Invariant: a command only reads arguments, puts parts together through
//! [`tidemill::assemble`] or the store, and prints. Called by `main`.

mod demo;
mod values;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use tidemill::Result;

/// Where commands keep their data unless they are told.
const DATA: &str = "tidemill-data/default";

/// Streams of batches, exactly once.
///
/// Tidemill cuts live input into batches, runs each as one columnar plan and
/// keeps what it read in a log that SQL can ask.
#[derive(Debug, Parser)]
#[command(name = "tidemill", version, max_term_width = 100, after_help = "\
Examples:
  tidemill demo                       a live chart from real posts, here and in the browser
  tidemill demo --for 20s --headless  the same as plain lines, for 20 seconds
  tidemill check program.sql          is this program right?
  tidemill run program.sql            run it; Ctrl-C stops and keeps
  tidemill sql                        ask the history

`tidemill COMMAND --help` explains a command and shows examples.")]
pub(crate) struct Cli {
    /// Log more: -v what happens, -vv details, -vvv everything.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,

    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(demo::Demo),
}

impl Command {
    /// Does it.
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Demo(command) => command.run(),
        }
    }
}

/// The data directory of a command.
#[derive(Debug, clap::Args)]
pub(crate) struct DataArg {
    /// Data directory: log, ledger and state; one process at a time.
    #[arg(long = "data", value_name = "DIR", env = "TIDEMILL_DATA", default_value = DATA)]
    pub(crate) path: PathBuf,
}

/// What a run did, in two lines.
fn print_summary(ended: &tidemill::assemble::Ended) {
    let last = ended.last.map_or_else(|| "before the first batch".to_string(), |b| format!("after batch {b}"));
    println!(
        "Stopped {last}: {} records in {} batches, {} refused, {} late; delay p50 {:.1} ms, p99 {:.1} ms.",
        ended.records,
        ended.batches,
        ended.refused,
        ended.late,
        ended.delay_p50.as_secs_f64() * 1e3,
        ended.delay_p99.as_secs_f64() * 1e3,
    );
}
