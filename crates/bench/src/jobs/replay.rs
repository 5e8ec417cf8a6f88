//! Replay: stored posts played as a live stream, from a topic and from Parquet.
//!
//! Tweets are produced to a topic, and a program writes some of their columns to
//! Parquet. Then `tidemill replay` plays each history twice: as fast as a client
//! takes it, and by the posts' own times, fifty times faster, which is a hundred
//! thousand posts a second. The client reads every line and knows which must come.

use crate::{
    Result,
    input::tweets::{ID, PER_SECOND, Tweets},
};
use serde::Serialize;
use std::{
    fs,
    io::{BufRead, BufReader, BufWriter, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

/// No file is called so, where this runs.
const TOPIC: &str = "bench-replayed-posts";
/// How much faster than the posts came.
const SPEED: u64 = 50;

/// The last line of the job's output.
#[derive(Debug, Serialize)]
pub(crate) struct Replayed {
    job: &'static str,
    /// Posts a second as fast as they are taken.
    topic_per_s: f64,
    parquet_per_s: f64,
    /// Posts a second that their own times ask for.
    asked_per_s: u64,
    /// What came of that, from the first line to the last.
    topic_paced_per_s: f64,
    parquet_paced_per_s: f64,
    /// Whether each post came once, in order, each time.
    exact: bool,
}

/// Stores `items` tweets and plays them by the program at `program`.
///
/// # Errors
/// When the program can't be run, or fails.
pub(crate) fn replay(items: u64, seed: u64, program: &Path) -> Result<Replayed> {
    let dir = tempfile::tempdir()?;
    let begun = Instant::now();
    produce(program, dir.path(), &Tweets::new(seed), items)?;
    let (sql, parquet) = (dir.path().join("p.sql"), dir.path().join("out"));
    let text = format!(
        "CREATE STREAM posts (created_at TEXT, id BIGINT, lang TEXT, text TEXT)\n  \
         WITH (connector = 'topic', topic = '{TOPIC}', format = 'json');\n\
         CREATE SINK out WITH (connector = 'files', path = '{}', format = 'parquet');\n\
         INSERT INTO out SELECT created_at, id, lang, text FROM posts;\n",
        parquet.display()
    );
    fs::write(&sql, text)?;
    let mut writing = command(program, dir.path(), &["run", "--trigger", "drain", "--headless", "--no-web"]);
    let ended = writing.arg(sql).status()?;
    if !ended.success() {
        return Err("the program that writes Parquet failed".into());
    }
    eprintln!("replay: {items} posts stored in {:.1} s", begun.elapsed().as_secs_f64());
    let mut exact = true;
    let parquet = parquet.display().to_string();
    let mut play = |name: &str, paced: bool| -> Result<f64> {
        let (rate, right) = play(program, dir.path(), name, paced, items)?;
        eprintln!(
            "replay: {}{}: {rate:.0} posts/s",
            if name == TOPIC { "topic" } else { "parquet" },
            if paced { ", by their times" } else { "" }
        );
        exact &= right;
        Ok(rate)
    };
    Ok(Replayed {
        job: "replay",
        topic_per_s: play(TOPIC, false)?,
        parquet_per_s: play(&parquet, false)?,
        asked_per_s: PER_SECOND * SPEED,
        topic_paced_per_s: play(TOPIC, true)?,
        parquet_paced_per_s: play(&parquet, true)?,
        exact,
    })
}

fn command(program: &Path, dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(args)
        .arg("--data")
        .arg(dir.join("d"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit());
    command
}

fn produce(program: &Path, dir: &Path, tweets: &Tweets, items: u64) -> Result<()> {
    let create = ["topic", "create", TOPIC];
    if !command(program, dir, &create).status()?.success() {
        return Err("the topic was not made".into());
    }
    let mut child = command(program, dir, &["produce", TOPIC]).stdin(Stdio::piped()).spawn()?;
    let mut into = BufWriter::with_capacity(1 << 20, child.stdin.take().ok_or("no standard input")?);
    let mut line = Vec::new();
    for index in 0..items {
        line.clear();
        tweets.tweet(index, &mut line);
        into.write_all(&line)?;
    }
    drop(into);
    if child.wait()?.success() { Ok(()) } else { Err("the posts were not produced".into()) }
}

/// A program that ends with the job, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Plays a history to a client of our own; posts a second, and whether they were right.
fn play(program: &Path, dir: &Path, name: &str, paced: bool, items: u64) -> Result<(f64, bool)> {
    let mut args = vec!["replay", name, "--listen", "127.0.0.1:0"];
    let speed = format!("{SPEED}x");
    if paced {
        args.extend(["--time", "created_at", "--speed", &speed]);
    }
    let mut serving = Running(command(program, dir, &args).stdout(Stdio::piped()).spawn()?);
    let mut said = String::new();
    BufReader::new(serving.0.stdout.take().ok_or("no standard output")?).read_line(&mut said)?;
    let address = said.split(" at ").nth(1).and_then(|rest| rest.split(';').next()).ok_or("it does not serve")?;
    let begun = Instant::now();
    let mut from = BufReader::with_capacity(256 << 10, TcpStream::connect(address)?);
    let (mut line, mut next, mut right) = (Vec::new(), 0, true);
    loop {
        line.clear();
        if from.by_ref().read_until(b'\n', &mut line)? == 0 {
            break;
        }
        right &= index_of(&line) == Some(next);
        next += 1;
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = next as f64 / begun.elapsed().as_secs_f64();
    Ok((rate, right && next == items))
}

/// Which tweet a line is.
fn index_of(line: &[u8]) -> Option<u64> {
    let at = memchr::memmem::find(line, b"\"id\":")? + 5;
    let digits = line[at..].iter().take_while(|byte| byte.is_ascii_digit());
    let id = digits.fold(0_u64, |id, digit| id.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')));
    Some(id.checked_sub(ID)? / 4_096)
}
