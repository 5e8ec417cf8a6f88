//! Reading one range of a file of Avro.
//!
//! Invariant: the same range gives the same records with the same offsets, or an error that names the bytes that are
//! gone. Called by [`super::FilesSource`]; what a block is says `format/avro/file.rs`.

use crate::{
    format::avro::file::{BlockRange, Containers, HEADER, Header, SHIFT},
    ranges::{CHUNK, RangeCutter, Step},
};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{Chunk, Error, OffsetRange, Result};

/// Bytes that are read of the beginning at first.
const BEGIN: usize = 64 << 10;

/// What a file says before its first block.
pub(super) fn header(path: &Path, file: &mut File) -> Result<Arc<Header>> {
    let wrong = |why: &str| Error::user(format!("files: {} {why}", path.display()));
    let unread = |e: std::io::Error| Error::external(format!("files: can't read {}", path.display())).because(e);
    let (mut bytes, mut want) = (Vec::new(), BEGIN);
    loop {
        let more = (want - bytes.len()) as u64;
        file.by_ref().take(more).read_to_end(&mut bytes).map_err(unread)?;
        match Header::read(&bytes).map_err(|why| wrong(&why))? {
            Some(header) => return Ok(Arc::new(header)),
            None if bytes.len() < want || want >= HEADER => return Err(wrong("ends within its beginning")),
            None => want *= 8,
        }
    }
}

/// Reads the records of a range.
pub(super) struct BlockReader {
    path: PathBuf,
    range: OffsetRange,
    containers: Arc<Containers>,
    opened: Option<(File, BlockRange)>,
    failed: bool,
}

impl BlockReader {
    pub(super) fn new(path: PathBuf, range: &OffsetRange, containers: Arc<Containers>) -> Self {
        Self { path, range: range.clone(), containers, opened: None, failed: false }
    }

    fn open(&self) -> Result<(File, BlockRange)> {
        let (start, end) = (self.range.start.0 >> SHIFT, self.range.end.0 >> SHIFT);
        let mut file = File::open(&self.path).map_err(|e| {
            let path = self.path.display();
            Error::external(format!("files: bytes [{start}, {end}) of {path} were to be read, but it can't be opened"))
                .because(e)
        })?;
        let size = file.metadata().map_err(|e| self.unread(e))?.len();
        if size < end {
            return Err(Error::user(format!(
                "files: {} has {size} bytes now; bytes [{size}, {end}) that were to be read are gone: it was truncated or rewritten",
                self.path.display()
            )));
        }
        let header = header(&self.path, &mut file)?;
        self.containers.schemas.add(&header);
        let cutter = BlockRange::new(header, start, end, size);
        file.seek(SeekFrom::Start(cutter.begins())).map_err(|e| self.unread(e))?;
        Ok((file, cutter))
    }

    fn unread(&self, error: std::io::Error) -> Error {
        Error::external(format!("files: can't read {}", self.path.display())).because(error)
    }

    fn step(&mut self) -> Result<Option<Chunk>> {
        if self.opened.is_none() {
            self.opened = Some(self.open()?);
        }
        let mut piece = Vec::new();
        loop {
            let Some((file, cutter)) = &mut self.opened else { return Ok(None) };
            match cutter.next() {
                Step::Chunk(chunk) => return Ok(Some(chunk)),
                Step::Done => return Ok(None),
                Step::More => {
                    piece.clear();
                    match file.take(CHUNK as u64).read_to_end(&mut piece) {
                        Ok(0) => cutter.end(),
                        Ok(_) => cutter.push(&piece),
                        Err(e) => return Err(self.unread(e)),
                    }
                }
            }
        }
    }
}

impl Iterator for BlockReader {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.step();
        self.failed = next.is_err();
        next.transpose()
    }
}
