//! Reads a range of a partition.
//!
//! Rows near the end come from the tail cache, others from the segment: one
//! read fetches a block of about 64 KiB, or one large frame; its columns share
//! the block's memory.
//!
//! Invariant: exactly the rows asked for, in order, or an error that names the
//! offsets that are missing; after an error the reader ends.

use super::{
    partition::Partition,
    rows::{LogRows, RowsMeta},
    segment::Segment,
};
use crate::{
    disk::{DiskFile, Mode},
    fault::Named,
    frame::{Frame, Header, Kind, MAX_FRAME, Scanner, read_block},
    ipc,
};
use arrow_buffer::Buffer;
use std::sync::Arc;
use tidemill_core::{Error, Offset, Result};

/// An iterator over the rows in `[from, to)` of a partition, frame by frame.
#[derive(Debug)]
pub struct LogReader {
    partition: Arc<Partition>,
    at: u64,
    to: u64,
    block: Option<Block>,
    /// Why nothing can be read at all.
    refused: Option<Error>,
    failed: bool,
}

/// Bytes of a segment that were read and not used up.
#[derive(Debug)]
struct Block {
    segment: Arc<Segment>,
    file: Arc<dyn DiskFile>,
    /// From `position` on.
    bytes: Buffer,
    position: u64,
}

impl LogReader {
    pub(super) fn new(partition: &Arc<Partition>, from: Offset, to: Offset) -> Self {
        Self { partition: Arc::clone(partition), at: from.0, to: to.0, block: None, refused: None, failed: false }
    }

    /// A reader that gives only this error.
    pub(super) fn refusing(partition: &Arc<Partition>, error: Error) -> Self {
        Self { refused: Some(error), ..Self::new(partition, Offset(0), Offset(0)) }
    }

    /// The next run of rows; `None` after the last.
    fn advance(&mut self) -> Result<Option<LogRows>> {
        if let Some(error) = self.refused.take() {
            return Err(error);
        }
        if self.at >= self.to {
            return Ok(None);
        }
        let rows = self.partition.tail.lock().get(self.at);
        let rows = match rows {
            Some(rows) => {
                self.block = None;
                rows
            }
            None => self.read_disk()?,
        };
        let cut = rows.cut(self.at, self.to);
        self.at = cut.next().0;
        Ok(Some(cut))
    }

    fn read_disk(&mut self) -> Result<LogRows> {
        loop {
            let block = match self.block.take() {
                Some(block) if !block.bytes.is_empty() && self.at < block.segment.end() => block,
                other => self.fetch(other)?,
            };
            if let Some(rows) = self.take(block)? {
                return Ok(rows);
            }
        }
    }

    /// Reads the block that holds the next offset.
    fn fetch(&self, last: Option<Block>) -> Result<Block> {
        let (segment, file) = match last.filter(|b| b.segment.first <= self.at && self.at < b.segment.end()) {
            Some(block) => (block.segment, block.file),
            None => self.open()?,
        };
        let (start, end) = segment.block_of(self.at);
        if start >= end || end - start > 2 * MAX_FRAME {
            // No frame is there, or only a damaged stretch is that long.
            let bytes = Buffer::from(Vec::<u8>::new());
            return self.behind_damage(Block { segment, file, bytes, position: start });
        }
        let bytes = read_block(&*file, start, end - start).named("read", &segment.path)?;
        Ok(Block { segment, file, bytes, position: start })
    }

    /// The segment that holds the next offset, opened.
    fn open(&self) -> Result<(Arc<Segment>, Arc<dyn DiskFile>)> {
        let partition = &self.partition;
        let segments = partition.segments.read();
        let (start, end) = (segments.first().map_or(partition.end(), |s| s.first), partition.end());
        if self.at < start {
            return Err(Error::external(format!(
                "{}: offset {} was asked for, the oldest that is kept is {start}: [{}, {}) is gone",
                partition.label(),
                self.at,
                self.at,
                start.min(self.to)
            ))
            .fatal());
        }
        if self.at >= end {
            return Err(Error::external(format!(
                "{}: offsets up to {} were asked for, the log ends at {end}",
                partition.label(),
                self.to
            ))
            .fatal());
        }
        let after = segments.partition_point(|s| s.first <= self.at);
        let segment = Arc::clone(&segments[after - 1]);
        let file = partition.shared.disk.open(&segment.path, Mode::Read).named("open", &segment.path)?;
        Ok((segment, file))
    }

    /// The rows at the next offset from a block; `None` when they lie behind it.
    fn take(&mut self, mut block: Block) -> Result<Option<LogRows>> {
        while !block.bytes.is_empty() {
            // A frame before the offset is passed by its header alone.
            let header = Header::decode(&block.bytes).filter(|h| h.head.salt == block.segment.salt);
            let Some(header) = header.filter(|h| h.head.first <= self.at) else {
                block = self.behind_damage(block)?;
                continue;
            };
            let total = usize::try_from(header.total()).expect("a frame is below 256 MiB");
            if header.end() <= self.at || header.head.rows == 0 {
                block.bytes = block.bytes.slice(total.min(block.bytes.len()));
                block.position += header.total();
                continue;
            }
            let Some(frame) = Frame::parse(&block.bytes).filter(|f| f.head().kind == Kind::Rows) else {
                block = self.behind_damage(block)?;
                continue;
            };
            let rows = self.decode(&frame, &block.segment)?;
            block.bytes = block.bytes.slice(total);
            block.position += header.total();
            self.block = Some(block);
            return Ok(Some(rows));
        }
        if block.segment.block_of(self.at).0 >= block.position && self.at < block.segment.end() {
            return Ok(None);
        }
        self.behind_damage(block).map(|block| {
            self.block = Some(block);
            None
        })
    }

    fn decode(&self, frame: &Frame, segment: &Segment) -> Result<LogRows> {
        let head = frame.head();
        let bad = |why: String| {
            Error::external(format!(
                "{}: offsets [{}, {}) can't be decoded, in {}: {why}",
                self.partition.label(),
                head.first,
                frame.header.end(),
                segment.path.display()
            ))
            .fatal()
        };
        let meta = RowsMeta::decode(frame.meta(), head.rows).ok_or_else(|| bad("the times don't add up".into()))?;
        let rows = ipc::decode_rows(&frame.payload(), &self.partition.shared.schema).map_err(|e| bad(e.to_string()))?;
        if rows.num_rows() != head.rows as usize {
            return Err(bad(format!("{} rows were announced, {} found", head.rows, rows.num_rows())));
        }
        Ok(LogRows { base: Offset(head.first), rows, times: meta.times })
    }

    /// Passes a place where no frame can be read: gives the frame behind it
    /// that holds the next offset, or names the offsets that are lost.
    fn behind_damage(&self, block: Block) -> Result<Block> {
        let Block { segment, file, position, .. } = block;
        let mut scan = Scanner::new(&*file, position).named("read", &segment.path)?;
        scan.len = scan.len.min(segment.extent.read().len);
        let at = self.at;
        let found = scan
            .find(position, |h| h.kind == Kind::Rows && h.salt == segment.salt && h.first + u64::from(h.rows) > at)
            .named("read", &segment.path)?;
        match found {
            Some(header) if header.head.first <= at => {
                let position = scan.at;
                let bytes = read_block(&*file, position, header.total()).named("read", &segment.path)?;
                Ok(Block { segment, file, bytes, position })
            }
            found => {
                let to = found.map_or_else(|| segment.end(), |h| h.head.first);
                Err(Error::external(format!(
                    "{}: offsets [{at}, {to}) are damaged, in {} at byte {position}; restore the file, or read on from {to}",
                    self.partition.label(),
                    segment.path.display()
                ))
                .fatal())
            }
        }
    }
}

impl Iterator for LogReader {
    type Item = Result<LogRows>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.advance().transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}
