//! Connector `tail`: the lines that are appended to a file, across rotation.
//!
//! | Option | Meaning |
//! |---|---|
//! | `path` | the file; it need not be there yet |
//! | `start` | `latest` (default): what is appended from now on; `earliest`: all of it |
//! | `poll` | how often to look for more (100ms) |
//! | `max_line` | bytes of a line at most (1 MiB); a longer one is refused |
//!
//! With each block goes the token `inode:offset`, so that a restart goes on
//! behind the last durable line. A file that was renamed (rotated) is read to
//! its end before the new one is begun; after a restart it is looked for by its
//! inode among its neighbours.
//!
//! Invariant: each line is appended once, as long as a rotated file is not
//! removed before it was read. What was lost to a removal or a truncation is
//! reported and logged.

use crate::{
    lines::{self, LineCutter},
    tcp::hand_on,
};
use async_trait::async_trait;
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tidemill_core::{Error, Input, Intake, Options, Receiver, Result, Stop};

const PIECE: u64 = 256 << 10;

/// The lines that are appended to a file.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    earliest: bool,
    poll: Duration,
    max_line: usize,
}

/// The file that is being read.
#[derive(Debug)]
struct Reading {
    file: File,
    inode: u64,
    /// Bytes taken from it.
    at: u64,
    cutter: LineCutter,
}

/// What one look found.
#[derive(Debug)]
enum Look {
    /// More bytes.
    More(Vec<u8>),
    /// Nothing new.
    Same,
    /// The path leads to another file, and the one being read is at its end.
    Rotated,
    /// The file became shorter than what was read of it.
    Truncated(u64),
}

impl Tail {
    /// What is appended to `path` from now on.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), earliest: false, poll: Duration::from_millis(100), max_line: lines::MAX_LINE }
    }

    /// All that is in the file, too.
    #[must_use]
    pub fn from_the_beginning(mut self) -> Self {
        self.earliest = true;
        self
    }

    /// How often to look for more.
    #[must_use]
    pub fn poll(mut self, every: Duration) -> Self {
        self.poll = every;
        self
    }

    /// The tail that a stream's options ask for.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub fn input(options: &Options) -> Result<Input> {
        let mut tail = Self::new(options.require("path", "it names the file")?);
        tail.earliest = match options.get("start").unwrap_or("latest") {
            "earliest" => true,
            "latest" => false,
            other => {
                return Err(Error::user(format!(
                    "{}: option `start` must be `earliest` or `latest`, not `{other}`",
                    options.owner()
                )));
            }
        };
        tail.poll = options.duration("poll", tail.poll)?.max(Duration::from_millis(1));
        tail.max_line = lines::max_line(options)?;
        Ok(Input::Receivers(vec![Arc::new(tail)]))
    }

    fn open(&self, path: &Path, at: u64) -> io::Result<Reading> {
        let mut file = File::open(path)?;
        let inode = file.metadata()?.ino();
        file.seek(SeekFrom::Start(at))?;
        Ok(Reading { file, inode, at, cutter: LineCutter::new(self.max_line) })
    }

    /// Where to go on after a restart: the file of the token, wherever it was renamed to.
    fn resume(&self, token: &str, intake: &Arc<dyn Intake>) -> io::Result<Option<Reading>> {
        let parsed =
            token.split_once(':').and_then(|(inode, at)| Some((inode.parse::<u64>().ok()?, at.parse::<u64>().ok()?)));
        let Some((inode, at)) = parsed else { return Ok(None) };
        let same = |path: &Path| fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.ino() == inode);
        let found =
            if same(&self.path) { Some(self.path.clone()) } else { self.neighbours()?.into_iter().find(|p| same(p)) };
        let Some(path) = found else {
            let new = self.open(&self.path, 0)?;
            let lost =
                "the file that was read before the restart is gone; what it held behind the last line read is lost";
            tracing::warn!(path = %self.path.display(), inode, at, lost);
            intake.report(lost);
            return Ok(Some(new));
        };
        let len = fs::metadata(&path)?.len();
        if len < at {
            let lost =
                format!("the file was truncated to {len} bytes while nobody read it; it is read from its beginning");
            tracing::warn!(path = %path.display(), at, lost);
            intake.report(&lost);
            return self.open(&path, 0).map(Some);
        }
        self.open(&path, at).map(Some)
    }

    fn neighbours(&self) -> io::Result<Vec<PathBuf>> {
        let dir = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut paths = Vec::new();
        for entry in fs::read_dir(dir)? {
            paths.push(entry?.path());
        }
        Ok(paths)
    }

    /// The first file to read: by the token, or as the options say.
    fn begin(&self, intake: &Arc<dyn Intake>) -> io::Result<Reading> {
        if let Some(token) = intake.resume()
            && let Some(reading) = self.resume(&token, intake)?
        {
            return Ok(reading);
        }
        let at = if self.earliest { 0 } else { fs::metadata(&self.path)?.len() };
        self.open(&self.path, at)
    }

    fn look(path: &Path, reading: &mut Reading) -> io::Result<Look> {
        let mut bytes = Vec::new();
        // The path is looked at before the file: what is read behind it then belongs to the old file.
        let now = fs::metadata(path);
        reading.file.by_ref().take(PIECE).read_to_end(&mut bytes)?;
        if !bytes.is_empty() {
            return Ok(Look::More(bytes));
        }
        let len = reading.file.metadata()?.len();
        if len < reading.at {
            return Ok(Look::Truncated(len));
        }
        match now {
            Ok(meta) if meta.ino() != reading.inode => Ok(Look::Rotated),
            Ok(_) => Ok(Look::Same),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Look::Same),
            Err(e) => Err(e),
        }
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::external(format!("tail: can't read {}", self.path.display())).because(error).fatal()
    }
}

/// Appends what was cut, with the place behind its last line.
async fn append(intake: &Arc<dyn Intake>, cut: lines::Cut, token: String) -> Result<()> {
    let lines::Cut { block, refused } = cut;
    if let Some(block) = block {
        drop(intake.append(block, Some(token)).await?);
    }
    hand_on(intake, lines::Cut { block: None, refused }).await
}

#[async_trait]
impl Receiver for Tail {
    fn describe(&self) -> String {
        format!("tail {}", self.path.display())
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        let pause = async || {
            tokio::select! {
                biased;
                () = stop.stopped() => true,
                () = tokio::time::sleep(self.poll) => false,
            }
        };
        // A file that appears later is new from its beginning.
        let mut waited = false;
        let mut reading = loop {
            let begun =
                if waited && intake.resume().is_none() { self.open(&self.path, 0) } else { self.begin(&intake) };
            match begun {
                Ok(reading) => break reading,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    if !waited {
                        intake.report("waiting for the file to appear");
                    }
                    waited = true;
                }
                Err(e) => return Err(self.failed(e)),
            }
            if pause().await {
                return Ok(());
            }
        };
        intake.report("reading");
        while !stop.is_stopped() {
            let path = self.path.clone();
            let looked = tokio::task::spawn_blocking(move || {
                let look = Self::look(&path, &mut reading);
                (reading, look)
            });
            let (back, look) = looked.await.map_err(|e| Error::internal("tail: reading panicked").because(e))?;
            reading = back;
            match look.map_err(|e| self.failed(e))? {
                Look::More(bytes) => {
                    let cut = reading.cutter.push(&bytes);
                    reading.at += bytes.len() as u64;
                    // Behind the last line end; a line that has begun is read again after a restart.
                    let begun = memchr::memrchr(b'\n', &bytes).map(|last| bytes.len() - last - 1);
                    let whole = reading.at - begun.unwrap_or(0) as u64;
                    append(&intake, cut, format!("{}:{whole}", reading.inode)).await?;
                }
                Look::Same => {
                    if pause().await {
                        return Ok(());
                    }
                }
                Look::Rotated => {
                    // The old file ends here, and so does its last line. Its token leads to
                    // its end, so that a restart takes up the new one from there.
                    let token = format!("{}:{}", reading.inode, reading.at);
                    append(&intake, reading.cutter.finish(), token).await?;
                    match self.open(&self.path, 0) {
                        Ok(next) => {
                            tracing::info!(path = %self.path.display(), "the file was rotated");
                            reading = next;
                        }
                        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                        Err(e) => return Err(self.failed(e)),
                    }
                }
                Look::Truncated(len) => {
                    let lost = format!("the file was truncated to {len} bytes; it is read from its beginning");
                    tracing::warn!(path = %self.path.display(), at = reading.at, lost);
                    intake.report(&lost);
                    let token = format!("{}:0", reading.inode);
                    append(&intake, reading.cutter.finish(), token).await?;
                    reading.file.seek(SeekFrom::Start(0)).map_err(|e| self.failed(e))?;
                    reading.at = 0;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
