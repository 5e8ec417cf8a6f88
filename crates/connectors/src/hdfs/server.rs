//! The way to a NameNode: a client that is made when it is needed, and again when an answer did not come.
//!
//! The client has tasks and connections, some of them shared by all clients of a process, so they live on a runtime of
//! their own, which does not end.
//!
//! Invariant: each wait has an end. Called by the store.

use futures::{StreamExt, stream, stream::BoxStream};
use hdfs_native::{Client, ClientBuilder, HdfsError};
use object_store::Error;
use std::{
    io,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};
use tokio::runtime::Runtime;

/// How long an answer is waited for.
pub(super) const WAIT: Duration = Duration::from_secs(60);
/// Tries of a request to NameNodes that are not there or on standby, before the batch as a whole is tried again.
const TRIES: &str = "5";

static RUNTIME: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("tidemill-hdfs").enable_all().build()
});

/// Where the NameNodes are, and as whom they are asked.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) address: String,
    pub(super) user: Option<String>,
    /// The directory of `core-site.xml` and `hdfs-site.xml`.
    pub(super) conf: Option<String>,
    pub(super) client: Arc<Mutex<Option<Client>>>,
}

/// What the client says, as the trait says it.
pub(super) fn told(path: &str, error: HdfsError) -> Error {
    let path = path.to_string();
    match read_failed(error) {
        HdfsError::FileNotFound(said) => Error::NotFound { path, source: HdfsError::FileNotFound(said).into() },
        HdfsError::AlreadyExists(said) => Error::AlreadyExists { path, source: HdfsError::AlreadyExists(said).into() },
        // For some requests it is a refusal by its kind.
        HdfsError::RPCError(kind, said)
            if kind.ends_with("ParentNotDirectoryException") || said.contains("(is not a directory)") =>
        {
            Error::NotSupported { source: HdfsError::RPCError(kind, said).into() }
        }
        HdfsError::RPCError(kind, said) | HdfsError::FatalRPCError(kind, said) if is_refusal(&kind) => {
            Error::PermissionDenied { path, source: HdfsError::RPCError(kind, said).into() }
        }
        error @ (HdfsError::NoSASLMechanism | HdfsError::SASLError(_) | HdfsError::GSSAPIError(..)) => {
            Error::Unauthenticated { path, source: error.into() }
        }
        error => Error::Generic { store: "hdfs", source: error.into() },
    }
}

fn is_refusal(kind: &str) -> bool {
    ["AccessControlException", "AuthorizationException", "InvalidToken"].iter().any(|end| kind.ends_with(end))
}

/// The server's word for a file that is not there, which the client makes its own for some requests alone.
pub(super) fn read_failed(error: HdfsError) -> HdfsError {
    match error {
        HdfsError::RPCError(kind, said) if kind == "java.io.FileNotFoundException" => HdfsError::FileNotFound(said),
        error => error,
    }
}

impl Server {
    /// The client there is, or a new one; nothing is asked of a server yet.
    pub(super) fn client(&self) -> Result<Client, Error> {
        let mut kept = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*kept {
            return Ok(client.clone());
        }
        let failed = |source| Error::Generic { store: "hdfs", source };
        let runtime = RUNTIME.as_ref().map_err(|e| failed(e.to_string().into()))?;
        let mut builder = ClientBuilder::new()
            .with_url(&self.address)
            .with_config([("dfs.client.failover.max.attempts", TRIES)])
            .with_io_runtime(runtime.handle().clone());
        if let Some(user) = &self.user {
            builder = builder.with_user(user);
        }
        if let Some(conf) = &self.conf {
            builder = builder.with_config_dir(conf);
        }
        let client = builder.build().map_err(|e| failed(e.into()))?;
        Ok(kept.insert(client).clone())
    }

    /// Another connection is to be made.
    fn forget(&self) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What a work of the client gives within a time.
    pub(super) async fn asked<T, F>(&self, longest: Duration, work: impl FnOnce(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = hdfs_native::Result<T>>,
    {
        let client = self.client()?;
        match tokio::time::timeout(longest, work(client)).await {
            Ok(done) => done.map_err(|error| told(&self.address, error)),
            Err(_) => Err(self.silent(longest)),
        }
    }

    fn silent(&self, longest: Duration) -> Error {
        self.forget();
        let why = format!("{} gave no answer within {} s", self.address, longest.as_secs());
        Error::Generic { store: "hdfs", source: why.into() }
    }

    /// The same of a stream, for each item; behind one that did not come there is none.
    pub(super) fn paced<T: Send + 'static>(
        &self,
        items: BoxStream<'static, Result<T, Error>>,
    ) -> BoxStream<'static, Result<T, Error>> {
        let server = self.clone();
        stream::unfold(Some(items), move |items| {
            let server = server.clone();
            async move {
                let mut items = items?;
                match tokio::time::timeout(WAIT, items.next()).await {
                    Ok(item) => item.map(|item| (item, Some(items))),
                    Err(_) => Some((Err(server.silent(WAIT)), None)),
                }
            }
        })
        .boxed()
    }
}
