//! Listening, for all receivers that others connect to.
//!
//! Invariant: at most so many connections are served at a time; further ones
//! wait in the system's queue until one ends. Called by `tcp-listen`, `http`
//! and `syslog`.

use std::{net::SocketAddr, sync::Arc, time::Duration};
use tidemill_core::{Claim, Error, Intake, Result, Stop};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{JoinError, JoinSet},
};

/// After a failed accept (no file descriptor free, say) wait this long.
const PAUSE: Duration = Duration::from_millis(100);

/// What a listener at `address` has for itself; at port 0 each has another.
pub(crate) fn address_claim(address: &str) -> Option<Claim> {
    claim("TCP", address)
}

/// The same for a transport of this name.
pub(crate) fn claim(transport: &str, address: &str) -> Option<Claim> {
    // Port 0 is a free one for each.
    let (host, port) = address.rsplit_once(':').filter(|(_, port)| port.parse() != Ok(0_u16))?;
    let host = if host.eq_ignore_ascii_case("localhost") { "127.0.0.1" } else { host };
    Some(Claim::new(format!("{transport} address {host}:{port}")))
}

/// Listens at `address` for the connector of this name.
///
/// # Errors
/// When it can't: a human has to act.
pub(crate) async fn bind(connector: &str, address: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| taken(connector, address, e))
}

/// Why a connector can't listen.
pub(crate) fn taken(connector: &str, address: &str, error: std::io::Error) -> Error {
    Error::user(format!("{connector}: can't listen at {address}; choose another address or port")).because(error)
}

/// Serves all who connect, `most` at a time, until the stop, or until serving one fails: then the log has.
///
/// # Errors
/// That of `serve`.
pub(crate) async fn accept<W>(
    listener: &TcpListener,
    most: usize,
    intake: &Arc<dyn Intake>,
    stop: &Stop,
    serve: impl Fn(TcpStream, SocketAddr) -> W,
) -> Result<()>
where
    W: Future<Output = Result<()>> + Send + 'static,
{
    let address = listener.local_addr().map_or_else(|_| "?".to_string(), |a| a.to_string());
    // The number of permits is the bound; no permit is left when nobody more is let in.
    let places = Arc::new(Semaphore::new(most));
    let mut served: JoinSet<Result<()>> = JoinSet::new();
    loop {
        let open = most - places.available_permits();
        intake.report(&format!("listening on {address}, {open} connected"));
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await.map_err(std::io::Error::other)?;
            listener.accept().await.map(|(stream, peer)| (place, stream, peer))
        };
        tokio::select! {
            biased;
            () = stop.stopped() => break,
            Some(done) = served.join_next() => ended(done)?,
            accepted = accepted => match accepted {
                Ok((place, stream, peer)) => {
                    let serving = serve(stream, peer);
                    served.spawn(async move {
                        let end = serving.await;
                        drop(place);
                        end
                    });
                }
                Err(error) => {
                    tracing::warn!(%address, %error, "can't accept a connection");
                    intake.report(&format!("listening on {address}, can't accept: {error}"));
                    tokio::select! {
                        () = stop.stopped() => break,
                        () = tokio::time::sleep(PAUSE) => {}
                    }
                }
            },
        }
    }
    // Each hands on what it has; they were told to stop too.
    while let Some(done) = served.join_next().await {
        ended(done)?;
    }
    Ok(())
}

fn ended(done: Result<Result<()>, JoinError>) -> Result<()> {
    done.unwrap_or_else(|error| Err(Error::internal("serving a connection panicked").because(error)))
}
