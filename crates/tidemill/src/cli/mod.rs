//! The commands, one file each, and the arguments that several share.
//!
//! Invariant: a command only reads arguments, puts parts together through
//! [`tidemill::assemble`] or the store, and prints. Called by `main`.

mod agent;
mod backup;
mod change;
mod check;
mod client;
mod consume;
mod data;
mod dead;
mod demo;
mod import;
mod kafka;
mod out;
mod page;
mod plan;
mod produce;
mod program;
mod recordings;
mod replay;
mod replay_batch;
mod rewind;
mod run;
mod secrets;
mod serving;
mod simulate;
mod sql;
mod status;
mod stored;
mod table;
mod topic;
mod traces;
mod values;

use clap::{Parser, Subcommand};
use out::outln;
use tidemill::{Result, assemble::Ended};
use unicode_width::UnicodeWidthStr;

/// Where commands keep their data unless they are told.
const DATA: &str = "tidemill-data/default";

/// Streams of batches, exactly once.
///
/// Tidemill cuts live input into batches, runs each as one columnar plan and
/// keeps what it read in a log that SQL can ask.
#[derive(Debug, Parser)]
#[command(
    name = "tidemill",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  tidemill demo                       a live chart from real posts, here and in the browser
  tidemill demo --for 20s --headless  the same as plain lines, for 20 seconds
  tidemill check program.sql          is this program right?
  tidemill run program.sql            run it; Ctrl-C stops and keeps
  tidemill sql                        ask the history
  tidemill agent FILE.toml            sources, channels and sinks without code
  tidemill plan program.sql           what becomes of its state, now that it has changed?
  tidemill rewind --to 20m            go back, and run it again from there
  tidemill dead list                  records that were refused, and why
  tidemill backup DIR                 a copy of everything, also while it runs

`tidemill COMMAND --help` explains a command and shows examples.

Environment: TIDEMILL_DATA is the data directory where --data is not given; TIDEMILL_LOG chooses what \
is logged (`tidemill_engine=debug,warn`), whatever -v says; NO_COLOR leaves colours out; TIDEMILL_WEB_TOKEN is a \
token of an admin for the page, and TIDEMILL_TOKEN the token that `status` sends; TIDEMILL_TRACES is the collector of \
traces where --traces is not given."
)]
pub(crate) struct Cli {
    /// Log more: -v what happens, -vv details, -vvv everything.
    #[arg(short, long, action = clap::ArgAction::Count, global = true, display_order = 900)]
    pub(crate) verbose: u8,

    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(demo::Demo),
    Run(run::Run),
    Agent(agent::AgentCommand),
    Import(import::ImportCommand),
    Check(check::Check),
    Plan(plan::Plan),
    Sql(sql::Sql),
    Dead(dead::Dead),
    Backup(backup::BackupCommand),
    Verify(backup::Verify),
    Restore(backup::Restore),
    Topic(topic::TopicCommand),
    Produce(produce::Produce),
    Consume(consume::Consume),
    Replay(replay::ReplayCommand),
    Simulate(simulate::Simulate),
    ReplayBatch(replay_batch::ReplayBatch),
    Rewind(rewind::Rewind),
    Status(status::Status),
}

impl Command {
    /// Whether the command line is one that can be followed, before anything is done.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::Demo(command) => command.check(),
            Self::Run(command) => command.check(),
            _ => Ok(()),
        }
    }

    /// Does it.
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Demo(command) => command.run(),
            Self::Run(command) => command.run(),
            Self::Agent(command) => command.run(),
            Self::Import(command) => command.run(),
            Self::Check(command) => command.run(),
            Self::Plan(command) => command.run(),
            Self::Sql(command) => command.run(),
            Self::Dead(command) => command.run(),
            Self::Backup(command) => command.run(),
            Self::Verify(command) => command.run(),
            Self::Restore(command) => command.run(),
            Self::Topic(command) => command.run(),
            Self::Produce(command) => command.run(),
            Self::Consume(command) => command.run(),
            Self::Replay(command) => command.run(),
            Self::Simulate(command) => command.run(),
            Self::ReplayBatch(command) => command.run(),
            Self::Rewind(command) => command.run(),
            Self::Status(command) => command.run(),
        }
    }
}

/// `error:`, in red where it may be.
pub(crate) fn error_word(terminal: bool) -> &'static str {
    let colour = terminal
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
    if colour { "\u{1b}[1;31merror:\u{1b}[0m" } else { "error:" }
}

/// What a run did, in two lines.
fn print_summary(ended: &Ended) -> Result<()> {
    let last = ended.last.map_or_else(|| "without a batch".to_string(), |b| format!("after batch {b}"));
    outln!("Stopped {last}: {} records in {} batches,", ended.records, ended.batches);
    outln!(
        "{} refused, {} late; delay p50 {:.1} ms, p99 {:.1} ms.",
        ended.refused,
        ended.late,
        ended.delay_p50.as_secs_f64() * 1e3,
        ended.delay_p99.as_secs_f64() * 1e3,
    );
    Ok(())
}

/// Rows under headings, in columns as wide as needed; the columns `right` are aligned to the right.
fn print_columns(headings: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> Result<()> {
    let mut table = vec![headings.iter().map(ToString::to_string).collect::<Vec<_>>()];
    table.extend(rows);
    let widths: Vec<usize> =
        (0..headings.len()).map(|c| table.iter().map(|row| row[c].width()).max().unwrap_or(0)).collect();
    for row in table {
        let mut line = String::new();
        for (c, text) in row.iter().enumerate() {
            let pad = " ".repeat(widths[c] - text.width());
            if c > 0 {
                line.push_str("  ");
            }
            if right.contains(&c) {
                line.push_str(&pad);
            }
            line.push_str(text);
            if !right.contains(&c) {
                line.push_str(&pad);
            }
        }
        outln!("{}", line.trim_end());
    }
    Ok(())
}
