//! Binds, accepts and serves: the one place that touches a socket.
//!
//! Invariant: connections, header size and the time to send a header, or to
//! agree on TLS, are bounded, and after a stop no connection outlives [`PARTING`]. Called by
//! whoever runs a program with a page.

use crate::{
    access::Access,
    api,
    callers::{Callers, Peer},
    gate::Gate,
    guard::Guard,
    inspect::Inspecting,
    live,
    query::Desk,
    rounds::Rounds,
    routes::{PARTS, ROUTES, Route},
    rows::Rendered,
    tls::Tls,
    watch::Watch,
};
use axum::{Router, extract::DefaultBodyLimit, middleware, routing::MethodRouter};
use hyper::{
    Request,
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{collections::BTreeMap, io, net::SocketAddr, pin::pin, sync::Arc};
use tidemill_core::{Answers, Board, Duration, Error, Inspect, Result, Shelf, Stop};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time,
};
use tokio_util::task::TaskTracker;

/// Connections at once. When all are taken, new ones wait in the kernel's
/// backlog until one ends; slow senders are cut off by [`HEADER`].
const CONNECTIONS: usize = 2560;
/// How long a client may take to send a request's header, and how long an idle connection is kept.
const HEADER: Duration = Duration::from_secs(10);
/// Bytes of a request's header; a longer one is answered with 431.
const HEADER_BYTES: usize = 16 * 1024;
/// How long open connections may take to end after a stop.
const PARTING: Duration = Duration::from_secs(1);
/// How long to wait before accepting again when the process is out of file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What every handler reads.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) board: Arc<Board>,
    pub(crate) rendered: Rendered,
    pub(crate) rounds: Rounds,
    pub(crate) watch: Watch,
    pub(crate) stop: Stop,
    /// One permit a live viewer. A viewer too many gets 503 and tries again later.
    pub(crate) viewers: Arc<Semaphore>,
    pub(crate) inspecting: Inspecting,
    /// Where questions come in.
    pub(crate) desk: Desk,
    /// Where notebooks are kept, if anywhere.
    pub(crate) shelf: Option<Arc<dyn Shelf>>,
    /// Whether a token is wanted.
    pub(crate) guarded: bool,
}

/// The web server of one program, bound and ready to run.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    board: Arc<Board>,
    watch: Watch,
    inspecting: Inspecting,
    access: Access,
    answers: Option<Arc<dyn Answers>>,
    longest: Option<Duration>,
    shelf: Option<Arc<dyn Shelf>>,
}

impl Server {
    /// Binds `addr`, which must be a loopback address; port 0 takes any free port.
    ///
    /// # Errors
    /// A user's error when the address is not loopback or the port is busy; it names the fix.
    pub async fn bind(addr: SocketAddr, board: Arc<Board>) -> Result<Self> {
        Self::bind_for(addr, board, Access::default()).await
    }

    /// Binds `addr` for those whom `access` lets in; port 0 takes any free port.
    ///
    /// # Errors
    /// A user's error when `access` is not enough for the address, or the port is busy; it names the fix.
    pub async fn bind_for(addr: SocketAddr, board: Arc<Board>, access: Access) -> Result<Self> {
        access.check(addr)?;
        let listener = TcpListener::bind(addr).await.map_err(|e| refused(addr, e))?;
        let address = listener.local_addr().map_err(|e| refused(addr, e))?;
        let watch = Watch::new(&board);
        let inspecting = Inspecting::default();
        Ok(Self { listener, address, board, watch, access, inspecting, answers: None, longest: None, shelf: None })
    }

    /// Lets the page look at the program beside its batches: a batch run again, a state's rows.
    #[must_use]
    pub fn inspect(mut self, inspect: Arc<dyn Inspect>) -> Self {
        self.inspecting = Inspecting::of(inspect);
        self
    }

    /// Says how long a running program may commit no batch before `/readyz`
    /// calls it stalled (30 s unless set). A program whose batches are further
    /// apart is given three times their usual distance.
    #[must_use]
    pub fn stall_after(mut self, span: Duration) -> Self {
        self.watch.set_stall_after(span);
        self
    }

    /// Lets the notebook ask; without it there is nobody who answers.
    #[must_use]
    pub fn answers(mut self, answers: Arc<dyn Answers>) -> Self {
        self.answers = Some(answers);
        self
    }

    /// How long a question may take (120 s unless set).
    #[must_use]
    pub fn longest_query(mut self, span: Duration) -> Self {
        self.longest = Some(span);
        self
    }

    /// Where notebooks are kept; without it they can be downloaded.
    #[must_use]
    pub fn shelf(mut self, shelf: Arc<dyn Shelf>) -> Self {
        self.shelf = Some(shelf);
        self
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What to open in a browser.
    pub fn url(&self) -> String {
        let scheme = if self.access.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Serves until `stop`, then lets open connections end for at most a second.
    ///
    /// # Errors
    /// None today; a failed accept is logged and retried.
    pub async fn run(self, stop: Stop) -> Result<()> {
        let shared = Arc::new(Shared {
            board: self.board,
            rendered: Rendered::default(),
            rounds: Rounds::default(),
            watch: self.watch,
            stop: stop.clone(),
            viewers: Arc::new(Semaphore::new(live::VIEWERS)),
            inspecting: self.inspecting,
            desk: Desk::new(self.answers, self.longest),
            shelf: self.shelf,
            guarded: self.access.tokens.is_some(),
        });
        let (app, tls) = (app(Arc::clone(&shared), self.address, &self.access), self.access.tls);
        let tasks = TaskTracker::new();
        {
            let shared = Arc::clone(&shared);
            tasks.spawn(async move { shared.watch.follow(&shared.board, &shared.stop).await });
        }
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let accepting = async {
            let mut complained = false;
            loop {
                let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
                match self.listener.accept().await {
                    Ok((stream, peer)) => {
                        complained = false;
                        let (app, tls, stop) = (app.clone(), tls.clone(), stop.clone());
                        tasks.spawn(async move {
                            serve(stream, Peer(peer.ip()), tls, app, &stop).await;
                            drop(slot);
                        });
                    }
                    Err(error) => {
                        if !complained {
                            tracing::warn!(%error, "the web server could not accept a connection; trying again");
                        }
                        complained = true;
                        time::sleep(ACCEPT_AGAIN).await;
                    }
                }
            }
        };
        tokio::select! {
            () = stop.stopped() => {}
            () = accepting => {}
        }
        drop(self.listener);
        tasks.close();
        tasks.wait().await;
        Ok(())
    }
}

/// Serves one connection to its end.
async fn serve(stream: TcpStream, peer: Peer, tls: Option<Tls>, app: Router, stop: &Stop) {
    // Small events should leave at once; a failure only costs delay.
    let _delayed = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return speak(stream, peer, app, stop).await;
    };
    let agreed = tokio::select! {
        agreed = time::timeout(HEADER, tls.acceptor().accept(stream)) => agreed,
        () = stop.stopped() => return,
    };
    match agreed {
        Ok(Ok(stream)) => speak(stream, peer, app, stop).await,
        Ok(Err(error)) => tracing::debug!(%error, "a web connection did not agree on TLS"),
        Err(_) => tracing::debug!("a web connection took too long to agree on TLS"),
    }
}

/// Speaks HTTP until the other side or the server has enough.
async fn speak<S>(stream: S, peer: Peer, app: Router, stop: &Stop)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let app = TowerToHyperService::new(app);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        app.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        // The live feed is a WebSocket for those who ask for one.
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.stopped() => {
            connection.as_mut().graceful_shutdown();
            time::timeout(PARTING, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a web connection ended");
    }
}

/// All routes, each path behind its gate, and all behind the guard. The guard
/// wraps a router that has no routes of its own, so that it sees a request
/// before anything has matched its path.
fn app(shared: Arc<Shared>, address: SocketAddr, access: &Access) -> Router {
    let callers = Arc::new(Callers::new(access.tokens.clone()));
    let mut paths: BTreeMap<&str, Vec<&Route>> = BTreeMap::new();
    for route in PARTS.iter().chain(ROUTES) {
        for path in [Some(route.path), route.before].into_iter().flatten() {
            paths.entry(path).or_default().push(route);
        }
    }
    let mut routes = Router::new();
    for (path, here) in paths {
        let served = here.iter().fold(MethodRouter::new(), |served, route| served.merge((route.serve)()));
        let gate = Arc::new(Gate::new(&here, Arc::clone(&callers)));
        routes = routes.route(path, served.layer(middleware::from_fn_with_state(gate, crate::gate::gate)));
    }
    // The gates bound bodies, each by its own route.
    let routes = routes.fallback(api::elsewhere).layer(DefaultBodyLimit::disable()).with_state(shared);
    Router::new()
        .fallback_service(routes)
        .layer(middleware::from_fn_with_state(Arc::new(Guard::new(address, access)), crate::guard::guard))
}

fn refused(addr: SocketAddr, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::AddrInUse => Error::user(format!(
            "port {} on {} is already in use, perhaps by another Tidemill program: stop that one, \
             or use `--web 127.0.0.1:0` for any free port, or name another port",
            addr.port(),
            addr.ip()
        )),
        io::ErrorKind::PermissionDenied => Error::user(format!(
            "this user may not listen on port {} of {}: use a port above 1023, or `--web 127.0.0.1:0` for any free port",
            addr.port(),
            addr.ip()
        )),
        _ => Error::user(format!("cannot listen on {addr}: use `--web 127.0.0.1:0` for any free port")).because(error),
    }
}
