//! Files of Avro, read: object containers, block by block.
//!
//! ```text
//! "Obj" 1 │ schema, codec │ mark │ records │ bytes │ {record …}, by the codec │ mark │ records │ …
//!                                ^ a block begins                                    ^ the next
//! ```
//!
//! An offset is the byte at which a block begins, times 65,536, and then the record's place in the block. A record is
//! handed on with ten bytes in front that name the schema of its file, so that it can be decoded, and run again as a
//! dead letter, by itself: `Ob`, and the first eight bytes of the schema's SHA-256.
//!
//! Invariant: a block belongs to the range that has its first byte. One that is damaged is refused with its place, and
//! reading goes on behind the next mark; no length that a file says is trusted, and at most one block is in memory, of
//! [`MOST`] bytes packed and as many unpacked. Called by the source of files and that of objects.

use super::{
    AvroFormat, given,
    schema::Schema,
    wire::{DEPTH, ENDS, Input},
};
use crate::{
    format::{plans::Writer, time::Unit},
    lines::HEAD,
    ranges::{CHUNK, RangeCutter, Step},
};
use arrow_schema::SchemaRef;
use flate2::{Crc, read::DeflateDecoder};
use memchr::memmem;
use ring::digest;
use std::{
    collections::{HashMap, VecDeque},
    io::Read,
    sync::{Arc, Mutex, PoisonError},
};
use tidemill_core::{Block, Chunk, Error, Format, Offset, Options, Result, Span};

/// Bits that an offset is above a byte.
pub(crate) const SHIFT: u32 = 16;
/// Bytes of a block at most, packed and unpacked.
const MOST: usize = 64 << 20;
/// Bytes before the first block at most.
pub(crate) const HEADER: usize = 4 << 20;
/// Bytes of a mark.
const MARK: usize = 16;
/// What two numbers at the beginning of a block take at most.
const NUMBERS: usize = 20;
/// Records that are handed on together at most.
const ROWS: usize = 16 << 10;
/// Begins a record that is handed on.
const FRAME: &[u8; 2] = b"Ob";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Codec {
    Null,
    Deflate,
    Snappy,
    Zstandard,
}

/// What a file says before its first block.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) schema: Arc<Schema>,
    id: u64,
    codec: Codec,
    mark: [u8; MARK],
    /// Its bytes.
    len: u64,
}

impl Header {
    /// From the first bytes of a file; `None` when there are too few of them.
    ///
    /// # Errors
    /// When it is no file of Avro, or has a schema or a codec that is not known.
    pub(crate) fn read(bytes: &[u8]) -> Result<Option<Self>, String> {
        let begin = &bytes[..bytes.len().min(4)];
        if !b"Obj\x01".starts_with(begin) {
            return Err("is no file of Avro: it does not begin with `Obj` and a 1".to_string());
        }
        let Some(rest) = bytes.get(4..) else { return Ok(None) };
        let mut input = Input::new(rest);
        let (mut schema, mut codec) = (None, None);
        let read = input.items::<&'static str>(|input| {
            let (key, value) = (input.bytes()?, input.bytes()?);
            match key {
                b"avro.schema" => schema = Some(value),
                b"avro.codec" => codec = Some(value),
                _ => {}
            }
            Ok(())
        });
        let mark = match read {
            Ok(()) => input.take(MARK),
            Err(fault) => Err(fault),
        };
        let mark = match mark {
            Ok(mark) => mark,
            Err(ENDS) if bytes.len() < HEADER => return Ok(None),
            Err(fault) => return Err(format!("has a damaged beginning: {fault}")),
        };
        let codec = match codec {
            None | Some(b"null") => Codec::Null,
            Some(b"deflate") => Codec::Deflate,
            Some(b"snappy") => Codec::Snappy,
            Some(b"zstandard") => Codec::Zstandard,
            Some(other) => {
                return Err(format!(
                    "is packed with `{}`; null, deflate, snappy and zstandard can be read",
                    String::from_utf8_lossy(&other[..other.len().min(40)])
                ));
            }
        };
        let text = schema.ok_or("has no schema in its beginning")?;
        let id = digest::digest(&digest::SHA256, text);
        let id = id.as_ref().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let text = std::str::from_utf8(text).map_err(|_| "has a schema that is no text")?;
        let schema = Schema::parse(text, &[]).map_err(|why| format!("has a schema that can't be read: {why}"))?;
        let mark = mark.try_into().map_err(|_| "has no mark")?;
        Ok(Some(Self { schema: Arc::new(schema), id, codec, mark, len: (bytes.len() - input.left()) as u64 }))
    }
}

/// Schemas of files that were read, by what names them in front of a record.
#[derive(Debug, Default)]
pub(crate) struct Schemas(Mutex<HashMap<u64, Arc<Schema>>>);

impl Schemas {
    pub(crate) fn add(&self, header: &Header) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(header.id).or_insert_with(|| Arc::clone(&header.schema));
    }

    pub(super) fn get(&self, id: u64) -> Result<Arc<Schema>, String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&id).cloned().ok_or_else(|| {
            "no file with the record's schema was read since the start: run the letter again once one was".to_string()
        })
    }
}

/// What the record says that was handed on, and its own bytes.
pub(super) fn unframe(record: &[u8]) -> Result<(u64, &[u8]), &'static str> {
    let framed = record.strip_prefix(FRAME).and_then(|rest| rest.split_first_chunk::<8>());
    framed.map(|(id, value)| (u64::from_le_bytes(*id), value)).ok_or("the record does not name its file's schema")
}

/// Files of Avro as a stream reads them.
#[derive(Debug)]
pub(crate) struct Containers {
    reader: Option<Arc<Schema>>,
    number: Unit,
    pub(crate) schemas: Arc<Schemas>,
}

impl Containers {
    /// From a stream's options, when its format is Avro.
    ///
    /// # Errors
    /// When one is wrong.
    pub(crate) fn from_options(options: &Options) -> Result<Option<Self>> {
        if options.get("format") != Some("avro") {
            return Ok(None);
        }
        for (option, why) in [
            ("registry", "files of Avro have their schema in them"),
            ("writer_schema", "files of Avro have the schema that they were written with in them"),
            ("writer_schema_file", "files of Avro have the schema that they were written with in them"),
        ] {
            if options.get(option).is_some() {
                return Err(Error::user(format!("{}: {why}: leave out `{option}`", options.owner())));
            }
        }
        let (reader, number) = (given(options, "schema")?, Unit::from_options(options)?);
        Ok(Some(Self { reader, number, schemas: Arc::default() }))
    }

    /// The format of the records; `first` gives a file to take the columns from that neither the stream nor a schema
    /// names.
    ///
    /// # Errors
    /// When a column can't be filled, or there is no such file.
    pub(crate) fn format(
        &self,
        declared: Option<SchemaRef>,
        first: impl FnOnce() -> Result<Arc<Header>>,
    ) -> Result<Arc<dyn Format>> {
        let declared = match (declared, &self.reader) {
            (None, None) => Some(super::columns::columns(&first()?.schema)),
            (declared, _) => declared,
        };
        let schemas = Arc::clone(&self.schemas);
        let writer = Writer::Known(Arc::new(move |id| schemas.get(id)));
        let format = AvroFormat::new(self.reader.clone(), writer, declared, self.number);
        Ok(Arc::new(format.map_err(|why| Error::user(format!("files of Avro: {why}")))?))
    }
}

/// Cuts blocks into records.
#[derive(Debug)]
pub(crate) struct BlockRange {
    file: Arc<Header>,
    begins: u64,
    end: u64,
    /// Bytes of the file.
    size: u64,
    /// Place of the first byte of `buffer`.
    at: u64,
    buffer: Vec<u8>,
    /// Whether the next mark is looked for.
    seeking: bool,
    ended: bool,
    opened: Option<Opened>,
    ready: VecDeque<Chunk>,
}

/// A block that is unpacked.
#[derive(Debug)]
struct Opened {
    at: u64,
    data: Vec<u8>,
    place: usize,
    row: u64,
    rows: u64,
}

impl Opened {
    fn offset(&self) -> Offset {
        Offset((self.at << SHIFT) + self.row)
    }

    /// The next records, and why there are no more after them.
    fn records(&mut self, file: &Header) -> (Option<Block>, Option<String>) {
        let base = self.offset();
        let (mut bytes, mut spans) = (Vec::new(), Vec::new());
        let mut fault = None;
        while self.row < self.rows && bytes.len() < CHUNK && spans.len() < ROWS {
            let rest = &self.data[self.place..];
            let mut input = Input::loose(rest);
            if let Err(why) = input.skip(&file.schema, file.schema.root(), DEPTH) {
                let (row, behind, at) = (self.row, self.rows - self.row - 1, self.at);
                fault = Some(format!(
                    "record {row} of the block at byte {at}: {why}; the {behind} records behind it in the block can't be told apart"
                ));
                break;
            }
            let count = rest.len() - input.left();
            let start = bytes.len();
            bytes.extend_from_slice(FRAME);
            bytes.extend_from_slice(&file.id.to_le_bytes());
            bytes.extend_from_slice(&rest[..count]);
            // One block is far below 4 GiB.
            let place = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
            spans.push(Span { start: place(start), end: place(bytes.len()) });
            self.place += count;
            self.row += 1;
        }
        let left = self.data.len() - self.place;
        if fault.is_none() && self.row == self.rows && left > 0 {
            fault = Some(format!(
                "{left} bytes are left behind the {} records of the block at byte {}",
                self.rows, self.at
            ));
        }
        let block = (!spans.is_empty()).then(|| {
            let mut block = Block::new(bytes, spans);
            block.base = base;
            block
        });
        (block, fault)
    }
}

/// What the bytes of a block say.
enum Whole {
    More,
    Block {
        len: usize,
        rows: u64,
        data: Vec<u8>,
    },
    /// Why it can't be unpacked, and its bytes where its end is known.
    Damaged(String, Option<usize>),
}

impl BlockRange {
    /// The blocks that begin in `[start, end)`, in bytes, of a file of `size` bytes.
    pub(crate) fn new(file: Arc<Header>, start: u64, end: u64, size: u64) -> Self {
        // The mark that ends the header is before the first block.
        let begins = start.max(file.len).saturating_sub(MARK as u64);
        let (buffer, ready) = (Vec::new(), VecDeque::new());
        Self { file, begins, end, size, at: begins, buffer, seeking: true, ended: false, opened: None, ready }
    }

    fn pass(&mut self, count: usize) {
        self.buffer.drain(..count);
        self.at += count as u64;
    }

    fn refuse(&mut self, offset: Offset, reason: String, from: usize) {
        let raw = self.buffer[from.min(self.buffer.len())..].iter().take(HEAD).copied().collect();
        self.ready.push_back(Chunk::Refused { offset, reason, raw });
    }

    /// Looks at the block at the beginning of the buffer.
    fn whole(&self) -> Whole {
        let damaged = |why: &str| Whole::Damaged(why.to_string(), None);
        if self.buffer.len() < NUMBERS && !self.ended {
            return Whole::More;
        }
        let mut input = Input::new(&self.buffer);
        let (Ok(rows), Ok(len)) = (input.long(), input.long()) else {
            return damaged("its number of records or bytes can't be read");
        };
        let head = self.buffer.len() - input.left();
        let (Ok(rows), Ok(len)) = (u64::try_from(rows), usize::try_from(len)) else {
            return damaged("its number of records or bytes is below zero");
        };
        if len > MOST {
            return damaged(&format!("it has {len} bytes, over the bound of {MOST}"));
        }
        let all = head + len + MARK;
        if self.at + all as u64 > self.size || self.ended && self.buffer.len() < all {
            return damaged("the file ends within it");
        }
        if rows >= (all as u64) << SHIFT {
            return damaged(&format!("{rows} records can't be in {len} bytes"));
        }
        if self.buffer.len() < all {
            return Whole::More;
        }
        if self.buffer[head + len..all] != self.file.mark {
            return damaged("its bytes don't end with the file's mark");
        }
        match unpack(self.file.codec, &self.buffer[head..head + len]) {
            Ok(data) => Whole::Block { len: all, rows, data },
            Err(why) => Whole::Damaged(why, Some(all)),
        }
    }

    /// Goes to the next mark; whether more bytes are needed.
    fn seek(&mut self) -> bool {
        match memmem::find(&self.buffer, &self.file.mark) {
            Some(place) => {
                self.pass(place + MARK);
                self.seeking = false;
                false
            }
            None => {
                // The last bytes may begin a mark.
                self.pass(self.buffer.len().saturating_sub(MARK - 1));
                !self.ended && self.at + (MARK as u64) < self.end
            }
        }
    }
}

impl RangeCutter for BlockRange {
    fn begins(&self) -> u64 {
        self.begins
    }

    fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    fn end(&mut self) {
        self.ended = true;
    }

    fn next(&mut self) -> Step {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Step::Chunk(chunk);
            }
            if let Some(opened) = &mut self.opened {
                let (block, fault) = opened.records(&self.file);
                self.ready.extend(block.map(Chunk::Raw));
                if let Some(reason) = fault {
                    let raw = opened.data[opened.place..].iter().take(HEAD).copied().collect();
                    self.ready.push_back(Chunk::Refused { offset: opened.offset(), reason, raw });
                    self.opened = None;
                } else if opened.row == opened.rows {
                    self.opened = None;
                }
                continue;
            }
            if self.seeking {
                if self.seek() {
                    return Step::More;
                }
                if self.seeking {
                    return Step::Done;
                }
            }
            if self.at >= self.end || self.at >= self.size {
                return Step::Done;
            }
            match self.whole() {
                Whole::More => return Step::More,
                Whole::Block { len, rows, data } => {
                    self.opened = Some(Opened { at: self.at, data, place: 0, row: 0, rows });
                    self.pass(len);
                }
                Whole::Damaged(why, len) => {
                    let at = self.at;
                    let then = if len.is_some() { "" } else { "; what is before the file's next mark is passed over" };
                    self.refuse(Offset(at << SHIFT), format!("the block at byte {at}: {why}{then}"), 0);
                    match len {
                        Some(len) => self.pass(len),
                        None => self.seeking = true,
                    }
                }
            }
        }
    }
}

fn unpack(codec: Codec, packed: &[u8]) -> Result<Vec<u8>, String> {
    let bounded = |reader: &mut dyn Read| {
        let mut data = Vec::new();
        match reader.take(MOST as u64 + 1).read_to_end(&mut data) {
            Err(why) => Err(format!("it can't be unpacked: {why}")),
            Ok(_) if data.len() > MOST => Err(format!("it has more than {MOST} bytes, unpacked")),
            Ok(_) => Ok(data),
        }
    };
    match codec {
        Codec::Null => Ok(packed.to_vec()),
        Codec::Deflate => bounded(&mut DeflateDecoder::new(packed)),
        Codec::Zstandard => {
            let mut reader = zstd::stream::read::Decoder::new(packed).map_err(|why| format!("zstandard: {why}"))?;
            bounded(&mut reader)
        }
        Codec::Snappy => {
            let (packed, sum) = packed.split_last_chunk::<4>().ok_or("it is too short for snappy")?;
            let wrong = |why: snap::Error| format!("it can't be unpacked: {why}");
            let len = snap::raw::decompress_len(packed).map_err(wrong)?;
            if len > MOST {
                return Err(format!("it has {len} bytes, unpacked, over the bound of {MOST}"));
            }
            let data = snap::raw::Decoder::new().decompress_vec(packed).map_err(wrong)?;
            let mut crc = Crc::new();
            crc.update(&data);
            if crc.sum() != u32::from_be_bytes(*sum) {
                return Err("its checksum is another".to_string());
            }
            Ok(data)
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
