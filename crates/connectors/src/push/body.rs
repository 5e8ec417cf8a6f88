//! Bodies of requests: read and expanded within bounds.
//!
//! Invariant: no byte is held that was not taken from the [`Room`] before, and
//! an expansion ends at its bound, whatever the body says of its size. Called
//! by [`super::desk`].

use super::answer::Refusal;
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use http_body_util::BodyExt;
use hyper::{
    HeaderMap, StatusCode,
    body::{Body, Incoming},
    header,
};
use std::{
    io::{self, Read},
    sync::Arc,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zstd::stream::read::Decoder as ZstdDecoder;

/// Bytes that are expanded at a time.
const PIECE: usize = 64 << 10;
/// Bytes of a zstd frame's window at most, as a power of two: 8 MiB, which RFC 8878 asks of all decoders.
const WINDOW_LOG: u32 = 23;

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Plain,
    Gzip,
    Zstd,
}

impl Encoding {
    /// What the headers say.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let mut given = headers.get_all(header::CONTENT_ENCODING).iter();
        let name = match (given.next(), given.next()) {
            (None, _) => return Ok(Self::Plain),
            (Some(name), None) => name.to_str().unwrap_or_default().trim().to_ascii_lowercase(),
            (Some(_), Some(_)) => "two of them".to_string(),
        };
        match name.as_str() {
            "" | "identity" => Ok(Self::Plain),
            "gzip" | "x-gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            _ => Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the body's Content-Encoding is not known here",
                "send it as it is, or with Content-Encoding: gzip or zstd",
            )
            .with("accept-encoding", "gzip, zstd, identity")),
        }
    }
}

/// Room for the bodies of all requests.
#[derive(Debug)]
pub(super) struct Room(Arc<Semaphore>);

impl Room {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes)))
    }

    /// Nothing so far.
    pub(super) fn begin(&self) -> Held {
        Held { room: Arc::clone(&self.0), permit: None }
    }
}

/// What one request holds of it, until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    room: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Takes more of it, if it is there; nobody waits for it, as two might wait for one another.
    fn more(&mut self, bytes: usize) -> Result<(), Refusal> {
        let bytes = u32::try_from(bytes).map_err(|_| Refusal::too_many())?;
        let more = Arc::clone(&self.room).try_acquire_many_owned(bytes).map_err(|_| Refusal::too_many())?;
        match &mut self.permit {
            None => self.permit = Some(more),
            Some(permit) => permit.merge(more),
        }
        Ok(())
    }
}

/// Reads a body of at most `most` bytes.
pub(super) async fn read(mut body: Incoming, most: usize, held: &mut Held) -> Result<Vec<u8>, Refusal> {
    let over = || Refusal::too_large(format!("the request has over {most} bytes"), "max_body");
    let told = body.size_hint().exact().map(usize::try_from);
    let mut whole = match told {
        None => Vec::new(),
        Some(Ok(told)) if told <= most => {
            held.more(told)?;
            Vec::with_capacity(told)
        }
        Some(_) => return Err(over()),
    };
    while let Some(frame) = body.frame().await {
        let data: Bytes = match frame.map(hyper::body::Frame::into_data) {
            Ok(Ok(data)) => data,
            Ok(Err(_trailer)) => continue,
            Err(_broken) => return Err(Refusal::bad("the request broke off", "send it again")),
        };
        if whole.len() + data.len() > most {
            return Err(over());
        }
        if told.is_none() {
            held.more(data.len())?;
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole)
}

/// Expands a body to at most `most` bytes.
pub(super) fn expand(encoding: Encoding, body: Vec<u8>, most: usize, held: &mut Held) -> Result<Vec<u8>, Refusal> {
    let (name, expanded) = match encoding {
        Encoding::Plain if body.len() > most => {
            return Err(Refusal::too_large(format!("the request has over {most} bytes"), "max_expanded"));
        }
        Encoding::Plain => return Ok(body),
        Encoding::Gzip => ("gzip", inflate(MultiGzDecoder::new(&body[..]), most, held)),
        Encoding::Zstd => ("zstd", unzstd(&body).and_then(|decoder| inflate(decoder, most, held))),
    };
    expanded.map_err(|fault| match fault {
        Fault::Refused(refusal) => refusal,
        Fault::Broken(error) => {
            let error = format!("the body is not whole {name}: {error}");
            Refusal::bad(error, format!("compress it anew, or leave out Content-Encoding: {name} if it is not"))
        }
    })
}

enum Fault {
    Refused(Refusal),
    Broken(io::Error),
}

fn unzstd(body: &[u8]) -> Result<impl Read + '_, Fault> {
    let mut decoder = ZstdDecoder::with_buffer(body).map_err(Fault::Broken)?;
    decoder.window_log_max(WINDOW_LOG).map_err(Fault::Broken)?;
    Ok(decoder)
}

fn inflate(mut from: impl Read, most: usize, held: &mut Held) -> Result<Vec<u8>, Fault> {
    let (mut whole, mut piece) = (Vec::new(), vec![0; PIECE]);
    loop {
        let read = match from.read(&mut piece) {
            Ok(0) => return Ok(whole),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Fault::Broken(error)),
        };
        if whole.len() + read > most {
            let error = format!("the request has over {most} bytes when it is expanded");
            return Err(Fault::Refused(Refusal::too_large(error, "max_expanded")));
        }
        held.more(read).map_err(Fault::Refused)?;
        whole.extend_from_slice(&piece[..read]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(text, 3).unwrap()
    }

    fn expanded(encoding: Encoding, body: Vec<u8>, most: usize, room: usize) -> Result<Vec<u8>, Refusal> {
        expand(encoding, body, most, &mut Room::new(room).begin())
    }

    #[test]
    fn what_was_compressed_is_expanded_and_what_is_cut_is_told() {
        let text = b"the mill turns with the tide, ".repeat(5000);
        for (encoding, body) in [(Encoding::Gzip, gzip(&text)), (Encoding::Zstd, zstd(&text))] {
            assert_eq!(expanded(encoding, body.clone(), text.len(), text.len()).unwrap(), text);
            // Two in a row are one.
            let two = [body.clone(), body.clone()].concat();
            assert_eq!(expanded(encoding, two, 1 << 20, 1 << 20).unwrap().len(), text.len() * 2);
            for cut in [1, body.len() / 2, body.len() - 1] {
                let refusal = expanded(encoding, body[..cut].to_vec(), 1 << 20, 1 << 20).unwrap_err();
                assert_eq!(refusal.status, StatusCode::BAD_REQUEST, "{encoding:?} cut at {cut}: {refusal:?}");
            }
            let refusal = expanded(encoding, b"{\"plain\":1}".to_vec(), 1 << 20, 1 << 20).unwrap_err();
            assert!(refusal.error.starts_with("the body is not whole"), "{refusal:?}");
        }
    }

    #[test]
    fn a_bomb_ends_at_its_bound() {
        let zeros = vec![0; 4 << 20];
        for (encoding, body) in [(Encoding::Gzip, gzip(&zeros)), (Encoding::Zstd, zstd(&zeros))] {
            assert!(body.len() < 8 << 10, "{}", body.len());
            let room = Room::new(512 << 10);
            let mut held = room.begin();
            let refusal = expand(encoding, body.clone(), 256 << 10, &mut held).unwrap_err();
            assert_eq!(refusal.status, StatusCode::PAYLOAD_TOO_LARGE, "{refusal:?}");
            assert!(room.0.available_permits() >= 256 << 10, "{encoding:?} left {}", room.0.available_permits());
            drop(held);
            assert_eq!(room.0.available_permits(), 512 << 10, "all of it is given back");
            // Below its bound, and more than there is room for.
            let refusal = expanded(encoding, body, 100 << 20, 512 << 10).unwrap_err();
            assert_eq!(refusal.status, StatusCode::TOO_MANY_REQUESTS);
        }
    }

    #[test]
    fn a_window_that_asks_for_much_memory_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(&vec![7; 1000]).unwrap();
        let body = encoder.finish().unwrap();
        let refusal = expanded(Encoding::Zstd, body, 1 << 20, 1 << 20).unwrap_err();
        assert_eq!(refusal.status, StatusCode::BAD_REQUEST, "{refusal:?}");
    }
}
