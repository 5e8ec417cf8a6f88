//! `tidemill agent`, and `tidemill check` of an agent's file: sources, channels and sinks without code.
//!
//! Invariant: a first signal stops the sources, lets the sinks finish and says what is kept; a second one waits for
//! nothing. Errors in the file name it before their line and column.

use super::{
    out::{self, outln},
    program, values,
};
use clap::Args;
use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use tidemill::{
    Duration, Error, Result,
    agent::{Agent, Plan, Setting, Status, World},
    core::StopHandle,
    engine::SystemClock,
    store::{DataDir, Log, RealDisk},
};
use tokio::signal::unix::{SignalKind, signal};

/// How long sinks of channels in memory may go on after a signal.
const GRACE: Duration = Duration::from_secs(10);

/// Run an agent: events from sources through channels to sinks, without code.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill agent a1.toml            run it; Ctrl-C stops it and says what is kept
  tidemill check a1.toml            is it right, and is what it needs there?

An agent, say a1.toml:
  [sources.r1]
  type = \"netcat\"
  address = \"127.0.0.1:44444\"
  channels = [\"c1\"]

  [channels.c1]
  type = \"file\"             # survives a crash; \"memory\" does not

  [sinks.k1]
  type = \"logger\"
  channel = \"c1\"

Sources are netcat, tail, spooldir, seq, stdin, tcp, files and the networks that `tidemill run --help` names; \
sinks are logger, file, topic, null, and store for those of SQL. Interceptors, selectors and groups of sinks are in \
docs/guides/agents.md.")]
pub(crate) struct AgentCommand {
    /// The agent's file.
    #[arg(value_name = "AGENT.toml")]
    path: PathBuf,

    /// Name of the agent, under which its channels are kept [default: the file's `name`, or the file's own].
    #[arg(long, value_parser = values::program_name)]
    name: Option<String>,

    /// Data directory [default: the file's `data`, or tidemill-data/NAME].
    #[arg(long, visible_alias = "data-dir", value_name = "DIR", env = "TIDEMILL_DATA")]
    data: Option<PathBuf>,

    /// End by itself after this time, such as 20s.
    #[arg(long = "for", value_name = "TIME", value_parser = values::duration)]
    run_for: Option<Duration>,

    /// Say nothing but what sinks print and how it ended.
    #[arg(long)]
    quiet: bool,
}

/// Whether a file is an agent's, by its name.
pub(crate) fn is_agent(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml"))
}

/// Reads an agent's file; errors name it.
fn read(path: &Path, name: Option<&str>) -> Result<Plan> {
    let text = program::read(path)?;
    let default = name.map_or_else(|| program::name_of(path), |name| Ok(name.to_owned()))?;
    let world = World { registry: tidemill::connectors::registry(), host: host(), proxied: proxied() };
    let mut plan = Plan::read(&text, &default, &world).map_err(|error| {
        let lines: Vec<String> = error.chain().lines().map(|line| format!("{}: {line}", path.display())).collect();
        Error::user(lines.join("\n"))
    })?;
    if let Some(name) = name {
        name.clone_into(&mut plan.name);
    }
    Ok(plan)
}

/// This machine's name.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}

/// Whether the environment names a proxy, as connectors heed it.
fn proxied() -> bool {
    let names = ["HTTPS_PROXY", "https_proxy", "http_proxy", "ALL_PROXY", "all_proxy"];
    names.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

/// `tidemill check` of an agent's file.
pub(crate) fn check(path: &Path) -> Result<()> {
    let plan = read(path, None)?;
    for line in plan.lines() {
        outln!("{line}");
    }
    let probes = runtime()?.block_on(plan.probe(&RealDisk));
    let mut failed = Vec::new();
    for probe in probes {
        match probe.found {
            Ok(found) => outln!("{}: {found}", probe.what),
            Err(why) => failed.push(format!("{}: {}: {why}", path.display(), probe.what)),
        }
    }
    if failed.is_empty() {
        outln!("ok");
        return Ok(());
    }
    Err(Error::external(failed.join("\n")))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let built = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    built.map_err(|e| Error::external("can't start threads").because(e))
}

/// Standard output, as commands write to it.
struct Out;

impl io::Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        out::bytes(bytes).map(|()| bytes.len()).map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AgentCommand {
    pub(crate) fn run(self) -> Result<()> {
        let plan = read(&self.path, self.name.as_deref())?;
        let dir = self.data.clone().or_else(|| plan.data.clone());
        let dir = dir.unwrap_or_else(|| Path::new("tidemill-data").join(&plan.name));
        // Dropped in this order: the log writes its marks while the directory is still owned.
        let (log, owned) = if plan.needs_data() {
            let owned = DataDir::open(&dir)?;
            (Some(Arc::new(Log::open(owned.disk(), &owned.join("log"), Arc::new(SystemClock))?)), Some(owned))
        } else {
            (None, None)
        };
        if !self.quiet {
            for line in plan.lines() {
                outln!("{line}");
            }
            match &log {
                Some(_) => outln!("Agent {} runs; what is kept is in {}. Ctrl-C stops it.", plan.name, dir.display()),
                None => outln!("Agent {} runs; nothing is kept. Ctrl-C stops it.", plan.name),
            }
        }
        let setting = Setting {
            clock: Arc::new(SystemClock),
            disk: Arc::new(RealDisk),
            data: log.clone().map(|log| (log, dir.clone())),
            out: Arc::new(Mutex::new(Out)),
        };
        let runtime = runtime()?;
        let ended = runtime.block_on(self.watched(plan, setting));
        // Blocking steps that wait for nobody must not hold the end up.
        runtime.shutdown_timeout(Duration::from_secs(1));
        drop(log);
        drop(owned);
        say_end(&ended?, &self.path)
    }

    async fn watched(&self, plan: Plan, setting: Setting) -> Result<Status> {
        let listening = |kind| signal(kind).map_err(|e| Error::external("can't listen for signals").because(e));
        let mut signals = [
            listening(SignalKind::interrupt())?,
            listening(SignalKind::terminate())?,
            listening(SignalKind::hangup())?,
        ];
        let agent = Agent::start(plan, setting).await?;
        let quit = agent.quit_handle();
        let (handle, stop) = StopHandle::new();
        let (quiet, run_for) = (self.quiet, self.run_for);
        let mut last = String::new();
        let said = Mutex::new(&mut last);
        let say = |status: &Status| {
            let line = status.line();
            let mut last = said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if !quiet && **last != line {
                // A closed standard output does not end an agent.
                let _closed = out::write(format_args!("{line}\n"));
                **last = line;
            }
        };
        let mut running = std::pin::pin!(agent.run(stop, GRACE, say));
        let mut timer = std::pin::pin!(async {
            match run_for {
                Some(span) => tokio::time::sleep(span).await,
                None => std::future::pending().await,
            }
        });
        let mut stopping = false;
        loop {
            let [interrupt, terminate, hang_up] = &mut signals;
            tokio::select! {
                ended = &mut running => return ended,
                () = &mut timer, if !stopping => {}
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
            }
            if stopping {
                quit.stop();
            } else {
                stopping = true;
                handle.stop();
                if !quiet {
                    let _closed =
                        out::write(format_args!("stopping: sinks finish what they have; again quits at once\n"));
                }
            }
        }
    }
}

/// What an agent has done and what is kept.
fn say_end(status: &Status, path: &Path) -> Result<()> {
    outln!("Stopped: {}", status.line());
    let mut kept = false;
    for (channel, held) in status.channels.iter().filter(|(_, held)| held.events > 0) {
        if held.durable {
            kept = true;
            outln!("Kept in {channel}: {} events that no sink has had.", held.events);
        } else {
            outln!("LOST from {channel}, which is in memory: {} events that no sink could take.", held.events);
        }
    }
    if kept {
        outln!("`tidemill agent {}` goes on with them.", path.display());
    }
    Ok(())
}
