//! Sink `file`: bodies as lines, in files that roll over.
//!
//! ```text
//! <directory>/<prefix>000000000001.log      the first file, then …0002.log
//! ```
//!
//! A file is closed, and the next one begun, `roll_interval` after its first line, or once it has `roll_size` bytes.
//!
//! Invariant: over a durable channel, exactly once. What was written is synced, then its file and length are kept
//! together with the channel's position; what a crash left behind that length is cut off at the next start. Over a
//! channel in memory nothing is synced, and what is there stays.
//!
//! Files of others stay as they are: what the sink left names its file, so that another directory is begun anew; a crash
//! leaves one file behind that at most, so that nothing but that number is removed, at the start; and a file is never
//! made over another. Files are written on the store's disk, so that a crash can be simulated.

use super::Outlet;
use crate::{channel::blocking, event::Event};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{Clock, Duration, Error, Guarantee, Result, Timestamp};
use tidemill_store::{
    disk::{self, Disk, DiskFile, Mode},
    io_error,
};

/// How files are named and when they roll over.
#[derive(Debug, Clone)]
pub(crate) struct FileConfig {
    pub(crate) directory: PathBuf,
    pub(crate) prefix: String,
    pub(crate) suffix: String,
    /// Rolls over so long after a file's first line; never when `None`.
    pub(crate) every: Option<Duration>,
    /// Rolls over at so many bytes; never when `None`.
    pub(crate) size: Option<u64>,
}

/// Appends bodies as lines to files.
pub(crate) struct FileSink {
    config: FileConfig,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    durable: bool,
    open: Option<Open>,
    /// Number of the newest file.
    number: u64,
    /// Whether it has begun in this life; from then on it knows which file it has made last.
    begun: bool,
    made: Option<u64>,
}

#[derive(Clone)]
struct Open {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    len: u64,
    begun: Timestamp,
}

/// What is kept with the channel's position.
#[derive(Serialize, Deserialize)]
struct Left {
    number: u64,
    /// Of the file of that number; `None` before the sink's first file, when that one is another's.
    len: Option<u64>,
    begun: Timestamp,
    /// The file of that number, also before it is there. What was left in days of old names none: then it is taken
    /// for a file of the sink's present directory.
    #[serde(default)]
    path: Option<PathBuf>,
}

impl Left {
    fn text(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::internal("what a sink leaves").because(e))
    }
}

impl FileSink {
    pub(crate) fn new(config: FileConfig, disk: Arc<dyn Disk>, clock: Arc<dyn Clock>) -> Self {
        Self { config, disk, clock, durable: true, open: None, number: 0, begun: false, made: None }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.config.directory.join(format!("{}{number:012}{}", self.config.prefix, self.config.suffix))
    }

    /// The numbers of the files that are there.
    fn numbers(&self) -> Result<Vec<u64>> {
        let dir = &self.config.directory;
        let names = self.disk.list(dir).map_err(|e| io_error("list", dir, e))?;
        let number = |name: &String| {
            name.strip_prefix(&self.config.prefix)?
                .strip_suffix(&self.config.suffix)
                .filter(|n| n.len() == 12)?
                .parse()
                .ok()
        };
        Ok(names.iter().filter_map(number).collect())
    }

    /// Another writes where this sink does.
    fn strange(path: &Path) -> Error {
        Error::user(format!("{} is not this sink's: give it a directory or a prefix of its own", path.display()))
    }

    /// Goes back to what was committed; `false` when nothing was left for this place, so that it begins anew.
    fn begin(&mut self, left: Option<&str>) -> Result<bool> {
        let dir = self.config.directory.clone();
        disk::create_dir(&*self.disk, &dir).map_err(|e| io_error("create", &dir, e))?;
        self.open = None;
        let there = self.numbers()?;
        let newest = there.iter().copied().max().unwrap_or(0);
        let left: Option<Left> = left
            .map(serde_json::from_str)
            .transpose()
            .map_err(|e| Error::external("what the sink left can't be read").because(e).fatal())?;
        // Files of another place are those of the sink as it was before.
        let here = |left: &Left| left.path.as_ref().is_none_or(|path| *path == self.path(left.number));
        let Some(left) = left.filter(|left| self.durable && here(left)) else {
            // What another life has written may be whole: begin behind it.
            self.number = newest;
            (self.begun, self.made) = (true, None);
            return Ok(false);
        };
        self.number = left.number;
        // Between two commits one file is made at most, and in this life it is known which.
        let next = left.number + 1;
        let own = |number: u64| number == next && (!self.begun || self.made == Some(next));
        if let Some(strange) = there.iter().find(|number| **number > left.number && !own(**number)) {
            return Err(Self::strange(&self.path(*strange)));
        }
        if there.contains(&next) {
            let path = self.path(next);
            self.disk.remove(&path).map_err(|e| io_error("remove", &path, e))?;
        }
        (self.begun, self.made) = (true, None);
        let path = self.path(left.number);
        // A finished file may have been taken away; the next one has a number of its own.
        let Some(committed) = left.len.filter(|_| self.disk.exists(&path)) else { return Ok(true) };
        let cut = || -> io::Result<(Arc<dyn DiskFile>, u64)> {
            let file = self.disk.open(&path, Mode::Append)?;
            let len = file.len()?;
            if len > committed {
                file.truncate(committed)?;
                file.sync()?;
            }
            Ok((file, len))
        };
        let (file, len) = cut().map_err(|e| io_error("open", &path, e))?;
        if len < committed {
            return Err(Error::user(format!(
                "{} has {len} bytes, {} were written and committed: restore it, or move it away",
                path.display(),
                committed
            )));
        }
        self.open = Some(Open { file, path, len: committed, begun: left.begun });
        Ok(true)
    }

    fn left(&self, len: Option<u64>, begun: Timestamp) -> Left {
        Left { number: self.number, len, begun, path: Some(self.path(self.number)) }
    }

    fn write(&mut self, text: &[u8]) -> Result<()> {
        let now = self.clock.now();
        let full = |open: &Open| {
            self.config.size.is_some_and(|size| open.len >= size)
                || self.config.every.is_some_and(|every| now.since(open.begun) >= every)
        };
        let mut open = match self.open.clone().filter(|open| !full(open)) {
            Some(open) => open,
            None => {
                self.number += 1;
                let path = self.path(self.number);
                if self.disk.exists(&path) {
                    return Err(Self::strange(&path));
                }
                self.made = Some(self.number);
                let file = self.disk.open(&path, Mode::Create).map_err(|e| io_error("create", &path, e))?;
                if self.durable {
                    let dir = &self.config.directory;
                    self.disk.sync_dir(dir).map_err(|e| io_error("sync", dir, e))?;
                }
                Open { file, path, len: 0, begun: now }
            }
        };
        open.file.append(&[IoSlice::new(text)]).map_err(|e| io_error("write", &open.path, e))?;
        if self.durable {
            open.file.sync().map_err(|e| io_error("sync", &open.path, e))?;
        }
        open.len += text.len() as u64;
        self.open = Some(open);
        Ok(())
    }
}

#[async_trait]
impl Outlet for FileSink {
    fn describe(&self) -> String {
        format!("file {}", self.path(0).display()).replace("000000000000", "*")
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    async fn open(&mut self, left: Option<String>, durable: bool) -> Result<Option<String>> {
        self.durable = durable;
        if self.begin(left.as_deref())? || !durable {
            return Ok(None);
        }
        // Before the first file: what a crash leaves before the first commit is to go.
        self.left(None, self.clock.now()).text().map(Some)
    }

    async fn deliver(&mut self, events: &[Event]) -> Result<Option<String>> {
        let mut text = Vec::with_capacity(events.iter().map(|event| event.body.len() + 1).sum());
        for event in events {
            text.extend_from_slice(&event.body);
            text.push(b'\n');
        }
        // Moved to the thread that writes, and back.
        let idle = Self::new(self.config.clone(), Arc::clone(&self.disk), Arc::clone(&self.clock));
        let mut sink = std::mem::replace(self, idle);
        let (sink, written) = blocking(move || {
            let written = sink.write(&text);
            Ok((sink, written))
        })
        .await?;
        *self = sink;
        written?;
        let Some(open) = self.open.as_ref().filter(|_| self.durable) else { return Ok(None) };
        self.left(Some(open.len), open.begun).text().map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_core::ManualClock;
    use tidemill_store::SimDisk;

    fn events(names: &[&str]) -> Vec<Event> {
        names.iter().map(|name| Event::new((*name).to_owned(), Timestamp(0))).collect()
    }

    fn sink(disk: &SimDisk, clock: &Arc<ManualClock>) -> FileSink {
        let config = FileConfig {
            directory: "/out".into(),
            prefix: "a-".to_owned(),
            suffix: ".log".to_owned(),
            every: Some(Duration::from_secs(30)),
            size: Some(6),
        };
        FileSink::new(config, Arc::new(disk.clone()), Arc::clone(clock) as Arc<dyn Clock>)
    }

    fn text(disk: &SimDisk, number: u64) -> Option<String> {
        let bytes = disk.contents(Path::new(&format!("/out/a-{number:012}.log")))?;
        Some(String::from_utf8(bytes).unwrap())
    }

    #[tokio::test]
    async fn files_roll_over_by_size_and_by_time() {
        let (disk, clock) = (SimDisk::new(), Arc::new(ManualClock::default()));
        let mut sink = sink(&disk, &clock);
        sink.open(None, true).await.unwrap();
        sink.deliver(&events(&["ebb"])).await.unwrap();
        sink.deliver(&events(&["flow"])).await.unwrap();
        sink.deliver(&events(&["x"])).await.unwrap();
        assert_eq!((text(&disk, 1).as_deref(), text(&disk, 2).as_deref()), (Some("ebb\nflow\n"), Some("x\n")));
        clock.advance(Duration::from_secs(30));
        sink.deliver(&events(&["y"])).await.unwrap();
        assert_eq!((text(&disk, 2).as_deref(), text(&disk, 3).as_deref()), (Some("x\n"), Some("y\n")));
    }

    #[tokio::test]
    async fn what_was_not_committed_is_cut_off_and_its_files_go() {
        let (disk, clock) = (SimDisk::new(), Arc::new(ManualClock::default()));
        let mut first = sink(&disk, &clock);
        first.open(None, true).await.unwrap();
        let left = first.deliver(&events(&["ebb"])).await.unwrap();
        first.deliver(&events(&["flow", "x"])).await.unwrap();
        first.deliver(&events(&["y"])).await.unwrap();
        assert!(text(&disk, 2).is_some());
        drop(first);
        let mut second = sink(&disk, &clock);
        second.open(left, true).await.unwrap();
        assert_eq!((text(&disk, 1).as_deref(), text(&disk, 2)), (Some("ebb\n"), None));
        second.deliver(&events(&["flow"])).await.unwrap();
        assert_eq!(text(&disk, 1).as_deref(), Some("ebb\nflow\n"));
    }

    #[tokio::test]
    async fn what_was_written_before_the_first_commit_goes_and_files_of_others_stay() {
        let (disk, clock) = (SimDisk::new(), Arc::new(ManualClock::default()));
        let mut others = sink(&disk, &clock);
        others.open(None, false).await.unwrap();
        others.deliver(&events(&["other"])).await.unwrap();
        let mut first = sink(&disk, &clock);
        let left = first.open(None, true).await.unwrap();
        assert!(left.is_some());
        first.deliver(&events(&["ebb"])).await.unwrap();
        assert_eq!(text(&disk, 2).as_deref(), Some("ebb\n"));
        let mut second = sink(&disk, &clock);
        second.open(left, true).await.unwrap();
        assert_eq!((text(&disk, 1).as_deref(), text(&disk, 2)), (Some("other\n"), None));
        second.deliver(&events(&["ebb"])).await.unwrap();
        assert_eq!(text(&disk, 2).as_deref(), Some("ebb\n"));
    }

    #[tokio::test]
    async fn a_committed_file_that_shrank_is_refused_and_memory_cuts_nothing() {
        let (disk, clock) = (SimDisk::new(), Arc::new(ManualClock::default()));
        let mut first = sink(&disk, &clock);
        first.open(None, true).await.unwrap();
        let left = first.deliver(&events(&["ebb"])).await.unwrap();
        disk.set_contents(Path::new("/out/a-000000000001.log"), b"eb".to_vec());
        let error = sink(&disk, &clock).open(left, true).await.unwrap_err();
        assert!(error.to_string().contains("has 2 bytes, 4 were written"), "{error}");
        let mut memory = sink(&disk, &clock);
        memory.open(None, false).await.unwrap();
        assert_eq!(memory.deliver(&events(&["x"])).await.unwrap(), None);
        assert_eq!((text(&disk, 1).as_deref(), text(&disk, 2).as_deref()), (Some("eb"), Some("x\n")));
    }

    #[tokio::test]
    async fn files_of_another_place_are_not_touched() {
        let (disk, clock) = (SimDisk::new(), Arc::new(ManualClock::default()));
        let mut others = sink(&disk, &clock);
        others.open(None, false).await.unwrap();
        for name in ["one", "two", "three"] {
            others.deliver(&events(&[name, "filled"])).await.unwrap();
        }
        // The sink was elsewhere, and had committed its first file there.
        let elsewhere = |number: u64| {
            let path = Some(format!("/elsewhere/a-{number:012}.log").into());
            Left { number, len: Some(2), begun: Timestamp(0), path }.text().unwrap()
        };
        let mut moved = sink(&disk, &clock);
        let left = moved.open(Some(elsewhere(1)), true).await.unwrap();
        assert!(left.is_some(), "it begins anew");
        moved.deliver(&events(&["ebb"])).await.unwrap();
        let texts: Vec<_> = (1..5).map(|number| text(&disk, number).unwrap()).collect();
        assert_eq!(texts, ["one\nfilled\n", "two\nfilled\n", "three\nfilled\n", "ebb\n"]);
        // What was left in days of old says nothing of the place: more than a crash leaves is not removed.
        let old = r#"{"number":1,"len":11,"begun":0}"#;
        let error = sink(&disk, &clock).open(Some(old.to_owned()), true).await.unwrap_err();
        assert!(error.to_string().contains("000000000003.log is not this sink's"), "{error}");
        assert_eq!(text(&disk, 2).as_deref(), Some("two\nfilled\n"));
    }

    #[tokio::test]
    async fn two_sinks_in_one_directory_do_not_harm_each_other() {
        let (disk, clock) = (SimDisk::new(), Arc::new(ManualClock::default()));
        let (mut one, mut two) = (sink(&disk, &clock), sink(&disk, &clock));
        one.open(None, true).await.unwrap();
        let left = two.open(None, true).await.unwrap();
        one.deliver(&events(&["ebb"])).await.unwrap();
        for _ in 0..2 {
            let error = two.deliver(&events(&["flow"])).await.unwrap_err();
            assert!(error.to_string().contains("give it a directory or a prefix of its own"), "{error}");
            assert!(two.open(left.clone(), true).await.is_err());
        }
        assert_eq!(text(&disk, 1).as_deref(), Some("ebb\n"));
    }
}
