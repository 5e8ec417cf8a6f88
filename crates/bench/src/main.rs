//! Tidemill's jobs, each beside a loop written by hand for that job alone.
//!
//! Input is generated from a seed ([`input`]); the loop ([`loops`]) and the
//! engine ([`jobs`]) answer the same question about it in turn ([`measure`]);
//! the answers must be the same to the last row ([`check`]).

mod check;
mod input;
mod jobs;
#[cfg(feature = "kafka")]
mod kafka;
mod kills;
mod loops;
mod measure;
mod nexmark;

use clap::{Parser, ValueEnum};
use input::{files::Files, serve, tweets::Tweets, words::Words};
use loops::{w1, w1_tcp, w2, w3};
use measure::{Outcome, interleave, timed};
use std::{
    error::Error,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// That of the product, for both sides. Tests measure memory while others run beside them: the system's gives it back at once.
#[cfg(not(test))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What went wrong, in words.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Runs one of Tidemill's jobs beside a loop written by hand for that job
/// alone, on the same generated input, in turn, and compares both answers row by row.
///
/// Each run is told on stderr. The last line, on stdout, is JSON:
///
///   {"job":"w1-file","ratio":0.83,"items_per_s":…,"loop_items_per_s":…,"rss_mb":…,"exact":true}
///
/// `ratio` is Tidemill's rate over the loop's, both medians; `rss_mb` is
/// Tidemill's memory at its peak; `exact` says whether every answer was right.
#[derive(Debug, Parser)]
#[command(name = "bench", version, verbatim_doc_comment, after_help = AFTER)]
struct Options {
    /// Which job
    #[arg(value_enum)]
    job: Job,
    /// How many lines, tweets or events [default: w1 6000000, w2 750000, w3 20000000, nexmark 2000000];
    /// `keys` and `spill`: how many keys, ten and fifty million by default
    #[arg(long, alias = "events", value_parser = clap::value_parser!(u64).range(1..))]
    items: Option<u64>,
    /// How often each side runs; the medians are compared
    #[arg(long, default_value = "5")]
    runs: NonZeroUsize,
    /// Threads of each side
    #[arg(long, default_value = "2")]
    threads: NonZeroUsize,
    /// Where generated files are written, and found again by the next call
    #[arg(long, default_value_os_t = std::env::temp_dir().join("tidemill-bench"))]
    dir: PathBuf,
    /// `spill`: MiB of memory that states may take
    #[arg(long, default_value = "640")]
    state_mb: u64,
    /// How often `kills` kills
    #[arg(long, default_value = "50")]
    count: u32,
    /// A query of `nexmark`, as q4; all when left out
    #[arg(long)]
    query: Option<String>,
    /// `agent`, `replay`: the program [default: `tidemill` beside this one]
    #[arg(long)]
    program: Option<PathBuf>,
    /// `agent`: a folder with the jars of Apache Flume, such as `ci/tools flume-lib` names
    #[arg(long)]
    flume: Option<PathBuf>,
    /// Another seed makes other input
    #[arg(long, default_value = "42")]
    seed: u64,
}

const AFTER: &str = "\
Build with --release, and close what else uses the processor: two runs that differ by a tenth are common on a busy machine.

Examples:
  cargo run --release -p bench -- w1-file
  cargo run --release -p bench -- w2 --items 200000 --runs 3
  cargo run --release -p bench -- w3 --threads 1
  cargo run --release -p bench -- nexmark --query q4 --events 1000000";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Job {
    /// Words counted in lines of files, by `split` and `count_by_value`
    W1File,
    /// The same as the field's tutorials spell it, by `flat_map`, `map` and `reduce_by_key`
    W1Steps,
    /// Words counted in lines from two TCP connections
    W1Tcp,
    /// Trending hashtags of tweets: the top ten of 60 s each 10 s, by event time
    W2,
    /// A running count by key: a million keys
    W3,
    /// Latency at ten thousand events a second over TCP, from send to visible
    W4,
    /// Records of a hundred bytes posted over HTTP, a thousand a request, from four connections: from the first request
    /// to the last answer, which is when all are durable, and counted
    Push,
    /// Lines over TCP through an agent's durable channel into files, beside an Apache Flume of the same shape (--flume)
    Agent,
    /// A million stored posts played as a live stream, from a topic and from Parquet: unpaced, and by their own times
    Replay,
    /// What an empty batch costs, and one of a thousand rows, on kept SQL plans
    Batch,
    /// A thousand changes a batch among ten million keys: what a checkpoint and a restart cost
    Keys,
    /// Fifty million keys in a process that is to stay below 2 GiB: what keys on disk cost, and a restart
    Spill,
    /// Hopping windows of 60 s each second over a million keys, beside tumbling ones; items are records a second
    Windows,
    /// Records of a kibibyte from Kafka, counted by key, and the counts to Kafka: needs `--features kafka` and a server
    /// at TIDEMILL_KAFKA
    #[cfg(feature = "kafka")]
    Kafka,
    /// `kill -9` at random moments of a small W3 into the file sink: nothing lost, nothing twice
    Kills,
    /// Nexmark's queries as SQL over generated people, auctions and bids, checked against one query over all of them;
    /// a line of JSON each
    Nexmark,
    /// The program that `kills` kills
    #[value(hide = true)]
    KillsChild,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let outcome = match options.job {
        Job::W1File => serde_json::to_string(&w1_file(options, "w1-file", jobs::Spelling::Short)?)?,
        Job::W1Steps => serde_json::to_string(&w1_file(options, "w1-steps", jobs::Spelling::Steps)?)?,
        Job::W1Tcp => serde_json::to_string(&w1_tcp(options)?)?,
        Job::W2 => serde_json::to_string(&w2(options)?)?,
        Job::W3 => serde_json::to_string(&w3(options)?)?,
        Job::Kills => {
            let killed = kills::kills(options.seed, options.items.unwrap_or(16_000_000), options.count)?;
            serde_json::to_string(&killed)?
        }
        Job::KillsChild => {
            kills::child(options.seed, options.items.unwrap_or(1), &options.dir, options.threads.get())?;
            return Ok(());
        }
        Job::Nexmark => {
            let events = options.items.unwrap_or(2_000_000);
            return nexmark::run(options.query.as_deref(), events, options.threads.get(), options.seed);
        }
        Job::Spill => {
            let keys = options.items.unwrap_or(50_000_000);
            serde_json::to_string(&jobs::spill(keys, options.state_mb << 20, options.threads.get())?)?
        }
        Job::Keys => {
            let keys = options.items.unwrap_or(10_000_000);
            serde_json::to_string(&jobs::keys(options.seed, keys, options.threads.get())?)?
        }
        Job::Windows => {
            let rows = options.items.unwrap_or(250_000);
            serde_json::to_string(&jobs::windows(options.seed, rows, options.threads.get())?)?
        }
        #[cfg(feature = "kafka")]
        Job::Kafka => {
            let items = options.items.unwrap_or(1_000_000);
            serde_json::to_string(&kafka::run(items, options.runs.get(), options.threads.get(), options.seed)?)?
        }
        Job::Push => {
            let items = options.items.unwrap_or(4_000_000);
            serde_json::to_string(&jobs::push(items, options.runs.get(), options.threads.get())?)?
        }
        Job::Agent => {
            let items = options.items.unwrap_or(2_000_000);
            let flume = options.flume.as_deref().map(found).transpose()?;
            serde_json::to_string(&jobs::agent(items, options.runs.get(), &program(options)?, flume.as_deref())?)?
        }
        Job::Replay => {
            let items = options.items.unwrap_or(1_000_000);
            serde_json::to_string(&jobs::replay(items, options.seed, &program(options)?)?)?
        }
        Job::Batch => serde_json::to_string(&jobs::batch()?)?,
        Job::W4 => serde_json::to_string(&jobs::w4(options.items.unwrap_or(100_000), options.threads.get())?)?,
    };
    println!("{outcome}");
    Ok(())
}

/// The program that jobs run.
fn program(options: &Options) -> Result<PathBuf> {
    match &options.program {
        Some(program) => found(program),
        None => Ok(std::env::current_exe()?.with_file_name("tidemill")),
    }
}

/// A path as it is from everywhere: jobs run programs in folders of their own.
fn found(path: &Path) -> Result<PathBuf> {
    Ok(path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?)
}

fn lines(options: &Options) -> Result<Files> {
    let (seed, items) = (options.seed, options.items.unwrap_or(6_000_000));
    let words = Words::new(seed);
    Files::find_or_write(&options.dir, "w1", seed, items, options.threads.get(), |i, into| words.line(i, into))?
        .warmed()
}

fn w1_file(options: &Options, job: &'static str, spelling: jobs::Spelling) -> Result<Outcome> {
    let (files, threads) = (lines(options)?, options.threads.get());
    let by_hand = Box::new(|| timed(|| w1::run(&files, threads), |counts| Ok(counts.rows())));
    interleave(job, files.items, options.runs.get(), by_hand, jobs::w1_file(&files, threads, spelling))
}

fn w1_tcp(options: &Options) -> Result<Outcome> {
    let (files, threads) = (lines(options)?, options.threads.get());
    let by_hand = Box::new(|| {
        let served = serve::files(&files, threads)?;
        let ran = timed(|| w1_tcp::run(&served), |counts| Ok(counts.rows()))?;
        served.finish()?;
        Ok(ran)
    });
    interleave("w1-tcp", files.items, options.runs.get(), by_hand, jobs::w1_tcp(&files, threads))
}

fn w2(options: &Options) -> Result<Outcome> {
    let (seed, items, threads) = (options.seed, options.items.unwrap_or(750_000), options.threads.get());
    let tweets = Tweets::new(seed);
    let files =
        Files::find_or_write(&options.dir, "w2", seed, items, threads, |i, into| tweets.tweet(i, into))?.warmed()?;
    eprintln!("w2: {:.0} bytes a tweet", files.bytes as f64 / items as f64);
    let by_hand = Box::new(|| timed(|| w2::run(&files, threads), |trends| Ok(w2::closed(trends, items))));
    interleave("w2", items, options.runs.get(), by_hand, jobs::w2(&files, threads))
}

fn w3(options: &Options) -> Result<Outcome> {
    let (seed, items, threads) = (options.seed, options.items.unwrap_or(20_000_000), options.threads.get());
    let by_hand = Box::new(|| timed(|| w3::run(seed, items, threads), |counts| Ok(counts.rows())));
    interleave("w3", items, options.runs.get(), by_hand, jobs::w3(seed, items, threads))
}
