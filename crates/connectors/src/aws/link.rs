//! Requests of the object store's client, which also fetches credentials, over the connections that all connectors have.
//!
//! Invariant: an answer is bounded; it is whole before it is handed on. Called
//! by the client, which signs requests and repeats those that fail.

use crate::http::{Link, Request, failure::Failure};
use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::BodyExt;
use object_store::{
    ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    },
};
use std::io;

/// Bytes of an answer at most: lists of a thousand names, and our own mark.
const ANSWER: usize = 16 << 20;

/// A link as the client's way to servers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Over(pub(crate) Link);

impl HttpConnector for Over {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

fn failed(kind: HttpErrorKind, why: &impl ToString) -> HttpError {
    HttpError::new(kind, io::Error::other(why.to_string()))
}

#[async_trait]
impl HttpService for Over {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let request = Request::from_parts(head.method, head.uri, head.headers, body)
            .map_err(|why| failed(HttpErrorKind::Unknown, &why))?;
        let passing = |failure: Failure| failed(HttpErrorKind::Interrupted, &failure);
        let mut answer = self.0.send_unmoved(&request).await.map_err(passing)?;
        let whole = answer.whole(ANSWER).await.map_err(passing)?;
        let mut out = HttpResponse::new(HttpResponseBody::from(Bytes::from(whole)));
        *out.status_mut() = answer.status;
        *out.headers_mut() = std::mem::take(&mut answer.headers);
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::proxy::Proxy;
    use object_store::client::HttpRequestBody;
    use std::{sync::Arc, time::Duration};
    use tidemill_core::ManualClock;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    #[tokio::test]
    async fn a_large_object_has_the_time_that_it_needs() {
        // More than lies in the buffers of a connection.
        const BYTES: usize = 16 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/bucket/x", listener.local_addr().unwrap());
        let clock = Arc::new(ManualClock::default());
        let link = Link { proxy: Proxy::Direct, clock: Arc::clone(&clock) as _, ..Link::default() };
        let over = Over(link);
        let put = || {
            let (over, url) = (over.clone(), url.clone());
            let request = hyper::Request::put(url).body(HttpRequestBody::from(vec![7; BYTES])).unwrap();
            tokio::spawn(async move { over.call(request).await })
        };
        for is_whole in [true, false] {
            let sending = put();
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            // The line is slow: nothing more is read for four minutes.
            clock.advance(Duration::from_secs(240));
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert!(!sending.is_finished(), "it may take 30 s, and a second for each 64 KiB");
            if is_whole {
                let mut body = vec![0; BYTES];
                stream.read_exact(&mut body).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                assert_eq!(sending.await.unwrap().unwrap().status(), 200);
            } else {
                clock.advance(Duration::from_secs(60));
                let error = sending.await.unwrap().unwrap_err();
                assert!(format!("{error:?}").contains("no answer within 286 s"), "{error:?}");
            }
        }
    }
}
