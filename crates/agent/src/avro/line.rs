//! A connection that carries frames, compressed or not.
//!
//! With compression each direction is one zlib stream, flushed behind every frame, as Flume's `deflate` has it.
//!
//! Invariant: what is received and not yet a whole frame is bounded by a frame and a piece, also when it is inflated.

use super::{MAX_FRAME, bad, message::Frame};
use bytes::BytesMut;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use socket2::{SockRef, TcpKeepalive};
use std::io;
use tidemill_core::{Duration, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Bytes that are read or inflated at once.
const PIECE: usize = 64 << 10;

/// A connection of frames.
pub(crate) struct Line {
    stream: TcpStream,
    received: BytesMut,
    zip: Option<Box<(Compress, Decompress)>>,
    raw: BytesMut,
    /// Whether the last piece was full: more may come of what was taken already.
    more: bool,
}

impl Line {
    pub(crate) fn new(stream: TcpStream, deflate: bool) -> Self {
        // A call or an answer is one write; nobody gains by waiting for more.
        let _slower = stream.set_nodelay(true);
        let zip = deflate.then(|| Box::new((Compress::new(Compression::new(6), true), Decompress::new(true))));
        Self { stream, received: BytesMut::new(), zip, raw: BytesMut::new(), more: false }
    }

    /// A whole frame that was received.
    ///
    /// # Errors
    /// When it is over the bound, or can't be inflated.
    pub(crate) fn frame(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.received)? {
                return Ok(Some(frame));
            }
            match &mut self.zip {
                Some(zip) if !self.raw.is_empty() || self.more => {
                    self.more = inflate(&mut zip.1, &mut self.raw, &mut self.received)?;
                }
                _ => return Ok(None),
            }
        }
    }

    /// Receives more; 0 is the end.
    pub(crate) async fn receive(&mut self) -> io::Result<usize> {
        let into = if self.zip.is_some() { &mut self.raw } else { &mut self.received };
        into.reserve(PIECE);
        self.stream.read_buf(into).await
    }

    /// Completes when the peer is gone; never while what it has sent is still to be received.
    pub(crate) async fn gone(&self) {
        // Bytes that wait hide what comes behind them.
        if self.stream.peek(&mut [0]).await.is_ok_and(|waiting| waiting > 0) {
            std::future::pending::<()>().await;
        }
    }

    /// Notices within 40 seconds that the peer has vanished without a word, also while nothing is sent.
    pub(crate) fn watch(&self) {
        let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));
        #[cfg(not(windows))]
        let keepalive = keepalive.with_retries(5);
        if let Err(error) = SockRef::from(&self.stream).set_tcp_keepalive(&keepalive) {
            tracing::debug!(%error, "this system can't watch idle connections");
        }
    }

    /// Sends a frame.
    pub(crate) async fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        match &mut self.zip {
            None => self.stream.write_all(frame).await,
            Some(zip) => {
                let bytes = deflate(&mut zip.0, frame)?;
                self.stream.write_all(&bytes).await
            }
        }
    }
}

fn deflate(zip: &mut Compress, frame: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(frame.len() / 2 + 64);
    let begun = zip.total_in();
    loop {
        let done = usize::try_from(zip.total_in() - begun).unwrap_or(frame.len());
        out.reserve(1024);
        zip.compress_vec(&frame[done..], &mut out, FlushCompress::Sync).map_err(io::Error::other)?;
        let all = zip.total_in() - begun == frame.len() as u64;
        // A flush is done when it leaves room.
        if all && out.len() < out.capacity() {
            return Ok(out);
        }
    }
}

/// Inflates a piece; whether it is full.
fn inflate(zip: &mut Decompress, raw: &mut BytesMut, into: &mut BytesMut) -> Result<bool> {
    if into.len() > MAX_FRAME + PIECE {
        return Err(bad("a frame is over 64 MiB: use smaller batches"));
    }
    let mut piece = vec![0; PIECE];
    let (read, written) = (zip.total_in(), zip.total_out());
    let status = zip
        .decompress(raw, &mut piece, FlushDecompress::None)
        .map_err(|_| bad("it can't be inflated: is `compression` the same on both sides?"))?;
    let size = |now: u64, before: u64| usize::try_from(now - before).unwrap_or_default();
    let (read, written) = (size(zip.total_in(), read), size(zip.total_out(), written));
    into.extend_from_slice(&piece[..written]);
    bytes::Buf::advance(raw, read);
    if status == Status::StreamEnd || (read == 0 && written == 0) {
        // Nothing more comes of these bytes by themselves.
        if status == Status::StreamEnd {
            return Err(bad("its compressed stream has ended"));
        }
        raw.clear();
    }
    Ok(written == piece.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_is_watched_and_says_when_its_peer_is_gone() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut line = Line::new(listener.accept().await.unwrap().0, false);
        line.watch();
        assert!(SockRef::from(&line.stream).keepalive().unwrap());
        peer.write_all(b"call").await.unwrap();
        line.stream.readable().await.unwrap();
        assert!(futures::poll!(std::pin::pin!(line.gone())).is_pending(), "it is there");
        assert_eq!(line.receive().await.unwrap(), 4);
        drop(peer);
        line.gone().await;
    }

    #[test]
    fn frames_come_back_through_compression_cut_anywhere() {
        let (mut zip, mut unzip) = (Compress::new(Compression::new(6), true), Decompress::new(true));
        let frames: Vec<Vec<u8>> = (0..20_u32)
            .map(|n| {
                let text: Vec<u8> =
                    (0..n * n * 300).map(|i| (i.wrapping_mul(2_654_435_761) >> (n % 20)).to_le_bytes()[0]).collect();
                Frame::encode(n, &text)
            })
            .collect();
        let (mut received, mut got) = (BytesMut::new(), Vec::new());
        for frame in &frames {
            let bytes = deflate(&mut zip, frame).unwrap();
            for piece in bytes.chunks(977) {
                let mut raw = BytesMut::from(piece);
                let mut more = false;
                while more || !raw.is_empty() {
                    more = inflate(&mut unzip, &mut raw, &mut received).unwrap();
                }
            }
            // A frame is whole as soon as its bytes are there.
            got.push(Frame::decode(&mut received).unwrap().unwrap());
        }
        for (frame, sent) in got.iter().zip(&frames) {
            assert_eq!(&Frame::encode(frame.serial, &frame.bytes), sent);
        }
        assert!(inflate(&mut Decompress::new(true), &mut BytesMut::from(&b"plain text"[..]), &mut received).is_err());
    }
}
