//! Source `spooldir`: files that somebody moves into a directory, whole, a line an event.
//!
//! A file is read from its beginning to its end, oldest first; when all its lines are in the channels it is renamed
//! (`.COMPLETED`) or deleted. Files that are still being written do not belong there: move them in when they are done.
//!
//! ```text
//! token {"file":"a.log","inode":7,"modified":[s,ns],"at":4096}   with the events
//! ```
//!
//! A restart goes on behind the last durable line of the token's file. It is the same file when name, inode and time
//! of the last change are: inodes alone are given again. One that was changed since is read from its beginning.
//!
//! Invariant: over durable channels each line comes once, whatever stops the agent, and a file is called complete only
//! when the channels have all of it. A line over the bound is refused, counted and told, and never held in memory.

use super::Origin;
use crate::{
    channel::blocking,
    event::Event,
    inlet::{Acks, Inlet},
};
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{Claim, Duration, Error, Result, Stop};

/// Bytes that are read at once, at least.
const PIECE: usize = 256 << 10;
/// Puts whose acks are awaited later.
const PENDING: usize = 16;

/// What becomes of a file that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum After {
    /// It gets this suffix.
    Rename(String),
    /// It is deleted.
    Delete,
}

/// Reads files out of a directory.
#[derive(Debug, Clone)]
pub(crate) struct Spool {
    pub(crate) directory: PathBuf,
    pub(crate) after: After,
    /// Names that are read; all but hidden ones when `None`.
    pub(crate) include: Option<regex::Regex>,
    /// Header that gets the file's path.
    pub(crate) file_header: Option<String>,
    /// Header that gets the file's name.
    pub(crate) basename_header: Option<String>,
    pub(crate) poll: Duration,
    pub(crate) max_line: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Token {
    file: String,
    inode: u64,
    /// When the file was changed last: seconds, nanoseconds. Tokens of old have none.
    #[serde(default)]
    modified: Option<(i64, i64)>,
    at: u64,
}

impl Token {
    /// Whether it speaks of this file.
    fn is_of(&self, name: &str, about: &fs::Metadata) -> bool {
        let modified = (about.mtime(), about.mtime_nsec());
        self.file == name && self.inode == about.ino() && self.modified.is_none_or(|of| of == modified)
    }
}

impl Spool {
    /// The oldest file that is to be read.
    fn next(&self) -> io::Result<Option<(String, PathBuf)>> {
        let mut oldest: Option<(std::time::SystemTime, String, PathBuf)> = None;
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let done = matches!(&self.after, After::Rename(suffix) if name.ends_with(suffix.as_str()));
            if name.starts_with('.') || done || self.include.as_ref().is_some_and(|include| !include.is_match(&name)) {
                continue;
            }
            // One that is gone by now was not for us.
            let Ok(about) = entry.metadata() else { continue };
            if !about.is_file() {
                continue;
            }
            let key = (about.modified()?, name, entry.path());
            if oldest.as_ref().is_none_or(|oldest| key < *oldest) {
                oldest = Some(key);
            }
        }
        Ok(oldest.map(|(_, name, path)| (name, path)))
    }

    /// Durable when this returns: what came back after a crash, when the token is of a later file, would be read again.
    fn finish(&self, path: &Path) -> io::Result<()> {
        match &self.after {
            After::Delete => fs::remove_file(path)?,
            After::Rename(suffix) => {
                let mut name = path.as_os_str().to_owned();
                name.push(suffix);
                let to = PathBuf::from(name);
                if to.exists() {
                    let why = format!("{} is there already: a file of that name was read before", to.display());
                    return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
                }
                fs::rename(path, to)?;
            }
        }
        File::open(&self.directory)?.sync_all()
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::external(format!("spooldir: can't read {}", self.directory.display())).because(error)
    }

    /// Reads a file, behind the `token` if that speaks of it; `false` when it was stopped before the end.
    async fn read(
        &self,
        name: String,
        path: PathBuf,
        token: &mut Option<Token>,
        inlet: &Inlet,
        stop: &Stop,
    ) -> Result<bool> {
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?, file)));
        let (about, mut file) = opened.map_err(|e| self.failed(e))?;
        let (inode, modified) = (about.ino(), Some((about.mtime(), about.mtime_nsec())));
        let mut at = token.take_if(|token| token.is_of(&name, &about)).map_or(0, |token| token.at);
        file.seek(SeekFrom::Start(at)).map_err(|e| self.failed(e))?;
        inlet.says(&format!("reading {}", path.display()));
        let mut pending: VecDeque<Acks> = VecDeque::new();
        let mut lines = Lines { begun: Vec::new(), passing: false, max: self.max_line };
        loop {
            if stop.is_stopped() {
                // The next start goes on behind the last whole line.
                return Ok(false);
            }
            let (back, piece) = blocking(move || {
                let mut piece = Vec::with_capacity(PIECE);
                let read = file.by_ref().take(PIECE as u64).read_to_end(&mut piece);
                Ok((file, read.map(|_| piece)))
            })
            .await?;
            file = back;
            let piece = piece.map_err(|e| self.failed(e))?;
            let end = piece.is_empty();
            let (bodies, whole) = lines.cut(&piece, |long| inlet.refused(&format!("{}: {long}", path.display())));
            at += whole;
            if !bodies.is_empty() {
                let now = inlet.clock().now();
                let event = |body| {
                    let mut event = Event::new(body, now);
                    for (header, value) in
                        [(&self.file_header, path.to_string_lossy()), (&self.basename_header, name.as_str().into())]
                    {
                        if let Some(header) = header {
                            event.headers.insert(header.clone(), value.into_owned());
                        }
                    }
                    event
                };
                let events = bodies.into_iter().map(event).collect();
                let token = Token { file: name.clone(), inode, modified, at };
                let token = serde_json::to_string(&token).map_err(|e| Error::internal("a token").because(e))?;
                pending.push_back(inlet.put(events, Some(token)).await?);
                if pending.len() > PENDING
                    && let Some(acks) = pending.pop_front()
                {
                    acks.all().await?;
                }
            }
            if end {
                break;
            }
        }
        for acks in pending {
            acks.all().await?;
        }
        let spool = self.clone();
        let finished = blocking(move || Ok(spool.finish(&path))).await?;
        finished.map_err(|e| self.failed(e).fatal())?;
        Ok(true)
    }
}

/// Cuts a file's pieces into lines.
struct Lines {
    begun: Vec<u8>,
    /// Whether the line that has begun is over the bound.
    passing: bool,
    max: usize,
}

impl Lines {
    /// The whole lines of what has begun and the next piece, and how many bytes of the file they end; an empty piece
    /// is the end of the file.
    fn cut(&mut self, piece: &[u8], long: impl Fn(String)) -> (Vec<Bytes>, u64) {
        let refuse =
            |len: usize| long(format!("a line of {len} bytes or more, over the bound of {} (`max_line`)", self.max));
        let end = piece.is_empty();
        let mut bytes = std::mem::take(&mut self.begun);
        bytes.extend_from_slice(piece);
        if end && !bytes.is_empty() && !self.passing {
            bytes.push(b'\n');
        }
        let Some(last) = memchr::memrchr(b'\n', &bytes) else {
            let passed = if bytes.len() > self.max {
                if !self.passing {
                    refuse(bytes.len());
                }
                self.passing = true;
                bytes.len() as u64
            } else {
                self.begun = bytes;
                0
            };
            return (Vec::new(), passed);
        };
        self.begun = bytes.split_off(last + 1);
        let whole = bytes.len() as u64 - u64::from(end && last + 1 == bytes.len() && !piece.ends_with(b"\n"));
        let bytes = Bytes::from(bytes);
        let (mut bodies, mut start) = (Vec::new(), 0);
        for newline in memchr::memchr_iter(b'\n', &bytes) {
            let carriage = newline > start && bytes[newline - 1] == b'\r';
            let line = start..newline - usize::from(carriage);
            start = newline + 1;
            if std::mem::take(&mut self.passing) {
                continue;
            }
            if line.len() > self.max {
                refuse(line.len());
            } else {
                bodies.push(bytes.slice(line));
            }
        }
        (bodies, whole)
    }
}

#[async_trait]
impl Origin for Spool {
    fn describe(&self) -> String {
        format!("spooldir {}", self.directory.display())
    }

    fn claim(&self) -> Option<Claim> {
        Some(Claim::new(format!("directory {}", self.directory.display())))
    }

    fn probe(&self) -> Option<Result<String, String>> {
        let shown = self.directory.display();
        Some(match fs::read_dir(&self.directory) {
            Ok(_) => Ok(format!("{shown} is there")),
            Err(error) => Err(format!("can't read {shown}: {error}")),
        })
    }

    async fn run(&self, inlet: Arc<Inlet>, stop: Stop) -> Result<()> {
        // Only what an earlier life, or an earlier try, has left counts: this one finishes each file before the next.
        let mut token = inlet.resumes().and_then(|token| serde_json::from_str::<Token>(&token).ok());
        while !stop.is_stopped() {
            let spool = self.clone();
            let next = blocking(move || Ok(spool.next())).await?.map_err(|e| self.failed(e))?;
            match next {
                Some((name, path)) => {
                    if !self.read(name, path, &mut token, &inlet, &stop).await? {
                        return Ok(());
                    }
                }
                None => {
                    inlet.says("waiting for files");
                    tokio::select! {
                        () = stop.stopped() => {}
                        () = inlet.clock().sleep_until(inlet.clock().now().plus(self.poll)) => {}
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inlet::tests::{inlet, memory};
    use proptest::prelude::*;
    use std::cell::Cell;
    use tidemill_core::StopHandle;

    #[tokio::test]
    async fn a_token_speaks_of_its_own_file_alone() {
        // How much later the token's file was changed than the one that is there, and whether that is read.
        for (later, lines) in [(Some(5), 1), (Some(0), 0), (None, 0)] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a.log");
            fs::write(&path, "ebb\n").unwrap();
            let about = fs::metadata(&path).unwrap();
            let modified = later.map(|later| (about.mtime() + later, about.mtime_nsec()));
            let token = Token { file: "a.log".to_owned(), inode: about.ino(), modified, at: 4 };
            let channel = memory(10);
            let (_quit, begun) = inlet(&[&channel], vec![]).await;
            drop(begun.put(Vec::new(), Some(serde_json::to_string(&token).unwrap())).await.unwrap());
            let spool = Spool {
                directory: dir.path().to_owned(),
                after: After::Delete,
                include: None,
                file_header: None,
                basename_header: None,
                poll: Duration::from_secs(1),
                max_line: 100,
            };
            let (handle, stop) = StopHandle::new();
            let running = tokio::spawn(async move { spool.run(begun, stop).await });
            while path.exists() {
                tokio::task::yield_now().await;
            }
            handle.stop();
            running.await.unwrap().unwrap();
            assert_eq!(channel.len(), lines, "{later:?}");
        }
        assert_eq!(serde_json::from_str::<Token>(r#"{"file":"a","inode":1,"at":2}"#).unwrap().modified, None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn lines_are_the_same_whatever_the_pieces(
            text in "[ab\r\n]{0,60}",
            sizes in prop::collection::vec(1_usize..9, 1..60),
        ) {
            let mut want: Vec<&str> = text.split('\n').collect();
            if want.last() == Some(&"") {
                want.pop();
            }
            let want: Vec<&str> = want.iter().map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
            let refused = Cell::new(0);
            let mut lines = Lines { begun: Vec::new(), passing: false, max: 12 };
            let (mut got, mut at, mut taken) = (Vec::new(), 0, 0);
            for size in sizes.into_iter().cycle() {
                let end = (at + size).min(text.len());
                let (bodies, whole) = lines.cut(&text.as_bytes()[at..end], |_| refused.set(refused.get() + 1));
                taken += usize::try_from(whole).unwrap();
                prop_assert!(taken <= text.len());
                prop_assert!(at == end || taken == 0 || refused.get() > 0 || text.as_bytes()[taken - 1] == b'\n');
                got.extend(bodies.iter().map(|body| String::from_utf8_lossy(body).into_owned()));
                if at == end {
                    break;
                }
                at = end;
            }
            let short: Vec<&&str> = want.iter().filter(|line| line.len() <= 12).collect();
            let kept: Vec<&String> = got.iter().collect();
            // A line of just the bound that ends in a carriage return may be told from a longer one only at its end.
            if want.iter().all(|line| line.len() < 12) {
                prop_assert_eq!(kept, short);
                prop_assert_eq!(refused.get(), 0);
                prop_assert_eq!(taken, text.len());
            } else {
                prop_assert!(kept.len() + refused.get() == want.len(), "{} + {} of {}", kept.len(), refused.get(), want.len());
            }
        }
    }
}
