//! `tidemill run`: a SQL program until it is stopped.
//!
//! Invariant: as [`tidemill::assemble`] has it: what was finished is kept, and
//! the same command continues there.

use super::{change::HEADING, out::outln, page::PageArgs, program::ProgramArgs, traces::TracesArgs, values};
use clap::Args;
use std::path::Path;
use tidemill::{
    Duration, Error, Result,
    assemble::{Assembly, Show},
    engine::Versions,
    web::Access,
};

/// Run a SQL program until it is stopped.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill run top.sql                         a batch each second, a page at http://127.0.0.1:4040
  tidemill run top.sql --interval 100ms        a batch each tenth of a second
  tidemill run load.sql --trigger drain        until the input is exhausted, last windows and all
  tidemill run top.sql --headless --for 1m     plain lines, for a minute
  tidemill run top.sql --accept-changes        the program has changed: take over its state

A program, say top.sql:
  CREATE STREAM words (word TEXT) WITH (connector = 'tcp', address = '127.0.0.1:9999');
  CREATE VIEW top AS SELECT word, count(*) AS n FROM words GROUP BY word ORDER BY n DESC LIMIT 10;

Streams come from the connectors tcp, tcp-listen, http, syslog, sse, websocket, stdin, tail, files, topic and generator, and from \
the networks bluesky, mastodon, wikimedia, x, x-sample, x-search, x-v1 and weibo, as text, json, csv, syslog or post; sinks are files, topic, console and webhook (with the feature full, streams from hdfs, kafka, kinesis, mongodb, mqtt, s3 and zeromq and sinks cassandra, hbase, hdfs, kafka, mongodb, s3, sqlite and postgres too).

Ctrl-C finishes the batch and keeps everything; the same command continues there.")]
pub(crate) struct Run {
    #[command(flatten)]
    program: ProgramArgs,

    #[command(flatten)]
    page: PageArgs,

    #[command(flatten)]
    traces: TracesArgs,

    /// Serve no page.
    #[arg(long)]
    no_web: bool,

    /// End by itself after this time, such as 20s.
    #[arg(long = "for", value_name = "TIME", value_parser = values::duration)]
    run_for: Option<Duration>,

    /// Print plain lines, also on a terminal.
    #[arg(long)]
    headless: bool,

    /// Memory that states may take together, such as 512MiB; keys and groups at rest beyond it go to disk
    /// [default: half of the machine's].
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    state_memory: Option<u64>,

    /// Let a changed program migrate, rebuild or drop state, as `tidemill plan` shows it.
    #[arg(long, alias = "apply", help_heading = HEADING)]
    accept_changes: bool,

    /// Batches that the program can be rewound to.
    #[arg(long, value_name = "BATCHES", default_value_t = Versions::default().batches, help_heading = HEADING)]
    keep_versions: u64,

    /// Keep them for this time at most, such as 12h [default: no bound].
    #[arg(long, value_name = "TIME", value_parser = values::duration, help_heading = HEADING)]
    keep_versions_for: Option<Duration>,
}

impl Run {
    /// What is wrong with the command line beyond its single words.
    pub(crate) fn check(&self) -> Result<()> {
        self.traces.traces()?;
        if self.no_web { Ok(()) } else { self.page.access().map(drop) }
    }

    pub(crate) fn run(self) -> Result<()> {
        let traces = self.traces.traces()?;
        let access = if self.no_web { Access::default() } else { self.page.access()? };
        let versions = Versions { batches: self.keep_versions, age: self.keep_versions_for, ..Versions::default() };
        let (accept, memory) = (self.accept_changes, self.state_memory);
        let context = self.program.context(|builder| {
            let builder = builder.keep_versions(versions);
            let builder = if let Some(bytes) = memory { builder.state_memory(bytes) } else { builder };
            if accept { builder.accept_changes() } else { builder }
        })?;
        if let Some(changes) = context.changes()?.filter(|changes| !changes.are_free() && !accept) {
            return Err(Error::user(format!(
                "this program differs from the one whose state is kept\n\n{}",
                self.program.change.text(&changes, &self.program.run_command())
            )));
        }
        let show = if self.headless { Show::Lines } else { Show::Auto };
        let page = (!self.no_web).then_some(self.page.web);
        let beside = self.program.path.parent().unwrap_or(Path::new("")).join(".");
        let assembly = Assembly::new(context).page(page).access(access).notebooks(beside).traces(traces);
        let ended = assembly.show(show).run_for(self.run_for).run()?;
        super::print_summary(&ended)?;
        outln!("Kept in {}; the same command continues there.", self.program.data.path.display());
        Ok(())
    }
}
