//! Checksummed frames: the unit in which log, ledger and state are written.
//!
//! ```text
//! ┌──────────── 64 bytes ───────────┬──── meta ────┬──────── payload ────────┐
//! │ magic … lengths … crc of header │ zeros to 16  │ zeros to 16             │
//! └─────────────────────────────────┴──────────────┴─────────────────────────┘
//! ```
//!
//! The layout, byte by byte, is in `docs/formats/log.md`. Lengths are believed
//! only under a good checksum, and never beyond the file or [`MAX_FRAME`].
//!
//! Invariant: a frame is handed out whole and checked, or not at all. Frames
//! begin at multiples of 16, so that columns read from them are aligned.

use crate::disk::{DiskFile, Mode};
use arrow_buffer::{Buffer, MutableBuffer};
use std::io::{self, IoSlice};

/// Length of a frame's header.
pub(crate) const HEADER: usize = 64;
/// Longest frame that is written or read.
pub(crate) const MAX_FRAME: u64 = 256 << 20;
/// Version of everything on disk that this build writes, and the newest that it reads.
pub(crate) const VERSION: u8 = 1;

const MAGIC: [u8; 4] = *b"TMF1";
const ALIGN: usize = 16;
/// How much a scan reads at once.
const WINDOW: u64 = 1 << 20;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The beginning of a segment or state file.
    Head = 1,
    /// Rows in Arrow's IPC form.
    Rows = 2,
    /// The index of a segment.
    Index = 3,
    /// A record of the ledger.
    Ledger = 4,
    /// The end of a state file.
    Foot = 5,
}

impl Kind {
    fn from(code: u8) -> Option<Self> {
        [Self::Head, Self::Rows, Self::Index, Self::Ledger, Self::Foot].into_iter().find(|k| *k as u8 == code)
    }
}

/// The fields of a header that its writer chooses; see `docs/formats/log.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) first: u64,
    pub(crate) rows: u32,
    pub(crate) salt: u32,
    pub(crate) synced: u64,
    pub(crate) time: i64,
}

/// A header as read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) head: Head,
    meta_len: u32,
    payload_len: u32,
    crc: u32,
}

fn padded(len: u64) -> u64 {
    len.next_multiple_of(ALIGN as u64)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Header {
    /// Reads a header; `None` when it is not one, or is of a version or kind that this build doesn't know.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER)?;
        if bytes[..4] != MAGIC || u32_at(bytes, 60) != crc32c::crc32c(&bytes[..60]) || bytes[4] != VERSION {
            return None;
        }
        let header = Self {
            head: Head {
                kind: Kind::from(bytes[5])?,
                first: u64_at(bytes, 16),
                rows: u32_at(bytes, 24),
                salt: u32_at(bytes, 28),
                synced: u64_at(bytes, 32),
                time: u64_at(bytes, 40).cast_signed(),
            },
            meta_len: u32_at(bytes, 8),
            payload_len: u32_at(bytes, 12),
            crc: u32_at(bytes, 48),
        };
        (header.total() <= MAX_FRAME).then_some(header)
    }

    /// Length of the whole frame.
    pub(crate) fn total(&self) -> u64 {
        HEADER as u64 + padded(self.meta_len.into()) + padded(self.payload_len.into())
    }

    /// First offset after the frame.
    pub(crate) fn end(&self) -> u64 {
        self.head.first.saturating_add(self.head.rows.into())
    }
}

/// A frame ready to be written.
#[derive(Debug)]
pub(crate) struct Sealed {
    header: [u8; HEADER],
    meta: Vec<u8>,
    payload: Vec<Buffer>,
    pad: usize,
    total: u64,
}

/// The frame exceeds [`MAX_FRAME`].
#[derive(Debug, thiserror::Error)]
#[error("a frame of {0} bytes exceeds the bound of {MAX_FRAME}")]
pub(crate) struct TooLong(pub(crate) u64);

impl Sealed {
    /// Puts header and checksums around `meta` and `payload`; the payload is not copied.
    pub(crate) fn new(head: Head, mut meta: Vec<u8>, payload: Vec<Buffer>) -> Result<Self, TooLong> {
        const ZEROS: [u8; ALIGN] = [0; ALIGN];
        let meta_len = meta.len() as u64;
        let payload_len: u64 = payload.iter().map(|b| b.len() as u64).sum();
        let total = HEADER as u64 + padded(meta_len) + padded(payload_len);
        let (Ok(meta_32), Ok(payload_32), true) =
            (u32::try_from(meta_len), u32::try_from(payload_len), total <= MAX_FRAME)
        else {
            return Err(TooLong(total));
        };
        meta.resize(meta.len().next_multiple_of(ALIGN), 0);
        let pad = usize::try_from(padded(payload_len) - payload_len).expect("below 16");
        let mut crc = crc32c::crc32c(&meta);
        for part in &payload {
            crc = crc32c::crc32c_append(crc, part);
        }
        crc = crc32c::crc32c_append(crc, &ZEROS[..pad]);

        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&MAGIC);
        header[4] = VERSION;
        header[5] = head.kind as u8;
        header[8..12].copy_from_slice(&meta_32.to_le_bytes());
        header[12..16].copy_from_slice(&payload_32.to_le_bytes());
        header[16..24].copy_from_slice(&head.first.to_le_bytes());
        header[24..28].copy_from_slice(&head.rows.to_le_bytes());
        header[28..32].copy_from_slice(&head.salt.to_le_bytes());
        header[32..40].copy_from_slice(&head.synced.to_le_bytes());
        header[40..48].copy_from_slice(&head.time.to_le_bytes());
        header[48..52].copy_from_slice(&crc.to_le_bytes());
        let own = crc32c::crc32c(&header[..60]);
        header[60..].copy_from_slice(&own.to_le_bytes());
        Ok(Self { header, meta, payload, pad, total })
    }

    /// Length of the whole frame.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Appends the frame to a file.
    pub(crate) fn write(&self, file: &dyn DiskFile) -> io::Result<()> {
        const ZEROS: [u8; ALIGN] = [0; ALIGN];
        let mut parts = Vec::with_capacity(self.payload.len() + 3);
        parts.push(IoSlice::new(&self.header));
        parts.push(IoSlice::new(&self.meta));
        parts.extend(self.payload.iter().map(|b| IoSlice::new(b)));
        parts.push(IoSlice::new(&ZEROS[..self.pad]));
        file.append(&parts)
    }

    /// The frame as one run of bytes; for small files that are written whole.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header.to_vec();
        bytes.extend_from_slice(&self.meta);
        self.payload.iter().for_each(|b| bytes.extend_from_slice(b));
        bytes.resize(bytes.len() + self.pad, 0);
        bytes
    }
}

/// A whole, checked frame.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) header: Header,
    /// The bytes of the frame, header included.
    bytes: Buffer,
}

impl Frame {
    /// The frame at the beginning of `bytes`, which may go on after it.
    /// `None` when it is incomplete or its checksum is wrong.
    pub(crate) fn parse(bytes: &Buffer) -> Option<Self> {
        let header = Header::decode(bytes)?;
        let total = usize::try_from(header.total()).ok()?;
        let body = bytes.get(HEADER..total)?;
        (crc32c::crc32c(body) == header.crc).then(|| Self { header, bytes: bytes.slice_with_length(0, total) })
    }

    pub(crate) fn head(&self) -> &Head {
        &self.header.head
    }

    pub(crate) fn meta(&self) -> &[u8] {
        &self.bytes[HEADER..HEADER + self.header.meta_len as usize]
    }

    /// The payload, sharing the frame's memory.
    pub(crate) fn payload(&self) -> Buffer {
        let at = HEADER as u64 + padded(self.header.meta_len.into());
        let at = usize::try_from(at).expect("inside the frame");
        self.bytes.slice_with_length(at, self.header.payload_len as usize)
    }
}

/// Reads `len` bytes at `position` into aligned memory.
pub(crate) fn read_block(file: &dyn DiskFile, position: u64, len: u64) -> io::Result<Buffer> {
    let len = usize::try_from(len).map_err(|_| io::Error::other("a block exceeds the address space"))?;
    let mut bytes = MutableBuffer::from_len_zeroed(len);
    file.read_at(position, &mut bytes)?;
    Ok(bytes.into())
}

/// Walks the frames of a file in large reads.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    file: &'a dyn DiskFile,
    /// Length of the file when the scan began.
    pub(crate) len: u64,
    /// Where the next frame is looked for.
    pub(crate) at: u64,
    window: Buffer,
    window_at: u64,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(file: &'a dyn DiskFile, at: u64) -> io::Result<Self> {
        Ok(Self { file, len: file.len()?, at, window: Buffer::from(Vec::<u8>::new()), window_at: at })
    }

    /// At least `len` bytes from `at`, or all that the file has.
    fn view(&mut self, at: u64, len: u64) -> io::Result<Buffer> {
        let len = len.min(self.len.saturating_sub(at));
        let inside = at >= self.window_at && at + len <= self.window_at + self.window.len() as u64;
        if !inside {
            let read = len.max(WINDOW).min(self.len.saturating_sub(at));
            self.window = read_block(self.file, at, read)?;
            self.window_at = at;
        }
        let skip = usize::try_from(at - self.window_at).expect("inside the window");
        Ok(self.window.slice(skip))
    }

    /// The frame at `at` and moves past it; `None`, without moving, when there is no whole one.
    pub(crate) fn next(&mut self) -> io::Result<Option<Frame>> {
        let Some(frame) = self.frame_at(self.at)? else { return Ok(None) };
        self.at += frame.header.total();
        Ok(Some(frame))
    }

    fn frame_at(&mut self, at: u64) -> io::Result<Option<Frame>> {
        let head = self.view(at, HEADER as u64)?;
        let Some(header) = Header::decode(&head) else { return Ok(None) };
        if header.total() > self.len.saturating_sub(at) {
            return Ok(None);
        }
        Ok(Frame::parse(&self.view(at, header.total())?))
    }

    /// Looks for the next whole frame that `accept` takes, after the bad one at
    /// `at`, and moves to it. `None`, without moving, when there is none.
    pub(crate) fn resync(&mut self, accept: impl Fn(&Head) -> bool) -> io::Result<Option<Header>> {
        self.find(self.at + ALIGN as u64, accept)
    }

    /// The same, from position `at` on.
    pub(crate) fn find(&mut self, mut at: u64, accept: impl Fn(&Head) -> bool) -> io::Result<Option<Header>> {
        while at + HEADER as u64 <= self.len {
            let view = self.view(at, HEADER as u64)?;
            // All complete headers in the window, without reading again.
            let steps = (view.len() - HEADER) / ALIGN;
            let hit = (0..=steps).find(|i| {
                let bytes = &view[i * ALIGN..];
                bytes[..4] == MAGIC && Header::decode(bytes).is_some_and(|h| accept(&h.head))
            });
            let Some(hit) = hit else {
                at += ((steps + 1) * ALIGN) as u64;
                continue;
            };
            at += (hit * ALIGN) as u64;
            if let Some(frame) = self.frame_at(at)? {
                self.at = at;
                return Ok(Some(frame.header));
            }
            at += ALIGN as u64;
        }
        Ok(None)
    }
}

/// Opens a file and gives its first frame with the position after it.
pub(crate) fn first_frame(disk: &dyn crate::Disk, path: &std::path::Path) -> io::Result<Option<(Frame, u64)>> {
    let file = disk.open(path, Mode::Read)?;
    let mut scan = Scanner::new(&*file, 0)?;
    Ok(scan.next()?.map(|frame| (frame, scan.at)))
}
