//! The nodes, as options name them, the session with them, and what their errors mean.
//!
//! | Option | Meaning |
//! |---|---|
//! | `hosts` | some of the cluster's nodes: `db1.example.org,db2.example.org:9042`; they tell of the others |
//! | `keyspace` | the keyspace, which is there |
//! | `user`, `password_env`, `password_file` | the role, and the environment's variable or the file with its password |
//! | `datacenter` | the datacenter whose nodes are asked; without it all are |
//! | `consistency` | how many replicas confirm a write: `local_quorum` (default), `quorum`, `each_quorum`, `all`, `local_one`, `one`, `two`, `three` |
//! | `tls` | `on`, unless all `hosts` are this machine; `off` |
//! | `ca` | a file with the certificates to trust, instead of those of the web |
//!
//! Invariant: no password stands in a program, a log or an error; nothing waits without an end; a password and rows
//! go over the network without TLS only where `tls` says so. An error that passes by itself is external, one that
//! a human has to mend is the user's. Called by the sink.

use crate::http::secret::Place;
use scylla::{
    client::{PoolSize, execution_profile::ExecutionProfile, session::Session, session_builder::SessionBuilder},
    errors::{
        ConnectionError, ConnectionPoolError, ConnectionSetupRequestErrorKind as Setup, DbError, ExecutionError,
        MetadataError, NewSessionError, PrepareError, RequestAttemptError,
    },
    policies::load_balancing::DefaultPolicy,
    statement::Consistency,
};
use std::{fmt, num::NonZeroUsize, path::PathBuf, sync::Arc, time::Duration};
use tidemill_core::{Error, Options, Result};
use tokio::sync::OnceCell;

/// How long a connection to a node may take, with what is said on it first.
const CONNECT: Duration = Duration::from_secs(10);
/// How long all of it may take until the cluster is known.
const SESSION: Duration = Duration::from_secs(40);
/// How long a request may take, with the tries at other nodes; one that takes longer is given up and repeated, which
/// changes nothing.
const REQUEST: Duration = Duration::from_secs(30);
/// The port of nodes whose host is named without one.
const PORT: u16 = 9042;

/// A keyspace of a cluster.
pub(super) struct Server {
    /// `host:port`, as they are written.
    hosts: Vec<String>,
    pub(super) keyspace: String,
    user: Option<(String, Place)>,
    datacenter: Option<String>,
    consistency: Consistency,
    tls: bool,
    ca: Option<PathBuf>,
    /// For people, without anything secret.
    pub(super) place: String,
    pub(super) session: OnceCell<Arc<Session>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("place", &self.place).finish_non_exhaustive()
    }
}

/// A host with its port, or `None` when it is neither a name nor a number.
fn host(text: &str) -> Option<String> {
    let (name, port) = match text.rsplit_once(':') {
        // Brackets hold the colons of an address of IPv6.
        Some((name, port)) if !port.contains(']') && (!name.contains(':') || name.ends_with(']')) => {
            (name, port.parse().ok()?)
        }
        Some(_) if !text.starts_with('[') => return None,
        _ => (text, PORT),
    };
    let is_sign = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '[' | ']' | ':');
    (!name.is_empty() && name.chars().all(is_sign)).then(|| format!("{name}:{port}"))
}

/// The name in front of a port.
fn name(host: &str) -> &str {
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

/// A name of a keyspace or table.
pub(super) fn is_name(name: &str) -> bool {
    (1..=48).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn consistency(options: &Options) -> Result<Consistency> {
    Ok(match options.get("consistency").unwrap_or("local_quorum").to_lowercase().as_str() {
        "local_quorum" => Consistency::LocalQuorum,
        "quorum" => Consistency::Quorum,
        "each_quorum" => Consistency::EachQuorum,
        "all" => Consistency::All,
        "local_one" => Consistency::LocalOne,
        "one" => Consistency::One,
        "two" => Consistency::Two,
        "three" => Consistency::Three,
        other => {
            return Err(Error::user(format!(
                "{}: option `consistency`: `{other}` is none of local_quorum, quorum, each_quorum, all, local_one, one, two, three",
                options.owner()
            )));
        }
    })
}

impl Server {
    /// From the options of the table above.
    ///
    /// # Errors
    /// When one is missing or wrong, or a password stands in the program.
    pub(super) fn from_options(options: &Options) -> Result<Self> {
        let owner = options.owner();
        let text = options.require("hosts", "it names nodes of the cluster: db1.example.org,db2.example.org:9042")?;
        let mut hosts = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            // The text is not shown: someone may have written a password into it.
            hosts.push(host(part).ok_or_else(|| {
                Error::user(format!(
                    "{owner}: option `hosts` must be like db1.example.org,db2.example.org:9042 (IPv6: [::1]:9042): user and password have options of their own"
                ))
            })?);
        }
        if hosts.is_empty() {
            return Err(Error::user(format!("{owner}: option `hosts` names no host")));
        }
        let keyspace = options.require("keyspace", "it names the keyspace of the table")?;
        if !is_name(keyspace) {
            return Err(Error::user(format!(
                "{owner}: option `keyspace`: `{keyspace}` can't be a keyspace's name: take up to 48 of A-Z a-z 0-9 _"
            )));
        }
        let secret = ["password", "password_file", "password_env"].map(|key| options.get(key).is_some());
        let user = match (options.get("user"), secret.contains(&true)) {
            (Some(user), true) => {
                Some((user.to_string(), Place::from_options(options, "password", "TIDEMILL_CASSANDRA_PASSWORD")?))
            }
            (Some(_), false) => {
                return Err(Error::user(format!(
                    "{owner}: option `user` stands without a password: name the environment's variable that holds it in option `password_env`, or its file in `password_file`"
                )));
            }
            (None, true) => return Err(Error::user(format!("{owner}: there is a password, and no `user`"))),
            (None, false) => None,
        };
        let here = hosts.iter().all(|host| crate::http::is_local(name(host)));
        let tls = match options.get("tls") {
            None => !here,
            Some("on" | "true") => true,
            Some("off" | "false") => false,
            Some(other) => return Err(Error::user(format!("{owner}: option `tls`: `{other}` is neither on nor off"))),
        };
        if tls && cfg!(not(feature = "cassandra-tls")) {
            return Err(Error::user(format!(
                "{owner}: nodes on other machines are reached with TLS, which this build has not for Cassandra: build it with --features cassandra-tls, or, within a network that you trust, set option `tls` to off"
            )));
        }
        let ca = options.get("ca").map(PathBuf::from);
        if ca.is_some() && !tls {
            return Err(Error::user(format!("{owner}: option `ca` is for TLS: set option `tls` to on")));
        }
        Ok(Self {
            place: format!("{}/{keyspace}", hosts.join(",")),
            keyspace: keyspace.to_string(),
            user,
            datacenter: options.get("datacenter").map(str::to_string),
            consistency: consistency(options)?,
            tls,
            ca,
            hosts,
            session: OnceCell::new(),
        })
    }

    /// The nodes, in an order and a spelling of their own, and the keyspace.
    pub(super) fn real_place(&self) -> String {
        let spelled = |host: &String| {
            let (name, port) = host.rsplit_once(':').unwrap_or((host, ""));
            let name = if crate::http::is_local(name) { "localhost".to_string() } else { name.to_lowercase() };
            format!("{name}:{port}")
        };
        let mut hosts: Vec<String> = self.hosts.iter().map(spelled).collect();
        hosts.sort_unstable();
        format!("{}/{}", hosts.join(","), self.keyspace)
    }

    /// At which consistency marks are read and written: what was written is read, by whichever node.
    pub(super) fn for_marks(&self) -> Consistency {
        match self.consistency {
            Consistency::Quorum
            | Consistency::EachQuorum
            | Consistency::All
            | Consistency::Two
            | Consistency::Three => Consistency::Quorum,
            _ => Consistency::LocalQuorum,
        }
    }

    /// The session: it makes connections anew by itself when they break.
    ///
    /// # Errors
    /// When no node can be reached, or none lets us in.
    pub(super) async fn session(&self) -> Result<&Session> {
        let session = self.session.get_or_try_init(|| async { self.connect().await.map(Arc::new) }).await?;
        Ok(session)
    }

    async fn connect(&self) -> Result<Session> {
        let mut balancing = DefaultPolicy::builder();
        if let Some(datacenter) = &self.datacenter {
            balancing = balancing.prefer_datacenter(datacenter.clone());
        }
        let profile = ExecutionProfile::builder()
            .consistency(self.consistency)
            .request_timeout(Some(REQUEST))
            .load_balancing_policy(balancing.build())
            .build();
        let mut builder = SessionBuilder::new()
            .known_nodes(&self.hosts)
            .default_execution_profile_handle(profile.into_handle())
            .connection_timeout(CONNECT)
            .hostname_resolution_timeout(Some(CONNECT))
            .metadata_request_clientside_timeout(REQUEST)
            .pool_size(PoolSize::PerHost(NonZeroUsize::MIN))
            .disallow_shard_aware_port(true)
            .keyspaces_to_fetch([&self.keyspace])
            .custom_identity(
                scylla::client::SelfIdentity::new()
                    .with_application_name("tidemill")
                    .with_application_version(env!("CARGO_PKG_VERSION")),
            );
        if let Some((user, password)) = &self.user {
            builder = builder.user(user, password.read_one()?.expose());
        }
        if self.tls {
            builder = self.with_tls(builder)?;
        }
        match tokio::time::timeout(SESSION, builder.build()).await {
            Ok(done) => done.map_err(|e| self.unreachable(e)),
            Err(_) => Err(Error::external(format!(
                "cassandra: can't reach the cluster at {}: no answer in {} s",
                self.place,
                SESSION.as_secs()
            ))),
        }
    }

    #[cfg(feature = "cassandra-tls")]
    fn with_tls(&self, builder: SessionBuilder) -> Result<SessionBuilder> {
        let names = self.hosts.iter().map(|host| name(host));
        Ok(builder.tls_context(Some(super::tls::config(self.ca.as_deref(), names)?)))
    }

    #[cfg(not(feature = "cassandra-tls"))]
    fn with_tls(&self, _: SessionBuilder) -> Result<SessionBuilder> {
        Err(Error::internal(format!("cassandra: a build without TLS was asked for it, with {:?}", self.ca)))
    }

    /// Why there is no session.
    fn unreachable(&self, error: NewSessionError) -> Error {
        let text = format!("cassandra: can't reach the cluster at {}", self.place);
        let pool = match &error {
            NewSessionError::MetadataError(MetadataError::ConnectionPoolError(pool)) => Some(pool),
            _ => None,
        };
        match pool.and_then(denied) {
            Some(hint) => Error::user(format!("{text}; {hint}")).because(error),
            None => Error::external(text).because(error),
        }
    }

    /// Waits for an answer, not for ever: for what the driver sets no bound to.
    ///
    /// # Errors
    /// When there is none.
    pub(super) async fn within<T>(&self, what: &str, act: impl Future<Output = T>) -> Result<T> {
        tokio::time::timeout(REQUEST, act).await.map_err(|_| {
            Error::external(format!("cassandra: can't {what} at {}: no answer in {} s", self.place, REQUEST.as_secs()))
        })
    }

    /// An error of a request as ours.
    pub(super) fn failed(&self, what: &str, error: ExecutionError) -> Error {
        let text = format!("cassandra: can't {what} at {}", self.place);
        let attempt = match &error {
            ExecutionError::LastAttemptError(attempt)
            | ExecutionError::PrepareError(PrepareError::AllAttemptsFailed { first_attempt: attempt }) => Some(attempt),
            ExecutionError::BadQuery(_) => return Error::internal(text).because(error),
            _ => None,
        };
        match attempt {
            Some(RequestAttemptError::DbError(DbError::Unauthorized, _)) => {
                Error::user(format!("{text}: the role of option `user` may not")).because(error)
            }
            Some(attempt) if !passes(attempt) => Error::user(text).because(error),
            _ if matches!(&error, ExecutionError::EmptyPlan) && self.datacenter.is_some() => {
                Error::user(format!("{text}: is there a datacenter of the name in option `datacenter`?")).because(error)
            }
            _ => Error::external(text).because(error),
        }
    }
}

/// Whether an error passes by itself.
fn passes(error: &RequestAttemptError) -> bool {
    match error {
        RequestAttemptError::DbError(error, _) => !matches!(
            error,
            DbError::SyntaxError
                | DbError::Invalid
                | DbError::AlreadyExists { .. }
                | DbError::FunctionFailure { .. }
                | DbError::AuthenticationError
                | DbError::Unauthorized
                | DbError::ConfigError
                | DbError::ProtocolError
        ),
        RequestAttemptError::SerializationError(_) | RequestAttemptError::CqlRequestSerialization(_) => false,
        _ => true,
    }
}

/// What to change when the nodes do not let us in.
fn denied(error: &ConnectionPoolError) -> Option<&'static str> {
    let ConnectionPoolError::Broken { last_connection_error: ConnectionError::ConnectionSetupRequestError(error) } =
        error
    else {
        return None;
    };
    match error.get_error() {
        Setup::DbError(DbError::AuthenticationError | DbError::Unauthorized, _) => {
            Some("check option `user` and the password that `password_env` or `password_file` names")
        }
        Setup::MissingAuthentication => {
            Some("it asks for a role: name it in option `user`, and where its password is in `password_env`")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(options: &[(&str, &str)]) -> Result<Server> {
        let base = [("keyspace", "shop")];
        Server::from_options(&Options::new("sink \"s\"", base.iter().chain(options).copied()))
    }

    #[test]
    fn hosts_are_told_apart_and_passwords_are_not_told() {
        let place = |hosts: &str| server(&[("hosts", hosts), ("tls", "off")]).unwrap().real_place();
        assert_eq!(place("127.0.0.1"), place("localhost:9042"));
        assert_eq!(place("b, A:1"), "a:1,b:9042/shop");
        assert_eq!(place("[::1]:9043"), "localhost:9043/shop");
        assert_eq!(place("[fd00::2]"), "[fd00::2]:9042/shop");
        for (options, want) in [
            (&[("hosts", "")][..], "names no host"),
            (&[("hosts", "me:hunter2@db")], "options of their own"),
            (&[("hosts", "db:hunter2")], "options of their own"),
            (&[("hosts", "db:99999")], "options of their own"),
            (&[("hosts", "fd00::2")], "[::1]:9042"),
            (&[("hosts", "localhost"), ("user", "me")], "`password_env`"),
            (&[("hosts", "localhost"), ("user", "me"), ("password", "hunter2")], "`password_file`"),
            (&[("hosts", "localhost"), ("password_env", "X")], "no `user`"),
            (&[("hosts", "localhost"), ("consistency", "any")], "is none of local_quorum"),
            (&[("hosts", "localhost"), ("tls", "perhaps")], "neither on nor off"),
            (&[("hosts", "localhost"), ("ca", "x.pem")], "option `ca` is for TLS"),
            (&[("hosts", "localhost"), ("keyspace", "a.b")], "can't be a keyspace's name"),
        ] {
            let error = server(options).unwrap_err().chain();
            assert!(error.contains(want) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn rows_go_over_the_network_with_tls_or_by_consent() {
        let away = server(&[("hosts", "localhost,db.example.org")]);
        if cfg!(feature = "cassandra-tls") {
            assert!(away.unwrap().tls);
        } else {
            let error = away.unwrap_err().to_string();
            assert!(error.contains("--features cassandra-tls") && error.contains("`tls` to off"), "{error}");
        }
        assert!(!server(&[("hosts", "db.example.org"), ("tls", "off")]).unwrap().tls);
        assert!(!server(&[("hosts", "127.0.0.1,[::1]:1")]).unwrap().tls);
    }
}
