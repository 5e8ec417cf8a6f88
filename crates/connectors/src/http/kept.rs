//! A connection that is kept for one request after another.
//!
//! For whoever asks a server often and little, which a connection a request would hold up: each answer is taken whole,
//! and the connection waits for the next request behind it.
//!
//! Invariant: a connection on which anything went wrong, or which the server has closed, is never used again; what
//! was asked is not asked a second time here, as only the caller knows whether that changes nothing. Called by the
//! sink [`crate::hbase`].

use super::{HEAD, Line, Link, Request, failure::Failure};
use hyper::{HeaderMap, StatusCode};

/// A connection, once there is one; always to the same server.
#[derive(Debug, Default)]
pub(crate) struct Kept(Option<Line>);

/// An answer that was taken whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Kept {
    /// Sends a request and gives the answer, whatever its code, if its body has at most `most` bytes.
    ///
    /// # Errors
    /// When there is no answer.
    pub(crate) async fn ask(&mut self, link: &Link, request: &Request, most: usize) -> Result<Answer, Failure> {
        // Taken out: an error, or a caller that does not wait for the end, leaves none behind.
        let mut waiting = self.0.take();
        if let Some(line) = &mut waiting
            && !matches!(link.within(HEAD, line.sender.ready()).await, Ok(Ok(())))
        {
            waiting = None;
        }
        let mut line = match waiting {
            Some(line) => line,
            None => link.begin(request).await?,
        };
        let mut response = link.exchange(&mut line.sender, request, None).await?;
        let body = response.whole(most).await?;
        self.0 = Some(line);
        Ok(Answer { status: response.status, headers: std::mem::take(&mut response.headers), body })
    }
}
